package links

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// nextHopSet is one next-hop object that moves between ranked legs. Like the routes to VTEPs it is the repair table's: the BFD engine's
// thread moves it at once when the leg it is on dies, and a pass does not undo that.
//
//	leg dies ──────────────────────► best leg that is alive
//	better leg comes back ─────────► nothing, "held"
//	plan without Stay, leg alive ──► vouched for ── hold time over ──► back to it
//
// Where the first legs share traffic the object is a group of next hops, whose members are the pass's to make. A leg of those that dies is
// taken out of the group, and comes back into it, by the same rules: each time one replacement of the group.
type nextHopSet struct {
	overlay.NextHopSet
	legs []setLeg
	// current are the places of the legs that the object is over as it stands, ascending; none if it is there but over no leg of ours, or
	// not there. object is how it stands. known says that it was ever read.
	current      []int
	object       kernel.NextHop
	there, known bool
}

// none is no leg.
const none = -1

// first is how many legs are of the first rank.
func (s *nextHopSet) first() int { return max(1, s.Equal) }

// setLeg is a leg as far as the choice depends on it.
type setLeg struct {
	hop kernel.NextHop
	// watch is the session on the leg, nil for none.
	watch *watch
	// vtep is the way that the leg takes, nil for none.
	vtep *way
	// vouched: fabric-site wants the leg used since it last came alive.
	vouched bool
	// id is that of the next-hop object that stands for the leg in a group, made says that it is there.
	id   uint32
	made bool
}

// watch is a third-party peer's session as far as sets depend on it.
type watch struct {
	name      string
	detection time.Duration
	state     bfd.State
	// byCommand: the session is down because an operator wants it so, which says nothing about the path (RFC 5882 section 4.3.2).
	byCommand bool
	changes   int
	// trust is until when a session that is not Up says nothing: it has just begun.
	trust time.Time
	hold  hold
}

// pulse is how alive a leg is, best first.
type pulse int

const (
	alive pulse = iota
	// recovering: alive again, and not to be returned to yet.
	recovering
	// uncertain: nothing is known, which is no reason to leave it.
	uncertain
	dead
)

// pulse of a leg.
func (l *setLeg) pulse(now time.Time) pulse {
	switch {
	case l.vtep != nil && !l.vtep.known:
		return uncertain
	case l.vtep != nil && (len(l.vtep.current) == 0 || l.vtep.transit.down() != ""):
		return dead
	case l.vtep != nil || l.watch == nil:
		return alive
	}
	switch w := l.watch; {
	case w.state == bfd.Up && now.Before(w.hold.until):
		return recovering
	case w.state == bfd.Up:
		return alive
	case w.byCommand || now.Before(w.trust):
		return uncertain
	}
	return dead
}

// choose is the legs that the object shall be over: some of the first rank, or one behind. It leaves a leg only when that is dead, and
// returns to one only if fabric-site has vouched for it. without are legs that could not be used.
func (s *nextHopSet) choose(now time.Time, without map[int]bool) []int {
	usable := func(i int) bool { return !without[i] && (s.Equal == 0 || s.legs[i].made) }
	returns := func(i int) bool { return usable(i) && !s.Stay && s.legs[i].vouched && s.legs[i].pulse(now) == alive }
	var stays, lost []int
	for _, i := range s.current {
		switch {
		case !usable(i):
		case s.legs[i].pulse(now) == dead:
			lost = append(lost, i)
		default:
			stays = append(stays, i)
		}
	}
	if len(stays) > 0 {
		var top []int
		for i := range s.first() {
			if slices.Contains(stays, i) || returns(i) {
				top = append(top, i)
			}
		}
		if len(top) > 0 {
			return top
		}
		for i := s.first(); i < stays[0]; i++ {
			if returns(i) {
				return []int{i}
			}
		}
		return stays[:1]
	}
	best, pulses := none, make([]pulse, len(s.legs))
	for i := range s.legs {
		pulses[i] = s.legs[i].pulse(now)
		if pulses[i] == recovering && len(s.current) == 0 && s.legs[i].vouched {
			pulses[i] = alive // nothing is there yet that could flap
		}
		if usable(i) && (best == none || pulses[i] < pulses[best]) {
			best = i
		}
	}
	switch {
	case best == none:
		return nil
	case pulses[best] == dead && len(lost) > 0:
		return lost
	case best >= s.first():
		return []int{best}
	}
	var top []int
	for i := range s.first() {
		if usable(i) && pulses[i] == pulses[best] {
			top = append(top, i)
		}
	}
	return top
}

