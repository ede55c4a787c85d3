package links

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Tunnel processes that the plan has no more are asked to end once and not waited for; the watchdog hears of each step.
func TestStopDoesNotWait(t *testing.T) {
	w, e := running(t)
	beats := 0
	e.cfg.Beat = func() { beats++ }
	w.stubborn[b1], w.stubborn[c0] = true, true
	p := testPlan()
	p.Tunnels, p.VTEPs, p.NextHops = p.Tunnels[:1], p.VTEPs[:1], p.NextHops[:1]
	p.VTEPs[0].Devices = p.VTEPs[0].Devices[:1]
	w.take(e, p)
	asked := func(want ...string) {
		t.Helper()
		if !reflect.DeepEqual(w.asked, want) {
			t.Errorf("asked is %q, want %q", w.asked, want)
		}
		w.asked = nil
	}
	// Removals run in reverse.
	asked("stop "+latter(b1, c0), "stop "+former(b1, c0))
	if beats != 3 {
		t.Errorf("%d beats for two steps and a pass", beats)
	}
	w.now = w.now.Add(stopWithin - time.Second)
	w.settle(e)
	asked()
	delete(w.stubborn, b1)
	if err := w.Kill(b1); err != nil { // it ends by itself
		t.Fatal(err)
	}
	w.now = w.now.Add(time.Second)
	// A stubborn one dies of SIGKILL all the same.
	w.settle(e)
	asked("sweep "+b1, "kill "+c0, "sweep "+c0)
	w.settle(e)
	asked()
	if w.alive[b1] || w.alive[c0] || !w.alive[b0] {
		t.Errorf("processes are %v", w.alive)
	}
}

func former(a, b string) string { return min(a, b) }
func latter(a, b string) string { return max(a, b) }

// SystemdProcesses with a systemctl that writes down what it is told, and would hang if it had to wait for a job.
func TestSystemdProcesses(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("needs sh")
	}
	bin, run := t.TempDir(), t.TempDir()
	said := filepath.Join(bin, "said")
	script := "#!/bin/sh\necho \"$@\" >>" + said + "\n[ \"$2\" = --no-block ] || exec sleep 60\n"
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	const d = "fxwtest"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A process that systemd did not start.
	holds := exec.Command(self)
	holds.Env = append(os.Environ(), claimEnv+"="+tunnelLock(run, d))
	if err := holds.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- holds.Wait() }()
	t.Cleanup(func() { _ = holds.Process.Kill() })
	p := NewSystemdProcesses(run)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if alive, err := p.Alive(d); err != nil {
			t.Fatal(err)
		} else if alive {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the process does not come up")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.Stop(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := p.Start(context.Background(), d); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(said)
	want := "stop --no-block fabric-tunnel@fxwtest.service\nstart --no-block fabric-tunnel@fxwtest.service\n"
	if err != nil || string(got) != want {
		t.Errorf("systemctl was told %q, want %q", got, want)
	}
}

// What the programs write below /run is made by their units, whoever starts first: a path that is allowed only if it is there when the unit
// starts stays read-only for good. Units that share a folder agree on its mode.
func TestRuntimeDirectories(t *testing.T) {
	settings := func(unit string) map[string]string {
		f, err := os.Open(filepath.Join("..", "..", "systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out := map[string]string{}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if k, v, ok := strings.Cut(lines.Text(), "="); ok {
				out[k] = v
			}
		}
		return out
	}
	engine, tunnel := settings("fabric-links.service"), settings("fabric-tunnel@.service")
	for unit, s := range map[string]map[string]string{"engine": engine, "tunnel": tunnel} {
		found := false
		for _, d := range strings.Fields(s["RuntimeDirectory"]) {
			found = found || "/var/run/"+d == uapiDir
		}
		if !found || s["RuntimeDirectoryPreserve"] != "yes" {
			t.Errorf("%s: %s is not a runtime directory that stays: RuntimeDirectory=%s, RuntimeDirectoryPreserve=%s", unit, uapiDir, s["RuntimeDirectory"], s["RuntimeDirectoryPreserve"])
		}
	}
	if engine["RuntimeDirectoryMode"] != tunnel["RuntimeDirectoryMode"] {
		t.Errorf("modes are %s and %s", engine["RuntimeDirectoryMode"], tunnel["RuntimeDirectoryMode"])
	}
}
