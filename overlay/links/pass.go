package links

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/version"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// Kinds of objects, as results name them.
const (
	kindProcess   = "tunnel process"
	kindLink      = "link"
	kindSysctl    = "sysctl"
	kindAddress   = "address"
	kindWireGuard = "wireguard"
	kindRoute     = "route"
	kindNextHop   = "next hop"
	kindSet       = "next-hop set"
	kindSession   = "bfd session"
	kindNeighbour = "neighbour"
)

// pass looks at the whole host once and mends it. The order has reasons:
//
//  1. backstops before anything that could carry inner packets;
//  2. devices, with sysctls before they come up, tunnel processes, then addresses and WireGuard;
//  3. BFD sessions, what they and WireGuard say, which tunnels are alive, the one route per VTEP;
//  4. next hops, on devices of fabric-site;
//  5. removals, in the reverse order.
func (e *Engine) pass(ctx context.Context) *pass {
	p := &pass{ctx: ctx, objects: map[[2]string]Object{}, log: e.logOp}
	if e.plan == nil {
		// Nothing is known of what shall be: nothing is touched.
		return p
	}
	plan, h := e.expand(*e.plan), e.cfg.Host
	e.effective = plan
	now := e.cfg.Now()
	e.remember(plan, now)
	e.repair.expect(plan, e.spread(e.drained), e.cfg.BFD != nil)
	e.repair.hasten(e.prompt())
	if e.told {
		e.repair.vouch()
		e.told = false
	}

	ours := h.Links(kernel.KindWireGuard, kernel.KindTUN, kernel.KindDirect)
	present, err := ours.Observe(ctx)
	if err != nil {
		// Which tunnels are whose is not known: another pass will.
		p.note(kindLink, "*", fmt.Errorf("read links: %w", err))
		e.publishProblems(p)
		return p
	}
	e.tellCarriers(p, plan, ours, present)
	carried := e.carriers(plan, present)
	want := desire(plan, func(d string) bool { return carried[d] })

	routes := kind[kernel.RouteKey, kernel.Route]{name: kindRoute, edge: h.Routes(kernel.ProtocolLinks, kernel.MainTable), label: routeName}
	backstops := routes
	backstops.keep = func(kernel.RouteKey, kernel.Route) bool { return true }
	before, _ := converge(p, backstops, want.backstops)

	e.sysctls(p, hostSysctls)
	e.sysctls(p, want.sysctls)
	waiting := func(d string, err error) error {
		if carried[d] {
			return waitIfMissing(err, "the tunnel process to make the device")
		}
		if l := want.links[d]; l.Kind == kernel.KindDirect {
			return explainDirect(l, err)
		}
		return err
	}
	found, linksErr := converge(p, kind[string, kernel.Link]{
		name: kindLink, edge: ours, label: name, explain: waiting,
		// A TUN device goes with its process.
		keep: func(_ string, l kernel.Link) bool { return l.Kind == kernel.KindTUN },
	}, want.links)
	if linksErr == nil {
		e.startProcesses(p, carried)
		e.stopProcesses(p, plan)
	}
	e.keepListener(p, plan)
	_, _ = converge(p, kind[kernel.AddressKey, kernel.Address]{
		name: kindAddress, edge: e.addresses,
		label:   func(k kernel.AddressKey) string { return k.Prefix.String() + " dev " + k.Device },
		explain: func(k kernel.AddressKey, err error) error { return waitIfMissing(err, "device "+k.Device) },
	}, want.addresses)
	e.neighbours(p, want.neighbours)

	facts, factsErr := e.cfg.Reader.Facts(ctx, slices.Sorted(maps.Keys(want.wireguards)))
	if factsErr != nil {
		p.note(kindWireGuard, "*", fmt.Errorf("read tunnels: %w", factsErr))
	}
	for d, f := range facts {
		if f.Hung {
			delete(facts, d)
			err := e.cfg.Processes.Kill(d)
			e.logOp("kill (it does not answer)", kindProcess, d, err)
			p.note(kindProcess, d, cmp.Or(err, errHung))
			continue
		}
		f.Age = e.tunnels[d].handshake.age(f.LastHandshake, now, e.cfg.Wall())
		facts[d] = f
	}
	facts = directFacts(plan, found, facts)
	// WireGuard can be asked only where it answers.
	answering := map[string]kernel.WireGuard{}
	for _, t := range plan.Tunnels {
		d := t.Device
		w, is := want.wireguards[d]
		switch f, answers := facts[d]; {
		case !is:
		// A device that a process made only just now is not marked as ours yet.
		case answers && p.objects[[2]string{kindLink, d}].Status != Pending:
			answering[d] = e.roam(d, w, f, now)
			e.redial(ctx, plan.Gateway, t, now)
		default:
			p.note(kindWireGuard, d, &pendingError{"the device to answer"})
		}
	}
	_, wgErr := converge(p, kind[string, kernel.WireGuard]{
		// A new edge each time: what it remembers of endpoints is roam's to decide here.
		name: kindWireGuard, edge: h.WireGuards(), label: name, order: orderPorts,
		explain: func(d string, err error) error { return waiting(d, explainPort(err, want.wireguards[d].ListenPort)) },
		// A configuration goes with its device.
		keep: func(string, kernel.WireGuard) bool { return true },
	}, answering)
	if wgErr == nil {
		for d, w := range want.wireguards {
			if o := p.objects[[2]string{kindWireGuard, d}]; o.Status == OK {
				e.tunnels[d].endpoint = w.Peer.Endpoint.String()
			}
		}
	}

	e.watchPaths(plan)
	e.configureSessions(p, plan, func(d string) bool { _, there := found[d]; return there })
	states := e.bfdStates()
	e.carrierStates = e.readCarriers(plan)
	e.judge(plan, found, linksErr == nil, facts, factsErr == nil, states, now)
	e.memberHops(p, want.members)
	active := e.routeVTEPs(p, plan, routes, want.backstops, before, now)
	e.rotate(p, func(d string) bool { _, there := found[d]; return there })

	nextHops := e.nextHops(p, plan, want.nextHops)
	sets := e.syncSets(p, plan)

	for i := len(p.removals) - 1; i >= 0; i-- {
		p.removals[i]()
	}
	state := e.newState(p, plan, carried, facts, active, nextHops, states)
	state.Sets = sets
	e.keepEndpoints(plan)
	e.publish(state)
	return p
}

