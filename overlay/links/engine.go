// Package links is the fabric-links process and its client. It keeps a plan applied: tunnels, the own VTEP's address, the routes
// to remote VTEPs with their backstops, and next-hop objects. Nobody else writes these.
//
// Ways to fail that it is built for, all of them by the same means, which is to look again and mend:
//
//   - fabric-site is away, at boot or for good: the plan is on disk.
//   - This process dies or is replaced: it tears nothing down, and what it finds at its next start it knows by its marks.
//   - A tunnel process dies, a device or route is removed by hand, netlink loses events.
//   - All tunnels to a VTEP are down: an unreachable route keeps inner packets from leaving in clear along the default route.
//   - Somebody else's object stands where ours should: it is reported with its owner and left alone.
//
// Concurrency: one goroutine, in Run, owns all state and makes passes; Apply hands it a plan and waits for the pass. States are
// published whole and never changed afterwards. Wakes carry nothing and merge. The one thing shared is the repair table: the BFD engine's
// thread writes the routes of a tunnel that failed by itself, and a pass does not undo it.
package links

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"fabric/internal/kernel"
	"fabric/internal/version"
	"fabric/overlay"
	"fabric/overlay/bfd"
	"fabric/overlay/links/rotation"
)

// Reader tells what WireGuard says of tunnel devices.
type Reader interface {
	// Facts of the devices named. A device that is not there, or does not answer, is left out.
	Facts(ctx context.Context, devices []string) (map[string]Facts, error)
}

// Config is what an Engine works with. Nothing happens before Run.
type Config struct {
	Log *slog.Logger
	// Host is the kernel.
	Host kernel.Host
	// Processes carries tunnels where the kernel cannot.
	Processes Processes
	Reader    Reader
	// Carriers keeps what "tls" tunnels need beside their processes. Nil: such tunnels stay without a connection.
	Carriers *Carriers
	Liveness Liveness
	// BFD tells whether tunnels are alive whose plan has timers for it, and third-party peers. Nil: all tunnels are judged by Liveness.
	BFD Sessions
	// Paths measures the tunnels' paths. Nil: nothing is measured.
	Paths Paths
	// Repair is a connection to the kernel of its own for the routes to VTEPs: what Host reads must not hold a repair up. Default Host.
	Repair kernel.Host
	// Store keeps the plan.
	Store *Store
	// Keys keeps keys that were agreed, and Exchange agrees them. Nil: tunnels keep the keys of the plan. KeysProblem says why there are none
	// though there should be; it is told with every state.
	Keys        *rotation.Store
	Exchange    KeyExchange
	KeysProblem error
	// Resync is the time between passes when nothing wakes the engine. Default 3 s.
	Resync time.Duration
	// Beat is called after every pass and before every step that may take seconds, Ready once after the first.
	Beat, Ready func()
	// Now is the clock that durations are measured by: time.Now, the default, has a monotonic reading.
	Now func() time.Time
	// Wall is the clock that WireGuard dates handshakes by, and may step. Default Now.
	Wall func() time.Time
}

// settle is the least time between passes that events cause: a burst of events is one pass.
const settle = 50 * time.Millisecond

// Engine keeps a plan applied.
type Engine struct {
	cfg     Config
	started time.Time
	wake    chan struct{}
	// urgent is woken at a change of a session.
	urgent chan struct{}
	plans  chan applyRequest
	drains chan drainRequest
	// calls run on Run's goroutine. Asking counts questions to other ends that are under way.
	calls  chan func()
	asking sync.WaitGroup
	state  atomic.Pointer[State]

	mu       sync.Mutex
	watchers map[chan struct{}]struct{}

	// addresses is one edge for all passes: on kernels that cannot mark addresses it remembers what it has made.
	addresses kernel.Addresses
	// repair writes the routes to VTEPs.
	repair *repair

	// What follows belongs to Run's goroutine.
	plan *overlay.Plan
	// keys of the plan's tunnels, and what the last pass made of the plan with them.
	keys      rotations
	effective overlay.Plan
	tunnels   map[string]*tunnel
	vteps     map[string]VTEPState
	// stopping are devices whose tunnel processes were asked to end, and when.
	stopping map[string]time.Time
	// drained are the devices that the operator has taken traffic off.
	drained map[string]bool
	// endpoints are those that the store keeps, by device.
	endpoints map[string]netip.AddrPort
	// told: a plan has come from fabric-site since the last pass.
	told bool
	// configured are the BFD sessions as last configured.
	configured []bfd.SessionConfig
	// carrierStates are what the processes of "tls" tunnels say, listenerErr why their listener does not work, as of this pass.
	carrierStates map[string]processStatus
	listenerErr   string
	// said remembers which error was logged for an object, so that it is logged once.
	said map[[2]string]string
}

