package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const document = "/etc/fabric/fabric.yaml"

// services are the checks of what an administrator does to the units, and of what systemd does by itself.
func services() []step {
	return []step{
		{"a fabric-site that hangs is restarted by systemd's watchdog, and loses no packet", watchdog},
		{"systemctl restart fabric-site loses no packet", func(ctx context.Context) (string, error) { return restarts(ctx, "fabric-site") }},
		{"systemctl restart fabric-links loses no packet", func(ctx context.Context) (string, error) { return restarts(ctx, "fabric-links") }},
		{"systemctl reload takes a good document, and a bad one changes nothing", reloads},
		{"systemctl stop ends the daemons, and forwarding goes on", stops},
	}
}

// watchdog stops the process as a hang would, and waits for systemd to notice.
func watchdog(ctx context.Context) (string, error) {
	before, err := properties(ctx, "fabric-site", "MainPID", "NRestarts", "WatchdogUSec")
	if err != nil {
		return "", err
	}
	return during(ctx, func() (string, error) {
		began := time.Now()
		if _, err := output(ctx, "kill", "-STOP", before["MainPID"]); err != nil {
			return "", err
		}
		var after map[string]string
		err := until(ctx, 100*time.Second, func() error {
			if after, err = properties(ctx, "fabric-site", "MainPID", "NRestarts", "ActiveState"); err != nil {
				return err
			}
			if after["ActiveState"] != "active" || after["NRestarts"] == before["NRestarts"] {
				return fmt.Errorf("fabric-site is %s, restarted %s times", after["ActiveState"], after["NRestarts"])
			}
			return nil
		})
		if err != nil {
			return "", err
		}
		text := fmt.Sprintf("stopped process %s; process %s is ready %.1f s later, the limit being %s", before["MainPID"], after["MainPID"], time.Since(began).Seconds(),
			before["WatchdogUSec"])
		said, err := output(ctx, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", "fabric-site", "-g", "Watchdog timeout")
		if err != nil {
			return text, err
		}
		line, _, _ := strings.Cut(said, "\n")
		back, err := again(ctx)
		return text + "\n" + line + "\n" + back, err
	})
}

// restarts restarts a daemon under traffic.
func restarts(ctx context.Context, unit string) (string, error) {
	return during(ctx, func() (string, error) {
		began := time.Now()
		if _, err := output(ctx, "systemctl", "restart", unit); err != nil {
			return "", err
		}
		text := fmt.Sprintf("systemctl restart %s returned after %.1f s", unit, time.Since(began).Seconds())
		back, err := again(ctx)
		return text + "\n" + back, joined([]error{err, unitIs(ctx, unit, "active"), unitIs(ctx, "fabric-ready.target", "active")})
	})
}

// generation waits until a generation other than the one given is applied and says which.
func generation(ctx context.Context, not string) (s siteStatus, err error) {
	err = until(ctx, 60*time.Second, func() error {
		if s, err = status(ctx); err != nil {
			return err
		}
		if s.Generation == not || s.Applied != s.Generation {
			return fmt.Errorf("generation %s, applied %s, problems %q", s.Generation, s.Applied, s.Problems)
		}
		return nil
	})
	return s, err
}

// reloads hands over a document with one more prefix, then one that cannot be read, then the first again.
func reloads(ctx context.Context) (string, error) {
	good, err := os.ReadFile(document)
	if err != nil {
		return "", err
	}
	before, err := status(ctx)
	if err != nil {
		return "", err
	}
	return during(ctx, func() (string, error) {
		more := strings.Replace(string(good), "prefixes: [{prefix: 10.1.0.0/24}", "prefixes: [{prefix: 10.1.9.0/24, next-hop: 10.1.0.10}, {prefix: 10.1.0.0/24}", 1)
		if err := reload(ctx, more); err != nil {
			return "", err
		}
		taken, err := generation(ctx, before.Generation)
		if err != nil {
			return "", err
		}
		err = until(ctx, 30*time.Second, func() error {
			route, err := output(ctx, words("ip -n b-gw route show table 200 10.1.9.0/24")...)
			if err == nil && route == "" {
				err = fmt.Errorf("b-gw has no route to the new prefix")
			}
			return err
		})
		if err != nil {
			return "", err
		}
		text := fmt.Sprintf("generation %s, then %s with one more prefix, which b-gw has in its table", before.Generation, taken.Generation)

		if err := reload(ctx, strings.Replace(string(good), "asn: 4200000001", "asn: none", 1)); err != nil {
			return text, err
		}
		var bad siteStatus
		err = until(ctx, 30*time.Second, func() error {
			if bad, err = status(ctx); err == nil && len(bad.Problems) == 0 {
				err = fmt.Errorf("no problem is told after a reload of a bad document")
			}
			return err
		})
		if err != nil {
			return text, err
		}
		if bad.Generation != taken.Generation {
			return text, fmt.Errorf("generation %s after a bad document, want %s as before", bad.Generation, taken.Generation)
		}
		text += fmt.Sprintf("\na bad document: still generation %s; %s", bad.Generation, bad.Problems[0])
		said, err := grepJournal(ctx, "fabric-site", "the document was not taken")
		text += "\n" + said
		if err != nil {
			return text, err
		}

		if err := reload(ctx, string(good)); err != nil {
			return text, err
		}
		last, err := generation(ctx, taken.Generation)
		if err == nil && len(last.Problems) > 0 {
			err = fmt.Errorf("problems stay: %q", last.Problems)
		}
		return text, joined([]error{err, unitIs(ctx, "fabric-site", "active")})
	})
}

// reload has the unit take up a document.
func reload(ctx context.Context, text string) error {
	if err := os.WriteFile(document+".new", []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.Rename(document+".new", document); err != nil {
		return err
	}
	_, err := output(ctx, "systemctl", "reload", "fabric-site")
	return err
}

// stops ends both daemons and starts them again.
func stops(ctx context.Context) (string, error) {
	return during(ctx, func() (string, error) {
		routes, err := ours(ctx)
		if err != nil {
			return "", err
		}
		began := time.Now()
		if _, err := output(ctx, "systemctl", "stop", "fabric-site", "fabric-links"); err != nil {
			return "", err
		}
		text := fmt.Sprintf("both stopped within %.1f s", time.Since(began).Seconds())
		failures := []error{unitIs(ctx, "fabric-site", "inactive"), unitIs(ctx, "fabric-links", "inactive"), unitIs(ctx, "fabric-ready.target", "inactive")}
		select { // what is lost shows in the pings
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
		left, err := ours(ctx)
		if err == nil && len(left) != len(routes) {
			err = fmt.Errorf("%d objects of ours before, %d after", len(routes), len(left))
		}
		failures = append(failures, err)
		text += "; " + strconv.Itoa(len(left)) + " routes, rules and next hops of ours stay"
		if _, err := output(ctx, "systemctl", "start", "fabric-ready.target"); err != nil {
			return text, err
		}
		back, err := again(ctx)
		return text + "\n" + back, joined(append(failures, err, unitIs(ctx, "fabric-links", "active"), unitIs(ctx, "fabric-ready.target", "active")))
	})
}

// disabled boots a host on which an administrator has disabled the daemons, and takes that back.
func disabled() boot {
	return boot{
		name: "disabled",
		before: func(ctx context.Context) error {
			_, err := output(ctx, "systemctl", "disable", "fabric-site", "fabric-links")
			return err
		},
		checks: []step{
			{"after systemctl disable nothing of the fabric starts at boot", func(ctx context.Context) (string, error) {
				text, err := finishes(ctx, "running")
				devices, shown := output(ctx, "ip", "-br", "link", "show", "type", "vrf")
				if shown == nil && devices != "" {
					shown = fmt.Errorf("there are VRF devices: %s", devices)
				}
				return text, joined([]error{err, shown, unitIs(ctx, "fabric-site", "inactive"), unitIs(ctx, "fabric-links", "inactive"),
					unitIs(ctx, "fabric-ready.target", "inactive")})
			}},
			{"systemctl enable --now brings it up", func(ctx context.Context) (string, error) {
				if _, err := output(ctx, "systemctl", "enable", "--now", "fabric-links", "fabric-site"); err != nil {
					return "", err
				}
				text, err := again(ctx)
				return text, joined([]error{err, unitIs(ctx, "fabric-ready.target", "active")})
			}},
		},
	}
}
