package interop

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// hostileASN has two octets: the speaker announces no capability, so that it may be as simple as it is.
const hostileASN = 65100

// speaker says just what it is told, byte for byte, and keeps its session alive.
type speaker struct {
	conn   net.Conn
	closed atomic.Bool
	// notification is the last one that came: code and subcode.
	notification atomic.Uint32
}

// dial opens a session from a node.
func dial(n *node, local, remote string) (*speaker, error) {
	s := &speaker{}
	err := n.Within(func() (err error) {
		d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		s.conn, err = d.Dial("tcp", net.JoinHostPort(remote, "179"))
		return err
	})
	if err != nil {
		return nil, err
	}
	open := binary.BigEndian.AppendUint16([]byte{4}, hostileASN)
	open = append(binary.BigEndian.AppendUint16(open, 90), 10, 21, 0, 2, 0)
	s.send(1, open)
	for _, want := range []byte{1, 4} {
		kind, _, err := s.read()
		if err != nil || kind != want {
			s.conn.Close()
			return nil, fmt.Errorf("message %d instead of %d: %w", kind, want, err)
		}
		s.send(4, nil)
	}
	go func() {
		defer s.closed.Store(true)
		for {
			kind, body, err := s.read()
			if err != nil {
				return
			}
			if kind == 3 && len(body) >= 2 {
				s.notification.Store(uint32(body[0])<<8 | uint32(body[1]))
			}
		}
	}()
	go func() {
		for !s.closed.Load() {
			s.send(4, nil)
			time.Sleep(time.Second)
		}
	}()
	return s, nil
}

func (s *speaker) read() (byte, []byte, error) {
	h := make([]byte, 19)
	if _, err := io.ReadFull(s.conn, h); err != nil {
		return 0, nil, err
	}
	body := make([]byte, max(19, int(binary.BigEndian.Uint16(h[16:])))-19)
	_, err := io.ReadFull(s.conn, body)
	return h[18], body, err
}

func (s *speaker) send(kind byte, body []byte) {
	m := bytes.Repeat([]byte{0xff}, 16)
	m = binary.BigEndian.AppendUint16(m, uint16(19+len(body)))
	_, _ = s.conn.Write(append(append(m, kind), body...)) // a closed one shows in read
}

// update is the body of an UPDATE of IPv4.
func update(attrs []byte, prefixes ...netip.Prefix) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attrs)))
	b = append(b, attrs...)
	for _, p := range prefixes {
		a := p.Addr().As4()
		b = append(append(b, byte(p.Bits())), a[:(p.Bits()+7)/8]...)
	}
	return b
}

// attribute makes one, with a long length where it needs that.
func attribute(flags, kind byte, value ...byte) []byte {
	if len(value) > 255 {
		return append([]byte{flags | 0x10, kind, byte(len(value) >> 8), byte(len(value))}, value...)
	}
	return append([]byte{flags, kind, byte(len(value))}, value...)
}

func pathOf(asns ...uint16) []byte {
	v := []byte{2, byte(len(asns))}
	for _, a := range asns {
		v = binary.BigEndian.AppendUint16(v, a)
	}
	return attribute(0x40, 2, v...)
}

func nextHop(s string) []byte { return attribute(0x40, 3, netip.MustParseAddr(s).AsSlice()...) }

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var originIGP = attribute(0x40, 1, 0)

// announcement is one generated UPDATE.
type announcement struct {
	class  string
	legal  bool
	prefix netip.Prefix
	attrs  []byte
}

