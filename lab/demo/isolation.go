package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fabric/lab/clab"
)

// probe is one ping whose way is followed through the whole lab. Its ICMP identifier tells it from all other packets, so
// that it is found wherever it goes, answered or not.
type probe struct {
	// from is a node; vrf is the one it is in, empty for the main tables of the gateways and the internet.
	from, vrf, dst string
	// enters is where the packet must be seen, else it never asked the fabric anything.
	enters place
	// at is the node that must get the packet, empty if none may. A gateway gets it by taking it for its own.
	at string
	// unanswered is for a probe that arrives from where no route leads back.
	unanswered bool
	id         int
}

// String names the try in evidence and errors.
func (p probe) String() string { return p.from + " > " + p.dst }

// place is a device of a node.
type place struct{ node, device string }

// String is the place as NODE:DEVICE.
func (p place) String() string { return p.node + ":" + p.device }

// firstID is the ICMP identifier of the first probe: far from what ping takes by itself often enough.
const firstID = 0x5a00

// probes are the pings within a VRF, which prove that every place is watched, and the tries to cross.
func (d *demo) probes() []probe {
	sz, hk, gz := place{"sz-gw", "eth3"}, place{"hk-gw", "eth3"}, place{"gz-gw", "eth1"}
	szOut, gzOut := place{"sz-gw", "eth0"}, place{"gz-gw", "eth0"}
	hkHost := d.label("hk-host", clab.LabelAddress)
	all := []probe{
		// A host in CORE and one in OPS have the same address: each hears only its own.
		{from: "sz-host", vrf: "CORE", dst: hkHost, enters: place{"sz-gw", "eth1"}, at: "hk-host"},
		{from: "sz-ops", vrf: "OPS", dst: hkHost, enters: sz, at: "hk-ops"},
		{from: "hk-host", vrf: "CORE", dst: d.label("sz-host", clab.LabelAddress), enters: place{"hk-gw", "eth1"}, at: "sz-host"},
		{from: "hk-ops", vrf: "OPS", dst: d.label("sz-ops", clab.LabelAddress), enters: hk, at: "sz-ops"},
		{from: "sz-host", vrf: "CORE", dst: d.label("gz-host", clab.LabelAddress), enters: place{"sz-gw", "eth1"}, at: "gz-host"},
		// What the tries below aim at is there, for those in its VRF.
		{from: "gz-host", vrf: "CORE", dst: "10.254.0.10", enters: gz, at: "sz-gw"},
		{from: "gz-host", vrf: "CORE", dst: "10.254.0.20", enters: gz, at: "hk-gw"},
		{from: "gz-host", vrf: "CORE", dst: "172.20.0.9", enters: gz, at: "gz-gw"},
		{from: "gz-host", vrf: "CORE", dst: "fd18::10", enters: gz, at: "sz-gw"},
		{from: "gz-host", vrf: "CORE", dst: "fd31::20", enters: gz, at: "hk-gw"},
		{from: "sz-ops", vrf: "OPS", dst: "10.253.0.10", enters: sz, at: "sz-gw"},
		{from: "sz-ops", vrf: "OPS", dst: "10.253.0.20", enters: sz, at: "hk-gw"},
		{from: "sz-ops", vrf: "OPS", dst: "fd53::10", enters: sz, at: "sz-gw", unanswered: true},
		{from: "sz-ops", vrf: "OPS", dst: "fd53::20", enters: sz, at: "hk-gw", unanswered: true},

		// From OPS, what only CORE has.
		{from: "sz-ops", vrf: "OPS", dst: "172.20.128.13", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "172.20.0.9", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "10.254.0.10", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "10.254.0.20", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "fd20:128::13", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "fd20::9", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "fd18::10", enters: sz},
		{from: "sz-ops", vrf: "OPS", dst: "fd31::20", enters: sz},
		{from: "hk-ops", vrf: "OPS", dst: "172.20.128.13", enters: hk},
		{from: "hk-ops", vrf: "OPS", dst: "10.254.0.10", enters: hk},
		{from: "hk-ops", vrf: "OPS", dst: "10.254.0.20", enters: hk},
		{from: "hk-ops", vrf: "OPS", dst: "fd20:128::13", enters: hk},
		{from: "hk-ops", vrf: "OPS", dst: "fd31::20", enters: hk},
		// From CORE, what only OPS has.
		{from: "gz-host", vrf: "CORE", dst: "10.253.0.10", enters: gz},
		{from: "gz-host", vrf: "CORE", dst: "10.253.0.20", enters: gz},
		{from: "gz-host", vrf: "CORE", dst: "fd53::10", enters: gz},
		{from: "gz-host", vrf: "CORE", dst: "fd53::20", enters: gz},
		// From the main table, what a VRF has.
		{from: "internet", dst: "172.18.171.245", enters: szOut},
		{from: "internet", dst: "172.18.171.247", enters: szOut},
		{from: "internet", dst: "10.254.0.10", enters: szOut},
		{from: "internet", dst: "10.253.0.10", enters: szOut},
		{from: "internet", dst: "fd18::10", enters: szOut},
		{from: "internet", dst: "fd53::10", enters: szOut},
		{from: "internet", dst: "172.20.128.13", enters: gzOut},
	}
	for i := range all {
		all[i].id = firstID + i
	}
	return all
}

