package rib

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// show prints the choices of a batch: "A 10.0.0.0/8 p1 (p2) by router id", a removal as "A 10.0.0.0/8 -".
func show(b Batch) string {
	var lines []string
	if b.Full {
		lines = append(lines, "full")
	}
	if b.Complete {
		lines = append(lines, "complete")
	}
	for _, c := range b.Choices {
		line := fmt.Sprintf("%s %s", c.Key.VRF, c.Key.Prefix)
		if c.Best == nil {
			lines = append(lines, line+" -")
			continue
		}
		line += " " + c.Best.Key.Source.Kind.String() + c.Best.Key.Source.Name
		if c.Best.Stale {
			line += " stale"
		}
		for _, p := range c.Equal {
			line += " = " + p.Key.Source.Kind.String() + p.Key.Source.Name
		}
		if c.RunnerUp != nil {
			line += " (" + c.RunnerUp.Key.Source.Kind.String() + c.RunnerUp.Key.Source.Name + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

// next takes a batch that must be there.
func next(t *testing.T, f *Feed) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := f.Next(ctx)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	return show(b)
}

// quiet checks that a feed has nothing to tell.
func quiet(t *testing.T, f *Feed) {
	t.Helper()
	if b, ok, err := f.take(); ok || err != nil {
		t.Fatalf("feed tells %q, %v; want nothing", show(b), err)
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestUpdateAndWithdraw(t *testing.T) {
	tab := NewTable()
	f := tab.Subscribe()
	defer f.Close()
	want(t, "empty table", next(t, f), "full")
	quiet(t, f)

	tab.Update(path(peer1, netip.MustParsePrefix("10.9.9.9/8")), path(peer2, netV6), path(peer2, net10))
	want(t, "two keys, host bits gone", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2); A 2001:db8::/32 peerp2")

	tab.Update(path(peer1, net10))
	quiet(t, f) // the same again

	tab.Withdraw(PathKey{Source: peer1, Prefix: netip.MustParsePrefix("10.1.1.1/8")}, PathKey{Source: peerB, Prefix: net10})
	want(t, "after withdraw", next(t, f), "A 10.0.0.0/8 peerp2")
	tab.Withdraw(PathKey{Source: peer1, Prefix: net10})
	quiet(t, f)

	tab.WithdrawSource(peer2)
	want(t, "after the source went", next(t, f), "A 10.0.0.0/8 -; A 2001:db8::/32 -")
	if n := len(tab.vrfs["A"].entries) + len(tab.sources) + len(tab.hops) + tab.Len("A"); n != 0 {
		t.Errorf("%d things left in an empty table", n)
	}
	tab.WithdrawSource(peer2)
	tab.MarkStale(peer2)
	tab.EndOfRIB(peer2)
	quiet(t, f)
}

func TestZeroValuesDoNotPanic(t *testing.T) {
	tab := NewTable()
	f := tab.Subscribe()
	tab.Update(Path{}, Path{Key: PathKey{Prefix: net10}}, Path{Key: PathKey{Prefix: net10, Source: Source{Kind: Fabric}}})
	tab.Withdraw(PathKey{}, PathKey{Source: Source{Kind: Fabric}})
	tab.SetNextHop(NextHop{}, Unreachable)
	tab.SetVRFs([]VRF{{}, {Name: "A"}, {Name: "A"}})
	want(t, "the path without a source", next(t, f), "full;  10.0.0.0/8 unknown")
	if _, ok := tab.Best(Key{}); ok {
		t.Error("Best of the zero key")
	}
	if _, ok := tab.Lookup("", netip.Prefix{}); ok {
		t.Error("Lookup of the zero prefix")
	}
	tab.EndOfRIB(Source{})
	tab.Walk("", func(Choice) bool { return true })
	for _, name := range []string{"nope", "A"} {
		tab.Walk(name, func(Choice) bool { t.Error("Walk found something"); return true })
		if _, ok := tab.Best(Key{VRF: name, Prefix: net10}); ok {
			t.Error("Best found something")
		}
		if _, ok := tab.Lookup(name, net10); ok {
			t.Error("Lookup found something")
		}
		if tab.Candidates(Key{VRF: name, Prefix: net10}) != nil || tab.Len(name) != 0 {
			t.Error("paths where there are none")
		}
	}
	if tab.SourcePaths(peer1) != nil || tab.SourceLen(peer1) != 0 {
		t.Error("paths of an unknown source")
	}
}

func TestImport(t *testing.T) {
	rts := func(rts ...RT) func(*Path) { return func(p *Path) { p.Attrs.RTs = rts } }
	tab := NewTable()
	f := tab.Subscribe()
	tab.Update(path(gateway1, net10), path(gateway2, net10, rts(rt2, rt1)), path(gateway1, netV6, rts()))
	want(t, "no VRFs", next(t, f), "full")

	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1, rt1}}, {Name: "B", Import: []RT{rt2}}, {Name: "C"}})
	want(t, "imported", next(t, f), "A 10.0.0.0/8 fabricg1 (fabricg2); B 10.0.0.0/8 fabricg2")
	tab.SetVRFs([]VRF{{Name: "C"}, {Name: "B", Import: []RT{rt2}}, {Name: "A", Import: []RT{rt1}}})
	quiet(t, f)

	tab.Update(path(gateway2, net10, rts(rt1)))
	want(t, "lost a route target", next(t, f), "A 10.0.0.0/8 fabricg1 (fabricg2); B 10.0.0.0/8 -")
	tab.Update(path(gateway2, net10, rts(rt2)))
	want(t, "changed it", next(t, f), "A 10.0.0.0/8 fabricg1; B 10.0.0.0/8 fabricg2")

	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt2, rt1}}, {Name: "C", Import: []RT{rt2}}})
	want(t, "VRFs changed", next(t, f), "A 10.0.0.0/8 fabricg1 (fabricg2); B 10.0.0.0/8 -; C 10.0.0.0/8 fabricg2")
	tab.WithdrawSource(gateway2)
	want(t, "withdrawn everywhere", next(t, f), "A 10.0.0.0/8 fabricg1; C 10.0.0.0/8 -")
	tab.SetVRFs(nil)
	want(t, "no VRFs again", next(t, f), "A 10.0.0.0/8 -")
	if tab.SourceLen(gateway1) != 2 {
		t.Error("paths of the fabric are kept without VRFs")
	}
}