// generate makes announcements, two in five of them legal. No two have the same prefix.
func generate(r *rand.Rand, count int) []announcement {
	used := map[netip.Prefix]bool{}
	fresh := func(make func() netip.Prefix) netip.Prefix {
		for {
			if p := make().Masked(); !used[p] {
				used[p] = true
				return p
			}
		}
	}
	from := func(a, b byte, bits ...int) func() netip.Prefix {
		return func() netip.Prefix {
			x := [4]byte{a, b, byte(r.IntN(256)), byte(r.IntN(256))}
			if b == 0 {
				x[1] = byte(r.IntN(256))
			}
			return netip.PrefixFrom(netip.AddrFrom4(x), bits[r.IntN(len(bits))])
		}
	}
	good := join(originIGP, pathOf(hostileASN, uint16(1000+r.IntN(1000))), nextHop("10.21.0.2"))
	legal := from(20, 0, 24, 25, 28, 29, 32)
	bogons := [][2]byte{{127, 0}, {169, 254}, {100, 64}, {224, 0}, {240, 0}}
	out := []announcement{{"default route", false, netip.MustParsePrefix("0.0.0.0/0"), good}}
	for len(out) < count {
		a := announcement{attrs: good}
		switch r.IntN(20) {
		case 0, 1, 2, 3, 4, 5, 6:
			a.class, a.legal, a.prefix = "legal", true, fresh(legal)
		case 7:
			many := make([]byte, 4*(100+r.IntN(850)))
			for i := range many {
				many[i] = byte(1 + r.IntN(200)) // no well-known community
			}
			a.class, a.legal, a.prefix, a.attrs = "huge communities", true, fresh(legal), join(good, attribute(0xc0, 8, many...))
		case 8, 9, 10:
			a.class, a.prefix = "point to point", fresh(from(21, 0, 30, 31))
		case 11, 12:
			b := bogons[r.IntN(len(bogons))]
			a.class, a.prefix = "bogon", fresh(from(b[0], b[1], 24, 28))
		case 13:
			a.class, a.prefix = "another site's prefix", fresh(from(10, 2, 24, 25, 26, 27, 28, 29))
		case 14, 15:
			a.class, a.prefix, a.attrs = "own AS in the path", fresh(from(22, 0, 24)), join(originIGP, pathOf(hostileASN, 65001, 3), nextHop("10.21.0.2"))
		case 16:
			a.class, a.prefix, a.attrs = "next hop is our own address", fresh(from(23, 0, 24)), join(originIGP, pathOf(hostileASN), nextHop("10.21.0.1"))
		case 17:
			a.class, a.prefix, a.attrs = "next hop in no network of ours", fresh(from(24, 0, 24)), join(originIGP, pathOf(hostileASN), nextHop("198.18.0.1"))
		case 18:
			a.class, a.prefix, a.attrs = "malformed: ORIGIN 9", fresh(from(25, 0, 24)), join(attribute(0x40, 1, 9), pathOf(hostileASN), nextHop("10.21.0.2"))
		case 19:
			a.class, a.prefix, a.attrs = "malformed: communities of three octets", fresh(from(26, 0, 24)), join(good, attribute(0xc0, 8, 1, 2, 3))
		}
		out = append(out, a)
	}
	return out
}

// hostileLab is a gateway with a hostile neighbour and an observer in one VRF, and another gateway.
type hostileLab struct {
	gw, far           *gateway
	hostile, observer *node
}

const hostileTable = 400

