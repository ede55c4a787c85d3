package carrier

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// DialerConfig says where a Dialer connects to, and whom it trusts.
type DialerConfig struct {
	// URL is wss://HOST[:PORT]/fabric/v1/TOKEN; a reverse proxy may ask for more in front of the path. A secret, as the token is.
	URL string
	// ServerName is the name asked for and verified in TLS; the URL's host when empty.
	ServerName string
	// Pin, when set, is what the far certificate's key must match; see Pin.
	Pin string
	// CAFile holds the authorities, PEM, that the certificate's chain must lead to. With neither Pin nor CAFile: the system's.
	CAFile string
	// Proxy, when set, is the HTTP proxy to CONNECT through: http://HOST[:PORT], without credentials.
	Proxy string
	// ProxyCredentialsFile, mode 0600, holds USER:PASSWORD for the proxy. It is read for every connection.
	ProxyCredentialsFile string
	// Mark is the SO_MARK of the TCP socket until SetMark says otherwise; 0 is none.
	Mark uint32
}

// Dialer is the conn.Bind of a gateway that connects: it keeps one connection to a Listener, and makes it anew when it breaks, after
// 100 ms at first, doubling to 5 s.
type Dialer struct {
	bind
	config      DialerConfig
	host, token string // host with port
	serverName  string
	proxy       string // host with port, or empty
	roots       *x509.CertPool
	markMu      sync.Mutex
	mark        uint32
	tcp         net.Conn // of the connection that lives, for SetMark
	timing      timing
}

// NewDialer checks the configuration. It connects when it is opened.
func NewDialer(config DialerConfig) (*Dialer, error) {
	d := &Dialer{config: config, mark: config.Mark, timing: ordinary}
	// What url.Parse says of a URL that it does not understand has the URL in it.
	u, err := url.Parse(config.URL)
	if err != nil || u.Scheme != "wss" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("carrier URL: must be wss://HOST[:PORT]%sTOKEN", PathPrefix)
	}
	cut := strings.LastIndex(u.Path, PathPrefix)
	if cut < 0 {
		return nil, fmt.Errorf("carrier URL of %s: path must end in %sTOKEN", u.Host, PathPrefix)
	}
	d.token = u.Path[cut+len(PathPrefix):]
	if err := checkToken(d.token); err != nil {
		return nil, fmt.Errorf("carrier URL of %s: %w", u.Host, err)
	}
	d.host = withPort(u, "443")
	if d.serverName = config.ServerName; d.serverName == "" {
		d.serverName = u.Hostname()
	}
	if config.Pin != "" {
		if err := checkPin(config.Pin); err != nil {
			return nil, fmt.Errorf("carrier to %s: %w", d.host, err)
		}
	}
	if d.roots, err = loadRoots(config.CAFile); err != nil {
		return nil, fmt.Errorf("carrier to %s: %w", d.host, err)
	}
	if config.Proxy != "" {
		p, err := url.Parse(config.Proxy)
		if err != nil || p.Scheme != "http" || p.Hostname() == "" || p.User != nil || strings.Trim(p.Path, "/") != "" {
			return nil, fmt.Errorf("carrier to %s: proxy must be http://HOST[:PORT]; credentials belong in a file of mode 0600", d.host)
		}
		d.proxy = withPort(p, "80")
	}
	if _, err := d.proxyCredentials(); err != nil {
		return nil, fmt.Errorf("carrier to %s: %w", d.host, err)
	}
	d.far = &endpoint{Endpoint(d.token)}
	d.prepare = func() (func(context.Context, *opening), error) { return d.keep, nil }
	return d, nil
}

func withPort(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// checkToken says whether a token is long enough to be a secret and plain enough for a path.
func checkToken(token string) error {
	if len(token) < MinToken {
		return fmt.Errorf("token is shorter than %d characters", MinToken)
	}
	for _, c := range []byte(token) {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", rune(c)) {
			return errors.New("token may have letters, digits, - and _ only")
		}
	}
	return nil
}

