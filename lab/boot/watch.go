package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watch writes a line into a file for each network device when it is first seen: microseconds of the monotonic clock, as
// systemd's time stamps are, and the name.
func watch(ctx context.Context, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	done := make(chan struct{})
	defer close(done)
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	seen := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-updates:
			if !ok {
				return fmt.Errorf("the kernel ended the subscription")
			}
			name := u.Attrs().Name
			if u.Header.Type != unix.RTM_NEWLINK || seen[name] {
				continue
			}
			seen[name] = true
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(f, "%d %s\n", now.Nano()/1000, name); err != nil {
				return err
			}
		}
	}
}

// appeared reads what watch has written: when each device was first seen, since the kernel's start.
func appeared(text string) (map[string]time.Duration, error) {
	times := map[string]time.Duration{}
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		stamp, name, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		us, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		times[name] = time.Duration(us) * time.Microsecond
	}
	return times, nil
}
