package bfd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// Engine runs sessions on sockets. Configure may be called at any time, also before Run; States and Totals answer while Run runs and
// tell the last they know after it.
//
// All of a process's sessions share one thread:
//
//	epoll ── rx sockets ── decode ── find session ── Step ──┬─ OnChange
//	  ▲                                              ▲      ├─ tx socket of the session
//	  └── heap of wake times ──── Tick ──────────────┘      └─ log queue ── goroutine ── slog
//
// A session whose detection time seems over is not given up before its rx socket was read empty: then only the neighbour can have been
// late, not this thread.
type Engine struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	want    []SessionConfig
	wake    func() // interrupts the loop; nil while there is none
	running bool
	last    answer // what the engine said at the end

	changed   atomic.Bool // want is not applied yet
	questions chan chan answer
	stopped   chan struct{} // closed at the end of Run
}

// answer is a snapshot.
type answer struct {
	states []Status
	totals Totals
}

// New makes an engine without sessions. It has no effects before Run.
func New(cfg Config) *Engine {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Priority == 0 {
		cfg.Priority = 50
	}
	return &Engine{cfg: cfg, log: cfg.Log, questions: make(chan chan answer, 16)}
}

// Configure takes the whole set of wanted sessions: what is new starts, what differs is changed in place without leaving Up, and what is
// no longer there says AdminDown for a detection time before it is forgotten. If anything is wrong with any session, all are refused
// and nothing changes.
func (e *Engine) Configure(want []SessionConfig) error {
	var errs []error
	seen := make(map[Path]string, len(want))
	for _, c := range want {
		if err := c.Validate(); err != nil {
			errs = append(errs, err)
		}
		if other, ok := seen[c.Path]; ok {
			errs = append(errs, fmt.Errorf("BFD sessions %q and %q have the same path %v: one serves both", other, c.Name, c.Path))
		}
		seen[c.Path] = c.Name
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.want = slices.Clone(want)
	e.changed.Store(true)
	if e.wake != nil {
		e.wake()
	}
	return nil
}

// interrupt makes the loop look around, if there is one.
func (e *Engine) interrupt() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wake != nil {
		e.wake()
	}
}

// States is a snapshot of all sessions in the order of their names, those that are leaving included.
func (e *Engine) States() []Status { return e.ask().states }

// Totals is a snapshot of the engine's own counters.
func (e *Engine) Totals() Totals { return e.ask().totals }

func (e *Engine) ask() answer {
	e.mu.Lock()
	running, stopped, last := e.running, e.stopped, e.last
	e.mu.Unlock()
	if !running {
		return last
	}
	q := make(chan answer, 1)
	select {
	case e.questions <- q:
		e.interrupt()
	case <-stopped:
	}
	select {
	case a := <-q:
		return a
	case <-stopped:
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.last
	}
}

// Run runs the sessions in the network namespace of the calling thread until ctx ends, and then returns nil. It says goodbye to
// nobody: neighbours see a restart that is faster than their detection time as a new session, and else an outage. To leave for
// good, Configure(nil) and wait until States is empty. A second Run at the same time is an error, as is a host that refuses the
// engine's own descriptors; sockets of sessions that cannot be opened are tried again, and named in Status.Problem.
func (e *Engine) Run(ctx context.Context) error {
	l, err := newLoop(e)
	if err != nil {
		return err
	}
	defer l.close()
	e.mu.Lock()
	if e.running {
		e.mu.Unlock()
		return errors.New("BFD engine runs already")
	}
	e.running, e.stopped, e.wake = true, make(chan struct{}), l.interrupt
	e.changed.Store(true) // sessions of an earlier Run are gone
	e.mu.Unlock()
	defer context.AfterFunc(ctx, e.interrupt)()

	var wg sync.WaitGroup
	wg.Go(l.journal.write)
	l.run(ctx)
	l.journal.close()
	wg.Wait()

	e.mu.Lock()
	defer e.mu.Unlock()
	e.running, e.wake = false, nil
	e.last = l.snapshot()
	close(e.stopped)
	return nil
}

// byName orders a snapshot.
func byName(a, b Status) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Path.String(), b.Path.String()))
}
