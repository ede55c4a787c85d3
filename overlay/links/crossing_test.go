package links

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// redials are the tunnels that have dialled again since a mark in the model kernel's list of steps.
func (w *world) redials(since int) (devices []string) {
	for _, step := range w.k.Applied()[since:] {
		if strings.HasPrefix(step, "wireguards: delete") {
			devices = append(devices, strings.TrimSuffix(strings.Fields(step)[2], ":"))
		}
	}
	return devices
}

// A tunnel whose other end was heard, and has no handshake a second later, dials again; at one of its ends, and not for ever.
func TestHandshakesThatCross(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	w.take(e, testPlan())
	mark := len(w.k.Applied())
	expect := func(what string, want ...string) {
		t.Helper()
		w.settle(e)
		if got := w.redials(mark); !slices.Equal(got, want) {
			t.Errorf("%s: dialled again were %q, want %q", what, got, want)
		}
		mark = len(w.k.Applied())
		if wg := observe(t, w.k.WireGuards()); len(wg) != 3 {
			t.Errorf("%s: configured are %v", what, wg)
		}
	}
	wait := func(d time.Duration) { w.now = w.now.Add(d) }
	wait(time.Hour)
	expect("nobody is heard")

	// b's two tunnels are dialled; b1's handshake is done in time. Nobody dials c, whose initiations were heard.
	for _, d := range []string{b0, b1, c0} {
		w.rx[d] = 240
	}
	moved := netip.MustParseAddrPort("198.51.100.7:4444")
	w.roamed[b0] = moved
	expect("the other ends are heard")
	wait(crossedAfter - time.Millisecond)
	expect("just before")
	w.handshake[b1] = w.wall()
	wait(time.Millisecond)
	expect("after a second", b0)
	if got := observe(t, w.k.WireGuards())[b0]; !strings.Contains(got, moved.String()) {
		t.Errorf("dials %s, and was heard from %s", got, moved)
	}
	wait(crossedAgain - crossedAfter)
	w.rx[b0] = 480
	expect("WireGuard itself was next, and has crossed again")
	wait(crossedAfter - time.Millisecond)
	expect("just before")
	wait(time.Millisecond)
	expect("a second later", b0)
	wait(time.Hour)
	expect("nobody is heard any more")
	if got := observe(t, w.k.WireGuards())[b0]; !strings.Contains(got, "192.0.2.2:51820") {
		t.Errorf("dials %s, where nobody has been heard for an hour", got)
	}

	w.handshake[b0] = w.wall()
	w.rx[b0] = 1 << 20
	expect("the handshake is there")
	wait(RejectAfter)
	w.handshake[b1] = w.wall()
	expect("its keys are too old, and nobody is heard")
	wait(time.Minute)
	expect("nobody yet")
	w.rx[b0]++
	expect("there it is again")
	wait(crossedAfter)
	expect("and its handshake does not come", b0)
	w.rx[b0] = 0
	expect("the device was made anew")
	wait(time.Minute)
	expect("which is nothing that was heard")
}

// The other end, whose name sorts second, leaves it to the first; and what was heard before this process says nothing.
func TestHandshakesThatCrossElsewhere(t *testing.T) {
	for _, gateway := range []string{"a", "z"} {
		w := newWorld(t)
		e := w.engine()
		p := testPlan()
		p.Gateway = gateway
		if gateway == "a" {
			w.rx[b0] = 240
		}
		w.take(e, p)
		mark := len(w.k.Applied())
		w.rx[b1] = 240
		if gateway == "a" {
			w.handshake[b1] = w.wall()
		}
		for range 3 {
			w.settle(e)
			w.now = w.now.Add(time.Minute)
		}
		if got := w.redials(mark); len(got) != 0 {
			t.Errorf("%s dialled again on %q", gateway, got)
		}
	}
}
