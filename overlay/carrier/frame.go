package carrier

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"
)

// On the unix socket each message is a frame: its length, two bytes, big endian, never zero; then the message. The first frame, from the
// Listener, is the hello: the TCP address that the connection comes from.

// frameHeader is the size, in bytes, of what goes before a message.
const frameHeader = 2

var errEmptyFrame = errors.New("frame without content on the unix socket: the other end is no part of this program, or of another version")

// readFrame reads one frame and appends what is in it to buf[:0].
func readFrame(r *bufio.Reader, buf []byte) ([]byte, error) {
	header, err := r.Peek(frameHeader)
	if err != nil {
		if len(header) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return buf[:0], err
	}
	n := int(binary.BigEndian.Uint16(header))
	if n == 0 {
		return buf[:0], errEmptyFrame
	}
	_, _ = r.Discard(frameHeader) // what was peeked at is there
	buf = slices.Grow(buf[:0], n)[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return buf[:0], err
	}
	return buf, nil
}

// writeFrame writes one frame, of at most MaxMessage bytes, without flushing it.
func writeFrame(w *bufio.Writer, message []byte) error {
	if len(message) == 0 || len(message) > MaxMessage {
		return fmt.Errorf("message of %d bytes: must be 1–%d", len(message), MaxMessage)
	}
	// Appended to the writer's own room, so that nothing is allocated.
	if w.Available() < frameHeader {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if _, err := w.Write(binary.BigEndian.AppendUint16(w.AvailableBuffer(), uint16(len(message)))); err != nil {
		return err
	}
	_, err := w.Write(message)
	return err
}

// unixLink is a link over the unix socket.
type unixLink struct {
	c    *net.UnixConn
	r    *bufio.Reader
	w    *bufio.Writer
	from string // the hello
}

func newUnixLink(c *net.UnixConn) *unixLink {
	return &unixLink{c: c, r: bufio.NewReaderSize(c, 64<<10), w: bufio.NewWriterSize(c, 64<<10)}
}

// hello sends the first frame.
func (l *unixLink) hello(from string) error {
	l.from = from
	return l.write([]byte(from), false)
}

// readHello waits for the first frame.
func (l *unixLink) readHello() error {
	if err := l.c.SetReadDeadline(time.Now().Add(ordinary.write)); err != nil {
		return err
	}
	b, err := readFrame(l.r, nil)
	if err != nil {
		return fmt.Errorf("carrier socket: hello: %w", err)
	}
	from, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return errors.New("carrier socket: hello is not an address: the other end is no part of this program, or of another version")
	}
	l.from = from.String()
	return l.c.SetReadDeadline(time.Time{})
}

func (l *unixLink) read(buf []byte) ([]byte, error) { return readFrame(l.r, buf) }

// pending says whether a whole frame has come already.
func (l *unixLink) pending() bool {
	if l.r.Buffered() < frameHeader {
		return false
	}
	header, err := l.r.Peek(frameHeader)
	return err == nil && l.r.Buffered() >= frameHeader+int(binary.BigEndian.Uint16(header))
}

func (l *unixLink) write(message []byte, more bool) error {
	if err := l.c.SetWriteDeadline(time.Now().Add(ordinary.write)); err != nil {
		return err
	}
	if err := writeFrame(l.w, message); err != nil || more {
		return err
	}
	return l.w.Flush()
}

// watch has nothing to do: the kernel tells when the other process is gone.
func (l *unixLink) watch(ctx context.Context, _ context.CancelCauseFunc, _ func(time.Duration)) {
	<-ctx.Done()
}

func (l *unixLink) close()         { l.c.Close() }
func (l *unixLink) remote() string { return l.from }
