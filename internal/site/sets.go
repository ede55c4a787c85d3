package site

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/links"
	"fabric/vrf"
)

// Next-hop sets: choices that rank the same next hops in the same order share one next-hop object, which fabric-links moves to
// the next when the first dies. The first may be several that share traffic; fabric-links then takes out the one that dies.
//
//	choice wants a set ──► plan ──► fabric-links has it ──► routes refer to it
//	                 └──► until then, and without it, the route is written the plain way
//	no choice wants it ─► plan says Stay ──► no route refers to it ──► gone from the plan
const (
	// setsDelay gathers sets that come up one after the other into one plan.
	setsDelay = 50 * time.Millisecond
	// setsGrace is how long a set stays that no choice wants any more, at least.
	setsGrace = 5 * time.Second
)

// setKey tells sets apart.
type setKey struct {
	vrf  string
	legs vrf.Ranked
}

// nextHopSet is one set that choices want, or wanted. It is the fib's, under its mu.
type nextHopSet struct {
	key setKey
	id  uint32
	// users are the choices that want it; stale of them go by a path kept over a restart, which nobody has confirmed yet.
	users, stale int
	// unused is since when there are no users.
	unused time.Time
	// planned: it is in a plan that fabric-links took. There: fabric-links has the object.
	planned, there bool
	// using: the routes of its users refer to it.
	using bool
	// current are the legs that it was on when fabric-links last told, and inUse their places.
	current string
	inUse   []int
}

// ready says whether routes may refer to the set.
func (s *nextHopSet) ready() bool { return s.planned && s.there }

// stay says that fabric-links must not take it to a better leg.
func (s *nextHopSet) stay() bool { return s.users == 0 || s.stale > 0 }

// sets are those of a fib.
type sets struct {
	byKey map[setKey]*nextHopSet
	byID  map[uint32]*nextHopSet
	// ids are those of their objects.
	ids overlay.IDs
	// dirty: the plan that fabric-links has is no longer what sets want.
	dirty bool
	// completeSince is when all neighbours had said all they know. Whole: since then every route of ours was seen to be as wanted, so
	// none refers to a set that is not here.
	completeSince time.Time
	whole         bool
	// refused are the choices whose set found no room or no free id; said: that there are such.
	refused map[rib.Key]bool
	said    bool
	grace   time.Duration
	delayed bool
}

func newSets() sets {
	return sets{byKey: map[setKey]*nextHopSet{}, byID: map[uint32]*nextHopSet{}, ids: overlay.IDs{}, refused: map[rib.Key]bool{}, grace: setsGrace}
}

// setFor finds or makes the set that a choice wants, and the route that refers to it; nil for none.
func (f *fib) setFor(in *intent, m *vrf.Member, c rib.Choice, plain kernel.Route) (*nextHopSet, kernel.Route) {
	legs, r, ok := m.Legs(c, plain, f.site.rib.Resolve, in.session)
	if !ok || !f.site.cfg.Kernel.Features().NextHops {
		return nil, r
	}
	key := setKey{m.Name, legs}
	s := f.sets.byKey[key]
	if s == nil {
		s = &nextHopSet{key: key, id: overlay.NextHopSetID(m.Name, legs.Legs(), legs.Equal)}
		if len(f.sets.byKey) >= overlay.MaxSets || !f.free(in, s) {
			f.sets.refused[c.Key] = true
			if !f.sets.said {
				f.sets.said = true
				f.site.log.Warn("some routes have no next-hop set: they are moved one by one when their next hop dies", "sets", len(f.sets.byKey), "most", overlay.MaxSets, "next-hops", legs.Legs())
			}
			return nil, r
		}
		f.sets.byKey[key], f.sets.byID[s.id] = s, s
		f.sets.dirty = true
	}
	r.NextHopID = s.id
	return s, r
}

// free says whether the ids of a new set's objects stand for nothing else.
func (f *fib) free(in *intent, s *nextHopSet) bool {
	want := s.asPlanned()
	ids := want.IDs()
	for _, n := range in.plan.NextHops {
		if slices.Contains(ids, n.ID) {
			return false
		}
	}
	return f.sets.ids.Add(want)
}

// asPlanned is the set as the plan has it.
func (s *nextHopSet) asPlanned() overlay.NextHopSet {
	return overlay.NextHopSet{ID: s.id, VRF: s.key.vrf, Legs: s.key.legs.Legs(), Equal: s.key.legs.Equal, Stay: s.stay()}
}

// count adds n users to the set of a choice.
func (f *fib) count(p placed, n int) {
	s := p.set
	if s == nil {
		return
	}
	stay := s.stay()
	s.users += n
	if p.Best.Stale || slices.ContainsFunc(p.Equal, func(e *rib.Path) bool { return e.Stale }) {
		s.stale += n
	}
	if s.users == 0 {
		s.unused = time.Now()
	}
	f.sets.dirty = f.sets.dirty || stay != s.stay()
}

// askForSets has the plan sent soon if the sets have changed. It is called with mu held.
func (f *fib) askForSets() {
	if !f.sets.dirty || f.sets.delayed {
		return
	}
	f.sets.delayed = true
	time.AfterFunc(setsDelay, func() {
		f.mu.Lock()
		f.sets.delayed = false
		f.mu.Unlock()
		f.site.links.wake()
	})
}

// planWithSets is the intent's plan with the sets that are wanted now, and those that routes may still refer to.
func (f *fib) planWithSets() overlay.Plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.site.intent.Load().plan
	f.sets.dirty = false
	p.SetsWhole = f.sets.whole
	p.Sets = nil
	for _, s := range f.sets.byKey {
		// A set of the intent before may name what this one has no more.
		if x, ok := p.Fit(s.asPlanned()); ok {
			p.Sets = append(p.Sets, x)
		}
	}
	slices.SortFunc(p.Sets, func(a, b overlay.NextHopSet) int { return cmp.Compare(a.ID, b.ID) })
	return p
}