func name(s string) string { return s }

// explainPort says in words what WireGuard answers when its port is taken; userspace implementations answer with the bare number.
func explainPort(err error, port int) error {
	if errors.Is(err, unix.EADDRINUSE) || strings.Contains(err.Error(), fmt.Sprintf("errno=%d", -int(unix.EADDRINUSE))) {
		return fmt.Errorf("UDP port %d is in use by another program; stop that, or choose another wireguard-port: %w", port, err)
	}
	return err
}

var errHung = errors.New("the tunnel process did not answer and was killed; it is started again")

// remember makes room for what is kept of each tunnel, and drops what the plan has no more.
func (e *Engine) remember(plan overlay.Plan, now time.Time) {
	known := map[string]bool{}
	for _, t := range plan.Tunnels {
		known[t.Device] = true
		if e.tunnels[t.Device] == nil {
			e.tunnels[t.Device] = &tunnel{state: Starting, reason: "not looked at yet", since: now, learnt: e.endpoints[t.Device]}
		}
	}
	maps.DeleteFunc(e.tunnels, func(d string, _ *tunnel) bool { return !known[d] })
}

// carriers decides for each tunnel whether a process carries it. What runs goes on running as it is: a kernel that learnt WireGuard
// meanwhile is no reason to cut traffic.
func (e *Engine) carriers(plan overlay.Plan, present map[string]kernel.Link) map[string]bool {
	carried := map[string]bool{}
	for _, t := range plan.Tunnels {
		if t.Kind == overlay.KindDirect {
			continue
		}
		link, there := present[t.Device]
		if t.Carrier != nil {
			// Only a process can carry it.
		} else if there && link.Kind == kernel.KindWireGuard || !there && e.cfg.Host.Features().WireGuard {
			if alive, err := e.cfg.Processes.Alive(t.Device); err == nil && !alive {
				// A process that was killed has left its socket, and nobody answers there.
				if err := e.cfg.Processes.Sweep(t.Device); err != nil {
					e.logOp("sweep", kindProcess, t.Device, err)
				}
				continue
			}
		}
		carried[t.Device] = true
	}
	return carried
}

// startProcesses starts tunnel processes that are missing, but for devices that turned out to be somebody else's.
func (e *Engine) startProcesses(p *pass, carried map[string]bool) {
	now := e.cfg.Now()
	for _, d := range slices.Sorted(maps.Keys(carried)) {
		r := &e.tunnels[d].process
		alive, err := e.cfg.Processes.Alive(d)
		if alive {
			r.seen = now
		} else if p.objects[[2]string{kindLink, d}].Status == Foreign {
			err = &pendingError{"its device name to become free"}
		} else if err == nil {
			if err = r.next(now); err == nil {
				r.start(now)
				e.beat()
				err = e.cfg.Processes.Start(p.ctx, d)
				e.logOp("start", kindProcess, d, err)
				p.changes++
			}
		}
		p.note(kindProcess, d, err)
	}
}

