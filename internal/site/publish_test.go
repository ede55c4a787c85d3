package site

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fabric/internal/config"
)

// Whoever subscribed is woken by a change, and not after the end of the subscription.
func TestChanged(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantHealthy()
	woken, end := g.Changed()
	g.commit(config.Mutation{Action: "site drain"})
	waitFor(t, "a wake and a drained gateway", func() (any, bool) {
		select {
		case <-woken:
		default:
			return "no wake", false
		}
		return "not drained", g.Snapshot().Site.Drained
	})
	end()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.watchers) != 0 {
		t.Errorf("%d watchers left", len(g.watchers))
	}
}

// The snapshot says of every VRF, peer and route what is so.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"), fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	waitFor(t, "routes in sync", func() (any, bool) {
		v := g.Snapshot().VRFs
		return v, len(v) == 2 && v[0].InSync && v[0].Routes == 7 && v[0].Kernel > 4 && v[1].InSync
	})
	ps := g.Snapshot().Peers
	if len(ps) != 2 || !ps[0].Fabric || ps[0].Name != "far" || ps[1].Name != "ce" || ps[1].VRF != "CORE" {
		t.Errorf("peers %+v", ps)
	}
	var lines []string
	if err := g.Routes("", func(r RouteStatus) bool {
		lines = append(lines, strings.Join([]string{r.VRF, r.Prefix.String(), r.Source, r.From, r.ASPath, r.RunnerUp, r.Kernel}, " "))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"CORE 10.2.0.0/16 fabric far 65002  ok",
		"CORE 10.3.0.0/16 peer ce 65100 far ok",
		"CORE 10.1.0.0/24 connected gw   -",
		"CORE 10.1.0.0/16 static gw   -",
		"OPS 10.1.0.0/24 connected gw   -",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is not among\n%s", want, strings.Join(lines, "\n"))
		}
	}
	n := 0
	if err := g.Routes("CORE", func(RouteStatus) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("a walk that is ended goes on: %d %v", n, err)
	}
	if err := g.Routes("NONE", func(RouteStatus) bool { return true }); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A watch begins with all there is, goes on with every change, and ends with its context or its consumer.
func TestWatchRoutes(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type event struct {
		prefix    string
		withdrawn bool
	}
	events := make(chan event)
	done := make(chan error, 1)
	go func() {
		done <- g.WatchRoutes(ctx, "CORE", func(r RouteStatus, withdrawn bool) error {
			events <- event{r.Prefix.String(), withdrawn}
			return nil
		})
	}()
	want := func(e event) {
		t.Helper()
		for have := range events {
			if have == e {
				return
			}
		}
	}
	want(event{"10.9.0.0/16", false})
	g.rib.Update(fromFar("10.2.0.0/16"))
	want(event{"10.2.0.0/16", false})
	g.rib.Withdraw(fromFar("10.2.0.0/16").Key)
	want(event{"10.2.0.0/16", true})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	full := errors.New("consumer is gone")
	if err := g.WatchRoutes(t.Context(), "", func(RouteStatus, bool) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if err := g.WatchRoutes(t.Context(), "NONE", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// An explanation tells the story of a prefix, of an address within one, and of one that nobody has.
func TestExplain(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"), fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 via 10.1.0.2")
	for _, c := range []struct {
		prefix string
		lines  []string
		best   []string
	}{
		{"10.2.0.0/16", []string{"Chosen among 1: the fabric path of far (only path).", "The kernel's table holds it.",
			"Not announced to other gateways: it came from one.", "Offered to the peers ce, as far as their export policy lets it pass."}, []string{"far"}},
		{"10.3.7.0/24", []string{"10.3.7.0/24 is covered by 10.3.0.0/16.", "Chosen among 2: the peer path of ce (site's own peer before fabric).",
			"The kernel's table holds it.", "Announced to the other gateways."}, []string{"ce", "far"}},
		{"10.9.0.0/16", []string{"Chosen among 1: the static path of gw (only path).", "The kernel's table holds it.", "Announced to the other gateways.",
			"Offered to the peers ce, as far as their export policy lets it pass."}, []string{"gw"}},
		{"10.1.0.0/24", []string{"Chosen among 1: the connected path of gw (only path).",
			"The kernel needs no route of ours: the network is attached, or the prefix is only announced.", "Not announced: it is local to this gateway."}, []string{"gw"}},
		{"192.0.2.1/32", []string{"No route covers 192.0.2.1/32 in VRF CORE: the gateway answers unreachable."}, nil},
	} {
		x, err := g.Explain("CORE", netip.MustParsePrefix(c.prefix))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(x.Lines, c.lines) {
			t.Errorf("%s:\nhave %q\nwant %q", c.prefix, x.Lines, c.lines)
		}
		var from []string
		for i, cand := range x.Candidates {
			from = append(from, cand.Route.From)
			if cand.Best != (i == 0) || i > 0 && !strings.HasPrefix(cand.Why, "lost by ") {
				t.Errorf("%s: candidate %+v", c.prefix, cand)
			}
		}
		if !slices.Equal(from, c.best) {
			t.Errorf("%s: candidates from %q, want %q", c.prefix, from, c.best)
		}
	}
	if _, err := g.Explain("NONE", netip.MustParsePrefix("10.0.0.0/8")); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// The metrics are what Prometheus takes, described beforehand, and a second gateway in one registry is an error and no crash.
func TestMetrics(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	registry := prometheus.NewPedanticRegistry()
	g.cfg.Registry = registry
	g.start().waitReady()
	g.wantHealthy()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			have[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"fabric_ready": 1, "fabric_generation": 1, "fabric_generation_applied": 1, "fabric_problems": 0, "fabric_links_connected": 1,
		"fabric_peer_established peer=ce vrf=CORE": 0, "fabric_peer_flaps_total peer=far vrf=": 0,
		"fabric_rib_routes vrf=CORE": 5, "fabric_kernel_in_sync vrf=CORE": 1, "fabric_kernel_in_sync vrf=OPS": 1,
		"fabric_tunnel_up remote=far tunnel=" + g.Snapshot().Tunnels[0].Name: 1,
	} {
		if v, ok := have[name]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want)
		}
	}
	if _, err := New(g.cfg); err == nil || !strings.HasPrefix(err.Error(), "metrics: ") {
		t.Errorf("%v", err)
	}
}
