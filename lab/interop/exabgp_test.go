package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// exabgp is ExaBGP 4. It has no table: what it has from us is what it told its receiver.
type exabgp struct {
	n    *neighbour
	proc *process
	run  int
}

func newExaBGP(n *neighbour) router {
	n.file("commands", "")
	return &exabgp{n: n}
}

// configure writes the configuration of a run, whose messages go to a file of its own.
func (e *exabgp) configure() {
	n := e.n
	var b strings.Builder
	// ExaBGP takes what a process says for commands, and waits for none.
	fmt.Fprintf(&b, `process receiver { run /bin/sh -c "cat > %s"; encoder json; }
process sender { run /bin/sh -c "exec tail -n 0 -f %s"; encoder text; }
`, e.messages(), n.path("commands"))
	four, six := n.own()
	for i := range sessions {
		s := &sessions[i]
		fmt.Fprintf(&b, "neighbor %s {\n\trouter-id 10.%d.255.2; local-address %s; local-as %d; peer-as %d; hold-time 9;\n", n.ours(s), n.number, n.theirs(s), n.asn(), ourASN)
		switch {
		case s.md5:
			fmt.Fprintf(&b, "\tmd5-password \"%s\";\n", s.password(true))
		case s.gtsm && !s.wrong:
			b.WriteString("\tincoming-ttl 255; outgoing-ttl 255;\n")
		case s.gtsm:
			b.WriteString("\toutgoing-ttl 1;\n")
		}
		b.WriteString("\tcapability { graceful-restart 60; route-refresh enable; asn4 enable;")
		if s.mixed {
			b.WriteString(" nexthop enable;")
		}
		b.WriteString(" }\n\tfamily {")
		if !s.six || s.mixed {
			b.WriteString(" ipv4 unicast;")
		}
		if s.six {
			b.WriteString(" ipv6 unicast;")
		}
		b.WriteString(" }\n")
		if s.mixed {
			b.WriteString("\tnexthop { ipv4 unicast ipv6; }\n")
		}
		b.WriteString("\tapi { processes [ receiver, sender ]; neighbor-changes; receive { parsed; update; } }\n\tstatic {\n")
		if !s.six || s.mixed {
			for _, p := range four {
				fmt.Fprintf(&b, "\t\troute %s next-hop %s%s;\n", p, n.theirs(s), exabgpCommunities)
			}
		}
		if s.six {
			fmt.Fprintf(&b, "\t\troute %s next-hop %s;\n", six, n.theirs(s))
		}
		b.WriteString("\t}\n}\n")
	}
	n.file("exabgp.conf", b.String())
}

const exabgpCommunities = " community [65000:1 65000:2] large-community [65000:1:2]"

func (e *exabgp) messages() string { return e.n.path(fmt.Sprintf("messages-%d", e.run)) }

func (e *exabgp) version() string {
	out, _ := exec.Command("exabgp", "--version").Output()
	for l := range strings.Lines(string(out)) {
		if name, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "ExaBGP" {
			return "ExaBGP " + strings.TrimSpace(v)
		}
	}
	return "ExaBGP"
}

func (e *exabgp) up() {
	e.run++
	e.configure()
	e.proc = e.n.start("exabgp", nil, "env", "exabgp.daemon.user=root", "exabgp.api.ack=false", "exabgp.api.cli=false", "exabgp.log.level=WARNING", "exabgp", e.n.path("exabgp.conf"))
}

func (e *exabgp) crash() { e.proc.kill() }

// command gives the program a line.
func (e *exabgp) command(line string) {
	f, err := os.OpenFile(e.n.path("commands"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

// each gives f the updates of this run.
func (e *exabgp) each(f func(address string, update map[string]json.RawMessage)) {
	text, _ := os.ReadFile(e.messages())
	for l := range strings.Lines(string(text)) {
		var m struct {
			Type     string
			Neighbor struct {
				Address struct{ Peer string }
				State   string
				Message struct{ Update map[string]json.RawMessage }
			}
		}
		if json.Unmarshal([]byte(l), &m) != nil {
			continue // cut off
		}
		switch {
		case m.Type == "state" && m.Neighbor.State != "connected":
			f(m.Neighbor.Address.Peer, nil)
		case m.Type == "update" && m.Neighbor.Message.Update != nil:
			f(m.Neighbor.Address.Peer, m.Neighbor.Message.Update)
		}
	}
}

func (e *exabgp) paths(prefix string) map[string]seen {
	out := map[string]seen{}
	e.each(func(address string, update map[string]json.RawMessage) {
		if update == nil {
			return // graceful restart is its user's business
		}
		var attributes struct {
			ASPath    []uint32   `json:"as-path"`
			Community [][]uint32 `json:"community"`
		}
		var announce map[string]map[string][]struct{ NLRI string }
		var withdraw map[string][]struct{ NLRI string }
		_ = json.Unmarshal(update["attribute"], &attributes)
		_ = json.Unmarshal(update["announce"], &announce)
		_ = json.Unmarshal(update["withdraw"], &withdraw)
		for _, list := range withdraw {
			for _, r := range list {
				if r.NLRI == prefix {
					delete(out, address)
				}
			}
		}
		for _, byNextHop := range announce {
			for nh, list := range byNextHop {
				for _, r := range list {
					if r.NLRI != prefix {
						continue
					}
					s := seen{nextHop: nh, asPath: strings.Trim(fmt.Sprint(attributes.ASPath), "[]")}
					for _, c := range attributes.Community {
						s.communities += fmt.Sprintf("%d:%d ", c[0], c[1])
					}
					out[address] = s
				}
			}
		}
	})
	return out
}

func (e *exabgp) announce(prefix string) {
	e.command("announce route " + prefix + " next-hop self" + exabgpCommunities)
}

func (e *exabgp) withdraw(prefix string) { e.command("withdraw route " + prefix + " next-hop self") }
func (e *exabgp) refresh() {
	e.command("neighbor " + e.n.ours(&sessions[0]) + " announce route-refresh ipv4 unicast")
}

func (e *exabgp) updates() int {
	n := 0
	e.each(func(address string, update map[string]json.RawMessage) {
		if address == e.n.ours(&sessions[0]) && update != nil {
			n++
		}
	})
	return n
}

func (e *exabgp) lacks(feature string) string {
	switch feature {
	case featureBFD:
		return "ExaBGP has no BFD"
	case featureWeRestart:
		return "ExaBGP keeps no table: what becomes of our routes is its user's business"
	}
	return ""
}
