package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// restarts is a gateway whose fabric-site is restarted, with all kinds of neighbours:
//
//	FRR ──┐                ┌── network ── other gateway ── host
//	      gateway under test
//	BIRD ─┘                └── a peer that never answers
//
// BIRD announces prefixes, of which one more is withdrawn while fabric-site is away. Probes run between FRR and BIRD and between
// the host and BIRD, both ways.
type restarts struct {
	*world
	gateway, other                     *gateway
	net, frrNode, birdNode, host       *node
	bird                               *bird
	frr                                *frrRouter
	probes                             []*probe
	own                                *monitor
	neighbours                         []*monitor
	prefixes                           int
	frrSession, birdSession            session // as those two see them
	vtep, otherVTEP, frrPeer, birdPeer netip.Addr
	swap                               programs // another build
	restartTime                        time.Duration
}

const (
	// restartFRRPrefixes are announced by FRR, /24s of restartFRRRange.
	restartFRRPrefixes = 100
	restartBFDMs       = 300
)

// restartKinds are the ways to restart fabric-site: SIGTERM, SIGKILL, SIGTERM and another build of the program.
var restartKinds = []string{"term", "kill", "swap"}

var restartFRRRange = netip.MustParsePrefix("10.64.0.0/16")

const restartDocument = `
fabric: {name: bench, bgp: {connect-retry: 1s, max-prefix: 300000, restart-time: %[1]v}}
vrfs: [{name: CORE, table: 200, vni: 1000}]
sites:
  - name: here
    gateways:
      - name: gateway
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "KEY-gateway", private-key-file: FILE-gateway}
        vrfs:
          - vrf: CORE
            interfaces:
              - {name: frr, addresses: [10.3.0.1/24]}
              - {name: bird, addresses: [10.4.0.1/24]}
              - {name: dead, addresses: [10.5.0.1/24]}
            peers:
              - {name: frr, address: 10.3.0.9, asn: 65103, interface: frr, bfd: {interval: %[2]dms, multiplier: 3}}
              - {name: bird, address: 10.4.0.9, asn: 65104, interface: bird, bfd: {interval: %[2]dms, multiplier: 3}}
              - {name: dead, address: 10.5.0.9, asn: 65105, interface: dead}
  - name: there
    gateways:
      - name: other
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 198.51.100.2}]
        wireguard: {public-key: "KEY-other", private-key-file: FILE-other}
        vrfs: [{vrf: CORE, prefixes: [{prefix: 10.2.0.0/24}], interfaces: [{name: site, addresses: [10.2.0.1/24]}]}]
`

func newRestarts(ctx context.Context, p, swap programs, prefixes int, restartTime time.Duration) (_ *restarts, err error) {
	w, err := newWorld(ctx, "net", "gateway", "other", "frr", "bird", "host")
	if err != nil {
		return nil, err
	}
	r := &restarts{world: w, net: w.nodes[0], frrNode: w.nodes[3], birdNode: w.nodes[4], host: w.nodes[5], prefixes: prefixes, swap: swap, restartTime: restartTime,
		vtep: netip.MustParseAddr("10.255.0.1"), otherVTEP: netip.MustParseAddr("10.255.0.2"),
		frrPeer: netip.MustParseAddr("10.3.0.9"), birdPeer: netip.MustParseAddr("10.4.0.9")}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.gateway, err = newGateway(w.nodes[1], p); err != nil {
		return nil, err
	}
	if r.other, err = newGateway(w.nodes[2], p); err != nil {
		return nil, err
	}
	if err := r.wire(ctx); err != nil {
		return nil, err
	}
	if err := write(fmt.Sprintf(restartDocument, restartTime, restartBFDMs), r.gateway, r.other); err != nil {
		return nil, err
	}
	for _, g := range []*gateway{r.other, r.gateway} {
		if err := g.start(ctx); err != nil {
			return nil, err
		}
	}
	r.frrSession = session{name: "gateway", address: r.frrPeer, asn: 65103, remote: netip.MustParseAddr("10.3.0.1"), remoteASN: 65001, bfdMs: restartBFDMs}
	r.birdSession = session{name: "gateway", address: r.birdPeer, asn: 65104, remote: netip.MustParseAddr("10.4.0.1"), remoteASN: 65001, bfdMs: restartBFDMs}
	var own []netip.Prefix
	for i := range restartFRRPrefixes {
		own = append(own, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i)}), 24))
	}
	if r.frr, err = startFRRRouter(ctx, r.frrNode, r.frrPeer, own, r.frrSession); err != nil {
		return nil, err
	}
	if r.bird, err = startBird(ctx, r.birdNode, r.birdPeer, r.announced(true), r.birdSession); err != nil {
		return nil, err
	}
	if err := r.observe(); err != nil {
		return nil, err
	}
	return r, r.settled(ctx)
}

