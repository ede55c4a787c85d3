package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/overlay"
	"fabric/overlay/links"
)

// asProgram makes the test binary be fabric-links: the engine starts tunnel processes by its own path.
const asProgram = "FABRIC_LINKS_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	// Those that run side by side mostly wait. A -parallel of the command line comes later, and counts.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// VTEPs and underlay of IPv6, and each beside the other family.
func TestTunnelIPv6(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, family, vtepA, vtepB, endpoint string }{
		{"v6 in v6", "ipv6", "fd00:255::1", "fd00:255::2", "2001:db8::2"},
		{"v6 in v4", "ipv6", "fd00:255::1", "fd00:255::2", "192.0.2.2"},
		{"v4 in v6", "ipv4", "10.255.0.1", "10.255.0.2", "2001:db8::2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b, plans := twoNodesWith(t, tt.family, tt.vtepA, tt.vtepB, tt.endpoint)
			bringUp(t, a, b, plans)
			if out := a.must("ip route get " + tt.vtepB); !strings.Contains(out, "src "+tt.vtepA) || !strings.Contains(out, plans[0].Tunnels[0].Device) {
				t.Errorf("route is %s", out)
			}
			if tt.family == "ipv6" {
				if out := a.must("ip -6 route show table all " + tt.vtepB); !strings.Contains(out, "unreachable") {
					t.Errorf("no backstop in\n%s", out)
				}
			}
			ops := len(a.logged("kind="))
			a.stop(syscall.SIGTERM)
			a.start()
			a.wait("up again", func() error { return isUp(a) })
			if more := a.logged("kind="); len(more) != ops {
				t.Errorf("operations after a restart: %v", more[ops:])
			}
		})
	}
}

// What the operator has to mend is said, and once it is mended all comes up by itself.
func TestProblemsOfTheOperator(t *testing.T) {
	t.Parallel()
	a, b, plans := twoNodes(t)
	device := plans[0].Tunnels[0].Device
	if err := os.Chmod(a.keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	port := inNode(t, a, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: plans[0].Tunnels[0].ListenPort})
	})
	b.start()
	b.apply(plans[1])
	a.start()
	a.apply(plans[0])
	told := func(text string) func() error {
		return func() error {
			s, err := a.state()
			if err != nil {
				return err
			}
			if len(s.Tunnels) != 1 || !strings.Contains(s.Tunnels[0].Err, text) {
				return fmt.Errorf("tunnels are %+v", s.Tunnels)
			}
			return nil
		}
	}
	a.wait("the key's mode is named", told("chmod 600 "+a.keyFile))
	if err := os.Chmod(a.keyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	a.wait("the taken port is named", told("in use"))
	if s, _ := a.state(); s.Tunnels[0].State == links.Up || s.Tunnels[0].Device != device {
		t.Errorf("tunnel is %+v", s.Tunnels[0])
	}
	unix.Close(port)
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
	a.wait("no error is left", func() error {
		if s, err := a.state(); err != nil || s.Tunnels[0].Err != "" {
			return fmt.Errorf("tunnels are %+v, error %v", s.Tunnels, err)
		}
		return nil
	})
}

