package bfd

import (
	"strings"
	"testing"
	"time"
)

// TestEngines: two engines, a veth pair between them, all kinds of sessions at once; then the link is cut in several ways.
//
//	a [b0] ──────── [a0] b
func TestEngines(t *testing.T) {
	a, b := newSpaces(t, 2)
	// Beyond one hop: addresses on lo.
	a.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
	b.run("ip", "address", "add", "192.0.2.2/32", "dev", "lo")
	a.run("ip", "route", "add", "192.0.2.2/32", "via", "10.0.0.2")
	b.run("ip", "route", "add", "192.0.2.1/32", "via", "10.0.0.1")
	sha := &Auth{MeticulousKeyedSHA1, []Key{{1, Secret("secret")}}}
	// The kernel of the tests has no VRF devices; for a socket, being bound to another device is the same.
	vrf := func(name string) func(*SessionConfig) { return func(c *SessionConfig) { c.VRF = name } }
	names := []string{"v4", "v6", "link-local", "multihop", "v6 multihop", "vrf"}
	ea := a.start(
		sessionOf("v4", "10.0.0.1", "10.0.0.2", dev("b0")),
		sessionOf("v6", "2001:db8::1", "2001:db8::2", withAuth(sha)),
		sessionOf("link-local", "fe80::1", "fe80::2", dev("b0")),
		sessionOf("multihop", "192.0.2.1", "192.0.2.2", multihop(254)),
		sessionOf("v6 multihop", "2001:db8::1", "2001:db8::2", multihop(0)),
		sessionOf("vrf", "10.0.1.1", "10.0.1.2", vrf("b1")),
	)
	eb := b.start(
		sessionOf("v4", "10.0.0.2", "10.0.0.1"),
		sessionOf("v6", "2001:db8::2", "2001:db8::1", withAuth(sha)),
		sessionOf("link-local", "fe80::2", "fe80::1", dev("a0")),
		sessionOf("multihop", "192.0.2.2", "192.0.2.1", multihop(254)),
		sessionOf("v6 multihop", "2001:db8::2", "2001:db8::1", multihop(0)),
		sessionOf("vrf", "10.0.1.2", "10.0.1.1", vrf("a1")),
	)
	up := func() {
		t.Helper()
		for _, name := range names {
			for _, e := range []*running{ea, eb} {
				e.awaitState(name, Up)
				await(t, name+" polled", func() bool {
					st := e.status(name)
					return st.TxInterval == 300*ms && st.DetectionTime == 900*ms && !st.Polling && st.Problem == ""
				})
			}
		}
	}
	up()
	if s := ea.Totals().Scheduling; s == "" || !strings.Contains(ea.lines.String(), s) {
		t.Errorf("scheduling %q, log:\n%v", s, &ea.lines)
	}

	// Nothing comes in at a: it expires after the detection time, and b hears so.
	cut := time.Now()
	a.drop(true)
	for _, name := range names {
		c := ea.awaitChange(name, Down, cut)
		// The last packet came 0 to 300 ms before the cut; half a second is for a machine that does something else.
		if d := c.At.Sub(cut); c.Diag != DiagExpired || d < 500*ms || d > 900*ms+500*ms {
			t.Errorf("%s: %v after the cut: %v", name, d, c.Reason)
		}
		if c := eb.awaitChange(name, Down, cut); c.Diag != DiagNeighbourDown || c.RemoteDiag != DiagExpired || c.RemoteAdminDown() {
			t.Errorf("%s at b: %+v", name, c)
		}
	}
	a.drop(false)
	up()

	// Link down: both expire; up again: both are there again.
	cut = time.Now()
	b.run("ip", "link", "set", "a0", "down")
	for _, e := range []*running{ea, eb} {
		if c := e.awaitChange("link-local", Down, cut); c.At.Sub(cut) > 900*ms+500*ms {
			t.Errorf("%v after link down: %v", c.At.Sub(cut), c.Reason)
		}
	}
	b.run("ip", "link", "set", "a0", "up")
	b.run("ip", "address", "replace", "2001:db8::2/64", "dev", "a0")
	b.run("ip", "address", "replace", "fe80::2/64", "dev", "a0")
	b.run("ip", "route", "replace", "192.0.2.1/32", "via", "10.0.0.1")
	up()

	// An interface of the same name is another interface.
	a.run("ip", "link", "delete", "b0")
	if st := ea.awaitState("link-local", Down); st.Downs == 0 || len(st.History) < 6 {
		t.Errorf("history: %+v", st)
	}
	await(t, "problem named", func() bool { return ea.status("link-local").Problem == "there is no interface b0" })
	joinSpaces(a, b, 0)
	a.run("ip", "route", "replace", "192.0.2.2/32", "via", "10.0.0.2")
	b.run("ip", "route", "replace", "192.0.2.1/32", "via", "10.0.0.1")
	up()

	// After the end the last state can still be read.
	ea.stop()
	if st := ea.status("v4"); st.State != Up || st.Received == 0 || st.Sent == 0 {
		t.Errorf("after the end: %+v", st)
	}
	// b's neighbour is gone without a word.
	if c := eb.awaitChange("v4", Down, time.Now().Add(-100*ms)); c.Diag != DiagExpired {
		t.Errorf("%+v", c)
	}
}

