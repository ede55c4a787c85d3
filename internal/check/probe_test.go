package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// search finds the size whatever the way tells, with few questions.
func TestSearch(t *testing.T) {
	broken := errors.New("no such device")
	for _, c := range []struct {
		name          string
		passes        int // the largest size that passes
		tells         int // what is told for larger ones
		err           error
		largest, told int
		asks          int // at most
	}{
		{"all is well", 1500, 0, nil, 1500, 0, 2},
		{"told", 1400, 1400, nil, 1400, 1400, 3},
		{"told too much", 1300, 1400, nil, 1300, 1400, 14},
		{"a black hole", 1400, 0, nil, 1400, 0, 14},
		{"by one byte", 1499, 0, nil, 1499, 0, 14},
		{"only the least", 576, 0, nil, 576, 0, 14},
		{"silence", 0, 0, nil, 0, 0, 2},
		{"silence, but told", 0, 1400, nil, 0, 1400, 2},
		{"cannot be sent", 0, 0, broken, 0, 0, 1},
	} {
		asks := 0
		largest, told, err := search(1500, 576, func(size int) (bool, int, error) {
			asks++
			if size <= c.passes {
				return true, 0, nil
			}
			return false, c.tells, c.err
		})
		if largest != c.largest || told != c.told || !errors.Is(err, c.err) || asks > c.asks {
			t.Errorf("%s: %d, told %d, %v after %d asks; want %d, %d, %v after %d at most", c.name, largest, told, err, asks, c.largest, c.told, c.err, c.asks)
		}
	}
}

// A packet of full size that is lost by chance is sent once more before a path is called narrow.
func TestSearchForgivesALoss(t *testing.T) {
	lost := false
	largest, told, err := search(1500, 576, func(size int) (bool, int, error) {
		if size == 1500 && !lost {
			lost = true
			return false, 0, nil
		}
		return true, 0, nil
	})
	if largest != 1500 || told != 0 || err != nil {
		t.Errorf("%d, told %d, %v; want 1500", largest, told, err)
	}
}

// A router between two hosts, whose far link is narrower, or which loses large packets and says nothing. Both families.
//
//	here ── 1500 ── router ── 1500 or 1400 ── far
func TestProbeThroughRouter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, its namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("no network namespaces here: %v", err)
			return
		}
		router, far := namespace(t), namespace(t)
		run := func(lines ...string) {
			t.Helper()
			for _, line := range lines {
				line = strings.NewReplacer("@router", router, "@far", far).Replace(line)
				if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", line, err, out)
				}
			}
		}
		in := func(where string) string { return "nsenter --net=/proc/" + where + "/ns/net " }
		run("ip link add eth0 type veth peer name r0 netns @router", "ip link set eth0 up",
			in("@router")+"ip link set r0 up", in("@router")+"ip link add r1 type veth peer name eth0 netns @far",
			in("@router")+"ip link set r1 up", in("@far")+"ip link set eth0 up", in("@far")+"ip link set lo up",
			in("@router")+"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
			"ip address add 10.9.1.1/24 dev eth0", "ip address add fd09:1::1/64 dev eth0 nodad",
			in("@router")+"ip address add 10.9.1.2/24 dev r0", in("@router")+"ip address add fd09:1::2/64 dev r0 nodad",
			in("@router")+"ip address add 10.9.2.2/24 dev r1", in("@router")+"ip address add fd09:2::2/64 dev r1 nodad",
			in("@far")+"ip address add 10.9.2.1/24 dev eth0", in("@far")+"ip address add fd09:2::1/64 dev eth0 nodad",
			"ip route add default via 10.9.1.2", "ip -6 route add default via fd09:1::2",
			in("@far")+"ip route add default via 10.9.2.2", in("@far")+"ip -6 route add default via fd09:2::2")
		probe := func(ctx context.Context, p Probe, from netip.Addr) Probe {
			t.Helper()
			found := probeAll(ctx, []way{{p, from}})
			if len(found) != 1 {
				t.Errorf("%d probes of one way", len(found))
				return Probe{}
			}
			return found[0]
		}
		targets := []netip.Addr{netip.MustParseAddr("10.9.2.1"), netip.MustParseAddr("fd09:2::1")}
		want := func(what string, passed, told int) {
			t.Helper()
			for _, to := range targets {
				p := probe(t.Context(), Probe{To: to, Want: 1500}, netip.Addr{})
				if p.Err != nil || p.Passed != passed || p.Told != told {
					t.Errorf("%s: %+v, want %d passed, %d told", what, p, passed, told)
				}
			}
		}
		want("a wide way", 1500, 0)
		run(in("@router")+"ip link set r1 mtu 1400", in("@far")+"ip link set eth0 mtu 1400")
		want("a narrow link", 1400, 1400)
		run("ip route flush cache", "ip -6 route flush cache")
		for _, to := range targets {
			overhears(t, to)
		}
		run("ip route flush cache", "ip -6 route flush cache", in("@router")+"ip link set r1 mtu 1500", in("@far")+"ip link set eth0 mtu 1500",
			in("@router")+`nft -f - <<'END'
table inet hole {
  chain forward {
    type filter hook forward priority 0; policy accept;
    meta length > 1404 drop
  }
}
END`)
		want("a black hole", 1404, 0)
		run(in("@far") + "ip address flush dev eth0")
		for _, to := range targets {
			if p := probe(t.Context(), Probe{To: to, Want: 1500}, netip.Addr{}); p.Passed != 0 {
				t.Errorf("nobody there: %+v", p)
			}
		}
		// Many silent ways take hardly longer than one, which takes 2.8 s; the answers go to whom they are for.
		run(in("@far")+"ip address add 10.9.2.1/24 dev eth0", in("@far")+"ip route add default via 10.9.2.2")
		ways := []way{{probe: Probe{To: targets[0], Want: 1500}}}
		for i := range 8 {
			ways = append(ways, way{probe: Probe{To: netip.AddrFrom4([4]byte{10, 9, 2, byte(10 + i)}), Want: 1500}})
		}
		begun := time.Now()
		for i, p := range probeAll(t.Context(), ways) {
			if p.To != ways[i].probe.To || (p.Passed == 1404) != (i == 0) || (p.Passed == 0) != (i > 0) {
				t.Errorf("of many: %+v", p)
			}
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("nine ways took %v", took)
		}
		run("ip link set eth0 mtu 1300")
		if p := probe(t.Context(), Probe{To: targets[0], Want: 1500}, netip.Addr{}); p.Told != 1300 {
			t.Errorf("the own device: %+v", p)
		}
		if p := probe(t.Context(), Probe{To: targets[0], Want: 1500}, netip.MustParseAddr("10.255.0.1")); p.Err == nil {
			t.Errorf("from an address that is not here: %+v", p)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if found := probeAll(ended, ways); len(found) != 0 {
			t.Errorf("after the end: %+v", found)
		}
	}()
	<-done
}

