package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fabric/overlay"
	fabricv1 "fabric/proto/fabric/v1"
)

// A document with mistakes is refused with all of them at once, each with its place, and the host stays as it was.
func TestMalformedDocument(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	bad := strings.NewReplacer("table: 201", "table: 200", "asn: 65002", "asn: 65001\n        colour: red", "10.9.0.0/16", "10.9.0.1/16").Replace(document)
	n.write(bad)
	before := n.host()
	out := n.fails(n.run())
	line := func(text string) int { return strings.Count(bad[:strings.Index(bad, text)], "\n") + 1 }
	for _, want := range []string{
		fmt.Sprintf("%s:%d:", n.file, line("name: OPS, table: 200")),
		fmt.Sprintf("%s:%d:", n.file, line("colour")),
		fmt.Sprintf("%s:%d:", n.file, line("10.9.0.1/16")),
		"colour", "host bits",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not among\n%s", want, out)
		}
	}
	n.wantHost("a refused document", before)
}

// Without the right to change the network the daemon says which one is missing, at once.
func TestNoNetAdmin(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv: ", err)
	}
	without := []string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}
	for _, c := range []*exec.Cmd{n.run(without...), n.site(without, "cleanup")} {
		if out := n.fails(c); !strings.Contains(out, "CAP_NET_ADMIN is missing; run as root") {
			t.Errorf("%s", out)
		}
	}
	if _, err := os.Stat(n.state()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state folder was made: %v", err)
	}
}

// The daemon's life with systemd: READY and watchdog, a second daemon and cleanup kept off, a bad document on SIGHUP, a stop that leaves
// all as it is, a second start that changes nothing, and cleanup.
func TestDaemon(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	// What is somebody else's and must outlive all of this.
	n.sh("ip link add lan type veth peer name lan-host", "ip addr add 192.168.7.1/24 dev lan", "ip link set lan up",
		"ip route add 10.77.0.0/16 via 192.168.7.9 table 77 proto static", "ip rule add pref 200 from 192.168.7.0/24 lookup 77",
		"nft add table inet theirs", "ip nexthop add id 7 blackhole")
	before := n.host()
	n.startLinks()
	site := n.startSite()
	api := n.api()
	n.wantApplied(api, 1)
	n.told("WATCHDOG=1")
	for _, c := range []struct{ line, text string }{
		{"ip route show table 200", "10.9.0.0/16 via 10.1.0.9 dev eth1"},
		{"ip route show table 200", "unreachable default"},
		{"nft list table inet fabric", "udp dport 4789"},
		{"ip -d link show " + overlay.VXLANDevice(1000), "vxlan id 1000 local 10.255.0.1"},
		{"ip addr show eth1", "10.1.0.1/24"},
	} {
		if !n.has(c.line, c.text) {
			t.Errorf("%s: no %q in\n%s", c.line, c.text, n.sh(c.line))
		}
	}

	if out := n.fails(n.run()); !strings.Contains(out, n.state()+" is in use by process "+strconv.Itoa(site.Process.Pid)) {
		t.Errorf("second daemon: %s", out)
	}
	if out := n.fails(n.site(nil, "cleanup")); !strings.Contains(out, n.state()+" is in use by process") {
		t.Errorf("cleanup under a running daemon: %s", out)
	}

	running := n.host()
	n.write(strings.Replace(document, "table: 201", "table: 200", 1))
	if err := site.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.told("RELOADING=1")
	n.told("READY=1")
	n.wantProblem(api, "200")
	if s, err := n.status(api); err != nil || s.GetGeneration() != 1 {
		t.Errorf("%v %v", s, err)
	}
	n.wantHost("a bad document", running)
	n.write(strings.Replace(document, "10.9.0.0/16", "10.10.0.0/16", 1))
	if err := site.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.wantApplied(api, 2)
	if !n.has("ip route show table 200", "10.10.0.0/16 via 10.1.0.9") || n.has("ip route show table 200", "10.9.0.0/16") {
		t.Errorf("after a good document:\n%s", n.sh("ip route show table 200"))
	}

	running = n.host()
	n.terminate(site)
	n.told("STOPPING=1")
	n.wantHost("the stop", running)
	monitor := n.start("monitor", n.Command("ip", "monitor", "route", "rule", "nexthop"))
	site = n.startSite()
	n.wantApplied(n.api(), 2)
	_ = monitor.Process.Kill()
	_ = monitor.Wait()
	n.wantHost("a second start", running)
	if seen := n.logOf("monitor"); strings.Contains(seen, "table 200") {
		t.Errorf("a second start touched routes:\n%s", seen)
	}
	n.terminate(site)

	out, err := n.site(nil, "cleanup").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "removed ") {
		t.Errorf("cleanup: %v %s", err, out)
	}
	if out, err := n.site(nil, "cleanup").CombinedOutput(); err != nil || string(out) != "removed 0 objects\n" {
		t.Errorf("second cleanup: %v %s", err, out)
	}
	n.stopLinks()
	n.wantHost("all of it", before)
}

