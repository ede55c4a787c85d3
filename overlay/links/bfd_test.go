package links

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fabric/overlay/bfd"
)

// A session that goes down moves the route before any pass, by one step, and passes leave it so.
func TestBFDRepairs(t *testing.T) {
	w, e, f := runningBFD(t)
	switched := e.repair.switches()
	steps := []struct {
		what    string
		do      func()
		want    string
		applied int
	}{
		{"the first goes down", func() { f.down(b0) }, b1, 1},
		{"both are down", func() { f.down(b1) }, "unreachable", 1},
		{"the second comes up", func() { f.up(b1) }, b1, 1},
		{"the first comes up and is held", func() { f.up(b0) }, b1, 0},
	}
	for _, step := range steps {
		before := len(w.k.Applied())
		step.do()
		w.expectRoute(step.what, step.want)
		w.settle(e)
		w.expectRoute(step.what+", after a pass", step.want)
		if got := w.k.Applied()[before:]; len(got) != step.applied {
			t.Errorf("%s: steps are %q", step.what, got)
		}
		if v := e.State().VTEPs[0]; step.want != "unreachable" && v.Device != step.want || step.want == "unreachable" && (v.Device != "" || !strings.Contains(v.Reason, "the test says so")) {
			t.Errorf("%s: told is %+v", step.what, v)
		}
	}
	if s := w.tunnel(e, b0); s.State != Up || !strings.Contains(s.Reason, "held until") || s.Active {
		t.Errorf("the held tunnel is %+v", s)
	}
	if next := e.repair.next(); next.IsZero() || next.Sub(w.now) > holdFirst || e.pause() > holdFirst {
		t.Errorf("next look is at %s, now is %s", next, w.now)
	}
	before := len(w.k.Applied())
	w.age(holdFirst)
	w.settle(e)
	w.expectRoute("after the hold", b0)
	if got := w.k.Applied()[before:]; len(got) != 1 || !strings.Contains(got[0], "replace") {
		t.Errorf("steps back are %q", got)
	}
	if got := e.repair.switches() - switched; got != 3 {
		t.Errorf("%d switches", got)
	}
}

func TestHoldDoubles(t *testing.T) {
	var h hold
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, want := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, 64 * time.Second, 128 * time.Second, 256 * time.Second, holdMost, holdMost} {
		h.up(now)
		if got := h.until.Sub(now); got != want {
			t.Errorf("hold %d is %s, want %s", i, got, want)
		}
		now = now.Add(h.wait + holdForgiven - time.Second)
		h.down(now)
	}
	h.up(now)
	now = now.Add(holdMost + holdForgiven)
	h.down(now)
	if h.up(now); h.wait != holdFirst || h.flaps != 0 {
		t.Errorf("after a quiet time the hold is %s, %d flaps", h.wait, h.flaps)
	}
}

// A tunnel that flaps gets traffic back ever later; if it is the only one it is used at once.
func TestFlappingTunnel(t *testing.T) {
	w, e, f := runningBFD(t)
	w.age(time.Hour)
	f.down(b0)
	for _, wait := range []time.Duration{holdFirst, 2 * holdFirst, 4 * holdFirst} {
		f.up(b0)
		w.age(wait - time.Millisecond)
		w.settle(e)
		w.expectRoute("just before "+wait.String(), b1)
		w.age(time.Millisecond)
		w.settle(e)
		w.expectRoute("after "+wait.String(), b0)
		f.down(b0)
		w.expectRoute("down again", b1)
	}
	f.up(b0)
	w.settle(e)
	if s := w.tunnel(e, b0); !strings.Contains(s.Reason, "flaps") {
		t.Errorf("the flapping tunnel is %+v", s)
	}
	f.down(b1)
	w.expectRoute("held, and the only one", b0)
}