// tunnel is what the engine remembers of a tunnel between passes.
type tunnel struct {
	state, reason string
	since         time.Time
	// endpoint that this process last asked for, "" before that.
	endpoint string
	// learnt is where the other end was at the last handshake, perhaps one that a process before this one saw.
	learnt netip.AddrPort
	// forgot is since when WireGuard knows of no handshake, zero while it does.
	forgot time.Time
	// handshake is the last one.
	handshake handshake
	// crossing tells of handshakes that wait for each other.
	crossing crossing
	// process says how starts of the tunnel process went.
	process respawn
}

type applyRequest struct {
	plan overlay.Plan
	done chan<- applyAnswer
}

type applyAnswer struct {
	objects []Object
	err     error
}

// New makes an engine.
func New(cfg Config) *Engine {
	if cfg.Resync == 0 {
		cfg.Resync = 3 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Repair == nil {
		cfg.Repair = cfg.Host
	}
	if cfg.Wall == nil {
		cfg.Wall = cfg.Now
	}
	e := &Engine{
		cfg:      cfg,
		started:  cfg.Now(),
		wake:     make(chan struct{}, 1),
		urgent:   make(chan struct{}, 1),
		plans:    make(chan applyRequest),
		drains:   make(chan drainRequest),
		calls:    make(chan func()),
		watchers: map[chan struct{}]struct{}{},
		tunnels:  map[string]*tunnel{},
		vteps:    map[string]VTEPState{},
		stopping: map[string]time.Time{},
		said:     map[[2]string]string{},
		drained:  map[string]bool{},

		addresses: cfg.Host.Addresses(kernel.ProtocolLinks),
		repair: &repair{
			routes: cfg.Repair.Routes(kernel.ProtocolLinks, kernel.MainTable), now: cfg.Now,
			share: cfg.Repair.Features().NextHops,
			legs:  map[string]*leg{}, paths: map[bfd.Path]string{},
			nextHops: cfg.Repair.NextHops(kernel.ProtocolLinks), watches: map[bfd.Path]*watch{},
		},
	}
	e.state.Store(&State{Version: version.Version, Started: e.started})
	return e
}

// Wake asks for a pass soon.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// State is the state after the last pass.
func (e *Engine) State() *State { return e.state.Load() }

// Subscribe returns a channel that is woken when the state has changed, and a function to end that.
func (e *Engine) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	e.mu.Lock()
	e.watchers[c] = struct{}{}
	e.mu.Unlock()
	return c, func() {
		e.mu.Lock()
		delete(e.watchers, c)
		e.mu.Unlock()
	}
}

// Apply keeps the plan, makes a pass with it and tells how each object stands. The error says that the plan was not taken.
func (e *Engine) Apply(ctx context.Context, p overlay.Plan) ([]Object, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	done := make(chan applyAnswer, 1)
	select {
	case e.plans <- applyRequest{p, done}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-done:
		return a.objects, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Run keeps the plan applied until ctx ends. It returns nil then, and leaves everything in place.
func (e *Engine) Run(ctx context.Context) error {
	kept, err := e.cfg.Store.Load()
	switch {
	case err != nil:
		// What is on the host stays; fabric-site will send a plan.
		e.cfg.Log.Error("the kept plan cannot be used; waiting for fabric-site to send one", "err", err)
	case kept != nil:
		e.plan = kept
		e.cfg.Log.Info("applying the kept plan", "gateway", kept.Gateway, "digest", kept.Digest())
	}
	e.loadDrained()
	e.loadEndpoints()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.watch(ctx) })
	g.Go(func() error { return e.loop(ctx) })
	err = g.Wait()
	e.asking.Wait()
	e.leave()
	return err
}

// watch turns kernel events into wakes. Without events the engine still looks every Resync.
func (e *Engine) watch(ctx context.Context) error {
	for {
		err := e.cfg.Host.Watch(ctx, func(kernel.Changed) { e.Wake() })
		if ctx.Err() != nil {
			return nil
		}
		e.cfg.Log.Warn("kernel events are lost; looking at intervals until they are back", "interval", e.cfg.Resync, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(e.cfg.Resync):
		}
	}
}