func TestNextHopTracking(t *testing.T) {
	vtep := NextHop{Addr: gateway1.Addr}
	tab := NewTable()
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}, {Name: "B", Import: []RT{rt1}}})
	// Spoken about before it is used, and only in B: A's peer of the same address is not meant.
	tab.SetNextHop(NextHop{VRF: "B", Addr: peerB.Addr}, Unreachable)
	tab.Update(path(gateway1, net10), path(gateway2, net10), path(peer1, net101), path(peerB, net101),
		path(connectedA, netV6, func(p *Path) { p.Interface = "eth0" }))
	f := tab.Subscribe()
	want(t, "B's peer is unreachable", next(t, f),
		"full; A 10.0.0.0/8 fabricg1 (fabricg2); A 10.1.0.0/16 peerp1; A 2001:db8::/32 connected; B 10.0.0.0/8 fabricg1 (fabricg2)")

	tab.SetNextHop(vtep, Unreachable)
	want(t, "only what used the VTEP", next(t, f), "A 10.0.0.0/8 fabricg2; B 10.0.0.0/8 fabricg2")
	if c, _ := tab.Best(Key{"A", net10}); c.Reason != ByReachability {
		t.Errorf("reason %q", c.Reason)
	}
	tab.SetNextHop(vtep, Unreachable)
	quiet(t, f)
	tab.SetNextHop(NextHop{Addr: gateway2.Addr}, Unreachable)
	want(t, "nothing usable", next(t, f), "A 10.0.0.0/8 -; B 10.0.0.0/8 -")
	if got := tab.Candidates(Key{"A", net10}); len(got) != 2 {
		t.Errorf("%d candidates, want both unusable ones", len(got))
	}
	if _, ok := tab.Best(Key{"A", net10}); ok {
		t.Error("Best of unusable paths")
	}
	tab.SetNextHop(vtep, Reachable)
	want(t, "back", next(t, f), "A 10.0.0.0/8 fabricg1; B 10.0.0.0/8 fabricg1")

	// A path that changes its next hop leaves the index of the old one.
	tab.Update(path(gateway1, net10, nextHop("10.255.0.9")))
	next(t, f)
	tab.SetNextHop(vtep, Unreachable)
	quiet(t, f)
	tab.WithdrawSource(gateway1)
	tab.WithdrawSource(gateway2)
	if len(tab.hops) != 4 { // two VTEPs and B's peer that were spoken about; A's peer in use
		t.Errorf("%d next hops remembered, want 4", len(tab.hops))
	}
	tab.SetNextHop(vtep, Reachable)
	if len(tab.hops) != 3 {
		t.Errorf("%d next hops remembered, want 3", len(tab.hops))
	}
}

