package main

import (
	"fmt"
	"testing"
	"time"

	"fabric/overlay/links"
)

// Both ends measure the path of their tunnel. Then b's kernel answers every other echo only, and at last none.
func TestPathIsMeasured(t *testing.T) {
	a, b, _ := up(t)
	path := func(n *node) links.PathState {
		s, err := n.state()
		if err != nil {
			t.Fatal(err)
		}
		return s.Tunnels[0].Path
	}
	for _, n := range []*node{a, b} {
		n.wait("echoes are answered", func() error {
			// Two hosts in one machine; a second is what a busy one may take.
			if p := path(n); p.RTT <= 0 || p.RTT > time.Second || p.MinRTT <= 0 || p.Probes == 0 || p.Lost > 1 {
				return fmt.Errorf("path is %+v", p)
			}
			return nil
		})
	}
	machine, before := watchMachine(), path(a)
	b.must("nft 'table ip6 lossy { chain in { type filter hook input priority 0; icmpv6 type echo-request numgen inc mod 2 0 drop; }; }'")
	var after links.PathState
	a.wait("echoes are lost", func() error {
		if after = path(a); after.Lost-before.Lost < 3 {
			return fmt.Errorf("path is %+v", after)
		}
		return nil
	})
	// Those before the cut, or answered late, blur it by a few.
	lost, answered := after.Lost-before.Lost, after.Probes-after.Lost-(before.Probes-before.Lost)
	t.Logf("before %+v, after %+v", before, after)
	if answered < lost-2 || answered > lost+4 || after.RTT == 0 {
		machine.errorf(t, "%d lost, %d answered of those after the cut: %+v", lost, answered, after)
	}
	b.must("nft delete table ip6 lossy")
	if p := path(b); p.Lost > 1 {
		machine.errorf(t, "the way back has lost %d", p.Lost)
	}
	// The tunnel device of a is made anew: so is its path.
	a.breakTunnel(deviceOf(t, a))
	a.wait("the path begins anew", func() error {
		if p := path(a); p.Probes >= after.Probes || p.RTT == 0 || p.Lost > 3 {
			return fmt.Errorf("path is %+v", p)
		}
		return nil
	})
}

// deviceOf is the node's only tunnel.
func deviceOf(t *testing.T, n *node) string {
	t.Helper()
	s, err := n.state()
	if err != nil {
		t.Fatal(err)
	}
	return s.Tunnels[0].Device
}
