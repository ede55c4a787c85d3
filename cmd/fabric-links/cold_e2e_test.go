package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/overlay"
	"fabric/overlay/links"
)

// bothDial is two nodes whose plans have endpoints on both sides, and BFD on the tunnel.
func bothDial(t *testing.T) (nodes [2]*node, plans [2]overlay.Plan) {
	t.Helper()
	a, b, plans := twoNodes(t)
	for i, addr := range []string{"192.0.2.2", "192.0.2.1"} {
		one := &plans[i].Tunnels[0]
		one.Slots, one.Keepalive, one.BFD = nil, 5, &overlay.BFD{IntervalMs: 300 * slow, Multiplier: 3}
		one.Endpoint = netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(plans[1-i].Tunnels[0].ListenPort))
	}
	return [2]*node{a, b}, plans
}

// coldStart hands both their plans at the same moment, and returns the time until the tunnel is up at both ends.
func coldStart(t *testing.T, nodes [2]*node, plans [2]overlay.Plan) time.Duration {
	t.Helper()
	for _, n := range nodes {
		n.start()
	}
	began := time.Now()
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { n.apply(plans[i]) })
	}
	wg.Wait()
	for _, n := range nodes {
		n.wait("the tunnel is up", func() error {
			s, err := n.state()
			if err == nil && s.Tunnels[0].State != links.Up {
				err = fmt.Errorf("tunnel is %+v", s.Tunnels[0])
			}
			return err
		})
	}
	return time.Since(began)
}

// Both ends dial at once. With -count 20 -v this measures cold starts.
func TestColdStart(t *testing.T) {
	nodes, plans := bothDial(t)
	took := coldStart(t, nodes, plans)
	again := len(nodes[0].logged("dial again")) + len(nodes[1].logged("dial again"))
	t.Logf("up after %s, dialled again %d times", took.Round(time.Millisecond), again)
	nodes[0].wait("VTEP to VTEP", func() error { return nodes[0].ping(nodes[1]) })
}

// Both initiations are under way at the same time, as on a long path, so each end waits for the other. WireGuard repeats them after 5 s at
// the earliest; the end whose name sorts first dials again before.
func TestColdStartCrossing(t *testing.T) {
	t.Parallel()
	nodes, plans := bothDial(t)
	var ports [2]uint16
	for i := range plans {
		ports[i] = uint16(plans[i].Tunnels[0].ListenPort)
		plans[i].Tunnels[0].Endpoint = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(6000+i))
	}
	crossed := cross(t, nodes[1], [2]netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), ports[0]),
		netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), ports[1]),
	})
	took := coldStart(t, nodes, plans)
	t.Logf("up after %s", took.Round(time.Millisecond))
	if !crossed.Load() {
		t.Fatal("nothing has crossed")
	}
	if a, b := nodes[0].logged("dial again"), nodes[1].logged("dial again"); len(a) != 1 || len(b) != 0 {
		t.Errorf("dialled again were\n%s\nand\n%s", a, b)
	}
	nodes[0].wait("VTEP to VTEP", func() error { return nodes[0].ping(nodes[1]) })
}

// cross is a relay on node n between two ends, which dial its ports 6000 and 6001 of 192.0.2.2. What each sends first is held until both
// have sent something; then each packet takes 100 ms, and none overtakes another.
func cross(t *testing.T, n *node, ends [2]netip.AddrPort) *atomic.Bool {
	t.Helper()
	var fds [2]int
	for i := range fds {
		fds[i] = inNode(t, n, func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: 6000 + i, Addr: [4]byte{192, 0, 2, 2}})
		})
	}
	var (
		mu      sync.Mutex
		held    [2][]byte
		crossed atomic.Bool
		readers sync.WaitGroup
		writers sync.WaitGroup
	)
	type packet struct {
		due  time.Time
		data []byte
	}
	var way [2]chan packet
	for i := range way {
		way[i] = make(chan packet, 10_000)
		to := &unix.SockaddrInet4{Port: int(ends[1-i].Port()), Addr: ends[1-i].Addr().As4()}
		writers.Go(func() {
			for p := range way[i] {
				time.Sleep(time.Until(p.due))
				_ = unix.Sendto(fds[1-i], p.data, 0, to)
			}
		})
	}
	pass := func(i int, data []byte) { way[i] <- packet{time.Now().Add(100 * time.Millisecond), data} }
	for i := range fds {
		readers.Go(func() {
			buf := make([]byte, 2048)
			for {
				size, err := unix.Read(fds[i], buf)
				if err == unix.EINTR {
					continue
				}
				if err != nil || size == 0 {
					return
				}
				mu.Lock()
				switch data := bytes.Clone(buf[:size]); {
				case crossed.Load():
					pass(i, data)
				case held[1-i] == nil:
					held[i] = data
				default:
					held[i] = data
					crossed.Store(true)
					pass(0, held[0])
					pass(1, held[1])
				}
				mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
		readers.Wait()
		for _, w := range way {
			close(w)
		}
		writers.Wait()
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	return &crossed
}
