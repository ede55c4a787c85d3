package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fabric/lab/clab"
)

func (d *demo) noClearText(ctx context.Context) (string, error) {
	// The engine is stopped for the moment, else it would put the tunnels back within a blink.
	resume, err := d.freeze(ctx, "fabric-links", "sz-gw")
	defer resume()
	if err != nil {
		return "", err
	}
	var tunnels struct {
		Tunnels []struct {
			Device string `json:"device"`
		} `json:"tunnels"`
	}
	if err := d.ctlJSON(ctx, "sz-gw", &tunnels, "tunnel", "list"); err != nil {
		return "", err
	}
	// Anything but WireGuard on the underlay is a leak: an inner packet, or VXLAN outside a tunnel.
	c, err := d.listen(ctx, "internet", "eth1", "ip and not portrange 51820-51899 and not icmp[icmptype] = icmp-unreach or ip6 and not icmp6")
	if err != nil {
		return "", err
	}
	for _, t := range tunnels.Tunnels {
		if _, err := d.run(ctx, "sz-gw", "ip", "link", "delete", t.Device); err != nil {
			return "", err
		}
	}
	var errs []error
	for _, dst := range []string{d.label("hk-host", clab.LabelAddress), d.label("gz-host", clab.LabelAddress)} {
		errs = append(errs, d.silent(ctx, "sz-host", dst))
	}
	text := c.stop()
	resume()
	if n := strings.Count(text, "IP (") + strings.Count(text, "IP6 ("); n > 0 {
		errs = append(errs, fmt.Errorf("%d packets in clear on the underlay:\n%s", n, text))
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	took, err := until(ctx, 60*time.Second, func(ctx context.Context) error {
		if _, err := d.pingPairs(ctx); err != nil {
			return err
		}
		return d.allConverged(ctx)
	})
	return fmt.Sprintf("%d tunnel devices deleted: no answer, nothing but WireGuard on the underlay; all pairs ping again %.1fs after fabric-links went on",
		len(tunnels.Tunnels), took.Seconds()), err
}

// stages are the places where a prefix of sz-gw shows, far from it. A VPC's entry shows from when it is available, or, where it is
// to go, until it is no longer there: the cloud changes a table one step at a time, and what comes next waits for a delete to end.
func (d *demo) stages(prefix string, want bool) map[string]func(context.Context) (bool, error) {
	kernel := func(gateway string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			out, err := d.run(ctx, gateway, "ip", "-N", "route", "show", "table", "200", prefix)
			return strings.Contains(out, prefix), err
		}
	}
	return map[string]func(context.Context) (bool, error){
		"hk-gw kernel": kernel("hk-gw"),
		"gz-gw kernel": kernel("gz-gw"),
		"gz-core FRR": func(ctx context.Context) (bool, error) {
			out, err := d.run(ctx, "gz-core", "ip", "route", "show", prefix)
			return strings.Contains(out, prefix), err
		},
		"hk VPC table": func(ctx context.Context) (bool, error) {
			es, err := d.entries(ctx, d.vpcs()[1])
			return slices.ContainsFunc(es, func(e entry) bool { return e.CIDR == prefix && (!want || e.Status == "Available") }), err
		},
	}
}

// follow waits until a prefix is, or is not, at every stage, and tells when each got there.
func (d *demo) follow(ctx context.Context, prefix string, want bool) (string, error) {
	began := time.Now()
	stages := d.stages(prefix, want)
	at := map[string]time.Duration{}
	_, err := until(ctx, 40*time.Second, func(ctx context.Context) error {
		var missing []string
		for name, there := range stages {
			if _, done := at[name]; done {
				continue
			}
			is, err := there(ctx)
			if err != nil {
				return err
			}
			if is != want {
				missing = append(missing, name)
				continue
			}
			at[name] = time.Since(began)
		}
		if len(missing) > 0 {
			slices.Sort(missing)
			return fmt.Errorf("%s: present %v still to come at %s", prefix, want, strings.Join(missing, ", "))
		}
		return nil
	})
	var words []string
	for name, t := range at {
		words = append(words, fmt.Sprintf("%s %.2fs", name, t.Seconds()))
	}
	slices.Sort(words)
	return strings.Join(words, ", "), err
}

