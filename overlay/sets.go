package overlay

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// MaxSets is how many next-hop sets a plan may have. There is one per distinct ranked list of next hops, so few are needed; more than
// that is a sign that sets are not what such routes should use.
const MaxSets = 4096

// MaxLegs is how many next hops one set may rank.
const MaxLegs = 8

// NextHopSet is one next-hop object for all routes that have the same next hops in the same order. fabric-links moves it to the
// next leg by itself when the one it is on dies, so that losing a neighbour costs one message to the kernel and not one per
// route. It goes back to a better leg only at the word of fabric-site, which is a plan that has the set without Stay: a
// neighbour that BFD has found again may not have told its routes yet.
type NextHopSet struct {
	// ID is NextHopSetID.
	ID  uint32 `json:"id"`
	VRF string `json:"vrf"`
	// Legs in order of preference.
	Legs []Leg `json:"legs"`
	// Equal says that the object is a group of next hops, and how many of the first legs share traffic; those behind are used one at a
	// time, when none of the ones before is left. 0: the object is a single next hop.
	Equal int `json:"equal,omitempty"`
	// Stay: go to no better leg. The set is kept for routes that have not moved on yet, or its first leg is not confirmed.
	Stay bool `json:"stay,omitempty"`
}

// Leg is one next hop of a set: a neighbour on a device, or another gateway's VTEP.
type Leg struct {
	// Gateway is on Device's link, whatever the addresses there; VTEPGateway(VTEP) for a VTEP.
	Gateway netip.Addr `json:"gateway"`
	Device  string     `json:"device"`
	// Session is the BFD session that watches the leg, VRF/PEER, "" for none: then it counts as alive.
	Session string `json:"session,omitempty"`
	// VTEP makes it a leg over VXLAN, alive while a tunnel to the VTEP is; zero for a neighbour.
	VTEP netip.Addr `json:"vtep,omitzero"`
}

// Watched says whether anything tells when the leg dies.
func (l Leg) Watched() bool { return l.Session != "" || l.VTEP.IsValid() }

// String is what `ip route` would print, and the VTEP where there is one.
func (l Leg) String() string {
	s := "via " + l.Gateway.String() + " dev " + l.Device
	if l.VTEP.IsValid() {
		s += " (VTEP " + l.VTEP.String() + ")"
	}
	return s
}

// NextHopSetID is the id of a set's next-hop object, equal of whose legs share traffic. It follows from the legs, so that routes that refer
// to it are right whoever wrote them and when.
func NextHopSetID(vrf string, legs []Leg, equal int) uint32 {
	parts := []string{vrf}
	if equal > 0 { // the kernel does not turn a single next hop into a group, nor back
		parts = append(parts, strconv.Itoa(equal))
	}
	for _, l := range legs {
		parts = append(parts, l.Gateway.String(), l.Device, l.Session)
	}
	s := sum("next-hop set", parts...)
	return NextHopFirst | binary.BigEndian.Uint32(s[:4])
}

// LegNextHopID is the id of the next-hop object that stands for a leg in groups. Sets that have the leg share it.
func LegNextHopID(l Leg) uint32 {
	s := sum("next-hop leg", l.Gateway.String(), l.Device)
	return NextHopFirst | binary.BigEndian.Uint32(s[:4])
}

// IDs are the ids of all next-hop objects that the set is made of: its own, and for a group those of its legs.
func (s *NextHopSet) IDs() []uint32 {
	ids := []uint32{s.ID}
	if s.Equal > 0 {
		for _, l := range s.Legs {
			ids = append(ids, LegNextHopID(l))
		}
	}
	return ids
}

// Keep takes over sets of a former plan that p does not name, as Kept: routes may still refer to them, and would go with them. What
// p no longer has, a session or a VTEP, their legs lose.
func (p *Plan) Keep(former ...NextHopSet) {
	taken := map[uint32]bool{}
	for _, s := range p.AllSets() {
		taken[s.ID] = true
	}
	clashes := NewIDs(p)
	for _, s := range p.AllSets() {
		clashes.Add(s)
	}
	for _, s := range former {
		s, ok := p.Fit(s)
		if !ok || taken[s.ID] || len(p.Kept) == MaxSets || !clashes.Add(s) {
			continue
		}
		taken[s.ID] = true
		s.Stay = true
		p.Kept = append(p.Kept, s)
	}
}

