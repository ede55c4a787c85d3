package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// announced is where prefixes that are announced for a measurement come from: /27s of 10.128.0.0/9.
var announced = netip.MustParsePrefix("10.128.0.0/9")

const (
	announcedBits = 27
	// announcedSlots is how many fit; announcedStep is odd, so that multiples of it are all different, and large, so that the first n are
	// spread over all: a kernel's table has more trouble with a dense range than it has in life.
	announcedSlots = 1 << (announcedBits - 9)
	announcedStep  = 40503
)

// announcedPrefix is the i-th of them.
func announcedPrefix(i int) netip.Prefix {
	slot := uint32(i) * announcedStep % announcedSlots
	base := announced.Addr().As4()
	n := uint32(base[0])<<24 | uint32(base[1])<<16 | slot<<(32-announcedBits)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), announcedBits)
}

// announcedAddress is an address of the i-th prefix.
func announcedAddress(i int) netip.Addr { return announcedPrefix(i).Addr().Next() }

// session is a BGP session of a router, with BFD if the interval is not 0.
type session struct {
	address, remote    netip.Addr
	asn, remoteASN     int
	prepend            int
	bfdMs              int
	name               string
	noExport, noImport bool
}

// bird is BIRD in a node.
type bird struct {
	*process
	n *node
}

func (b *bird) socket() string { return filepath.Join(b.n.dir, "bird.ctl") }
func (b *bird) routes() string { return filepath.Join(b.n.dir, "routes.conf") }

// startBird starts BIRD with sessions, announcing prefixes that it does not route itself; what it learns goes to the kernel.
func startBird(ctx context.Context, n *node, id netip.Addr, prefixes []netip.Prefix, sessions ...session) (*bird, error) {
	b := &bird{n: n}
	if err := b.write(prefixes); err != nil {
		return nil, err
	}
	file := filepath.Join(n.dir, "bird.conf")
	if err := os.WriteFile(file, []byte(birdConfig(id, b.routes(), sessions)), 0o644); err != nil {
		return nil, err
	}
	var err error
	if b.process, err = n.startProcess("bird", "bird", "-f", "-c", file, "-s", b.socket(), "-P", filepath.Join(n.dir, "bird.pid")); err != nil {
		return nil, fmt.Errorf("BIRD (Debian package bird2): %w", err)
	}
	return b, until(ctx, 30*time.Second, "BIRD answers", func() error {
		if err := b.alive("BIRD"); err != nil {
			return err
		}
		_, err := b.ask(ctx, "show", "status")
		return err
	})
}

// write stores what is announced; configure takes it.
func (b *bird) write(prefixes []netip.Prefix) error {
	var text strings.Builder
	for _, p := range prefixes {
		fmt.Fprintf(&text, "route %v blackhole;\n", p)
	}
	return os.WriteFile(b.routes(), []byte(text.String()), 0o644)
}

func (b *bird) ask(ctx context.Context, words ...string) (string, error) {
	return b.n.output(ctx, append([]string{"birdc", "-s", b.socket()}, words...)...)
}

func birdConfig(id netip.Addr, routes string, sessions []session) string {
	var b strings.Builder
	fmt.Fprintf(&b, `router id %v;
protocol device { scan time 10; }
protocol direct { ipv4; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol static {
 ipv4;
include "%s";
}
`, id, routes)
	bfd := 0
	for _, s := range sessions {
		if s.bfdMs > 0 {
			bfd = s.bfdMs
		}
	}
	if bfd > 0 {
		fmt.Fprintf(&b, "protocol bfd { interface \"*\" { min rx interval %d ms; min tx interval %d ms; multiplier 3; }; }\n", bfd, bfd)
	}
	for _, s := range sessions {
		imports, exports := "all", "where source = RTS_STATIC || source = RTS_DEVICE"
		if s.noImport {
			imports = "none"
		}
		switch {
		case s.noExport:
			exports = "none"
		case s.prepend > 0:
			exports = fmt.Sprintf("filter { if source != RTS_STATIC then reject; %s accept; }", strings.Repeat(fmt.Sprintf("bgp_path.prepend(%d); ", s.asn), s.prepend))
		}
		on := ""
		if s.bfdMs > 0 {
			on = " bfd on;"
		}
		fmt.Fprintf(&b, "protocol bgp to_%s {\n local %v as %d; neighbor %v as %d;%s\n hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1, 2;\n ipv4 { import %s; export %s; };\n}\n",
			s.name, s.address, s.asn, s.remote, s.remoteASN, on, imports, exports)
	}
	return b.String()
}

