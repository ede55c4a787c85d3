package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test's binary be the bench: it starts itself as our engine, and tests start it to interrupt it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == engineCommand || os.Args[1] == probeCommand || os.Args[1] == "bfd") {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needFRR(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat(frrFolder + "bfdd"); err != nil {
		t.Skipf("%v: not installed here", err)
	}
}

// left is what is still there of the bench that ran, or runs, as that process.
func left(pid int) []string {
	pattern := fmt.Sprintf("%s%d-*", prefix, pid)
	spaces, _ := filepath.Glob(filepath.Join("/run/netns", pattern))
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), pattern))
	return append(spaces, folders...)
}

// running is the processes in the namespaces of that bench.
func running(pid int) (ids []string) {
	for _, path := range left(pid) {
		if filepath.Dir(path) == "/run/netns" {
			out, _ := exec.Command("ip", "netns", "pids", filepath.Base(path)).Output()
			ids = append(ids, strings.Fields(string(out))...)
		}
	}
	return ids
}

// TestBFD: both are measured, at the pace wanted, and nothing is left.
func TestBFD(t *testing.T) {
	needFRR(t)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"bfd", "-sessions", "3,70", "-seconds", "1"}, nil, &out); err != nil {
		t.Fatal(err)
	}
	var who []string
	for in := json.NewDecoder(&out); ; {
		var r result
		if err := in.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		who = append(who, r.Who)
		if r.Bench != "bfd" || r.Params["interval_ms"] != 100.0 || r.Params["multiplier"] != 3.0 || r.Params["seconds"] != 1.0 {
			t.Errorf("%+v", r)
		}
		if r.Who == "ratio" {
			if r.Metrics["cpu_ratio"] <= 0 {
				t.Errorf("%+v", r)
			}
			continue
		}
		names := slices.Sorted(maps.Keys(r.Metrics))
		want := []string{"cpu_cores", "false_downs", "packets_per_second_in", "packets_per_second_out", "rss_mb", "up_seconds"}
		if !slices.Equal(names, want) {
			t.Errorf("metrics %v, want %v", names, want)
		}
		// 100 ms less 0 to 25 %, measured over a second: 8 to 15 packets, on a loaded machine.
		n := r.Params["sessions"].(float64)
		for _, m := range []string{"packets_per_second_in", "packets_per_second_out"} {
			if v := r.Metrics[m]; v < 8*n || v > 15*n {
				t.Errorf("%s with %v sessions: %s %v", r.Who, n, m, v)
			}
		}
		if r.Metrics["cpu_cores"] <= 0 || r.Metrics["cpu_cores"] > 2 || r.Metrics["rss_mb"] < 1 || r.Metrics["up_seconds"] <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if want := []string{"fabric", "frr", "ratio", "fabric", "frr", "ratio"}; !slices.Equal(who, want) {
		t.Errorf("lines of %v, want %v", who, want)
	}
	if l := left(os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

// startBench starts a long measurement of FRR as a process, and waits until bfdd, zebra and the far end run.
func startBench(t *testing.T) *exec.Cmd {
	t.Helper()
	needFRR(t)
	cmd := exec.Command(os.Args[0], "bfd", "-who", "frr", "-sessions", "2", "-seconds", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, unless the test failed
		_ = cmd.Wait()
		sweep(context.Background())
	})
	await(t, "three processes", func() bool { return len(running(cmd.Process.Pid)) == 3 })
	return cmd
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestInterrupted: SIGINT and SIGTERM leave nothing.
func TestInterrupted(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := startBench(t)
			ids := running(cmd.Process.Pid)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("ended with %v, want exit code 1", err)
			}
			for _, id := range ids {
				if _, err := os.Stat("/proc/" + id); err == nil {
					t.Errorf("process %s still runs", id)
				}
			}
			if l := left(cmd.Process.Pid); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
}

// TestSweep: what a killed bench left is removed by the next, and what belongs to a living one is not.
func TestSweep(t *testing.T) {
	alive, killed := startBench(t), startBench(t)
	ids := running(killed.Process.Pid)
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	sweep(t.Context())
	await(t, "processes of the killed one end", func() bool {
		return !slices.ContainsFunc(ids, func(id string) bool {
			stat, err := os.ReadFile("/proc/" + id + "/stat")
			return err == nil && !strings.Contains(string(stat), ") Z ") // whoever reaps orphans may take its time
		})
	})
	if l := left(killed.Process.Pid); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
	if n := len(running(alive.Process.Pid)); n != 3 {
		t.Errorf("%d processes of the living one, want 3", n)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"bgp"}, {"bfd", "-sessions", "0"}, {"bfd", "-sessions", "5,x"}, {"bfd", "-sessions", "2001"}, {"bfd", "-seconds", "0"},
		{"bfd", "-who", "bird"}, {"bfd", "more"}, {"bfd", "-no-such-flag"},
	} {
		if err := run(t.Context(), args, nil, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want wrong usage", args, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 120 30 13 14"
	for text, want := range map[string]time.Duration{
		"17 (bench)" + rest:           1500 * time.Millisecond,
		"17 (a ) S 9 9 (name)" + rest: 1500 * time.Millisecond,
		"17 (bench) S 1 2":            -1,
		"":                            -1,
	} {
		got, err := parseStat(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

// TestCPUTime: a process that works for some time has used about that.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var used syscall.Rusage
	start := func() time.Duration {
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
		return time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	from := start()
	for start()-from < 200*time.Millisecond {
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := after-before, start()-from; got < want-5*tick || got > want+5*tick {
		t.Errorf("used %v, want %v", got, want)
	}
	if rss, err := residentBytes(os.Getpid()); err != nil || rss < 1<<20 || rss > 1<<30 {
		t.Errorf("resident %d, %v", rss, err)
	}
}

// TestSessions: both ends and FRR's configuration speak of the same pairs, all of them different.
func TestSessions(t *testing.T) {
	near, far := sessions(0, maxSessions), sessions(1, maxSessions)
	seen := map[netip.Addr]bool{}
	config := bufio.NewScanner(strings.NewReader(frrConfig(0, maxSessions)))
	subnet := netip.MustParsePrefix("10.200.0.0/15")
	for i := range near {
		if err := near[i].Validate(); err != nil {
			t.Fatal(err)
		}
		if near[i].Local != far[i].Peer || near[i].Peer != far[i].Local {
			t.Fatalf("%v at one end, %v at the other", near[i].Path, far[i].Path)
		}
		for _, a := range []netip.Addr{near[i].Local, near[i].Peer} {
			if seen[a] || !subnet.Contains(a) {
				t.Fatalf("%v is there twice or not in %v", a, subnet)
			}
			seen[a] = true
		}
		want := fmt.Sprintf(" peer %v local-address %v interface link0", near[i].Peer, near[i].Local)
		for config.Scan() && config.Text() != want {
		}
		if config.Text() != want {
			t.Fatalf("FRR's configuration has no %q", want)
		}
	}
}
