package bgp

import (
	"context"
	"sync"
	"time"

	"fabric/bgp/rib"
)

const (
	// holdOff is how long BFD must have been Up again after it was Down before the peer's session is tried again.
	holdOff = 2 * time.Second
	// doubt is how long a BFD session that has begun anew may stay short of Up before its peer counts as dead. What was known
	// of the peer holds meanwhile: fabric-links was restarted, or the session was configured otherwise.
	doubt = 10 * time.Second
)

// Liveness is what BFD says of a peer (RFC 5880, RFC 5882 section 4.3).
type Liveness struct {
	// Up: the session is Up.
	Up bool
	// AdminDown: it is not, because an operator here or there wants it so. That says nothing of the path (RFC 5882
	// section 4.3.2), so a peer whose session was Up before stays.
	AdminDown bool
	// WasUp: it has been Up since it was configured. A session that is not Up and never was has lost nothing.
	WasUp bool
	// Why it is not Up, in words.
	Why string
}

// phase is how a peer stands with BFD.
//
//	        Up                Down             Up
//	waits ──────► alive ───────────► dead ──────────► returns
//	                ▲                 ▲    Down          │ │
//	                │                 └──────────────────┘ │ holdOff
//	                └───────────────────────────────────────┘
//
// Only an alive peer gets a session. A dead one's paths are unusable. waits becomes dead, too, when Up does not come in time.
type phase uint8

const (
	waits phase = iota
	alive
	dead
	returns
)

// verdict is what the liveness of a peer comes to.
type verdict struct {
	phase phase
	// ever: BFD was Up before. admin: an operator wants it down.
	ever, admin bool
	why         string
}

// String is the word of PeerState.BFD.
func (v *verdict) String() string {
	switch {
	case v.admin:
		return "admin-down"
	case v.phase == alive:
		return "up"
	case v.phase == dead && v.ever:
		return "down"
	}
	return "waits"
}

// problem says why there is no session, "" when there may be.
func (v *verdict) problem() string {
	text := "waits for BFD"
	switch {
	case v.phase == alive:
		return ""
	case v.phase == returns:
		return "waits for BFD to stay up"
	case v.phase == dead && v.ever:
		text = "BFD is down; the session waits for BFD to come up"
	}
	if v.why != "" {
		text += ": " + v.why
	}
	return text
}

// watched is a peer with BFD.
type watched struct {
	verdict
	returning time.Time // when returns ends
	doubted   time.Time // when patience with a session that has not been Up ends; zero without doubt
}

// hear takes what BFD says. Hearing the same again changes nothing.
func (w *watched) hear(l Liveness, now time.Time) {
	w.ever = w.ever || l.WasUp || l.Up
	up := l.Up || l.AdminDown && w.ever
	w.admin, w.why = l.AdminDown && !l.Up, l.Why
	switch {
	case up:
		w.doubted = time.Time{}
		switch w.phase {
		case waits:
			w.phase = alive
		case dead:
			w.phase, w.returning = returns, now.Add(holdOff)
		}
	case l.WasUp || w.phase == returns:
		w.phase, w.doubted = dead, time.Time{}
	case w.doubted.IsZero() && w.phase != dead && !l.AdminDown:
		w.doubted = now.Add(doubt)
	}
}

// tick takes the time. running says that the peer has a session although BFD was never Up: it was configured for a peer that ran
// already, and that alone is no reason to take it down.
func (w *watched) tick(now time.Time, running bool) {
	switch {
	case w.phase == returns && !now.Before(w.returning):
		w.phase = alive
	case !w.doubted.IsZero() && !now.Before(w.doubted) && !(w.phase == waits && running):
		w.phase, w.doubted = dead, time.Time{}
	}
}

// liveness keeps the peers with BFD, and the RIB in line with them. Whoever hears of a dead peer marks its paths himself, so that
// no queue of the Speaker's is in the way.
type liveness struct {
	rib *rib.Table

	mu    sync.Mutex
	peers map[rib.Source]*watched
}

// configure makes the peers with BFD those of a Desired. A disabled one has no BFD session, and begins anew.
func (l *liveness) configure(d *Desired) {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := map[rib.Source]bool{}
	for i := range d.VRFs {
		for j := range d.VRFs[i].Peers {
			if p := &d.VRFs[i].Peers[j]; p.BFD && !p.Disabled {
				want[p.Source()] = true
			}
		}
	}
	for s := range l.peers {
		if !want[s] {
			delete(l.peers, s)
			l.rib.SetSource(s, rib.Reachable)
		}
	}
	for s := range want {
		if l.peers[s] == nil {
			l.peers[s] = new(watched)
		}
	}
}

// change does something to a peer and brings the RIB in line. It says whether the verdict is another.
func (l *liveness) change(s rib.Source, f func(*watched)) (verdict, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.peers[s]
	if w == nil {
		return verdict{phase: alive}, false
	}
	old := w.verdict
	f(w)
	if w.phase != old.phase {
		reach := rib.Reachable
		if w.phase == dead || w.phase == returns {
			reach = rib.Unreachable
		}
		l.rib.SetSource(s, reach)
	}
	return w.verdict, w.verdict != old
}

// of returns the verdict of a peer; one that is not watched is alive.
func (l *liveness) of(s rib.Source) verdict {
	v, _ := l.change(s, func(*watched) {})
	return v
}

// SetLiveness says what BFD has found of a peer with BFD. If the session went down, the peer's paths are unusable when it
// returns, and Run ends the BGP session after: not by a reset, over which graceful restart would keep the paths, but by taking
// the peer from GoBGP until BFD is Up again. Peers that the newest Configure does not have, or has without BFD, are ignored; what
// was said holds until it is said again.
func (s *Speaker) SetLiveness(src rib.Source, l Liveness) {
	now := time.Now()
	if _, changed := s.live.change(src, func(w *watched) { w.hear(l, now) }); changed {
		s.poke()
	}
}

// heed takes over what BFD says of a neighbour.
func (s *server) heed(n *neighbour) {
	old := n.verdict
	n.verdict = verdict{phase: alive}
	if n.peer.BFD {
		n.verdict = s.live.of(n.source)
	}
	if n.verdict.phase == dead && old.phase != dead && !n.peer.Disabled {
		n.log.Warn("BFD is down: no session until it is up", "why", n.verdict.why)
		// Paths of before our restart go as well, and nobody waits for the peer to say all it has.
		s.config.RIB.WithdrawSource(n.source)
		s.config.RIB.EndOfRIB(n.source)
	}
}

// checkLiveness takes sessions down and up as BFD says.
func (s *Speaker) checkLiveness(ctx context.Context, now time.Time) {
	for _, v := range s.servers {
		for _, n := range v.neighbours {
			if !n.peer.BFD || n.peer.Disabled {
				continue
			}
			next, _ := s.live.change(n.source, func(w *watched) { w.tick(now, n.added) })
			if next != n.verdict {
				v.session(ctx, n, &n.peer)
			}
		}
	}
}
