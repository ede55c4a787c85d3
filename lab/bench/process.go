package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program at work in a namespace.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  string
}

// start starts a program in an end of the link. What it says goes to a file in the link's folder.
func (l *link) start(end int, name string, in io.Reader, out io.Writer, argv ...string) (*process, error) {
	// ip netns exec becomes the program: the process is the program's.
	return startProcess(filepath.Join(l.dir, name+".log"), in, out, append([]string{"ip", "netns", "exec", l.spaces[end]}, argv...)...)
}

// startProcess starts a program in a process group of its own: an interrupt from the terminal is for the bench, which ends it. What it
// says is appended to a file; its standard output as well, without out.
func startProcess(logFile string, in io.Reader, out io.Writer, argv ...string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, log
	if out == nil {
		cmd.Stdout = log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{}), log: log.Name()}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in its log
	}()
	return p, nil
}

func (p *process) pid() int               { return p.cmd.Process.Pid }
func (p *process) ended() <-chan struct{} { return p.done }

// close ends the process, gently first.
func (p *process) close() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// lastWords is the end of what the process said, for an error.
func (p *process) lastWords() string {
	text, _ := os.ReadFile(p.log)
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-1000):])
}

// cpuTime is what all threads of a process have used, in user and kernel mode: utime and stime of proc_pid_stat(5).
func cpuTime(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	d, err := parseStat(string(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// tick is the unit of times in /proc, which Linux has the same on all machines that matter: sysconf(_SC_CLK_TCK) is 100.
const tick = 10 * time.Millisecond

func parseStat(text string) (time.Duration, error) {
	// The name in parentheses may have spaces and parentheses.
	_, rest, ok := cutLast(text, ")")
	fields := strings.Fields(rest) // from the third on: state
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("cannot read %q", text)
	}
	var sum time.Duration
	for _, word := range fields[11:13] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// residentBytes is VmRSS of proc_pid_status(5).
func residentBytes(pid int) (int64, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s: there is no VmRSS", path)
}
