package links

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

// watchedHops are next hops of which it is told before each batch is written.
type watchedHops struct {
	kernel.NextHops
	before func(ops int)
}

// Apply implements reconcile.Edge.
func (h watchedHops) Apply(ctx context.Context, ops []reconcile.Op[uint32, kernel.NextHop]) []error {
	h.before(len(ops))
	return h.NextHops.Apply(ctx, ops)
}

// Thousands of sets are made a few at a time, and a peer that dies meanwhile does not wait for all of them: those that are there move at once,
// the others are made on the leg that is left.
func TestRepairBetweenSets(t *testing.T) {
	w, e, f := runningSets(t)
	var sets []overlay.NextHopSet
	for i := range 384 {
		x := legX
		x.Gateway = netip.AddrFrom4([4]byte{10, 1, byte(1 + i/200), byte(1 + i%200)})
		sets = append(sets, set(x, legY))
	}
	var batches []int
	var died sync.WaitGroup
	e.repair.nextHops = watchedHops{e.repair.nextHops, func(ops int) {
		batches = append(batches, ops)
		if len(batches) == 1 {
			died.Go(func() { f.down("eth1") })
			for e.repair.urgent.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}}
	if a := e.take(t.Context(), setsPlan(sets...)); a.err != nil {
		t.Fatal(a.err)
	}
	died.Wait()
	// The first ones are made, and moved by the repair; then the others are made.
	if len(batches) != 4 {
		t.Fatalf("written were %d", batches)
	}
	for i, n := range batches {
		if n != 128 {
			t.Errorf("batch %d is of %d, want 128", i, n)
		}
	}
	for _, s := range sets {
		w.expectSet("x is dead", s, legY)
	}
}
