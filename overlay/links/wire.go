package links

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

// Conversions between the words of this package and those on the wire. Reading is lenient: an address that cannot be
// read is a zero one, which Validate refuses where it matters.

func netipUnmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func addrPortText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func readAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

func readAddrPort(s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}
	}
	return a
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromWire(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func planToWire(p overlay.Plan) *linksv1.Plan {
	w := &linksv1.Plan{Version: int32(p.Version), Fabric: p.Fabric, Gateway: p.Gateway, Vtep: addrText(p.VTEP), Listener: listenerToWire(p.Listener)}
	for _, t := range p.Tunnels {
		w.Tunnels = append(w.Tunnels, &linksv1.Tunnel{
			Device: t.Device, Name: t.Name, Remote: t.Remote, Rank: int32(t.Rank), Kind: t.Kind, Mtu: int32(t.MTU),
			LinkLocal: addrText(t.LinkLocal), RemoteLinkLocal: addrText(t.RemoteLinkLocal),
			ListenPort: int32(t.ListenPort), Endpoint: addrPortText(t.Endpoint),
			PublicKey: t.PublicKey, PrivateKeyFile: t.PrivateKeyFile, Keepalive: int32(t.Keepalive), Bfd: timersToWire(t.BFD),
			Carrier: carrierToWire(t.Carrier),
			Local:   addrText(t.Local), Vni: t.VNI,
			PresharedKeyFile: t.PresharedKeyFile, RekeyAgeS: int64(t.RekeyAge), Slots: slotsToWire(t.Slots),
		})
	}
	for _, v := range p.VTEPs {
		w.Vteps = append(w.Vteps, &linksv1.RemoteVTEP{Gateway: v.Gateway, Addr: addrText(v.Addr), Devices: v.Devices, Problem: v.Problem, Via: v.Via, Bfd: timersToWire(v.BFD)})
	}
	for _, n := range p.NextHops {
		w.NextHops = append(w.NextHops, &linksv1.NextHop{Id: n.ID, Device: n.Device, Gateway: addrText(n.Gateway), Vni: n.VNI, Vtep: addrText(n.VTEP)})
	}
	for _, s := range p.Sessions {
		w.Sessions = append(w.Sessions, &linksv1.Session{
			Bfd: timersToWire(&s.BFD), Name: s.Name, Vrf: s.VRF, Peer: s.Peer, VrfDevice: s.VRFDevice, Interface: s.Interface,
			Local: addrText(s.Local), Remote: addrText(s.Remote), Multihop: s.Multihop, MinTtl: int32(s.MinTTL),
			Auth: s.Auth, KeyId: int32(s.KeyID), KeyFile: s.KeyFile,
		})
	}
	setsToWire(p, w)
	return w
}

func timersToWire(b *overlay.BFD) *linksv1.BFD {
	if b == nil {
		return nil
	}
	return &linksv1.BFD{IntervalMs: int32(b.IntervalMs), Multiplier: int32(b.Multiplier)}
}

func timersFromWire(w *linksv1.BFD) *overlay.BFD {
	if w == nil {
		return nil
	}
	return &overlay.BFD{IntervalMs: int(w.GetIntervalMs()), Multiplier: int(w.GetMultiplier())}
}

func planFromWire(w *linksv1.Plan) overlay.Plan {
	p := overlay.Plan{Version: int(w.GetVersion()), Fabric: w.GetFabric(), Gateway: w.GetGateway(), VTEP: readAddr(w.GetVtep()), Listener: listenerFromWire(w.GetListener())}
	for _, t := range w.GetTunnels() {
		p.Tunnels = append(p.Tunnels, overlay.Tunnel{
			Device: t.GetDevice(), Name: t.GetName(), Remote: t.GetRemote(), Rank: int(t.GetRank()), Kind: t.GetKind(), MTU: int(t.GetMtu()),
			LinkLocal: readAddr(t.GetLinkLocal()), RemoteLinkLocal: readAddr(t.GetRemoteLinkLocal()),
			ListenPort: int(t.GetListenPort()), Endpoint: readAddrPort(t.GetEndpoint()),
			PublicKey: t.GetPublicKey(), PrivateKeyFile: t.GetPrivateKeyFile(), Keepalive: int(t.GetKeepalive()), BFD: timersFromWire(t.GetBfd()),
			Carrier: carrierFromWire(t.GetCarrier()),
			Local:   readAddr(t.GetLocal()), VNI: t.GetVni(),
			PresharedKeyFile: t.GetPresharedKeyFile(), RekeyAge: int(t.GetRekeyAgeS()), Slots: slotsFromWire(t.GetSlots()),
		})
	}
	for _, v := range w.GetVteps() {
		p.VTEPs = append(p.VTEPs, overlay.RemoteVTEP{
			Gateway: v.GetGateway(), Addr: readAddr(v.GetAddr()), Devices: v.GetDevices(), Problem: v.GetProblem(),
			Via: v.GetVia(), BFD: timersFromWire(v.GetBfd()),
		})
	}
	for _, n := range w.GetNextHops() {
		p.NextHops = append(p.NextHops, overlay.NextHop{ID: n.GetId(), Device: n.GetDevice(), Gateway: readAddr(n.GetGateway()), VNI: n.GetVni(), VTEP: readAddr(n.GetVtep())})
	}
	for _, s := range w.GetSessions() {
		session := overlay.Session{
			Name: s.GetName(), VRF: s.GetVrf(), Peer: s.GetPeer(), VRFDevice: s.GetVrfDevice(), Interface: s.GetInterface(),
			Local: readAddr(s.GetLocal()), Remote: readAddr(s.GetRemote()), Multihop: s.GetMultihop(), MinTTL: int(s.GetMinTtl()),
			Auth: s.GetAuth(), KeyID: int(s.GetKeyId()), KeyFile: s.GetKeyFile(),
		}
		if b := timersFromWire(s.GetBfd()); b != nil {
			session.BFD = *b
		}
		p.Sessions = append(p.Sessions, session)
	}
	setsFromWire(w, &p)
	return p
}

func objectsToWire(objects []Object) []*linksv1.ObjectState {
	var w []*linksv1.ObjectState
	for _, o := range objects {
		w = append(w, &linksv1.ObjectState{Kind: o.Kind, Name: o.Name, Status: linksv1.Status(o.Status), Message: o.Message})
	}
	return w
}

func objectsFromWire(w []*linksv1.ObjectState) []Object {
	var objects []Object
	for _, o := range w {
		objects = append(objects, Object{Kind: o.GetKind(), Name: o.GetName(), Status: Status(o.GetStatus()), Message: o.GetMessage()})
	}
	return objects
}

func stateToWire(s *State) *linksv1.State {
	w := &linksv1.State{
		Gateway: s.Gateway, Digest: s.Digest, Version: s.Version, Started: timeToWire(s.Started),
		Problems: objectsToWire(s.Problems),
	}
	for _, t := range s.Tunnels {
		w.Tunnels = append(w.Tunnels, &linksv1.TunnelState{
			Device: t.Device, Name: t.Name, Remote: t.Remote, Rank: int32(t.Rank), Kind: t.Kind, Implementation: t.Implementation,
			State: t.State, Reason: t.Reason, Since: timeToWire(t.Since), Active: t.Active,
			Endpoint: addrPortText(t.Endpoint), ListenPort: int32(t.ListenPort), LastHandshake: timeToWire(t.LastHandshake),
			RxBytes: t.RxBytes, TxBytes: t.TxBytes, Mtu: int32(t.MTU), Error: t.Err, Drained: t.Drained,
			Path:          pathToWire(t.Path),
			KeyGeneration: int64(t.KeyGeneration), KeyMade: timeToWire(t.KeyMade), Rotation: t.Rotation,
		})
	}
	for _, v := range s.VTEPs {
		w.Vteps = append(w.Vteps, &linksv1.VTEPState{Gateway: v.Gateway, Addr: addrText(v.Addr), Device: v.Device, Devices: v.Devices, Reason: v.Reason, Since: timeToWire(v.Since)})
	}
	for _, n := range s.NextHops {
		w.NextHops = append(w.NextHops, &linksv1.NextHopState{Id: n.ID, Device: n.Device, Vtep: addrText(n.VTEP), Vni: n.VNI, Ready: n.Ready, Reason: n.Reason})
	}
	for _, b := range s.Sessions {
		w.Sessions = append(w.Sessions, &linksv1.SessionState{
			Name: b.Name, Device: b.Device, Vrf: b.VRF, Peer: b.Peer, Interface: b.Interface,
			Local: addrText(b.Local), Remote: addrText(b.Remote), Multihop: b.Multihop,
			State: b.State, Reason: b.Reason, Since: timeToWire(b.Since),
			RemoteState: b.RemoteState, RemoteDiag: b.RemoteDiag, RemoteAdminDown: b.RemoteAdminDown,
			TxInterval: durationpb.New(b.TxInterval), Detection: durationpb.New(b.Detection),
			Received: b.Received, Sent: b.Sent, Ups: b.Ups, Downs: b.Downs, Dropped: b.Dropped, Problem: b.Problem,
		})
	}
	w.Sets = setStatesToWire(s.Sets)
	return w
}

func stateFromWire(w *linksv1.State) State {
	s := State{
		Gateway: w.GetGateway(), Digest: w.GetDigest(), Version: w.GetVersion(), Started: timeFromWire(w.GetStarted()),
		Problems: objectsFromWire(w.GetProblems()),
	}
	for _, t := range w.GetTunnels() {
		s.Tunnels = append(s.Tunnels, TunnelState{
			Device: t.GetDevice(), Name: t.GetName(), Remote: t.GetRemote(), Rank: int(t.GetRank()), Kind: t.GetKind(), Implementation: t.GetImplementation(),
			State: t.GetState(), Reason: t.GetReason(), Since: timeFromWire(t.GetSince()), Active: t.GetActive(),
			Endpoint: readAddrPort(t.GetEndpoint()), ListenPort: int(t.GetListenPort()), LastHandshake: timeFromWire(t.GetLastHandshake()),
			RxBytes: t.GetRxBytes(), TxBytes: t.GetTxBytes(), MTU: int(t.GetMtu()), Err: t.GetError(), Drained: t.GetDrained(),
			Path:          pathFromWire(t.GetPath()),
			KeyGeneration: int(t.GetKeyGeneration()), KeyMade: timeFromWire(t.GetKeyMade()), Rotation: t.GetRotation(),
		})
	}
	for _, v := range w.GetVteps() {
		s.VTEPs = append(s.VTEPs, VTEPState{Gateway: v.GetGateway(), Addr: readAddr(v.GetAddr()), Device: v.GetDevice(), Devices: v.GetDevices(), Reason: v.GetReason(), Since: timeFromWire(v.GetSince())})
	}
	for _, n := range w.GetNextHops() {
		s.NextHops = append(s.NextHops, NextHopState{ID: n.GetId(), Device: n.GetDevice(), VTEP: readAddr(n.GetVtep()), VNI: n.GetVni(), Ready: n.GetReady(), Reason: n.GetReason()})
	}
	for _, b := range w.GetSessions() {
		s.Sessions = append(s.Sessions, SessionState{
			Name: b.GetName(), Device: b.GetDevice(), VRF: b.GetVrf(), Peer: b.GetPeer(), Interface: b.GetInterface(),
			Local: readAddr(b.GetLocal()), Remote: readAddr(b.GetRemote()), Multihop: b.GetMultihop(),
			State: b.GetState(), Reason: b.GetReason(), Since: timeFromWire(b.GetSince()),
			RemoteState: b.GetRemoteState(), RemoteDiag: b.GetRemoteDiag(), RemoteAdminDown: b.GetRemoteAdminDown(),
			TxInterval: b.GetTxInterval().AsDuration(), Detection: b.GetDetection().AsDuration(),
			Received: b.GetReceived(), Sent: b.GetSent(), Ups: b.GetUps(), Downs: b.GetDowns(), Dropped: b.GetDropped(), Problem: b.GetProblem(),
		})
	}
	s.Sets = setStatesFromWire(w.GetSets())
	return s
}

func slotsToWire(slots []overlay.Slot) []*linksv1.Slot {
	var w []*linksv1.Slot
	for _, s := range slots {
		w = append(w, &linksv1.Slot{
			Device: s.Device, Name: s.Name, LinkLocal: addrText(s.LinkLocal), RemoteLinkLocal: addrText(s.RemoteLinkLocal),
			ListenPort: int32(s.ListenPort), Endpoint: addrPortText(s.Endpoint),
		})
	}
	return w
}

func slotsFromWire(w []*linksv1.Slot) []overlay.Slot {
	var slots []overlay.Slot
	for _, s := range w {
		slots = append(slots, overlay.Slot{
			Device: s.GetDevice(), Name: s.GetName(), LinkLocal: readAddr(s.GetLinkLocal()), RemoteLinkLocal: readAddr(s.GetRemoteLinkLocal()),
			ListenPort: int(s.GetListenPort()), Endpoint: readAddrPort(s.GetEndpoint()),
		})
	}
	return slots
}
