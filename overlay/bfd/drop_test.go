package bfd

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attacker sends datagrams of its own making from a namespace.
type attacker struct {
	t *testing.T
	s *space
}

// datagram is what an attacker sends.
type datagram struct {
	from, to string // addresses
	dev      string // way out, where the routes would choose another
	ttl      int    // 0 is 255
	port     int    // 0 is 3784
	raw      []byte
}

func (at attacker) send(d datagram) {
	at.t.Helper()
	at.s.in(func() {
		from, to := netip.MustParseAddr(d.from), netip.MustParseAddr(d.to)
		fd, err := udpSocket(from.Is6(), d.dev)
		if err != nil {
			at.t.Error(err)
			return
		}
		defer closeFD(at.t, fd)
		if d.ttl == 0 {
			d.ttl = 255
		}
		if d.port == 0 {
			d.port = SingleHopPort
		}
		opt := option{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, d.ttl}
		if from.Is6() {
			opt = option{"hops", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, d.ttl}
		}
		if err := setOptions(fd, []option{opt}); err != nil {
			at.t.Error(err)
		}
		if err := unix.Bind(fd, sockaddr(from, 0, 0)); err != nil {
			at.t.Error(err)
		}
		if err := unix.Sendto(fd, d.raw, 0, sockaddr(to, d.port, 0)); err != nil {
			at.t.Error(err)
		}
	})
}

