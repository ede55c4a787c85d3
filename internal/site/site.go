package site

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fabric/bgp"
	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
)

const (
	// filterTable is our nft table of family inet.
	filterTable = "fabric"
	// hostInterval is how often everything on the host but the routes is compared with the wish, beside every event; not
	// all of it has events (nftables, sysctls, forwarding entries).
	hostInterval = 10 * time.Second
	// hostRetry is when it is looked at again after something could not be made.
	hostRetry = 2 * time.Second
	// routesInterval is the same for the routes, of which there may be many.
	routesInterval = 30 * time.Second
	// checkpointDelay is how long changes are gathered before the checkpoint is written.
	checkpointDelay = time.Second
	// checkpointTouch is how often a checkpoint that needs no change is marked as still true.
	checkpointTouch = 10 * time.Second
	// publishInterval is how often the snapshot is renewed, beside every event.
	publishInterval = time.Second
)

// Config is what a Site is made of.
type Config struct {
	// Gateway is our name in the document.
	Gateway string
	// Store holds the intent.
	Store *config.Store
	// Kernel is the host's network namespace.
	Kernel kernel.Host
	// Links is the client of fabric-links.
	Links LinksClient
	// Cloud opens the VPC of a site in a cloud.
	Cloud cloud.Opener
	// StateDir holds the checkpoint.
	StateDir string
	Log      *slog.Logger
	Version  string
	// Registry receives the metrics; nil for none.
	Registry prometheus.Registerer
	// Ready is called once when the host has been gone through and fabric-links has answered, or kept us waiting for too long.
	Ready func()
	// LinksPatience is how long the sessions wait for fabric-links at start; 0 is 10 s.
	LinksPatience time.Duration
}

// Site is one running gateway.
type Site struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	rib     *rib.Table
	speaker *bgp.Speaker
	links   *linksFollower
	fib     *fib
	// stages come before the routes, after behind them.
	stages, after []stage
	cloud         *cloud.Sync

	intent   atomic.Pointer[intent]
	snapshot atomic.Pointer[Snapshot]
	// listeners are those of the document at start: the daemon opened them then, and opens no others later.
	listeners listeners
	// hostWake, pubWake have one slot each and carry no data.
	hostWake, pubWake chan struct{}
	ready             atomic.Bool
	// hostReady is closed after the first pass of the host's stages, guarded once the filter stands: before it nothing is
	// sent towards other gateways.
	hostReady, guarded   chan struct{}
	readyOnce, guardOnce sync.Once

	mu sync.Mutex
	// problem is why the newest generation is not the one in force, "" when it is.
	problem  string
	stageErr map[string]string
	// strangers are what others have in our VRFs' tables.
	strangers []string
	// hostGeneration is the newest generation that the host's stages fully reached.
	hostGeneration uint64
	// appliedGen is the newest generation that all parts reached.
	appliedGen uint64
	watchers   map[chan struct{}]bool
}

