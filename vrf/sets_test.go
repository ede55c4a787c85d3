package vrf_test

import (
	"fmt"
	"slices"
	"testing"

	"fabric/internal/kernel"
	"fabric/vrf"
)

// Which choices want a next-hop set, of which legs, and with what source the route then is.
func TestLegs(t *testing.T) {
	m := member()
	watched := func(_, peer string) string {
		if peer == "watched" {
			return "A/watched"
		}
		return ""
	}
	const vtep2, vtep3 = "via fe80::5efe:aff:2 dev fxv1000 (VTEP 10.255.0.2)", "via fe80::5efe:aff:3 dev fxv1000 (VTEP 10.255.0.3)"
	tests := []struct {
		name           string
		best, runnerUp string
		peer           string
		first, second  string // "" for no set
		src            string
	}{
		{"two neighbours", "peer 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 10.1.2.2", "watched", "via 10.1.0.2 dev eth1", "via 10.1.2.2 dev eth2", ""},
		{"a neighbour, then a VTEP", "peer 10.7.0.0/16 via 10.1.0.2", "fabric 10.7.0.0/16 via 10.255.0.2 vni 1000", "watched", "via 10.1.0.2 dev eth1", vtep2, "10.1.0.1"},
		{"two VTEPs", "fabric 10.7.0.0/16 via 10.255.0.2 vni 1000", "fabric 10.7.0.0/16 via 10.255.0.3 vni 1000", "", vtep2, vtep3, "10.1.0.1"},
		{"two VTEPs, IPv6", "fabric fd07::/16 via 10.255.0.2 vni 1000", "fabric fd07::/16 via 10.255.0.3 vni 1000", "", vtep2, vtep3, "fd00:1::1"},
		{"a VTEP, then an unwatched neighbour", "fabric 10.7.0.0/16 via 10.255.0.2 vni 1000", "peer 10.7.0.0/16 via 10.1.0.2", "", vtep2, "via 10.1.0.2 dev eth1", "10.1.0.1"},
		{"IPv4 over IPv6, then IPv4", "peer 10.7.0.0/16 via fe80::9 dev eth1", "peer 10.7.0.0/16 via 10.1.2.2", "watched", "via fe80::9 dev eth1", "via 10.1.2.2 dev eth2", ""},
		{"IPv6", "peer fd07::/16 via fd00:1::2", "peer fd07::/16 via fe80::9 dev eth2", "watched", "via fd00:1::2 dev eth1", "via fe80::9 dev eth2", "fd00:1::1"},
		{"IPv6 over IPv4", "fabric fd07::/16 via 10.255.0.2 vni 1000", "peer fd07::/16 via 10.1.0.2", "", "", "", ""},
		{"unwatched", "peer 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 10.1.2.2", "", "", "", ""},
		{"no second", "peer 10.7.0.0/16 via 10.1.0.2", "", "watched", "", "", ""},
		{"the second has no device", "peer 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 172.16.0.1", "watched", "", "", ""},
		{"the second is of another VNI", "peer 10.7.0.0/16 via 10.1.0.2", "fabric 10.7.0.0/16 via 10.255.0.2 vni 7", "watched", "", "", ""},
		{"both are one", "peer 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 10.1.0.2 dev eth1", "watched", "", "", ""},
		{"static", "static 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 10.1.2.2", "watched", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := choice(t, tt.best)
			c.Best.Key.Source.Name = tt.peer
			if tt.runnerUp != "" {
				c.RunnerUp = choice(t, tt.runnerUp).Best
			}
			_, plain, ok, err := m.Route(c, nil)
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			legs, r, ok := m.Legs(c, plain, nil, watched)
			if !ok {
				if tt.first != "" {
					t.Error("no set")
				}
				return
			}
			if legs.Equal != 0 || legs.Legs()[0].String() != tt.first || legs.Legs()[1].String() != tt.second {
				t.Errorf("legs are %v", legs)
			}
			if tt.peer != "" && legs.Legs()[0].Session != "A/watched" || legs.Legs()[1].Session != "" {
				t.Errorf("sessions are %q and %q", legs.Legs()[0].Session, legs.Legs()[1].Session)
			}
			if want := fmt.Sprint(kernel.Route{Protocol: kernel.Protocol, Src: r.Src}); fmt.Sprint(r) != want {
				t.Errorf("route is %v", r)
			}
			if got := r.Src.IsValid(); got != (tt.src != "") || got && r.Src.String() != tt.src {
				t.Errorf("source is %v, want %q", r.Src, tt.src)
			}
		})
	}
	if _, _, ok := m.Legs(choice(t, "peer 10.7.0.0/16 via 10.1.0.2"), kernel.Route{}, nil, func(string, string) string { return "" }); ok {
		t.Error("a set of one")
	}
	var _ vrf.Session = watched
}

