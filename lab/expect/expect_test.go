package expect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fabric/lab/clab"

	"github.com/google/go-cmp/cmp"
)

const topologies = "../topologies"

// TestEveryTopology: each file is one that containerlab would take the same way, and has a state that fits it.
func TestEveryTopology(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(topologies, "*", "*.clab.yml"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		topology, err := clab.Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if folder := filepath.Base(filepath.Dir(file)); topology.Name != folder || filepath.Base(file) != folder+".clab.yml" {
			t.Errorf("%s: lab %s: file, folder and name must agree, so that the lab is found by name", file, topology.Name)
		}
		s, err := Load(topology)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, n := range topology.Nodes {
			if n.Labels[clab.LabelRole] == "gateway" && s.Nodes[n.Name].Speaks != "fabric" {
				t.Errorf("%s: nothing is expected of gateway %s", file, n.Name)
			}
		}
		if readme, err := os.ReadFile(filepath.Join(filepath.Dir(file), "README.md")); err != nil || !strings.HasPrefix(string(readme), "# "+topology.Name+"\n") {
			t.Errorf("%s: README.md: %v", file, err)
		}
	}
}

// TestGenerated: what is committed of 64-vrf is what its script writes, and the script can write other numbers.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(topologies, "64-vrf"))); err != nil {
		t.Fatal(err)
	}
	generate := func(args ...string) error {
		out, err := exec.Command("sh", append([]string{filepath.Join(dir, "generate.sh")}, args...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	for _, bad := range []string{"0", "201", "x"} {
		if err := generate(bad); err == nil {
			t.Errorf("generate.sh %s is taken", bad)
		}
	}
	if err := generate("3"); err != nil {
		t.Fatal(err)
	}
	topology, err := clab.Load(filepath.Join(dir, "64-vrf.clab.yml"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Load(topology); err != nil || len(s.Nodes["gw"].Routes) != 3 || len(topology.Links) != 4 {
		t.Errorf("three VRFs: %v, %v", s, err)
	}
	if err := generate(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"64-vrf.clab.yml", "fabric.yaml", "bird.conf", FileName} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(topologies, "64-vrf", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("64-vrf/%s is not what generate.sh writes: run it", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	topology := &clab.Topology{Nodes: []clab.Node{{Name: "a"}}}
	if _, err := parse([]byte(`{"within":"1s","nodes":{"a":{"pings":[{"to":"10.0.0.1","ttl":64}]}}}`), topology); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{"within":"1s","nodes":{"a":{"pings":[{"to":"10.0.0.1","ttl":0}]}}}`:            "ttl 0",
		`{"within":"1s","nodes":{"a":{"pings":[{"to":"host","ttl":64}]}}}`:               "host",
		`{"within":"soon","nodes":{"a":{"speaks":"frr"}}}`:                               "within",
		`{"within":"-1s","nodes":{"a":{"speaks":"frr"}}}`:                                "within",
		`{"within":"1s","nodes":{}}`:                                                     "no nodes",
		`{"within":"1s","nodes":{"b":{"speaks":"frr"}}}`:                                 "no such node",
		`{"within":"1s","nodes":{"a":{"speaks":"ospf"}}}`:                                "speaks",
		`{"within":"1s","nodes":{"a":{}}}`:                                               "nothing is expected",
		`{"within":"1s","nodes":{"a":{"peers":{"x":"established"}}}}`:                    "correct speaks",
		`{"within":"1s","nodes":{"a":{"speaks":"frr","tunnels":{"x":"up"}}}}`:            "correct speaks",
		`{"within":"1s","nodes":{"a":{"speaks":"frr","sessions":{"x":"up"}}}}`:           "correct speaks",
		`{"within":"1s","nodes":{"a":{"speaks":"frr","router":{"x":"up"}}}}`:             "router",
		`{"within":"1s","nodes":{"a":{"speaks":"frr","routes":{"t":{"x":""}}}}}`:         "without host bits",
		`{"within":"1s","nodes":{"a":{"speaks":"frr"}}} {}`:                              "follows",
		`{"within":"1s","nodes":{"a":{"speaks":"frr","routes":{"t":{"1.1.1.1/8":""}}}}}`: "without host bits",
	} {
		if _, err := parse([]byte(text), topology); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something about %q", text, err, want)
		}
	}
}

// gateway answers as a gateway's commands do; each answer can be replaced.
func gateway(replace map[string]string) Run {
	answers := map[string]string{
		"site":   `{"site":{"generation":"3","applied":"3","ready":true}}`,
		"peer":   `{"peers":[{"vrf":"","name":"far","state":"established"},{"vrf":"CORE","name":"ce","state":"established","bfd":"up"}]}`,
		"tunnel": `{"tunnels":[{"name":"gw/far/0","device":"fxw1","state":"up","active":true}]}`,
		"bfd": `{"sessions":[{"name":"gw/far/0","device":"fxw1","state":"up"},{"name":"CORE/ce","peer":"ce","state":"up"},
			{"name":"gw/spoke/transit","multihop":true,"state":"up"}]}`,
		"vrf": `{"vrfs":[{"name":"CORE","table":200}]}`,
		"route": `{"routes":[{"vrf":"CORE","prefix":"10.1.0.0/24","source":"connected","from":"gw"},
			{"vrf":"CORE","prefix":"10.2.0.0/24","source":"fabric","from":"far","kernel":"ok","cloud":"available"},
			{"vrf":"CORE","prefix":"fd02::/64","source":"fabric","from":"far","kernel":"ok","cloud":"left out: only IPv4"}]}`,
		"-4": `[{"type":"7","dst":"default","protocol":"201","table":"200","metric":4278198272},
			{"type":"1","dst":"10.1.0.0/24","protocol":"201","table":"200","metric":1},
			{"type":"1","dst":"10.2.0.0/24","protocol":"201","table":"200","metric":201},
			{"type":"1","dst":"192.0.2.0/24","protocol":"3","metric":0}]`,
		"-6":     `[{"type":"1","dst":"fd02::/64","protocol":"201","table":"200","metric":201},{"type":"2","dst":"fe80::1","protocol":"2","table":"200"}]`,
		"doctor": `{"errors":0,"findings":[{"severity":"warning","id":"firewall-missing","what":"no firewall"}]}`,
		"ping":   "64 bytes from 10.2.0.10: icmp_seq=1 ttl=62 time=0.6 ms\n",
	}
	maps.Copy(answers, replace)
	return func(_ context.Context, _ string, argv ...string) ([]byte, error) {
		key := argv[0]
		switch key {
		case "ip", "/opt/fabric/bin/fabricctl":
			key = argv[3]
		}
		if answers[key] == "" {
			return nil, fmt.Errorf("%s: it is broken", key)
		}
		return []byte(answers[key]), nil
	}
}

const expected = `{"within":"1s","nodes":{"gw":{"speaks":"fabric","peers":{"far":"established","CORE/ce":"established, bfd up"},"tunnels":{"gw/far/0":"up active"},
	"sessions":{"gw/spoke/transit":"up"},"routes":{"CORE":{"10.1.0.0/24":"connected gw","10.2.0.0/24":"fabric far, cloud available","fd02::/64":"fabric far, cloud left out"}},
	"pings":[{"to":"10.2.0.10","ttl":62}]}}}`

func state(t *testing.T, text string) *State {
	t.Helper()
	s, err := parse([]byte(text), &clab.Topology{Nodes: []clab.Node{{Name: "gw"}, {Name: "host"}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Each fault of a gateway is told by one line.
func TestFaultsAreTold(t *testing.T) {
	for _, c := range []struct {
		name, key, old, new string
		want                []string
	}{
		{"nothing", "", "", "", nil},
		{"not applied", "site", `"applied":"3"`, `"applied":"2"`, []string{`site: ready true, generation 3, applied 2, problems [], conflicts [], want ready`}},
		{"an ill host", "doctor", `"errors":0,"findings":[`, `"errors":1,"findings":[{"severity":"error","id":"interface-down","what":"eth1 is down"},`,
			[]string{"doctor: interface-down: eth1 is down, want no errors"}},
		{"a peer down", "peer", `"state":"established","bfd":"up"`, `"state":"idle","bfd":"down"`, []string{"peer CORE/ce: idle, bfd down, want established, bfd up"}},
		{"a peer too much", "peer", `"peers":[`, `"peers":[{"name":"more","state":"active"},`, []string{"peer more: active, want none"}},
		{"a tunnel down", "tunnel", `"up","active":true`, `"down"`, []string{"tunnel gw/far/0: down, want up active"}},
		{"no tunnel", "tunnel", `{"name":"gw/far/0","device":"fxw1","state":"up","active":true}`, "", []string{"tunnel gw/far/0: missing, want up active"}},
		{"nothing comes across the hub", "bfd", `"multihop":true,"state":"up"`, `"multihop":true,"state":"down"`, []string{"session gw/spoke/transit: down, want up"}},
		{"a session too much", "bfd", `"sessions":[`, `"sessions":[{"name":"gw/more/transit","state":"up"},`, []string{"session gw/more/transit: up, want none"}},
		{"a route from elsewhere", "route", `"fabric","from":"far","kernel":"ok","cloud":"available"`, `"peer","from":"ce","kernel":"ok"`,
			[]string{"route CORE 10.2.0.0/24: peer ce, want fabric far, cloud available"}},
		{"a route more", "route", `"routes":[`, `"routes":[{"vrf":"CORE","prefix":"10.9.0.0/24","source":"connected","from":"gw"},`,
			[]string{"route CORE 10.9.0.0/24: connected gw, want none"}},
		{"a route less", "route", `{"vrf":"CORE","prefix":"10.1.0.0/24","source":"connected","from":"gw"},`, "",
			[]string{"route CORE 10.1.0.0/24: missing, want connected gw"}},
		{"not in the kernel", "-4", `"dst":"10.2.0.0/24","protocol":"201","table":"200"`, `"dst":"10.2.0.0/24","protocol":"201","table":"201"`,
			[]string{"route CORE 10.2.0.0/24: fabric far, cloud available (kernel: ok, not in table 200), want fabric far, cloud available"}},
		{"only in the kernel", "-6", `[`, `[{"type":"1","dst":"fd09::1","protocol":"4","table":"200","metric":9},`,
			[]string{"route CORE fd09::1/128: only in table 200 (type 1 proto 4 metric 9), want none"}},
		{"a longer way", "ping", "ttl=62", "ttl=61", []string{"ping 10.2.0.10: ttl 61, want 62"}},
		{"no answer", "ping", "64 bytes", "From", []string{"ping 10.2.0.10: no answer"}},
		{"no daemon", "vrf", `{"vrfs":[{"name":"CORE","table":200}]}`, "", []string{"vrf: it is broken"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			replace := map[string]string{}
			if c.key != "" {
				argv := map[bool][]string{true: {"ip", "-j", "-N", c.key}, false: {"/opt/fabric/bin/fabricctl", "-o", "json", c.key}}[strings.HasPrefix(c.key, "-")]
				if c.key == "ping" {
					argv = []string{"ping"}
				}
				out, err := gateway(nil)(t.Context(), "gw", argv...)
				if err != nil || !strings.Contains(string(out), c.old) {
					t.Fatalf("%s: %v: nothing to replace", out, err)
				}
				replace[c.key] = strings.Replace(string(out), c.old, c.new, 1)
			}
			s := state(t, expected)
			if got := ask(t.Context(), "gw", s.Nodes["gw"], gateway(replace)); cmp.Diff(c.want, got) != "" {
				t.Error(cmp.Diff(c.want, got))
			}
		})
	}
}

func TestCheckPrints(t *testing.T) {
	var out strings.Builder
	if err := check(t.Context(), &out, state(t, expected), gateway(nil), time.Millisecond); err != nil || !strings.HasPrefix(out.String(), "ok    gw\n1 nodes as expected") {
		t.Errorf("%v:\n%s", err, out.String())
	}
	out.Reset()
	s := state(t, strings.Replace(expected, `"connected gw"`, `"connected gw","10.8.0.0/24":"fabric far"`, 1))
	err := check(t.Context(), &out, s, gateway(nil), time.Millisecond)
	const want = "FAIL  gw\n        route CORE 10.8.0.0/24: missing, want fabric far\n"
	if err == nil || !strings.HasPrefix(err.Error(), "1 of 1 nodes are not as expected after") || out.String() != want {
		t.Errorf("%v:\n%s", err, out.String())
	}
}

// What is right once and wrong a moment later is wrong: the state must last.
func TestStateMustLast(t *testing.T) {
	good, bad := gateway(nil), gateway(map[string]string{"tunnel": `{"tunnels":[]}`})
	var asked atomic.Int32
	run := func(ctx context.Context, node string, argv ...string) ([]byte, error) {
		if len(argv) > 3 && argv[3] == "tunnel" && asked.Add(1) != 1 {
			return bad(ctx, node, argv...)
		}
		return good(ctx, node, argv...)
	}
	if err := check(t.Context(), &strings.Builder{}, state(t, expected), run, time.Millisecond); err == nil {
		t.Error("one right answer was enough")
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Check(ctx, &strings.Builder{}, state(t, expected), gateway(map[string]string{"site": ""})); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAskFRR(t *testing.T) {
	answers := map[string]string{
		"show bgp ipv4 unicast summary json": `{"peers":{"10.1.1.1":{"state":"Established"}}}`,
		"show bgp ipv6 unicast summary json": `{}`,
		"show bgp ipv4 unicast json":         `{"routes":{"10.2.0.0/24":[{"valid":true,"nexthops":[{"ip":"10.1.2.1"}]},{"valid":true,"nexthops":[{"ip":"10.1.1.1"}]}]}}`,
		"show bgp ipv6 unicast json":         `{"routes":{"fd02::/64":[{"nexthops":[{"ip":"fd01::1","scope":"global"},{"ip":"fe80::1","scope":"link-local"}]}]}}`,
	}
	got, err := askFRR(func(argv ...string) ([]byte, error) { return []byte(answers[argv[2]]), nil })
	want := facts{"peer 10.1.1.1": "established", "route ipv4 10.2.0.0/24": "10.1.1.1 10.1.2.1", "route ipv6 fd02::/64": "fd01::1"}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if _, err := askFRR(func(...string) ([]byte, error) { return []byte("% no such command"), nil }); err == nil {
		t.Error("what is no JSON is taken")
	}
}

func TestAskBIRD(t *testing.T) {
	answers := map[string]string{
		"protocols": `BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     16:02:42.955
own4       Static     master4    up     16:02:42.955
gw4        BGP        ---        up     16:02:42.955  Established
gw6        BGP        ---        start  16:02:42.955  Active        Socket: Connection refused
`,
		"route": `BIRD 2.0.12 ready.
Table master4:
10.30.0.0/24         unicast [gw4 16:02:22.100] * (100) [AS4200000002i]
	via 10.1.2.1 on eth1
                     unicast [gw5 16:02:22.100] (100) [AS4200000002i]
	via 10.1.3.1 on eth2
10.22.0.0/24         blackhole [own4 16:02:20.652] * (200)

Table t1:
10.30.0.0/24         unicast [gw1 16:02:22.100] * (100) [AS4200000002i]
	via 10.1.2.1 on eth1
`,
	}
	got, err := askBIRD(func(argv ...string) ([]byte, error) { return []byte(answers[argv[2]]), nil })
	want := facts{"peer gw4": "established", "peer gw6": "active",
		"route master4 10.30.0.0/24": "gw4 gw5", "route master4 10.22.0.0/24": "own4", "route t1 10.30.0.0/24": "gw1"}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
}
