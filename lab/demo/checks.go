package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/lab/clab"
	"fabric/vrf"
)

var interrupt = syscall.SIGINT

// The protocol numbers of kernel routes that are ours, as `ip -N` prints them.
var (
	protoSite  = strconv.Itoa(kernel.Protocol)
	protoLinks = strconv.Itoa(kernel.ProtocolLinks)
)

// check is one proof of the demo.
type check struct {
	name string
	run  func(context.Context) (string, error)
}

// checks are all proofs, in the order in which they build on each other.
func (d *demo) checks() []check {
	return []check{
		{"the fabric comes up: every session established, every generation applied", d.comesUp},
		{"all host pairs ping within their VRF, with the expected ttl", d.pingPairs},
		{"IPv6 pings between gateway loopbacks and the host behind FRR", d.pingPairs6},
		{"the VPC tables hold the other sites' prefixes via the gateway's instance, and nothing else of ours", d.vpcTables},
		{"an entry removed from a VPC table by hand is felt, and repaired", d.vpcRepair},
		{"kernel tables hold exactly our routes and what is connected", d.kernelTables},
		{"no /30, /31, default route or bogon beyond its origin: kernel, VPC, FRR", d.noLeaks},
		{"no packet crosses between CORE and OPS: hosts and gateway addresses, IPv4 and IPv6", d.isolation},
		{"SYNs of forwarded sessions carry the clamped MSS, both ways", d.clampForwarded},
		{"SYNs of the gateways' own BGP sessions carry the clamped MSS", d.clampOwn},
		{"a DF ping of 1370 bytes passes, of 1371 gets frag needed, mtu 1370", d.pathMTU},
		{"10 MB over TCP complete with the clamp, and with it removed", d.transfer},
		{"with the tunnels gone no inner packet leaves in clear", d.noClearText},
		{"prefix del and prefix add reach remote kernel, FRR and VPC tables", d.prefixChange},
		{"replaced tunnel keys lose no packet, and the former ones are refused within 10 s", d.rotations},
		{"SIGTERM and SIGKILL of fabric-site lose no ping", d.restarts},
		{"a second start changes nothing", d.secondStart},
	}
}

// gateways are the names of all gateways, in the document's order.
func (d *demo) gateways() []string {
	var names []string
	for _, s := range d.doc.Sites {
		for _, g := range s.Gateways {
			names = append(names, g.Name)
		}
	}
	return names
}

