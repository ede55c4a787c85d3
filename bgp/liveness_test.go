package bgp

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// What BFD says, second by second, and what comes of it.
func TestVerdict(t *testing.T) {
	up, down := Liveness{Up: true, WasUp: true}, Liveness{WasUp: true, Why: "detection time expired"}
	begins := Liveness{Why: "no packet yet"}
	admin, adminWas := Liveness{AdminDown: true, Why: "neighbour"}, Liveness{AdminDown: true, WasUp: true, Why: "neighbour"}
	type step struct {
		at   time.Duration
		hear *Liveness // nil: only time
		want string    // phase and word
	}
	for _, c := range []struct {
		name    string
		running bool
		steps   []step
	}{
		{"comes up", false, []step{{0, nil, "waits waits"}, {0, &begins, "waits waits"}, {9, nil, "waits waits"}, {9, &up, "alive up"}, {99, nil, "alive up"}}},
		{"goes down and comes back", false, []step{{0, &up, "alive up"}, {1, &down, "dead down"}, {1, &down, "dead down"}, {60, nil, "dead down"},
			{60, &up, "returns waits"}, {61, &up, "returns waits"}, {61, nil, "returns waits"}, {62, nil, "alive up"}}},
		{"flaps", false, []step{{0, &up, "alive up"}, {1, &down, "dead down"}, {2, &up, "returns waits"}, {3, &down, "dead down"}, {3, &up, "returns waits"},
			{4, nil, "returns waits"}, {5, nil, "alive up"}}},
		{"admin-down after up", false, []step{{0, &up, "alive up"}, {1, &admin, "alive admin-down"}, {99, nil, "alive admin-down"}, {99, &up, "alive up"}}},
		{"admin-down, up before our start", false, []step{{0, &adminWas, "alive admin-down"}}},
		{"admin-down from the start", false, []step{{0, &admin, "waits admin-down"}, {99, nil, "waits admin-down"}, {99, &up, "alive up"}}},
		{"down at our start", false, []step{{0, &down, "dead down"}, {1, &up, "returns waits"}, {3, nil, "alive up"}}},
		{"fabric-links starts anew", false, []step{{0, &up, "alive up"}, {1, &begins, "alive up"}, {5, &begins, "alive up"}, {10, nil, "alive up"}, {10, &up, "alive up"}, {99, nil, "alive up"}}},
		{"and the peer is gone meanwhile", false, []step{{0, &up, "alive up"}, {1, &begins, "alive up"}, {5, &begins, "alive up"}, {11, nil, "dead down"}, {12, &begins, "dead down"}}},
		{"never comes up", false, []step{{0, &begins, "waits waits"}, {10, nil, "dead waits"}, {11, &up, "returns waits"}, {13, nil, "alive up"}}},
		{"new to a peer that runs", true, []step{{0, &begins, "waits waits"}, {99, nil, "waits waits"}, {99, &up, "alive up"}, {100, &down, "dead down"}}},
		{"anew within the hold-off", false, []step{{0, &up, "alive up"}, {1, &down, "dead down"}, {2, &up, "returns waits"}, {3, &begins, "dead down"}, {9, nil, "dead down"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, start := new(watched), time.Now()
			for i, s := range c.steps {
				now := start.Add(s.at * time.Second)
				if s.hear != nil {
					w.hear(*s.hear, now)
				} else {
					w.tick(now, c.running)
				}
				got := []string{"waits", "alive", "dead", "returns"}[w.phase] + " " + w.String()
				if got != s.want {
					t.Fatalf("step %d: %s, want %s", i, got, s.want)
				}
				if (w.problem() == "") != (w.phase == alive) {
					t.Errorf("step %d: problem %q", i, w.problem())
				}
			}
		})
	}
}

// Two peers announce the same prefix. BFD is strict: the better one has no session before its BFD was up. When BFD goes down, the
// other takes over before the call returns, and nothing is kept stale although both ends restart gracefully; when it is up again the
// session comes back after the hold-off. The peer without BFD is never touched.
func TestLiveness(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "a", ASN: 65100, Families: []string{IPv4}, BFD: &config.PeerBFD{}}, 11, 101)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "b", ASN: 65101, Families: []string{IPv4}}, 11, 102)
	ra, rb := n.router(65100, 101, 11, 65001, ceOptions{restart: true}), n.router(65101, 102, 11, 65001, ceOptions{restart: true})
	g := n.start(doc, "gw1")
	ra.announce(route{prefix: "10.1.0.0/16"}, route{prefix: "10.2.0.0/16"})
	rb.announce(route{prefix: "10.1.0.0/16", asPath: []uint32{65555}})
	viaA := []string{"10.1.0.0/16 peer a [65100]", "10.2.0.0/16 peer a [65100]"}
	const viaB = "10.1.0.0/16 peer b [65101 65555]"

	g.wantRoutes("CORE", viaB)
	p := g.wantPeer("CORE", "a", "waits", func(p PeerState) bool { return p.BFD == "waits" })
	if p.State != "idle" || !strings.Contains(p.LastError, "waits for BFD") {
		t.Errorf("%+v", p)
	}
	if err := g.Reset("CORE", "a", false); err == nil || !strings.Contains(err.Error(), "waits for BFD") {
		t.Errorf("reset of a peer that waits: %v", err)
	}
	if p := g.peer("CORE", "b"); p.BFD != "" {
		t.Errorf("b has no BFD: %+v", p)
	}

	a := rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "a", Addr: n.addr(101)}
	g.SetLiveness(a, Liveness{Up: true, WasUp: true})
	g.wantRoutes("CORE", viaA...)
	g.wantPeer("CORE", "a", "up", func(p PeerState) bool { return p.BFD == "up" && p.State == "established" && p.LastError == "" })

	// The neighbour's operator takes BFD down: nothing moves.
	g.SetLiveness(a, Liveness{AdminDown: true, WasUp: true, Why: "neighbour signalled AdminDown"})
	p = g.wantPeer("CORE", "a", "admin-down", func(p PeerState) bool { return p.BFD == "admin-down" })
	if p.State != "established" || p.Flaps != 0 {
		t.Errorf("admin-down: %+v", p)
	}
	g.wantRoutes("CORE", viaA...)
	g.SetLiveness(a, Liveness{Up: true, WasUp: true})

	feed := g.rib.Subscribe()
	defer feed.Close()
	if _, err := feed.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.SetLiveness(a, Liveness{WasUp: true, Why: "detection time expired"})
	// One batch holds all of it, before the session is touched.
	b, err := feed.Next(t.Context())
	if err != nil || len(b.Choices) != 2 || b.Choices[0].Best == nil || b.Choices[0].Best.Key.Source.Name != "b" || b.Choices[1].Best != nil {
		t.Fatalf("%+v %v", b, err)
	}
	p = g.wantPeer("CORE", "a", "down", func(p PeerState) bool { return p.BFD == "down" && p.State == "idle" })
	if p.Restarting || p.Received != 0 || p.Flaps != 1 || !strings.Contains(p.LastError, "detection time expired") {
		t.Errorf("down: %+v", p)
	}
	wait(t, "none of a's paths", patience, func() (string, bool) { return "", g.rib.SourceLen(a) == 0 })
	g.wantRoutes("CORE", viaB)

	begun := time.Now()
	g.SetLiveness(a, Liveness{Up: true, WasUp: true})
	g.wantRoutes("CORE", viaA...)
	if took := time.Since(begun); took < holdOff {
		t.Errorf("back after %v", took)
	}
	if p := g.peer("CORE", "b"); p.Flaps != 0 || p.State != "established" {
		t.Errorf("b was touched: %+v", p)
	}
}

