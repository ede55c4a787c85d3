package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"fabric/lab/clab"
)

// point-to-point networks, default routes and what the guard calls bogons; what must not be seen beyond its origin.
func illegal(p netip.Prefix) string {
	bits, a := p.Bits(), p.Addr()
	switch {
	case bits == 0:
		return "default route"
	case a.Is4() && (bits == 30 || bits == 31), a.Is6() && (bits == 126 || bits == 127):
		return "point-to-point network"
	case a.IsLoopback():
		return "loopback network"
	case a.IsMulticast() || a.IsLinkLocalUnicast():
		return "bogon"
	}
	return ""
}

func (d *demo) noLeaks(ctx context.Context) (string, error) {
	var errs []error
	seen := 0
	judge := func(where, dst string) {
		seen++
		if p, err := netip.ParsePrefix(dst); err != nil {
			errs = append(errs, err)
		} else if why := illegal(p); why != "" {
			errs = append(errs, fmt.Errorf("%s holds %s: %s", where, p, why))
		}
	}
	for _, gateway := range d.gateways() {
		rs, err := d.routes(ctx, gateway, "all")
		if err != nil {
			return "", err
		}
		for _, r := range rs {
			ours := r.Protocol == protoSite || r.Protocol == protoLinks
			if ours && r.Type != "local" && r.Type != "unreachable" {
				judge(gateway+" table "+r.Table, r.Dst)
			}
		}
	}
	for _, v := range d.vpcs() {
		es, err := d.entries(ctx, v)
		if err != nil {
			return "", err
		}
		for _, e := range es {
			if e.ours() {
				judge(v.table, e.CIDR)
			}
		}
	}
	// What FRR got from the gateway; what it originates itself is the origin's business.
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := d.run(ctx, "gz-core", "vtysh", "-c", "show bgp "+family+" unicast neighbors "+map[string]string{"ipv4": "172.20.0.9", "ipv6": "fd20::9"}[family]+" routes")
		if err != nil {
			return "", err
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*[*>=sdhSir ]+\s*([0-9a-f.:]+/\d+)`).FindAllStringSubmatch(out, -1) {
			judge("gz-core BGP", m[1])
		}
	}
	var refused struct {
		Peers []peer `json:"peers"`
	}
	if err := d.ctlJSON(ctx, "gz-gw", &refused, "peer", "list"); err != nil {
		return "", err
	}
	rejected := 0
	for _, p := range refused.Peers {
		rejected += p.Rejected
	}
	if rejected == 0 {
		errs = append(errs, errors.New("gz-gw refused nothing: FRR does not announce what it should, the check proves nothing"))
	}
	return fmt.Sprintf("%d prefixes looked at, none illegal; gz-gw refused %d of FRR's announcements", seen, rejected), errors.Join(errs...)
}

var mssPattern = regexp.MustCompile(`mss (\d+)`)

// sizes are the MSS values in a capture's text, each once.
func sizes(text string) []string {
	var out []string
	for _, m := range mssPattern.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

const synFilter = "tcp[tcpflags] & tcp-syn != 0"

func (d *demo) clampForwarded(ctx context.Context) (string, error) {
	client, server := "sz-host", "gz-host"
	dst := d.label(server, clab.LabelAddress)
	serve := d.lab.Node(server).Command(ctx, "timeout", "10", "nc", "-l", "-p", "5001")
	if err := serve.Start(); err != nil {
		return "", err
	}
	defer func() { _ = serve.Process.Kill(); _ = serve.Wait() }()
	syn, err := d.listen(ctx, server, "eth1", synFilter)
	if err != nil {
		return "", err
	}
	answer, err := d.listen(ctx, client, "eth1", synFilter)
	if err != nil {
		return "", err
	}
	_, err = until(ctx, 5*time.Second, func(ctx context.Context) error {
		_, err := d.shell(ctx, client, "echo hello | timeout 2 nc -N -w 2 "+dst+" 5001")
		return err
	})
	atServer, atClient := syn.stop(), answer.stop()
	if err != nil {
		return "", err
	}
	want := strconv.Itoa(d.doc.Fabric.MSS)
	// At the client its own unclamped SYN is seen too; the answer is what counts there.
	var synack []string
	for part := range strings.SplitSeq(atClient, "IP (") {
		if strings.Contains(part, "Flags [S.]") {
			synack = append(synack, sizes(part)...)
		}
	}
	var seenSYN []string
	for part := range strings.SplitSeq(atServer, "IP (") {
		if strings.Contains(part, "Flags [S],") {
			seenSYN = append(seenSYN, sizes(part)...)
		}
	}
	seenSYN, synack = slices.Compact(seenSYN), slices.Compact(synack)
	evidence := fmt.Sprintf("SYN at %s: mss %v; SYN-ACK at %s: mss %v", server, seenSYN, client, synack)
	if !slices.Equal(seenSYN, []string{want}) || !slices.Equal(synack, []string{want}) {
		return evidence, fmt.Errorf("want mss %s both ways", want)
	}
	return evidence, nil
}

func (d *demo) clampOwn(ctx context.Context) (string, error) {
	c, err := d.listen(ctx, "gz-core", "eth1", "tcp port 179 and "+synFilter)
	if err != nil {
		return "", err
	}
	// Either side may dial, and the answer of the other carries an MSS too: both are the gateway's own.
	_, err = d.run(ctx, "gz-core", "vtysh", "-c", "clear bgp 172.20.0.9")
	if err == nil {
		_, err = until(ctx, 20*time.Second, func(context.Context) error {
			if !strings.Contains(c.out.String(), "172.20.0.9.") {
				return errors.New("no SYN of the gateway seen")
			}
			return nil
		})
	}
	text := c.stop()
	if err != nil {
		return "", err
	}
	// With the session its routes went and come back, also in the VPC tables.
	if _, err := until(ctx, 30*time.Second, func(ctx context.Context) error {
		if err := d.allConverged(ctx); err != nil {
			return err
		}
		_, err := d.pingPairs(ctx)
		return err
	}); err != nil {
		return "", err
	}
	var ours []string
	for part := range strings.SplitSeq(text, "IP (") {
		if strings.Contains(part, "172.20.0.9.") && strings.Contains(part, "> 172.20.0.1.") {
			ours = append(ours, sizes(part)...)
		}
	}
	ours = slices.Compact(ours)
	evidence := fmt.Sprintf("at gz-core, from the gateway: mss %v", ours)
	if want := strconv.Itoa(d.doc.Fabric.MSS); !slices.Equal(ours, []string{want}) {
		return evidence + "\n" + text, fmt.Errorf("want mss %s", want)
	}
	return evidence, nil
}

func (d *demo) pathMTU(ctx context.Context) (string, error) {
	const inner = 1370
	dst := d.label("hk-host", clab.LabelAddress)
	probe := func(size int) (string, error) {
		return d.run(ctx, "sz-host", "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(size-28), dst)
	}
	if out, err := probe(inner); err != nil {
		return out, fmt.Errorf("%d bytes do not pass: %w", inner, err)
	}
	out, err := probe(inner + 1)
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		return out, fmt.Errorf("%d bytes: want a refusal, got %v", inner+1, err)
	}
	m := regexp.MustCompile(`(?i)frag needed.*mtu ?= ?(\d+)`).FindStringSubmatch(out)
	if m == nil || m[1] != strconv.Itoa(inner) {
		return out, fmt.Errorf("want frag needed with mtu %d", inner)
	}
	return fmt.Sprintf("%d bytes pass; %d bytes: %s", inner, inner+1, strings.TrimSpace(m[0])), nil
}

// bulk sends 10 MB from one host to another, counts what arrives, and tells the rate in Mbit/s.
func (d *demo) bulk(ctx context.Context, client, server string) (float64, error) {
	const size = 10 << 20
	dst := d.label(server, clab.LabelAddress)
	var got bytes.Buffer
	serve := d.lab.Node(server).Command(ctx, "sh", "-c", "timeout 90 nc -l -p 5201 | wc -c")
	serve.Stdout = &got
	if err := serve.Start(); err != nil {
		return 0, err
	}
	var took time.Duration
	// The times are for a machine whose processors are simulated.
	_, err := until(ctx, 80*time.Second, func(ctx context.Context) error {
		began := time.Now()
		_, err := d.shell(ctx, client, fmt.Sprintf("head -c %d /dev/urandom | timeout 60 nc -N %s 5201", size, dst))
		took = time.Since(began)
		return err
	})
	if err != nil {
		_ = serve.Process.Kill()
	}
	err = errors.Join(err, serve.Wait())
	if n := strings.TrimSpace(got.String()); err == nil && n != strconv.Itoa(size) {
		err = fmt.Errorf("%s of %d bytes arrived", n, size)
	}
	return size * 8 / took.Seconds() / 1e6, err
}

func (d *demo) transfer(ctx context.Context) (string, error) {
	client, server := "sz-host", "gz-host"
	with, err := d.bulk(ctx, client, server)
	if err != nil {
		return "", err
	}
	// The daemons are stopped for the moment, else they would put the clamp back.
	resume, err := d.freeze(ctx, "fabric-site", "sz-gw", "gz-gw")
	defer resume()
	if err != nil {
		return "", err
	}
	for _, gateway := range []string{"sz-gw", "gz-gw"} {
		for _, chain := range []string{"input", "forward", "output"} {
			if _, err := d.run(ctx, gateway, "nft", "flush", "chain", "inet", "fabric", chain); err != nil {
				return "", err
			}
		}
	}
	without, err := d.bulk(ctx, client, server)
	if err != nil {
		return "", fmt.Errorf("without the clamp: %w", err)
	}
	resume()
	took, err := until(ctx, 60*time.Second, func(ctx context.Context) error {
		for _, gateway := range []string{"sz-gw", "gz-gw"} {
			out, err := d.run(ctx, gateway, "nft", "list", "chain", "inet", "fabric", "forward")
			if err != nil {
				return err
			}
			if !strings.Contains(out, "maxseg size set") {
				return fmt.Errorf("%s has no clamp", gateway)
			}
		}
		return d.allConverged(ctx)
	})
	return fmt.Sprintf("with the clamp %.0f Mbit/s, removed %.0f Mbit/s; the clamp was back by itself after %.1fs", with, without, took.Seconds()), err
}
