package bfd

import (
	"fmt"
	"time"
)

// receive is RFC 5880 section 6.8.6 from the authentication on; what comes before is done by Decode and by whoever found the session.
func (s *Session) receive(at, now time.Time, ev Event, out *Output) Drop {
	p := ev.Packet
	if d := s.authenticate(at, p, ev.Raw); d != Kept {
		return d
	}
	s.remote = remote{
		discr: p.MyDiscr, state: p.State, diag: p.Diag,
		desiredTx: p.DesiredMinTx, requiredRx: p.RequiredMinRx, mult: p.DetectMult, demand: p.Demand,
	}
	if p.Final && s.polling {
		s.polled(now)
	}
	if at.After(s.lastRx) {
		s.lastRx = at
	}
	if s.state != AdminDown {
		s.follow(now, p, out)
		s.answer = p.Poll
	}
	s.redetect()
	if s.rxSeqKnown {
		s.rxSeqUntil = s.lastRx.Add(2 * s.DetectionTime())
	}
	return Kept
}

// follow is the state machine.
func (s *Session) follow(now time.Time, p *Packet, out *Output) {
	if p.State == AdminDown {
		if s.state != Down {
			s.enter(now, Down, DiagNeighbourDown, "neighbour is administratively down", out)
		}
		return
	}
	switch s.state {
	case Down:
		switch p.State {
		case Down:
			s.enter(now, Init, DiagNone, "neighbour heard", out)
		case Init:
			s.enter(now, Up, DiagNone, "neighbour hears us", out)
		}
	case Init:
		if p.State == Init || p.State == Up {
			s.enter(now, Up, DiagNone, "neighbour hears us", out)
		}
	case Up:
		if p.State == Down {
			s.enter(now, Down, DiagNeighbourDown, fmt.Sprintf("neighbour went down: %v", p.Diag), out)
		}
	}
}

// authenticate is RFC 5880 section 6.7. It changes nothing unless the packet passes.
func (s *Session) authenticate(at time.Time, p *Packet, raw []byte) Drop {
	a := s.params.Auth
	switch {
	case a == nil && p.Auth.Type == NoAuth:
		return Kept
	case a == nil:
		return DropAuthUnexpected
	case p.Auth.Type == NoAuth:
		return DropAuthMissing
	case p.Auth.Type != a.Type:
		return DropAuthType
	}
	secret, ok := a.key(p.Auth.KeyID)
	if !ok {
		return DropAuthKey
	}
	known := s.rxSeqKnown && at.Before(s.rxSeqUntil)
	if a.Type != SimplePassword && known {
		// Unsigned and circular: what lies behind wraps to far ahead.
		ahead := p.Auth.Sequence - s.rxSeq
		if ahead > 3*uint32(p.DetectMult) || a.Type == MeticulousKeyedSHA1 && ahead == 0 {
			return DropAuthSequence
		}
	}
	if !p.Auth.verify(raw, secret) {
		return DropAuthDigest
	}
	if a.Type != SimplePassword {
		s.rxSeq, s.rxSeqKnown = p.Auth.Sequence, true
	}
	return Kept
}
