package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/overlay"
	"fabric/overlay/links"
)

// twoWays gives two nodes a second veth and a second tunnel over it, with BFD of 100 ms x 3 on both.
//
//	a: 192.0.2.1    ── veth "under"  ── 192.0.2.2    :b   rank 0
//	a: 198.51.100.1 ── veth "under2" ── 198.51.100.2 :b   rank 1
func twoWays(t *testing.T) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	a, b, plans = twoNodes(t)
	a.must(fmt.Sprintf("ip link add under2 type veth peer name under2 netns /proc/%d/ns/net", b.pid))
	a.must("ip addr add 198.51.100.1/24 dev under2 && ip link set under2 addrgenmode none up")
	b.must("ip addr add 198.51.100.2/24 dev under2 && ip link set under2 addrgenmode none up")
	remote := []string{"b", "a"}
	for i, n := range []*node{a, b} {
		p := &plans[i]
		second := p.Tunnels[0]
		second.Device, second.Name, second.Rank = overlay.TunnelDevice(n.name, remote[i], 1), overlay.TunnelName(n.name, remote[i], 1), 1
		second.LinkLocal, second.RemoteLinkLocal = overlay.LinkLocal(n.name, remote[i], 1), overlay.LinkLocal(remote[i], n.name, 1)
		second.ListenPort += 64
		second.Slots = nil // those of the first
		if second.Endpoint.IsValid() {
			second.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.2"), second.Endpoint.Port()+64)
		}
		p.Tunnels = append(p.Tunnels, second)
		p.VTEPs[0].Devices = append(p.VTEPs[0].Devices, second.Device)
		for j := range p.Tunnels {
			p.Tunnels[j].BFD = &overlay.BFD{IntervalMs: 100 * slow, Multiplier: 3}
		}
	}
	return a, b, plans
}

// probe sends a datagram every 10 ms from one VTEP to another, where it is answered, and notes when answers come.
type probe struct {
	sent    atomic.Int64
	heard   atomic.Int64
	longest atomic.Int64
	// answered are the numbers of datagrams that were.
	answered sync.Map
	// watch is the machine's during the last phase.
	watch watch
}

func startProbe(t *testing.T, a, b *node) *probe {
	t.Helper()
	dial := func(n, to *node, port, toPort int) net.Conn {
		fd := inNode(t, n, func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return 0, err
			}
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: n.vtep.As4()}); err != nil {
				return 0, err
			}
			return fd, unix.Connect(fd, &unix.SockaddrInet4{Port: toPort, Addr: to.vtep.As4()})
		})
		f := os.NewFile(uintptr(fd), "probe")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ca, cb := dial(a, b, 7001, 7002), dial(b, a, 7002, 7001)
	p := &probe{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	go func() { // b answers
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 64)
		for ctx.Err() == nil {
			if n, err := cb.Read(buf); err == nil {
				_, _ = cb.Write(buf[:n])
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 64)
		last := time.Now()
		for ctx.Err() == nil {
			if n, err := ca.Read(buf); err != nil || n != 8 {
				continue
			}
			p.answered.Store(binary.BigEndian.Uint64(buf), true)
			p.heard.Add(1)
			if gap := time.Since(last); int64(gap) > p.longest.Load() {
				p.longest.Store(int64(gap))
			}
			last = time.Now()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, _ = ca.Write(binary.BigEndian.AppendUint64(nil, uint64(p.sent.Load())))
				p.sent.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		ca.Close()
		cb.Close()
		for range 3 {
			<-done
		}
	})
	return p
}

// phase is what the probe saw while f ran: how many datagrams sent meanwhile were not answered within a second, and the longest time
// without any answer.
func (p *probe) phase(f func()) (lost int, gap time.Duration) {
	p.longest.Store(0)
	p.watch = watchMachine()
	from := p.sent.Load()
	f()
	to := p.sent.Load()
	missing := func() (n int) {
		for i := from; i < to; i++ {
			if _, answered := p.answered.Load(uint64(i)); !answered {
				n++
			}
		}
		return n
	}
	deadline := time.Now().Add(time.Second)
	for missing() > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	return missing(), time.Duration(p.longest.Load())
}

