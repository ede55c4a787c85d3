package links

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/overlay"
	"fabric/overlay/bfd"
)

// d is reached over hubs b, with two tunnels, and c, with one; or over some of them. All tunnels have BFD.
const dVTEP = "10.255.0.4"

func hubPlan(hubs ...string) overlay.Plan {
	p := testPlan()
	for i := range p.Tunnels {
		p.Tunnels[i].BFD = &overlay.BFD{IntervalMs: 100, Multiplier: 3}
	}
	d := overlay.RemoteVTEP{Gateway: "d", Addr: netip.MustParseAddr(dVTEP), Via: hubs, BFD: &overlay.BFD{IntervalMs: 100, Multiplier: 3}}
	for _, hub := range hubs {
		for _, t := range p.Tunnels {
			if t.Remote == hub {
				d.Devices = append(d.Devices, t.Device)
			}
		}
	}
	p.VTEPs = append(p.VTEPs, d)
	return p
}

const (
	dDetection = 300 * time.Millisecond
	dPatience  = dDetection + slowStart
)

// cross makes the session across the hub change.
func (f *fakeBFD) cross(to bfd.State, diag bfd.Diag, remote bfd.State, remoteDiag ...bfd.Diag) {
	f.mu.Lock()
	var change *bfd.Change
	for path, st := range f.sessions {
		if !path.Multihop || st.State == to {
			continue
		}
		t := bfd.Transition{At: f.now(), From: st.State, To: to, Diag: diag, Remote: remote, Reason: "the test says so"}
		if len(remoteDiag) > 0 {
			t.RemoteDiag = remoteDiag[0]
		}
		st.State, st.Remote, st.RemoteDiscriminator, st.Reason = to, remote, 7, t.Reason
		change = &bfd.Change{Name: st.Name, Path: path, Transition: t}
	}
	f.mu.Unlock()
	if change != nil {
		f.e.SessionChanged(*change)
	}
}

// The ways a session across a hub changes.
func (f *fakeBFD) crossUp()       { f.cross(bfd.Up, bfd.DiagNone, bfd.Up) }
func (f *fakeBFD) expired()       { f.cross(bfd.Down, bfd.DiagExpired, bfd.Down) }
func (f *fakeBFD) signaled()      { f.cross(bfd.Down, bfd.DiagNeighbourDown, bfd.Down, bfd.DiagExpired) }
func (f *fakeBFD) crossRestarts() { f.cross(bfd.Down, bfd.DiagNeighbourDown, bfd.Down, bfd.DiagNone) }

// across is a world in which all tunnels are up and no hold is on; the session across the hub is not up yet.
func across(t *testing.T, hubs ...string) (*world, *Engine, *fakeBFD) {
	t.Helper()
	w := newWorld(t)
	w.addVXLAN(1000)
	e, f := w.withBFD()
	w.take(e, hubPlan(hubs...))
	w.allUp()
	w.settle(e)
	f.up(b0, b1, c0)
	w.settle(e)
	w.age(holdFirst)
	w.settle(e)
	return w, e, f
}

// expectD says what is wrong with the route to d and with what is told of it: device "" is unreachable.
func (w *world) expectD(e *Engine, what, route, device string) {
	w.t.Helper()
	if got := w.route(dVTEP); got != route {
		w.t.Errorf("%s: route is over %q, want %q", what, got, route)
	}
	w.settle(e)
	if got := w.route(dVTEP); got != route {
		w.t.Errorf("%s: after a pass the route is over %q, want %q", what, got, route)
	}
	for _, v := range e.State().VTEPs {
		if v.Gateway == "d" {
			if v.Device != device || v.Reason == "" {
				w.t.Errorf("%s: told is %+v, want device %q", what, v, device)
			}
			return
		}
	}
	w.t.Errorf("%s: nothing is told: %+v", what, e.State().VTEPs)
}

