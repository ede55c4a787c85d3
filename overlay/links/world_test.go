package links

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

// world is a host on the model kernel: tunnel processes and WireGuard's answers beside it, and a clock that is moved by hand.
type world struct {
	t   *testing.T
	k   *kerneltest.Kernel
	now time.Time
	// step is how far the wall clock is ahead of now, which does not step.
	step   time.Duration
	alive  map[string]bool
	starts int
	// broken devices are those whose process dies at once; hung ones do not answer.
	broken, hung map[string]bool
	// stubborn devices are those whose process does not end when it is asked to.
	stubborn map[string]bool
	// left devices are those whose killed process has left its socket, at which WireGuard cannot be asked.
	left map[string]bool
	// asked is what was asked of processes that shall end, in order.
	asked     []string
	handshake map[string]time.Time
	roamed    map[string]netip.AddrPort
	// rx is what was received on a tunnel, in bytes.
	rx       map[string]uint64
	stateDir string
	runDir   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, k: kerneltest.New(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		alive: map[string]bool{}, broken: map[string]bool{}, hung: map[string]bool{}, stubborn: map[string]bool{}, left: map[string]bool{},
		handshake: map[string]time.Time{}, roamed: map[string]netip.AddrPort{}, rx: map[string]uint64{},
		stateDir: t.TempDir(), runDir: t.TempDir(),
	}
	w.k.Without(func(f *kernel.Features) { f.WireGuard = false })
	return w
}

// engine is a fabric-links that has just started, with the plan that is kept, if any.
func (w *world) engine() *Engine {
	w.t.Helper()
	store, err := OpenStore(w.stateDir, w.runDir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { store.Close() })
	e := New(Config{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Host: w.k, Processes: w, Reader: w, Liveness: Handshake{}, Store: store,
		Resync: 10 * time.Millisecond, Now: func() time.Time { return w.now }, Wall: w.wall,
	})
	kept, err := store.Load()
	if err != nil {
		w.t.Fatal(err)
	}
	e.plan = kept
	e.loadEndpoints()
	return e
}

// kill ends an engine without a word.
func (w *world) kill(e *Engine) { e.cfg.Store.Close() }

// Alive implements Processes.
func (w *world) Alive(d string) (bool, error) { return w.alive[d], nil }

// List implements Processes.
func (w *world) List() ([]string, error) {
	var out []string
	for d, alive := range w.alive {
		if alive {
			out = append(out, d)
		}
	}
	sort.Strings(out)
	return out, nil
}

// Start implements Processes.
func (w *world) Start(_ context.Context, d string) error {
	w.starts++
	if w.broken[d] {
		return nil
	}
	w.alive[d] = true
	delete(w.left, d)
	for key := range tunnelSysctls(d) {
		if err := w.k.SetSysctl(key, "0"); err != nil {
			return err
		}
	}
	return w.k.AddTUN(d)
}

// Stop implements Processes.
func (w *world) Stop(_ context.Context, d string) error {
	w.asked = append(w.asked, "stop "+d)
	if w.stubborn[d] {
		return nil
	}
	return w.end(d)
}

// Sweep implements Processes.
func (w *world) Sweep(d string) error {
	w.asked = append(w.asked, "sweep "+d)
	delete(w.left, d)
	return nil
}

// Kill implements Processes.
func (w *world) Kill(d string) error {
	if w.stubborn[d] {
		w.asked = append(w.asked, "kill "+d)
	}
	w.left[d] = w.left[d] || w.alive[d]
	return w.end(d)
}

func (w *world) end(d string) error {
	if !w.alive[d] {
		return nil
	}
	delete(w.alive, d)
	delete(w.hung, d)
	delete(w.handshake, d)
	return w.k.DeleteDevice(d)
}

// Facts implements Reader.
func (w *world) Facts(ctx context.Context, devices []string) (map[string]Facts, error) {
	have, err := w.k.Links().Observe(ctx)
	if err != nil {
		return nil, err
	}
	configured, err := w.k.WireGuards().Observe(ctx)
	if err != nil {
		return nil, err
	}
	facts := map[string]Facts{}
	for _, d := range devices {
		// A tunnel process answers before its device is marked.
		if _, ok := have[d]; !ok && !w.alive[d] || w.left[d] {
			continue
		}
		f := Facts{Hung: w.hung[d], LastHandshake: w.handshake[d], Endpoint: configured[d].Peer.Endpoint, ListenPort: configured[d].ListenPort, RxBytes: w.rx[d]}
		if r, ok := w.roamed[d]; ok {
			f.Endpoint = r
		}
		facts[d] = f
	}
	return facts, nil
}

// settle makes passes until one changes nothing.
func (w *world) settle(e *Engine) {
	w.t.Helper()
	for range 20 {
		if p := e.pass(context.Background()); p.changes == 0 {
			return
		}
	}
	w.t.Fatal("passes go on changing things")
}

// take hands a plan over and settles.
func (w *world) take(e *Engine, p overlay.Plan) {
	w.t.Helper()
	if a := e.take(context.Background(), p); a.err != nil {
		w.t.Fatal(a.err)
	}
	w.settle(e)
}

