package interop

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// bird is BIRD 2.
type bird struct {
	n    *neighbour
	proc *process
}

// birdName is a session's name as BIRD takes it.
func birdName(s *session) string { return "s_" + strings.ReplaceAll(s.name, "-", "_") }

func newBIRD(n *neighbour) router {
	var b strings.Builder
	four, six := n.own()
	fmt.Fprintf(&b, `log stderr all;
router id 10.%d.255.2;
graceful restart wait 60;
filter out4 { if source != RTS_STATIC then reject; bgp_community.add((65000,1)); bgp_community.add((65000,2)); bgp_large_community.add((65000,1,2)); accept; }
protocol device {}
protocol direct { ipv4; ipv6; }
protocol bfd { interface "eth0" { min rx interval %d ms; min tx interval %d ms; multiplier 4; }; }
protocol static loop { ipv4 { preference 10; }; route 10.%d.255.1/32 via 10.%d.1.1; }
protocol static four { ipv4; route %s unreachable; }
protocol static six { ipv6; route %s unreachable; }
protocol static extra { disabled; ipv4; route %s unreachable; }
`, n.number, bfdInterval.Milliseconds(), bfdInterval.Milliseconds(), n.number, n.number, strings.Join(four, " unreachable; route "), six, n.extra())
	for i := range sessions {
		s := &sessions[i]
		fmt.Fprintf(&b, "protocol bgp %s {\n\tlocal %s as %d;\n\tneighbor %s as %d;\n\thold time 9; keepalive time 3; connect retry time 2; connect delay time 1; error wait time 2, 10; graceful restart on; graceful restart time 60;\n", birdName(s), n.theirs(s), n.asn(), n.ours(s), ourASN)
		switch {
		case s.loopback:
			b.WriteString("\tmultihop 2;\n")
		case s.md5:
			fmt.Fprintf(&b, "\tpassword \"%s\";\n", s.password(true))
		case s.gtsm && !s.wrong:
			b.WriteString("\tttl security on;\n")
		case s.bfd:
			b.WriteString("\tbfd on;\n")
		}
		if !s.loopback {
			b.WriteString("\tdirect;\n")
		}
		if !s.six || s.mixed {
			b.WriteString("\tipv4 { import all; export filter out4;")
			if s.mixed {
				b.WriteString(" extended next hop on;")
			}
			b.WriteString(" };\n")
		}
		if s.six {
			b.WriteString("\tipv6 { import all; export where source = RTS_STATIC; };\n")
		}
		b.WriteString("}\n")
	}
	n.file("bird.conf", b.String())
	return &bird{n: n}
}

func (b *bird) version() string {
	out, _ := exec.Command("bird", "--version").CombinedOutput()
	return strings.ReplaceAll(strings.TrimSpace(string(out)), " version", "")
}

func (b *bird) up() {
	args := []string{"bird", "-f", "-c", b.n.path("bird.conf"), "-s", b.n.path("bird.ctl"), "-P", b.n.path("bird.pid")}
	if b.proc != nil {
		args = append(args, "-R") // what it has to know to be restarting
	}
	b.proc = b.n.start("bird", nil, args...)
}

func (b *bird) crash() { b.proc.kill() }

func (b *bird) birdc(command string) string {
	out, _ := b.n.try("birdc", "-s", b.n.path("bird.ctl"), command)
	return out
}

var birdPath = regexp.MustCompile(`\[(s_\w+) `)

func (b *bird) paths(prefix string) map[string]seen {
	out := map[string]seen{}
	var key string
	for l := range strings.Lines(b.birdc("show route all " + prefix)) {
		if m := birdPath.FindStringSubmatch(l); m != nil {
			key = ""
			for i := range sessions {
				if birdName(&sessions[i]) == m[1] {
					key = b.n.ours(&sessions[i])
				}
			}
			if key != "" {
				out[key] = seen{}
			}
		}
		if key == "" {
			continue
		}
		s := out[key]
		name, value, _ := strings.Cut(strings.TrimSpace(l), ": ")
		switch name {
		case "BGP.as_path":
			s.asPath = value
		case "BGP.next_hop":
			s.nextHop = strings.Fields(value)[0]
		case "BGP.community", "BGP.large_community":
			value = strings.NewReplacer("(", "", ")", "", ", ", ":", ",", ":").Replace(value)
			s.communities += value + " "
		}
		out[key] = s
	}
	return out
}

func (b *bird) announce(string) { b.birdc("enable extra") }
func (b *bird) withdraw(string) { b.birdc("disable extra") }
func (b *bird) refresh()        { b.birdc("reload in " + birdName(&sessions[0])) }

var birdUpdates = regexp.MustCompile(`Import updates: +(\d+)`)

func (b *bird) updates() int {
	if m := birdUpdates.FindStringSubmatch(b.birdc("show protocols all " + birdName(&sessions[0]))); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n
	}
	return 0
}

func (b *bird) lacks(string) string { return "" }
