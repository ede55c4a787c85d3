// Package api serves the gateway's control plane to fabricctl, to programs and to the page: reads come from the
// site's published snapshots, changes go through the store of the intent, and nothing is kept here.
//
// A change is one pass: propose (the whole document is validated) -> plan (what it would change, in words) -> commit
// (a new generation) -> and, when asked for, wait until the site has applied it. Each step may refuse; before the
// commit nothing has happened, and the commit itself is atomic.
package api

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// Gateway is what the service needs of the running site; *site.Site is one.
type Gateway interface {
	// Snapshot returns the newest snapshot, or nil before the first.
	Snapshot() *site.Snapshot
	// Changed returns a channel with one slot that is woken by each new snapshot, and the end of the subscription.
	Changed() (<-chan struct{}, func())
	// Routes calls fn for each chosen route of a VRF, sorted by prefix, until fn returns false. A slow client makes
	// fn slow: no lock that route work needs may be held while it runs.
	Routes(vrf string, fn func(site.RouteStatus) bool) error
	// WatchRoutes calls fn for each chosen route of a VRF, or of all with "", and then for each change until ctx ends
	// or fn returns an error. The same goes for fn as in Routes.
	WatchRoutes(ctx context.Context, vrf string, fn func(r site.RouteStatus, withdrawn bool) error) error
	// Explain says why a prefix is routed as it is.
	Explain(vrf string, p netip.Prefix) (site.Explanation, error)
	// ResetPeer ends a session so that it starts anew; soft keeps it and refreshes the routes.
	ResetPeer(ctx context.Context, vrf, name string, soft bool) error
	// DrainTunnel takes traffic off the tunnel of a device as long as there is another, or gives it back, and returns once it has moved.
	DrainTunnel(ctx context.Context, device string, drained bool) error
	// ApproveCloud lets the deletes go that are held back in the VPC's tables because they are so many, and returns how many.
	ApproveCloud() int
	// RotateTunnel has the keys of the tunnel of a device replaced, and returns the generation of the present ones at once.
	RotateTunnel(ctx context.Context, device string) (generation int, err error)
	// Plan says in words what a document would change on this gateway; it changes nothing.
	Plan(ctx context.Context, doc *config.Document) ([]string, error)
}

// Store is what the service needs of the intent's store; *config.Store is one.
type Store interface {
	// Current returns the generation in force.
	Current() *config.Generation
	// Propose validates changes on top of it.
	Propose(ms ...config.Mutation) (*config.Proposal, error)
	// Commit puts a proposal into force, or fails with config.ErrStale when another came first.
	Commit(p *config.Proposal, who string) (*config.Generation, error)
	// Rollback proposes the document of generation n.
	Rollback(n uint64, who string) (*config.Proposal, error)
	// Rebase proposes the file without the changes that conflict with it.
	Rebase(who string) (*config.Proposal, error)
	// History returns the generations that are kept, newest first, without documents.
	History() ([]config.Generation, error)
	// Generation returns one of them with its document.
	Generation(n uint64) (*config.Generation, error)
	// Diff compares two generations; a 0 is the file, b 0 the current generation.
	Diff(a, b uint64) (string, error)
	// Conflicts names the changes that do not fit the file any more.
	Conflicts() []string
}

// Config is what a Service is made of.
type Config struct {
	// Gateway is the running site.
	Gateway Gateway
	// Store keeps the intent.
	Store Store
	// Doctor looks at the host, with probes if asked; nil where nobody can. What is wrong is in the answer, not an error.
	Doctor func(ctx context.Context, probe bool) (*fabricv1.DoctorResponse, error)
	// Log receives one record per change and per refused caller. Default slog.Default.
	Log *slog.Logger
	// Version of the daemon.
	Version string
}

// Service answers the RPCs of fabric.v1.FabricService. It is safe for concurrent use.
type Service struct {
	fabricv1.UnimplementedFabricServiceServer

	gateway Gateway
	store   Store
	doctor  func(ctx context.Context, probe bool) (*fabricv1.DoctorResponse, error)
	log     *slog.Logger
	version string

	// looking has one slot: a look at the host costs something, and two at once would find each other's probes.
	looking chan struct{}

	// change makes changes take turns, so that two callers at once both succeed, and each sees a plan that is true.
	change sync.Mutex
	// drain does the same for tunnels, which are no part of the document.
	drain sync.Mutex
}

// New returns a Service. It has no effect before Serve.
func New(cfg Config) *Service {
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	return &Service{gateway: cfg.Gateway, store: cfg.Store, doctor: cfg.Doctor, log: log, version: cfg.Version, looking: make(chan struct{}, 1)}
}

// snapshot returns the newest snapshot, or UNAVAILABLE while there is none.
func (s *Service) snapshot() (*site.Snapshot, error) {
	snap := s.gateway.Snapshot()
	if snap == nil {
		return nil, status.Error(codes.Unavailable, "the gateway is still starting; try again in a moment")
	}
	return snap, nil
}

// local returns the current generation and this gateway's part of its document.
func (s *Service) local() (*config.Generation, *config.Gateway, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, nil, err
	}
	gen := s.store.Current()
	if gen == nil || gen.Document == nil {
		return nil, nil, status.Error(codes.FailedPrecondition, "there is no document in force; see the daemon's log")
	}
	_, gw, ok := gen.Document.Find(snap.Site.Gateway)
	if !ok {
		return nil, nil, status.Errorf(codes.FailedPrecondition,
			"the document of generation %d has no gateway %q; start the daemon with the --gateway that it has", gen.Number, snap.Site.Gateway)
	}
	return gen, gw, nil
}
