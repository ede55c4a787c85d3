package bfd

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// retryEvery is how often sockets that could not be opened are tried again.
	retryEvery = time.Second
	// settle is how long after a change of links or addresses the sockets are looked at: such changes come in bursts.
	settle = 20 * time.Millisecond
	// longest wait; also how late a missed wake can be noticed.
	longestWait = time.Minute
	// drainLimit is how many batches one socket may give before the others get their turn.
	drainLimit = 64
	// From crowd sessions on the loop looks around once in restTime, not for each packet and timer of its own: half of the cost of many
	// sessions is waking up. It is a tenth of MinInterval, and the kernel's stamp tells when a packet came in the meantime.
	crowd    = 64
	restTime = time.Millisecond
)

// loop is one Run of an engine: all of it but journal belongs to the thread that calls run.
type loop struct {
	engine  *Engine
	journal *journal

	epoll, events, netlink int

	sessions map[Path]*session
	byDiscr  map[uint32]*session
	bySource map[source]*session
	timers   timers
	rx       map[rxKey]*rxSocket

	// look is when sockets and interfaces are to be looked at; zero means not at all.
	look time.Time

	batch  *batch
	packet Packet
	info   arrival
	out    [MaxLen]byte

	dropped    [dropReasons]uint64
	overflowed uint64
	scheduling string
}

// source finds the session of a packet that does not name ours.
type source struct {
	rx       *rxSocket
	ifindex  int // 0 for sessions without an interface
	src, dst netip.Addr
}

type rxKey struct {
	device       string
	v6, multihop bool
}

// rxSocket receives for all sessions of one VRF, family and hop kind.
type rxSocket struct {
	rxKey
	fd int // -1 while it cannot be opened
	// ifindex of the device the socket is bound to: a device made anew has another.
	ifindex int
	problem string
	// empty is when the socket was last read to its end.
	empty    time.Time
	overflow uint32
	users    int
}

// newLoop opens the descriptors that do not depend on sessions.
func newLoop(e *Engine) (*loop, error) {
	l := &loop{
		engine: e, journal: newJournal(e.log), epoll: -1, events: -1, netlink: -1,
		sessions: map[Path]*session{}, byDiscr: map[uint32]*session{}, bySource: map[source]*session{}, rx: map[rxKey]*rxSocket{},
		batch: newBatch(),
	}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if l.events, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = l.watch(l.events)
	}
	if err == nil {
		if l.netlink, err = linkEvents(); err == nil {
			err = l.watch(l.netlink)
		}
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("BFD engine: %w", err)
	}
	return l, nil
}

func (l *loop) watch(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
}

// close closes what is open. interrupt must not be called any more.
func (l *loop) close() {
	for _, s := range l.sessions {
		s.hangUp()
	}
	for _, r := range l.rx {
		r.close()
	}
	for _, fd := range []int{l.netlink, l.events, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// interrupt makes a waiting loop look around. It may be called from any goroutine until close.
func (l *loop) interrupt() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.events, one[:]) // full means that a wake is pending
}

// run is the loop.
func (l *loop) run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var restore func()
	l.scheduling, restore = realtime(l.engine.cfg.Priority)
	defer restore()
	l.journal.put(line{kind: lineNote, text: "BFD engine starts, scheduling " + l.scheduling})

	ready := make([]unix.EpollEvent, 64)
	var looked time.Time
	for {
		l.configure(time.Now()) // before reply: a snapshot shows what was configured before it was asked for
		l.reply()
		if len(l.sessions) >= crowd {
			rest(restTime - time.Since(looked))
		}
		n, err := epollWait(l.epoll, ready, l.wait(time.Now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			// Cannot happen with a descriptor of ours; without waiting the loop would take the processor.
			l.journal.put(line{kind: lineNote, text: "BFD engine: epoll_pwait2: " + err.Error()})
			time.Sleep(10 * time.Millisecond)
		}
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		looked = now
		for _, ev := range ready[:n] {
			switch fd := int(ev.Fd); fd {
			case l.events:
				var b [8]byte
				_, _ = unix.Read(fd, b[:])
			case l.netlink:
				l.linksChanged(now)
			default:
				for _, r := range l.rx {
					if r.fd == fd {
						l.drain(r)
						break
					}
				}
			}
		}
		l.tick(time.Now())
		if !l.look.IsZero() && !time.Now().Before(l.look) {
			l.openAll(time.Now())
		}
	}
}

// wait is how long nothing is due.
func (l *loop) wait(now time.Time) time.Duration {
	next := l.look
	if len(l.timers) > 0 {
		next = earliest(next, l.timers[0].wake)
	}
	if next.IsZero() {
		return longestWait
	}
	return min(next.Sub(now), longestWait)
}

// reply answers those who asked for a snapshot.
func (l *loop) reply() {
	for {
		select {
		case q := <-l.engine.questions:
			q <- l.snapshot()
		default:
			return
		}
	}
}

