package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// The tests use real sockets on addresses of 127.0.0.0/8, a block and a port of its own for each test.

var blocks atomic.Uint32

// network is one test's addresses.
type network struct {
	t     *testing.T
	block uint32
	port  int
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, block: blocks.Add(1)}
	l, err := net.Listen("tcp", net.JoinHostPort(n.addr(254).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	n.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	return n
}

// addr is address number i of the block.
func (n *network) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 77, byte(n.block), byte(i)})
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// document is two gateways, gw1 and gw2, with the VRFs CORE and OPS.
func (n *network) document() *config.Document {
	gw := func(i int) config.Gateway {
		return config.Gateway{
			Name: fmt.Sprintf("gw%d", i), ASN: uint32(65000 + i), VTEP: n.addr(i),
			RouterID: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}),
			VRFs:     []config.GatewayVRF{{VRF: "CORE"}, {VRF: "OPS"}},
		}
	}
	return &config.Document{
		Fabric: config.Fabric{Name: "test", BGP: config.BGPDefaults{
			Port: n.port, Keepalive: config.Duration(time.Second), Hold: config.Duration(3 * time.Second),
			ConnectRetry: config.Duration(time.Second), RestartTime: config.Duration(20 * time.Second), MaxPrefix: 10000,
		}},
		VRFs: []config.VRF{
			{Name: "CORE", Table: 200, VNI: 1000, ImportRT: []string{"64512:1000"}, ExportRT: []string{"64512:1000"}},
			{Name: "OPS", Table: 201, VNI: 70001, ImportRT: []string{"64512:1001"}, ExportRT: []string{"64512:1001"}},
		},
		Sites: []config.Site{
			{Name: "s1", Gateways: []config.Gateway{gw(1)}},
			{Name: "s2", Gateways: []config.Gateway{gw(2)}},
		},
		Links: config.Links{Mesh: "full", Tunnels: []config.Tunnel{{Kind: "wireguard"}}},
	}
}

// addPeer gives a gateway a third-party peer in a VRF, on a session from addr(local) to addr(remote).
func (n *network) addPeer(doc *config.Document, gateway, vrf string, p config.Peer, local, remote int) {
	n.t.Helper()
	_, gw, ok := doc.Find(gateway)
	if !ok {
		n.t.Fatal("no gateway " + gateway)
	}
	p.Address, p.UpdateSource, p.Port = n.addr(remote), n.addr(local), n.port
	if p.Families == nil {
		p.Families = []string{IPv4, IPv6}
		p.NextHop = cmpAddr(p.NextHop, netip.MustParseAddr("2001:db8:ffff::1"))
	}
	if p.MaxPrefix == 0 {
		p.MaxPrefix = doc.Fabric.BGP.MaxPrefix
	}
	p.Keepalive, p.Hold = doc.Fabric.BGP.Keepalive, doc.Fabric.BGP.Hold
	for i := range gw.VRFs {
		if gw.VRFs[i].VRF == vrf {
			gw.VRFs[i].Peers = append(gw.VRFs[i].Peers, p)
		}
	}
}

func cmpAddr(a, b netip.Addr) netip.Addr {
	if a.IsValid() {
		return a
	}
	return b
}

// gateway is a running Speaker with its RIB.
type gateway struct {
	*Speaker
	t    *testing.T
	name string
	rib  *rib.Table
	kill context.CancelFunc
}