// announced is what BIRD announces, with or without the one that is withdrawn.
func (r *restarts) announced(all bool) []netip.Prefix {
	list := make([]netip.Prefix, r.prefixes, r.prefixes+1)
	for i := range list {
		list[i] = announcedPrefix(i)
	}
	if all {
		list = append(list, r.withdrawn())
	}
	return list
}

// withdrawn is the prefix that BIRD withdraws.
func (r *restarts) withdrawn() netip.Prefix { return announcedPrefix(r.prefixes) }

func (r *restarts) wire(ctx context.Context) error {
	for _, l := range []struct {
		a       *node
		deviceA string
		b       *node
		deviceB string
	}{
		{r.gateway.node, "wan", r.net, "gateway"}, {r.other.node, "wan", r.net, "other"}, {r.gateway.node, "dead", r.net, "dead"},
		{r.gateway.node, "frr", r.frrNode, "gw"}, {r.gateway.node, "bird", r.birdNode, "gw"}, {r.other.node, "site", r.host, "gw"},
	} {
		if err := join(ctx, l.a, l.deviceA, l.b, l.deviceB); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		n     *node
		lines []string
	}{
		{r.net, []string{"ip address add 203.0.113.1/24 dev gateway", "ip address add 198.51.100.1/24 dev other"}},
		{r.gateway.node, []string{"ip address add 203.0.113.2/24 dev wan", "ip route add default via 203.0.113.1"}},
		{r.other.node, []string{"ip address add 198.51.100.2/24 dev wan", "ip route add default via 198.51.100.1"}},
		{r.frrNode, []string{"ip address add 10.3.0.9/24 dev gw", fmt.Sprintf("ip route add local %v dev lo", restartFRRRange)}},
		{r.birdNode, []string{"ip address add 10.4.0.9/24 dev gw", fmt.Sprintf("ip route add local %v dev lo", announced)}},
		{r.host, []string{"ip address add 10.2.0.9/24 dev gw", "ip route add default via 10.2.0.1"}},
	} {
		if err := s.n.run(ctx, s.lines...); err != nil {
			return err
		}
	}
	return nil
}

// observe starts probes and monitors.
func (r *restarts) observe() error {
	atFRR, atBird, atHost := netip.MustParseAddr("10.64.0.1"), announcedAddress(r.prefixes-1), netip.MustParseAddr("10.2.0.9")
	for _, s := range []struct {
		n     *node
		local netip.Addr
		to    []netip.Addr
	}{{r.frrNode, atFRR, []netip.Addr{atBird}}, {r.birdNode, atBird, []netip.Addr{atFRR, atHost}}, {r.host, atHost, []netip.Addr{atBird}}} {
		p, err := startProbe(s.n, s.local, 1000*len(s.to), s.to...)
		if err != nil {
			return err
		}
		r.probes = append(r.probes, p)
	}
	var err error
	if r.own, err = newMonitor(r.gateway.node); err != nil {
		return err
	}
	for _, n := range []*node{r.frrNode, r.birdNode, r.other.node} {
		m, err := newMonitor(n)
		if err != nil {
			return err
		}
		r.neighbours = append(r.neighbours, m)
	}
	return nil
}

// settled waits until everybody has everything, and packets arrive.
func (r *restarts) settled(ctx context.Context) error {
	if err := until(ctx, 3*time.Minute, "all routes everywhere", func() error {
		if err := r.gateway.ready(ctx); err != nil {
			return err
		}
		if err := r.gateway.established(ctx, r.prefixes+1, r.birdPeer); err != nil {
			return err
		}
		if err := r.gateway.established(ctx, restartFRRPrefixes, r.frrPeer); err != nil {
			return err
		}
		if err := r.gateway.established(ctx, 1, r.otherVTEP); err != nil {
			return err
		}
		if err := r.other.established(ctx, r.prefixes+1+restartFRRPrefixes, r.vtep); err != nil {
			return err
		}
		if err := atLeast(r.prefixes + 2)(r.frr.received(ctx, r.frrSession)); err != nil {
			return fmt.Errorf("FRR: %w", err)
		}
		if err := atLeast(restartFRRPrefixes + 1)(r.bird.received(ctx, r.birdSession)); err != nil {
			return fmt.Errorf("BIRD: %w", err)
		}
		return nil
	}); err != nil {
		return err
	}
	return until(ctx, time.Minute, "traffic", func() error {
		if err := markAll(r.probes...); err != nil {
			return err
		}
		// The checkpoint of fabric-site is a second behind.
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
		all, err := reportAll(r.probes...)
		if err == nil && (all.Flows < 4 || all.Received == 0 || all.Lost > 0) {
			err = fmt.Errorf("%d flows, %d packets received, %d lost", all.Flows, all.Received, all.Lost)
		}
		return err
	})
}

