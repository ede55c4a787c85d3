package links

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// Two third-party peers, each on a device of its own and watched by BFD, and VTEPs b and c:
//
//	x 10.1.0.2 ── eth1
//	y 10.2.0.2 ── eth2       b (two tunnels, BFD), c (one, by handshake) ── fxv1000
var (
	legX = overlay.Leg{Gateway: netip.MustParseAddr("10.1.0.2"), Device: "eth1", Session: "CORE/x"}
	legY = overlay.Leg{Gateway: netip.MustParseAddr("10.2.0.2"), Device: "eth2", Session: "CORE/y"}
	legB = overlay.Leg{Gateway: overlay.VTEPGateway(netip.MustParseAddr("10.255.0.2")), Device: overlay.VXLANDevice(1000), VTEP: netip.MustParseAddr("10.255.0.2")}
	legC = overlay.Leg{Gateway: overlay.VTEPGateway(netip.MustParseAddr("10.255.0.3")), Device: overlay.VXLANDevice(1000), VTEP: netip.MustParseAddr("10.255.0.3")}
)

func set(legs ...overlay.Leg) overlay.NextHopSet {
	return overlay.NextHopSet{ID: overlay.NextHopSetID("CORE", legs, 0), VRF: "CORE", Legs: legs}
}

// setsPlan is the plan with BFD, with sessions to x and y, and sets.
func setsPlan(sets ...overlay.NextHopSet) overlay.Plan {
	p := bfdPlan()
	for i, name := range []string{"x", "y"} {
		l := []overlay.Leg{legX, legY}[i]
		p.Sessions = append(p.Sessions, overlay.Session{
			BFD: overlay.BFD{IntervalMs: 50, Multiplier: 3}, Name: "CORE/" + name, VRF: "CORE", Peer: name,
			Interface: l.Device, Local: l.Gateway.Prev(), Remote: l.Gateway,
		})
	}
	p.Sets = sets
	return p
}

// runningSets is a world in which the plan is applied, all sessions are up and no hold is on.
func runningSets(t *testing.T, sets ...overlay.NextHopSet) (*world, *Engine, *fakeBFD) {
	t.Helper()
	w := newWorld(t)
	w.addVXLAN(1000)
	for _, d := range []string{"eth1", "eth2"} {
		if err := w.k.AddDevice(d); err != nil {
			t.Fatal(err)
		}
	}
	e, f := w.withBFD()
	w.take(e, setsPlan())
	w.allUp()
	f.up(b0, b1, "eth1", "eth2")
	w.age(time.Hour)
	w.settle(e)
	w.take(e, setsPlan(sets...))
	for _, s := range sets {
		w.expectSet("at first", s, s.Legs[0])
	}
	return w, e, f
}