func newHostileLab(t *testing.T, maxPrefix int) *hostileLab {
	t.Helper()
	l := &hostileLab{gw: newGateway(t, "gw"), far: newGateway(t, "far"), hostile: newNode(t, "hostile"), observer: newNode(t, "observer")}
	l.gw.link("u0", l.far.node, "u0")
	l.gw.link("h0", l.hostile, "eth0")
	l.gw.link("o0", l.observer, "eth0")
	l.gw.sh("ip addr add 203.0.113.1/24 dev u0")
	l.far.sh("ip addr add 203.0.113.2/24 dev u0", "ip link add w0 type veth peer name w0p", "ip link set w0 up", "ip link set w0p up")
	l.hostile.sh("ip addr add 10.21.0.2/24 dev eth0")
	l.observer.sh("ip addr add 10.22.0.2/24 dev eth0")
	document := func(key string) string {
		return fmt.Sprintf(`
fabric: {name: hostile, bgp: {keepalive: 3s, hold: 9s, connect-retry: 2s}}
vrfs: [{name: H, table: %d, vni: 2000}]
policies:
  - name: from-hostile
    default: accept
    terms: [{name: other-site, match: {prefixes: ["10.2.0.0/16 le 32"]}, then: reject}]
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs:
          - vrf: H
            interfaces: [{name: h0, addresses: [10.21.0.1/24]}, {name: o0, addresses: [10.22.0.1/24]}]
            peers:
              - {name: hostile, address: 10.21.0.2, asn: %d, passive: true, import: from-hostile, max-prefix: %d}
              - {name: observer, address: 10.22.0.2, asn: 65200}
  - name: there
    gateways:
      - name: far
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs: [{vrf: H, interfaces: [{name: w0, addresses: [10.23.0.1/24]}], prefixes: [{prefix: 10.2.0.0/16, next-hop: 10.23.0.9}]}]
`, hostileTable, l.gw.public, key, hostileASN, maxPrefix, l.far.public, key)
	}
	l.observer.file("bgpd.conf", `frr defaults datacenter
router bgp 65200
 bgp router-id 10.22.0.2
 no bgp ebgp-requires-policy
 neighbor 10.22.0.1 remote-as 65001
 neighbor 10.22.0.1 timers connect 1
`)
	l.observer.sh("chown -R frr:frr " + l.observer.dir)
	l.observer.start("bgpd", nil, frrDaemons+"bgpd", "-f", l.observer.path("bgpd.conf"), "-i", l.observer.path("bgpd.pid"), "--vty_socket", l.observer.dir, "-A", "127.0.0.1", "-P", "0", "-Z")
	l.gw.run(document(l.gw.path("wg.key")))
	l.far.run(document(l.far.path("wg.key")))
	wait(t, "the observer's and the far gateway's sessions", patience, func() (string, bool) {
		ps := l.gw.peers("")
		up := 0
		for _, p := range ps {
			if p.GetState() == "established" {
				up++
			}
		}
		return fmt.Sprint(ps), up == 2
	})
	return l
}

