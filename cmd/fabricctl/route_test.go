package main

import (
	"strings"
	"testing"

	fabricv1 "fabric/proto/fabric/v1"
)

// Several next hops in use are all listed, and candidates that share traffic are marked.
func TestSharedRoutes(t *testing.T) {
	r := &fabricv1.Route{Prefix: "10.0.0.0/24", NextHop: "10.1.0.2", Source: "peer", From: "x", NextHops: []string{"10.1.0.2", "10.2.0.2"}}
	if got := nextHops(r); got != "10.1.0.2,10.2.0.2" {
		t.Errorf("next hops are %q", got)
	}
	r.NextHops = []string{"10.2.0.2"} // a spare one has taken over
	if got := nextHops(r); got != "10.2.0.2" {
		t.Errorf("the next hop is %q", got)
	}
	r.NextHops = nil
	if got := nextHops(r); got != "10.1.0.2" {
		t.Errorf("the next hop is %q", got)
	}
	var out strings.Builder
	a := &app{out: &out}
	if err := a.printCandidates("", []*fabricv1.Candidate{{Route: r, Best: true}, {Route: r, Equal: true}, {Route: r}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, mark := range []string{"*", "=", " "} {
		if !strings.HasPrefix(lines[i+1], mark+" 10.0.0.0/24") {
			t.Errorf("candidate %d is %q", i, lines[i+1])
		}
	}
}