// setsTaken notes that fabric-links has taken a plan, and how its sets stand. Held is that of setsTold.
func (f *fib) setsTaken(p overlay.Plan, states []links.SetState) (held bool) {
	planned := map[uint32]bool{}
	for i := range p.Sets {
		planned[p.Sets[i].ID] = true
	}
	f.mu.Lock()
	for id, s := range f.sets.byID {
		// One that did not fit into the plan is not there any more, or not for long.
		s.planned = planned[id]
	}
	f.mu.Unlock()
	return f.setsTold(states)
}

// setsTold takes how fabric-links says sets stand, and moves the routes that may now refer to theirs, or no longer can. Held: one of
// them waits for the plan to be sent again before it goes back to its first leg.
func (f *fib) setsTold(states []links.SetState) (held bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range states {
		st := &states[i]
		s := f.sets.byID[st.ID]
		if s == nil {
			continue
		}
		s.there, s.current, s.inUse = st.Ready, st.Current, st.InUse
		held = held || st.Held && s.planned && !s.stay()
	}
	changed := map[*nextHopSet]bool{}
	for _, s := range f.sets.byKey {
		if s.using != s.ready() {
			s.using = s.ready()
			changed[s] = true
		}
	}
	if len(changed) > 0 {
		f.replace(changed)
	}
	return held
}

// sweepSets forgets sets that no route refers to any more, until ctx ends.
func (f *fib) sweepSets(ctx context.Context) error {
	tick := time.NewTicker(f.sets.grace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.forgetSets(time.Now())
		}
	}
}

// forgetSets drops the sets that are unused for a while, once the kernel's routes were seen since and none refers to them: deleting a
// next-hop object deletes the routes that refer to it. Routes that cannot be written hold up the sets that they refer to, and no others.
func (f *fib) forgetSets(now time.Time) {
	observed := f.loop.Summary().LastObserve
	referred := map[uint32]bool{}
	settled := f.loop.Strays(func(_ kernel.RouteKey, r kernel.Route) {
		if r.NextHopID != 0 {
			referred[r.NextHopID] = true
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := func(since time.Time) bool {
		return f.complete && settled && now.Sub(since) >= f.sets.grace && observed.Sub(since) >= f.sets.grace/2
	}
	waiting, forgotten := false, false
	for key, s := range f.sets.byKey {
		switch {
		case s.users > 0:
		case seen(s.unused) && !referred[s.id]:
			delete(f.sets.byKey, key)
			delete(f.sets.byID, s.id)
			f.sets.dirty, forgotten = true, true
		default:
			waiting = true
		}
	}
	if forgotten {
		f.sets.ids = overlay.IDs{}
		for _, s := range f.sets.byKey {
			f.sets.ids.Add(s.asPlanned())
		}
		f.retryRefused()
	}
	if f.complete && !f.sets.whole {
		f.sets.whole = seen(f.sets.completeSince) && f.known(referred)
		f.sets.dirty = f.sets.dirty || f.sets.whole
		waiting = waiting || !f.sets.whole
	}
	if waiting {
		f.loop.Wake()
	}
	f.askForSets()
}

// known says whether all next-hop objects are those of our sets and of the plan.
func (f *fib) known(ids map[uint32]bool) bool {
	plan := f.site.intent.Load().plan.NextHops
	for id := range ids {
		if f.sets.byID[id] == nil && !slices.ContainsFunc(plan, func(n overlay.NextHop) bool { return n.ID == id }) {
			return false
		}
	}
	return true
}

// retryRefused places the choices anew whose set was refused, as long as there is room.
func (f *fib) retryRefused() {
	in := f.site.intent.Load()
	d := delta{set: map[kernel.RouteKey]kernel.Route{}}
	for _, k := range slices.Collect(maps.Keys(f.sets.refused)) { // put changes the map
		if len(f.sets.byKey) >= overlay.MaxSets {
			break
		}
		f.put(in, f.choices[k].Choice, &d)
	}
	f.sets.said = len(f.sets.refused) > 0
	f.loop.Patch(d.set, d.gone...)
}

// setStory says by which set a choice goes, "" for none.
func (f *fib) setStory(k rib.Key) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.choices[k].set
	if s == nil {
		return ""
	}
	if !s.using {
		return "It will go by a next-hop set as soon as fabric-links has one."
	}
	legs, equal := s.key.legs.Legs(), s.key.legs.Equal
	var words []string
	for _, l := range legs {
		words = append(words, l.String())
	}
	if equal > 0 {
		words = slices.Insert(words[equal:], 0, strings.Join(words[:equal], " and "))
	}
	return fmt.Sprintf("It goes by next-hop set %d (%s), which is now %s.", s.id, strings.Join(words, ", then "), s.current)
}

// nextHops are the next hops that traffic of a choice takes where a next-hop set decides; none where the route has one of its own.
func (f *fib) nextHops(k rib.Key) (hops []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.choices[k].set
	if s == nil || !s.using {
		return nil
	}
	for _, i := range s.inUse {
		legs := s.key.legs.Legs()
		if i < 0 || i >= len(legs) {
			continue // a fabric-links that took another set for this one
		}
		hop := legs[i].Gateway
		if legs[i].VTEP.IsValid() {
			hop = legs[i].VTEP
		}
		hops = append(hops, hop.String())
	}
	return hops
}
