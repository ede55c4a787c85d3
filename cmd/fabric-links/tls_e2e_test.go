package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
	"fabric/overlay"
	"fabric/overlay/carrier"
	"fabric/overlay/links"
)

// tlsNodes gives two nodes a tunnel over UDP and one over TLS, with BFD of 100 ms x 3 on both. b takes the TLS connection, on port 443. change may
// rewrite the document before it is compiled.
//
//	a: 192.0.2.1 ── veth "under" ── 192.0.2.2 :b    rank 0 UDP, rank 1 TCP 443
func tlsNodes(t *testing.T, change func(doc *config.Document)) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	dir := t.TempDir()
	cert, key, token := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "token")
	pin, err := carrier.EnsureCertificate(cert, key, "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := carrier.GenerateSecret(token); err != nil {
		t.Fatal(err)
	}
	a, b, _ = twoNodes(t)
	gw := func(n *node, asn uint32) config.Gateway {
		return config.Gateway{
			Name: n.name, ASN: asn, VTEP: n.vtep,
			WireGuard: config.WireGuard{PublicKey: n.pk, PrivateKeyFile: n.keyFile, Keepalive: config.Duration(time.Second)},
			VRFs:      []config.GatewayVRF{{VRF: "CORE"}},
		}
	}
	ga, gb := gw(a, 65001), gw(b, 65002)
	gb.Endpoints = []config.Endpoint{{Address: netip.MustParseAddr("192.0.2.2")}}
	gb.TLS = &config.TLS{Listen: &config.TLSListen{Port: 443, Pin: pin, CertificateFile: cert, KeyFile: key}}
	ga.TLS = &config.TLS{}
	bfd := config.BFD{Interval: config.Duration(slowly(100 * time.Millisecond)), Multiplier: 3}
	doc := &config.Document{
		Fabric: config.Fabric{Name: "test", VTEPFamily: "ipv4", UnderlayMTU: 1500, MSS: 1300, WireGuardPort: 51820, DirectPort: 4790, TLSTokenFile: token, BFD: bfd},
		VRFs:   []config.VRF{{Name: "CORE", Table: 200, VNI: 1000}},
		Sites:  []config.Site{{Name: "a-1", Gateways: []config.Gateway{ga}}, {Name: "b-1", Gateways: []config.Gateway{gb}}},
		Links:  config.Links{Mesh: "full", Tunnels: []config.Tunnel{{Kind: "wireguard"}, {Kind: "tls"}}},
	}
	if change != nil {
		change(doc)
	}
	for i, n := range []*node{a, b} {
		p, err := overlay.Compile(doc, n.name, overlay.Host{})
		if err != nil {
			t.Fatal(err)
		}
		plans[i] = p
		// The carrier process too ends with the test, whoever started it.
		t.Cleanup(func() { n.killCarrier(unix.SIGKILL) })
	}
	return a, b, plans
}

// only makes the TLS tunnel the only one of the document.
func only(doc *config.Document) { doc.Links.Tunnels = doc.Links.Tunnels[1:] }

// killCarrier signals the node's carrier process and returns its id, 0 if none runs.
func (n *node) killCarrier(sig syscall.Signal) int {
	pid, err := lockHolder(filepath.Join(n.runDir(), "carrier.lock"))
	if err != nil || pid == 0 {
		return 0
	}
	_ = unix.Kill(pid, sig)
	return pid
}

// lockHolder is the process that holds the record lock of a file, 0 if none does.
func lockHolder(file string) (int, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	ask := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &ask); err != nil || ask.Type == unix.F_UNLCK {
		return 0, err
	}
	return int(ask.Pid), nil
}

// cutUDP drops what tunnels over UDP carry to and from a node, and takes the rule away again.
func (n *node) cutUDP(cut bool) {
	n.t.Helper()
	if !cut {
		n.must("nft delete table inet cut")
		return
	}
	n.must("nft 'table inet cut { chain in { type filter hook input priority -300; iifname under meta l4proto udp drop; }; chain out { type filter hook output priority -300; oifname under meta l4proto udp drop; }; }'")
}

