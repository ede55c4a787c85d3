package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// prefix of namespaces and folders; the id of the bench's process follows.
	prefix = "fabric-bench-"
	device = "link0"
	// cleanupLimit bounds what is done after the context has ended.
	cleanupLimit = 20 * time.Second
)

// link is two namespaces joined by a veth pair that has an address at each end for each session, and a folder.
type link struct {
	spaces [2]string
	dir    string
}

// address of a session's end, 0 or 1.
func address(end, session int) netip.Addr {
	i := session + 1
	return netip.AddrFrom4([4]byte{10, byte(200 + end), byte(i >> 8), byte(i)})
}

// mac of an end, known beforehand for permanent neighbour entries.
func mac(end int) string { return fmt.Sprintf("02:00:00:00:bf:%02d", end) }

func newLink(ctx context.Context, sessions int) (_ *link, err error) {
	name := fmt.Sprintf("%s%d-", prefix, os.Getpid())
	l := &link{spaces: [2]string{name + "near", name + "far"}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.dir, err = os.MkdirTemp("", name); err != nil {
		return nil, err
	}
	for _, s := range l.spaces {
		if err := command(ctx, "", "ip", "netns", "add", s); err != nil {
			return nil, err
		}
	}
	if err := command(ctx, "", "ip", "-netns", l.spaces[0], "link", "add", device, "address", mac(0), "type", "veth",
		"peer", "name", device, "address", mac(1), "netns", l.spaces[1]); err != nil {
		return nil, err
	}
	for end, s := range l.spaces {
		if err := command(ctx, batch(end, sessions), "ip", "-netns", s, "-batch", "-"); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// batch sets up an end for ip -batch. The neighbour entries are permanent: the host's limit of others, 1024 by default, is for all its
// namespaces together.
func batch(end, sessions int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "link set lo up\nlink set %s up\n", device)
	for i := range sessions {
		fmt.Fprintf(&b, "address add %v/15 dev %s\n", address(end, i), device)
		fmt.Fprintf(&b, "neighbour replace %v lladdr %s dev %s nud permanent\n", address(1-end, i), mac(1-end), device)
	}
	return b.String()
}

// close removes all of it, also after the context has ended.
func (l *link) close() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	for _, s := range l.spaces {
		if _, err := os.Stat(filepath.Join("/run/netns", s)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := command(ctx, "", "ip", "netns", "delete", s); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// command runs a program to its end with that input. It has a process group of its own: an interrupt from the terminal must not hit what
// cleans up.
func command(ctx context.Context, input string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// sweep removes what a bench left that was killed before it could: namespaces, what runs in them, folders.
func sweep(ctx context.Context) {
	spaces, _ := filepath.Glob("/run/netns/" + prefix + "*")
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, path := range append(spaces, folders...) {
		name := filepath.Base(path)
		word, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
		pid, err := strconv.Atoi(word)
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue // another bench is at work
		}
		if filepath.Dir(path) != "/run/netns" {
			_ = os.RemoveAll(path)
			continue
		}
		out, _ := exec.CommandContext(ctx, "ip", "netns", "pids", name).Output()
		for _, word := range strings.Fields(string(out)) {
			if p, err := strconv.Atoi(word); err == nil {
				_ = syscall.Kill(p, syscall.SIGKILL)
			}
		}
		if err := command(ctx, "", "ip", "netns", "delete", name); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}
