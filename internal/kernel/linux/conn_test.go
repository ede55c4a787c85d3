package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// fakeKernel answers each request on the other end of a conn with what reply returns.
func fakeKernel(t *testing.T, reply func(n int, h header) []byte) *conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{fd: fds[0], in: make([]byte, 64<<10)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for n := 0; ; n++ {
			size, err := unix.Read(fds[1], buf)
			if err != nil || size == 0 {
				return
			}
			_ = parse(buf[:size], func(h header, _ []byte) error {
				_, err := unix.Write(fds[1], reply(n, h))
				return err
			})
		}
	}()
	t.Cleanup(func() {
		_ = c.close()
		<-done
		_ = unix.Close(fds[1])
	})
	return c
}

// datagram builds an answer of messages without bodies but for a word.
func datagram(seq uint32, types ...[2]uint16) []byte {
	var m message
	for _, t := range types {
		body := m.begin(t[0], 0, 4)
		clear(body)
		native.PutUint16(m.buf[m.start+6:], t[1])
		m.end(seq)
	}
	return m.buf
}

func dumpLink(m *message) { m.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.SizeofIfInfomsg) }

// An interrupted dump is begun again, from nothing.
func TestDumpInterrupted(t *testing.T) {
	c := fakeKernel(t, func(n int, h header) []byte {
		flags := uint16(0)
		if n < 2 {
			flags = unix.NLM_F_DUMP_INTR
		}
		return datagram(h.seq, [2]uint16{unix.RTM_NEWLINK, 0}, [2]uint16{unix.RTM_NEWLINK, flags}, [2]uint16{unix.NLMSG_DONE, 0})
	})
	tries, got := 0, 0
	err := c.dump(t.Context(), dumpLink, func() { tries++; got = 0 }, func(uint16, []byte) { got++ })
	if err != nil || tries != 3 || got != 2 {
		t.Errorf("%d objects after %d tries, error %v; want 2 after 3", got, tries, err)
	}
}

// A dump that is always interrupted is an error, never a smaller world.
func TestDumpAlwaysInterrupted(t *testing.T) {
	c := fakeKernel(t, func(_ int, h header) []byte {
		return datagram(h.seq, [2]uint16{unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR})
	})
	err := c.dump(t.Context(), dumpLink, func() {}, func(uint16, []byte) {})
	if !errors.Is(err, errInterrupted) {
		t.Errorf("error %v", err)
	}
}

// Answers to an earlier request that was given up are not taken for this one's.
func TestStaleAnswers(t *testing.T) {
	c := fakeKernel(t, func(_ int, h header) []byte {
		return append(datagram(h.seq-1, [2]uint16{unix.RTM_NEWLINK, 0}, [2]uint16{unix.NLMSG_DONE, 0}),
			datagram(h.seq, [2]uint16{unix.RTM_NEWLINK, 0}, [2]uint16{unix.NLMSG_DONE, 0})...)
	})
	got := 0
	if err := c.dump(t.Context(), dumpLink, func() {}, func(uint16, []byte) { got++ }); err != nil || got != 1 {
		t.Errorf("%d objects, error %v; want 1", got, err)
	}
}

func TestGarbage(t *testing.T) {
	c := fakeKernel(t, func(int, header) []byte { return append(make([]byte, 12), 1, 2, 3, 4, 5) })
	if err := c.dump(t.Context(), dumpLink, func() {}, func(uint16, []byte) {}); err == nil {
		t.Error("garbage was taken for an answer")
	}
	if err := c.do(dumpLink); err == nil {
		t.Error("garbage was taken for an acknowledgement")
	}
}

// namespace moves the test's goroutine, for good, to a thread in a fresh network namespace.
func namespace(t testing.TB) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	h, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// With a receive buffer too small for the answers (ENOBUFS) no operation counts as done that may not be, and a pass
// with room repairs.
func TestAnswersLost(t *testing.T) {
	h := namespace(t)
	want := map[kernel.RouteKey]kernel.Route{}
	var ops []reconcile.Op[kernel.RouteKey, kernel.Route]
	for i := range 600 {
		k := kernel.RouteKey{Table: 200, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24), Metric: 188}
		r := kernel.Route{Type: kernel.Blackhole}
		if i%2 == 0 {
			want[k] = r
		} else {
			r = kernel.Route{NextHopID: 4711} // refused: an answer each
		}
		ops = append(ops, reconcile.Op[kernel.RouteKey, kernel.Route]{Kind: reconcile.Create, Key: k, New: r})
	}
	if err := unix.SetsockoptInt(h.bulk.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2048); err != nil {
		t.Fatal(err)
	}
	e := h.Routes(188, 200)
	start := time.Now()
	errs := e.Apply(t.Context(), ops)
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("waited %v for answers that were lost", d)
	}
	lost := 0
	for i, err := range errs {
		if errors.Is(err, errLost) {
			lost++
		}
		if err == nil && i%2 == 1 {
			t.Errorf("step %d counts as done, and was refused", i)
		}
	}
	if lost == 0 {
		t.Fatal("no answer was lost: the test tests nothing")
	}
	growReceiveBuffer(h.bulk.fd, receiveBuffer)
	l := reconcile.NewLoop(reconcile.Config[kernel.RouteKey, kernel.Route]{
		Name: "routes", Edge: e, Want: func() (map[kernel.RouteKey]kernel.Route, bool) { return want, true },
	})
	if err := l.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	have, err := e.Observe(t.Context())
	if err != nil || len(have) != len(want) {
		t.Errorf("%d routes, want %d (%v)", len(have), len(want), err)
	}
}

