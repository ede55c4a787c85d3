package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// joined is errors.Join, for a list.
func joined(errs []error) error { return errors.Join(errs...) }

// soon is how long after the start sessions may take.
const soon = 30 * time.Second

// sessions fails unless every BGP session of ours, tunnel and BFD session is up, and the far prefixes are routed.
func sessions(ctx context.Context) error {
	var peers struct {
		Peers []struct{ VRF, Name, State, Reason string }
	}
	var tunnels struct {
		Tunnels []struct {
			Name, State, Reason, Implementation string
			Active                              bool
			BFD                                 struct{ State, Reason string }
		}
	}
	if err := ask(ctx, &tunnels, "tunnel", "list"); err != nil {
		return err
	}
	if len(tunnels.Tunnels) == 0 {
		return errors.New("there are no tunnels")
	}
	for _, t := range tunnels.Tunnels {
		if t.State != "up" || !t.Active || t.BFD.State != "up" {
			return fmt.Errorf("tunnel %s is %s (%s), bfd %s (%s)", t.Name, t.State, t.Reason, t.BFD.State, t.BFD.Reason)
		}
	}
	if err := ask(ctx, &peers, "peer", "list"); err != nil {
		return err
	}
	evpn := 0
	for _, p := range peers.Peers {
		if p.VRF != "" {
			continue
		}
		evpn++
		if p.State != "established" {
			return fmt.Errorf("session with %s is %s: %s", p.Name, p.State, p.Reason)
		}
	}
	if evpn == 0 {
		return errors.New("there are no sessions")
	}
	return nil
}

// sessionsSoon waits for all sessions, at most until 30 s after systemd's start: before that the first boot installs the host.
func sessionsSoon(ctx context.Context) (string, error) {
	// Longer than it may take, to be able to say how long it took. Nothing is asked before fabric-site listens: a question is a program that
	// starts, which takes a simulated processor from those that boot.
	const longest = soon + 90*time.Second
	err := until(ctx, longest, func() error { _, err := os.Stat("/run/fabric-site/fabric.sock"); return err })
	if err != nil {
		return "", err
	}
	if err := until(ctx, longest, func() error { return sessions(ctx) }); err != nil {
		return "", err
	}
	up, err := uptime()
	if err != nil {
		return "", err
	}
	systemd, err := stamp(ctx, "", "UserspaceTimestampMonotonic")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("BGP EVPN established, BFD up, tunnels active %.1f s after systemd's start, which was %.1f s after the kernel's", (up - systemd).Seconds(), systemd.Seconds())
	if up-systemd > soon {
		return text, fmt.Errorf("later than %s", soon)
	}
	return text, nil
}

// again waits for all sessions after something was done to the daemons, or mended.
func again(ctx context.Context) (string, error) {
	began := time.Now()
	if err := until(ctx, 90*time.Second, func() error { return sessions(ctx) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("sessions are up again after %.1f s", time.Since(began).Seconds()), nil
}

// pings are the pings between the two hosts.
var pings = [][]string{{"a-host", "10.2.0.10"}, {"a-host", "fd02::10"}, {"b-host", "10.1.0.10"}}

// reaches pings once each way.
func reaches(ctx context.Context) (string, error) {
	for _, p := range pings {
		err := until(ctx, 30*time.Second, func() error {
			_, err := output(ctx, "ip", "netns", "exec", p[0], "ping", "-c", "1", "-W", "2", p[1])
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return "the hosts reach each other, IPv4 and IPv6", nil
}

// during runs fn while both hosts ping each other ten times a second; a lost packet is an error.
func during(ctx context.Context, fn func() (string, error)) (string, error) {
	evidence, lost, err := beside(ctx, fn)
	return evidence, joined([]error{err, lost})
}

// beside runs fn while the hosts ping each other, and returns what was lost apart from fn's error.
func beside(ctx context.Context, fn func() (string, error)) (evidence string, lost, err error) {
	var running []*stream
	for _, p := range pings {
		s, err := startStream(ctx, p[0], p[1])
		if err != nil {
			return "", nil, err
		}
		running = append(running, s)
	}
	evidence, err = fn()
	var losses []error
	sent := 0
	for _, s := range running {
		n, err := s.stop()
		sent += n
		if err != nil {
			losses = append(losses, err)
		}
	}
	if losses == nil {
		evidence += fmt.Sprintf("\n%d pings sent meanwhile, IPv4 and IPv6, both ways: none lost", sent)
	}
	return evidence, joined(losses), err
}

// stream is one host that pings another.
type stream struct {
	what string
	cmd  *exec.Cmd
	out  strings.Builder
}

func startStream(ctx context.Context, from, to string) (*stream, error) {
	s := &stream{what: from + " to " + to, cmd: exec.CommandContext(ctx, "ip", "netns", "exec", from, "ping", "-i", "0.1", "-W", "5", to)}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	return s, s.cmd.Start()
}

// stop ends it and counts; the last packet may be under way.
func (s *stream) stop() (int, error) {
	if err := s.cmd.Process.Signal(interrupt); err != nil {
		return 0, err
	}
	_ = s.cmd.Wait() // its exit code says what is counted here
	sent, lost, err := countPings(s.out.String())
	if err != nil {
		return sent, fmt.Errorf("ping %s: %w", s.what, err)
	}
	if len(lost) > 0 {
		return sent, fmt.Errorf("ping %s: %d of %d lost, sent every 0.1 s: numbers %s", s.what, len(lost), sent, ranges(lost))
	}
	return sent, nil
}
