package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// moment is something that happened in a boot.
type moment struct {
	what string
	at   time.Duration // since the kernel's start; 0: it did not happen
}

// inOrder prints moments as a line of evidence and fails where one is missing or came before the one ahead of it.
func inOrder(moments []moment) (string, error) {
	parts := make([]string, 0, len(moments))
	var wrong []string
	for i, m := range moments {
		parts = append(parts, fmt.Sprintf("%s %.3f", m.what, m.at.Seconds()))
		switch {
		case m.at == 0:
			wrong = append(wrong, m.what+" did not happen")
		case i > 0 && m.at < moments[i-1].at:
			wrong = append(wrong, fmt.Sprintf("%s came before %s", m.what, moments[i-1].what))
		}
	}
	text := strings.Join(parts, " < ")
	if len(wrong) > 0 {
		return text, fmt.Errorf("%s", strings.Join(wrong, "; "))
	}
	return text, nil
}

// stamp reads one of a unit's monotonic time stamps.
func stamp(ctx context.Context, unit, name string) (time.Duration, error) {
	p, err := properties(ctx, unit, name)
	if err != nil {
		return 0, err
	}
	us, err := strconv.ParseInt(p[name], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", name, unit, err)
	}
	return time.Duration(us) * time.Microsecond, nil
}

// order proves the chain from the network to those who need the fabric's routes.
func order(ctx context.Context) (string, error) {
	var agents []string
	var lines []string
	chain := []moment{}
	for _, m := range []struct{ what, unit, stamp string }{
		{"systemd-networkd", "systemd-networkd.service", "ActiveEnterTimestampMonotonic"},
		{"fabric-links starts", "fabric-links.service", "InactiveExitTimestampMonotonic"},
		{"fabric-links ready", "fabric-links.service", "ActiveEnterTimestampMonotonic"},
		{"fabric-site starts", "fabric-site.service", "InactiveExitTimestampMonotonic"},
		{"VRF device", "", "CORE"},
		{"VXLAN device", "", "fxv1000"},
		{"fabric-site ready", "fabric-site.service", "ActiveEnterTimestampMonotonic"},
		{"fabric-ready.target", "fabric-ready.target", "ActiveEnterTimestampMonotonic"},
	} {
		var at time.Duration
		var err error
		if m.unit != "" {
			at, err = stamp(ctx, m.unit, m.stamp)
		} else {
			var data []byte
			if data, err = os.ReadFile("/run/lab-links"); err == nil {
				var devices map[string]time.Duration
				devices, err = appeared(string(data))
				at = devices[m.stamp]
			}
		}
		if err != nil {
			return "", err
		}
		chain = append(chain, moment{m.what, at})
	}
	// Devices of one VRF are made in an order of their own.
	slices.SortStableFunc(chain[4:6], func(a, b moment) int { return int(a.at - b.at) })
	text, err := inOrder(chain)
	lines = append(lines, text)
	failures := []error{err}
	for _, agent := range []struct{ unit, after string }{
		{"cloud-agent.service", "fabric-ready.target"}, {"cloud-final.service", "fabric-site.service"}, {"frr.service", "fabric-site.service"},
	} {
		ready, err := stamp(ctx, agent.after, "ActiveEnterTimestampMonotonic")
		if err != nil {
			return "", err
		}
		starts, err := stamp(ctx, agent.unit, "InactiveExitTimestampMonotonic")
		if err != nil {
			return "", err
		}
		text, err := inOrder([]moment{{agent.after, ready}, {agent.unit + " starts", starts}})
		agents, failures = append(agents, text), append(failures, err)
	}
	return strings.Join(append(lines, agents...), "\n"), joined(failures)
}

// finishes waits for the boot to end and says how long it took and which units failed. want are the states of the system that are good.
func finishes(ctx context.Context, want ...string) (string, error) {
	var p map[string]string
	var took float64
	err := until(ctx, 4*time.Minute, func() (err error) {
		if p, err = properties(ctx, "", "SystemState", "NJobs", "FinishTimestampMonotonic", "NFailedUnits"); err != nil {
			return err
		}
		us, err := strconv.ParseInt(p["FinishTimestampMonotonic"], 10, 64)
		if err != nil {
			return err
		}
		if took = float64(us) / 1e6; took == 0 {
			return fmt.Errorf("%s, %s jobs", p["SystemState"], p["NJobs"])
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	failed, err := output(ctx, "systemctl", "--no-legend", "--plain", "--failed")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s, finished %.1f s after the kernel's start", p["SystemState"], took)
	if failed != "" {
		text += "; failed: " + strings.Join(strings.Fields(failed), " ")
	}
	if !slices.Contains(want, p["SystemState"]) {
		return text, fmt.Errorf("want %s", strings.Join(want, " or "))
	}
	return text, nil
}

// finished is finishes for a boot without a fault.
func finished(ctx context.Context) (string, error) { return finishes(ctx, "running") }

// verified has systemd read all units as installed: a cycle, or anything else to say, fails.
func verified(ctx context.Context) (string, error) {
	said, err := output(ctx, words("systemd-analyze verify --man=no fabric-links.service fabric-site.service fabric-carrier.service "+
		"fabric-tunnel@fxw0.service fabric-retry@fabric-site.timer fabric-ready.target frr.service cloud-agent.service cloud-final.service multi-user.target")...)
	if err != nil {
		return "", err
	}
	if said != "" {
		return "", fmt.Errorf("systemd-analyze verify: %s", said)
	}
	if line, err := output(ctx, "journalctl", "-b", "--no-pager", "-o", "cat", "-g", "ordering cycle"); err == nil {
		return "", fmt.Errorf("the journal: %s", line)
	}
	return "systemd-analyze verify says nothing, and the journal nothing of an ordering cycle", nil
}