// linksChanged reads away what netlink says; that it says something is enough.
func (l *loop) linksChanged(now time.Time) {
	for {
		n, _, err := unix.Recvfrom(l.netlink, l.batch.data[0][:], unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) || n == 0 && err == nil {
			break
		}
	}
	l.look = earliest(l.look, now.Add(settle))
}

// drain reads a socket until it is empty, for drainLimit batches at most.
func (l *loop) drain(r *rxSocket) {
	for range drainLimit {
		n, err := l.batch.receive(r.fd)
		if err != nil || n == 0 {
			// An error here is a pending one of the device, such as ENETDOWN; reading it has cleared it.
			r.empty = time.Now()
			return
		}
		now := time.Now()
		for i := range n {
			l.batch.arrival(i, &l.info)
			l.receive(r, l.batch.datagram(i), now)
		}
		if n < batchSize {
			r.empty = now
			return
		}
	}
}

// receive takes one datagram, described by l.info.
func (l *loop) receive(r *rxSocket, b []byte, now time.Time) {
	in := &l.info
	if in.hasOverflow && in.overflow != r.overflow {
		l.overflowed += uint64(in.overflow - r.overflow)
		r.overflow = in.overflow
	}
	s, drop := l.find(r, b)
	if drop == Kept {
		at := in.at(now, r.empty)
		drop = l.step(s, now, Event{Kind: Received, Packet: &l.packet, Raw: b, At: at})
	}
	if s != nil {
		s.received++
	}
	if drop != Kept {
		l.dropped[drop]++
		if s != nil {
			s.dropped[drop]++
		}
		l.journal.dropped(now, drop, s, in.src, in.dst)
	}
}

// find makes the checks that need the datagram's circumstances (RFC 5881 section 5, RFC 5880 section 6.8.6) and finds its session,
// which may be known also if the datagram is to be dropped.
func (l *loop) find(r *rxSocket, b []byte) (*session, Drop) {
	in := &l.info
	if !in.complete {
		return nil, DropControl
	}
	if d := Decode(b, &l.packet); d != Kept {
		return nil, d
	}
	var s *session
	if l.packet.YourDiscr != 0 {
		s = l.byDiscr[l.packet.YourDiscr]
	} else if s = l.bySource[source{r, in.ifindex, in.src, in.dst}]; s == nil {
		s = l.bySource[source{r, 0, in.src, in.dst}]
	}
	switch {
	case s == nil:
		return nil, DropNoSession
	case s.rx != r, s.cfg.Interface != "" && s.ifindex != in.ifindex:
		return s, DropInterface
	case s.cfg.Peer != in.src, s.cfg.Local != in.dst:
		return s, DropSource
	case in.ttl < s.cfg.minTTL():
		return s, DropTTL
	}
	return s, Kept
}

// tick steps the sessions whose time has come.
func (l *loop) tick(now time.Time) {
	for len(l.timers) > 0 && !l.timers[0].wake.After(now) {
		s := l.timers[0]
		if r := s.rx; r.fd >= 0 && r.empty.Before(now) && s.proto.DetectDue(now) {
			// What arrived until now must have been read before silence is stated.
			l.drain(r)
			r.empty = time.Now() // also if it was not read to its end: we tried
			continue
		}
		l.step(s, now, Event{})
		if s.leaving && !s.proto.Farewell(now) {
			l.forget(s)
		}
	}
}

// step steps a session and does what it asks for.
func (l *loop) step(s *session, now time.Time, ev Event) Drop {
	out := s.proto.Step(now, ev)
	if out.Changed {
		l.changed(s, out.Change)
	}
	if out.Send {
		l.send(s, &out.Packet)
	}
	s.wake = out.Wake
	switch {
	case s.wake.IsZero() && s.index >= 0:
		l.timers.remove(s)
	case s.wake.IsZero():
	case s.index < 0:
		heap.Push(&l.timers, s)
	default:
		heap.Fix(&l.timers, s.index)
	}
	return out.Drop
}

// changed tells a transition: first whoever acts on it.
func (l *loop) changed(s *session, t Transition) {
	if f := l.engine.cfg.OnChange; f != nil {
		f(Change{Name: s.cfg.Name, Path: s.cfg.Path, Transition: t})
	}
	s.record(t)
	l.journal.put(line{kind: lineChange, name: s.cfg.Name, path: s.cfg.Path, change: t})
}

// send sends a session's packet.
func (l *loop) send(s *session, p *Packet) {
	if s.fd < 0 {
		return // Status.Problem says why
	}
	n := s.proto.Marshal(l.out[:], p)
	if err := sendNow(s.fd, l.out[:n]); err != nil {
		s.sendErrors++
		s.sendErr = err
		return
	}
	s.sendErr = nil
	s.sent++
}

// timers is a heap by wake time.
type timers []*session

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].wake.Before(t[j].wake) }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push implements heap.Interface.
func (t *timers) Push(x any) {
	s := x.(*session)
	s.index = len(*t)
	*t = append(*t, s)
}

// Pop implements heap.Interface.
func (t *timers) Pop() any {
	old := *t
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	s.index = -1
	return s
}

// remove takes a session out.
func (t *timers) remove(s *session) { heap.Remove(t, s.index) }