func TestStaleAndEndOfRIB(t *testing.T) {
	tab := NewTable()
	tab.Update(path(peer1, net10), path(peer1, net101), path(peer1, netV6), path(peer2, net10))
	f := tab.Subscribe()
	next(t, f)
	before, _ := tab.Best(Key{"A", net10})
	tab.MarkStale(peer1)
	want(t, "stale", next(t, f), "A 10.0.0.0/8 peerp2 (peerp1); A 10.1.0.0/16 peerp1 stale; A 2001:db8::/32 peerp1 stale")
	if before.Best.Stale {
		t.Error("a published path was written to")
	}
	tab.MarkStale(peer1)
	quiet(t, f)
	tab.Update(path(peer1, net10))
	want(t, "one fresh again", next(t, f), "A 10.0.0.0/8 peerp1 (peerp2)")
	tab.EndOfRIB(peer1)
	want(t, "the rest pruned", next(t, f), "A 10.1.0.0/16 -; A 2001:db8::/32 -")
	tab.EndOfRIB(peer1)
	quiet(t, f)
}

func TestComplete(t *testing.T) {
	tab := NewTable()
	f := tab.Subscribe()
	want(t, "before Expect", next(t, f), "full")
	tab.EndOfRIB(peer1)
	quiet(t, f)
	tab.Expect([]Source{peer1, peer2, gateway1})
	tab.Update(path(peer2, net10))
	want(t, "while waiting", next(t, f), "A 10.0.0.0/8 peerp2")
	if a := tab.Awaited(); len(a) != 2 || slices.Contains(a, peer1) {
		t.Errorf("awaited %v", a)
	}
	tab.EndOfRIB(gateway1)
	tab.Expect([]Source{peer2}) // gateway1 left the document
	quiet(t, f)
	tab.EndOfRIB(peer2)
	want(t, "all in", next(t, f), "complete")
	quiet(t, f)
	tab.Expect([]Source{peer3})
	tab.Update(path(peer2, netV6))
	want(t, "stays", next(t, f), "complete; A 2001:db8::/32 peerp2")
	late := tab.Subscribe()
	want(t, "late", next(t, late), "full; complete; A 10.0.0.0/8 peerp2; A 2001:db8::/32 peerp2")

	tab = NewTable()
	f = tab.Subscribe()
	tab.Expect(nil)
	want(t, "nothing to wait for", next(t, f), "full; complete")

	tab = NewTable()
	f = tab.Subscribe()
	tab.Expect([]Source{peer1})
	want(t, "waiting", next(t, f), "full")
	tab.Release()
	want(t, "released", next(t, f), "complete")
}

func TestFeedCoalesces(t *testing.T) {
	tab := NewTable()
	f := tab.Subscribe()
	tab.Update(path(peer1, net10))
	want(t, "before the dump", next(t, f), "full; A 10.0.0.0/8 peerp1")
	for i := range 1000 {
		tab.Update(path(peer1, net10, withMED(uint32(i))))
		// Comes and goes unseen: no slot.
		k := PathKey{Source: peer1, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{1, 0, byte(i >> 8), byte(i)}), 32)}
		tab.Update(Path{Key: k})
		tab.Withdraw(k)
	}
	if len(f.pending) != 1 {
		t.Errorf("%d slots, want 1", len(f.pending))
	}
	// Known, gone and back again.
	tab.Withdraw(PathKey{Source: peer1, Prefix: net10})
	tab.Update(path(peer1, net10))
	want(t, "one slot", next(t, f), "A 10.0.0.0/8 peerp1")
	tab.Withdraw(PathKey{Source: peer1, Prefix: net10})
	tab.Update(path(peer1, net101))
	want(t, "gone, new", next(t, f), "A 10.0.0.0/8 -; A 10.1.0.0/16 peerp1")

	tab.Update(path(peer2, net101))
	f.Resync()
	want(t, "resync", next(t, f), "full; A 10.1.0.0/16 peerp1 (peerp2)")
	quiet(t, f)
}

func TestFeedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable()
		f := tab.Subscribe()
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		var err error
		var wg sync.WaitGroup
		read := func(ctx context.Context) {
			for {
				var b Batch
				if b, err = f.Next(ctx); err != nil {
					return
				}
				got = append(got, show(b))
			}
		}
		wg.Go(func() { read(ctx) })
		synctest.Wait() // the reader waits
		tab.Update(path(peer1, net10))
		synctest.Wait()
		tab.Expect(nil)
		synctest.Wait()
		f.Resync()
		synctest.Wait()
		cancel()
		wg.Wait()
		want(t, "batches", strings.Join(got, " | "),
			"full | A 10.0.0.0/8 peerp1 | complete | full; complete; A 10.0.0.0/8 peerp1")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Next when cancelled: %v", err)
		}
		wg.Go(func() { read(t.Context()) })
		synctest.Wait()
		f.Close()
		wg.Wait()
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next when closed: %v", err)
		}
		f.Close()
		if len(tab.feeds) != 0 {
			t.Error("a closed feed is still served")
		}
		tab.Update(path(peer1, netV6))
		f.Resync()
		if _, err := f.Next(t.Context()); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
	})
}

// Every method that changes something wakes a waiting reader.
func TestEveryChangeWakes(t *testing.T) {
	k := PathKey{Source: peer1, Prefix: net10}
	for name, change := range map[string]func(*Table){
		"Update":                    func(tab *Table) { tab.Update(path(peer1, net101)) },
		"Withdraw":                  func(tab *Table) { tab.Withdraw(k) },
		"WithdrawSource":            func(tab *Table) { tab.WithdrawSource(peer1) },
		"MarkStale":                 func(tab *Table) { tab.MarkStale(peer1) },
		"EndOfRIB, pruning":         func(tab *Table) { tab.EndOfRIB(peer2) },
		"EndOfRIB, the last":        func(tab *Table) { tab.EndOfRIB(gateway1) },
		"Expect":                    func(tab *Table) { tab.Expect(nil) },
		"Release":                   func(tab *Table) { tab.Release() },
		"SetVRFs":                   func(tab *Table) { tab.SetVRFs(nil) },
		"SetNextHop, of a peer":     func(tab *Table) { tab.SetNextHop(NextHop{"A", peer1.Addr}, Unreachable) },
		"SetNextHop, of a gateway":  func(tab *Table) { tab.SetNextHop(NextHop{"", gateway2.Addr}, Unreachable) },
		"another path gets chosen":  func(tab *Table) { tab.Update(path(peer2, net10, func(p *Path) { p.Attrs.LocalPref = 200 })) },
		"the runner-up changes":     func(tab *Table) { tab.Update(path(peer3, net10)) },
		"the last runner-up leaves": func(tab *Table) { tab.Withdraw(PathKey{Source: peer2, Prefix: net10}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tab := NewTable()
				tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
				tab.Expect([]Source{gateway1})
				tab.Update(path(peer1, net10), path(peer2, net10, func(p *Path) { p.Stale = true }), path(gateway2, netV6))
				f := tab.Subscribe()
				if _, err := f.Next(t.Context()); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := f.Next(t.Context()); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
				change(tab)
				wg.Wait() // a reader that sleeps on is a deadlock, which synctest reports
			})
		})
	}
}

// A key that comes while the keys are being sorted, outside the lock, must not be missing from later walks.
func TestKeyComesWhileSorting(t *testing.T) {
	tab := NewTable()
	tab.Update(path(peer1, net10))
	keys, at, _ := tab.keys("A")
	tab.Update(path(peer1, net101))
	tab.cache("A", keys, at)
	seen := 0
	tab.Walk("A", func(Choice) bool { seen++; return true })
	if seen != 2 {
		t.Errorf("%d keys, want 2", seen)
	}
	if _, _, sorted := tab.keys("A"); !sorted {
		t.Error("a walk without change does not leave its keys for the next")
	}
}