func (d *demo) isolation(ctx context.Context) (string, error) {
	undo, err := d.detours(ctx)
	defer undo()
	if err != nil {
		return "", err
	}
	w, err := d.watch(ctx)
	defer w.end()
	if err != nil {
		return "", err
	}
	probes := d.probes()
	outcome := make([]error, len(probes))
	var pinging sync.WaitGroup
	for i, p := range probes {
		pinging.Go(func() {
			options := []string{"-c", "2", "-i", "0.3", "-e", strconv.Itoa(p.id)}
			if p.at != "" && !p.unanswered {
				_, outcome[i] = d.ping(ctx, p.from, p.dst, options...)
			} else {
				outcome[i] = d.silent(ctx, p.from, p.dst, options...)
			}
		})
	}
	pinging.Wait()
	if err := w.read(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(errors.Join(outcome...), w.judge(probes)); err != nil {
		return "", err
	}
	tries := 0
	for _, p := range probes {
		if p.at == "" {
			tries++
		}
	}
	lines := []string{
		fmt.Sprintf("%d pings within a VRF arrive where they should and nowhere else, also where both VRFs have the address", len(probes)-tries),
		fmt.Sprintf("%d tries to reach from one VRF or the main table what is in another: each came to its gateway, none was answered", tries),
		fmt.Sprintf("%d places watched: no packet of them at a place of another VRF, none taken by a gateway for its own", len(w.vrf)),
	}
	return strings.Join(lines, "\n"), nil
}

// watcher sees where the probes go.
type watcher struct {
	d        *demo
	captures map[string]*capture
	tables   []string
	// vrf tells the VRF of each watched device that is in one.
	vrf map[place]string
	// seen holds the probes by their number: on which devices, and which gateways took them for their own.
	seen map[int]map[place]bool
	own  map[int]map[string]bool
}

// watched keeps, on a gateway, the numbers of the echo requests that get as far as the gateway itself. A capture cannot tell:
// a packet that is taken by the wrong VRF and whose answer finds no way leaves no other trace.
const watched = `table inet demo {
	set own4 { typeof icmp id; flags dynamic; size 4096; }
	set own6 { typeof icmpv6 id; flags dynamic; size 4096; }
	chain input {
		type filter hook input priority 1000;
		icmp type echo-request add @own4 { icmp id }
		icmpv6 type echo-request add @own6 { icmpv6 id }
	}
}`

// watch begins to watch every device of the gateways, of all hosts in a VRF and of the internet.
func (d *demo) watch(ctx context.Context) (*watcher, error) {
	w := &watcher{d: d, captures: map[string]*capture{}, vrf: map[place]string{}, seen: map[int]map[place]bool{}, own: map[int]map[string]bool{}}
	for _, g := range d.gateways() {
		if _, err := d.run(ctx, g, "nft", watched); err != nil {
			return w, err
		}
		w.tables = append(w.tables, g)
		if err := w.devices(ctx, g); err != nil {
			return w, err
		}
	}
	nodes := append(d.gateways(), "internet")
	for _, n := range d.lab.Topology.Nodes {
		if vrf := n.Labels[clab.LabelVRF]; vrf != "" {
			nodes = append(nodes, n.Name)
			w.vrf[place{n.Name, "eth1"}] = vrf
		}
	}
	w.vrf[place{"gz-core", "eth2"}] = "CORE"
	for _, node := range nodes {
		c, err := d.listen(ctx, node, "any", "icmp[icmptype] = icmp-echo or (icmp6 and ip6[40] = 128)")
		if err != nil {
			return w, err
		}
		w.captures[node] = c
	}
	return w, nil
}

// devices learns which devices of a gateway belong to a VRF: by the document, and the tunnel ends by their VNI.
func (w *watcher) devices(ctx context.Context, gateway string) error {
	out, err := w.d.run(ctx, gateway, "ip", "-j", "-d", "link", "show", "type", "vxlan")
	if err != nil {
		return err
	}
	var links []struct {
		Name string `json:"ifname"`
		Info struct {
			Data struct {
				ID uint32 `json:"id"`
			} `json:"info_data"`
		} `json:"linkinfo"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return fmt.Errorf("%s: ip link: %w: %s", gateway, err, out)
	}
	for _, v := range w.d.doc.VRFs {
		gv := w.d.vrfOf(gateway, v.Name)
		if gv == nil {
			continue
		}
		for _, i := range gv.Interfaces {
			w.vrf[place{gateway, i.Name}] = v.Name
		}
		for _, l := range links {
			if l.Info.Data.ID == uint32(v.VNI) {
				w.vrf[place{gateway, l.Name}] = v.Name
			}
		}
	}
	return nil
}

var (
	requestPattern  = regexp.MustCompile(`(?s)(\S+)\s+(?:In|Out|B|M|P)\s+IP6? \(.*?echo request, id (\d+)`)
	elementsPattern = regexp.MustCompile(`(?s)elements = \{([^}]*)\}`)
	numberPattern   = regexp.MustCompile(`\d+`)
)

// read ends the captures and notes what was seen.
func (w *watcher) read(ctx context.Context) error {
	texts := w.stop()
	for node, text := range texts {
		for _, m := range requestPattern.FindAllStringSubmatch(text, -1) {
			id, _ := strconv.Atoi(m[2])
			if w.seen[id] == nil {
				w.seen[id] = map[place]bool{}
			}
			w.seen[id][place{node, m[1]}] = true
		}
	}
	for _, g := range w.tables {
		out, err := w.d.run(ctx, g, "nft", "list", "table", "inet", "demo")
		if err != nil {
			return err
		}
		for _, m := range elementsPattern.FindAllStringSubmatch(out, -1) {
			for _, number := range numberPattern.FindAllString(m[1], -1) {
				id, _ := strconv.Atoi(number)
				if w.own[id] == nil {
					w.own[id] = map[string]bool{}
				}
				w.own[id][g] = true
			}
		}
	}
	return nil
}

// judge compares what was seen with where each probe may be.
func (w *watcher) judge(probes []probe) error {
	var errs []error
	alive := map[place]bool{}
	for _, p := range probes {
		seen, own := w.seen[p.id], w.own[p.id]
		if !seen[p.enters] {
			errs = append(errs, fmt.Errorf("%s: did not come to %s, so it proves nothing", p, p.enters))
		}
		for at := range seen {
			alive[at] = true
			// The devices of no VRF are the underlay's: nothing but the internet's own probes may be there.
			if w.vrf[at] != p.vrf && !w.shared(at) {
				errs = append(errs, fmt.Errorf("%s: a packet of %s is at %s, a place of %s", p, named(p.vrf), at, named(w.vrf[at])))
			}
		}
		for g := range own {
			if g != p.at {
				errs = append(errs, fmt.Errorf("%s: %s took the packet of %s for its own", p, g, named(p.vrf)))
			}
		}
		arrived := own[p.at] || p.at != "" && !slices.Contains(w.tables, p.at) && seen[place{p.at, "eth1"}]
		if p.at != "" && !arrived {
			errs = append(errs, fmt.Errorf("%s: did not arrive at %s", p, p.at))
		}
	}
	for at := range w.vrf {
		if !alive[at] {
			errs = append(errs, fmt.Errorf("%s: nothing at all was seen there, so that it says nothing about leaks", at))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// shared says whether a place is a VRF device itself: everything in the VRF is seen there a second time.
func (w *watcher) shared(at place) bool {
	_, ok := w.d.doc.VRF(at.device)
	return ok
}

func named(vrf string) string {
	if vrf == "" {
		return "no VRF"
	}
	return vrf
}

// stop ends the captures and returns their texts.
func (w *watcher) stop() map[string]string {
	var mu sync.Mutex
	var stopping sync.WaitGroup
	texts := map[string]string{}
	for node, c := range w.captures {
		stopping.Go(func() {
			text := c.stop()
			mu.Lock()
			defer mu.Unlock()
			texts[node] = text
		})
	}
	stopping.Wait()
	return texts
}

// end leaves nothing of the watch behind.
func (w *watcher) end() {
	w.stop()
	for _, g := range w.tables {
		_, _ = w.d.run(context.Background(), g, "nft", "delete", "table", "inet", "demo")
	}
}

// detours give the hosts routes that lead what is not theirs to the gateway, so that the gateway has to say no.
func (d *demo) detours(ctx context.Context) (undo func(), err error) {
	var added [][2]string
	undo = func() {
		for _, l := range slices.Backward(added) {
			// The lab is taken down after the checks; a leftover detour would only colour the ones that follow.
			_, _ = d.run(context.WithoutCancel(ctx), l[0], append([]string{"ip"}, strings.Fields(strings.Replace(l[1], " add ", " del ", 1))...)...)
		}
	}
	lines := [][2]string{
		{"gz-core", "route add 10.253.0.0/24 via 172.20.0.9"},
		{"gz-core", "-6 route add fd53::/64 via fd20::9"},
		{"internet", "route add 172.18.171.245/32 via 203.0.113.10"},
		{"internet", "route add 172.18.171.247/32 via 203.0.113.10"},
		{"internet", "route add 10.254.0.10/32 via 203.0.113.10"},
		{"internet", "route add 10.253.0.10/32 via 203.0.113.10"},
		{"internet", "route add 172.20.128.13/32 via 198.51.100.30"},
	}
	// For IPv6 these three have neither an address nor a gateway by themselves: the gateway's link-local address serves.
	for _, six := range []struct {
		node, address string
		via           place
		dst           []string
	}{
		{"sz-ops", "fd99::247/64", place{"sz-gw", "eth3"}, []string{"default"}},
		{"hk-ops", "fd99:1::159/64", place{"hk-gw", "eth3"}, []string{"default"}},
		{"internet", "fd99:2::11/64", place{"sz-gw", "eth0"}, []string{"fd18::10", "fd53::10"}},
	} {
		via, err := d.linkLocal(ctx, six.via)
		if err != nil {
			return undo, err
		}
		lines = append(lines, [2]string{six.node, "-6 address add " + six.address + " dev eth1"})
		for _, dst := range six.dst {
			lines = append(lines, [2]string{six.node, "-6 route add " + dst + " via " + via + " dev eth1"})
		}
	}
	for _, l := range lines {
		if _, err := d.run(ctx, l[0], append([]string{"ip"}, strings.Fields(l[1])...)...); err != nil {
			return undo, err
		}
		added = append(added, l)
	}
	return undo, nil
}

// linkLocal is a device's link-local address.
func (d *demo) linkLocal(ctx context.Context, at place) (string, error) {
	out, err := d.run(ctx, at.node, "ip", "-6", "-br", "address", "show", "dev", at.device, "scope", "link")
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(out) {
		if address, _, ok := strings.Cut(word, "/"); ok && strings.HasPrefix(address, "fe80:") {
			return address, nil
		}
	}
	return "", fmt.Errorf("%s has no link-local address: %s", at, out)
}
