package links

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/carrier"
)

// tlsWorld is a world whose plan has the tunnel b1 over TLS, dialled, and c0 over TLS, accepted; its carrier process is a word.
type tlsWorld struct {
	*world
	running bool
	asked   []string
	fails   error
}

func (w *tlsWorld) carriers() *Carriers { return NewCarriers(w.runDir, (*tlsProcess)(w)) }

type tlsProcess tlsWorld

// Alive implements CarrierProcess.
func (p *tlsProcess) Alive() (bool, error) { return p.running, nil }

// Start implements CarrierProcess.
func (p *tlsProcess) Start(context.Context) error {
	p.asked = append(p.asked, "start")
	p.running = p.fails == nil
	return p.fails
}

// Stop implements CarrierProcess.
func (p *tlsProcess) Stop(context.Context) error {
	p.asked = append(p.asked, "stop")
	p.running = false
	return nil
}

func tlsPlan() overlay.Plan {
	p := testPlan()
	p.Listener = &overlay.Listener{Port: 443, CertificateFile: "/keys/crt", KeyFile: "/keys/key"}
	for i := range p.Tunnels {
		t := &p.Tunnels[i]
		if t.Device == b0 {
			continue
		}
		t.Kind, t.ListenPort = overlay.KindTLS, 0
		t.Carrier = &overlay.Carrier{TokenFile: "/keys/token", TokenName: "test/" + t.Name}
		if t.Device == b1 {
			t.Carrier.Dial, t.Carrier.Pin, t.Endpoint = "192.0.2.3:443", "sha256:pin", netip.AddrPort{}
		}
	}
	return p
}

