package bgp

import (
	"log/slog"
	"testing"
	"time"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
)

// A neighbour restarts, and an attempt to connect fails half way: GoBGP withdraws all it has of it, we keep it until the
// restart time is over.
func TestStalePathsOutliveAFailedAttempt(t *testing.T) {
	n := newNeighbour(Peer{Name: "a", ASN: 65100, RestartTime: 20 * time.Second}, 1, slog.New(slog.DiscardHandler))
	start := time.Now()
	n.change(&session{state: gobgp.BGP_FSM_ESTABLISHED, families: []string{IPv4}}, start)
	var out changes
	n.receive(&received{path: rib.Path{Key: rib.PathKey{Prefix: prefix("10.1.0.0/16")}}}, &out)
	if len(out.updates) != 1 {
		t.Fatalf("changes are %+v", out)
	}
	if got := n.change(&session{state: gobgp.BGP_FSM_IDLE, graceful: true}, start); got != markStale {
		t.Errorf("lost: outcome %v", got)
	}
	gone := &received{withdraw: true, path: rib.Path{Key: rib.PathKey{Prefix: prefix("10.1.0.0/16")}}}
	for _, s := range []gobgp.FSMState{gobgp.BGP_FSM_OPENCONFIRM, gobgp.BGP_FSM_IDLE} {
		n.change(&session{state: s}, start)
	}
	if n.receive(gone, &out); len(out.withdraws) != 0 || len(n.learned) != 1 {
		t.Errorf("withdrawn: %+v, left %d", out.withdraws, len(n.learned))
	}
	if !n.deadline.Equal(start.Add(20 * time.Second)) {
		t.Errorf("deadline is %v after the loss", n.deadline.Sub(start))
	}
	n.complete()
	if len(n.learned) != 0 || n.restarting {
		t.Errorf("after the restart time: %+v", n.learned)
	}
	// Back in an ordinary session, a withdrawal is one.
	n.change(&session{state: gobgp.BGP_FSM_ESTABLISHED, families: []string{IPv4}}, start)
	if n.receive(gone, &out); len(out.withdraws) != 1 {
		t.Errorf("withdrawn: %+v", out.withdraws)
	}
}