func (e *Engine) loop(ctx context.Context) error {
	e.onePass(ctx)
	if e.cfg.Ready != nil {
		e.cfg.Ready()
	}
	tick := time.NewTimer(e.pause())
	defer tick.Stop()
	for {
		tick.Reset(e.pause())
		select {
		case <-ctx.Done():
			return nil
		case r := <-e.plans:
			r.done <- e.take(ctx, r.plan)
		case r := <-e.drains:
			r.done <- e.drain(ctx, r.device, r.drained)
		case f := <-e.calls:
			f()
			e.beat()
		case <-e.wake:
			e.onePass(ctx)
			// Let the rest of a burst come in.
			select {
			case <-ctx.Done():
				return nil
			case <-e.urgent:
				e.publishSessions()
				e.Wake()
			case f := <-e.calls:
				f()
				e.beat()
			case <-time.After(settle):
			}
		case <-e.urgent:
			e.publishSessions()
			e.Wake()
		case <-tick.C:
			e.onePass(ctx)
		}
	}
}

var errOtherGateway = errors.New("the plan is another gateway's")

// pause is the time to the next pass if nothing wakes the engine. WireGuard tells nobody of a handshake, so a tunnel that is about to
// come up is looked at often.
func (e *Engine) pause() time.Duration {
	const soon, often = 100 * time.Millisecond, time.Second
	now, pause := e.cfg.Now(), e.cfg.Resync
	if next := e.repair.next(); !next.IsZero() {
		pause = min(pause, max(next.Sub(now), time.Millisecond))
	}
	if next := e.nextRotation(now); !next.IsZero() {
		pause = min(pause, max(next.Sub(now), time.Millisecond))
	}
	for _, t := range e.tunnels {
		switch {
		case t.state == Up:
		case now.Sub(t.since) < 15*time.Second:
			return min(pause, soon)
		default:
			pause = min(pause, often)
		}
	}
	return pause
}

// take puts a plan in force: first on disk, so that it survives, then on the host.
func (e *Engine) take(ctx context.Context, p overlay.Plan) applyAnswer {
	if e.plan != nil && e.plan.Gateway != p.Gateway {
		return applyAnswer{err: fmt.Errorf("links plan: %w: it is for %s, but this host carries %s; run fabric-links cleanup before it becomes another gateway", errOtherGateway, p.Gateway, e.plan.Gateway)}
	}
	if e.plan != nil && !p.SetsWhole {
		p.Keep(e.plan.AllSets()...)
	}
	if e.plan != nil {
		p.KeepSlots(*e.plan)
	}
	if e.plan == nil || !reflect.DeepEqual(*e.plan, p) {
		if err := e.cfg.Store.Save(p); err != nil {
			return applyAnswer{err: err}
		}
		e.cfg.Log.Info("plan taken", "gateway", p.Gateway, "digest", p.Digest(), "tunnels", len(p.Tunnels), "vteps", len(p.VTEPs), "next-hops", len(p.NextHops), "sets", len(p.Sets))
		e.plan = &p
		e.forgetDrained(p)
	}
	e.told = true
	objects := e.onePass(ctx)
	return applyAnswer{objects: objects}
}

// onePass makes a pass, and further ones at once as long as they get somewhere: one may make what the next stands on.
func (e *Engine) onePass(ctx context.Context) []Object {
	const most = 4
	var objects []Object
	for range most {
		p := e.pass(ctx)
		objects = p.objectList()
		if p.changes == 0 || ctx.Err() != nil {
			break
		}
	}
	e.beat()
	return objects
}

// beat tells that the engine gets on.
func (e *Engine) beat() {
	if e.cfg.Beat != nil {
		e.cfg.Beat()
	}
}

// publish makes s the state and wakes watchers if it differs from the former.
func (e *Engine) publish(s *State) {
	if reflect.DeepEqual(e.state.Load(), s) {
		return
	}
	e.state.Store(s)
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// logOp is the log of one operation on the host.
func (e *Engine) logOp(op, kind, name string, err error) {
	key := [2]string{kind, name}
	if err == nil {
		delete(e.said, key)
		e.cfg.Log.Info(op, "kind", kind, "name", name)
		return
	}
	if e.said[key] == err.Error() {
		return
	}
	e.said[key] = err.Error()
	var pending *pendingError
	if errors.As(err, &pending) {
		e.cfg.Log.Info(op+" waits", "kind", kind, "name", name, "for", err)
		return
	}
	e.cfg.Log.Warn(op+" failed", "kind", kind, "name", name, "err", err)
}