func atLeast(want int) func(int, error) error {
	return func(got int, err error) error {
		if err == nil && got < want {
			err = fmt.Errorf("%d of %d prefixes", got, want)
		}
		return err
	}
}

func (r *restarts) close() {
	for _, m := range append([]*monitor{r.own}, r.neighbours...) {
		if m != nil {
			m.close()
		}
	}
	r.world.close()
}

// restartFigures are what the restarts of one kind gave, an element each.
type restartFigures struct {
	lost, deletions, withdraws, downs, goneMs, goneFRRMs, readyMs, late []float64
}

// deleted are deletions of IPv4 routes, those of the kernel's own for local addresses aside.
func deleted(e event) bool {
	return e.kind == unix.RTM_DELROUTE && e.prefix.Addr().Is4() && e.table != unix.RT_TABLE_LOCAL
}

// restart restarts fabric-site in one of restartKinds.
func (f *restartFigures) restart(ctx context.Context, r *restarts, how string) error {
	if err := r.settled(ctx); err != nil {
		return err
	}
	downs, err := bfdDowns(ctx, r.gateway, r.other)
	if err != nil {
		return err
	}
	r.own.mark()
	for _, m := range r.neighbours {
		m.mark()
	}
	if err := markAll(r.probes...); err != nil {
		return err
	}
	if how == "swap" {
		r.gateway.programs.site, r.swap.site = r.swap.site, r.gateway.programs.site
	}
	if how == "kill" {
		_ = r.gateway.site.cmd.Process.Signal(syscall.SIGKILL)
		<-r.gateway.site.done
	} else {
		r.gateway.site.close()
	}
	if err := r.announce(ctx, false); err != nil {
		return err
	}
	if err := r.gateway.startSite(); err != nil {
		return err
	}
	began := time.Now()
	if err := until(ctx, time.Minute, "fabric-site is ready again", func() error { return r.gateway.ready(ctx) }); err != nil {
		return err
	}
	f.readyMs = append(f.readyMs, milliseconds(time.Since(began)))
	gone, goneFRR, err := r.awaitGone(ctx)
	if err != nil {
		return err
	}
	f.goneMs = append(f.goneMs, milliseconds(gone.Sub(began)))
	f.goneFRRMs = append(f.goneFRRMs, milliseconds(goneFRR.Sub(began)))
	// What the end of the restart time does belongs to it.
	if err := pause(ctx, time.Until(began.Add(r.restartTime+3*time.Second))); err != nil {
		return err
	}
	return f.note(ctx, r, downs)
}

// announce has BIRD announce all, or all but the one that it withdraws.
func (r *restarts) announce(ctx context.Context, all bool) error {
	if err := r.bird.write(r.announced(all)); err != nil {
		return err
	}
	_, err := r.bird.ask(ctx, "configure")
	return err
}

// awaitGone waits until the withdrawn route has gone from the gateway's and from FRR's kernel, and says when it had.
func (r *restarts) awaitGone(ctx context.Context) (own, frr time.Time, err error) {
	withdrawn := func(e event) bool { return deleted(e) && e.prefix == r.withdrawn() }
	err = until(ctx, r.restartTime+time.Minute, "the withdrawn route is gone", func() error {
		at, err := r.own.seen(withdrawn)
		if err != nil {
			return err
		}
		atFRR, err := r.neighbours[0].seen(withdrawn)
		if err != nil {
			return err
		}
		if len(at) == 0 || len(atFRR) == 0 {
			return fmt.Errorf("gone here: %v, at FRR: %v", len(at) > 0, len(atFRR) > 0)
		}
		own, frr = at[0].at, atFRR[0].at
		return nil
	})
	return own, frr, err
}

