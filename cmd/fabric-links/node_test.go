package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"fabric/internal/config"
	"fabric/lab/netns"
	"fabric/overlay"
	"fabric/overlay/links"
)

// node is one gateway: network and mount namespaces of its own, and a fabric-links.
//
//	a: 192.0.2.1 ── veth "under" ── 192.0.2.2 :b
//	VTEP 10.255.0.1                 VTEP 10.255.0.2
type node struct {
	*netns.Host
	t           *testing.T
	name        string
	vtep        netip.Addr
	pid         int
	dir         string
	keyFile, pk string
	engine      *exec.Cmd
	log         *os.File
}

func newNode(t *testing.T, name string, vtep string) *node {
	t.Helper()
	n := &node{t: t, name: name, vtep: netip.MustParseAddr(vtep), dir: t.TempDir()}
	host, err := netns.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	// Tunnel processes outlive the daemon.
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	n.Host, n.pid = host, host.PID()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	n.pk, n.keyFile = key.PublicKey().String(), filepath.Join(n.dir, "key")
	if err := os.WriteFile(n.keyFile, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.log, err = os.Create(filepath.Join(n.dir, "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(n.log.Name())
			t.Logf("log of %s:\n%s", name, b)
			for _, args := range []string{"link", "addr", "route show table all", "-6 route", "nexthop"} {
				t.Logf("%s: ip %s\n%s", name, args, n.try("ip "+args))
			}
		}
	})
	return n
}

func (n *node) runDir() string { return filepath.Join(n.dir, "run") }
func (n *node) socket() string { return filepath.Join(n.runDir(), "links.sock") }

// command runs within the node.
func (n *node) command(args ...string) *exec.Cmd {
	return n.Command(args...)
}

// try runs a shell line and returns what it prints.
func (n *node) try(line string) string {
	out, err := n.command("sh", "-c", line).CombinedOutput()
	if err != nil {
		return string(out) + err.Error()
	}
	return string(out)
}

func (n *node) must(line string) string {
	n.t.Helper()
	out, err := n.command("sh", "-c", line).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, line, err, out)
	}
	return string(out)
}

func (n *node) program(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	c := n.command(append([]string{self}, args...)...)
	c.Env = append(os.Environ(), asProgram+"=1")
	return c
}

func (n *node) start() {
	n.t.Helper()
	n.engine = n.program("run", "--state-dir", filepath.Join(n.dir, "state"), "--run-dir", n.runDir())
	n.engine.Stdout, n.engine.Stderr = n.log, n.log
	if err := n.engine.Start(); err != nil {
		n.t.Fatal(err)
	}
	engine := n.engine
	n.t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
	n.wait("fabric-links answers", func() error { _, err := n.state(); return err })
}

func (n *node) stop(sig syscall.Signal) {
	n.t.Helper()
	// nsenter has replaced itself by the program: the process is the engine.
	if err := n.engine.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
	err := n.engine.Wait()
	if sig == syscall.SIGTERM && err != nil {
		n.t.Fatalf("%s: fabric-links after SIGTERM: %v", n.name, err)
	}
}

