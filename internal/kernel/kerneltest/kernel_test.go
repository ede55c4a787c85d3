package kerneltest_test

import (
	"errors"
	"net/netip"
	"strconv"
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
)

func TestModelConforms(t *testing.T) {
	kerneltest.Conformance(t,
		func(*testing.T) kerneltest.World { return kerneltest.New() },
		func(_ *testing.T, w kerneltest.World) kernel.Host { return w })
}

// TestFailNth fails every call once: each failure is reported, and the next pass mends.
func TestFailNth(t *testing.T) {
	broken := errors.New("broken")
	key := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.0.0.0/8"), Metric: kernel.Metric}
	for n := 1; ; n++ {
		k := kerneltest.New()
		l := reconcile.NewLoop(reconcile.Config[kernel.RouteKey, kernel.Route]{
			Name: "routes", Edge: k.Routes(kernel.Protocol),
			Want: func() (map[kernel.RouteKey]kernel.Route, bool) {
				return map[kernel.RouteKey]kernel.Route{key: {Type: kernel.Blackhole}}, true
			},
		})
		k.FailNth(n, broken)
		err := l.Pass(t.Context())
		if failed := k.Failed(); errors.Is(err, broken) != failed {
			t.Errorf("call %d: failed %v, error %v", n, failed, err)
		} else if !failed {
			if n != 3 {
				t.Errorf("a pass of one route made %d calls, want an observe and an apply", n-1)
			}
			return
		}
		if err := l.Pass(t.Context()); err != nil || !l.InSync() {
			t.Errorf("after call %d failed: %v", n, err)
		}
	}
}

func TestFailNext(t *testing.T) {
	k := kerneltest.New()
	broken := errors.New("broken")
	k.FailNext("observe rules", broken)
	if _, err := k.Routes(kernel.Protocol).Observe(t.Context()); err != nil {
		t.Errorf("another edge failed: %v", err)
	}
	for _, want := range []error{broken, nil} {
		if _, err := k.Rules(kernel.Protocol).Observe(t.Context()); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
}

// BenchmarkRoutes puts routes with a source and a gateway into the model: the time for each does not grow with their number.
func BenchmarkRoutes(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			ops := make([]reconcile.Op[kernel.RouteKey, kernel.Route], n)
			for i := range ops {
				ops[i].Key = kernel.RouteKey{Table: 200, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}
				ops[i].New = kernel.Route{Gateway: netip.MustParseAddr("10.0.0.2"), Device: "eth1", Src: netip.MustParseAddr("10.0.0.1")}
			}
			for b.Loop() {
				k := kerneltest.New()
				if err := k.AddDevice("eth1"); err != nil {
					b.Fatal(err)
				}
				address := []reconcile.Op[kernel.AddressKey, kernel.Address]{{Key: kernel.AddressKey{Device: "eth1", Prefix: netip.MustParsePrefix("10.0.0.1/24")}}}
				errs := append(k.Addresses(kernel.Protocol).Apply(b.Context(), address), k.Routes(kernel.Protocol).Apply(b.Context(), ops)...)
				if err := errors.Join(errs...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/route")
		})
	}
}