// TestDrops: whatever is sent to a session that is Up, it stays Up; each datagram is counted under its reason, and the first of each is
// logged.
//
//	a [b0] ──────── [a0] b, attacker
//	  [b1] ──────── [a1]
func TestDrops(t *testing.T) {
	a, b := newSpaces(t, 2)
	sha := &Auth{MeticulousKeyedSHA1, []Key{{1, Secret("secret")}}}
	b.run("ip", "address", "add", "10.0.0.9/24", "dev", "a0")
	ea := a.start(
		sessionOf("plain", "10.0.0.1", "10.0.0.2", dev("b0")),
		sessionOf("signed", "2001:db8::1", "2001:db8::2", withAuth(sha)),
		sessionOf("far", "10.0.1.1", "10.0.1.2", multihop(250)),
	)
	eb := b.start(
		sessionOf("plain", "10.0.0.2", "10.0.0.1", dev("a0")),
		sessionOf("signed", "2001:db8::2", "2001:db8::1", withAuth(sha)),
		sessionOf("far", "10.0.1.2", "10.0.1.1", multihop(250)),
	)
	for _, name := range []string{"plain", "signed", "far"} {
		ea.awaitState(name, Up)
		eb.awaitState(name, Up)
	}
	// The attacker knows everything but the key: each packet would take its session down.
	down := func(name string, change func(*Packet)) []byte {
		st := ea.status(name)
		p := Packet{
			State: Down, DetectMult: 3, MyDiscr: st.RemoteDiscriminator, YourDiscr: st.Discriminator, DesiredMinTx: time.Second,
			RequiredMinRx: time.Second,
		}
		if change != nil {
			change(&p)
		}
		raw := make([]byte, MaxLen)
		return raw[:p.Encode(raw, Secret("guess"))]
	}
	truncated := down("plain", nil)[:20]
	multipoint := down("plain", nil)
	multipoint[1] |= bitMultipoint
	for _, tt := range []struct {
		name    string
		reason  Drop
		session string // that counts it
		d       datagram
	}{
		{"TTL 254", DropTTL, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1", ttl: 254, raw: down("plain", nil)}},
		{"TTL 1", DropTTL, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1", ttl: 1, raw: down("plain", nil)}},
		{"TTL 254, no discriminator", DropTTL, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1", ttl: 254,
			raw: down("plain", func(p *Packet) { p.YourDiscr = 0 })}},
		{"hop limit 254", DropTTL, "signed", datagram{from: "2001:db8::2", to: "2001:db8::1", ttl: 254, raw: down("signed", nil)}},
		{"TTL 249 of 250", DropTTL, "far", datagram{from: "10.0.1.2", to: "10.0.1.1", ttl: 249, port: MultihopPort, raw: down("far", nil)}},
		{"truncated", DropShort, "", datagram{from: "10.0.0.2", to: "10.0.0.1", raw: truncated}},
		{"one byte", DropShort, "", datagram{from: "10.0.0.2", to: "10.0.0.1", raw: []byte{0x20}}},
		{"multipoint", DropMultipoint, "", datagram{from: "10.0.0.2", to: "10.0.0.1", raw: multipoint}},
		{"wrong interface", DropInterface, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1", dev: "a1", raw: down("plain", nil)}},
		{"wrong interface, no discriminator", DropNoSession, "", datagram{from: "10.0.0.2", to: "10.0.0.1", dev: "a1",
			raw: down("plain", func(p *Packet) { p.YourDiscr = 0 })}},
		{"wrong port", DropInterface, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1", port: MultihopPort, raw: down("plain", nil)}},
		{"wrong family", DropInterface, "plain", datagram{from: "2001:db8::2", to: "2001:db8::1", raw: down("plain", nil)}},
		{"wrong source", DropSource, "plain", datagram{from: "10.0.0.9", to: "10.0.0.1", raw: down("plain", nil)}},
		{"wrong destination", DropSource, "plain", datagram{from: "10.0.0.2", to: "10.0.1.1", dev: "a0", raw: down("plain", nil)}},
		{"unknown source", DropNoSession, "", datagram{from: "10.0.0.9", to: "10.0.0.1", raw: down("plain", func(p *Packet) { p.YourDiscr = 0 })}},
		{"unknown discriminator", DropNoSession, "", datagram{from: "10.0.0.2", to: "10.0.0.1",
			raw: down("plain", func(p *Packet) { p.YourDiscr ^= 0x5a5a5a5a })}},
		{"no authentication", DropAuthMissing, "signed", datagram{from: "2001:db8::2", to: "2001:db8::1", raw: down("signed", nil)}},
		{"wrong key", DropAuthKey, "signed", datagram{from: "2001:db8::2", to: "2001:db8::1",
			raw: down("signed", func(p *Packet) { p.Auth = AuthSection{MeticulousKeyedSHA1, 7, 0} })}},
		{"weaker type", DropAuthType, "signed", datagram{from: "2001:db8::2", to: "2001:db8::1",
			raw: down("signed", func(p *Packet) { p.Auth = AuthSection{SimplePassword, 1, 0} })}},
		{"authentication unasked", DropAuthUnexpected, "plain", datagram{from: "10.0.0.2", to: "10.0.0.1",
			raw: down("plain", func(p *Packet) { p.Auth = AuthSection{KeyedSHA1, 1, 0} })}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			count := func() (engine, session uint64) {
				return ea.Totals().Dropped[tt.reason.String()], ea.status(tt.session).Dropped[tt.reason.String()]
			}
			engine, session := count()
			attacker{t, b}.send(tt.d)
			await(t, "counted as "+tt.reason.String(), func() bool {
				e, s := count()
				return e == engine+1 && (tt.session == "" || s == session+1)
			})
			await(t, "logged as "+tt.reason.String(), func() bool {
				return strings.Contains(ea.lines.String(), "reason="+tt.reason.String())
			})
		})
	}

	t.Run("log is limited", func(t *testing.T) {
		before := strings.Count(ea.lines.String(), "reason=short")
		for range 50 {
			attacker{t, b}.send(datagram{from: "10.0.0.2", to: "10.0.0.1", raw: truncated})
		}
		await(t, "all counted", func() bool { return ea.Totals().Dropped["short"] >= 52 })
		if n := strings.Count(ea.lines.String(), "reason=short"); n > before+1 {
			t.Errorf("%d lines", n)
		}
	})

	t.Run("replayed", func(t *testing.T) {
		// A true packet, read from the wire as the attacker would.
		heard := func() []byte {
			return sniff(t, b, 0x86dd, func(p []byte) []byte {
				if len(p) < 48+HeaderLen || p[6] != unix.IPPROTO_UDP {
					return nil
				}
				var q Packet
				if Decode(p[48:], &q) != Kept || q.MyDiscr != eb.status("signed").Discriminator {
					return nil
				}
				return p[48:]
			})
		}
		raw := heard()
		before := ea.status("signed").Dropped["auth-sequence"]
		attacker{t, b}.send(datagram{from: "2001:db8::2", to: "2001:db8::1", raw: raw})
		await(t, "replay counted", func() bool { return ea.status("signed").Dropped["auth-sequence"] == before+1 })
		// With a sequence number that is due, but without the key to sign it. The window is 9 ahead.
		await(t, "forgery counted", func() bool {
			raw := heard()
			sequence := raw[HeaderLen+4:]
			binary.BigEndian.PutUint32(sequence, binary.BigEndian.Uint32(sequence)+3)
			attacker{t, b}.send(datagram{from: "2001:db8::2", to: "2001:db8::1", raw: raw})
			return ea.status("signed").Dropped["auth-digest"] > 0
		})
	})

	for _, name := range []string{"plain", "signed", "far"} {
		if st := ea.status(name); st.State != Up || st.Downs != 0 {
			t.Errorf("%s: %v, %d downs: %s", name, st.State, st.Downs, st.Reason)
		}
	}
}

// sniff returns the first packet on a0 that match makes something of. It gets them without the Ethernet header.
func sniff(t *testing.T, s *space, etherType uint16, match func([]byte) []byte) []byte {
	t.Helper()
	var found []byte
	s.in(func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer closeFD(t, fd)
		// Protocol ETH_P_ALL, in network order: packets sent from here are seen with it only.
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300}); err != nil {
			t.Error(err)
			return
		}
		b := make([]byte, 2048)
		for found == nil {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR { // with SO_RCVTIMEO the runtime's signals end the call
				continue
			}
			if err != nil {
				t.Errorf("nothing heard: %v", err)
				return
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Protocol == etherType>>8|etherType<<8 && ll.Pkttype == unix.PACKET_OUTGOING {
				found = match(append([]byte(nil), b[:n]...))
			}
		}
	})
	if found == nil {
		t.FailNow()
	}
	return found
}
