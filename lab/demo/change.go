package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
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

// stages are the places where a prefix of sz-gw shows, far from it.
func (d *demo) stages(prefix string) map[string]func(context.Context) (bool, error) {
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
			return slices.ContainsFunc(es, func(e entry) bool { return e.CIDR == prefix && e.Status == "Available" }), err
		},
	}
}

// follow waits until a prefix is, or is not, at every stage, and tells when each got there.
func (d *demo) follow(ctx context.Context, prefix string, want bool) (string, error) {
	began := time.Now()
	stages := d.stages(prefix)
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
}

// streams starts a ping of 50 packets a second for every pair of the topology.
func (d *demo) streams(ctx context.Context) ([]*stream, error) {
	var all []*stream
	for prefix, address := range map[string]string{clab.LabelTTLPrefix: clab.LabelAddress, clab.LabelTTL6Prefix: clab.LabelAddress6} {
		pairs, _ := d.expectations(prefix)
		for _, pair := range pairs {
			dst := d.label(pair[1], address)
			argv := append([]string{"ping", "-n", "-q", "-i", "0.02", "-W", "1"}, d.inVRF(pair[0], dst)...)
			s := &stream{pair: pair, cmd: d.lab.Node(pair[0]).Command(ctx, append(argv, dst)...)}
			s.cmd.Stdout = &s.out
			if err := s.cmd.Start(); err != nil {
				return all, err
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// end stops the pings and counts.
func end(all []*stream) (sent, lost int, detail []string) {
	for _, s := range all {
		_ = s.cmd.Process.Signal(interrupt)
	}
	for _, s := range all {
		_ = s.cmd.Wait()
		m := receivedPattern.FindStringSubmatch(s.out.String())
		if m == nil {
			lost++
			detail = append(detail, fmt.Sprintf("%s > %s: no summary: %s", s.pair[0], s.pair[1], s.out.String()))
			continue
		}
		tx, _ := strconv.Atoi(m[1])
		rx, _ := strconv.Atoi(m[2])
		sent += tx
		// The last packet may be on its way when ping is stopped.
		if missing := tx - rx; missing > 1 {
			lost += missing
			detail = append(detail, fmt.Sprintf("%s > %s: %d of %d lost", s.pair[0], s.pair[1], missing, tx))
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

func (d *demo) secondStart(ctx context.Context) (string, error) {
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
	_ = monitor.Process.Signal(interrupt)
	_ = monitor.Wait()
	var changes []string
	for line := range strings.SplitSeq(out.String(), "\n") {
		if strings.Contains(line, "proto "+protoSite) || strings.Contains(line, "proto "+protoLinks) || strings.Contains(line, "Deleted") {
			changes = append(changes, line)
		}
	}
	if len(changes) > 0 {
		return strings.Join(changes, "\n"), fmt.Errorf("%d changes of ours in the kernel", len(changes))
	}
	return "no route, rule, next hop, link or address of ours was touched in the kernel", nil
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
		there := d.stages(prefix)["hk-gw kernel"]
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