// connect opens the hostile session; one that has just been down is refused for a while.
func (l *hostileLab) connect(t *testing.T) *speaker {
	t.Helper()
	var s *speaker
	wait(t, "the hostile session", patience, func() (string, bool) {
		var err error
		if s, err = dial(l.hostile, "10.21.0.2", "10.21.0.1"); err != nil {
			return err.Error(), false
		}
		return "", true
	})
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// observed are the prefixes that FRR has.
func (l *hostileLab) observed() []string {
	out, _ := l.observer.try("vtysh", "--vty_socket", l.observer.dir, "-d", "bgpd", "-c", "show bgp ipv4 unicast json")
	var r struct{ Routes map[string]any }
	_ = json.Unmarshal([]byte(out), &r)
	return slices.Sorted(maps.Keys(r.Routes))
}

// places are where routes of the hostile neighbour may get to, beside its session.
func (l *hostileLab) places() map[string][]string {
	return map[string][]string{
		"kernel": l.gw.kernel(hostileTable), "observer (FRR)": l.observed(), "fabric peer's kernel": l.far.kernel(hostileTable),
	}
}

// TestHostile: of what a hostile neighbour announces, all that is legal gets everywhere and nothing else gets anywhere.
func TestHostile(t *testing.T) {
	needs(t, "vtysh")
	if _, err := os.Stat(frrDaemons + "bgpd"); err != nil {
		t.Skip("needs FRR: ", err)
	}
	count := 600
	if full() {
		count = 10_000
	}
	seed, err := strconv.ParseUint(getenv("INTEROP_SEED", "20261121"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d (INTEROP_SEED)", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	all := generate(r, count)
	class, legal := map[string]string{}, map[string]bool{}
	classes := map[string]int{}
	for _, a := range all {
		class[a.prefix.String()] = a.class
		classes[a.class]++
		if a.legal {
			legal[a.prefix.String()] = true
		}
	}
	limit := len(legal) * 10 / 9 // above three quarters
	l := newHostileLab(t, limit)
	s := l.connect(t)
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, a := range all {
		s.send(2, update(a.attrs, a.prefix))
	}
	mark := netip.MustParsePrefix("20.255.255.255/32")
	legal[mark.String()], class[mark.String()] = true, "legal"
	s.send(2, update(join(originIGP, pathOf(hostileASN), nextHop("10.21.0.2")), mark))
	look := func() (illegal, missing map[string]int, example string) {
		illegal, missing = map[string]int{}, map[string]int{}
		for place, prefixes := range l.places() {
			got := map[string]bool{}
			for _, p := range prefixes {
				got[p] = true
				if c, ours := class[p]; ours && !legal[p] {
					illegal[place+": "+c]++
					example = p
				}
			}
			for p := range legal {
				if !got[p] {
					missing[place]++
				}
			}
		}
		return illegal, missing, example
	}
	reach(patience, func() (string, bool) { _, missing, _ := look(); return "", len(missing) == 0 })
	illegal, missing, example := look()
	if len(illegal) > 0 {
		t.Errorf("illegal routes got through: %v, one is %s", illegal, example)
	}
	if len(missing) > 0 {
		t.Errorf("legal routes did not arrive: %v of %d", missing, len(legal))
	}
	if s.closed.Load() {
		t.Errorf("the session was reset, notification %x", s.notification.Load())
	}
	if said := l.gw.site.said(); !strings.Contains(said, "close to max-prefix") {
		t.Error("no warning at 75 % of max-prefix")
	}
	// Beyond max-prefix.
	more := limit - len(legal) + 200
	for i := range more {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 0}), 24)
		s.send(2, update(join(originIGP, pathOf(hostileASN), nextHop("10.21.0.2")), p))
	}
	wait(t, "the table frozen at max-prefix", patience, func() (string, bool) {
		p := l.gw.peer("H", "hostile")
		return p.String(), p.GetFrozen() && int(p.GetAdmitted()) == limit && p.GetState() == "established" && p.GetFlaps() == 0
	})
	// The kernel has what was admitted and can be forwarded: a next hop that leads nowhere makes no route.
	beyond := 0
	for _, p := range l.gw.kernel(hostileTable) {
		if strings.HasPrefix(p, "30.") {
			beyond++
		}
	}
	if beyond > limit-len(legal) {
		t.Errorf("%d prefixes beyond max-prefix are in the kernel", beyond-(limit-len(legal)))
	}
	// One that was admitted still changes: a withdrawal goes through.
	s.send(2, append([]byte{0, 5, 32, 20, 255, 255, 255}, 0, 0))
	wait(t, "the withdrawal everywhere", patience, func() (string, bool) {
		for place, prefixes := range l.places() {
			if slices.Contains(prefixes, mark.String()) {
				return place + " has it", false
			}
		}
		return "", true
	})
	for _, p := range []*process{l.gw.site, l.gw.links, l.far.site, l.far.links} {
		if !p.alive() {
			t.Errorf("%s ended:\n%s", p.name, p.said())
		}
	}
	if p := l.gw.peer("H", "observer"); p.GetFlaps() != 0 {
		t.Errorf("the observer's session was touched: %v", p)
	}
	t.Logf("backend %s; %d announcements, %d legal, max-prefix %d: %v", l.gw.backend(), len(all)+1, len(legal), limit, classes)
	if full() {
		publish(t, "hostile", l.gw.backend(), func(b *strings.Builder) {
			fmt.Fprintf(b, "%d announcements from seed %d, max-prefix %d. Looked at: the VRF's kernel table, an FRR that is another peer, the kernel of another gateway. Illegal found: %d. Legal missing: %d.\n\n", len(all)+1, seed, limit, len(illegal), len(missing))
			b.WriteString("| Class | Announced | Got through |\n|---|---|---|\n")
			for _, c := range slices.Sorted(maps.Keys(classes)) {
				through := 0
				for _, p := range l.gw.kernel(hostileTable) {
					if class[p] == c {
						through++
					}
				}
				fmt.Fprintf(b, "| %s | %d | %d |\n", c, classes[c], through)
			}
			fmt.Fprintf(b, "| beyond max-prefix | %d | %d, then frozen; the session stayed |\n", more, beyond)
		})
	}
}
