package links

import "time"

// How long a tunnel whose BFD session came up waits before traffic returns to it from a worse one: holdFirst, doubled each time it goes
// down again before it was up for holdForgiven longer than its hold, up to holdMost.
const (
	holdFirst    = 2 * time.Second
	holdMost     = 5 * time.Minute
	holdForgiven = time.Minute
)

// hold damps the return to one tunnel. What goes down by command is no flap.
//
//	up ── lives ≥ hold + 1 min ──► down ──► up: hold 2 s
//	 └─── down sooner ───────────► up: hold 4 s, 8 s … 5 min
type hold struct {
	// wait is the present hold, 0 before the first.
	wait time.Duration
	// since is the last coming up, until the end of the hold after it.
	since, until time.Time
	// flaps is how often in a row it went down too soon.
	flaps int
}

func (h *hold) up(now time.Time) {
	h.wait = max(h.wait, holdFirst)
	h.since, h.until = now, now.Add(h.wait)
}

// held says whether traffic does not return to the leg yet.
func (l *leg) held(now time.Time) bool {
	return now.Before(l.hold.until) && (!l.prompt || l.hold.flaps > 0)
}

// hasten takes the devices that traffic moves to as soon as they are up, and moves it to those that are.
func (r *repair) hasten(devices map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, l := range r.legs {
		l.prompt = devices[d]
	}
}

func (h *hold) down(now time.Time) {
	switch {
	case h.since.IsZero():
	case now.Sub(h.since) < h.wait+holdForgiven:
		h.wait = min(2*h.wait, holdMost)
		h.flaps++
	default:
		h.wait, h.flaps = 0, 0
	}
	h.since, h.until = time.Time{}, time.Time{}
}
