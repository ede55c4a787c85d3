package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"fabric/bgp/rib"
	"fabric/internal/reconcile"
)

// Config describes a Sync. RIB and Open are needed.
type Config struct {
	Log *slog.Logger
	RIB *rib.Table
	// Open opens the VPC of a wish.
	Open Opener
	// Changed is called when Tables or State may answer otherwise; it must not block.
	Changed func()
	// Backoff is the wait after a failed pass or a failed opening. Zero: 1 s to 60 s.
	Backoff reconcile.Backoff
	// DeleteHold is how long a pass that would delete most of the entries is held back, unless Approve comes first; 0 is
	// ten minutes. A wish that is wrong for a moment must not cost a VPC its routes; one that stays so is meant.
	DeleteHold time.Duration
}

// Sync keeps the tables of one VPC as the RIB says. Configure and Run may be called in any order, and everything from
// any goroutine.
type Sync struct {
	cfg  Config
	wake chan struct{} // one slot: the wish changed

	mu      sync.Mutex
	wish    *Wish
	session *session // nil while nothing is wanted or open
	err     string   // why it is not open
}

// NewSync returns a Sync that wants nothing yet.
func NewSync(cfg Config) *Sync {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Backoff.Min == 0 {
		cfg.Backoff.Min = time.Second
	}
	if cfg.Backoff.Max == 0 {
		cfg.Backoff.Max = time.Minute
	}
	if cfg.DeleteHold == 0 {
		cfg.DeleteHold = 10 * time.Minute
	}
	return &Sync{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Configure says what is wanted from now on. nil: this gateway keeps no table; entries stay as they are, since a document
// that lost a line must not cost a VPC its routes.
func (s *Sync) Configure(w *Wish) {
	if w != nil {
		c := *w
		w = &c
	}
	s.mu.Lock()
	same := s.wish == nil && w == nil || s.wish != nil && w != nil && s.wish.Equal(*w)
	s.wish = w
	s.mu.Unlock()
	if !same {
		poke(s.wake)
	}
}

// Approve lets deletes go that are held back because they are so many, and returns how many; with 0 it has done nothing.
func (s *Sync) Approve() int {
	x := s.open()
	if x == nil {
		return 0
	}
	held := x.loop.Summary().Held
	if held > 0 {
		x.loop.Approve()
	}
	return held
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Sync) wanted() *Wish {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wish
}

func (s *Sync) open() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// set publishes the session, or why there is none.
func (s *Sync) set(x *session, err error) {
	s.mu.Lock()
	s.session, s.err = x, ""
	if err != nil {
		s.err = err.Error()
	}
	s.mu.Unlock()
	s.cfg.Changed()
}

// Run works until ctx ends and returns nil then. No entry is removed at the end: forwarding goes on without us.
func (s *Sync) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		w := s.wanted()
		if w == nil {
			s.set(nil, nil)
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		s.serve(ctx, *w)
	}
	return nil
}

// serve opens the VPC of a wish and keeps its tables until the wish is for another VPC or ctx ends.
func (s *Sync) serve(ctx context.Context, w Wish) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := s.cfg.Log.With("cloud", w.Provider)
	wait := s.cfg.Backoff.Min
	var x *session
	for {
		var err error
		if x, err = newSession(ctx, s.cfg, w, log); err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		log.Warn("cannot open the VPC; will try again", "error", err, "after", wait.String())
		s.set(nil, err)
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			return // the wish changed: begin anew with it
		case <-time.After(wait):
		}
		wait = min(2*wait, s.cfg.Backoff.Max)
	}
	defer x.close()
	s.set(x, nil)
	defer s.set(nil, nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.follow(ctx) })
	g.Go(func() error { return x.run(ctx) })
	g.Go(func() error {
		defer cancel()
		for {
			// The wish may have changed while the VPC was being opened.
			now := s.wanted()
			if now == nil || !now.sameVPC(w) {
				return context.Canceled
			}
			x.configure(*now)
			select {
			case <-ctx.Done():
				return nil
			case <-s.wake:
			}
		}
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		log.Error("the VPC's tables are left alone; will begin anew", "error", err)
	}
}

