package links

import (
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/kernel/linux"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// BenchmarkSetsLock makes, looks at and moves 5,000 next-hop sets in a kernel, in a network namespace of its own. longest-ms is how long a change
// of a session waited for the repair table at most.
func BenchmarkSetsLock(b *testing.B) {
	const sets = 5000
	r, plan := benchRepair(b, sets)
	observe := func() map[uint32]kernel.NextHop {
		have, err := r.nextHops.Observe(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return have
	}
	x := bfd.Change{Path: sessionPath(plan.Sessions[0])}
	turn := func(to, from bfd.State) {
		x.Transition = bfd.Transition{From: from, To: to}
		r.changed(x)
	}
	pass := func() {
		r.expect(plan, nil, true)
		r.vouch()
		out, ok := r.settleSets(b.Context(), r.begin(), observe())
		if !ok {
			b.Fatal("not settled")
		}
		for id, o := range out {
			for _, err := range o.errs {
				if err != nil {
					b.Fatalf("%d: %v", id, err)
				}
			}
		}
	}
	on := func(device string) {
		n := 0
		for _, h := range observe() {
			if h.Device == device {
				n++
			}
		}
		if n != sets {
			b.Fatalf("%d sets are on %s, want %d", n, device, sets)
		}
	}
	for b.Loop() {
		b.StopTimer()
		// From nothing.
		if out, err := exec.Command("ip", "nexthop", "flush", "proto", "202").CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		r.sets, r.watches = nil, map[bfd.Path]*watch{}
		b.StartTimer()
		longest := r.waits(func() { pass() })
		b.ReportMetric(float64(longest.Microseconds())/1000, "create-longest-ms")
		turn(bfd.Up, bfd.Down)
		on("eth1")

		longest = r.waits(pass)
		b.ReportMetric(float64(longest.Microseconds())/1000, "look-longest-ms")
		began := time.Now()
		turn(bfd.Down, bfd.Up)
		b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "move-ms")
		on("eth2")
	}
}

// waits runs f, and meanwhile takes the table again and again; it returns the longest that took.
func (r *repair) waits(f func()) (longest time.Duration) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Microsecond):
			}
			began := time.Now()
			r.mu.Lock()
			longest = max(longest, time.Since(began))
			r.mu.Unlock()
		}
	})
	f()
	close(done)
	wg.Wait()
	return longest
}

// benchRepair is a repair table on a kernel, with a plan of that many sets between two neighbours.
func benchRepair(b *testing.B, sets int) (*repair, overlay.Plan) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Skipf("no network namespaces here: %v", err)
	}
	plan := overlay.Plan{Version: overlay.PlanVersion, Gateway: "a", VTEP: netip.MustParseAddr("10.255.0.1")}
	for i, device := range []string{"eth1", "eth2"} {
		out, err := exec.Command("sh", "-c", "ip link set lo up && ip link add "+device+" type veth peer name "+device+"p && ip link set "+device+" up && ip link set "+device+"p up").CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		plan.Sessions = append(plan.Sessions, overlay.Session{
			BFD: overlay.BFD{IntervalMs: 50, Multiplier: 3}, Name: device, VRF: "CORE", Peer: device, Interface: device,
			Local: netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), Remote: netip.AddrFrom4([4]byte{10, byte(i), 0, 2}),
		})
	}
	for i := range sets {
		var legs []overlay.Leg
		for j, device := range []string{"eth1", "eth2"} {
			legs = append(legs, overlay.Leg{Gateway: netip.AddrFrom4([4]byte{10, byte(10 + j), byte(i >> 8), byte(i)}), Device: device, Session: device})
		}
		plan.Sets = append(plan.Sets, overlay.NextHopSet{ID: overlay.NextHopFirst + uint32(i), VRF: "CORE", Legs: legs})
	}
	host, err := linux.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { host.Close() })
	return &repair{
		routes: host.Routes(kernel.ProtocolLinks, kernel.MainTable), now: time.Now, legs: map[string]*leg{}, paths: map[bfd.Path]string{},
		nextHops: host.NextHops(kernel.ProtocolLinks), watches: map[bfd.Path]*watch{},
	}, plan
}
