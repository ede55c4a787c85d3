package kerneltest_test

import (
	"errors"
	"net/netip"
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
