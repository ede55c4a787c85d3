package carrier

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestNewDialerRefuses(t *testing.T) {
	good := "wss://gw.example" + PathPrefix + token
	for _, c := range []struct {
		name   string
		config DialerConfig
		want   string
	}{
		{"no URL", DialerConfig{}, "must be wss://"},
		{"not TLS", DialerConfig{URL: "ws://gw.example" + PathPrefix + token}, "must be wss://"},
		{"broken URL", DialerConfig{URL: "wss://gw.example:x" + PathPrefix + token}, "must be wss://"},
		{"no path", DialerConfig{URL: "wss://gw.example/" + token}, "path must end in"},
		{"short token", DialerConfig{URL: "wss://gw.example" + PathPrefix + "short"}, "shorter than 16"},
		{"odd token", DialerConfig{URL: good + "/x"}, "letters, digits"},
		{"pin", DialerConfig{URL: good, Pin: "sha256:AAAA"}, `pin "sha256:AAAA": must be sha256:BASE64 of 32 bytes`},
		{"CA file", DialerConfig{URL: good, CAFile: "/nonexistent"}, "CA file"},
		{"empty CA file", DialerConfig{URL: good, CAFile: os.DevNull}, "no PEM certificate"},
		{"credentials in URL", DialerConfig{URL: good, Proxy: "http://user:pass-word@proxy"}, "belong in a file"},
		{"proxy scheme", DialerConfig{URL: good, Proxy: "socks5://proxy"}, "proxy must be http://"},
		{"open credentials", DialerConfig{URL: good, Proxy: "http://p", ProxyCredentialsFile: credentials(t, "user:pass-word", 0o644)}, "chmod 600"},
		{"odd credentials", DialerConfig{URL: good, Proxy: "http://p", ProxyCredentialsFile: credentials(t, "pass-word", 0o600)}, "USER:PASSWORD"},
	} {
		_, err := NewDialer(c.config)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		safe(t, err.Error())
	}
}

// web is a TLS server that is no carrier.
func web(t *testing.T, handler http.HandlerFunc) (url, pin string) {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return "wss" + strings.TrimPrefix(s.URL, "https") + PathPrefix + token, Pin(s.Certificate())
}

// TestDialRefused: what can be wrong with the far end, and the words an operator reads.
func TestDialRefused(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	open(t, n.acceptor)
	expired := t.TempDir()
	cert, key := filepath.Join(expired, "cert"), filepath.Join(expired, "key")
	if err := selfSigned(cert, key, "127.0.0.1", time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	late := httptest.NewUnstartedServer(http.NotFoundHandler())
	late.Config.ErrorLog = log.New(io.Discard, "", 0)
	late.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	late.StartTLS()
	t.Cleanup(late.Close)
	lateURL := "wss" + strings.TrimPrefix(late.URL, "https") + PathPrefix + token
	okURL, okPin := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	movedURL, movedPin := web(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	brokenURL, brokenPin := web(t, func(w http.ResponseWriter, _ *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		c.Close()
	})
	muteURL, mutePin := web(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	unknown := "wss://" + n.Addr().String() + PathPrefix + "some-other-token-unknown"
	wrong := "sha256:" + strings.Repeat("A", 43) + "="
	plain := newProxy(t, &proxy{})
	strict := newProxy(t, &proxy{want: "user:pass-word"})
	for _, c := range []struct {
		name   string
		config DialerConfig
		want   string
	}{
		{"wrong pin", DialerConfig{URL: n.url(), Pin: wrong}, "has pin " + n.pin + ", want " + wrong},
		{"untrusted", DialerConfig{URL: n.url()}, "(pin " + n.pin + ") is not trusted"},
		{"wrong authority", DialerConfig{URL: okURL, CAFile: filepath.Join(n.dir, "cert.pem")}, "is not trusted"},
		{"wrong name", DialerConfig{URL: n.url(), CAFile: filepath.Join(n.dir, "cert.pem"), ServerName: "other.example"}, "is not trusted"},
		{"expired", DialerConfig{URL: lateURL, Pin: Pin(pair.Leaf)}, "certificate expired at "},
		{"no TLS", DialerConfig{URL: "wss://" + plain.Addr().String() + PathPrefix + token, Pin: n.pin}, ": TLS: "},
		{"silent", DialerConfig{URL: "wss://" + silent.Addr().String() + PathPrefix + token, Pin: n.pin}, "TLS: no answer within 500ms"},
		{"200", DialerConfig{URL: okURL, Pin: okPin}, "it says 200 OK, want 101"},
		{"302", DialerConfig{URL: movedURL, Pin: movedPin}, "it says 302 Found, want 101"},
		{"half a 101", DialerConfig{URL: brokenURL, Pin: brokenPin}, "it says 101, but"},
		{"mute", DialerConfig{URL: muteURL, Pin: mutePin}, "WebSocket: no answer within 2s"},
		{"unknown token", DialerConfig{URL: unknown, Pin: n.pin}, "it says 404"},
		{"no listener", DialerConfig{URL: "wss://127.0.0.1:1" + PathPrefix + token, Pin: n.pin}, "connect: dial tcp 127.0.0.1:1: connect: connection refused"},
		{"proxy gone", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: "http://127.0.0.1:1"}, "connect to proxy 127.0.0.1:1: "},
		{"proxy hangs", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: newProxy(t, &proxy{hang: true}).url()}, ": no answer within 500ms"},
		{"407 without credentials", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: strict.url()}, "407 and wants credentials"},
		{"407 with credentials", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: strict.url(), ProxyCredentialsFile: credentials(t, "user:pass-wordy", 0o600)},
			"407 and refuses the credentials in "},
		{"proxy forbids", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: newProxy(t, &proxy{answer: "HTTP/1.1 403 x\r\n\r\n"}).url()}, "it says 403 Forbidden"},
		{"proxy talks", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: newProxy(t, &proxy{answer: "HTTP/1.1 200 x\r\n\r\nhello"}).url()}, "sent something before TLS"},
		{"proxy babbles", DialerConfig{URL: n.url(), Pin: n.pin, Proxy: newProxy(t, &proxy{answer: "HTTP/1.1 200 x\r\n" + strings.Repeat("A: b\r\n", 5000)}).url()},
			"too long"},
		{"far end gone, through proxy", DialerConfig{URL: "wss://127.0.0.1:1" + PathPrefix + token, Pin: n.pin, Proxy: plain.url()}, "it says 502 Bad Gateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDialer(t, c.config)
			d.timing.dial = 20 * time.Second
			// Who is to be given up says after what.
			if _, limit, ok := strings.Cut(c.want, "no answer within "); ok {
				var err error
				if d.timing.dial, err = time.ParseDuration(limit); err != nil {
					t.Fatal(err)
				}
			}
			l, err := d.dial(context.Background())
			if err == nil {
				l.close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "carrier to 127.0.0.1:") {
				t.Errorf("%q, want %q", err, c.want)
			}
			safe(t, err.Error())
		})
	}
}