// note adds up what a restart has done, and has BIRD announce all again.
func (f *restartFigures) note(ctx context.Context, r *restarts, downs int) error {
	all, err := reportAll(r.probes...)
	if err != nil {
		return err
	}
	valid := func(e event) bool { return deleted(e) && e.prefix != r.withdrawn() }
	deletions, err := r.own.count(valid)
	if err != nil {
		return err
	}
	withdraws := 0
	for _, m := range r.neighbours {
		n, err := m.count(valid)
		if err != nil {
			return err
		}
		withdraws += n
	}
	after, err := bfdDowns(ctx, r.gateway, r.other)
	if err != nil {
		return err
	}
	if after > downs {
		r.gateway.tell("BFD session changed")
		r.other.tell("BFD session changed")
	}
	f.lost = append(f.lost, float64(all.Lost))
	f.late = append(f.late, all.SenderLateMs)
	f.deletions = append(f.deletions, float64(deletions))
	f.withdraws = append(f.withdraws, float64(withdraws))
	f.downs = append(f.downs, float64(after-downs))
	return r.announce(ctx, true)
}

// bfdDowns is how often BFD sessions of gateways went down.
func bfdDowns(ctx context.Context, gateways ...*gateway) (n int, err error) {
	for _, g := range gateways {
		s, err := g.state(ctx)
		if err != nil {
			return 0, err
		}
		for _, b := range s.Sessions {
			n += int(b.Downs)
		}
	}
	return n, nil
}

func (f restartFigures) metrics() map[string]float64 {
	return map[string]float64{
		"packets_lost": sum(f.lost), "route_deletions": sum(f.deletions), "neighbour_withdraws": sum(f.withdraws), "bfd_downs": sum(f.downs),
		"withdrawn_gone_ms_p50": round(percentile(f.goneMs, 0.5)), "withdrawn_gone_ms_max": round(most(f.goneMs)),
		"withdrawn_gone_at_neighbour_ms_max": round(most(f.goneFRRMs)),
		"ready_ms_p50":                       round(percentile(f.readyMs, 0.5)), "ready_ms_max": round(most(f.readyMs)), "probe_late_ms_max": round(most(f.late)),
	}
}

// benchRestart measures restarts of fabric-site.
func benchRestart(ctx context.Context, args []string, out *json.Encoder) error {
	fs := flag.NewFlagSet("bench restart", flag.ContinueOnError)
	trials := fs.Int("trials", 10, "restarts of each kind")
	how := fs.String("how", "term,kill,swap", "kinds: SIGTERM, SIGKILL, SIGTERM and another build of the program")
	prefixes := fs.Int("prefixes", 10000, "prefixes that BIRD announces")
	restartTime := fs.Duration("restart-time", 10*time.Second, "graceful restart time of the document")
	if err := parse(fs, args); err != nil {
		return err
	}
	kinds, err := words(*how, restartKinds...)
	if err != nil {
		return wrong(fs, "-how: %v", err)
	}
	if *trials < 1 || *prefixes < 1 || *prefixes >= announcedSlots || *restartTime < time.Second {
		return wrong(fs, "-trials and -prefixes from 1 on, %d prefixes at most; -restart-time from 1s on", announcedSlots-1)
	}
	dir, p, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	figures, err := restartTrials(ctx, dir, p, kinds, *prefixes, *trials, *restartTime)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		params := map[string]any{"how": kind, "trials": *trials, "prefixes": *prefixes, "packets_per_second": 1000, "flows": 4, "bfd_ms": restartBFDMs,
			"multiplier": 3, "restart_time_s": restartTime.Seconds()}
		if err := out.Encode(result{"restart", "fabric", params, figures[kind].metrics()}); err != nil {
			return err
		}
	}
	return nil
}

func restartTrials(ctx context.Context, dir string, p programs, kinds []string, prefixes, trials int, restartTime time.Duration) (map[string]*restartFigures, error) {
	swap, err := buildPrograms(ctx, filepath.Join(dir, "other"), "bench-other")
	if err != nil {
		return nil, err
	}
	r, err := newRestarts(ctx, p, swap, prefixes, restartTime)
	if err != nil {
		return nil, fmt.Errorf("restart: %w", err)
	}
	defer r.close()
	figures := map[string]*restartFigures{}
	for _, kind := range kinds {
		f := &restartFigures{}
		figures[kind] = f
		for i := range trials {
			if err := f.restart(ctx, r, kind); err != nil {
				return nil, errors.Join(fmt.Errorf("restart, %s, trial %d: %w", kind, i+1, err), r.gateway.site.alive("fabric-site"))
			}
			say("%s, trial %d of %d: %.0f packets lost, %.0f deletions, %.0f withdraws, %.0f BFD downs, withdrawn route gone after %.0f ms, at FRR %.0f ms; ready after %.0f ms, probe late %.0f ms",
				kind, i+1, trials, f.lost[i], f.deletions[i], f.withdraws[i], f.downs[i], f.goneMs[i], f.goneFRRMs[i], f.readyMs[i], f.late[i])
		}
	}
	return figures, nil
}