func TestTransitOverOneHub(t *testing.T) {
	w, e, f := across(t, "b")
	i := slices.IndexFunc(f.order, func(c bfd.SessionConfig) bool { return c.Multihop })
	if i < 0 {
		t.Fatalf("no session across the hub in %+v", f.order)
	}
	if c := f.order[i]; c.Name != "a/d/transit" || c.Local.String() != "10.255.0.1" || c.Peer.String() != dVTEP || c.MinTTL != 254 || c.DetectMult != 3 {
		t.Errorf("session is %+v", c)
	}
	w.expectD(e, "not up yet", b0, "")
	f.crossUp()
	w.expectD(e, "up", b0, b0)
	if s := e.State().Sessions; s[len(s)-1].Name != "a/d/transit" || s[len(s)-1].State != "up" || !s[len(s)-1].Multihop || s[len(s)-1].Device != "" {
		t.Errorf("sessions are %+v", s)
	}
	for _, v := range e.State().VTEPs {
		if v.Gateway == "d" && !strings.HasPrefix(v.Reason, "over hub b; ") {
			t.Errorf("reason is %q", v.Reason)
		}
	}

	before := len(w.k.Applied())
	f.down(b0)
	w.expectD(e, "the first tunnel to the hub is down", b1, b1)
	if got := w.k.Applied()[before:]; len(got) != 2 {
		t.Errorf("steps for b and d are %q", got)
	}
	f.down(b1)
	w.expectD(e, "both are", "unreachable", "")
	f.up(b1)
	w.expectD(e, "the second is back", b1, b1)

	f.expired()
	w.expectD(e, "nothing is heard across the hub", b1, "")
	w.age(time.Hour)
	w.expectD(e, "for long", b1, "")
	f.crossUp()
	w.expectD(e, "up again", b1, b1)
	f.signaled()
	w.expectD(e, "not heard across the hub", b1, "")
	f.crossUp()
	f.crossRestarts()
	w.age(dDetection - time.Millisecond)
	w.expectD(e, "the other end begins anew", b1, b1)
	w.age(time.Millisecond)
	w.expectD(e, "and does not come up", b1, "")
	f.crossUp()

	// Draining a tunnel to the hub moves what goes across it, too.
	f.up(b0)
	w.age(time.Hour)
	w.settle(e)
	w.expectD(e, "the first tunnel is back", b0, b0)
	if err := e.drain(t.Context(), b0, true); err != nil {
		t.Fatal(err)
	}
	w.expectD(e, "drained", b1, b1)
	for _, s := range e.State().Tunnels {
		if s.Device == c0 && !s.Active || s.Device == b0 && s.Active {
			t.Errorf("tunnel is %+v", s)
		}
	}
}

