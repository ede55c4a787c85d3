package links

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay/bfd"
)

// slowStart is what a session may take from its first packet to Up besides a detection time: both ends send once per second until then.
const slowStart = 3 * time.Second

// repair is the one writer of the routes to the plan's VTEPs, of the groups of next hops they may go through, and of the objects of its
// next-hop sets. Two call it: the BFD engine's thread, at each change of a session, and the
// engine's pass. Choosing and writing are one turn under mu, so neither undoes the other.
//
//	pass: Observe ── mu{ generation as before Observe? choose, write } ── else Observe again
//	BFD:             mu{ note the session, choose, write, generation++ } ── wake the pass
//
// mu is never held while something is read from the kernel, nor while the BFD engine is asked: its thread waits for mu.
type repair struct {
	// routes is used under mu only.
	routes kernel.Routes
	// share says that the kernel has next-hop objects.
	share bool
	now   func() time.Time

	mu sync.Mutex
	// urgent counts changes of sessions that wait for mu.
	urgent atomic.Int32
	legs   map[string]*leg
	// paths are the devices of sessions on tunnels.
	paths map[bfd.Path]string
	ways  []*way
	// own is our VTEP, route the route over a device.
	own   netip.Addr
	route func(device string) kernel.Route
	// generation counts writes. What was observed before the last of them is stale.
	generation uint64
	// switched counts ways that changed at a change of a session.
	switched uint64
	closed   bool

	// nextHops is used under mu only, for groups of tunnels and sets; sets are the plan's, and watches their peers' sessions.
	nextHops kernel.NextHops
	sets     []*nextHopSet
	watches  map[bfd.Path]*watch
	// moved counts sets moved at a change of a session.
	moved uint64
}

// leg is one tunnel as far as the choice depends on it.
type leg struct {
	// usable: the device is there and up. Fresh: WireGuard's last handshake is young. Unknown: they could not be read, and are as before.
	usable, fresh, unknown bool
	// drained by our operator, remoteDrained by the neighbour's.
	drained, remoteDrained bool

	// bfd: a session tells whether the tunnel is alive; else the handshake does.
	bfd       bool
	path      bfd.Path
	detection time.Duration
	state     bfd.State
	// reason of the last change, and how many there were.
	reason  string
	changes int
	// trust is until when a session that is not Up says nothing about the path: it has just begun.
	trust time.Time
	// lenient is until when the session is awaited that the other end began anew without a word: as long as silence would be.
	lenient time.Time
	hold    hold
	// prompt: traffic moves here as soon as the session is up; the other end waits for that.
	prompt bool
}

// Grades of tunnels, best first. Within a grade the rank decides.
const (
	gradeUp = iota
	// gradeHeld: up, but not yet to be returned to.
	gradeHeld
	// gradeUnknown: carries the route, and cannot be judged.
	gradeUnknown
	// gradeRestarted: the other end's engine begins anew, which says nothing about the path; gradeDrained. Either only if there is nothing else.
	gradeRestarted
	gradeDrained
	gradeDead
)

// grade says how fit a leg is; current: the route is over it now.
func (l *leg) grade(current bool, now time.Time) int {
	switch {
	case !l.usable:
		return gradeDead
	case l.drained || l.remoteDrained:
		// A session that was taken down by command tells no more: the handshake does.
		if l.fresh || l.bfd && l.state == bfd.Up {
			return gradeDrained
		}
	case l.bfd && l.state == bfd.Up:
		if !current && l.held(now) {
			return gradeHeld
		}
		return gradeUp
	case l.bfd:
		if current && l.fresh && now.Before(l.trust) {
			return gradeUp
		}
		if current && l.fresh && now.Before(l.lenient) {
			return gradeRestarted
		}
	case l.fresh:
		return gradeUp
	}
	if current && l.unknown && !l.bfd {
		return gradeUnknown
	}
	return gradeDead
}

// changed takes a change of a session. It runs on the BFD engine's thread.
func (r *repair) changed(c bfd.Change) {
	r.urgent.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.urgent.Add(-1)
	now := r.now()
	device, ours := r.paths[c.Path]
	if r.closed || !ours && r.watched(c) {
		return
	}
	if !ours {
		r.crossed(c, now)
		return
	}
	r.legs[device].tell(c.Transition, now)
	r.mend(device, now)
}

// giveWay lets changes of sessions go first that wait for mu, which is free: a mutex prefers who is running already.
func (r *repair) giveWay() {
	for r.urgent.Load() > 0 {
		time.Sleep(10 * time.Microsecond)
	}
}

