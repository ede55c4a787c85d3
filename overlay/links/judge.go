package links

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// judge works out which tunnels are up. What could not be read is no news: such a tunnel stays what it was, unless BFD knows better.
func (e *Engine) judge(plan overlay.Plan, found map[string]kernel.Link, linksRead bool, facts map[string]Facts, factsRead bool, states map[bfd.Path]bfd.Status, now time.Time) {
	// Told when the table is free again: the BFD engine's thread must not wait for a log.
	var tell []func()
	defer func() {
		for _, f := range tell {
			f()
		}
	}()
	e.repair.mu.Lock()
	defer e.repair.mu.Unlock()
	for _, t := range plan.Tunnels {
		was, l := e.tunnels[t.Device], e.repair.legs[t.Device]
		link, there := found[t.Device]
		f, answers := facts[t.Device]
		l.unknown = !linksRead || !factsRead && !answers
		if l.unknown && !l.bfd {
			continue
		}
		state, reason := Down, ""
		if !l.unknown {
			l.usable, l.fresh = there && link.Up, false
			if l.usable && answers {
				l.fresh, reason = e.cfg.Liveness.Alive(t, f, now)
			}
		}
		switch {
		case !there && linksRead && was.state != Up:
			state, reason = Starting, "no device yet"
		case !there && linksRead:
			reason = "the device is gone"
		case !link.Up && linksRead:
			reason = "the device is down"
		case l.bfd:
			state, reason = l.verdict(states[l.path].Problem, reason, now)
		case !answers:
			reason = "WireGuard does not answer"
		case l.fresh:
			state = Up
		}
		if state == Down && was.state == Starting {
			state = Starting
		}
		if l.drained && !l.bfd {
			reason = "drained; " + reason
		}
		reason = carrierReason(t, e.carrierStates[t.Device], e.listenerErr, state, reason)
		if state != was.state {
			was.since = now
			before := was.state
			tell = append(tell, func() {
				e.cfg.Log.Info("tunnel "+state, "tunnel", t.Name, "device", t.Device, "was", before, "reason", reason)
			})
		}
		was.state, was.reason = state, reason
	}
}

// verdict is the state of a tunnel with BFD, and why. handshake is what WireGuard says.
func (l *leg) verdict(problem, handshake string, now time.Time) (state, reason string) {
	clock := func(t time.Time) string { return t.UTC().Format(time.TimeOnly) + " UTC" }
	switch {
	case l.drained:
		return Down, "drained here"
	case l.state == bfd.Up && l.held(now):
		reason = "BFD; held until " + clock(l.hold.until) + " before traffic returns to it"
		if l.hold.flaps > 0 {
			reason += ", as it flaps"
		}
		return Up, reason
	case l.state == bfd.Up:
		return Up, "BFD"
	case l.remoteDrained:
		return Down, "drained at the other end"
	case problem != "":
		return Down, "BFD: " + problem
	case now.Before(l.trust):
		return Starting, "BFD is not up yet; a route over it is kept until " + clock(l.trust)
	case now.Before(l.lenient):
		return Starting, "BFD: the other end has begun anew; a route over it is kept until " + clock(l.lenient) + " if there is no other"
	case l.reason != "" && l.fresh:
		return Down, "BFD: " + l.reason
	case l.fresh:
		return Down, "BFD: the other end has not answered yet"
	case handshake == "":
		return Down, "BFD: " + l.reason
	}
	return Down, handshake
}

