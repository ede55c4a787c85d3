package netns

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fabric/lab/clab"
)

//go:embed node.sh
var nodeScript string

// Node is one running node.
type Node struct {
	clab.Node

	dir string // the node's folder in the lab's folder
	pid int    // main process, in the node's namespaces; 0 if not started
}

// Pid is the host's process id of the node's main process.
func (n *Node) Pid() int { return n.pid }

// NetNS is the path of the node's network namespace, for setns(2) and netlink handles.
func (n *Node) NetNS() string { return filepath.Join(n.dir, "netns") }

// LogDir is the host's path of the node's /var/log. It is gone after Down.
func (n *Node) LogDir() string { return filepath.Join(n.dir, "log") }

// Path is the host's path of a file of the node, given by its absolute path there. It leads through
// the node's main process, and nowhere once that has ended.
func (n *Node) Path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(n.pid), "root", name)
}

// Command prepares argv to run inside the node, with the node's environment and its root as working
// folder. The command's process is the program itself, no wrapper: signals and the end of ctx reach it.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append(n.enter(), argv...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = n.environ()
	return cmd
}

// enter is the command line prefix that runs what follows in the node, in place.
func (n *Node) enter() []string {
	ns := fmt.Sprintf("/proc/%d/ns/", n.pid)
	return []string{"nsenter", "--net=" + n.NetNS(), "--mount=" + ns + "mnt", "--uts=" + ns + "uts", "--"}
}

// environ is the environment in the node: little, so that nothing of the caller's changes a test.
func (n *Node) environ() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
	}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	for _, key := range slices.Sorted(maps.Keys(n.Env)) {
		env = append(env, key+"="+n.Env[key])
	}
	return env
}

// start makes the namespaces and the main process.
func (n *Node) start(ctx context.Context) error {
	for _, folder := range []string{n.dir, filepath.Join(n.dir, "root"), n.LogDir()} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(n.NetNS(), nil, 0o600); err != nil {
		return err
	}
	// The namespace is pinned before anything runs in it, so that Down finds what runs in it.
	if out, err := exec.CommandContext(ctx, "unshare", "--net="+n.NetNS(), "true").CombinedOutput(); err != nil {
		return fmt.Errorf("network namespace: %w: %s", err, bytes.TrimSpace(out))
	}

	args := []string{"--net=" + n.NetNS(), "--", "unshare", "--mount", "--uts", "--propagation", "private", "--",
		"sh", "-c", nodeScript, "node.sh", n.dir, n.Name, n.LogDir(), "/var/log", "rw"}
	for _, b := range n.Binds {
		source, err := filepath.EvalSymlinks(b.Source) // absolute links would lead elsewhere once the root has changed
		if err != nil {
			return fmt.Errorf("bind source: %w", err)
		}
		mode := "rw"
		if b.ReadOnly {
			mode = "ro"
		}
		args = append(args, source, b.Target, mode)
	}
	args = append(args, "--")
	if len(n.Cmd) > 0 {
		args = append(args, n.Cmd...)
	} else {
		args = append(args, "sleep", "infinity")
	}

	log, err := os.Create(filepath.Join(n.LogDir(), "node.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, readyWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command("nsenter", args...) // outlives ctx, which is for the start alone
	cmd.Env = n.environ()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{readyWriter}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	readyWriter.Close()
	if err != nil {
		return err
	}
	n.pid = cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it; ends with the node

	if err := ready.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	line, err := io.ReadAll(ready)
	if err != nil {
		return fmt.Errorf("file system not ready: %w", err)
	}
	if string(line) != "ready\n" {
		return fmt.Errorf("file system: %w: %s", <-ended, tail(log.Name(), 0))
	}
	return nil
}

// writeSysctls sets the node's kernel parameters.
func (n *Node) writeSysctls(ctx context.Context) error {
	if len(n.Sysctls) == 0 {
		return nil
	}
	argv := []string{"sysctl", "-q", "-w"}
	for _, key := range slices.Sorted(maps.Keys(n.Sysctls)) {
		argv = append(argv, key+"="+n.Sysctls[key])
	}
	return n.exec(ctx, argv)
}

// exec runs one command to its end. Its output goes to a file: a daemon that it leaves behind may keep
// that open, where a pipe would keep us waiting.
func (n *Node) exec(ctx context.Context, words []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, execTimeout, fmt.Errorf("not done within %v: start daemons in the background", execTimeout))
	defer cancel()
	log, err := os.OpenFile(filepath.Join(n.LogDir(), "exec.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "# %s\n", strings.Join(words, " "))
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := n.Command(ctx, words...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("exec %q: %w: %s", strings.Join(words, " "), err, tail(log.Name(), start))
	}
	return nil
}

// tail is the end of a log from the offset on, for an error.
func tail(path string, offset int64) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	data = data[min(offset, int64(len(data))):]
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	if len(lines) > 15 {
		lines = lines[len(lines)-15:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}

// Exec replaces the calling process by argv inside the node. It returns only if that fails.
func (n *Node) Exec(argv ...string) error {
	if len(argv) == 0 {
		return errors.New("no command: write one after --")
	}
	if err := syscall.Access("/proc/"+strconv.Itoa(n.pid)+"/ns/net", 0); err != nil {
		return fmt.Errorf("node %s: its main process %d is gone: run down, then up", n.Name, n.pid)
	}
	args := append(n.enter(), argv...)
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, n.environ())
}
