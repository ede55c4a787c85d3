package links

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

// running is a world in which the plan is applied and all tunnels are up.
func running(t *testing.T) (*world, *Engine) {
	t.Helper()
	w := newWorld(t)
	w.addVXLAN(1000)
	e := w.engine()
	w.take(e, testPlan())
	w.allUp()
	w.settle(e)
	if got := w.route("10.255.0.2"); got != b0 {
		t.Fatalf("route to b is %q\n%s", got, w.picture())
	}
	return w, e
}

func TestNothingIsTouchedWithoutPlan(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	before := w.k.Calls()
	w.settle(e)
	if calls := w.k.Calls() - before; calls != 0 {
		t.Errorf("%d calls", calls)
	}
}

func TestPlanIsApplied(t *testing.T) {
	w, e := running(t)
	want := map[string]string{
		"link " + b0:      "Kind:tun Alias:fabric:a/b/0 MTU:1420 Up:true",
		"wireguard " + b0: "ListenPort:51820 PrivateKeyFile:/keys/a",
		"wireguard " + c0: "Endpoint:invalid AddrPort Keepalive:0",
		"address " + b0:   overlay.LinkLocal("a", "b", 0).String() + "/64",
	}
	picture := w.picture()
	for object, text := range want {
		found := false
		for line := range strings.Lines(picture) {
			kind, name, _ := strings.Cut(object, " ")
			found = found || strings.HasPrefix(line, kind) && strings.Contains(line, name) && strings.Contains(line, text)
		}
		if !found {
			t.Errorf("no %s with %q in\n%s", object, text, picture)
		}
	}
	s := e.State()
	if len(s.Problems) > 0 || s.Gateway != "a" || s.Digest != testPlan().Digest() {
		t.Errorf("state is %+v", s)
	}
	for _, tunnel := range s.Tunnels {
		if tunnel.State != Up || tunnel.Implementation != "userspace" || tunnel.Active != (tunnel.Device != b1) {
			t.Errorf("tunnel is %+v", tunnel)
		}
	}
	for _, n := range s.NextHops {
		if !n.Ready {
			t.Errorf("next hop is %+v", n)
		}
	}
	for key, value := range tunnelSysctls(b0) {
		if got := observe(t, w.k.Sysctls(func() []string { return []string{key} }))[key]; got != value {
			t.Errorf("%s is %q", key, got)
		}
	}
}

// Backstops are there before the first thing that could carry inner packets.
func TestBackstopsComeFirst(t *testing.T) {
	w := newWorld(t)
	w.addVXLAN(1000)
	before := len(w.k.Applied())
	w.take(w.engine(), testPlan())
	for i, step := range w.k.Applied()[before:] {
		if isBackstop := strings.HasPrefix(step, "routes: create") && strings.Contains(step, "4278198272"); isBackstop != (i < 2) {
			t.Errorf("step %d is %s", i, step)
		}
	}
}

func TestFailover(t *testing.T) {
	w, e := running(t)
	steps := []struct {
		what string
		do   func()
		want string
		// applied is how many steps on the kernel the change may take.
		applied int
	}{
		{"nothing", func() {}, b0, 0},
		{"first tunnel's handshake is too old", func() { w.age(RejectAfter, b0) }, b1, 1},
		{"it comes back", func() { w.handshake[b0] = w.now }, b0, 1},
		{"both are too old", func() { delete(w.handshake, b0); w.age(time.Hour, b0, b1) }, "unreachable", 1},
		{"the second comes back", func() { w.handshake[b1] = w.now }, b1, 1},
	}
	for _, step := range steps {
		step.do()
		before := len(w.k.Applied())
		w.settle(e)
		if got := w.route("10.255.0.2"); got != step.want {
			t.Errorf("%s: route is %q, want %q", step.what, got, step.want)
		}
		if applied := w.k.Applied()[before:]; len(applied) != step.applied {
			t.Errorf("%s: steps are %q", step.what, applied)
		}
		if got := w.route("10.255.0.3"); got != c0 {
			t.Errorf("%s: route to c is %q", step.what, got)
		}
	}
	s := e.State()
	if s.VTEPs[0].Device != b1 || s.Tunnels[0].State != Down || s.Tunnels[0].Reason == "" || !s.Tunnels[1].Active {
		t.Errorf("state is %+v", s)
	}
}

