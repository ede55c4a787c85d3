package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fabric/lab/packets"
)

func TestPercentile(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		share  float64
		want   float64
	}{
		{nil, 0.5, 0}, {[]float64{7}, 0.5, 7}, {[]float64{3, 1, 2}, 0.5, 2}, {[]float64{4, 1, 3, 2}, 0.5, 2}, {[]float64{4, 1, 3, 2}, 1, 4}, {[]float64{4, 1, 3, 2}, 0, 1},
		{[]float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.99, 10},
	} {
		before := slices.Clone(tc.values)
		if got := percentile(tc.values, tc.share); got != tc.want {
			t.Errorf("%v of %v: %v, want %v", tc.share, tc.values, got, tc.want)
		}
		if !slices.Equal(before, tc.values) {
			t.Errorf("%v was changed to %v", before, tc.values)
		}
	}
	if n := within([]float64{1, 2, 2.5, 9}, 2.5); n != 3 {
		t.Errorf("%d within the limit, want 3", n)
	}
	if got := gapLimitMs(200); got != 800 {
		t.Errorf("limit at 200 ms: %v", got)
	}
	if got := gapLimitMs(50); got != 250 {
		t.Errorf("limit at 50 ms: %v", got)
	}
}

// TestAnnounced: prefixes are all different, in the range, and not side by side.
func TestAnnounced(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for i := range announcedSlots {
		p := announcedPrefix(i)
		if p != p.Masked() || !announced.Contains(p.Addr()) || seen[p] || !p.Contains(announcedAddress(i)) {
			t.Fatalf("prefix %d: %v is there twice, or not one of %v", i, p, announced)
		}
		seen[p] = true
	}
	// A thousand of 262,144 places, in order: beside the next are few.
	first := make([]uint32, 1000)
	for i := range first {
		a := announcedPrefix(i).Addr().As4()
		first[i] = binary.BigEndian.Uint32(a[:])
	}
	slices.Sort(first)
	dense := 0
	for i := 1; i < len(first); i++ {
		if first[i]-first[i-1] == 1<<(32-announcedBits) {
			dense++
		}
	}
	if dense > 50 {
		t.Errorf("%d of the first 1000 prefixes are beside another", dense)
	}
}

func TestSpread(t *testing.T) {
	for _, tc := range []struct {
		n, count int
		want     []int
	}{{100, 3, []int{0, 49, 99}}, {3, 40, []int{0, 1, 2}}, {1, 5, []int{0}}, {1000, 2, []int{0, 999}}} {
		if got := spread(tc.n, tc.count); !slices.Equal(got, tc.want) {
			t.Errorf("%d of %d: %v, want %v", tc.count, tc.n, got, tc.want)
		}
	}
}

