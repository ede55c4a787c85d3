package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fabric/overlay/links"
)

// pair is two sites, each with a gateway and a host, and a network between them that can fail:
//
//	host-a ── a ── net ── b ── host-b
//
// Host-b runs BIRD and announces prefixes to b; host-a is in the network of a. At each host a probe sends to the other over IPv4, and another one, at a
// quarter of the rate, over IPv6 from one site's network to the other's.
type pair struct {
	*world
	a, b               *gateway
	net, hostA, hostB  *node
	probes             []*probe
	monitors           [2]*monitor
	injector           *bird
	vtepA, vtepB, peer netip.Addr
	tunnels            int
}

// pairOptions are what the measurements differ in.
type pairOptions struct {
	programs programs
	// kinds of the tunnels in rank order.
	kinds []string
	bfdMs int
	// prefixes announced at b.
	prefixes int
	// nat: a is behind an address translation of the network, which forgets a UDP flow after natSeconds.
	nat        bool
	natSeconds int
	perSecond  int
}

const pairDocument = `
fabric: {name: bench, bfd: {interval: %dms, multiplier: 3}, bgp: {connect-retry: 1s, max-prefix: 300000}%s}
vrfs: [{name: CORE, table: 200, vni: 1000}]
links: {tunnels: [%s]}
sites:
  - name: site-a
    gateways:
      - name: a
        asn: 65001
        vtep: 10.255.0.1
%s        wireguard: {public-key: "KEY-a", private-key-file: FILE-a}
        vrfs: [{vrf: CORE, prefixes: [{prefix: 10.1.0.0/24}, {prefix: "fd10:1::/64"}], interfaces: [{name: site, addresses: [10.1.0.1/24, "fd10:1::1/64"]}]}]
  - name: site-b
    gateways:
      - name: b
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 198.51.100.2}]
%s        wireguard: {public-key: "KEY-b", private-key-file: FILE-b}
        vrfs:
          - vrf: CORE
            prefixes: [{prefix: "fd10:2::/64"}]
            interfaces: [{name: site, addresses: [10.2.0.1/24, "fd10:2::1/64"]}]
            peers: [{name: injector, address: 10.2.0.9, asn: 65202}]
`

// newPair brings it all up: prefixes in a's kernel, traffic both ways.
func newPair(ctx context.Context, o pairOptions) (_ *pair, err error) {
	w, err := newWorld(ctx, "net", "a", "b", "host-a", "host-b")
	if err != nil {
		return nil, err
	}
	p := &pair{world: w, net: w.nodes[0], hostA: w.nodes[3], hostB: w.nodes[4], tunnels: len(o.kinds),
		vtepA: netip.MustParseAddr("10.255.0.1"), vtepB: netip.MustParseAddr("10.255.0.2"), peer: netip.MustParseAddr("10.2.0.9")}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.a, err = newGateway(w.nodes[1], o.programs); err != nil {
		return nil, err
	}
	if p.b, err = newGateway(w.nodes[2], o.programs); err != nil {
		return nil, err
	}
	if err := p.wire(ctx, o); err != nil {
		return nil, err
	}
	endpoints := "        endpoints: [{address: 203.0.113.2}]\n"
	if o.nat {
		endpoints = "" // it only dials
	}
	tunnels, token, listen := make([]string, len(o.kinds)), "", ""
	for i, k := range o.kinds {
		tunnels[i] = "{kind: " + k + "}"
		if k != "tls" {
			continue
		}
		// TCP sends again what is lost, and is late meanwhile.
		tunnels[i] = "{kind: tls, bfd: {interval: 500ms, multiplier: 3}}"
		if token, listen, err = p.tls(ctx, o.programs); err != nil {
			return nil, err
		}
	}
	if err := write(fmt.Sprintf(pairDocument, o.bfdMs, token, strings.Join(tunnels, ", "), endpoints, listen), p.a, p.b); err != nil {
		return nil, err
	}
	// Who is dialled first: who dials a closed port waits 5 s before the next handshake (REKEY_TIMEOUT).
	for _, g := range []*gateway{p.b, p.a} {
		if err := g.start(ctx); err != nil {
			return nil, err
		}
	}
	prefixes := make([]netip.Prefix, o.prefixes)
	for i := range prefixes {
		prefixes[i] = announcedPrefix(i)
	}
	if p.injector, err = startBird(ctx, p.hostB, p.peer, prefixes,
		session{name: "gateway", address: p.peer, asn: 65202, remote: netip.MustParseAddr("10.2.0.1"), remoteASN: 65002, noImport: true}); err != nil {
		return nil, err
	}
	say("waiting for %d prefixes at a", o.prefixes)
	if err := until(ctx, 2*time.Minute, "the prefixes", func() error {
		if err := p.b.established(ctx, o.prefixes, p.peer); err != nil {
			return err
		}
		return p.a.established(ctx, o.prefixes, p.vtepB)
	}); err != nil {
		return nil, err
	}
	inA, inB := netip.MustParseAddr("10.1.0.9"), announcedAddress(o.prefixes-1)
	inA6, inB6 := netip.MustParseAddr("fd10:1::9"), netip.MustParseAddr("fd10:2::9")
	for _, f := range []struct {
		n         *node
		from, to  netip.Addr
		perSecond int
	}{{p.hostA, inA, inB, o.perSecond}, {p.hostB, inB, inA, o.perSecond}, {p.hostA, inA6, inB6, max(1, o.perSecond/4)}, {p.hostB, inB6, inA6, max(1, o.perSecond/4)}} {
		one, err := startProbe(f.n, f.from, f.perSecond, f.to)
		if err != nil {
			return nil, err
		}
		p.probes = append(p.probes, one)
	}
	for i, g := range []*gateway{p.a, p.b} {
		if p.monitors[i], err = newMonitor(g.node); err != nil {
			return nil, err
		}
	}
	return p, p.settled(ctx)
}

