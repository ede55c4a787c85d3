package interop

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	fabricv1 "fabric/proto/fabric/v1"
)

// A lab of many VRFs in one gateway. Each VRF has one neighbour, a BIRD in a host of its own, and all neighbours have the same
// address and announce the same networks:
//
//	gateway                                   peer i, one for each VRF
//	v<i>   10.0.0.1/24, fd00::1/64  ────────  eth0  10.0.0.2/24, fd00::2/64
//	lo     10.200.i.1, fd00:200:i::1          lo    10.100.i.1 (sends), 10.101.i.1 (is sent to), and so in fd00:100, fd00:101
//	main   default ──► trap, a host that must never see anything
//
// i is from 1.
type manyVRFs struct {
	g     *gateway
	peers []*node // peers[0] is number 1
	trap  *node
}

func vrfName(i int) string { return fmt.Sprintf("V%d", i) }
func vrfTable(i int) int   { return 1000 + i }

// manyInterval is that of BFD, with a multiplier of 8.
var manyInterval = slowly(500 * time.Millisecond)

// common are the networks that every neighbour announces.
var common = []string{"10.50.0.0/16", "10.60.0.0/16", "172.20.128.0/17", "192.168.7.0/24", "fd00:50::/48", "fd00:60::/48"}

func newManyVRFs(t *testing.T, count int) *manyVRFs {
	t.Helper()
	l := &manyVRFs{g: newGateway(t, "gw"), trap: newNode(t, "trap")}
	g := l.g
	var doc, vrfs strings.Builder
	fmt.Fprintf(&doc, "fabric: {name: many, bgp: {keepalive: %v, hold: %v, connect-retry: 2s}}\nvrfs:\n", slowly(3*time.Second), slowly(9*time.Second))
	for i := 1; i <= count; i++ {
		p := newNode(t, fmt.Sprintf("peer%d", i))
		l.peers = append(l.peers, p)
		g.link(fmt.Sprintf("v%d", i), p, "eth0")
		fmt.Fprintf(&doc, "  - {name: %s, table: %d, vni: %d}\n", vrfName(i), vrfTable(i), 5000+i)
		key := g.file(fmt.Sprintf("md5-%d", i), fmt.Sprintf("key of VRF %d", i))
		fmt.Fprintf(&vrfs, `          - vrf: %s
            interfaces: [{name: v%d, addresses: [10.0.0.1/24, "fd00::1/64"]}]
            loopbacks: [10.200.%d.1/32, "fd00:200:%x::1/128"]
            peers:
              - {name: bird, address: 10.0.0.2, asn: 65100, families: [ipv4, ipv6], password-file: %s, bfd: {interval: %v, multiplier: 8}}
`, vrfName(i), i, i, i, key, manyInterval)
		l.setUpPeer(p, i)
	}
	fmt.Fprintf(&doc, `sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs:
%s`, g.public, g.path("wg.key"), vrfs.String())
	// Whatever is looked up in main goes to the trap.
	g.link("trap0", l.trap, "eth0")
	g.sh("ip addr add 192.0.2.1/24 dev trap0", "ip route add default via 192.0.2.2", "ip -6 addr add 2001:db8:77::1/64 dev trap0 nodad", "ip -6 route add default via 2001:db8:77::2",
		// Each refusal shall be told: no kind of message is limited. A limit of 0 instead would, on Linux 6.1, empty the allowance per host that
		// refusals are taken from too.
		"sysctl -qw net.ipv4.icmp_ratemask=0", "echo >/proc/sys/net/ipv6/icmp/ratemask")
	l.trap.sh("ip addr add 192.0.2.2/24 dev eth0", "ip -6 addr add 2001:db8:77::2/64 dev eth0 nodad")
	for _, p := range l.peers {
		p.start("bird", nil, "bird", "-f", "-c", p.path("bird.conf"), "-s", p.path("bird.ctl"), "-P", p.path("bird.pid"))
	}
	g.run(doc.String())
	return l
}

