// Command boot runs inside the lab's virtual machine with systemd as process 1: it checks a host that has the project's Debian
// package installed, through many boots. See README.md.
//
//	boot run          the checks of this boot, as lab-check.service; reboots, and powers off after the last boot
//	boot watch FILE   writes the names of new network devices and the time of each into FILE
//	boot banner ADDRESS:PORT   prints the first line that a server says
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	payload = "/payload"
	lab     = "/var/lib/lab" // stays through reboots
	console = "VM-EXIT"      // vmrun.sh waits for this word
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "run":
		err = runBoot(ctx)
	case len(args) == 2 && args[0] == "watch":
		err = watch(ctx, args[1])
	case len(args) == 2 && args[0] == "banner":
		err = banner(args[1])
	default:
		err = errors.New("usage: boot run | watch FILE | banner ADDRESS:PORT")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		os.Exit(1)
	}
}

// banner prints what a server says first.
func banner(address string) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	return err
}

// runBoot does the checks of this boot. What was counted so far, and which boot comes next, is kept in files.
func runBoot(ctx context.Context) error {
	wanted, err := readWords(filepath.Join(payload, "parts"))
	if err != nil {
		return err
	}
	words, err := readWords(filepath.Join(payload, "boots"))
	if err != nil {
		return err
	}
	plain, err := strconv.Atoi(strings.Join(words, " "))
	if err != nil || plain < 1 {
		return fmt.Errorf("boots: %q: want a number from 1 on", words)
	}
	list, err := boots(plain, wanted)
	if err != nil {
		return err
	}
	c := &checker{out: os.Stdout}
	c.load()
	if c.Boot >= len(list) {
		return fmt.Errorf("boot %d of %d: there are no more", c.Boot+1, len(list))
	}
	b := list[c.Boot]
	fmt.Fprintf(c.out, "boot %d of %d: %s%s\n", c.Boot+1, len(list), b.name, c.sinceReboot())
	for _, step := range b.checks {
		c.check(ctx, step.name, step.run)
		if ctx.Err() != nil {
			return nil
		}
	}
	c.journal(ctx, fmt.Sprintf("%02d-%s", c.Boot+1, strings.ReplaceAll(b.name, " ", "-")))
	c.Boot++
	if c.Boot == len(list) {
		return c.verdict()
	}
	if next := list[c.Boot]; next.before != nil {
		if err := next.before(ctx); err != nil {
			c.Failed++
			fmt.Fprintf(c.out, "FAIL  host made ready for %s: %v\n", next.name, err)
			return c.verdict()
		}
	}
	c.Rebooted = time.Now()
	c.save()
	_, err = output(ctx, "systemctl", "reboot")
	<-ctx.Done() // systemd ends us
	return err
}

// verdict says how it all went and turns the machine off.
func (c *checker) verdict() error {
	code := 0
	if c.Failed > 0 {
		code = 1
		fmt.Fprintf(c.out, "boot: %d of %d checks failed, %d boots\n", c.Failed, c.Done, c.Boot)
	} else {
		fmt.Fprintf(c.out, "boot: ok, %d checks, %d boots\n", c.Done, c.Boot)
	}
	fmt.Fprintf(c.out, "%s %d\n", console, code)
	syscall.Sync()
	return os.WriteFile("/proc/sysrq-trigger", []byte("o"), 0)
}

func readWords(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	return strings.Fields(string(data)), err
}