// stopWithin is how long a tunnel process may take to end before it is killed; systemd kills it sooner (TimeoutStopSec=).
const stopWithin = 7 * time.Second

// stopProcesses asks, at the end of the pass, tunnel processes to end that the plan has no more. It does not wait for them: a later pass
// sees that they are gone, or kills them.
func (e *Engine) stopProcesses(p *pass, plan overlay.Plan) {
	devices, err := e.cfg.Processes.List()
	if err != nil {
		p.note(kindProcess, "*", err)
	}
	now := e.cfg.Now()
	try := func(op, d string, f func() error) {
		p.removals = append(p.removals, func() {
			e.beat()
			err := f()
			e.logOp(op, kindProcess, d, err)
			if err != nil {
				p.note(kindProcess, d, err)
				return
			}
			e.stopping[d] = now
			p.changes++
		})
	}
	running := map[string]bool{}
	for _, d := range devices {
		if _, wanted := e.tunnels[d]; wanted {
			continue
		}
		running[d] = true
		asked, stopping := e.stopping[d]
		switch {
		case !stopping:
			try("stop", d, func() error { return e.cfg.Processes.Stop(p.ctx, d) })
		case now.Sub(asked) >= stopWithin:
			try("kill (it does not end)", d, func() error { return e.cfg.Processes.Kill(d) })
		}
	}
	for d := range e.stopping {
		if running[d] || err != nil {
			continue
		}
		delete(e.stopping, d)
		if _, wanted := e.tunnels[d]; wanted {
			continue
		}
		if err := e.cfg.Processes.Sweep(d); err != nil {
			e.logOp("sweep", kindProcess, d, err)
		}
	}
}

// sysctls of devices that are not there yet wait for them.
func (e *Engine) sysctls(p *pass, want map[string]string) {
	keys := slices.Sorted(maps.Keys(want))
	_, _ = converge(p, kind[string, string]{
		name: kindSysctl, edge: e.cfg.Host.Sysctls(func() []string { return keys }), label: name,
		explain: func(key string, err error) error {
			if key == compatMode {
				return fmt.Errorf("%w; until %s is 0 the kernel tells a changed next hop once per route, and moving 100,000 routes to another one takes a second instead of microseconds: set it by hand, or use a kernel from 5.8 on", err, key)
			}
			return waitIfMissing(err, "the device")
		},
		keep: func(string, string) bool { return true },
	}, want)
}

// roam keeps the endpoint that WireGuard has learnt from authenticated packets, as long as the tunnel is alive with it or a handshake is
// under way: the other end may have moved. An endpoint that the plan has changed is applied, and a dead tunnel goes back to the planned one.
//
// On the passive side a tunnel process that was restarted, or a kernel device that was made anew, has forgotten where the other end
// is, and that would take 15 s to notice that nobody answers. So the passive side calls back where it last heard it, for a minute. It
// is on disk, so that this holds after a boot as well.
func (e *Engine) roam(device string, w kernel.WireGuard, f Facts, now time.Time) kernel.WireGuard {
	const callBack, callBackFor = 5, time.Minute
	if w.Peer.Endpoint == farEnd {
		if f.Endpoint.IsValid() {
			w.Peer.Endpoint = f.Endpoint
		}
		return w
	}
	t := e.tunnels[device]
	changed := t.endpoint != "" && t.endpoint != w.Peer.Endpoint.String()
	fresh := !f.LastHandshake.IsZero() && f.Age < RejectAfter
	t.crossing.reading(fresh, f.RxBytes, now)
	if f.Endpoint.IsValid() && ((fresh || t.crossing.lately(now)) && !changed || !w.Peer.Endpoint.IsValid()) {
		w.Peer.Endpoint = f.Endpoint
	}
	switch {
	case fresh:
		t.learnt, t.forgot = f.Endpoint, time.Time{}
	case f.LastHandshake.IsZero() && t.forgot.IsZero():
		t.forgot = now
	}
	if w.Peer.Keepalive == 0 && t.learnt.IsValid() && !t.forgot.IsZero() && now.Sub(t.forgot) < callBackFor {
		w.Peer.Endpoint, w.Peer.Keepalive = t.learnt, callBack
	}
	return w
}

