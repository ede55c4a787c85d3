package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/vrf"
)

// stage is one kind of host object, kept as the intent says. Stages are passed in order: each may rely on what the ones
// before it made.
type stage struct {
	name string
	// pass observes, compares and applies once.
	pass func(context.Context) error
	// plan says what a pass towards another intent would do, one line per object.
	plan func(context.Context, *intent) ([]string, error)
}

// stageRoutes is the stage between them, whose loop also runs by itself.
const stageRoutes = "route"

// hostStages are the stages before the routes and after them, in the order of their passing.
//
// The guard on VXLAN's port is first, so that nothing is ever sent in clear while the rest is being built; devices come
// before what stands on them; rules come after routes, so that a VRF's table is never asked before its backstop is there.
func (s *Site) hostStages() (before, after []stage) {
	k := s.cfg.Kernel
	before = []stage{
		newStage(s, "filter", same(k.Filters(filterTable)), func(in *intent) map[string]kernel.Filter {
			return map[string]kernel.Filter{filterTable: in.host.Filter}
		}),
		newStage(s, "link", same(k.Links(kernel.KindVRF, kernel.KindVXLAN)), func(in *intent) map[string]kernel.Link { return in.host.Links }),
		newStage(s, "port", func(in func() *intent) kernel.Ports {
			return k.Ports(func() []string { return keys(in().host.Ports) })
		}, func(in *intent) map[string]kernel.Port { return in.host.Ports }),
		newStage(s, "sysctl", func(in func() *intent) kernel.Sysctls {
			return k.Sysctls(func() []string { return keys(in().host.Sysctls) })
		}, func(in *intent) map[string]string { return in.host.Sysctls }),
		newStage(s, "address", same(k.Addresses(kernel.Protocol)), func(in *intent) map[kernel.AddressKey]kernel.Address { return in.host.Addresses }),
		newStage(s, "neighbour", same(k.Neighbours()), func(in *intent) map[kernel.NeighbourKey]kernel.Neighbour { return in.host.Neighbours }),
		newStage(s, "forwarding entry", same(k.FDB()), func(in *intent) map[kernel.FDBKey]kernel.FDBEntry { return in.host.FDB }),
	}
	after = []stage{
		newStage(s, "rule", same(k.Rules(kernel.Protocol)), func(in *intent) map[kernel.RuleKey]kernel.Rule { return in.host.Rules }),
	}
	return before, after
}

// same is an edge that observes the same whatever is wanted.
func same[K comparable, V any](e reconcile.Edge[K, V]) func(func() *intent) reconcile.Edge[K, V] {
	return func(func() *intent) reconcile.Edge[K, V] { return e }
}

func newStage[K comparable, V any](s *Site, name string, edge func(func() *intent) reconcile.Edge[K, V], want func(*intent) map[K]V) stage {
	towards := func(in func() *intent) *reconcile.Loop[K, V] {
		return reconcile.NewLoop(reconcile.Config[K, V]{
			Name: name, Edge: edge(in), Log: s.log,
			// The loop keeps what it gets; an intent is shared.
			Want: func() (map[K]V, bool) { return maps.Clone(want(in())), true },
		})
	}
	return stage{
		name: name,
		pass: towards(s.intent.Load).Pass,
		plan: func(ctx context.Context, in *intent) ([]string, error) {
			ops, err := towards(func() *intent { return in }).Plan(ctx)
			var lines []string
			for _, op := range ops {
				lines = append(lines, fmt.Sprintf("%s %s %v", op.Kind, name, op.Key))
			}
			return lines, err
		},
	}
}

// runHost passes all stages whenever the intent or the host changed, and at intervals.
func (s *Site) runHost(ctx context.Context) error {
	delay, slow := hostInterval, true
	for {
		gen := s.intent.Load().generation
		if slow {
			// It reads whole tables, so not on every event.
			s.lookForStrangers(ctx)
		}
		err := s.passHost(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			delay = hostInterval
			s.hostDone(gen)
		default:
			// Errors are told per stage; the next look is soon, since most of them are things about to appear.
			delay = hostRetry
		}
		s.hostTried()
		wake(s.pubWake)
		select {
		case <-ctx.Done():
			return nil
		case <-s.hostWake:
			slow = false
		case <-time.After(delay):
			slow = true
		}
	}
}

// lookForStrangers notes what others have put where our VRFs are: it is told, and left alone.
func (s *Site) lookForStrangers(ctx context.Context) {
	found, err := s.cfg.Kernel.Strangers(ctx, s.intent.Load().host.Tables)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("what others have in our tables cannot be read", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.strangers, found) && len(found) > 0 {
		s.log.Warn("others use the VRFs' tables", "found", found)
	}
	s.strangers = found
}

// passHost passes every stage once, in order, also when one of them fails: what can stand shall stand.
func (s *Site) passHost(ctx context.Context) error {
	var errs []error
	run := func(name string, pass func(context.Context) error) {
		err := pass(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		was := s.stageErr[name]
		delete(s.stageErr, name)
		switch {
		case err != nil:
			s.stageErr[name] = err.Error()
			errs = append(errs, err)
			if was != err.Error() {
				s.log.Warn("the host is not as wanted; trying on", "stage", name, "err", err)
			}
		case was != "":
			s.log.Info("the host is as wanted again", "stage", name)
		}
	}
	for _, st := range s.stages {
		run(st.name, st.pass)
	}
	run(stageRoutes, s.fib.loop.Pass)
	if in := s.intent.Load(); len(in.host.Tables) > 0 {
		// Before the rules of the VRFs exist this changes nothing; without it a VRF would reach the host's other addresses.
		run("local rule", func(ctx context.Context) error { return s.cfg.Kernel.MoveLocalRule(ctx, vrf.LocalRulePriority) })
	}
	for _, st := range s.after {
		run(st.name, st.pass)
	}
	return errors.Join(errs...)
}

// hostDone notes that the host is as generation gen wants it.
func (s *Site) hostDone(gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hostGeneration = max(s.hostGeneration, gen)
}

// hostTried opens the gates after a pass. An object that could not be made (an absent interface, a foreign device) does not
// hold up the others: it is told as a problem. Only without the guard no session and no tunnel starts.
func (s *Site) hostTried() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readyOnce.Do(func() { close(s.hostReady) })
	if s.stageErr["filter"] == "" {
		s.guardOnce.Do(func() { close(s.guarded) })
	}
}

// waitHost waits for the first pass, and a while for fabric-links: without it there are no tunnels, but the site's own
// neighbours can be served.
func (s *Site) waitHost(ctx context.Context) error {
	if err := wait(ctx, s.hostReady); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, s.cfg.LinksPatience)
	defer cancel()
	_ = wait(patience, s.links.acked)
	return ctx.Err()
}

// Plan says what a document would change, in words; nothing is applied. An empty plan says that everything is as the
// document wants it.
func (s *Site) Plan(ctx context.Context, doc *config.Document) ([]string, error) {
	in, err := compile(doc, s.cfg.Gateway, s.cfg.Kernel.Features())
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, st := range slices.Concat(s.stages, s.after) {
		more, err := st.plan(ctx, in)
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	old := s.intent.Load()
	return slices.Concat(lines, planRoutes(old, in), planPaths(old, in), planVRFs(old, in), planPeers(old, in),
		planLinks(old, in), planCloud(old, in)), nil
}

// keys returns the keys of a map in order.
func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