// A fabric-links that starts on a host as its predecessor left it changes nothing.
func TestAdoption(t *testing.T) {
	w, e := running(t)
	before, picture := len(w.k.Applied()), w.picture()
	w.kill(e)
	again := w.engine()
	w.settle(again)
	if steps := w.k.Applied()[before:]; len(steps) > 0 || w.starts != 3 {
		t.Errorf("steps %q, %d starts", steps, w.starts)
	}
	if w.picture() != picture {
		t.Error("the host has changed")
	}
	if s := again.State(); s.VTEPs[0].Device != b0 || len(s.Problems) > 0 {
		t.Errorf("state is %+v", s)
	}
}

// The kernel learns WireGuard while processes carry the tunnels: traffic goes on, new tunnels are the kernel's.
func TestKernelLearnsWireGuard(t *testing.T) {
	w, e := running(t)
	w.kill(e)
	w.k.Without(func(f *kernel.Features) { f.WireGuard = true })
	e = w.engine()
	w.settle(e)
	if tunnel := e.State().Tunnels[0]; tunnel.Implementation != "userspace" || w.starts != 3 {
		t.Errorf("tunnel is %+v, %d starts", tunnel, w.starts)
	}
	if err := w.Kill(b0); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	if tunnel := e.State().Tunnels[0]; tunnel.Implementation != "kernel" || w.starts != 3 {
		t.Errorf("tunnel is %+v, %d starts", tunnel, w.starts)
	}
	have, err := w.k.Links(kernel.KindWireGuard).Observe(context.Background())
	if err != nil || !have[b0].Up {
		t.Errorf("links are %+v, error %v", have, err)
	}
}

func TestRepair(t *testing.T) {
	tests := []struct {
		name string
		harm func(w *world) error
	}{
		{"tunnel process killed", func(w *world) error { return w.Kill(b0) }},
		{"tunnel process hung", func(w *world) error { w.hung[b0] = true; return nil }},
		{"device down", func(w *world) error { return w.k.SetUp(b0, false) }},
		{"VXLAN device down and up", func(w *world) error {
			return errors.Join(w.k.SetUp("fxv1000", false), w.k.SetUp("fxv1000", true))
		}},
		{"sysctl", func(w *world) error { return w.k.SetSysctl("net.ipv4.nexthop_compat_mode", "1") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, e := running(t)
			want := w.picture()
			w.now = w.now.Add(time.Minute)
			w.allUp()
			w.settle(e)
			if err := tt.harm(w); err != nil {
				t.Fatal(err)
			}
			w.settle(e)
			w.allUp()
			w.settle(e)
			if got := w.picture(); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if s := e.State(); len(s.Problems) > 0 {
				t.Errorf("problems are %+v", s.Problems)
			}
			if got := observe(t, w.k.Sysctls(func() []string { return []string{"net.ipv4.nexthop_compat_mode"} })); got["net.ipv4.nexthop_compat_mode"] != "0" {
				t.Errorf("sysctls are %v", got)
			}
		})
	}
}

// Whatever call fails, once, at whatever moment: nothing is lost on the way, and the end is the same.
func TestEveryErrorPath(t *testing.T) {
	good, e := running(t)
	want := good.picture()
	good.kill(e)
	failure := errors.New("the kernel says no")
	for n := 1; ; n++ {
		w := newWorld(t)
		w.addVXLAN(1000)
		e := w.engine()
		w.k.FailNth(n, failure)
		if a := e.take(context.Background(), testPlan()); a.err != nil {
			t.Fatal(a.err)
		}
		w.settle(e)
		w.allUp()
		w.settle(e)
		failed := w.k.Failed()
		w.now = w.now.Add(time.Minute)
		w.allUp()
		for range 3 {
			w.settle(e)
		}
		if got := w.picture(); got != want {
			t.Fatalf("call %d fails: got\n%s\nwant\n%s", n, got, want)
		}
		for _, step := range w.k.Applied() {
			if strings.Contains(step, ": delete") {
				t.Errorf("call %d fails: %s", n, step)
			}
		}
		if p := e.State().Problems; len(p) > 0 {
			t.Errorf("call %d fails: problems %+v", n, p)
		}
		w.kill(e)
		if !failed {
			if n < 30 {
				t.Errorf("only %d calls were tried", n)
			}
			return
		}
	}
}

