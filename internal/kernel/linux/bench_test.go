package linux_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

const benchRoutes = 10000

type routeOps = []reconcile.Op[kernel.RouteKey, kernel.Route]

// benchOps are steps for ten thousand /24 that lie scattered, as a full table's do.
func benchOps(kind reconcile.Kind, r kernel.Route) routeOps {
	ops := make(routeOps, benchRoutes)
	for i := range ops {
		n := uint32(i) * 2654435761 // Knuth's multiplicative hash: scattered and distinct
		a := netip.AddrFrom4([4]byte{byte(11 + n>>27), byte(n >> 19), byte(n >> 11), 0})
		ops[i] = reconcile.Op[kernel.RouteKey, kernel.Route]{
			Kind: kind, New: r,
			Key: kernel.RouteKey{Table: 200, Prefix: netip.PrefixFrom(a, 24), Metric: kernel.Metric},
		}
	}
	return ops
}

func benchWorld(b *testing.B) *world {
	b.Helper()
	w := newWorld(b)
	if err := w.AddDevice("ext0"); err != nil {
		b.Fatal(err)
	}
	nh := kernel.NextHop{Device: "ext0", Gateway: netip.MustParseAddr("fe80::1"), OnLink: true}
	errs := w.NextHops(kernel.ProtocolLinks).Apply(b.Context(), []reconcile.Op[uint32, kernel.NextHop]{
		{Kind: reconcile.Create, Key: 1, New: nh},
	})
	if errs[0] != nil {
		b.Fatal(errs[0])
	}
	return w
}

func benchApply(b *testing.B, e kernel.Routes, ops routeOps) {
	for i, err := range e.Apply(b.Context(), ops) {
		if err != nil {
			b.Fatal(ops[i], err)
		}
	}
}

// BenchmarkRouteWriter creates, replaces and deletes ten thousand routes: in batches by this package, and one after the other
// by the library's handle. The metric is routes per second of the step named.
func BenchmarkRouteWriter(b *testing.B) {
	b.Run("batch", func(b *testing.B) {
		e := benchWorld(b).Routes(kernel.Protocol, 200)
		create := benchOps(reconcile.Create, kernel.Route{NextHopID: 1})
		replace := benchOps(reconcile.Replace, kernel.Route{Type: kernel.Blackhole})
		remove := benchOps(reconcile.Delete, kernel.Route{})
		var rates rates
		for b.Loop() {
			rates.time(0, func() { benchApply(b, e, create) })
			rates.time(1, func() { benchApply(b, e, replace) })
			rates.time(2, func() { benchApply(b, e, remove) })
		}
		rates.report(b)
	})
	b.Run("library", func(b *testing.B) {
		benchWorld(b)
		h, err := netlink.NewHandle()
		if err != nil {
			b.Fatal(err)
		}
		defer h.Close()
		link, err := h.LinkByName("ext0")
		if err != nil {
			b.Fatal(err)
		}
		routes := make([]netlink.Route, benchRoutes)
		for i, op := range benchOps(reconcile.Create, kernel.Route{}) {
			routes[i] = netlink.Route{
				Table: 200, Priority: kernel.Metric, Protocol: kernel.Protocol, LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
				Dst: &net.IPNet{IP: op.Key.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)},
			}
		}
		each := func(do func(*netlink.Route) error) func() {
			return func() {
				for i := range routes {
					if err := do(&routes[i]); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		var rates rates
		for b.Loop() {
			rates.time(0, each(h.RouteAdd))
			rates.time(1, each(h.RouteReplace))
			rates.time(2, each(h.RouteDel))
		}
		rates.report(b)
	})
}

// rates gathers how long creates, replaces and deletes took.
type rates struct {
	total [3]time.Duration
	count int
}

func (r *rates) time(i int, fn func()) {
	start := time.Now()
	fn()
	r.total[i] += time.Since(start)
	if i == 0 {
		r.count++
	}
}

func (r *rates) report(b *testing.B) {
	for i, unit := range []string{"creates/s", "replaces/s", "deletes/s"} {
		b.ReportMetric(float64(r.count*benchRoutes)/r.total[i].Seconds(), unit)
	}
}
