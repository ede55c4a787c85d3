package linux_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// BenchmarkNextHopFlip moves the next-hop object that so many routes refer to from one neighbour to the other: what losing a neighbour
// costs. compat is net.ipv4.nexthop_compat_mode: 1 is the kernel's default, fabric-links sets 0.
func BenchmarkNextHopFlip(b *testing.B) {
	for _, routes := range []int{1_000, 100_000} {
		for _, compat := range []string{"0", "1"} {
			b.Run(fmt.Sprintf("routes=%d/compat=%s", routes, compat), func(b *testing.B) { benchFlip(b, routes, compat) })
		}
	}
}

func benchFlip(b *testing.B, routes int, compat string) {
	w := benchWorld(b)
	if err := w.AddDevice("ext1"); err != nil {
		b.Fatal(err)
	}
	// The thread is the namespace's.
	if err := os.WriteFile("/proc/sys/net/ipv4/nexthop_compat_mode", []byte(compat), 0); err != nil {
		b.Fatal(err)
	}
	hops := w.NextHops(kernel.ProtocolLinks)
	legs := [2]kernel.NextHop{
		{Device: "ext0", Gateway: netip.MustParseAddr("10.0.0.2"), OnLink: true},
		{Device: "ext1", Gateway: netip.MustParseAddr("10.0.1.2"), OnLink: true},
	}
	flip := func(kind reconcile.Kind, to kernel.NextHop) {
		if err := hops.Apply(b.Context(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: kind, Key: 2, New: to}})[0]; err != nil {
			b.Fatal(err)
		}
	}
	flip(reconcile.Create, legs[0])
	ops := make(routeOps, routes)
	for i := range ops {
		n := uint32(i) * 2654435761
		a := netip.AddrFrom4([4]byte{byte(11 + n>>27), byte(n >> 19), byte(n >> 11), 0})
		ops[i] = reconcile.Op[kernel.RouteKey, kernel.Route]{
			Kind: reconcile.Replace, New: kernel.Route{NextHopID: 2},
			Key: kernel.RouteKey{Table: 200, Prefix: netip.PrefixFrom(a, 24), Metric: kernel.Metric},
		}
	}
	benchApply(b, w.Routes(kernel.Protocol, 200), ops)
	i := 0
	for b.Loop() {
		i++
		flip(reconcile.Replace, legs[i%2])
	}
}
