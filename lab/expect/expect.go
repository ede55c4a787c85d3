// Package expect says what a lab looks like when all is well, and compares a running one with it.
//
// A topology's expected.json names for each node the sessions, tunnels, routes and pings that it must have, no more and no
// fewer. Nothing in it depends on how the host makes VRFs and tunnels, so the same file holds for every runner: tunnels go by
// their names and not by their devices, and tables by the names of their VRFs.
package expect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fabric/lab/clab"
)

// FileName is the name of the file in a topology's folder.
const FileName = "expected.json"

// State is the content of expected.json.
type State struct {
	// Within is how long the lab may take to get there.
	Within time.Duration
	// Nodes by name. A node that is not here is not asked.
	Nodes map[string]Node
}

// Node is what one node must tell of itself. Maps are compared whole: what is missing and what is too much both count.
type Node struct {
	// Speaks is the program that is asked: "fabric", "frr", "bird", or "" for a host without routing. A gateway must also be ready,
	// without a problem, and its self-check without an error.
	Speaks string `json:"speaks,omitempty"`
	// Peers are BGP sessions and their states. The key is VRF/NAME for a peer and NAME for another gateway (fabric), the
	// neighbour's address (frr) or the protocol's name (bird). A gateway adds ", bfd STATE" where there is BFD.
	Peers map[string]string `json:"peers,omitempty"`
	// Tunnels of a gateway by name: "up" or "down", and " active" for the one in use.
	Tunnels map[string]string `json:"tunnels,omitempty"`
	// Sessions are a gateway's BFD sessions across hubs by name, OWN/OTHER/transit, and their states. Those on tunnels and with peers
	// are told with these.
	Sessions map[string]string `json:"sessions,omitempty"`
	// Routes by table and prefix. Tables are VRFs (fabric), "ipv4" and "ipv6" (frr) or tables (bird). Values are
	// "SOURCE FROM", with ", cloud STATE" at a cloud site (fabric), the next hops (frr) or the protocols (bird), sorted. What a
	// gateway has chosen and did not get from an interface must be in the kernel's table of the VRF, and nothing else may be.
	Routes map[string]map[string]string `json:"routes,omitempty"`
	// Pings are sent from this node.
	Pings []Ping `json:"pings,omitempty"`
}

// Ping is an address that answers.
type Ping struct {
	To netip.Addr `json:"to"`
	// TTL is the answer's ttl or hop limit: 64 less the routers it passes.
	TTL int `json:"ttl"`
}

// Load reads the expected.json beside a topology's file and checks it against the topology.
func Load(topology *clab.Topology) (*State, error) {
	file := filepath.Join(filepath.Dir(topology.File), FileName)
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("expected state: %w", err)
	}
	s, err := parse(data, topology)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

func parse(data []byte, topology *clab.Topology) (*State, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var file struct {
		Within string          `json:"within"` // as time.ParseDuration reads it
		Nodes  map[string]Node `json:"nodes"`
	}
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the state: keep one object")
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	within, err := time.ParseDuration(file.Within)
	if err != nil || within <= 0 {
		fail("within %q: write a duration like 60s", file.Within)
	}
	s := &State{Within: within, Nodes: file.Nodes}
	if len(s.Nodes) == 0 {
		fail("no nodes: a state that expects nothing proves nothing")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[name]
		if _, ok := topology.Node(name); !ok {
			fail("node %s: the topology has no such node", name)
		}
		if !slices.Contains([]string{"", "fabric", "frr", "bird"}, n.Speaks) {
			fail("node %s: speaks %q: write fabric, frr or bird, or leave it out", name, n.Speaks)
		}
		if n.Speaks == "" && len(n.Peers)+len(n.Routes) > 0 || n.Speaks != "fabric" && len(n.Tunnels)+len(n.Sessions) > 0 {
			fail("node %s: nothing there can be asked for what is expected: correct speaks", name)
		}
		if n.Speaks == "" && len(n.Pings) == 0 {
			fail("node %s: nothing is expected: remove it", name)
		}
		for _, routes := range n.Routes {
			for p := range routes {
				if prefix, err := netip.ParsePrefix(p); err != nil || prefix != prefix.Masked() {
					fail("node %s: route %q: write a prefix without host bits", name, p)
				}
			}
		}
		for _, p := range n.Pings {
			if !p.To.IsValid() || p.TTL < 1 || p.TTL > 255 {
				fail("node %s: ping %v ttl %d: write an address and a ttl of 1 to 255", name, p.To, p.TTL)
			}
		}
	}
	return s, errors.Join(errs...)
}

// facts are what a node is like, each by a name for people: "route CORE 10.1.0.0/24" is "fabric b-gw".
type facts map[string]string

// facts are what the file expects, but for the pings.
func (n Node) facts() facts {
	f := facts{}
	if n.Speaks == "fabric" {
		f["site"], f["doctor"] = "ready", noErrors
	}
	for name, state := range n.Peers {
		f["peer "+name] = state
	}
	for name, state := range n.Tunnels {
		f["tunnel "+name] = state
	}
	for name, state := range n.Sessions {
		f["session "+name] = state
	}
	for table, routes := range n.Routes {
		for prefix, from := range routes {
			f["route "+table+" "+prefix] = from
		}
	}
	return f
}

// difference tells in words, sorted, how a node differs from what is expected.
func difference(want, got facts) (lines []string) {
	for key, w := range want {
		if g, ok := got[key]; !ok {
			lines = append(lines, fmt.Sprintf("%s: missing, want %s", key, w))
		} else if g != w {
			lines = append(lines, fmt.Sprintf("%s: %s, want %s", key, g, w))
		}
	}
	for key, g := range got {
		if _, ok := want[key]; !ok {
			lines = append(lines, fmt.Sprintf("%s: %s, want none", key, g))
		}
	}
	slices.Sort(lines)
	return lines
}
