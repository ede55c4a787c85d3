package site

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/vrf"
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
	// choices are what the rib chose, by key.
	choices map[rib.Key]rib.Choice
	// want is base and the choices that need a kernel route.
	want map[kernel.RouteKey]kernel.Route
	// recursive are choices whose next hop is found through other routes and must be looked at again when those move.
	recursive map[rib.Key]bool
	// failed says why a choice has no kernel route.
	failed map[rib.Key]string
	// complete: every neighbour has said all it knows, so routes nobody told us of may be deleted.
	complete bool
}

func newFIB(s *Site) *fib {
	f := &fib{
		site: s, wake: make(chan struct{}, 1),
		choices: map[rib.Key]rib.Choice{}, want: map[kernel.RouteKey]kernel.Route{},
		recursive: map[rib.Key]bool{}, failed: map[rib.Key]string{},
	}
	f.loop = reconcile.NewLoop(reconcile.Config[kernel.RouteKey, kernel.Route]{
		Name:   "route",
		Edge:   s.cfg.Kernel.Routes(kernel.Protocol),
		Log:    s.log,
		Resync: routesInterval,
		Want:   f.wanted,
	})
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
	clear(f.recursive)
	clear(f.failed)
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, c := range f.choices {
		f.place(in, c, &d)
	}
}

// delta is a change of want, for the loop's Patch.
type delta struct {
	set  map[kernel.RouteKey]kernel.Route
	gone []kernel.RouteKey
}

// place puts one choice into want and notes what that changed.
func (f *fib) place(in *intent, c rib.Choice, d *delta) {
	m := in.member(c.Key.VRF)
	if m == nil {
		return
	}
	key, r, ok, err := m.Route(c, f.site.rib.Lookup)
	delete(f.recursive, c.Key)
	delete(f.failed, c.Key)
	if c.Best != nil && c.Best.Interface == "" && c.Best.Key.Source.Kind != rib.Fabric && !attached(m, c.Best.Attrs.NextHop) {
		f.recursive[c.Key] = true
	}
	if err != nil {
		f.failed[c.Key] = err.Error()
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
}

// attached says whether a next hop is on a network of the VRF's own interfaces, or there is none to look for.
func attached(m *vrf.Member, nh netip.Addr) bool {
	return !nh.IsValid() || slices.ContainsFunc(m.Connected, func(c vrf.Connected) bool {
		return c.Device != "" && !c.Prefix.IsSingleIP() && c.Prefix.Contains(nh)
	})
}

// take applies a batch of the rib's feed to want and returns what changed.
func (f *fib) take(b rib.Batch) delta {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.site.intent.Load()
	f.complete = f.complete || b.Complete
	if b.Full {
		gone := f.choices
		f.choices = make(map[rib.Key]rib.Choice, len(b.Choices))
		for _, c := range b.Choices {
			delete(gone, c.Key)
		}
		for k := range gone {
			b.Choices = append(b.Choices, rib.Choice{Key: k})
		}
	}
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, c := range b.Choices {
		if c.Best == nil {
			delete(f.choices, c.Key)
		} else {
			f.choices[c.Key] = c
		}
		f.place(in, c, &d)
	}
	for _, k := range slices.Collect(maps.Keys(f.recursive)) { // place changes the map
		f.place(in, f.choices[k], &d)
	}
	return d
}

// run feeds the kernel until ctx ends.
func (f *fib) run(ctx context.Context) error {
	feed := f.site.rib.Subscribe()
	defer feed.Close()
	// Routes may refer to next-hop objects only once fabric-links has made them. If it stays away, the others go ahead,
	// and these fail one by one until it is back.
	if err := f.site.waitHost(ctx); err != nil {
		return ignoreCancel(ctx, err)
	}
	for {
		b, err := feed.Next(ctx)
		if err != nil {
			return ignoreCancel(ctx, err)
		}
		was := f.isComplete()
		d := f.take(b)
		if b.Full || b.Complete && !was {
			f.loop.Wake()
			continue
		}
		f.loop.Patch(d.set, d.gone...)
	}
}

func (f *fib) isComplete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.complete
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
	key, _, ok, err := m.Route(c, f.site.rib.Lookup)
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
