package links

import (
	"context"
	"sync"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// fakeBFD is a BFD engine whose sessions change when the test says so.
type fakeBFD struct {
	e *Engine

	mu       sync.Mutex
	now      func() time.Time
	order    []bfd.SessionConfig
	sessions map[bfd.Path]*bfd.Status
	asked    int
}

// Configure implements Sessions.
func (f *fakeBFD) Configure(want []bfd.SessionConfig) error {
	var changes []bfd.Change
	f.mu.Lock()
	f.asked++
	f.order = want
	kept := map[bfd.Path]*bfd.Status{}
	for _, c := range want {
		st := f.sessions[c.Path]
		if st == nil {
			st = &bfd.Status{Name: c.Name, Path: c.Path, State: bfd.Down, Since: f.now(), Reason: "configured"}
		}
		kept[c.Path] = st
		switch from := st.State; {
		case c.AdminDown && from != bfd.AdminDown:
			st.State = bfd.AdminDown
			changes = append(changes, bfd.Change{Name: c.Name, Path: c.Path, Transition: bfd.Transition{From: from, To: bfd.AdminDown}})
		case !c.AdminDown && from == bfd.AdminDown:
			st.State = bfd.Down
			changes = append(changes, bfd.Change{Name: c.Name, Path: c.Path, Transition: bfd.Transition{From: from, To: bfd.Down}})
		}
	}
	f.sessions = kept
	f.mu.Unlock()
	for _, c := range changes {
		f.e.SessionChanged(c)
	}
	return nil
}

// States implements Sessions.
func (f *fakeBFD) States() []bfd.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []bfd.Status
	for _, st := range f.sessions {
		out = append(out, *st)
	}
	return out
}

// Totals implements Sessions.
func (f *fakeBFD) Totals() bfd.Totals {
	return bfd.Totals{Scheduling: "SCHED_FIFO 50", Dropped: map[string]uint64{"ttl": 3}}
}

// turn makes the session of a device change.
func (f *fakeBFD) turn(device string, to bfd.State, remote bfd.State) {
	f.mu.Lock()
	var change *bfd.Change
	for path, st := range f.sessions {
		if path.Interface != device || st.State == to {
			continue
		}
		t := bfd.Transition{At: f.now(), From: st.State, To: to, Remote: remote, Reason: "the test says so"}
		if to == bfd.Down && remote != bfd.Up {
			t.Diag = bfd.DiagNeighbourDown
		}
		st.State, st.Remote, st.RemoteDiscriminator, st.Reason = to, remote, 7, t.Reason
		change = &bfd.Change{Name: st.Name, Path: path, Transition: t}
	}
	f.mu.Unlock()
	if change != nil {
		f.e.SessionChanged(*change)
	}
}

func (f *fakeBFD) up(devices ...string) {
	for _, d := range devices {
		f.turn(d, bfd.Up, bfd.Up)
	}
}

// restarts is what the other end's first packet after a restart does: Down, without a diagnostic.
func (f *fakeBFD) restarts(device string) { f.turn(device, bfd.Down, bfd.Down) }

func (f *fakeBFD) down(device string) { f.turn(device, bfd.Down, bfd.Up) }

// bfdPlan is the test's plan with BFD on the tunnels to b; that to c is of an older fabric-site.
func bfdPlan() overlay.Plan {
	p := testPlan()
	for i := range p.Tunnels[:2] {
		p.Tunnels[i].BFD = &overlay.BFD{IntervalMs: 100, Multiplier: 3}
	}
	return p
}

// withBFD is an engine that has just started, with a BFD engine that has too.
func (w *world) withBFD() (*Engine, *fakeBFD) {
	e := w.engine()
	f := &fakeBFD{e: e, now: func() time.Time { return w.now }}
	e.cfg.BFD = f
	return e, f
}

// runningBFD is a world in which the plan with BFD is applied, all is up and no hold is on.
func runningBFD(t *testing.T) (*world, *Engine, *fakeBFD) {
	t.Helper()
	w := newWorld(t)
	w.addVXLAN(1000)
	e, f := w.withBFD()
	w.take(e, bfdPlan())
	w.allUp()
	w.settle(e)
	if got := w.route("10.255.0.2"); got != "unreachable" || w.route("10.255.0.3") != c0 {
		t.Fatalf("before BFD is up the route to b is over %q", got)
	}
	f.up(b0, b1)
	w.age(time.Hour)
	w.settle(e)
	if got := w.route("10.255.0.2"); got != b0 {
		t.Fatalf("route to b is %q\n%s", got, w.picture())
	}
	return w, e, f
}

func (w *world) tunnel(e *Engine, device string) TunnelState {
	for _, s := range e.State().Tunnels {
		if s.Device == device {
			return s
		}
	}
	w.t.Fatalf("no tunnel %s", device)
	return TunnelState{}
}

// expectRoute says what is wrong with the route to b.
func (w *world) expectRoute(what, want string) {
	w.t.Helper()
	if got := w.route("10.255.0.2"); got != want {
		w.t.Errorf("%s: route is over %q, want %q (b0 is %s, b1 %s)", what, got, want, b0, b1)
	}
}

// between is a kernel in which something happens after each observation of routes.
type between struct {
	kernel.Host
	do func()
}

// Routes implements kernel.Host.
func (b *between) Routes(protocol uint8, tables ...uint32) kernel.Routes {
	return betweenRoutes{b.Host.Routes(protocol, tables...), b.do}
}

type betweenRoutes struct {
	kernel.Routes
	do func()
}

// Observe implements reconcile.Edge.
func (b betweenRoutes) Observe(ctx context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	have, err := b.Routes.Observe(ctx)
	b.do()
	return have, err
}
