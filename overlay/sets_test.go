package overlay

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// setLegs are a neighbour's leg and a VTEP's in VRF CORE of sz.
func setLegs(p Plan) (neighbour, vtep Leg) {
	v := p.VTEPs[0].Addr
	return Leg{Gateway: addr("192.0.2.1"), Device: "eth1", Session: "CORE/p"}, Leg{Gateway: VTEPGateway(v), Device: VXLANDevice(1000), VTEP: v}
}

// setPlan is sz's plan with a session and one set of both legs.
func setPlan(t testing.TB) Plan {
	t.Helper()
	p := compile(t, threeSites(), "sz")
	p.Sessions = []Session{{BFD: BFD{100, 3}, Name: "CORE/p", VRF: "CORE", Peer: "p", Interface: "eth1", Local: addr("192.0.2.9"), Remote: addr("192.0.2.1")}}
	a, b := setLegs(p)
	p.Sets = []NextHopSet{{ID: NextHopSetID("CORE", []Leg{a, b}, 0), VRF: "CORE", Legs: []Leg{a, b}}}
	return p
}

func TestNextHopSetID(t *testing.T) {
	a, b := setLegs(setPlan(t))
	other := a
	other.Session = ""
	seen := map[uint32]string{}
	for name, id := range map[string]uint32{
		"a then b": NextHopSetID("CORE", []Leg{a, b}, 0), "b then a": NextHopSetID("CORE", []Leg{b, a}, 0), "a": NextHopSetID("CORE", []Leg{a}, 0),
		"another VRF": NextHopSetID("OPS", []Leg{a, b}, 0), "no session": NextHopSetID("CORE", []Leg{other, b}, 0),
		"a and b": NextHopSetID("CORE", []Leg{a, b}, 2), "a group of a": NextHopSetID("CORE", []Leg{a, b}, 1), "the leg a": LegNextHopID(a), "the leg b": LegNextHopID(b),
	} {
		if seen[id] != "" || id < NextHopFirst {
			t.Errorf("%s and %s have id %d", name, seen[id], id)
		}
		seen[id] = name
	}
	// Kernels hold routes that refer to it: it must never change.
	if got := NextHopSetID("CORE", []Leg{a}, 0); got != 2461041030 {
		t.Errorf("the id of a is %d now", got)
	}
}

