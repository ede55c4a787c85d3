package bgp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
	"fabric/policy"
)

const (
	// maxRejections bounds the refused paths remembered per neighbour; beyond it they are only counted.
	maxRejections = 1000
	// warnPercent of max-prefix admitted is when a warning is logged; below it, what was refused gets another chance.
	warnPercent = 75
	// frozenTerm is the deciding term of a path refused because of max-prefix.
	frozenTerm = "max-prefix/frozen"
	// defaultTerm is that of a default route that no importing VRF allows, or not all.
	defaultTerm = "guard/default-not-allowed"
	// ownNextHopTerm is that of a path whose next hop is ourselves, foreignNextHopTerm of one from a directly connected neighbour
	// whose next hop is not on its network.
	ownNextHopTerm     = "wire/next-hop-is-ours"
	foreignNextHopTerm = "wire/next-hop-not-connected"
)

// neighbour is what Run keeps about a peer.
//
//	            established              lost, graceful
//	down ──────────────────────► up ───────────────────────► stale
//	  ▲                          │ ▲      established          │
//	  │          lost            │ └───────────────────────────┤
//	  ├──────────────────────────┘                             │
//	  └────────────────────────────────────────────────────────┘  restart time ran out
//
// down: no paths; up: paths, fresh, or stale until End-of-RIB; stale: all kept paths are stale (RFC 4724).
type neighbour struct {
	peer     Peer
	source   rib.Source
	imports  []Import // of the fabric's server
	password string
	number   uint32 // of its GoBGP VRF
	hasVRF   bool
	added    bool      // GoBGP knows it
	warm     bool      // to be added with LocalRestarting
	problem  string    // why GoBGP does not know it
	retry    time.Time // when to try again
	pending  bool      // timers to be updated once the session is down
	verdict  verdict   // of BFD; alive without
	target   *target
	log      *slog.Logger

	// The session.
	state      gobgp.FSMState
	since      time.Time
	flaps      int
	lastError  string
	families   []string
	hold       time.Duration
	keepalive  time.Duration
	restarting bool
	blown      bool // the fuse closed it
	floor      int  // of the fuse
	// finished are the families whose End-of-RIB has come; deadline is when we stop waiting for the others.
	finished []string
	deadline time.Time

	// The Adj-RIB-In as far as we must know it: what was admitted. Generations tell fresh paths from stale ones.
	generation uint32
	learned    map[slot]learned
	held       [2]int // all that is learned: IPv4, IPv6
	admitted   [2]int
	frozen     [2]int // refused because of max-prefix
	warned     [2]bool
	thaw       bool // there is room again for what was refused
	rejections map[slot]rib.Path
}

// learned is one path of the Adj-RIB-In.
type learned struct {
	admitted   bool
	frozen     bool
	generation uint32
}

func newNeighbour(p Peer, number uint32, log *slog.Logger) *neighbour {
	return &neighbour{
		peer: p, source: p.Source(), number: number, since: time.Now(), state: gobgp.BGP_FSM_IDLE,
		log:     log.With("peer", p.Name, "address", p.Address.String()),
		learned: map[slot]learned{}, rejections: map[slot]rib.Path{},
	}
}

