package rib

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// Sources that the tests share.
var (
	connectedA = Source{Kind: Connected, VRF: "A"}
	staticA    = Source{Kind: Static, VRF: "A"}
	peer1      = Source{Kind: Peer, VRF: "A", Name: "p1", Addr: netip.MustParseAddr("192.0.2.1")}
	peer2      = Source{Kind: Peer, VRF: "A", Name: "p2", Addr: netip.MustParseAddr("192.0.2.2")}
	peer3      = Source{Kind: Peer, VRF: "A", Name: "p3", Addr: netip.MustParseAddr("2001:db8::3")}
	peerB      = Source{Kind: Peer, VRF: "B", Name: "p1", Addr: netip.MustParseAddr("192.0.2.1")}
	gateway1   = Source{Kind: Fabric, Name: "g1", Addr: netip.MustParseAddr("10.255.0.1")}
	gateway2   = Source{Kind: Fabric, Name: "g2", Addr: netip.MustParseAddr("10.255.0.2")}
)

var (
	net10  = netip.MustParsePrefix("10.0.0.0/8")
	net101 = netip.MustParsePrefix("10.1.0.0/16")
	netV6  = netip.MustParsePrefix("2001:db8::/32")
	rt1    = RT{0, 2, 0xfc, 0, 0, 0, 0, 1}
	rt2    = RT{0, 2, 0xfc, 0, 0, 0, 0, 2}
)

// path returns a path of a source with its own address as next hop, changed by the given functions.
func path(s Source, p netip.Prefix, change ...func(*Path)) Path {
	out := Path{Key: PathKey{Source: s, Prefix: p}, Attrs: Attrs{LocalPref: 100, NextHop: s.Addr, RouterID: s.Addr}}
	if s.Kind == Fabric {
		out.Attrs.RTs = []RT{rt1}
	}
	for _, c := range change {
		c(&out)
	}
	return out
}

func asPath(asns ...uint32) func(*Path) {
	return func(p *Path) { p.Attrs.ASPath = []ASSegment{{ASNs: asns}} }
}

func withMED(m uint32) func(*Path) {
	return func(p *Path) { p.Attrs.MED, p.Attrs.HasMED = m, true }
}

func routerID(s string) func(*Path) {
	return func(p *Path) { p.Attrs.RouterID = netip.MustParseAddr(s) }
}

func nextHop(s string) func(*Path) {
	return func(p *Path) { p.Attrs.NextHop = netip.MustParseAddr(s) }
}

func TestSteps(t *testing.T) {
	set := func(p *Path) { p.Attrs.ASPath = []ASSegment{{ASNs: []uint32{1}}, {Set: true, ASNs: []uint32{2, 3, 4}}} }
	tests := []struct {
		name         string
		best, other  Path
		want         Reason
		noComparison bool
	}{
		{"connected before static", path(connectedA, net10), path(staticA, net10, nextHop("192.0.2.9")), BySource, false},
		{"static before BGP with any preference", path(staticA, net10),
			path(peer1, net10, func(p *Path) { p.Attrs.LocalPref = 900 }), BySource, false},
		{"higher local preference, longer path", path(gateway1, net10, asPath(1, 2, 3), func(p *Path) { p.Attrs.LocalPref = 200 }),
			path(peer1, net10), ByLocalPref, false},
		{"shorter path", path(gateway1, net10, asPath(1, 2)), path(peer1, net10, asPath(1, 2, 3)), ByASPathLength, false},
		{"a set counts one", path(peer2, net10, set), path(peer1, net10, asPath(1, 2, 3)), ByASPathLength, false},
		{"origin", path(gateway1, net10), path(peer1, net10, func(p *Path) { p.Attrs.Origin = OriginIncomplete }), ByOrigin, false},
		{"MED of one AS", path(gateway1, net10, asPath(7, 1), withMED(5)), path(peer1, net10, asPath(7, 2), withMED(6)), ByMED, false},
		{"no MED is the lowest", path(gateway1, net10, asPath(7)), path(peer1, net10, asPath(7), withMED(1)), ByMED, false},
		{"MED where no AS is named", path(gateway1, net10, withMED(1)), path(peer1, net10, withMED(2)), ByMED, false},
		{"MED of two ASes is not compared", path(peer1, net10, asPath(7), withMED(9)), path(gateway1, net10, asPath(8), withMED(1)), ByNeighbourKind, false},
		{"own peer before fabric, even stale", path(peer1, net10, func(p *Path) { p.Stale = true }), path(gateway1, net10), ByNeighbourKind, false},
		{"fresh before stale", path(peer2, net10), path(peer1, net10, func(p *Path) { p.Stale = true }), ByFresh, false},
		{"router id", path(peer2, net10, routerID("1.1.1.1")), path(peer1, net10, routerID("1.1.1.2")), ByRouterID, false},
		{"address", path(peer1, net10, routerID("1.1.1.1")), path(peer2, net10, routerID("1.1.1.1")), ByAddress, false},
		{"path id", path(peer1, net10), path(peer1, net10, nextHop("192.0.2.9"), func(p *Path) { p.Key.PathID = 1 }), ByPathID, false},
		{"RD before path id", path(gateway1, net10, func(p *Path) { p.Key.PathID = 9 }),
			path(gateway1, net10, nextHop("192.0.2.9"), func(p *Path) { p.Key.RD[7] = 1 }), ByPathID, false},
		{"unknown kind is last", path(peer1, net10), path(Source{VRF: "A"}, net10), BySource, false},
		{"unreachable", path(peer1, net10), path(peer2, net10, nextHop("192.0.2.66"), func(p *Path) { p.Attrs.LocalPref = 900 }), ByReachability, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, order := range [][]Path{{tt.best, tt.other}, {tt.other, tt.best}} {
				tab := NewTable()
				tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
				tab.SetNextHop(NextHop{VRF: "A", Addr: netip.MustParseAddr("192.0.2.66")}, Unreachable)
				tab.Update(order...)
				c, ok := tab.Best(Key{"A", net10})
				if !ok || c.Best.Key != tt.best.Key || c.Reason != tt.want {
					t.Fatalf("got %+v %q (%v), want %+v %q", c.Best, c.Reason, ok, tt.best.Key, tt.want)
				}
				if got := tab.Ranking(Key{"A", net10}); len(got) != 2 || got[0].Lost != "" || got[1].Lost != tt.want {
					t.Errorf("ranking: %+v", got)
				}
				if tt.noComparison {
					continue
				}
				if n, r := Compare(&tt.best, &tt.other); n >= 0 || r != tt.want {
					t.Errorf("Compare: %d %q", n, r)
				}
				if n, r := Compare(&tt.other, &tt.best); n <= 0 || r != tt.want {
					t.Errorf("Compare the other way: %d %q", n, r)
				}
			}
		})
	}
	p := path(peer1, net10)
	if n, r := Compare(&p, &p); n != 0 || r != "" {
		t.Errorf("Compare with itself: %d %q", n, r)
	}
}

