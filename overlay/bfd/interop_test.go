package bfd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// daemon starts a program in the namespace and ends it, by its id, with the test.
func (s *space) daemon(log string, argv ...string) {
	s.t.Helper()
	if _, err := os.Stat(argv[0]); err != nil {
		s.t.Skipf("%v: not installed here", err)
	}
	out, err := os.Create(log)
	if err != nil {
		s.t.Fatal(err)
	}
	// ip netns exec becomes the program: the process is the program's.
	cmd := exec.CommandContext(context.Background(), "ip", append([]string{"netns", "exec", s.name}, argv...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		ended := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		ended.Stop()
		_ = out.Close()
		if s.t.Failed() {
			text, _ := os.ReadFile(log)
			s.t.Logf("%s:\n%s", filepath.Base(argv[0]), text)
		}
	})
}

// folder is a new one that another user may write to, with a name short enough for sockets.
func folder(t testing.TB, owner string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bfd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if u, err := user.Lookup(owner); err == nil {
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// frr is FRR's zebra and bfdd in a namespace.
type frr struct {
	s   *space
	dir string
}

func startFRR(s *space) *frr {
	s.t.Helper()
	f := &frr{s, folder(s.t, "frr")}
	z := filepath.Join(f.dir, "zserv.api")
	for _, d := range [][]string{
		{"zebra"}, {"bfdd", "--bfdctl", filepath.Join(f.dir, "bfdd.sock")},
	} {
		s.daemon(filepath.Join(f.dir, d[0]+".out"), append([]string{"/usr/lib/frr/" + d[0], "-u", "frr", "-g", "frr", "-P", "0", "-f", "/dev/null",
			"-z", z, "-i", filepath.Join(f.dir, d[0]+".pid"), "--vty_socket", f.dir, "--log", "stdout"}, d[1:]...)...)
		await(s.t, d[0], func() bool {
			_, err := os.Stat(filepath.Join(f.dir, d[0]+".vty"))
			return err == nil
		})
	}
	return f
}

// do runs vtysh commands.
func (f *frr) do(commands ...string) string {
	f.s.t.Helper()
	argv := []string{"vtysh", "--vty_socket", f.dir, "-d", "bfdd"}
	for _, c := range commands {
		argv = append(argv, "-c", c)
	}
	return f.s.run(argv...)
}

// peer is bfdd's view of a session.
func (f *frr) peer(addr string) map[string]any {
	f.s.t.Helper()
	var peers []map[string]any
	if err := json.Unmarshal([]byte(f.do("show bfd peers json")), &peers); err != nil {
		f.s.t.Fatal(err)
	}
	for _, p := range peers {
		if p["peer"] == addr {
			return p
		}
	}
	return nil
}

// bird is BIRD in a namespace, with protocol bfd alone.
type bird struct {
	s   *space
	dir string
}

// startBIRD starts BIRD with the lines of its protocol bfd.
func startBIRD(s *space, bfd string) *bird {
	s.t.Helper()
	b := &bird{s, folder(s.t, "root")}
	b.write(bfd)
	s.daemon(filepath.Join(b.dir, "bird.out"), "/usr/sbin/bird", "-f", "-c", filepath.Join(b.dir, "bird.conf"), "-s", filepath.Join(b.dir, "bird.ctl"))
	await(s.t, "bird", func() bool {
		_, err := os.Stat(filepath.Join(b.dir, "bird.ctl"))
		return err == nil
	})
	return b
}

// write writes the configuration; BIRD reads it at "configure".
func (b *bird) write(bfd string) {
	b.s.t.Helper()
	text := "router id 192.0.2.2;\nprotocol device {}\nprotocol bfd {\n\t" + bfd + "\n}\n"
	if err := os.WriteFile(filepath.Join(b.dir, "bird.conf"), []byte(text), 0o600); err != nil {
		b.s.t.Fatal(err)
	}
}

// do runs a command of birdc.
func (b *bird) do(command ...string) string {
	b.s.t.Helper()
	return b.s.run(append([]string{"birdc", "-s", filepath.Join(b.dir, "bird.ctl")}, command...)...)
}

// TestFRR: bfdd takes us for one of its kind: up, timers changed at either end, down, administratively down at either end; IPv4,
// link-local and several hops.
func TestFRR(t *testing.T) {
	a, b := newSpaces(t, 1)
	f := startFRR(b)
	f.do("configure", "bfd",
		"peer 10.0.0.1 local-address 10.0.0.2 interface a0", "exit",
		"peer fe80::1 local-address fe80::2 interface a0", "exit",
		"peer 2001:db8::1 multihop local-address 2001:db8::2", "exit")
	names := []string{"v4", "link-local", "multihop"}
	peers := map[string]string{"v4": "10.0.0.1", "link-local": "fe80::1", "multihop": "2001:db8::1"}
	sessions := []SessionConfig{
		sessionOf("v4", "10.0.0.1", "10.0.0.2", dev("b0")),
		sessionOf("link-local", "fe80::1", "fe80::2", dev("b0")),
		sessionOf("multihop", "2001:db8::1", "2001:db8::2", multihop(254)),
	}
	e := a.start(sessions...)
	up := func() {
		t.Helper()
		for _, name := range names {
			e.awaitState(name, Up)
			await(t, name+" up and polled", func() bool {
				st := e.status(name)
				return f.peer(peers[name])["status"] == "up" && st.TxInterval == 300*ms && st.DetectionTime == 900*ms && !st.Polling
			})
		}
	}
	up()
	start := time.Now()

	// Timers: ours, then FRR's.
	slow := append([]SessionConfig(nil), sessions...)
	slow[0].DesiredMinTx, slow[0].RequiredMinRx = 500*ms, 400*ms
	if err := e.Configure(slow); err != nil {
		t.Fatal(err)
	}
	await(t, "FRR learns our timers", func() bool {
		p := f.peer("10.0.0.1")
		return p["remote-transmit-interval"] == 500.0 && p["remote-receive-interval"] == 400.0 && !e.status("v4").Polling
	})
	f.do("configure", "bfd", "peer 10.0.0.1 local-address 10.0.0.2 interface a0", "detect-multiplier 4", "receive-interval 600", "transmit-interval 700")
	await(t, "we learn FRR's timers", func() bool {
		st := e.status("v4")
		return st.TxInterval == 600*ms && st.DetectionTime == 4*700*ms
	})
	f.do("configure", "bfd", "peer 10.0.0.1 local-address 10.0.0.2 interface a0", "detect-multiplier 3", "receive-interval 300", "transmit-interval 300")
	if err := e.Configure(sessions); err != nil {
		t.Fatal(err)
	}
	up()
	for _, name := range names {
		if st := e.status(name); st.Since.After(start) || st.Downs != 0 {
			t.Errorf("%s left Up: %+v", name, st)
		}
	}

	// FRR hears nothing.
	cut := time.Now()
	b.drop(true)
	for _, name := range names {
		if c := e.awaitChange(name, Down, cut); c.Diag != DiagNeighbourDown || c.RemoteDiag != DiagExpired {
			t.Errorf("%s: %+v", name, c)
		}
	}
	b.drop(false)
	up()

	// FRR shut down by its operator, then we by ours.
	mark := time.Now()
	f.do("configure", "bfd", "peer fe80::1 local-address fe80::2 interface a0", "shutdown")
	if c := e.awaitChange("link-local", Down, mark); !c.RemoteAdminDown() {
		t.Errorf("%+v", c)
	}
	f.do("configure", "bfd", "peer fe80::1 local-address fe80::2 interface a0", "no shutdown")
	up()
	if err := e.Configure(sessions[1:]); err != nil {
		t.Fatal(err)
	}
	await(t, "FRR hears that we leave", func() bool {
		p := f.peer("10.0.0.1")
		return p["status"] == "down" && p["remote-diagnostic"] == "administratively down"
	})
	if err := e.Configure(sessions); err != nil {
		t.Fatal(err)
	}
	up()
	for reason, n := range e.Totals().Dropped {
		t.Errorf("%d packets of FRR dropped: %s", n, reason)
	}
}

// TestBusy: sessions at 50 ms × 3 with bfdd and with BIRD stay up while a program spins on every core. BFD_BUSY is for how long (10 s).
func TestBusy(t *testing.T) {
	last, err := time.ParseDuration(cmp.Or(os.Getenv("BFD_BUSY"), "10s"))
	if err != nil {
		t.Fatal(err)
	}
	const interval = 50 * time.Millisecond
	quick := func(s *SessionConfig) { s.DesiredMinTx, s.RequiredMinRx = interval, interval }
	engines := map[string]*running{}
	for name, start := range map[string]func(*space){
		"bfdd": func(s *space) {
			timers := []string{"detect-multiplier 3", "receive-interval 50", "transmit-interval 50", "exit"}
			f := startFRR(s)
			f.do(append([]string{"configure", "bfd", "peer 10.0.0.1 local-address 10.0.0.2 interface a0"}, timers...)...)
			f.do(append([]string{"configure", "bfd", "peer fe80::1 local-address fe80::2 interface a0"}, timers...)...)
		},
		"BIRD": func(s *space) {
			startBIRD(s, `interface "a0" { min rx interval 50 ms; min tx interval 50 ms; multiplier 3; };
	neighbor 10.0.0.1 dev "a0";
	neighbor fe80::1 dev "a0";`)
		},
	} {
		a, b := newSpaces(t, 1)
		start(b)
		engines[name] = a.start(sessionOf("v4", "10.0.0.1", "10.0.0.2", dev("b0"), quick), sessionOf("link-local", "fe80::1", "fe80::2", dev("b0"), quick))
	}
	each := func(f func(neighbour, session string, st Status)) {
		for name, e := range engines {
			for _, session := range []string{"v4", "link-local"} {
				f(name, session, e.status(session))
			}
		}
	}
	await(t, "four sessions at 50 ms", func() bool {
		up := 0
		each(func(_, _ string, st Status) {
			if st.State == Up && st.TxInterval == interval && st.DetectionTime == 3*interval && !st.Polling {
				up++
			}
		})
		return up == 4
	})
	began := time.Now()
	var spinning []*exec.Cmd
	for range runtime.NumCPU() {
		c := exec.Command("sh", "-c", "while :; do :; done")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		spinning = append(spinning, c)
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	time.Sleep(last)
	each(func(neighbour, session string, st Status) {
		// A neighbour that gives us up says so, and takes us down too.
		if st.State != Up || st.Downs != 0 || st.Since.After(began) {
			t.Errorf("%s, %s: left Up: %+v", neighbour, session, st)
		}
	})
	var spun time.Duration
	for _, c := range spinning {
		_ = c.Process.Kill()
		_ = c.Wait()
		spun += c.ProcessState.UserTime()
	}
	t.Logf("%v at 50 ms × 3 beside %v of %d spinning programs", last, spun.Round(time.Millisecond), len(spinning))
}

// TestBIRD: the same with BIRD, and with keyed SHA1, which Debian's bfdd does not have.
func TestBIRD(t *testing.T) {
	a, b := newSpaces(t, 1)
	bfd := func(interval int) string {
		return fmt.Sprintf(`interface "a0" {
		min rx interval %[1]d ms; min tx interval %[1]d ms; multiplier 3;
		authentication meticulous keyed sha1;
		password "fabric secret" { id 4; };
	};
	multihop { min rx interval %[1]d ms; min tx interval %[1]d ms; multiplier 3; };
	neighbor 10.0.0.1 dev "a0";
	neighbor fe80::1 dev "a0";
	neighbor 2001:db8::1 local 2001:db8::2 multihop yes;`, interval)
	}
	n := startBIRD(b, bfd(300))
	sha := withAuth(&Auth{MeticulousKeyedSHA1, []Key{{4, Secret("fabric secret")}}})
	names := []string{"v4", "link-local", "multihop"}
	e := a.start(
		sessionOf("v4", "10.0.0.1", "10.0.0.2", dev("b0"), sha),
		sessionOf("link-local", "fe80::1", "fe80::2", dev("b0"), sha),
		sessionOf("multihop", "2001:db8::1", "2001:db8::2", multihop(64)), // BIRD sends with the host's default
	)
	up := func(interval time.Duration) {
		t.Helper()
		for _, name := range names {
			e.awaitState(name, Up)
			await(t, name+" timers", func() bool {
				st := e.status(name)
				return st.TxInterval == interval && st.DetectionTime == 3*interval && !st.Polling
			})
		}
		await(t, "BIRD has three sessions up", func() bool { return strings.Count(n.do("show", "bfd", "sessions"), " Up ") == 3 })
	}
	up(300 * ms)
	start := time.Now()
	n.write(bfd(500))
	n.do("configure")
	up(500 * ms)
	for _, name := range names {
		if st := e.status(name); st.Since.After(start) || st.Downs != 0 {
			t.Errorf("%s left Up: %+v", name, st)
		}
	}
	cut := time.Now()
	b.drop(true)
	for _, name := range names {
		if c := e.awaitChange(name, Down, cut); c.Diag != DiagNeighbourDown || c.RemoteDiag != DiagExpired {
			t.Errorf("%s: %+v", name, c)
		}
	}
	b.drop(false)
	up(500 * ms)
	for reason, n := range e.Totals().Dropped {
		t.Errorf("%d packets of BIRD dropped: %s", n, reason)
	}
}
