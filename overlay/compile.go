package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fabric/internal/config"
)

// defaultWireGuardPort and defaultKeepalive hold where the document leaves the values out.
const (
	defaultWireGuardPort = 51820
	defaultKeepalive     = 5 * time.Second
)

// Compile makes the links plan of one gateway. The document is taken to be valid; what only shows when it is compiled (ports
// beyond 65535, an MTU too small, hashes that meet) is the error.
//
// Ports: the r-th tunnel of a link's list (from 0) listens on the fabric's port + r × Document.PortStride + the remote gateway's place in
// the document (from 0), and dials the remote's first port + r × PortStride + our own place. Its names and addresses are derived from
// that place too, so that a change of ranks alone moves nothing but traffic. So a gateway appended to the document moves no port. The
// public ports of a gateway behind NAT are counted likewise. Later generations of keys have ports of their own, Document.SlotStride higher.
//
// Who dials: whoever knows an endpoint of the other, possibly both; of a tunnel of kind "tls" one side only (config.Gateway.DialsTLS).
// Only a side that dials sends keepalives (X15, X16). If neither knows one, the link has no tunnels, and the remote VTEP is kept
// unreachable.
//
// BFD runs on every tunnel, and with each third-party peer that asks for it.
func Compile(doc *config.Document, gateway string, host Host) (Plan, error) {
	_, own, ok := doc.Find(gateway)
	if !ok {
		return Plan{}, fmt.Errorf("gateway %q is not in the document", gateway)
	}
	p := Plan{Version: PlanVersion, Fabric: doc.Fabric.Name, Gateway: own.Name, VTEP: own.VTEP}
	stride := doc.PortStride()
	neighbours := doc.Neighbours(gateway)
	var errs []error
	for _, link := range neighbours {
		v := RemoteVTEP{Gateway: link.Remote.Name, Addr: link.Remote.VTEP}
		var tunnels []Tunnel
		for place, t := range link.Tunnels {
			if why := undialled(own, link.Remote, t.Kind, place); why != "" {
				v.Problem = why
				continue
			}
			tunnel, err := compileTunnel(doc, own, link, t, place, place*stride)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			tunnels = append(tunnels, tunnel)
		}
		slices.SortStableFunc(tunnels, func(a, b Tunnel) int { return cmp.Compare(a.Rank, b.Rank) })
		for _, tunnel := range tunnels {
			v.Devices = append(v.Devices, tunnel.Device)
		}
		p.Tunnels = append(p.Tunnels, tunnels...)
		if len(v.Devices) > 0 {
			v.Problem = ""
		}
		p.VTEPs = append(p.VTEPs, v)
	}
	transits := doc.Transits(gateway)
	p.VTEPs = append(p.VTEPs, compileTransits(doc, transits, p.Tunnels)...)
	slices.SortStableFunc(p.VTEPs, func(a, b RemoteVTEP) int { return cmp.Compare(a.Gateway, b.Gateway) })
	remotes := remoteGateways(neighbours, transits)
	// Every VNI of ours for every gateway we reach, whether that has it or not: a next hop that no route uses costs nothing,
	// and a prefix that is moved there needs no word between the daemons.
	for i := range own.VRFs {
		gv := &own.VRFs[i]
		sessions, problems := compileSessions(doc, own, gv, host)
		p.Sessions = append(p.Sessions, sessions...)
		errs = append(errs, problems...)
		vrf, ok := doc.VRF(gv.VRF)
		if !ok {
			errs = append(errs, fmt.Errorf("gateway %s: VRF %q is not in the document", own.Name, gv.VRF))
			continue
		}
		for _, remote := range remotes {
			p.NextHops = append(p.NextHops, NextHop{
				ID:      NextHopID(vrf.VNI, remote.VTEP),
				Device:  VXLANDevice(vrf.VNI),
				Gateway: VTEPGateway(remote.VTEP),
				VNI:     vrf.VNI,
				VTEP:    remote.VTEP,
			})
		}
	}
	slices.SortStableFunc(p.NextHops, func(a, b NextHop) int { return cmp.Compare(a.VNI, b.VNI) })
	slices.SortStableFunc(p.Sessions, func(a, b Session) int { return cmp.Compare(a.Name, b.Name) })
	errs = append(errs, sameMAC(own, remotes))
	p.Listener = compileListener(own, p.Tunnels)
	if err := errors.Join(errs...); err != nil {
		return Plan{}, err
	}
	if err := p.Validate(); err != nil {
		return Plan{}, err
	}
	return p, nil
}