// A private key that others may read is refused, and the gateway's status says so; all that needs no tunnel works.
func TestKeyFileMode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.Chmod(n.key(), 0o644); err != nil {
		t.Fatal(err)
	}
	n.startLinks()
	n.startSite()
	api := n.api()
	n.wantProblem(api, "fabric-links", n.key(), "mode 0644", "chmod 600")
	if !n.has("ip route show table 200", "10.9.0.0/16 via 10.1.0.9 dev eth1") {
		t.Error("the site's own routes are missing")
	}
	if err := os.Chmod(n.key(), 0o600); err != nil {
		t.Fatal(err)
	}
	n.wantApplied(api, 1)
}

// What others made with our names is told by its owner and left alone; the rest stands.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	vxlan := overlay.VXLANDevice(1001)
	id := overlay.NextHopID(1000, mustAddr("10.255.0.2"))
	n.sh("ip link add "+vxlan+" type vxlan id 77 dstport 4790",
		"ip route add blackhole 10.9.0.0/16 table 200 metric 201 proto static",
		fmt.Sprintf("ip nexthop add id %d blackhole proto static", id))
	n.startLinks()
	n.startSite()
	api := n.api()
	n.wantProblem(api, "link", vxlan, "is not ours", "left untouched")
	n.wantProblem(api, "route", "10.9.0.0/16", "is not ours", "static", "left untouched")
	n.wantProblem(api, "fabric-links", "next hop", fmt.Sprint(id), "is not ours", "static")
	for _, c := range []struct{ line, text string }{
		{"ip -d link show " + vxlan, "vxlan id 77"},
		{"ip route show table 200", "blackhole 10.9.0.0/16 proto static metric 201"},
		{"ip nexthop show", fmt.Sprintf("id %d blackhole proto static", id)},
		// The rest stands.
		{"ip -d link show " + overlay.VXLANDevice(1000), "vxlan id 1000"},
		{"ip route show table 200", "unreachable default"},
		{"ip rule", "100:\tfrom all iif eth1 lookup 200"},
		{"nft list table inet fabric", "udp dport 4789"},
	} {
		if !n.has(c.line, c.text) {
			t.Errorf("%s: no %q in\n%s", c.line, c.text, n.sh(c.line))
		}
	}
	n.sh("ip link del "+vxlan, "ip route del blackhole 10.9.0.0/16 table 200 metric 201", fmt.Sprintf("ip nexthop del id %d", id))
	n.wantApplied(api, 1)
}

// A table of somebody else's where our guard belongs: it is left alone, and nothing is sent to other gateways without the guard.
func TestForeignTable(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("nft add table inet fabric", "nft add chain inet fabric theirs")
	n.startLinks()
	n.start("fabric-site", n.run())
	api := n.api()
	n.wantProblem(api, "filter", "nft table inet fabric", "is not ours", "left untouched")
	n.told("READY=1") // after the patience with fabric-links, which gets no plan
	if !n.has("nft list table inet fabric", "chain theirs") || n.has("nft list table inet fabric", "4789") {
		t.Errorf("their table:\n%s", n.sh("nft list table inet fabric"))
	}
	if !n.has("ip route show table 200", "10.9.0.0/16 via 10.1.0.9 dev eth1") {
		t.Error("the site's own routes are missing")
	}
	if n.has("ip -o link", overlay.TunnelPrefix) {
		t.Errorf("tunnels without a guard:\n%s", n.sh("ip -o link"))
	}
	n.sh("nft delete table inet fabric")
	n.wantApplied(api, 1)
}

// A change that cannot be kept is refused, and the generation before stays in force.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.Mkdir(n.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	n.sh("mount -t tmpfs -o size=256k full " + n.state())
	n.startLinks()
	n.startSite()
	api := n.api()
	n.wantApplied(api, 1)
	n.Command("sh", "-c", "cat /dev/zero > "+n.state()+"/filler").Run() //nolint:errcheck // it ends with a full disk
	add := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := api.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: "10.11.0.0/16", NextHop: "10.1.0.11"}})
		return err
	}
	if err := add(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("on a full disk: %v", err)
	}
	if s, err := n.status(api); err != nil || s.GetGeneration() != 1 || s.GetApplied() != 1 {
		t.Errorf("%v %v", s, err)
	}
	if n.has("ip route show table 200", "10.11.0.0/16") {
		t.Error("the change was applied although it was refused")
	}
	n.sh("rm " + n.state() + "/filler")
	if err := add(); err != nil {
		t.Fatal(err)
	}
	n.wantApplied(api, 2)
	if !n.has("ip route show table 200", "10.11.0.0/16 via 10.1.0.11") {
		t.Error("the change was not applied")
	}
}

// fabric-links may be away at first and go away later: the gateway says so, and all is well when it is back.
func TestLinksAway(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start("fabric-site", n.run())
	api := n.api()
	n.wantProblem(api, "fabric-links", "does not answer", "fabric-links.service")
	n.startLinks()
	n.told("READY=1")
	n.wantApplied(api, 1)
	n.stopLinks()
	n.wantProblem(api, "fabric-links", "does not answer")
	n.startLinks()
	n.wantApplied(api, 1)
}