func (d *demo) prefixChange(ctx context.Context) (string, error) {
	const prefix = "172.18.0.0/16"
	if _, err := d.ctl(ctx, "sz-gw", "prefix", "del", prefix, "--vrf", "CORE", "--wait"); err != nil {
		return "", err
	}
	gone, err := d.follow(ctx, prefix, false)
	if err != nil {
		return gone, err
	}
	if _, err := d.ctl(ctx, "sz-gw", "prefix", "add", prefix, "--vrf", "CORE", "--next-hop", "172.18.171.253", "--interface", "eth1", "--wait"); err != nil {
		return gone, err
	}
	back, err := d.follow(ctx, prefix, true)
	if err == nil {
		_, err = until(ctx, 10*time.Second, func(ctx context.Context) error { _, err := d.pingPairs(ctx); return err })
	}
	return "del: " + gone + "\nadd: " + back, err
}

// stream is a ping that goes on while something happens.
type stream struct {
	pair [2]string
	cmd  *exec.Cmd
	out  bytes.Buffer
	// said is what ping writes beside its answers: its count, when asked.
	said shared
}

const (
	// interval is the time between two packets of a stream.
	interval = 20 * time.Millisecond
	// onTheWay is how long an answer may take.
	onTheWay = time.Second
)

// streams starts a ping of 50 packets a second for every pair of the topology.
func (d *demo) streams(ctx context.Context) ([]*stream, error) {
	var all []*stream
	for prefix, address := range map[string]string{clab.LabelTTLPrefix: clab.LabelAddress, clab.LabelTTL6Prefix: clab.LabelAddress6} {
		pairs, _ := d.expectations(prefix)
		for _, pair := range pairs {
			dst := d.label(pair[1], address)
			argv := append([]string{"ping", "-n", "-i", strconv.FormatFloat(interval.Seconds(), 'f', -1, 64), "-W", "1"}, d.inVRF(pair[0], dst)...)
			s := &stream{pair: pair, cmd: d.lab.Node(pair[0]).Command(ctx, append(argv, dst)...)}
			s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.said
			if err := s.cmd.Start(); err != nil {
				return all, err
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// sent asks a running ping how many requests it has sent.
func (s *stream) sent() (int, error) {
	// SIGQUIT has ping write its count and go on.
	if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return 0, err
	}
	var n int
	_, err := until(context.Background(), 2*time.Second, func(context.Context) error {
		m := countPattern.FindStringSubmatch(s.said.String())
		if m == nil {
			return fmt.Errorf("ping does not say how much it sent: %q", s.said.String())
		}
		var err error
		n, err = strconv.Atoi(m[1])
		return err
	})
	return n, err
}

// end counts what was sent up to now, lets the answers come, ends the pings and demands an answer to each one counted.
// Only then: a ping that is stopped would call lost what is on its way.
func end(all []*stream) (sent, lost int, detail []string) {
	counts := make([]int, len(all))
	for i, s := range all {
		n, err := s.sent()
		if err != nil || n == 0 {
			lost++
			detail = append(detail, fmt.Sprintf("%s > %s: no count: %v", s.pair[0], s.pair[1], err))
		}
		counts[i] = n
		sent += n
	}
	time.Sleep(onTheWay)
	for _, s := range all {
		_ = s.cmd.Process.Signal(interrupt)
	}
	for i, s := range all {
		_ = s.cmd.Wait()
		answered := map[int]bool{}
		for _, m := range answerPattern.FindAllStringSubmatch(s.out.String(), -1) {
			n, _ := strconv.Atoi(m[1])
			answered[n] = true
		}
		var missing []int
		for n := 1; n <= counts[i]; n++ {
			if !answered[n] {
				missing = append(missing, n)
			}
		}
		if len(missing) > 0 {
			lost += len(missing)
			detail = append(detail, fmt.Sprintf("%s > %s: %d of %d lost, first number %d, last %d",
				s.pair[0], s.pair[1], len(missing), counts[i], missing[0], missing[len(missing)-1]))
		}
	}
	return sent, lost, detail
}

// restart ends a gateway's fabric-site with a signal, starts it anew a moment later and waits for everything to stand.
func (d *demo) restart(ctx context.Context, gateway, signal string) (time.Duration, error) {
	pid, err := d.daemonPid(ctx, gateway, "fabric-site")
	if err != nil {
		return 0, err
	}
	if err := d.signal(ctx, gateway, "fabric-site", signal); err != nil {
		return 0, err
	}
	if _, err := until(ctx, 10*time.Second, func(ctx context.Context) error {
		if out, err := d.run(ctx, gateway, "sh", "-c", fmt.Sprintf("test ! -e /proc/%d || grep -q '^State:.Z' /proc/%d/status", pid, pid)); err != nil {
			return fmt.Errorf("fabric-site lives on after SIG%s: %s", signal, out)
		}
		return nil
	}); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := d.run(ctx, gateway, "sh", "/opt/fabric/gateway.sh", "start", "fabric-site", gateway); err != nil {
		return 0, err
	}
	_, err = until(ctx, 60*time.Second, d.allConverged)
	return time.Since(began), err
}

func (d *demo) restarts(ctx context.Context) (string, error) {
	var lines []string
	var errs []error
	for _, signal := range []string{"TERM", "KILL"} {
		all, err := d.streams(ctx)
		if err != nil {
			end(all)
			return "", err
		}
		for _, gateway := range d.gateways() {
			took, err := d.restart(ctx, gateway, signal)
			if err != nil {
				end(all)
				return strings.Join(lines, "\n"), fmt.Errorf("SIG%s %s: %w", signal, gateway, err)
			}
			lines = append(lines, fmt.Sprintf("SIG%s %s: converged %.1fs after the start", signal, gateway, took.Seconds()))
		}
		sent, lost, detail := end(all)
		lines = append(lines, fmt.Sprintf("SIG%s: %d pings sent by %d pairs, %d lost", signal, sent, len(all), lost))
		if lost > 0 || sent == 0 {
			errs = append(errs, fmt.Errorf("SIG%s: %d lost: %s", signal, lost, strings.Join(detail, "; ")))
		}
	}
	return strings.Join(lines, "\n"), errors.Join(errs...)
}

// held are the commands that tell all a gateway's kernel holds that the daemons write, each with what is no part of it.
var held = []struct {
	argv    []string
	without *regexp.Regexp
}{
	// -s leaves counters out where nft knows it for JSON; the handles stay: what is made anew has another.
	{argv: []string{"nft", "-j", "-s", "list", "ruleset"}, without: regexp.MustCompile(`"packets": \d+, "bytes": \d+`)},
	{argv: []string{"bridge", "fdb", "show"}},
	{argv: []string{"ip", "neigh", "show", "nud", "permanent"}},
	{argv: []string{"ip", "-d", "link", "show"}, without: regexp.MustCompile(`\w+_timer +[\d.]+`)},
	{argv: []string{"ip", "-N", "address", "show"}},
	{argv: []string{"ip", "-4", "-N", "rule", "show"}},
	{argv: []string{"ip", "-6", "-N", "rule", "show"}},
	{argv: []string{"ip", "-4", "-N", "route", "show", "table", "all"}},
	{argv: []string{"ip", "-6", "-N", "route", "show", "table", "all"}},
	{argv: []string{"ip", "-N", "nexthop", "show"}},
}

// holdings are the lines of all commands of held on a gateway, each behind its command.
func (d *demo) holdings(ctx context.Context, gateway string) ([]string, error) {
	var all []string
	for _, h := range held {
		out, err := d.run(ctx, gateway, h.argv...)
		if err != nil {
			return nil, err
		}
		if h.argv[0] == "nft" {
			// One line otherwise: nobody could see what differs.
			out = strings.ReplaceAll(out, `}, {"`, "},\n{\"")
		}
		if h.without != nil {
			out = h.without.ReplaceAllString(out, "")
		}
		n := 0
		for line := range strings.SplitSeq(out, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				all = append(all, strings.Join(h.argv, " ")+": "+line)
				n++
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("%s: %s prints nothing: there is nothing to compare", gateway, strings.Join(h.argv, " "))
		}
	}
	// The kernel lists some of them in no order.
	slices.Sort(all)
	return all, nil
}

// changed are the lines that only one of two sorted lists has.
func changed(before, after []string) []string {
	var words []string
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0] < after[0]:
			words, before = append(words, "- "+before[0]), before[1:]
		case len(before) == 0 || after[0] < before[0]:
			words, after = append(words, "+ "+after[0]), after[1:]
		default:
			before, after = before[1:], after[1:]
		}
	}
	return words
}