func TestParseEvent(t *testing.T) {
	route := func(kind uint16, family, bits, table, protocol byte, attrs ...*nl.RtAttr) syscall.NetlinkMessage {
		data := make([]byte, unix.SizeofRtMsg)
		data[0], data[1], data[4], data[5] = family, bits, table, protocol
		for _, a := range attrs {
			data = append(data, a.Serialize()...)
		}
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
	}
	to := func(s string) *nl.RtAttr { return nl.NewRtAttr(unix.RTA_DST, netip.MustParseAddr(s).AsSlice()) }
	table := func(n uint32) *nl.RtAttr {
		return nl.NewRtAttr(unix.RTA_TABLE, binary.NativeEndian.AppendUint32(nil, n))
	}
	prefix := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		message syscall.NetlinkMessage
		want    event
		ok      bool
	}{
		"new":           {route(unix.RTM_NEWROUTE, unix.AF_INET, 24, 200, 201, to("10.1.2.0"), table(200)), event{kind: unix.RTM_NEWROUTE, table: 200, protocol: 201, prefix: prefix("10.1.2.0/24")}, true},
		"large table":   {route(unix.RTM_DELROUTE, unix.AF_INET, 24, 252, 201, to("10.1.2.0"), table(70000)), event{kind: unix.RTM_DELROUTE, table: 70000, protocol: 201, prefix: prefix("10.1.2.0/24")}, true},
		"IPv6":          {route(unix.RTM_DELROUTE, unix.AF_INET6, 64, 254, 2, to("2001:db8::")), event{kind: unix.RTM_DELROUTE, table: 254, protocol: 2, prefix: prefix("2001:db8::/64")}, true},
		"default":       {route(unix.RTM_NEWROUTE, unix.AF_INET, 0, 254, 4), event{kind: unix.RTM_NEWROUTE, table: 254, protocol: 4, prefix: prefix("0.0.0.0/0")}, true},
		"default, IPv6": {route(unix.RTM_NEWROUTE, unix.AF_INET6, 0, 254, 4), event{kind: unix.RTM_NEWROUTE, table: 254, protocol: 4, prefix: prefix("::/0")}, true},
		"next hop":      {syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELNEXTHOP}}, event{kind: unix.RTM_DELNEXTHOP}, true},
		"link":          {message: syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}}},
		"cut off":       {message: syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: []byte{2, 24}}},
		"too long":      {message: route(unix.RTM_NEWROUTE, unix.AF_INET, 33, 254, 4, to("10.1.2.0"))},
	} {
		if got, ok := parseEvent(tc.message); ok != tc.ok || ok && got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, got, ok, tc.want, tc.ok)
		}
	}
}

func TestParseNeighbours(t *testing.T) {
	summary := []byte(`{"routerId":"10.0.0.1","peers":{"10.11.0.2":{"state":"Established","pfxRcd":1000},"10.12.0.2":{"state":"Active"}}}`)
	for neighbour, want := range map[string]int{"10.11.0.2": 1000, "10.12.0.2": -1, "10.13.0.2": -1} {
		if n, err := parseFRR(summary, netip.MustParseAddr(neighbour)); want < 0 && err == nil || want >= 0 && (err != nil || n != want) {
			t.Errorf("FRR, %s: %d, %v, want %d", neighbour, n, err, want)
		}
	}
	if _, err := parseFRR([]byte("% BGP is not running"), netip.MustParseAddr("10.11.0.2")); err == nil {
		t.Error("FRR that is not there is no error")
	}
	for _, tc := range []struct {
		state  string
		routes string
		want   int
	}{{"Established", "1001 imported, 2 exported, 1000 preferred", 1001}, {"Active", "0 imported, 0 exported", -1}, {"Established", "---", -1}} {
		out := fmt.Sprintf("to_x BGP --- up 16:03:05.010 %[1]s\n  BGP state: %[1]s\n  Channel ipv4\n    Routes:         %s\n", tc.state, tc.routes)
		if n, err := parseBird(out); tc.want < 0 && err == nil || tc.want >= 0 && (err != nil || n != tc.want) {
			t.Errorf("BIRD: %d, %v, want %d of:\n%s", n, err, tc.want, out)
		}
	}
}