// routeVTEPs chooses and writes the route of each VTEP, over its highest ranked tunnel that is up, and says which tunnels are active. A
// route that may be right stays though no tunnel is known to be up: right after a start, when the first reading failed. Such a VTEP
// counts as reachable by the route that is there; if routes could not be read either, what was last told stands. before is an earlier
// observation in this pass, nil if it failed.
func (e *Engine) routeVTEPs(p *pass, plan overlay.Plan, routes kind[kernel.RouteKey, kernel.Route], backstops, before map[kernel.RouteKey]kernel.Route, now time.Time) (active map[string]bool) {
	const tries = 5
	var have map[kernel.RouteKey]kernel.Route
	var hops map[uint32]kernel.NextHop
	var results map[kernel.RouteKey]outcome
	var err error
	for range tries {
		generation, done := e.repair.begin(), false
		if have, err = routes.edge.Observe(p.ctx); err == nil && e.repair.anyGroup(have) {
			hops, err = e.cfg.Host.NextHops(kernel.ProtocolLinks).Observe(p.ctx)
		}
		if err != nil {
			have = nil
		}
		if results, done = e.repair.settle(p.ctx, generation, have, hops); done {
			break
		}
	}
	if results == nil {
		// Sessions change faster than routes are read. They have their routes from the BFD engine; the rest is the next pass's.
		e.Wake()
		results, _ = e.repair.settle(p.ctx, e.repair.begin(), nil, nil)
	}

	planned := map[kernel.RouteKey]bool{}
	vteps := map[string]VTEPState{}
	active = map[string]bool{}
	for _, v := range plan.VTEPs {
		key := vtepKey(v.Addr)
		planned[key] = true
		r := results[key]
		if r.op != nil {
			e.logOp(r.op.Kind.String(), kindRoute, routeName(key), r.err)
			if r.err == nil {
				p.changes++
			}
		}
		if r.group != nil {
			e.logOp(r.group.Kind.String(), kindNextHop, groupName(r.group.Key, v.Gateway), r.groupErr)
			p.note(kindNextHop, groupName(r.group.Key, v.Gateway), r.groupErr)
			if r.groupErr == nil {
				p.changes++
			}
		}
		if r.known && err == nil && (len(r.devices) > 0 || r.err != nil) {
			p.note(kindRoute, routeName(key), r.err)
		}
		if !r.known {
			// Nothing is known of it at all: nothing is told.
			continue
		}
		s := VTEPState{Gateway: v.Gateway, Addr: v.Addr, Devices: r.devices}
		if len(r.devices) > 0 {
			s.Device = r.devices[0]
		}
		s.Reason = transitReason(plan, v, s.Device, e.vtepReason(v, s.Device)+e.sharing(r))
		if r.down != "" && s.Device != "" {
			s.Device, s.Devices, s.Reason = "", nil, r.down
		}
		was, known := e.vteps[v.Gateway]
		known = known && was.Addr == v.Addr
		s.Since = was.Since
		if !known || !slices.Equal(was.Devices, s.Devices) {
			s.Since = now
			e.cfg.Log.Info("vtep route", "gateway", v.Gateway, "vtep", v.Addr, "device", strings.Join(s.Devices, ","), "was", strings.Join(was.Devices, ","), "reason", s.Reason)
		}
		vteps[v.Gateway] = s
		if len(v.Via) == 0 {
			for _, d := range s.Devices {
				active[d] = true
			}
		}
	}
	e.vteps = vteps

	// The rest of our routes: backstops, and those of VTEPs that the plan has no more.
	routes.edge = observed{routes.edge, have, err}
	routes.keep = func(k kernel.RouteKey, _ kernel.Route) bool { return planned[k] }
	_, _ = converge(p, routes, backstops)
	return active
}

// vtepReason says why a VTEP's route is over device, or over none.
func (e *Engine) vtepReason(v overlay.RemoteVTEP, device string) string {
	if t := e.tunnels[device]; t != nil {
		if !slices.Contains(v.Devices, device) {
			return "kept as the plan before had it, until a tunnel of the present one is up"
		}
		switch l := e.repair.look(device); {
		case l.drained || l.remoteDrained:
			return t.reason + "; used because no other tunnel is up"
		case t.state == Up:
			return t.reason
		case l.unknown:
			return "route kept as it was found: its tunnel could not be read"
		}
		return t.reason
	}
	if device != "" {
		return "route kept as it was found"
	}
	if v.Problem != "" || len(v.Devices) == 0 {
		return v.Problem
	}
	return "no tunnel is up: " + e.tunnels[v.Devices[0]].reason
}

// look is a copy of what the choice knows of a tunnel.
func (r *repair) look(device string) leg {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.legs[device]; l != nil {
		return *l
	}
	return leg{}
}

// observed is an edge whose observation has been made.
type observed struct {
	reconcile.Edge[kernel.RouteKey, kernel.Route]
	have map[kernel.RouteKey]kernel.Route
	err  error
}

// Observe implements reconcile.Edge.
func (o observed) Observe(context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	return maps.Clone(o.have), o.err
}

// Equal implements reconcile.Equaler.
func (o observed) Equal(k kernel.RouteKey, want, have kernel.Route) bool {
	return kernel.EqualRoute(k, want, have)
}
