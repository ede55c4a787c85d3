package site

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/overlay"
	"fabric/overlay/links"
	"fabric/vrf"
)

// legCE and legFar are the next hops of the test's two neighbours in CORE.
var (
	legCE  = overlay.Leg{Gateway: netip.MustParseAddr("10.1.0.2"), Device: "eth1", Session: "CORE/ce"}
	legFar = overlay.Leg{Gateway: overlay.VTEPGateway(far.Addr), Device: overlay.VXLANDevice(1000), VTEP: far.Addr}
	// ceThenFar is the set of those, and the route that refers to it.
	ceThenFar      = overlay.NextHopSetID("CORE", []overlay.Leg{legCE, legFar}, 0)
	ceThenFarRoute = fmt.Sprintf("nhid %d", ceThenFar)
)

// newSetGate is a gateway whose fabric-links makes sets; ce's BFD is up.
func newSetGate(t *testing.T) *gate {
	t.Helper()
	return newSetGateOf(newGate(t, bfdDocument))
}

func newSetGateOf(g *gate) *gate {
	g.fake.sets = true
	g.fake.sessions = []links.SessionState{session("up", 1)}
	g.tune = func(s *Site) { s.fib.sets.grace = 20 * time.Millisecond }
	return g
}

// wantSet waits for what the plan that fabric-links has says of a set: "use", "stay", "kept" or "" for nothing.
func (g *gate) wantSet(id uint32, want string) {
	g.t.Helper()
	waitFor(g.t, fmt.Sprintf("set %d %q", id, want), func() (any, bool) {
		g.fake.mu.Lock()
		defer g.fake.mu.Unlock()
		have := ""
		for _, s := range g.fake.plan.Sets {
			if s.ID == id {
				have = map[bool]string{false: "use", true: "stay"}[s.Stay]
			}
		}
		for _, s := range g.fake.plan.Kept {
			if s.ID == id {
				have = "kept"
			}
		}
		return fmt.Sprintf("%s %+v", have, g.fake.plan.Sets), have == want
	})
}

// Two ways to a prefix share one next-hop object; when the first dies the routes leave it, and it goes once none refers to it.
func TestSets(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	both := func() {
		for _, p := range []string{"10.3.0.0/16", "10.4.0.0/16"} {
			g.rib.Update(fromFar(p), fromCE(p, "10.1.0.2"))
		}
	}
	both()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)
	g.wantSet(ceThenFar, "use")
	x, err := g.Explain("CORE", netip.MustParsePrefix("10.3.0.0/16"))
	if err != nil || !slices.ContainsFunc(x.Lines, func(l string) bool {
		return strings.Contains(l, "next-hop set") && strings.HasSuffix(l, "which is now via 10.1.0.2 dev eth1.")
	}) {
		t.Errorf("explained as %q, %v", x.Lines, err)
	}
	// A restart of fabric-links, and its absence, move nothing.
	g.fake.change(func() { g.fake.away = errors.New("gone") })
	g.wantProblem("gone")
	g.fake.change(func() { g.fake.away, g.fake.state = nil, links.State{} })
	g.wantHealthy()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)

	g.hear(session("down", 1))
	g.wantRoutes(static, "10.3.0.0/16 "+farRoute, "10.4.0.0/16 "+farRoute)
	// Not all neighbours have said all they know: routes that nobody wants may still refer to it.
	g.wantSet(ceThenFar, "stay")
	g.rib.Release()
	g.wantSet(ceThenFar, "")
	g.wantRoutes(static, "10.3.0.0/16 "+farRoute, "10.4.0.0/16 "+farRoute)

	g.hear(session("up", 2))
	g.wantBFD("waits")
	both()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)
}

