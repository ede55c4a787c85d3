package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/conn"
)

// TestStrangers: whoever has no token sees a web server without pages.
func TestStrangers(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	open(t, n.acceptor)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	paths := []string{"/", "/index.html", PathPrefix, PathPrefix + "some-other-token-unknown", PathPrefix + token /* no WebSocket */, PathPrefix + token + "/"}
	for _, p := range paths {
		r, err := (&http.Client{Transport: transport}).Get("https://" + n.Addr().String() + p)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != http.StatusNotFound || string(body) != "404 page not found\n" {
			t.Errorf("%s: %d %q", p, r.StatusCode, body)
		}
	}
	if s := n.Status(); s.NotFound != uint64(len(paths)) || s.Accepted != 0 || s.Pin != n.pin {
		t.Errorf("status %+v", s)
	}
}

func TestOldTLSRefused(t *testing.T) {
	n := newNear(t)
	c, err := tls.Dial("tcp", n.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err == nil {
		c.Close()
		t.Error("TLS 1.1 was taken")
	}
}

// TestFlood: connections that say nothing are closed; those over the limit at once; a tunnel comes through after them, and does not count.
func TestFlood(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	open(t, n.acceptor)
	d := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	open(t, d)
	eventually(t, "tunnel", func() bool { return d.Status().Connected })
	eventually(t, "no place taken by the tunnel", func() bool { return n.Status().Pending == 0 })
	var conns []net.Conn
	for range maxPendingPerSource + 10 {
		c, err := net.Dial("tcp", n.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	eventually(t, "refusals", func() bool { s := n.Status(); return s.Refused == 10 && s.Pending == maxPendingPerSource })
	// Slow loris: the head of a TLS record of 512 bytes, and then a byte now and then, does not keep a place.
	began, last := time.Now(), time.Now()
	for _, c := range conns {
		_, _ = c.Write([]byte{0x16, 3, 1, 2, 0})
	}
	eventually(t, "slow ones are gone", func() bool {
		if time.Since(last) > 300*time.Millisecond {
			last = time.Now()
			for _, c := range conns {
				_, _ = c.Write([]byte{1})
			}
		}
		return n.Status().Pending == 0
	})
	if took := time.Since(began); took < headTimeout/2 {
		t.Errorf("gone after %s already", took)
	}
	if !d.Status().Connected || d.Status().Connections != 1 {
		t.Errorf("the tunnel suffered: %+v", d.Status())
	}
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1/32", "[::ffff:192.0.2.1]:5": "192.0.2.1/32", "[2001:db8::1:2]:5": "2001:db8::/64", "[fe80::1%eth0]:5": "fe80::/64",
	} {
		if got := source(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(in))); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestUnready: the tunnel's process comes later than the connection, is killed, and comes again.
func TestUnready(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	d := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	open(t, d)
	eventually(t, "503", func() bool { return strings.Contains(d.Status().LastError, "it says 503") })
	open(t, n.acceptor)
	eventually(t, "connection", func() bool { return d.Status().Connected && n.acceptor.Status().Connected })
	if got := n.acceptor.Status().Remote; !strings.HasPrefix(got, "127.0.0.1:") {
		t.Errorf("remote %q", got)
	}
	n.acceptor.Close()
	eventually(t, "end", func() bool { return !d.Status().Connected })
	// What a killed process leaves.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	open(t, n.acceptor)
	eventually(t, "connection again", func() bool { return d.Status().Connected && n.acceptor.Status().Connected })
	if s := n.Status(); s.Unready == 0 || s.Accepted != 2 || s.Tunnels != 1 {
		t.Errorf("status %+v", s)
	}
	if fi, err := os.Stat(n.socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v", fi.Mode(), err)
	}
}

// TestNewerReplaces: two dialers with one token; and a tunnel that is taken out of the configuration.
func TestNewerReplaces(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	receive := open(t, n.acceptor)
	first := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	old, err := first.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first", func() bool { return n.acceptor.Status().Connections == 1 })
	second := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin})
	now, err := second.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer now.close()
	if _, err := old.read(nil); err == nil {
		t.Error("the older connection lives")
	}
	old.close()
	if err := now.write([]byte("hello"), false); err != nil {
		t.Fatal(err)
	}
	if got, _, err := receive(); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if s := n.Status(); s.Tunnels != 1 || s.Accepted != 2 {
		t.Errorf("status %+v", s)
	}
	// The same again changes nothing; another one beside it neither.
	if err := n.SetTunnels(map[string]string{token: n.socket, token + "2": "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	if err := now.write([]byte("again"), false); err != nil {
		t.Fatal(err)
	}
	if got, _, err := receive(); err != nil || string(got) != "again" {
		t.Errorf("%q, %v", got, err)
	}
	if err := n.SetTunnels(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := now.read(nil); err == nil {
		t.Error("a tunnel that is gone is still connected")
	}
	eventually(t, "no tunnel", func() bool { return n.Status().Tunnels == 0 })
	err = n.SetTunnels(map[string]string{"pass-word": n.socket})
	if err == nil {
		t.Fatal("a short token was taken")
	}
	safe(t, err.Error())
}

// TestListenerRefusesMessages: a client with a token that sends text, or too much, is cut off; the tunnel stays usable.
func TestListenerRefusesMessages(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	open(t, n.acceptor)
	for _, send := range []func(ctx context.Context, c *websocket.Conn) error{
		func(ctx context.Context, c *websocket.Conn) error {
			return c.Write(ctx, websocket.MessageText, []byte("hello"))
		},
		func(ctx context.Context, c *websocket.Conn) error {
			return c.Write(ctx, websocket.MessageBinary, make([]byte, MaxMessage+1))
		},
	} {
		l, err := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin}).dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_ = send(context.Background(), l.ws)
		if _, err := l.read(nil); err == nil {
			t.Error("it was taken")
		}
		l.close()
	}
	eventually(t, "no tunnel", func() bool { return n.Status().Tunnels == 0 })
	if got := n.acceptor.Status().RxPackets; got != 0 {
		t.Errorf("%d packets reached the tunnel", got)
	}
}

// TestAcceptorRefuses: what connects to the socket and is no Listener.
func TestAcceptorRefuses(t *testing.T) {
	noLeaks(t)
	socket := SocketPath(t.TempDir(), "wgtest")
	a, err := NewAcceptor(socket, token)
	if err != nil {
		t.Fatal(err)
	}
	open(t, a)
	for _, c := range []struct{ send, want string }{
		{"\x00\x05hello", "hello is not an address"},
		{"\x00\x00", "frame without content"},
		{"\x00", "unexpected EOF"},
	} {
		u, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(u, c.send)
		u.Close()
		eventually(t, c.want, func() bool { return strings.Contains(a.Status().LastError, c.want) })
	}
	if s := a.Status(); s.Connections != 0 {
		t.Errorf("status %+v", s)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := NewAcceptor(file, token)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Open(0); err == nil || !strings.Contains(err.Error(), "another kind") {
		t.Errorf("a file was replaced: %v", err)
	}
	if _, err := NewAcceptor(socket, "pass-word"); err == nil {
		t.Error("a short token was taken")
	} else {
		safe(t, err.Error())
	}
}

// TestBind is the contract of conn.Bind, for both roles.
func TestBind(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	for name, b := range map[string]conn.Bind{"dialer": newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin}), "acceptor": n.acceptor} {
		ep, err := b.ParseEndpoint("[2001:db8::1]:443")
		if err != nil || ep.DstIP() != Endpoint(token).Addr() || len(ep.DstToBytes()) != 18 {
			t.Errorf("%s: ParseEndpoint: %v, %v", name, ep, err)
		}
		if _, err := b.ParseEndpoint("nonsense"); err == nil {
			t.Errorf("%s: ParseEndpoint took nonsense", name)
		}
		if err := b.Send([][]byte{{1}}, ep); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Send when closed: %v", name, err)
		}
		for range 3 {
			fns, port, err := b.Open(4711)
			if err != nil || port != 4711 || len(fns) != 1 {
				t.Fatalf("%s: Open: %d %v", name, port, err)
			}
			if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
				t.Errorf("%s: second Open: %v", name, err)
			}
			if err := b.Send([][]byte{{1}}, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
				t.Errorf("%s: foreign endpoint: %v", name, err)
			}
			if err := b.Send([][]byte{{}, make([]byte, MaxMessage+1)}, ep); err != nil {
				t.Errorf("%s: Send: %v", name, err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := fns[0]([][]byte{make([]byte, 2000)}, make([]int, 1), make([]conn.Endpoint, 1))
				ended <- err
			}()
			if err := errors.Join(b.Close(), b.Close()); err != nil {
				t.Errorf("%s: Close: %v", name, err)
			}
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: receive after Close: %v", name, err)
			}
		}
	}
}

