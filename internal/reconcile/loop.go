package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// Config describes a Loop. Name, Edge and Want are needed, the rest has defaults.
type Config[K comparable, V any] struct {
	// Name is what the loop keeps equal, for logs and errors: "vrf routes".
	Name string
	Edge Edge[K, V]
	// Want returns the whole wish, which is the loop's from then on, and whether it is complete: as long as it is not,
	// only what this loop itself has seen wanted and withdrawn is deleted.
	Want func() (want map[K]V, complete bool)
	// Equal says when what is there meets a wish. Nil: the edge's, when it is an Equaler, else ==.
	Equal func(want, have V) bool
	// Part says to which part of the whole a key belongs, for Survey: a table, say. Nil: all to 0.
	Part func(k K) uint32
	// Compare orders keys. Nil: Order, else how keys print.
	Compare func(a, b K) int
	// Resync is how often the world is observed without a reason; 0 is one minute.
	Resync time.Duration
	// MassDelete is the share of the objects there, 0 to 1, which a pass may delete unasked; 0 puts no limit. Up to
	// MassDeleteMin objects may always go.
	MassDelete float64
	// MassDeleteMin: 0 is 5.
	MassDeleteMin int
	// Backoff is the wait after a failed pass.
	Backoff Backoff
	Log     *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Backoff is an exponential wait: Min, then twice as long each time, up to Max. Zero values are 100 ms and 30 s.
type Backoff struct{ Min, Max time.Duration }

func (b Backoff) wait(failures int) time.Duration {
	d := b.Min
	for i := 1; i < failures && d < b.Max; i++ {
		d *= 2
	}
	return min(d, b.Max)
}

// ErrHeld is wrapped by the error of a pass whose deletes are more than the share Config.MassDelete allows. Creates and
// replaces were done; Approve lets the deletes through.
var ErrHeld = errors.New("too many deletes at once: held back until approved")

// Loop keeps the world equal to a wish, level-triggered:
//
//	Wake ──► observe ─► diff ─► apply ─► status     (also at Resync, and after a failure with growing waits)
//	Patch ─► diff of the keys named ─► apply        (no observation while the memory of the world is good)
//
// Patch is for large tables, where a few objects change among 100,000. Whoever calls it first changes what Want returns,
// then calls Patch: then no order of Patch and a full pass can lose the change.
//
// Ordering: one pass at a time. Patches made during a pass are in the next. After an error of the edge that is not a
// ForeignError a full pass follows (Backoff). Foreign objects are tried again when their wish changes, at Resync, and
// by Pass, but not on every wake.
type Loop[K comparable, V any] struct {
	cfg  Config[K, V]
	wake chan struct{}

	pass sync.Mutex // held by the pass that runs

	mu       sync.Mutex // guards what follows
	t        *tracker[K, V]
	full     bool // a full pass was asked for
	busy     bool // a pass runs
	patches  map[K]patch[V]
	failures int
	approved bool
	held     map[K]struct{} // whose deletes wait for Approve
	summary  Summary
}

type patch[V any] struct {
	v    V
	gone bool
	// proof: it took the place of one that wanted the key.
	proof bool
}

// Summary is the state of a loop in a few numbers.
type Summary struct {
	Name string
	// Wanted objects, and of these those there as wanted.
	Wanted, Synced int
	// Failed objects; Foreign of them stand where somebody else's object does.
	Failed, Foreign int
	// Held deletes wait for Approve.
	Held int
	// Waiting objects are there and unwanted, and stay until the wish is complete.
	Waiting int
	// InSync is true when nothing is left to do.
	InSync bool
	// LastPass and LastObserve are when these last succeeded.
	LastPass, LastObserve time.Time
	// Err is the last pass's error, "" when none.
	Err string
}

// NewLoop returns a loop that has not begun.
func NewLoop[K comparable, V any](cfg Config[K, V]) *Loop[K, V] {
	if cfg.Resync == 0 {
		cfg.Resync = time.Minute
	}
	if cfg.Backoff.Min == 0 {
		cfg.Backoff.Min = 100 * time.Millisecond
	}
	if cfg.Backoff.Max == 0 {
		cfg.Backoff.Max = 30 * time.Second
	}
	if cfg.MassDeleteMin == 0 {
		cfg.MassDeleteMin = 5
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	equal := keyless[K](cfg.Equal)
	if e, ok := cfg.Edge.(Equaler[K, V]); ok && cfg.Equal == nil {
		equal = e.Equal
	}
	return &Loop[K, V]{
		cfg: cfg, wake: make(chan struct{}, 1), full: true, patches: map[K]patch[V]{}, held: map[K]struct{}{},
		t: newTracker(equal, cfg.Compare, cfg.Part), summary: Summary{Name: cfg.Name},
	}
}

// Wake asks for a full pass: something in the world or in the wish may have changed. It never blocks.
func (l *Loop[K, V]) Wake() {
	l.mu.Lock()
	l.full = true
	l.mu.Unlock()
	l.poke()
}

func (l *Loop[K, V]) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Patch says that the wish changed for a few keys: those of set have these values now, those of gone are no longer wanted.
// It never blocks.
func (l *Loop[K, V]) Patch(set map[K]V, gone ...K) {
	if len(set) == 0 && len(gone) == 0 {
		return
	}
	l.mu.Lock()
	for k, v := range set {
		l.patches[k] = patch[V]{v: v}
	}
	for _, k := range gone {
		was, ok := l.patches[k]
		l.patches[k] = patch[V]{gone: true, proof: ok && (!was.gone || was.proof)}
	}
	l.mu.Unlock()
	l.poke()
}

// Approve lets the next plan for all objects delete as many as it says, and asks for that plan.
func (l *Loop[K, V]) Approve() {
	l.mu.Lock()
	l.approved, l.full = true, true
	l.mu.Unlock()
	l.poke()
}

// Run makes passes until ctx ends; it returns nil then. Nothing in the world changes at the end.
func (l *Loop[K, V]) Run(ctx context.Context) error {
	resync := time.NewTicker(l.cfg.Resync)
	defer resync.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	waiting := true // for retry
	foreign := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-retry.C:
			waiting = false
			l.mark()
		case <-resync.C:
			foreign = true
			l.mark()
		}
		full, err := l.run(ctx, foreign)
		foreign = foreign && !full
		if ctx.Err() != nil {
			return nil
		}
		wait := l.outcome(full, err)
		switch {
		case wait == 0 && full:
			retry.Stop()
			waiting = false
		case wait > 0 && (full || !waiting):
			retry.Reset(wait)
			waiting = true
		}
		// Wakes keep coming while something fails (each try may cause one): they are answered, but not hotly.
		if wait > 0 && full && !sleep(ctx, l.cfg.Backoff.Min) {
			return nil
		}
	}
}

