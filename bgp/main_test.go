package bgp

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNamespace says that this process has a network namespace to itself.
const ownNamespace = "BGP_TEST_OWN_NAMESPACE"

// TestMain runs the tests in a network namespace of their own: they use fixed loopback addresses, and two runs on one
// machine would listen on the same. Without the right to make one they run where they are.
func TestMain(m *testing.M) {
	if os.Getenv(ownNamespace) == "" {
		if err := isolate(); err != nil {
			fmt.Fprintln(os.Stderr, "tests run in the network namespace they were started in:", err)
		}
	}
	os.Exit(m.Run())
}

// isolate starts this program again, in the same process. It returns only with an error. The new program has the namespace
// of the thread that calls exec, and all others end: no process stands between it and `go test`.
func isolate() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("user %d may not make one", os.Geteuid())
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	old, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer old.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		err = fmt.Errorf("ip link set lo up: %w: %s", err, out)
		if back := unix.Setns(int(old.Fd()), unix.CLONE_NEWNET); back != nil {
			return fmt.Errorf("%w; and no way back: %w", err, back)
		}
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), ownNamespace+"=1"))
}