// session is one VPC, open.
type session struct {
	cfg  Config
	log  *slog.Logger
	vpc  VPC
	feed *rib.Feed
	loop *reconcile.Loop[entryKey, Route]
	// first is closed once the feed's first batch is in: before it there is no wish.
	first chan struct{}

	mu       sync.Mutex
	wish     Wish
	info     Info
	verdicts verdicts
	complete bool
	last     map[entryKey]Route // what Want returned
	leftOut  map[entryKey]string
	have     map[string]tableState
	doing    map[entryKey]State
	errs     map[entryKey]error
	observed time.Time
	heldFrom time.Time
}

// newSession opens the VPC and reads its tables once, so that the first wish already knows what is there.
func newSession(ctx context.Context, cfg Config, w Wish, log *slog.Logger) (*session, error) {
	if cfg.Open == nil {
		return nil, fmt.Errorf("cloud provider %s is not built in", w.Provider)
	}
	vpc, err := cfg.Open(ctx, w, log)
	if err != nil {
		return nil, err
	}
	x := &session{
		cfg: cfg, log: log, vpc: vpc, wish: w, first: make(chan struct{}),
		verdicts: verdicts{}, have: map[string]tableState{}, doing: map[entryKey]State{}, errs: map[entryKey]error{},
	}
	resync := w.Resync
	if resync == 0 {
		resync = time.Minute
	}
	x.loop = reconcile.NewLoop(reconcile.Config[entryKey, Route]{
		Name: "vpc tables", Edge: x, Want: x.want, Equal: equalRoutes, Compare: entryKey.Compare,
		Resync: resync, MassDelete: massDelete, Backoff: cfg.Backoff, Log: log,
	})
	if _, err := x.Observe(ctx); err != nil {
		vpc.Close()
		return nil, err
	}
	x.feed = cfg.RIB.Subscribe()
	log.Info("VPC opened", "vpc", x.info.ID, "region", x.info.Region, "tables", x.info.Tables, "instance", x.info.Instance)
	return x, nil
}

// massDelete is the share of our entries that a pass may delete unasked.
const massDelete = 0.5

func (x *session) close() {
	x.feed.Close()
	x.vpc.Close()
}

// configure takes a changed wish for the same VPC.
func (x *session) configure(w Wish) {
	x.mu.Lock()
	same := x.wish.Equal(w)
	x.wish = w
	x.mu.Unlock()
	if !same {
		x.feed.Resync() // every choice is judged anew
		x.loop.Wake()
	}
}

// run makes passes until ctx ends.
func (x *session) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-x.first:
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.loop.Run(ctx) })
	g.Go(func() error { x.watchHeld(ctx); return nil })
	return g.Wait()
}

// watchHeld lets deletes go that have been held long enough.
func (x *session) watchHeld(ctx context.Context) {
	tick := time.NewTicker(max(x.cfg.DeleteHold/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			held := x.loop.Summary().Held
			x.mu.Lock()
			switch {
			case held == 0:
				x.heldFrom = time.Time{}
			case x.heldFrom.IsZero():
				x.heldFrom = now
				x.log.Warn("many entries would be deleted at once; held back", "entries", held, "for", x.cfg.DeleteHold.String())
			}
			due := !x.heldFrom.IsZero() && now.Sub(x.heldFrom) >= x.cfg.DeleteHold
			if due {
				x.heldFrom = time.Time{}
			}
			x.mu.Unlock()
			if due {
				x.log.Warn("deletes held back are done now", "entries", held)
				x.loop.Approve()
			}
		}
	}
}

// follow judges choices as they come.
func (x *session) follow(ctx context.Context) error {
	for {
		b, err := x.feed.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		x.mu.Lock()
		f := filter{wish: x.wish, cidrs: x.info.CIDRs}
		changed := x.complete != b.Complete
		if b.Full {
			changed = true
			x.verdicts = verdicts{}
		}
		for _, c := range b.Choices {
			if c.Key.VRF == x.wish.VRF {
				changed = x.verdicts.judge(f, c) || changed
			}
		}
		x.complete = b.Complete
		x.mu.Unlock()
		select {
		case <-x.first:
		default:
			close(x.first)
		}
		if changed {
			x.loop.Wake()
			x.cfg.Changed()
		}
	}
}
