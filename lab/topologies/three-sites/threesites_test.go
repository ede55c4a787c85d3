// Package threesites tests the three-sites topology without the fabric's daemons: what the lab
// itself promises to them and to the demo.
package threesites

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fabric/lab/clab"
	"fabric/lab/cloudemu"
	"fabric/lab/netns"
)

const topologyFile = "three-sites.clab.yml"

func TestTTLLabelsAgree(t *testing.T) {
	top, err := clab.Load(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	pairs := 0
	for _, n := range top.Nodes {
		for key, ttl := range n.Labels {
			for _, prefix := range []string{clab.LabelTTLPrefix, clab.LabelTTL6Prefix} {
				peerName, ok := strings.CutPrefix(key, prefix)
				if !ok {
					continue
				}
				pairs++
				peer, _ := top.Node(peerName)
				if back := peer.Labels[prefix+n.Name]; back != ttl {
					t.Errorf("%s says %s%s %s, %s says %q for the way back: the same routers are passed", n.Name, prefix, peerName, ttl, peerName, back)
				}
			}
		}
	}
	if want := 3*2 + 2 + 3*2; pairs != want { // CORE hosts, OPS hosts, v6 between gateways and gz-host
		t.Errorf("%d pairs, want %d", pairs, want)
	}
}

func TestSeedsMatchTopology(t *testing.T) {
	top, err := clab.Load(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"sz", "hk"} {
		seed, err := cloudemu.LoadSeed(site + ".seed.json")
		if err != nil {
			t.Fatal(err)
		}
		for _, instance := range seed.VPCs[0].Instances {
			n, ok := top.Node(instance.Name)
			if !ok {
				t.Errorf("%s: instance %s: no such node", site, instance.Name)
			}
			if got := n.Labels[clab.LabelAddress]; got != instance.PrivateIP {
				t.Errorf("%s: instance %s has %s, node %s", site, instance.Name, instance.PrivateIP, got)
			}
		}
	}
}

// TestDocumentMatchesTopology: the addresses that the labels promise are those that the gateways get.
func TestDocumentMatchesTopology(t *testing.T) {
	top, err := clab.Load(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("fabric.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range top.Nodes {
		if n.Labels[clab.LabelRole] != "gateway" {
			continue
		}
		for _, want := range []string{n.Name, n.Labels[clab.LabelAddress] + "/", n.Labels[clab.LabelAddress6] + "/"} {
			if !strings.Contains(string(document), want) {
				t.Errorf("fabric.yaml does not give %s %s", n.Name, want)
			}
		}
	}
}

// TestUnderlay starts the lab with gateways whose daemons do nothing: the underlay, the clouds
// and the core router must be there for the daemons to work with, and nothing more.
func TestUnderlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat("/usr/lib/frr/bgpd"); err != nil {
		t.Skip("needs FRR: run lab/deps.sh")
	}
	l := upWithoutFabric(t)
	ping := func(node, address string) error {
		return l.Node(node).Command(t.Context(), "ping", "-n", "-c1", "-W1", address).Run()
	}
	output := func(node string, argv ...string) string {
		t.Helper()
		out, err := l.Node(node).Command(t.Context(), argv...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %v: %s", node, argv, err, out)
		}
		return string(out)
	}

	public := map[string]string{"sz-gw": "203.0.113.10", "hk-gw": "203.0.113.20", "gz-gw": "198.51.100.30"}
	for from := range public {
		for to, address := range public {
			if err := ping(from, address); err != nil {
				t.Errorf("%s does not reach %s at %s: %v", from, to, address, err)
			}
		}
	}
	for _, network := range []string{"172.18.171.247", "172.20.128.13", "172.31.185.159", "10.0.0.1"} {
		if out, err := l.Node("internet").Command(t.Context(), "ip", "route", "get", network).CombinedOutput(); err == nil {
			t.Errorf("the internet routes %s: %s", network, out)
		}
	}
	for _, node := range []string{"sz-gw", "hk-gw"} {
		for _, address := range []string{"100.100.100.200", "100.100.100.201"} {
			if err := ping(node, address); err != nil {
				t.Errorf("%s does not reach its cloud at %s: %v", node, address, err)
			}
		}
		output(node, "test", "-s", "/etc/fabric/cloud-ca.pem")
	}
	for _, node := range []string{"sz-gw", "hk-gw", "gz-gw"} {
		if out := output(node, "ip", "-o", "address", "show", "dev", "eth1", "scope", "global"); out != "" {
			t.Errorf("%s: eth1 has an address before the daemon gave it one: %s", node, out)
		}
		for daemon, args := range map[string]string{"fabric-links": "run", "fabric-site": "run --gateway " + node + " --config /etc/fabric/fabric.yaml"} {
			pid := strings.TrimSpace(output(node, "sh", "/opt/fabric/gateway.sh", "pid", daemon))
			got := output(node, "cat", "/proc/"+pid+"/cmdline")
			if want := "/opt/fabric/bin/" + daemon + " " + args; !strings.HasSuffix(strings.ReplaceAll(got, "\x00", " "), want+" ") {
				t.Errorf("%s: process %s is %q, want %s", node, pid, got, want)
			}
		}
	}
	for node, peer := range map[string]string{"sz-host": "172.31.185.159", "hk-host": "172.18.171.247"} {
		if err := ping(node, peer); err == nil {
			t.Errorf("%s reaches %s without a fabric", node, peer)
		}
	}
	// Another user's entries are there, ours not.
	want := []string{"10.9.0.0/16", "192.0.2.0/24"}
	if got := strings.Fields(output("sz-vpc", "sh", "-c", "ip route show proto 50 | sed 's/blackhole //; s/ .*//' | sort")); !slices.Equal(got, want) {
		t.Errorf("sz-vpc: emulated routes %v, want %v", got, want)
	}
	for family, want := range map[string][]string{
		"ipv4": {"127.9.0.0/16", "172.20.128.0/17", "172.20.255.0/30", "172.20.255.8/31"},
		"ipv6": {"fd20:128::/48", "fd20:255::/126", "fd20:255::8/127"},
	} {
		var table struct{ Routes map[string]any }
		if err := json.Unmarshal([]byte(output("gz-core", "vtysh", "-c", "show bgp "+family+" unicast json")), &table); err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(table.Routes)); !slices.Equal(got, want) {
			t.Errorf("gz-core originates %v, want %v", got, want)
		}
	}
}

// upWithoutFabric starts a copy of the topology whose gateway daemons only wait.
func upWithoutFabric(t *testing.T) *netns.Lab {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	folder := filepath.Join(dir, "lab", "topologies", "three-sites")
	if err := os.CopyFS(folder, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "lab", "topologies", "scripts"), os.DirFS("../scripts")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(folder, ".run")); err != nil {
		t.Fatal(err)
	}
	keygen := filepath.Join(dir, "keygen")
	if err := os.WriteFile(keygen, []byte("#!/bin/sh\necho x= | tee \"$2\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", filepath.Join(folder, "prepare.sh"), keygen).CombinedOutput(); err != nil {
		t.Fatalf("prepare.sh: %v: %s", err, out)
	}
	build := exec.Command("go", "build", "-o", bin+"/", "fabric/lab/cloudemu/cmd/cloudemu")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the emulator: %v: %s", err, out)
	}
	for _, daemon := range []string{"fabric-links", "fabric-site"} {
		if err := os.WriteFile(filepath.Join(bin, daemon), []byte("#!/bin/sh\nwhile :; do sleep 60; done\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, err := netns.Up(t.Context(), filepath.Join(folder, topologyFile), netns.Options{Dir: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}
