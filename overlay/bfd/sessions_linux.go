package bfd

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// remembered is how many changes of a session are kept for operators.
const remembered = 16

// session is a Session with its sockets and counters.
type session struct {
	cfg   SessionConfig
	proto *Session
	rx    *rxSocket
	fd    int // tx socket, -1 while it cannot be opened
	// ifindex of Path.out(): 0 if that is empty or not there.
	ifindex int
	key     source // under which it is in bySource; zero if it is not
	wake    time.Time
	index   int // in the heap, -1 if it is not
	leaving bool
	problem string

	sendErr                    error
	received, sent, sendErrors uint64
	ups, downs                 uint64
	dropped                    [dropReasons]uint64
	since                      time.Time
	reason                     string
	history                    [remembered]Transition
	changes                    int
}

func (s *session) hangUp() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *session) record(t Transition) {
	s.history[s.changes%remembered] = t
	s.changes++
	s.since, s.reason = t.At, t.Reason
	switch {
	case t.To == Up:
		s.ups++
	case t.From == Up:
		s.downs++
	}
}

func (r *rxSocket) close() {
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
}

// configure makes the sessions those that are wanted, if that has changed.
func (l *loop) configure(now time.Time) {
	e := l.engine
	if !e.changed.Swap(false) {
		return
	}
	e.mu.Lock()
	want := e.want
	e.mu.Unlock()
	wanted := make(map[Path]bool, len(want))
	for _, c := range want {
		wanted[c.Path] = true
		if s := l.sessions[c.Path]; s != nil {
			l.update(s, c, now)
		} else {
			l.add(c, now)
		}
	}
	for path, s := range l.sessions {
		if wanted[path] || s.leaving {
			continue
		}
		s.leaving = true
		l.step(s, now, Event{Kind: Disabled})
		if !s.proto.Farewell(now) {
			l.forget(s)
		}
	}
	l.openAll(now)
	// Only now, with sockets, do new sessions speak.
	for _, s := range l.sessions {
		if s.index < 0 {
			l.step(s, now, Event{})
		}
	}
}

func (l *loop) add(c SessionConfig, now time.Time) {
	key := rxKey{c.device(), c.Local.Is6(), c.Multihop}
	r := l.rx[key]
	if r == nil {
		r = &rxSocket{rxKey: key, fd: -1}
		l.rx[key] = r
	}
	r.users++
	var random [12]byte
	var discr uint32
	for discr == 0 || l.byDiscr[discr] != nil {
		_, _ = rand.Read(random[:]) // never fails
		discr = binary.NativeEndian.Uint32(random[:])
	}
	s := &session{
		cfg: c, proto: NewSession(c.Params, discr, binary.NativeEndian.Uint64(random[4:])), rx: r, fd: -1, index: -1,
		since: now, reason: "configured",
	}
	l.sessions[c.Path] = s
	l.byDiscr[discr] = s
	if c.AdminDown {
		l.step(s, now, Event{Kind: Disabled})
	}
}

func (l *loop) update(s *session, c SessionConfig, now time.Time) {
	old := s.cfg
	s.cfg = c
	if !old.Params.equal(c.Params) {
		l.step(s, now, Event{Kind: Configured, Params: c.Params})
	}
	s.leaving = false
	kind := Enabled
	if c.AdminDown {
		kind = Disabled
	}
	l.step(s, now, Event{Kind: kind})
}

// forget ends a session, and its rx socket with the last one.
func (l *loop) forget(s *session) {
	s.hangUp()
	if s.index >= 0 {
		l.timers.remove(s)
	}
	delete(l.sessions, s.cfg.Path)
	delete(l.byDiscr, s.proto.Discriminator())
	l.unplace(s)
	if s.rx.users--; s.rx.users == 0 {
		s.rx.close()
		delete(l.rx, s.rx.rxKey)
	}
}

// openAll opens the sockets that are missing, and opens anew those whose interface is another than before. It looks again after a
// second while any is missing.
func (l *loop) openAll(now time.Time) {
	l.look = time.Time{}
	index := map[string]int{"": 0} // by name, asked for once
	ifindex := func(name string) int {
		i, ok := index[name]
		if !ok {
			i = l.ifindex(name)
			index[name] = i
		}
		return i
	}
	missing := false
	for _, r := range l.rx {
		l.openRx(r, ifindex(r.device))
		missing = missing || r.fd < 0
	}
	for _, s := range l.sessions {
		l.openTx(s, ifindex(s.cfg.out()))
		missing = missing || s.fd < 0
	}
	if missing {
		l.look = now.Add(retryEvery)
	}
}

