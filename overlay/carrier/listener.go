package carrier

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

const (
	// headTimeout is the time for TLS and the head of the request together.
	headTimeout = 5 * time.Second
	// maxPending bounds connections that have not shown a token yet, of one source (an IPv4 address, an IPv6 /64) and of all. Tunnels do not
	// count: each token has one.
	maxPending          = 256
	maxPendingPerSource = 32
	maxHeaderBytes      = 8 << 10
)

// ListenerConfig is a gateway's listener.
type ListenerConfig struct {
	// Address is what to listen on, such as ":443".
	Address string
	// CertFile and KeyFile are PEM files; the key's mode must be 0600. Both are read again when they change.
	CertFile, KeyFile string
	// Mark is the SO_MARK of the connections; 0 is none.
	Mark uint32
	// Log gets refused handshakes at debug level, and connections that come and go at info.
	Log *slog.Logger
}

// ListenerStatus is what a Listener says of itself.
type ListenerStatus struct {
	Address string `json:"address"`
	// Pin is what far ends need to trust the certificate.
	Pin string `json:"pin"`
	// Tunnels that are connected now.
	Tunnels int `json:"tunnels"`
	// Pending are connections that have shown no token yet.
	Pending int `json:"pending"`
	// Accepted counts connections that were handed to a tunnel process; Refused those over a limit; NotFound requests answered with
	// 404; Unready those for a tunnel whose process does not run.
	Accepted uint64 `json:"accepted"`
	Refused  uint64 `json:"refused"`
	NotFound uint64 `json:"not_found"`
	Unready  uint64 `json:"unready"`
}

// Listener takes the connections of Dialers and hands each to the tunnel process that its token names.
type Listener struct {
	log    *slog.Logger
	tcp    *limitListener
	cert   *certificate
	closed context.Context // ends with Run
	close  context.CancelFunc
	relays sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	// Hashed, so that how long a look-up takes tells nothing of a token.
	tunnels map[[sha256.Size]byte]*tunnel

	accepted, notFound, unready atomic.Uint64
}

// tunnel is where one token leads.
type tunnel struct {
	socket string
	lives  *relayed // or nil
}

// relayed is a tunnel's connection.
type relayed struct{ end context.CancelCauseFunc }

// Listen opens the TCP socket. Tunnels are connected once SetTunnels names them and Run runs.
func Listen(config ListenerConfig) (*Listener, error) {
	l := &Listener{
		log: config.Log, cert: &certificate{certFile: config.CertFile, keyFile: config.KeyFile},
		tunnels: map[[sha256.Size]byte]*tunnel{},
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if _, err := l.cert.get(); err != nil {
		return nil, fmt.Errorf("carrier listener %s: %w", config.Address, err)
	}
	// Marked as a whole: connections inherit the mark, and their first answer has it.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = setMark(fd, config.Mark) })
		return errors.Join(err, failed)
	}}
	listen.SetMultipathTCP(false)
	tcp, err := listen.Listen(context.Background(), "tcp", config.Address)
	if err != nil {
		return nil, fmt.Errorf("carrier listener: %w", err)
	}
	l.closed, l.close = context.WithCancel(context.Background())
	l.tcp = &limitListener{Listener: tcp, perSource: map[netip.Prefix]int{}, tls: &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"}, // WebSocket over HTTP/2 (RFC 8441) is nothing that the library speaks
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.cert.get() },
	}}
	return l, nil
}

