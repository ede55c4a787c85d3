package interop

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// frr is Debian's FRR: zebra, bgpd and bfdd.
type frr struct {
	n       *neighbour
	daemons []*process
}

const frrDaemons = "/usr/lib/frr/"

func newFRR(n *neighbour) router {
	f := &frr{n: n}
	var b, v4, v6 strings.Builder
	fmt.Fprintf(&b, `frr defaults datacenter
ip prefix-list OWN seq 5 permit 172.0.0.0/8 le 32
ipv6 prefix-list OWN6 seq 5 permit fd01::/16 le 64
route-map OUT permit 10
 match ip address prefix-list OWN
 set community 65000:1 65000:2
 set large-community 65000:1:2
route-map OUT6 permit 10
 match ipv6 address prefix-list OWN6
router bgp %d
 bgp router-id 10.%d.255.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart restart-time 60
 timers bgp 3 9
`, n.asn(), n.number)
	for i := range sessions {
		s := &sessions[i]
		a := n.ours(s)
		fmt.Fprintf(&b, " neighbor %s remote-as %d\n neighbor %s timers connect 2\n neighbor %s update-source %s\n", a, ourASN, a, a, n.theirs(s))
		switch {
		case s.loopback:
			fmt.Fprintf(&b, " neighbor %s ebgp-multihop 2\n", a)
		case s.md5:
			fmt.Fprintf(&b, " neighbor %s password %s\n", a, s.password(true))
		case s.gtsm && !s.wrong:
			fmt.Fprintf(&b, " neighbor %s ttl-security hops 1\n", a)
		case s.bfd:
			fmt.Fprintf(&b, " neighbor %s bfd 4 %d %d\n", a, bfdInterval.Milliseconds(), bfdInterval.Milliseconds())
		case s.mixed:
			fmt.Fprintf(&b, " neighbor %s capability extended-nexthop\n", a)
		}
		if !s.six || s.mixed {
			fmt.Fprintf(&v4, "  neighbor %s activate\n  neighbor %s route-map OUT out\n  neighbor %s soft-reconfiguration inbound\n", a, a, a)
		}
		if s.mixed {
			// What came by the other sessions must not be taken for what came by this one.
			fmt.Fprintf(&v4, "  neighbor %s next-hop-self\n", a)
		}
		if s.six {
			fmt.Fprintf(&v6, "  neighbor %s activate\n  neighbor %s route-map OUT6 out\n", a, a)
		}
	}
	four, six := n.own()
	for _, p := range four {
		fmt.Fprintf(&v4, "  network %s\n", p)
	}
	fmt.Fprintf(&v6, "  network %s\n", six)
	fmt.Fprintf(&b, " address-family ipv4 unicast\n%s exit-address-family\n address-family ipv6 unicast\n%s exit-address-family\nexit\n", v4.String(), v6.String())
	// soft-reconfiguration would answer a refresh from memory.
	n.file("bgpd.conf", strings.ReplaceAll(b.String(), fmt.Sprintf("  neighbor %s soft-reconfiguration inbound\n", n.ours(&sessions[0])), ""))
	n.file("zebra.conf", "")
	n.file("bfdd.conf", "")
	n.sh("chown -R frr:frr " + n.dir)
	return f
}

func (f *frr) version() string { return frrVersion() }

func frrVersion() string {
	out, _ := exec.Command(frrDaemons+"bgpd", "-v").CombinedOutput()
	_, v, _ := strings.Cut(strings.SplitN(string(out), "\n", 2)[0], "version ")
	return "FRR " + v
}

func (f *frr) up() { f.daemons = startFRR(f.n.node, "zebra", "bfdd", "bgpd") }

// startFRR starts daemons of FRR. Their configurations are in the node's folder.
func startFRR(n *node, names ...string) (daemons []*process) {
	for _, d := range names {
		args := []string{frrDaemons + d, "-f", n.path(d + ".conf"), "-i", n.path(d + ".pid"), "--vty_socket", n.dir, "-z", n.path("zserv"), "-A", "127.0.0.1", "-P", "0"}
		if d == "bfdd" {
			args = append(args, "--bfdctl", n.path("bfdd.ctl"))
		}
		daemons = append(daemons, n.start(d, nil, args...))
		reach(patience, func() (string, bool) {
			_, err := n.try("vtysh", "--vty_socket", n.dir, "-d", d, "-c", "show version")
			return "", err == nil
		})
	}
	return daemons
}

func (f *frr) crash() {
	for _, d := range f.daemons {
		d.kill()
	}
}

func (f *frr) vtysh(commands ...string) string { return vtysh(f.n.node, commands...) }

// vtysh gives a node's FRR commands.
func vtysh(n *node, commands ...string) string {
	args := []string{"vtysh", "--vty_socket", n.dir}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := n.try(args...)
	if err != nil {
		return err.Error() + out
	}
	return out
}

// configure changes the configuration of a node's FRR. It has nothing to say to that; if it has, it is asked again: another vtysh may be at it.
func configure(n *node, commands ...string) {
	for range 3 {
		out := strings.TrimSpace(vtysh(n, append([]string{"configure terminal"}, commands...)...))
		if out == "" {
			return
		}
		n.t.Logf("%s: %q: %s", n.name, commands, out)
		time.Sleep(time.Second)
	}
}

func family(prefix string) string {
	if strings.Contains(prefix, ":") {
		return "ipv6"
	}
	return "ipv4"
}

func (f *frr) paths(prefix string) map[string]seen {
	var r struct {
		Paths []struct {
			ASPath         struct{ String string }
			Community      struct{ String string }
			LargeCommunity struct{ String string }
			Nexthops       []struct{ IP string }
			Peer           struct{ PeerID string }
		}
	}
	_ = json.Unmarshal([]byte(f.vtysh("show bgp "+family(prefix)+" unicast "+prefix+" json")), &r) // {} or words when there is none
	out := map[string]seen{}
	for _, p := range r.Paths {
		s := seen{asPath: p.ASPath.String, communities: p.Community.String + " " + p.LargeCommunity.String}
		if len(p.Nexthops) > 0 {
			s.nextHop = p.Nexthops[0].IP
		}
		out[p.Peer.PeerID] = s
	}
	return out
}

func (f *frr) network(word, prefix string) {
	configure(f.n.node, fmt.Sprintf("router bgp %d", f.n.asn()), "address-family "+family(prefix)+" unicast", word+"network "+prefix)
}

func (f *frr) announce(prefix string) { f.network("", prefix) }
func (f *frr) withdraw(prefix string) { f.network("no ", prefix) }
func (f *frr) refresh()               { f.vtysh("clear bgp ipv4 unicast " + f.n.ours(&sessions[0]) + " soft in") }

func (f *frr) updates() int {
	a := f.n.ours(&sessions[0])
	var r map[string]struct {
		MessageStats struct{ UpdatesRecv int }
	}
	_ = json.Unmarshal([]byte(f.vtysh("show bgp neighbors "+a+" json")), &r)
	return r[a].MessageStats.UpdatesRecv
}

func (f *frr) lacks(string) string { return "" }