// held says that a better leg is alive, which waits for fabric-site's word.
func (s *nextHopSet) held(now time.Time) bool {
	if !s.there || len(s.current) == 0 {
		return false
	}
	for i := range max(s.first(), s.current[0]) {
		if l := &s.legs[i]; !slices.Contains(s.current, i) && !l.vouched && l.pulse(now) == alive {
			return true
		}
	}
	return false
}

// died takes back what was said for legs that are dead now.
func (s *nextHopSet) died(now time.Time) {
	for i := range s.legs {
		if s.legs[i].vouched && s.legs[i].pulse(now) == dead {
			s.legs[i].vouched = false
		}
	}
}

// watched takes a change of a peer's session, if it is one. It runs on the BFD engine's thread, under mu.
func (r *repair) watched(c bfd.Change) bool {
	w := r.watches[c.Path]
	if w == nil {
		return false
	}
	now, t := r.now(), c.Transition
	switch {
	case t.To == bfd.Up:
		w.hold.up(now)
		w.byCommand, w.trust = false, time.Time{}
	case t.RemoteAdminDown(), t.To == bfd.AdminDown:
		w.byCommand = true
	case t.From == bfd.Up:
		w.hold.down(now)
		w.byCommand, w.trust = false, time.Time{}
	case t.From == bfd.AdminDown, t.To == bfd.Init && w.byCommand:
		w.byCommand, w.trust = false, now.Add(w.detection+slowStart)
	}
	w.state = t.To
	w.changes++
	r.moveSets(now)
	return true
}

// moveSets moves the sets whose leg has died, all in one go. The pass sees to what fails on all legs.
func (r *repair) moveSets(now time.Time) {
	for _, s := range r.sets {
		s.died(now)
	}
	ctx := context.Background()
	without := map[*nextHopSet]map[int]bool{}
	todo := r.sets
	for range overlay.MaxLegs {
		var ops []reconcile.Op[uint32, kernel.NextHop]
		var moved []*nextHopSet
		var to [][]int
		for _, s := range todo {
			if !s.known || !s.there {
				continue
			}
			legs := s.choose(now, without[s])
			if op := s.op(legs); op != nil {
				ops = append(ops, *op)
				moved, to = append(moved, s), append(to, legs)
			}
		}
		if len(ops) == 0 {
			return
		}
		r.generation++
		todo = nil
		for i, err := range r.nextHops.Apply(ctx, ops) {
			s := moved[i]
			if err == nil {
				s.wrote(to[i], ops[i].New)
				r.moved++
				continue
			}
			if without[s] == nil {
				without[s] = map[int]bool{}
			}
			without[s][s.suspect(to[i])] = true
			todo = append(todo, s)
		}
	}
}

// op puts the object on these legs; nil if it is on them, or there are none.
func (s *nextHopSet) op(legs []int) *reconcile.Op[uint32, kernel.NextHop] {
	if len(legs) == 0 {
		return nil
	}
	want := s.legs[legs[0]].hop
	if s.Equal > 0 {
		var ids []uint32
		for _, i := range legs {
			ids = append(ids, s.legs[i].id)
		}
		want = nextHopGroup(ids)
	}
	switch {
	case !s.there:
		return &reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Create, Key: s.ID, New: want}
	case kernel.EqualNextHop(s.ID, want, s.object):
		return nil
	}
	return &reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Replace, Key: s.ID, Old: s.object, New: want}
}