// setUpPeer makes the neighbour's addresses and its BIRD's configuration.
func (l *manyVRFs) setUpPeer(p *node, i int) {
	// What peer i sends to 10.101.i.1, its own address, goes out to the gateway first, which must send it back: that shows that probes arrive at all.
	p.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.all.accept_local=1 net.ipv6.conf.eth0.accept_dad=0 net.ipv4.conf.eth0.accept_redirects=0 net.ipv4.conf.all.accept_redirects=0 net.ipv6.conf.eth0.accept_redirects=0")
	p.batch(
		"addr add 10.0.0.2/24 dev eth0", "-6 addr add fd00::2/64 dev eth0 nodad",
		fmt.Sprintf("addr add 10.100.%d.1/32 dev lo", i), fmt.Sprintf("addr add 10.101.%d.1/32 dev lo", i),
		fmt.Sprintf("-6 addr add fd00:100:%x::1/128 dev lo", i), fmt.Sprintf("-6 addr add fd00:101:%x::1/128 dev lo", i),
		"route add default via 10.0.0.1", "-6 route add default via fd00::1",
		"route add default via 10.0.0.1 table 77", "-6 route add default via fd00::1 table 77",
		"rule add pref 100 lookup local", "rule add pref 10 iif lo to 10.101.0.0/16 lookup 77", "rule del pref 0",
		"-6 rule add pref 100 lookup local", "-6 rule add pref 10 iif lo to fd00:101::/32 lookup 77", "-6 rule del pref 0",
	)
	var four, six strings.Builder
	for _, c := range append(slices.Clone(common), fmt.Sprintf("10.100.%d.1/32", i), fmt.Sprintf("10.101.%d.1/32", i), fmt.Sprintf("fd00:100:%x::1/128", i), fmt.Sprintf("fd00:101:%x::1/128", i)) {
		b := &four
		if strings.Contains(c, "::") {
			b = &six
		}
		fmt.Fprintf(b, "route %s unreachable; ", c)
	}
	p.file("bird.conf", fmt.Sprintf(`
log stderr all;
router id 10.0.0.2;
protocol device {}
protocol direct { ipv4 { import none; }; ipv6 { import none; }; }
protocol bfd { interface "eth0" { min rx interval %d ms; min tx interval %d ms; multiplier 8; }; }
protocol static four { ipv4; %s }
protocol static six { ipv6; %s }
protocol bgp fabric {
	local 10.0.0.2 as 65100;
	neighbor 10.0.0.1 as 65001;
	password "key of VRF %d";
	bfd on;
	connect retry time 2; connect delay time 1; error wait time 2, 10;
	ipv4 { import all; export where source = RTS_STATIC; };
	ipv6 { import all; export where source = RTS_STATIC; next hop address fd00::2; };
}
`, manyInterval.Milliseconds(), manyInterval.Milliseconds(), four.String(), six.String(), i))
}

// established counts the neighbours with a session, and says of the first without how it stands.
func (l *manyVRFs) established() (int, string) {
	n, text := 0, ""
	for _, p := range l.g.peers("") {
		if p.GetState() == "established" {
			n++
		} else if text == "" {
			text = p.String()
		}
	}
	return n, text
}