var birdImported = regexp.MustCompile(`Routes:\s+(\d+) imported`)

// received is how many prefixes a session of BIRD has brought, an error while it is not established.
func (b *bird) received(ctx context.Context, s session) (int, error) {
	out, err := b.ask(ctx, "show", "protocols", "all", "to_"+s.name)
	if err != nil {
		return 0, err
	}
	return parseBird(out)
}

func parseBird(out string) (int, error) {
	m := birdImported.FindStringSubmatch(out)
	if m == nil || !strings.Contains(out, "Established") {
		return 0, fmt.Errorf("not established: %s", out)
	}
	return strconv.Atoi(m[1])
}

// frrRouter is FRR's zebra, bfdd and bgpd in a node.
type frrRouter struct {
	n       *node
	daemons []*process
}

func startFRRRouter(ctx context.Context, n *node, id netip.Addr, prefixes []netip.Prefix, sessions ...session) (*frrRouter, error) {
	dir := filepath.Join(n.dir, "frr")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := frrFolders(dir); err != nil {
		return nil, fmt.Errorf("FRR (Debian package frr): %w", err)
	}
	f := &frrRouter{n: n}
	for _, d := range []struct {
		name, text string
		args       []string
	}{
		{name: "zebra"},
		{"bfdd", "", []string{"--bfdctl", filepath.Join(dir, "bfdd.sock")}},
		{"bgpd", frrBGP(id, prefixes, sessions), nil},
	} {
		file := filepath.Join(dir, d.name+".conf")
		if err := os.WriteFile(file, []byte(d.text), 0o644); err != nil {
			return nil, err
		}
		p, err := n.startProcess(d.name, append([]string{frrFolder + d.name, "-u", "frr", "-g", "frr", "-P", "0", "-f", file,
			"-z", filepath.Join(dir, "zserv.api"), "-i", filepath.Join(dir, d.name+".pid"), "--vty_socket", dir, "--log", "stdout"}, d.args...)...)
		if err != nil {
			return nil, err
		}
		f.daemons = append(f.daemons, p)
		if err := p.awaitFile(ctx, filepath.Join(dir, d.name+".vty")); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func frrBGP(id netip.Addr, prefixes []netip.Prefix, sessions []session) string {
	var b strings.Builder
	fmt.Fprintf(&b, "router bgp %d\n bgp router-id %v\n no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default ipv4-unicast\n", sessions[0].asn, id)
	for _, s := range sessions {
		fmt.Fprintf(&b, " neighbor %v remote-as %d\n neighbor %v timers 3 9\n neighbor %v timers connect 1\n neighbor %v advertisement-interval 0\n",
			s.remote, s.remoteASN, s.remote, s.remote, s.remote)
		if s.bfdMs > 0 {
			fmt.Fprintf(&b, " neighbor %v bfd 3 %d %d\n", s.remote, s.bfdMs, s.bfdMs)
		}
	}
	b.WriteString(" address-family ipv4 unicast\n")
	for _, p := range prefixes {
		fmt.Fprintf(&b, "  network %v\n", p)
	}
	for _, s := range sessions {
		fmt.Fprintf(&b, "  neighbor %v activate\n", s.remote)
		if s.noExport {
			fmt.Fprintf(&b, "  neighbor %v route-map none out\n", s.remote)
		}
	}
	b.WriteString(" exit-address-family\nexit\nroute-map none deny 10\nexit\n")
	return b.String()
}

// received is how many prefixes a session of FRR has brought, an error while it is not established.
func (f *frrRouter) received(ctx context.Context, s session) (int, error) {
	out, err := f.n.output(ctx, "vtysh", "--vty_socket", filepath.Join(f.n.dir, "frr"), "-d", "bgpd", "-c", "show bgp ipv4 unicast summary json")
	if err != nil {
		return 0, err
	}
	return parseFRR([]byte(out), s.remote)
}

func parseFRR(out []byte, neighbour netip.Addr) (int, error) {
	var summary struct {
		Peers map[string]struct {
			State    string `json:"state"`
			Received int    `json:"pfxRcd"`
		} `json:"peers"`
	}
	if err := json.Unmarshal(out, &summary); err != nil {
		return 0, fmt.Errorf("vtysh: %w", err)
	}
	p, ok := summary.Peers[neighbour.String()]
	if !ok || p.State != "Established" {
		return 0, fmt.Errorf("session with %v: %q", neighbour, p.State)
	}
	return p.Received, nil
}
