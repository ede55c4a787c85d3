package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// batchMessages and batchBytes bound what one sendmsg carries: enough that system calls no longer count, little enough that
// others who wait for RTNL (a failover) get in between.
const (
	batchMessages = 128
	batchBytes    = 32 << 10
	// receiveBuffer of a socket: one error message per failed request of a batch fits many times over.
	receiveBuffer = 8 << 20
	// dumpTries is how often an interrupted dump is begun again.
	dumpTries = 20
)

// conn is one rtnetlink socket. A request and its answers are one turn under mu.
type conn struct {
	mu   sync.Mutex
	fd   int
	port uint32
	seq  uint32
	// requests counts the messages sent.
	requests uint64
	out      message
	in       []byte
}

// dial opens a socket in the namespace of the calling thread.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	c := &conn{fd: fd, in: make([]byte, 64<<10)}
	if err := c.configure(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (c *conn) configure() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind rtnetlink socket: %w", err)
	}
	name, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("name of rtnetlink socket: %w", err)
	}
	if sa, ok := name.(*unix.SockaddrNetlink); ok {
		c.port = sa.Pid
	}
	for _, o := range []struct {
		opt  int
		name string
	}{
		{unix.NETLINK_EXT_ACK, "NETLINK_EXT_ACK"},
		{unix.NETLINK_CAP_ACK, "NETLINK_CAP_ACK"},
		{unix.NETLINK_GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK"},
	} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, o.opt, 1); err != nil {
			return fmt.Errorf("rtnetlink socket option %s (Linux 5.0 or newer is needed): %w", o.name, err)
		}
	}
	growReceiveBuffer(c.fd, receiveBuffer)
	// The kernel answers within the call; the limit only keeps a bug from hanging the daemon.
	tv := unix.Timeval{Sec: 30}
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// growReceiveBuffer is best effort: without CAP_NET_ADMIN the limit net.core.rmem_max applies.
func growReceiveBuffer(fd, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}

func (c *conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return unix.Close(c.fd)
}

// opError is the kernel's answer to one request.
type opError struct {
	errno unix.Errno
	// text is the extended acknowledgement, often the only hint at the cause.
	text string
}

func (e *opError) Error() string {
	s := e.errno.Error()
	if e.text != "" {
		s += " (" + e.text + ")"
	}
	if e.errno == unix.EPERM || e.errno == unix.EACCES {
		s += "; the process needs CAP_NET_ADMIN in this network namespace"
	}
	return s
}

func (e *opError) Unwrap() error { return e.errno }

func (e *opError) Is(target error) bool { return e.errno.Is(target) }