// tls makes the secret and b's certificate, and returns what the document says of them.
func (p *pair) tls(ctx context.Context, programs programs) (token, listen string, err error) {
	secret, certificate, key := filepath.Join(p.dir, "token"), filepath.Join(p.b.dir, "tls.crt"), filepath.Join(p.b.dir, "tls.key")
	if _, err := p.b.output(ctx, programs.site, "tls-token", secret); err != nil {
		return "", "", err
	}
	pin, err := p.b.output(ctx, programs.site, "tls-certificate", certificate, key)
	if err != nil {
		return "", "", err
	}
	return ", tls-token-file: " + secret, fmt.Sprintf("        tls: {listen: {pin: %q, certificate-file: %s, key-file: %s}}\n", strings.TrimSpace(pin), certificate, key), nil
}

// wire makes links and addresses, but for those in VRFs, which fabric-site makes.
func (p *pair) wire(ctx context.Context, o pairOptions) error {
	for _, l := range []struct {
		a       *node
		deviceA string
		b       *node
		deviceB string
	}{{p.a.node, "wan", p.net, "a"}, {p.b.node, "wan", p.net, "b"}, {p.a.node, "site", p.hostA, "gw"}, {p.b.node, "site", p.hostB, "gw"}} {
		if err := join(ctx, l.a, l.deviceA, l.b, l.deviceB); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		n     *node
		lines []string
	}{
		{p.net, []string{"ip address add 203.0.113.1/24 dev a", "ip address add 198.51.100.1/24 dev b"}},
		{p.a.node, []string{"ip address add 203.0.113.2/24 dev wan", "ip route add default via 203.0.113.1"}},
		{p.b.node, []string{"ip address add 198.51.100.2/24 dev wan", "ip route add default via 198.51.100.1"}},
		{p.hostA, []string{"ip address add 10.1.0.9/24 dev gw", "ip route add default via 10.1.0.1",
			"ip address add fd10:1::9/64 dev gw nodad", "ip route add default via fd10:1::1"}},
		{p.hostB, []string{"ip address add 10.2.0.9/24 dev gw", "ip route add default via 10.2.0.1",
			"ip address add fd10:2::9/64 dev gw nodad", "ip route add default via fd10:2::1", fmt.Sprintf("ip route add local %v dev lo", announced)}},
	} {
		if err := s.n.run(ctx, s.lines...); err != nil {
			return err
		}
	}
	rules := "table inet fault { chain forward { type filter hook forward priority 0; }; }\n"
	if o.nat {
		rules += "table ip translate { chain out { type nat hook postrouting priority 100; oifname b masquerade; }; }\n"
		if err := p.net.run(ctx, fmt.Sprintf("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=%d net.netfilter.nf_conntrack_udp_timeout_stream=%d",
			o.natSeconds, o.natSeconds)); err != nil {
			return err
		}
	}
	return p.nft(ctx, rules)
}

