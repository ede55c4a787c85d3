package site

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"fabric/overlay/links"
)

// Without fabric-links the site's own neighbours are served after a while, and all is well once it is there.
func TestLinksAway(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	g.fake.away = errors.New("fabric-links does not answer (is fabric-links.service running?)")
	g.cfg.LinksPatience = 300 * time.Millisecond
	begun := time.Now()
	g.start().waitReady()
	if took := time.Since(begun); took < g.cfg.LinksPatience {
		t.Errorf("ready after %v: without fabric-links that is too soon", took)
	}
	g.wantProblem("fabric-links does not answer")
	if s := g.Snapshot().Site; s.LinksConnected || s.Applied != 0 {
		t.Errorf("connected %v, applied %d", s.LinksConnected, s.Applied)
	}
	waitFor(t, "sessions", func() (any, bool) { ps := g.speaker.Peers(); return ps, len(ps) == 2 })
	g.rib.Update(fromFar("10.2.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
	g.fake.change(func() { g.fake.away = nil })
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2", "10.2.0.0/16 "+farRoute)
	g.wantHealthy()
	if !g.Snapshot().Site.LinksConnected {
		t.Error("not connected")
	}
}

// While fabric-links is away what it last said holds; when it comes back without our plan it is given it.
func TestLinksLosesPlan(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.wantHealthy()
	g.fake.change(func() { g.fake.away = errors.New("gone") })
	g.wantProblem("gone")
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	for _, state := range []links.State{{}, {Gateway: "gw", Digest: "of another plan"}} {
		before := g.fake.applies.Load()
		g.fake.change(func() { g.fake.away, g.fake.state = nil, state })
		waitFor(t, "the plan again", func() (any, bool) { n := g.fake.applies.Load(); return n, n > before })
		g.wantHealthy()
	}
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
}

// A plan that fabric-links refuses is a problem, and is given again.
func TestPlanRefused(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	g.cfg.LinksPatience = time.Millisecond
	g.fake.away = errors.New("plan version 9 is not understood")
	g.start().waitReady()
	g.wantProblem("plan version 9 is not understood")
	g.fake.change(func() { g.fake.away = nil })
	g.wantHealthy()
}

// A fabric-links of another version calls our plan something else; that alone is no reason to hand it over again.
func TestLinksOfAnotherVersion(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	g.fake.older = true
	g.start().waitReady()
	g.wantHealthy()
	n := g.fake.applies.Load()
	for i := range 5 {
		g.fake.setVTEP(fmt.Sprint("fxw", i))
		waitFor(t, "the state", func() (any, bool) {
			st, _, _ := g.links.snapshot()
			return st, st.VTEPs[0].Device == fmt.Sprint("fxw", i)
		})
	}
	if now := g.fake.applies.Load(); now != n {
		t.Errorf("the plan was handed over %d times more", now-n)
	}
}

// A remote VTEP that fabric-links cannot reach takes its routes along, and brings them back.
func TestVTEPDown(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"), fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"), fromCE("10.4.0.0/16", "10.1.0.2"))
	up := []string{static, "10.2.0.0/16 " + farRoute, "10.3.0.0/16 via 10.1.0.2", "10.4.0.0/16 via 10.1.0.2"}
	g.wantRoutes(up...)
	g.fake.setVTEP("")
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2", "10.4.0.0/16 via 10.1.0.2")
	x, err := g.Explain("CORE", fromFar("10.2.0.0/16").Key.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Candidates) != 1 || x.Candidates[0].Best || !strings.Contains(x.Candidates[0].Why, "next hop reachable") {
		t.Errorf("explain of a route without a way: %+v", x.Candidates)
	}
	g.fake.setVTEP("fxw")
	g.wantRoutes(up...)
}

// What fabric-links finds wrong is a problem of the gateway too.
func TestLinksProblems(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.wantHealthy()
	g.fake.change(func() {
		g.fake.state.Problems = []links.Object{{Kind: "wireguard", Name: "gw-far", Status: links.Failed, Message: "key file is readable by others"}}
	})
	g.wantProblem("fabric-links", "gw-far", "key file is readable by others")
	if ts := g.Snapshot().Tunnels; len(ts) != 1 || ts[0].Remote != "far" || ts[0].State != links.Up {
		t.Errorf("tunnels %+v", ts)
	}
}