func TestTunnelBetweenTwoHosts(t *testing.T) {
	a, b, plans := up(t)

	t.Logf("WireGuard in the kernel: %v", a.inKernel(plans[0].Tunnels[0].Device))
	t.Run("state tells", func(t *testing.T) {
		s, err := a.state()
		if err != nil {
			t.Fatal(err)
		}
		tunnel := s.Tunnels[0]
		if tunnel.State != links.Up || !tunnel.Active || tunnel.Endpoint.String() != "192.0.2.2:51820" ||
			tunnel.LastHandshake.IsZero() || tunnel.RxBytes == 0 || tunnel.Err != "" {
			t.Errorf("tunnel of a is %+v", tunnel)
		}
		if s.VTEPs[0].Device != plans[0].Tunnels[0].Device {
			t.Errorf("VTEP of a is %+v", s.VTEPs[0])
		}
		if s, _ := b.state(); s.Tunnels[0].Endpoint.Addr().String() != "192.0.2.1" {
			t.Errorf("the passive side has not learnt where the other is: %+v", s.Tunnels[0])
		}
	})
	t.Run("host as planned", func(t *testing.T) {
		for _, check := range []struct{ line, want string }{
			{"ip route get 10.255.0.2", "dev " + plans[0].Tunnels[0].Device + " src 10.255.0.1"},
			{"ip route show 10.255.0.2 metric 4278198272", "unreachable"},
			{"ip -6 addr show dev " + plans[0].Tunnels[0].Device, plans[0].Tunnels[0].LinkLocal.String() + "/64"},
			{"ip link show dev " + plans[0].Tunnels[0].Device, "mtu 1420"},
			{"cat /sys/class/net/" + plans[0].Tunnels[0].Device + "/ifalias", "fabric:a/b/0"},
			{"cat /proc/sys/net/ipv4/conf/" + plans[0].Tunnels[0].Device + "/rp_filter", "2"},
		} {
			if got := a.must(check.line); !strings.Contains(got, check.want) {
				t.Errorf("%s\n%swant %s", check.line, got, check.want)
			}
		}
		if got := a.must("ip -6 addr show scope link dev " + plans[0].Tunnels[0].Device); strings.Count(got, "inet6") != 1 {
			t.Errorf("more than one link-local address:\n%s", got)
		}
		// Path MTU: the tunnel's own, no more.
		a.must("ping -n -c1 -W2 -M do -s 1392 10.255.0.2")
		if out := a.try("ping -n -c1 -W1 -M do -s 1393 10.255.0.2"); !strings.Contains(out, "mtu") && !strings.Contains(out, "too long") {
			t.Errorf("1421 bytes without fragments: %s", out)
		}
	})
	t.Run("kept plan has no secret and mode 0600", func(t *testing.T) {
		name := filepath.Join(a.dir, "state", "plan.json")
		fi, err := os.Stat(name)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode is %v, error %v", fi.Mode(), err)
		}
		data, _ := os.ReadFile(name)
		key, _ := os.ReadFile(a.keyFile)
		if bytes.Contains(data, bytes.TrimSpace(key)) {
			t.Error("the plan holds the private key")
		}
		if _, err := overlay.ParsePlan(data); err != nil {
			t.Error(err)
		}
	})
	t.Run("same plan again changes nothing", func(t *testing.T) {
		before, seen := a.must("ip -d addr; ip route; ip nexthop"), len(a.logged("kind="))
		if r := a.apply(plans[0]); len(r.Objects) == 0 {
			t.Error("no results")
		}
		if after := a.must("ip -d addr; ip route; ip nexthop"); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
		if more := a.logged("kind="); len(more) != seen {
			t.Errorf("operations: %v", more[seen:])
		}
	})
	t.Run("second daemon refused", func(t *testing.T) {
		out, err := a.program("run", "--state-dir", t.TempDir(), "--run-dir", a.runDir()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another fabric-links") {
			t.Errorf("%v: %s", err, out)
		}
		out, err = a.program("cleanup", "--state-dir", t.TempDir(), "--run-dir", a.runDir()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another fabric-links") {
			t.Errorf("cleanup under a running engine: %v: %s", err, out)
		}
	})
}

func TestRestartLosesNothing(t *testing.T) {
	a, b, plans := twoNodes(t)
	for i := range plans {
		// The other end must not miss the engine for as long as it is away here.
		plans[i].Tunnels[0].BFD.IntervalMs = 1000 * slow
	}
	bringUp(t, a, b, plans)
	device := plans[0].Tunnels[0].Device
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			pid, err := a.tunnelPID(device)
			if err != nil {
				t.Fatal(err)
			}
			here, there := a.monitor(), b.monitor()
			machine, stop := watchMachine(), a.background(b)
			ops := len(a.logged("kind="))
			started := time.Now()
			a.stop(sig)
			if took := time.Since(started); took > slowly(5*time.Second) { // the unit's TimeoutStopSec
				machine.errorf(t, "took %s to end", took)
			}
			for range 20 {
				if err := a.ping(b); err != nil {
					t.Fatalf("without fabric-links: %v", err)
				}
			}
			// The plan is on disk: nobody applies it again.
			a.start()
			a.wait("tunnel is up again", func() error { return isUp(a) })
			time.Sleep(500 * time.Millisecond) // what comes after that
			sent, lost := stop()
			if lost > 0 {
				machine.errorf(t, "lost %d of %d", lost, sent)
			}
			t.Logf("%d sent, %d without answer", sent, lost)
			// Pings every 10 ms may miss a route that is away for less.
			if told := append(here(), there()...); len(told) > 0 {
				t.Errorf("routes changed: %q", told)
			}
			if again, err := a.tunnelPID(device); err != nil || again != pid {
				t.Errorf("tunnel process is %d, was %d: %v", again, pid, err)
			}
			if more := a.logged("kind="); len(more) != ops {
				t.Errorf("operations after the restart: %v", more[ops:])
			}
		})
	}
}

func isUp(n *node) error {
	s, err := n.state()
	if err != nil {
		return err
	}
	if len(s.Tunnels) == 0 || s.Tunnels[0].State != links.Up || !s.Tunnels[0].Active {
		return fmt.Errorf("tunnels are %+v", s.Tunnels)
	}
	return nil
}