// says waits until the node's tunnel of a rank has text in its reason.
func (n *node) says(place int, text string) func() error {
	return func() error {
		s, err := n.state()
		if err != nil {
			return err
		}
		if len(s.Tunnels) <= place || !strings.Contains(s.Tunnels[place].Reason, text) {
			return fmt.Errorf("tunnels are %+v, want %q", s.Tunnels, text)
		}
		return nil
	}
}

func TestTLSFailover(t *testing.T) {
	a, b, plans := tlsNodes(t, nil)
	bringUp(t, a, b, plans)
	for _, n := range []*node{a, b} {
		n.wait("both sessions are up, traffic on the first", over(n, 0, "up", "up"))
	}
	p := startProbe(t, a, b)
	a.wait("probes are answered", func() error {
		if p.heard.Load() < 10 {
			return fmt.Errorf("%d answers", p.heard.Load())
		}
		return nil
	})
	t.Run("state tells", func(t *testing.T) {
		a.wait("who is connected", a.says(1, "TLS to 192.0.2.2:443"))
		b.wait("who is connected", b.says(1, "TLS from 192.0.2.1:"))
		s, err := a.state()
		if err != nil {
			t.Fatal(err)
		}
		tunnel := s.Tunnels[1]
		if tunnel.Kind != "tls" || tunnel.Implementation != "userspace" || tunnel.State != links.Up || tunnel.Endpoint.String() != "192.0.2.2:443" ||
			tunnel.ListenPort != 0 || tunnel.RxBytes == 0 || tunnel.LastHandshake.IsZero() || tunnel.Err != "" {
			t.Errorf("tunnel is %+v", tunnel)
		}
		for _, problem := range s.Problems {
			if problem.Status != links.Pending {
				t.Errorf("problem %+v", problem)
			}
		}
		secret, _ := os.ReadFile(plans[0].Tunnels[1].Carrier.TokenFile)
		token, err := carrier.Token(plans[0].Tunnels[1].Carrier.TokenFile, plans[0].Tunnels[1].Carrier.TokenName)
		if err != nil {
			t.Fatal(err)
		}
		told, _ := a.program("status", "--run-dir", a.runDir()).CombinedOutput()
		for _, n := range []*node{a, b} {
			files, _ := filepath.Glob(filepath.Join(n.runDir(), "*"))
			for _, f := range append(files, n.log.Name(), filepath.Join(n.dir, "state", "plan.json")) {
				content, _ := os.ReadFile(f)
				told = append(told, content...)
			}
		}
		if len(told) < 1000 || strings.Contains(string(told), strings.TrimSpace(string(secret))) || strings.Contains(string(told), token) {
			t.Error("a secret is in the state, a log or a file of the run folder, or nothing was read")
		}
	})
	detection := slowly(600 * time.Millisecond)
	t.Run("UDP is dropped", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.cutUDP(true)
			a.wait("traffic over TLS", over(a, 1, "down", "up"))
			b.wait("traffic over TLS", over(b, 1, "down", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if gap > detection || lost == 0 {
			p.watch.errorf(t, "longest gap is %s, want at most %s, and one at all", gap, detection)
		}
		// The whole MTU passes, and no more.
		if out := a.try("ping -n -c1 -W2 -M do -s 1392 10.255.0.2"); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("1420 bytes: %s", out)
		}
		if out := a.try("ping -n -c1 -W1 -M do -s 1393 10.255.0.2"); !strings.Contains(out, "mtu") && !strings.Contains(out, "too long") {
			t.Errorf("1421 bytes without fragments: %s", out)
		}
	})
	t.Run("the engine dies and is started", func(t *testing.T) {
		pid, err := a.tunnelPID(plans[0].Tunnels[1].Device)
		if err != nil {
			t.Fatal(err)
		}
		_, gap := p.phase(func() {
			a.stop(syscall.SIGKILL)
			a.start()
			a.wait("traffic over TLS", over(a, 1, "down", "up"))
			b.wait("traffic over TLS", over(b, 1, "down", "up"))
		})
		t.Logf("longest gap %s", gap)
		if again, err := a.tunnelPID(plans[0].Tunnels[1].Device); err != nil || again != pid {
			t.Errorf("tunnel process is %d, was %d: %v", again, pid, err)
		}
	})
	t.Run("the carrier process outlives its engine", func(t *testing.T) {
		pid, err := lockHolder(filepath.Join(b.runDir(), "carrier.lock"))
		if err != nil || pid == 0 {
			t.Fatalf("carrier process is %d: %v", pid, err)
		}
		b.stop(syscall.SIGTERM)
		if err := a.ping(b); err != nil {
			t.Errorf("without the engine: %v", err)
		}
		b.start()
		b.wait("traffic over TLS", over(b, 1, "down", "up"))
		if again, _ := lockHolder(filepath.Join(b.runDir(), "carrier.lock")); again != pid {
			t.Errorf("carrier process is %d, was %d", again, pid)
		}
	})
	t.Run("a second carrier process is refused", func(t *testing.T) {
		out, err := b.program("carrier", "--run-dir", b.runDir()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "is locked") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("the carrier process is killed", func(t *testing.T) {
		old := 0
		_, gap := p.phase(func() {
			if old = b.killCarrier(unix.SIGKILL); old == 0 {
				t.Fatal("no carrier process")
			}
			b.wait("another one", func() error {
				if pid, err := lockHolder(filepath.Join(b.runDir(), "carrier.lock")); err != nil || pid == 0 || pid == old {
					return fmt.Errorf("process %d: %w", pid, err)
				}
				return nil
			})
			a.wait("VTEP to VTEP", func() error { return a.ping(b) })
			a.wait("traffic over TLS", over(a, 1, "down", "up"))
		})
		t.Logf("longest gap %s", gap)
	})
	t.Run("a tunnel process is killed", func(t *testing.T) {
		for i, n := range []*node{a, b} {
			n.breakTunnel(plans[i].Tunnels[1].Device)
			since := time.Now()
			a.wait("VTEP to VTEP", func() error { return a.ping(b) })
			t.Logf("%s: repaired after %s", n.name, time.Since(since).Round(time.Millisecond))
		}
		a.wait("traffic over TLS", over(a, 1, "down", "up"))
		b.wait("traffic over TLS", over(b, 1, "down", "up"))
	})
	t.Run("UDP is back", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.cutUDP(false)
			a.wait("traffic over UDP", over(a, 0, "up", "up"))
			b.wait("traffic over UDP", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if lost > 0 {
			p.watch.errorf(t, "%d without answer on the return", lost)
		}
	})
	t.Run("cleanup leaves nothing", func(t *testing.T) {
		b.stop(syscall.SIGTERM)
		out, err := b.program("cleanup", "--state-dir", filepath.Join(b.dir, "state"), "--run-dir", b.runDir()).CombinedOutput()
		if err != nil {
			t.Fatalf("cleanup: %v\n%s", err, out)
		}
		if pid, _ := lockHolder(filepath.Join(b.runDir(), "carrier.lock")); pid != 0 {
			t.Errorf("carrier process %d runs on", pid)
		}
		left, _ := filepath.Glob(filepath.Join(b.runDir(), "*"))
		for _, f := range left {
			if base := filepath.Base(f); base != "engine.lock" {
				t.Errorf("left: %s", base)
			}
		}
	})
}

// tlsProxy is an HTTP proxy at a node's address, port 3128, that knows CONNECT.
type tlsProxy struct {
	mu sync.Mutex
	// want are the credentials it asks for, "" for none; hangs: it takes connections and says nothing.
	want     string
	hangs    bool
	connects atomic.Int64
}

func (p *tlsProxy) set(want string, hangs bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.want, p.hangs = want, hangs
}

// start serves in the node until the test ends; the way on to the far gateway begins in the node too.
func (p *tlsProxy) start(t *testing.T, n *node) {
	t.Helper()
	fd := inNode(t, n, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 3128}); err != nil {
			return 0, err
		}
		return fd, unix.Listen(fd, 16)
	})
	f := os.NewFile(uintptr(fd), "proxy")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				p.serve(t, n, c)
			})
		}
	})
}

