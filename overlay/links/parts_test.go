package links

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/peercred"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

func TestOrderPorts(t *testing.T) {
	type wg = map[string]int
	tests := []struct {
		name       string
		have, want wg
		// refused is how many steps may meet a port that is taken: by a device that is not in want.
		refused int
	}{
		{"new ones", wg{}, wg{"a": 1, "b": 2}, 0},
		{"all move up by one", wg{"a": 1, "b": 2, "c": 3}, wg{"a": 2, "b": 3, "c": 4}, 0},
		{"all move down by one", wg{"a": 2, "b": 3, "c": 4}, wg{"a": 1, "b": 2, "c": 3}, 0},
		{"two exchange", wg{"a": 1, "b": 2}, wg{"a": 2, "b": 1}, 0},
		{"ring of three beside others", wg{"a": 1, "b": 2, "c": 3, "d": 4}, wg{"a": 2, "b": 3, "c": 1, "d": 65535}, 0},
		{"port of one that goes", wg{"a": 1, "old": 2}, wg{"a": 2}, 1},
		{"nothing", wg{"a": 1}, wg{}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have := map[string]kernel.WireGuard{}
			ports := map[int]string{}
			for d, p := range tt.have {
				have[d] = kernel.WireGuard{ListenPort: p, PrivateKeyFile: "key"}
				ports[p] = d
			}
			var ops []reconcile.Op[string, kernel.WireGuard]
			for _, d := range []string{"a", "b", "c", "d"} {
				if p, ok := tt.want[d]; ok {
					ops = append(ops, reconcile.Op[string, kernel.WireGuard]{Kind: reconcile.Replace, Key: d, Old: have[d], New: kernel.WireGuard{ListenPort: p, PrivateKeyFile: "key"}})
				}
			}
			refused := 0
			for _, op := range orderPorts(have, ops) {
				if h, taken := ports[op.New.ListenPort]; taken && h != op.Key {
					refused++
					continue
				}
				if op.New.PrivateKeyFile != "key" {
					t.Errorf("%s loses its key", op.Key)
				}
				for p, d := range ports {
					if d == op.Key {
						delete(ports, p)
					}
				}
				ports[op.New.ListenPort] = op.Key
			}
			if refused != tt.refused {
				t.Errorf("%d steps are refused, want %d", refused, tt.refused)
			}
			for d, p := range tt.want {
				if tt.refused == 0 && ports[p] != d {
					t.Errorf("in the end: %v", ports)
				}
			}
		})
	}
}

func TestHandshakeLiveness(t *testing.T) {
	now := time.Now()
	dials := overlay.Tunnel{Remote: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:51820")}
	tests := []struct {
		name   string
		tunnel overlay.Tunnel
		last   time.Time
		age    time.Duration
		alive  bool
		reason string
	}{
		{"never, dialling", dials, time.Time{}, 0, false, "dials 192.0.2.2:51820"},
		{"never, passive", overlay.Tunnel{Remote: "b"}, time.Time{}, 0, false, "waits for b"},
		{"fresh", dials, now, 0, true, "handshake"},
		{"just before", dials, now, RejectAfter - time.Millisecond, true, "handshake"},
		{"too old", dials, now, RejectAfter, false, "older than 3m0s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			alive, reason := Handshake{}.Alive(tt.tunnel, Facts{LastHandshake: tt.last, Age: tt.age}, now)
			if alive != tt.alive || !strings.Contains(reason, tt.reason) {
				t.Errorf("%v, %q", alive, reason)
			}
		})
	}
}

// fill sets every field to something that is not zero, so that a field forgotten in a conversion shows.
func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)})
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)}), 7)
		return
	case *time.Time:
		*x = time.Unix(int64(1700000000+*n), 5).UTC()
		return
	case *map[string][]overlay.Slot:
		return // fabric-links' own
	case *map[string]uint64:
		*x = map[string]uint64{fmt.Sprint("text", *n): uint64(*n)}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprint("text", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n%4 + 1))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		panic(v.Type().String())
	}
}

func TestWireLosesNothing(t *testing.T) {
	var n int
	var p overlay.Plan
	fill(reflect.ValueOf(&p).Elem(), &n)
	p.Kept = nil // fabric-links' own, as is Planned
	for i := range p.Tunnels {
		p.Tunnels[i].Planned = ""
	}
	if got := planFromWire(planToWire(p)); !reflect.DeepEqual(got, p) {
		t.Errorf("got  %+v\nwant %+v", got, p)
	}
	var s State
	fill(reflect.ValueOf(&s).Elem(), &n)
	if got := stateFromWire(stateToWire(&s)); !reflect.DeepEqual(got, s) {
		t.Errorf("got  %+v\nwant %+v", got, s)
	}
	if got := stateFromWire(stateToWire(&State{})); !reflect.DeepEqual(got, State{}) {
		t.Errorf("an empty state becomes %+v", got)
	}
	if got := planFromWire(planToWire(overlay.Plan{})); !reflect.DeepEqual(got, overlay.Plan{}) {
		t.Errorf("an empty plan becomes %+v", got)
	}
}

