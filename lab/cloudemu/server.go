package cloudemu

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Options configure a [Server]. Only Seed is needed.
type Options struct {
	Seed    Seed
	Profile Profile // zero: ProfileNamed("realistic")
	Clock   *Clock  // default: real time
	// Wall is the time callers' Timestamps are checked against; default time.Now.
	Wall func() time.Time
	// DataPlane is told the active routes; nil: nobody.
	DataPlane DataPlane
	// Resync is how often the data plane is told again although nothing
	// changed, in real time; default 2 s.
	Resync time.Duration
	Logger *slog.Logger // default: slog.Default
}

// Server is one emulated cloud. Its methods may be called concurrently.
type Server struct {
	clock  *Clock
	wall   func() time.Time
	plane  DataPlane
	resync time.Duration
	log    *slog.Logger
	wake   chan struct{} // one slot: tasks or routes changed

	mu       sync.Mutex
	world    *world
	rng      *rand.Rand
	profile  Profile
	nonces   map[string]time.Time
	buckets  map[string]*bucket
	tokens   map[string]*stored // ClientToken answers, by principal and token
	inflight map[string]bool    // ClientTokens of calls being handled
	faults   []*Fault
	requests []Request
	cursors  map[string]*cursor
	meta     metaState
	tasks    taskCounts
}

// New returns a server that holds the world of o.Seed. It does nothing by
// itself until requests come in; [Server.Run] drives the data plane.
func New(o Options) (*Server, error) {
	s := &Server{clock: o.Clock, wall: o.Wall, plane: o.DataPlane, resync: o.Resync, log: o.Logger,
		wake: make(chan struct{}, 1), profile: o.Profile}
	if s.clock == nil {
		s.clock = NewClock(1)
	}
	if s.wall == nil {
		s.wall = time.Now
	}
	if s.resync == 0 {
		s.resync = 2 * time.Second
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.profile.Name == "" {
		s.profile, _ = ProfileNamed("realistic")
	}
	if err := s.reseed(o.Seed); err != nil {
		return nil, err
	}
	return s, nil
}

// reseed replaces the whole world.
func (s *Server) reseed(seed Seed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed.RandSeed, 0x9e3779b97f4a7c15))
	w, err := buildWorld(seed, s.clock.Now(), rng)
	if err != nil {
		return err
	}
	s.world, s.rng = w, rng
	s.nonces, s.buckets = map[string]time.Time{}, map[string]*bucket{}
	s.tokens, s.inflight = map[string]*stored{}, map[string]bool{}
	s.faults, s.requests, s.cursors = nil, nil, map[string]*cursor{}
	s.meta = metaState{current: map[string]*credential{}, tokens: map[string]time.Time{}}
	s.tasks = taskCounts{}
	now := s.clock.Now()
	for _, t := range w.tables {
		for _, e := range t.entries {
			t.record(now, e, "active")
		}
		s.commit(t, now)
	}
	s.notify()
	return nil
}

// notify says that Run should look again.
func (s *Server) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run ends tasks when they are due and keeps the data plane equal to the active
// routes, until ctx ends; then it returns nil. A data plane that fails is
// logged and told again.
func (s *Server) Run(ctx context.Context) error {
	told := map[string]bool{} // VPCs whose last Set succeeded
	for {
		s.mu.Lock()
		s.settle()
		next, fibs := s.nextDeadline(), s.world.fibs()
		s.mu.Unlock()
		wait := s.resync
		if s.plane != nil {
			for vpcID, routes := range fibs {
				err := s.plane.Set(ctx, vpcID, routes)
				if err != nil && ctx.Err() == nil {
					s.log.Error("data plane differs from the route table, will try again", "vpc", vpcID, "err", err)
				}
				if ok := err == nil; ok != told[vpcID] {
					told[vpcID] = ok
					s.log.Info("data plane", "vpc", vpcID, "routes", len(routes), "inSync", ok)
				}
			}
		}
		var moved <-chan struct{}
		if !next.IsZero() {
			d, ok, ch := s.clock.until(next)
			if ok {
				wait = min(wait, d)
			}
			moved = ch
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-moved:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}