func TestValidateSets(t *testing.T) {
	tests := []struct {
		name   string
		change func(p *Plan, s *NextHopSet)
		want   string
	}{
		{"as it should be", func(*Plan, *NextHopSet) {}, ""},
		{"one leg", func(_ *Plan, s *NextHopSet) { s.Legs = s.Legs[:1] }, ""},
		{"a link-local neighbour", func(_ *Plan, s *NextHopSet) { s.Legs[0].Gateway = addr("fe80::1") }, ""},
		{"a group", func(_ *Plan, s *NextHopSet) { s.Equal = 2 }, ""},
		{"two groups of the same legs", func(p *Plan, s *NextHopSet) { s.Equal = 2; o := *s; o.ID++; o.Equal = 1; p.Sets = append(p.Sets, o) }, ""},
		{"more share than there are", func(_ *Plan, s *NextHopSet) { s.Equal = 3 }, "3 of 2 legs cannot share"},
		{"fewer than none", func(_ *Plan, s *NextHopSet) { s.Equal = -1 }, "-1 of 2 legs cannot share"},
		{"a leg's id is the set's", func(_ *Plan, s *NextHopSet) { s.Equal, s.ID = 2, LegNextHopID(s.Legs[0]) }, "has the id of something else"},
		{"a leg's id is a next hop's", func(p *Plan, s *NextHopSet) { s.Equal, p.NextHops[0].ID = 2, LegNextHopID(s.Legs[0]) }, "has the id of something else"},
		{"low id", func(_ *Plan, s *NextHopSet) { s.ID = 7 }, "below the fabric's range"},
		{"id of a next hop", func(p *Plan, s *NextHopSet) { s.ID = p.NextHops[0].ID }, "a next hop has the same id"},
		{"twice", func(p *Plan, s *NextHopSet) { p.Sets = append(p.Sets, *s) }, "another set has the same id"},
		{"kept too", func(p *Plan, s *NextHopSet) { p.Kept = []NextHopSet{*s} }, "another set has the same id"},
		{"no VRF", func(_ *Plan, s *NextHopSet) { s.VRF = "" }, "no VRF"},
		{"no legs", func(_ *Plan, s *NextHopSet) { s.Legs = nil }, "0 legs, want 1 to 8"},
		{"many legs", func(_ *Plan, s *NextHopSet) { s.Legs = make([]Leg, 9) }, "9 legs, want 1 to 8"},
		{"one way twice", func(_ *Plan, s *NextHopSet) { s.Legs[1] = s.Legs[0]; s.Legs[1].Session = "" }, "two legs are via 192.0.2.1 dev eth1"},
		{"no gateway", func(_ *Plan, s *NextHopSet) { s.Legs[0].Gateway = addr("") }, "not the unicast address"},
		{"multicast", func(_ *Plan, s *NextHopSet) { s.Legs[0].Gateway = addr("224.0.0.1") }, "not the unicast address"},
		{"zone", func(_ *Plan, s *NextHopSet) { s.Legs[0].Gateway = addr("fe80::1%eth1") }, "not the unicast address"},
		{"device", func(_ *Plan, s *NextHopSet) { s.Legs[0].Device = "a/b" }, `"a/b" is not a device name`},
		{"unknown session", func(_ *Plan, s *NextHopSet) { s.Legs[0].Session = "CORE/q" }, `VRF "CORE" has no session "CORE/q"`},
		{"another VRF's session", func(_ *Plan, s *NextHopSet) { s.VRF = "OPS" }, `VRF "OPS" has no session "CORE/p"`},
		{"session on a VTEP", func(_ *Plan, s *NextHopSet) { s.Legs[1].Session = "CORE/p" }, "has BFD session"},
		{"unknown VTEP", func(_ *Plan, s *NextHopSet) {
			s.Legs[1].VTEP = addr("10.255.0.99")
			s.Legs[1].Gateway = VTEPGateway(s.Legs[1].VTEP)
		}, "the plan has no VTEP 10.255.0.99"},
		{"gateway of another VTEP", func(_ *Plan, s *NextHopSet) { s.Legs[1].Gateway = addr("fe80::1") }, "does not stand for VTEP"},
		{"too many", func(p *Plan, _ *NextHopSet) { p.Sets = make([]NextHopSet, MaxSets+1) }, "4097 next-hop sets are more than 4096"},
	}
	for _, tt := range tests {
		p := setPlan(t)
		tt.change(&p, &p.Sets[0])
		err := p.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What a former plan had is kept, as far as the new one can have it.
func TestKeep(t *testing.T) {
	p := setPlan(t)
	a, b := setLegs(p)
	former := func(id uint32, vrf string, legs ...Leg) NextHopSet {
		return NextHopSet{ID: NextHopFirst + id, VRF: vrf, Legs: legs}
	}
	gone := Leg{Gateway: VTEPGateway(addr("10.255.0.99")), Device: VXLANDevice(1000), VTEP: addr("10.255.0.99")}
	unwatched := a
	unwatched.Session = ""
	lost := a
	lost.Session = "CORE/lost"
	asNextHop := former(0, "CORE", a)
	asNextHop.ID = p.NextHops[0].ID
	p.Keep(p.Sets[0], former(1, "CORE", a, b), former(2, "CORE", lost, b), former(3, "CORE", gone, b), former(4, "CORE", gone), former(1, "CORE", b), asNextHop, former(5, "OPS", a))
	want := []NextHopSet{former(1, "CORE", a, b), former(2, "CORE", unwatched, b), former(3, "CORE", b), former(5, "OPS", unwatched)}
	for i := range want {
		want[i].Stay = true
	}
	if !reflect.DeepEqual(p.Kept, want) {
		t.Errorf("kept  %+v\nwant %+v", p.Kept, want)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if digest := setPlan(t).Digest(); p.Digest() != digest {
		t.Error("what is kept changes the digest")
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParsePlan(text); err != nil || !reflect.DeepEqual(back, p) {
		t.Errorf("read back as %+v, %v", back, err)
	}
	for i := range uint32(MaxSets + 10) {
		p.Keep(former(100+i, "CORE", b))
	}
	if len(p.Kept) != MaxSets {
		t.Errorf("%d are kept", len(p.Kept))
	}
	if got := fmt.Sprint(a, b); !strings.Contains(got, "via 192.0.2.1 dev eth1 via fe80::") || !strings.Contains(got, "(VTEP ") {
		t.Errorf("legs print as %s", got)
	}
}

// A group stays a group, whatever of it the plan has no more.
func TestFitGroup(t *testing.T) {
	p := setPlan(t)
	a, b := setLegs(p)
	gone := Leg{Gateway: VTEPGateway(addr("10.255.0.99")), Device: VXLANDevice(1000), VTEP: addr("10.255.0.99")}
	for _, tt := range []struct {
		legs        []Leg
		equal, want int
	}{
		{[]Leg{a, b}, 2, 2}, {[]Leg{a, gone, b}, 2, 1}, {[]Leg{gone, b, a}, 2, 1}, {[]Leg{a, b, gone}, 2, 2}, {[]Leg{gone, b}, 1, 1}, {[]Leg{gone, b}, 0, 0},
	} {
		s, ok := p.Fit(NextHopSet{ID: NextHopFirst, VRF: "CORE", Legs: tt.legs, Equal: tt.equal})
		if !ok || s.Equal != tt.want {
			t.Errorf("%d of %v share: then %d of %v", tt.equal, tt.legs, s.Equal, s.Legs)
		}
	}
	// A former set whose leg has the id of a new one is not kept: it would make the plan invalid.
	p.Sets[0].ID = LegNextHopID(a)
	p.Keep(NextHopSet{ID: NextHopFirst, VRF: "CORE", Legs: []Leg{a, b}, Equal: 2})
	if len(p.Kept) != 0 || p.Validate() != nil {
		t.Errorf("kept %+v, %v", p.Kept, p.Validate())
	}
}
