package site

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"fabric/bgp/rib"
)

// manyPaths are paths of far, to so many prefixes.
func manyPaths(n int) []rib.Path {
	var ps []rib.Path
	for i := range n {
		p := fromFar("10.2.0.0/16")
		p.Key.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		ps = append(ps, p)
	}
	return ps
}

// BenchmarkPublish is one snapshot of a gateway with 20,000 routes, all of them in the kernel.
func BenchmarkPublish(b *testing.B) {
	g := newGate(b, document).start().waitReady()
	g.rib.Update(manyPaths(20_000)...)
	waitFor(b, "20,000 routes", func() (any, bool) {
		s := g.fib.loop.Summary()
		return fmt.Sprintf("%+v", s), s.InSync && s.Synced > 20_000
	})
	g.stop()
	b.ReportAllocs()
	for b.Loop() {
		g.publish()
	}
}

// BenchmarkFIBMultihop brings 100,000 routes of a neighbour into the fib, in batches of 1,000. The next hop of them all is the neighbour's
// loopback, which a static route leads to.
func BenchmarkFIBMultihop(b *testing.B) {
	paths := manyPaths(100_000)
	for i := range paths {
		paths[i].Key.Source, paths[i].Attrs = ce, fromCE("10.0.0.0/8", "192.0.2.9").Attrs
	}
	static := rib.Path{
		Key:   rib.PathKey{Source: rib.Source{Kind: rib.Static, VRF: "CORE"}, Prefix: netip.MustParsePrefix("192.0.2.9/32")},
		Attrs: rib.Attrs{LocalPref: 100, NextHop: netip.MustParseAddr("10.1.0.9")},
	}
	for b.Loop() {
		b.StopTimer()
		s, err := New(newGate(b, document).cfg)
		if err != nil {
			b.Fatal(err)
		}
		s.fib.started = true
		s.rib.Update(static)
		b.StartTimer()
		for batch := range slices.Chunk(paths, 1000) {
			s.rib.Update(batch...)
			next, err := s.fib.feed.Next(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			s.fib.take(next)
		}
		if n := len(s.fib.want); n < 100_000 {
			b.Fatalf("%d routes are wanted", n)
		}
		b.StopTimer()
		_ = s.cfg.Store.Close()
		b.StartTimer()
	}
}

// BenchmarkCheckpoint writes the checkpoint of 100,000 paths.
func BenchmarkCheckpoint(b *testing.B) {
	t := rib.NewTable()
	t.Update(manyPaths(100_000)...)
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		c := checkpoint{Version: checkpointVersion, BootID: bootID(), Gateway: "gw", Paths: learnt(t)}
		if err := c.save(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// A large checkpoint is written less often, but often enough to be of use.
func TestCheckpointRest(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                      0,
		20 * time.Millisecond:  400 * time.Millisecond,
		300 * time.Millisecond: 6 * time.Second,
		3 * time.Second:        checkpointTouch,
	} {
		if got := checkpointRest(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}