// A peer that runs gets BFD: its session stays until BFD, once up, goes down. Without BFD again it comes back.
func TestLivenessIsConfigured(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "a", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{})
	g := n.start(doc, "gw1")
	r.announce(route{prefix: "10.1.0.0/16"})
	g.wantRoutes("CORE", "10.1.0.0/16 peer a [65100]")
	a := rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "a", Addr: n.addr(101)}
	g.SetLiveness(a, Liveness{WasUp: true}) // not asked for
	g.wantRoutes("CORE", "10.1.0.0/16 peer a [65100]")

	with := doc.Clone()
	with.Sites[0].Gateways[0].VRFs[0].Peers[0].BFD = &config.PeerBFD{}
	g.configure(with)
	g.SetLiveness(a, Liveness{Why: "no packet yet"})
	p := g.wantPeer("CORE", "a", "waits", func(p PeerState) bool { return p.BFD == "waits" })
	if p.State != "established" || p.Flaps != 0 || p.LastError != "" {
		t.Errorf("BFD that is new took the session down: %+v", p)
	}
	g.SetLiveness(a, Liveness{Up: true, WasUp: true})
	g.wantPeer("CORE", "a", "up", func(p PeerState) bool { return p.BFD == "up" })
	g.SetLiveness(a, Liveness{WasUp: true})
	g.wantRoutes("CORE")
	g.wantPeer("CORE", "a", "down", func(p PeerState) bool { return p.BFD == "down" && p.State == "idle" })

	g.configure(doc)
	g.wantRoutes("CORE", "10.1.0.0/16 peer a [65100]")
	if p := g.peer("CORE", "a"); p.BFD != "" {
		t.Errorf("%+v", p)
	}
}

