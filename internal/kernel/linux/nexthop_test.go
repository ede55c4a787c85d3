package linux_test

import (
	"errors"
	"net/netip"
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// What is not as it was seen last is looked at: an object that has gone is made, one that is there already is replaced if it is ours, and one of
// somebody else's is an error of its own, whatever else is in the batch.
func TestNextHopsOtherThanSeen(t *testing.T) {
	w := newWorld(t)
	if err := w.AddDevice("ext0"); err != nil {
		t.Fatal(err)
	}
	via := func(addr string) kernel.NextHop {
		return kernel.NextHop{Device: "ext0", Gateway: netip.MustParseAddr(addr), OnLink: true, Protocol: kernel.ProtocolLinks}
	}
	hops := w.NextHops(kernel.ProtocolLinks)
	if err := hops.Apply(t.Context(), []reconcile.Op[uint32, kernel.NextHop]{{Kind: reconcile.Create, Key: 2, New: via("fe80::2")}})[0]; err != nil {
		t.Fatal(err)
	}
	if err := run("ip", "nexthop", "add", "id", "3", "via", "fe80::3", "dev", "ext0", "onlink", "proto", "99"); err != nil {
		t.Fatal(err)
	}
	errs := hops.Apply(t.Context(), []reconcile.Op[uint32, kernel.NextHop]{
		{Kind: reconcile.Create, Key: 4, New: via("fe80::4")},
		{Kind: reconcile.Replace, Key: 1, Old: via("fe80::9"), New: via("fe80::1")}, // gone
		{Kind: reconcile.Create, Key: 2, New: via("fe80::22")},                      // there already
		{Kind: reconcile.Create, Key: 3, New: via("fe80::33")},                      // somebody else's
		{Kind: reconcile.Create, Key: 5, New: via("fe80::5")},
		{Kind: reconcile.Create, Key: 6, New: kernel.NextHop{Group: "4,5"}},
	})
	for i, err := range errs {
		var foreign *reconcile.ForeignError
		if want := i == 3; errors.As(err, &foreign) != want || !want && err != nil {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	have, err := hops.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint32]kernel.NextHop{
		1: via("fe80::1"), 2: via("fe80::22"), 4: via("fe80::4"), 5: via("fe80::5"), 6: {Group: "4,5", Protocol: kernel.ProtocolLinks},
	}
	for id, nh := range want {
		if have[id] != nh {
			t.Errorf("next hop %d is %v, want %v", id, have[id], nh)
		}
	}
	if len(have) != len(want) {
		t.Errorf("next hops are %v", have)
	}
	// A group that is gone is none to replace: its routes are gone too, and the next pass makes both.
	group := []reconcile.Op[uint32, kernel.NextHop]{{
		Kind: reconcile.Replace, Key: 7, Old: kernel.NextHop{Group: "4,5", Protocol: kernel.ProtocolLinks}, New: kernel.NextHop{Group: "4"},
	}}
	if err := hops.Apply(t.Context(), group)[0]; err == nil {
		t.Error("a group that is gone was replaced")
	}
}