// TestDialTrusts: a CA file, a pin, and both.
func TestDialTrusts(t *testing.T) {
	noLeaks(t)
	n := newNear(t)
	open(t, n.acceptor)
	ca := filepath.Join(n.dir, "cert.pem")
	for _, c := range []DialerConfig{{CAFile: ca}, {Pin: n.pin}, {CAFile: ca, Pin: n.pin}, {Pin: n.pin, ServerName: "any.example"}} {
		c.URL = n.url()
		l, err := newDialer(t, c).dial(context.Background())
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		l.close()
	}
}

// serveWS is a server that speaks WebSocket, and then what speak says.
func serveWS(t *testing.T, speak func(ctx context.Context, c *websocket.Conn)) *Dialer {
	t.Helper()
	url, pin := web(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		speak(ctx, c)
	})
	return newDialer(t, DialerConfig{URL: url, Pin: pin})
}

func TestBadMessages(t *testing.T) {
	for _, c := range []struct {
		name  string
		speak func(ctx context.Context, c *websocket.Conn)
		want  string
	}{
		{"text", func(ctx context.Context, c *websocket.Conn) {
			_ = c.Write(ctx, websocket.MessageText, []byte("hello"))
			_, _, _ = c.Read(ctx)
		}, "text message"},
		{"too large", func(ctx context.Context, c *websocket.Conn) {
			_ = c.Write(ctx, websocket.MessageBinary, make([]byte, MaxMessage+1))
			_, _, _ = c.Read(ctx)
		}, "more than 65535 bytes"},
		{"goodbye", func(_ context.Context, c *websocket.Conn) { _ = c.Close(websocket.StatusGoingAway, "bye") }, `closed the connection: StatusGoingAway "bye"`},
		{"cut", func(_ context.Context, c *websocket.Conn) { _ = c.CloseNow() }, "was cut"},
		// It reads nothing, so that no ping is answered.
		{"silent", func(ctx context.Context, c *websocket.Conn) { <-ctx.Done() }, "no answer to pings for 200ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			stop := make(chan struct{})
			d := serveWS(t, func(ctx context.Context, ws *websocket.Conn) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				go func() { <-stop; cancel() }()
				c.speak(ctx, ws)
			})
			d.timing.ping, d.timing.silence = 50*time.Millisecond, 200*time.Millisecond
			t.Cleanup(func() { close(stop) })
			open(t, d)
			eventually(t, c.want, func() bool { return strings.Contains(d.Status().LastError, c.want) })
			eventually(t, "another connection", func() bool { return d.Status().Connections > 1 })
		})
	}
}

// TestLargestMessage: a message of 65535 bytes is taken, and an empty one does no harm.
func TestLargestMessage(t *testing.T) {
	noLeaks(t)
	d := serveWS(t, func(ctx context.Context, c *websocket.Conn) {
		_ = c.Write(ctx, websocket.MessageBinary, nil)
		_ = c.Write(ctx, websocket.MessageBinary, make([]byte, MaxMessage))
		_, _, _ = c.Read(ctx)
	})
	got, _, err := open(t, d)()
	if err != nil || len(got) != MaxMessage {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestStalledPeer: the far end takes nothing. Send returns at once, packets are dropped and counted, and the connection is given up.
func TestStalledPeer(t *testing.T) {
	noLeaks(t)
	stop := make(chan struct{})
	d := serveWS(t, func(ctx context.Context, _ *websocket.Conn) {
		select {
		case <-stop:
		case <-ctx.Done():
		}
	})
	d.timing.write, d.timing.silence = 2*time.Second, time.Minute
	t.Cleanup(func() { close(stop) })
	open(t, d)
	eventually(t, "connection", func() bool { return d.Status().Connected })
	datagrams := make([][]byte, 128)
	for i := range datagrams {
		datagrams[i] = make([]byte, 60000)
	}
	start := time.Now()
	eventually(t, "write deadline", func() bool {
		began := time.Now()
		if err := d.Send(datagrams, d.far); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Fatalf("Send took %s", took)
		}
		return strings.Contains(d.Status().LastError, "while sending")
	})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("given up after %s only", took)
	}
	if s := d.Status(); s.TxDropped == 0 {
		t.Errorf("nothing was counted: %+v", s)
	}
}