// Equal paths come first, by address and whichever of them is the best; what cannot be in the group is left out of it.
func TestEqualLegs(t *testing.T) {
	m := member()
	session := func(_, peer string) string { return "A/" + peer }
	const x, y, z = "peer 10.7.0.0/16 via 10.1.0.2", "peer 10.7.0.0/16 via 10.1.2.2", "peer 10.7.0.0/16 via 10.1.0.9"
	const vtep2, vtep3 = "fabric 10.7.0.0/16 via 10.255.0.2 vni 1000", "fabric 10.7.0.0/16 via 10.255.0.3 vni 1000"
	const viaX, viaY, viaZ = "via 10.1.0.2 dev eth1", "via 10.1.2.2 dev eth2", "via 10.1.0.9 dev eth1"
	const via2, via3 = "via fe80::5efe:aff:2 dev fxv1000 (VTEP 10.255.0.2)", "via fe80::5efe:aff:3 dev fxv1000 (VTEP 10.255.0.3)"
	var eight, nine []string
	for i := range 9 {
		p := fmt.Sprintf("peer 10.7.0.0/16 via 10.1.0.%d", 11+i)
		if nine = append(nine, p); i < 8 {
			eight = append(eight, fmt.Sprintf("via 10.1.0.%d dev eth1", 11+i))
		}
	}
	tests := []struct {
		name     string
		paths    []string // best first
		runnerUp string
		equal    int
		legs     []string
	}{
		{"two neighbours", []string{x, y}, "", 2, []string{viaX, viaY}},
		{"the other is the best", []string{y, x}, "", 2, []string{viaX, viaY}},
		{"and a third behind", []string{y, x}, z, 2, []string{viaX, viaY, viaZ}},
		{"and a VTEP behind", []string{y, z, x}, vtep2, 3, []string{viaX, viaZ, viaY, via2}},
		{"two VTEPs", []string{vtep3, vtep2}, x, 2, []string{via2, via3, viaX}},
		{"as many as there may be, and one behind", nine[:8], z, 8, eight},
		{"one cannot be reached", []string{x, "peer 10.7.0.0/16 via 172.16.0.1", y}, "", 2, []string{viaX, viaY}},
		{"all but the best cannot be reached", []string{x, "peer 10.7.0.0/16 via 172.16.0.1"}, y, 0, []string{viaX, viaY}},
		{"nothing is left to share with", []string{x, "peer 10.7.0.0/16 via 172.16.0.1"}, "", 0, nil},
		{"two are one", []string{x, "peer 10.7.0.0/16 via 10.1.0.2 dev eth1"}, y, 0, []string{viaX, viaY}},
		{"IPv6 over IPv4", []string{"peer fd07::/16 via fd00:1::2", "peer fd07::/16 via 10.1.0.2", "peer fd07::/16 via fe80::9 dev eth2"}, "", 2,
			[]string{"via fd00:1::2 dev eth1", "via fe80::9 dev eth2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := choice(t, tt.paths[0])
			for _, p := range tt.paths[1:] {
				c.Equal = append(c.Equal, choice(t, p).Best)
			}
			if tt.runnerUp != "" {
				c.RunnerUp = choice(t, tt.runnerUp).Best
			}
			_, plain, ok, err := m.Route(c, nil)
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			ranked, _, ok := m.Legs(c, plain, nil, session)
			var legs []string
			for _, l := range ranked.Legs() {
				legs = append(legs, l.String())
			}
			if ok != (tt.legs != nil) || ok && (ranked.Equal != tt.equal || !slices.Equal(legs, tt.legs)) {
				t.Errorf("%v: %d of %q share, want %d of %q", ok, ranked.Equal, legs, tt.equal, tt.legs)
			}
		})
	}
}
