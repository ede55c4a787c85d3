package links

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

var (
	b2    = overlay.TunnelDevice("a", "b", 2)
	group = overlay.TunnelGroupID(testPlan().VTEPs[0].Addr)
)

// groupPlan has three tunnels to b: two of rank 0, one of which is direct, and a backup.
func groupPlan() overlay.Plan {
	p := directPlan()
	p.Tunnels[1].Rank = 0
	backup := bfdPlan().Tunnels[1]
	backup.Device, backup.Name, backup.Rank, backup.ListenPort = b2, overlay.TunnelName("a", "b", 2), 1, 51830
	backup.LinkLocal, backup.RemoteLinkLocal = overlay.LinkLocal("a", "b", 2), overlay.LinkLocal("b", "a", 2)
	p.Tunnels = slices.Insert(p.Tunnels, 2, backup)
	p.VTEPs[0].Devices = []string{b0, b1Direct, b2}
	return p
}

// hear gives the tunnels of the plan handshakes.
func (w *world) hear(p overlay.Plan) {
	for _, t := range p.Tunnels {
		w.handshake[t.Device] = w.wall()
	}
}

// pass lets time pass in which WireGuard goes on.
func (w *world) pass(p overlay.Plan, e *Engine, d time.Duration) {
	w.now = w.now.Add(d)
	w.hear(p)
	w.settle(e)
}

