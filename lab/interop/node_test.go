package interop

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fabric/lab/netns"
)

// slow is how many times slower than a processor of its own the machine is: 1, or what FABRIC_TEST_SLOW says. A virtual machine whose
// processors are simulated sets it.
var slow = func() int {
	n, _ := strconv.Atoi(os.Getenv("FABRIC_TEST_SLOW"))
	return max(1, n)
}()

// slowly is a time that grows on a slow machine.
func slowly(d time.Duration) time.Duration { return d * time.Duration(slow) }

// patience is how long a state may take on a loaded machine.
var patience = time.Minute + slowly(30*time.Second)

// bfdInterval is that of BFD at both ends, with a multiplier of 4.
var bfdInterval = slowly(300 * time.Millisecond)

// full says whether all of it runs.
func full() bool { return os.Getenv("INTEROP") == "full" }

// needs skips a test where it cannot run.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range append(tools, "unshare", "nsenter", "ip", "nft", "sysctl") {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool, ": ", err)
		}
	}
}

// wait waits for a state, and says what there was instead if it does not come.
func wait(t *testing.T, what string, timeout time.Duration, ok func() (string, bool)) {
	t.Helper()
	if got, done := reach(timeout, ok); !done {
		t.Fatalf("after %v: want %s; have %s", timeout, what, got)
	}
}

// reach waits for a state and says whether it came.
func reach(timeout time.Duration, ok func() (string, bool)) (string, bool) {
	end := time.Now().Add(timeout)
	for {
		got, done := ok()
		if done || time.Now().After(end) {
			return got, done
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// node is a host: network and mount namespaces of its own, and a folder.
type node struct {
	*netns.Host
	t    *testing.T
	name string
	dir  string
}

// newNode makes a host, which ends with the test and all that runs in it.
func newNode(t *testing.T, name string) *node {
	t.Helper()
	// A socket's path is short, and FRR's user must be able to enter: not every test's folder is like that.
	dir, err := os.MkdirTemp("", "interop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	host, err := netns.NewHost()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return &node{Host: host, t: t, name: name, dir: dir}
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// file writes a file into the node's folder and returns its path.
func (n *node) file(name, text string) string {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.path(name)
}

// try runs a command in the node and returns what it says on both outputs.
func (n *node) try(args ...string) (string, error) {
	out, err := n.Command(args...).CombinedOutput()
	return string(out), err
}

// sh runs shell lines in the node; a failure ends the test.
func (n *node) sh(lines ...string) string {
	n.t.Helper()
	out, err := n.try("sh", "-ec", strings.Join(lines, "\n"))
	if err != nil {
		n.t.Fatalf("%s: %q: %v\n%s", n.name, lines, err, out)
	}
	return out
}

// batch gives ip its commands, many at once; those that begin with -6 are for IPv6.
func (n *node) batch(lines ...string) {
	n.t.Helper()
	parts := map[string]string{}
	for _, l := range lines {
		if rest, six := strings.CutPrefix(l, "-6 "); six {
			parts["-6"] += rest + "\n"
		} else {
			parts["-4"] += l + "\n"
		}
	}
	for family, text := range parts {
		cmd := n.Command("ip", family, "-batch", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			n.t.Fatalf("%s: ip %s: %v\n%s", n.name, family, err, out)
		}
	}
}

// link joins a device of this node to one of another, both up.
func (n *node) link(device string, other *node, otherDevice string) {
	n.t.Helper()
	n.sh(fmt.Sprintf("ip link add %s type veth peer name %s netns %d", device, otherDevice, other.PID()), "ip link set "+device+" up")
	other.sh("ip link set " + otherDevice + " up")
}

// process is a program at work in a node.
type process struct {
	node *node
	name string
	cmd  *exec.Cmd
	done chan struct{}
	log  string
}

// start starts a program. It is killed at the end of the test, which prints what it said if it failed.
func (n *node) start(name string, stdin io.Reader, args ...string) *process {
	n.t.Helper()
	log, err := os.CreateTemp(n.dir, name+"-*.log")
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	p := &process{node: n, name: name, cmd: n.Command(args...), done: make(chan struct{}), log: log.Name()}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the test is killed
	if err := p.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // how it ended is in its log
	}()
	n.t.Cleanup(func() {
		p.kill()
		if n.t.Failed() {
			text := p.said()
			n.t.Logf("%s of %s:\n%s", name, n.name, text[max(0, len(text)-40_000):])
		}
	})
	return p
}

func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// alive says whether the program still runs.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the program at once, as a crash would.
func (p *process) kill() { p.signal(syscall.SIGKILL) }

func (p *process) signal(s os.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// resident is VmRSS of the program in bytes.
func (p *process) resident() int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// getenv is the environment's value, or another where there is none.
func getenv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
