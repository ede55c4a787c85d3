package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// burstBytes is how much of a burst goes into one TLS record: the largest there is.
const burstBytes = 16 << 10

// burstConn is the TLS connection below a WebSocket. It puts a burst of messages into few records and system calls, gives every write a
// deadline, and closes at once, without the goodbye that a stalled peer would hold up.
type burstConn struct {
	net.Conn          // TLS
	tcp      net.Conn // below it
	patience time.Duration

	mu    sync.Mutex
	held  bool
	hasty bool // close without goodbye
	buf   []byte
}

// Write keeps p back during a burst.
func (c *burstConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return c.put(p)
	}
	c.buf = append(c.buf, p...)
	for len(c.buf) >= burstBytes {
		if _, err := c.put(c.buf[:burstBytes]); err != nil {
			return 0, err
		}
		c.buf = c.buf[:copy(c.buf, c.buf[burstBytes:])]
	}
	return len(p), nil
}

func (c *burstConn) put(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// hold begins a burst.
func (c *burstConn) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

// release ends it and sends what was kept back.
func (c *burstConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.put(c.buf)
	c.buf = c.buf[:0]
	return err
}

func (c *burstConn) hurry() {
	c.mu.Lock()
	c.hasty = true
	c.mu.Unlock()
}

// Close implements net.Conn. It does not wait for a write that hangs.
func (c *burstConn) Close() error {
	if c.mu.TryLock() {
		hasty := c.hasty
		c.mu.Unlock()
		if !hasty {
			return c.Conn.Close()
		}
	}
	return c.tcp.Close()
}

// wsLink is a link over a WebSocket.
type wsLink struct {
	ws   *websocket.Conn
	conn *burstConn
	from string
	timing
	// heard is when a message or the answer to a ping came last, in nanoseconds since born.
	heard   atomic.Int64
	born    time.Time
	holding bool
}

func newWSLink(ws *websocket.Conn, c *burstConn, remote string, t timing) *wsLink {
	c.hurry()
	ws.SetReadLimit(MaxMessage)
	return &wsLink{ws: ws, conn: c, from: remote, timing: t, born: time.Now()}
}

func (l *wsLink) hear() { l.heard.Store(int64(time.Since(l.born))) }

func (l *wsLink) read(buf []byte) ([]byte, error) {
	for {
		// No context: close ends it.
		kind, r, err := l.ws.Reader(context.Background())
		if err != nil {
			return buf[:0], farError(err)
		}
		if kind != websocket.MessageBinary {
			return buf[:0], errors.New("the far end sent a text message: it is no fabric gateway")
		}
		buf = buf[:0]
		for err == nil {
			if len(buf) == cap(buf) {
				buf = slices.Grow(buf, 2048)
			}
			var n int
			n, err = r.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
		}
		if len(buf) > MaxMessage {
			return buf[:0], fmt.Errorf("the far end sent a message of more than %d bytes: it is no fabric gateway", MaxMessage)
		}
		if err != io.EOF {
			return buf[:0], farError(err)
		}
		l.hear()
		if len(buf) > 0 {
			return buf, nil
		}
	}
}

// farError puts what the library says of an ended connection into words.
func farError(err error) error {
	var closed websocket.CloseError
	switch {
	case errors.As(err, &closed):
		return fmt.Errorf("the far end closed the connection: %s %q", closed.Code, closed.Reason)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was cut")
	}
	return fmt.Errorf("connection lost: %w", err)
}

func (l *wsLink) write(message []byte, more bool) error {
	if more && !l.holding {
		l.conn.hold()
		l.holding = true
	}
	err := l.ws.Write(context.Background(), websocket.MessageBinary, message)
	if l.holding && (!more || err != nil) {
		l.holding = false
		err = errors.Join(err, l.conn.release())
	}
	if err != nil {
		return fmt.Errorf("connection lost while sending: %w", err)
	}
	return nil
}

// watch pings, which also keeps NATs and proxies from forgetting an idle connection.
func (l *wsLink) watch(ctx context.Context, end context.CancelCauseFunc, rtt func(time.Duration)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			sent := time.Now()
			// Waits for the pong as long as it takes: a ping behind a full window is late, not lost, while messages come.
			if l.ws.Ping(ctx) != nil {
				return // the reader says why
			}
			l.hear()
			rtt(time.Since(sent))
			select {
			case <-ctx.Done():
				return
			case <-time.After(l.ping):
			}
		}
	})
	look := time.NewTicker(l.silence / 10)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if time.Since(l.born)-time.Duration(l.heard.Load()) > l.ping+l.silence {
				end(fmt.Errorf("the far end is silent: no answer to pings for %s", l.silence))
				return
			}
		}
	}
}

func (l *wsLink) close()         { _ = l.ws.CloseNow() }
func (l *wsLink) remote() string { return l.from }

// tune sets what a TCP connection of a tunnel needs: no delay, little unsent in the kernel, and the mark, 0 for none.
func tune(c net.Conn, mark uint32) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentBytes),
			setMark(fd, mark))
	})
	return errors.Join(err, failed)
}

// setMark sets SO_MARK; 0 leaves it alone.
func setMark(fd uintptr, mark uint32) error {
	if mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("mark %d (needs CAP_NET_ADMIN): %w", mark, err)
	}
	return nil
}