// mark asks for a full pass without a poke.
func (l *Loop[K, V]) mark() {
	l.mu.Lock()
	l.full = true
	l.mu.Unlock()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// outcome counts failures, logs what changed in the loop's health and returns how long to wait before the next try; 0 when
// none is needed. Only a full pass can say that all is well again.
func (l *Loop[K, V]) outcome(full bool, err error) time.Duration {
	bad := err != nil && !patient(err)
	l.mu.Lock()
	before := l.failures
	switch {
	case bad && (full || before == 0):
		l.failures++
	case !bad && full:
		l.failures = 0
	}
	failures := l.failures
	l.mu.Unlock()
	switch {
	case failures == 0 && before > 0:
		l.cfg.Log.Info("in order again", "loop", l.cfg.Name)
	case failures == 1 && before == 0:
		l.cfg.Log.Warn("could not apply everything; will try again", "loop", l.cfg.Name, "error", err)
	}
	if !bad {
		return 0
	}
	return l.cfg.Backoff.wait(failures)
}

// patient reports whether all that is wrong are foreign objects and held deletes, which no quick retry mends.
func patient(err error) bool {
	var p *passError
	return errors.As(err, &p) && p.patient
}

// passError is the error of a pass: the joined errors of its steps.
type passError struct {
	err     error
	patient bool
}

func (e *passError) Error() string { return e.err.Error() }
func (e *passError) Unwrap() error { return e.err }

// Pass makes one full pass now: observe, diff, apply, with foreign objects tried again. It returns the joined errors of
// all steps, nil when the world equals the wish as far as it may.
func (l *Loop[K, V]) Pass(ctx context.Context) error {
	l.mark()
	_, err := l.run(ctx, true)
	return err
}

// Plan returns what a pass would do now and changes nothing, neither the world nor the loop.
func (l *Loop[K, V]) Plan(ctx context.Context) ([]Op[K, V], error) {
	have, err := l.cfg.Edge.Observe(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: observe: %w", l.cfg.Name, err)
	}
	want, complete := l.cfg.Want()
	l.mu.Lock()
	defer l.mu.Unlock()
	var ops []Op[K, V]
	for _, op := range diff(want, have, l.t.equal, l.t.compare) {
		_, seen := l.t.want[op.Key]
		_, proof := l.t.withdrawn[op.Key]
		if op.Kind != Delete || complete || seen || proof {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

// run makes one pass and says whether it was a full one.
func (l *Loop[K, V]) run(ctx context.Context, retryForeign bool) (full bool, err error) {
	l.pass.Lock()
	defer l.pass.Unlock()
	l.mu.Lock()
	full = l.full || !l.t.known
	l.full, l.busy = false, true
	l.mu.Unlock()
	var keys map[K]struct{}
	if full {
		err = l.observe(ctx)
	} else {
		keys = l.patch()
	}
	if err == nil {
		err = l.apply(ctx, keys, retryForeign)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
	switch {
	case err != nil:
		l.summary.Err = err.Error()
	case full || len(l.t.failed) == 0:
		l.summary.Err = ""
		fallthrough
	default:
		l.summary.LastPass = l.cfg.Now()
	}
	return full, err
}

// patch takes the patches into the wish and returns their keys.
func (l *Loop[K, V]) patch() map[K]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	keys := make(map[K]struct{}, len(l.patches))
	for k, p := range l.patches {
		keys[k] = struct{}{}
		if p.gone {
			l.t.unset(k, p.proof, now)
		} else {
			l.t.set(k, p.v, now)
		}
	}
	clear(l.patches)
	return keys
}

// observe reads world and wish anew. The wish comes second, and the patches made before it are dropped: they are in Want's
// answer. Only that a key was patched away is kept, since it proves what its absence from an incomplete wish does not.
func (l *Loop[K, V]) observe(ctx context.Context) error {
	have, err := l.cfg.Edge.Observe(ctx)
	if err != nil {
		return fmt.Errorf("%s: observe: %w", l.cfg.Name, err)
	}
	if have == nil {
		have = map[K]V{}
	}
	l.mu.Lock()
	patches := l.patches
	l.patches = map[K]patch[V]{}
	l.mu.Unlock()
	want, complete := l.cfg.Want()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	for k, p := range patches {
		if p.gone {
			l.t.unset(k, p.proof, now)
		}
	}
	l.t.wish(want, complete)
	l.t.observed(have, now)
	l.summary.LastObserve = now
	return nil
}

// apply carries out what is to be done for keys, or for all when keys is nil.
func (l *Loop[K, V]) apply(ctx context.Context, keys map[K]struct{}, retryForeign bool) error {
	l.mu.Lock()
	ops := l.t.plan(keys, retryForeign)
	ops, held := l.hold(ops, keys)
	l.mu.Unlock()
	var errs []error
	patient := true
	if len(ops) > 0 {
		results := l.cfg.Edge.Apply(ctx, ops)
		if len(results) != len(ops) {
			return fmt.Errorf("%s: the edge returned %d results for %d steps", l.cfg.Name, len(results), len(ops))
		}
		l.mu.Lock()
		now := l.cfg.Now()
		for i, op := range ops {
			l.t.applied(op, results[i], now)
			if results[i] != nil {
				errs = append(errs, results[i])
				patient = patient && l.t.failed[op.Key].foreign
			}
		}
		l.mu.Unlock()
		l.cfg.Log.Debug("applied", "loop", l.cfg.Name, "steps", len(ops), "failed", len(errs))
	}
	if keys == nil {
		errs = append(errs, l.standing(ops)...)
	}
	if held > 0 {
		errs = append(errs, fmt.Errorf("%d of %s: %w", held, l.cfg.Name, ErrHeld))
	}
	if len(errs) == 0 {
		return nil
	}
	return &passError{fmt.Errorf("%s: %w", l.cfg.Name, joined(errs)), patient}
}

// standing returns the errors of objects that this pass did not try.
func (l *Loop[K, V]) standing(tried []Op[K, V]) []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.t.failed) == 0 {
		return nil
	}
	failed := maps.Clone(l.t.failed)
	for _, op := range tried {
		delete(failed, op.Key)
	}
	var errs []error
	for _, k := range Keys(failed) {
		errs = append(errs, failed[k].err)
	}
	return errs
}

// joined joins the first errors and counts the rest: 100,000 refused routes need no 100,000 lines.
func joined(errs []error) error {
	const shown = 10
	if len(errs) <= shown {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs[:shown:shown], fmt.Errorf("and %d errors more", len(errs)-shown))...)
}

// hold takes the deletes out of a plan for keys, or for all when keys is nil, that has too many of them. A plan for all uses an
// approval up; one that comes later in the same pass is for the next.
func (l *Loop[K, V]) hold(ops []Op[K, V], keys map[K]struct{}) (allowed []Op[K, V], held int) {
	n := 0
	for _, op := range ops {
		if op.Kind == Delete {
			n++
		}
	}
	there := len(l.t.want) - len(l.t.missing)
	for k := range l.t.other {
		if _, wanted := l.t.want[k]; !wanted {
			there++
		}
	}
	approved := false
	// What was held before is judged anew, as far as this plan looks at it.
	if keys == nil {
		approved, l.approved = l.approved, false
		clear(l.held)
	}
	for k := range keys {
		delete(l.held, k)
	}
	defer func() { l.summary.Held = len(l.held) }()
	if l.cfg.MassDelete == 0 || n <= l.cfg.MassDeleteMin || float64(n) <= l.cfg.MassDelete*float64(there) {
		return ops, 0
	}
	if approved {
		return ops, 0
	}
	allowed = ops[:len(ops)-n] // deletes are last
	for _, op := range ops[len(allowed):] {
		l.held[op.Key] = struct{}{}
	}
	return allowed, n
}

// Status returns what is known of every object wanted or there. For one object of a large table see Object, for numbers Survey.
func (l *Loop[K, V]) Status() map[K]Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[K]Status, len(l.t.want)+len(l.t.other))
	for k := range l.t.want {
		all[k] = l.t.status(k)
	}
	for k := range l.t.other {
		all[k] = l.t.status(k)
	}
	return all
}