// onLeg is the leg that the kernel's object is on; the zero one when there is none.
func (w *world) onLeg(s overlay.NextHopSet) overlay.Leg {
	w.t.Helper()
	have, err := w.k.NextHops(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range s.Legs {
		if h := have[s.ID]; h.Gateway == l.Gateway && h.Device == l.Device && h.OnLink {
			return l
		}
	}
	return overlay.Leg{}
}

func (w *world) expectSet(what string, s overlay.NextHopSet, want overlay.Leg) {
	w.t.Helper()
	if got := w.onLeg(s); got != want {
		w.t.Errorf("%s: the set is on %v, want %v", what, got, want)
	}
}

// state is what is told of a set.
func (e *Engine) setState(s overlay.NextHopSet) SetState {
	for _, st := range e.State().Sets {
		if st.ID == s.ID {
			return st
		}
	}
	return SetState{}
}

// A peer that dies takes its sets to the next leg at once, by one operation each, and passes leave them there until a plan says
// that they may go back.
func TestSetMovesWithBFD(t *testing.T) {
	xy, yx, xb := set(legX, legY), set(legY, legX), set(legX, legB)
	w, e, f := runningSets(t, xy, yx, xb)
	steps := []struct {
		what       string
		do         func()
		xy, yx, xb overlay.Leg
		applied    int
		held       bool
	}{
		{"x's operator takes its session down", func() { f.turn("eth1", bfd.Down, bfd.AdminDown) }, legX, legY, legX, 0, false},
		{"and gives it back", func() { f.up("eth1") }, legX, legY, legX, 0, false},
		{"x dies", func() { f.down("eth1") }, legY, legY, legB, 2, false},
		{"b is gone too", func() { f.down(b0); f.down(b1) }, legY, legY, legB, 2, false}, // two routes of the VTEP's; x is as dead as b
		{"b is back", func() { f.up(b0) }, legY, legY, legB, 1, false},
		{"x is back", func() { f.up("eth1") }, legY, legY, legB, 0, false},
		{"x has been back for long", func() { w.age(time.Hour); w.settle(e) }, legY, legY, legB, 0, true},
		{"the plan comes again", func() { w.take(e, setsPlan(xy, yx, xb)) }, legX, legY, legX, 2, false},
		{"y dies", func() { f.down("eth2") }, legX, legX, legX, 1, false},
		{"both are dead", func() { f.down("eth1") }, legX, legX, legB, 1, false},
		{"y is back", func() { f.up("eth2") }, legY, legY, legB, 2, false},
	}
	for _, step := range steps {
		before := len(w.k.Applied())
		step.do()
		check := func(when string) {
			w.expectSet(step.what+when+", x-y", xy, step.xy)
			w.expectSet(step.what+when+", y-x", yx, step.yx)
			w.expectSet(step.what+when+", x-b", xb, step.xb)
		}
		check("")
		w.settle(e)
		check(", after a pass")
		if got := w.k.Applied()[before:]; len(got) != step.applied {
			t.Errorf("%s: steps are %q", step.what, got)
		}
		if st := e.setState(xy); !st.Ready || st.Held != step.held || st.Current != step.xy.String() || st.Legs[st.Rank] != st.Current {
			t.Errorf("%s: told is %+v", step.what, st)
		}
	}
	if got := e.repair.moves(); got != 6 {
		t.Errorf("%d moves", got)
	}
}

// A better leg is returned to only when its hold time is over, it has not died since the plan came, and the set does not say Stay.
func TestSetReturns(t *testing.T) {
	xy := set(legX, legY)
	w, e, f := runningSets(t, xy)
	f.down("eth1")
	w.take(e, setsPlan(xy)) // one that was under way while x died
	f.up("eth1")
	w.age(time.Hour)
	w.settle(e)
	w.expectSet("x is back, and nobody has said that its routes are", xy, legY)
	if !e.setState(xy).Held {
		t.Error("not held")
	}
	stay := xy
	stay.Stay = true
	w.take(e, setsPlan(stay))
	w.expectSet("the plan says stay", xy, legY)
	w.take(e, setsPlan(xy))
	w.expectSet("the plan says use", xy, legX)

	f.down("eth1")
	f.up("eth1")
	w.take(e, setsPlan(xy))
	w.expectSet("vouched for, and in its hold time", xy, legY)
	if next := e.repair.next(); next.IsZero() || next.Sub(w.now) > 2*holdFirst {
		t.Errorf("next look is at %s, now is %s", next, w.now)
	}
	w.take(e, setsPlan(stay))
	w.age(time.Hour)
	w.settle(e)
	w.expectSet("the plan says stay meanwhile", xy, legY)
	w.take(e, setsPlan(xy))
	w.expectSet("the hold time is over", xy, legX)

	f.down("eth1")
	f.up("eth1")
	w.age(time.Hour)
	w.settle(e)
	w.expectSet("dead and alive again between two passes", xy, legY)
}

// The last tunnel to a VTEP takes sets along; tunnels in between, and a VTEP that comes back, do not.
func TestSetMovesWithVTEP(t *testing.T) {
	bc, by, cb := set(legB, legC), set(legB, legY), set(legC, legB)
	w, e, f := runningSets(t, bc, by, cb)
	f.down(b0)
	w.expectSet("one tunnel is left", bc, legB)
	f.down(b1)
	w.expectSet("no tunnel is left", bc, legC)
	w.expectSet("no tunnel is left", by, legY)
	w.expectSet("no tunnel is left", cb, legC)
	w.settle(e)
	f.up(b1)
	w.age(time.Hour)
	w.settle(e)
	w.expectSet("b is back", bc, legC)
	w.take(e, setsPlan(bc, by, cb))
	w.expectSet("b is back and wanted", bc, legB)
	w.expectSet("b is back and wanted", by, legB)
	// c has no BFD: a pass finds it dead.
	w.now = w.now.Add(RejectAfter + time.Second)
	w.handshake[b1] = w.wall()
	w.settle(e)
	w.expectSet("c is dead", cb, legB)
}

// A restart of fabric-links leaves sets as they are, though no session is up yet; what stays down is left after a while.
func TestSetsOverRestart(t *testing.T) {
	xy, xb := set(legX, legY), set(legX, legB)
	w, e, f := runningSets(t, xy, xb)
	w.take(e, setsPlan(xy)) // without SetsWhole x-b is kept
	f.down("eth1")
	w.expectSet("x is dead", xb, legB)
	w.kill(e)
	e, f = w.withBFD()
	before := len(w.k.Applied())
	w.settle(e)
	w.expectSet("after the restart", xy, legY)
	w.expectSet("after the restart", xb, legB)
	f.up("eth1")
	w.settle(e)
	w.expectSet("x's session is up again first", xy, legY)
	f.up(b0, b1)
	w.age(slowStart+time.Second, b0, b1)
	w.settle(e)
	w.expectSet("y does not come back", xy, legX)
	if got := w.k.Applied()[before:]; len(got) != 1 {
		t.Errorf("steps are %q", got)
	}
	if st := e.setState(xb); !st.Ready || !st.Held {
		t.Errorf("a kept set is %+v", st)
	}
	whole := setsPlan(xy)
	whole.SetsWhole = true
	w.take(e, whole)
	if got := w.onLeg(xb); got != (overlay.Leg{}) || len(e.State().Sets) != 1 {
		t.Errorf("a set that nothing refers to is on %v", got)
	}
}

// A leg that cannot be used is passed over, and somebody else's object is left alone.
func TestSetFaults(t *testing.T) {
	xy := set(legX, legY)
	w, e, f := runningSets(t, xy)
	if err := w.k.SetUp("eth1", false); err != nil { // takes the object along
		t.Fatal(err)
	}
	w.settle(e)
	w.expectSet("x's device is down", xy, legY)
	if err := w.k.SetUp("eth2", false); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	if st := e.setState(xy); st.Ready || st.Reason == "" || !slices.ContainsFunc(e.State().Problems, func(o Object) bool { return o.Kind == kindSet }) {
		t.Errorf("without a device: %+v, problems %+v", st, e.State().Problems)
	}
	_ = w.k.SetUp("eth1", true)
	_ = w.k.SetUp("eth2", true)
	w.settle(e)
	w.expectSet("both devices are up", xy, legX)
	f.down("eth2")

	b := set(legB, legC)
	theirs := kernel.NextHop{Device: "lo", Protocol: 4}
	if err := w.k.NextHops(4).Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Create, Key: b.ID, New: theirs}})[0]; err != nil {
		t.Fatal(err)
	}
	w.take(e, setsPlan(xy, b))
	if st := e.setState(b); st.Ready || !strings.Contains(st.Reason, "protocol") {
		t.Errorf("a foreign object: %+v", st)
	}
	if o := e.State().Problems; len(o) != 1 || o[0].Status != Foreign {
		t.Errorf("problems are %+v", o)
	}
	f.down(b0)
	f.down(b1)
	have, err := w.k.NextHops(4).Observe(context.Background())
	if err != nil || have[b.ID] != theirs {
		t.Errorf("the foreign object is %+v, %v", have[b.ID], err)
	}

	// The write at the session's change fails: the pass does it.
	w.k.FailNext("nexthops", context.DeadlineExceeded)
	f.up("eth2")
	w.take(e, setsPlan(xy))
	f.down("eth1")
	w.settle(e)
	w.expectSet("after a failed write", xy, legY)
}

