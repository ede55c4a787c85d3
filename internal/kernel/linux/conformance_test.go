package linux_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/kernel/linux"
)

// world is a real kernel in a network namespace of its own. The namespace has no name: it ends with the test's thread.
type world struct {
	*linux.Host
}

// newWorld moves the test's goroutine, for good, to a thread in a fresh network namespace.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread is not fit for anything else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		t.Fatal(err)
	}
	return &world{openHost(t)}
}

func openHost(t testing.TB) *linux.Host {
	t.Helper()
	h, err := linux.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// run runs a command on the calling thread's namespace.
func run(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (w *world) AddDevice(name string) error {
	peer := name + "p"
	for _, args := range [][]string{
		{"ip", "link", "add", name, "type", "veth", "peer", "name", peer},
		{"ip", "link", "set", peer, "up"}, {"ip", "link", "set", name, "up"},
	} {
		if err := run(args...); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) AddTUN(name string) error {
	return run("ip", "tuntap", "add", "dev", name, "mode", "tun")
}
func (w *world) DeleteDevice(name string) error { return run("ip", "link", "del", name) }
func (w *world) AddTable(name string) error     { return run("nft", "add", "table", "inet", name) }

func (w *world) FlushRuleset() error { return run("nft", "flush", "ruleset") }

func (w *world) AddVRF(name string, table uint32) error {
	return run("ip", "link", "add", name, "type", "vrf", "table", fmt.Sprint(table))
}

func (w *world) SetUp(name string, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return run("ip", "link", "set", name, state)
}

func (w *world) BreakTable(name string) error {
	return run("nft", "flush", "chain", "inet", name, "output")
}

func (w *world) HasTable(name string) (bool, error) {
	out, err := exec.Command("nft", "list", "tables").Output()
	return strings.Contains(string(out), "table inet "+name+"\n"), err
}

func TestLinuxConforms(t *testing.T) {
	kerneltest.Conformance(t,
		func(t *testing.T) kerneltest.World { return newWorld(t) },
		func(t *testing.T, _ kerneltest.World) kernel.Host { return openHost(t) })
}
