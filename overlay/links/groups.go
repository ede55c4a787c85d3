package links

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

// Tunnels of equal rank share traffic through a group of next hops, one group for each VTEP that has such tunnels:
//
//	10.255.0.2 nhid G      G: group M1,M2      M1: dev fxw…      M2: via fe80::… dev fxw… (a direct tunnel)
//
// The route refers to the group while the tunnels in use are of such a rank, however many of them are up, so that a tunnel that fails or
// comes back is one replacement of the group, and the route stays. Members are made by the pass; groups are the repair table's to write.
//
// Where a group cannot be had (no next-hop objects, somebody else's on its id), the route goes over the first of the tunnels alone.

// way is one remote VTEP.
type way struct {
	key kernel.RouteKey
	// devices in rank order, and their ranks.
	devices []string
	ranks   []int
	// group is the id of the VTEP's group of next hops, members those of its devices' next hops.
	group   uint32
	members map[string]uint32
	// shared are the devices that have others of equal rank; empty where the kernel has no next-hop objects.
	shared map[string]bool
	// tunnels are the tunnels of the devices: generations of one never share traffic.
	tunnels map[string]string

	// current are the devices that the route is over as it stands, in rank order; none without a route. known says that it was ever read.
	current []string
	known   bool
	// route as it stands, if there is one, and the group as it stands; its Group is "" if there is none.
	route kernel.Route
	there bool
	hops  kernel.NextHop
	// refused says why the group could not be written last time.
	refused error
	// former are devices that the plan does not name for the VTEP any more, and which its route is over until those of the plan are up, or
	// until the time given: a hub, where a tunnel of its own takes its place.
	former []string
	until  time.Time
	// transit is what decides beside the tunnels where the VTEP is reached over hubs, nil elsewhere.
	transit *transit
}

// newWay is the way to a VTEP of a plan, with what is known of it from before. hubs are the places of the devices' hubs, from 0.
func newWay(v overlay.RemoteVTEP, ranks, hubs map[string]int, tunnels map[string]string, shared map[string]bool, before []*way, now time.Time) *way {
	w := &way{
		key: vtepKey(v.Addr), devices: v.Devices, group: overlay.TunnelGroupID(v.Addr), members: map[string]uint32{}, shared: shared, tunnels: tunnels,
	}
	for _, d := range v.Devices {
		// Tunnels to different hubs are never of equal rank: the session across the hub watches one of them.
		w.ranks = append(w.ranks, ranks[d]+hubs[d]*len(ranks))
		w.members[d] = overlay.TunnelNextHopID(d)
	}
	if i := slices.IndexFunc(before, func(old *way) bool { return old.key == w.key }); i >= 0 {
		old := before[i]
		w.current, w.known, w.route, w.there, w.hops, w.refused = old.current, old.known, old.route, old.there, old.hops, old.refused
		w.linger(old.current, old.until, now)
	}
	return w
}

// formerFor is how long a VTEP's route may be over tunnels that the plan does not name for it any more. The other end, and the hub, may get the
// document later; but nothing tells whether the hub still brings packets on.
const formerFor = 5 * time.Minute

// linger notes that the route is over devices of a former plan, if it is. until is zero where that has just come about.
func (w *way) linger(current []string, until, now time.Time) {
	if len(current) == 0 || slices.Contains(w.devices, current[0]) {
		return
	}
	if until.IsZero() {
		until = now.Add(formerFor)
	}
	w.former, w.until = current, until
	for _, d := range current {
		w.members[d] = overlay.TunnelNextHopID(d)
	}
}

// times are when time alone may change the choice.
func (w *way) times() []time.Time {
	times := []time.Time{w.until}
	if w.transit != nil {
		times = append(times, w.transit.trust, w.transit.excused)
	}
	return times
}

// see takes the way as it was read.
func (w *way) see(have map[kernel.RouteKey]kernel.Route, hops map[uint32]kernel.NextHop) {
	w.route, w.there = have[w.key]
	w.hops, w.known, w.refused = hops[w.group], true, nil
	w.current = w.over(w.route, w.hops)
}

// over are the devices that a route is over.
func (w *way) over(r kernel.Route, hops kernel.NextHop) (devices []string) {
	switch {
	case r.Device != "":
		return []string{r.Device}
	case r.NextHopID != w.group:
		return nil
	}
	ids := strings.Split(hops.Group, ",")
	for _, d := range slices.Concat(w.devices, w.former) {
		if slices.Contains(ids, strconv.FormatUint(uint64(w.members[d]), 10)) {
			devices = append(devices, d)
		}
	}
	return devices
}

// grouped says whether traffic over these devices, all of one rank, goes through the group.
func (w *way) grouped(devices []string) bool {
	return len(devices) > 0 && w.refused == nil && w.shared[devices[0]]
}

