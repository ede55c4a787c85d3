package site

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/vrf"
)

// The gateway of most tests, and the one that it hears of:
//
//	ce 10.1.0.2 ── eth1 10.1.0.1 CORE ┐
//	                                  gw 10.255.0.1 ══ far 10.255.0.2
//	     eth2 10.1.0.1 (the same) OPS ┘
//
// No BGP session comes up here: VTEP and interfaces are a model's, so the speakers cannot even listen. What neighbours
// would tell is put into the rib by hand.
const document = `
fabric: {name: test, bgp: {port: 1790, restart-time: 300s}}
vrfs:
  - {name: CORE, table: 200, vni: 1000}
  - {name: OPS, table: 201, vni: 1001}
  - {name: BARE, table: 202, vni: 1002}
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}
        vrfs:
          - vrf: CORE
            prefixes:
              - {prefix: 10.1.0.0/16}
              - {prefix: 10.9.0.0/16, next-hop: 10.1.0.9}
            interfaces: [{name: eth1, addresses: [10.1.0.1/24, "fd00:1::1/64"]}]
            loopbacks: [10.8.0.1/32]
            peers: [{name: ce, address: 10.1.0.2, asn: 65100}]
          - vrf: OPS
            interfaces: [{name: eth2, addresses: [10.1.0.1/24]}]
  - name: there
    gateways:
      - name: far
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}
        vrfs:
          - {vrf: CORE, prefixes: [{prefix: 10.2.0.0/16}]}
          - {vrf: OPS, prefixes: [{prefix: 10.2.0.0/16}]}
`

var (
	far = rib.Source{Kind: rib.Fabric, Name: "far", Addr: netip.MustParseAddr("10.255.0.2")}
	ce  = rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "ce", Addr: netip.MustParseAddr("10.1.0.2")}
)

// fromFar is a path that far announces in CORE.
func fromFar(prefix string) rib.Path {
	return rib.Path{
		Key: rib.PathKey{Source: far, Prefix: netip.MustParsePrefix(prefix)},
		Attrs: rib.Attrs{
			LocalPref: 100, NextHop: far.Addr, VNI: 1000, RTs: []rib.RT{{0, 2, 0xfc, 0, 0, 0, 3, 0xe8}}, // 64512:1000
			RouterMAC: overlay.RouterMAC(far.Addr), ASPath: []rib.ASSegment{{ASNs: []uint32{65002}}},
		},
	}
}

// fromCE is a path of the site's own neighbour.
func fromCE(prefix, nextHop string) rib.Path {
	return rib.Path{
		Key: rib.PathKey{Source: ce, Prefix: netip.MustParsePrefix(prefix)},
		Attrs: rib.Attrs{
			LocalPref: 100, NextHop: netip.MustParseAddr(nextHop), ASPath: []rib.ASSegment{{ASNs: []uint32{65100}}},
		},
	}
}

// farRoute is what the kernel holds for a route to far.
var farRoute = fmt.Sprintf("nhid %d", overlay.NextHopID(1000, far.Addr))

// gate is a gateway of the document on a model kernel.
type gate struct {
	*Site
	t      testing.TB
	file   string
	kernel *kerneltest.Kernel
	fake   *fakeLinks
	cfg    Config
	// tune changes the Site before it runs.
	tune func(*Site)
	// ready is closed when the Site says READY.
	ready  chan struct{}
	cancel context.CancelFunc
	done   chan error // Run's
	end    func()
	log    *logBuffer
}

// logBuffer keeps the log for when a test fails.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newKernel is a host that has the document's interfaces and the sysctls of all devices it will ever have.
func newKernel(t testing.TB, doc string, features func(*kernel.Features)) *kerneltest.Kernel {
	t.Helper()
	k := kerneltest.New().Without(features)
	for _, dev := range []string{"eth1", "eth2"} {
		if err := k.AddDevice(dev); err != nil {
			t.Fatal(err)
		}
	}
	d, err := config.Parse("fabric.yaml", []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	h, err := vrf.Compile(d, "gw", k.Features())
	if err != nil {
		t.Fatal(err)
	}
	for key := range h.Sysctls {
		_ = k.SetSysctl(key, "7")
	}
	return k
}

func withoutVRF(f *kernel.Features) { f.VRF = false }
func withVRF(*kernel.Features)      {}

// newGate makes a gateway that does not run yet, in rules mode.
func newGate(t testing.TB, doc string) *gate {
	t.Helper()
	return newGateOn(t, doc, newKernel(t, doc, withoutVRF), t.TempDir())
}

func newGateOn(t testing.TB, doc string, k *kerneltest.Kernel, dir string) *gate {
	t.Helper()
	return newGateOf(t, "gw", doc, k, dir)
}

func newGateOf(t testing.TB, name, doc string, k *kerneltest.Kernel, dir string) *gate {
	t.Helper()
	g := &gate{t: t, kernel: k, fake: newFakeLinks(k), file: filepath.Join(dir, "fabric.yaml"), ready: make(chan struct{}), log: &logBuffer{}}
	if err := os.WriteFile(g.file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := config.Open(filepath.Join(dir, "state"), g.file, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	g.cfg = Config{
		Gateway: name, Store: store, Kernel: k, Links: g.fake, StateDir: filepath.Join(dir, "state"), Version: "test",
		Cloud: func(context.Context, cloud.Wish, *slog.Logger) (cloud.VPC, error) {
			return nil, errors.New("no cloud here")
		},
		Log:   slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
		Ready: func() { close(g.ready) }, LinksPatience: 30 * time.Second,
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", g.log)
		}
	})
	return g
}

// start makes and runs the Site; it ends with the test, or by stop.
func (g *gate) start() *gate {
	g.t.Helper()
	var err error
	if g.Site, err = New(g.cfg); err != nil {
		g.t.Fatal(err)
	}
	if g.tune != nil {
		g.tune(g.Site)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan error, 1)
	go func() { g.done <- g.Run(ctx) }()
	g.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-g.done:
			if err != nil {
				g.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			g.t.Error("Run does not end")
			return
		}
		g.speaker.Close()
	})
	g.t.Cleanup(g.stop)
	return g
}