func TestLookupAndWalk(t *testing.T) {
	tab := NewTable()
	prefixes := []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "2001:db8::/32", "2001:db8::1/128"}
	for _, s := range slices.Backward(prefixes) {
		tab.Update(path(peer1, netip.MustParsePrefix(s)))
	}
	tab.Update(path(peer2, netip.MustParsePrefix("10.1.2.0/25"), nextHop("192.0.2.66")))
	tab.SetNextHop(NextHop{"A", netip.MustParseAddr("192.0.2.66")}, Unreachable)
	for _, tt := range []struct{ ask, want string }{
		{"10.1.2.3/32", "10.1.2.3/32"},
		{"10.1.2.4/32", "10.1.2.0/24"}, // not the /25, which is unusable
		{"10.1.2.3/31", "10.1.2.0/24"},
		{"10.1.0.0/15", "10.0.0.0/8"},
		{"11.0.0.1/32", "0.0.0.0/0"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"2001:db8::1/128", "2001:db8::1/128"},
		{"2001:db8::2/128", "2001:db8::/32"},
		{"2001:db9::/64", "::/0"},
	} {
		c, ok := tab.Lookup("A", netip.MustParsePrefix(tt.ask))
		if !ok || c.Key.Prefix.String() != tt.want || c.Best == nil {
			t.Errorf("Lookup(%s) = %v %v, want %s", tt.ask, c.Key, ok, tt.want)
		}
	}
	walk := func(n int) (got []string) {
		tab.Walk("A", func(c Choice) bool {
			got = append(got, c.Key.Prefix.String())
			tab.Len("A") // the lock is free
			return len(got) != n
		})
		return got
	}
	if got := walk(0); !slices.Equal(got, prefixes) {
		t.Errorf("Walk: %v", got)
	}
	if got := walk(3); !slices.Equal(got, prefixes[:3]) {
		t.Errorf("Walk of three: %v", got)
	}
	tab.Withdraw(PathKey{Source: peer1, Prefix: netip.MustParsePrefix("10.0.0.0/8")})
	if got := walk(0); !slices.Equal(got, slices.Concat(prefixes[:1], prefixes[2:])) {
		t.Errorf("Walk after a withdrawal: %v", got)
	}
	if tab.Len("A") != 7 {
		t.Errorf("Len %d", tab.Len("A"))
	}
	if got := tab.SourcePaths(peer1); len(got) != 7 || tab.SourceLen(peer1) != 7 || len(tab.Sources()) != 2 {
		t.Errorf("%d paths of peer1, sources %v", len(got), tab.Sources())
	}
}

// A walk longer than a chunk sees each key once although the table changes under it.
func TestWalkWhileChanging(t *testing.T) {
	tab := NewTable()
	const n = 3*walkChunk + 1
	for i := range n {
		tab.Update(path(peer1, nth(i)))
	}
	seen := 0
	last := netip.Prefix{}
	tab.Walk("A", func(c Choice) bool {
		if c.Key.Prefix.Compare(last) <= 0 {
			t.Fatalf("%v after %v", c.Key.Prefix, last)
		}
		last = c.Key.Prefix
		tab.Update(path(peer2, nth(n+seen)))
		if seen++; seen == 1 {
			tab.Withdraw(PathKey{Source: peer1, Prefix: nth(n - 1)}) // in a chunk not read yet
		}
		return true
	})
	if seen != n-1 {
		t.Errorf("saw %d keys, want %d", seen, n-1)
	}
}

// Many writers and readers at once, for the race detector; the end state is what was written last per key.
func TestConcurrentUse(t *testing.T) {
	tab := NewTable()
	tab.SetVRFs([]VRF{{Name: "A", Import: []RT{rt1}}})
	sources := []Source{peer1, peer2, gateway1, gateway2}
	f := tab.Subscribe()
	ctx, cancel := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	world := make(map[Key]Choice)
	readers.Go(func() {
		for {
			b, err := f.Next(ctx)
			if err != nil {
				return
			}
			apply(world, b)
		}
	})
	readers.Go(func() {
		for ctx.Err() == nil {
			tab.Walk("A", func(c Choice) bool { return c.Best != nil })
			tab.Lookup("A", netip.PrefixFrom(netip.MustParseAddr("1.0.0.7"), 32))
		}
	})
	const n = 300
	for _, s := range sources {
		writers.Go(func() {
			for i := range n {
				tab.Update(path(s, nth(i)))
				tab.SetNextHop((&Path{Key: PathKey{Source: s}, Attrs: Attrs{NextHop: s.Addr}}).Hop(), Reach(i%2))
			}
			tab.MarkStale(s)
			for i := range n / 2 {
				tab.Update(path(s, nth(i)))
			}
			tab.EndOfRIB(s)
			tab.SetNextHop((&Path{Key: PathKey{Source: s}, Attrs: Attrs{NextHop: s.Addr}}).Hop(), Reachable)
		})
	}
	writers.Wait()
	cancel()
	readers.Wait()
	if b, ok, _ := f.take(); ok {
		apply(world, b)
	}
	if len(world) != n/2 || tab.Len("A") != n/2 {
		t.Fatalf("consumer knows %d keys, table has %d, want %d", len(world), tab.Len("A"), n/2)
	}
	walked := 0
	tab.Walk("A", func(Choice) bool { walked++; return true })
	if walked != n/2 {
		t.Errorf("Walk finds %d keys, want %d", walked, n/2)
	}
	for k, c := range world {
		if c.Best.Key.Source != peer1 || c.RunnerUp.Key.Source != peer2 || c.Best.Stale {
			t.Fatalf("%v: %+v", k, c)
		}
	}
}