// tell is what a tunnel process with this carrier writes.
func (w *tlsWorld) tell(device string, c *overlay.Carrier, s processStatus) {
	w.t.Helper()
	s.Config = carrierDigest(c)
	if err := replaceFile(tunnelStatus(w.runDir, device), s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *tlsWorld) reason(e *Engine, device string) string {
	w.t.Helper()
	for _, t := range e.State().Tunnels {
		if t.Device == device {
			return t.Reason
		}
	}
	w.t.Fatalf("no tunnel %s", device)
	return ""
}

func TestTLSTunnelsAndTheirProcesses(t *testing.T) {
	w := &tlsWorld{world: newWorld(t)}
	w.k.Without(func(f *kernel.Features) { f.WireGuard = true })
	e := w.engine()
	e.cfg.Carriers = w.carriers()
	plan := tlsPlan()
	if err := plan.Validate(); err != nil {
		t.Fatal(err)
	}
	w.take(e, plan)
	if w.alive[b0] || !w.alive[b1] || !w.alive[c0] {
		t.Fatalf("processes are %v: the kernel has WireGuard, but none over TLS", w.alive)
	}
	var c overlay.Carrier
	if there, err := readJSON(tunnelCarrier(w.runDir, b1), &c); !there || err != nil || c != *plan.Tunnels[1].Carrier {
		t.Errorf("b1 is told %+v, %v", c, err)
	}
	if there, _ := readJSON(tunnelCarrier(w.runDir, b0), &c); there {
		t.Error("a tunnel over UDP is told of a carrier")
	}
	if fi, err := os.Stat(tunnelCarrier(w.runDir, b1)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	var l listenConfig
	if there, err := readJSON(filepath.Join(w.runDir, carrierConfig), &l); !there || err != nil || l.Listener != *plan.Listener || len(l.Tunnels) != 1 || l.Tunnels[0].Device != c0 {
		t.Errorf("the carrier process is told %+v, %v", l, err)
	}
	if fmt.Sprint(w.asked) != "[start]" {
		t.Errorf("carrier process: %v", w.asked)
	}

	// WireGuard's word for the far end stays, fresh or not, and a further pass changes nothing.
	if p := e.pass(context.Background()); p.changes != 0 {
		t.Error("a further pass changes something")
	}
	told := carrier.Endpoint("a-token-of-this-tunnel")
	w.roamed[b1], w.roamed[c0] = told, told
	for _, d := range []string{b1, c0} {
		if got := e.roam(d, kernel.WireGuard{Peer: kernel.WireGuardPeer{Endpoint: farEnd}}, Facts{Endpoint: told}, w.now); got.Peer.Endpoint != told || got.Peer.Keepalive != 0 {
			t.Errorf("%s: %+v", d, got.Peer)
		}
	}
	if got := e.roam(b1, kernel.WireGuard{Peer: kernel.WireGuardPeer{Endpoint: farEnd}}, Facts{}, w.now); got.Peer.Endpoint != farEnd {
		t.Errorf("before WireGuard knows: %+v", got.Peer)
	}

	// What processes say is told, and where they are connected to stands for the endpoint.
	w.tell(b1, plan.Tunnels[1].Carrier, processStatus{Status: carrier.Status{LastError: "carrier to 192.0.2.3:443: it says 407"}})
	w.settle(e)
	if got := w.reason(e, b1); got != "TLS: carrier to 192.0.2.3:443: it says 407" {
		t.Errorf("reason is %q", got)
	}
	w.tell(b1, plan.Tunnels[1].Carrier, processStatus{Status: carrier.Status{Connected: true, Remote: "192.0.2.3:443"}})
	w.allUp()
	w.settle(e)
	if got := w.reason(e, b1); got != "handshake; TLS to 192.0.2.3:443" || e.State().Tunnels[1].Endpoint.String() != "192.0.2.3:443" {
		t.Errorf("tunnel is %+v", e.State().Tunnels[1])
	}

	// Another carrier: the process is ended and started again, at once, and only that one.
	starts := w.starts
	changed := tlsPlan()
	changed.Tunnels[1].Carrier.Proxy = "http://proxy:3128"
	w.take(e, changed)
	if w.starts != starts+1 || !w.alive[b1] {
		t.Errorf("%d starts, want one more than %d; alive %v", w.starts, starts, w.alive)
	}
	// An engine that died between the file and the process: the next one sees it by the status.
	w.tell(b1, plan.Tunnels[1].Carrier, processStatus{Status: carrier.Status{Connected: true}})
	w.now = w.now.Add(time.Minute)
	w.settle(e)
	if w.starts != starts+2 {
		t.Errorf("%d starts, want two more than %d", w.starts, starts)
	}
	// A process that is dead is not connected, whatever its file says.
	w.tell(b1, changed.Tunnels[1].Carrier, processStatus{Status: carrier.Status{Connected: true}})
	w.broken[b1] = true
	if err := w.Kill(b1); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	if said := e.carrierStates[b1]; said.Connected {
		t.Errorf("a dead process says %+v", said)
	}
	w.broken[b1] = false
	w.now = w.now.Add(time.Minute)
	w.settle(e)

	// Back to UDP: in the kernel, as it has WireGuard, without processes or files.
	udp := testPlan()
	w.take(e, udp)
	w.now = w.now.Add(time.Minute)
	w.settle(e)
	left, _ := filepath.Glob(filepath.Join(w.runDir, "*carrier*.json"))
	if len(left) > 0 || w.alive[b1] || w.alive[c0] || fmt.Sprint(w.asked) != "[start stop]" {
		t.Errorf("files %v, processes %v, carrier process %v", left, w.alive, w.asked)
	}
	links := observe(t, w.k.Links(kernel.KindWireGuard))
	if len(links) != 3 {
		t.Errorf("in the kernel: %v", links)
	}
	for _, tun := range e.State().Tunnels {
		if tun.ListenPort == 0 {
			t.Errorf("WireGuard was not told of tunnel %+v", tun)
		}
	}
	// And to TLS once more: the kernel's devices make room.
	w.take(e, plan)
	if links := observe(t, w.k.Links(kernel.KindWireGuard)); len(links) != 1 || !w.alive[b1] || !w.alive[c0] {
		t.Errorf("in the kernel: %v, processes %v", links, w.alive)
	}
}

// The carrier process: a start that fails, one that dies, and what it says.
func TestListenerIsKept(t *testing.T) {
	w := &tlsWorld{world: newWorld(t), fails: errors.New("no such program")}
	e := w.engine()
	e.cfg.Carriers = w.carriers()
	w.take(e, tlsPlan())
	listener := func() Object {
		for _, o := range e.State().Problems {
			if o.Kind == kindCarrier {
				return o
			}
		}
		return Object{}
	}
	starts := len(w.asked)
	if starts != 1 || listener().Name != "port 443" {
		t.Errorf("asked %v, problems %+v", w.asked, e.State().Problems)
	}
	w.fails = nil
	for range 100 {
		w.now = w.now.Add(time.Second)
		w.settle(e)
	}
	if !w.running || listener() != (Object{}) {
		t.Errorf("running %v, problem %+v", w.running, listener())
	}
	if err := replaceFile(filepath.Join(w.runDir, carrierState), listenStatus{Err: "listen tcp :443: address already in use"}); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	if o := listener(); o.Status != Failed || !strings.Contains(o.Message, "already in use") {
		t.Errorf("problem is %+v", o)
	}
	if got := w.reason(e, c0); got != "TLS: listen tcp :443: address already in use" {
		t.Errorf("reason is %q", got)
	}
	w.running = false
	before := len(w.asked)
	w.settle(e)
	if len(w.asked) != before+1 || !w.running {
		t.Errorf("after its death: asked %v", w.asked[before:])
	}
}

func TestCarrierReason(t *testing.T) {
	p := tlsPlan()
	udp, dials, accepts := p.Tunnels[0], p.Tunnels[1], p.Tunnels[2]
	proxied := dials
	c := *dials.Carrier
	c.Proxy = "http://proxy:3128"
	proxied.Carrier = &c
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	connected := processStatus{Status: carrier.Status{Connected: true, Remote: "198.51.100.1:5", LastError: "before"}}
	failed := processStatus{Status: carrier.Status{LastError: "cut", LastErrorAt: at}}
	for _, tt := range []struct {
		name     string
		t        overlay.Tunnel
		s        processStatus
		listener string
		state    string
		want     string
	}{
		{"UDP", udp, processStatus{}, "x", Down, "why"},
		{"cannot run", dials, processStatus{Err: "no token"}, "", Starting, "TLS: no token"},
		{"begins", dials, processStatus{}, "", Starting, "TLS: connects to 192.0.2.3:443"},
		{"failed", dials, failed, "x", Down, "TLS: cut"},
		{"up", dials, connected, "", Up, "why; TLS to 192.0.2.3:443"},
		{"up through a proxy", proxied, connected, "", Up, "why; TLS to 192.0.2.3:443 through proxy 198.51.100.1:5"},
		{"connected and down", dials, connected, "", Down, "why; connected: TLS to 192.0.2.3:443"},
		{"nobody came", accepts, processStatus{}, "", Down, "TLS: waits for c to connect"},
		{"nobody can come", accepts, failed, "port taken", Down, "TLS: port taken"},
		{"nobody came again", accepts, failed, "", Down, "TLS: waits for c to connect; the last connection ended at 03:04:05 UTC: cut"},
		{"accepted", accepts, connected, "port taken", Up, "why; TLS from 198.51.100.1:5"},
	} {
		if got := carrierReason(tt.t, tt.s, tt.listener, tt.state, "why"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPlanWithCarriersOverTheWire(t *testing.T) {
	want := tlsPlan()
	want.Tunnels[1].Carrier.Proxy, want.Tunnels[1].Carrier.ProxyCredentialsFile = "http://p:1", "/keys/proxy"
	if got := planFromWire(planToWire(want)); got.Digest() != want.Digest() {
		t.Errorf("got %+v", got)
	}
}

// The carrier process in this one: it follows its file, and says what keeps it from listening.
func TestRunCarrier(t *testing.T) {
	dir := t.TempDir()
	crt, key, secret := filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "token")
	if _, err := carrier.EnsureCertificate(crt, key, "gw"); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	config := listenConfig{
		Listener: overlay.Listener{Port: port, CertificateFile: crt, KeyFile: key},
		Tunnels:  []listenTunnel{{"fxw1", secret, "f/a/b/0"}, {"fxw2", secret, "f/a/c/0"}},
	}
	tell := func() {
		t.Helper()
		if err := replaceFile(filepath.Join(dir, carrierConfig), config); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, f func(s listenStatus) bool) {
		t.Helper()
		var s listenStatus
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			s = listenStatus{}
			if there, err := readJSON(filepath.Join(dir, carrierState), &s); err == nil && there && f(s) {
				return
			}
		}
		t.Fatalf("%s: status is %+v", what, s)
	}
	tell()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- RunCarrier(ctx, dir, quiet, func() { close(ready) })
	}()
	<-ready
	until("the taken port", func(s listenStatus) bool { return strings.Contains(s.Err, "address already in use") })
	taken.Close()
	until("no secret", func(s listenStatus) bool {
		return strings.Contains(s.Err, "token file") && strings.Count(s.Err, "no such file") == 1 && strings.HasSuffix(s.Address, fmt.Sprint(":", port))
	})
	if err := carrier.GenerateSecret(secret); err != nil {
		t.Fatal(err)
	}
	until("all well", func(s listenStatus) bool { return s.Err == "" && s.Pin != "" })
	status := func(token string) int {
		t.Helper()
		return requestCode(t, port, carrier.PathPrefix+token)
	}
	one, err := carrier.Token(secret, "f/a/b/0")
	if err != nil {
		t.Fatal(err)
	}
	// 503: the token is known, its tunnel process does not run.
	if got := status(one); got != 503 {
		t.Errorf("a token of ours: %d", got)
	}
	if got := status(strings.Repeat("x", 43)); got != 404 {
		t.Errorf("a token of nobody's: %d", got)
	}
	config.Tunnels = config.Tunnels[1:]
	tell()
	for deadline := time.Now().Add(20 * time.Second); status(one) != 404; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a tunnel that is no more is still known")
		}
	}
	// Another port: the former one is closed.
	other, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	config.Port = other.Addr().(*net.TCPAddr).Port
	other.Close()
	tell()
	until("another port", func(s listenStatus) bool {
		return s.Err == "" && strings.HasSuffix(s.Address, fmt.Sprint(":", config.Port))
	})
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		c.Close()
		t.Error("the former port is still listened on")
	}
	if err := os.Remove(filepath.Join(dir, carrierConfig)); err != nil {
		t.Fatal(err)
	}
	until("not wanted", func(s listenStatus) bool { return s.Address == "" && s.Err == "" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// requestCode asks the listener on this host's port for a WebSocket and returns the answer's code.
func requestCode(t *testing.T, port int, path string) int {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // whom it speaks to is not what is tested
	}}
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
		request.Header.Set(k, v)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

var quiet = slog.New(slog.DiscardHandler)
