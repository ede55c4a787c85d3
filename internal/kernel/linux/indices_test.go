package linux

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// requests are the netlink messages that the host has sent.
func (h *Host) requests() uint64 {
	n := h.control.requests + h.bulk.requests
	if h.indices.conn != nil {
		n += h.indices.conn.requests
	}
	return n
}

// inNamespace moves the test, for good, to a thread in a fresh network namespace and returns a way to run ip(8) there.
func inNamespace(t *testing.T) (h *Host, ip func(line string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	h, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, func(line string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

// A repair is one netlink message, whatever happened to the devices meanwhile, and never goes to the wrong one.
func TestRepairIsOneMessage(t *testing.T) {
	h, ip := inNamespace(t)
	for _, d := range []string{"w0", "w1"} {
		ip("link add " + d + " type veth peer name " + d + "p")
		ip("link set " + d + " up")
		ip("link set " + d + "p up")
	}
	routes := h.Routes(kernel.ProtocolLinks, kernel.MainTable)
	key := kernel.RouteKey{Table: kernel.MainTable, Prefix: netip.MustParsePrefix("10.255.0.2/32"), Metric: kernel.Metric}
	over := func(d string) kernel.Route { return kernel.Route{Scope: kernel.LinkScope, Device: d} }
	write := func(d string) (messages uint64, err error) {
		t.Helper()
		before := h.requests()
		err = routes.Apply(context.Background(), []reconcile.Op[kernel.RouteKey, kernel.Route]{{Kind: reconcile.Replace, Key: key, New: over(d)}})[0]
		return h.requests() - before, err
	}
	expect := func(what, d string, most uint64) {
		t.Helper()
		n, err := write(d)
		if err != nil || n > most {
			t.Errorf("%s: %d messages, error %v; want %d at most", what, n, err, most)
		}
		have, err := routes.Observe(context.Background())
		if err != nil || have[key].Device != d {
			t.Errorf("%s: route is %s, error %v", what, have[key], err)
		}
	}
	expect("the first one lists the devices", "w0", 2)
	expect("then it does not", "w1", 1)
	ip("link set w1 mtu 1400")
	ip("link set w1p down")
	expect("news of no weight", "w1", 1)
	ip("link del w0")
	ip("link add w0 type veth peer name w0p")
	ip("link set w0 up")
	expect("made anew", "w0", 1)
	ip("link set w0 down")
	ip("link set w0 name away")
	ip("link set w1 down")
	ip("link set w1 name w0")
	ip("link set w0 up")
	ip("link set away up")
	expect("renamed crosswise", "w0", 1)
	if _, err := write("w1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a device that is gone: error %v, want os.ErrNotExist", err)
	}
	// A port that leaves a bridge is told as a deleted link.
	ip("link add bridge type bridge")
	ip("link set w0 master bridge")
	ip("link set w0 nomaster")
	expect("out of a bridge", "w0", 1)
	// More news than fit, and a name that goes to another device among them: the devices are listed again.
	_ = unix.SetsockoptInt(h.indices.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	for range 20 {
		ip("link set away down")
		ip("link set away up")
	}
	ip("link set w0 down")
	ip("link set w0 name w2")
	ip("link set away down")
	ip("link set away name w0")
	ip("link set w0 up")
	ip("link set w2 up")
	expect("after lost news", "w0", 2)
}

// A group of next hops that was observed gets other members by one message; what is somebody else's is read first.
func TestGroupIsReplacedByOneMessage(t *testing.T) {
	h, ip := inNamespace(t)
	ip("link add w0 type veth peer name w0p")
	ip("link set w0 up")
	ip("link set w0p up")
	hops := h.NextHops(kernel.ProtocolLinks)
	apply := func(ops ...reconcile.Op[uint32, kernel.NextHop]) (uint64, error) {
		before := h.requests()
		err := errors.Join(hops.Apply(context.Background(), ops)...)
		return h.requests() - before, err
	}
	const first = uint32(3 << 30) // beyond what fits 31 bits
	for id := first; id < first+2; id++ {
		if _, err := apply(reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Create, Key: id, New: kernel.NextHop{Device: "w0"}}); err != nil {
			t.Fatal(err)
		}
	}
	both, one := kernel.NextHop{Group: "3221225472,3221225473"}, kernel.NextHop{Group: "3221225473"}
	if _, err := apply(reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Create, Key: first + 9, New: both}); err != nil {
		t.Fatal(err)
	}
	have, err := hops.Observe(context.Background())
	if err != nil || have[first+9].Group != both.Group {
		t.Fatalf("next hops are %v, error %v", have, err)
	}
	n, err := apply(reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Replace, Key: first + 9, Old: have[first+9], New: one})
	if err != nil || n != 1 {
		t.Errorf("%d messages, error %v; want 1", n, err)
	}
	if have, err := hops.Observe(context.Background()); err != nil || have[first+9].Group != one.Group {
		t.Errorf("group is %v, error %v", have[first+9], err)
	}
	// Gone meanwhile: not made again behind whoever removed it.
	old := have[first+9]
	ip("nexthop del id 3221225481")
	if _, err := apply(reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Replace, Key: first + 9, Old: old, New: one}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a group that is gone: error %v, want ENOENT", err)
	}
	// Without an observation the owner is asked first.
	ip("nexthop add id 3221225481 dev w0 protocol static")
	_, err = apply(reconcile.Op[uint32, kernel.NextHop]{Kind: reconcile.Create, Key: first + 9, New: both})
	var foreign *reconcile.ForeignError
	if !errors.As(err, &foreign) {
		t.Errorf("somebody else's: error %v, want a ForeignError", err)
	}
}