func TestDrain(t *testing.T) {
	w, e, f := runningBFD(t)
	ctx := context.Background()
	before := len(w.k.Applied())
	if err := e.drain(ctx, b0, true); err != nil {
		t.Fatal(err)
	}
	w.expectRoute("drained", b1)
	if got := w.k.Applied()[before:]; len(got) != 1 || !strings.Contains(got[0], "replace") {
		t.Errorf("steps are %q", got)
	}
	if s := w.tunnel(e, b0); !s.Drained || s.State != Down || s.Reason != "drained here" || e.State().Sessions[0].State != "admin-down" {
		t.Errorf("drained tunnel is %+v, sessions %+v", s, e.State().Sessions)
	}
	if fi, err := os.Stat(filepath.Join(w.stateDir, drainedFile)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("file is %v, error %v", fi, err)
	}
	f.down(b1)
	w.expectRoute("drained is the only one", b0)
	w.settle(e)
	if v := e.State().VTEPs[0]; v.Device != b0 || !strings.Contains(v.Reason, "no other tunnel is up") {
		t.Errorf("told is %+v", v)
	}
	f.up(b1)
	w.expectRoute("the other is back", b1)

	// It survives a restart.
	w.kill(e)
	e, f = w.withBFD()
	e.loadDrained()
	w.settle(e)
	f.up(b1)
	w.settle(e)
	if s := w.tunnel(e, b0); !s.Drained || e.State().Sessions[0].State != "admin-down" {
		t.Errorf("after a restart: %+v", s)
	}
	if err := e.drain(ctx, b0, false); err != nil {
		t.Fatal(err)
	}
	w.expectRoute("given back, not up yet", b1)
	f.up(b0)
	w.age(holdFirst)
	w.settle(e)
	w.expectRoute("given back", b0)
	if s := w.tunnel(e, b0); s.Drained || s.Reason != "BFD" {
		t.Errorf("tunnel given back is %+v", s)
	}

	// The only tunnel that is up stays in use when it is drained and when it is given back.
	f.down(b1)
	for _, drained := range []bool{true, false} {
		if err := e.drain(ctx, b0, drained); err != nil {
			t.Fatal(err)
		}
		w.expectRoute("the only one", b0)
	}
	f.up(b0)
	// Of a tunnel without BFD.
	if err := e.drain(ctx, c0, true); err != nil || w.route("10.255.0.3") != c0 {
		t.Errorf("error %v, route to c %q", err, w.route("10.255.0.3"))
	}

	if err := e.drain(ctx, "fxwnone", true); !errors.Is(err, errNoTunnel) || !strings.Contains(err.Error(), "fxwnone") {
		t.Errorf("unknown device: %v", err)
	}
	w.removeStateDir()
	if err := e.drain(ctx, b0, true); err == nil || e.drained[b0] {
		t.Errorf("a drain that cannot be kept: %v", err)
	}
}

// A drain goes with its tunnel.
func TestDrainIsForgottenWithTheTunnel(t *testing.T) {
	w, e, _ := runningBFD(t)
	if err := e.drain(context.Background(), b1, true); err != nil {
		t.Fatal(err)
	}
	p := bfdPlan()
	p.Tunnels = append(p.Tunnels[:1:1], p.Tunnels[2:]...)
	p.VTEPs[0].Devices = p.VTEPs[0].Devices[:1]
	w.take(e, p)
	if kept, err := e.cfg.Store.LoadDrained(); len(kept) != 0 || len(e.drained) != 0 || err != nil {
		t.Errorf("kept is %q, error %v", kept, err)
	}
}

// The neighbour's operator takes a tunnel down: another way if there is one, else the traffic stays.
func TestRemoteAdminDown(t *testing.T) {
	w, e, f := runningBFD(t)
	f.turn(b0, bfd.Down, bfd.AdminDown)
	w.expectRoute("the neighbour drains the first", b1)
	f.turn(b1, bfd.Down, bfd.AdminDown)
	w.expectRoute("the neighbour leaves", b1)
	w.age(time.Hour)
	w.settle(e)
	w.expectRoute("an hour later", b1)
	if s := w.tunnel(e, b1); s.State != Down || s.Reason != "drained at the other end" || !s.Active {
		t.Errorf("tunnel is %+v", s)
	}
	// It comes back as a restarted one does.
	f.turn(b1, bfd.Init, bfd.Down)
	w.expectRoute("the neighbour is back", b1)
	f.turn(b0, bfd.Init, bfd.Down)
	w.expectRoute("both begin anew", b1)
	f.up(b1)
	f.up(b0)
	w.settle(e)
	w.expectRoute("both up, the better one held", b1)
	w.age(holdFirst)
	w.settle(e)
	w.expectRoute("after the hold", b0)
	// A session that never gets up has its chance, and no more.
	f.turn(b1, bfd.Down, bfd.Up)
	f.turn(b0, bfd.Down, bfd.AdminDown)
	f.turn(b0, bfd.Init, bfd.Down)
	w.age(300*time.Millisecond + slowStart - time.Millisecond)
	w.settle(e)
	w.expectRoute("trusted", b0)
	w.age(time.Millisecond)
	w.settle(e)
	w.expectRoute("no longer trusted", "unreachable")
}

