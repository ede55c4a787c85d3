package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// frr is FRR's bfdd, and zebra, which tells it of interfaces.
type frr struct {
	*process // bfdd
	zebra    *process
	dir      string
	began    time.Time // when bfdd was started
}

const frrFolder = "/usr/lib/frr/"

// startFRR starts bfdd with n sessions in an end of the link.
func startFRR(ctx context.Context, l *link, end, n int, _ string) (_ speaker, err error) {
	if err := frrFolders(l.dir); err != nil {
		return nil, fmt.Errorf("FRR (Debian package frr): %w", err)
	}
	config := filepath.Join(l.dir, "bfdd.conf")
	if err := os.WriteFile(config, []byte(frrConfig(end, n)), 0o644); err != nil {
		return nil, err
	}
	f := &frr{dir: l.dir}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	daemon := func(name string, args ...string) (*process, error) {
		p, err := l.start(end, name, nil, nil, append([]string{frrFolder + name, "-u", "frr", "-g", "frr", "-P", "0",
			"-z", filepath.Join(l.dir, "zserv.api"), "-i", filepath.Join(l.dir, name+".pid"), "--vty_socket", l.dir, "--log", "stdout"},
			args...)...)
		if err != nil {
			return nil, err
		}
		return p, p.awaitFile(ctx, filepath.Join(l.dir, name+".vty"))
	}
	if f.zebra, err = daemon("zebra", "-f", "/dev/null"); err != nil {
		return nil, err
	}
	f.began = time.Now()
	if f.process, err = daemon("bfdd", "-f", config, "--bfdctl", filepath.Join(l.dir, "bfdd.sock")); err != nil {
		return nil, err
	}
	return f, nil
}

// frrFolders gives the folder to the user that FRR's daemons become.
func frrFolders(dir string) error {
	u, err := user.Lookup("frr")
	if err != nil {
		return err
	}
	g, err := user.LookupGroup("frrvty")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return os.Chown(dir, uid, gid)
}

// frrConfig is bfdd's configuration of the sessions of an end.
func frrConfig(end, n int) string {
	var b strings.Builder
	b.WriteString("bfd\n")
	for i := range n {
		fmt.Fprintf(&b, " peer %v local-address %v interface %s\n", address(1-end, i), address(end, i), device)
		fmt.Fprintf(&b, "  receive-interval %d\n  transmit-interval %d\n  detect-multiplier %d\n exit\n !\n", intervalMs, intervalMs, multiplier)
	}
	b.WriteString("exit\n")
	return b.String()
}

// awaitFile waits until the process has made a file: then it is ready.
func (p *process) awaitFile(ctx context.Context, path string) error {
	limit := time.After(30 * time.Second)
	for {
		_, err := os.Stat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			return fmt.Errorf("%s ended: %s", filepath.Base(path), p.lastWords())
		case <-limit:
			return fmt.Errorf("waited in vain for %s: %s", path, p.lastWords())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (f *frr) close() {
	for _, p := range []*process{f.process, f.zebra} {
		if p != nil {
			p.close()
		}
	}
}

// frrPeer is what bfdd says of a session in its two lists.
type frrPeer struct {
	Status   string `json:"status"`
	Sent     uint64 `json:"control-packet-output"`
	Received uint64 `json:"control-packet-input"`
	Downs    uint64 `json:"session-down"`
}

// counts asks bfdd by vtysh.
func (f *frr) counts(ctx context.Context) (counts, error) {
	var c counts
	for _, what := range []string{"show bfd peers json", "show bfd peers counters json"} {
		cmd := exec.CommandContext(ctx, "vtysh", "--vty_socket", f.dir, "-d", "bfdd", "-c", what)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.Output()
		if err != nil {
			return c, fmt.Errorf("vtysh, %s: %w: %s", what, err, f.lastWords())
		}
		var peers []frrPeer
		if err := json.Unmarshal(out, &peers); err != nil {
			return c, fmt.Errorf("vtysh, %s: %w", what, err)
		}
		c.Sessions = len(peers)
		for _, p := range peers {
			if p.Status == "up" {
				c.Up++
			}
			c.Sent += p.Sent
			c.Received += p.Received
			c.Downs += p.Downs
		}
	}
	c.Settled = c.Up // bfdd does not say
	return c, nil
}
