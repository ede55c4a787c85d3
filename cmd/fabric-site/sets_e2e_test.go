package main

import (
	"encoding/gob"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/overlay"
)

// A gateway with two third-party routers (BIRD) in VRF CORE, both with BFD of 300 ms x 5, as the machine may be busy. x is preferred: y's AS path is longer.
//
//	gw: 10.1.0.1 ── eth2 ── 10.1.0.2 :x (65101) ┐
//	    10.2.0.1 ── eth3 ── 10.2.0.2 :y (65102) ┴ 10.50.0.1/32 and 2,000 prefixes
//	    10.99.0.1/32
const thirdParties = `
fabric: {name: test}
vrfs: [{name: CORE, table: 200, vni: 1000}]
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", private-key-file: KEY}
        vrfs:
          - vrf: CORE
            interfaces: [{name: eth2, addresses: [10.1.0.1/24]}, {name: eth3, addresses: [10.2.0.1/24]}]
            loopbacks: [10.99.0.1/32]
            peers:
              - {name: x, address: 10.1.0.2, asn: 65101, bfd: {interval: 300ms, multiplier: 5}}
              - {name: y, address: 10.2.0.2, asn: 65102, bfd: {interval: 300ms, multiplier: 5}}
`

const thirdPartyRoutes = 2000

// bird starts BIRD in a node that is the gateway's neighbour number i; worse: its AS path is longer.
func (n *node) bird(i int, worse bool) {
	n.t.Helper()
	prepend := ""
	if worse {
		prepend = fmt.Sprintf("bgp_path.prepend(6510%d); ", i)
	}
	var c strings.Builder
	fmt.Fprintf(&c, `router id 10.%[1]d.0.2;
protocol device {}
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bfd { interface "eth0" { interval 300 ms; multiplier 5; }; }
protocol bgp fabric {
	local 10.%[1]d.0.2 as 6510%[1]d; neighbor 10.%[1]d.0.1 as 65001; bfd on; connect retry time 1; connect delay time 1; error wait time 1, 2;
	ipv4 { import all; export filter { if source ~ [RTS_STATIC] then { %[2]saccept; } reject; }; };
}
protocol static { ipv4; route 10.50.0.1/32 via "lo";
`, i, prepend)
	for r := range thirdPartyRoutes {
		fmt.Fprintf(&c, "\troute 11.%d.%d.0/24 blackhole;\n", r/250, r%250)
	}
	c.WriteString("}\n")
	conf := filepath.Join(n.dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(c.String()), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.start("bird", n.Command("bird", "-f", "-c", conf, "-s", filepath.Join(n.dir, "bird.ctl")))
}

// await waits until f is true.
func (n *node) await(what string, f func() bool) {
	n.t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("not %s after a minute:\n%s", what, n.sh("ip route show table 200 | head -20; ip nexthop"))
		}
	}
}

// routesBy counts the routes of the third parties that are printed with a text.
func (n *node) routesBy(text string) int {
	count := 0
	for l := range strings.Lines(n.sh("ip route show table 200")) {
		if strings.HasPrefix(l, "11.") && strings.Contains(l, text) {
			count++
		}
	}
	return count
}

// kept says whether the checkpoint has all routes of some third parties. It is a second behind the rib, or more where it takes long to write:
// a daemon that is killed before starts with less than it knew.
func (n *node) kept(peers ...string) bool {
	n.t.Helper()
	f, err := os.Open(filepath.Join(n.state(), "checkpoint.gob"))
	if err != nil {
		return false
	}
	defer f.Close()
	var c struct{ Paths []struct{ Key rib.PathKey } }
	if err := gob.NewDecoder(f).Decode(&c); err != nil {
		n.t.Fatal(err)
	}
	count := map[string]int{}
	for _, p := range c.Paths {
		count[p.Key.Source.Name]++
	}
	return !slices.ContainsFunc(peers, func(peer string) bool { return count[peer] < thirdPartyRoutes })
}

// stamps are the times in a log whose lines begin with [TIME], as ping -D prints them or ip -ts monitor, of the lines that match.
func stamps(t *testing.T, log, match string) (times []time.Time) {
	t.Helper()
	re := regexp.MustCompile(match)
	for l := range strings.Lines(log) {
		text, rest, ok := strings.Cut(strings.TrimPrefix(l, "["), "]")
		if !ok || !re.MatchString(rest) {
			continue
		}
		at, err := time.ParseInLocation("2006-01-02T15:04:05.000000", text, time.Local)
		if s, is := strconv.ParseFloat(text, 64); is == nil {
			at, err = time.UnixMicro(int64(s*1e6)), nil
		}
		if err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		times = append(times, at)
	}
	return times
}