// The other end's fabric-links was killed and begins anew: another way if there is one, else the traffic stays as long as silence would be
// borne.
func TestRemoteRestart(t *testing.T) {
	w, e, f := runningBFD(t)
	f.restarts(b0)
	w.expectRoute("another is up", b1)
	f.restarts(b1)
	w.expectRoute("none is", b1)
	w.settle(e)
	w.expectRoute("none is, after a pass", b1)
	if s, v := w.tunnel(e, b1), e.State().VTEPs[0]; s.State != Starting || !s.Active || v.Device != b1 || !strings.Contains(v.Reason, "begun anew") {
		t.Errorf("tunnel is %+v, told is %+v", s, v)
	}
	if next := e.repair.next(); !next.Equal(w.now.Add(300 * time.Millisecond)) {
		t.Errorf("next look is at %s, now is %s", next, w.now)
	}
	f.up(b1)
	w.expectRoute("up again", b1)

	f.restarts(b1)
	w.age(300*time.Millisecond - time.Millisecond)
	w.settle(e)
	w.expectRoute("just before the detection time's end", b1)
	w.age(time.Millisecond)
	w.settle(e)
	w.expectRoute("after it", "unreachable")

	// No reason to trust what is known to be dead.
	f.up(b1)
	f.restarts(b1)
	delete(w.handshake, b1)
	w.settle(e)
	w.expectRoute("without a handshake", "unreachable")

	w.allUp()
	w.settle(e)
	f.up(b1)
	f.restarts(b1)
	f.up(b1)
	f.down(b1)
	w.expectRoute("a failure right after a restart", "unreachable")
}

// fabric-links starts anew: the route stays until BFD has had its chance.
func TestBFDAdoption(t *testing.T) {
	begin := func(t *testing.T) (*world, *Engine, *fakeBFD) {
		w, e, f := runningBFD(t)
		f.down(b0)
		w.settle(e)
		w.kill(e)
		e, f = w.withBFD()
		before := len(w.k.Applied())
		w.settle(e)
		w.expectRoute("after the start", b1)
		if steps := w.k.Applied()[before:]; len(steps) > 0 {
			t.Errorf("steps are %q", steps)
		}
		if v := e.State().VTEPs[0]; v.Device != b1 {
			t.Errorf("told is %+v", v)
		}
		return w, e, f
	}
	chance := 300*time.Millisecond + slowStart
	t.Run("never up", func(t *testing.T) {
		w, e, _ := begin(t)
		w.age(chance - time.Millisecond)
		w.settle(e)
		w.expectRoute("just before", b1)
		w.age(time.Millisecond)
		w.settle(e)
		w.expectRoute("judged", "unreachable")
	})
	t.Run("up again", func(t *testing.T) {
		w, e, f := begin(t)
		f.up(b1)
		w.age(chance)
		w.settle(e)
		w.expectRoute("judged", b1)
	})
	t.Run("no handshake", func(t *testing.T) {
		w, e, _ := begin(t)
		delete(w.handshake, b1)
		w.settle(e)
		w.expectRoute("judged", "unreachable")
	})
	t.Run("another is up", func(t *testing.T) {
		w, e, f := begin(t)
		f.up(b0)
		w.settle(e)
		w.expectRoute("held", b1)
		w.age(holdFirst)
		w.settle(e)
		w.expectRoute("better one after its hold", b0)
	})
	t.Run("the neighbour has drained it since before", func(t *testing.T) {
		w, e, f := begin(t)
		f.mu.Lock()
		for path, st := range f.sessions {
			if path.Interface == b1 {
				st.Remote, st.RemoteDiscriminator = bfd.AdminDown, 7
			}
		}
		f.mu.Unlock()
		w.settle(e)
		w.age(time.Hour)
		w.settle(e)
		w.expectRoute("an hour later", b1)
	})
	t.Run("it ends again", func(t *testing.T) {
		w, e, f := begin(t)
		f.up(b0, b1)
		w.settle(e)
		e.leave()
		f.down(b0)
		f.down(b1)
		w.expectRoute("after the end", b1)
		if len(f.States()) > 0 {
			t.Error("sessions are left")
		}
	})
}

// Routes change hands between the pass's observation and its choice: the pass looks again.
func TestPassDoesNotUndoRepair(t *testing.T) {
	w, e, f := runningBFD(t)
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { f.down(b0) }, b1},
		{func() { f.down(b1) }, "unreachable"},
		{func() { f.up(b1) }, b1},
	} {
		n := 0
		host := &between{Host: w.k, do: func() {
			// The second observation of a pass is the one to choose by.
			if n++; n == 2 {
				step.do()
			}
		}}
		e.cfg.Host = host
		before := len(w.k.Applied())
		e.pass(context.Background())
		w.expectRoute("after the pass", step.want)
		if got := w.k.Applied()[before:]; len(got) != 1 || n < 3 {
			t.Errorf("steps are %q, %d observations", got, n)
		}
		e.cfg.Host = w.k
		w.settle(e)
		w.expectRoute("later", step.want)
	}
}

// The BFD engine's thread and passes at the same time, for the race detector; and the end is right.
func TestRepairAndPassesTogether(t *testing.T) {
	w, e, f := runningBFD(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			f.down(b0)
			f.down(b1)
			f.up(b1)
			f.up(b0)
		}
		f.down(b0)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		e.pass(context.Background())
	}
	w.settle(e)
	w.expectRoute("in the end", b1)
	if v := e.State().VTEPs[0]; v.Device != b1 {
		t.Errorf("told is %+v", v)
	}
}