// TestReconfigure: changes in place never leave Up; a session that is disabled or removed says so, and the neighbour can tell it from
// a failure.
func TestReconfigure(t *testing.T) {
	a, b := newSpaces(t, 1)
	one := sessionOf("one", "10.0.0.1", "10.0.0.2")
	ea := a.start(one)
	eb := b.start(sessionOf("one", "10.0.0.2", "10.0.0.1"))
	ea.awaitState("one", Up)
	eb.awaitState("one", Up)

	start := time.Now()
	slow := one
	slow.DesiredMinTx, slow.RequiredMinRx, slow.DetectMult = 400*ms, 350*ms, 5
	for _, step := range []struct {
		c                   SessionConfig
		tx, detectA, detect time.Duration
	}{{slow, 400 * ms, 3 * 350 * ms, 5 * 400 * ms}, {one, 300 * ms, 900 * ms, 900 * ms}} {
		if err := ea.Configure([]SessionConfig{step.c}); err != nil {
			t.Fatal(err)
		}
		await(t, "timers agreed", func() bool {
			sa, sb := ea.status("one"), eb.status("one")
			return sa.TxInterval == step.tx && sa.DetectionTime == step.detectA && sb.DetectionTime == step.detect && !sa.Polling
		})
	}
	for _, e := range []*running{ea, eb} {
		if st := e.status("one"); st.State != Up || st.Since.After(start) || st.Downs != 0 {
			t.Errorf("left Up: %+v", st)
		}
	}

	// All or nothing.
	bad := one
	bad.DetectMult = 0
	bad.Peer = bad.Local
	err := ea.Configure([]SessionConfig{one, bad, one})
	for _, want := range []string{"detect-multiplier 0", "are the same", "same path"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}

	disabled := one
	disabled.AdminDown = true
	if err := ea.Configure([]SessionConfig{disabled}); err != nil {
		t.Fatal(err)
	}
	if c := eb.awaitChange("one", Down, start); !c.RemoteAdminDown() || c.RemoteDiag != DiagAdministrativelyDown {
		t.Errorf("%+v", c)
	}
	if err := ea.Configure([]SessionConfig{one}); err != nil {
		t.Fatal(err)
	}
	ea.awaitState("one", Up)
	eb.awaitState("one", Up)

	start = time.Now()
	if err := ea.Configure(nil); err != nil {
		t.Fatal(err)
	}
	if st := ea.status("one"); !st.Leaving || st.State != AdminDown {
		t.Errorf("%+v", st)
	}
	if c := eb.awaitChange("one", Down, start); !c.RemoteAdminDown() {
		t.Errorf("%+v", c)
	}
	await(t, "forgotten", func() bool { return len(ea.States()) == 0 })
	if d := time.Since(start); d < 890*ms {
		t.Errorf("forgotten after %v", d)
	}
}

// TestPortTaken: another daemon on the port is named, not robbed of its packets; when it is gone the engine takes over.
func TestPortTaken(t *testing.T) {
	a, b := newSpaces(t, 1)
	var other int
	a.in(func() {
		var err error
		if other, err = listen("", false, SingleHopPort, true); err != nil {
			t.Error(err)
		}
	})
	ea := a.start(sessionOf("one", "10.0.0.1", "10.0.0.2"))
	b.start(sessionOf("one", "10.0.0.2", "10.0.0.1"))
	await(t, "problem named", func() bool {
		p := ea.status("one").Problem
		return strings.Contains(p, "UDP port 3784 is taken") && ea.Totals().Problem == p
	})
	closeFD(t, other)
	ea.awaitState("one", Up)
	if p := ea.Totals().Problem; p != "" {
		t.Errorf("still %q", p)
	}
}

func TestSecondRun(t *testing.T) {
	a, _ := newSpaces(t, 0)
	e := a.start()
	await(t, "runs", func() bool { return e.Totals().Scheduling != "" })
	if err := e.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("%v", err)
	}
}

func TestPathValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    SessionConfig
		want string
	}{
		{"v4", sessionOf("x", "10.0.0.1", "10.0.0.2"), ""},
		{"link-local", sessionOf("x", "fe80::1", "fe80::2", dev("eth0")), ""},
		{"v4 link-local needs none", sessionOf("x", "169.254.0.1", "169.254.0.2"), ""},
		{"multihop", sessionOf("x", "10.0.0.1", "10.0.0.2", multihop(250)), ""},
		{"no interface", sessionOf("x", "fe80::1", "fe80::2"), "need an interface"},
		{"link-local multihop", sessionOf("x", "fe80::1", "fe80::2", multihop(1)), "one hop only"},
		{"multihop interface", sessionOf("x", "10.0.0.1", "10.0.0.2", multihop(1), dev("eth0")), "has none"},
		{"families", sessionOf("x", "10.0.0.1", "fd00::1"), "different families"},
		{"same", sessionOf("x", "10.0.0.1", "10.0.0.1"), "are the same"},
		{"zone", sessionOf("x", "fe80::1%eth0", "fe80::2", dev("eth0")), "zone as interface"},
		{"4in6", sessionOf("x", "::ffff:10.0.0.1", "::ffff:10.0.0.2"), "write it as IPv4"},
		{"multicast", sessionOf("x", "10.0.0.1", "224.0.0.1"), "must be unicast"},
		{"unspecified", sessionOf("x", "0.0.0.0", "10.0.0.1"), "must be unicast"},
		{"name", sessionOf("x", "10.0.0.1", "10.0.0.2", dev("a-name-of-16-byt")), "cannot be the name"},
		{"ttl", sessionOf("x", "10.0.0.1", "10.0.0.2", func(c *SessionConfig) { c.MinTTL = 254 }), "single hop takes 255"},
		{"missing", SessionConfig{Params: functional}, "address is missing"},
	} {
		err := tt.c.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
