package rib

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// Many addresses of both families, asked for one or several next hops each, are found in any prefix, and are gone when taken back.
func TestQuestions(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr {
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(rnd.IntN(4)), byte(rnd.IntN(256)), byte(rnd.IntN(4))})
		}
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(rnd.IntN(4)), byte(rnd.IntN(256)), 15: byte(rnd.IntN(4))})
	}
	prefixes := []netip.Prefix{
		prefix("0.0.0.0/0"), prefix("10.1.0.0/16"), prefix("10.2.128.0/17"), prefix("10.3.3.3/32"), prefix("11.0.0.0/8"), prefix("9.0.0.0/8"),
		prefix("::/0"), prefix("2001:db8:100::/40"), prefix("2001:db8:2ff::3/128"), prefix("2002::/16"),
	}
	type pair struct {
		addr netip.Addr
		hop  *hop
	}
	var q questions
	hops := []*hop{{}, {}, {}}
	all := map[pair]bool{}
	check := func(step int) {
		t.Helper()
		for _, p := range prefixes {
			want, got := map[*hop]int{}, map[*hop]int{}
			for x := range all {
				if p.Contains(x.addr) {
					want[x.hop]++
				}
			}
			q.within(p, func(h *hop) { got[h]++ })
			for _, h := range hops {
				if got[h] != want[h] {
					t.Fatalf("step %d, %s: %d, want %d", step, p, got[h], want[h])
				}
			}
		}
		if order := slices.Concat(q.chunks...); !slices.IsSortedFunc(order, netip.Addr.Compare) || len(order) != len(q.hops) {
			t.Fatalf("step %d: out of order, or %d are not %d", step, len(order), len(q.hops))
		}
		for _, c := range q.chunks {
			if len(c) == 0 || len(c) > chunkSize {
				t.Fatalf("step %d: a chunk of %d", step, len(c))
			}
		}
	}
	for step := range 20_000 {
		x := pair{addr(), hops[rnd.IntN(len(hops))]}
		if all[x] = rnd.IntN(4) > 0; all[x] {
			q.add(x.addr, x.hop)
		} else {
			delete(all, x)
			q.remove(x.addr, x.hop)
		}
		if step%1000 == 0 {
			check(step)
		}
	}
	check(-1)
	if len(q.chunks) < 8 {
		t.Errorf("%d addresses are in %d chunks", len(q.hops), len(q.chunks))
	}
	for x := range all {
		q.remove(x.addr, x.hop)
	}
	clear(all)
	check(-2)
	if len(q.chunks) != 0 {
		t.Errorf("%d chunks are left", len(q.chunks))
	}
}
