package links

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// The log of one tunnel: readings of its handshake's date, and the age that follows.
func TestHandshakeAge(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	const s, h = time.Second, time.Hour
	type reading struct{ date, now, wall, age time.Duration }
	tests := []struct {
		name     string
		readings []reading
	}{
		{"first reading trusts the wall clock", []reading{{-20 * s, 0, 0, 20 * s}, {-20 * s, 5 * s, 5 * s, 25 * s}}},
		{"first reading, dated ahead", []reading{{h, 0, 0, 0}, {h, 5 * s, 5 * s, 5 * s}}},
		{"step forward", []reading{{0, 0, 0, 0}, {0, 3 * s, h, 3 * s}, {h, 6 * s, h + 3*s, 3 * s}}},
		{"step back", []reading{{0, 0, 0, 0}, {0, 200 * s, -h, 200 * s}, {-h, 203 * s, 3*s - h, 3 * s}}},
		{"dated before a step forward, seen after it", []reading{{0, 0, 0, 0}, {2 * s, 3 * s, h, 3 * s}}},
		{"dated before a step back, seen after it", []reading{{0, 0, 0, 0}, {2 * s, 3 * s, -h, 0}}},
		{"no reading for long", []reading{{0, 0, 0, 0}, {100 * s, 300 * s, 300 * s, 200 * s}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var k handshake
			for i, r := range tt.readings {
				if got := k.age(at(r.date), at(r.now), at(r.wall)); got != r.age {
					t.Errorf("reading %d: age is %s, want %s", i, got, r.age)
				}
			}
			if got := k.age(time.Time{}, at(2*h), at(2*h)); got != 0 {
				t.Errorf("no handshake is %s old", got)
			}
		})
	}
}

// The wall clock steps, as NTP makes it at boot: living tunnels stay up, where they have moved to is kept, and dead ones go down in time.
func TestClockSteps(t *testing.T) {
	for _, step := range []time.Duration{RejectAfter, 24 * time.Hour, -RejectAfter, -24 * time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			w, e := running(t)
			moved := netip.MustParseAddrPort("198.51.100.7:1234")
			endpoint := func() netip.AddrPort {
				have, err := w.k.WireGuards().Observe(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				return have[b0].Peer.Endpoint
			}
			have, _ := w.k.WireGuards().Observe(context.Background())
			c := have[b0]
			c.Peer.Endpoint = moved
			if err := w.k.WireGuards().Apply(context.Background(), []reconcile.Op[string, kernel.WireGuard]{{Kind: reconcile.Replace, Key: b0, New: c}})[0]; err != nil {
				t.Fatal(err)
			}
			w.now = w.now.Add(3 * time.Second)
			w.settle(e)
			before := len(w.k.Applied())
			w.step = step
			w.now = w.now.Add(3 * time.Second)
			w.settle(e)
			if steps := w.k.Applied()[before:]; len(steps) > 0 || endpoint() != moved {
				t.Errorf("the step of the clock causes %q, endpoint is %s", steps, endpoint())
			}
			// b0 falls silent from here on: it is 6 s old.
			w.age(RejectAfter-7*time.Second, b0)
			w.settle(e)
			if got := w.route("10.255.0.2"); got != b0 {
				t.Errorf("after 179 s the route is over %q", got)
			}
			w.age(time.Second, b0)
			w.settle(e)
			if got := w.route("10.255.0.2"); got != b1 {
				t.Errorf("after 180 s the route is over %q", got)
			}
			if got := endpoint(); got == moved {
				t.Error("a dead tunnel does not go back to the planned endpoint")
			}
		})
	}
}

// fabric-links starts anew where b is routed over its second tunnel, and cannot read all at first.
func TestHeldRouteIsToldAsItIs(t *testing.T) {
	begin := func(t *testing.T) (*world, *Engine) {
		w, e := running(t)
		w.age(RejectAfter, b0)
		w.settle(e)
		if got := w.route("10.255.0.2"); got != b1 {
			t.Fatalf("route is over %q", got)
		}
		w.kill(e)
		return w, w.engine()
	}
	no := errors.New("the kernel says no")
	t.Run("tunnels unread", func(t *testing.T) {
		w, e := begin(t)
		w.k.FailNext("observe wireguards", no)
		e.pass(context.Background())
		s := e.State()
		if v := s.VTEPs[0]; v.Device != b1 || v.Reason == "" || !s.Tunnels[1].Active || w.route("10.255.0.2") != b1 {
			t.Errorf("VTEP is %+v, tunnel %+v, route %q", v, s.Tunnels[1], w.route("10.255.0.2"))
		}
	})
	t.Run("route over a tunnel known to be down", func(t *testing.T) {
		w, e := begin(t)
		delete(w.handshake, b1)
		e.cfg.Reader = without{w, b0}
		e.pass(context.Background())
		if v := e.State().VTEPs[0]; v.Device != "" || w.route("10.255.0.2") != "unreachable" {
			t.Errorf("VTEP is %+v, route %q", v, w.route("10.255.0.2"))
		}
	})
	t.Run("neither tunnels nor routes read", func(t *testing.T) {
		w, e := begin(t)
		w.k.FailNext("observe wireguards", no)
		w.k.FailNext("observe routes", no)
		e.pass(context.Background())
		// Routes are read again when they are chosen: what is told is what is there.
		if vteps := e.State().VTEPs; len(vteps) > 0 && vteps[0].Device != b1 || w.route("10.255.0.2") != b1 {
			t.Errorf("told is %+v, route %q", vteps, w.route("10.255.0.2"))
		}
		w.settle(e)
		if v := e.State().VTEPs[0]; v.Device != b1 {
			t.Errorf("afterwards: %+v", v)
		}
	})
}

// without is a Reader that cannot read one device.
type without struct {
	Reader
	device string
}

// Facts implements Reader.
func (r without) Facts(ctx context.Context, devices []string) (map[string]Facts, error) {
	facts, err := r.Reader.Facts(ctx, devices)
	delete(facts, r.device)
	return facts, errors.Join(err, errors.New("cannot read "+r.device))
}