func (d *demo) secondStart(ctx context.Context) (string, error) {
	before, err := d.holdings(ctx, "sz-gw")
	if err != nil {
		return "", err
	}
	monitor := d.lab.Node("sz-gw").Command(ctx, "ip", "-N", "monitor", "route", "rule", "nexthop", "link", "address")
	var out bytes.Buffer
	monitor.Stdout = &out
	if err := monitor.Start(); err != nil {
		return "", err
	}
	defer func() { _ = monitor.Process.Kill(); _ = monitor.Wait() }()
	if _, err := d.restart(ctx, "sz-gw", "TERM"); err != nil {
		return "", err
	}
	after, err := d.holdings(ctx, "sz-gw")
	if err != nil {
		return "", err
	}
	_ = monitor.Process.Signal(interrupt)
	_ = monitor.Wait()
	var errs []error
	if lines := changed(before, after); len(lines) > 0 {
		errs = append(errs, fmt.Errorf("the kernel holds something else than before:\n%s", strings.Join(lines, "\n")))
	}
	var changes []string
	for line := range strings.SplitSeq(out.String(), "\n") {
		if strings.Contains(line, "proto "+protoSite) || strings.Contains(line, "proto "+protoLinks) || strings.Contains(line, "Deleted") {
			changes = append(changes, line)
		}
	}
	if len(changes) > 0 {
		errs = append(errs, fmt.Errorf("%d changes of ours in the kernel meanwhile:\n%s", len(changes), strings.Join(changes, "\n")))
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d lines of nft, bridge and ip (links, addresses, neighbours, rules, routes, next hops) are the same before and after, handles too; "+
		"no route, rule, next hop, link or address of ours was touched between", len(before)), nil
}