func testLog(t *testing.T) *slog.Logger {
	level := slog.LevelError
	if testing.Verbose() && os.Getenv("BGP_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("test", t.Name())
}

// start runs a gateway of the document.
func (n *network) start(doc *config.Document, name string, edit ...func(*Config)) *gateway {
	n.t.Helper()
	return n.startAll(doc, edit, name)[0]
}

// pair runs gw1 and gw2.
func (n *network) pair(doc *config.Document, edit ...func(*Config)) (g1, g2 *gateway) {
	n.t.Helper()
	gs := n.startAll(doc, edit, "gw1", "gw2")
	return gs[0], gs[1]
}

// startAll runs gateways. It returns when all servers run, and none has peers before that, nor are routers told what
// to announce: the race detector would see GoBGP's package variables written by one server's start and read by another's
// sessions.
func (n *network) startAll(doc *config.Document, edit []func(*Config), names ...string) []*gateway {
	n.t.Helper()
	var gs []*gateway
	var ready sync.WaitGroup
	ready.Add(len(names))
	for i, name := range names {
		_, gw, _ := doc.Find(name)
		cfg := Config{
			Log: testLog(n.t).With("gateway", name), RIB: rib.NewTable(), VTEP: gw.VTEP, RouterMAC: [6]byte{2, 0, 0, 0, 0, byte(gw.ASN)},
			started: func() {
				ready.Done()
				ready.Wait()
			},
		}
		if i < len(edit) {
			edit[i](&cfg)
		}
		g := &gateway{Speaker: NewSpeaker(cfg), t: n.t, name: name, rib: cfg.RIB}
		g.configure(doc)
		ctx, cancel := context.WithCancel(context.Background())
		g.kill = cancel
		go func() {
			if err := g.Run(ctx); err != nil {
				n.t.Errorf("%s: Run: %v", name, err)
			}
		}()
		n.t.Cleanup(func() {
			cancel()
			g.Close()
		})
		gs = append(gs, g)
	}
	ready.Wait()
	return gs
}

func (g *gateway) configure(doc *config.Document) {
	g.t.Helper()
	d, err := Compile(doc, g.name, HostFacts{})
	if err != nil {
		g.t.Fatal(err)
	}
	var vrfs []rib.VRF
	for _, i := range d.Imports {
		vrfs = append(vrfs, rib.VRF{Name: i.VRF, Import: i.RTs})
	}
	g.rib.SetVRFs(vrfs)
	g.Configure(d)
}

// static puts a static path of the intent into the RIB.
func (g *gateway) static(vrf string, prefixes ...string) {
	for _, p := range prefixes {
		g.rib.Update(staticPath(vrf, p))
	}
}

func staticPath(vrf, p string) rib.Path {
	return rib.Path{
		Key:   rib.PathKey{Source: rib.Source{Kind: rib.Static, VRF: vrf}, Prefix: prefix(p)},
		Attrs: rib.Attrs{LocalPref: 100},
	}
}

// wait waits for a state, and says what there was instead if it does not come.
func wait(t *testing.T, what string, timeout time.Duration, ok func() (string, bool)) {
	t.Helper()
	end := time.Now().Add(timeout)
	for {
		got, done := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: want %s; have %s", timeout, what, got)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// patience is how long a state may take on a loaded machine; a session alone takes two seconds.
const patience = 60 * time.Second

// routes are the best paths of a VRF as text, sorted by prefix.
func (g *gateway) routes(vrf string) []string {
	var out []string
	g.rib.Walk(vrf, func(c rib.Choice) bool {
		if c.Best != nil {
			out = append(out, fmt.Sprintf("%s %s %s [%s]", c.Key.Prefix, c.Best.Key.Source.Kind, c.Best.Key.Source.Name, c.Best.Attrs.ASPathString()))
		}
		return true
	})
	return out
}

// wantRoutes waits until a VRF has exactly the routes given.
func (g *gateway) wantRoutes(vrf string, want ...string) {
	g.t.Helper()
	wait(g.t, fmt.Sprintf("%s/%s %q", g.name, vrf, want), patience, func() (string, bool) {
		got := g.routes(vrf)
		return fmt.Sprintf("%q", got), slices.Equal(got, want)
	})
}

func (g *gateway) peer(vrf, name string) PeerState {
	for _, p := range g.Peers() {
		if p.VRF == vrf && p.Name == name {
			return p
		}
	}
	return PeerState{}
}

func (g *gateway) wantPeer(vrf, name, what string, ok func(PeerState) bool) PeerState {
	g.t.Helper()
	var p PeerState
	wait(g.t, g.name+": peer "+name+" "+what, patience, func() (string, bool) {
		p = g.peer(vrf, name)
		return fmt.Sprintf("%+v", p), ok(p)
	})
	return p
}

func (g *gateway) wantState(vrf, name, state string) {
	g.t.Helper()
	g.wantPeer(vrf, name, state, func(p PeerState) bool { return p.State == state })
}
