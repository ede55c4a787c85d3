package bgp

import (
	"log/slog"
	"net/netip"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
	"fabric/policy"
)

func TestWrongNextHop(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	direct := Peer{
		ASN: 65100, LocalASN: 65001, Address: addr("10.1.0.2"),
		Own: []netip.Addr{addr("10.1.0.1"), addr("fd00::1"), addr("10.9.9.9")}, Networks: []netip.Prefix{prefix("10.1.0.0/24"), prefix("fd00::/64")},
	}
	multihop, internal, routed := direct, direct, direct
	multihop.Multihop = 2
	internal.ASN = internal.LocalASN
	routed.Networks = []netip.Prefix{prefix("10.8.0.1/32")}
	for _, c := range []struct {
		what    string
		peer    *Peer
		nextHop string
		want    string
	}{
		{"the neighbour", &direct, "10.1.0.2", ""},
		{"another router on its network", &direct, "10.1.0.77", ""},
		{"of IPv6", &direct, "fd00::2", ""},
		{"link-local", &direct, "fe80::2%eth0", ""},
		{"our address of the session", &direct, "10.1.0.1", ownNextHopTerm},
		{"our loopback", &direct, "10.9.9.9", ownNextHopTerm},
		{"another network", &direct, "198.18.0.1", foreignNextHopTerm},
		{"another network of IPv6", &direct, "fd01::1", foreignNextHopTerm},
		{"another network, multihop", &multihop, "198.18.0.1", ""},
		{"ourselves, multihop", &multihop, "10.1.0.1", ownNextHopTerm},
		{"another network, iBGP", &internal, "198.18.0.1", ""},
		{"the neighbour on a routed interface", &routed, "10.1.0.2", ""},
		{"no interface known", &Peer{ASN: 65100, Address: addr("10.1.0.2")}, "198.18.0.1", ""},
	} {
		if got := c.peer.wrongNextHop(addr(c.nextHop)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// A path whose next hop leads nowhere is told to nobody: neither to other peers nor to other gateways.
func TestUnresolvableIsNotTold(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "a", ASN: 65100}, 11, 12)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "b", ASN: 65101}, 11, 13)
	a, b := n.router(65100, 12, 11, 65001, ceOptions{}), n.router(65101, 13, 11, 65001, ceOptions{})
	g1, g2 := n.pair(doc)
	g1.rib.SetVRFs([]rib.VRF{{Name: "CORE", Import: []rib.RT{{0, 2, 0xfc, 0, 0, 0, 3, 0xe8}}, Resolve: true,
		Networks: []rib.Network{{Prefix: netip.PrefixFrom(n.addr(0), 24), Device: "lo"}}}})
	a.announce(route{prefix: "10.1.0.0/16"}, route{prefix: "10.2.0.0/16", nextHop: "192.0.2.9"})
	one, two := "10.1.0.0/16 "+n.addr(11).String()+" [65001 65100]", "10.2.0.0/16 "+n.addr(11).String()+" [65001 65100]"
	way := "192.0.2.0/24 " + n.addr(11).String() + " [65001 65100]"
	b.wantHeard(n.addr(11), one)
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]")
	g1.wantPeer("CORE", "a", "with both admitted", func(p PeerState) bool { return p.Admitted == 2 })
	a.announce(route{prefix: "192.0.2.0/24"})
	b.wantHeard(n.addr(11), one, two, way)
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]", "10.2.0.0/16 fabric gw1 [65001 65100]", "192.0.2.0/24 fabric gw1 [65001 65100]")
	a.withdraw("192.0.2.0/24")
	b.wantHeard(n.addr(11), one)
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]")
}

// An IPv4 path with an IPv6 next hop (RFC 8950) is for peers that the document allows it, and nothing else is.
func TestExtendedNextHop(t *testing.T) {
	four, six, via6, via4 := netip.MustParsePrefix("20.0.0.0/16"), netip.MustParsePrefix("2001:db8:7::/48"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.1.0.2")
	for _, c := range []struct {
		what    string
		allowed bool
		prefix  netip.Prefix
		nextHop netip.Addr
		want    string // the deciding term where it is refused
	}{
		{"allowed", true, four, via6, ""},
		{"not allowed", false, four, via6, refuseFamily},
		{"the other way round", true, six, via4, refuseFamily},
		{"its own family", true, six, via6, ""},
		{"ours", true, four, netip.MustParseAddr("fd00::1"), ownNextHopTerm},
		{"in no network of the interface", true, four, netip.MustParseAddr("fd01::2"), foreignNextHopTerm},
	} {
		n := newNeighbour(Peer{
			Name: "p", VRF: "A", ASN: 65100, LocalASN: 65001, Address: via6, Interface: "eth1", ExtendedNextHop: c.allowed, Import: policy.Guard(false),
			Own: []netip.Addr{netip.MustParseAddr("fd00::1")}, Networks: []netip.Prefix{netip.MustParsePrefix("fd00::/64")},
		}, 1, slog.New(slog.DiscardHandler))
		p := rib.Path{Key: rib.PathKey{Prefix: c.prefix}, Attrs: rib.Attrs{NextHop: c.nextHop}}
		got, ok := n.judge(p, refusal(c.prefix, &p.Attrs, nil, 0))
		if ok != (c.want == "") || !ok && got.Policy != c.want {
			t.Errorf("%s: %v by %s, want %q", c.what, ok, got.Policy, c.want)
		}
		if ok && (got.Attrs.NextHop != via6 || got.Interface != "eth1") {
			t.Errorf("%s: next hop %v on %q", c.what, got.Attrs.NextHop, got.Interface)
		}
	}
}
