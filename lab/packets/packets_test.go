package packets

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestSummarise: arrivals are (flow, sequence number, time in ms, device).
func TestSummarise(t *testing.T) {
	type packet struct{ flow, sequence, at, device int }
	for name, tc := range map[string]struct {
		last, log []packet
		flows     int
		query     Query
		now       int
		want      Report
	}{
		"nothing": {},
		"all came": {flows: 1, log: []packet{{0, 1, 10, 1}, {0, 2, 11, 1}, {0, 3, 12, 1}}, now: 12,
			want: Report{Flows: 1, Received: 3, GapMs: 1, Arrived: 1, LastMs: 10}},
		"two lost": {flows: 1, log: []packet{{0, 7, 10, 1}, {0, 8, 11, 1}, {0, 11, 14, 1}}, now: 14,
			want: Report{Flows: 1, Received: 3, Lost: 2, GapMs: 3, Arrived: 1, LastMs: 10}},
		"lost right after the mark": {flows: 1, last: []packet{{0, 5, 5, 1}}, log: []packet{{0, 9, 9, 1}}, now: 9,
			want: Report{Flows: 1, Received: 1, Lost: 3, GapMs: 4, Arrived: 1, LastMs: 9}},
		"overtaken": {flows: 1, last: []packet{{0, 5, 5, 1}}, log: []packet{{0, 7, 6, 1}, {0, 6, 7, 1}, {0, 8, 8, 1}}, now: 8,
			want: Report{Flows: 1, Received: 3, GapMs: 1, Arrived: 1, LastMs: 6}},
		"late from before the mark": {flows: 1, last: []packet{{0, 5, 5, 1}}, log: []packet{{0, 4, 6, 1}, {0, 6, 7, 1}}, now: 7,
			want: Report{Flows: 1, Received: 2, GapMs: 1, Arrived: 1, LastMs: 6}},
		"silence lasts": {flows: 1, last: []packet{{0, 5, 5, 1}}, log: []packet{{0, 6, 6, 1}}, now: 906,
			want: Report{Flows: 1, Received: 1, GapMs: 900, Arrived: 1, LastMs: 6}},
		"one of two flows is silent": {flows: 2, last: []packet{{0, 1, 1, 1}, {1, 1, 1, 1}}, log: []packet{{0, 2, 2, 1}}, now: 50, query: Query{Device: 2},
			want: Report{Flows: 2, Received: 1, GapMs: 49, Elsewhere: 1, ElsewhereMs: 2}},
		"moved to device 2": {flows: 2, query: Query{Device: 2, Since: 100e6}, now: 145,
			log:  []packet{{0, 1, 90, 1}, {1, 1, 91, 1}, {0, 2, 105, 1}, {1, 2, 130, 2}, {0, 3, 140, 2}, {0, 4, 145, 2}},
			want: Report{Flows: 2, Received: 6, GapMs: 39, Arrived: 2, LastMs: 40, Elsewhere: 1, ElsewhereMs: 5}},
	} {
		arrived := func(packets []packet) (out []arrival) {
			for _, p := range packets {
				out = append(out, arrival{flow: int32(p.flow), sequence: uint64(p.sequence), at: int64(p.at) * 1e6, device: int32(p.device)})
			}
			return out
		}
		if got := summarise(arrived(tc.last), arrived(tc.log), tc.flows, tc.query, int64(tc.now)*1e6); got != tc.want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, tc.want)
		}
	}
}

// Two ends at loopback addresses, of which one sends: what is missing is what the other has not seen.
func TestEnds(t *testing.T) {
	a, b := netip.MustParseAddr("127.70.0.1"), netip.MustParseAddr("127.70.0.2")
	from, err := Listen(a)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := Listen(b)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from.Send(time.Millisecond, 0, netip.MustParseAddr("127.70.0.3"), b)
	wait := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	wait("nothing is sent", func() bool { return from.Sent()[1] >= 50 })
	from.Halt()
	last := from.Sent()[1]
	wait("it goes on after Halt", func() bool { now := from.Sent()[1]; still := now == last; last = now; return still })
	wait("packets are missing", func() bool { return to.Missing(a, 1, 1, last) == 0 })
	for _, tc := range []struct {
		what        string
		from        netip.Addr
		id          int
		first, last uint64
		want        int
	}{
		{"beyond what was sent", a, 1, 1, last + 7, 7},
		{"no packet", a, 1, 5, 4, 0},
		{"another flow", a, 0, 1, 3, 3},
		{"another sender", b, 1, 1, 3, 3},
	} {
		if got := to.Missing(tc.from, tc.id, tc.first, tc.last); got != tc.want {
			t.Errorf("%s: %d are missing, want %d", tc.what, got, tc.want)
		}
	}
	if late := from.Late(); late < 0 || from.Late() != 0 {
		t.Errorf("late by %v, and again", late)
	}
}

// A sender that was kept from sending for half a second makes up for no more than its debt.
func TestDebt(t *testing.T) {
	e, err := Listen(netip.MustParseAddr("127.70.0.4"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	began := time.Now()
	e.Send(time.Millisecond, 20*time.Millisecond, netip.MustParseAddr("127.70.0.5"))
	e.mu.Lock() // which it needs for each packet
	time.Sleep(500 * time.Millisecond)
	e.mu.Unlock()
	time.Sleep(100 * time.Millisecond)
	sent, due := int(e.Sent()[0]), int(time.Since(began)/time.Millisecond)
	if sent < 1 || sent > due-400 {
		t.Errorf("%d packets sent where %d were due", sent, due)
	}
	if late := e.Late(); late < 400*time.Millisecond {
		t.Errorf("late by %v", late)
	}
}

// An end at an IPv6 address, which sends to itself: it tells the device too.
func TestIPv6(t *testing.T) {
	self := netip.IPv6Loopback()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	e, err := Listen(self)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	e.Send(time.Millisecond, 0, self)
	var r Report
	for deadline := time.Now().Add(20 * time.Second); r.Received < 20; time.Sleep(time.Millisecond) {
		if r = e.Answer(Query{Device: lo.Index}); time.Now().After(deadline) {
			t.Fatalf("report is %+v", r)
		}
	}
	if r.Flows != 1 || r.Lost != 0 || r.Arrived != 1 || r.Elsewhere != 0 {
		t.Errorf("report is %+v", r)
	}
}
