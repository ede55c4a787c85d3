package rotation

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Port is the TCP port of the exchange, on the link-local addresses of tunnel devices only.
const Port = 51819

// The bounds of one exchange: one line each way.
const (
	maxLine      = 2 << 10
	exchangeTime = 5 * time.Second
	maxOpen      = 4 // connections per tunnel device
)

// Message is one line of JSON, a question or its answer.
type Message struct {
	// Version of the exchange is 1.
	Version int `json:"version"`
	// Verb of a question.
	Verb string `json:"verb,omitempty"`
	// Generation it is about.
	Generation int `json:"generation,omitempty"`
	// Public is the sender's public key, Preshared the preshared key of a proposal, both base64.
	Public    string `json:"public-key,omitempty"`
	Preshared string `json:"preshared-key,omitempty"`
	// OK and Error are the answer.
	OK    bool   `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
}

// String says what a message is about and keeps its secret.
func (m Message) String() string {
	return fmt.Sprintf("%s generation %d", m.Verb, m.Generation)
}

// Format keeps the secret from every verb of fmt.
func (m Message) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, m.String()) }

// LogValue keeps the secret from logs.
func (m Message) LogValue() slog.Value { return slog.StringValue(m.String()) }

// End is one tunnel device as the exchange sees it: whoever holds the other end's present keys is at Remote, and nobody else.
type End struct {
	Device        string
	Local, Remote netip.Addr
}

// RefusedError is the other end's no.
type RefusedError struct{ Why string }

// Error implements error.
func (e *RefusedError) Error() string { return "the other end refuses: " + e.Why }

// Exchange carries messages between the two ends of tunnels, inside them: TCP between the link-local addresses of a tunnel's device.
type Exchange struct {
	log *slog.Logger
	// answer is called for each question, on goroutines of its own.
	answer func(ctx context.Context, device string, m Message) Message

	mu        sync.Mutex
	listeners map[string]*listener
	wg        sync.WaitGroup
}

type listener struct {
	end   End
	index int
	l     net.Listener
}

// NewExchange makes one; it does nothing before Listen.
func NewExchange(log *slog.Logger, answer func(ctx context.Context, device string, m Message) Message) *Exchange {
	return &Exchange{log: log, answer: answer, listeners: map[string]*listener{}}
}

// Listen takes the whole set of devices to answer on. It returns an error for those that are not ready yet; call again.
func (x *Exchange) Listen(ends []End) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	wanted := map[string]bool{}
	var errs []error
	for _, end := range ends {
		wanted[end.Device] = true
		index, err := ifindex(end.Device)
		if err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", end.Device, err))
			continue
		}
		// A device that was made anew has another index, and the former's socket hears nothing.
		if old := x.listeners[end.Device]; old != nil {
			if old.end == end && old.index == index {
				continue
			}
			old.l.Close()
			delete(x.listeners, end.Device)
		}
		// A link-local address with its scope ties the socket to the device.
		l, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: end.Local.AsSlice(), Zone: strconv.Itoa(index), Port: Port})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		one := &listener{end: end, index: index, l: l}
		x.listeners[end.Device] = one
		x.wg.Go(func() { x.serve(one) })
	}
	for d, l := range x.listeners {
		if !wanted[d] {
			l.l.Close()
			delete(x.listeners, d)
		}
	}
	return errors.Join(errs...)
}

// Close stops answering and waits for answers under way.
func (x *Exchange) Close() {
	_ = x.Listen(nil)
	x.wg.Wait()
}

func (x *Exchange) serve(l *listener) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	open := make(chan struct{}, maxOpen)
	for {
		c, err := l.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // no descriptors: some will be free again
			continue
		}
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		select {
		case open <- struct{}{}:
		default:
			c.Close()
			continue
		}
		if from.Addr().WithZone("") != l.end.Remote {
			c.Close()
			<-open
			continue
		}
		x.wg.Go(func() {
			defer func() { <-open }()
			x.one(ctx, l.end.Device, c)
		})
	}
}

// one answers one connection.
func (x *Exchange) one(ctx context.Context, device string, c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(exchangeTime)); err != nil {
		return
	}
	m, err := read(c)
	if err != nil {
		x.log.Debug("key exchange: a question that is none", "device", device, "err", err)
		_ = write(c, Message{Error: "not understood"})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	_ = write(c, x.answer(ctx, device, m))
}

// Ask puts a question to the other end of a tunnel and returns its answer. A no is a *RefusedError.
func (x *Exchange) Ask(ctx context.Context, end End, m Message) (Message, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	index, err := ifindex(end.Device)
	if err != nil {
		return Message{}, fmt.Errorf("device %s: %w", end.Device, err)
	}
	zone := strconv.Itoa(index)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: end.Local.AsSlice(), Zone: zone}}
	c, err := d.DialContext(ctx, "tcp6", net.JoinHostPort(end.Remote.WithZone(zone).String(), strconv.Itoa(Port)))
	if err != nil {
		return Message{}, fmt.Errorf("other end of %s does not answer: %w", end.Device, err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.SetDeadline(deadline); err != nil {
		return Message{}, err
	}
	if err := write(c, m); err != nil {
		return Message{}, fmt.Errorf("other end of %s: %w", end.Device, err)
	}
	answer, err := read(c)
	if err != nil {
		return Message{}, fmt.Errorf("other end of %s: %w", end.Device, err)
	}
	if !answer.OK {
		return Message{}, &RefusedError{printable(answer.Error)}
	}
	return answer, nil
}

var errLine = errors.New("not one line of JSON of this version")

func read(r io.Reader) (Message, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxLine), maxLine).ReadBytes('\n')
	if err != nil {
		return Message{}, fmt.Errorf("%w: %w", errLine, err)
	}
	var m Message
	if err := json.Unmarshal(bytes.TrimSpace(line), &m); err != nil || m.Version != 1 {
		return Message{}, errLine // not the decoder's words: they may hold a key
	}
	return m, nil
}

func write(w io.Writer, m Message) error {
	m.Version = 1
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// printable is what may be shown of another's words.
func printable(s string) string {
	var out []rune
	for _, r := range s {
		if len(out) == 200 {
			break
		}
		if r < ' ' || r == 0x7f || r > 0x7e && r < 0xa0 {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

// ifindex asks for one device, where net.InterfaceByName lists all.
func ifindex(device string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, err
	}
	return int(int32(r.Uint32())), nil
}
