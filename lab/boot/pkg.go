package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// packaged are the checks of the package's own doings on a host that runs.
func packaged() []step {
	return []step{
		{"BGP and BFD sessions are up within 30 s", sessionsSoon},
		{"an upgrade restarts both daemons and loses no packet", upgrade},
		{"removal takes what is ours from the host, keeps document, keys and state, and leaves what is foreign", remove},
		{"installed again the fabric comes up", reinstall},
		{"purge takes all of it and leaves what is foreign", purge},
	}
}

// upgrade installs the second build over the first.
func upgrade(ctx context.Context) (string, error) {
	before, err := status(ctx)
	if err != nil {
		return "", err
	}
	return during(ctx, func() (string, error) {
		began := time.Now()
		if _, err := output(ctx, "dpkg", "-i", filepath.Join(payload, "fabric_2.deb")); err != nil {
			return "", err
		}
		took := time.Since(began)
		back, err := again(ctx)
		after, asked := status(ctx)
		if asked == nil && after.Version == before.Version {
			asked = fmt.Errorf("fabric-site still runs version %s", after.Version)
		}
		return fmt.Sprintf("from %s to %s in %.1f s\n%s", before.Version, after.Version, took.Seconds(), back), joined([]error{err, asked,
			unitIs(ctx, "fabric-links", "active"), unitIs(ctx, "fabric-ready.target", "active")})
	})
}

// foreign makes objects of every kind that we make, too, without our marks.
var foreign = []struct{ make, show, want string }{
	{"ip route add 192.0.2.0/25 via 203.0.113.254", "ip route show 192.0.2.0/25", "192.0.2.0/25"},
	{"ip route add blackhole 192.0.2.128/25 table 200 proto static", "ip route show table 200 192.0.2.128/25", "blackhole"},
	{"ip -6 route add blackhole 2001:db8::/32 table 200", "ip -6 route show table 200 2001:db8::/32", "blackhole"},
	{"ip rule add from 192.0.2.1 lookup 77 priority 777", "ip rule show priority 777", "from 192.0.2.1"},
	{"ip nexthop add id 7 via 203.0.113.254 dev eth0", "ip nexthop show id 7", "via 203.0.113.254"},
	{"ip link add foreign type vrf table 77", "ip -br link show foreign", "foreign"},
	{"nft add table inet foreign", "nft list tables", "table inet foreign"},
}

// stays fails unless all foreign objects are there.
func stays(ctx context.Context) error {
	var failures []error
	for _, f := range foreign {
		text, err := output(ctx, words(f.show)...)
		if err == nil && !strings.Contains(text, f.want) {
			err = fmt.Errorf("%s shows %q: what %q made is gone", f.show, text, f.make)
		}
		failures = append(failures, err)
	}
	return joined(failures)
}

// nothing fails unless no object of ours is left in the kernel.
func nothing(ctx context.Context) error {
	var failures []error
	for _, command := range []string{
		"ip -N route show table all proto 201", "ip -N -6 route show table all proto 201", "ip -N route show table all proto 202",
		"ip -N -6 route show table all proto 202", "ip -N nexthop show proto 202", "ip link show type wireguard", "ip link show type vxlan", "ip link show CORE",
		"nft list table inet fabric", "ip address show dev eth1 to 10.1.0.0/24",
	} {
		if text, err := output(ctx, words(command)...); err == nil && text != "" { // asked for by name, what is not there is an error
			failures = append(failures, fmt.Errorf("%s: %s", command, text))
		}
	}
	return joined(failures)
}

func remove(ctx context.Context) (string, error) {
	for _, f := range foreign {
		if _, err := output(ctx, words(f.make)...); err != nil {
			return "", err
		}
	}
	if _, err := output(ctx, "dpkg", "-r", "fabric"); err != nil {
		return "", err
	}
	var failures []error
	for _, file := range []string{document, "/etc/fabric/keys/a-gw.key", "/var/lib/fabric-site", "/var/lib/fabric-links"} {
		_, err := os.Stat(file)
		failures = append(failures, err)
	}
	text, running := output(ctx, "pgrep", "-a", "-f", "^/usr/bin/fabric")
	if running == nil {
		failures = append(failures, fmt.Errorf("still running: %s", text))
	}
	return fmt.Sprintf("no route, rule, next hop, device or filter of ours is left; %d foreign ones are", len(foreign)), joined(append(failures, nothing(ctx), stays(ctx)))
}

func reinstall(ctx context.Context) (string, error) {
	if _, err := output(ctx, "dpkg", "-i", filepath.Join(payload, "fabric_2.deb")); err != nil {
		return "", err
	}
	text, err := again(ctx)
	ping, pinged := reaches(ctx)
	return text + "; " + ping, joined([]error{err, pinged, unitIs(ctx, "fabric-ready.target", "active"), stays(ctx)})
}

func purge(ctx context.Context) (string, error) {
	if _, err := output(ctx, "dpkg", "-P", "fabric"); err != nil {
		return "", err
	}
	var failures []error
	for _, pattern := range []string{"/etc/fabric", "/var/lib/fabric-*", "/run/fabric-*", "/usr/bin/fabric*", "/lib/systemd/system/fabric*", "/etc/systemd/system/*/fabric*",
		"/etc/iproute2/rt_protos.d/fabric.conf", "/usr/lib/sysctl.d/*fabric*", "/usr/lib/systemd/networkd.conf.d/*fabric*"} {
		left, err := filepath.Glob(pattern)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(left, " "))
		}
		failures = append(failures, err)
	}
	// Not found is what others are still ordered after.
	units, err := output(ctx, "systemctl", "--no-legend", "--plain", "--all", "list-units", "fabric*")
	for line := range strings.SplitSeq(units, "\n") {
		if line != "" && !strings.Contains(line, "not-found") {
			failures = append(failures, fmt.Errorf("unit left: %s", line))
		}
	}
	failures = append(failures, err, nothing(ctx), stays(ctx))
	return fmt.Sprintf("no file, unit or object of ours is left; %d foreign objects are", len(foreign)), joined(failures)
}