func (n *node) state() (links.State, error) {
	client, err := links.Dial(n.socket())
	if err != nil {
		return links.State{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return client.Get(ctx)
}

func (n *node) apply(p overlay.Plan) links.Result {
	n.t.Helper()
	client, err := links.Dial(n.socket())
	if err != nil {
		n.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := client.Apply(ctx, p)
	if err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	return r
}

// wait tries until f is content.
func (n *node) wait(what string, f func() error) {
	n.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: %s: %v", n.name, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ping sends one echo to another node's VTEP.
func (n *node) ping(to *node) error {
	out, err := n.command("ping", "-n", "-c1", "-W1", to.vtep.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s: %w: %s", to.vtep, err, out)
	}
	return nil
}

// tunnelPID is the process that carries the node's tunnel, 0 if the kernel itself does.
func (n *node) tunnelPID(device string) (int, error) {
	if n.inKernel(device) {
		return 0, nil
	}
	// The lock is a record lock: lslocks would tell; the kernel's own table does too, by inode.
	fi, err := os.Stat(filepath.Join(n.runDir(), "tunnel-"+device+".lock"))
	if err != nil {
		return 0, err
	}
	ino := fmt.Sprintf(":%d ", fi.Sys().(*syscall.Stat_t).Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(locks)) {
		if f := strings.Fields(line); strings.Contains(line, ino) && strings.Contains(line, "POSIX") && len(f) > 4 {
			return strconv.Atoi(f[4])
		}
	}
	return 0, fmt.Errorf("nobody holds the lock of %s", device)
}

// inKernel says whether a device of the node is the kernel's WireGuard.
func (n *node) inKernel(device string) bool {
	return strings.Contains(n.try("ip -d link show dev "+device), "\n    wireguard ")
}

// breakTunnel ends a tunnel: its process, or what the kernel has in its place, the device.
func (n *node) breakTunnel(device string) {
	n.t.Helper()
	switch pid, err := n.tunnelPID(device); {
	case err != nil:
		n.t.Fatal(err)
	case pid == 0:
		n.must("ip link del " + device)
	default:
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// keepsAlive says whether a tunnel of the node sends keepalives.
func (n *node) keepsAlive(device string) (bool, error) {
	if n.inKernel(device) {
		out := n.try("wg show " + device + " persistent-keepalive")
		return !strings.HasSuffix(out, "\toff\n"), nil
	}
	out, err := n.uapi(device)
	return !strings.Contains(out, "persistent_keepalive_interval=0\n"), err
}

// uapi asks a tunnel process of the node what it holds.
func (n *node) uapi(device string) (string, error) {
	c, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root/run/wireguard/%s.sock", n.pid, device))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte("get=1\n\n")); err != nil {
		return "", err
	}
	var out strings.Builder
	lines := bufio.NewScanner(c)
	for lines.Scan() && lines.Text() != "" {
		if !strings.HasPrefix(lines.Text(), "private_key=") {
			fmt.Fprintln(&out, lines.Text())
		}
	}
	return out.String(), lines.Err()
}

// twoNodes makes two nodes with a veth between them, and their plans: a dials, b is passive.
func twoNodes(t *testing.T) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	return twoNodesWith(t, "ipv4", "10.255.0.1", "10.255.0.2", "192.0.2.2")
}

func twoNodesWith(t *testing.T, family, vtepA, vtepB, endpoint string) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	a, b = newNode(t, "a", vtepA), newNode(t, "b", vtepB)
	a.must(fmt.Sprintf("ip link add under type veth peer name under netns /proc/%d/ns/net", b.pid))
	a.must("ip addr add 192.0.2.1/24 dev under && ip link set under addrgenmode none up && ip route add default via 192.0.2.2")
	b.must("ip addr add 192.0.2.2/24 dev under && ip link set under addrgenmode none up && ip route add default via 192.0.2.1")
	a.must("ip addr add 2001:db8::1/64 dev under nodad && ip route add default via 2001:db8::2")
	b.must("ip addr add 2001:db8::2/64 dev under nodad && ip route add default via 2001:db8::1")
	gw := func(n *node, asn uint32, endpoints ...config.Endpoint) config.Gateway {
		return config.Gateway{
			Name: n.name, ASN: asn, VTEP: n.vtep, Endpoints: endpoints,
			WireGuard: config.WireGuard{PublicKey: n.pk, PrivateKeyFile: n.keyFile, Keepalive: config.Duration(time.Second)},
			VRFs:      []config.GatewayVRF{{VRF: "CORE"}},
		}
	}
	doc := &config.Document{
		Fabric: config.Fabric{Name: "test", VTEPFamily: family, UnderlayMTU: 1500, MSS: 1300, WireGuardPort: 51820, DirectPort: 4790},
		VRFs:   []config.VRF{{Name: "CORE", Table: 200, VNI: 1000}},
		Sites: []config.Site{
			{Name: "a-1", Gateways: []config.Gateway{gw(a, 65001)}},
			{Name: "b-1", Gateways: []config.Gateway{gw(b, 65002, config.Endpoint{Address: netip.MustParseAddr(endpoint)})}},
		},
		Links: config.Links{Mesh: "full", Tunnels: []config.Tunnel{{Kind: "wireguard"}}},
	}
	for i, n := range []*node{a, b} {
		p, err := overlay.Compile(doc, n.name, overlay.Host{})
		if err != nil {
			t.Fatal(err)
		}
		p.Tunnels[0].BFD.IntervalMs *= slow
		plans[i] = p
	}
	return a, b, plans
}

// up starts both and waits until the VTEPs reach each other.
func up(t *testing.T) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	a, b, plans = twoNodes(t)
	bringUp(t, a, b, plans)
	return a, b, plans
}

func bringUp(t *testing.T, a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	// The passive side first: who dials a closed port waits 5 s before the next handshake (REKEY_TIMEOUT).
	a.start()
	b.start()
	for i, n := range []*node{b, a} {
		for _, o := range n.apply(plans[1-i]).Problems() {
			if o.Status != links.Pending {
				t.Errorf("%s: %+v", n.name, o)
			}
		}
	}
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
	b.wait("VTEP to VTEP", func() error { return b.ping(a) })
}

// inNode opens a socket within the node's network namespace.
func inNode(t *testing.T, n *node, open func() (int, error)) int {
	t.Helper()
	fd := -1
	if err := n.Within(func() (err error) { fd, err = open(); return err }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// logged are the lines of the engine's log with text in them.
func (n *node) logged(text string) []string {
	b, err := os.ReadFile(n.log.Name())
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			out = append(out, line)
		}
	}
	return out
}

// monitor is what the kernel tells of routes and next hops from here on, without its own.
func (n *node) monitor() (messages func() []string) {
	n.t.Helper()
	told, err := os.Create(filepath.Join(n.t.TempDir(), "monitor"))
	if err != nil {
		n.t.Fatal(err)
	}
	monitor := n.command("ip", "-o", "monitor", "route", "nexthop")
	monitor.Stdout = told
	if err := monitor.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = monitor.Process.Kill(); _ = monitor.Wait(); _ = told.Close() })
	n.wait("the monitor sees changes", func() error {
		n.must("ip route add blackhole 198.51.100.0/24 && ip route del blackhole 198.51.100.0/24")
		if b, _ := os.ReadFile(told.Name()); len(b) == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	return func() []string {
		b, _ := os.ReadFile(told.Name())
		lines := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
		// The kernel gives devices their link-local addresses when it comes to it.
		return slices.DeleteFunc(lines, func(l string) bool {
			return strings.Contains(l, "198.51.100.0") || strings.Contains(l, " proto kernel ")
		})
	}
}

// background pings every 10 ms until stopped and tells how many got no answer.
func (n *node) background(to *node) (stop func() (sent, lost int)) {
	n.t.Helper()
	var out bytes.Buffer
	c := n.command("ping", "-n", "-i", "0.01", "-W", "1", to.vtep.String())
	c.Stdout = &out
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Process.Kill() })
	return func() (int, int) {
		n.t.Helper()
		_ = c.Process.Signal(syscall.SIGINT)
		_ = c.Wait()
		var sent, received, last int
		for line := range strings.Lines(out.String()) {
			if _, rest, ok := strings.Cut(line, " icmp_seq="); ok {
				var seq int
				if _, err := fmt.Sscanf(rest, "%d", &seq); err != nil {
					n.t.Fatalf("%q: %v", line, err)
				}
				last = max(last, seq)
			} else if strings.Contains(line, "packets transmitted") {
				if _, err := fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received); err != nil {
					n.t.Fatal(err)
				}
			}
		}
		if sent == 0 {
			n.t.Fatalf("ping said:\n%s", out.String())
		}
		// Those of the last 100 ms may be on their way when ping is ended.
		onTheWay := min(sent-last, 10)
		return sent, sent - received - onTheWay
	}
}

// watchClear counts frames to b's VTEP that leave n, until the function returned is called.
func watchClear(t *testing.T, n *node) func() int {
	t.Helper()
	fd := inNode(t, n, func() (int, error) {
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	})
	return func() int {
		defer unix.Close(fd)
		frames := 0
		buf := make([]byte, 2048)
		for {
			size, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return frames
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			// Outgoing IPv4 over Ethernet: the destination address is at 14+16.
			if ok && ll.Pkttype == unix.PACKET_OUTGOING && size > 34 && buf[12] == 8 && buf[13] == 0 && bytes.Equal(buf[30:34], []byte{10, 255, 0, 2}) {
				frames++
			}
		}
	}
}
