package vrf

import (
	"cmp"
	"slices"

	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/overlay"
)

// Session is the name of the BFD session that watches a peer of a VRF, "" when none does.
type Session func(vrf, peer string) string

// Ranked are the next hops of a choice in order: where it goes, and where it goes when that dies. It is comparable.
type Ranked struct {
	legs [overlay.MaxLegs]overlay.Leg
	n    int
	// Equal of the first legs share traffic; 0 where none do.
	Equal int
}

// Rank returns legs in order, the first of which share traffic. More than overlay.MaxLegs do not fit and are left out.
func Rank(equal int, legs ...overlay.Leg) (r Ranked) {
	r.n, r.Equal = copy(r.legs[:], legs), equal
	return r
}

// Legs are the next hops in order.
func (r *Ranked) Legs() []overlay.Leg { return r.legs[:r.n] }

// Legs says which next hops a choice ranks, and what its kernel route is but for the object with these legs. ok is false where
// the route has no use for such an object: there is no second next hop, nothing would tell that the first one is dead, or the
// two cannot be in one object (an IPv6 route takes no IPv4 next hop). plain is the route as Route gives it.
//
// Paths that share traffic come first, in an order that does not depend on which of them is the best: that may change as neighbours come
// back, and is no reason to write routes.
func (m *Member) Legs(c rib.Choice, plain kernel.Route, resolve Resolver, session Session) (legs Ranked, r kernel.Route, ok bool) {
	if c.Best == nil || c.RunnerUp == nil && len(c.Equal) == 0 || plain.Type != kernel.Unicast {
		return legs, r, false
	}
	noSource := plain.Src.IsValid()
	var all []overlay.Leg
	add := func(p *rib.Path, r kernel.Route) bool {
		l, ok := m.leg(p, r, session)
		if !ok || c.Key.Prefix.Addr().Is6() && l.Gateway.Is4() || len(all) == overlay.MaxLegs ||
			slices.ContainsFunc(all, func(o overlay.Leg) bool { return o.Gateway == l.Gateway && o.Device == l.Device }) {
			return false
		}
		all = append(all, l)
		noSource = noSource || r.Src.IsValid()
		return true
	}
	if !add(c.Best, plain) {
		return legs, r, false
	}
	other := func(p *rib.Path) bool {
		_, r, ok, err := m.Route(rib.Choice{Key: c.Key, Best: p}, resolve)
		return ok && err == nil && add(p, r)
	}
	for _, p := range c.Equal {
		other(p)
	}
	equal := len(all)
	if equal == 1 {
		equal = 0
	}
	if spare := c.RunnerUp != nil && other(c.RunnerUp); equal == 0 && (!spare || !all[0].Watched()) {
		return legs, r, false
	}
	slices.SortFunc(all[:equal], func(a, b overlay.Leg) int {
		return cmp.Or(a.Gateway.Compare(b.Gateway), cmp.Compare(a.Device, b.Device))
	})
	r = kernel.Route{Protocol: kernel.Protocol}
	if noSource {
		// One of the devices has no address to speak from.
		r.Src = m.source(c.Key.Prefix.Addr())
	}
	return Rank(equal, all...), r, true
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
