package interop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fabric/internal/config"
	fabricv1 "fabric/proto/fabric/v1"
)

var builtDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtDir != "" {
		os.RemoveAll(builtDir)
	}
	os.Exit(code)
}

// programs is the folder of the daemons' programs: INTEROP_BIN, or built once.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("INTEROP_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	var err error
	if builtDir, err = os.MkdirTemp("", "interop-bin-"); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", builtDir+"/", "fabric/cmd/fabric-site", "fabric/cmd/fabric-links", "fabric/lab/cloudemu/cmd/cloudemu")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the daemons: %w\n%s", err, b)
	}
	return builtDir, nil
})

// gateway is a node that runs fabric-links and fabric-site.
type gateway struct {
	*node
	bin    string
	public string // WireGuard's public key
	links  *process
	site   *process
	client fabricv1.FabricServiceClient
}

// newGateway makes the node and its key; nothing runs yet.
func newGateway(t *testing.T, name string) *gateway {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{node: newNode(t, name), bin: bin}
	if g.public, err = config.GenerateKey(g.path("wg.key")); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", g.path("site.sock"))
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	g.client = fabricv1.NewFabricServiceClient(conn)
	return g
}

// run writes the document and starts both daemons.
func (g *gateway) run(document string) {
	g.t.Helper()
	g.file("fabric.yaml", document)
	for _, d := range []string{"links", "links-state", "site-state"} {
		if err := os.MkdirAll(g.path(d), 0o700); err != nil {
			g.t.Fatal(err)
		}
	}
	g.links = g.start("fabric-links", nil, filepath.Join(g.bin, "fabric-links"), "run", "--state-dir", g.path("links-state"), "--run-dir", g.path("links"))
	g.startSite()
}

func (g *gateway) startSite() {
	g.t.Helper()
	g.site = g.start("fabric-site", nil, filepath.Join(g.bin, "fabric-site"), "run", "--gateway", g.name, "--config", g.path("fabric.yaml"),
		"--state-dir", g.path("site-state"), "--socket", g.path("site.sock"), "--links", g.path("links/links.sock"))
	wait(g.t, g.name+" to be ready", patience, func() (string, bool) {
		if !g.site.alive() {
			g.t.Fatalf("fabric-site of %s has ended:\n%s", g.name, g.site.said())
		}
		s, err := g.client.GetSite(g.context(), &fabricv1.GetSiteRequest{})
		if err != nil {
			return err.Error(), false
		}
		return s.String(), s.GetSite().GetReady()
	})
}

// context bounds one call.
func (g *gateway) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	g.t.Cleanup(cancel)
	return ctx
}

// backend is "vrf-device" or "rules".
func (g *gateway) backend() string {
	g.t.Helper()
	s, err := g.client.GetSite(g.context(), &fabricv1.GetSiteRequest{})
	if err != nil {
		g.t.Fatal(err)
	}
	return s.GetSite().GetBackend()
}

// peers are the neighbours of a VRF, of all with "".
func (g *gateway) peers(vrf string) []*fabricv1.Peer {
	r, err := g.client.ListPeers(g.context(), &fabricv1.ListPeersRequest{Vrf: vrf})
	if err != nil {
		return nil
	}
	return r.GetPeers()
}

// peer is a neighbour; an empty one if there is none.
func (g *gateway) peer(vrf, name string) *fabricv1.Peer {
	for _, p := range g.peers(vrf) {
		if p.GetName() == name {
			return p
		}
	}
	return &fabricv1.Peer{}
}

// routes are the chosen routes of a VRF by prefix.
func (g *gateway) routes(vrf string) (map[string]*fabricv1.Route, error) {
	stream, err := g.client.ListRoutes(g.context(), &fabricv1.ListRoutesRequest{Vrf: vrf})
	if err != nil {
		return nil, err
	}
	out := map[string]*fabricv1.Route{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, route := range r.GetRoutes() {
			out[route.GetPrefix()] = route
		}
	}
}

// candidates are the paths that the gateway has for a prefix, by peer; nil where it has none.
func (g *gateway) candidates(vrf, prefix string) map[string]*fabricv1.Route {
	r, err := g.client.ExplainRoute(g.context(), &fabricv1.ExplainRouteRequest{Vrf: vrf, Prefix: prefix})
	if err != nil || r.GetMatched() != "" && r.GetMatched() != prefix { // a shorter one covers it
		return nil
	}
	out := map[string]*fabricv1.Route{}
	for _, c := range r.GetCandidates() {
		out[c.GetRoute().GetFrom()] = c.GetRoute()
	}
	return out
}

// kernel are the prefixes of a table that fabric-site wrote there as routes of its rib: those with its metric.
func (g *gateway) kernel(table int) []string {
	g.t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		text, err := g.try("ip", family, "-o", "route", "show", "table", fmt.Sprint(table), "proto", "201")
		if err != nil && !strings.Contains(text, "does not exist") {
			g.t.Fatalf("ip route: %v\n%s", err, text)
		}
		for l := range strings.Lines(text) {
			f := strings.Fields(l)
			if len(f) < 2 || !strings.Contains(l, "metric 201") {
				continue
			}
			p := f[0]
			if !strings.Contains(p, "/") && p != "default" {
				p += map[string]string{"-4": "/32", "-6": "/128"}[family]
			}
			if p == "default" {
				p = map[string]string{"-4": "0.0.0.0/0", "-6": "::/0"}[family]
			}
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}
