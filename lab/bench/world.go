package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fabric/lab/netns"
)

// world is some nodes joined by veth pairs, and a folder.
type world struct {
	name, dir string
	nodes     []*node
}

// node is a host: a network namespace, a mount namespace with a /run of its own, and a folder.
type node struct {
	name, space, dir string
	// holder is the process that keeps the mount namespace. It ends with its standard input: with the bench, however that ends.
	holder *process
	in     io.Closer
}

// newWorld makes nodes of those names. Whatever it made is gone after an error.
func newWorld(ctx context.Context, names ...string) (_ *world, err error) {
	w := &world{name: fmt.Sprintf("%s%d-", prefix, os.Getpid())}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = os.MkdirTemp("", w.name); err != nil {
		return nil, err
	}
	if err := os.Chmod(w.dir, 0o711); err != nil { // FRR's daemons have a folder in it
		return nil, err
	}
	for _, name := range names {
		n := &node{name: name, space: w.name + name, dir: filepath.Join(w.dir, name)}
		w.nodes = append(w.nodes, n)
		if err := n.start(ctx); err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
	}
	return w, nil
}

func (n *node) start(ctx context.Context) error {
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		return err
	}
	if err := command(ctx, "", "ip", "netns", "add", n.space); err != nil {
		return err
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = inRead.Close() }()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		_ = inWrite.Close()
		return err
	}
	defer func() { _ = outRead.Close() }()
	n.in = inWrite
	// WireGuard's sockets are in /var/run/wireguard.
	n.holder, err = startProcess(filepath.Join(n.dir, "node.log"), inRead, outWrite, "ip", "netns", "exec", n.space,
		"unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs bench /run && mkdir /run/wireguard && ip link set lo up && "+
			"sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 "+
			"net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 && echo ready && exec cat >/dev/null")
	_ = outWrite.Close()
	if err != nil {
		return err
	}
	if line, _ := bufio.NewReader(outRead).ReadString('\n'); line != "ready\n" {
		<-n.holder.done
		return fmt.Errorf("cannot make namespaces: %s", n.holder.lastWords())
	}
	return nil
}

// argv is a command line that runs in the node. nsenter becomes the program.
func (n *node) argv(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(n.holder.pid()), "--net", "--mount", "--"}, argv...)
}

// run runs lines of shell in the node.
func (n *node) run(ctx context.Context, lines ...string) error {
	if err := command(ctx, strings.Join(lines, "\n"), n.argv("sh", "-e")...); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

// output runs a program in the node and returns what it prints.
func (n *node) output(ctx context.Context, argv ...string) (string, error) {
	argv = n.argv(argv...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s", n.name, strings.Join(argv[6:], " "), err, bytes.TrimSpace(append(out.Bytes(), stderr.Bytes()...)))
	}
	return out.String(), nil
}

// niceness of all programs in nodes, those under test and those around them alike: other work on the machine is not what is measured.
const niceness = "-10"

// startProcess starts a program in the node; its log is NAME.log in the node's folder.
func (n *node) startProcess(name string, argv ...string) (*process, error) {
	return n.startWith(name, nil, nil, argv...)
}

// startWith is startProcess with standard input and output, if not nil.
func (n *node) startWith(name string, in io.Reader, out io.Writer, argv ...string) (*process, error) {
	return startProcess(filepath.Join(n.dir, name+".log"), in, out, n.argv(append([]string{"nice", "-n", niceness}, argv...)...)...)
}

// within runs f on a thread that is in the node's network namespace.
func (n *node) within(f func() error) error { return netns.Within("/run/netns/"+n.space, f) }

// join makes a veth pair between devices of two nodes, both up.
func join(ctx context.Context, a *node, deviceA string, b *node, deviceB string) error {
	if err := command(ctx, "", "ip", "-netns", a.space, "link", "add", "name", deviceA, "type", "veth", "peer", "name", deviceB, "netns", b.space); err != nil {
		return err
	}
	for n, device := range map[*node]string{a: deviceA, b: deviceB} {
		if err := command(ctx, "", "ip", "-netns", n.space, "link", "set", "dev", device, "up"); err != nil {
			return err
		}
	}
	return nil
}

// index is the number of a device.
func (n *node) index(device string) (int, error) {
	var i *net.Interface
	err := n.within(func() (err error) { i, err = net.InterfaceByName(device); return err })
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w", n.name, device, err)
	}
	return i.Index, nil
}

// close removes all of it, also after the context has ended: whatever runs in the nodes, namespaces, the folder.
func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	for _, n := range slices.Backward(w.nodes) {
		path := filepath.Join("/run/netns", n.space)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := netns.EndProcesses(ctx, path); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		if n.holder != nil {
			_ = n.in.Close()
			<-n.holder.done
		}
		if err := command(ctx, "", "ip", "netns", "delete", n.space); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}

// pause waits that long or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// until waits for a state, some time at most; the error then has the last one of ok.
func until(ctx context.Context, limit time.Duration, what string, ok func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if errors.Is(err, errEnded) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s: %w", limit, what, err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// errNotYet is a state that is waited for.
var errNotYet = errors.New("not yet")

// errEnded is a program that has ended: there is nothing to wait for.
var errEnded = errors.New("has ended")

// say tells on standard error how the bench gets on.
func say(format string, v ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", v...)
}