// Fit drops from a set what the plan has not: a session, a leg to a VTEP. Not ok: nothing is left of it, or its id is a next hop's.
func (p *Plan) Fit(s NextHopSet) (NextHopSet, bool) {
	var legs []Leg
	equal := s.Equal
	for i, l := range s.Legs {
		if l.VTEP.IsValid() && !slices.ContainsFunc(p.VTEPs, func(v RemoteVTEP) bool { return v.Addr == l.VTEP }) {
			if i < s.Equal {
				equal--
			}
			continue
		}
		if l.Session != "" && !slices.ContainsFunc(p.Sessions, func(x Session) bool { return x.Name == l.Session && x.VRF == s.VRF }) {
			l.Session = ""
		}
		legs = append(legs, l)
	}
	if s.Legs = legs; s.Equal > 0 {
		s.Equal = max(1, equal) // what was a group stays one
	}
	return s, len(legs) > 0 && !slices.ContainsFunc(p.NextHops, func(n NextHop) bool { return n.ID == s.ID })
}

// IDs are the ids of next-hop objects that sets take, and what each stands for.
type IDs map[uint32]string

// NewIDs are the ids that a plan's own next hops take.
func NewIDs(p *Plan) IDs {
	ids := IDs{}
	for _, n := range p.NextHops {
		ids[n.ID] = "a next hop"
	}
	return ids
}

// Add takes the ids of a set's objects. It is false, and takes none, if one of them stands for something else.
func (ids IDs) Add(s NextHopSet) bool {
	if _, taken := ids[s.ID]; taken {
		return false
	}
	own := IDs{s.ID: "another set"}
	if s.Equal > 0 {
		for _, l := range s.Legs {
			id := LegNextHopID(l)
			for _, known := range []IDs{ids, own} {
				if what, there := known[id]; there && what != l.way() {
					return false
				}
			}
			own[id] = l.way()
		}
	}
	maps.Copy(ids, own)
	return true
}

// way is what a leg's next-hop object is.
func (l Leg) way() string { return "the leg via " + l.Gateway.String() + " dev " + l.Device }

// AllSets are the sets of the plan and those kept of former ones.
func (p *Plan) AllSets() []NextHopSet { return slices.Concat(p.Sets, p.Kept) }

// validateSets calls bad for all that is wrong with the sets of a plan.
func (p *Plan) validateSets(bad func(format string, args ...any)) {
	sets := p.AllSets()
	if n := max(len(p.Sets), len(p.Kept)); n > MaxSets {
		bad("%d next-hop sets are more than %d", n, MaxSets)
		return
	}
	sessions, vteps, ids := map[string]string{}, map[netip.Addr]bool{}, NewIDs(p)
	for _, s := range p.Sessions {
		sessions[s.Name] = s.VRF
	}
	for _, v := range p.VTEPs {
		vteps[v.Addr] = true
	}
	for _, s := range sets {
		bad := func(format string, args ...any) { bad("next-hop set %d: "+format, append([]any{s.ID}, args...)...) }
		if s.ID < NextHopFirst {
			bad("the id is below the fabric's range, which begins at %d", NextHopFirst)
		}
		if other, ok := ids[s.ID]; ok {
			bad("%s has the same id", other)
		} else if !ids.Add(s) {
			bad("a next hop of one of its legs has the id of something else")
		}
		ids[s.ID] = "another set"
		if s.Equal < 0 || s.Equal > len(s.Legs) {
			bad("%d of %d legs cannot share traffic", s.Equal, len(s.Legs))
		}
		if s.VRF == "" {
			bad("no VRF")
		}
		if n := len(s.Legs); n < 1 || n > MaxLegs {
			bad("%d legs, want 1 to %d", n, MaxLegs)
		}
		seen := map[Leg]bool{}
		for _, l := range s.Legs {
			l.validate(bad)
			way := Leg{Gateway: l.Gateway, Device: l.Device}
			if seen[way] {
				bad("two legs are %s", l)
			}
			seen[way] = true
			if vrf, ok := sessions[l.Session]; l.Session != "" && (!ok || vrf != s.VRF) {
				bad("VRF %q has no session %q", s.VRF, l.Session)
			}
			if l.VTEP.IsValid() && !vteps[l.VTEP] {
				bad("the plan has no VTEP %s", l.VTEP)
			}
		}
	}
}

// validate calls bad for all that is wrong with a leg by itself.
func (l Leg) validate(bad func(format string, args ...any)) {
	if g := l.Gateway; !g.IsValid() || g.IsUnspecified() || g.IsMulticast() || g.IsLoopback() || g.Zone() != "" || g.Is4In6() {
		bad("%q is not the unicast address of a next hop", g)
	}
	if !isDeviceName(l.Device) {
		bad("%q is not a device name", l.Device)
	}
	switch {
	case !l.VTEP.IsValid():
	case l.Session != "":
		bad("a leg to VTEP %s has BFD session %q; its tunnels have sessions of their own", l.VTEP, l.Session)
	case l.Gateway != VTEPGateway(l.VTEP):
		bad("%s does not stand for VTEP %s", l.Gateway, l.VTEP)
	}
}