// A warm start: what the checkpoint has of a peer is unusable from the moment that BFD is heard to be down, also before Run, and
// nobody waits for it.
func TestLivenessAtWarmStart(t *testing.T) {
	table := rib.NewTable()
	s := NewSpeaker(Config{RIB: table, Restarting: true})
	peers := []Peer{
		{Name: "dead", VRF: "CORE", Address: netip.MustParseAddr("192.0.2.1"), BFD: true, RestartTime: time.Minute},
		{Name: "alive", VRF: "CORE", Address: netip.MustParseAddr("192.0.2.2"), BFD: true, RestartTime: time.Minute},
		{Name: "unknown", VRF: "CORE", Address: netip.MustParseAddr("192.0.2.3"), BFD: true, RestartTime: time.Minute},
	}
	var sources []rib.Source
	for i := range peers {
		src := peers[i].Source()
		sources = append(sources, src)
		table.Update(rib.Path{Key: rib.PathKey{Source: src, Prefix: netip.PrefixFrom(peers[i].Address, 32)}, Stale: true,
			Attrs: rib.Attrs{LocalPref: 100, NextHop: peers[i].Address}})
	}
	table.Expect(sources)
	// Port -1: nothing is listened on.
	s.Configure(Desired{VRFs: []Server{{VRF: "CORE", ASN: 65001, RouterID: netip.MustParseAddr("10.0.0.1"), Port: -1, Peers: peers}}})
	s.SetLiveness(sources[0], Liveness{WasUp: true})
	s.SetLiveness(sources[1], Liveness{Up: true, WasUp: true})
	usable := func() (names []string) {
		table.Walk("CORE", func(c rib.Choice) bool { names = append(names, c.Best.Key.Source.Name); return true })
		return names
	}
	if got := strings.Join(usable(), " "); got != "alive unknown" {
		t.Errorf("before Run: usable are %s", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		<-done
		s.Close()
	}()
	wait(t, "only the dead peer to be awaited no longer", patience, func() (string, bool) {
		return "", len(table.Awaited()) == 2 && table.SourceLen(sources[0]) == 0
	})
	if got := strings.Join(usable(), " "); got != "alive unknown" {
		t.Errorf("while it runs: usable are %s", got)
	}
}
