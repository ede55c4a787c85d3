package bfd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace of a test's own.
type space struct {
	t    testing.TB
	name string
}

// newSpaces makes namespaces a and b, joined by veth pairs named after the other end: b0 in a, a0 in b.
func newSpaces(t testing.TB, links int) (a, b *space) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	var both [2]*space
	for i, n := range []string{"a", "b"} {
		s := &space{t, fmt.Sprintf("bfd-%d-%s-%d", os.Getpid(), n, time.Now().UnixNano()%1e9)}
		output(t, "ip", "netns", "add", s.name)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", s.name).Run() })
		for _, c := range []string{"all", "default"} {
			s.run("sysctl", "-qw", "net.ipv6.conf."+c+".accept_dad=0", "net.ipv4.conf."+c+".rp_filter=0")
		}
		s.run("ip", "link", "set", "lo", "up")
		both[i] = s
	}
	a, b = both[0], both[1]
	for i := range links {
		joinSpaces(a, b, i)
	}
	return a, b
}

// joinSpaces makes link i: 10.0.i.1 and 10.0.i.2, 2001:db8:i::1 and ::2, fe80::1 and fe80::2.
func joinSpaces(a, b *space, i int) {
	a.t.Helper()
	ab, ba := fmt.Sprintf("b%d", i), fmt.Sprintf("a%d", i)
	a.run("ip", "link", "add", ab, "type", "veth", "peer", "name", ba, "netns", b.name)
	for _, end := range []struct {
		s    *space
		dev  string
		host int
	}{{a, ab, 1}, {b, ba, 2}} {
		end.s.run("ip", "link", "set", end.dev, "addrgenmode", "none", "up")
		for _, addr := range []string{
			fmt.Sprintf("10.0.%d.%d/24", i, end.host), fmt.Sprintf("2001:db8:%d::%d/64", i, end.host), fmt.Sprintf("fe80::%d/64", end.host),
		} {
			end.s.run("ip", "address", "add", addr, "dev", end.dev)
		}
	}
}

func output(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// run runs a program in the namespace.
func (s *space) run(argv ...string) string {
	s.t.Helper()
	return output(s.t, append([]string{"ip", "netns", "exec", s.name}, argv...)...)
}

// in calls f on a thread in the namespace, which ends with f.
func (s *space) in(f func()) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread is of no use to others
		err := s.enter()
		defer func() { done <- err }() // also if f calls FailNow
		if err == nil {
			f()
		}
	}()
	if err := <-done; err != nil {
		s.t.Error(err)
	}
}

func (s *space) enter() error {
	fd, err := unix.Open("/run/netns/"+s.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// drop makes the namespace lose what comes in, or takes that back.
func (s *space) drop(on bool) {
	s.t.Helper()
	if !on {
		s.run("nft", "delete", "table", "inet", "cut")
		return
	}
	s.run("nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }")
}

// running is an engine at work in a namespace, and what it told.
type running struct {
	*Engine
	t  testing.TB
	mu sync.Mutex
	// changes in the order they came, and logged lines.
	changes []Change
	lines   lineWriter
	stop    func()
}

// lineWriter keeps what is logged.
type lineWriter struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *lineWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// start runs an engine in the namespace until the end of the test.
func (s *space) start(sessions ...SessionConfig) *running {
	s.t.Helper()
	r := &running{t: s.t}
	r.Engine = New(Config{
		Log: slog.New(slog.NewTextHandler(&r.lines, nil)),
		OnChange: func(c Change) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.changes = append(r.changes, c)
		},
	})
	if err := r.Configure(sessions); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.in(func() {
			if err := r.Run(ctx); err != nil {
				s.t.Error(err)
			}
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	s.t.Cleanup(func() {
		r.stop()
		if s.t.Failed() {
			s.t.Logf("%s:\n%v", s.name, &r.lines)
		}
	})
	return r
}

// status is a session's; the zero Status if there is none.
func (r *running) status(name string) Status {
	for _, s := range r.States() {
		if s.Name == name {
			return s
		}
	}
	return Status{}
}

// await waits for a condition. The time is only how long a broken test takes.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// awaitState waits until a session is in the state.
func (r *running) awaitState(name string, want State) Status {
	r.t.Helper()
	var st Status
	await(r.t, fmt.Sprintf("%s %v", name, want), func() bool {
		st = r.status(name)
		return st.Name != "" && st.State == want
	})
	return st
}

// awaitChange waits for a change to that state after a moment.
func (r *running) awaitChange(name string, to State, after time.Time) Change {
	r.t.Helper()
	var found Change
	await(r.t, fmt.Sprintf("%s changes to %v", name, to), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.changes {
			if c.Name == name && c.To == to && c.At.After(after) {
				found = c
				return true
			}
		}
		return false
	})
	return found
}

// functional are timers for a loaded machine.
var functional = Params{DesiredMinTx: 300 * ms, RequiredMinRx: 300 * ms, DetectMult: 3, Independent: true}

// session is one between addresses.
func sessionOf(name, local, peer string, change ...func(*SessionConfig)) SessionConfig {
	c := SessionConfig{Name: name, Params: functional, Path: Path{Local: netip.MustParseAddr(local), Peer: netip.MustParseAddr(peer)}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func dev(name string) func(*SessionConfig) { return func(c *SessionConfig) { c.Interface = name } }
func multihop(minTTL uint8) func(*SessionConfig) {
	return func(c *SessionConfig) { c.Multihop, c.MinTTL = true, minTTL }
}
func withAuth(a *Auth) func(*SessionConfig) { return func(c *SessionConfig) { c.Auth = a } }

func closeFD(t testing.TB, fd int) {
	t.Helper()
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}
