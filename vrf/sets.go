package vrf

import (
	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/overlay"
)

// Session is the name of the BFD session that watches a peer of a VRF, "" when none does.
type Session func(vrf, peer string) string

// Pair is the ranked next hops of a choice: where it goes, and where it goes when that dies.
type Pair [2]overlay.Leg

// Legs says which two next hops a choice ranks, and what its kernel route is but for the object with these legs. ok is false where
// the route has no use for such an object: there is no second next hop, nothing would tell that the first one is dead, or the two
// cannot be in one object (an IPv6 route takes no IPv4 next hop). plain is the route as Route gives it.
func (m *Member) Legs(c rib.Choice, plain kernel.Route, lookup Resolver, session Session) (legs Pair, r kernel.Route, ok bool) {
	if c.Best == nil || c.RunnerUp == nil || plain.Type != kernel.Unicast {
		return legs, r, false
	}
	second := rib.Choice{Key: c.Key, Best: c.RunnerUp}
	_, spare, ok, err := m.Route(second, lookup)
	if !ok || err != nil {
		return legs, r, false
	}
	for i, x := range []struct {
		path  *rib.Path
		route kernel.Route
	}{{c.Best, plain}, {c.RunnerUp, spare}} {
		if legs[i], ok = m.leg(x.path, x.route, session); !ok {
			return legs, r, false
		}
		if c.Key.Prefix.Addr().Is6() && legs[i].Gateway.Is4() {
			return legs, r, false
		}
	}
	if !legs[0].Watched() || legs[0].Gateway == legs[1].Gateway && legs[0].Device == legs[1].Device {
		return legs, r, false
	}
	r = kernel.Route{Protocol: kernel.Protocol}
	if plain.Src.IsValid() || spare.Src.IsValid() {
		// One of the devices has no address to speak from.
		r.Src = m.source(c.Key.Prefix.Addr())
	}
	return legs, r, true
}

// leg is the next hop of a path whose plain route is r.
func (m *Member) leg(p *rib.Path, r kernel.Route, session Session) (l overlay.Leg, ok bool) {
	src := p.Key.Source
	switch src.Kind {
	case rib.Fabric:
		vtep := p.Attrs.NextHop
		return overlay.Leg{Gateway: overlay.VTEPGateway(vtep), Device: overlay.VXLANDevice(m.VNI), VTEP: vtep}, true
	case rib.Peer:
		l = overlay.Leg{Gateway: r.Gateway, Device: r.Device, Session: session(src.VRF, src.Name)}
		return l, r.Gateway.IsValid() && r.Device != ""
	}
	// A connected network or a static route wins over any path of BGP.
	return l, false
}
