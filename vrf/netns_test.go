package vrf_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is a network namespace without a name: it ends with the last descriptor of it.
type node struct {
	t    testing.TB
	name string
	ns   *os.File

	mu sync.Mutex
	// heard are the datagrams that came in.
	heard map[string]bool
}

// hears says whether a datagram came in.
func (n *node) hears(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heard[text]
}

func newNode(t testing.TB, name string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	n := &node{t: t, name: name, heard: map[string]bool{}}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() { n.ns.Close() })
	n.run("ip link set lo up")
	for _, k := range []string{"all", "default"} {
		// Addresses serve at once.
		n.run("sysctl -qw net.ipv6.conf." + k + ".accept_dad=0 net.ipv6.conf." + k + ".disable_ipv6=0")
	}
	return n
}

// do runs fn on a thread in the namespace and waits for it.
func (n *node) do(fn func()) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Errorf("enter namespace %s: %v", n.name, err)
	}
}

// output runs a command in the namespace.
func (n *node) output(line string) (out string, err error) {
	n.do(func() {
		f := strings.Fields(line)
		var b []byte
		b, err = exec.Command(f[0], f[1:]...).CombinedOutput()
		out = string(b)
	})
	return out, err
}

// run runs commands that must succeed.
func (n *node) run(lines ...string) {
	n.t.Helper()
	for _, line := range lines {
		if out, err := n.output(line); err != nil {
			n.t.Fatalf("%s: %s: %v: %s", n.name, line, err, out)
		}
	}
}

// path names the namespace for ip(8).
func (n *node) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.ns.Fd()) }

// echoPort is where every host tells its name, over TCP and UDP.
const echoPort = 7000

// serve answers every connection to address with name until the test ends; device "" is any.
func (n *node) serve(name, address, device string) {
	n.t.Helper()
	lc := net.ListenConfig{Control: control(func(fd int) error {
		if device == "" {
			return nil
		}
		return unix.BindToDevice(fd, device)
	})}
	n.do(func() {
		l, err := lc.Listen(context.Background(), "tcp", address)
		if err != nil {
			n.t.Errorf("%s: %v", n.name, err)
			return
		}
		n.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, name)
				c.Close()
			}
		}()
	})
}

// serveUDP answers every datagram with the node's name until the test ends, and notes it.
func (n *node) serveUDP() {
	n.t.Helper()
	n.do(func() {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", echoPort))
		if err != nil {
			n.t.Errorf("%s: %v", n.name, err)
			return
		}
		n.t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				k, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				n.mu.Lock()
				n.heard[string(b[:k])] = true
				n.mu.Unlock()
				if _, err := c.WriteTo([]byte(n.name), from); err != nil {
					return
				}
			}
		}()
	})
}

func control(fn func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = fn(int(fd)) }), err)
	}
}

// What became of a probe, other than the name of who answered.
const (
	answered    = "answered"    // ping
	refused     = "refused"     // RST, ICMP port unreachable
	unreachable = "unreachable" // ICMP destination unreachable
	expired     = "expired"     // ICMP time exceeded
	tooBig      = "too big"     // ICMP fragmentation needed, packet too big
	silent      = "silent"
)

// dial connects over TCP or UDP and says who answered, or how it ended. from is an address (TCP), a device to bind to, or "".
func (n *node) dial(network, from string, to netip.AddrPort, timeout time.Duration) (outcome string) {
	source, err := netip.ParseAddr(from)
	d := net.Dialer{Timeout: timeout, Control: control(func(fd int) error {
		if err != nil && from != "" {
			if err := unix.BindToDevice(fd, from); err != nil {
				return err
			}
		}
		// Errors come from ICMP at once.
		if to.Addr().Is4() {
			return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
		}
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	})}
	if err == nil {
		d.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
	}
	n.do(func() {
		c, err := d.Dial(network, to.String())
		if err != nil {
			outcome = outcomeOf(err)
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			outcome = err.Error()
			return
		}
		if network == "udp" {
			if _, err := fmt.Fprint(c, n.name, " > ", to.Addr()); err != nil {
				outcome = outcomeOf(err)
				return
			}
		}
		b := make([]byte, 64)
		k, err := c.Read(b)
		if err != nil {
			outcome = outcomeOf(err)
			return
		}
		outcome = string(b[:k])
	})
	return outcome
}

func outcomeOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return refused
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return unreachable
	case errors.As(err, &timeout) && timeout.Timeout():
		return silent
	}
	return err.Error()
}

// ping sends one echo request and says what came back.
func (n *node) ping(to string, timeout time.Duration, flags string) string {
	out, err := n.output(fmt.Sprintf("ping -n -c 1 -W %.1f %s %s", timeout.Seconds(), flags, to))
	has := func(texts ...string) bool {
		for _, s := range texts {
			if bytes.Contains([]byte(strings.ToLower(out)), []byte(s)) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil && has(" bytes from "):
		return answered
	case has("time to live exceeded", "hop limit"):
		return expired
	case has("frag needed", "packet too big", "message too long"):
		return tooBig
	case has("unreachable", "no route"):
		return unreachable
	case has("0 received"):
		return silent
	}
	return out
}