func TestTransitOverTwoHubs(t *testing.T) {
	type step struct {
		what          string
		do            func(w *world, f *fakeBFD)
		route, device string
	}
	age := func(d time.Duration) func(*world, *fakeBFD) { return func(w *world, _ *fakeBFD) { w.age(d) } }
	session := func(do func(*fakeBFD)) func(*world, *fakeBFD) { return func(_ *world, f *fakeBFD) { do(f) } }
	up, expired, signaled := session((*fakeBFD).crossUp), session((*fakeBFD).expired), session((*fakeBFD).signaled)
	restarts := session((*fakeBFD).crossRestarts)
	tests := []struct {
		name  string
		steps []step
	}{
		{"the neighbour does not hear us", []step{
			{"up", up, b0, b0},
			{"says so", signaled, c0, c0},
			{"up over the other", up, c0, c0},
			{"an hour later", age(time.Hour), c0, c0},
			{"nor over that one", signaled, b0, b0},
			{"up over the first", up, b0, b0},
		}},
		{"nothing is heard", []step{
			{"up", up, b0, b0},
			{"silence", expired, b0, b0},
			{"just before the end of patience", age(dPatience - time.Millisecond), b0, b0},
			{"after it", age(time.Millisecond), c0, ""},
			{"up over the other", up, c0, c0},
		}},
		{"the neighbour begins anew", []step{
			{"up", up, b0, b0},
			{"begins", restarts, b0, b0},
			{"up again", up, b0, b0},
			{"begins once more", restarts, b0, b0},
			{"just before a detection time", age(dDetection - time.Millisecond), b0, b0},
			{"after it", age(time.Millisecond), c0, ""},
		}},
		{"nothing is heard for long", []step{
			{"up", up, b0, b0},
			{"silence", expired, b0, b0},
			{"over the other", age(dPatience), c0, ""},
			{"over the first again", age(dPatience), b0, ""},
			{"over the other again", age(dPatience), c0, ""},
		}},
		{"the neighbour is heard, and does not hear us", []step{
			{"up", up, b0, b0},
			{"silence", expired, b0, b0},
			{"heard", session(func(f *fakeBFD) { f.cross(bfd.Init, bfd.DiagNone, bfd.Down) }), b0, b0},
			{"just before a detection time", age(dDetection - time.Millisecond), b0, b0},
			{"after it", age(time.Millisecond), c0, ""},
			{"up over the other", up, c0, c0},
		}},
		{"the first hub's tunnels fail", []step{
			{"up", up, b0, b0},
			{"one", session(func(f *fakeBFD) { f.down(b0) }), b1, b1},
			{"both", session(func(f *fakeBFD) { f.down(b1) }), c0, c0},
			{"silence meanwhile blames nobody", expired, c0, c0},
			{"up", up, c0, c0},
			{"back", session(func(f *fakeBFD) { f.up(b1) }), c0, c0},
			{"after the hold", age(time.Minute), b1, b1},
		}},
		{"the hub that is left fails", []step{
			{"up", up, b0, b0},
			{"not heard", signaled, c0, c0},
			{"up over the other", up, c0, c0},
			{"its tunnel fails: the blamed one is better than none", session(func(f *fakeBFD) { f.down(c0) }), b0, b0},
		}},
		{"the neighbour's operator", []step{
			{"up", up, b0, b0},
			{"takes it down", session(func(f *fakeBFD) { f.cross(bfd.Down, bfd.DiagNeighbourDown, bfd.AdminDown) }), b0, b0},
			{"for long", age(time.Hour), b0, b0},
			{"gives it back", session(func(f *fakeBFD) { f.cross(bfd.Init, bfd.DiagNone, bfd.Down) }), b0, b0},
			{"up", up, b0, b0},
		}},
		{"never up over the first", []step{
			{"at first", age(0), b0, ""},
			{"after a while", age(dPatience), c0, ""},
			{"up", up, c0, c0},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, e, f := across(t, "b", "c")
			for _, s := range tt.steps {
				s.do(w, f)
				if w.route(dVTEP) != s.route {
					w.settle(e) // what time alone brings about
				}
				w.expectD(e, s.what, s.route, s.device)
			}
		})
	}
}

// The pass comes when patience ends, not some time later.
func TestTransitPatienceWakes(t *testing.T) {
	w, e, f := across(t, "b", "c")
	f.crossUp()
	w.settle(e)
	if next := e.repair.next(); !next.IsZero() {
		t.Fatalf("all is well, and there is a look at %s", next)
	}
	f.expired()
	if next := e.repair.next(); !next.Equal(w.now.Add(dPatience)) {
		t.Errorf("next look is at %s, now is %s", next, w.now)
	}
}

// A new process trusts a route that it finds, until the session could have come up.
func TestTransitAfterRestart(t *testing.T) {
	w, e, f := across(t, "b")
	f.crossUp()
	w.settle(e)
	w.kill(e)
	before := len(w.k.Applied())
	e, f = w.withBFD()
	w.settle(e)
	f.up(b0, b1, c0)
	w.expectD(e, "right after the start", b0, b0)
	if got := w.k.Applied()[before:]; len(got) != 0 {
		t.Errorf("steps are %q", got)
	}
	w.age(dPatience)
	w.expectD(e, "the session does not come up", b0, "")
	f.crossUp()
	w.expectD(e, "it does", b0, b0)
}

