package bgp

import (
	"net/netip"
	"testing"
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
