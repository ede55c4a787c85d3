package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"fabric/overlay"
)

const (
	// countFlows counts packets to the discard port.
	countFlows = `nft -f - <<E
table inet count {
	chain in { type filter hook prerouting priority -310; udp dport 9 counter; }
}
E`
	// dead lets nothing in or out.
	dead = `nft -f - <<E
table inet dead {
	chain in { type filter hook prerouting priority -300; policy drop; }
	chain out { type filter hook output priority -300; policy drop; }
}
E`
)

var packets = regexp.MustCompile(`packets (\d+)`)

// flows sends 200 flows of one packet from a node, and says how many of them came by each of others.
func (n *node) flows(others ...*node) (counts []int) {
	n.t.Helper()
	for _, o := range others {
		o.sh("nft reset counters table inet count >/dev/null || true; nft delete table inet count", countFlows)
	}
	if out, err := n.Command("bash", "-c", "for i in {1..200}; do echo flow > /dev/udp/10.50.0.1/9; done").CombinedOutput(); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	for _, o := range others {
		count := 0
		if m := packets.FindStringSubmatch(o.sh("nft list table inet count")); m != nil {
			count, _ = strconv.Atoi(m[1])
		}
		counts = append(counts, count)
	}
	return counts
}

// Two routers tell 2,000 prefixes equally well, and share their traffic. One falls silent: one message takes it out of the group, and
// all flows go by the other. It comes back, and they share again.
//
//	h: 10.4.0.2 ── eth4 10.4.0.1 gw ── eth2 ── x
//	                                └─ eth3 ── y
func TestThirdPartiesShare(t *testing.T) {
	for _, tool := range []string{"bird", "bash", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool, ": ", err)
		}
	}
	gw, x, y, h := newNode(t), newNode(t), newNode(t), newNode(t)
	for i, n := range []*node{x, y, h} {
		gw.sh(fmt.Sprintf("ip link add eth%d type veth peer name eth0 netns /proc/%d/ns/net", i+2, n.PID()), fmt.Sprintf("ip link set eth%d up", i+2))
		n.sh("ip link set eth0 up")
	}
	h.sh("ip addr add 10.4.0.2/24 dev eth0", "ip route add default via 10.4.0.1")
	for i, n := range []*node{x, y} {
		n.sh(fmt.Sprintf("ip addr add 10.%d.0.2/24 dev eth0", i+1), "ip addr add 10.50.0.1/32 dev lo", countFlows)
		n.bird(i+1, false)
	}
	doc := strings.Replace(thirdParties, "- vrf: CORE\n", "- vrf: CORE\n            multipath: 2\n", 1)
	gw.write(strings.Replace(doc, "interfaces: [", "interfaces: [{name: eth4, addresses: [10.4.0.1/24]}, ", 1))
	gw.startLinks()
	site := gw.startSite()
	legs := []overlay.Leg{
		{Gateway: netip.MustParseAddr("10.1.0.2"), Device: "eth2", Session: "CORE/x"},
		{Gateway: netip.MustParseAddr("10.2.0.2"), Device: "eth3", Session: "CORE/y"},
	}
	id := fmt.Sprint(overlay.NextHopSetID("CORE", legs, 2))
	first, second := fmt.Sprint(overlay.LegNextHopID(legs[0])), fmt.Sprint(overlay.LegNextHopID(legs[1]))
	group := func(members ...string) func() bool {
		return func() bool {
			fields := strings.Fields(gw.sh("ip nexthop get id " + id + " || true"))
			if len(fields) < 4 || fields[2] != "group" {
				return false
			}
			have := strings.Split(fields[3], "/")
			for _, m := range members {
				if !strings.Contains(fields[3], m) {
					return false
				}
			}
			return len(have) == len(members)
		}
	}
	shared := func() bool { return gw.routesBy("nhid "+id+" ") == thirdPartyRoutes && group(first, second)() }
	spread := func(when string) {
		t.Helper()
		if n := h.flows(x, y); n[0] < 40 || n[1] < 40 || n[0]+n[1] != 200 {
			t.Errorf("%s: flows by x and y are %v", when, n)
		}
	}
	gw.await("all routes by the group of both", shared)
	spread("at first")
	if out := gw.sh("cat /proc/sys/net/ipv4/fib_multipath_hash_policy"); out != "1\n" {
		t.Errorf("hash policy is %q", out)
	}

	monitor := func(name string) {
		gw.start(name, gw.Command("ip", "-ts", "-o", "monitor", "route", "nexthop"))
		gw.await("monitored", func() bool {
			gw.sh("ip route add 192.0.2.0/24 dev eth1 && ip route del 192.0.2.0/24 dev eth1")
			return strings.Contains(gw.logOf(name), "192.0.2.0")
		})
	}
	monitor("monitor")
	x.sh(dead)
	gw.await("the group of y alone", group(second))
	if n := h.flows(x, y); n[1] != 200 {
		t.Errorf("x is dead: flows by x and y are %v", n)
	}
	gw.await("all routes by y", func() bool { return gw.routesBy("via 10.2.0.2 dev eth3 ") == thirdPartyRoutes })
	log := gw.logOf("monitor")
	before, _, _ := strings.Cut(log, "] 11.")
	if n := strings.Count(before, "] id "); n != 1 || !strings.Contains(before, "] id "+id+" group "+second) {
		t.Errorf("%d messages about next hops before the first about a route:\n%.2000s", n, log)
	}

	x.sh("nft delete table inet dead")
	gw.await("all routes by the group of both again", shared)
	spread("x is back")

	// A restart of fabric-site touches neither.
	monitor("second")
	gw.await("in the checkpoint", func() bool { return gw.kept("x", "y") })
	if err := site.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = site.Wait()
	gw.startSite()
	gw.await("announced to x again", func() bool { return x.has("ip route show 10.99.0.1", "via 10.1.0.1") })
	gw.await("all routes by the group after a restart", shared)
	if n := len(stamps(t, gw.logOf("second"), "11\\.|id "+id)); n > 0 {
		t.Errorf("the restart moved routes, %d messages:\n%.2000s", n, gw.logOf("second"))
	}
}