// nextHops syncs next-hop objects. Their devices are fabric-site's: those that are not there, or are down, are waited for.
func (e *Engine) nextHops(p *pass, plan overlay.Plan, want map[uint32]kernel.NextHop) []NextHopState {
	label := func(id uint32) string {
		if n, ok := want[id]; ok {
			return strconv.FormatUint(uint64(id), 10) + " via " + n.Gateway.String() + " dev " + n.Device
		}
		return strconv.FormatUint(uint64(id), 10)
	}
	tunnels := e.repair.inUse()
	vxlans, err := e.cfg.Host.Links(kernel.KindVXLAN).Observe(p.ctx)
	if err != nil {
		for id := range want {
			p.note(kindNextHop, label(id), fmt.Errorf("read links: %w", err))
		}
	} else {
		possible, sets := map[uint32]kernel.NextHop{}, setIDs(plan)
		for id, n := range want {
			switch l, there := vxlans[n.Device]; {
			case !there:
				p.note(kindNextHop, label(id), &pendingError{"device " + n.Device + ", which fabric-site makes"})
			case !l.Up:
				p.note(kindNextHop, label(id), &pendingError{"device " + n.Device + " to come up"})
			default:
				possible[id] = n
			}
		}
		_, _ = converge(p, kind[uint32, kernel.NextHop]{
			name: kindNextHop, edge: e.cfg.Host.NextHops(kernel.ProtocolLinks), label: label,
			explain: func(_ uint32, err error) error { return waitIfMissing(err, "its device") },
			// One whose device has just gone is the kernel's to remove; sets and groups of tunnels are the repair table's.
			keep: func(id uint32, _ kernel.NextHop) bool {
				_, wanted := want[id]
				return wanted || sets[id] || tunnels[id]
			},
		}, possible)
	}
	states := make([]NextHopState, 0, len(plan.NextHops))
	for _, n := range plan.NextHops {
		o := p.objects[[2]string{kindNextHop, label(n.ID)}]
		states = append(states, NextHopState{ID: n.ID, Device: n.Device, VTEP: n.VTEP, VNI: n.VNI, Ready: o.Status == OK, Reason: o.Message})
	}
	return states
}

// publishProblems publishes the former state with this pass's problems: it did not get far enough to know more.
func (e *Engine) publishProblems(p *pass) {
	s := *e.State()
	s.Problems = problems(p)
	e.publish(&s)
}

func problems(p *pass) []Object {
	return slices.DeleteFunc(p.objectList(), func(o Object) bool { return o.Status == OK })
}

// newState sums a pass up.
func (e *Engine) newState(p *pass, plan overlay.Plan, carried map[string]bool, facts map[string]Facts, active map[string]bool, nextHops []NextHopState, states map[bfd.Path]bfd.Status) *State {
	s := &State{Gateway: plan.Gateway, Digest: e.plan.Digest(), Version: version.Version, Started: e.started, NextHops: nextHops}
	paths := e.pathStates()
	for _, t := range plan.Tunnels {
		f, is := facts[t.Device], e.tunnels[t.Device]
		ts := TunnelState{
			Device: t.Device, Name: t.Name, Remote: t.Remote, Rank: t.Rank, Kind: t.Kind,
			Implementation: "kernel",
			State:          is.state, Reason: is.reason, Since: is.since,
			Active:   active[t.Device],
			Endpoint: f.Endpoint, ListenPort: f.ListenPort, LastHandshake: f.LastHandshake,
			RxBytes: f.RxBytes, TxBytes: f.TxBytes, MTU: t.MTU, Drained: e.drained[e.plannedDevice(t.Device)],
			Path: paths[t.Device],
		}
		if carried[t.Device] {
			ts.Implementation = "userspace"
		}
		if t.Carrier != nil {
			ts.Endpoint, ts.ListenPort = e.carrierStates[t.Device].connectedTo(), 0
		}
		for _, kind := range []string{kindProcess, kindLink, kindWireGuard} {
			if o := p.objects[[2]string{kind, t.Device}]; ts.Err == "" && (o.Status == Failed || o.Status == Foreign) {
				ts.Err = kind + ": " + o.Message
			}
		}
		s.Tunnels = append(s.Tunnels, ts)
	}
	s.Tunnels = e.fold(s.Tunnels, e.cfg.Now())
	for _, v := range plan.VTEPs {
		if vs, known := e.vteps[v.Gateway]; known {
			s.VTEPs = append(s.VTEPs, vs)
		}
	}
	s.Sessions = sessionStates(plan, states, func(name string) string { return p.objects[[2]string{kindSession, name}].Message })
	s.Problems = problems(p)
	return s
}
