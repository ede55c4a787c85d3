package bfd

import "time"

// configure takes new parameters. What may take effect at once does; the rest starts a Poll Sequence, or waits for the end of the one
// that runs (RFC 5880 sections 6.5 and 6.8.3).
func (s *Session) configure(now time.Time, p Params) {
	if p.Auth == nil || s.params.Auth == nil || p.Auth.Type != s.params.Auth.Type {
		s.rxSeqKnown = false
	}
	s.params = p
	switch {
	case s.state == AdminDown && s.txBase < SlowInterval: // saying farewell
		s.toldTx, s.toldRx = max(p.DesiredMinTx, SlowInterval), p.RequiredMinRx
		s.rxBase = s.toldRx
	case s.polling, s.state == Up && now.Before(s.pollHold):
		s.pollNext = s.pollNext || s.untold()
	default:
		s.retime(now)
	}
	s.redetect()
}

// untold says whether the neighbour has yet to learn an interval.
func (s *Session) untold() bool {
	return s.toldTx != s.wantTx() || s.toldRx != s.params.RequiredMinRx
}

// wantTx is bfd.DesiredMinTxInterval as it should be: at least a second while not Up.
func (s *Session) wantTx() time.Duration {
	if s.state == Up {
		return s.params.DesiredMinTx
	}
	return max(s.params.DesiredMinTx, SlowInterval)
}

// retime brings the intervals in line with state and parameters. While Up a change starts a Poll Sequence, and a longer tx interval or a
// shorter rx interval is not acted on before its end: the neighbour still counts on the old ones.
func (s *Session) retime(now time.Time) {
	changed := s.untold()
	s.toldTx, s.toldRx = s.wantTx(), s.params.RequiredMinRx
	if s.state != Up {
		s.txBase, s.rxBase = s.toldTx, s.toldRx
		s.polling, s.pollNext = false, false
		return
	}
	s.txBase = min(s.txBase, s.toldTx)
	s.rxBase = max(s.rxBase, s.toldRx)
	if changed && !s.polling {
		s.polling, s.pollSince = true, now
	}
}

// polled ends a Poll Sequence: the neighbour knows what it was told.
func (s *Session) polled(now time.Time) {
	s.polling = false
	s.pollHold = now.Add(now.Sub(s.pollSince))
	s.txBase, s.rxBase = s.toldTx, s.toldRx
	s.redetect()
}

// redetect sets the detection timer from the last packet heard.
func (s *Session) redetect() {
	if !s.lastRx.IsZero() {
		s.detect = s.lastRx.Add(s.DetectionTime())
	}
}

// txInterval is RFC 5880 section 6.8.2, before jitter.
func (s *Session) txInterval() time.Duration { return max(s.txBase, s.remote.requiredRx) }

// periodic says whether packets are sent unasked (RFC 5880 section 6.8.7).
func (s *Session) periodic() bool {
	if s.remote.requiredRx == 0 {
		return false
	}
	asleep := s.remote.demand && s.state == Up && s.remote.state == Up
	return !asleep || s.polling || s.pollNext
}

// jittered draws the time to the next packet: 75 to 100 % of the interval, with multiplier 1 up to 90 %, since then a single late
// packet is one too many (RFC 5880 section 6.8.7).
func (s *Session) jittered(interval time.Duration) time.Duration {
	least := interval - interval/4
	span := interval / 4
	if s.params.DetectMult == 1 {
		span = interval * 15 / 100
	}
	return least + time.Duration(s.random.Uint64()%uint64(span+1))
}

// transmit decides whether this step sends, and when the next packet is due.
func (s *Session) transmit(now time.Time, out *Output) {
	if s.state == AdminDown && s.txBase < SlowInterval && !now.Before(s.farewell) {
		s.retime(now)
	}
	if !s.periodic() {
		s.nextTx, s.interval = time.Time{}, 0
	} else if i := s.txInterval(); i != s.interval {
		// Measured from the last packet, not from now: the neighbour may count on it (RFC 5880 section 6.8.3).
		s.interval = i
		s.nextTx = now
		if !s.lastTx.IsZero() {
			s.nextTx = s.lastTx.Add(s.jittered(i))
		}
	}
	due := !s.nextTx.IsZero() && !now.Before(s.nextTx)
	if !due && !s.urgent && !s.answer {
		return
	}
	out.Send = true
	s.fill(&out.Packet)
	// An F alone is no periodic packet: it comes in between.
	if due || s.urgent {
		s.lastTx = now
		if s.interval != 0 {
			s.nextTx = now.Add(s.jittered(s.interval))
		}
		if s.pollNext && !s.polling && !s.answer && !now.Before(s.pollHold) {
			s.pollNext = false
			s.retime(now)
		}
	}
	s.urgent, s.answer = false, false
}

// fill makes the packet to send now.
func (s *Session) fill(p *Packet) {
	*p = Packet{
		State: s.state, Diag: s.diag, Independent: s.params.Independent, DetectMult: s.params.DetectMult,
		MyDiscr: s.discr, YourDiscr: s.remote.discr, DesiredMinTx: s.toldTx, RequiredMinRx: s.toldRx,
		// Never both: an answer goes out first, the question with the next packet.
		Final: s.answer, Poll: s.polling && !s.answer,
	}
	if a := s.params.Auth; a != nil {
		p.Auth.Type, p.Auth.KeyID = a.Type, a.Keys[0].ID
		if a.Type != SimplePassword {
			// Without "meticulous" the number may stand still while the content does; counting on leaves less to replay.
			s.txSeq++
			p.Auth.Sequence = s.txSeq
		}
	}
}
