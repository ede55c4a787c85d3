package clab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// head is a file that is right as far as it goes; tests add the line under test.
const head = `name: t
topology:
  defaults: {kind: linux, image: "x:1", network-mode: none}
`

func TestParse(t *testing.T) {
	got, err := Parse("/labs/t/t.clab.yml", []byte(`name: t
prefix: ""
topology:
  defaults:
    kind: linux
    image: fabric-lab:latest
    network-mode: none
    sysctls: {net.ipv4.ip_forward: 1}
    env: {A: from-defaults, B: from-defaults}
  kinds:
    linux:
      env: {B: from-kind}
      binds: ["../../bin:/opt/bin:ro"]
  nodes:
    b:
      cmd: sleep 60
      exec:
        - sh -c 'echo "a b"'
        - ip address add 10.0.0.1/24 dev eth1
      binds: ["/abs:/data"]
      labels: {fabric.role: host, fabric.ttl/a: "63"}
      sysctls: {net.ipv4.conf.all.rp_filter: "0"}
    a:
  links:
    - endpoints: ["b:eth1", "a:eth0"]
      mtu: 1500
    - endpoints: ["a:eth1", "a:eth2"]
`))
	if err != nil {
		t.Fatal(err)
	}
	shared := map[string]string{"A": "from-defaults", "B": "from-kind"}
	bin := Bind{Source: "/bin", Target: "/opt/bin", ReadOnly: true}
	want := &Topology{
		File: "/labs/t/t.clab.yml", Name: "t",
		Nodes: []Node{{
			Name: "b", Image: "fabric-lab:latest", Cmd: []string{"sleep", "60"},
			Exec:    [][]string{{"sh", "-c", `echo "a b"`}, {"ip", "address", "add", "10.0.0.1/24", "dev", "eth1"}},
			Binds:   []Bind{bin, {Source: "/abs", Target: "/data"}},
			Env:     shared,
			Labels:  map[string]string{"fabric.role": "host", "fabric.ttl/a": "63"},
			Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0"},
		}, {
			Name: "a", Image: "fabric-lab:latest", Binds: []Bind{bin}, Env: shared,
			Labels: map[string]string{}, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
		}},
		Links: []Link{
			{A: Endpoint{"b", "eth1"}, B: Endpoint{"a", "eth0"}, MTU: 1500},
			{A: Endpoint{"a", "eth1"}, B: Endpoint{"a", "eth2"}, MTU: DefaultMTU},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // each must be in the error: place and reason
	}{
		{"unknown key at the top", "name: t\ntopologie: {}\n", []string{`f:2:1: unknown field "topologie"`}},
		{"unknown key of a node", head + "  nodes: {a: {ports: []}}\n", []string{`f:4:15: unknown field "ports"`}},
		{"duplicate key", head + "  nodes:\n    a: {}\n    a: {}\n", []string{`f:6:5: mapping key "a" already defined`}},
		{"wrong type", head + "  nodes: {a: {exec: {}}}\n", []string{"f:4:21:"}},
		{"syntax", "name: [\n", []string{"f:1:"}},
		{"empty", "", []string{"f:1:1: empty topology"}},
		{"two documents", head + "  nodes: {a: {}}\n---\nname: u\n", []string{"more than one YAML document"}},
		{"name", strings.Replace(head, "name: t", "name: T x", 1) + "  nodes: {a: {}}\n", []string{`f:1:7: name "T x"`}},
		{"no nodes", head, []string{"no nodes"}},
		{"node name", head + "  nodes: {a_b: {}}\n", []string{`f:4:16: node name "a_b"`}},
		{"kind", head + "  nodes: {a: {kind: srl}}\n", []string{`f:4:21: node a: kind "srl"`}},
		{"kinds", head + "  kinds: {bridge: {}}\n  nodes: {a: {}}\n", []string{`f:4:19: kind "bridge"`}},
		{"image", "name: t\ntopology:\n  nodes: {a: {kind: linux, network-mode: none}}\n", []string{"f:3:", "node a: no image"}},
		{"network mode", head + "  nodes: {a: {network-mode: host}}\n", []string{`f:4:29: node a: network-mode "host"`}},
		{"dollar", head + "  nodes: {a: {exec: [\"echo $HOME\"]}}\n", []string{"f:4:28: containerlab replaces $"}},
		{"template", head + "  nodes: {a: {exec: [\"echo {{.Name}}\"]}}\n", []string{"f:4:28: containerlab replaces {{"}},
		{"shared exec", strings.Replace(head, "{kind", "{exec: [true], kind", 1) + "  nodes: {a: {}}\n", []string{"f:3:20: exec belongs to a node"}},
		{"open quote", head + "  nodes: {a: {exec: [\"sh -c 'x\"]}}\n", []string{"f:4:22: node a: command", "within a quote"}},
		{"empty command", head + "  nodes: {a: {exec: [\" \"]}}\n", []string{"f:4:22: node a: command is empty"}},
		{"sysctl of the host", head + "  nodes: {a: {sysctls: {kernel.panic: 1}}}\n", []string{`f:4:39: node a: sysctl "kernel.panic"`}},
		{"bind without target", head + "  nodes: {a: {binds: [x]}}\n", []string{`f:4:23: node a: bind "x"`}},
		{"bind option", head + "  nodes: {a: {binds: [\"x:/y:z\"]}}\n", []string{`option "z": only ro`}},
		{"bind home", head + "  nodes: {a: {binds: [\"~/x:/y\"]}}\n", []string{"without ~"}},
		{"bind target", head + "  nodes: {a: {binds: [\"x:y\", \"x:/\", \"x:/a/../b\"]}}\n", []string{`"y" must be absolute`, `"/" must be`, `"/a/../b" must be`}},
		{"bound twice", head + "  nodes: {a: {binds: [\"x:/y\", \"z:/y\"]}}\n", []string{"f:4:31: node a: /y is bound twice"}},
		{"endpoints", head + "  nodes: {a: {}}\n  links: [{endpoints: [\"a:eth1\"]}]\n", []string{"f:5:", "link has 1 endpoints"}},
		{"unknown node", head + "  nodes: {a: {}}\n  links: [{endpoints: [\"a:eth1\", \"b:eth1\"]}]\n", []string{`f:5:34: endpoint "b:eth1": no node "b"`}},
		{"interface", head + "  nodes: {a: {}}\n  links: [{endpoints: [\"a:lo\", \"a:abcdefghijklmnop\"]}]\n", []string{`interface "lo"`, `interface "abcdefghijklmnop"`}},
		{"endpoint twice", head + "  nodes: {a: {}}\n  links: [{endpoints: [\"a:eth1\", \"a:eth1\"]}]\n", []string{`f:5:34: endpoint "a:eth1" is used twice`}},
		{"mtu", head + "  nodes: {a: {}}\n  links: [{endpoints: [\"a:eth1\", \"a:eth2\"], mtu: 67}]\n", []string{"f:5:50: mtu 67"}},
		{"all at once", head + "  nodes: {a_b: {kind: x}, c: {binds: [x]}}\n", []string{"node name", `kind "x"`, `bind "x"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse("f", []byte(test.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
		})
	}
}

func TestSplitCommand(t *testing.T) {
	for _, test := range []struct {
		line string
		want []string // nil: refused
	}{
		{"a", []string{"a"}},
		{"  a \t b\n", []string{"a", "b"}},
		{`sh -c 'a "b" \c'`, []string{"sh", "-c", `a "b" \c`}},
		{`a"b c"d ''`, []string{"ab cd", ""}},
		{`a\ b "\""`, []string{"a b", `"`}},
		{`a#b "#c"`, []string{"a#b", "#c"}}, {"a #b", nil},
		{`"a`, nil}, {`'a`, nil}, {`a\`, nil}, {"", nil}, {"  ", nil},
	} {
		got, err := SplitCommand(test.line)
		if (err != nil) != (test.want == nil) {
			t.Errorf("SplitCommand(%q): error %v", test.line, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("SplitCommand(%q) (-want +got):\n%s", test.line, diff)
		}
	}
}

// TestTopologies checks every topology of the repository, and what our labels claim in them.
func TestTopologies(t *testing.T) {
	files, err := filepath.Glob("../topologies/*/*.clab.yml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no topologies found")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			top, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range top.Nodes {
				for _, err := range checkLabels(top, n) {
					t.Error(err)
				}
				for _, b := range n.Binds {
					// Built or generated before a start, so not there in a fresh clone.
					if strings.Contains(b.Source, "/.run/") || strings.HasSuffix(b.Source, "/bin") {
						continue
					}
					if _, err := os.Stat(b.Source); err != nil {
						t.Errorf("node %s: bind: %v", n.Name, err)
					}
				}
			}
		})
	}
}

// checkLabels finds labels of ours that are misspelled or name nodes that are not there.
func checkLabels(top *Topology, n Node) (errs []error) {
	known := map[string]bool{LabelRole: true, LabelSite: true, LabelVRF: true, LabelAddress: true, LabelAddress6: true}
	for key := range n.Labels {
		for _, prefix := range []string{LabelTTLPrefix, LabelTTL6Prefix} {
			if peer, ok := strings.CutPrefix(key, prefix); ok {
				known[key] = true
				if _, ok := top.Node(peer); !ok {
					errs = append(errs, fmt.Errorf("node %s: label %s: no node %q", n.Name, key, peer))
				}
			}
		}
		if strings.HasPrefix(key, "fabric.") && !known[key] {
			errs = append(errs, fmt.Errorf("node %s: unknown label %s", n.Name, key))
		}
	}
	return errs
}
