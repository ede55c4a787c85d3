package interop

import (
	"fmt"
	"strings"
	"testing"
)

// TestIPv4OverIPv6: on a link without an IPv4 address at either end, BIRD and we tell each other IPv4 networks with IPv6 next hops
// (RFC 8950), and packets go there.
//
//	router  fd00:31::2 ─────── fd00:31::1  gw, VRF A
//	lo 10.31.0.2                            loopback 10.31.255.1
func TestIPv4OverIPv6(t *testing.T) {
	needs(t, "bird", "ping")
	g, n := newGateway(t, "gw"), newNode(t, "router")
	g.link("n0", n, "eth0")
	n.sh("ip -6 addr add fd00:31::2/64 dev eth0 nodad", "ip addr add 10.31.0.2/32 dev lo", "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")
	n.file("bird.conf", `
log stderr all;
router id 10.31.0.2;
protocol device {}
protocol static { ipv4; route 10.31.0.0/24 unreachable; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bgp fabric {
	local fd00:31::2 as 65100;
	neighbor fd00:31::1 as 65001;
	connect retry time 2; connect delay time 1; error wait time 2, 10;
	ipv4 { import all; export where source = RTS_STATIC; extended next hop on; };
	ipv6 { import all; export none; };
}
`)
	n.start("bird", nil, "bird", "-f", "-c", n.path("bird.conf"), "-s", n.path("bird.ctl"), "-P", n.path("bird.pid"))
	g.run(fmt.Sprintf(`
fabric: {name: extended, bgp: {keepalive: 3s, hold: 9s, connect-retry: 2s}}
vrfs: [{name: A, table: 310, vni: 3100}]
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs:
          - vrf: A
            interfaces: [{name: n0, addresses: ["fd00:31::1/64"]}]
            loopbacks: [10.31.255.1/32]
            peers: [{name: bird, address: "fd00:31::2", asn: 65100, families: [ipv4, ipv6], extended-next-hop: true}]
`, g.public, g.path("wg.key")))
	wait(t, "10.31.0.0/24 through fd00:31::2 in our kernel, and 10.31.255.1 through fd00:31::1 in BIRD's", patience, func() (string, bool) {
		ours, _ := g.try("ip", "route", "get", "10.31.0.2", "from", "10.31.255.1")
		if g.backend() == "vrf-device" {
			ours, _ = g.try("ip", "route", "get", "10.31.0.2", "vrf", "A")
		}
		theirs, _ := n.try("ip", "route", "get", "10.31.255.1")
		return ours + theirs + fmt.Sprint(g.peers("")), strings.Contains(ours, "via inet6 fd00:31::2 dev n0") && strings.Contains(theirs, "via inet6 fd00:31::1 dev eth0")
	})
	wait(t, "an IPv4 answer", step, func() (string, bool) {
		out, err := n.try("ping", "-n", "-c", "2", "-i", "0.3", "-W", "2", "-I", "10.31.0.2", "10.31.255.1")
		return out, err == nil
	})
	t.Logf("proved with backend %s", g.backend())
}
