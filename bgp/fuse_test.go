package bgp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// A neighbour sends more than its fuse allows: the session is closed and stays closed until it is reset.
func TestFuse(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "flood", ASN: 65100, Passive: false, MaxPrefix: 2}, 11, 12)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ok", ASN: 65101, MaxPrefix: 2}, 11, 13)
	flood, ok := n.router(65100, 12, 11, 65001, ceOptions{}), n.router(65101, 13, 11, 65001, ceOptions{})
	g := n.start(doc, "gw1", func(c *Config) { c.fuseFloor = 5 })
	ok.announce(route{prefix: "10.9.0.0/16"})
	prefixes := []string{"10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16"}
	for _, p := range prefixes {
		flood.announce(route{prefix: p})
	}
	g.wantPeer("CORE", "flood", "frozen, with its session", func(p PeerState) bool { return p.Frozen && p.State == "established" && p.Received == 5 })
	flood.announce(route{prefix: "10.6.0.0/16"})
	g.wantPeer("CORE", "flood", "closed by the fuse", func(p PeerState) bool {
		return p.State == "idle" && strings.Contains(p.LastError, "more than 5 prefixes") && p.Flaps == 1
	})
	g.wantRoutes("CORE", "10.9.0.0/16 peer ok [65101]")
	if err := g.Reset("CORE", "flood", true); err == nil || !strings.Contains(err.Error(), "more than 5 prefixes") {
		t.Errorf("a soft reset of a closed session: %v", err)
	}
	flood.withdraw("10.6.0.0/16")
	if err := g.Reset("CORE", "flood", false); err != nil {
		t.Fatal(err)
	}
	g.wantPeer("CORE", "flood", "back", func(p PeerState) bool { return p.State == "established" && p.Received == 5 && p.LastError == "" })
}

// A peer a little beyond max-prefix in both families is frozen, not closed.
func TestFuseCountsFamilies(t *testing.T) {
	n := newNeighbour(Peer{Name: "both", ASN: 65100, MaxPrefix: 4}, 1, slog.New(slog.DiscardHandler))
	n.floor, n.state = 5, gobgp.BGP_FSM_ESTABLISHED
	var out changes
	learn := func(format string, from, to int) {
		for i := from; i < to; i++ {
			n.receive(&received{path: rib.Path{Key: rib.PathKey{Prefix: netip.MustParsePrefix(fmt.Sprintf(format, i))}}}, &out)
		}
	}
	learn("10.%d.0.0/16", 0, 8)
	learn("fd00:%d::/32", 0, 8)
	if n.frozen == [2]int{} || n.tooMany() {
		t.Errorf("with %v held: %v frozen, too many %v", n.held, n.frozen, n.tooMany())
	}
	learn("fd00:%d::/32", 8, 9)
	if !n.tooMany() {
		t.Errorf("with %v held the fuse does not blow", n.held)
	}
	n.receive(&received{withdraw: true, path: rib.Path{Key: rib.PathKey{Prefix: netip.MustParsePrefix("fd00:8::/32")}}}, &out)
	if n.tooMany() {
		t.Errorf("with %v held after a withdrawal it still does", n.held)
	}
}
