package links

import (
	"net/netip"
	"time"

	"fabric/overlay"
)

// Facts are what WireGuard says of one tunnel.
type Facts struct {
	// Hung: the tunnel process holds its socket but does not answer; nothing else is known.
	Hung bool
	// Endpoint is where the other end was last heard from, or what was configured.
	Endpoint   netip.AddrPort
	ListenPort int
	// LastHandshake is dated by the wall clock, which steps: judge by Age.
	LastHandshake time.Time
	// Age of the last handshake, by a clock that does not step; 0 if there was none. The engine works it out, a Reader leaves it.
	Age time.Duration
	// RxBytes and TxBytes since the device was made.
	RxBytes, TxBytes uint64
}

// Liveness judges whether a tunnel carries packets. The engine asks on every pass about every tunnel whose device is up, and routes
// each VTEP over the highest ranked one that is alive.
type Liveness interface {
	// Alive gives its verdict and the reason in a few words.
	Alive(t overlay.Tunnel, f Facts, now time.Time) (alive bool, reason string)
}

// RejectAfter is WireGuard's REJECT_AFTER_TIME: keys of an older handshake carry nothing.
const RejectAfter = 180 * time.Second

// handshake follows the last handshake of one tunnel. WireGuard dates it by the wall clock, which NTP may set by years at boot: a step
// forward would take every tunnel down, one back would hold a dead one up. So it is dated here by when its date was seen to change.
type handshake struct {
	date time.Time
	// at is when it was, read when date was last read, both by the engine's clock.
	at, read time.Time
}

// age takes a reading and returns the handshake's age. The wall clock counts only where it cannot be wrong by more than the time between
// two readings, and at the first one, where nothing else is known.
func (h *handshake) age(date, now, wall time.Time) time.Duration {
	if h.read.IsZero() || !date.Equal(h.date) {
		age := max(wall.Sub(date), 0)
		if !h.read.IsZero() {
			age = min(age, now.Sub(h.read))
		}
		h.date, h.at = date, now.Add(-age)
	}
	h.read = now
	if date.IsZero() {
		return 0
	}
	return now.Sub(h.at)
}

// Handshake is the Liveness that trusts a handshake as long as WireGuard does. A direct tunnel has none: it is taken to be alive while
// its device is up, so that only BFD tells more.
type Handshake struct{}

// Alive implements Liveness.
func (Handshake) Alive(t overlay.Tunnel, f Facts, _ time.Time) (bool, string) {
	switch {
	case t.Kind == overlay.KindDirect:
		return true, "the device is up"
	case f.LastHandshake.IsZero() && !t.Endpoint.IsValid():
		return false, "no handshake yet; waits for " + t.Remote + " to dial"
	case f.LastHandshake.IsZero():
		return false, "no handshake yet; dials " + t.Endpoint.String()
	case f.Age >= RejectAfter:
		return false, "last handshake is older than " + RejectAfter.String()
	}
	return true, "handshake"
}
