package cloudemu

import (
	"fmt"
	"time"
)

// Profile says how the asynchronous side of the cloud behaves. Times are in
// milliseconds of the emulator's clock.
type Profile struct {
	Name          string `json:"name"`
	BaseMS        int    `json:"baseMs"`        // every task takes this long,
	PerEntryMS    int    `json:"perEntryMs"`    // longer for each entry in it,
	JitterMS      int    `json:"jitterMs"`      // and longer by an exponential jitter of this mean
	MinIntervalMS int    `json:"minIntervalMs"` // refuse a task sooner than this after the previous one
	ReadLagMS     int    `json:"readLagMs"`     // reads answer from a state this old
	Stuck         bool   `json:"stuck"`         // tasks end only when the clock is ticked
	// VanishProbability is the share of accepted tasks that fail in the end:
	// a Pending entry disappears, a Deleting one is Available again.
	VanishProbability float64 `json:"vanishProbability"`
}

// ProfileNamed returns one of the profiles realistic, strict, instant, slow
// and stuck. strict is realistic with 5 s between tasks; instant has no delay
// anywhere.
func ProfileNamed(name string) (Profile, error) {
	p := Profile{Name: name, BaseMS: 1500, PerEntryMS: 50, JitterMS: 500, MinIntervalMS: 1000, ReadLagMS: 300}
	switch name {
	case "realistic":
	case "strict":
		p.MinIntervalMS = 5000
	case "slow":
		p.BaseMS = 10000
	case "stuck":
		p.Stuck, p.MinIntervalMS, p.ReadLagMS = true, 0, 0
	case "instant":
		p = Profile{Name: name}
	default:
		return Profile{}, fmt.Errorf("profile %q is unknown; use realistic, strict, instant, slow or stuck", name)
	}
	return p, nil
}

// task is one accepted write.
//
//	create: (none) -> Pending   -> Available   or gone, when it fails
//	modify: Available -> Modifying -> Available   old hop when it fails
//	delete: Available -> Deleting  -> gone        or Available, when it fails
type task struct {
	entries []*entry
	ends    time.Time
	stuck   bool
	fails   bool
}

// taskCounts count tasks since the seed.
type taskCounts struct {
	Accepted int `json:"accepted"`
	Ended    int `json:"ended"`
	Failed   int `json:"failed"` // of those ended
}

// admissible says whether the VPC takes a new task now.
func (s *Server) admissible(v *vpc, c *call) *apiError {
	now := s.clock.Now()
	if v.task != nil {
		c.overlap = true
	}
	if v.Status != statusAvailable {
		return refuse("IncorrectVpcStatus", "Current VPC status does not support this operation.")
	}
	for _, w := range v.VSwitches {
		if w.Status != statusAvailable {
			return refuse("IncorrectVSwitchStatus", "Some of the vSwitch statuses does not support this operation.")
		}
	}
	conflict := refuse("TaskConflict", "The operation is too frequent, please wait a moment and try again.")
	if v.task != nil {
		if s.rng.Float64() < 0.3 {
			return conflict
		}
		return refuse("IncorrectRouteEntryStatus", "The vpc has NotStable routeEntry status.")
	}
	for _, t := range v.tables {
		for _, e := range t.entries {
			if e.status != statusAvailable {
				return refuse("IncorrectRouteEntryStatus", "Some route entry status blocked this operation.")
			}
		}
	}
	if min := time.Duration(s.profile.MinIntervalMS) * time.Millisecond; !v.lastEnd.IsZero() && now.Sub(v.lastEnd) < min {
		return conflict
	}
	return nil
}

// begin starts the task of entries that are already in their middle state.
func (s *Server) begin(v *vpc, c *call, entries []*entry) {
	p, now := s.profile, s.clock.Now()
	ms := float64(p.BaseMS+p.PerEntryMS*len(entries)) + float64(p.JitterMS)*s.rng.ExpFloat64()
	t := &task{entries: entries, stuck: p.Stuck, ends: now.Add(time.Duration(ms * float64(time.Millisecond)))}
	t.fails = c.vanish || p.VanishProbability > 0 && s.rng.Float64() < p.VanishProbability
	v.task = t
	s.tasks.Accepted++
	for tb := range tablesOf(entries) {
		s.commit(tb, now)
	}
	s.settle()
	s.notify()
}

func tablesOf(entries []*entry) map[*table]bool {
	m := map[*table]bool{}
	for _, e := range entries {
		m[e.table] = true
	}
	return m
}

// settle ends the tasks that are due. s.mu is held.
func (s *Server) settle() {
	now := s.clock.Now()
	for _, v := range s.world.vpcs {
		if t := v.task; t != nil && !t.stuck && !now.Before(t.ends) {
			s.end(v, t.ends)
		}
	}
}

// end finishes the running task of a VPC as of the time at.
func (s *Server) end(v *vpc, at time.Time) {
	t := v.task
	v.task, v.lastEnd = nil, at
	s.tasks.Ended++
	if t.fails {
		s.tasks.Failed++
	}
	tables := tablesOf(t.entries)
	for _, e := range t.entries {
		e.modified = at
		switch e.status {
		case statusPending:
			if t.fails {
				s.world.remove(e)
				continue
			}
			e.table.record(at, e, "active")
		case statusModifying:
			if !t.fails {
				e.hops = e.pendingHops
				e.table.record(at, e, "active")
			}
			e.pendingHops = nil
		case statusDeleting:
			if !t.fails {
				e.table.record(at, e, "removed")
				s.world.remove(e)
				continue
			}
		}
		e.status = statusAvailable
	}
	for tb := range tables {
		s.commit(tb, at)
	}
}

// nextDeadline is when the next task ends; zero when none will by itself.
func (s *Server) nextDeadline() time.Time {
	var next time.Time
	for _, v := range s.world.vpcs {
		if t := v.task; t != nil && !t.stuck && (next.IsZero() || t.ends.Before(next)) {
			next = t.ends
		}
	}
	return next
}

// snapshotLife is how long states are kept for lagging reads.
const snapshotLife = 30 * time.Second

// commit stores the state of a table for reads.
func (s *Server) commit(t *table, at time.Time) {
	snap := snapshot{at: at}
	for _, e := range t.entries {
		snap.entries = append(snap.entries, *e)
	}
	t.snaps = append(t.snaps, snap)
	for len(t.snaps) > 1 && at.Sub(t.snaps[1].at) > snapshotLife {
		t.snaps = t.snaps[1:]
	}
}

// view is what a read sees of a table now: the state as it was readLag ago.
func (s *Server) view(t *table) []entry {
	seen := s.clock.Now().Add(-time.Duration(s.profile.ReadLagMS) * time.Millisecond)
	for i := len(t.snaps) - 1; i > 0; i-- {
		if !t.snaps[i].at.After(seen) {
			return t.snaps[i].entries
		}
	}
	return t.snaps[0].entries
}
