package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
)

// A real host with real faults: each command breaks one thing.
func TestGatherInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "sysctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	key := filepath.Join(t.TempDir(), "gw.key")
	if _, err := config.GenerateKey(key); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	doc := parse(t, key)
	o := Options{StateDir: t.TempDir(), Socket: filepath.Join(t.TempDir(), "a"), Links: filepath.Join(t.TempDir(), "b")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, its namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("no network namespaces here: %v", err)
			return
		}
		look := func() []Finding {
			f, err := Gather(t.Context(), doc, "gw", o)
			if err != nil {
				t.Error(err)
			}
			return Run(t.Context(), f)
		}
		run := func(lines ...string) {
			for _, line := range lines {
				if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", line, err, out)
				}
			}
		}
		run("ip link set lo up", "ip link add eth0 type veth peer name far0", "ip link set eth0 up", "ip link set far0 up",
			"ip address add 203.0.113.1/24 dev eth0", "sysctl -qw net.ipv4.ip_forward=0")
		first := look()
		for _, id := range []string{"interface-absent", "private-key-mode", "ipv4-forwarding-off", "firewall-missing", "links-not-answering"} {
			if !slices.Contains(ids(first), id) {
				t.Errorf("%s is not found: %q", id, ids(first))
			}
		}
		for _, id := range []string{"underlay-mtu", "vtep-duplicate", "foreign-nft-table", "port-taken-vxlan", "interface-down", "foreign-nexthop", "not-readable"} {
			if slices.Contains(ids(first), id) {
				t.Errorf("%s is found before it is there: %+v", id, first)
			}
		}
		// The firewall that is proposed is taken by nft, and is what was missing.
		for _, f := range first {
			if f.ID == "firewall-missing" {
				run(f.Mend)
			}
		}
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(c)
			err = unix.Bind(c, &unix.SockaddrInet4{Port: 4789})
		}
		if err != nil {
			t.Error(err)
		}
		run("ip link set eth0 mtu 1400", "ip link add br0 type bridge", "ip link add eth1 type veth peer name far1", "ip link set eth1 master br0",
			"sysctl -qw net.ipv4.conf.eth1.rp_filter=1", "ip address add 10.255.0.1/32 dev eth0", "nft add table inet fabric",
			"ip nexthop add id 2147483653 via 203.0.113.9 dev eth0", "ip route add 10.7.0.0/16 dev eth0 table 200")
		second := look()
		for _, id := range []string{"underlay-mtu", "interface-down", "interface-foreign-master", "rp-filter-strict", "vtep-duplicate",
			"foreign-nft-table", "foreign-nexthop", "foreign-routes", "port-taken-vxlan"} {
			if !slices.Contains(ids(second), id) {
				t.Errorf("%s is not found: %q", id, ids(second))
			}
		}
		for _, id := range []string{"firewall-missing", "interface-absent"} {
			if slices.Contains(ids(second), id) {
				t.Errorf("%s is still found", id)
			}
		}
		for _, f := range second {
			if f.ID == "port-taken-vxlan" && !strings.Contains(f.What, "process") {
				t.Errorf("the owner is not named: %s", f.What)
			}
		}
	}()
	<-done
}
