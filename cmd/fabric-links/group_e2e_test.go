package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
	"fabric/overlay"
	"fabric/overlay/links"
)

// active says whether a node's traffic goes over exactly these tunnels of the plan, by place.
func active(n *node, p overlay.Plan, places ...int) func() error {
	return func() error {
		s, err := n.state()
		if err != nil {
			return err
		}
		if len(s.VTEPs) != 1 {
			return fmt.Errorf("VTEPs are %+v", s.VTEPs)
		}
		var want, got []string
		for _, place := range places {
			want = append(want, p.Tunnels[place].Device)
		}
		for _, t := range s.Tunnels {
			if t.Active {
				got = append(got, t.Device)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || strings.Join(s.VTEPs[0].Devices, " ") != strings.Join(want, " ") {
			return fmt.Errorf("active are %v, want %v; VTEP is %+v, tunnels are %+v", got, want, s.VTEPs[0], s.Tunnels)
		}
		return nil
	}
}

// sent are the packets that a device of the node has sent.
func (n *node) sent(device string) int {
	n.t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(n.must("cat /sys/class/net/" + device + "/statistics/tx_packets")))
	if err != nil {
		n.t.Fatal(err)
	}
	return count
}

// flows sends one datagram each from that many ports of a's VTEP to b's, all at once.
func flows(t *testing.T, a, b *node, count int) {
	t.Helper()
	for i := range count {
		fd := inNode(t, a, func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: 20000 + i, Addr: a.vtep.As4()})
		})
		err := unix.Sendto(fd, []byte("flow"), 0, &unix.SockaddrInet4{Port: 9, Addr: b.vtep.As4()})
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// spread checks that of many flows each device carries a good part. BFD's own packets are a few.
func spread(t *testing.T, a, b *node, devices ...string) {
	t.Helper()
	const count = 400
	var before []int
	for _, d := range devices {
		before = append(before, a.sent(d))
	}
	flows(t, a, b, count)
	// What a userspace tunnel sends is counted when its process takes it, which a busy machine lets it do later. BFD's own packets are some 30 in
	// that time.
	carried := make([]int, len(devices))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		total := 0
		for i, d := range devices {
			carried[i] = a.sent(d) - before[i]
			total += carried[i]
		}
		if total >= count*3/4 || time.Now().After(deadline) {
			break
		}
	}
	for i, d := range devices {
		n := carried[i]
		t.Logf("%s carried %d packets", d, n)
		// A userspace tunnel's queue is short, and loses some of a burst.
		if n < count/len(devices)/4 {
			t.Errorf("%s carried %d of %d flows", d, n, count)
		}
	}
}

// Two tunnels of equal rank over two underlays carry flows together; one underlay fails and comes back.
func TestTunnelsOfEqualRank(t *testing.T) {
	for _, kind := range []string{"direct", "wireguard"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			tunnel := config.Tunnel{Kind: kind, Rank: new(0)}
			if kind == "direct" {
				tunnel.Encryption = "none"
			}
			a, b, plans := twoUnderlays(t, tunnel, tunnel)
			bringUp(t, a, b, plans)
			for i, n := range []*node{a, b} {
				n.wait("both are used", active(n, plans[i], 0, 1))
			}
			first, second := plans[0].Tunnels[0].Device, plans[0].Tunnels[1].Device
			group := strconv.FormatUint(uint64(overlay.TunnelGroupID(plans[0].VTEPs[0].Addr)), 10)
			if out := a.must("ip route show 10.255.0.2 metric 201"); !strings.Contains(out, "nhid "+group) {
				t.Errorf("route is %s", out)
			}
			if out := a.must("cat /proc/sys/net/ipv4/fib_multipath_hash_policy /proc/sys/net/ipv6/fib_multipath_hash_policy"); out != "1\n1\n" {
				t.Errorf("hash policies are %q", out)
			}
			spread(t, a, b, first, second)

			// The probe's flow is on one of the two: that one is cut at some time.
			p := startProbe(t, a, b)
			p.awaitAnswers(a)
			detection := slowly(3 * time.Second)
			for place, under := range []string{"under", "under2"} {
				var mend func()
				_, gap := p.phase(func() {
					mend = a.cut(under)
					a.wait("the other carries all", active(a, plans[0], 1-place))
					b.wait("the other carries all", active(b, plans[1], 1-place))
					if out := a.must("ip route show 10.255.0.2 metric 201"); !strings.Contains(out, "nhid "+group) {
						t.Errorf("the route was touched: %s", out)
					}
				})
				t.Logf("%s cut: longest gap %s", under, gap)
				if gap > detection {
					p.watch.errorf(t, "longest gap is %s, want at most %s", gap, detection)
				}
				lost, gap := p.phase(func() {
					mend()
					a.wait("both are used again", active(a, plans[0], 0, 1))
					b.wait("both are used again", active(b, plans[1], 0, 1))
				})
				t.Logf("%s back: longest gap %s, %d without answer", under, gap, lost)
				if lost > 0 {
					p.watch.errorf(t, "%d without answer on the return", lost)
				}
			}
			spread(t, a, b, first, second)

			lost, _ := p.phase(func() {
				if err := a.drain(first, true); err != nil {
					t.Fatal(err)
				}
				b.wait("the other end leaves it too", active(b, plans[1], 1))
				if err := active(a, plans[0], 1)(); err != nil {
					t.Error(err)
				}
				if err := a.drain(first, false); err != nil {
					t.Fatal(err)
				}
				a.wait("both are used again", active(a, plans[0], 0, 1))
				b.wait("both are used again", active(b, plans[1], 0, 1))
				ops := len(a.logged("kind="))
				a.stop(syscall.SIGTERM)
				a.start()
				a.wait("up after a restart", active(a, plans[0], 0, 1))
				if more := a.logged("kind="); len(more) != ops {
					t.Errorf("operations after a restart: %v", more[ops:])
				}
			})
			if lost > 0 {
				p.watch.errorf(t, "drain, undrain and restart: %d without answer", lost)
			}

			less := plans[0]
			less.Tunnels, less.VTEPs = nil, nil
			a.apply(less)
			a.wait("nothing is left", func() error {
				if out := a.must("ip nexthop; ip route show 10.255.0.2"); out != "" {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
		})
	}
}

// Somebody else's object on the group's id is named and stays, and traffic goes over one tunnel.
func TestForeignTunnelGroup(t *testing.T) {
	t.Parallel()
	tunnel := config.Tunnel{Kind: "direct", Encryption: "none", Rank: new(0)}
	a, b, plans := twoUnderlays(t, tunnel, tunnel)
	group := strconv.FormatUint(uint64(overlay.TunnelGroupID(plans[0].VTEPs[0].Addr)), 10)
	a.must("ip nexthop add id " + group + " blackhole protocol static")
	a.start()
	b.start()
	b.apply(plans[1])
	a.apply(plans[0])
	a.wait("the first is used alone", active(a, plans[0], 0))
	b.wait("both are used", active(b, plans[1], 0, 1))
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
	s, err := a.state()
	if err != nil || !strings.Contains(s.VTEPs[0].Reason, "static") {
		t.Errorf("VTEP is %+v, error %v", s.VTEPs, err)
	}
	told := false
	for _, o := range s.Problems {
		told = told || o.Status == links.Foreign && o.Kind == "next hop"
	}
	if !told {
		t.Errorf("problems are %+v", s.Problems)
	}
	if out := a.must("ip nexthop show id " + group); !strings.Contains(out, "blackhole") {
		t.Errorf("somebody else's is %s", out)
	}
}