// The same for a fabric-links that starts on a host where traffic flows: whatever fails, no route or device goes, not for a moment.
func TestEveryErrorPathOfAdoption(t *testing.T) {
	w, e := running(t)
	picture := w.picture()
	before := len(w.k.Applied())
	for n := 1; ; n++ {
		w.kill(e)
		e = w.engine()
		w.k.FailNth(n, errors.New("the kernel says no"))
		for range 2 {
			e.pass(context.Background())
			// A VTEP whose route is left as it is is not told as unreachable: fabric-site would drop what it carries.
			for _, v := range e.State().VTEPs {
				if want := map[string]string{"b": b0, "c": c0}[v.Gateway]; v.Device != want {
					t.Errorf("call %d fails: told is %+v, the route is over %s", n, v, want)
				}
			}
		}
		failed := w.k.Failed()
		w.k.FailNth(0, nil)
		w.settle(e)
		if steps := w.k.Applied()[before:]; len(steps) > 0 || w.picture() != picture {
			t.Fatalf("call %d fails: steps %q\n%s", n, steps, w.picture())
		}
		if !failed {
			if n < 10 {
				t.Errorf("only %d calls were tried", n)
			}
			return
		}
	}
}

// An unread world is not an empty one, and not one where all is well.
func TestFailedReadIsReported(t *testing.T) {
	for _, edge := range []string{"links", "addresses", "routes", "wireguards", "nexthops", "sysctls"} {
		t.Run(edge, func(t *testing.T) {
			w, e := running(t)
			before := len(w.k.Applied())
			w.k.FailNext("observe "+edge, errors.New("interrupted dump"))
			e.pass(context.Background())
			if steps := w.k.Applied()[before:]; len(steps) > 0 {
				t.Errorf("steps are %q", steps)
			}
			told := false
			for _, o := range e.State().Problems {
				told = told || o.Status == Failed && strings.Contains(o.Message, "interrupted dump")
			}
			// Routes are read twice in a pass; the second reading is the one that counts.
			if !told && edge != "routes" {
				t.Errorf("problems are %+v", e.State().Problems)
			}
			w.settle(e)
			if p := e.State().Problems; len(p) > 0 || w.route("10.255.0.2") != b0 {
				t.Errorf("afterwards: problems %+v, route %q", p, w.route("10.255.0.2"))
			}
		})
	}
}

func TestForeignRouteAndNextHop(t *testing.T) {
	w := newWorld(t)
	w.addVXLAN(1000)
	p := testPlan()
	routes, hops := w.k.Routes(4), w.k.NextHops(4)
	key := kernel.RouteKey{Table: kernel.MainTable, Prefix: host(p.VTEPs[0].Addr), Metric: kernel.BackstopMetric}
	errs := append(routes.Apply(context.Background(), []reconcile.Op[kernel.RouteKey, kernel.Route]{{Kind: reconcile.Create, Key: key, New: kernel.Route{Type: kernel.Blackhole}}}),
		hops.Apply(context.Background(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Create, Key: p.NextHops[0].ID, New: kernel.NextHop{Device: "lo", Protocol: 4}}})...)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if err := w.k.AddDevice(c0); err != nil {
		t.Fatal(err)
	}
	before := observe(t, routes)
	e := w.engine()
	w.take(e, p)
	got := map[string]bool{}
	for _, o := range e.State().Problems {
		if o.Status == Foreign {
			got[o.Kind] = true
		}
	}
	if want := map[string]bool{kindRoute: true, kindNextHop: true, kindLink: true}; !reflect.DeepEqual(got, want) {
		t.Errorf("problems are %+v", e.State().Problems)
	}
	if after := observe(t, routes); !reflect.DeepEqual(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	if w.alive[c0] {
		t.Error("a tunnel process was started for a device that is not ours")
	}
}

