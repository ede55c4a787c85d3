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
// Ports: a tunnel of rank r listens on the fabric's port + r × Document.PortStride + the remote gateway's place in the document (from
// 0), and dials the remote's first port + r × PortStride + our own place. So a gateway appended to the document moves no port. The
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
		for rank, t := range link.Tunnels {
			if why := undialled(own, link.Remote, t.Kind, rank); why != "" {
				v.Problem = why
				continue
			}
			tunnel, err := compileTunnel(doc, own, link, t, rank, rank*stride)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			p.Tunnels = append(p.Tunnels, tunnel)
			v.Devices = append(v.Devices, tunnel.Device)
		}
		if len(v.Devices) > 0 {
			v.Problem = ""
		}
		p.VTEPs = append(p.VTEPs, v)
	}
	// Every VNI of ours for every neighbour, whether that has it or not: a next hop that no route uses costs nothing,
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
		for _, link := range neighbours {
			p.NextHops = append(p.NextHops, NextHop{
				ID:      NextHopID(vrf.VNI, link.Remote.VTEP),
				Device:  VXLANDevice(vrf.VNI),
				Gateway: VTEPGateway(link.Remote.VTEP),
				VNI:     vrf.VNI,
				VTEP:    link.Remote.VTEP,
			})
		}
	}
	slices.SortStableFunc(p.NextHops, func(a, b NextHop) int { return cmp.Compare(a.VNI, b.VNI) })
	slices.SortStableFunc(p.Sessions, func(a, b Session) int { return cmp.Compare(a.Name, b.Name) })
	errs = append(errs, sameMAC(own, neighbours))
	p.Listener = compileListener(own, p.Tunnels)
	if err := errors.Join(errs...); err != nil {
		return Plan{}, err
	}
	if err := p.Validate(); err != nil {
		return Plan{}, err
	}
	return p, nil
}

func compileTunnel(doc *config.Document, own *config.Gateway, link config.Link, t config.Tunnel, rank, offset int) (Tunnel, error) {
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
		Device:          TunnelDevice(own.Name, remote.Name, rank),
		Name:            TunnelName(own.Name, remote.Name, rank),
		Remote:          remote.Name,
		Rank:            rank,
		Kind:            t.Kind,
		MTU:             tunnelMTU(doc, t),
		LinkLocal:       LinkLocal(own.Name, remote.Name, rank),
		RemoteLinkLocal: LinkLocal(remote.Name, own.Name, rank),
		ListenPort:      base + offset + link.Index,
		PublicKey:       remote.WireGuard.PublicKey,
		PrivateKeyFile:  own.WireGuard.PrivateKeyFile,
		BFD:             &bfd,
	}
	if t.Kind == KindTLS {
		compileCarrier(doc, own, remote, &tunnel)
	} else if e, ok := remote.Endpoint(rank); ok {
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
		tunnel.Slots = makeSlots(doc, own.Name, remote.Name, tunnel)
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

// sameMAC refuses VTEPs whose derived hardware addresses meet.
func sameMAC(own *config.Gateway, neighbours []config.Link) error {
	seen := map[[6]byte]*config.Gateway{RouterMAC(own.VTEP): own}
	for _, l := range neighbours {
		mac := RouterMAC(l.Remote.VTEP)
		if g, ok := seen[mac]; ok {
			return fmt.Errorf("VTEPs %s of %s and %s of %s have one router MAC; choose another VTEP address for one of them", g.VTEP, g.Name, l.Remote.VTEP, l.Remote.Name)
		}
		seen[mac] = l.Remote
	}
	return nil
}
