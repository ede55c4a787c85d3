package links

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// sharing is a set whose first legs share traffic.
func sharing(equal int, legs ...overlay.Leg) overlay.NextHopSet {
	return overlay.NextHopSet{ID: overlay.NextHopSetID("CORE", legs, equal), VRF: "CORE", Legs: legs, Equal: equal}
}

// expectGroup says over which legs the kernel's group is; it must be a group.
func (w *world) expectGroup(what string, s overlay.NextHopSet, want ...overlay.Leg) {
	w.t.Helper()
	have, err := w.k.NextHops(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []uint32
	for _, l := range want {
		ids = append(ids, overlay.LegNextHopID(l))
	}
	if got := have[s.ID]; got != nextHopGroup(ids) {
		w.t.Errorf("%s: the group is %+v, want %v", what, got, want)
	}
}

// Legs that share traffic leave the group and return to it one by one, each time by one operation, and the leg behind takes over when none
// of them is left.
func TestGroupMovesWithBFD(t *testing.T) {
	xyb := sharing(2, legX, legY, legB)
	w, e, f := runningSets(t)
	w.take(e, setsPlan(xyb))
	w.expectGroup("at first", xyb, legX, legY)
	plan := func() { w.take(e, setsPlan(xyb)) }
	steps := []struct {
		what    string
		do      func()
		want    []overlay.Leg
		applied int
		held    bool
	}{
		{"x's operator takes its session down", func() { f.turn("eth1", bfd.Down, bfd.AdminDown) }, []overlay.Leg{legX, legY}, 0, false},
		{"and gives it back", func() { f.up("eth1") }, []overlay.Leg{legX, legY}, 0, false},
		{"x dies", func() { f.down("eth1") }, []overlay.Leg{legY}, 1, false},
		{"x is back", func() { f.up("eth1") }, []overlay.Leg{legY}, 0, false},
		{"x has been back for long", func() { w.age(time.Hour); w.settle(e) }, []overlay.Leg{legY}, 0, true},
		{"the plan comes again", plan, []overlay.Leg{legX, legY}, 1, false},
		{"y dies", func() { f.down("eth2") }, []overlay.Leg{legX}, 1, false},
		{"y has been back for long", func() { f.up("eth2"); w.age(time.Hour); w.settle(e) }, []overlay.Leg{legX}, 0, true},
		{"y is wanted", plan, []overlay.Leg{legX, legY}, 1, false},
		{"x dies again", func() { f.down("eth1") }, []overlay.Leg{legY}, 1, false},
		{"y dies too", func() { f.down("eth2") }, []overlay.Leg{legB}, 1, false},
		{"both are back", func() { f.up("eth1", "eth2"); w.age(time.Hour); w.settle(e) }, []overlay.Leg{legB}, 0, true},
		{"both are wanted", plan, []overlay.Leg{legX, legY}, 1, false},
		{"both die", func() { f.down("eth2"); f.down("eth1") }, []overlay.Leg{legB}, 2, false},
		{"b dies", func() { f.down(b0); f.down(b1) }, []overlay.Leg{legB}, 2, false}, // two routes of the VTEP's
		{"y alone is back", func() { f.up("eth2") }, []overlay.Leg{legY}, 1, false},
	}
	for _, step := range steps {
		before := len(w.k.Applied())
		step.do()
		w.expectGroup(step.what, xyb, step.want...)
		w.settle(e)
		w.expectGroup(step.what+", after a pass", xyb, step.want...)
		if got := w.k.Applied()[before:]; len(got) != step.applied {
			t.Errorf("%s: steps are %q", step.what, got)
		}
		var inUse []string
		st := e.setState(xyb)
		for _, i := range st.InUse {
			inUse = append(inUse, st.Legs[i])
		}
		var want []string
		for _, l := range step.want {
			want = append(want, l.String())
		}
		if !st.Ready || st.Held != step.held || !slices.Equal(inUse, want) || st.Current != strings.Join(want, " and ") {
			t.Errorf("%s: told is %+v", step.what, st)
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		key := "net." + family + ".fib_multipath_hash_policy"
		have, err := w.k.Sysctls(func() []string { return []string{key} }).Observe(context.Background())
		if err != nil || have[key] != "1" {
			t.Errorf("%s is %q, %v", key, have[key], err)
		}
	}
	// The set goes, and with it what it was made of.
	whole := setsPlan()
	whole.SetsWhole = true
	w.take(e, whole)
	have, err := w.k.NextHops(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range xyb.IDs() {
		if n, there := have[id]; there {
			t.Errorf("next hop %d is left: %+v", id, n)
		}
	}
}

// A restart of fabric-links leaves groups as they are, and so does a plan that names fewer of the first legs.
func TestGroupsOverRestart(t *testing.T) {
	xyb := sharing(2, legX, legY, legB)
	w, e, f := runningSets(t)
	w.take(e, setsPlan(xyb))
	f.down("eth1")
	w.kill(e)
	e, f = w.withBFD()
	before := len(w.k.Applied())
	w.settle(e)
	w.expectGroup("after the restart", xyb, legY)
	f.up("eth1", "eth2", b0, b1)
	w.age(slowStart+time.Second, b0, b1)
	w.settle(e)
	w.expectGroup("x is back and not wanted yet", xyb, legY)
	if got := w.k.Applied()[before:]; len(got) != 0 {
		t.Errorf("steps are %q", got)
	}
	w.take(e, setsPlan(xyb))
	w.expectGroup("x is wanted", xyb, legX, legY)
}

// What cannot be written does not cost the legs that can.
func TestGroupFaults(t *testing.T) {
	xy := sharing(2, legX, legY)
	w, e, f := runningSets(t)
	w.take(e, setsPlan(xy))
	if err := w.k.SetUp("eth1", false); err != nil { // takes the leg's object along, and it out of the group
		t.Fatal(err)
	}
	w.settle(e)
	w.expectGroup("x's device is down", xy, legY)
	_ = w.k.SetUp("eth1", true)
	w.settle(e)
	w.expectGroup("x's device is up", xy, legX, legY)

	// The write at the session's change fails: the pass does it.
	w.k.FailNext("nexthops", context.DeadlineExceeded)
	f.down("eth1")
	w.settle(e)
	w.expectGroup("after a failed write", xy, legY)
	f.up("eth1")
	w.age(time.Hour)
	w.take(e, setsPlan(xy))
	w.expectGroup("x is back", xy, legX, legY)

	// Somebody else's objects stay: one leg's costs that leg, the group's costs the group.
	bx := sharing(2, legB, legX)
	theirs := kernel.NextHop{Device: "lo", Protocol: 4}
	foreign := func(id uint32, kind reconcile.Kind) {
		t.Helper()
		if err := w.k.NextHops(4).Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: kind, Key: id, New: theirs, Old: theirs}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	foreign(overlay.LegNextHopID(legB), reconcile.Create)
	w.take(e, setsPlan(xy, bx))
	w.expectGroup("b's object is somebody else's", bx, legX)
	if o := e.State().Problems; len(o) != 1 || o[0].Status != Foreign {
		t.Errorf("problems are %+v", o)
	}
	foreign(overlay.LegNextHopID(legB), reconcile.Delete)
	w.settle(e)
	w.expectGroup("b's object is free", bx, legB, legX)
	by := sharing(2, legB, legY)
	foreign(by.ID, reconcile.Create)
	w.take(e, setsPlan(xy, bx, by))
	if st := e.setState(by); st.Ready || !strings.Contains(st.Reason, "protocol") {
		t.Errorf("a foreign group: %+v", st)
	}
	f.down("eth2")
	have, err := w.k.NextHops(4).Observe(context.Background())
	if err != nil || have[by.ID] != theirs {
		t.Errorf("the foreign object is %+v, %v", have[by.ID], err)
	}
}