// What a device that is missing, or not up yet, keeps from being made is no error.
func TestWaitIfMissing(t *testing.T) {
	for _, tt := range []struct {
		err     error
		pending bool
	}{
		{fmt.Errorf("create next hop 7: %w", os.ErrNotExist), true},
		{fmt.Errorf("create next hop 7: %w", unix.ENODEV), false},
		{fmt.Errorf("create next hop 7: %w", unix.ENETDOWN), true},
		{os.ErrPermission, false},
	} {
		var pending *pendingError
		if err := waitIfMissing(tt.err, "device x"); errors.As(err, &pending) != tt.pending {
			t.Errorf("%v becomes %v", tt.err, err)
		}
	}
}

func TestStore(t *testing.T) {
	state, run := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "run")
	s, err := OpenStore(state, run)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.Load(); p != nil || err != nil {
		t.Errorf("plan %v, error %v", p, err)
	}
	if _, err := OpenStore(t.TempDir(), run); err == nil || !strings.Contains(err.Error(), "another fabric-links") {
		t.Errorf("a second one: %v", err)
	}
	p := testPlan()
	if err := s.Save(p); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(*got, p) {
		t.Errorf("plan %+v, error %v", got, err)
	}
	name := filepath.Join(state, planFile)
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", fi.Mode(), err)
	}
	if files, _ := os.ReadDir(state); len(files) != 1 {
		t.Errorf("files are %v", files)
	}
	for _, bad := range []string{`{"version":9}`, `{`, ``} {
		if err := os.WriteFile(name, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: error is %v", bad, err)
		}
	}
	if err := errors.Join(s.Forget(), s.Forget(), s.Close()); err != nil {
		t.Error(err)
	}
	if s, err = OpenStore(state, run); err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	s.Close()
}

func TestAdmit(t *testing.T) {
	for _, tt := range []struct {
		uid, gid uint32
		ok       bool
	}{{0, 0, true}, {0, 5, true}, {100, 7, true}, {100, 200, true}, {7, 200, true}, {7, 7, false}} {
		err := admit(peercred.Peer{PID: 1, UID: tt.uid, GID: tt.gid}, 100, 200)
		if (err == nil) != tt.ok {
			t.Errorf("user %d group %d: %v", tt.uid, tt.gid, err)
		}
	}
}

// served is a world whose engine runs and answers on a socket.
func served(t *testing.T, w *world, socket string) (stop func()) {
	t.Helper()
	e := w.engine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	go func() { done <- e.Run(ctx) }()
	go func() { done <- Serve(ctx, e, socket, log) }()
	return func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		w.kill(e)
	}
}

func TestClientAndServer(t *testing.T) {
	w := newWorld(t)
	socket := filepath.Join(w.runDir, "links.sock")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(ctx); err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "fabric-links.service") {
		t.Errorf("nobody there: %v", err)
	}
	stop := served(t, w, socket)
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != SocketMode {
		t.Errorf("mode %v, error %v", fi.Mode(), err)
	}

	// The watcher lives through all that follows.
	states := make(chan State, 100)
	failures := make(chan error, 100)
	watchCtx, endWatch := context.WithCancel(ctx)
	watched := make(chan error)
	go func() {
		watched <- c.Watch(watchCtx, func(s State, err error) {
			if err != nil {
				failures <- err
				return
			}
			states <- s
		})
	}()
	next := func(what string, good func(State) bool) {
		t.Helper()
		for {
			select {
			case s := <-states:
				if good(s) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no state with %s", what)
			}
		}
	}
	next("no plan", func(s State) bool { return s.Digest == "" })
	p := testPlan()
	r, err := c.Apply(ctx, p)
	if err != nil || r.Digest != p.Digest() || len(r.Objects) == 0 {
		t.Errorf("result %+v, error %v", r, err)
	}
	pending := 0
	for _, o := range r.Problems() {
		if o.Status != Pending {
			t.Errorf("problem %+v", o)
		}
		pending++
	}
	if pending == 0 {
		t.Error("the VXLAN device is missing and nothing is pending")
	}
	next("the plan", func(s State) bool { return s.Digest == p.Digest() })

	bad := p
	bad.Version = 9
	if _, err := c.Apply(ctx, bad); err == nil || !strings.Contains(err.Error(), "version 9 is not understood") || !strings.Contains(err.Error(), "FailedPrecondition") {
		t.Errorf("version 9: %v", err)
	}
	bad = p
	bad.Gateway = ""
	if _, err := c.Apply(ctx, bad); err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("no gateway: %v", err)
	}
	bad.Gateway = "z"
	if _, err := c.Apply(ctx, bad); err == nil || !strings.Contains(err.Error(), "another gateway") {
		t.Errorf("another gateway: %v", err)
	}
	// A second server is refused the socket that answers.
	if err := Serve(ctx, &Engine{}, socket, slog.Default()); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("a second server: %v", err)
	}

	stop()
	select {
	case err := <-failures:
		if !strings.Contains(err.Error(), socket) {
			t.Errorf("failure is %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the watcher was not told that fabric-links is away")
	}
	// What a killed process leaves is no obstacle.
	dead, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	stop = served(t, w, socket)
	defer func() { stop() }()
	next("the kept plan", func(s State) bool { return s.Digest == p.Digest() })
	endWatch()
	if err := <-watched; err != nil {
		t.Errorf("watch ends with %v", err)
	}
}

func TestListenRefusesAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "links.sock")
	if err := os.WriteFile(name, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(name); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("error is %v", err)
	}
	if b, _ := os.ReadFile(name); string(b) != "precious" {
		t.Error("the file is gone")
	}
}

func TestCollector(t *testing.T) {
	w, e := running(t)
	e.cfg.Paths = &measured{states: map[string]PathState{b0: {RTT: time.Second / 4, MinRTT: time.Second / 8, Probes: 60, Lost: 15}, b1: {Probes: 60, Lost: 60}}}
	w.settle(e)
	c := NewCollector(e)
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			line := strings.TrimPrefix(f.GetName(), "fabric_links_")
			for _, l := range m.GetLabel() {
				if n := l.GetName(); n == "gateway" || n == "ready" || n == "tunnel" {
					line += " " + l.GetValue()
				}
			}
			got = append(got, fmt.Sprint(line, " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{"next_hops true 2", "next_hops false 0", "vtep_reachable b 1", "vtep_reachable c 1", "tunnel_active a/b/0 1", "tunnel_active a/b/1 0", "tunnel_up a/b/1 1",
		"tunnel_rtt_seconds a/b/0 0.25", "tunnel_rtt_min_seconds a/b/0 0.125", "tunnel_loss_ratio a/b/0 0.25", "tunnel_loss_ratio a/b/1 1"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	// Without answers there is no time, and without probes no share.
	for _, none := range []string{"tunnel_rtt_seconds a/b/1", "tunnel_rtt_min_seconds a/b/1", "tunnel_rtt_seconds a/c/0", "tunnel_loss_ratio a/c/0"} {
		if strings.Contains(text, none) {
			t.Errorf("%q is in\n%s", none, text)
		}
	}
}

// ExecProcesses with a program that stands for fabric-links: it holds the lock as RunTunnel does.
func TestExecProcesses(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("needs sh")
	}
	run := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(run, "program")
	script := "#!/bin/sh\necho started \"$@\" notify=$NOTIFY_SOCKET\n" + claimEnv + "=\"$4/tunnel-$2.lock\" exec " + self + "\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	died := make(chan struct{}, 10)
	p := NewExecProcesses(program, run, func() { died <- struct{}{} })
	const d = "fxwtest"
	if alive, err := p.Alive(d); alive || err != nil {
		t.Fatalf("alive %v, error %v", alive, err)
	}
	begin := func() {
		t.Helper()
		if err := p.Start(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for {
			if alive, err := p.Alive(d); err != nil {
				t.Fatal(err)
			} else if alive {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("does not come up")
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	begin()
	if list, err := p.List(); err != nil || !reflect.DeepEqual(list, []string{d}) {
		t.Errorf("list %v, error %v", list, err)
	}
	if _, err := claim(tunnelLock(run, d)); err == nil || !strings.Contains(err.Error(), "another process does this already") {
		t.Errorf("a second claim: %v", err)
	}
	if err := p.Stop(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	<-died
	begin()
	if err := p.Kill(d); err != nil {
		t.Fatal(err)
	}
	<-died
	if list, err := p.List(); err != nil || len(list) != 0 {
		t.Errorf("list %v, error %v", list, err)
	}
	log, err := os.ReadFile(filepath.Join(run, "tunnel-"+d+".log"))
	if want := "started tunnel " + d + " --run-dir " + run + " notify=\n"; err != nil || string(log) != want+want {
		t.Errorf("log is %q, want %q twice", log, want)
	}
	p.program = filepath.Join(run, "nothing")
	if err := p.Start(context.Background(), d); err == nil || !strings.Contains(err.Error(), d) {
		t.Errorf("no program: %v", err)
	}
}

// claimEnv makes the test binary hold the lock of that name until it is ended.
const claimEnv = "FABRIC_LINKS_TEST_CLAIM"

func TestMain(m *testing.M) {
	if name := os.Getenv(claimEnv); name != "" {
		f, err := claim(name)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		defer f.Close()
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func TestRunTunnelRefusesOtherDevices(t *testing.T) {
	for _, name := range []string{"eth0", "fxw/../x", ""} {
		if err := RunTunnel(context.Background(), name, t.TempDir(), slog.Default(), func() { t.Error("ready") }); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

// A process that listens and does not answer is told from one that is not there.
func TestAskOne(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "x.sock")
	if err := askOne(context.Background(), socket); !errors.Is(err, errNoSocket) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := askOne(ctx, socket); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "errno=0\n\n")
		}
	}()
	// The connection of the first question is still in the queue: it is answered into nothing.
	if err := askOne(context.Background(), socket); err != nil {
		t.Errorf("an answer: %v", err)
	}
}