// Lost events wake everything: the reader is held up while more changes are made than its buffer holds.
func TestWatchOverflow(t *testing.T) {
	h := namespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	started, burst := make(chan struct{}), make(chan struct{})
	seen := make(chan kernel.Changed, 16)
	done := make(chan error, 1)
	first := true
	go func() {
		done <- h.watch(ctx, 4096, func(c kernel.Changed) {
			if first { // the one at the start
				first = false
				close(started)
				<-burst
				return
			}
			seen <- c
		})
	}()
	<-started
	for i := range uint32(100) {
		if err := create(ctx, h.Rules(4), kernel.RuleKey{Priority: 1000 + i}, kernel.Rule{Table: 77}); err != nil {
			t.Fatal(err)
		}
	}
	close(burst)
	select {
	case c := <-seen:
		if c != kernel.ChangedAll {
			t.Errorf("after an overflow: %b, want all (%b)", c, kernel.ChangedAll)
		}
	case <-time.After(30 * time.Second):
		t.Error("nothing said after an overflow")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Without the capability every edge says which one is missing.
func TestNoCapability(t *testing.T) {
	h := namespace(t)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // none; only this thread's, which ends with the test
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Skipf("cannot drop capabilities: %v", err)
	}
	ctx := context.Background()
	lo := kernel.AddressKey{Device: "lo", Prefix: netip.MustParsePrefix("192.0.2.1/32")}
	link := kernel.Link{
		Name: "fxv1", Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + "x",
		VXLAN: kernel.VXLAN{VNI: 1, Local: netip.MustParseAddr("192.0.2.1"), Port: 4789},
	}
	filter := kernel.Filter{Comment: kernel.AliasPrefix + "gw"}
	rule := kernel.RuleKey{Priority: 100}
	route := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.0.0.0/8"), Metric: 188}
	for name, err := range map[string]error{
		"links":     create(ctx, h.Links(), "fxv1", link),
		"addresses": create(ctx, h.Addresses(188), lo, kernel.Address{}),
		"rules":     create(ctx, h.Rules(188), rule, kernel.Rule{Table: 200}),
		"routes":    create(ctx, h.Routes(188), route, kernel.Route{Type: kernel.Blackhole}),
		"nexthops":  create(ctx, h.NextHops(188), 1, kernel.NextHop{Blackhole: true}),
		"filters":   create(ctx, h.Filters("fabric"), "fabric", filter),
		"sysctls":   create(ctx, h.Sysctls(func() []string { return nil }), "net.ipv4.ip_forward", "1"),
	} {
		if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%s: error %v does not name CAP_NET_ADMIN", name, err)
		}
	}
}

func create[K comparable, V any](ctx context.Context, e reconcile.Edge[K, V], k K, v V) error {
	return e.Apply(ctx, []reconcile.Op[K, V]{{Kind: reconcile.Create, Key: k, New: v}})[0]
}

func TestRelease(t *testing.T) {
	for s, want := range map[string][2]int{
		"6.1.0-18-amd64": {6, 1}, "5.18.0": {5, 18}, "4.17": {4, 17}, "6": {6, 0}, "": {0, 0}, "10.20-rc1": {10, 20},
	} {
		if major, minor := release(s); major != want[0] || minor != want[1] {
			t.Errorf("release %q: %d.%d, want %v", s, major, minor, want)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter": "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"net.//.//.etc":                    "", // would leave /proc/sys
		"":                                 "",
	} {
		got, err := sysctlPath(key)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", key, got, err, want)
		}
	}
}

// FuzzDecode: nothing the decoders are given makes them panic, and a route they accept is a valid key.
func FuzzDecode(f *testing.F) {
	n := &names{name: map[uint32]string{1: "lo"}}
	var m message
	for _, r := range []kernel.Route{{Type: kernel.Local}, {NextHopID: 5}, {Gateway: netip.MustParseAddr("fe80::1"), MTU: 1300}} {
		m.buf = m.buf[:0]
		k := kernel.RouteKey{Table: 200, Prefix: netip.MustParsePrefix("10.0.0.0/8"), Metric: 188}
		if err := encodeRoute(&m, 0, k, r, &names{index: map[string]uint32{"lo": 1}}); err != nil {
			f.Fatal(err)
		}
		f.Add(m.buf[headerLen:])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, _, ok := decodeRoute(b, n); ok && !k.Prefix.IsValid() {
			t.Errorf("route with prefix %v", k.Prefix)
		}
		decodeRule(b)
		decodeNextHop(b, n)
		if len(b) >= unix.SizeofIfInfomsg {
			decodeLink(b)
		}
		_ = parse(b, func(h header, body []byte) error { return answer(h, body) })
		meaning(unix.RTM_NEWROUTE, b)
		meaning(unix.RTM_NEWNEIGH, b)
		// The owner chain of a table, which anybody may have written.
		if filter, err := decodeFilter([]string{"ours", string(b)}); err == nil {
			if again, err := decodeFilter(encodeFilter(filter)); err != nil || again != filter {
				t.Errorf("filter %+v read again is %+v, error %v", filter, again, err)
			}
		}
	})
}

func TestOpError(t *testing.T) {
	err := fmt.Errorf("create: %w", &opError{unix.EEXIST, "Nexthop id already in use"})
	if !errors.Is(err, unix.EEXIST) || !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "already in use") {
		t.Error(err)
	}
}
