package site

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"fabric/bgp"
	"fabric/bgp/rib"
	"fabric/overlay"
	"fabric/overlay/links"
)

// linksTimeout bounds one hand-over: a fabric-links that hangs must not hide behind a plan that is under way.
const linksTimeout = 30 * time.Second

// linksRetry is the time between attempts to hand the plan over.
const linksRetry = time.Second

// LinksClient speaks to fabric-links; *links.Client is one.
type LinksClient interface {
	Apply(context.Context, overlay.Plan) (links.Result, error)
	Watch(context.Context, func(links.State, error)) error
	Drain(ctx context.Context, device string, drained bool) error
	Rotate(ctx context.Context, device string) (generation int, err error)
}

// linksFollower gives fabric-links its plan and turns what it tells into reachability of VTEPs. What was last known stays
// in force while fabric-links is away: it is then restarting, and the kernel forwards.
type linksFollower struct {
	site   *Site
	client LinksClient
	log    *slog.Logger
	poke   chan struct{}

	// acked is closed once fabric-links has taken a plan of ours.
	acked chan struct{}

	// telling is held while the speaker is told of BFD, tellingSets while the fib is told of next-hop sets, so that the newest state is
	// told last.
	telling, tellingSets sync.Mutex

	mu sync.Mutex
	// digest is of the plan that fabric-links has taken, theirs what it calls it: another version of the program may
	// see less of a plan than we do.
	digest, theirs string
	// state is what it told last, the one of that number.
	state  links.State
	states int
	// resend: the plan is to be sent though fabric-links has it.
	resend bool
	// err is why the plan was not taken, away why the state is not known; "" when all is well.
	err, away string
}

func newLinksFollower(s *Site, c LinksClient) *linksFollower {
	return &linksFollower{site: s, client: c, log: s.log, poke: make(chan struct{}, 1), acked: make(chan struct{})}
}

func (l *linksFollower) wake() { wake(l.poke) }

func (l *linksFollower) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- l.client.Watch(ctx, l.heard) }()
	// Next hops stand on VXLAN devices, and tunnels come up: so the host and the guard come first.
	_ = wait(ctx, l.site.guarded)
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
	plan := l.site.fib.planWithSets()
	digest := plan.Digest()
	l.mu.Lock()
	same := l.digest == digest && l.err == "" && !l.resend
	l.resend = false
	before := l.states
	l.mu.Unlock()
	if same {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, linksTimeout)
	defer cancel()
	r, err := l.client.Apply(bounded, plan)
	l.tellingSets.Lock()
	defer l.tellingSets.Unlock()
	held := false
	if err == nil {
		l.mu.Lock()
		sets := r.Sets
		if l.states != before && l.state.Digest == r.Digest {
			// What it has told of this plan since may be newer than its answer; if it is older, the next word comes soon.
			sets = l.state.Sets
		}
		l.mu.Unlock()
		held = l.site.fib.setsTaken(plan, sets)
	}
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
	l.err, l.digest, l.theirs = "", digest, r.Digest
	select {
	case <-l.acked:
	default:
		close(l.acked)
	}
	l.site.fib.loop.Wake()
	wake(l.site.pubWake)
	if held {
		l.resend = true
		return time.After(linksRetry)
	}
	return nil
}

// heard takes a state of fabric-links, or that it has gone away: then what was last known stays in force.
func (l *linksFollower) heard(st links.State, err error) {
	l.tellingSets.Lock()
	l.mu.Lock()
	if err != nil {
		l.away = err.Error()
		l.mu.Unlock()
		l.tellingSets.Unlock()
		wake(l.site.pubWake)
		return
	}
	l.away = ""
	l.state = st
	l.states++
	if l.digest != "" && st.Digest != l.theirs {
		// It restarted from another plan or has lost it, or somebody else spoke to it.
		l.digest = ""
		wake(l.poke)
	}
	ours := l.digest != ""
	l.mu.Unlock()
	held := ours && l.site.fib.setsTold(st.Sets)
	l.tellingSets.Unlock()
	if held {
		// Sending the plan again says that its sets are still wanted as they are.
		l.again()
	}
	// The rib drops what changes nothing.
	for _, v := range st.VTEPs {
		reach := rib.Reachable
		if v.Device == "" {
			reach = rib.Unreachable
		}
		l.site.rib.SetNextHop(rib.NextHop{Addr: v.Addr}, reach)
	}
	l.tellPeers()
	wake(l.site.pubWake)
}

// again has the plan sent though fabric-links has it.
func (l *linksFollower) again() {
	l.mu.Lock()
	l.resend = true
	l.mu.Unlock()
	l.wake()
}

// tellPeers tells the speaker what BFD says of the peers of the intent in force. Telling the same again changes nothing.
func (l *linksFollower) tellPeers() {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	sessions := l.state.Sessions
	l.mu.Unlock()
	in := l.site.intent.Load()
	for i := range sessions {
		st := &sessions[i]
		if st.Peer == "" {
			continue // a tunnel's
		}
		for j := range in.bgp.VRFs {
			for k := range in.bgp.VRFs[j].Peers {
				if p := &in.bgp.VRFs[j].Peers[k]; p.VRF == st.VRF && p.Name == st.Peer {
					l.site.speaker.SetLiveness(p.Source(), peerLiveness(st))
				}
			}
		}
	}
}

// peerLiveness is what a BFD session means for the peer's BGP.
func peerLiveness(st *links.SessionState) bgp.Liveness {
	l := bgp.Liveness{
		Up: st.State == links.Up, AdminDown: st.RemoteAdminDown || st.State == "admin-down", WasUp: st.Ups > 0, Why: st.Reason,
	}
	if st.Problem != "" {
		l.Why = st.Problem
	}
	if l.Up {
		l.Why = ""
	}
	return l
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