// New compiles the current generation and wires the parts. It touches nothing on the host.
func New(cfg Config) (*Site, error) {
	if cfg.LinksPatience == 0 {
		cfg.LinksPatience = 10 * time.Second
	}
	s := &Site{
		cfg: cfg, log: cfg.Log, started: time.Now(), rib: rib.NewTable(),
		hostReady: make(chan struct{}), guarded: make(chan struct{}), hostWake: make(chan struct{}, 1), pubWake: make(chan struct{}, 1),
		stageErr: map[string]string{}, watchers: map[chan struct{}]bool{},
	}
	in, err := s.compileCurrent()
	if err != nil {
		return nil, err
	}
	s.intent.Store(in)
	s.listeners = listenersOf(in)
	s.links = newLinksFollower(s, cfg.Links)
	s.speaker = bgp.NewSpeaker(bgp.Config{
		Log: cfg.Log, RIB: s.rib, VTEP: in.gw.VTEP, RouterMAC: overlay.GatewayMAC(in.gw),
		Restarting: s.warmStart(in),
	})
	s.fib = newFIB(s)
	s.stages, s.after = s.hostStages()
	s.cloud = cloud.NewSync(cloud.Config{Log: cfg.Log, RIB: s.rib, Open: cfg.Cloud, Changed: func() { wake(s.pubWake) }})
	s.cloud.Configure(in.cloud)
	s.fib.rebuild()
	s.snapshot.Store(s.build())
	if cfg.Registry != nil {
		if err := cfg.Registry.Register(newMetrics(s)); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return s, nil
}

func (s *Site) compileCurrent() (*intent, error) {
	gen := s.cfg.Store.Current()
	in, err := compile(gen.Document, s.cfg.Gateway, s.cfg.Kernel.Features())
	if err != nil {
		return nil, fmt.Errorf("generation %d: %w", gen.Number, err)
	}
	in.generation = gen.Number
	return in, nil
}

// warmStart fills the rib from the checkpoint of this boot, for the neighbours that are still wanted, and says whether
// this is a restart within a boot: the kernel then still forwards by the routes that we left there.
func (s *Site) warmStart(in *intent) bool {
	s.rib.SetVRFs(in.vrfs)
	s.rib.Expect(in.sources)
	s.rib.Update(in.local...)
	paths, err := loadCheckpoint(s.cfg.StateDir, s.cfg.Gateway, time.Duration(in.doc.Fabric.BGP.RestartTime))
	if err != nil {
		s.log.Warn("starting cold", "err", err)
	}
	wanted := map[rib.Source]bool{}
	for _, src := range in.sources {
		wanted[src] = true
	}
	warm := false
	for _, p := range paths {
		if wanted[p.Key.Source] {
			s.rib.Update(p)
			warm = true
		}
	}
	return warm
}

// Run keeps the gateway as the intent says until ctx ends. Nothing is torn down then: a stop is a restart that has not
// come yet, and forwarding goes on.
func (s *Site) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s.speaker.Configure(s.intent.Load().bgp)
	for _, run := range []func(context.Context) error{
		s.runHost, s.runIntent, s.runStaleTimer, s.runCheckpoint, s.runPublish, s.watchKernel,
		s.fib.run, s.fib.sweepSets, s.runRoutes, s.links.run, s.cloud.Run, s.runSpeaker,
	} {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}

// runRoutes keeps the routes once there are devices and addresses for them to stand on.
func (s *Site) runRoutes(ctx context.Context) error {
	if err := wait(ctx, s.hostReady); err != nil {
		return nil
	}
	return s.fib.loop.Run(ctx)
}

// runSpeaker starts the sessions once the host can carry them: addresses stand, rules isolate and the filter guards.
func (s *Site) runSpeaker(ctx context.Context) error {
	if err := s.waitHost(ctx); err != nil {
		return ignoreCancel(ctx, err)
	}
	if !s.ready.Swap(true) {
		if s.cfg.Ready != nil {
			s.cfg.Ready()
		}
		s.log.Info("ready", "after", time.Since(s.started).Round(time.Millisecond).String())
	}
	wake(s.pubWake)
	select {
	case <-s.links.acked:
	default:
		s.log.Warn("starting the sessions without fabric-links", "waited", s.cfg.LinksPatience.String())
	}
	if err := wait(ctx, s.guarded); err != nil {
		return nil
	}
	return s.speaker.Run(ctx)
}

// runIntent follows the store: each generation is compiled whole; only if all of it compiles is any of it applied.
func (s *Site) runIntent(ctx context.Context) error {
	changed := s.cfg.Store.Subscribe()
	for {
		if s.cfg.Store.Current().Number != s.intent.Load().generation {
			s.adopt()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (s *Site) adopt() {
	in, err := s.compileCurrent()
	if old := s.intent.Load().gw.VTEP; err == nil && in.gw.VTEP != old {
		err = fmt.Errorf("generation %d: the VTEP of gateway %s changes from %s to %s, which needs a restart (systemctl restart fabric-site)",
			in.generation, in.gw.Name, old, in.gw.VTEP)
	}
	s.mu.Lock()
	if err != nil {
		s.problem = err.Error()
	} else {
		s.problem = ""
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Error("the new generation is not taken; the one before stays in force", "err", err)
		wake(s.pubWake)
		return
	}
	old := s.intent.Swap(in)
	s.log.Info("new generation", "generation", in.generation)
	s.retireLocal(old, in)
	s.rib.SetVRFs(in.vrfs)
	s.rib.Update(in.local...)
	s.fib.rebuild()
	s.speaker.Configure(in.bgp)
	s.links.tellPeers() // peers that are new to the speaker
	s.cloud.Configure(in.cloud)
	s.links.wake()
	s.fib.loop.Wake()
	wake(s.hostWake)
}

// retireLocal withdraws the local paths that the new intent no longer has, and what neighbours told us that are no more.
func (s *Site) retireLocal(old, in *intent) {
	keep := map[rib.PathKey]bool{}
	for i := range in.local {
		keep[in.local[i].Key] = true
	}
	for i := range old.local {
		if !keep[old.local[i].Key] {
			s.rib.Withdraw(old.local[i].Key)
		}
	}
	wanted := map[rib.Source]bool{}
	for _, src := range in.sources {
		wanted[src] = true
	}
	for _, src := range old.sources {
		if !wanted[src] {
			s.rib.WithdrawSource(src)
			// Nobody waits any longer for it to say all it knows.
			s.rib.EndOfRIB(src)
		}
	}
}

// watchKernel looks again whenever somebody else changed the host.
func (s *Site) watchKernel(ctx context.Context) error {
	return s.cfg.Kernel.Watch(ctx, func(c kernel.Changed) {
		if c&kernel.ChangedRoutes != 0 || c&kernel.ChangedNextHops != 0 {
			s.fib.loop.Wake()
		}
		if c&^(kernel.ChangedRoutes|kernel.ChangedNextHops) != 0 {
			wake(s.hostWake)
		}
	})
}

// ResetPeer resets a BGP session; soft keeps the session and asks for, and sends, all routes again.
func (s *Site) ResetPeer(_ context.Context, vrf, name string, soft bool) error {
	return s.speaker.Reset(vrf, name, soft)
}

// DrainTunnel takes traffic off a tunnel as long as there is another to the same gateway, or gives it back. The tunnel is named
// by its device.
func (s *Site) DrainTunnel(ctx context.Context, device string, drained bool) error {
	return s.cfg.Links.Drain(ctx, device, drained)
}

// RotateTunnel has the keys of the tunnel of a device replaced without a gap, and returns the generation of the present ones at once; how it
// goes is in the tunnel's state.
func (s *Site) RotateTunnel(ctx context.Context, device string) (generation int, err error) {
	return s.cfg.Links.Rotate(ctx, device)
}

// problems are those of the intent, then those of the stages.
func (s *Site) problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ps []string
	if s.problem != "" {
		ps = append(ps, s.problem)
	}
	for _, c := range s.cfg.Store.Conflicts() {
		ps = append(ps, "change not applied: "+c+" (mend the document or run fabricctl config rebase)")
	}
	ps = append(ps, s.listeners.outdated(s.intent.Load())...)
	ps = append(ps, s.strangers...)
	for _, name := range keys(s.stageErr) {
		if name != stageRoutes {
			ps = append(ps, s.stageErr[name])
		}
	}
	// The routes' own loop knows more than the last pass of all.
	if err := s.fib.loop.Summary().Err; err != "" {
		ps = append(ps, err)
	}
	select {
	case <-s.guarded:
	default:
		if s.ready.Load() {
			ps = append(ps, "the sessions wait for the filter: without it VXLAN could leave in clear")
		}
	}
	return ps
}

// wait waits for a channel to be closed; the error is that of ctx.
func wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c:
		return nil
	}
}

// wake fills a one-slot channel.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ignoreCancel is nil for the end of ctx: that is how a Run ends well.
func ignoreCancel(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