// grouped is a world in which the plan is applied and the tunnels to b are up.
func grouped(t *testing.T, change ...func(*world)) (*world, *Engine, *fakeBFD) {
	t.Helper()
	w := newWorld(t)
	for _, f := range change {
		f(w)
	}
	for key := range tunnelSysctls(b1Direct) {
		if err := w.k.SetSysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	e, f := w.withBFD()
	w.take(e, groupPlan())
	w.hear(groupPlan())
	w.settle(e)
	f.up(b0, b1Direct, b2)
	w.pass(groupPlan(), e, time.Hour)
	return w, e, f
}

// ways are the devices that the route to b is over as the kernel has it, "group" in front if it goes through one.
func (w *world) ways() string {
	w.t.Helper()
	have, err := w.k.Routes(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	r, there := have[vtepKey(testPlan().VTEPs[0].Addr)]
	switch {
	case !there:
		return "none"
	case r.NextHopID == 0:
		return nick(r.Device)
	}
	hops, err := w.k.NextHops(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	var members []string
	for id := range strings.SplitSeq(hops[r.NextHopID].Group, ",") {
		for hop, n := range hops {
			if fmt.Sprint(hop) == id {
				members = append(members, nick(n.Device))
			}
		}
	}
	slices.Sort(members)
	return "group " + strings.Join(members, " ")
}

func nick(device string) string {
	for name, d := range map[string]string{"b0": b0, "b1": b1Direct, "b2": b2} {
		if d == device {
			return name
		}
	}
	return device
}

// expect checks ways, what the state says, and that a pass agrees.
func (w *world) expect(e *Engine, what, want string) {
	w.t.Helper()
	if got := w.ways(); got != want {
		w.t.Errorf("%s: the route is over %q, want %q", what, got, want)
	}
	w.hear(groupPlan())
	w.settle(e)
	if got := w.ways(); got != want {
		w.t.Errorf("%s, after a pass: the route is over %q, want %q", what, got, want)
	}
	var told []string
	for _, d := range e.State().VTEPs[0].Devices {
		told = append(told, nick(d))
	}
	if want = strings.TrimPrefix(want, "group "); want == "none" {
		want = ""
	}
	if strings.Join(told, " ") != want {
		w.t.Errorf("%s: the state says %v, want %q", what, told, want)
	}
	for _, s := range e.State().Tunnels {
		if active := slices.Contains(told, nick(s.Device)); active != s.Active && s.Remote == "b" {
			w.t.Errorf("%s: tunnel %s is active: %v, want %v", what, nick(s.Device), s.Active, active)
		}
	}
}

// one counts what fn does to routes and next hops.
func (w *world) one(what string, want string, fn func()) {
	w.t.Helper()
	before := len(w.k.Applied())
	fn()
	var did []string
	for _, s := range w.k.Applied()[before:] {
		kind, op, _ := strings.Cut(s, ": ")
		verb, _, _ := strings.Cut(op, " ")
		did = append(did, kind+" "+verb)
	}
	if got := strings.Join(did, ", "); got != want {
		w.t.Errorf("%s: %s; want %s", what, got, want)
	}
}

// A member that fails or comes back is one change of the group; the route is changed only from rank to rank.
func TestTunnelsOfEqualRank(t *testing.T) {
	w, e, f := grouped(t)
	w.expect(e, "all up", "group b0 b1")
	if r := e.State().VTEPs[0].Reason; !strings.Contains(r, "shared by 2 tunnels of rank 0") {
		t.Errorf("reason is %q", r)
	}
	for _, key := range []string{"net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"} {
		have, err := w.k.Sysctls(func() []string { return []string{key} }).Observe(context.Background())
		if err != nil || have[key] != "1" {
			t.Errorf("%s is %v, error %v", key, have, err)
		}
	}
	w.one("a member fails", "nexthops replace", func() { f.down(b0) })
	w.expect(e, "one is down", "group b1")
	w.one("the last one fails", "routes replace", func() { f.down(b1Direct) })
	w.expect(e, "both are down", "b2")
	w.one("the backup fails", "routes delete", func() { f.down(b2) })
	w.expect(e, "all are down", "none")
	f.up(b1Direct)
	w.expect(e, "one is back, and there is nothing else", "group b1")
	f.up(b0, b2)
	w.expect(e, "held", "group b1")
	w.one("the hold is over", "nexthops replace", func() { w.pass(groupPlan(), e, holdMost) })
	w.expect(e, "all are back", "group b0 b1")

	if err := e.drain(context.Background(), b1Direct, true); err != nil {
		t.Fatal(err)
	}
	w.expect(e, "one is drained", "group b0")
	f.turn(b0, bfd.Down, bfd.AdminDown)
	w.expect(e, "the neighbour drains the other", "b2")
	f.down(b2)
	w.expect(e, "nothing but drained ones, of which none has traffic", "group b0 b1")
	f.up(b0, b2)
	if err := e.drain(context.Background(), b1Direct, false); err != nil {
		t.Fatal(err)
	}
	f.up(b1Direct)
	w.pass(groupPlan(), e, holdMost)
	w.expect(e, "given back", "group b0 b1")
}

// What a process before this one left is taken over as it is, one session at a time.
func TestGroupOutlivesTheProcess(t *testing.T) {
	w, e, _ := grouped(t)
	before := w.picture()
	w.kill(e)
	e, f := w.withBFD()
	w.settle(e)
	if after := w.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	f.up(b0, b1Direct, b2)
	w.expect(e, "sessions are up again", "group b0 b1")
	if after := w.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// By hand, by the kernel, by a link that goes: a pass puts it right, and a repair needs none of it.
func TestGroupIsMended(t *testing.T) {
	w, e, f := grouped(t)
	hops := w.k.NextHops(kernel.ProtocolLinks)
	remove := func(id uint32) {
		t.Helper()
		if err := hops.Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Delete, Key: id}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	remove(group)
	w.settle(e)
	w.expect(e, "the group was removed", "group b0 b1")
	remove(overlay.TunnelNextHopID(b0))
	w.settle(e)
	w.expect(e, "a member was removed", "group b0 b1")
	if err := w.k.DeleteDevice(b1Direct); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.expect(e, "a device was removed", "group b0 b1")
	// The group cannot be written when it matters: the route is.
	w.k.FailNext("apply nexthops", errors.New("no memory"))
	w.one("a member fails", "routes replace", func() { f.down(b0) })
	if got := w.ways(); got != "b1" {
		t.Errorf("the route is over %q, want b1", got)
	}
	w.settle(e)
	w.expect(e, "the group can be written again", "group b1")
}

// Somebody else's object on the group's id stays, and traffic goes over one tunnel.
func TestForeignGroup(t *testing.T) {
	theirs := kernel.NextHop{Blackhole: true}
	w, e, f := grouped(t, func(w *world) {
		err := w.k.NextHops(4).Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Create, Key: group, New: theirs}})[0]
		if err != nil {
			t.Fatal(err)
		}
	})
	w.expect(e, "all up", "b0")
	if r := e.State().VTEPs[0].Reason; !strings.Contains(r, "alone, because the group could not be written") {
		t.Errorf("reason is %q", r)
	}
	if !slices.ContainsFunc(e.State().Problems, func(o Object) bool { return o.Kind == kindNextHop && o.Status == Foreign }) {
		t.Errorf("problems are %+v", e.State().Problems)
	}
	f.down(b0)
	w.expect(e, "one is down", "b1")
	have, err := w.k.NextHops(4).Observe(context.Background())
	if err != nil || len(have) != 1 {
		t.Errorf("somebody else's is %v, error %v", have, err)
	}
	if err := w.k.NextHops(4).Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Delete, Key: group}})[0]; err != nil {
		t.Fatal(err)
	}
	f.up(b0)
	w.pass(groupPlan(), e, holdMost)
	w.expect(e, "it is gone", "group b0 b1")
}

