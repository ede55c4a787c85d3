package bgp

import (
	"net/netip"
	"sync"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
)

// event is one thing a neighbour did: sent or withdrew a path, finished its table, or changed its session's state.
type event struct {
	neighbour netip.Addr
	path      *received
	session   *session
	endOfRIB  string // family
}

// session is a change of a session's state.
type session struct {
	state gobgp.FSMState
	// graceful: lost, and paths are to be kept; expired: and the restart time ran out.
	graceful, expired bool
	reason            string
	// What was negotiated, once established.
	families []string
	restart  bool // the neighbour has the graceful restart capability
}

// slot identifies what may be coalesced: the newest path for a slot is the only one that counts.
type slot struct {
	neighbour netip.Addr
	prefix    netip.Prefix
	rd        rib.RD
	id        uint32
}

// inbox is where GoBGP's callbacks leave events for Run. Paths have one slot per neighbour and prefix between two
// session events, so that its size is bounded by the neighbours' tables and not by how often they change.
//
// The order within one slot, and between paths and session events, is kept; the order among different slots is not.
type inbox struct {
	wake chan<- struct{}

	mu     sync.Mutex
	events []event
	slots  map[slot]int
}

func newInbox(wake chan<- struct{}) *inbox {
	return &inbox{wake: wake, slots: map[slot]int{}}
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) paths(paths []*apiutil.Path) {
	var d decoder
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range paths {
		r, ok := d.decode(p)
		if !ok {
			continue
		}
		k := &r.path.Key
		s := slot{neighbour: p.PeerAddress, prefix: k.Prefix, rd: k.RD, id: k.PathID}
		ev := event{neighbour: p.PeerAddress, path: &r}
		if i, pending := b.slots[s]; pending {
			b.events[i] = ev
			continue
		}
		b.slots[s] = len(b.events)
		b.events = append(b.events, ev)
	}
	if len(b.events) > 0 {
		b.signal()
	}
}

// barrier adds an event that paths must not be moved across.
func (b *inbox) barrier(ev event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, ev)
	if len(b.slots) > 0 {
		b.slots = map[slot]int{}
	}
	b.signal()
}

// take empties the inbox.
func (b *inbox) take() []event {
	b.mu.Lock()
	defer b.mu.Unlock()
	evs := b.events
	b.events = nil
	if len(b.slots) > 0 {
		b.slots = map[slot]int{}
	}
	return evs
}

func (b *inbox) eor(p *apiutil.Path) {
	if name := familyName(p.Family); name != "" {
		b.barrier(event{neighbour: p.PeerAddress, endOfRIB: name})
	}
}

func (b *inbox) peer(ev *apiutil.WatchEventMessage_PeerEvent) {
	if ev.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	st := &ev.Peer.State
	s := &session{
		state:    st.SessionState,
		graceful: st.DisconnectReason == api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART,
		expired:  st.DisconnectReason == api.PeerState_DISCONNECT_REASON_RESTART_TIMER_EXPIRED,
		reason:   st.DisconnectMessage,
	}
	if s.state == gobgp.BGP_FSM_ESTABLISHED {
		s.families, s.restart = negotiated(st.LocalCap, st.RemoteCap)
	}
	b.barrier(event{neighbour: st.NeighborAddress, session: s})
}

// negotiated are the families both sides announced (RFC 4760 section 8), and whether the neighbour restarts gracefully. A
// neighbour that announces none speaks IPv4 unicast.
func negotiated(local, remote []gobgp.ParameterCapabilityInterface) (names []string, restart bool) {
	multiprotocol := func(caps []gobgp.ParameterCapabilityInterface) map[gobgp.Family]bool {
		out := map[gobgp.Family]bool{}
		for _, c := range caps {
			if m, ok := c.(*gobgp.CapMultiProtocol); ok {
				out[m.CapValue] = true
			}
		}
		if len(out) == 0 {
			out[gobgp.RF_IPv4_UC] = true
		}
		return out
	}
	theirs := multiprotocol(remote)
	ours := multiprotocol(local)
	for _, name := range []string{IPv4, IPv6, EVPN} {
		if f := families[name]; ours[f] && theirs[f] {
			names = append(names, name)
		}
	}
	for _, c := range remote {
		if _, ok := c.(*gobgp.CapGracefulRestart); ok {
			restart = true
		}
	}
	return names, restart
}