// over are the legs that an object is over.
func (s *nextHopSet) over(h kernel.NextHop) (legs []int) {
	ids := strings.Split(h.Group, ",")
	for i, l := range s.legs {
		if s.Equal > 0 && slices.Contains(ids, strconv.FormatUint(uint64(l.id), 10)) || s.Equal == 0 && kernel.EqualNextHop(s.ID, l.hop, h) {
			legs = append(legs, i)
		}
	}
	return legs
}

// wrote notes that the object was put on legs.
func (s *nextHopSet) wrote(legs []int, h kernel.NextHop) {
	s.current, s.object, s.there = legs, h, true
}

// suspect is the leg to do without when the object could not be put on these: a new one, or else the first.
func (s *nextHopSet) suspect(legs []int) int {
	for _, i := range legs {
		if !slices.Contains(s.current, i) {
			return i
		}
	}
	return legs[0]
}

// expectSets makes the repair table know the plan's sets and the sessions that watch their legs.
func (r *repair) expectSets(plan overlay.Plan, withBFD bool, now time.Time) {
	watches, byName := map[bfd.Path]*watch{}, map[string]*watch{}
	for _, session := range plan.Sessions {
		if !withBFD {
			break
		}
		path := sessionPath(session)
		w := r.watches[path]
		detection := time.Duration(session.IntervalMs*session.Multiplier) * time.Millisecond
		if w == nil {
			w = &watch{state: bfd.Down, trust: now.Add(detection + slowStart)}
		}
		w.name, w.detection = session.Name, detection
		watches[path], byName[session.Name] = w, w
	}
	r.watches = watches
	ways := map[netip.Addr]*way{}
	for _, w := range r.ways {
		ways[w.key.Prefix.Addr()] = w
	}
	former := map[uint32]*nextHopSet{}
	for _, s := range r.sets {
		former[s.ID] = s
	}
	r.sets = nil
	for _, want := range plan.AllSets() {
		s := former[want.ID]
		// Mostly a pass finds nothing new, and the BFD engine's thread may be waiting.
		if s == nil || !slices.Equal(s.Legs, want.Legs) {
			s = newSet(want, s)
		}
		s.NextHopSet = want
		for i, l := range want.Legs {
			s.legs[i].watch, s.legs[i].vtep = byName[l.Session], ways[l.VTEP]
		}
		r.sets = append(r.sets, s)
	}
}

// newSet is a set of a plan with what is known of it from before; old is nil where there was none.
func newSet(want overlay.NextHopSet, old *nextHopSet) *nextHopSet {
	s := &nextHopSet{NextHopSet: want}
	for _, l := range want.Legs {
		leg := setLeg{hop: legHop(l)}
		if want.Equal > 0 {
			leg.id = overlay.LegNextHopID(l)
		}
		s.legs = append(s.legs, leg)
	}
	if old == nil {
		return s
	}
	s.object, s.there, s.known = old.object, old.there, old.known
	for i, l := range old.legs {
		j := slices.IndexFunc(s.legs, func(n setLeg) bool { return n.hop == l.hop })
		if j == none {
			continue
		}
		s.legs[j].vouched, s.legs[j].made = l.vouched, l.made
		if slices.Contains(old.current, i) {
			s.current = append(s.current, j)
		}
	}
	slices.Sort(s.current)
	return s
}

// vouch notes that fabric-site wants the legs used that are alive now: it has just sent a plan that says so.
func (r *repair) vouch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, s := range r.sets {
		for i := range s.legs {
			if p := s.legs[i].pulse(now); !s.Stay && p <= recovering {
				s.legs[i].vouched = true
			}
		}
	}
}

// setOutcome is what settleSets did about one set.
type setOutcome struct {
	ops  []reconcile.Op[uint32, kernel.NextHop]
	errs []error
}

// setsAtOnce bounds how many sets are looked at, or written, before the repair table is free for a moment: a repair waits for that, a millisecond
// or so.
const setsAtOnce = 128