// tell notes a change of the leg's session.
func (l *leg) tell(t bfd.Transition, now time.Time) {
	switch {
	case t.To == bfd.Up:
		l.hold.up(now)
		l.remoteDrained, l.trust = false, time.Time{}
	case t.RemoteAdminDown():
		l.remoteDrained = true
	case t.To == bfd.AdminDown:
	case t.From == bfd.Up:
		l.hold.down(now)
		l.trust, l.lenient = time.Time{}, time.Time{}
		if t.RemoteRestarted() {
			l.lenient = now.Add(l.detection)
		}
	case t.From == bfd.AdminDown, t.To == bfd.Init && l.remoteDrained:
		// One of the operators has given the tunnel back: the session begins anew.
		l.remoteDrained, l.trust = false, now.Add(l.detection+slowStart)
	}
	l.state, l.reason = t.To, t.Reason
	l.changes++
}

// mend writes the route of each VTEP that has the device among its ways, or the group of next hops it goes through, if it shall be over
// others now. The pass sees to what fails.
func (r *repair) mend(device string, now time.Time) {
	for _, w := range r.ways {
		if slices.Contains(w.devices, device) || slices.Contains(w.current, device) {
			r.correct(w, now)
		}
	}
}

// correct writes the route of a VTEP, or the group it goes through, if it shall be over others now.
func (r *repair) correct(w *way, now time.Time) {
	if !w.known {
		return
	}
	want := r.choose(w, now)
	if slices.Equal(want, w.current) {
		return
	}
	r.switched++
	was := w.current
	if len(want) == 0 {
		// Routes that have another next hop leave first: nothing else stands between them and the traffic.
		w.current = nil
		r.moveSets(now)
		w.current = was
	}
	want, _ = r.regroup(context.Background(), w, want, now)
	if op := r.routeOp(w, want); op != nil {
		r.generation++
		if err := r.routes.Apply(context.Background(), []reconcile.Op[kernel.RouteKey, kernel.Route]{*op})[0]; err == nil {
			w.wrote(op)
			w.transit.moved(now)
		}
	}
	if len(was) == 0 && len(w.current) > 0 {
		r.moveSets(now)
	}
}

// begin is the generation before an observation.
func (r *repair) begin() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation
}

// outcome is what settle did about one VTEP.
type outcome struct {
	// devices of the route now; known is false if nobody knows.
	devices []string
	known   bool
	// down says why the VTEP counts as unreachable though it has a route, "" if it does not.
	down string
	// op that was applied, nil if nothing had to be done, and its error.
	op  *reconcile.Op[kernel.RouteKey, kernel.Route]
	err error
	// group is likewise about the group of next hops.
	group    *reconcile.Op[uint32, kernel.NextHop]
	groupErr error
}

// settle makes the routes right, and the groups they go through, given those that were observed after begin had returned generation. It does
// nothing and is not ok if a session's change has written since: observe again. With have nil, nothing is written, only told.
func (r *repair) settle(ctx context.Context, generation uint64, have map[kernel.RouteKey]kernel.Route, hops map[uint32]kernel.NextHop) (out map[kernel.RouteKey]outcome, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if generation != r.generation {
		return nil, false
	}
	now := r.now()
	out = map[kernel.RouteKey]outcome{}
	var ops []reconcile.Op[kernel.RouteKey, kernel.Route]
	var ways []*way
	for _, w := range r.ways {
		var o outcome
		if have != nil {
			found := !w.known
			w.see(have, hops)
			if found {
				w.linger(w.current, time.Time{}, now)
			}
			if found && w.there && w.transit != nil {
				w.transit.adopt(w.hub(), now)
			}
			var want []string
			want, o.group = r.regroup(ctx, w, r.choose(w, now), now)
			o.groupErr = w.refused
			if op := r.routeOp(w, want); op != nil {
				ops, ways = append(ops, *op), append(ways, w)
			}
		}
		o.devices, o.known, o.down = w.current, w.known, w.transit.down()
		out[w.key] = o
	}
	if len(ops) == 0 {
		return out, true
	}
	r.generation++
	for i, err := range r.routes.Apply(ctx, ops) {
		if err == nil {
			ways[i].wrote(&ops[i])
			ways[i].transit.moved(now)
		}
		o := out[ops[i].Key]
		o.devices, o.down, o.op, o.err = ways[i].current, ways[i].transit.down(), &ops[i], err
		out[ops[i].Key] = o
	}
	return out, true
}

// next is when time alone changes a choice next; zero for never.
func (r *repair) next() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var next time.Time
	now := r.now()
	for _, l := range r.legs {
		for _, t := range []time.Time{l.hold.until, l.trust, l.lenient} {
			if l.bfd && t.After(now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	for _, w := range r.ways {
		for _, t := range w.times() {
			if t.After(now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	for _, t := range r.setTimes() {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// switches counts ways that changed at a change of a session.
func (r *repair) switches() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.switched
}

// close ends what changes of sessions do: the routes stay as they are.
func (r *repair) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// drain notes who is drained, and moves traffic at once.
func (r *repair) drain(drained map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for d, l := range r.legs {
		if l.drained == drained[d] {
			continue
		}
		l.drained = drained[d]
		if !l.drained {
			l.trust = now.Add(l.detection + slowStart)
		}
		r.mend(d, now)
	}
}
