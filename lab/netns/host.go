package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Host is a network namespace and a mount namespace with a /run of its own, for tests that need no topology. A waiting process holds them; it
// ends with the process that made it, however that ends.
type Host struct {
	holder *exec.Cmd
	in     io.Closer
	space  *os.File // the network namespace
}

// NewHost makes the namespaces, with lo up, and runs lines of shell in them. It needs root, unshare(1), nsenter(1) and ip(8).
func NewHost(setup ...string) (_ *Host, err error) {
	// WireGuard's sockets are in /var/run/wireguard.
	lines := append([]string{"mount -t tmpfs run /run", "mkdir /run/wireguard", "mount -t sysfs sys /sys", "ip link set lo up"}, setup...)
	h := &Host{holder: exec.Command("unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec",
		strings.Join(append(lines, "echo ready", "exec cat"), "\n"))}
	var stderr bytes.Buffer
	h.holder.Stderr = &stderr
	if h.in, err = h.holder.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.holder.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		h.space, err = os.Open(h.NetNS())
	}
	if err != nil {
		_, _ = h.in.Close(), h.holder.Wait()
		return nil, fmt.Errorf("cannot make namespaces: %w: %s", err, bytes.TrimSpace(append([]byte(line), stderr.Bytes()...)))
	}
	return h, nil
}

// PID is the process that holds the namespaces.
func (h *Host) PID() int { return h.holder.Process.Pid }

// NetNS is the path of the network namespace, until Close.
func (h *Host) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", h.PID()) }

// Command is a call within the host. nsenter becomes the program: the process is the program's.
func (h *Host) Command(argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(h.PID()), "--net", "--mount", "--"}, argv...)...)
}

// Within is Within for the host's network namespace.
func (h *Host) Within(f func() error) error { return Within(h.NetNS(), f) }

// Close ends all that runs in the network namespace, also what outlives the program that started it, and with that both namespaces.
func (h *Host) Close() error {
	err := EndProcesses(context.Background(), fmt.Sprintf("/proc/self/fd/%d", h.space.Fd()))
	_, _ = h.in.Close(), h.holder.Wait() // killed
	return errors.Join(err, h.space.Close())
}
