package rib

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// resolving is a table whose VRF A has an interface eth1 on 172.16.1.0/24 and resolves next hops.
func resolving() *Table {
	tab := NewTable()
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}, Multipath: 2, Resolve: true, Networks: []Network{{netip.MustParsePrefix("172.16.1.0/24"), "eth1"}}}})
	return tab
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// A next hop that leads elsewhere concerns the choices that name a path with it, whatever its rank, and no others.
func TestNextHopMoves(t *testing.T) {
	tab := resolving()
	loopback, other := nextHop("192.0.2.9"), nextHop("172.16.1.7")
	longer := asPath(7, 7)
	device := func(p *Path) { p.Interface = "eth2" }
	fourth := path(peer1, prefix("10.4.0.0/16"), loopback, asPath(7, 7, 7))
	fourth.Key.PathID = 1
	tab.Update(path(staticA, prefix("192.0.2.9/32"), nextHop("172.16.1.2")),
		path(peer1, prefix("10.1.0.0/16"), loopback),                                                    // best
		path(peer1, prefix("10.2.0.0/16"), loopback, longer), path(peer2, prefix("10.2.0.0/16"), other), // runner-up
		path(peer1, prefix("10.3.0.0/16"), other), path(peer2, prefix("10.3.0.0/16"), loopback), // equal
		path(peer1, prefix("10.4.0.0/16"), other), path(peer2, prefix("10.4.0.0/16"), nextHop("172.16.1.8")), // behind them all
		path(peer3, prefix("10.4.0.0/16"), nextHop("172.16.1.9"), longer), fourth,
		path(peer1, prefix("10.5.0.0/16"), other),            // another next hop
		path(peer1, prefix("10.6.0.0/16"), loopback, device), // whose device is known
		// A VTEP of the same address.
		path(gateway1, prefix("10.7.0.0/16"), loopback, func(p *Path) { p.Attrs.RTs = []RT{rt1} }))
	f := tab.Subscribe()
	defer f.Close()
	next(t, f)
	tell := func(what string) string {
		t.Helper()
		var keys []string
		for _, c := range strings.Split(next(t, f), "; ") {
			keys = append(keys, strings.Fields(c)[1])
		}
		return what + " " + strings.Join(keys, " ")
	}
	const users = " 10.1.0.0/16 10.2.0.0/16 10.3.0.0/16"
	tab.Update(path(staticA, prefix("192.0.2.9/32"), nextHop("172.16.1.3")))
	want(t, "moved", tell(""), users+" 192.0.2.9/32")
	tab.Update(path(staticA, prefix("192.0.2.0/24"), nextHop("172.16.1.4")))
	want(t, "a shorter prefix", tell(""), " 192.0.2.0/24")
	tab.Withdraw(PathKey{Source: staticA, Prefix: prefix("192.0.2.9/32")})
	want(t, "the longer one gone", tell(""), users+" 192.0.2.9/32")
	// Where the neighbour is on a link, a route to it is none of a next hop's business.
	tab.Update(path(staticA, prefix("172.16.1.7/32"), nextHop("172.16.1.4")))
	want(t, "a route to a neighbour on the link", tell(""), " 172.16.1.7/32")
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}, Multipath: 2, Resolve: true, Networks: []Network{{prefix("172.16.1.0/24"), "eth9"}}}})
	if got := next(t, f); !strings.Contains(got, "10.5.0.0/16") || !strings.Contains(got, "10.1.0.0/16") || strings.Contains(got, "10.6.0.0/16") || strings.Contains(got, "10.7.0.0/16") {
		t.Errorf("another device: %s", got)
	}
	if got := tab.Resolve("A", netip.MustParseAddr("192.0.2.9")); got.Gateway.String() != "172.16.1.4" || got.Device != "eth9" {
		t.Errorf("192.0.2.9 leads to %+v", got)
	}
}

// What is many routes away counts as unreachable, however the routes lead to each other.
func TestResolveIsBounded(t *testing.T) {
	tab := resolving()
	hop := func(i int) string { return fmt.Sprintf("192.0.2.%d", i) }
	for i := range 20 {
		to := nextHop(hop(i + 1))
		if i == 19 {
			to = nextHop("172.16.1.2")
		}
		tab.Update(path(staticA, prefix(hop(i)+"/32"), to))
	}
	for i := range 20 {
		got := tab.Resolve("A", netip.MustParseAddr(hop(i)))
		switch far := 20-i > maxAsked; {
		case far && !strings.Contains(got.Why, "routes away; give one of them an interface"):
			t.Errorf("%s: %+v", hop(i), got)
		case !far && (got.Why != "" || got.Device != "eth1" || got.Gateway.String() != "172.16.1.2"):
			t.Errorf("%s: %+v", hop(i), got)
		}
	}
	for _, nh := range []string{"192.0.2.1", "192.0.2.19"} {
		if got := tab.Resolve("B", netip.MustParseAddr(nh)); got.Why == "" {
			t.Errorf("%s in a VRF that is not there: %+v", nh, got)
		}
	}
}

// A path whose next hop leads nowhere is not chosen; once it leads somewhere, it is, and what leads back to a next hop makes it lead nowhere
// else.
func TestUnresolvable(t *testing.T) {
	tab := resolving()
	f := tab.Subscribe()
	defer f.Close()
	next(t, f)
	loopback := nextHop("192.0.2.9")
	tab.Update(path(peer1, net10, loopback))
	quiet(t, f)
	key := Key{"A", net10}
	if r := tab.Ranking(key); len(r) != 1 || r[0].Usable || r[0].Lost != ByReachability || r[0].Problem != "no route to next hop 192.0.2.9 in VRF A" {
		t.Errorf("ranked as %+v", r)
	}
	tab.Update(path(peer2, net10, nextHop("172.16.1.2"), asPath(7, 7)))
	want(t, "a worse path that leads somewhere", next(t, f), "A 10.0.0.0/8 peerp2")
	if c, _ := tab.Best(key); c.Reason != ByReachability {
		t.Errorf("reason %q", c.Reason)
	}
	// The neighbour's own route to its loopback helps nobody.
	tab.Update(path(peer1, prefix("192.0.2.0/24"), loopback))
	quiet(t, f)
	tab.Update(path(staticA, prefix("192.0.0.0/16"), nextHop("172.16.1.3")))
	want(t, "a route to it", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2); A 192.0.0.0/16 static; A 192.0.2.0/24 peerp1")
	tab.SetSource(staticA, Unreachable)
	want(t, "which dies", next(t, f), "A 10.0.0.0/8 peerp2; A 192.0.0.0/16 -; A 192.0.2.0/24 -")
	tab.SetSource(staticA, Reachable)
	want(t, "and lives", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2); A 192.0.0.0/16 static; A 192.0.2.0/24 peerp1")
	tab.Update(path(gateway1, prefix("192.0.2.9/32")))
	want(t, "behind another gateway", next(t, f), "A 10.0.0.0/8 peerp2; A 192.0.2.0/24 -; A 192.0.2.9/32 fabricg1")
	tab.SetNextHop(NextHop{Addr: gateway1.Addr}, Unreachable)
	want(t, "that is gone", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2); A 192.0.2.0/24 peerp1; A 192.0.2.9/32 -")
	tab.Update(path(staticA, prefix("192.0.0.0/16"), nextHop("172.17.1.3")))
	want(t, "a static route to nowhere", next(t, f), "A 10.0.0.0/8 peerp2; A 192.0.0.0/16 -; A 192.0.2.0/24 -")
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
	want(t, "nothing is resolved any more", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2); A 192.0.0.0/16 static; A 192.0.2.0/24 peerp1")
}