// groupOf is the group of these devices.
func (w *way) groupOf(devices []string) kernel.NextHop {
	var ids []uint32
	for _, d := range devices {
		ids = append(ids, w.members[d])
	}
	return nextHopGroup(ids)
}

// nextHopGroup is the group of these next hops.
func nextHopGroup(ids []uint32) kernel.NextHop {
	slices.Sort(ids)
	var text []string
	for _, id := range ids {
		text = append(text, strconv.FormatUint(uint64(id), 10))
	}
	return kernel.NextHop{Group: strings.Join(text, ","), Protocol: kernel.ProtocolLinks}
}

// choose is the devices that the VTEP's route shall be over, all of one rank; none if there is no way.
func (r *repair) choose(w *way, now time.Time) []string {
	if w.transit == nil {
		return r.best(w, false, now)
	}
	w.transit.lapse(w.hub(), now)
	if chosen := r.best(w, true, now); len(chosen) > 0 {
		return chosen
	}
	// Those that were blamed are better than none.
	return r.best(w, false, now)
}

// best is the best of the way's devices; blameless: of those alone whose hub has not been blamed.
func (r *repair) best(w *way, blameless bool, now time.Time) (chosen []string) {
	grade, rank, unknown := gradeDead, 0, false
	for i, d := range w.devices {
		l := r.legs[d]
		if l == nil || blameless && w.transit.blamed[w.transit.hubs[i]] {
			continue
		}
		unknown = unknown || l.unknown
		current := slices.Contains(w.current, d)
		g := l.grade(current, now)
		// Among drained ones traffic stays where it is: the others may be without cable by now.
		stays := g == gradeDrained && len(chosen) > 0 && current != slices.Contains(w.current, chosen[0])
		switch {
		case g < grade, g == grade && stays && current:
			grade, rank, chosen = g, w.ranks[i], []string{d}
		case g == grade && slices.ContainsFunc(chosen, func(c string) bool { return w.tunnels[c] == w.tunnels[d] }):
		case g == grade && !stays && g != gradeDead && w.ranks[i] == rank:
			chosen = append(chosen, d)
		}
	}
	if len(chosen) == 0 && (unknown || now.Before(w.until) && r.carries(w.former, now)) && !slices.ContainsFunc(w.current, func(d string) bool { return slices.Contains(w.devices, d) }) {
		// The route is over a device that the plan does not name any more, and of the others nothing is known or none is up.
		return w.current
	}
	if len(chosen) > 1 && !w.grouped(chosen) {
		return chosen[:1]
	}
	return chosen
}

// carries says whether a tunnel among these is up.
func (r *repair) carries(devices []string, now time.Time) bool {
	return slices.ContainsFunc(devices, func(d string) bool {
		l := r.legs[d]
		return l != nil && l.grade(true, now) != gradeDead
	})
}

// groupOp makes the group have these members; nil if it has them.
func (w *way) groupOp(devices []string) *reconcile.Op[uint32, kernel.NextHop] {
	want := w.groupOf(devices)
	switch w.hops.Group {
	case want.Group:
		return nil
	case "":
		return &reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Create, Key: w.group, New: want}
	}
	return &reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Replace, Key: w.group, Old: w.hops, New: want}
}

// regroup writes the group, if traffic over these devices goes through it and it has other members. Where it cannot be written the devices
// to use instead are returned.
func (r *repair) regroup(ctx context.Context, w *way, devices []string, now time.Time) (use []string, op *reconcile.Op[uint32, kernel.NextHop]) {
	if !w.grouped(devices) {
		return devices, nil
	}
	if op = w.groupOp(devices); op == nil {
		return devices, nil
	}
	r.generation++
	if err := r.nextHops.Apply(ctx, []reconcile.Op[uint32, kernel.NextHop]{*op})[0]; err != nil {
		w.refused = err
		return r.choose(w, now), op
	}
	through := w.there && w.route.NextHopID == w.group
	if w.hops = op.New; through {
		w.current = devices
	}
	return devices, op
}

// routeOp makes the route be over these devices; nil if it is.
func (r *repair) routeOp(w *way, devices []string) *reconcile.Op[kernel.RouteKey, kernel.Route] {
	switch {
	case len(devices) == 0 && !w.there:
		return nil
	case len(devices) == 0:
		return &reconcile.Op[kernel.RouteKey, kernel.Route]{Kind: reconcile.Delete, Key: w.key, Old: w.route}
	case slices.Equal(devices, w.current) && !slices.Contains(w.devices, devices[0]):
		// Kept as it was found.
		return nil
	}
	want := r.route(devices[0])
	if w.grouped(devices) {
		want = groupRoute(r.own, w.group)
	}
	switch {
	case !w.there:
		return &reconcile.Op[kernel.RouteKey, kernel.Route]{Kind: reconcile.Create, Key: w.key, New: want}
	case kernel.EqualRoute(w.key, want, w.route):
		return nil
	}
	return &reconcile.Op[kernel.RouteKey, kernel.Route]{Kind: reconcile.Replace, Key: w.key, Old: w.route, New: want}
}

