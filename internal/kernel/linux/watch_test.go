package linux_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// watcher gathers what Watch says.
type watcher struct {
	mu   sync.Mutex
	got  kernel.Changed
	wake chan struct{}
}

func watch(t *testing.T, h kernel.Host) *watcher {
	t.Helper()
	w := &watcher{wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- h.Watch(ctx, func(c kernel.Changed) {
			w.mu.Lock()
			w.got |= c
			w.mu.Unlock()
			select {
			case w.wake <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Watch returned %v on cancel", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Watch did not return on cancel")
		}
	})
	w.expect(t, kernel.ChangedAll) // once at the start
	return w
}

// take returns what came since the last call.
func (w *watcher) take() kernel.Changed {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.got
	w.got = 0
	return c
}

// expect waits until all of c has been said.
func (w *watcher) expect(t *testing.T, c kernel.Changed) {
	t.Helper()
	var got kernel.Changed
	deadline := time.After(30 * time.Second)
	for got&c != c {
		select {
		case <-w.wake:
			got |= w.take()
		case <-deadline:
			t.Fatalf("Watch said %b, want %b", got, c)
		}
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	if err := w.AddDevice("ext0"); err != nil {
		t.Fatal(err)
	}
	e := watch(t, w)
	key := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.0.0.0/8"), Metric: 188}
	create := func() {
		err := w.Routes(kernel.Protocol).Apply(t.Context(), []reconcile.Op[kernel.RouteKey, kernel.Route]{
			{Kind: reconcile.Create, Key: key, New: kernel.Route{Type: kernel.Blackhole}},
		})[0]
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		by   []string
		want kernel.Changed
	}{
		{[]string{"ip", "link", "set", "ext0", "mtu", "1400"}, kernel.ChangedLinks},
		{[]string{"ip", "addr", "add", "10.9.0.1/24", "dev", "ext0"}, kernel.ChangedAddresses},
		{[]string{"ip", "rule", "add", "pref", "77", "lookup", "77"}, kernel.ChangedRules},
		{[]string{"ip", "nexthop", "add", "id", "9", "dev", "ext0"}, kernel.ChangedNextHops},
		{[]string{"ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "ext0", "nud", "permanent"}, kernel.ChangedNeighbours},
	} {
		if err := run(tt.by...); err != nil {
			t.Fatal(err)
		}
		e.expect(t, tt.want)
	}
	// Our own changes are silent, and so are routes that are no business of ours: the next thing said is about the rule.
	e.take()
	create()
	install(t, w, kernel.Filter{VXLANPort: 4789})
	if err := run("ip", "route", "add", "10.8.0.0/16", "dev", "ext0", "proto", "static"); err != nil {
		t.Fatal(err)
	}
	if err := run("ip", "rule", "del", "pref", "77"); err != nil {
		t.Fatal(err)
	}
	<-e.wake
	if got := e.take(); got != kernel.ChangedRules {
		t.Errorf("Watch said %b, want only rules (%b)", got, kernel.ChangedRules)
	}
	// Somebody deletes our route.
	if err := run("ip", "route", "del", "blackhole", "10.0.0.0/8", "table", "200", "metric", "188"); err != nil {
		t.Fatal(err)
	}
	e.expect(t, kernel.ChangedRoutes)
	// Somebody deletes our table, and everything.
	for _, change := range []string{"flush ruleset", "delete table inet fabric"} {
		install(t, w, kernel.Filter{VXLANPort: 4789})
		e.take()
		if err := run("nft", change); err != nil {
			t.Fatal(err)
		}
		e.expect(t, kernel.ChangedFilters)
	}
}
