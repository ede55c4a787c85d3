package links

import (
	"context"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

// Handshakes of both ends that cross on their way leave each end waiting for the other:
//
//	a: initiation ──►      ◄── initiation :b     each answers, and so gives up its own attempt
//	a: response   ──►      ◄── response   :b     each drops the answer to it
//
// WireGuard repeats them 5 s later (REKEY_TIMEOUT and up to a third of a second), when they may cross again. Ends that come up at the same
// moment, or a path that comes back, are enough for it. An end sees it: the other one was heard, which only its authenticated messages count
// for, and there is no handshake. Then the end whose name sorts first forgets what it has begun, and dials again. Nobody waits in advance,
// so whoever comes up last still reaches the other at once.
const (
	// crossedAfter is how long a handshake may take once the other end was heard; more than the round trip takes.
	crossedAfter = time.Second
	// crossedAgain is the time to the next attempt: WireGuard's own come first.
	crossedAgain = 15 * time.Second
)

// crossing follows what is received on a tunnel without a handshake.
type crossing struct {
	// read says that a reading was made, rx is what had been received then.
	read bool
	rx   uint64
	// heard is when the other end was last heard without a handshake that followed, since when that is so; zero if not.
	heard, since time.Time
	// again is when it may be acted on next.
	again time.Time
}

// reading takes what was received. fresh: there is a young handshake.
func (c *crossing) reading(fresh bool, rx uint64, now time.Time) {
	more := c.read && rx > c.rx
	c.read, c.rx = true, rx
	switch {
	case fresh:
		c.heard, c.since = time.Time{}, time.Time{}
	case more:
		c.heard = now
		if c.since.IsZero() {
			c.since = now
		}
	}
}

// lately says whether the other end was heard not long ago, though there is no handshake.
func (c *crossing) lately(now time.Time) bool {
	return !c.heard.IsZero() && now.Sub(c.heard) < crossedAgain
}

// stuck says whether to dial again.
func (c *crossing) stuck(now time.Time) bool {
	if !c.lately(now) || now.Sub(c.since) < crossedAfter || now.Before(c.again) {
		return false
	}
	c.since, c.again = time.Time{}, now.Add(crossedAgain)
	return true
}

// redial makes a tunnel on which handshakes have crossed forget what it has begun. The pass configures it anew, and so it dials.
func (e *Engine) redial(ctx context.Context, gateway string, t overlay.Tunnel, now time.Time) {
	dials := t.Kind == overlay.KindWireGuard && t.Endpoint.IsValid() && gateway < t.Remote
	if !dials || !e.tunnels[t.Device].crossing.stuck(now) {
		return
	}
	// Only a peer that is made anew forgets when it dialled last.
	err := e.cfg.Host.WireGuards().Apply(ctx, []reconcile.Op[string, kernel.WireGuard]{{Kind: reconcile.Delete, Key: t.Device}})[0]
	e.logOp("dial again (handshakes crossed)", kindWireGuard, t.Device, err)
}