func (p *tlsProxy) serve(t *testing.T, n *node, c net.Conn) {
	r := bufio.NewReader(c)
	request, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	p.connects.Add(1)
	p.mu.Lock()
	want, hangs := p.want, p.hangs
	p.mu.Unlock()
	if hangs {
		_, _ = io.Copy(io.Discard, r)
		return
	}
	if want != "" && request.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(want)) {
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
		return
	}
	to, err := netip.ParseAddrPort(request.Host)
	if request.Method != http.MethodConnect || err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		return
	}
	far, err := dialIn(n, to)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer far.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection Established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(c, far)
		c.Close()
	}()
	_, _ = io.Copy(far, r)
	far.Close()
	<-done
}

// dialIn makes a TCP connection that begins within a node.
func dialIn(n *node, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.Within(func() (err error) { c, err = net.DialTimeout("tcp", to.String(), 5*time.Second); return err })
	return c, err
}

// The TLS tunnel is the only one, TCP to the far gateway is dropped, and a proxy is the way. All that can be wrong is said, and once it is mended the
// tunnel comes up by itself.
func TestTLSThroughProxy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	credentials := filepath.Join(dir, "proxy")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(credentials, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("user:wrong-word")
	a, b, plans := tlsNodes(t, func(doc *config.Document) {
		only(doc)
		doc.Sites[0].Gateways[0].TLS = &config.TLS{Proxy: "http://192.0.2.2:3128", ProxyCredentialsFile: credentials}
	})
	p := &tlsProxy{want: "user:pass-word"}
	p.start(t, b)
	a.must("nft 'table inet direct { chain out { type filter hook output priority -300; oifname under meta l4proto udp drop; oifname under tcp dport 443 drop; }; }'")
	b.start()
	a.start()
	b.apply(plans[1])
	a.apply(plans[0])
	up := func(what string) {
		t.Helper()
		a.wait(what, func() error { return a.ping(b) })
		a.wait(what, isTLSUp(a))
		b.wait(what, isTLSUp(b))
	}
	a.wait("refused credentials", a.says(0, "it says 407 and refuses the credentials in "+credentials))
	b.wait("nobody comes", b.says(0, "TLS: waits for a to connect"))
	p.set("user:pass-word", true)
	a.wait("the proxy hangs", a.says(0, "CONNECT through proxy 192.0.2.2:3128: no answer within 10s"))
	p.set("user:pass-word", false)
	write("user:pass-word")
	up("with the right credentials")
	a.wait("the way is told", a.says(0, "TLS to 192.0.2.2:443 through proxy 192.0.2.2:3128"))

	refused := func(what, text string, change func(c *overlay.Carrier)) {
		t.Run(what, func(t *testing.T) {
			bad := plans[0]
			bad.Tunnels = append([]overlay.Tunnel{}, bad.Tunnels...)
			c := *bad.Tunnels[0].Carrier
			change(&c)
			bad.Tunnels[0].Carrier = &c
			a.apply(bad)
			a.wait(what, a.says(0, text))
			a.wait("BFD sees it", func() error {
				if s, err := a.state(); err != nil || s.Tunnels[0].State == links.Up || s.Tunnels[0].Active {
					return fmt.Errorf("tunnels are %+v, error %v", s.Tunnels, err)
				}
				return nil
			})
			a.apply(plans[0])
			up("mended")
		})
	}
	refused("wrong pin", "the far end's certificate has pin "+plans[0].Tunnels[0].Carrier.Pin, func(c *overlay.Carrier) {
		c.Pin = "sha256:" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	})
	refused("no pin", "is not trusted", func(c *overlay.Carrier) { c.Pin = "" })
	other := filepath.Join(dir, "token")
	if err := carrier.GenerateSecret(other); err != nil {
		t.Fatal(err)
	}
	refused("wrong token", "it says 404: the far gateway has no tunnel with this token", func(c *overlay.Carrier) { c.TokenFile = other })
	refused("token file that is not there", "no such file", func(c *overlay.Carrier) { c.TokenFile = filepath.Join(dir, "none") })
	refused("nobody listens", "it says 502", func(c *overlay.Carrier) { c.Dial = "192.0.2.2:444" })

	t.Run("another secret at both ends", func(t *testing.T) {
		file := plans[0].Tunnels[0].Carrier.TokenFile
		secret, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		old, err := a.tunnelPID(plans[0].Tunnels[0].Device)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, secret, 0o600); err != nil {
			t.Fatal(err)
		}
		a.wait("the tunnel process starts anew", func() error {
			if pid, err := a.tunnelPID(plans[0].Tunnels[0].Device); err != nil || pid == old {
				return fmt.Errorf("process %d: %w", pid, err)
			}
			return nil
		})
		up("with the new secret")
	})
	if p.connects.Load() < 3 {
		t.Errorf("the proxy was asked %d times", p.connects.Load())
	}
}

