package links

import "time"

const (
	// pathProbes is over how many of the last probes a path is judged.
	pathProbes = 60
	// pathInterval is the time between two probes of a path.
	pathInterval = time.Second
	// pathPatience is how long after it was sent a probe counts as lost. An answer that comes later still is an answer.
	pathPatience = 2 * time.Second
)

// PathState is what the last 60 echoes over a tunnel, one per second, tell of its path. The zero value is that nothing is known yet.
type PathState struct {
	// RTT is the smoothed round-trip time (SRTT of RFC 6298 section 2), MinRTT the least of the last 60; both 0 when none of them was answered.
	RTT, MinRTT time.Duration
	// Probes of the last 60 that were answered or waited for in vain; Lost are the latter.
	Probes, Lost int
}

// pathWindow holds the last probes of one path. It is a value without clock: time is an argument.
type pathWindow struct {
	// probes by number modulo their count; sent is how many there were.
	probes [pathProbes]pathProbe
	sent   uint64
	srtt   time.Duration
}

type pathProbe struct {
	at       time.Time
	rtt      time.Duration
	answered bool
}

// send notes a probe and returns its sequence number on the wire.
func (w *pathWindow) send(now time.Time) (seq uint16) {
	seq = uint16(w.sent)
	w.probes[w.sent%pathProbes] = pathProbe{at: now}
	w.sent++
	return seq
}

// answer takes the answer to a probe. Those to older ones, second answers and those to probes that were never sent count for nothing.
func (w *pathWindow) answer(seq uint16, now time.Time) {
	// The number is that of one of the last probes, modulo 2^16.
	back := uint64(uint16(w.sent) - seq)
	if back == 0 || back > min(w.sent, pathProbes) {
		return
	}
	p := &w.probes[(w.sent-back)%pathProbes]
	if p.answered {
		return
	}
	// A clock too coarse to see the way there and back has seen an answer all the same.
	p.answered, p.rtt = true, max(now.Sub(p.at), 1)
	if w.srtt == 0 {
		w.srtt = p.rtt
		return
	}
	w.srtt += (p.rtt - w.srtt) / 8
}

// state sums up. Where no answer is left, the smoothed time is forgotten: the next one begins anew.
func (w *pathWindow) state(now time.Time) PathState {
	var s PathState
	for _, p := range w.probes[:min(w.sent, pathProbes)] {
		switch {
		case p.answered:
			s.Probes++
			if s.MinRTT == 0 || p.rtt < s.MinRTT {
				s.MinRTT = p.rtt
			}
		case now.Sub(p.at) >= pathPatience:
			s.Probes++
			s.Lost++
		}
	}
	if s.MinRTT == 0 {
		w.srtt = 0
	}
	s.RTT = w.srtt
	return s
}

// Loss is the share of probes that got no answer, 0 to 1; it is not known before the first is decided.
func (s PathState) Loss() (share float64, known bool) {
	if s.Probes == 0 {
		return 0, false
	}
	return float64(s.Lost) / float64(s.Probes), true
}