// Two routers tell 2,000 prefixes; when the better one falls silent all of them go on after a message or two, and the routes follow.
func TestThirdPartyFails(t *testing.T) {
	for _, tool := range []string{"bird", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool, ": ", err)
		}
	}
	gw, x, y := newNode(t), newNode(t), newNode(t)
	for i, n := range []*node{x, y} {
		gw.sh(fmt.Sprintf("ip link add eth%d type veth peer name eth0 netns /proc/%d/ns/net", i+2, n.PID()), fmt.Sprintf("ip link set eth%d up", i+2))
		n.sh(fmt.Sprintf("ip addr add 10.%d.0.2/24 dev eth0", i+1), "ip link set eth0 up", "ip addr add 10.50.0.1/32 dev lo")
		n.bird(i+1, i == 1)
	}
	gw.write(thirdParties)
	gw.startLinks()
	site := gw.startSite()
	x4 := overlay.Leg{Gateway: netip.MustParseAddr("10.1.0.2"), Device: "eth2", Session: "CORE/x"}
	y4 := overlay.Leg{Gateway: netip.MustParseAddr("10.2.0.2"), Device: "eth3", Session: "CORE/y"}
	set := fmt.Sprintf("nhid %d ", overlay.NextHopSetID("CORE", []overlay.Leg{x4, y4}, 0))
	gw.await("all routes by the set", func() bool { return gw.routesBy(set) == thirdPartyRoutes })

	ping := gw.start("ping", gw.Command("ping", "-n", "-D", "-i", "0.01", "-I", "10.99.0.1", "10.50.0.1"))
	replies := func() []time.Time { return stamps(t, gw.logOf("ping"), "bytes from") }
	gw.await("answered", func() bool { return len(replies()) > 20 })
	gw.start("monitor", gw.Command("ip", "-ts", "-o", "monitor", "route", "nexthop"))
	gw.await("monitored", func() bool {
		gw.sh("ip route add 192.0.2.0/24 dev eth1 && ip route del 192.0.2.0/24 dev eth1")
		return len(stamps(t, gw.logOf("monitor"), "192.0.2.0")) > 0
	})

	failed := time.Now()
	x.sh(`nft -f - <<E
table inet dead {
	chain in { type filter hook prerouting priority -300; policy drop; }
	chain out { type filter hook output priority -300; policy drop; }
}
E`)
	gw.await("all routes by y", func() bool { return gw.routesBy("via 10.2.0.2 dev eth3 ") == thirdPartyRoutes })
	gw.await("answered by y", func() bool { r := replies(); return len(r) > 0 && r[len(r)-1].After(failed.Add(time.Second)) })
	before, gap, whole := failed, time.Duration(0), failed
	for _, at := range replies() {
		if at.Before(failed) {
			before = at
			continue
		}
		if at.Sub(before) > gap {
			gap, whole = at.Sub(before), at
		}
		before = at
	}
	messages := 0
	for _, at := range stamps(t, gw.logOf("monitor"), "200|id ") {
		if at.After(failed) && !at.After(whole) {
			messages++
		}
	}
	t.Logf("whole after a gap of %v and %d messages", gap, messages)
	// The detection time is 1.5 s; the rest is for a machine that is busy.
	if gap > 10*time.Second {
		t.Errorf("%v without an answer", gap)
	}
	first := strings.Index(gw.logOf("monitor"), "id "+strings.TrimPrefix(set, "nhid "))
	if route := strings.Index(gw.logOf("monitor"), "11."); first < 0 || route >= 0 && route < first {
		t.Errorf("routes moved before their next hop:\n%.2000s", gw.logOf("monitor"))
	}

	// x comes back: its routes have the set again, on x.
	x.sh("nft delete table inet dead")
	onX := func() bool {
		return gw.routesBy(set) == thirdPartyRoutes && gw.has("ip nexthop get id "+strings.Fields(set)[1], "via 10.1.0.2 dev eth2")
	}
	gw.await("all routes by the set again", onX)

	// A restart of fabric-site touches none of them.
	gw.start("second", gw.Command("ip", "-ts", "-o", "monitor", "route", "nexthop"))
	gw.await("monitored again", func() bool {
		gw.sh("ip route add 192.0.2.0/24 dev eth1 && ip route del 192.0.2.0/24 dev eth1")
		return strings.Contains(gw.logOf("second"), "192.0.2.0")
	})
	gw.await("in the checkpoint", func() bool { return gw.kept("x", "y") })
	if err := site.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = site.Wait()
	gw.startSite()
	gw.await("announced to x again", func() bool { return x.has("ip route show 10.99.0.1", "via 10.1.0.1") })
	gw.await("all routes by the set after a restart", onX)
	if n := len(stamps(t, gw.logOf("second"), "11\\.")); n > 0 {
		t.Errorf("the restart moved routes, %d messages:\n%.2000s", n, gw.logOf("second"))
	}
	_ = ping.Process.Kill()
}
