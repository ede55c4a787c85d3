package site

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/vrf"
)

// The whole host comes up, in both backends: nothing wrong, every stage in its turn, and the routes of neighbours.
func TestHost(t *testing.T) {
	for _, backend := range []struct {
		name     string
		features func(*kernel.Features)
	}{{"rules", withoutVRF}, {"vrf-device", withVRF}} {
		t.Run(backend.name, func(t *testing.T) {
			t.Parallel()
			g := newGateOn(t, document, newKernel(t, document, backend.features), t.TempDir()).start().waitReady()
			g.rib.Update(fromFar("10.2.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
			g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 via 10.1.0.2 dev eth1")
			g.wantHealthy()
			if have := g.Snapshot().Site.Backend; have != backend.name {
				t.Errorf("backend %q", have)
			}
			stageOrder(t, g.kernel.Applied())
		})
	}
}

// stageOrder checks the order that keeps traffic safe while a gateway is being built.
func stageOrder(t *testing.T, applied []string) {
	t.Helper()
	order := []string{"filters", "links", "ports", "sysctls", "addresses", "neighbours", "fdb", "routes", "rules"}
	at := 0
	seen := map[string]bool{}
	for _, step := range applied {
		edge, _, _ := strings.Cut(step, ":")
		i := slices.Index(order, edge)
		// Next hops are fabric-links', and routes go on changing.
		if i < 0 || edge == "routes" && at > i {
			continue
		}
		if i < at {
			t.Errorf("%q comes after %s:\n%s", step, order[at], strings.Join(applied, "\n"))
			return
		}
		at = i
		seen[edge] = true
	}
	for _, edge := range order {
		if !seen[edge] && edge != "rules" && edge != "ports" {
			t.Errorf("no step of %s", edge)
		}
	}
}

// What others own stays as it is, the problem names it and them, and all the rest stands.
func TestForeign(t *testing.T) {
	key := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.9.0.0/16"), Metric: kernel.Metric}
	theirs := kernel.Route{Type: kernel.Blackhole, Protocol: 4}
	rule := kernel.RuleKey{Priority: 100, Iif: "eth1"}
	vxlan := overlay.VXLANDevice(1000)
	do := func(t *testing.T, errs []error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name     string
		features func(*kernel.Features)
		put      func(*testing.T, *kerneltest.Kernel)
		problem  []string
		// stays is what must still be there.
		stays func(*testing.T, *kerneltest.Kernel) bool
		// stands are routes of ours that do not depend on it.
		stands []string
	}{
		{
			"nft table", withoutVRF,
			func(t *testing.T, k *kerneltest.Kernel) { do(t, []error{k.AddTable("fabric")}) },
			[]string{"filter", "nft table inet fabric is not ours", "no comment of the fabric"},
			func(t *testing.T, k *kerneltest.Kernel) bool { has, _ := k.HasTable("fabric"); return has },
			[]string{static},
		},
		{
			"VRF device", withVRF,
			func(t *testing.T, k *kerneltest.Kernel) { do(t, []error{k.AddDevice("OPS")}) },
			[]string{"link", "device OPS is not ours", `alias ""`},
			func(t *testing.T, k *kerneltest.Kernel) bool {
				ours, _ := k.Links().Observe(context.Background())
				_, took := ours["OPS"]
				return !took
			},
			[]string{static, "10.2.0.0/16 " + farRoute},
		},
		{
			"VXLAN device", withoutVRF,
			func(t *testing.T, k *kerneltest.Kernel) { do(t, []error{k.AddDevice(vxlan)}) },
			[]string{"link", "device " + vxlan + " is not ours"},
			func(t *testing.T, k *kerneltest.Kernel) bool {
				ours, _ := k.Links().Observe(context.Background())
				_, took := ours[vxlan]
				return !took
			},
			[]string{static},
		},
		{
			"route", withoutVRF,
			func(t *testing.T, k *kerneltest.Kernel) {
				do(t, k.Routes(4).Apply(context.Background(), []reconcile.Op[kernel.RouteKey, kernel.Route]{
					{Kind: reconcile.Create, Key: key, New: theirs}}))
			},
			[]string{"route", key.String(), "is not ours", "protocol 4"},
			func(t *testing.T, k *kerneltest.Kernel) bool {
				have, _ := k.Routes(4).Observe(context.Background())
				return have[key].Type == kernel.Blackhole
			},
			[]string{"10.2.0.0/16 " + farRoute},
		},
		{
			"rule", withoutVRF,
			func(t *testing.T, k *kerneltest.Kernel) {
				do(t, k.Rules(4).Apply(context.Background(), []reconcile.Op[kernel.RuleKey, kernel.Rule]{
					{Kind: reconcile.Create, Key: rule, New: kernel.Rule{Table: 77}}}))
			},
			[]string{"rule", rule.String(), "is not ours", "protocol 4"},
			func(t *testing.T, k *kerneltest.Kernel) bool {
				have, _ := k.Rules(4).Observe(context.Background())
				return have[rule].Table == 77
			},
			[]string{static, "10.2.0.0/16 " + farRoute},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := newKernel(t, document, c.features)
			c.put(t, k)
			g := newGateOn(t, document, k, t.TempDir())
			if c.name == "nft table" {
				g.cfg.LinksPatience = 1 // no plan is handed over without the guard
			}
			g.start().waitReady()
			g.wantProblem(c.problem...)
			g.rib.Update(fromFar("10.2.0.0/16"))
			for _, s := range c.stands {
				prefix, text, _ := strings.Cut(s, " ")
				waitFor(t, s, func() (any, bool) {
					have := g.routes(200)
					return have, strings.HasPrefix(have[prefix], text)
				})
			}
			// Rules are last: with them all stages were passed.
			if rules, err := k.Rules(kernel.Protocol).Observe(context.Background()); err != nil || len(rules) == 0 && g.Snapshot().Site.Backend == string(vrf.Rules) {
				t.Errorf("rules %v %v", rules, err)
			}
			if !c.stays(t, k) {
				t.Error("what was not ours is gone or changed")
			}
			if s := g.Snapshot().Site; s.Applied == s.Generation {
				t.Errorf("generation %d counts as applied", s.Applied)
			}
			waitFor(t, "a word in the log", func() (any, bool) { return "", strings.Contains(g.log.String(), "is not ours") })
		})
	}
}

// Without the guard on VXLAN's port nothing is sent to other gateways: no plan, no session; it all begins once the name is free.
func TestGuardFirst(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	g.cfg.LinksPatience = 1
	host := &filterless{Host: g.kernel}
	host.broken.Store(true)
	g.cfg.Kernel = host
	g.start().waitReady()
	g.wantProblem("filter", "nft is away")
	g.wantProblem("the sessions wait for the filter")
	g.wantRoutes(static)
	if n := g.fake.applies.Load(); n != 0 {
		t.Errorf("%d plans handed over without the guard", n)
	}
	if ps := g.speaker.Peers(); len(ps) != 0 {
		t.Errorf("sessions without the guard: %v", ps)
	}
	host.broken.Store(false)
	g.wantHealthy()
	waitFor(t, "sessions", func() (any, bool) { ps := g.speaker.Peers(); return ps, len(ps) == 2 })
}

// filterless is a host whose nft does not work while broken.
type filterless struct {
	kernel.Host
	broken atomic.Bool
}

type brokenFilters struct {
	kernel.Filters
	host *filterless
}

func (f *filterless) Filters(names ...string) kernel.Filters {
	return &brokenFilters{f.Host.Filters(names...), f}
}

func (b *brokenFilters) Observe(ctx context.Context) (map[string]kernel.Filter, error) {
	if b.host.broken.Load() {
		return nil, errors.New("nft is away")
	}
	return b.Filters.Observe(ctx)
}

// A stage whose objects cannot be made holds nothing else up, and is tried until it works.
func TestMissingInterface(t *testing.T) {
	t.Parallel()
	k := newKernel(t, document, withoutVRF)
	if err := k.DeleteDevice("eth2"); err != nil {
		t.Fatal(err)
	}
	g := newGateOn(t, document, k, t.TempDir()).start().waitReady()
	g.wantProblem("port", "eth2")
	g.wantRoutes(static)
	if err := k.AddDevice("eth2"); err != nil {
		t.Fatal(err)
	}
	g.wantHealthy()
	if log := g.log.String(); !strings.Contains(log, "the host is as wanted again") {
		t.Errorf("the log does not tell that the stage is well again")
	}
}

// What others take away or put in our way comes back.
func TestRepair(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.rib.EndOfRIB(far)
	g.rib.EndOfRIB(ce)
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.wantHealthy()
	want := dump(t, g.kernel)
	for _, harm := range []func() error{
		func() error { return g.kernel.DeleteDevice(overlay.VXLANDevice(1000)) },
		func() error { return g.kernel.SetUp("eth1", false) },
		func() error { return g.kernel.SetUp("eth1", true) },
		func() error { g.kernel.LoseEvents(); return nil },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
	}
	// The next-hop objects went with the device; fabric-links makes them again.
	if _, err := g.fake.Apply(context.Background(), g.Site.intent.Load().plan); err != nil {
		waitFor(t, "next hops", func() (any, bool) {
			_, err := g.fake.Apply(context.Background(), g.Site.intent.Load().plan)
			return err, err == nil
		})
	}
	g.kernel.LoseEvents()
	waitFor(t, "the host as before", func() (any, bool) {
		have := dump(t, g.kernel)
		return strings.Join(have, "\n"), slices.Equal(have, want)
	})
}

// Whichever call to the kernel fails, once, the end is the same.
func TestEveryCallFails(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, n int) (have []string, calls int) {
		k := newKernel(t, document, withoutVRF)
		if n > 0 {
			k.FailNth(n, syscall.ENOBUFS)
		}
		g := newGateOn(t, document, k, t.TempDir()).start()
		g.rib.Update(fromFar("10.2.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
		g.rib.EndOfRIB(far)
		g.rib.EndOfRIB(ce)
		g.waitReady()
		waitFor(t, "health", func() (any, bool) {
			s := g.Snapshot().Site
			return s.Problems, len(s.Problems) == 0 && s.Applied == s.Generation && len(g.routes(200)) == 3
		})
		calls = k.Calls()
		g.stop()
		// How many calls there are depends a little on who wakes whom.
		if n > 0 && n <= 100 && !k.Failed() {
			t.Error("nothing failed")
		}
		k.FailNth(1<<30, nil)
		return dump(t, k), calls
	}
	want, calls := run(t, 0)
	if calls < 100 {
		t.Fatalf("only %d calls", calls)
	}
	// Nearly all of each run is waiting for the next try.
	var group errgroup.Group
	group.SetLimit(24)
	for n := 1; n <= calls; n++ {
		group.Go(func() error {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				if have, _ := run(t, n); !slices.Equal(have, want) {
					t.Errorf("have\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
				}
			})
			return nil
		})
	}
	_ = group.Wait()
}

// others is all that is on a kernel, ours and not.
func others(t *testing.T, k *kerneltest.Kernel) []string {
	t.Helper()
	lines := dump(t, k)
	ctx := context.Background()
	for _, protocol := range []uint8{2, 4} {
		lines = append(lines, observe(t, k.Routes(protocol), ctx)...)
		lines = append(lines, observe(t, k.Rules(protocol), ctx)...)
		lines = append(lines, observe(t, k.Addresses(protocol), ctx)...)
	}
	slices.Sort(lines)
	return lines
}

// Cleanup removes all that is ours and nothing else.
func TestCleanup(t *testing.T) {
	t.Parallel()
	k := newKernel(t, document, withoutVRF)
	before := others(t, k)
	g := newGateOn(t, document, k, t.TempDir()).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.stop()
	ours := len(dump(t, k))
	n, err := Cleanup(context.Background(), k)
	if err != nil {
		t.Fatal(err)
	}
	// The two ports and the sysctls are not objects that can be removed.
	if n < ours-2-2 {
		t.Errorf("%d of %d objects removed", n, ours)
	}
	if after := others(t, k); !slices.Equal(after, before) {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if err := ForgetCheckpoint(g.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	if ps, err := loadCheckpoint(g.cfg.StateDir, "gw", 1<<42); err != nil || ps != nil {
		t.Errorf("checkpoint %v %v", ps, err)
	}
}