// SetMark implements conn.Bind: the mark of the connection that lives and of those to come.
func (d *Dialer) SetMark(mark uint32) error {
	d.markMu.Lock()
	defer d.markMu.Unlock()
	d.mark = mark
	if d.tcp == nil {
		return nil
	}
	err := tune(d.tcp, mark)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// keep dials, carries, waits, and does so again.
func (d *Dialer) keep(ctx context.Context, o *opening) {
	wait := minBackOff
	for {
		l, err := d.dial(ctx)
		if err == nil {
			began := time.Now()
			err = d.carry(ctx, o, l)
			if time.Since(began) >= settled {
				wait = minBackOff
			}
		}
		d.ended(err)
		// Between half and one and a half of it: gateways that lost one far end together do not come back together.
		pause := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		wait = min(2*wait, maxBackOff)
	}
}

// dial makes one connection, within timing.dial. The error says which step failed.
func (d *Dialer) dial(ctx context.Context) (l *wsLink, err error) {
	bounded, cancel := context.WithTimeout(ctx, d.timing.dial)
	defer cancel()
	step := "connect"
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			err = ctx.Err()
			return
		}
		if bounded.Err() != nil {
			err = fmt.Errorf("no answer within %s", d.timing.dial)
		}
		err = fmt.Errorf("carrier to %s: %s: %w", d.host, step, err)
	}()

	first := d.host
	if d.proxy != "" {
		first, step = d.proxy, "connect to proxy "+d.proxy
	}
	tcp, err := (&net.Dialer{}).DialContext(bounded, "tcp", first)
	if err != nil {
		return nil, err
	}
	// The context ends each of the steps below by closing the connection under them.
	stop := context.AfterFunc(bounded, func() { tcp.Close() })
	defer func() {
		if !stop() && err == nil {
			err = bounded.Err()
		}
		if err == nil {
			return
		}
		if l != nil {
			l.close() // the context ended at the last moment
		}
		_ = d.setTCP(nil)
		tcp.Close()
	}()
	if err := d.setTCP(tcp); err != nil {
		return nil, fmt.Errorf("socket options: %w", err)
	}
	if d.proxy != "" {
		step = "CONNECT through proxy " + d.proxy
		if err := d.connect(tcp); err != nil {
			return nil, err
		}
	}
	step = "TLS"
	secure := tls.Client(tcp, clientTLS(d.serverName, d.config.Pin, d.roots))
	if err := secure.HandshakeContext(bounded); err != nil {
		return nil, err
	}
	step = "WebSocket"
	c := &burstConn{Conn: secure, tcp: tcp, patience: d.timing.write}
	ws, err := d.upgrade(bounded, c)
	if err != nil {
		return nil, err
	}
	return newWSLink(ws, c, tcp.RemoteAddr().String(), d.timing), nil
}

func (d *Dialer) setTCP(c net.Conn) error {
	d.markMu.Lock()
	defer d.markMu.Unlock()
	d.tcp = c
	if c == nil {
		return nil
	}
	return tune(c, d.mark)
}

// proxyCredentials is USER:PASSWORD, or empty.
func (d *Dialer) proxyCredentials() (string, error) {
	file := d.config.ProxyCredentialsFile
	if file == "" {
		return "", nil
	}
	if _, err := checkSecret(file); err != nil {
		return "", fmt.Errorf("proxy credentials: %w", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("proxy credentials: %w", err)
	}
	s := strings.TrimSpace(string(b))
	if !strings.Contains(s, ":") || strings.ContainsAny(s, "\r\n") {
		return "", fmt.Errorf("proxy credentials: %s must hold one line USER:PASSWORD", file)
	}
	return s, nil
}

// connect asks the proxy for a way to the far end. Not http.Transport's: it dials on in the background after its context ended, and
// cannot tell which step hangs.
func (d *Dialer) connect(tcp net.Conn) error {
	credentials, err := d.proxyCredentials()
	if err != nil {
		return err
	}
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: d.host}, Host: d.host, Header: http.Header{}}
	if credentials != "" {
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(credentials)))
	}
	if err := request.Write(tcp); err != nil {
		return err
	}
	// Bounded: the answer to a CONNECT has a head and, on success, nothing else until we speak.
	r := bufio.NewReaderSize(&limited{tcp, 16 << 10}, 4096)
	answer, err := http.ReadResponse(r, request)
	if err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusProxyAuthRequired && credentials == "":
		return errors.New("it says 407 and wants credentials: none are configured")
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("it says 407 and refuses the credentials in %s (basic authentication)", d.config.ProxyCredentialsFile)
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("it says %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	case r.Buffered() > 0:
		return errors.New("it sent something before TLS began: it is no plain CONNECT proxy")
	}
	return nil
}

// limited is an io.LimitedReader that fails instead of ending.
type limited struct {
	c    net.Conn
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("head of the answer is too long")
	}
	n, err := l.c.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// upgrade makes a WebSocket of the TLS connection.
func (d *Dialer) upgrade(ctx context.Context, c *burstConn) (*websocket.Conn, error) {
	used := false
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, errors.New("the one connection was used up")
			}
			used = true
			return c, nil
		},
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	// The library puts the URL, and so the token, into its errors: of an error only the innermost part is used.
	ws, answer, err := websocket.Dial(ctx, d.config.URL, &websocket.DialOptions{HTTPClient: client, CompressionMode: websocket.CompressionDisabled})
	if err == nil {
		return ws, nil
	}
	if answer != nil {
		switch answer.StatusCode {
		case http.StatusSwitchingProtocols:
			return nil, errors.New("it says 101, but the rest of the answer is not a WebSocket server's")
		case http.StatusNotFound:
			return nil, errors.New("it says 404: the far gateway has no tunnel with this token, or it is another server")
		case http.StatusServiceUnavailable:
			return nil, errors.New("it says 503: the far gateway's process of this tunnel does not run")
		}
		return nil, fmt.Errorf("it says %d %s, want 101: it is no fabric gateway, or something between takes WebSockets away",
			answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return nil, errors.New(strings.ReplaceAll(err.Error(), d.token, "…"))
}
