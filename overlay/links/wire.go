package links

import (
	"net/netip"
	"time"

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
	w := &linksv1.Plan{Version: int32(p.Version), Fabric: p.Fabric, Gateway: p.Gateway, Vtep: addrText(p.VTEP)}
	for _, t := range p.Tunnels {
		w.Tunnels = append(w.Tunnels, &linksv1.Tunnel{
			Device: t.Device, Name: t.Name, Remote: t.Remote, Rank: int32(t.Rank), Kind: t.Kind, Mtu: int32(t.MTU),
			LinkLocal: addrText(t.LinkLocal), RemoteLinkLocal: addrText(t.RemoteLinkLocal),
			ListenPort: int32(t.ListenPort), Endpoint: addrPortText(t.Endpoint),
			PublicKey: t.PublicKey, PrivateKeyFile: t.PrivateKeyFile, Keepalive: int32(t.Keepalive),
		})
	}
	for _, v := range p.VTEPs {
		w.Vteps = append(w.Vteps, &linksv1.RemoteVTEP{Gateway: v.Gateway, Addr: addrText(v.Addr), Devices: v.Devices, Problem: v.Problem})
	}
	for _, n := range p.NextHops {
		w.NextHops = append(w.NextHops, &linksv1.NextHop{Id: n.ID, Device: n.Device, Gateway: addrText(n.Gateway), Vni: n.VNI, Vtep: addrText(n.VTEP)})
	}
	return w
}

func planFromWire(w *linksv1.Plan) overlay.Plan {
	p := overlay.Plan{Version: int(w.GetVersion()), Fabric: w.GetFabric(), Gateway: w.GetGateway(), VTEP: readAddr(w.GetVtep())}
	for _, t := range w.GetTunnels() {
		p.Tunnels = append(p.Tunnels, overlay.Tunnel{
			Device: t.GetDevice(), Name: t.GetName(), Remote: t.GetRemote(), Rank: int(t.GetRank()), Kind: t.GetKind(), MTU: int(t.GetMtu()),
			LinkLocal: readAddr(t.GetLinkLocal()), RemoteLinkLocal: readAddr(t.GetRemoteLinkLocal()),
			ListenPort: int(t.GetListenPort()), Endpoint: readAddrPort(t.GetEndpoint()),
			PublicKey: t.GetPublicKey(), PrivateKeyFile: t.GetPrivateKeyFile(), Keepalive: int(t.GetKeepalive()),
		})
	}
	for _, v := range w.GetVteps() {
		p.VTEPs = append(p.VTEPs, overlay.RemoteVTEP{Gateway: v.GetGateway(), Addr: readAddr(v.GetAddr()), Devices: v.GetDevices(), Problem: v.GetProblem()})
	}
	for _, n := range w.GetNextHops() {
		p.NextHops = append(p.NextHops, overlay.NextHop{ID: n.GetId(), Device: n.GetDevice(), Gateway: readAddr(n.GetGateway()), VNI: n.GetVni(), VTEP: readAddr(n.GetVtep())})
	}
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
			RxBytes: t.RxBytes, TxBytes: t.TxBytes, Mtu: int32(t.MTU), Error: t.Err,
		})
	}
	for _, v := range s.VTEPs {
		w.Vteps = append(w.Vteps, &linksv1.VTEPState{Gateway: v.Gateway, Addr: addrText(v.Addr), Device: v.Device, Reason: v.Reason, Since: timeToWire(v.Since)})
	}
	for _, n := range s.NextHops {
		w.NextHops = append(w.NextHops, &linksv1.NextHopState{Id: n.ID, Device: n.Device, Vtep: addrText(n.VTEP), Vni: n.VNI, Ready: n.Ready, Reason: n.Reason})
	}
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
			RxBytes: t.GetRxBytes(), TxBytes: t.GetTxBytes(), MTU: int(t.GetMtu()), Err: t.GetError(),
		})
	}
	for _, v := range w.GetVteps() {
		s.VTEPs = append(s.VTEPs, VTEPState{Gateway: v.GetGateway(), Addr: readAddr(v.GetAddr()), Device: v.GetDevice(), Reason: v.GetReason(), Since: timeFromWire(v.GetSince())})
	}
	for _, n := range w.GetNextHops() {
		s.NextHops = append(s.NextHops, NextHopState{ID: n.GetId(), Device: n.GetDevice(), VTEP: readAddr(n.GetVtep()), VNI: n.GetVni(), Ready: n.GetReady(), Reason: n.GetReason()})
	}
	return s
}
