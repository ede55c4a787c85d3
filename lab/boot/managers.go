package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// managers are the checks of those who manage the host's network beside us.
func managers() []step {
	return []step{
		{"systemd-networkd's restart and reload remove nothing of ours", func(ctx context.Context) (string, error) {
			return untouched(ctx, words("systemctl restart systemd-networkd"), words("networkctl reload"), words("networkctl reconfigure eth0"))
		}},
		{"NetworkManager's start, restart and reload remove nothing of ours", func(ctx context.Context) (string, error) {
			// eth1 is the document's. That it must be named here is what `fabric-site check` says.
			const file, text = "/etc/NetworkManager/conf.d/60-fabric.conf", "[keyfile]\nunmanaged-devices+=interface-name:fxw*;interface-name:fxv*;interface-name:eth1\n"
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				return "", err
			}
			evidence, err := untouched(ctx, words("systemctl start NetworkManager"), words("nm-online -s -q -t 60"), words("nmcli general reload"),
				words("systemctl restart NetworkManager"), words("nm-online -s -q -t 60"))
			devices, shown := output(ctx, "nmcli", "-g", "DEVICE,STATE", "device")
			said, _ := output(ctx, "fabric-site", "check") // other findings may make it fail
			if strings.Contains(said, "networkmanager-manages") {
				shown = fmt.Errorf("fabric-site check: %s", said)
			}
			return evidence + "\nnmcli device: " + strings.ReplaceAll(devices, "\n", ", "), joined([]error{err, shown})
		}},
		{"NetworkManager in networkd's place as the underlay's manager removes nothing of ours", func(ctx context.Context) (string, error) {
			evidence, err := untouched(ctx, words("systemctl stop systemd-networkd.socket systemd-networkd.service"), words("nmcli device set eth0 managed yes"),
				words("nmcli connection add type ethernet con-name underlay ifname eth0 ipv4.method manual ipv4.addresses 203.0.113.1/24 ipv6.method disabled"),
				words("nmcli connection up underlay"), words("systemctl restart NetworkManager"), words("nm-online -s -q -t 60"))
			// The next boot is networkd's again.
			removed := all(ctx, words("nmcli connection delete underlay"), words("systemctl stop NetworkManager"), words("systemctl start systemd-networkd"))
			back, again := again(ctx)
			return evidence + "\n" + back, joined([]error{err, removed, again})
		}},
	}
}

// ours are all routes, rules and next hops in the kernel that carry our protocol numbers, and the addresses of our interfaces.
func ours(ctx context.Context) ([]string, error) {
	var found []string
	for _, command := range []string{
		"ip -N route show table all proto 201", "ip -N -6 route show table all proto 201", "ip -N route show table all proto 202",
		"ip -N -6 route show table all proto 202", "ip -N nexthop show proto 202", "ip -N rule", "ip -N -6 rule", "ip -N -br address", "ip -N -d -br link show type vrf",
	} {
		text, err := output(ctx, words(command)...)
		if err != nil {
			return nil, err
		}
		for line := range strings.SplitSeq(text, "\n") {
			if line = strings.Join(strings.Fields(line), " "); line != "" {
				found = append(found, line)
			}
		}
	}
	return found, nil
}

// untouched runs commands under traffic and listens to the kernel meanwhile: neither may anything of ours be gone afterwards,
// nor may it have been away for a moment. Packets may be lost, and are told: the underlay's own address is the manager's.
func untouched(ctx context.Context, commands ...[]string) (string, error) {
	evidence, lost, err := beside(ctx, func() (string, error) {
		before, err := ours(ctx)
		if err != nil {
			return "", err
		}
		var heard strings.Builder
		monitor := exec.CommandContext(ctx, "ip", "-N", "monitor", "route", "nexthop", "rule", "address")
		monitor.Stdout, monitor.Stderr = &heard, &heard
		if err := monitor.Start(); err != nil {
			return "", err
		}
		var said []string
		var failures []error
		for _, argv := range commands {
			if _, err := output(ctx, argv...); err != nil {
				failures = append(failures, err)
			}
			said = append(said, strings.Join(argv, " "))
			select { // a manager goes on after its command has returned
			case <-ctx.Done():
			case <-time.After(3 * time.Second):
			}
		}
		if err := monitor.Process.Signal(interrupt); err != nil {
			failures = append(failures, err)
		}
		_ = monitor.Wait()
		for _, line := range removals(heard.String()) {
			failures = append(failures, fmt.Errorf("removed meanwhile: %s", line))
		}
		after, err := ours(ctx)
		failures = append(failures, err)
		for _, line := range missing(before, after) {
			failures = append(failures, fmt.Errorf("gone: %s", line))
		}
		return fmt.Sprintf("%s: %d routes, rules, next hops and addresses are there as before", strings.Join(said, ", "), len(before)), joined(failures)
	})
	if lost != nil {
		evidence += "\n" + lost.Error()
	}
	return evidence, err
}

// removals are the lines of `ip -N monitor` that tell of something of ours being deleted.
func removals(text string) []string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		deleted, ok := strings.CutPrefix(strings.TrimSpace(line), "Deleted ")
		if !ok {
			continue
		}
		mark := strings.Contains(deleted, "proto 201") || strings.Contains(deleted, "proto 202")
		address := strings.Contains(deleted, " inet") && (strings.Contains(deleted, "eth1") || strings.Contains(deleted, "fx") || strings.Contains(deleted, "CORE"))
		if mark || address {
			lines = append(lines, deleted)
		}
	}
	return lines
}

// missing are the lines of before that are not in after.
func missing(before, after []string) []string {
	have := map[string]bool{}
	for _, line := range after {
		have[line] = true
	}
	var gone []string
	for _, line := range before {
		if !have[line] {
			gone = append(gone, line)
		}
	}
	return gone
}
