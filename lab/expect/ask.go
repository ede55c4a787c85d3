package expect

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"fabric/internal/kernel"
)

// on runs a command in the node that is asked.
type on func(argv ...string) ([]byte, error)

// into decodes a command's JSON.
func (run on) into(answer any, argv ...string) error {
	out, err := run(argv...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// askFabric asks a gateway's fabric-site, and its kernel for what became of the routes.
func askFabric(run on) (facts, error) {
	ctl := func(answer any, argv ...string) error {
		return run.into(answer, append([]string{"/opt/fabric/bin/fabricctl", "-o", "json"}, argv...)...)
	}
	var site struct {
		Site struct {
			Generation, Applied string
			Ready               bool
			Problems, Conflicts []string
		}
	}
	var peers struct {
		Peers []struct{ VRF, Name, State, BFD string }
	}
	var tunnels struct {
		Tunnels []struct {
			Name, State string
			Active      bool
		}
	}
	var sessions struct {
		Sessions []struct{ Name, Device, Peer, State string }
	}
	var vrfs struct {
		VRFs []struct {
			Name  string
			Table int
		}
	}
	var routes struct {
		Routes []struct{ VRF, Prefix, Source, From, Kernel, Cloud string }
	}
	for _, err := range []error{ctl(&site, "site", "status"), ctl(&peers, "peer", "list"), ctl(&tunnels, "tunnel", "list"),
		ctl(&sessions, "bfd", "list"), ctl(&vrfs, "vrf", "list"), ctl(&routes, "route", "list")} {
		if err != nil {
			return nil, err
		}
	}
	var err error
	f := facts{"site": "ready"}
	if s := site.Site; !s.Ready || s.Generation != s.Applied || len(s.Problems)+len(s.Conflicts) > 0 {
		f["site"] = fmt.Sprintf("ready %v, generation %s, applied %s, problems %q, conflicts %q", s.Ready, s.Generation, s.Applied, s.Problems, s.Conflicts)
	}
	if f["doctor"], err = doctor(run); err != nil {
		return nil, err
	}
	for _, p := range peers.Peers {
		name := p.Name
		if p.VRF != "" {
			name = p.VRF + "/" + p.Name
		}
		if p.BFD != "" {
			p.State += ", bfd " + p.BFD
		}
		f["peer "+name] = p.State
	}
	for _, t := range tunnels.Tunnels {
		if t.Active {
			t.State += " active"
		}
		f["tunnel "+t.Name] = t.State
	}
	for _, s := range sessions.Sessions {
		if s.Device == "" && s.Peer == "" { // neither a tunnel's nor a peer's
			f["session "+s.Name] = s.State
		}
	}
	tables, err := kernelTables(run)
	if err != nil {
		return nil, err
	}
	for _, v := range vrfs.VRFs {
		stands := tables[strconv.Itoa(v.Table)]
		for _, r := range routes.Routes {
			if r.VRF != v.Name {
				continue
			}
			text := strings.TrimSpace(r.Source + " " + r.From)
			if state, _, _ := strings.Cut(r.Cloud, ":"); state != "" {
				text += ", cloud " + state
			}
			if r.Source != "connected" && stands[r.Prefix] != ours {
				text += fmt.Sprintf(" (kernel: %s, not in table %d)", r.Kernel, v.Table)
			}
			if stands[r.Prefix] == ours {
				delete(stands, r.Prefix)
			}
			f["route "+v.Name+" "+r.Prefix] = text
		}
		for prefix, what := range stands {
			f["route "+v.Name+" "+prefix] = fmt.Sprintf("only in table %d (%s)", v.Table, what)
		}
	}
	return f, nil
}

// doctor is "no errors", or the errors that the self-check finds. Warnings are about the host that the lab runs on.
func doctor(run on) (string, error) {
	var report struct {
		Errors   int
		Findings []struct{ Severity, ID, What string }
	}
	out, err := run("/opt/fabric/bin/fabricctl", "-o", "json", "doctor")
	if decode := json.Unmarshal(out, &report); decode != nil { // with errors the exit code is 1, and the answer there all the same
		return "", errors.Join(err, decode)
	}
	if report.Errors == 0 {
		return noErrors, nil
	}
	var lines []string
	for _, f := range report.Findings {
		if f.Severity == "error" {
			lines = append(lines, f.ID+": "+f.What)
		}
	}
	return strings.Join(lines, "; "), nil
}

// noErrors is a self-check without errors.
const noErrors = "no errors"

// ours marks a route in a kernel's table that fabric-site wrote.
const ours = "ours"

// kernelTables are the routes of both families by table and prefix: "ours", or what they are. Connected networks, the host's
// own addresses and the backstop are left out; every VRF has them.
func kernelTables(run on) (map[string]map[string]string, error) {
	tables := map[string]map[string]string{}
	protocol := strconv.Itoa(kernel.Protocol)
	for _, family := range []string{"-4", "-6"} {
		var routes []struct {
			Type, Dst, Protocol, Table string
			Metric                     uint32
		}
		if err := run.into(&routes, "ip", "-j", "-N", family, "-d", "route", "show", "table", "all"); err != nil {
			return nil, err
		}
		for _, r := range routes {
			const static = 1 // metric of connected networks where VRFs are rules
			switch {
			case r.Dst == "default" && r.Metric == kernel.BackstopMetric, r.Protocol == "2", r.Protocol == protocol && r.Metric == static:
				continue
			}
			prefix := canonical(r.Dst, family)
			if tables[r.Table] == nil {
				tables[r.Table] = map[string]string{}
			}
			if r.Protocol == protocol && r.Metric == kernel.Metric {
				tables[r.Table][prefix] = ours
			} else {
				tables[r.Table][prefix] = fmt.Sprintf("type %s proto %s metric %d", r.Type, r.Protocol, r.Metric)
			}
		}
	}
	return tables, nil
}

// canonical writes a destination of `ip route` as a prefix.
func canonical(dst, family string) string {
	if dst == "default" {
		return map[string]string{"-4": "0.0.0.0/0", "-6": "::/0"}[family]
	}
	if a, err := netip.ParseAddr(dst); err == nil {
		return netip.PrefixFrom(a, a.BitLen()).String()
	}
	return dst
}

// askFRR asks bgpd for its sessions and for all paths that it knows.
func askFRR(run on) (facts, error) {
	f := facts{}
	for _, family := range []string{"ipv4", "ipv6"} {
		var summary struct {
			Peers map[string]struct{ State string }
		}
		if err := run.into(&summary, "vtysh", "-c", "show bgp "+family+" unicast summary json"); err != nil {
			return nil, err
		}
		for address, p := range summary.Peers {
			f["peer "+address] = strings.ToLower(p.State)
		}
		var table struct {
			Routes map[string][]struct {
				Valid    bool
				Nexthops []struct{ IP, Scope string }
			}
		}
		if err := run.into(&table, "vtysh", "-c", "show bgp "+family+" unicast json"); err != nil {
			return nil, err
		}
		for prefix, paths := range table.Routes {
			var hops []string
			for _, p := range paths {
				for _, h := range p.Nexthops {
					if h.Scope != "link-local" {
						hops = append(hops, h.IP)
					}
				}
			}
			slices.Sort(hops)
			f["route "+family+" "+prefix] = strings.Join(hops, " ")
		}
	}
	return f, nil
}

var (
	birdProtocol = regexp.MustCompile(`^(\S+)\s+BGP\s+\S+\s+\S+\s+\S+\s*(\S*)`)
	birdTable    = regexp.MustCompile(`^Table (\S+):$`)
	birdRoute    = regexp.MustCompile(`^(\S*)\s+\S+\s+\[(\S+) `)
)

// askBIRD asks birdc, which has no JSON, for the BGP protocols and the routes of all tables, best and others.
func askBIRD(run on) (facts, error) {
	f := facts{}
	out, err := run("birdc", "show", "protocols")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		if m := birdProtocol.FindStringSubmatch(line); m != nil {
			f["peer "+m[1]] = strings.ToLower(m[2])
		}
	}
	if out, err = run("birdc", "show", "route", "table", "all"); err != nil {
		return nil, err
	}
	table, prefix := "", ""
	protocols := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if m := birdTable.FindStringSubmatch(line); m != nil {
			table = m[1]
			continue
		}
		if strings.HasPrefix(line, "\t") {
			continue // next hops
		}
		m := birdRoute.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if m[1] != "" { // else another route to the same prefix
			prefix = m[1]
		}
		key := "route " + table + " " + prefix
		protocols[key] = append(protocols[key], m[2])
	}
	for _, key := range slices.Sorted(maps.Keys(protocols)) {
		slices.Sort(protocols[key])
		f[key] = strings.Join(protocols[key], " ")
	}
	return f, nil
}

var ttlPattern = regexp.MustCompile(`(?m)^\d+ bytes from .* ttl=(\d+) `)

// ping sends two echo requests and returns the ttl of the first answer. A lost one is no answer.
func ping(run on, address string) (int, error) {
	out, err := run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address)
	m := ttlPattern.FindSubmatch(out)
	if m == nil && len(out) == 0 && err != nil {
		return 0, err // it was not even sent
	}
	if m == nil {
		return 0, errors.New("no answer")
	}
	return strconv.Atoi(string(m[1]))
}
