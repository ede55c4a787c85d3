package vrf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"fabric/bgp/rib"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
)

// Resolver says where a next hop in a VRF leads; rib.Table's Resolve is one.
type Resolver func(vrf string, nh netip.Addr) rib.Resolution

// Networks are those that the VRF's interfaces are on: what is on them needs no route. A single address is no network.
func (m *Member) Networks() (ns []rib.Network) {
	for _, c := range m.Connected {
		if c.isNetwork() {
			ns = append(ns, rib.Network{Prefix: c.Prefix, Device: c.Device})
		}
	}
	return ns
}

func (c *Connected) isNetwork() bool { return c.Device != "" && !c.Prefix.IsSingleIP() }

// Route says which kernel route a choice becomes. ok is false where the kernel needs none: the network is connected, or a
// static prefix is only announced. An error says why a chosen route cannot be forwarded.
func (m *Member) Route(c rib.Choice, resolve Resolver) (key kernel.RouteKey, r kernel.Route, ok bool, err error) {
	key = kernel.RouteKey{Table: m.Table, Prefix: c.Key.Prefix, Metric: kernel.Metric}
	if c.Best == nil {
		return key, r, false, nil
	}
	r = kernel.Route{Protocol: kernel.Protocol}
	nh := c.Best.Attrs.NextHop
	switch c.Best.Key.Source.Kind {
	case rib.Connected:
		return key, r, false, nil
	case rib.Fabric:
		// The path's VNI is the far side's label for the VRF; ours, on whose device the packet leaves, is the same
		// by construction: a VRF has one VNI in the whole fabric.
		if c.Best.Attrs.VNI != m.VNI {
			return key, r, false, fmt.Errorf("%s from %s carries VNI %d, but VRF %s has VNI %d: check that both gateways run the same document",
				c.Key.Prefix, c.Best.Key.Source.Name, c.Best.Attrs.VNI, m.Name, m.VNI)
		}
		if mac, known := m.RouterMACs[nh]; known && mac != c.Best.Attrs.RouterMAC {
			return key, r, false, fmt.Errorf("%s from %s carries router MAC %s, but the document has %s for %s: a router of another make needs its router-mac there",
				c.Key.Prefix, c.Best.Key.Source.Name, net.HardwareAddr(c.Best.Attrs.RouterMAC[:]), net.HardwareAddr(mac[:]), nh)
		}
		r.NextHopID = overlay.NextHopID(m.VNI, nh)
		r.Src = m.source(c.Key.Prefix.Addr()) // the VXLAN device has no address to speak from
		return key, r, true, nil
	case rib.Static:
		if !nh.IsValid() {
			return key, r, false, nil
		}
	}
	r.Gateway = nh.WithZone("")
	r.Device = c.Best.Interface
	if r.Device == "" {
		r.Device = nh.Zone()
	}
	switch {
	case r.Device != "":
		r.OnLink = !m.connectedOn(r.Gateway, r.Device)
	default:
		if r.Gateway, r.Device, r.OnLink, err = m.resolve(nh, resolve); err != nil {
			return key, r, false, fmt.Errorf("%s: %w", c.Key.Prefix, err)
		}
	}
	if !m.numbered(r.Device, c.Key.Prefix.Addr()) {
		r.Src = m.source(c.Key.Prefix.Addr())
	}
	return key, r, true, nil
}

// source is the gateway's own address of a's family.
func (m *Member) source(a netip.Addr) netip.Addr {
	if a.Is6() {
		return m.Source6
	}
	return m.Source4
}

// numbered says whether a device has an address of a's family that others can answer. The kernel then chooses it by itself, and
// a route that names no source is not lost with the interface that has it. Without one the kernel would take any address of the
// host, also another VRF's.
func (m *Member) numbered(device string, a netip.Addr) bool {
	return slices.ContainsFunc(m.Connected, func(c Connected) bool {
		return c.Device == device && c.Prefix.Addr().Is6() == a.Is6() && !c.Prefix.Addr().IsLinkLocalUnicast()
	})
}

// resolve finds the device of a next hop: on a connected network, or through a route to it (X7: peers between
// loopbacks, reached by a static host route with next hop and interface).
func (m *Member) resolve(nh netip.Addr, resolve Resolver) (gw netip.Addr, device string, onlink bool, err error) {
	longest := -1
	for _, c := range m.Connected {
		if c.isNetwork() && c.Prefix.Contains(nh) && c.Prefix.Bits() > longest {
			device, longest = c.Device, c.Prefix.Bits()
		}
	}
	switch {
	case device != "":
		return nh, device, false, nil
	case resolve == nil:
		return nh, "", false, fmt.Errorf("next hop %s in VRF %s is not on a connected network", nh, m.Name)
	}
	r := resolve(m.Name, nh)
	if r.Why != "" {
		return nh, "", false, errors.New(r.Why)
	}
	return r.Gateway, r.Device, !m.connectedOn(r.Gateway, r.Device), nil
}

// connectedOn says whether the kernel finds an address on a device by itself.
func (m *Member) connectedOn(a netip.Addr, device string) bool {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	for _, c := range m.Connected {
		if c.Device == device && !c.Prefix.IsSingleIP() && c.Prefix.Contains(a) {
			return true
		}
	}
	return false
}

// Paths are what the gateway itself brings into a VRF's rib: its connected networks, its loopbacks and the prefixes of
// the intent. Connected networks stay local and loopbacks are announced (X24), unless a prefix of the intent names them: then it
// decides, and its communities count. A drained gateway announces nothing.
func (m *Member) Paths(gw *config.Gateway) []rib.Path {
	var gv config.GatewayVRF
	for i := range gw.VRFs {
		if gw.VRFs[i].VRF == m.Name {
			gv = gw.VRFs[i]
		}
	}
	listed := map[netip.Prefix]config.Prefix{}
	for _, p := range gv.Prefixes {
		listed[p.Prefix] = p
	}
	var ps []rib.Path
	seen := map[netip.Prefix]bool{}
	for _, c := range m.Connected {
		if seen[c.Prefix] {
			continue
		}
		seen[c.Prefix] = true
		local := c.Device != ""
		p, named := listed[c.Prefix]
		if named {
			local = !p.Announced()
		}
		ps = append(ps, rib.Path{
			Key:       rib.PathKey{Source: rib.Source{Kind: rib.Connected, VRF: m.Name}, Prefix: c.Prefix},
			Attrs:     rib.Attrs{LocalPref: 100, Communities: communities(p.Communities)},
			Interface: c.Device,
			LocalOnly: gw.Drained || local,
		})
	}
	for _, p := range gv.Prefixes {
		ps = append(ps, rib.Path{
			Key:       rib.PathKey{Source: rib.Source{Kind: rib.Static, VRF: m.Name}, Prefix: p.Prefix},
			Attrs:     rib.Attrs{LocalPref: 100, NextHop: p.NextHop, Communities: communities(p.Communities)},
			Interface: p.Interface,
			LocalOnly: gw.Drained || !p.Announced(),
		})
	}
	return ps
}

// communities converts what the document's validation has already accepted: ASN:N, ascending, each once.
func communities(texts []string) []rib.Community {
	var cs []rib.Community
	for _, t := range texts {
		var asn, n uint32
		if _, err := fmt.Sscanf(t, "%d:%d", &asn, &n); err == nil {
			cs = append(cs, rib.Community(asn<<16|n))
		}
	}
	slices.Sort(cs)
	return slices.Compact(cs)
}
