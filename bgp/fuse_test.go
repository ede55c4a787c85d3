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

// The session comes back by itself once max-prefix allows for what blew the fuse, and when the peer was disabled and enabled; any other change
// of the document is no reason.
func TestFuseLifted(t *testing.T) {
	n := newNetwork(t)
	limited := func(max int, disabled bool) *config.Document {
		doc := n.document()
		n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "flood", ASN: 65100, MaxPrefix: max, Disabled: disabled}, 11, 12)
		return doc
	}
	flood := n.router(65100, 12, 11, 65001, ceOptions{})
	g := n.start(limited(2, false), "gw1", func(c *Config) { c.fuseFloor = 5 })
	for i := range 7 {
		flood.announce(route{prefix: fmt.Sprintf("10.%d.0.0/16", i)})
	}
	closed := func(limit int) {
		t.Helper()
		g.wantPeer("CORE", "flood", "closed by the fuse", func(p PeerState) bool {
			return p.State == "idle" && strings.Contains(p.LastError, fmt.Sprintf("more than %d prefixes", limit)) && strings.Contains(p.LastError, "peer reset flood")
		})
	}
	back := func(what string, max int) {
		t.Helper()
		g.wantPeer("CORE", "flood", what, func(p PeerState) bool {
			return p.State == "established" && p.Received == 7 && p.Admitted == max && p.LastError == ""
		})
	}
	closed(5)
	g.configure(limited(1, false))
	if p := g.wantPeer("CORE", "flood", "configured", func(p PeerState) bool { return p.MaxPrefix == 1 }); p.State != "idle" || p.LastError == "" {
		t.Errorf("with a lower limit: %+v", p)
	}
	g.configure(limited(3, false)) // the fuse is 6 then
	closed(6)
	g.configure(limited(4, false))
	back("back, and frozen", 4)
	// Within the fuse it takes no session: what was refused is there to be looked at again.
	flaps := g.peer("CORE", "flood").Flaps
	g.configure(limited(7, false))
	back("thawed", 7)
	if now := g.peer("CORE", "flood").Flaps; now != flaps {
		t.Errorf("%d sessions were lost for it", now-flaps)
	}
	flood.withdraw("10.6.0.0/16")
	g.configure(limited(2, false))
	closed(5)
	flood.withdraw("10.5.0.0/16")
	g.configure(limited(2, true))
	g.wantPeer("CORE", "flood", "disabled", func(p PeerState) bool { return p.Disabled && p.LastError == "" })
	g.configure(limited(2, false))
	g.wantPeer("CORE", "flood", "enabled", func(p PeerState) bool { return p.State == "established" && p.Received == 5 })
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
