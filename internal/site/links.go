package site

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"fabric/bgp/rib"
	"fabric/overlay"
	"fabric/overlay/links"
)

const (
	// linksPatience is how long the sessions wait for fabric-links at start.
	linksPatience = 10 * time.Second
	// linksRetry is the time between attempts to hand the plan over.
	linksRetry = time.Second
)

// LinksClient speaks to fabric-links; *links.Client is one.
type LinksClient interface {
	Apply(context.Context, overlay.Plan) (links.Result, error)
	Watch(context.Context, func(links.State, error)) error
}

// linksFollower gives fabric-links its plan and turns what it tells into reachability of VTEPs. What was last known stays
// in force while fabric-links is away: it is then restarting, and the kernel forwards.
type linksFollower struct {
	site   *Site
	client LinksClient
	log    *slog.Logger
	poke   chan struct{}

	mu sync.Mutex
	// acked is closed while the plan in force is known to stand.
	acked  chan struct{}
	digest string
	state  links.State
	// err is why the plan was not taken, away why the state is not known; "" when all is well.
	err, away string
	// down are the VTEPs told to the rib as unreachable.
	down map[netip.Addr]bool
}

func newLinksFollower(s *Site, c LinksClient) *linksFollower {
	return &linksFollower{site: s, client: c, log: s.log, poke: make(chan struct{}, 1), acked: make(chan struct{}), down: map[netip.Addr]bool{}}
}

func (l *linksFollower) wake() { wake(l.poke) }

// wait returns once fabric-links has acknowledged a plan of ours: next-hop objects stand and routes may refer to them.
func (l *linksFollower) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-l.acked:
		return nil
	}
}

func (l *linksFollower) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- l.client.Watch(ctx, l.heard) }()
	// Next hops stand on VXLAN devices, so the host comes first.
	select {
	case <-ctx.Done():
	case <-l.site.hostReady:
	}
	for ctx.Err() == nil {
		retry := l.apply(ctx)
		select {
		case <-ctx.Done():
		case <-l.poke:
		case <-retry:
		}
	}
	return ignoreCancel(ctx, <-done)
}

// apply hands the plan over and returns a channel that fires when it should be handed over again.
func (l *linksFollower) apply(ctx context.Context) <-chan time.Time {
	plan := l.site.intent.Load().plan
	digest := plan.Digest()
	l.mu.Lock()
	same := l.digest == digest && l.err == ""
	l.mu.Unlock()
	if same {
		return nil
	}
	_, err := l.client.Apply(ctx, plan)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.err != err.Error() && ctx.Err() == nil {
			l.log.Warn("fabric-links did not take the plan; trying on", "err", err)
		}
		l.err = err.Error()
		wake(l.site.pubWake)
		return time.After(linksRetry)
	}
	l.err, l.digest = "", digest
	select {
	case <-l.acked:
	default:
		close(l.acked)
	}
	l.site.fib.loop.Wake()
	wake(l.site.pubWake)
	return nil
}

// heard takes a state of fabric-links, or that it has gone away: then what was last known stays in force.
func (l *linksFollower) heard(st links.State, err error) {
	l.mu.Lock()
	if err != nil {
		l.away = err.Error()
		l.mu.Unlock()
		wake(l.site.pubWake)
		return
	}
	l.away = ""
	l.state = st
	if st.Digest != "" && l.digest != "" && st.Digest != l.digest {
		// It restarted from another plan, or somebody else spoke to it.
		l.digest = ""
		wake(l.poke)
	}
	var changes []rib.NextHop
	for _, v := range st.VTEPs {
		if isDown := v.Device == ""; isDown != l.down[v.Addr] {
			l.down[v.Addr] = isDown
			changes = append(changes, rib.NextHop{Addr: v.Addr})
		}
	}
	l.mu.Unlock()
	for _, nh := range changes {
		reach := rib.Reachable
		if l.isDown(nh.Addr) {
			reach = rib.Unreachable
		}
		l.site.rib.SetNextHop(nh, reach)
	}
	wake(l.site.pubWake)
}

func (l *linksFollower) isDown(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down[a]
}

// snapshot returns what fabric-links last told and why it cannot be spoken to, "" when it can.
func (l *linksFollower) snapshot() (links.State, string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	why := l.away
	if why == "" {
		why = l.err
	}
	return l.state, why, l.digest != "" && why == ""
}