// overhears proves that what a socket hears before its connect, of another's way, is not taken for its own. The way to that one is narrow.
func overhears(t *testing.T, to netip.Addr) {
	t.Helper()
	e, err := newEcho(to, netip.Addr{})
	if err != nil {
		t.Error(err)
		return
	}
	defer e.close()
	silent := to.Next().Next().Next() // nobody there, nor the router
	other, err := openEcho(silent, netip.Addr{})
	if err != nil {
		t.Error(err)
		return
	}
	defer other.close()
	heard := func(what string, events int16) {
		t.Helper()
		fds := []unix.PollFd{{Fd: int32(other.fd), Events: events}}
		if n, err := unix.Poll(fds, 1000); n != 1 || err != nil {
			t.Errorf("%s: %d, %v: the other socket hears nothing: no test", what, n, err)
		}
	}
	other.seq = e.seq + 1
	if passed, told, err := e.ask(t.Context(), 1300); !passed || told != 0 || err != nil {
		t.Errorf("%s: %v, %d, %v", to, passed, told, err)
	}
	heard("answer", unix.POLLIN)
	if passed, told, err := e.ask(t.Context(), 1500); passed || told != 1400 || err != nil {
		t.Errorf("%s: %v, %d, %v", to, passed, told, err)
	}
	heard("error", unix.POLLERR)
	if err := unix.Connect(other.fd, sockaddr(silent)); err != nil {
		t.Error(err)
	}
	if told := other.mtu(); told != 0 {
		t.Errorf("%s was told %d, which is about %s", silent, told, to)
	}
	if passed, err := other.await(); passed || err != nil {
		t.Errorf("%s has answered for %s: %v, %v", to, silent, passed, err)
	}
}

// namespace starts a process in a network namespace of its own, until the test ends, and returns its id.
func namespace(t *testing.T) string {
	c := exec.Command("unshare", "--net", "sh", "-c", "echo ready; exec cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Error(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Error(err)
	}
	if err := c.Start(); err != nil {
		t.Error(err)
		return ""
	}
	t.Cleanup(func() { in.Close(); _ = c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("%q: %v", line, err)
	}
	return fmt.Sprint(c.Process.Pid)
}
