package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/overlay"
)

// peers are a gateway and two third-party neighbours of it, each with a fabric-links that does no more than BFD. Behind both neighbours
// are the same networks, and whoever gets a datagram for them answers.
//
//	a: 10.1.0.1, fd00:1::1 ── eth1 ── 10.1.0.2, fd00:1::2 :x ┐
//	   10.2.0.1, fd00:2::1 ── eth2 ── 10.2.0.2, fd00:2::2 :y ┴ 10.50.0.1, 10.51.0.1, fd50::1
type peers struct {
	a, x, y *node
	plan    overlay.Plan
	// sets: IPv4 over IPv4, IPv4 over IPv4 and then IPv6, IPv6 over IPv6.
	sets [3]overlay.NextHopSet
}

// behind are addresses behind both neighbours, one for each set.
var behind = [3]string{"10.50.0.1", "10.51.0.1", "fd50::1"}

func newPeers(t *testing.T) *peers {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	p := &peers{a: newNode(t, "a", "10.255.0.1"), x: newNode(t, "x", "10.255.0.2"), y: newNode(t, "y", "10.255.0.3")}
	p.plan = overlay.Plan{Version: overlay.PlanVersion, Fabric: "test", Gateway: "a", VTEP: p.a.vtep}
	timers := overlay.BFD{IntervalMs: 200 * slow, Multiplier: 5}
	for i, n := range []*node{p.x, p.y} {
		i, dev := i+1, fmt.Sprintf("eth%d", i+1)
		p.a.must(fmt.Sprintf("ip link add %s type veth peer name eth0 netns /proc/%d/ns/net", dev, n.pid))
		p.a.must(fmt.Sprintf("ip addr add 10.%d.0.1/24 dev %s && ip addr add fd00:%d::1/64 dev %s nodad && ip link set %s up", i, dev, i, dev, dev))
		n.must(fmt.Sprintf("ip addr add 10.%d.0.2/24 dev eth0 && ip addr add fd00:%d::2/64 dev eth0 nodad && ip link set eth0 up", i, i))
		n.must(fmt.Sprintf("ip route add default via 10.%d.0.1 && ip route add default via fd00:%d::1", i, i))
		for _, b := range behind {
			n.must("ip addr add " + b + " dev lo")
		}
		addr := func(end int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", i, end)) }
		p.plan.Sessions = append(p.plan.Sessions, overlay.Session{BFD: timers, Name: "CORE/" + n.name, VRF: "CORE", Peer: n.name, Interface: dev, Local: addr(1), Remote: addr(2)})
		n.start()
		n.apply(overlay.Plan{Version: overlay.PlanVersion, Fabric: "other", Gateway: n.name, VTEP: n.vtep, Sessions: []overlay.Session{
			{BFD: timers, Name: "CORE/a", VRF: "CORE", Peer: "a", Interface: "eth0", Local: addr(2), Remote: addr(1)},
		}})
		n.answer()
	}
	leg := func(peer, gateway string) overlay.Leg {
		return overlay.Leg{Gateway: netip.MustParseAddr(gateway), Device: map[string]string{"x": "eth1", "y": "eth2"}[peer], Session: "CORE/" + peer}
	}
	x4, y4, x6, y6 := leg("x", "10.1.0.2"), leg("y", "10.2.0.2"), leg("x", "fd00:1::2"), leg("y", "fd00:2::2")
	for i, legs := range [][]overlay.Leg{{x4, y4}, {x4, y6}, {x6, y6}} {
		p.sets[i] = overlay.NextHopSet{ID: overlay.NextHopSetID("CORE", legs, 0), VRF: "CORE", Legs: legs}
	}
	p.a.must("ip addr add 10.99.0.1/32 dev lo && ip addr add fd99::1/128 dev lo")
	p.a.start()
	p.a.apply(p.plan)
	p.a.wait("both sessions are up", p.sessions("up", "up"))
	return p
}

// answer returns every datagram that comes to one of the addresses behind.
func (n *node) answer() {
	n.t.Helper()
	for _, b := range behind {
		c := n.udp(netip.MustParseAddr(b), 7002)
		n.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				size, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:size], from)
			}
		}()
	}
}

// udp is a socket of the node.
func (n *node) udp(local netip.Addr, port int) net.PacketConn {
	n.t.Helper()
	fd := inNode(n.t, n, func() (int, error) {
		family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: local.As16()})
		if local.Is4() {
			family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: local.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return 0, err
		}
		return fd, unix.Bind(fd, sa)
	})
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// stream sends a datagram every 5 ms to an address behind and notes when the last answer came, in Unix nanoseconds, and the longest
// time between two.
type stream struct{ last, longest atomic.Int64 }

func (p *peers) stream(to string) *stream {
	addr := netip.MustParseAddr(to)
	from := map[bool]string{false: "10.99.0.1", true: "fd99::1"}[addr.Is6()]
	c := p.a.udp(netip.MustParseAddr(from), 0)
	p.a.t.Cleanup(func() { c.Close() })
	s := &stream{}
	s.last.Store(time.Now().UnixNano())
	go func() {
		for n := uint64(0); ; n++ {
			_, err := c.WriteTo(binary.BigEndian.AppendUint64(nil, n), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 7002)))
			if err != nil && strings.Contains(err.Error(), "closed") {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			if _, _, err := c.ReadFrom(buf); err != nil {
				if strings.Contains(err.Error(), "closed") {
					return
				}
				continue
			}
			now := time.Now().UnixNano()
			s.longest.Store(max(s.longest.Load(), now-s.last.Swap(now)))
		}
	}()
	return s
}