// picture is all that is ours in the kernel, printed.
func (w *world) picture() string {
	w.t.Helper()
	var lines []string
	add := func(kind string, m map[string]string) {
		for k, v := range m {
			lines = append(lines, kind+" "+k+" "+v)
		}
	}
	add("link", observe(w.t, w.k.Links()))
	add("address", observe(w.t, w.k.Addresses(kernel.ProtocolLinks)))
	add("wireguard", observe(w.t, w.k.WireGuards()))
	add("route", observe(w.t, w.k.Routes(kernel.ProtocolLinks)))
	add("next hop", observe(w.t, w.k.NextHops(kernel.ProtocolLinks)))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func observe[K comparable, V any](t *testing.T, e reconcile.Edge[K, V]) map[string]string {
	t.Helper()
	have, err := e.Observe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for k, v := range have {
		out[fmt.Sprint(k)] = fmt.Sprintf("%+v", v)
	}
	return out
}

// route is the VTEP's route as the kernel has it: device, "unreachable", or "" when there is none at all.
func (w *world) route(vtep string) string {
	w.t.Helper()
	have, err := w.k.Routes(kernel.ProtocolLinks).Observe(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	p := host(netip.MustParseAddr(vtep))
	if r, ok := have[kernel.RouteKey{Table: kernel.MainTable, Prefix: p, Metric: kernel.Metric}]; ok {
		return r.Device
	}
	if r, ok := have[kernel.RouteKey{Table: kernel.MainTable, Prefix: p, Metric: kernel.BackstopMetric}]; ok && r.Type == kernel.UnreachableRoute {
		return "unreachable"
	}
	return ""
}

// addVXLAN makes what fabric-site would.
func (w *world) addVXLAN(vni uint32) {
	w.t.Helper()
	name := overlay.VXLANDevice(vni)
	err := w.k.Links().Apply(context.Background(), []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: name, New: kernel.Link{
		Name: name, Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + name, Up: true,
		VXLAN: kernel.VXLAN{VNI: vni, Local: netip.MustParseAddr("10.255.0.1"), Port: 4789},
	}}})[0]
	if err != nil {
		w.t.Fatal(err)
	}
}

// testPlan has two remote gateways; b is reached by two tunnels and dialled, c by one and passive.
func testPlan() overlay.Plan {
	p := overlay.Plan{Version: overlay.PlanVersion, Fabric: "test", Gateway: "a", VTEP: netip.MustParseAddr("10.255.0.1")}
	var k [32]byte
	add := func(remote string, rank, port int, endpoint string) string {
		k[0]++
		t := overlay.Tunnel{
			Device: overlay.TunnelDevice("a", remote, rank), Name: overlay.TunnelName("a", remote, rank), Remote: remote, Rank: rank,
			Kind: "wireguard", MTU: 1420, ListenPort: port, PublicKey: base64.StdEncoding.EncodeToString(k[:]), PrivateKeyFile: "/keys/a",
			LinkLocal: overlay.LinkLocal("a", remote, rank), RemoteLinkLocal: overlay.LinkLocal(remote, "a", rank),
		}
		if endpoint != "" {
			t.Endpoint, t.Keepalive = netip.MustParseAddrPort(endpoint), 5
		}
		p.Tunnels = append(p.Tunnels, t)
		return t.Device
	}
	b := overlay.RemoteVTEP{Gateway: "b", Addr: netip.MustParseAddr("10.255.0.2")}
	b.Devices = []string{add("b", 0, 51820, "192.0.2.2:51820"), add("b", 1, 51822, "192.0.2.3:51822")}
	c := overlay.RemoteVTEP{Gateway: "c", Addr: netip.MustParseAddr("10.255.0.3")}
	c.Devices = []string{add("c", 0, 51821, "")}
	p.VTEPs = []overlay.RemoteVTEP{b, c}
	for _, v := range p.VTEPs {
		p.NextHops = append(p.NextHops, overlay.NextHop{
			ID: overlay.NextHopID(1000, v.Addr), Device: overlay.VXLANDevice(1000), Gateway: overlay.VTEPGateway(v.Addr), VNI: 1000, VTEP: v.Addr,
		})
	}
	return p
}

var (
	b0 = overlay.TunnelDevice("a", "b", 0)
	b1 = overlay.TunnelDevice("a", "b", 1)
	c0 = overlay.TunnelDevice("a", "c", 0)
)

// allUp gives every tunnel a handshake now.
func (w *world) allUp() {
	for _, d := range []string{b0, b1, c0} {
		w.handshake[d] = w.wall()
	}
}

// wall is the clock that dates handshakes.
func (w *world) wall() time.Time { return w.now.Add(w.step) }

// age lets time pass, in which every tunnel but those named has another handshake.
func (w *world) age(d time.Duration, silent ...string) {
	w.now = w.now.Add(d)
	for _, device := range []string{b0, b1, c0} {
		if !slices.Contains(silent, device) {
			w.handshake[device] = w.wall()
		}
	}
}

// remove makes the state folder go, as a disk that fails does.
func (w *world) removeStateDir() {
	if err := os.RemoveAll(w.stateDir); err != nil {
		w.t.Fatal(err)
	}
}