// settleSets makes the sets' objects right, given those that were observed after begin had returned generation. It is not ok if a session's
// change has written since: observe again. Changes of sessions come in between, and find what they need to know.
func (r *repair) settleSets(ctx context.Context, generation uint64, have map[uint32]kernel.NextHop) (out map[uint32]setOutcome, ok bool) {
	for sets := range slices.Chunk(r.sets, setsAtOnce) {
		r.giveWay()
		if !r.seeSets(sets, generation, have) {
			return nil, false
		}
	}
	out = map[uint32]setOutcome{}
	for sets := range slices.Chunk(r.sets, setsAtOnce) {
		r.giveWay()
		r.writeSets(ctx, sets, out)
	}
	return out, true
}

// seeSets takes sets as they were observed, unless that is no longer so.
func (r *repair) seeSets(sets []*nextHopSet, generation uint64, have map[uint32]kernel.NextHop) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if generation != r.generation {
		return false
	}
	now := r.now()
	for _, s := range sets {
		s.object, s.there = have[s.ID]
		s.known, s.current = true, nil
		if s.there {
			s.current = s.over(s.object)
		}
		for i := range s.legs {
			member, made := have[s.legs[i].id]
			s.legs[i].made = made && kernel.EqualNextHop(s.legs[i].id, s.legs[i].hop, member)
		}
		s.died(now)
	}
	return true
}

// writeSets makes the objects of these sets right and notes in out what it did.
func (r *repair) writeSets(ctx context.Context, todo []*nextHopSet, out map[uint32]setOutcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	without := map[*nextHopSet]map[int]bool{}
	for len(todo) > 0 {
		var ops []reconcile.Op[uint32, kernel.NextHop]
		var moved []*nextHopSet
		var to [][]int
		for _, s := range todo {
			legs := s.choose(now, without[s])
			if op := s.op(legs); op != nil {
				ops = append(ops, *op)
				moved, to = append(moved, s), append(to, legs)
			}
		}
		todo = nil
		if len(ops) == 0 {
			break
		}
		r.generation++
		for i, err := range r.nextHops.Apply(ctx, ops) {
			s := moved[i]
			o := out[s.ID]
			o.ops, o.errs = append(o.ops, ops[i]), append(o.errs, err)
			out[s.ID] = o
			var foreign *reconcile.ForeignError
			switch {
			case err == nil:
				s.wrote(to[i], ops[i].New)
			case !errors.As(err, &foreign):
				if without[s] == nil {
					without[s] = map[int]bool{}
				}
				without[s][s.suspect(to[i])] = true
				todo = append(todo, s)
			}
		}
	}
}

// heardSets is heard for the sessions of third-party peers.
func (r *repair) heardSets(states map[bfd.Path]bfd.Status, changes map[string]int) {
	for path, w := range r.watches {
		st := states[path]
		if w.state == bfd.Down && st.State == bfd.Down && st.Remote == bfd.AdminDown && st.RemoteDiscriminator != 0 && w.changes == changes[w.name] {
			w.byCommand = true
		}
	}
}

// setName is how people know a set.
func setName(s overlay.NextHopSet) string {
	legs := make([]string, len(s.Legs))
	for i, l := range s.Legs {
		legs[i] = l.String()
	}
	if s.Equal > 0 {
		legs = slices.Insert(legs[s.Equal:], 0, strings.Join(legs[:s.Equal], " and "))
	}
	return strconv.FormatUint(uint64(s.ID), 10) + " in VRF " + s.VRF + ": " + strings.Join(legs, ", then ")
}

