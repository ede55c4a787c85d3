package interop

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// gobgp is Debian's gobgpd. It only listens: two GoBGP that both dial may take each other's connection for the one that stays, and wait for
// the hold time. After a restart it waits for End-of-RIB of all its neighbours before it announces, 360 s if one of them stays away, as two
// do here on purpose; hence a deferral time of its own.
type gobgp struct {
	n    *neighbour
	proc *process
}

func newGoBGP(n *neighbour) router {
	var b strings.Builder
	fmt.Fprintf(&b, `[global.config]
  as = %d
  router-id = "10.%d.255.2"
`, n.asn(), n.number)
	for i := range sessions {
		s := &sessions[i]
		fmt.Fprintf(&b, `[[neighbors]]
  [neighbors.config]
    neighbor-address = "%s"
    peer-as = %d
`, n.ours(s), ourASN)
		if s.md5 {
			fmt.Fprintf(&b, "    auth-password = %q\n", s.password(true))
		}
		fmt.Fprintf(&b, `  [neighbors.transport.config]
    passive-mode = true
    local-address = "%s"
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 60
    deferral-time = 5
`, n.theirs(s))
		switch {
		case s.loopback:
			b.WriteString("  [neighbors.ebgp-multihop.config]\n    enabled = true\n    multihop-ttl = 2\n")
		case s.gtsm && !s.wrong:
			b.WriteString("  [neighbors.ttl-security.config]\n    enabled = true\n    ttl-min = 255\n")
		}
		var families []string
		if !s.six || s.mixed {
			families = append(families, "ipv4-unicast")
		}
		if s.six {
			families = append(families, "ipv6-unicast")
		}
		for _, f := range families {
			fmt.Fprintf(&b, "  [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      afi-safi-name = %q\n    [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true\n", f)
		}
	}
	n.file("gobgpd.toml", b.String())
	return &gobgp{n: n}
}

func (g *gobgp) version() string {
	out, _ := exec.Command("gobgpd", "--version").CombinedOutput()
	return strings.Replace(strings.TrimSpace(string(out)), "gobgpd version", "GoBGP", 1)
}

func (g *gobgp) up() {
	// Its debug listener is on port 6060 by default, and of no use here. Restarting, it says so and waits for routes before End-of-RIB.
	args := []string{"env", "GODEBUG=multipathtcp=0", "gobgpd", "-f", g.n.path("gobgpd.toml"), "--pprof-disable"}
	if g.proc != nil {
		args = append(args, "-r")
	}
	g.proc = g.n.start("gobgpd", nil, args...)
	reach(patience, func() (string, bool) {
		out, err := g.n.try("gobgp", "global")
		return out, err == nil
	})
	four, six := g.n.own()
	for _, p := range four {
		g.announce(p)
	}
	g.announce(six)
}

func (g *gobgp) crash() { g.proc.kill() }

func (g *gobgp) gobgp(args ...string) string {
	out, err := g.n.try(append([]string{"gobgp"}, args...)...)
	if err != nil {
		return err.Error() + out
	}
	return out
}

func (g *gobgp) paths(prefix string) map[string]seen {
	var r map[string][]struct {
		From  string `json:"neighbor-ip"`
		Attrs []struct {
			Type        int
			NextHop     string
			Communities []uint32
			ASPaths     []struct {
				ASNs []uint32 `json:"asns"`
			} `json:"as_paths"`
		}
	}
	_ = json.Unmarshal([]byte(g.gobgp("global", "rib", "-a", family(prefix), prefix, "-j")), &r) // words when there is none
	out := map[string]seen{}
	for _, p := range r[prefix] {
		if p.From == "" || p.From == "<nil>" {
			continue // its own
		}
		var s seen
		for _, a := range p.Attrs {
			switch a.Type {
			case 2:
				var words []string
				for _, segment := range a.ASPaths {
					for _, asn := range segment.ASNs {
						words = append(words, fmt.Sprint(asn))
					}
				}
				s.asPath = strings.Join(words, " ")
			case 3, 14:
				s.nextHop = a.NextHop
			case 8:
				for _, c := range a.Communities {
					s.communities += fmt.Sprintf("%d:%d ", c>>16, c&0xffff)
				}
			}
		}
		out[p.From] = s
	}
	return out
}

func (g *gobgp) announce(prefix string) {
	args := []string{"global", "rib", "-a", family(prefix), "add", prefix}
	if family(prefix) == "ipv4" {
		args = append(args, "community", "65000:1,65000:2", "large-community", "65000:1:2")
	}
	g.gobgp(args...)
}

func (g *gobgp) withdraw(prefix string) {
	g.gobgp("global", "rib", "-a", family(prefix), "del", prefix)
}
func (g *gobgp) refresh() { g.gobgp("neighbor", g.n.ours(&sessions[0]), "softresetin") }

func (g *gobgp) updates() int {
	var r struct {
		State struct {
			Messages struct{ Received struct{ Update any } }
		}
	}
	text := g.gobgp("neighbor", g.n.ours(&sessions[0]), "-j")
	if json.Unmarshal([]byte(text), &r) != nil {
		return 0
	}
	var n int
	fmt.Sscan(fmt.Sprint(r.State.Messages.Received.Update), &n) // a number or a string, by version
	return n
}

func (g *gobgp) lacks(feature string) string {
	switch feature {
	case featureBFD:
		return "GoBGP 3 has no BFD"
	case featureRefresh:
		return "its softresetin goes by what it keeps and asks nobody"
	}
	return ""
}
