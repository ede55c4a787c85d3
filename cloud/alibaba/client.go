package alibaba

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	aliecs "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"

	"fabric/cloud"
)

// making guards the SDK's constructors, which write a map of the package.
var making sync.Mutex

// client makes calls, one at a time.
type client struct {
	region  string
	creds   *credentials
	timing  Timing
	log     *slog.Logger
	carrier *carrier

	mu  sync.Mutex // held by the call that runs
	vpc *alivpc.Client
	ecs *aliecs.Client

	note   sync.Mutex
	denied map[string]time.Time     // action (and table) -> until when it is not tried again
	pace   map[string]time.Duration // action -> the shortest time between calls that throttling taught
	lastAt map[string]time.Time
}

func newClient(region string, w cloud.Wish, creds *credentials, timing Timing, log *slog.Logger) (*client, error) {
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConns:        4,
		IdleConnTimeout:     90 * time.Second,
	}
	if w.CAFile != "" {
		pem, err := os.ReadFile(w.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca-file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca-file %s holds no PEM certificate", w.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	c := &client{
		region: region, creds: creds, timing: timing, log: log, carrier: &carrier{base: transport},
		denied: map[string]time.Time{}, pace: map[string]time.Duration{}, lastAt: map[string]time.Time{},
	}
	cfg := sdk.NewConfig().WithScheme("HTTPS").WithTimeout(timing.Call) // the SDK's default is plain HTTP
	cfg.Transport = c.carrier
	making.Lock()
	defer making.Unlock()
	var err error
	if c.vpc, err = alivpc.NewClientWithOptions(region, cfg, creds); err == nil {
		c.ecs, err = aliecs.NewClientWithOptions(region, cfg, creds)
	}
	if err != nil {
		return nil, fmt.Errorf("region %s: %w", region, err)
	}
	if w.Endpoint != "" {
		c.vpc.Domain, c.ecs.Domain = w.Endpoint, w.Endpoint
	}
	return c, nil
}

func (c *client) close() { c.carrier.base.CloseIdleConnections() }

// carrier takes requests of the SDK to the network, under the context of the call that runs. The SDK puts all parameters
// of a POST into its URL, keys and signature among them; the API takes them from a form as well, where no proxy logs
// them, and where a batch of fifty entries is not too long.
type carrier struct {
	base *http.Transport
	ctx  context.Context // guarded by client.mu
}

// RoundTrip implements http.RoundTripper.
func (t *carrier) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(t.ctx)
	if r.Method == http.MethodPost && r.ContentLength <= 0 && r.URL.RawQuery != "" {
		form := []byte(r.URL.RawQuery)
		out.URL.RawQuery = ""
		out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(form)), int64(len(form))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(form)), nil }
		out.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		out.Header.Del("Content-Length")
	}
	return t.base.RoundTrip(out)
}

// once makes one call. fn sends it and returns the answer's RequestId.
func (c *client) once(ctx context.Context, action string, fn func() (requestID string, err error)) error {
	if err := c.waitPace(ctx, action); err != nil {
		return &Error{Action: action, Message: "not sent: " + err.Error(), cause: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.timing.Call)
	defer cancel()
	c.carrier.ctx = ctx
	id, err := c.send(action, fn)
	if err == nil && id == "" {
		// An empty page, a "{}" or a "null" from something in between would else be a table without entries.
		err = &Error{Action: action, Message: "the answer is not from the API: it has no request id, or not what was asked for"}
	}
	if e, ok := err.(*Error); ok {
		c.learn(action, e)
	} else {
		c.learn(action, nil)
	}
	return err
}

// whole returns the request id of an answer that holds a list, and "" where it does not: that is none of the API's, and
// must not be read as an empty list.
func whole(out interface{ GetHttpContentString() string }, id, list string) string {
	if !strings.Contains(out.GetHttpContentString(), `"`+list+`"`) {
		return ""
	}
	return id
}

func (c *client) send(action string, fn func() (string, error)) (id string, err error) {
	defer func() {
		// The SDK asserts types of what it decoded, and panics on an answer that is not as it expects.
		if r := recover(); r != nil {
			err = &Error{Action: action, Message: "the answer is not from the API: the SDK cannot read it"}
		}
	}()
	id, err = fn()
	return id, c.convert(action, err)
}

// learn paces an action that was throttled: twice as slow each time, and slowly faster again.
func (c *client) learn(action string, e *Error) {
	c.note.Lock()
	defer c.note.Unlock()
	c.lastAt[action] = time.Now()
	switch {
	case e != nil && e.kind() == throttled:
		c.pace[action] = min(max(2*c.pace[action], c.timing.BackoffMin), c.timing.BackoffMax)
	case c.pace[action] < c.timing.BackoffMin/16:
		delete(c.pace, action)
	default:
		c.pace[action] -= c.pace[action] / 8
	}
}

func (c *client) waitPace(ctx context.Context, action string) error {
	c.note.Lock()
	wait := c.pace[action] - time.Since(c.lastAt[action])
	c.note.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	return sleep(ctx, wait)
}

// do makes a call that changes nothing, again and again while that may help.
func (c *client) do(ctx context.Context, action string, fn func() (string, error)) error {
	b := c.newBackoff()
	for {
		err := c.once(ctx, action, fn)
		if err == nil || !b.again(ctx, err, c) {
			return err
		}
	}
}

// backoff waits between tries of one call.
type backoff struct {
	timing  Timing
	wait    time.Duration
	until   time.Time
	renewed bool
}

func (c *client) newBackoff() *backoff {
	return &backoff{timing: c.timing, wait: c.timing.BackoffMin, until: time.Now().Add(c.timing.Patience)}
}

// again says whether a failed call is worth another try, and waits before it, with full jitter.
func (b *backoff) again(ctx context.Context, err error, c *client) bool {
	switch kindOf(err) {
	case busy, throttled, unclear:
	case badKey:
		if b.renewed {
			return false
		}
		b.renewed = true
		c.creds.renew()
		return ctx.Err() == nil
	default:
		return false
	}
	if ctx.Err() != nil || time.Now().After(b.until) {
		return false
	}
	d := time.Duration(rand.Int64N(int64(b.wait))) + time.Millisecond
	b.wait = min(2*b.wait, b.timing.BackoffMax)
	return sleep(ctx, d) == nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// forbid remembers that our role may not do something, and tells it once.
func (c *client) forbid(what, instead string) {
	c.note.Lock()
	_, told := c.denied[what]
	c.denied[what] = time.Now().Add(c.timing.Remember)
	c.note.Unlock()
	if !told {
		c.log.Info("the role may not make a call that would help", "action", "vpc:"+strings.ReplaceAll(what, " ", " on "), "instead", instead)
	}
}

// may says whether something is worth a try.
func (c *client) may(what string) bool {
	c.note.Lock()
	defer c.note.Unlock()
	return time.Now().After(c.denied[what])
}