// A new plan changes nothing for a VTEP that it reaches as before; hubs that come or go are taken note of.
func TestTransitUnderNewPlan(t *testing.T) {
	w, e, f := across(t, "b", "c")
	f.crossUp()
	f.signaled()
	f.crossUp()
	w.expectD(e, "over the second", c0, c0)
	p := hubPlan("b", "c")
	p.NextHops = p.NextHops[:1]
	w.take(e, p)
	w.expectD(e, "another plan", c0, c0)
	w.take(e, hubPlan("c", "b"))
	f.crossUp()
	w.expectD(e, "in another order", c0, c0)
	w.take(e, hubPlan("b"))
	w.expectD(e, "without the second", b0, b0)
	w.take(e, testPlan())
	w.settle(e)
	if got := w.route(dVTEP); got != "" {
		t.Errorf("without d there is a route over %q", got)
	}
	for _, c := range f.order {
		if c.Multihop {
			t.Errorf("session %+v is left", c)
		}
	}
}

// A neighbour whose operator held the session down since before this process is no failure.
func TestTransitAdminDownFromTheStart(t *testing.T) {
	w, e, f := across(t, "b")
	f.mu.Lock()
	for path, st := range f.sessions {
		if path.Multihop {
			st.Remote, st.RemoteDiscriminator = bfd.AdminDown, 7
		}
	}
	f.mu.Unlock()
	w.settle(e)
	w.expectD(e, "held down there", b0, b0)
}

// Without BFD a hub whose tunnel is up is all there is to know.
func TestTransitWithoutBFD(t *testing.T) {
	w := newWorld(t)
	w.addVXLAN(1000)
	e := w.engine()
	w.take(e, hubPlan("b", "c"))
	w.allUp()
	w.settle(e)
	w.expectD(e, "handshakes", b0, b0)
}

// A set of next hops leaves a gateway that a hub does not reach any more, before any pass.
func TestSetLeavesTransit(t *testing.T) {
	w, e, f := across(t, "b")
	f.crossUp()
	w.settle(e)
	d := netip.MustParseAddr(dVTEP)
	legD := overlay.Leg{Gateway: overlay.VTEPGateway(d), Device: overlay.VXLANDevice(1000), VTEP: d}
	dc := set(legD, legC)
	p := hubPlan("b")
	p.Sets = []overlay.NextHopSet{dc}
	w.take(e, p)
	w.expectSet("at first", dc, legD)
	f.expired()
	w.expectSet("d is not heard", dc, legC)
	f.crossUp()
	w.settle(e)
	w.take(e, p)
	w.expectSet("d is back and wanted", dc, legD)
}

// silent makes the sessions across hubs hear nothing any more, which is no change where they are down.
func (f *fakeBFD) silent() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, st := range f.sessions {
		if path.Multihop {
			st.RemoteDiscriminator = 0
		}
	}
}

// A neighbour that took its end down by intent, as a restart does, and is not heard again, is gone in the end.
func TestTransitExcuseEnds(t *testing.T) {
	for _, tt := range []struct {
		hubs  []string
		after string
	}{{[]string{"b"}, b0}, {[]string{"b", "c"}, c0}} {
		w, e, f := across(t, tt.hubs...)
		f.crossUp()
		f.cross(bfd.Down, bfd.DiagNeighbourDown, bfd.AdminDown)
		w.age(time.Hour)
		w.expectD(e, "as long as it is heard to say so", b0, b0)
		f.silent()
		w.age(excuse - time.Millisecond)
		w.expectD(e, "not heard for long", b0, b0)
		if next := e.repair.next(); !next.Equal(w.now.Add(time.Millisecond)) {
			t.Errorf("next look is at %s, now is %s", next, w.now)
		}
		w.age(time.Millisecond)
		w.settle(e)
		w.expectD(e, "for too long", tt.after, "")
		if vs := e.State().VTEPs; !strings.Contains(vs[2].Reason, "not been heard for 3m0s") {
			t.Errorf("reason is %q", vs[2].Reason)
		}
		f.crossUp()
		w.expectD(e, "back", tt.after, tt.after)
	}
}