// The second next hop of a set lies behind another route, and follows it.
func TestSetsFollowTheSecond(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	second := fromCE("10.3.0.0/16", "192.0.2.9")
	second.Key.Source.Name, second.Key.Source.Addr = "ce2", second.Attrs.NextHop
	second.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{65200, 65200}}}
	// via has a static route lead to the second, and waits for the set that follows from it.
	via := func(gateway string) {
		g.t.Helper()
		to := fromCE("192.0.2.9/32", gateway)
		to.Key.Source = rib.Source{Kind: rib.Static, VRF: "CORE"}
		g.rib.Update(to)
		set := overlay.NextHopSetID("CORE", []overlay.Leg{legCE, {Gateway: netip.MustParseAddr(gateway), Device: "eth1"}}, 0)
		g.wantRoutes(static, "192.0.2.9/32 via "+gateway, fmt.Sprintf("10.3.0.0/16 nhid %d", set))
		g.wantSet(set, "use")
	}
	g.rib.Update(fromCE("10.3.0.0/16", "10.1.0.2"), second)
	via("10.1.0.8")
	via("10.1.0.7")
}

// What fabric-links cannot make is written the plain way, and so is what it has lost.
func TestSetsThatAreNotReady(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	g.fake.ready(false)
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
	g.fake.ready(true)
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
}

// A set that a later plan has no room for, as when its gateways are gone from the document, is not there any more.
func TestSetsLeftOutOfThePlan(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	plan := g.fib.planWithSets()
	without := plan
	without.Sets = nil
	g.fib.setsTaken(without, nil)
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
	g.fib.setsTaken(plan, nil)
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
}

// A set that waits for the plan gets it again, as long as it is wanted.
func TestSetsHeld(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	hold := func() {
		g.fake.change(func() {
			g.fake.onLeg[ceThenFar] = 1
			g.fake.state.Sets = []links.SetState{{ID: ceThenFar, VRF: "CORE", Ready: true, Current: legFar.String(), Rank: 1, Held: true}}
		})
	}
	onFirst := func() (any, bool) {
		g.fake.mu.Lock()
		defer g.fake.mu.Unlock()
		return g.fake.onLeg, g.fake.onLeg[ceThenFar] == 0
	}
	hold()
	waitFor(t, "the set on its first leg", onFirst)
	// By a path that nobody has confirmed since a restart it is not said.
	stale := fromCE("10.5.0.0/16", "10.1.0.2")
	stale.Stale = true
	g.rib.Update(fromFar("10.5.0.0/16"), stale)
	// The fabric's path is the fresher one, so it takes a worse one to have the stale one chosen.
	longer := fromFar("10.5.0.0/16")
	longer.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{65002, 65002, 65002}}}
	g.rib.Update(longer)
	g.wantSet(ceThenFar, "stay")
	before := g.fake.applies.Load()
	hold()
	g.hear(session("up", 3)) // something else to hear
	if _, ok := onFirst(); ok || g.fake.applies.Load() != before {
		t.Errorf("the plan was sent again for a set that shall stay")
	}
}

// A set that begins to wait while the plan is handed over, which may be too late for that plan, gets it once more.
func TestSetsHeldDuringHandOver(t *testing.T) {
	t.Parallel()
	waits := links.SetState{ID: ceThenFar, VRF: "CORE", Ready: true, Current: legFar.String(), Rank: 1, Held: true}
	for name, last := range map[string]func(g *gate, r *links.Result){
		"told before the answer": func(g *gate, _ *links.Result) {
			g.fake.change(func() {
				g.fake.onLeg[ceThenFar] = 1
				g.fake.state.Sets = []links.SetState{waits}
			})
			waitFor(t, "the state heard", func() (any, bool) {
				g.links.mu.Lock()
				defer g.links.mu.Unlock()
				return g.links.state.Sets, len(g.links.state.Sets) == 1 && g.links.state.Sets[0].Held && g.links.resend
			})
		},
		"in the answer": func(_ *gate, r *links.Result) { r.Sets = []links.SetState{waits} },
	} {
		t.Run(name, func(t *testing.T) {
			g := newSetGate(t).start().waitReady()
			g.wantHealthy()
			g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
			g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
			before := g.fake.applies.Load()
			g.fake.change(func() { g.fake.last = func(r *links.Result) { last(g, r) } })
			g.links.again()
			waitFor(t, "the plan sent twice", func() (any, bool) {
				n := g.fake.applies.Load() - before
				return n, n >= 2
			})
		})
	}
}