// after waits until the stream has an answer that came after a time, and returns the longest gap so far.
func (p *peers) after(s *stream, at time.Time) time.Duration {
	p.a.t.Helper()
	p.a.wait("answers", func() error {
		if s.last.Load() <= at.UnixNano() {
			return fmt.Errorf("none for %v", time.Since(time.Unix(0, s.last.Load())))
		}
		return nil
	})
	return time.Duration(s.longest.Load())
}

// sessions says whether a's sessions are as told.
func (p *peers) sessions(want ...string) func() error {
	return func() error {
		s, err := p.a.state()
		if err != nil {
			return err
		}
		for i, w := range want {
			if len(s.Sessions) != len(want) || s.Sessions[i].State != w {
				return fmt.Errorf("sessions are %+v", s.Sessions)
			}
		}
		return nil
	}
}

// on says whether all sets are on the leg of that rank, in the kernel and as told.
func (p *peers) on(rank int) func() error {
	return func() error {
		s, err := p.a.state()
		if err != nil {
			return err
		}
		if len(s.Sets) != len(p.sets) {
			return fmt.Errorf("sets are %+v, problems %+v", s.Sets, s.Problems)
		}
		for i, set := range p.sets {
			l := set.Legs[rank]
			text := p.a.try(fmt.Sprintf("ip nexthop get id %d", set.ID))
			if !s.Sets[i].Ready || s.Sets[i].Rank != rank || !strings.Contains(text, "via "+l.Gateway.String()+" dev "+l.Device) {
				return fmt.Errorf("want %s, have %s; told is %+v", l, text, s.Sets[i])
			}
		}
		return nil
	}
}

// dead makes a node drop all that comes and goes, without its neighbours' links noticing.
func (n *node) dead(is bool) {
	n.t.Helper()
	if !is {
		n.must("nft delete table inet dead")
		return
	}
	n.must(`nft -f - <<E
table inet dead {
	chain in { type filter hook prerouting priority -300; policy drop; }
	chain out { type filter hook output priority -300; policy drop; }
}
E`)
}

// A neighbour that falls silent takes 2,000 prefixes with it: one message per set moves them all, to a next hop of another family too.
func TestSetsMoveInTheKernel(t *testing.T) {
	p := newPeers(t)
	p.plan.Sets = p.sets[:]
	p.a.apply(p.plan)
	p.a.wait("the sets are on x", p.on(0))
	if mode := strings.TrimSpace(p.a.must("cat /proc/sys/net/ipv4/nexthop_compat_mode")); mode != "0" {
		t.Errorf("nexthop_compat_mode is %s", mode)
	}
	var routes strings.Builder
	for i, b := range behind {
		fmt.Fprintf(&routes, "route add %s nhid %d proto 201 metric 201\n", b, p.sets[i].ID)
	}
	for i := range 2000 {
		prefix, set := fmt.Sprintf("11.%d.%d.0/24", i/250, i%250), p.sets[i%2]
		if i%4 == 3 {
			prefix, set = fmt.Sprintf("fd11:%x::/32", i), p.sets[2]
		}
		fmt.Fprintf(&routes, "route add %s nhid %d proto 201 metric 201\n", prefix, set.ID)
	}
	batch := filepath.Join(t.TempDir(), "routes")
	if err := os.WriteFile(batch, []byte(routes.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	p.a.must("ip -batch " + batch)
	var streams []*stream
	for _, b := range behind {
		streams = append(streams, p.stream(b))
	}
	for _, s := range streams {
		p.after(s, time.Now())
	}

	messages := p.a.monitor()
	for _, s := range streams {
		s.longest.Store(0)
	}
	machine := watchMachine()
	p.x.dead(true)
	begun := time.Now()
	p.a.wait("the sets are on y", p.on(1))
	for i, s := range streams {
		// The detection time is 1 s; the rest is for a machine that is busy.
		gap := p.after(s, time.Now())
		t.Logf("%s: longest gap %v", behind[i], gap)
		if gap > slowly(3*time.Second) {
			machine.errorf(t, "%s: %v without answers", behind[i], gap)
		}
	}
	t.Logf("all is well after %v", time.Since(begun))
	if got := messages(); len(got) != len(p.sets) {
		t.Errorf("%d messages for %d sets: %q", len(got), len(p.sets), got)
	}

	// Back in life, x gets nothing until the plan comes again.
	p.x.dead(false)
	p.a.wait("x's session is up", p.sessions("up", "up"))
	p.a.wait("x waits for the plan", func() error {
		s, err := p.a.state()
		if err != nil || len(s.Sets) != 3 || !s.Sets[0].Held {
			return fmt.Errorf("%+v, %v", s.Sets, err)
		}
		return p.on(1)()
	})
	p.a.apply(p.plan)
	p.a.wait("the sets are on x again", p.on(0))

	// x's operator stops its BFD: it says so, and nothing moves.
	p.x.stop(syscall.SIGTERM)
	p.a.wait("x's session is down", p.sessions("down", "up"))
	if err := p.on(0)(); err != nil {
		t.Error(err)
	}
	if got := messages(); len(got) != 2*len(p.sets) {
		t.Errorf("%d messages: %q", len(got), got)
	}
}