// TestMark: SO_MARK before and while a connection lives.
func TestMark(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("marks need CAP_NET_ADMIN")
	}
	n := newNear(t)
	open(t, n.acceptor)
	d := newDialer(t, DialerConfig{URL: n.url(), Pin: n.pin, Mark: 7})
	open(t, d)
	eventually(t, "connection", func() bool { return d.Status().Connected })
	for _, want := range []int{7, 9} {
		if want != 7 {
			if err := d.SetMark(uint32(want)); err != nil {
				t.Fatal(err)
			}
		}
		if got := markOf(t, d.live()); got != want {
			t.Errorf("mark %d, want %d", got, want)
		}
	}
}

func TestListenerMark(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("marks need CAP_NET_ADMIN")
	}
	n := newNear(t)
	l, err := Listen(ListenerConfig{Address: "[::1]:0", CertFile: filepath.Join(n.dir, "cert.pem"), KeyFile: filepath.Join(n.dir, "key.pem"), Mark: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer l.tcp.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := l.tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if m := markOf(t, got.(*limitConn).tcp); m != 5 {
		t.Errorf("mark %d of an accepted connection, want 5", m)
	}
}

// TestRenewal: a new certificate of the same key is shown without a restart; a broken one is not; an open key file is refused.
func TestRenewal(t *testing.T) {
	n := newNear(t)
	cert, key := filepath.Join(n.dir, "cert.pem"), filepath.Join(n.dir, "key.pem")
	until := time.Now().AddDate(1, 0, 0).Truncate(time.Second)
	if err := selfSigned(cert, key, "127.0.0.1", time.Now(), until); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour) // file systems' clocks are coarse
	if err := os.Chtimes(cert, later, later); err != nil {
		t.Fatal(err)
	}
	shown := func() (time.Time, string) {
		c, err := tls.Dial("tcp", n.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		leaf := c.ConnectionState().PeerCertificates[0]
		return leaf.NotAfter, Pin(leaf)
	}
	if got, pin := shown(); !got.Equal(until) || pin != n.pin {
		t.Errorf("shown until %s with %s, want %s with %s", got, pin, until, n.pin)
	}
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := shown(); !got.Equal(until) {
		t.Errorf("shown until %s", got)
	}
	if _, err := Listen(ListenerConfig{Address: "127.0.0.1:0", CertFile: cert, KeyFile: key}); err == nil {
		t.Error("a broken certificate was taken at start")
	}
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureCertificate(cert, key, "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("an open key was taken: %v", err)
	}
}