func (l *loop) openRx(r *rxSocket, ifindex int) {
	if r.fd >= 0 && r.ifindex == ifindex {
		return
	}
	r.close()
	r.ifindex = ifindex
	if r.device != "" && ifindex == 0 {
		r.problem = "there is no VRF device " + r.device
		return
	}
	port := SingleHopPort
	if r.multihop {
		port = MultihopPort
	}
	alone := true
	for _, other := range l.rx {
		alone = alone && (other.fd < 0 || other.v6 != r.v6 || other.multihop != r.multihop)
	}
	fd, err := listen(r.device, r.v6, port, alone)
	if err == nil {
		if err = l.watch(fd); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		r.problem = "cannot receive: " + err.Error()
		return
	}
	r.fd, r.problem, r.overflow, r.empty = fd, "", 0, time.Now()
}

// openTx opens a session's sending socket if there is none or its interface is another one. A socket that refuses to send is kept: the
// neighbour expects one source port, and the kernel looks for a way again with every packet.
func (l *loop) openTx(s *session, ifindex int) {
	problem := s.rx.problem
	if s.fd < 0 || s.ifindex != ifindex {
		s.hangUp()
		l.unplace(s)
		s.ifindex, s.sendErr = ifindex, nil
		if name := s.cfg.out(); name != "" && ifindex == 0 {
			problem = "there is no interface " + name
		} else {
			l.place(s)
			var err error
			if s.fd, err = dial(s.cfg.Path, ifindex); err != nil {
				problem = "cannot send: " + err.Error()
			}
		}
	}
	l.setProblem(s, problem)
}

func (l *loop) setProblem(s *session, problem string) {
	if problem == s.problem {
		return
	}
	s.problem = problem
	kind := lineProblem
	if problem == "" {
		kind = lineSolved
	}
	l.journal.put(line{kind: kind, name: s.cfg.Name, path: s.cfg.Path, text: problem})
}

// place makes the session findable by packets that do not name it.
func (l *loop) place(s *session) {
	s.key = source{s.rx, 0, s.cfg.Peer, s.cfg.Local}
	if s.cfg.Interface != "" {
		s.key.ifindex = s.ifindex
	}
	l.bySource[s.key] = s
}

func (l *loop) unplace(s *session) {
	if s.key.rx != nil && l.bySource[s.key] == s {
		delete(l.bySource, s.key)
	}
	s.key = source{}
}

// ifindex is 0 if there is no such interface.
func (l *loop) ifindex(name string) int {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0
	}
	// Any socket will do, and this one is there.
	if unix.IoctlIfreq(l.netlink, unix.SIOCGIFINDEX, ifr) != nil {
		return 0
	}
	return int(ifr.Uint32())
}

// snapshot is the state of everything.
func (l *loop) snapshot() answer {
	a := answer{totals: Totals{
		Sessions: len(l.sessions), Dropped: named(&l.dropped), Overflowed: l.overflowed,
		LogLost: l.journal.lost.Load(), Scheduling: l.scheduling,
	}}
	for _, r := range l.rx {
		if r.problem != "" {
			a.totals.Problem = r.problem
		}
	}
	for _, s := range l.sessions {
		remote, remoteDiag, remoteDiscr := s.proto.Remote()
		st := Status{
			Name: s.cfg.Name, Path: s.cfg.Path,
			State: s.proto.State(), Since: s.since, Diag: s.proto.Diag(), Reason: s.reason,
			Remote: remote, RemoteDiag: remoteDiag,
			Discriminator: s.proto.Discriminator(), RemoteDiscriminator: remoteDiscr,
			TxInterval: s.proto.TxInterval(), DetectionTime: s.proto.DetectionTime(), Polling: s.proto.Polling(),
			Leaving: s.leaving, Problem: s.problem,
			Counters: Counters{
				Received: s.received, Sent: s.sent, SendErrors: s.sendErrors, Ups: s.ups, Downs: s.downs, Dropped: named(&s.dropped),
			},
		}
		if s.problem == "" && s.sendErr != nil {
			st.Problem = "cannot send: " + s.sendErr.Error()
		}
		for i := max(0, s.changes-remembered); i < s.changes; i++ {
			st.History = append(st.History, s.history[i%remembered])
		}
		a.states = append(a.states, st)
	}
	slices.SortFunc(a.states, byName)
	return a
}

// named is the reasons that were there.
func named(counts *[dropReasons]uint64) map[string]uint64 {
	m := map[string]uint64{}
	for d, n := range counts {
		if n > 0 {
			m[Drop(d).String()] = n
		}
	}
	return m
}
