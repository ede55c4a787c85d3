package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// output is what a command prints, without the last line's end; with its errors when it fails.
func output(ctx context.Context, argv ...string) (string, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.WaitDelay = time.Second
	out, err := c.CombinedOutput()
	text := strings.TrimRight(string(out), "\n")
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text)
	}
	return text, nil
}

// all runs commands until one fails.
func all(ctx context.Context, commands ...[]string) error {
	for _, argv := range commands {
		if _, err := output(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// words is a command in one string.
func words(command string) []string { return strings.Fields(command) }

// until waits for fn to return nil and returns its last error when it does not within a time.
func until(ctx context.Context, within time.Duration, fn func() error) error {
	began := time.Now()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		if time.Since(began) > within {
			return fmt.Errorf("not within %s: %w", within, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// uptime is the time since the kernel started.
func uptime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	return time.Duration(seconds * float64(time.Second)), err
}

// properties asks systemd about a unit, or about itself for "".
func properties(ctx context.Context, unit string, names ...string) (map[string]string, error) {
	argv := []string{"systemctl", "show", "-p", strings.Join(names, ",")}
	if unit != "" {
		argv = append(argv, unit)
	}
	text, err := output(ctx, argv...)
	if err != nil {
		return nil, err
	}
	return parseProperties(text), nil
}

func parseProperties(text string) map[string]string {
	found := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			found[name] = value
		}
	}
	return found
}

// unitIs fails unless a unit's ActiveState is one of those.
func unitIs(ctx context.Context, unit string, want ...string) error {
	p, err := properties(ctx, unit, "ActiveState", "SubState", "Result")
	if err != nil {
		return err
	}
	for _, w := range want {
		if p["ActiveState"] == w {
			return nil
		}
	}
	return fmt.Errorf("%s is %s (%s, %s), want %s", unit, p["ActiveState"], p["SubState"], p["Result"], strings.Join(want, " or "))
}

// grepJournal returns the newest line of this boot's journal of a unit that holds all words.
func grepJournal(ctx context.Context, unit string, holds ...string) (string, error) {
	text, err := output(ctx, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit)
	if err != nil {
		return "", err
	}
	found := ""
	for line := range strings.SplitSeq(text, "\n") {
		if containsAll(line, holds) {
			found = line
		}
	}
	if found == "" {
		lines := strings.Split(text, "\n")
		return "", fmt.Errorf("journal of %s: no line with %q; it ends with:\n%s", unit, holds, strings.Join(lines[max(0, len(lines)-8):], "\n"))
	}
	return unit + " says: " + found, nil
}

func containsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// ask decodes what fabricctl says in JSON.
func ask(ctx context.Context, answer any, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "nice", append([]string{"-n", "19", "fabricctl", "-o", "json"}, argv...)...)
	out, err := c.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return fmt.Errorf("fabricctl %s: %w", strings.Join(argv, " "), err)
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return fmt.Errorf("fabricctl %s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// siteStatus is what is read of `fabricctl site status`.
type siteStatus struct {
	Generation, Applied, Version, Backend string
	Ready                                 bool
	Problems, Conflicts                   []string
}

func status(ctx context.Context) (siteStatus, error) {
	var answer struct{ Site siteStatus }
	err := ask(ctx, &answer, "site", "status")
	return answer.Site, err
}