func TestShrinkingPlan(t *testing.T) {
	w, e := running(t)
	p := testPlan()
	// c goes, and b's second tunnel.
	p.Tunnels, p.VTEPs, p.NextHops = p.Tunnels[:1], p.VTEPs[:1], p.NextHops[:1]
	p.VTEPs[0].Devices = p.VTEPs[0].Devices[:1]
	before := len(w.k.Applied())
	w.take(e, p)
	picture := w.picture()
	for _, gone := range []string{b1, c0, "10.255.0.3"} {
		if strings.Contains(picture, gone) {
			t.Errorf("%s is left in\n%s", gone, picture)
		}
	}
	if w.alive[b1] || w.alive[c0] || !w.alive[b0] {
		t.Errorf("processes are %v", w.alive)
	}
	// The route goes before the address, and both before the device.
	steps := strings.Join(w.k.Applied()[before:], "\n")
	if hop, route, address := strings.Index(steps, "nexthops: delete"), strings.Index(steps, "routes: delete"), strings.Index(steps, "addresses: delete"); hop < 0 || hop > route || route > address {
		t.Errorf("steps are\n%s", steps)
	}
	if got := w.route("10.255.0.2"); got != b0 {
		t.Errorf("route to b is %q", got)
	}
}

func TestPlanOfAnotherGatewayAndFullDisk(t *testing.T) {
	w, e := running(t)
	picture := w.picture()
	other := testPlan()
	other.Gateway = "z"
	if a := e.take(context.Background(), other); !errors.Is(a.err, errOtherGateway) {
		t.Errorf("error is %v", a.err)
	}
	w.removeStateDir()
	less := testPlan()
	less.NextHops = nil
	if a := e.take(context.Background(), less); a.err == nil || !strings.Contains(a.err.Error(), "keep plan") {
		t.Errorf("error is %v", a.err)
	}
	w.settle(e)
	if w.picture() != picture || e.State().Digest != testPlan().Digest() {
		t.Error("a plan that cannot be kept was applied")
	}
}

// Gateways that are added or renamed move ports between tunnels; none may meet the port another still has.
func TestPortsChangeHands(t *testing.T) {
	w, e := running(t)
	p := testPlan()
	p.Tunnels[0].ListenPort, p.Tunnels[1].ListenPort = p.Tunnels[1].ListenPort, p.Tunnels[0].ListenPort
	before := len(w.k.Applied())
	w.take(e, p)
	if steps := w.k.Applied()[before:]; len(steps) != 3 {
		t.Errorf("want one aside and two in place, steps are %q", steps)
	}
	have, err := w.k.WireGuards().Observe(context.Background())
	if err != nil || have[b0].ListenPort != 51822 || have[b1].ListenPort != 51820 {
		t.Errorf("ports are %d and %d, error %v", have[b0].ListenPort, have[b1].ListenPort, err)
	}
}