func compileTunnel(doc *config.Document, own *config.Gateway, link config.Link, t config.Tunnel, place, offset int) (Tunnel, error) {
	base := doc.Fabric.WireGuardPort
	if base == 0 {
		base = defaultWireGuardPort
	}
	remote := link.Remote
	var timers config.BFD
	if t.BFD != nil {
		timers = *t.BFD
	}
	bfd := compileBFD(doc, timers)
	tunnel := Tunnel{
		Device:          TunnelDevice(own.Name, remote.Name, place),
		Name:            TunnelName(own.Name, remote.Name, place),
		Remote:          remote.Name,
		Rank:            t.RankAt(place),
		Kind:            t.Kind,
		MTU:             tunnelMTU(doc, t, remote, place),
		LinkLocal:       LinkLocal(own.Name, remote.Name, place),
		RemoteLinkLocal: LinkLocal(remote.Name, own.Name, place),
		ListenPort:      base + offset + link.Index,
		PublicKey:       remote.WireGuard.PublicKey,
		PrivateKeyFile:  own.WireGuard.PrivateKeyFile,
		BFD:             &bfd,
	}
	if t.Kind == KindDirect {
		tunnel.Device = DirectDevice(own.Name, remote.Name, place)
		return tunnel, compileDirect(doc, own, remote, &tunnel, place)
	}
	if t.Kind == KindTLS {
		compileCarrier(doc, own, remote, &tunnel, place)
	} else if e, ok := remote.Endpoint(place); ok {
		port := base
		if e.PublicPort != 0 {
			port = e.PublicPort
		}
		port += offset + link.RemoteIndex
		if port > 65535 {
			return Tunnel{}, fmt.Errorf("tunnel %s: the port to dial would be %d; lower the fabric's wireguard-port or the endpoint's public-port", tunnel.Name, port)
		}
		tunnel.Endpoint = netip.AddrPortFrom(e.Address.Unmap(), uint16(port))
		tunnel.Keepalive = keepalive(own)
	}
	tunnel.PresharedKeyFile = link.PresharedKeyFile
	if t.Kind == KindWireGuard {
		tunnel.RekeyAge = int(doc.Fabric.WireGuardRekeyAge.Std() / time.Second)
		tunnel.Slots = makeSlots(doc, own.Name, remote.Name, place, tunnel)
	}
	return tunnel, nil
}

// keepalive is the persistent keepalive of a gateway that dials, in seconds.
func keepalive(own *config.Gateway) int {
	keepalive := time.Duration(own.WireGuard.Keepalive)
	if keepalive == 0 {
		keepalive = defaultKeepalive
	}
	// WireGuard counts whole seconds; less than one would turn it off.
	return int((keepalive + time.Second - 1) / time.Second)
}

// sameMAC refuses VTEPs whose hardware addresses meet.
func sameMAC(own *config.Gateway, remotes []*config.Gateway) error {
	seen := map[[6]byte]*config.Gateway{GatewayMAC(own): own}
	for _, remote := range remotes {
		mac := GatewayMAC(remote)
		if g, ok := seen[mac]; ok {
			return fmt.Errorf("VTEPs %s of %s and %s of %s have one router MAC; choose another router-mac or VTEP address for one of them", g.VTEP, g.Name, remote.VTEP, remote.Name)
		}
		seen[mac] = remote
	}
	return nil
}
