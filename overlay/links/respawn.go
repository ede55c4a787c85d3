package links

import (
	"fmt"
	"time"
)

// Times between starts of a tunnel process that keeps dying, and the life after which a death is no longer a sign of that.
const (
	respawnFirst = time.Second
	respawnMost  = 30 * time.Second
	respawnLived = 5 * time.Second
)

// respawn spaces the starts of one tunnel process: at once after a long life, then doubling.
//
//	start ── lives ≥ 5 s ───► start at once
//	  └───── dies sooner ───► wait 1 s, 2 s, 4 s … 30 s
type respawn struct {
	started time.Time
	// seen is when it was last seen alive.
	seen time.Time
	wait time.Duration
}

// next says whether a start is due; if not, what it waits for.
func (r *respawn) next(now time.Time) error {
	if r.started.IsZero() || r.seen.Sub(r.started) >= respawnLived {
		r.wait = 0
		return nil
	}
	if left := r.wait - now.Sub(r.started); left > 0 {
		if r.wait == respawnFirst {
			return &pendingError{"the tunnel process to come up"}
		}
		return fmt.Errorf("the tunnel process died soon after its start; it is started again within %s; its log is in the run folder", r.wait)
	}
	return nil
}

// start notes a start.
func (r *respawn) start(now time.Time) {
	r.started, r.seen = now, now
	r.wait = min(max(respawnFirst, 2*r.wait), respawnMost)
}
