// Package packets tells what a network loses, delays and moves: ends send numbered UDP packets to each other at a steady pace, and note what comes in,
// when and on which device.
package packets

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Port is the UDP port of all ends.
	Port = 7000
	// size is the payload: flow, then sequence number.
	size = 64
)

// Query asks a probe for what it received since the mark.
type Query struct {
	// Mark: what was received so far is of no interest any more.
	Mark bool
	// Device and Since ask for the arrivals on the device of that index (0 for any) from that time on (nanoseconds of the Unix epoch).
	Device int
	Since  int64
}

// Report is what a probe received since the mark.
type Report struct {
	// Flows, Received packets of them, and Lost ones: numbers between the first and the last received that are missing.
	Flows, Received, Lost int
	// GapMs is the longest time without a packet of one flow.
	GapMs float64
	// Arrived is the number of flows with a packet on Device from Since on; LastMs is how long after Since the last of them had its first.
	Arrived int
	LastMs  float64
	// Elsewhere is the number of packets from Since on that came over another device, ElsewhereMs how long after Since the last did.
	Elsewhere   int
	ElsewhereMs float64
	// SenderLateMs is how late the probe itself was with sending, at most: on a busy machine a gap may be its own.
	SenderLateMs float64
}

// flow is where the packets of a sender to one of its addresses come from and go to.
type flow struct {
	from netip.Addr
	id   uint32
}

// arrival is one packet received.
type arrival struct {
	flow, device int32
	sequence     uint64
	at           int64 // nanoseconds of the Unix epoch, from the kernel
}

// End sends numbered packets to some addresses and notes what it receives from other ends. Its methods may be called from anywhere.
type End struct {
	socket *net.UDPConn
	halt   chan struct{} // closed by Halt
	work   sync.WaitGroup
	halted sync.Once

	mu      sync.Mutex
	sent    []uint64 // the last number to each address
	numbers map[flow]int32
	log     []arrival
	// last is the last arrival of each flow before the mark: a gap may begin there, and what is missing is counted from there.
	last []arrival
	late time.Duration
}

// Listen opens an end at an address, for that family alone, in the network namespace of the calling thread.
func Listen(local netip.Addr) (*End, error) {
	family := "udp4"
	if local.Is6() {
		family = "udp6"
	}
	socket, err := net.ListenUDP(family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, Port)))
	if err != nil {
		return nil, err
	}
	if err := options(socket, local.Is6()); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	e := &End{socket: socket, halt: make(chan struct{}), numbers: map[flow]int32{}}
	e.work.Go(e.receive)
	return e, nil
}

// Send sends to each of some addresses in turn, a packet every interval, until Halt. The place of an address is its flow's id.
// What is due after a pause that the process did not want is sent at once, but for what is older than debt, unless that is 0: no packet, and no number, is
// made up for that. A busy machine makes long pauses, and a burst after one would overflow queues that the packets sent in time would not.
func (e *End) Send(interval, debt time.Duration, to ...netip.Addr) {
	e.sent = make([]uint64, len(to))
	e.work.Go(func() { e.send(interval, debt, to) })
}

// Sent is the number of packets sent to each address so far, which is the number of the last one.
func (e *End) Sent() []uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]uint64(nil), e.sent...)
}

// Missing counts the packets of a flow from number first to last that were not received since the mark.
func (e *End) Missing(from netip.Addr, id int, first, last uint64) int {
	if last < first {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n, ok := e.numbers[flow{from, uint32(id)}]
	got, missing := make([]bool, last-first+1), int(last-first+1)
	for _, v := range e.log {
		if ok && v.flow == n && v.sequence >= first && v.sequence <= last && !got[v.sequence-first] {
			got[v.sequence-first] = true
			missing--
		}
	}
	return missing
}

// Late is how late the end was with sending, at most, since the mark or the last call: on a busy machine what is missing may be the machine's fault.
func (e *End) Late() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	late := e.late
	e.late = 0
	return late
}

// Halt stops sending; the end still receives.
func (e *End) Halt() { e.halted.Do(func() { close(e.halt) }) }

// Close ends it.
func (e *End) Close() error {
	e.Halt()
	err := e.socket.Close()
	e.work.Wait()
	return err
}

func (e *End) add(from netip.Addr, id uint32, v arrival) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, ok := e.numbers[flow{from, id}]
	if !ok {
		n = int32(len(e.numbers))
		e.numbers[flow{from, id}] = n
	}
	v.flow = n
	e.log = append(e.log, v)
}

// Answer marks or reports.
func (e *End) Answer(q Query) Report {
	e.mu.Lock()
	defer e.mu.Unlock()
	if q.Mark {
		latest := make([]arrival, len(e.numbers))
		copy(latest, e.last)
		for _, v := range e.log {
			if v.sequence >= latest[v.flow].sequence {
				latest[v.flow] = v
			}
		}
		e.last, e.log, e.late = latest, nil, 0
		return Report{}
	}
	r := summarise(e.last, e.log, len(e.numbers), q, time.Now().UnixNano())
	r.SenderLateMs = milliseconds(e.late)
	return r
}