func TestRoaming(t *testing.T) {
	planned, moved := netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParseAddrPort("198.51.100.7:1234")
	w, e := running(t)
	configured := func() netip.AddrPort {
		have, err := w.k.WireGuards().Observe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return have[b0].Peer.Endpoint
	}
	if got := configured(); got != planned {
		t.Fatalf("endpoint is %s", got)
	}
	// roam is what WireGuard does at an authenticated packet from elsewhere.
	roam := func(to netip.AddrPort) {
		have, _ := w.k.WireGuards().Observe(context.Background())
		c := have[b0]
		c.Peer.Endpoint = to
		if err := w.k.WireGuards().Apply(context.Background(), []reconcile.Op[string, kernel.WireGuard]{{Kind: reconcile.Replace, Key: b0, New: c}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	roam(moved)
	w.settle(e)
	if got := configured(); got != moved {
		t.Errorf("a living tunnel was moved back to %s", got)
	}
	p := testPlan()
	p.Tunnels[0].Endpoint = netip.MustParseAddrPort("203.0.113.9:51820")
	w.take(e, p)
	if got := configured(); got != p.Tunnels[0].Endpoint {
		t.Errorf("the plan's new endpoint is not applied: %s", got)
	}
	roam(moved)
	w.age(RejectAfter, b0)
	w.settle(e)
	if got := configured(); got != p.Tunnels[0].Endpoint {
		t.Errorf("a dead tunnel still dials %s", got)
	}
}

// The passive side's tunnel process dies, or its kernel device is deleted: it calls back where it last heard the other end, until there is a handshake.
func TestPassiveSideCallsBack(t *testing.T) {
	t.Run("userspace", func(t *testing.T) {
		w, e := running(t)
		callsBack(t, w, e, func() error { return w.Kill(c0) })
	})
	t.Run("kernel", func(t *testing.T) {
		w := newWorld(t)
		w.k.Without(func(f *kernel.Features) { f.WireGuard = true })
		e := w.engine()
		w.take(e, testPlan())
		w.allUp()
		callsBack(t, w, e, func() error {
			delete(w.handshake, c0)
			return w.k.DeleteDevice(c0)
		})
	})
}

// After a boot, nothing but what is on disk tells the passive side where the other end was.
func TestPassiveSideCallsBackAfterBoot(t *testing.T) {
	w, e := running(t)
	from := netip.MustParseAddrPort("198.51.100.7:1234")
	w.roamed[c0] = from
	w.settle(e)
	reborn := func() (*Engine, kernel.WireGuardPeer) {
		t.Helper()
		w.kill(e)
		if err := w.Kill(c0); err != nil {
			t.Fatal(err)
		}
		delete(w.roamed, c0)
		e := w.engine()
		w.now = w.now.Add(time.Minute)
		w.settle(e)
		w.settle(e)
		have, err := w.k.WireGuards().Observe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return e, have[c0].Peer
	}
	var got kernel.WireGuardPeer
	if e, got = reborn(); got.Endpoint != from || got.Keepalive == 0 {
		t.Errorf("after a boot: %+v", got)
	}
	if e, got = reborn(); got.Endpoint != from || got.Keepalive == 0 {
		t.Errorf("after another: %+v", got)
	}

	// A tunnel that the plan has no more, or that this end dials, is forgotten.
	p := testPlan()
	p.Tunnels = slices.DeleteFunc(p.Tunnels, func(t overlay.Tunnel) bool { return t.Device == c0 })
	p.VTEPs[1].Devices, p.VTEPs[1].Problem = nil, "no tunnel"
	w.take(e, p)
	if kept, err := e.cfg.Store.LoadEndpoints(); err != nil || len(kept) != 0 {
		t.Errorf("kept are %v, %v", kept, err)
	}
}

// What is kept cannot be read: all goes on without.
func TestTornEndpoints(t *testing.T) {
	w, e := running(t)
	w.kill(e)
	if err := os.WriteFile(filepath.Join(w.stateDir, endpointsFile), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	e = w.engine()
	w.settle(e)
	if len(e.State().Tunnels) != 3 {
		t.Errorf("%+v", e.State().Tunnels)
	}
}

func callsBack(t *testing.T, w *world, e *Engine, lose func() error) {
	t.Helper()
	peer := func() kernel.WireGuardPeer {
		have, err := w.k.WireGuards().Observe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return have[c0].Peer
	}
	from := netip.MustParseAddrPort("198.51.100.7:1234")
	w.roamed[c0] = from
	w.settle(e)
	w.now = w.now.Add(10 * time.Second)
	w.settle(e)
	if err := lose(); err != nil {
		t.Fatal(err)
	}
	delete(w.roamed, c0)
	w.settle(e)
	if got := peer(); got.Endpoint != from || got.Keepalive == 0 {
		t.Errorf("after the restart: %+v", got)
	}
	w.roamed[c0], w.handshake[c0] = from, w.now
	w.settle(e)
	if got := peer(); got.Keepalive != 0 {
		t.Errorf("after the handshake: %+v", got)
	}
	// Nobody answers: it does not call for ever.
	if err := lose(); err != nil {
		t.Fatal(err)
	}
	delete(w.roamed, c0)
	w.now = w.now.Add(10 * time.Second)
	w.settle(e)
	w.now = w.now.Add(2 * time.Minute)
	w.settle(e)
	if got := peer(); got.Keepalive != 0 {
		t.Errorf("two minutes after the restart: %+v", got)
	}
}

func TestDyingTunnelProcessIsSpaced(t *testing.T) {
	w := newWorld(t)
	w.broken[b0] = true
	e := w.engine()
	w.take(e, testPlan())
	starts := func() int { return w.starts - 2 } // those of the two others
	for range 600 {
		w.now = w.now.Add(100 * time.Millisecond)
		w.settle(e)
	}
	// At 0, 1, 3, 7, 15, 31 s and not again before 61 s.
	if got := starts(); got != 6 {
		t.Errorf("%d starts within a minute", got)
	}
	var told string
	for _, o := range e.State().Problems {
		if o.Kind == kindProcess {
			told = o.Message
		}
	}
	if !strings.Contains(told, "died soon after its start") {
		t.Errorf("the problem is %q", told)
	}
	if got := w.route("10.255.0.2"); got != "unreachable" {
		t.Errorf("route is %q", got)
	}
	delete(w.broken, b0)
	w.now = w.now.Add(time.Minute)
	w.settle(e)
	if !w.alive[b0] {
		t.Error("not started again")
	}
}

// Run as a whole: the kept plan, events, Apply from outside, and the end.
func TestRun(t *testing.T) {
	w, e := running(t)
	w.kill(e)
	e = w.engine()
	e.plan = nil // Run loads it.
	e.cfg.Now = time.Now
	ready := make(chan struct{})
	e.cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	<-ready
	changed, end := e.Subscribe()
	defer end()
	if s := e.State(); s.Gateway != "a" {
		t.Errorf("state is %+v", s)
	}
	less := testPlan()
	less.NextHops = less.NextHops[:1]
	objects, err := e.Apply(ctx, less)
	if err != nil || len(objects) == 0 {
		t.Errorf("objects %v, error %v", objects, err)
	}
	<-changed
	if _, err := e.Apply(ctx, overlay.Plan{Version: 99}); err == nil {
		t.Error("a plan of version 99 was taken")
	}
	w.k.LoseEvents()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := e.Apply(ctx, less); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if got := w.picture(); !strings.Contains(got, b0) {
		t.Errorf("torn down at the end:\n%s", got)
	}
}

func TestCleanupOnTheModel(t *testing.T) {
	w, e := running(t)
	w.kill(e)
	store, err := OpenStore(w.stateDir, w.runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var said []string
	if err := Cleanup(context.Background(), w.k, w, nil, store, w.runDir, func(s string) { said = append(said, s) }); err != nil {
		t.Fatal(err)
	}
	// The VXLAN device is fabric-site's.
	if got := w.picture(); strings.Count(got, "\n") != 0 || !strings.Contains(got, "fxv1000") {
		t.Errorf("left:\n%s", got)
	}
	if p, err := store.Load(); p != nil || err != nil || len(said) == 0 {
		t.Errorf("plan %v, error %v, said %v", p, err, said)
	}
}

// A device that its process makes while a pass is under way waits for the next one to be marked; nobody is told of a stranger.
func TestNewDeviceIsNoStranger(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	plan := testPlan()
	e.plan = &plan
	for _, o := range e.pass(context.Background()).objectList() {
		if o.Status == Foreign || o.Status == Failed {
			t.Errorf("%+v", o)
		}
	}
	if w.starts != 3 {
		t.Errorf("%d processes were started, want one for each tunnel", w.starts)
	}
}