// stop ends the Site as SIGTERM does, and gives its state folder back.
func (g *gate) stop() {
	g.end()
	_ = g.cfg.Store.Close()
}

func (g *gate) waitReady() *gate {
	g.t.Helper()
	select {
	case <-g.ready:
	case <-time.After(patience):
		g.t.Fatalf("not ready; problems: %q", g.Snapshot().Site.Problems)
	}
	return g
}

// patience is how long a state may take on a loaded machine.
const patience = 30 * time.Second

// waitFor waits for a state, and says what there was instead if it does not come.
func waitFor(t testing.TB, what string, ok func() (have any, done bool)) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		have, done := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("want %s; have %v", what, have)
		}
	}
}

// routes are our routes in a table of the kernel, by prefix; the backstops and what the VRF itself needs are left out.
func (g *gate) routes(table uint32) map[string]string {
	g.t.Helper()
	have, err := g.kernel.Routes(kernel.Protocol, table).Observe(context.Background())
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	out := map[string]string{}
	for k, r := range have {
		if k.Metric == kernel.Metric {
			out[k.Prefix.String()] = r.String()
		}
	}
	return out
}

// wantRoutes waits until table CORE has exactly these routes of BGP's and the document's; each is PREFIX TEXT, where TEXT begins
// the route's.
func (g *gate) wantRoutes(want ...string) {
	g.t.Helper()
	waitFor(g.t, fmt.Sprintf("routes %q", want), func() (any, bool) {
		have := g.routes(200)
		for _, w := range want {
			prefix, text, _ := strings.Cut(w, " ")
			if !strings.HasPrefix(have[prefix], text) || have[prefix] == "" {
				return have, false
			}
		}
		return have, len(have) == len(want)
	})
}

// static is the document's own route.
const static = "10.9.0.0/16 via 10.1.0.9 dev eth1"

// wantProblem waits until a problem has all the texts.
func (g *gate) wantProblem(texts ...string) {
	g.t.Helper()
	waitFor(g.t, fmt.Sprintf("a problem with %q", texts), func() (any, bool) {
		ps := g.Snapshot().Site.Problems
		return ps, slices.ContainsFunc(ps, func(p string) bool {
			return !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(p, s) })
		})
	})
}

// wantHealthy waits until the newest generation is applied and nothing is wrong.
func (g *gate) wantHealthy() {
	g.t.Helper()
	waitFor(g.t, "no problem and the newest generation applied", func() (any, bool) {
		s := g.Snapshot().Site
		n := g.cfg.Store.Current().Number
		return fmt.Sprintf("%+v", s), len(s.Problems) == 0 && s.Generation == n && s.Applied == n
	})
}

// commit changes the intent.
func (g *gate) commit(ms ...config.Mutation) {
	g.t.Helper()
	p, err := g.cfg.Store.Propose(ms...)
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.cfg.Store.Commit(p, "test"); err != nil {
		g.t.Fatal(err)
	}
}

// dump is everything of fabric-site's on a kernel, a line each.
func dump(t *testing.T, k *kerneltest.Kernel) []string {
	t.Helper()
	var lines []string
	ctx := context.Background()
	lines = append(lines, observe(t, k.Filters(filterTable), ctx)...)
	lines = append(lines, observe(t, k.Links(kernel.KindVRF, kernel.KindVXLAN), ctx)...)
	lines = append(lines, observe(t, k.Ports(func() []string { return []string{"eth1", "eth2"} }), ctx)...)
	lines = append(lines, observe(t, k.Addresses(kernel.Protocol), ctx)...)
	lines = append(lines, observe(t, k.Neighbours(), ctx)...)
	lines = append(lines, observe(t, k.FDB(), ctx)...)
	lines = append(lines, observe(t, k.Routes(kernel.Protocol), ctx)...)
	lines = append(lines, observe(t, k.Rules(kernel.Protocol), ctx)...)
	slices.Sort(lines)
	return lines
}

func observe[K comparable, V any](t *testing.T, e reconcile.Edge[K, V], ctx context.Context) []string {
	t.Helper()
	have, err := e.Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, k := range slices.Collect(maps.Keys(have)) {
		lines = append(lines, fmt.Sprintf("%T %v: %+v", k, k, have[k]))
	}
	return lines
}