// summarise reckons the report on what came after the last arrivals of flows that were known before, up to now.
func summarise(last, log []arrival, flows int, q Query, now int64) Report {
	r := Report{Flows: flows}
	type state struct {
		before, highest uint64 // sequence numbers
		at, moved       int64
		seen            int
		known           bool
	}
	states := make([]state, flows)
	for i, v := range last {
		if v.sequence > 0 {
			states[i] = state{before: v.sequence, highest: v.sequence, at: v.at, known: true}
		}
	}
	for _, v := range log {
		s := &states[v.flow]
		if !s.known {
			s.before, s.highest, s.known = v.sequence-1, v.sequence, true
		} else {
			r.GapMs = max(r.GapMs, float64(v.at-s.at)/1e6)
		}
		s.at = max(s.at, v.at)
		if v.sequence > s.before { // else it overtook the mark
			s.seen++
			s.highest = max(s.highest, v.sequence)
		}
		r.Received++
		switch {
		case v.at < q.Since:
		case q.Device != 0 && int(v.device) != q.Device:
			r.Elsewhere++
			r.ElsewhereMs = max(r.ElsewhereMs, float64(v.at-q.Since)/1e6)
		case s.moved == 0:
			s.moved = v.at
		}
	}
	for _, s := range states {
		r.Lost += int(s.highest-s.before) - s.seen
		r.GapMs = max(r.GapMs, float64(now-s.at)/1e6) // what has not ended yet counts
		if s.moved != 0 {
			r.Arrived++
			r.LastMs = max(r.LastMs, float64(s.moved-q.Since)/1e6)
		}
	}
	return r
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Serve is an end as a process of its own: it answers queries, JSON objects from in, with reports to out, until in ends. The error is flag.ErrHelp
// for arguments that are none:
//
//	-local ADDRESS -to ADDRESS,... -pps PACKETS
func Serve(args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("packets", flag.ContinueOnError)
	local := fs.String("local", "0.0.0.0", "address to send from and receive at")
	to := fs.String("to", "", "addresses to send to, with commas")
	pps := fs.Int("pps", 1000, "packets per second")
	if err := fs.Parse(args); err != nil || *pps < 1 {
		return flag.ErrHelp
	}
	addr, err := netip.ParseAddr(*local)
	if err != nil {
		return err
	}
	var targets []netip.Addr
	for _, word := range strings.FieldsFunc(*to, func(r rune) bool { return r == ',' }) {
		a, err := netip.ParseAddr(word)
		if err != nil {
			return err
		}
		targets = append(targets, a)
	}
	e, err := Listen(addr)
	if err != nil {
		return fmt.Errorf("listen at %s: %w", addr, err)
	}
	defer func() { _ = e.Close() }()
	if len(targets) > 0 {
		e.Send(time.Second/time.Duration(*pps), 0, targets...)
	}
	queries, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q Query
		if err := queries.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(e.Answer(q)); err != nil {
			return err
		}
	}
}

// options has the kernel tell when and where a packet came in: on a busy machine the process hears of it later.
func options(socket *net.UDPConn, v6 bool) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	level, info := unix.IPPROTO_IP, unix.IP_PKTINFO
	if v6 {
		level, info = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), level, info, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	})
	return errors.Join(err, failed)
}

func (e *End) receive() {
	payload, control := make([]byte, size), make([]byte, 256)
	for {
		n, c, _, from, err := e.socket.ReadMsgUDPAddrPort(payload, control)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n < 12: // an ICMP error that a packet of ours has met
			continue
		}
		at, device := controlOf(control[:c])
		e.add(from.Addr().Unmap(), binary.BigEndian.Uint32(payload), arrival{device: device, sequence: binary.BigEndian.Uint64(payload[4:]), at: at})
	}
}

// controlOf reads time and device from a packet's control messages.
func controlOf(control []byte) (at int64, device int32) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Now().UnixNano(), 0
	}
	at = time.Now().UnixNano()
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Nano()
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 4:
			device = int32(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 20: // behind the address
			device = int32(binary.NativeEndian.Uint32(m.Data[16:]))
		}
	}
	return at, device
}

func (e *End) send(interval, debt time.Duration, to []netip.Addr) {
	payload := make([]byte, size)
	next := time.Now()
	for n := uint64(0); ; n++ {
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		} else if -wait > time.Millisecond {
			e.mu.Lock()
			e.late = max(e.late, -wait)
			e.mu.Unlock()
			if debt > 0 && -wait > debt {
				next = time.Now().Add(-debt)
			}
		}
		next = next.Add(interval)
		select {
		case <-e.halt:
			return
		default:
		}
		i, number := n%uint64(len(to)), n/uint64(len(to))+1
		binary.BigEndian.PutUint32(payload, uint32(i))
		binary.BigEndian.PutUint64(payload[4:], number)
		if _, err := e.socket.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to[i], Port)); errors.Is(err, net.ErrClosed) {
			return
		}
		e.mu.Lock()
		e.sent[i] = number
		e.mu.Unlock()
	}
}