// over says whether a node's traffic goes over its tunnel of that rank, and both sessions are as told.
func over(n *node, rank int, sessions ...string) func() error {
	return func() error {
		s, err := n.state()
		if err != nil {
			return err
		}
		if len(s.Tunnels) != 2 || len(s.Sessions) != 2 || !s.Tunnels[rank].Active {
			return fmt.Errorf("tunnels are %+v", s.Tunnels)
		}
		for i, want := range sessions {
			if s.Sessions[i].State != want {
				return fmt.Errorf("sessions are %+v", s.Sessions)
			}
		}
		return nil
	}
}

func (n *node) drain(device string, drained bool) error {
	client, err := links.Dial(n.socket())
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Drain(ctx, device, drained)
}

func TestBFDFailover(t *testing.T) {
	a, b, plans := twoWays(t)
	bringUp(t, a, b, plans)
	for _, n := range []*node{a, b} {
		n.wait("both sessions are up, traffic on the first", over(n, 0, "up", "up"))
	}
	p := startProbe(t, a, b)
	a.wait("probes are answered", func() error {
		if p.heard.Load() < 10 {
			return fmt.Errorf("%d answers", p.heard.Load())
		}
		return nil
	})
	detection := slowly(600 * time.Millisecond)

	t.Run("first way is cut", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.must("nft 'table inet cut { chain in { type filter hook input priority -300; iifname under udp dport 51820 drop; iifname under udp sport 51820 drop; }; chain out { type filter hook output priority -300; oifname under udp dport 51820 drop; oifname under udp sport 51820 drop; }; }'")
			a.wait("traffic on the second", over(a, 1, "down", "up"))
			b.wait("traffic on the second", over(b, 1, "down", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if gap > detection || lost == 0 {
			p.watch.errorf(t, "longest gap is %s, want at most %s, and one at all", gap, detection)
		}
	})
	t.Run("it comes back", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.must("nft delete table inet cut")
			a.wait("traffic on the first", over(a, 0, "up", "up"))
			b.wait("traffic on the first", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if lost > 0 {
			p.watch.errorf(t, "%d without answer on the return", lost)
		}
	})
	t.Run("drain and back", func(t *testing.T) {
		lost, gap := p.phase(func() {
			if err := a.drain(plans[0].Tunnels[0].Device, true); err != nil {
				t.Fatal(err)
			}
			if err := over(a, 1, "admin-down", "up")(); err != nil {
				t.Errorf("right after the drain: %v", err)
			}
			b.wait("the other end leaves it too", over(b, 1, "down", "up"))
			// The first way may go now.
			if err := a.drain(plans[0].Tunnels[0].Device, false); err != nil {
				t.Fatal(err)
			}
			a.wait("traffic on the first", over(a, 0, "up", "up"))
			b.wait("traffic on the first", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if lost > 0 {
			p.watch.errorf(t, "%d without answer", lost)
		}
		if err := a.drain("fxwnone", true); err == nil || !strings.Contains(err.Error(), "not a tunnel device") {
			t.Errorf("unknown device: %v", err)
		}
	})
	t.Run("fabric-links is restarted", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.stop(syscall.SIGTERM)
			a.start()
			a.wait("sessions are up again", over(a, 0, "up", "up"))
			b.wait("sessions are up again", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if lost > 0 {
			p.watch.errorf(t, "%d without answer", lost)
		}
	})
	t.Run("fabric-links dies and is started", func(t *testing.T) {
		lost, gap := p.phase(func() {
			a.stop(syscall.SIGKILL)
			a.start()
			a.wait("sessions are up again", over(a, 0, "up", "up"))
			b.wait("sessions are up again", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		// The other end sees a failure: until the new sessions are up.
		if gap > detection+3*time.Second {
			p.watch.errorf(t, "longest gap is %s", gap)
		}
	})
}
