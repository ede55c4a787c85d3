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
	Endpoint      netip.AddrPort
	ListenPort    int
	LastHandshake time.Time
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

// Handshake is the Liveness that trusts a handshake as long as WireGuard does.
type Handshake struct{}

// Alive implements Liveness.
func (Handshake) Alive(t overlay.Tunnel, f Facts, now time.Time) (bool, string) {
	switch age := now.Sub(f.LastHandshake); {
	case f.LastHandshake.IsZero() && !t.Endpoint.IsValid():
		return false, "no handshake yet; waits for " + t.Remote + " to dial"
	case f.LastHandshake.IsZero():
		return false, "no handshake yet; dials " + t.Endpoint.String()
	case age >= RejectAfter:
		return false, "last handshake is older than " + RejectAfter.String()
	}
	return true, "handshake"
}
