package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probeCommand is the hidden command that sends and receives numbered packets as a process of its own.
const probeCommand = "probe-end"

const (
	// probePort is the UDP port of all probes.
	probePort = 7000
	// probeSize is the payload: flow, then sequence number.
	probeSize = 64
)

// probe is an end of flows of numbered packets, in a process of its own in a node: it sends to some addresses and notes what it
// receives from other probes.
type probe struct {
	*process
	in      io.Writer
	answers *json.Decoder
	name    string
}

// probeQuery asks a probe for what it received since the mark.
type probeQuery struct {
	// Mark: what was received so far is of no interest any more.
	Mark bool
	// Device and Since ask for the arrivals on the device of that index (0 for any) from that time on (nanoseconds of the Unix epoch).
	Device int
	Since  int64
}

// probeReport is what a probe received since the mark.
type probeReport struct {
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

// startProbe starts a probe in a node that sends that many packets per second, all in all, to each of some addresses in turn.
func startProbe(n *node, local netip.Addr, perSecond int, to ...netip.Addr) (*probe, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = inRead.Close() }()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		_ = inWrite.Close()
		return nil, err
	}
	defer func() { _ = outWrite.Close() }()
	words := make([]string, len(to))
	for i, a := range to {
		words[i] = a.String()
	}
	p, err := n.startWith(probeCommand, inRead, outWrite,
		self, probeCommand, "-local", local.String(), "-to", strings.Join(words, ","), "-pps", fmt.Sprint(perSecond))
	if err != nil {
		_, _ = inWrite.Close(), outRead.Close()
		return nil, err
	}
	return &probe{process: p, in: inWrite, answers: json.NewDecoder(outRead), name: n.name}, nil
}

func (p *probe) ask(q probeQuery) (r probeReport, err error) {
	if err = json.NewEncoder(p.in).Encode(q); err == nil {
		err = p.answers.Decode(&r)
	}
	if err != nil {
		return r, fmt.Errorf("probe in %s: %w: %s", p.name, err, p.lastWords())
	}
	return r, nil
}

// mark starts counting anew.
func (p *probe) mark() error { _, err := p.ask(probeQuery{Mark: true}); return err }

// report is what was received since the mark.
func (p *probe) report() (probeReport, error) { return p.ask(probeQuery{}) }

// markAll and reportAll are for several probes; the latter adds up what was lost and takes the longest gap.
func markAll(probes ...*probe) error {
	for _, p := range probes {
		if err := p.mark(); err != nil {
			return err
		}
	}
	return nil
}

func reportAll(probes ...*probe) (all probeReport, err error) {
	for _, p := range probes {
		r, err := p.report()
		if err != nil {
			return all, err
		}
		all.Flows += r.Flows
		all.Received += r.Received
		all.Lost += r.Lost
		all.GapMs = max(all.GapMs, r.GapMs)
		all.SenderLateMs = max(all.SenderLateMs, r.SenderLateMs)
	}
	return all, nil
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

// arrivals are what a probe received since the mark.
type arrivals struct {
	mu      sync.Mutex
	numbers map[flow]int32
	log     []arrival
	// last is the last arrival of each flow before the mark: a gap may begin there, and what is missing is counted from there.
	last []arrival
	late time.Duration
}

func (a *arrivals) add(from netip.Addr, id uint32, v arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, ok := a.numbers[flow{from, id}]
	if !ok {
		n = int32(len(a.numbers))
		a.numbers[flow{from, id}] = n
	}
	v.flow = n
	a.log = append(a.log, v)
}

// answer marks or reports.
func (a *arrivals) answer(q probeQuery) probeReport {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q.Mark {
		latest := make([]arrival, len(a.numbers))
		copy(latest, a.last)
		for _, v := range a.log {
			if v.sequence >= latest[v.flow].sequence {
				latest[v.flow] = v
			}
		}
		a.last, a.log, a.late = latest, nil, 0
		return probeReport{}
	}
	r := summarise(a.last, a.log, len(a.numbers), q, time.Now().UnixNano())
	r.SenderLateMs = milliseconds(a.late)
	return r
}

// summarise reckons the report on what came after the last arrivals of flows that were known before, up to now.
func summarise(last, log []arrival, flows int, q probeQuery, now int64) probeReport {
	r := probeReport{Flows: flows}
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

// probeProcess sends and receives until its input ends.
func probeProcess(_ context.Context, args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet(probeCommand, flag.ContinueOnError)
	local := fs.String("local", "0.0.0.0", "address to send from and receive at")
	to := fs.String("to", "", "addresses to send to, with commas")
	pps := fs.Int("pps", 1000, "packets per second")
	if err := fs.Parse(args); err != nil {
		return errUsage
	}
	addr, err := netip.ParseAddr(*local)
	if err != nil {
		return err
	}
	var targets []netip.AddrPort
	for _, word := range strings.FieldsFunc(*to, func(r rune) bool { return r == ',' }) {
		a, err := netip.ParseAddr(word)
		if err != nil {
			return err
		}
		targets = append(targets, netip.AddrPortFrom(a, probePort))
	}
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, probePort)))
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()
	if err := probeOptions(socket); err != nil {
		return err
	}
	a := &arrivals{numbers: map[flow]int32{}}
	go a.receive(socket)
	if len(targets) > 0 {
		go a.send(socket, targets, time.Second/time.Duration(*pps))
	}
	queries, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q probeQuery
		if err := queries.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(a.answer(q)); err != nil {
			return err
		}
	}
}

// probeOptions has the kernel tell when and where a packet came in: on a busy machine the process hears of it later.
func probeOptions(socket *net.UDPConn) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	})
	return errors.Join(err, failed)
}

func (a *arrivals) receive(socket *net.UDPConn) {
	payload, control := make([]byte, probeSize), make([]byte, 256)
	for {
		n, c, _, from, err := socket.ReadMsgUDPAddrPort(payload, control)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n < 12: // an ICMP error that a packet of ours has met
			continue
		}
		at, device := controlOf(control[:c])
		a.add(from.Addr().Unmap(), binary.BigEndian.Uint32(payload), arrival{device: device, sequence: binary.BigEndian.Uint64(payload[4:]), at: at})
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
		}
	}
	return at, device
}

// send sends to each in turn at that pace. What is due after a pause that the process did not want is sent at once: every number is.
func (a *arrivals) send(socket *net.UDPConn, to []netip.AddrPort, interval time.Duration) {
	payload := make([]byte, probeSize)
	next := time.Now()
	for n := uint64(0); ; n++ {
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		} else if -wait > time.Millisecond {
			a.mu.Lock()
			a.late = max(a.late, -wait)
			a.mu.Unlock()
		}
		next = next.Add(interval)
		i := n % uint64(len(to))
		binary.BigEndian.PutUint32(payload, uint32(i))
		binary.BigEndian.PutUint64(payload[4:], n/uint64(len(to))+1)
		if _, err := socket.WriteToUDPAddrPort(payload, to[i]); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// spread is count indexes over the whole range of n, the first and the last among them.
func spread(n, count int) []int {
	count = min(n, count)
	out := make([]int, 0, count)
	for i := range count {
		out = append(out, i*(n-1)/max(count-1, 1))
	}
	return slices.Compact(out)
}
