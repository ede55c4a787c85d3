package rib

import "testing"

// Which paths share traffic with the best: text is what a feed tells, after "A 10.0.0.0/8 ".
func TestEqualPaths(t *testing.T) {
	stale := func(p *Path) { p.Stale = true }
	preferred := func(p *Path) { p.Attrs.LocalPref = 200 }
	egp := func(p *Path) { p.Attrs.Origin = OriginEGP }
	imported := func(p *Path) { p.Attrs.RTs = []RT{rt1} }
	tests := []struct {
		name      string
		multipath int
		paths     []Path
		want      string
	}{
		{"two neighbours", 2, []Path{path(peer1, net10), path(peer2, net10)}, "peerp1 = peerp2"},
		{"two neighbours, one path", 1, []Path{path(peer1, net10), path(peer2, net10)}, "peerp1 (peerp2)"},
		{"three of three", 8, []Path{path(peer1, net10), path(peer2, net10), path(peer3, net10)}, "peerp1 = peerp2 = peerp3"},
		{"two of three", 2, []Path{path(peer1, net10), path(peer2, net10), path(peer3, net10)}, "peerp1 = peerp2 (peerp3)"},
		{"another AS of the same length", 2, []Path{path(peer1, net10, asPath(7)), path(peer2, net10, asPath(8))}, "peerp1 = peerp2"},
		{"a longer path", 2, []Path{path(peer1, net10, asPath(7)), path(peer2, net10, asPath(8, 8))}, "peerp1 (peerp2)"},
		{"preference", 2, []Path{path(peer1, net10), path(peer2, net10, preferred)}, "peerp2 (peerp1)"},
		{"origin", 2, []Path{path(peer1, net10), path(peer2, net10, egp)}, "peerp1 (peerp2)"},
		{"MED of one AS", 2, []Path{path(peer1, net10, asPath(7), withMED(1)), path(peer2, net10, asPath(7), withMED(2))}, "peerp1 (peerp2)"},
		{"MED of two ASes", 2, []Path{path(peer1, net10, asPath(7), withMED(1)), path(peer2, net10, asPath(8), withMED(2))}, "peerp1 = peerp2"},
		{"beaten by MED among three", 3, []Path{
			path(peer1, net10, asPath(7), withMED(1)), path(peer2, net10, asPath(7), withMED(2)), path(peer3, net10, asPath(8)),
		}, "peerp1 = peerp3 (peerp2)"},
		{"router ids and freshness do not count", 2, []Path{path(peer1, net10, stale, routerID("1.1.1.1")), path(peer2, net10, routerID("1.1.1.2"))}, "peerp2 = peerp1"},
		{"one next hop", 2, []Path{path(peer1, net10), path(peer2, net10, nextHop("192.0.2.1")), path(peer3, net10)}, "peerp1 = peerp3"},
		{"two gateways", 2, []Path{path(gateway1, net10), path(gateway2, net10)}, "fabricg1 = fabricg2"},
		{"a neighbour and gateways", 8, []Path{path(peer1, net10), path(gateway1, net10, imported), path(gateway2, net10)}, "peerp1 (fabricg1)"},
		{"IPv6 and IPv4 next hops", 2, []Path{path(peer1, net10), path(peer3, net10)}, "peerp1 = peerp3"},
		{"statics have one", 2, []Path{path(staticA, net10, nextHop("192.0.2.9")), path(peer1, net10), path(peer2, net10)}, "static (peerp1)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable()
			tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}, Multipath: tt.multipath}})
			tab.Update(tt.paths...)
			b, _, _ := tab.Subscribe().take()
			want(t, tt.name, show(b), "full; A 10.0.0.0/8 "+tt.want)
		})
	}
}

// The feed tells of every change of the paths that share, and of nothing else.
func TestEqualChanges(t *testing.T) {
	tab := NewTable()
	vrfs := func(n int) { tab.SetVRFs([]VRF{{Name: "A", Multipath: n}}) }
	vrfs(2)
	tab.Update(path(peer1, net10), path(peer2, net10), path(peer3, net10))
	f := tab.Subscribe()
	defer f.Close()
	want(t, "at first", next(t, f), "full; A 10.0.0.0/8 peerp1 = peerp2 (peerp3)")
	tab.Update(path(peer2, net10))
	quiet(t, f)
	vrfs(2)
	quiet(t, f)

	tab.SetSource(peer2, Unreachable)
	want(t, "BFD has found p2 dead", next(t, f), "A 10.0.0.0/8 peerp1 = peerp3")
	tab.SetNextHop(NextHop{"A", peer3.Addr}, Unreachable)
	want(t, "p3 cannot be reached", next(t, f), "A 10.0.0.0/8 peerp1")
	tab.SetSource(peer2, Reachable)
	want(t, "p2 is back", next(t, f), "A 10.0.0.0/8 peerp1 = peerp2")
	tab.Withdraw(PathKey{Source: peer1, Prefix: net10})
	want(t, "p1 has withdrawn", next(t, f), "A 10.0.0.0/8 peerp2")
	tab.Update(path(peer1, net10))
	want(t, "p1 announces again", next(t, f), "A 10.0.0.0/8 peerp1 = peerp2")
	vrfs(1)
	want(t, "one path", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2)")
	vrfs(3)
	want(t, "three paths", next(t, f), "A 10.0.0.0/8 peerp1 = peerp2")
	tab.SetNextHop(NextHop{"A", peer3.Addr}, Reachable)
	want(t, "p3 can be reached", next(t, f), "A 10.0.0.0/8 peerp1 = peerp2 = peerp3")
	tab.Withdraw(PathKey{Source: peer3, Prefix: net10})
	want(t, "p3 has withdrawn", next(t, f), "A 10.0.0.0/8 peerp1 = peerp2")
	for i, c := range tab.Ranking(Key{"A", net10}) {
		if c.Equal != (i == 1) {
			t.Errorf("candidate %d: %+v", i, c)
		}
	}
	tab.SetVRFs(nil)
	want(t, "the VRF has gone", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2)")
}