// A restart adopts the routes as they are.
func TestSetsOverRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := newSetGateOf(newGateOn(t, bfdDocument, newKernel(t, bfdDocument, withoutVRF), dir)).start().waitReady()
	first.wantHealthy()
	first.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"), fromFar("10.4.0.0/16"), fromCE("10.4.0.0/16", "10.1.0.2"))
	first.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)
	first.stop()
	before := len(first.kernel.Applied())

	g := newSetGateOf(newGateOn(t, bfdDocument, first.kernel, dir))
	// fabric-links has gone on, with a set more: a route may refer to it that the checkpoint was too old for.
	other := overlay.NextHopSet{ID: overlay.NextHopSetID("CORE", []overlay.Leg{legFar, legCE}, 0), VRF: "CORE", Legs: []overlay.Leg{legFar, legCE}}
	first.fake.mu.Lock()
	g.fake.plan, g.fake.state = first.fake.plan, first.fake.state
	first.fake.mu.Unlock()
	g.fake.plan.Sets = append(slices.Clone(g.fake.plan.Sets), other)
	g.start().waitReady()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)
	g.wantHealthy()
	g.wantSet(ceThenFar, "stay") // its paths are those of the checkpoint
	g.wantSet(other.ID, "kept")
	for _, step := range first.kernel.Applied()[before:] {
		if strings.Contains(step, "10.3.") || strings.Contains(step, "10.4.") {
			t.Errorf("after the restart: %s", step)
		}
	}
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"), fromFar("10.4.0.0/16"), fromCE("10.4.0.0/16", "10.1.0.2"))
	g.wantSet(ceThenFar, "use")
	g.rib.Release()
	g.wantSet(other.ID, "")
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute, "10.4.0.0/16 "+ceThenFarRoute)
}

// Beyond the most sets there may be, routes are written the plain way.
func TestSetsAreBounded(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	g.fib.mu.Lock()
	for i := range overlay.MaxSets {
		key := setKey{vrf: fmt.Sprint(i), legs: vrf.Rank(0, legCE, legFar)}
		g.fib.sets.byKey[key] = &nextHopSet{key: key, id: uint32(i), users: 1}
	}
	g.fib.mu.Unlock()
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
	if !strings.Contains(g.log.String(), "some routes have no next-hop set") {
		t.Error("it is not said")
	}
	// There is room again once one of them is no longer wanted.
	g.fib.mu.Lock()
	for _, s := range g.fib.sets.byKey {
		s.users, s.unused = 0, time.Now()
		break
	}
	g.fib.mu.Unlock()
	g.rib.Release()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	g.rib.Withdraw(fromFar("10.3.0.0/16").Key, fromCE("10.3.0.0/16", "10.1.0.2").Key)
	g.wantRoutes(static)
	g.fib.mu.Lock()
	defer g.fib.mu.Unlock()
	if len(g.fib.sets.refused) > 0 || g.fib.sets.said {
		t.Errorf("still refused: %v", g.fib.sets.refused)
	}
}

