package site

import (
	"errors"
	"strings"
	"testing"
	"time"

	"fabric/internal/config"
	"fabric/overlay/links"
)

// The document with BFD towards ce.
var bfdDocument = strings.Replace(document, "asn: 65100}]", "asn: 65100, bfd: {}}]", 1)

// session is how fabric-links tells of BFD with ce.
func session(state string, ups uint64) links.SessionState {
	return links.SessionState{Name: "CORE/ce", VRF: "CORE", Peer: "ce", State: state, Ups: ups, Reason: "of the test"}
}

// hear has fabric-links tell of a session; that of a tunnel is none of the speaker's business.
func (g *gate) hear(st links.SessionState) {
	g.fake.change(func() {
		g.fake.state.Sessions = []links.SessionState{{Name: "gw far 0", Device: "fxw", State: "down", Ups: 1}, st}
	})
}

// wantBFD waits for what peer ce says of BFD.
func (g *gate) wantBFD(want string) (p PeerStatus) {
	g.t.Helper()
	waitFor(g.t, "BFD of ce "+want, func() (any, bool) {
		for _, x := range g.Snapshot().Peers {
			if x.Name == "ce" {
				p = x
			}
		}
		return p, p.BFD == want
	})
	return p
}

// A peer whose BFD goes down loses its routes to the runner-up at once, and has them again after the hold-off; that its operator, or
// fabric-links, takes BFD away moves nothing.
func TestPeerLiveness(t *testing.T) {
	t.Parallel()
	g := newGate(t, bfdDocument).start().waitReady()
	g.wantHealthy()
	if plan := g.intent.Load().plan; len(plan.Sessions) != 1 || plan.Sessions[0].Peer != "ce" {
		t.Fatalf("sessions planned: %+v", plan.Sessions)
	}
	g.wantBFD("waits")
	both := func() { g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2")) }
	both()
	viaCE, viaFar := []string{static, "10.3.0.0/16 via 10.1.0.2"}, []string{static, "10.3.0.0/16 " + farRoute}
	g.hear(session("up", 1))
	g.wantBFD("up")
	g.wantRoutes(viaCE...)
	if ss := g.Snapshot().Sessions; len(ss) != 2 || ss[1].Peer != "ce" {
		t.Errorf("sessions shown: %+v", ss)
	}

	away := session("down", 1)
	away.RemoteAdminDown = true
	g.hear(away)
	g.wantBFD("admin-down")
	g.wantRoutes(viaCE...)
	g.fake.change(func() { g.fake.away = errors.New("gone") })
	g.wantProblem("gone")
	g.wantBFD("admin-down")
	g.wantRoutes(viaCE...)
	g.fake.change(func() { g.fake.away = nil })

	g.hear(session("down", 1))
	g.wantRoutes(viaFar...)
	g.wantBFD("down")
	waitFor(t, "nothing of ce", func() (any, bool) { n := g.rib.SourceLen(ce); return n, n == 0 })
	g.fake.change(func() { g.fake.away = errors.New("gone") })
	g.wantProblem("gone")
	g.wantBFD("down")
	g.fake.change(func() { g.fake.away = nil })

	begun := time.Now()
	g.hear(session("up", 2))
	g.wantBFD("waits")
	both()
	g.wantRoutes(viaFar...)
	g.wantRoutes(viaCE...)
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("back after %v", took)
	}
	g.wantBFD("up")
}

// BFD is asked for at run time: what fabric-links has told already counts. Without it, the peer is as any other.
func TestPeerLivenessIsConfigured(t *testing.T) {
	t.Parallel()
	g := newGate(t, bfdDocument).start().waitReady()
	g.wantHealthy()
	g.hear(session("down", 1))
	g.wantBFD("down")
	g.rib.Update(fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static)
	g.commit(peerDisable("ce"))
	g.wantBFD("")
	g.commit(config.Mutation{Action: config.PeerEnable, VRF: "CORE", Name: "ce"})
	g.wantBFD("waits")
	g.hear(session("down", 1))
	g.wantBFD("down")
}

// A restart within a boot: what ce told before is used while its BFD is up or not heard of, and not when it is down.
func TestPeerLivenessAtWarmStart(t *testing.T) {
	for _, c := range []struct {
		state string
		ups   uint64
		want  []string
	}{
		{"up", 1, []string{"10.4.0.0/16 via 10.1.0.2"}},
		{"down", 1, nil},
		{"", 0, []string{"10.4.0.0/16 via 10.1.0.2"}},
	} {
		t.Run("BFD "+c.state, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := newGateOn(t, bfdDocument, newKernel(t, bfdDocument, withoutVRF), dir).start().waitReady()
			first.hear(session("up", 1))
			first.rib.Update(fromFar("10.2.0.0/16"), fromCE("10.4.0.0/16", "10.1.0.2"))
			first.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.4.0.0/16 via 10.1.0.2")
			first.stop()

			g := newGateOn(t, bfdDocument, first.kernel, dir)
			if c.state != "" {
				g.fake.sessions = []links.SessionState{session(c.state, c.ups)}
			}
			g.start().waitReady()
			g.wantBFD(map[string]string{"": "waits"}[c.state] + c.state)
			g.wantRoutes(append([]string{static, "10.2.0.0/16 " + farRoute}, c.want...)...)
		})
	}
}

// A tunnel is drained through fabric-links, and its answer is the caller's.
func TestDrainTunnel(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.wantHealthy()
	device := g.Snapshot().Tunnels[0].Device
	for _, drained := range []bool{true, false} {
		if err := g.DrainTunnel(t.Context(), device, drained); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the tunnel", func() (any, bool) { ts := g.Snapshot().Tunnels; return ts, ts[0].Drained == drained })
	}
	if err := g.DrainTunnel(t.Context(), "eth1", true); err == nil {
		t.Error("a device that is no tunnel was drained")
	}
	if was, err := g.RotateTunnel(t.Context(), device); err != nil || was != 0 {
		t.Errorf("rotated generation %d, error %v", was, err)
	}
	waitFor(t, "the keys", func() (any, bool) { ts := g.Snapshot().Tunnels; return ts, ts[0].KeyGeneration == 1 })
	if _, err := g.RotateTunnel(t.Context(), "eth1"); err == nil {
		t.Error("a device that is no tunnel was rotated")
	}
}
