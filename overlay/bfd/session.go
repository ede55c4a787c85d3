package bfd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Limits of what a session can be configured to, and the interval it keeps to while not Up (RFC 5880 section 6.8.3).
const (
	MinInterval  = 10 * time.Millisecond
	MaxInterval  = 60 * time.Second
	SlowInterval = time.Second
)

// Params are the parts of a session that may change while it runs.
type Params struct {
	// DesiredMinTx and RequiredMinRx are the shortest intervals this end wants to send at and to receive at; MinInterval to MaxInterval.
	DesiredMinTx, RequiredMinRx time.Duration
	// DetectMult is how many intervals without a packet the neighbour waits before it says Down; not 0.
	DetectMult uint8
	// Independent is the C bit: this engine goes on when the control plane restarts.
	Independent bool
	// Auth is nil for none.
	Auth *Auth
}

// Validate names all that is wrong.
func (p Params) Validate() error {
	var errs []error
	for _, i := range [...]struct {
		name  string
		value time.Duration
	}{{"desired-min-tx", p.DesiredMinTx}, {"required-min-rx", p.RequiredMinRx}} {
		if i.value < MinInterval || i.value > MaxInterval {
			errs = append(errs, fmt.Errorf("%s %v: must be %v to %v", i.name, i.value, MinInterval, MaxInterval))
		}
	}
	if p.DetectMult == 0 {
		errs = append(errs, errors.New("detect-multiplier 0: must be 1 to 255"))
	}
	return errors.Join(append(errs, p.Auth.Validate())...)
}

// equal compares the content.
func (p Params) equal(q Params) bool {
	auth := p.Auth.equal(q.Auth)
	p.Auth, q.Auth = nil, nil
	return auth && p == q
}

// EventKind is what happened to a session.
type EventKind uint8

// Kinds of events.
const (
	// Tick: time has passed.
	Tick EventKind = iota
	// Received: a packet came in that Decode kept and that is for this session.
	Received
	// Configured: the session has new parameters.
	Configured
	// Disabled puts the session into AdminDown, Enabled takes it out.
	Disabled
	Enabled
)

// Event is the input of a step. The zero value is a Tick.
type Event struct {
	Kind EventKind
	// Packet and its datagram, of Received. The session keeps neither.
	Packet *Packet
	Raw    []byte
	// At is when the packet arrived, which may be before the step's now: a reader that is late must not make the neighbour look late, or
	// early. Zero means now.
	At time.Time
	// Params of Configured, valid ones.
	Params Params
}

// Output is what a step asks for.
type Output struct {
	// Send: encode Packet with Session.Marshal and send it at once.
	Send   bool
	Packet Packet
	// Changed: Change is to be told.
	Changed bool
	Change  Transition
	// Drop is why the packet of a Received event was not used.
	Drop Drop
	// Wake is when to step again if nothing else happens; zero means never.
	Wake time.Time
}

// Transition is one change of a session's state.
type Transition struct {
	At       time.Time
	From, To State
	// Diag is what this end tells as the reason, RemoteDiag and Remote are what the neighbour said last.
	Diag, RemoteDiag Diag
	Remote           State
	// Reason is for operators: what happened, in a few words.
	Reason string
}

// RemoteAdminDown says that the session went Down because the neighbour's operator wants so: no reason to distrust the path, nor to
// take down the protocols over it (RFC 5882 section 4.3.2).
func (t Transition) RemoteAdminDown() bool {
	return t.To == Down && t.Diag == DiagNeighbourDown && t.Remote == AdminDown
}

// RemoteRestarted says that the session went Down because the neighbour's has begun anew: it tells Down without a diagnostic, which one that
// has missed packets gives (RFC 5880 sections 4.1 and 6.8.1).
func (t Transition) RemoteRestarted() bool {
	return t.From == Up && t.To == Down && t.Diag == DiagNeighbourDown && t.Remote == Down && t.RemoteDiag == DiagNone
}

// Session is the protocol's state at one end (RFC 5880 section 6.8.1), as a value: the same steps give the same outputs. Make it with
// NewSession. It is not safe for concurrent use.
type Session struct {
	params Params
	discr  uint32
	random rand.PCG

	state State
	diag  Diag

	remote remote

	// The intervals told to the neighbour, and those this end acts by: they differ while a change waits for the end of a Poll Sequence.
	toldTx, toldRx time.Duration
	txBase, rxBase time.Duration
	// polling: every packet has P until an F comes. pollNext: a change came meanwhile; its own Poll starts after one packet without P
	// and not before pollHold. More than one P may have been sent before the F came, and an F does not say which P it answers: so
	// the next Poll waits for as long as this one took, and a late F finds no Poll to end too early.
	polling, pollNext   bool
	pollSince, pollHold time.Time

	lastTx   time.Time
	nextTx   time.Time // zero: no periodic packets now
	interval time.Duration
	urgent   bool // content changed: send without waiting for nextTx
	answer   bool // F is owed

	lastRx time.Time // zero: nothing heard for a detection time
	detect time.Time // zero: nothing to detect
	// farewell: until then AdminDown is sent at the interval of before, so that one lost packet does not make the neighbour's detection
	// time expire and look like a failure.
	farewell time.Time

	txSeq, rxSeq uint32
	rxSeqKnown   bool
	rxSeqUntil   time.Time // rxSeq is forgotten then
}