// A route that cannot be written holds up the set that it refers to in the kernel, and no others.
func TestSetsBesideFailures(t *testing.T) {
	t.Parallel()
	g := newSetGate(t).start().waitReady()
	g.wantHealthy()
	absent := fromCE("10.5.0.0/16", "10.1.0.2")
	absent.Interface = "absent"
	g.rib.Update(absent, fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.rib.Release()
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	g.wantProblem("10.5.0.0/16", "absent")
	g.wantSet(ceThenFar, "use")
	g.rib.Withdraw(fromFar("10.3.0.0/16").Key)
	g.wantSet(ceThenFar, "")
	g.wantProblem("10.5.0.0/16", "absent")

	g.rib.Update(fromFar("10.3.0.0/16"))
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	absent.Key.Prefix = netip.MustParsePrefix("10.3.0.0/16")
	g.rib.Withdraw(fromFar("10.3.0.0/16").Key)
	g.rib.Update(absent)
	g.wantProblem("10.3.0.0/16", "absent")
	g.wantSet(ceThenFar, "stay")
	for range 4 {
		before := g.fib.loop.Summary().LastObserve
		waitFor(t, "another look at the kernel", func() (any, bool) {
			now := g.fib.loop.Summary().LastObserve
			return now, now.After(before)
		})
	}
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
	g.wantSet(ceThenFar, "stay")
	g.fib.mu.Lock()
	if vtep := overlay.NextHopID(1000, far.Addr); !g.fib.known(map[uint32]bool{ceThenFar: true, vtep: true}) || g.fib.known(map[uint32]bool{ceThenFar + 1: true}) {
		t.Error("which next-hop objects are known")
	}
	g.fib.mu.Unlock()
	g.rib.Update(fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantSet(ceThenFar, "")
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
}

// Two neighbours that tell a prefix equally well share a group; a third way is behind it.
func TestMultipath(t *testing.T) {
	t.Parallel()
	doc := strings.Replace(bfdDocument, "- vrf: CORE\n", "- vrf: CORE\n            multipath: 2\n", 1)
	dir := t.TempDir()
	g := newSetGateOf(newGateOn(t, doc, newKernel(t, doc, withoutVRF), dir)).start().waitReady()
	g.wantHealthy()
	// Another neighbour on the same network, of another AS.
	second := func(p string) rib.Path {
		path := fromCE(p, "10.1.0.3")
		path.Key.Source.Name, path.Key.Source.Addr = "ce2", path.Attrs.NextHop
		path.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{65200}}}
		return path
	}
	legSecond := overlay.Leg{Gateway: netip.MustParseAddr("10.1.0.3"), Device: "eth1"}
	legs := []overlay.Leg{legCE, legSecond, legFar}
	shared := overlay.NextHopSetID("CORE", legs, 2)
	sharedRoute := fmt.Sprintf("nhid %d", shared)
	prefix := netip.MustParsePrefix("10.3.0.0/16")
	g.rib.Update(fromFar("10.3.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"), second("10.3.0.0/16"))
	g.wantRoutes(static, "10.3.0.0/16 "+sharedRoute)
	g.wantSet(shared, "use")
	// The kernel has it a moment before that is known.
	waitFor(t, "the story", func() (any, bool) {
		x, err := g.Explain("CORE", prefix)
		if err != nil || len(x.Candidates) != 3 {
			return fmt.Sprintf("%+v, %v", x, err), false
		}
		story := strings.Join(x.Lines, "\n")
		return story, x.Candidates[0].Best && x.Candidates[1].Equal && !x.Candidates[2].Equal &&
			slices.Equal(x.Candidates[0].Route.NextHops, []string{"10.1.0.2", "10.1.0.3"}) &&
			strings.Contains(story, "sharing traffic with it (multipath): ce2.") &&
			strings.Contains(story, "via 10.1.0.2 dev eth1 and via 10.1.0.3 dev eth1, then via fe80::")
	})

	// Which of the two is the best is no reason to write the route: a restart makes first one stale, then the other.
	before := len(g.kernel.Applied())
	for _, src := range []rib.Source{ce, second("10.3.0.0/16").Key.Source} {
		g.rib.MarkStale(src)
		g.wantSet(shared, "stay")
		g.rib.Update(fromCE("10.3.0.0/16", "10.1.0.2"), second("10.3.0.0/16"))
		g.wantSet(shared, "use")
	}
	for _, step := range g.kernel.Applied()[before:] {
		if strings.Contains(step, "10.3.") {
			t.Errorf("while neighbours restarted: %s", step)
		}
	}

	// fabric-links has lost it: the best path alone. It has it again, and one neighbour withdraws.
	g.fake.ready(false)
	g.wantRoutes(static, "10.3.0.0/16 via 10.1.0.2")
	g.fake.ready(true)
	g.wantRoutes(static, "10.3.0.0/16 "+sharedRoute)
	g.rib.Withdraw(second("10.3.0.0/16").Key)
	g.wantRoutes(static, "10.3.0.0/16 "+ceThenFarRoute)
}