// isTLSUp says whether a node's only tunnel is of kind "tls", up and used.
func isTLSUp(n *node) func() error {
	return func() error {
		s, err := n.state()
		if err != nil {
			return err
		}
		if len(s.Tunnels) != 1 || s.Tunnels[0].Kind != "tls" || s.Tunnels[0].State != links.Up || !s.Tunnels[0].Active || s.Tunnels[0].Err != "" {
			return fmt.Errorf("tunnels are %+v", s.Tunnels)
		}
		return nil
	}
}

// A port that another program has, a tunnel that changes its kind, and a listener that is no longer wanted.
func TestTLSChanges(t *testing.T) {
	t.Parallel()
	a, b, plans := tlsNodes(t, only)
	udp := udpOf(plans)
	taken := inNode(t, b, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 443}); err != nil {
			return 0, err
		}
		return fd, unix.Listen(fd, 1)
	})
	b.start()
	a.start()
	b.apply(plans[1])
	a.apply(plans[0])
	b.wait("the taken port is named", b.says(0, "TLS: carrier listener: listen tcp :443"))
	if s, err := b.state(); err != nil || !hasProblem(s, "tls listener", "port 443", "address already in use") {
		t.Errorf("problems are %+v, error %v", s.Problems, err)
	}
	unix.Close(taken)
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
	a.wait("over TLS", isTLSUp(a))
	b.wait("over TLS", isTLSUp(b))

	b.apply(udp[1])
	a.apply(udp[0])
	b.wait("the carrier process ends", func() error {
		if pid, _ := lockHolder(filepath.Join(b.runDir(), "carrier.lock")); pid != 0 {
			return fmt.Errorf("process %d runs on", pid)
		}
		return nil
	})
	for _, n := range []*node{a, b} {
		n.wait("over UDP", func() error {
			s, err := n.state()
			if err != nil || len(s.Tunnels) != 1 || s.Tunnels[0].Kind != "wireguard" || s.Tunnels[0].State != links.Up || s.Tunnels[0].ListenPort == 0 {
				return fmt.Errorf("tunnels are %+v, error %v", s.Tunnels, err)
			}
			return nil
		})
	}
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
	b.apply(plans[1])
	a.apply(plans[0])
	a.wait("over TLS again", isTLSUp(a))
	b.wait("over TLS again", isTLSUp(b))
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
}

// udpOf are plans whose one TLS tunnel is one over UDP.
func udpOf(plans [2]overlay.Plan) (udp [2]overlay.Plan) {
	for i, p := range plans {
		p.Tunnels = append([]overlay.Tunnel{}, p.Tunnels...)
		p.Tunnels[0].Kind, p.Tunnels[0].Carrier, p.Tunnels[0].ListenPort, p.Listener = "wireguard", nil, 51820, nil
		if i == 0 {
			p.Tunnels[0].Endpoint = netip.MustParseAddrPort("192.0.2.2:51820")
		}
		udp[i] = p
	}
	return udp
}

func hasProblem(s links.State, kind, name, text string) bool {
	for _, o := range s.Problems {
		if o.Kind == kind && o.Name == name && strings.Contains(o.Message, text) {
			return true
		}
	}
	return false
}