func TestTunnelProcessIsRepaired(t *testing.T) {
	t.Parallel()
	a, b, plans := up(t)
	device := plans[0].Tunnels[0].Device
	for _, how := range []struct {
		name string
		harm func(pid int)
	}{
		{"killed", func(int) { a.breakTunnel(device) }},
		{"hung", func(pid int) {
			if pid != 0 { // what the kernel carries does not hang
				_ = unix.Kill(pid, unix.SIGSTOP)
			}
		}},
		{"device deleted by hand", func(int) { a.must("ip link del " + device) }},
		{"set down by hand", func(int) { a.must("ip link set " + device + " down") }},
		{"addresses, route and settings removed by hand", func(int) {
			a.must("ip addr flush dev " + device + " && ip addr del 10.255.0.1/32 dev lo && ip route flush 10.255.0.2 && echo 1 >/proc/sys/net/ipv4/conf/" + device + "/rp_filter")
		}},
	} {
		t.Run(how.name, func(t *testing.T) {
			pid, err := a.tunnelPID(device)
			if err != nil {
				t.Fatal(err)
			}
			how.harm(pid)
			since := time.Now()
			a.wait("VTEP to VTEP again", func() error { return a.ping(b) })
			t.Logf("repaired after %s", time.Since(since).Round(time.Millisecond))
			a.wait("host as planned", func() error {
				for line, want := range map[string]string{
					"ip -6 addr show dev " + device:                            plans[0].Tunnels[0].LinkLocal.String(),
					"cat /proc/sys/net/ipv4/conf/" + device + "/rp_filter":     "2",
					"ip route show 10.255.0.2 metric 4278198272":               "unreachable",
					"ip route get 10.255.0.2":                                  "dev " + device + " src 10.255.0.1",
					"cat /proc/sys/net/ipv6/conf/" + device + "/addr_gen_mode": "1",
				} {
					if got := a.try(line); !strings.Contains(got, want) {
						return fmt.Errorf("%s\n%s", line, got)
					}
				}
				return nil
			})
		})
	}
	t.Run("killed at the passive side", func(t *testing.T) {
		b.breakTunnel(plans[1].Tunnels[0].Device)
		machine, since := watchMachine(), time.Now()
		a.wait("VTEP to VTEP again", func() error { return a.ping(b) })
		// Without calling back, the dialling side would need 15 s to notice (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
		if took := time.Since(since); took > 10*time.Second {
			machine.errorf(t, "repaired after %s", took)
		}
		b.wait("keepalive is off again", func() error {
			if on, err := b.keepsAlive(plans[1].Tunnels[0].Device); err != nil || on {
				return fmt.Errorf("on %v: %w", on, err)
			}
			return nil
		})
	})
	t.Run("without fabric-links, then back", func(t *testing.T) {
		a.stop(syscall.SIGKILL)
		a.breakTunnel(device)
		a.wait("device is gone", func() error {
			if out := a.try("ip link show dev " + device); !strings.Contains(out, "does not exist") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		clear := watchClear(t, a)
		out := a.try("ping -n -c3 -i 0.1 -W1 10.255.0.2")
		if !strings.Contains(out, "No route to host") && !strings.Contains(out, "nreachable") {
			t.Errorf("ping without tunnel says: %s", out)
		}
		if frames := clear(); frames > 0 {
			t.Errorf("%d packets to the VTEP left in clear", frames)
		}
		// The watch does see what leaves in clear.
		a.must("ip route del unreachable 10.255.0.2 metric 4278198272")
		clear = watchClear(t, a)
		a.try("ping -n -c3 -i 0.1 -W1 10.255.0.2")
		if frames := clear(); frames == 0 {
			t.Error("the watch sees nothing")
		}
		a.start()
		a.wait("VTEP to VTEP again", func() error { return a.ping(b) })
	})
}

// Next hops wait for the VXLAN device, which fabric-site makes.
func TestNextHopsWaitForTheirDevice(t *testing.T) {
	t.Parallel()
	a, _, plans := up(t)
	id := plans[0].NextHops[0].ID
	s, err := a.state()
	if err != nil || len(s.NextHops) != 1 || s.NextHops[0].Ready || !strings.Contains(s.NextHops[0].Reason, "fxv1000") {
		t.Fatalf("next hops are %+v, error %v", s.NextHops, err)
	}
	ready := func(want bool) func() error {
		return func() error {
			s, err := a.state()
			if err != nil || s.NextHops[0].Ready != want {
				return fmt.Errorf("next hops are %+v, error %v", s.NextHops, err)
			}
			return nil
		}
	}
	vxlan := "ip link add fxv1000 type vxlan id 1000 dstport 4789 local 10.255.0.1 nolearning && ip link set fxv1000 alias fabric:vxlan/CORE up"
	a.must(vxlan)
	a.wait("next hop is made", ready(true))
	if out := a.must("ip nexthop show id " + strconv.FormatUint(uint64(id), 10)); !strings.Contains(out, "via fe80::5efe:aff:2 dev fxv1000") || !strings.Contains(out, "onlink") {
		t.Errorf("next hop is %s", out)
	}
	a.must("ip link del fxv1000")
	a.wait("next hop waits again", ready(false))
	a.must(vxlan)
	a.wait("next hop is made again", ready(true))
}

// What others own is named and stays.
func TestForeignObjectsStay(t *testing.T) {
	t.Parallel()
	a, _, plans := twoNodes(t)
	tunnel, id := plans[0].Tunnels[0].Device, strconv.FormatUint(uint64(plans[0].NextHops[0].ID), 10)
	a.must("ip link add " + tunnel + " type bridge")
	a.must("ip link add fxv1000 type vxlan id 1000 dstport 4789 local 192.0.2.1 nolearning && ip link set fxv1000 alias fabric:vxlan/CORE up")
	a.must("ip nexthop add id " + id + " via 192.0.2.2 dev under protocol static")
	a.must("ip route add blackhole 10.255.0.2 metric 4278198272 proto static")
	a.start()
	foreign := map[string]string{}
	for _, o := range a.apply(plans[0]).Problems() {
		if o.Status == links.Foreign {
			foreign[o.Kind] = o.Message
		}
	}
	for kind, want := range map[string]string{"link": "bridge", "next hop": "static", "route": "static"} {
		if !strings.Contains(foreign[kind], want) || !strings.Contains(foreign[kind], "left untouched") {
			t.Errorf("%s: message is %q, want the owner %q", kind, foreign[kind], want)
		}
	}
	for line, want := range map[string]string{
		"ip -d link show " + tunnel:                  "bridge",
		"ip nexthop show id " + id:                   "via 192.0.2.2",
		"ip route show 10.255.0.2 metric 4278198272": "blackhole",
	} {
		if got := a.must(line); !strings.Contains(got, want) {
			t.Errorf("%s: %s", line, got)
		}
	}
	if devices, _ := links.NewSystemdProcesses(a.runDir()).List(); len(devices) > 0 {
		t.Errorf("a tunnel process runs beside a foreign device: %v", devices)
	}
}

func TestCleanupRemovesAllOfOurs(t *testing.T) {
	t.Parallel()
	a, _, plans := twoNodes(t)
	picture := "ip -o -d link | sed 's/[0-9]*: //' | sort; ip -o addr show scope global; ip route show table all | sort; ip nexthop"
	before := a.must(picture)
	a.start()
	a.apply(plans[0])
	a.wait("the device is there", func() error {
		if out := a.try("ip addr show dev " + plans[0].Tunnels[0].Device); !strings.Contains(out, "inet6") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	a.stop(syscall.SIGTERM)
	if after := a.must(picture); after == before {
		t.Fatal("the picture does not show what fabric-links does")
	}
	out, err := a.program("cleanup", "--state-dir", filepath.Join(a.dir, "state"), "--run-dir", a.runDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("cleanup: %v\n%s", err, out)
	}
	if after := a.must(picture); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if left, _ := filepath.Glob(filepath.Join(a.dir, "state", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A plan that shrinks takes its objects away, one that another gateway's is refused, and one of another version too.
func TestPlanChanges(t *testing.T) {
	t.Parallel()
	a, _, plans := up(t)
	other := plans[0]
	other.Gateway = "c"
	future := plans[0]
	future.Version = overlay.PlanVersion + 2
	for _, tt := range []struct {
		plan overlay.Plan
		want string
	}{{other, "another gateway"}, {future, "version 3 is not understood"}, {overlay.Plan{Version: 1}, "no gateway name"}} {
		data, err := json.Marshal(tt.plan)
		if err != nil {
			t.Fatal(err)
		}
		client, err := links.Dial(a.socket())
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Apply(context.Background(), tt.plan)
		client.Close()
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), a.socket()) {
			t.Errorf("plan %s: error is %v, want %q and the socket in it", data, err, tt.want)
		}
	}
	if err := isUp(a); err != nil {
		t.Errorf("after plans that were refused: %v", err)
	}
	less := plans[0]
	less.Tunnels, less.VTEPs, less.NextHops = nil, nil, nil
	a.apply(less)
	if out := a.must("ip route"); strings.Contains(out, "10.255.0.2") {
		t.Errorf("left:\n%s", out)
	}
	// Processes are asked to end and not waited for; their devices go with them.
	a.wait("tunnels are gone", func() error {
		devices, err := links.NewSystemdProcesses(a.runDir()).List()
		if out := a.must("ip -o link"); err != nil || len(devices) > 0 || strings.Contains(out, overlay.TunnelPrefix) {
			return fmt.Errorf("processes %v, error %v, links\n%s", devices, err, out)
		}
		return nil
	})
}