// A session that changes between a pass's reading and its writing is not undone by the pass.
func TestPassDoesNotUndoASet(t *testing.T) {
	xy := set(legX, legY)
	w, e, f := runningSets(t, xy)
	reads := 0
	e.cfg.Host = &betweenHops{w.k, func() {
		if reads++; reads == 2 { // the first is for the plan's other next hops
			f.down("eth1")
		}
	}}
	before := len(w.k.Applied())
	w.settle(e)
	w.expectSet("after the pass", xy, legY)
	if got := w.k.Applied()[before:]; len(got) != 1 {
		t.Errorf("steps are %q", got)
	}
}

// Without BFD in fabric-links nothing tells that a peer is dead.
func TestSetsWithoutBFD(t *testing.T) {
	w := newWorld(t)
	for _, d := range []string{"eth1", "eth2"} {
		if err := w.k.AddDevice(d); err != nil {
			t.Fatal(err)
		}
	}
	e := w.engine()
	xy := set(legX, legY)
	w.take(e, setsPlan(xy))
	w.age(time.Hour)
	w.settle(e)
	w.expectSet("without BFD", xy, legX)
}

// betweenHops is a kernel in which something happens after each observation of next hops.
type betweenHops struct {
	kernel.Host
	do func()
}

// NextHops implements kernel.Host.
func (b *betweenHops) NextHops(protocol uint8) kernel.NextHops {
	return betweenNextHops{b.Host.NextHops(protocol), b.do}
}

type betweenNextHops struct {
	kernel.NextHops
	do func()
}

// Observe implements reconcile.Edge.
func (b betweenNextHops) Observe(ctx context.Context) (map[uint32]kernel.NextHop, error) {
	have, err := b.NextHops.Observe(ctx)
	b.do()
	return have, err
}

// BenchmarkSetsOfAPass is for how long a pass over as many sets as there may be keeps the BFD engine's thread waiting at most, in ns/op.
func BenchmarkSetsOfAPass(b *testing.B) {
	r := &repair{now: time.Now}
	plan := overlay.Plan{}
	for i := range overlay.MaxSets {
		leg := func(net byte, device string) overlay.Leg {
			return overlay.Leg{Gateway: netip.AddrFrom4([4]byte{10, net, byte(i >> 8), byte(i)}), Device: device}
		}
		plan.Sets = append(plan.Sets, overlay.NextHopSet{ID: overlay.NextHopFirst + uint32(i), VRF: "CORE", Legs: []overlay.Leg{leg(1, "eth1"), leg(2, "eth2")}})
	}
	r.expectSets(plan, true, r.now())
	for b.Loop() {
		r.expectSets(plan, true, r.now())
	}
}