// Three paths tie up to MED. By pairs there is no best: a beats b and b beats c by router id, c beats a by MED. RFC 4271
// eliminates a by MED first, so that b wins, whatever the order of arrival.
func TestMEDIsNoOrderOfPairs(t *testing.T) {
	a := path(peer1, net10, asPath(7), withMED(10), routerID("1.1.1.1"))
	b := path(peer2, net10, asPath(8), withMED(99), routerID("1.1.1.2"))
	c := path(peer3, net10, asPath(7), withMED(5), routerID("1.1.1.3"))
	all := []Path{a, b, c}
	for range 20 {
		rand.Shuffle(3, func(i, j int) { all[i], all[j] = all[j], all[i] })
		tab := NewTable()
		tab.Update(all...)
		got := tab.Ranking(Key{"A", net10})
		var names []string
		for _, g := range got {
			names = append(names, g.Path.Key.Source.Name)
		}
		if !slices.Equal(names, []string{"p2", "p3", "p1"}) {
			t.Fatalf("ranking %v, want p2 p3 p1", names)
		}
		if got[1].Lost != ByRouterID || got[2].Lost != ByMED {
			t.Errorf("lost by %q and %q, want router id and MED", got[1].Lost, got[2].Lost)
		}
	}
}

func TestRunnerUpHasAnotherNextHop(t *testing.T) {
	same := func(p *Path) { p.Key.PathID = 1 }
	fe80 := func(dev string) func(*Path) {
		return func(p *Path) { p.Attrs.NextHop, p.Interface = netip.MustParseAddr("fe80::1"), dev }
	}
	tests := []struct {
		name   string
		paths  []Path
		runner string // next hop and device, "" for none
		reason Reason
	}{
		{"none", []Path{path(peer1, net10)}, "", OnlyPath},
		{"only the same", []Path{path(peer1, net10), path(peer1, net10, same)}, "", ByPathID},
		{"the third", []Path{path(peer1, net10), path(peer1, net10, same), path(peer2, net10)}, "192.0.2.2", ByRouterID},
		{"VTEP and address of a VRF are two", []Path{path(peer1, net10), path(gateway1, net10, nextHop("192.0.2.1"))}, "192.0.2.1", ByNeighbourKind},
		{"link-local on two devices", []Path{path(peer1, net10, fe80("eth0")), path(peer2, net10, fe80("eth1"))}, "fe80::1eth1", ByRouterID},
		{"link-local on one device", []Path{path(peer1, net10, fe80("eth0")), path(peer2, net10, fe80("eth0"))}, "", ByRouterID},
		{"unreachable ones do not count", []Path{path(peer1, net10), path(peer2, net10, nextHop("192.0.2.66")), path(peer1, net10, same)}, "", ByPathID},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable()
			tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
			tab.Update(tt.paths...)
			tab.SetNextHop(NextHop{VRF: "A", Addr: netip.MustParseAddr("192.0.2.66")}, Unreachable)
			c, _ := tab.Best(Key{"A", net10})
			got := ""
			if c.RunnerUp != nil {
				got = c.RunnerUp.Attrs.NextHop.String() + c.RunnerUp.Interface
			}
			if got != tt.runner || c.Reason != tt.reason {
				t.Errorf("runner-up %q by %q, want %q by %q", got, c.Reason, tt.runner, tt.reason)
			}
		})
	}
}