// timing measures how long an added prefix takes to the remote kernels, n times, and prints one JSON object.
func (d *demo) timing(ctx context.Context, n int) error {
	var times []float64
	for i := range n {
		prefix := fmt.Sprintf("172.18.%d.0/24", i%250)
		began := time.Now()
		if _, err := d.ctl(ctx, "sz-gw", "prefix", "add", prefix, "--vrf", "CORE", "--next-hop", "172.18.171.253", "--interface", "eth1"); err != nil {
			return err
		}
		there := d.stages(prefix, true)["hk-gw kernel"]
		if _, err := until(ctx, 20*time.Second, func(ctx context.Context) error {
			if ok, err := there(ctx); err != nil || !ok {
				return errors.Join(err, errors.New(prefix+" is not in hk-gw's kernel"))
			}
			return nil
		}); err != nil {
			return err
		}
		times = append(times, float64(time.Since(began).Microseconds())/1000)
		if _, err := d.ctl(ctx, "sz-gw", "prefix", "del", prefix, "--vrf", "CORE"); err != nil {
			return err
		}
	}
	slices.Sort(times)
	return json.NewEncoder(d.out).Encode(map[string]any{
		"bench": "prefix_add_to_remote_kernel", "who": "fabric", "params": map[string]any{"tries": n},
		"metrics": map[string]any{"ms_p50": times[n/2], "ms_p99": times[n*99/100], "ms_max": times[n-1]},
	})
}