// remote is what the neighbour's last packet said.
type remote struct {
	discr      uint32
	state      State
	diag       Diag
	desiredTx  time.Duration
	requiredRx time.Duration
	mult       uint8
	demand     bool
}

// silent is what RFC 5880 section 6.8.1 has for a neighbour not heard.
func (r *remote) silent() {
	r.discr, r.demand, r.mult, r.desiredTx = 0, false, 0, 0
	r.requiredRx = time.Microsecond
}

// NewSession starts a session in state Down. The discriminator is random, unique in the engine and not 0; the seed feeds jitter and the
// first sequence number. Step it with a Tick first.
func NewSession(p Params, discriminator uint32, seed uint64) *Session {
	s := &Session{params: p, discr: discriminator, state: Down, random: *rand.NewPCG(seed, uint64(discriminator))}
	s.remote.state = Down
	s.remote.silent()
	s.txSeq = uint32(s.random.Uint64())
	s.retime(time.Time{})
	s.urgent = true
	return s
}

// State is the session's state.
func (s *Session) State() State { return s.state }

// Diag is what the session tells as the reason of its last change.
func (s *Session) Diag() Diag { return s.diag }

// Discriminator is this end's.
func (s *Session) Discriminator() uint32 { return s.discr }

// Remote is the last thing heard from the neighbour: state, diagnostic and discriminator; the last is 0 if nothing was heard for a
// detection time.
func (s *Session) Remote() (State, Diag, uint32) {
	return s.remote.state, s.remote.diag, s.remote.discr
}

// Polling says whether a Poll Sequence waits for its answer.
func (s *Session) Polling() bool { return s.polling }

// TxInterval is the negotiated interval of periodic packets before jitter; 0 if there are none.
func (s *Session) TxInterval() time.Duration {
	if !s.periodic() {
		return 0
	}
	return s.txInterval()
}

// DetectionTime is how long the neighbour may be silent (RFC 5880 section 6.8.4); 0 before anything was heard.
func (s *Session) DetectionTime() time.Duration {
	return time.Duration(s.remote.mult) * max(s.rxBase, s.remote.desiredTx)
}

// DetectDue says whether a Tick at now would find the detection time expired: the moment to look for packets not yet read.
func (s *Session) DetectDue(now time.Time) bool {
	return !s.detect.IsZero() && !now.Before(s.detect)
}

// Farewell says whether a disabled session still has to send, lest the neighbour takes its silence for a failure.
func (s *Session) Farewell(now time.Time) bool {
	return s.state == AdminDown && now.Before(s.farewell)
}

// Step feeds one event. At most one packet is to be sent and at most one change told per step; what is left to do is due at Wake,
// which may be now.
func (s *Session) Step(now time.Time, ev Event) Output {
	var out Output
	switch ev.Kind {
	case Received:
		at := ev.At
		if at.IsZero() || at.After(now) {
			at = now
		}
		out.Drop = s.receive(at, now, ev, &out)
	case Configured:
		s.configure(now, ev.Params)
	case Disabled:
		s.disable(now, &out)
	case Enabled:
		if s.state == AdminDown {
			s.enter(now, Down, DiagNone, "administratively enabled", &out)
		}
	case Tick:
		if s.DetectDue(now) {
			s.expire(now, &out)
		}
	}
	s.transmit(now, &out)
	out.Wake = earliest(s.nextTx, s.detect)
	if s.Farewell(now) {
		out.Wake = earliest(out.Wake, s.farewell)
	}
	return out
}

// Marshal encodes a packet of an Output of this session to b, which must have room for MaxLen bytes, and returns its length.
func (s *Session) Marshal(b []byte, p *Packet) int {
	var secret Secret
	if s.params.Auth != nil {
		secret = s.params.Auth.Keys[0].Secret
	}
	return p.Encode(b, secret)
}

// enter makes a transition.
func (s *Session) enter(now time.Time, to State, diag Diag, reason string, out *Output) {
	out.Changed = true
	out.Change = Transition{
		At: now, From: s.state, To: to, Diag: diag, RemoteDiag: s.remote.diag, Remote: s.remote.state, Reason: reason,
	}
	s.state, s.diag = to, diag
	s.urgent = true
	s.retime(now)
}

func (s *Session) disable(now time.Time, out *Output) {
	if s.state == AdminDown {
		return
	}
	// The neighbour waits for our multiplier times what it knows of our interval.
	interval, heard := max(s.txBase, s.remote.requiredRx), s.remote.discr != 0
	s.enter(now, AdminDown, DiagAdministrativelyDown, "administratively disabled", out)
	if heard {
		s.txBase = interval
		s.farewell = now.Add(time.Duration(s.params.DetectMult) * interval)
	}
}

// expire is RFC 5880 section 6.8.4: a detection time without a packet.
func (s *Session) expire(now time.Time, out *Output) {
	silence := now.Sub(s.lastRx)
	s.detect, s.lastRx = time.Time{}, time.Time{}
	if s.state == Init || s.state == Up {
		allowed := s.DetectionTime()
		s.remote.silent()
		s.enter(now, Down, DiagExpired, fmt.Sprintf("nothing heard for %v (detection time %v)",
			silence.Round(100*time.Microsecond), allowed.Round(100*time.Microsecond)), out)
		return
	}
	s.remote.silent()
}

// earliest is the earlier of two times that are set.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