// The hub that did not bring packets on is not tried again because this process was restarted.
func TestTransitBlameOutlivesRestart(t *testing.T) {
	w, e, f := across(t, "b", "c")
	f.crossUp()
	f.signaled()
	f.crossUp()
	w.expectD(e, "over the second", c0, c0)
	w.kill(e)
	before := len(w.k.Applied())
	e, f = w.withBFD()
	w.settle(e)
	f.up(b0, b1, c0)
	w.expectD(e, "after a restart", c0, c0)
	f.crossUp()
	w.age(time.Hour)
	w.expectD(e, "an hour later", c0, c0)
	if got := w.k.Applied()[before:]; len(got) != 0 {
		t.Errorf("steps are %q", got)
	}
	f.signaled()
	w.expectD(e, "until it does not bring packets on either", b0, b0)
}

// directly is hubPlan in which d is reached by a tunnel of its own.
func directly() overlay.Plan {
	p := hubPlan()
	one := p.Tunnels[2]
	one.Device, one.Name, one.Remote, one.ListenPort = d0, "a/d/0", "d", 51830
	one.LinkLocal, one.RemoteLinkLocal = overlay.LinkLocal("a", "d", 0), overlay.LinkLocal("d", "a", 0)
	p.Tunnels = append(p.Tunnels, one)
	v := &p.VTEPs[len(p.VTEPs)-1]
	v.Via, v.BFD, v.Devices = nil, nil, []string{d0}
	return p
}

var d0 = overlay.TunnelDevice("a", "d", 0)

// A tunnel of its own takes the place of a hub: traffic goes over the hub until that tunnel is up, for some minutes.
func TestTransitBecomesDirect(t *testing.T) {
	// steps other than those are none.
	routes := func(w *world, since int) (steps []string) {
		for _, s := range w.k.Applied()[since:] {
			if strings.HasPrefix(s, "routes") && strings.Contains(s, dVTEP) {
				steps = append(steps, strings.Fields(s)[1])
			}
		}
		return steps
	}
	t.Run("comes up", func(t *testing.T) {
		w, e, f := across(t, "b")
		f.crossUp()
		w.expectD(e, "over the hub", b0, b0)
		before := len(w.k.Applied())
		w.take(e, directly())
		w.expectD(e, "the tunnel is not up yet", b0, b0)
		for _, v := range e.State().VTEPs {
			if v.Gateway == "d" && !strings.Contains(v.Reason, "plan before") {
				t.Errorf("reason is %q", v.Reason)
			}
		}
		w.age(formerFor - time.Second)
		w.expectD(e, "nor minutes later", b0, b0)
		f.up(d0)
		w.expectD(e, "up", d0, d0)
		if got := routes(w, before); !slices.Equal(got, []string{"replace"}) {
			t.Errorf("steps are %q", got)
		}
		f.down(d0)
		w.expectD(e, "down: the hub is over", "unreachable", "")
	})
	t.Run("does not come up", func(t *testing.T) {
		w, e, f := across(t, "b")
		f.crossUp()
		w.take(e, directly())
		w.age(formerFor - time.Second)
		w.kill(e)
		e, f = w.withBFD()
		w.settle(e)
		w.expectD(e, "after a restart", b0, b0)
		f.up(b0)
		if next := e.repair.next(); next.IsZero() || next.After(w.now.Add(formerFor)) {
			t.Errorf("next look is at %s", next)
		}
		w.age(formerFor)
		w.settle(e)
		w.expectD(e, "in the end", "unreachable", "")
	})
	t.Run("the hub is lost meanwhile", func(t *testing.T) {
		w, e, f := across(t, "b")
		f.crossUp()
		w.take(e, directly())
		f.down(b0)
		w.expectD(e, "without the hub", "unreachable", "")
		f.up(d0)
		w.expectD(e, "up", d0, d0)
	})
	t.Run("and back", func(t *testing.T) {
		w, e, f := across(t, "b")
		f.crossUp()
		w.take(e, directly())
		f.up(d0)
		w.expectD(e, "directly", d0, d0)
		w.take(e, hubPlan("b"))
		w.expectD(e, "over a hub, whose session has just begun", b0, b0)
		w.age(dPatience)
		w.expectD(e, "which does not come up", b0, "")
		f.crossUp()
		w.expectD(e, "up", b0, b0)
	})
}