// peer is what the demo reads of `fabricctl peer list -o json`.
type peer struct {
	VRF      string `json:"vrf"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Admitted int    `json:"admitted"`
	Rejected int    `json:"rejected"`
}

// status is what the demo reads of `fabricctl site status -o json`.
type status struct {
	Generation string   `json:"generation"`
	Applied    string   `json:"applied"`
	Ready      bool     `json:"ready"`
	Problems   []string `json:"problems"`
	// Backend is how the gateway makes VRFs: a vrf.Backend.
	Backend vrf.Backend `json:"backend"`
}

func (d *demo) status(ctx context.Context, gateway string) (status, error) {
	var answer struct {
		Site status `json:"site"`
	}
	err := d.ctlJSON(ctx, gateway, &answer, "site", "status")
	return answer.Site, err
}

func (d *demo) converged(ctx context.Context, gateway string) error {
	var peers struct {
		Peers []peer `json:"peers"`
	}
	if err := d.ctlJSON(ctx, gateway, &peers, "peer", "list"); err != nil {
		return err
	}
	if len(peers.Peers) == 0 {
		return fmt.Errorf("%s has no peers", gateway)
	}
	for _, p := range peers.Peers {
		if p.State != "established" {
			return fmt.Errorf("%s: session with %s is %s", gateway, p.Name, p.State)
		}
	}
	status, err := d.status(ctx, gateway)
	if err != nil {
		return err
	}
	if !status.Ready || status.Generation != status.Applied || len(status.Problems) > 0 {
		return fmt.Errorf("%s: ready %v, generation %s, applied %s, problems %q", gateway, status.Ready, status.Generation, status.Applied, status.Problems)
	}
	return nil
}

func (d *demo) allConverged(ctx context.Context) error {
	for _, g := range d.gateways() {
		if err := d.converged(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) comesUp(ctx context.Context) (string, error) {
	took, err := until(ctx, 60*time.Second, d.allConverged)
	if err != nil {
		return "", err
	}
	// Routes follow the sessions by a moment; VPC entries by the cloud's own pace. A session with FRR may be made twice at first: when both
	// have dialled, each may drop the connection that the other has kept.
	if _, err = until(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := d.vpcTables(ctx)
		return errors.Join(err, d.coreRoutes(ctx), d.allConverged(ctx))
	}); err != nil {
		return "", err
	}
	lines := []string{fmt.Sprintf("%d gateways, all sessions established %.1fs after the check began, VPC tables filled %.1fs after the lab's start",
		len(d.gateways()), took.Seconds(), time.Since(d.started).Seconds())}
	for _, g := range d.gateways() {
		made, err := d.made(ctx, g)
		if err != nil {
			return "", err
		}
		lines = append(lines, g+": "+made)
	}
	return strings.Join(lines, "\n"), nil
}

// coreRoutes fails unless the core router's kernel has a route to all that gateways announce in its VRF.
func (d *demo) coreRoutes(ctx context.Context) error {
	var missing []error
	for _, family := range []string{"-4", "-6"} {
		out, err := d.run(ctx, "gz-core", "ip", family, "route", "show")
		if err != nil {
			return err
		}
		has := map[string]bool{}
		for line := range strings.Lines(out) {
			if to, _, ok := strings.Cut(line, " "); ok {
				has[to] = true
			}
		}
		for _, g := range d.gateways() {
			for _, p := range d.announced(g, "CORE") {
				to := p.String()
				if p.IsSingleIP() {
					to = p.Addr().String()
				}
				if p.Addr().Is6() == (family == "-6") && !has[to] {
					missing = append(missing, fmt.Errorf("gz-core has no route to %s of %s", p, g))
				}
			}
		}
	}
	return errors.Join(missing...)
}

// made says what a gateway's VRFs and tunnels are made of, and keeps the former for inVRF.
func (d *demo) made(ctx context.Context, gateway string) (string, error) {
	status, err := d.status(ctx, gateway)
	if err != nil {
		return "", err
	}
	d.backends[gateway] = status.Backend
	var answer struct {
		Tunnels []struct {
			Implementation string `json:"implementation"`
		} `json:"tunnels"`
	}
	if err := d.ctlJSON(ctx, gateway, &answer, "tunnel", "list"); err != nil {
		return "", err
	}
	var kinds []string
	for _, t := range answer.Tunnels {
		kinds = append(kinds, t.Implementation)
	}
	slices.Sort(kinds)
	return fmt.Sprintf("VRFs by %s, WireGuard by %s", status.Backend, strings.Join(slices.Compact(kinds), " and ")), nil
}

// expectations reads the topology's labels: which node pings which, and the ttl that comes back.
func (d *demo) expectations(prefix string) (pairs [][2]string, ttl map[[2]string]int) {
	ttl = map[[2]string]int{}
	for _, n := range d.lab.Topology.Nodes {
		for label, value := range n.Labels {
			if to, ok := strings.CutPrefix(label, prefix); ok {
				want, err := strconv.Atoi(value)
				if err != nil {
					continue // a number is checked by the topology's own test
				}
				pairs = append(pairs, [2]string{n.Name, to})
				ttl[[2]string{n.Name, to}] = want
			}
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0]+" "+a[1], b[0]+" "+b[1]) })
	return pairs, ttl
}

func (d *demo) label(node, name string) string {
	n, _ := d.lab.Topology.Node(node)
	return n.Labels[name]
}

func (d *demo) pings(ctx context.Context, prefix, address string) (string, error) {
	pairs, want := d.expectations(prefix)
	if len(pairs) == 0 {
		return "", fmt.Errorf("the topology expects no pair (labels %s...)", prefix)
	}
	var lines []string
	var errs []error
	for _, pair := range pairs {
		dst := d.label(pair[1], address)
		ttl, err := d.ping(ctx, pair[0], dst, d.inVRF(pair[0], dst)...)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ttl != want[pair]:
			errs = append(errs, fmt.Errorf("%s to %s (%s): ttl %d, want %d", pair[0], pair[1], dst, ttl, want[pair]))
		default:
			lines = append(lines, fmt.Sprintf("%s > %s %s ttl %d", pair[0], pair[1], dst, ttl))
		}
	}
	return strings.Join(lines, "\n"), errors.Join(errs...)
}

// inVRF are ping's options on a gateway: from its loopback in CORE, by that VRF's device or table.
func (d *demo) inVRF(node, dst string) []string {
	_, gw, ok := d.doc.Find(node)
	if !ok {
		return nil
	}
	for _, v := range gw.VRFs {
		if v.VRF != "CORE" {
			continue
		}
		for _, l := range v.Loopbacks {
			if l.Addr().Is6() == strings.Contains(dst, ":") {
				if d.backends[node] == vrf.Devices {
					return []string{"-I", "CORE", "-I", l.Addr().String()}
				}
				core, _ := d.doc.VRF("CORE")
				return []string{"-m", strconv.Itoa(int(core.Table)), "-I", l.Addr().String()}
			}
		}
	}
	return nil
}

func (d *demo) pingPairs(ctx context.Context) (string, error) {
	return d.pings(ctx, clab.LabelTTLPrefix, clab.LabelAddress)
}

func (d *demo) pingPairs6(ctx context.Context) (string, error) {
	return d.pings(ctx, clab.LabelTTL6Prefix, clab.LabelAddress6)
}

// announced are the prefixes that a gateway announces in a VRF by the document, and what is behind its neighbours.
func (d *demo) announced(gateway, vrf string) []netip.Prefix {
	_, gw, _ := d.doc.Find(gateway)
	var ps []netip.Prefix
	for _, v := range gw.VRFs {
		if v.VRF != vrf {
			continue
		}
		for _, p := range v.Prefixes {
			ps = append(ps, p.Prefix)
		}
		ps = append(ps, v.Loopbacks...)
		if len(v.Peers) > 0 {
			// What the core router announces that may travel; the topology's core.frr.conf.
			ps = append(ps, netip.MustParsePrefix("172.20.128.0/17"), netip.MustParsePrefix("fd20:128::/48"))
		}
	}
	return ps
}

// remote are the prefixes that all other gateways announce in a VRF that this one has.
func (d *demo) remote(gateway, vrf string) map[netip.Prefix]bool {
	set := map[netip.Prefix]bool{}
	if d.vrfOf(gateway, vrf) == nil {
		return set
	}
	for _, other := range d.gateways() {
		if other == gateway {
			continue
		}
		for _, p := range d.announced(other, vrf) {
			set[p] = true
		}
	}
	return set
}

func (d *demo) vrfOf(gateway, vrf string) *config.GatewayVRF {
	_, gw, _ := d.doc.Find(gateway)
	for i := range gw.VRFs {
		if gw.VRFs[i].VRF == vrf {
			return &gw.VRFs[i]
		}
	}
	return nil
}

// kernelTables compares every VRF table of every gateway with what the document means.
func (d *demo) kernelTables(ctx context.Context) (string, error) {
	var lines []string
	var errs []error
	for _, gateway := range d.gateways() {
		for _, v := range d.doc.VRFs {
			gv := d.vrfOf(gateway, v.Name)
			if gv == nil {
				continue
			}
			rs, err := d.routes(ctx, gateway, strconv.Itoa(int(v.Table)))
			if err != nil {
				return "", err
			}
			got := map[netip.Prefix]bool{}
			for _, r := range rs {
				p, err := netip.ParsePrefix(r.Dst)
				if err != nil {
					return "", err
				}
				switch {
				case r.Type == "unreachable" && p.Bits() == 0 && uint32(r.Metric) == kernel.BackstopMetric:
				case r.Type == "local" || r.Protocol == "kernel" || r.Metric == 1 && r.Protocol == protoSite:
					// Connected, with rules by our hand, with a VRF device by the kernel's.
				case r.Protocol == protoSite && r.Metric == kernel.Metric:
					got[p] = true
				default:
					errs = append(errs, fmt.Errorf("%s table %d: %s proto %s metric %d is neither ours nor connected", gateway, v.Table, p, r.Protocol, r.Metric))
				}
			}
			want := d.remote(gateway, v.Name)
			for _, p := range gv.Prefixes {
				if p.NextHop.IsValid() {
					want[p.Prefix] = true
				}
			}
			if len(gv.Peers) > 0 {
				for _, p := range d.announced(gateway, v.Name) {
					if p.String() == "172.20.128.0/17" || p.String() == "fd20:128::/48" {
						want[p] = true
					}
				}
			}
			if !maps.Equal(got, want) {
				errs = append(errs, fmt.Errorf("%s table %d: %s", gateway, v.Table, difference(got, want)))
			}
			lines = append(lines, fmt.Sprintf("%s %s: %d routes of ours (proto %s metric %d)", gateway, v.Name, len(got), protoSite, kernel.Metric))
		}
	}
	return strings.Join(lines, "\n"), errors.Join(errs...)
}

// difference says in words how two sets differ.
func difference(got, want map[netip.Prefix]bool) string {
	var words []string
	for p := range want {
		if !got[p] {
			words = append(words, "missing "+p.String())
		}
	}
	for p := range got {
		if !want[p] {
			words = append(words, "unwanted "+p.String())
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
