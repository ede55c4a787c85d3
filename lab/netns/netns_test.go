package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fabric/lab/clab"
)

const tiny = "testdata/tiny/tiny.clab.yml"

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

// up starts a topology in a folder of the test's own and takes it down after the test.
func up(t *testing.T, file string) *Lab {
	t.Helper()
	needRoot(t)
	l, err := Up(t.Context(), file, Options{Dir: filepath.Join(t.TempDir(), "lab, one")})
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

// run runs a command in a node and returns its output.
func run(t *testing.T, n *Node, argv ...string) string {
	t.Helper()
	out, err := n.Command(t.Context(), argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %v\n%s", n.Name, argv, err, out)
	}
	return string(out)
}

// hostView is what a lab could leave behind on the host: interfaces, mounts and files.
func hostView(t *testing.T) string {
	t.Helper()
	var view bytes.Buffer
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		fmt.Fprintln(&view, strings.Fields(line)[1])
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, t.Name()) { // other tests on this host mount things as well
			view.WriteString(line)
		}
	}
	for _, path := range []string{"/srv/fabric-lab-test", "/run/daemon.sh", "/.host", "/var/lib/fabric/started"} {
		if _, err := os.Lstat(path); err == nil {
			fmt.Fprintln(&view, path)
		}
	}
	return view.String()
}

func TestTraffic(t *testing.T) {
	l := up(t, tiny)
	for _, address := range []string{"198.51.100.2", "2001:db8:2::2"} {
		if out := run(t, l.Node("left"), "ping", "-c1", "-W2", address); !strings.Contains(out, "ttl=63") {
			t.Errorf("ping %s: want ttl=63 (one router), got\n%s", address, out)
		}
	}
	for _, test := range []struct{ node, ifname, mtu string }{
		{"left", "eth1", "1400"}, {"router", "eth1", "1400"}, {"router", "eth2", "9500"}, {"right", "eth1", "9500"},
	} {
		// Through /sys, which must be that of the node's own network namespace.
		if got := strings.TrimSpace(run(t, l.Node(test.node), "cat", "/sys/class/net/"+test.ifname+"/mtu")); got != test.mtu {
			t.Errorf("%s %s: mtu %s, want %s", test.node, test.ifname, got, test.mtu)
		}
	}
	if got := strings.TrimSpace(run(t, l.Node("left"), "cat", "/proc/sys/net/ipv4/ip_forward")); got != "0" {
		t.Errorf("left: ip_forward %s: the router's sysctl leaked", got)
	}
}

func TestFileSystem(t *testing.T) {
	before := hostView(t)
	l := up(t, tiny)
	left, right := l.Node("left"), l.Node("right")

	if got := run(t, left, "cat", "/srv/fabric-lab-test/deep/greeting.txt"); got != "hello from the host\n" {
		t.Errorf("bind: got %q", got)
	}
	if err := left.Command(t.Context(), "test", "-w", "/srv/fabric-lab-test/deep/greeting.txt").Run(); err == nil {
		t.Error("a bind with :ro can be written")
	}
	if got := run(t, left, "sh", "-c", "hostname; echo $WHO; pwd"); got != "left\nleft one\n/\n" {
		t.Errorf("host name, environment, folder: got %q", got)
	}
	for _, path := range []string{"/srv/fabric-lab-test", "/run/daemon.sh", "/var/lib/fabric/started"} {
		if err := right.Command(t.Context(), "test", "-e", path).Run(); err == nil {
			t.Errorf("%s of left is seen in right", path)
		}
	}
	for _, path := range []string{"/run", "/tmp", "/var/log", "/etc"} {
		run(t, left, "touch", path+"/only-left-"+filepath.Base(t.TempDir()))
	}
	if out := run(t, right, "sh", "-c", "ls /run /tmp /var/log /etc"); strings.Contains(out, "only-left") {
		t.Errorf("left's files are seen in right:\n%s", out)
	}
	if data, err := os.ReadFile(left.Path("/var/lib/fabric/started")); err != nil || string(data) != "started\n" {
		t.Errorf("a node's file seen from the host: %q, %v", data, err)
	}
	if after := hostView(t); strings.Contains(after, "fabric-lab-test") || strings.Contains(after, "/.host") ||
		strings.Contains(after, "daemon.sh") || strings.Contains(after, "started") {
		t.Errorf("the host sees a node's files:\nbefore\n%s\nnow\n%s", before, after)
	}
}