// wrote notes a route that was written.
func (w *way) wrote(op *reconcile.Op[kernel.RouteKey, kernel.Route]) {
	w.route, w.there = op.New, op.Kind != reconcile.Delete
	w.current = w.over(w.route, w.hops)
}

// groupRoute is the route to a remote VTEP through a group of next hops.
func groupRoute(own netip.Addr, group uint32) kernel.Route {
	return kernel.Route{Scope: kernel.LinkScope, NextHopID: group, Src: own, Protocol: kernel.ProtocolLinks}
}

// inUse are the ids of groups and members that routes refer to, or may refer to since they could not be read.
func (r *repair) inUse() map[uint32]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := map[uint32]bool{}
	for _, w := range r.ways {
		if w.known && (!w.there || w.route.NextHopID != w.group) && len(w.shared) == 0 {
			continue
		}
		ids[w.group] = true
		for _, id := range w.members {
			ids[id] = true
		}
	}
	return ids
}

// anyGroup says whether a route goes, or shall go, through a group.
func (r *repair) anyGroup(have map[kernel.RouteKey]kernel.Route) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.ways, func(w *way) bool { return len(w.shared) > 0 || have[w.key].NextHopID != 0 })
}

// groups adds the next hops of tunnels of equal rank, and what spreads flows over them and over the legs of sets: with the kernel's default all packets from
// one VTEP to another, which are those of all VRFs, would take one way.
func (d *desired) groups(p overlay.Plan) {
	shared, leads := p.Shared(), map[string]bool{}
	for _, v := range p.VTEPs {
		for _, device := range v.Devices {
			leads[device] = true
		}
	}
	for _, t := range p.Tunnels {
		// Former keys stay for what is under way, and lead nowhere any more.
		if shared[t.Device] && leads[t.Device] {
			d.members[overlay.TunnelNextHopID(t.Device)] = kernel.NextHop{
				Device: t.Device, Gateway: throughGateway(t), Protocol: kernel.ProtocolLinks,
			}
		}
	}
	sharing := slices.ContainsFunc(p.AllSets(), func(s overlay.NextHopSet) bool { return s.Equal > 0 })
	if len(d.members) > 0 || sharing {
		d.sysctls["net.ipv4.fib_multipath_hash_policy"] = "1"
		d.sysctls["net.ipv6.fib_multipath_hash_policy"] = "1"
	}
}

// memberHops syncs the next hops of tunnels of equal rank. Nothing is removed here: a route may go through it yet.
func (e *Engine) memberHops(p *pass, want map[uint32]kernel.NextHop) {
	if len(want) == 0 || !e.cfg.Host.Features().NextHops {
		return
	}
	_, _ = converge(p, kind[uint32, kernel.NextHop]{
		name: kindNextHop, edge: e.cfg.Host.NextHops(kernel.ProtocolLinks),
		label:   func(id uint32) string { return strconv.FormatUint(uint64(id), 10) + " of tunnel " + want[id].Device },
		explain: func(id uint32, err error) error { return waitIfMissing(err, "device "+want[id].Device) },
		keep:    func(uint32, kernel.NextHop) bool { return true },
	}, want)
}

// groupName is how people know the group of a VTEP.
func groupName(id uint32, gateway string) string {
	return fmt.Sprintf("%d, the tunnels of equal rank to %s", id, gateway)
}

// sharing says what to add to the reason of a VTEP's route that is over these devices.
func (e *Engine) sharing(o outcome) string {
	shared := e.effective.Shared()
	switch {
	case len(o.devices) == 0 || !shared[o.devices[0]]:
		return ""
	case !e.cfg.Host.Features().NextHops:
		return "; alone, because this kernel has no next-hop objects to share traffic by"
	case o.groupErr != nil:
		return "; alone, because the group could not be written: " + o.groupErr.Error()
	case len(o.devices) > 1:
		return fmt.Sprintf("; shared by %d tunnels of rank %d", len(o.devices), e.rank(o.devices[0]))
	}
	return ""
}

// rank of a tunnel, by the device of any of its keys.
func (e *Engine) rank(device string) int {
	for _, t := range e.effective.Tunnels {
		if t.Device == device {
			return t.Rank
		}
	}
	return 0
}