// explain adds the capability to a permission error that came from a library.
func explain(err error) error {
	var op *opError
	if err == nil || errors.As(err, &op) || !errors.Is(err, os.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w; the process needs CAP_NET_ADMIN in this network namespace", err)
}

// errLost says that answers were lost; what the requests did is unknown until the next dump.
var errLost = errors.New("netlink answers were lost (receive buffer full): outcome unknown")

// batch sends n requests, encoded one after the other, and returns one result each. An error of encode is that request's
// result and sends nothing. Between chunks it looks at ctx.
func (c *conn) batch(ctx context.Context, n int, encode func(i int, m *message) error) []error {
	errs := make([]error, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := 0; i < n; {
		if err := ctx.Err(); err != nil {
			for ; i < n; i++ {
				errs[i] = err
			}
			return errs
		}
		i = c.chunk(i, errs, encode)
	}
	return errs
}

// chunk sends requests from the i-th on in one sendmsg and returns the index of the first not sent.
func (c *conn) chunk(i int, errs []error, encode func(i int, m *message) error) int {
	m := &c.out
	m.buf = m.buf[:0]
	index := make(map[uint32]int, batchMessages)
	last := -1
	for ; i < len(errs) && len(index) < batchMessages && len(m.buf) < batchBytes; i++ {
		mark := len(m.buf)
		if err := encode(i, m); err != nil {
			m.buf = m.buf[:mark]
			errs[i] = err
			continue
		}
		c.seq++
		m.end(c.seq)
		index[c.seq] = i
		last = mark
	}
	if last < 0 {
		return i
	}
	m.ack(last)
	fail := func(err error) {
		for _, j := range index {
			if errs[j] == nil {
				errs[j] = err
			}
		}
	}
	c.requests += uint64(len(index))
	if err := c.send(m.buf); err != nil {
		fail(err)
		return i
	}
	final := c.seq
	for {
		msgs, err := c.receive()
		if err != nil {
			fail(err)
			return i
		}
		done := false
		err = parse(msgs, func(h header, body []byte) error {
			if h.typ != unix.NLMSG_ERROR {
				return nil
			}
			j, ours := index[h.seq]
			if !ours {
				return nil // the tail of an earlier turn that was given up
			}
			if e := answer(h, body); e != nil {
				errs[j] = e
			}
			done = done || h.seq == final
			return nil
		})
		if err != nil {
			fail(err)
			return i
		}
		if done {
			return i
		}
	}
}

// do sends one request and waits for its acknowledgement.
func (c *conn) do(encode func(m *message)) error {
	return c.batch(context.Background(), 1, func(_ int, m *message) error {
		encode(m)
		return nil
	})[0]
}

// get sends one request that is answered by one object, as RTM_GETNEXTHOP with an id is.
func (c *conn) get(encode func(m *message), fn func(typ uint16, body []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.buf = c.out.buf[:0]
	encode(&c.out)
	c.seq++
	c.requests++
	c.out.end(c.seq)
	if err := c.send(c.out.buf); err != nil {
		return err
	}
	for {
		msgs, err := c.receive()
		if err != nil {
			return err
		}
		done := false
		err = parse(msgs, func(h header, body []byte) error {
			if h.seq != c.seq {
				return nil
			}
			done = true
			if h.typ == unix.NLMSG_ERROR {
				return answer(h, body)
			}
			fn(h.typ, body)
			return nil
		})
		if done || err != nil {
			return err
		}
	}
}

// errInterrupted says that a dump ran into a change each time it was tried.
var errInterrupted = errors.New("the kernel's tables changed under every dump; will look again")

// dump sends a dump request and calls fn with a fresh collection for each try: reset comes before every try, since an
// interrupted dump (NLM_F_DUMP_INTR) may lack objects or have them twice.
func (c *conn) dump(ctx context.Context, encode func(m *message), reset func(), fn func(typ uint16, body []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		reset()
		interrupted, err := c.dumpOnce(encode, fn)
		if err != nil || !interrupted {
			return err
		}
	}
	return errInterrupted
}

func (c *conn) dumpOnce(encode func(m *message), fn func(typ uint16, body []byte)) (interrupted bool, err error) {
	c.out.buf = c.out.buf[:0]
	encode(&c.out)
	c.seq++
	c.requests++
	c.out.end(c.seq)
	if err := c.send(c.out.buf); err != nil {
		return false, err
	}
	for {
		msgs, err := c.receive()
		if err != nil {
			return false, err
		}
		done := false
		err = parse(msgs, func(h header, body []byte) error {
			if h.seq != c.seq {
				return nil
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.typ {
			case unix.NLMSG_DONE:
				done = true
				if len(body) >= 4 && int32(native.Uint32(body)) != 0 {
					return answer(h, body)
				}
			case unix.NLMSG_ERROR:
				done = true
				return answer(h, body)
			default:
				fn(h.typ, body)
			}
			return nil
		})
		if done || err != nil {
			return interrupted, err
		}
	}
}

func (c *conn) send(b []byte) error {
	for {
		_, err := unix.Write(c.fd, b) // an rtnetlink socket that is not connected writes to the kernel
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send to rtnetlink: %w", err)
		}
		return nil
	}
}

func (c *conn) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, 0)
		switch err {
		case nil:
			return c.in[:n], nil
		case unix.EINTR:
		case unix.ENOBUFS:
			c.drain()
			return nil, errLost
		case unix.EAGAIN:
			return nil, errors.New("rtnetlink did not answer within 30 s")
		default:
			return nil, fmt.Errorf("receive from rtnetlink: %w", err)
		}
	}
}

// drain empties the receive buffer. Only an empty one ends the kernel's congested state, in which it drops answers without
// another ENOBUFS, and the next turn would wait for them.
func (c *conn) drain() {
	for {
		if _, _, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT); err != nil && err != unix.EINTR {
			return
		}
	}
}

// header is the part of a netlink header that readers need.
type header struct {
	typ, flags uint16
	seq, port  uint32
}

// parse calls fn for each message in b until it returns an error.
func parse(b []byte, fn func(h header, body []byte) error) error {
	for len(b) >= headerLen {
		n := int(native.Uint32(b))
		if n < headerLen || n > len(b) {
			return fmt.Errorf("rtnetlink sent a message of %d bytes in a datagram of %d", n, len(b))
		}
		h := header{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:]), native.Uint32(b[12:])}
		if err := fn(h, b[headerLen:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// answer reads an NLMSG_ERROR or NLMSG_DONE body; nil for an acknowledgement.
func answer(h header, body []byte) error {
	if len(body) < 4 {
		return errors.New("rtnetlink sent a short error message")
	}
	code := int32(native.Uint32(body))
	if code == 0 {
		return nil
	}
	e := &opError{errno: unix.Errno(-code)}
	if h.flags&unix.NLM_F_ACK_TLVS != 0 {
		rest := body[4:]
		if h.typ == unix.NLMSG_ERROR {
			rest = rest[min(headerLen, len(rest)):] // with NETLINK_CAP_ACK only the request's header comes back
		}
		attrs(rest, func(typ uint16, data []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = cstring(data)
			}
		})
	}
	return e
}