// Survey returns how many objects of each part are there as wanted (Config.Part), and calls fn for every other object, in no
// order. It costs as much as there is left to do, whatever the size of the wish. fn must not call the loop.
func (l *Loop[K, V]) Survey(fn func(K, Status)) (synced map[uint32]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.t.survey(fn)
}

// Strays calls fn for every object that is there and not as wanted, in no order. whole says that all others are as wanted, or not there:
// the world was observed, and nothing has been asked for since that no pass has seen. What failed is no obstacle to that. fn must not call
// the loop.
func (l *Loop[K, V]) Strays(fn func(K, V)) (whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, v := range l.t.other {
		fn(k, v)
	}
	return l.t.known && !l.full && !l.busy && len(l.patches) == 0
}

// Object returns what is known of one object; ok is false when it is neither wanted nor there.
func (l *Loop[K, V]) Object(k K) (s Status, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.t.status(k), l.t.relevant(k)
}

// Summary returns the state of the loop in a few numbers; it is cheap.
func (l *Loop[K, V]) Summary() Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.summary
	s.Wanted = len(l.t.want)
	unmet := len(l.t.missing)
	for k := range l.t.other {
		if _, wanted := l.t.want[k]; wanted {
			unmet++
		} else {
			s.Waiting++
		}
	}
	s.Synced = s.Wanted - unmet
	s.Failed = len(l.t.failed)
	for _, f := range l.t.failed {
		if f.foreign {
			s.Foreign++
		}
	}
	s.InSync = l.inSync()
	return s
}

// InSync reports whether the last pass left nothing to do and nothing has been asked for since. Objects that wait for a
// complete wish do not count.
func (l *Loop[K, V]) InSync() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inSync()
}

func (l *Loop[K, V]) inSync() bool {
	if l.full || l.busy || !l.t.known || l.summary.Err != "" || len(l.patches) > 0 || len(l.t.missing) > 0 || len(l.t.failed) > 0 || l.summary.Held > 0 {
		return false
	}
	for k := range l.t.other {
		if _, wanted := l.t.want[k]; wanted || l.t.complete {
			return false
		}
	}
	return true
}
