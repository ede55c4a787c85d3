package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// A router behind gw1 announces what is legal and what is not.
//
//	router AS 65100 ── CORE gw1 ══ fabric ══ gw2 CORE ── router2 AS 65200
func TestOnlyLegalPathsTravel(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "frr", ASN: 65100}, 11, 101)
	n.addPeer(doc, "gw2", "CORE", config.Peer{Name: "ce2", ASN: 65200}, 12, 102)
	r := n.router(65100, 101, 11, 65001, ceOptions{})
	r2 := n.router(65200, 102, 12, 65002, ceOptions{})
	g1, g2 := n.pair(doc)
	r.announce(
		route{prefix: "172.20.128.0/17", comms: []uint32{65100<<16 | 7}, med: 50, asPath: []uint32{65111}},
		route{prefix: "2001:db8:20::/48"},
		route{prefix: "172.20.200.1/32"},
		route{prefix: "172.20.129.0/30"}, route{prefix: "172.20.129.8/31"}, route{prefix: "0.0.0.0/0"}, route{prefix: "::/0"},
		route{prefix: "127.0.0.0/8"}, route{prefix: "2001:db8:20::4/127"},
		route{prefix: "172.20.140.0/24", asPath: []uint32{65001}}, // our own AS
		route{prefix: "172.20.141.0/24", pref: 999},
	)
	g1.static("CORE", "172.18.0.0/16")
	g2.static("CORE", "172.31.0.0/16")

	g1.wantRoutes("CORE", "172.18.0.0/16 static  []", "172.20.128.0/17 peer frr [65100 65111]", "172.20.141.0/24 peer frr [65100]",
		"172.20.200.1/32 peer frr [65100]", "172.31.0.0/16 fabric gw2 [65002]", "2001:db8:20::/48 peer frr [65100]")
	g2.wantRoutes("CORE", "172.18.0.0/16 fabric gw1 [65001]", "172.20.128.0/17 fabric gw1 [65001 65100 65111]",
		"172.20.141.0/24 fabric gw1 [65001 65100]", "172.20.200.1/32 fabric gw1 [65001 65100]", "172.31.0.0/16 static  []",
		"2001:db8:20::/48 fabric gw1 [65001 65100]")
	// Nothing of its own comes back to the router; MED stays within the fabric, communities travel.
	r.wantHeard(n.addr(11), "172.18.0.0/16 "+n.addr(11).String()+" [65001]", "172.31.0.0/16 "+n.addr(11).String()+" [65001 65002]")
	self := n.addr(12).String()
	r2.wantHeard(n.addr(12), "172.18.0.0/16 "+self+" [65002 65001]", "172.20.128.0/17 "+self+" [65002 65001 65100 65111] [65100:7]",
		"172.20.141.0/24 "+self+" [65002 65001 65100]", "172.20.200.1/32 "+self+" [65002 65001 65100]", "172.31.0.0/16 "+self+" [65002]",
		"2001:db8:20::/48 2001:db8:ffff::1 [65002 65001 65100]")
	c, _ := g2.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix("172.20.128.0/17")})
	if a := c.Best.Attrs; a.MED != 50 || !slices.Equal(a.Communities, []rib.Community{65100<<16 | 7}) {
		t.Errorf("MED %d and communities %v did not travel", a.MED, a.Communities)
	}
	// LOCAL_PREF over eBGP is not believed.
	if c, _ := g1.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix("172.20.141.0/24")}); c.Best.Attrs.LocalPref != 100 {
		t.Errorf("LOCAL_PREF %d came over eBGP", c.Best.Attrs.LocalPref)
	}
	var got []string
	for _, p := range g1.Rejected("CORE") {
		got = append(got, p.Key.Prefix.String()+" "+p.Policy)
	}
	want := []string{"0.0.0.0/0 guard/default-v4", "127.0.0.0/8 guard/loopback-v4", "172.20.129.0/30 guard/point-to-point-v4",
		"172.20.129.8/31 guard/point-to-point-v4", "172.20.140.0/24 own-as/loop", "::/0 guard/default-v6", "2001:db8:20::4/127 guard/point-to-point-v6"}
	if !slices.Equal(got, want) {
		t.Errorf("rejected:\n%q\nwant:\n%q", got, want)
	}
	p := g1.wantPeer("CORE", "frr", "to be counted", func(p PeerState) bool { return p.Advertised == 2 })
	if p.Received != 11 || p.Admitted != 4 || p.Rejected != 7 || p.Hold.Seconds() != 3 || p.Keepalive.Seconds() != 1 ||
		!slices.Equal(p.Families, []string{IPv4, IPv6}) {
		t.Errorf("%+v", p)
	}

	r.withdraw("172.20.128.0/17", "2001:db8:20::/48", "172.20.200.1/32")
	g2.wantRoutes("CORE", "172.18.0.0/16 fabric gw1 [65001]", "172.20.141.0/24 fabric gw1 [65001 65100]", "172.31.0.0/16 static  []")
	r2.wantHeard(n.addr(12), "172.18.0.0/16 "+self+" [65002 65001]", "172.20.141.0/24 "+self+" [65002 65001 65100]", "172.31.0.0/16 "+self+" [65002]")

	// A path that begins to loop replaces the good one: it must go, though GoBGP alone would keep it.
	r.announce(route{prefix: "172.20.141.0/24", asPath: []uint32{65001}})
	g1.wantRoutes("CORE", "172.18.0.0/16 static  []", "172.31.0.0/16 fabric gw2 [65002]")
	r.stop()
	g1.wantPeer("CORE", "frr", "down", func(p PeerState) bool { return p.State != "established" && p.Flaps == 1 && p.LastError != "" })
	r2.wantHeard(n.addr(12), "172.18.0.0/16 "+self+" [65002 65001]", "172.31.0.0/16 "+self+" [65002]")
}

