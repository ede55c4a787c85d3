package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"fabric/lab/packets"
)

const (
	// pathBFDMs is the interval of BFD with third parties; the multiplier is 3.
	pathBFDMs = 50
	// pathFlows prefixes are probed, the first and the last announced among them, each pathFlowsPerSecond times a second.
	pathFlows          = 40
	pathFlowsPerSecond = 200
	// pathLimit is how long routes may take to move before a run is given up.
	pathLimit = time.Minute
)

// paths is a router with two eBGP neighbours that announce the same prefixes, which are all at one host behind both. The second neighbour
// prepends its AS number, so that the first is preferred.
//
//	        ┌── first ──┐
//	host ── router      target
//	        └── second ─┘
type paths struct {
	*world
	host, router, first, second, target *node
	under                               router
	monitor                             *monitor
	send, receive                       *probe
	firstDevice, secondDevice           int
}

// router is a router under test.
type router interface {
	// settled is nil when both sessions are established and each has brought that many prefixes.
	settled(ctx context.Context, prefixes int) error
}

// routerSessions are those of the router under test.
func routerSessions() []session {
	return []session{
		{name: "first", address: netip.MustParseAddr("10.11.0.1"), asn: 65000, remote: netip.MustParseAddr("10.11.0.2"), remoteASN: 65101, bfdMs: pathBFDMs, noExport: true},
		{name: "second", address: netip.MustParseAddr("10.12.0.1"), asn: 65000, remote: netip.MustParseAddr("10.12.0.2"), remoteASN: 65102, bfdMs: pathBFDMs, noExport: true},
	}
}

// third is FRR or BIRD under test.
type third struct {
	daemon interface {
		received(context.Context, session) (int, error)
	}
}

func (t third) settled(ctx context.Context, prefixes int) error {
	for _, s := range routerSessions() {
		n, err := t.daemon.received(ctx, s)
		if err != nil {
			return err
		}
		if n < prefixes {
			return fmt.Errorf("%d of %d prefixes from %v", n, prefixes, s.remote)
		}
	}
	return nil
}

// fabricRouter is a gateway under test.
type fabricRouter struct{ *gateway }

func (f fabricRouter) settled(ctx context.Context, prefixes int) error {
	var remotes []netip.Addr
	for _, s := range routerSessions() {
		remotes = append(remotes, s.remote)
	}
	return f.established(ctx, prefixes, remotes...)
}

const pathDocument = `
fabric: {name: bench, bgp: {connect-retry: 1s, max-prefix: 300000}}
vrfs: [{name: CORE, table: 200, vni: 1000}]
sites:
  - name: here
    gateways:
      - name: router
        asn: 65000
        vtep: 10.255.0.1
        wireguard: {public-key: "KEY-router", private-key-file: FILE-router}
        vrfs:
          - vrf: CORE
            interfaces:
              - {name: host, addresses: [10.10.0.1/24]}
              - {name: first, addresses: [10.11.0.1/24]}
              - {name: second, addresses: [10.12.0.1/24]}
            peers:
              - {name: first, address: 10.11.0.2, asn: 65101, interface: first, export: none, bfd: {interval: %[1]dms, multiplier: 3}}
              - {name: second, address: 10.12.0.2, asn: 65102, interface: second, export: none, bfd: {interval: %[1]dms, multiplier: 3}}
policies: [{name: none, terms: [], default: reject}]
`

func newPaths(ctx context.Context, p programs, who string, prefixes int) (_ *paths, err error) {
	w, err := newWorld(ctx, "host", "router", "first", "second", "target")
	if err != nil {
		return nil, err
	}
	x := &paths{world: w, host: w.nodes[0], router: w.nodes[1], first: w.nodes[2], second: w.nodes[3], target: w.nodes[4]}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	if err := x.wire(ctx, who != "fabric"); err != nil {
		return nil, err
	}
	list := make([]netip.Prefix, prefixes)
	for i := range list {
		list[i] = announcedPrefix(i)
	}
	for i, n := range []*node{x.first, x.second} {
		s := routerSessions()[i]
		s.address, s.asn, s.remote, s.remoteASN = s.remote, s.remoteASN, s.address, s.asn
		s.noExport, s.noImport, s.prepend, s.name = false, true, 3*i, "router"
		if _, err := startBird(ctx, n, s.address, list, s); err != nil {
			return nil, err
		}
	}
	if err := x.startRouter(ctx, p, who); err != nil {
		return nil, err
	}
	if x.monitor, err = newMonitor(x.router); err != nil {
		return nil, err
	}
	var to []netip.Addr
	for _, i := range spread(prefixes, pathFlows) {
		to = append(to, announcedAddress(i))
	}
	if x.receive, err = startProbe(x.target, netip.IPv4Unspecified(), 1); err != nil {
		return nil, err
	}
	if x.send, err = startProbe(x.host, netip.MustParseAddr("10.10.0.2"), len(to)*pathFlowsPerSecond, to...); err != nil {
		return nil, err
	}
	if x.firstDevice, err = x.target.index("first"); err != nil {
		return nil, err
	}
	x.secondDevice, err = x.target.index("second")
	return x, err
}

