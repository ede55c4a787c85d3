package site

import (
	"context"
	"maps"
	"sync"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// fib makes the kernel's VRF tables equal to the rib's choice plus the routes that the VRFs themselves need. It is one
// consumer of the rib among others; it applies changes as they come and compares the whole at intervals.
//
//	rib feed ──► want ──► loop.Patch (changed keys) ──► kernel
//	intent  ──►       └─► loop.Pass  (all, at intervals and after errors)
type fib struct {
	site *Site
	loop *reconcile.Loop[kernel.RouteKey, kernel.Route]
	wake chan struct{}

	mu sync.Mutex
	// feed is the rib's; it begins when the fib is made.
	feed *rib.Feed
	// started: choices are put into want.
	started bool
	// choices are what the rib chose, by key, and the next-hop sets they want.
	choices map[rib.Key]placed
	sets    sets
	// want is base and the choices that need a kernel route.
	want map[kernel.RouteKey]kernel.Route
	// failed says why a choice has no kernel route.
	failed map[rib.Key]string
	// complete: every neighbour has said all it knows, so routes nobody told us of may be deleted.
	complete bool
}

// placed is a choice and the set that it wants, nil for none.
type placed struct {
	rib.Choice
	set *nextHopSet
}

// newFIB takes what the rib knows now: after a warm start that is what the kernel's routes came from. So what is withdrawn before the
// fib runs is known to have been wanted and is deleted, and the first plan has the next-hop sets that those routes refer to.
func newFIB(s *Site) *fib {
	f := &fib{
		site: s, wake: make(chan struct{}, 1), feed: s.rib.Subscribe(), sets: newSets(),
		choices: map[rib.Key]placed{}, want: map[kernel.RouteKey]kernel.Route{},
		failed: map[rib.Key]string{},
	}
	f.loop = reconcile.NewLoop(reconcile.Config[kernel.RouteKey, kernel.Route]{
		Name:   "route",
		Edge:   s.cfg.Kernel.Routes(kernel.Protocol),
		Log:    s.log,
		Resync: routesInterval,
		Want:   f.wanted,
		Part:   func(k kernel.RouteKey) uint32 { return k.Table },
	})
	if b, err := f.feed.Next(context.Background()); err == nil { // a dump is there at once
		f.take(b)
	}
	return f
}

func (f *fib) wanted() (map[kernel.RouteKey]kernel.Route, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.want), f.complete
}

// rebuild computes everything anew, after the intent changed. Like take it reads the intent under the lock, so that the last
// of them has seen the newest.
func (f *fib) rebuild() {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.site.intent.Load()
	f.want = maps.Clone(in.host.Routes)
	clear(f.failed)
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, p := range f.choices {
		f.put(in, p.Choice, &d)
	}
	f.askForSets()
}

// put places a choice and keeps it.
func (f *fib) put(in *intent, c rib.Choice, d *delta) {
	was := f.choices[c.Key]
	is := placed{c, f.place(in, c, d)}
	f.count(is, 1)
	f.count(was, -1)
	if c.Best == nil {
		delete(f.choices, c.Key)
	} else {
		f.choices[c.Key] = is
	}
}

// replace places the choices of sets anew that have become usable, or unusable. It is called with mu held.
func (f *fib) replace(changed map[*nextHopSet]bool) {
	in := f.site.intent.Load()
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, p := range f.choices {
		if changed[p.set] {
			f.put(in, p.Choice, &d)
		}
	}
	f.loop.Patch(d.set, d.gone...)
}

// delta is a change of want, for the loop's Patch.
type delta struct {
	set  map[kernel.RouteKey]kernel.Route
	gone []kernel.RouteKey
}

// place puts one choice into want and notes what that changed. It returns the set that the choice wants.
func (f *fib) place(in *intent, c rib.Choice, d *delta) (set *nextHopSet) {
	delete(f.sets.refused, c.Key)
	m := in.member(c.Key.VRF)
	if m == nil {
		return nil
	}
	key, r, ok, err := m.Route(c, f.site.rib.Resolve)
	delete(f.failed, c.Key)
	if err != nil {
		f.failed[c.Key] = err.Error()
	}
	if ok {
		var shared kernel.Route
		if set, shared = f.setFor(in, m, c, r); set != nil && set.using {
			r = shared
		}
	}
	if !f.started {
		return set
	}
	old, had := f.want[key]
	switch {
	case ok && (!had || old != r):
		f.want[key] = r
		d.set[key] = r
	case !ok && had:
		delete(f.want, key)
		d.gone = append(d.gone, key)
	}
	return set
}

// take applies a batch of the rib's feed to want, and has the loop do what changed. That too is done under the lock: of two that
// change one key, the later must reach the loop later.
func (f *fib) take(b rib.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.site.intent.Load()
	completed := b.Complete && !f.complete
	if completed {
		f.complete, f.sets.completeSince = true, time.Now()
	}
	if b.Full {
		is := make(map[rib.Key]bool, len(b.Choices))
		for _, c := range b.Choices {
			is[c.Key] = true
		}
		for k := range f.choices {
			if !is[k] {
				b.Choices = append(b.Choices, rib.Choice{Key: k})
			}
		}
	}
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, c := range b.Choices {
		f.put(in, c, &d)
	}
	f.askForSets()
	switch {
	case !f.started:
	case b.Full || completed:
		f.loop.Wake()
	default:
		f.loop.Patch(d.set, d.gone...)
	}
}

// run feeds the kernel until ctx ends.
func (f *fib) run(ctx context.Context) error {
	defer f.feed.Close()
	// Routes may refer to next-hop objects only once fabric-links has made them. If it stays away, the others go ahead,
	// and these fail one by one until it is back.
	if err := f.site.waitHost(ctx); err != nil {
		return ignoreCancel(ctx, err)
	}
	f.mu.Lock()
	f.started = true
	f.mu.Unlock()
	f.rebuild()
	// Named one by one, so that what is withdrawn before the pass comes to it counts as having been wanted.
	want, _ := f.wanted()
	f.loop.Patch(want)
	f.loop.Wake()
	for {
		b, err := f.feed.Next(ctx)
		if err != nil {
			return ignoreCancel(ctx, err)
		}
		f.take(b)
	}
}

// state says what became of a choice in the kernel: "ok", "pending", "-" where the kernel needs no route, or an error.
func (f *fib) state(in *intent, c rib.Choice) string {
	f.mu.Lock()
	failed := f.failed[c.Key]
	f.mu.Unlock()
	if failed != "" {
		return failed
	}
	m := in.member(c.Key.VRF)
	if m == nil {
		return "-"
	}
	key, _, ok, err := m.Route(c, f.site.rib.Resolve)
	if err != nil {
		return err.Error()
	}
	if !ok {
		return "-"
	}
	switch st, known := f.loop.Object(key); {
	case !known:
		return "pending"
	case st.Err != "":
		return st.Err
	case st.Synced:
		return "ok"
	}
	return "pending"
}