// The same prefix comes from the fabric and from the gateway's own router: the router's wins; the fabric's, announced to
// the router before it spoke, must go and must not come back as anybody's path (decision 5).
func TestFabricPathDoesNotDisplaceOwnPeer(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "a", ASN: 65100}, 11, 101)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "b", ASN: 65101}, 11, 102)
	n.addPeer(doc, "gw2", "CORE", config.Peer{Name: "c", ASN: 65200}, 12, 103)
	a, b, c := n.router(65100, 101, 11, 65001, ceOptions{}), n.router(65101, 102, 11, 65001, ceOptions{}), n.router(65200, 103, 12, 65002, ceOptions{})
	g1, g2 := n.pair(doc)
	self := n.addr(11).String()

	c.announce(route{prefix: "10.9.0.0/16"})
	g1.wantRoutes("CORE", "10.9.0.0/16 fabric gw2 [65002 65200]")
	a.wantHeard(n.addr(11), "10.9.0.0/16 "+self+" [65001 65002 65200]")
	b.wantHeard(n.addr(11), "10.9.0.0/16 "+self+" [65001 65002 65200]")

	a.announce(route{prefix: "10.9.0.0/16"})
	g1.wantRoutes("CORE", "10.9.0.0/16 peer a [65100]")
	a.wantHeard(n.addr(11))
	b.wantHeard(n.addr(11), "10.9.0.0/16 "+self+" [65001 65100]")
	if got := len(g1.rib.Candidates(rib.Key{VRF: "CORE", Prefix: prefix("10.9.0.0/16")})); got != 2 {
		t.Errorf("%d candidates at gw1, want the router's and the fabric's", got)
	}
	// gw2 has two ways as well: its router's, and gw1's.
	wait(t, "two candidates at gw2", patience, func() (string, bool) {
		cs := g2.rib.Candidates(rib.Key{VRF: "CORE", Prefix: prefix("10.9.0.0/16")})
		return fmt.Sprint(cs), len(cs) == 2
	})
	a.withdraw("10.9.0.0/16")
	g1.wantRoutes("CORE", "10.9.0.0/16 fabric gw2 [65002 65200]")
	a.wantHeard(n.addr(11), "10.9.0.0/16 "+self+" [65001 65002 65200]")
	c.withdraw("10.9.0.0/16")
	g1.wantRoutes("CORE")
	g2.wantRoutes("CORE")
	a.wantHeard(n.addr(11))
}