// Addr is the address that is listened on.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// SetTunnels says which tokens there are and the unix socket (see SocketPath) that each leads to. Connections of those that are no longer named, or lead elsewhere, are
// closed; the others are left alone.
func (l *Listener) SetTunnels(sockets map[string]string) error {
	wanted := map[[sha256.Size]byte]string{}
	for token, socket := range sockets {
		if err := checkToken(token); err != nil {
			return fmt.Errorf("carrier listener: tunnel at %s: %w", socket, err)
		}
		wanted[sha256.Sum256([]byte(token))] = socket
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, t := range l.tunnels {
		if wanted[key] != t.socket {
			if t.lives != nil {
				t.lives.end(errors.New("the tunnel was taken out of the configuration"))
			}
			delete(l.tunnels, key)
		}
	}
	for key, socket := range wanted {
		if l.tunnels[key] == nil {
			l.tunnels[key] = &tunnel{socket: socket}
		}
	}
	return nil
}

// Status says how it stands.
func (l *Listener) Status() ListenerStatus {
	s := ListenerStatus{
		Address: l.Addr().String(), Refused: l.tcp.refused.Load(),
		Accepted: l.accepted.Load(), NotFound: l.notFound.Load(), Unready: l.unready.Load(),
	}
	if c, err := l.cert.get(); err == nil {
		s.Pin = Pin(c.Leaf)
	}
	l.tcp.mu.Lock()
	s.Pending = l.tcp.pending
	l.tcp.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tunnels {
		if t.lives != nil {
			s.Tunnels++
		}
	}
	return s
}

// Run serves until ctx ends, and returns nil then, with every connection closed. It is called once.
func (l *Listener) Run(ctx context.Context) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(l.serve),
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       headTimeout,
		WriteTimeout:      headTimeout,
		IdleTimeout:       headTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	defer context.AfterFunc(ctx, func() {
		l.close()
		server.Close()
	})()
	err := server.Serve(l.tcp)
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.close()
	server.Close()
	l.relays.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("carrier listener %s: %w", l.Addr(), err)
}

type connKey struct{}

// serve answers one request. Whoever has no token sees a web server without pages.
func (l *Listener) serve(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.URL.Path, PathPrefix)
	key := sha256.Sum256([]byte(token))
	l.mu.Lock()
	t := l.tunnels[key]
	l.mu.Unlock()
	c, isOurs := r.Context().Value(connKey{}).(*limitConn)
	if !ok || t == nil || !isOurs || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		l.notFound.Add(1)
		http.NotFound(w, r)
		return
	}
	log := l.log.With("socket", t.socket, "remote", r.RemoteAddr)
	dial := net.Dialer{Timeout: time.Second}
	u, err := dial.DialContext(l.closed, "unix", t.socket)
	if err != nil {
		l.unready.Add(1)
		log.Info("carrier connection refused: the tunnel's process does not answer", "error", err)
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
		return
	}
	near := newUnixLink(u.(*net.UnixConn))
	defer near.close()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		log.Debug("carrier connection refused: no WebSocket", "error", err)
		return
	}
	c.proven()
	far := newWSLink(ws, c.burstConn, r.RemoteAddr, ordinary)
	defer far.close()
	ctx, end := context.WithCancelCause(l.closed)
	defer end(nil)
	this := &relayed{end}
	if !l.enter(key, t, this) {
		return
	}
	defer l.leave(t, this)
	l.accepted.Add(1)
	log.Info("carrier connected")
	err = relay(ctx, far, near)
	log.Info("carrier connection ended", "reason", err)
}

// enter makes this the tunnel's connection, in the place of the one before. False when the tunnel, or the listener, is gone by now.
func (l *Listener) enter(key [sha256.Size]byte, t *tunnel, this *relayed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped || l.tunnels[key] != t {
		return false
	}
	if t.lives != nil {
		t.lives.end(errReplaced)
	}
	t.lives = this
	l.relays.Add(1)
	return true
}

func (l *Listener) leave(t *tunnel, this *relayed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.lives == this {
		t.lives = nil
	}
	l.relays.Done()
}

// relay passes messages both ways until one side ends. It queues nothing of its own: a side that takes nothing makes the other wait, whose
// bounded queue then drops.
func relay(ctx context.Context, far *wsLink, near *unixLink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 0, 2048)
		err := near.hello(far.remote())
		for err == nil {
			if buf, err = far.read(buf); err == nil {
				err = near.write(buf, false)
			}
		}
		cancel(err)
	})
	wg.Go(func() {
		buf := make([]byte, 0, 2048)
		var err error
		for err == nil {
			if buf, err = near.read(buf); err != nil {
				err = fmt.Errorf("the tunnel's process closed it: %w", err)
			} else {
				err = far.write(buf, near.pending())
			}
		}
		cancel(err)
	})
	wg.Go(func() { far.watch(ctx, cancel, func(time.Duration) {}) })
	<-ctx.Done()
	near.close()
	far.close()
	wg.Wait()
	return context.Cause(ctx)
}
