package bfd

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairLoop is a loop, stepped by hand, with sessions that talk to each other over lo: 127.0.0.1 to 127.1.x.y and back.
func pairLoop(tb testing.TB, pairs int, p Params) *loop {
	tb.Helper()
	e := New(Config{Priority: -1})
	var want []SessionConfig
	for i := range pairs {
		a := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		b := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		want = append(want,
			SessionConfig{Name: "a", Path: Path{Local: a, Peer: b}, Params: p}, SessionConfig{Name: "b", Path: Path{Local: b, Peer: a}, Params: p})
	}
	if err := e.Configure(want); err != nil {
		tb.Fatal(err)
	}
	e.changed.Store(true)
	l, err := newLoop(e)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.close)
	l.configure(time.Now())
	go l.journal.write()
	tb.Cleanup(l.journal.close)
	ready := make([]unix.EpollEvent, 8)
	for deadline := time.Now().Add(20 * time.Second); ; {
		turn(tb, l, ready)
		up := 0
		for _, s := range l.sessions {
			if s.proto.State() == Up && !s.proto.Polling() {
				up++
			}
		}
		if up == 2*pairs {
			// What the journal's goroutine still formats of the way up would count as garbage of the turns to come.
			for len(l.journal.lines) > 0 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond)
			return l
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%d of %d sessions Up", up, 2*pairs)
		}
	}
}

// turn is one turn of loop.run.
func turn(tb testing.TB, l *loop, ready []unix.EpollEvent) {
	n, err := epollWait(l.epoll, ready, l.wait(time.Now()))
	if err != nil && err != unix.EINTR {
		tb.Fatal(err)
	}
	for range n {
		for _, r := range l.rx {
			l.drain(r)
		}
	}
	l.tick(time.Now())
}

// packets is how many were sent and received.
func packets(l *loop) (n uint64) {
	for _, s := range l.sessions {
		n += s.sent + s.received
	}
	return n
}

// TestEngineAllocates: no packet sent or received makes garbage, signed ones neither.
func TestEngineAllocates(t *testing.T) {
	a, _ := newSpaces(t, 0)
	a.in(func() {
		p := Params{DesiredMinTx: MinInterval, RequiredMinRx: MinInterval, DetectMult: 100,
			Auth: &Auth{MeticulousKeyedSHA1, []Key{{1, Secret("secret")}}}}
		l := pairLoop(t, 4, p)
		ready := make([]unix.EpollEvent, 8)
		before := packets(l)
		allocs := testing.AllocsPerRun(200, func() { turn(t, l, ready) })
		if n := packets(l) - before; n < 200 {
			t.Fatalf("only %d packets", n)
		}
		if allocs != 0 {
			t.Errorf("%v allocations per turn", allocs)
		}
		for reason, n := range named(&l.dropped) {
			t.Errorf("%d dropped: %s", n, reason)
		}
	})
}

// BenchmarkEngine is the cost of one packet sent and received, system calls and the kernel's way over lo included.
func BenchmarkEngine(b *testing.B) {
	a, _ := newSpaces(b, 0)
	a.in(func() {
		l := pairLoop(b, 100, Params{DesiredMinTx: MinInterval, RequiredMinRx: MinInterval, DetectMult: 255})
		ready := make([]unix.EpollEvent, 8)
		cpu := func() int64 {
			var used unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &used)
			return used.Utime.Nano() + used.Stime.Nano()
		}
		b.ReportAllocs()
		b.ResetTimer()
		start, before := packets(l), cpu()
		for packets(l)-start < 2*uint64(b.N) {
			turn(b, l, ready)
		}
		b.StopTimer()
		b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
	})
}

func BenchmarkDecode(b *testing.B) {
	var raw [MaxLen]byte
	p := sample
	n := p.Encode(raw[:], nil)
	b.ReportAllocs()
	for b.Loop() {
		if Decode(raw[:n], &p) != Kept {
			b.Fatal("dropped")
		}
	}
}