func (p *pair) nft(ctx context.Context, rules string) error {
	if err := command(ctx, rules, p.net.argv("nft", "-f", "-")...); err != nil {
		return fmt.Errorf("net: %w", err)
	}
	return nil
}

// cut has the network drop what the first tunnel sends, both ways; mend ends that.
func (p *pair) cut(ctx context.Context) error {
	s, err := p.a.state(ctx)
	if err != nil {
		return err
	}
	for _, t := range s.Tunnels {
		if t.Rank == 0 {
			ports := fmt.Sprintf("{ %d, %d }", t.ListenPort, t.Endpoint.Port())
			return p.nft(ctx, fmt.Sprintf("add rule inet fault forward udp dport %s udp sport %s drop\n", ports, ports))
		}
	}
	return fmt.Errorf("a has no first tunnel")
}

func (p *pair) mend(ctx context.Context) error { return p.nft(ctx, "flush chain inet fault forward\n") }

// settled waits until the first tunnel carries at both ends, all tunnels are up, BGP is established and packets arrive.
func (p *pair) settled(ctx context.Context) error {
	return until(ctx, 2*time.Minute, "traffic over the first tunnel", func() error {
		for _, g := range []*gateway{p.a, p.b} {
			if err := g.first(ctx); err != nil {
				return err
			}
		}
		if err := p.a.established(ctx, 0, p.vtepB); err != nil {
			return err
		}
		if err := p.mark(); err != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		for _, probe := range p.probes {
			if r, err := probe.report(); err != nil {
				return err
			} else if r.Received == 0 || r.Lost > 0 {
				return fmt.Errorf("%s received %d packets and missed %d", probe.name, r.Received, r.Lost)
			}
		}
		return nil
	})
}

// mark starts counting anew.
func (p *pair) mark() error {
	for _, m := range p.monitors {
		m.mark()
	}
	return markAll(p.probes...)
}

// netlink is the larger number of route and next-hop messages at a gateway since the mark.
func (p *pair) netlink() (n int, err error) {
	for _, m := range p.monitors {
		seen, err := m.count(every)
		if err != nil {
			return 0, err
		}
		n = max(n, seen)
	}
	return n, nil
}

// switches is how often a gateway has routed the other's VTEP anew since the mark, both ends together.
func (p *pair) switches() (n int, err error) {
	for i, vtep := range []netip.Addr{p.vtepB, p.vtepA} {
		seen, err := p.monitors[i].count(func(e event) bool {
			return e.kind == unix.RTM_NEWROUTE && e.prefix == netip.PrefixFrom(vtep, 32)
		})
		if err != nil {
			return 0, err
		}
		n += seen
	}
	return n, nil
}

// flaps is how often BGP sessions of both gateways were lost.
func (p *pair) flaps(ctx context.Context) (n int, err error) {
	for _, g := range []*gateway{p.a, p.b} {
		f, err := g.flaps(ctx)
		if err != nil {
			return 0, err
		}
		n += f
	}
	return n, nil
}

// downs is how often BFD sessions of both gateways went down.
func (p *pair) downs(ctx context.Context) (int, error) { return bfdDowns(ctx, p.a, p.b) }

// onFirst is nil when both ends use the first tunnel, or the other if not first.
func (p *pair) onFirst(ctx context.Context, first bool) error {
	for _, g := range []*gateway{p.a, p.b} {
		s, err := g.state(ctx)
		if err != nil {
			return err
		}
		for _, t := range s.Tunnels {
			if t.Active && (t.Rank == 0) != first {
				return errNotYet
			}
			if first && t.State != links.Up {
				return errNotYet
			}
		}
	}
	return nil
}

func (p *pair) close() {
	for _, m := range p.monitors {
		if m != nil {
			m.close()
		}
	}
	p.world.close()
}