func TestDownLeavesNothing(t *testing.T) {
	needRoot(t)
	before := hostView(t)
	dir := filepath.Join(t.TempDir(), "lab")
	l, err := Up(t.Context(), tiny, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Down(context.Background()) })
	processes, err := l.Node("left").Processes()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(processes, func(p Process) bool { return p.Command == "sleep 987654" }) {
		t.Fatalf("the daemon of left is not among its processes: %v", processes)
	}
	if _, err := Up(t.Context(), tiny, Options{Dir: dir}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second up: %v, want fs.ErrExist", err)
	}
	// Another process's view, and the keep-alive killed: the daemon must be found all the same.
	again, err := Open(tiny, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(again.Node("left").Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // twice: down is idempotent
		if err := Down(t.Context(), tiny, Options{Dir: dir}); err != nil {
			t.Fatalf("down %d: %v", i+1, err)
		}
	}
	for _, p := range processes {
		if running(p) {
			t.Errorf("process %d (%s) is still there", p.Pid, p.Command)
		}
	}
	if after := hostView(t); after != before {
		t.Errorf("the host changed; before\n%s\nafter\n%s", before, after)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder: %v, want it gone", err)
	}
	if _, err := Open(tiny, Options{Dir: dir}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open after down: %v, want fs.ErrNotExist", err)
	}
}

// TestDownAfterBrokenStart: a start that was killed after its first nodes, before any exec.
func TestDownAfterBrokenStart(t *testing.T) {
	needRoot(t)
	before := hostView(t)
	topology, err := clab.Load(tiny)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "lab")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := newLab(topology, Options{Dir: dir})
	t.Cleanup(func() { l.Down(context.Background()) })
	if err := l.writeState(); err != nil {
		t.Fatal(err)
	}
	left := l.Node("left")
	if err := left.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(tiny, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("open: %v, want that the start was broken off", err)
	}
	if err := Down(t.Context(), tiny, Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if running(Process{Pid: left.Pid(), Command: "sleep infinity"}) {
		t.Errorf("process %d is still there", left.Pid())
	}
	if after := hostView(t); after != before {
		t.Errorf("the host changed; before\n%s\nafter\n%s", before, after)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder: %v, want it gone", err)
	}
}

// running says whether the process is there with the same command line, and no zombie.
func running(p Process) bool {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
	return strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ") == p.Command
}

func TestFailedStartLeavesNothing(t *testing.T) {
	needRoot(t)
	head := "name: netns-bad\ntopology:\n  defaults: {kind: linux, image: x, network-mode: none}\n"
	for _, test := range []struct{ name, text, want string }{
		{"exec", head + "  nodes:\n    a: {exec: [\"setsid -f sleep 987653\", \"sh -c 'echo broken on purpose; exit 7'\"]}\n    b: {}\n  links: [{endpoints: [\"a:eth1\", \"b:eth1\"]}]\n",
			"node a: exec \"sh -c echo broken on purpose; exit 7\": exit status 7: broken on purpose"},
		{"no such command", head + "  nodes: {a: {exec: [no-such-command]}}\n", "no-such-command"},
		{"sysctl", head + "  nodes: {a: {sysctls: {net.ipv4.no_such: 1}}}\n", "no_such"},
		{"file system", head + "  nodes: {a: {binds: [\"/etc:/proc/nowhere/etc\"]}}\n", "node a: file system: exit status"},
		{"bind source", head + "  nodes: {a: {binds: [\"nowhere:/x\"]}}\n", "node a: bind source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := hostView(t)
			file := filepath.Join(t.TempDir(), "bad.clab.yml")
			if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "lab")
			l, err := Up(t.Context(), file, Options{Dir: dir})
			if err == nil {
				l.Down(context.Background())
				t.Fatal("came up")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("no %q in: %v", test.want, err)
			}
			if after := hostView(t); after != before {
				t.Errorf("the host changed; before\n%s\nafter\n%s", before, after)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("folder: %v, want it gone", err)
			}
			if out, err := exec.Command("pgrep", "-fx", "sleep 987653").Output(); err == nil {
				t.Errorf("its daemon is still there: %s", out)
			}
		})
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	one, two := up(t, tiny), up(t, tiny)
	run(t, one.Node("right"), "ip", "link", "set", "eth1", "down")
	run(t, two.Node("left"), "ping", "-c1", "-W2", "198.51.100.2")
	if err := one.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, two.Node("left"), "ping", "-c1", "-W2", "198.51.100.2")
}

func TestCommandEndsWithContext(t *testing.T) {
	l := up(t, tiny)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := l.Node("left").Command(ctx, "sleep", "987652")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The command's process is the program itself once it has entered the node.
	deadline := time.Now().Add(30 * time.Second)
	for !running(Process{Pid: cmd.Process.Pid, Command: "sleep 987652"}) {
		if time.Now().After(deadline) {
			t.Fatal("the command never became the program")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("wait: %v, want it killed", err)
	}
}

func TestDownRefusesForeignFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), tiny, Options{Dir: dir}); err == nil {
		t.Error("a folder that is no lab's was taken down")
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"name":"another"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), tiny, Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "belongs to lab another") {
		t.Errorf("another lab's folder: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