// TestManyVRFs: every neighbour comes up, each VRF's table is its RIB, and nothing crosses.
func TestManyVRFs(t *testing.T) {
	needs(t, "bird")
	count := 4
	if full() {
		count = 64
	}
	if n, err := strconv.Atoi(getenv("INTEROP_VRFS", "")); err == nil {
		count = n
	}
	began := time.Now()
	l := newManyVRFs(t, count)
	started := time.Now()
	wait(t, "all sessions established", patience, func() (string, bool) {
		n, why := l.established()
		return fmt.Sprintf("%d of %d; %s", n, count, why), n == count
	})
	up := time.Since(started)
	if full() && up > 60*time.Second {
		t.Errorf("all Established after %v, want 60 s at most", up)
	}
	// The common networks, and four of its own.
	want := len(common) + 4
	compare := time.Now()
	for i := 1; i <= count; i++ {
		wait(t, vrfName(i)+": the table to be the RIB", patience, func() (string, bool) {
			routes, err := l.g.routes(vrfName(i))
			if err != nil {
				return err.Error(), false
			}
			var rib []string
			for p, r := range routes {
				if r.GetSource() == "peer" {
					rib = append(rib, p)
				}
			}
			slices.Sort(rib)
			kernel := l.g.kernel(vrfTable(i))
			return fmt.Sprintf("RIB %v\nkernel %v", rib, kernel), len(rib) == want && slices.Equal(rib, kernel)
		})
	}
	r, err := l.g.client.ListBfdSessions(l.g.context(), &fabricv1.ListBfdSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bfd := 0
	for _, s := range r.GetSessions() {
		if s.GetState() == "up" {
			bfd++
		}
	}
	if bfd != count {
		t.Errorf("%d BFD sessions are up, want %d: %v", bfd, count, r)
	}
	t.Logf("%d VRFs, backend %s: hosts and start %v, all Established %v after READY, tables compared in %v", count, l.g.backend(), started.Sub(began).Round(time.Second), up.Round(100*time.Millisecond), time.Since(compare).Round(100*time.Millisecond))

	wait(t, "no address to be tentative", patience, func() (string, bool) {
		text := l.g.sh("ip -6 -o addr show tentative")
		return text, text == ""
	})
	matrix := l.probe(t)
	t.Logf("leak matrix %d x %d: %d probes in %v; %d controls of %d seen; %d crossed; %d of %d refusals told", count, count, matrix.sent, matrix.took.Round(100*time.Millisecond), matrix.controls, matrix.wantControls, len(matrix.crossed), matrix.refused, matrix.wantRefused)
	for _, c := range matrix.crossed[:min(len(matrix.crossed), 20)] {
		t.Errorf("leak: %s", c)
	}
	for _, m := range matrix.missing[:min(len(matrix.missing), 20)] {
		t.Errorf("own probe did not arrive: %s", m)
	}
	for _, m := range matrix.silent[:min(len(matrix.silent), 20)] {
		t.Errorf("a probe without a route was not answered as unreachable: %s", m)
	}
	if full() && matrix.took > 90*time.Second {
		t.Errorf("the matrix took %v, want 90 s at most", matrix.took)
	}

	// A leak that is there is seen.
	for _, family := range []string{"-4", "-6"} {
		from, to := "10.100.2.1", "10.101.1.1"
		if family == "-6" {
			from, to = "fd00:100:2::1", "fd00:101:1::1"
		}
		l.g.sh(fmt.Sprintf("ip %s rule add pref 50 from %s to %s lookup %d", family, from, to, vrfTable(1)))
	}
	seeded := l.probe(t)
	if len(seeded.crossed) != 6 {
		t.Errorf("the seeded leak, three protocols in two families, was seen as %q", seeded.crossed)
	}
	site, links := l.g.site.resident(), l.g.links.resident()
	t.Logf("resident: fabric-site %d MiB, fabric-links %d MiB", site>>20, links>>20)
	// 300 MiB is for 64; with few VRFs most of it is the program's own.
	if limit := min(int64(300), int64(60+4*count)); site > limit<<20 {
		t.Errorf("fabric-site has %d MiB resident, want %d at most", site>>20, limit)
	}
	lost := 0
	for _, p := range l.g.peers("") {
		if p.GetFlaps() != 0 {
			lost++
			t.Errorf("session lost meanwhile: %v", p)
		}
	}
	if full() {
		publish(t, "vrfs", l.g.backend(), func(b *strings.Builder) {
			fmt.Fprintf(b, `| Figure | Value |
|---|---|
| VRFs | %d |
| all sessions Established after READY | %v |
| BFD sessions up | %d |
| sessions lost meanwhile | %d |
| leak matrix: probes, time | %d, %v |
| packets that crossed | %d |
| own probes that arrived | %d of %d |
| probes without a route answered as unreachable | %d of %d |
| a leak by hand, seen as | %d of 6 |
| memory of fabric-site, fabric-links | %d MiB, %d MiB |
`, count, up.Round(100*time.Millisecond), bfd, lost, matrix.sent, matrix.took.Round(100*time.Millisecond), len(matrix.crossed), matrix.controls, matrix.wantControls,
				matrix.refused, matrix.wantRefused, len(seeded.crossed), site>>20, links>>20)
		})
	}
}
