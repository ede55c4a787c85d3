package site

import (
	"fmt"
	"net/netip"
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