// One peer has an export policy and a next hop of its own, and as-override; the other hears the plain thing.
func TestExportIsPerPeer(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	med := uint32(70)
	doc.Policies = []config.Policy{{Name: "OUT", Default: "reject", Terms: []config.Term{
		{Name: "ten", Match: config.Match{Prefixes: []string{"10.0.0.0/8 le 24"}}, Then: "accept",
			Set: &config.Set{MED: &med, Prepend: 2, AddCommunities: []string{"65001:3"}}},
	}}, {Name: "IN", Default: "accept", Terms: []config.Term{
		{Name: "no-55", Match: config.Match{Prefixes: []string{"10.55.0.0/16 le 32"}}, Then: "reject"},
	}}}
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "a", ASN: 65100, Export: "OUT", NextHop: netip.MustParseAddr("192.0.2.1"), Families: []string{IPv4}}, 11, 101)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "b", ASN: 65300, ASOverride: true, Import: "IN"}, 11, 102)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "c", ASN: 65300, Families: []string{IPv4}}, 11, 103)
	a, b, c := n.router(65100, 101, 11, 65001, ceOptions{}), n.router(65300, 102, 11, 65001, ceOptions{}), n.router(65300, 103, 11, 65001, ceOptions{})
	g1 := n.start(doc, "gw1")
	g1.static("CORE", "10.1.0.0/16", "192.168.0.0/16", "10.2.0.0/30")
	g1.rib.Update(func() rib.Path { p := staticPath("CORE", "10.3.0.0/16"); p.LocalOnly = true; return p }())
	b.announce(route{prefix: "10.50.0.0/16"}, route{prefix: "10.55.1.0/24"}, route{prefix: "10.51.0.0/16", comms: []uint32{0xffffff01}})
	c.announce(route{prefix: "10.60.0.0/16"})
	self := n.addr(11).String()
	a.wantHeard(n.addr(11), "10.1.0.0/16 192.0.2.1 [65001 65001 65001] med 70 [65001:3]",
		"10.50.0.0/16 192.0.2.1 [65001 65001 65001 65300] med 70 [65001:3]",
		"10.60.0.0/16 192.0.2.1 [65001 65001 65001 65300] med 70 [65001:3]")
	// as-override: b hears of c's prefix although both are AS 65300; c, without it, does not hear of b's.
	b.wantHeard(n.addr(11), "10.1.0.0/16 "+self+" [65001]", "10.60.0.0/16 "+self+" [65001 65001]", "192.168.0.0/16 "+self+" [65001]")
	c.wantHeard(n.addr(11), "10.1.0.0/16 "+self+" [65001]", "192.168.0.0/16 "+self+" [65001]")

	// Policies change in place: no session is lost.
	before := g1.peer("CORE", "a")
	next := doc.Clone()
	next.Policies[0].Terms[0].Set = nil
	next.Policies[1].Default = "reject"
	g1.configure(next)
	a.wantHeard(n.addr(11), "10.1.0.0/16 192.0.2.1 [65001]", "10.60.0.0/16 192.0.2.1 [65001 65300]")
	g1.wantRoutes("CORE", "10.1.0.0/16 static  []", "10.2.0.0/30 static  []", "10.3.0.0/16 static  []", "10.60.0.0/16 peer c [65300]", "192.168.0.0/16 static  []")
	g1.configure(doc)
	a.wantHeard(n.addr(11), "10.1.0.0/16 192.0.2.1 [65001 65001 65001] med 70 [65001:3]",
		"10.50.0.0/16 192.0.2.1 [65001 65001 65001 65300] med 70 [65001:3]",
		"10.60.0.0/16 192.0.2.1 [65001 65001 65001 65300] med 70 [65001:3]")
	if after := g1.peer("CORE", "a"); after.Flaps != 0 || !after.Since.Equal(before.Since) || after.State != "established" {
		t.Errorf("session of a was touched: %+v, before %+v", after, before)
	}
}