// TestRepeat: void trials are run again, but not for ever, and do not count.
func TestRepeat(t *testing.T) {
	c := &checker{trials: 3}
	n := 0
	if err := c.repeat("some", func() (bool, error) { n++; return n%2 == 0, nil }); err != nil || n != 5 {
		t.Errorf("%d runs, %v; want 5", n, err)
	}
	n = 0
	if err := c.repeat("busy", func() (bool, error) { n++; return true, nil }); err == nil || n != maxVoid+1 {
		t.Errorf("%d runs, %v; want %d and an error", n, err, maxVoid+1)
	}
	broken := errors.New("broken")
	if err := c.repeat("broken", func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	c.atMost("figure", 5, 5)
	if c.atMost("figure", 5.1, 5); len(c.missed) != 1 {
		t.Errorf("missed %v, want the second", c.missed)
	}
}

func TestMeasureUsage(t *testing.T) {
	for _, line := range []string{
		"failover -trials 0", "failover -bfd 5", "failover -bfd 50,x", "failover -path-prefixes 1", "failover -who cisco", "failover -what all", "failover -tunnels wireguard",
		"failover -tunnels wireguard,gre", "failover more", "failover -prefixes 300000", "loss -duration 0s", "loss -percent 100", "loss -nat 0", "loss -tunnels gre", "loss -bfd x",
		"restart -trials 0", "restart -how reboot", "restart -prefixes 0", "restart -restart-time 1ms", "links-check -trials 0", "links-check -tunnels tls", "links-check more",
	} {
		if err := run(t.Context(), strings.Fields(line), nil, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want wrong usage", line, err)
		}
	}
}

// TestWorld: two nodes, probes between them, a fault and a route that goes; nothing is left of it.
func TestWorld(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ctx := t.Context()
	w, err := newWorld(ctx, "one", "two")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	one, two := w.nodes[0], w.nodes[1]
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(join(ctx, one, "link", two, "link"))
	must(one.run(ctx, "ip address add 10.0.0.1/24 dev link", "ip route add 10.9.0.0/24 via 10.0.0.2"))
	must(two.run(ctx, "ip address add 10.0.0.2/24 dev link"))
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	send, err := startProbe(one, a, 1000, b)
	must(err)
	receive, err := startProbe(two, b, 1)
	must(err)
	m, err := newMonitor(one)
	must(err)
	t.Cleanup(m.close)
	device, err := two.index("link")
	must(err)
	arriving := func() error {
		r, err := receive.ask(packets.Query{Device: device})
		if err == nil && (r.Arrived != 1 || r.Received < 100 || r.Elsewhere > 0) {
			err = errNotYet
		}
		return err
	}
	must(until(ctx, 20*time.Second, "packets", arriving))
	must(receive.mark())
	must(two.run(ctx, "nft add table ip cut '{ chain in { type filter hook prerouting priority -400; drop; }; }'"))
	must(pause(ctx, 300*time.Millisecond))
	must(two.run(ctx, "nft delete table ip cut"))
	must(until(ctx, 20*time.Second, "packets again", arriving))
	r, err := receive.report()
	must(err)
	if r.GapMs < 300 || r.Lost < 150 {
		t.Errorf("after 300 ms of silence: %+v", r)
	}
	must(send.alive("the sender"))

	m.mark()
	must(one.run(ctx, "ip route del 10.9.0.0/24"))
	must(until(ctx, 30*time.Second, "the deletion", func() error {
		n, err := m.count(func(e event) bool { return deleted(e) && e.prefix == netip.MustParsePrefix("10.9.0.0/24") })
		if err == nil && n != 1 {
			err = errNotYet
		}
		return err
	}))
	w.close()
	if l := left(os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
	for _, p := range []*process{send.process, receive.process} {
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			t.Error("a probe still runs")
		}
	}
}

// TestPaths measures a router once, with few prefixes: all of the way from daemons to the printed line.
func TestPaths(t *testing.T) {
	needFRR(t)
	var out bytes.Buffer
	if err := benchPaths(t.Context(), programs{}, []string{"frr", "bird"}, []int{50}, 1, json.NewEncoder(&out)); err != nil {
		t.Fatal(err)
	}
	for in, n := json.NewDecoder(&out), 0; n < 2; n++ {
		var r result
		if err := in.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Bench != "failover" || r.Who != []string{"frr", "bird"}[n] || r.Params["prefixes"] != 50.0 || r.Params["bfd_ms"] != 50.0 {
			t.Errorf("%+v", r)
		}
		// 150 ms without a packet, of which the last came up to 50 ms before; and 50 routes to change.
		if v := r.Metrics["last_moved_ms_p50"]; v < 90 || v > 20000 {
			t.Errorf("%s: last moved after %v ms", r.Who, v)
		}
		if v := r.Metrics["netlink_messages_max"]; v < 50 {
			t.Errorf("%s: %v messages for 50 routes", r.Who, v)
		}
	}
	if l := left(os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

// TestGivenUp: what was made is gone when the context ends before it is complete.
func TestGivenUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := newWorld(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	w.close()
	cancel()
	if _, err := newWorld(ctx, "one", "two"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	if l := left(os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}
