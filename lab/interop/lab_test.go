package interop

import (
	"fmt"
	"strings"
	"testing"
)

// ourASN has four octets, and so has every neighbour's: 4200000000 and its number.
const ourASN = 4200000001

// session is one of the sessions between the gateway and a neighbour. They are between addresses of their own, so that each program
// has a neighbour of its own for each of them.
type session struct {
	name string
	// subnet is F in 10.R.F.0/24 and fd00:R:F::/64; ours is .1, theirs .2.
	subnet int
	// What is special of it.
	six, loopback, md5, gtsm, bfd, mixed, asOverride bool
	maxPrefix                                        int
	// wrong: the two ends differ in their key or in GTSM, and there must be no session.
	wrong bool
}

var sessions = []session{
	{name: "plain", subnet: 1},
	{name: "six", subnet: 2, six: true},
	{name: "loopback", subnet: 255, loopback: true},
	{name: "md5", subnet: 4, md5: true},
	{name: "gtsm", subnet: 5, gtsm: true},
	{name: "bfd", subnet: 6, bfd: true},
	{name: "mixed", subnet: 7, six: true, mixed: true},
	{name: "max", subnet: 8, maxPrefix: 5},
	{name: "override", subnet: 9, asOverride: true},
	{name: "wrong-md5", subnet: 10, md5: true, wrong: true},
	{name: "wrong-ttl", subnet: 11, gtsm: true, wrong: true},
}

// lab is a gateway with one VRF for each neighbour.
type lab struct {
	g          *gateway
	neighbours []*neighbour
}

// neighbour is another program in a host of its own.
type neighbour struct {
	*node
	number int // R
	router
}

// router is what the tests want of a program.
type router interface {
	// version is what the program says of itself.
	version() string
	// up starts it, also again after kill; begin is given the first time.
	up()
	// crash ends it at once.
	crash()
	// paths are those that it has from us for a prefix, by our address of the session.
	paths(prefix string) map[string]seen
	// announce and withdraw a prefix, to all sessions of its family.
	announce(prefix string)
	withdraw(prefix string)
	// refresh asks for everything again on the session "plain"; updates counts what has come from us there, in whatever unit.
	refresh()
	updates() int
	// lacks says why the program has no such feature, "" if it has.
	lacks(feature string) string
}

// seen is a path of ours as a neighbour has it.
type seen struct {
	asPath, communities, nextHop string
}

func (n *neighbour) asn() int { return 4200000000 + n.number }

// ours and theirs are the ends of a session.
func (n *neighbour) ours(s *session) string   { return n.end(s, 1) }
func (n *neighbour) theirs(s *session) string { return n.end(s, 2) }

func (n *neighbour) end(s *session, i int) string {
	if s.six {
		return fmt.Sprintf("fd00:%d:%d::%d", n.number, s.subnet, i)
	}
	return fmt.Sprintf("10.%d.%d.%d", n.number, s.subnet, i)
}

// password of a session, as the two ends have it.
func (s *session) password(theirs bool) string {
	if s.wrong && theirs {
		return "another"
	}
	return "battery-staple"
}

// own are the prefixes that the neighbour announces from the start: eight of IPv4, more than the session "max" admits, and one of IPv6.
func (n *neighbour) own() (four []string, six string) {
	for i := 1; i <= 8; i++ {
		four = append(four, fmt.Sprintf("172.%d.%d.0/24", n.number+5, i))
	}
	return four, fmt.Sprintf("fd01:%d::/48", n.number)
}

// extra is a prefix that comes and goes.
func (n *neighbour) extra() string { return fmt.Sprintf("172.%d.99.0/24", n.number+5) }

// ourPrefixes are what we announce to it.
func (n *neighbour) ourPrefixes() (four, six string) {
	return fmt.Sprintf("10.200.%d.0/24", n.number), fmt.Sprintf("fd02:%d::/48", n.number)
}

func (n *neighbour) vrf() string { return fmt.Sprintf("R%d", n.number) }
func (n *neighbour) table() int  { return 300 + n.number }

// newLab makes the hosts and the document; the neighbours are made by add. Nothing runs yet.
func newLab(t *testing.T) *lab {
	t.Helper()
	return &lab{g: newGateway(t, "gw")}
}

// add makes a neighbour's host.
func (l *lab) add(name string, number int, program func(*neighbour) router) *neighbour {
	n := &neighbour{node: newNode(l.g.t, name), number: number}
	device := fmt.Sprintf("n%d", number)
	l.g.link(device, n.node, "eth0")
	lines := []string{fmt.Sprintf("addr add 10.%d.255.2/32 dev lo", number)}
	for _, s := range sessions {
		if s.loopback {
			continue
		}
		lines = append(lines, fmt.Sprintf("addr add 10.%d.%d.2/24 dev eth0", number, s.subnet), fmt.Sprintf("-6 addr add fd00:%d:%d::2/64 dev eth0 nodad", number, s.subnet))
	}
	n.batch(append(lines, fmt.Sprintf("route add 10.%d.255.1/32 via 10.%d.1.1", number, number))...)
	n.router = program(n)
	l.neighbours = append(l.neighbours, n)
	return n
}

// document is the gateway's.
func (l *lab) document() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fabric: {name: interop, bgp: {keepalive: 3s, hold: 9s, connect-retry: 2s, restart-time: 60s}, bfd: {interval: %v, multiplier: 4}}\nvrfs:\n", bfdInterval)
	for _, n := range l.neighbours {
		fmt.Fprintf(&b, "  - {name: %s, table: %d, vni: %d}\n", n.vrf(), n.table(), 1000+n.number)
	}
	fmt.Fprintf(&b, `sites:
  - name: here
    gateways:
      - name: gw
        asn: %d
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs:
`, ourASN, l.g.public, l.g.path("wg.key"))
	key := l.g.file("md5", (&session{}).password(false))
	for _, n := range l.neighbours {
		var addresses []string
		for _, s := range sessions {
			if !s.loopback {
				addresses = append(addresses, fmt.Sprintf("10.%d.%d.1/24", n.number, s.subnet), fmt.Sprintf("%q", fmt.Sprintf("fd00:%d:%d::1/64", n.number, s.subnet)))
			}
		}
		four, six := n.ourPrefixes()
		fmt.Fprintf(&b, `          - vrf: %s
            interfaces: [{name: n%d, addresses: [%s]}]
            loopbacks: [10.%d.255.1/32]
            prefixes:
              - {prefix: 10.%d.255.2/32, next-hop: 10.%d.1.2, announce: false}
              - {prefix: %s, next-hop: 10.%d.1.2, communities: ["65010:7", "65010:8"]}
              - {prefix: %q, next-hop: "fd00:%d:1::2"}
            peers:
`, n.vrf(), n.number, strings.Join(addresses, ", "), n.number, n.number, n.number, four, n.number, six, n.number)
		for _, s := range sessions {
			more := ""
			switch {
			case s.loopback:
				more = fmt.Sprintf(", multihop: 2, update-source: %s", n.ours(&s))
			case s.md5:
				more = ", password-file: " + key
			case s.gtsm:
				more = ", ttl-security: 1"
			case s.bfd:
				more = ", bfd: {}"
			case s.mixed:
				more = ", families: [ipv4, ipv6], extended-next-hop: true"
			case s.asOverride:
				more = ", as-override: true"
			case s.maxPrefix > 0:
				more = fmt.Sprintf(", max-prefix: %d", s.maxPrefix)
			}
			fmt.Fprintf(&b, "              - {name: %s, address: %q, asn: %d%s}\n", s.name, n.theirs(&s), n.asn(), more)
		}
	}
	return b.String()
}
