package site

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Somebody's route in a VRF's table, where none of ours is: told with its owner, left alone, and in nobody's way.
func TestStranger(t *testing.T) {
	k := newKernel(t, document, withoutVRF)
	key := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.77.0.0/16"), Metric: 5}
	if err := errors.Join(k.Routes(4).Apply(t.Context(), []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: key, New: kernel.Route{Type: kernel.Blackhole, Protocol: 4}}})...); err != nil {
		t.Fatal(err)
	}
	g := newGateOn(t, document, k, t.TempDir())
	g.start().waitReady()
	g.wantProblem("10.77.0.0/16", "static")
	waitFor(t, "the generation applied", func() (any, bool) {
		s := g.Snapshot().Site
		return s, s.Applied == s.Generation
	})
	if have, err := k.Routes(4).Observe(context.Background()); err != nil || have[key].Type != kernel.Blackhole {
		t.Errorf("what was not ours: %v %v", have, err)
	}
}