func (x *paths) startRouter(ctx context.Context, p programs, who string) error {
	id := netip.MustParseAddr("10.255.0.1")
	switch who {
	case "frr":
		f, err := startFRRRouter(ctx, x.router, id, nil, routerSessions()...)
		x.under = third{f}
		return err
	case "bird":
		b, err := startBird(ctx, x.router, id, nil, routerSessions()...)
		x.under = third{b}
		return err
	}
	g, err := newGateway(x.router, p)
	if err != nil {
		return err
	}
	x.under = fabricRouter{g}
	if err := write(fmt.Sprintf(pathDocument, pathBFDMs), g); err != nil {
		return err
	}
	return g.start(ctx)
}

// wire makes links and addresses; those of the router only if asked to, for fabric-site makes them itself.
func (x *paths) wire(ctx context.Context, router bool) error {
	for _, l := range []struct {
		a       *node
		deviceA string
		b       *node
		deviceB string
	}{
		{x.router, "host", x.host, "router"}, {x.router, "first", x.first, "router"}, {x.router, "second", x.second, "router"},
		{x.first, "target", x.target, "first"}, {x.second, "target", x.target, "second"},
	} {
		if err := join(ctx, l.a, l.deviceA, l.b, l.deviceB); err != nil {
			return err
		}
	}
	steps := []struct {
		n     *node
		lines []string
	}{
		{x.host, []string{"ip address add 10.10.0.2/24 dev router", "ip route add default via 10.10.0.1"}},
		{x.first, []string{"ip address add 10.11.0.2/24 dev router", "ip address add 10.21.0.2/24 dev target", fmt.Sprintf("ip route add %v via 10.21.0.1", announced)}},
		{x.second, []string{"ip address add 10.12.0.2/24 dev router", "ip address add 10.22.0.2/24 dev target", fmt.Sprintf("ip route add %v via 10.22.0.1", announced)}},
		{x.target, []string{"ip address add 10.21.0.1/24 dev first", "ip address add 10.22.0.1/24 dev second", fmt.Sprintf("ip route add local %v dev lo", announced)}},
	}
	if router {
		steps = append(steps, struct {
			n     *node
			lines []string
		}{x.router, []string{"ip address add 10.10.0.1/24 dev host", "ip address add 10.11.0.1/24 dev first", "ip address add 10.12.0.1/24 dev second"}})
	}
	for _, s := range steps {
		if err := s.n.run(ctx, s.lines...); err != nil {
			return err
		}
	}
	return nil
}

// cut has the first neighbour hear and say nothing to the router any more; the link keeps its carrier. mend ends that.
func (x *paths) cut(ctx context.Context) error {
	return command(ctx, `table inet cut {
	chain in { type filter hook prerouting priority -400; iifname "router" drop; }
	chain out { type filter hook postrouting priority 400; oifname "router" drop; }
}
`, x.first.argv("nft", "-f", "-")...)
}

func (x *paths) mend(ctx context.Context) error {
	return x.first.run(ctx, "nft delete table inet cut")
}

// refresh has fabric-links forget how often the first neighbour has failed: the hold time before its next return grows with that.
func (x *paths) refresh(ctx context.Context) error {
	if f, ok := x.under.(fabricRouter); ok {
		return f.restartLinks(ctx)
	}
	return nil
}