// nth is the i-th of many /32.
func nth(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
}

// apply does what a consumer does with a batch.
func apply(world map[Key]Choice, b Batch) {
	if b.Full {
		clear(world)
	}
	for _, c := range b.Choices {
		if c.Best == nil {
			delete(world, c.Key)
		} else {
			world[c.Key] = c
		}
	}
}

// A source is unusable by itself: another one with the same next hop is not touched, paths that come later are not used either, and
// all that changes is in one batch.
func TestSourceLiveness(t *testing.T) {
	tab := NewTable()
	tab.Update(path(peer1, net10), path(peer1, net101), path(peer2, net10, nextHop(peer1.Addr.String())))
	f := tab.Subscribe()
	want(t, "both", next(t, f), "full; A 10.0.0.0/8 peerp1; A 10.1.0.0/16 peerp1")
	tab.SetSource(peer1, Unreachable)
	want(t, "the runner-up takes over", next(t, f), "A 10.0.0.0/8 peerp2; A 10.1.0.0/16 -")
	if c, _ := tab.Best(Key{"A", net10}); c.Reason != ByLiveness {
		t.Errorf("reason %q", c.Reason)
	}
	if r := tab.Ranking(Key{"A", net101}); len(r) != 1 || r[0].Usable || r[0].Lost != ByLiveness {
		t.Errorf("ranking %+v", r)
	}
	tab.SetSource(peer1, Unreachable)
	tab.Update(path(peer1, netV6))
	quiet(t, f)
	tab.WithdrawSource(peer1)
	next(t, f) // the reason is another
	if ss := tab.Sources(); len(ss) != 1 || ss[0] != peer2 {
		t.Errorf("sources %v", ss)
	}
	tab.Update(path(peer1, net101))
	quiet(t, f)
	tab.SetSource(peer1, Reachable)
	want(t, "alive again", next(t, f), "A 10.1.0.0/16 peerp1")
	tab.WithdrawSource(peer1)
	tab.SetSource(peer3, Reachable)
	if len(tab.sources) != 1 {
		t.Errorf("%d sources remembered, want 1", len(tab.sources))
	}
}

// Changes grows with every change of a path, also of one that is not chosen, and with nothing else.
func TestChanges(t *testing.T) {
	table := NewTable()
	src := func(name string) Source { return Source{Kind: Peer, VRF: "A", Name: name} }
	path := func(name string, pref uint32) Path {
		return Path{Key: PathKey{Source: src(name), Prefix: netip.MustParsePrefix("10.0.0.0/8")}, Attrs: Attrs{LocalPref: pref, NextHop: netip.MustParseAddr("192.0.2.1")}}
	}
	table.Update(path("a", 300), path("b", 200))
	for _, c := range []struct {
		what string
		do   func()
		want bool
	}{
		{"a third path", func() { table.Update(path("c", 100)) }, true},
		{"the same again", func() { table.Update(path("c", 100)) }, false},
		{"another third path", func() { table.Update(path("c", 101)) }, true},
		{"stale", func() { table.MarkStale(src("c")) }, true},
		{"stale again", func() { table.MarkStale(src("c")) }, false},
		{"an unreachable next hop", func() { table.SetNextHop(NextHop{VRF: "A", Addr: netip.MustParseAddr("192.0.2.1")}, Unreachable) }, false},
		{"End-of-RIB", func() { table.EndOfRIB(src("c")) }, true},
		{"nothing to withdraw", func() { table.Withdraw(path("c", 0).Key) }, false},
		{"a withdrawal", func() { table.Withdraw(path("b", 0).Key) }, true},
		{"a source", func() { table.WithdrawSource(src("a")) }, true},
	} {
		before := table.Changes()
		c.do()
		if changed := table.Changes() != before; changed != c.want {
			t.Errorf("%s: changed %v, want %v", c.what, changed, c.want)
		}
	}
}
