package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one process of a node.
type Process struct {
	// Pid is its id on the host.
	Pid int `json:"pid"`
	// Command is its command line, words joined by blanks.
	Command string `json:"command"`
}

// Down ends every process of the lab, releases its namespaces (their links go with them) and removes
// its folder. It may be called again, and on a lab that is only half there.
func (l *Lab) Down(ctx context.Context) error {
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.Topology.Name, err)
	}
	s, err := readState(l.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(entries) == 0: // a start that was broken off at once
	case err != nil:
		return fmt.Errorf("lab %s: %s does not look like a lab's folder: %w: remove it by hand", l.Topology.Name, l.Dir, err)
	case s.Name != l.Topology.Name:
		return fmt.Errorf("lab %s: %s belongs to lab %s: give another --dir", l.Topology.Name, l.Dir, s.Name)
	}

	// From the folder, not from the topology: the file may have changed since.
	var pins []string
	for _, entry := range entries {
		pin := filepath.Join(l.Dir, entry.Name(), "netns")
		if entry.IsDir() && isNamespace(pin) {
			pins = append(pins, pin)
		}
	}
	if err := EndProcesses(ctx, pins...); err != nil {
		return fmt.Errorf("lab %s: %w", l.Topology.Name, err)
	}
	for _, pin := range pins {
		if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("lab %s: release %s: %w", l.Topology.Name, pin, err)
		}
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return fmt.Errorf("lab %s: %w", l.Topology.Name, err)
	}
	l.log.Info("lab is down", "lab", l.Topology.Name)
	return nil
}

// isNamespace says whether path is a mounted namespace, and not the plain file under it.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// EndProcesses kills what runs in the network namespaces at some paths, but for the caller itself, until a look finds
// nothing: a process may have forked between the look and the kill. The namespaces must be held by something else.
func EndProcesses(ctx context.Context, pins ...string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		found := 0
		for _, pin := range pins {
			err := eachProcess(pin, func(p *os.Process) error {
				found++
				if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					return fmt.Errorf("process %d: %w", p.Pid, err)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if found == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes are still there: %w", found, ctx.Err())
		case <-tick.C:
		}
	}
}

// eachProcess calls do for each process of the network namespace at pin, except the caller's own (whose
// threads visit namespaces to open sockets there). The process is held by a pidfd from before its
// namespace was looked at: its id cannot come to mean another one in between.
func eachProcess(pin string, do func(*os.Process) error) error {
	var want unix.Stat_t
	if err := unix.Stat(pin, &want); err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		var got unix.Stat_t
		// Fails for processes that are gone, also for zombies.
		if unix.Stat("/proc/"+entry.Name()+"/ns/net", &got) == nil && got.Ino == want.Ino && got.Dev == want.Dev {
			err = do(p)
		}
		p.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// Processes lists what runs in the node, lowest id first.
func (n *Node) Processes() ([]Process, error) {
	var list []Process
	err := eachProcess(n.NetNS(), func(p *os.Process) error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
		if err != nil { // gone meanwhile
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				return nil
			}
			return err
		}
		words := strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ")
		list = append(list, Process{Pid: p.Pid, Command: words})
		return nil
	})
	slices.SortFunc(list, func(a, b Process) int { return a.Pid - b.Pid })
	return list, err
}