func familyIndex(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// fail notes why GoBGP does not have the peer. It is logged once.
func (n *neighbour) fail(what string, err error) {
	text := fmt.Sprintf("bgp: peer %s is not running: %s: %v", n.peer.Name, what, err)
	if n.problem != text {
		n.log.Error("peer is not running", "why", what, "err", err)
	}
	n.problem, n.retry = text, time.Now().Add(retryAfter)
}

// changes is what a run of events means for the RIB.
type changes struct {
	updates   []rib.Path
	withdraws []rib.PathKey
}

func (c *changes) flush(t *rib.Table) {
	if len(c.withdraws) > 0 {
		t.Withdraw(c.withdraws...)
	}
	if len(c.updates) > 0 {
		t.Update(c.updates...)
	}
	c.withdraws, c.updates = c.withdraws[:0], c.updates[:0]
}

// up says whether paths count: GoBGP may deliver some of a session that was taken down by us.
func (n *neighbour) up() bool { return n.state == gobgp.BGP_FSM_ESTABLISHED }

// receive puts a path through guard, policy and max-prefix.
func (n *neighbour) receive(r *received, out *changes) {
	key := r.path.Key
	key.Source = n.source
	s := slot{prefix: key.Prefix, rd: key.RD, id: key.PathID}
	old, known := n.learned[s]
	if r.withdraw {
		if n.restarting && !n.up() {
			// Not the neighbour's word: GoBGP drops a restarting neighbour's paths when any attempt to connect fails
			// (opensent or openconfirm to idle), and the restart timer with them. Ours runs on (RFC 4724 section 4.2).
			return
		}
		n.forget(s, old, known)
		out.withdraws = append(out.withdraws, key)
		return
	}
	if !n.up() {
		return
	}
	p := r.path
	p.Key = key
	p, ok := n.judge(p, r.refuse)
	f := familyIndex(key.Prefix)
	frozen := ok && n.full(f) && !old.admitted
	if frozen {
		ok, p.Policy = false, frozenTerm
		if n.frozen[f] == 0 {
			n.log.Warn("max-prefix reached: new prefixes are refused, admitted ones keep updating", "limit", n.peer.MaxPrefix, "ipv6", f == 1)
		}
	}
	n.forget(s, old, known)
	n.learned[s] = learned{admitted: ok, frozen: frozen, generation: n.generation}
	n.held[f]++
	switch {
	case ok:
		n.admitted[f]++
		if n.peer.MaxPrefix > 0 && !n.warned[f] && !n.roomy(f) {
			n.warned[f] = true
			n.log.Warn("many prefixes: close to max-prefix", "admitted", n.admitted[f], "limit", n.peer.MaxPrefix, "ipv6", f == 1)
		}
		out.updates = append(out.updates, p)
		return
	case frozen:
		n.frozen[f]++
	}
	if len(n.rejections) < maxRejections {
		n.rejections[s] = p
	}
	if old.admitted || !known {
		// Also when nothing is known: a path from before our restart may be there, stale.
		out.withdraws = append(out.withdraws, key)
	}
}

// full says that no more prefixes of a family are admitted; roomy, that it is far from that.
func (n *neighbour) full(f int) bool {
	return n.peer.MaxPrefix > 0 && n.admitted[f] >= n.peer.MaxPrefix
}
func (n *neighbour) roomy(f int) bool { return n.admitted[f]*100 < n.peer.MaxPrefix*warnPercent }

// judge says what becomes of a path by guard and policy; Policy of the path returned names the deciding term.
func (n *neighbour) judge(p rib.Path, refuse string) (rib.Path, bool) {
	if refuse == refuseFamily && n.peer.ExtendedNextHop && p.Attrs.NextHop.Is6() {
		refuse = "" // RFC 8950
	}
	if refuse != "" {
		p.Policy = refuse
		return p, false
	}
	if !n.peer.internal() {
		p.Attrs.LocalPref = defaultLocalPref // RFC 4271 section 5.1.5: not for us to believe over eBGP
	}
	if n.source.Kind == rib.Peer {
		// VNI and targets are the fabric's business; a peer has no say in them.
		p.Attrs.RTs, p.Attrs.VNI, p.Attrs.RouterMAC = nil, 0, [6]byte{}
		if p.Attrs.NextHop.Is6() && p.Attrs.NextHop.IsLinkLocalUnicast() {
			p.Attrs.NextHop = p.Attrs.NextHop.WithZone(n.peer.Interface)
			p.Interface = n.peer.Interface
		} else if p.Attrs.NextHop == n.peer.Address && n.peer.Multihop == 0 {
			p.Interface = n.peer.Interface
		}
	} else if p.Key.Prefix.Bits() == 0 && !n.defaultAllowed(p.Attrs.RTs) {
		p.Policy = defaultTerm
		return p, false
	}
	q, verdict, term := n.peer.Import.Eval(p)
	q.Policy = term.String()
	if verdict == policy.Accept && n.source.Kind == rib.Peer && q.Attrs.NextHop == p.Attrs.NextHop {
		// What a policy has set is the operator's business.
		if why := n.peer.wrongNextHop(q.Attrs.NextHop); why != "" {
			q.Policy = why
			return q, false
		}
	}
	return q, verdict == policy.Accept
}

// wrongNextHop names the term that refuses a next hop, "" for none (RFC 4271 section 6.3). A path with such a next hop would make us
// send traffic to ourselves, or tell others of a network that we have no way to.
func (p *Peer) wrongNextHop(nh netip.Addr) string {
	if slices.Contains(p.Own, nh) {
		return ownNextHopTerm
	}
	if p.Multihop > 0 || p.internal() || len(p.Networks) == 0 || nh == p.Address || nh.Is6() && nh.IsLinkLocalUnicast() {
		return ""
	}
	if slices.ContainsFunc(p.Networks, func(net netip.Prefix) bool { return net.Contains(nh) }) {
		return ""
	}
	return foreignNextHopTerm
}

// defaultAllowed says whether all VRFs that import one of the targets let default routes in. The RIB imports by target
// alone, so one VRF that does not must not get what another may have.
func (n *neighbour) defaultAllowed(rts []rib.RT) bool {
	allowed := false
	for _, i := range n.imports {
		if !slices.ContainsFunc(i.RTs, func(rt rib.RT) bool { return slices.Contains(rts, rt) }) {
			continue
		}
		if !i.AllowDefault {
			return false
		}
		allowed = true
	}
	return allowed
}

// forget removes what is known of a slot.
func (n *neighbour) forget(s slot, old learned, known bool) {
	if !known {
		return
	}
	f := familyIndex(s.prefix)
	n.held[f]--
	if old.admitted {
		n.admitted[f]--
	}
	if old.frozen {
		n.frozen[f]--
	}
	delete(n.learned, s)
	delete(n.rejections, s)
}

// settle looks at what a run of events has left: a table that was close to its limit and no longer is.
func (n *neighbour) settle() {
	for f := range n.admitted {
		if n.peer.MaxPrefix > 0 && n.roomy(f) {
			n.warned[f] = false
			n.thaw = n.thaw || n.frozen[f] > 0
		}
	}
}

// forgetAll is for a session that is gone for good.
func (n *neighbour) forgetAll() {
	n.learned, n.rejections = map[slot]learned{}, map[slot]rib.Path{}
	n.held, n.admitted, n.frozen, n.warned, n.thaw = [2]int{}, [2]int{}, [2]int{}, [2]bool{}, false
}

// change follows the session. It returns what the RIB must do.
type outcome uint8

const (
	nothing outcome = iota
	withdrawAll
	markStale
)

func (n *neighbour) change(s *session, now time.Time) outcome {
	was := n.up()
	if s.state != n.state {
		n.state, n.since = s.state, now
	}
	switch {
	case s.state == gobgp.BGP_FSM_ESTABLISHED:
		n.families, n.finished = s.families, nil
		n.generation++
		n.lastError = ""
		// Neighbours without graceful restart send no End-of-RIB, and others may forget to.
		n.deadline = now.Add(n.peer.RestartTime)
		n.log.Info("session established", "families", n.families)
	case was:
		n.flaps++
		n.families, n.hold, n.keepalive = nil, 0, 0
		n.lastError = s.reason
		n.log.Warn("session lost", "reason", n.lastError, "graceful", s.graceful)
		if s.graceful {
			n.restarting = true
			n.deadline = now.Add(n.peer.RestartTime) // GoBGP's own timer, of what the neighbour announced, may end it sooner
			return markStale
		}
		n.restarting, n.deadline = false, time.Time{}
		n.forgetAll()
		return withdrawAll
	case s.expired:
		n.restarting, n.deadline = false, time.Time{}
		n.lastError = s.reason
		n.log.Warn("neighbour did not come back within its restart time: its paths go")
		n.forgetAll()
		return withdrawAll
	case s.reason != "" && s.state == gobgp.BGP_FSM_IDLE:
		n.lastError = s.reason
	}
	return nothing
}

// endOfRIB notes that a family is complete and says whether all are.
func (n *neighbour) endOfRIB(family string) bool {
	if !n.up() || n.deadline.IsZero() {
		return false
	}
	if !slices.Contains(n.finished, family) {
		n.finished = append(n.finished, family)
	}
	for _, f := range n.families {
		if !slices.Contains(n.finished, f) {
			return false
		}
	}
	n.complete()
	return true
}

// complete drops what the neighbour did not send again; all, if it is not back.
func (n *neighbour) complete() {
	restarting := n.restarting
	n.restarting, n.deadline = false, time.Time{}
	if !n.up() {
		if restarting {
			n.log.Warn("neighbour did not come back within our restart time: its paths go")
			n.forgetAll()
		}
		return
	}
	for s, l := range n.learned {
		if l.generation != n.generation {
			n.forget(s, l, true)
		}
	}
}

// fuseFloor is the least number of prefixes that blows the fuse; 250,000 paths are about 150 MB.
const fuseFloor = 250_000

// fuse is the number of prefixes of a family beyond which the session is closed to protect our memory: what we refuse is still in GoBGP's
// Adj-RIB-In. Freezing at max-prefix must come long before, so it has a floor. It is not GoBGP's own limit: with that GoBGP v4.8.0
// counts the whole table at each UPDATE, 10 ms with 6,000 prefixes, and a full table would take hours.
func (n *neighbour) fuse() int {
	if n.peer.MaxPrefix == 0 {
		return 0
	}
	return max(2*n.peer.MaxPrefix, n.floor)
}

// tooMany says that the fuse must blow. As max-prefix, it looks at each family by itself: two that are frozen are no reason.
func (n *neighbour) tooMany() bool {
	limit := n.fuse()
	return limit > 0 && max(n.held[0], n.held[1]) > limit
}