// syncSets makes the objects of the plan's sets and says how they stand.
func (e *Engine) syncSets(p *pass, plan overlay.Plan) []SetState {
	sets := plan.AllSets()
	if len(sets) == 0 {
		return nil
	}
	e.legHops(p, sets)
	const tries = 5
	var results map[uint32]setOutcome
	var err error
	for range tries {
		generation, done := e.repair.begin(), false
		var have map[uint32]kernel.NextHop
		if have, err = e.cfg.Host.NextHops(kernel.ProtocolLinks).Observe(p.ctx); err != nil {
			break
		}
		if results, done = e.repair.settleSets(p.ctx, generation, have); done {
			break
		}
	}
	if results == nil {
		// Sessions change faster than next hops are read, or they cannot be read: the next pass will.
		e.Wake()
	}
	for _, s := range sets {
		label := setName(s)
		if err != nil {
			p.note(kindSet, label, fmt.Errorf("read next hops: %w", err))
			continue
		}
		o := results[s.ID]
		var last error
		for i, op := range o.ops {
			last = o.errs[i]
			if errors.Is(last, os.ErrNotExist) {
				last = &pendingError{"device " + op.New.Device}
			}
			e.logOp(op.Kind.String(), kindSet, label, last)
			if last == nil {
				p.changes++
			}
		}
		p.note(kindSet, label, last)
	}
	return e.repair.setStates(p)
}

// legHops makes the next hops that stand for the legs of sets in groups. Nothing is removed here: a group may have it yet.
func (e *Engine) legHops(p *pass, sets []overlay.NextHopSet) {
	want := map[uint32]kernel.NextHop{}
	for _, s := range sets {
		for _, l := range s.Legs {
			if s.Equal > 0 {
				want[overlay.LegNextHopID(l)] = legHop(l)
			}
		}
	}
	if len(want) == 0 {
		return
	}
	_, _ = converge(p, kind[uint32, kernel.NextHop]{
		name: kindNextHop, edge: e.cfg.Host.NextHops(kernel.ProtocolLinks),
		label: func(id uint32) string {
			return strconv.FormatUint(uint64(id), 10) + " via " + want[id].Gateway.String() + " dev " + want[id].Device
		},
		explain: func(id uint32, err error) error { return waitIfMissing(err, "device "+want[id].Device) },
		keep:    func(uint32, kernel.NextHop) bool { return true },
	}, want)
}

// legHop is a leg as a next hop.
func legHop(l overlay.Leg) kernel.NextHop {
	return kernel.NextHop{Device: l.Device, Gateway: l.Gateway, OnLink: true, Protocol: kernel.ProtocolLinks}
}

// setStates are the sets as they stand. What takes time is done without mu.
func (r *repair) setStates(p *pass) []SetState {
	type stand struct {
		overlay.NextHopSet
		current     []int
		there, held bool
	}
	r.mu.Lock()
	now := r.now()
	sets := make([]stand, 0, len(r.sets))
	for _, s := range r.sets {
		// No news is not that it is gone.
		if s.known {
			sets = append(sets, stand{s.NextHopSet, s.current, s.there, s.held(now)})
		}
	}
	r.mu.Unlock()
	out := make([]SetState, 0, len(sets))
	for _, s := range sets {
		o := p.objects[[2]string{kindSet, setName(s.NextHopSet)}]
		st := SetState{ID: s.ID, VRF: s.VRF, Ready: s.there && len(s.current) > 0, Held: s.held, Reason: o.Message}
		for _, l := range s.Legs {
			st.Legs = append(st.Legs, l.String())
		}
		if st.Ready {
			st.Rank, st.InUse = s.current[0], slices.Clone(s.current)
			var inUse []string
			for _, i := range s.current {
				inUse = append(inUse, st.Legs[i])
			}
			st.Current = strings.Join(inUse, " and ")
		}
		out = append(out, st)
	}
	return out
}

// setIDs are the ids of the plan's sets, and of the next hops in their groups.
func setIDs(plan overlay.Plan) map[uint32]bool {
	ids := map[uint32]bool{}
	for _, s := range plan.AllSets() {
		for _, id := range s.IDs() {
			ids[id] = true
		}
	}
	return ids
}

// moves counts sets that were moved to another leg at a change of a session.
func (r *repair) moves() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved
}

// setCounts adds how many changes each peer's session has seen.
func (r *repair) setCounts(counts map[string]int) {
	for _, w := range r.watches {
		counts[w.name] = w.changes
	}
}

// setTimes are when time alone may change what sets are on.
func (r *repair) setTimes() []time.Time {
	var times []time.Time
	for w := range maps.Values(r.watches) {
		times = append(times, w.hold.until, w.trust)
	}
	return times
}
