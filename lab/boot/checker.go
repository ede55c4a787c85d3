package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// checker counts, over all boots.
type checker struct {
	out io.Writer

	Boot, Done, Failed int
	// Rebooted is when the last reboot was asked for.
	Rebooted time.Time
}

// step is one proof, with its evidence.
type step struct {
	name string
	run  func(context.Context) (string, error)
}

// patience is how long one check may take.
const patience = 5 * time.Minute

func (c *checker) file() string { return filepath.Join(lab, "counted.json") }

func (c *checker) load() {
	if data, err := os.ReadFile(c.file()); err == nil { // none in the first boot
		_ = json.Unmarshal(data, c)
	}
}

func (c *checker) save() {
	data, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(c.file(), data, 0o600)
	}
	if err != nil {
		fmt.Fprintln(c.out, "boot:", err)
	}
}

// check runs one proof and prints it with its evidence.
func (c *checker) check(ctx context.Context, name string, fn func(context.Context) (string, error)) {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	evidence, err := fn(bounded)
	if ctx.Err() != nil {
		return // told to end
	}
	c.Done++
	word := "ok  "
	if err != nil {
		word, c.Failed = "FAIL", c.Failed+1
		evidence = strings.TrimSpace(evidence + "\n" + err.Error())
	}
	fmt.Fprintf(c.out, "%s  %s  (%.1fs)\n", word, name, time.Since(began).Seconds())
	for line := range strings.SplitSeq(strings.TrimSpace(evidence), "\n") {
		if line != "" {
			fmt.Fprintf(c.out, "        %s\n", line)
		}
	}
}

// sinceReboot says how long the machine took to go down and start its kernel.
func (c *checker) sinceReboot() string {
	up, err := uptime()
	if c.Rebooted.IsZero() || err != nil {
		return ""
	}
	return fmt.Sprintf(" (%.1f s from the reboot's order to the kernel's start)", (time.Since(c.Rebooted) - up).Seconds())
}

// journal keeps the boot's journal, and hands out all that was kept so far.
func (c *checker) journal(ctx context.Context, name string) {
	text, err := output(ctx, "journalctl", "-b", "-o", "short-monotonic", "--no-pager")
	if err == nil {
		err = os.WriteFile(filepath.Join(lab, "results", name+".journal"), []byte(text), 0o600)
	}
	if err == nil {
		_, err = output(ctx, "tar", "-C", filepath.Join(lab, "results"), "-cf", "/dev/nvme0n3", ".")
	}
	if err != nil {
		fmt.Fprintln(c.out, "boot: journal:", err)
	}
}
