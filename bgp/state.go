package bgp

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"fabric/bgp/rib"
)

// PeerState is one neighbour as it is.
type PeerState struct {
	// VRF is "" for another gateway; Fabric says the same.
	VRF, Name string
	Address   netip.Addr
	ASN       uint32
	LocalASN  uint32
	Fabric    bool
	// State is the FSM's (RFC 4271 section 8.2.2): "idle", "connect", "active", "opensent", "openconfirm", "established".
	State string
	// Since is when State began; Flaps counts established sessions lost.
	Since time.Time
	Flaps int
	// Disabled by the intent; Frozen: prefixes are refused because of max-prefix; Restarting: paths are kept over the neighbour's restart.
	Disabled, Frozen, Restarting bool
	// Received counts the paths in the Adj-RIB-In: those admitted to the RIB and those rejected.
	Received, Admitted, Rejected int
	// Advertised counts the prefixes we announce; 0 while not established.
	Advertised int
	MaxPrefix  int
	// Families are those negotiated, or configured while not established.
	Families []string
	// LastError says why the session is not up, or why it last went down.
	LastError string
	// BFD is "" without BFD, else "up", "down", "waits" (never up so far, or up but for the hold-off) or "admin-down".
	BFD string
	// Hold and Keepalive are those negotiated; 0 while not established.
	Hold, Keepalive time.Duration
}

// Peers returns the neighbours, other gateways first, then by VRF and name.
func (s *Speaker) Peers() []PeerState { return *s.state.Load() }

// Rejected returns what was refused in a VRF ("" from other gateways), ordered by prefix, at most 1000 per neighbour.
// Policy of each path names the term that refused it. It is nil while the speaker is busy or stopped.
func (s *Speaker) Rejected(vrf string) []rib.Path {
	var out []rib.Path
	err := s.ask(func() error {
		if v := s.servers[vrf]; v != nil {
			for _, n := range v.neighbours {
				out = slices.AppendSeq(out, maps.Values(n.rejections))
			}
		}
		return nil
	})
	if err != nil {
		return nil
	}
	slices.SortFunc(out, func(a, b rib.Path) int {
		return cmp.Or(a.Key.Prefix.Compare(b.Key.Prefix), cmp.Compare(a.Key.Source.Name, b.Key.Source.Name))
	})
	return out
}

func (s *Speaker) publish() {
	var peers []PeerState
	for _, v := range s.servers {
		advertised := 0
		for _, t := range v.origins {
			advertised += len(t.sent)
		}
		for _, n := range v.neighbours {
			st := n.status()
			if v.err != nil {
				st.LastError = v.err.Error()
			}
			if n.up() && n.target == nil {
				st.Advertised = advertised
			}
			peers = append(peers, st)
		}
	}
	slices.SortFunc(peers, func(a, b PeerState) int {
		return cmp.Or(cmp.Compare(a.VRF, b.VRF), cmp.Compare(a.Name, b.Name))
	})
	if slices.EqualFunc(*s.state.Load(), peers, samePeerState) {
		return
	}
	s.state.Store(&peers)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func samePeerState(a, b PeerState) bool { return reflect.DeepEqual(a, b) }

func (n *neighbour) status() PeerState {
	p := &n.peer
	st := PeerState{
		VRF: p.VRF, Name: p.Name, Address: p.Address, ASN: p.ASN, LocalASN: p.LocalASN, Fabric: p.VRF == "",
		State: states[n.state], Since: n.since, Flaps: n.flaps,
		Disabled: p.Disabled, Frozen: n.frozen[0]+n.frozen[1] > 0, Restarting: n.restarting,
		Received: len(n.learned), Admitted: n.admitted[0] + n.admitted[1], MaxPrefix: p.MaxPrefix,
		Families: p.Families, LastError: n.lastError, Hold: n.hold, Keepalive: n.keepalive,
	}
	st.Rejected = st.Received - st.Admitted
	if n.up() {
		st.Families = n.families
		if n.target != nil {
			st.Advertised = n.target.count(n.families)
		}
	}
	if p.BFD && !p.Disabled {
		st.BFD = n.verdict.String()
		if why := n.verdict.problem(); why != "" && !n.added {
			st.LastError = why
		}
	}
	if n.problem != "" {
		st.LastError = n.problem
	}
	return st
}

// count is the number of announcements in the families.
func (t *target) count(families []string) (n int) {
	for i, f := range []string{IPv4, IPv6} {
		if slices.Contains(families, f) {
			n += t.counts[i]
		}
	}
	return n
}