// settled waits until both neighbours have brought all, all goes over the first, and nothing changes for two seconds.
func (x *paths) settled(ctx context.Context, prefixes int) error {
	if err := until(ctx, 3*time.Minute, "sessions and prefixes", func() error { return x.under.settled(ctx, prefixes) }); err != nil {
		return err
	}
	return until(ctx, 3*time.Minute, "traffic over the first neighbour", func() error {
		x.monitor.mark()
		if err := x.receive.mark(); err != nil {
			return err
		}
		since := time.Now().UnixNano()
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
		r, err := x.receive.ask(packets.Query{Device: x.firstDevice, Since: since})
		if err != nil {
			return err
		}
		n, err := x.monitor.count(every)
		if err != nil {
			return err
		}
		if want := min(prefixes, pathFlows); r.Arrived < want || r.Elsewhere > 0 || n > 0 {
			return fmt.Errorf("%d of %d flows, %d packets over the second, %d routes changed", r.Arrived, want, r.Elsewhere, n)
		}
		return nil
	})
}

func (x *paths) close() {
	if x.monitor != nil {
		x.monitor.close()
	}
	x.world.close()
}

// pathFigures are what the trials of one router gave, an element each.
type pathFigures struct{ moved, gaps, messages, late []float64 }

func failoverPath(ctx context.Context, p programs, who string, prefixes, trials int) (f pathFigures, err error) {
	x, err := newPaths(ctx, p, who, prefixes)
	if err != nil {
		return f, err
	}
	defer x.close()
	for i := range trials {
		if i > 0 {
			if err := x.refresh(ctx); err != nil {
				return f, fmt.Errorf("trial %d: %w", i+1, err)
			}
		}
		if err := f.trial(ctx, x, prefixes); err != nil {
			return f, fmt.Errorf("trial %d: %w", i+1, err)
		}
		say("%s, %d prefixes, trial %d of %d: last moved %.0f ms, gap %.0f ms, %.0f messages; probe late %.0f ms", who, prefixes, i+1, trials, f.moved[i], f.gaps[i], f.messages[i], f.late[i])
	}
	return f, nil
}

// add appends the figures of more trials.
func (f *pathFigures) add(g pathFigures) {
	f.moved = append(f.moved, g.moved...)
	f.gaps = append(f.gaps, g.gaps...)
	f.messages = append(f.messages, g.messages...)
	f.late = append(f.late, g.late...)
}

func (f *pathFigures) trial(ctx context.Context, x *paths, prefixes int) error {
	if err := x.settled(ctx, prefixes); err != nil {
		return err
	}
	x.monitor.mark()
	if err := x.receive.mark(); err != nil {
		return err
	}
	if err := x.send.mark(); err != nil {
		return err
	}
	since := time.Now().UnixNano()
	if err := x.cut(ctx); err != nil {
		return err
	}
	var moved packets.Report
	if err := until(ctx, pathLimit, "all flows over the second neighbour", func() (err error) {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		if moved, err = x.receive.ask(packets.Query{Device: x.secondDevice, Since: since}); err == nil && moved.Arrived < min(prefixes, pathFlows) {
			err = fmt.Errorf("%d flows", moved.Arrived)
		}
		return err
	}); err != nil {
		return err
	}
	// The rest of the messages, of prefixes that no flow goes to.
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	n, err := x.monitor.count(every)
	if err != nil {
		return err
	}
	sent, err := x.send.report()
	if err != nil {
		return err
	}
	// Since when the cut holds is told by the last packet over the first neighbour: nft takes its time before.
	f.moved = append(f.moved, moved.LastMs-moved.ElsewhereMs)
	f.gaps = append(f.gaps, moved.GapMs)
	f.messages = append(f.messages, float64(n))
	f.late = append(f.late, sent.SenderLateMs)
	return x.mend(ctx)
}

func (f pathFigures) metrics() map[string]float64 {
	return map[string]float64{
		"last_moved_ms_p50": round(percentile(f.moved, 0.5)), "last_moved_ms_max": round(most(f.moved)),
		"gap_ms_p50": round(percentile(f.gaps, 0.5)), "gap_ms_max": round(most(f.gaps)),
		"netlink_messages_max": most(f.messages), "probe_late_ms_max": round(most(f.late)),
	}
}

// benchPaths measures each size with each router in turn.
func benchPaths(ctx context.Context, p programs, routers []string, counts []int, trials int, out *json.Encoder) error {
	for _, n := range counts {
		for _, who := range routers {
			f, err := failoverPath(ctx, p, who, n, trials)
			if err != nil {
				return fmt.Errorf("failover, path, %s with %d prefixes: %w", who, n, err)
			}
			params := map[string]any{"what": "path", "bfd_ms": pathBFDMs, "multiplier": 3, "prefixes": n, "trials": trials, "probed_prefixes": min(n, pathFlows)}
			if err := out.Encode(result{"failover", who, params, f.metrics()}); err != nil {
				return err
			}
		}
	}
	return nil
}