// Where the kernel has no next-hop objects, the first tunnel of the rank that is up carries all.
func TestEqualRanksWithoutNextHops(t *testing.T) {
	w, e, f := grouped(t, func(w *world) { w.k.Without(func(f *kernel.Features) { f.NextHops = false }) })
	w.expect(e, "all up", "b0")
	if r := e.State().VTEPs[0].Reason; !strings.Contains(r, "alone, because this kernel has no next-hop objects") {
		t.Errorf("reason is %q", r)
	}
	w.one("it fails", "routes replace", func() { f.down(b0) })
	w.expect(e, "the first is down", "b1")
	f.down(b1Direct)
	w.expect(e, "both are down", "b2")
}

// Ranks change under traffic: from shared to one after the other and back. Nothing of the group is left when nobody needs it.
func TestRanksChange(t *testing.T) {
	w, e, _ := grouped(t)
	apart := groupPlan()
	apart.Tunnels[1].Rank, apart.Tunnels[2].Rank = 1, 2
	w.take(e, apart)
	w.expect(e, "ranks apart", "b0")
	if left := observe(t, w.k.NextHops(kernel.ProtocolLinks)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	w.take(e, groupPlan())
	w.expect(e, "shared again", "group b0 b1")
	all := groupPlan()
	all.Tunnels[2].Rank = 0
	w.take(e, all)
	w.expect(e, "three of one rank", "group b0 b1 b2")
	w.take(e, overlay.Plan{Version: overlay.PlanVersion, Fabric: "test", Gateway: "a", VTEP: all.VTEP})
	if left := w.picture(); strings.Contains(left, "next hop") || strings.Contains(left, "10.255.0.2") {
		t.Errorf("left:\n%s", left)
	}
}

// Every step may fail once: the passes after it come to the same end.
func TestGroupWithEveryFailure(t *testing.T) {
	for n := 1; ; n++ {
		w, e, f := grouped(t)
		w.k.FailNth(n, errors.New("the test says no"))
		f.down(b0)
		w.settle(e)
		f.up(b0)
		w.pass(groupPlan(), e, holdMost)
		failed := w.k.Failed()
		w.settle(e)
		w.settle(e)
		w.expect(e, fmt.Sprintf("step %d failed", n), "group b0 b1")
		if w.kill(e); !failed || t.Failed() {
			return
		}
	}
}
