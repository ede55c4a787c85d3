package carrier

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

const token = "a-token-of-twenty-and-more-letters"

// eventually waits for a state.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// noLeaks fails when goroutines are left after all cleanups that are registered later.
func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				var b bytes.Buffer
				buf := make([]byte, 1<<20)
				b.Write(buf[:runtime.Stack(buf, true)])
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b.String())
				return
			}
		}
	})
}

// near is a gateway that listens, on loopback.
type near struct {
	*Listener
	dir, pin, socket string
	acceptor         *Acceptor
}

func (n *near) url() string { return "wss://" + n.Addr().String() + PathPrefix + token }

// newNear starts a listener with one tunnel, whose acceptor is made but not open.
func newNear(t testing.TB) *near {
	t.Helper()
	return newNearOn(t, "127.0.0.1")
}

func newNearOn(t testing.TB, host string) *near {
	t.Helper()
	n := &near{dir: t.TempDir()}
	cert, key := filepath.Join(n.dir, "cert.pem"), filepath.Join(n.dir, "key.pem")
	var err error
	if n.pin, err = EnsureCertificate(cert, key, host); err != nil {
		t.Fatal(err)
	}
	n.Listener, err = Listen(ListenerConfig{Address: net.JoinHostPort(host, "0"), CertFile: cert, KeyFile: key, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	n.socket = SocketPath(n.dir, "wgtest")
	if n.acceptor, err = NewAcceptor(n.socket, token); err != nil {
		t.Fatal(err)
	}
	if err := n.SetTunnels(map[string]string{token: n.socket}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

func newDialer(t testing.TB, config DialerConfig) *Dialer {
	t.Helper()
	d, err := NewDialer(config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// open opens a bind and hands back a function that receives one packet.
func open(t testing.TB, b conn.Bind) (receive func() ([]byte, conn.Endpoint, error)) {
	t.Helper()
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return func() ([]byte, conn.Endpoint, error) {
		buf, size, ep := [][]byte{make([]byte, MaxMessage)}, make([]int, 1), make([]conn.Endpoint, 1)
		_, err := fns[0](buf, size, ep)
		return buf[0][:size[0]], ep[0], err
	}
}

// proxy is an HTTP CONNECT proxy. Cut closes the connections it carries.
type proxy struct {
	net.Listener
	want     string // USER:PASSWORD
	answer   string // instead of serving
	hang     bool
	connects sync.Map // host → struct{}

	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

func newProxy(t testing.TB, p *proxy) *proxy {
	t.Helper()
	var err error
	if p.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	p.wg.Go(func() {
		for {
			c, err := p.Accept()
			if err != nil {
				return
			}
			p.keep(c)
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		p.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url() string { return "http://" + p.Addr().String() }

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || r.Method != http.MethodConnect {
		return
	}
	p.connects.Store(r.Host, struct{}{})
	switch {
	case p.hang:
		_, _ = io.Copy(io.Discard, c)
		return
	case p.answer != "":
		_, _ = io.WriteString(c, p.answer)
		return
	case p.want != "" && r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(p.want)):
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n")
		return
	}
	up, err := net.Dial("tcp", r.Host)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	p.keep(up)
	defer up.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, c)
		up.Close()
	}()
	_, _ = io.Copy(c, up)
	c.Close()
	<-done
}

// credentials writes a credentials file.
func credentials(t testing.TB, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

// node is a userspace WireGuard device.
type node struct {
	addr netip.Addr
	tun  *tuntest.ChannelTUN
	dev  *device.Device
}

// newNodes makes two devices that are each other's peers.
func newNodes(t testing.TB, a, b conn.Bind) (*node, *node) {
	t.Helper()
	var keys, publics [2][]byte
	for i := range keys {
		keys[i] = bytes.Repeat([]byte{byte(i + 1)}, 32)
		var err error
		if publics[i], err = curve25519.X25519(keys[i], curve25519.Basepoint); err != nil {
			t.Fatal(err)
		}
	}
	var nodes [2]*node
	for i, bind := range []conn.Bind{a, b} {
		n := &node{addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), tun: tuntest.NewChannelTUN()}
		n.dev = device.NewDevice(n.tun.TUN(), bind, device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(n.dev.Close)
		if err := n.dev.IpcSet(fmt.Sprintf("private_key=%s\nreplace_peers=true\npublic_key=%s\nendpoint=%s\nallowed_ip=10.0.0.0/24\n",
			hex.EncodeToString(keys[i]), hex.EncodeToString(publics[1-i]), Endpoint(token))); err != nil {
			t.Fatal(err)
		}
		if err := n.dev.Up(); err != nil {
			t.Fatal(err)
		}
		nodes[i] = n
	}
	return nodes[0], nodes[1]
}

// ping sends from one to the other until a packet comes: packets may be dropped, as with UDP.
func (n *node) ping(t testing.TB, to *node) {
	t.Helper()
	packet := tuntest.Ping(to.addr, n.addr)
	deadline := time.After(20 * time.Second)
	for {
		select {
		case n.tun.Outbound <- packet:
		case <-deadline:
			t.Fatal("device takes no packet")
		}
		select {
		case got := <-to.tun.Inbound:
			if !bytes.Equal(got, packet) {
				t.Fatalf("got %x, want %x", got, packet)
			}
			return
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("no packet from %s to %s", n.addr, to.addr)
		}
	}
}

// drain takes what is still under way.
func (n *node) drain() {
	for {
		select {
		case <-n.tun.Inbound:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// safe fails when a text has a secret in it.
func safe(t testing.TB, text string) {
	t.Helper()
	for _, secret := range []string{token, "pass-word"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q says a secret", text)
		}
	}
}

// live is the TCP connection that lives.
func (d *Dialer) live() net.Conn {
	d.markMu.Lock()
	defer d.markMu.Unlock()
	return d.tcp
}

// markOf reads the SO_MARK of a connection.
func markOf(t testing.TB, c net.Conn) (mark int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if ctl := raw.Control(func(fd uintptr) { mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	return mark
}
