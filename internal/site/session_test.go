package site

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fabric/internal/config"
)

// The process of a session test: "" outside, "far" within the namespace, "gw" its child.
const (
	sessionRole = "FABRIC_SITE_TEST_ROLE"
	sessionDir  = "FABRIC_SITE_TEST_DIR"
)

// Two gateways speak real BGP in a network namespace, their kernels are models. gw is a process of its own, so that it can be
// stopped as systemd stops it and started again:
//
//	what gw brings in, is told by its neighbour, is told to bring in at run time  ->  far
//	drain                                       ->  far has nothing of gw's
//	SIGTERM, start (warm)                       ->  far never loses a route; what gw's neighbour said is announced from the checkpoint
//	gw's neighbour does not come back           ->  far loses its route, and only that
func TestSessions(t *testing.T) {
	switch os.Getenv(sessionRole) {
	case "gw":
		sessionGateway(t)
		return
	case "far":
		sessionFar(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "--net", "sh", "-ec",
		`ip link set lo up; ip addr add 10.255.0.1/32 dev lo; ip addr add 10.255.0.2/32 dev lo; exec "$0" -test.run='^TestSessions$' -test.v -test.timeout=120s`, self)
	c.Env = append(os.Environ(), sessionRole+"=far")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// sessionGateway runs gw until SIGTERM. It takes commands from its standard input, a line each.
func sessionGateway(t *testing.T) {
	g := newGateOn(t, sessionDocument, newKernel(t, sessionDocument, withoutVRF), os.Getenv(sessionDir)).start()
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			verb, prefix, _ := strings.Cut(in.Text(), " ")
			switch verb {
			case "ce":
				g.rib.Update(fromCE(prefix, "10.1.0.2"))
			case "drain", "undrain":
				g.commit(config.Mutation{Action: "site " + verb})
			default: // add, del
				p := &config.Prefix{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr("10.1.0.7")}
				g.commit(config.Mutation{Action: "prefix " + verb, VRF: "CORE", Prefix: p})
			}
		}
	}()
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	g.waitReady()
	fmt.Println("READY")
	<-terminate
	g.cancel()
	<-g.done
	// As a daemon's process ends: the sockets close, nobody is told anything.
	os.Exit(0)
}

var sessionDocument = strings.Replace(document, "restart-time: 300s", "restart-time: 8s, keepalive: 1s, hold: 3s, connect-retry: 1s", 1)

// child is a running gw.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(self, "-test.run=^TestSessions$", "-test.v")}
	c.cmd.Env = append(os.Environ(), sessionRole+"=gw", sessionDir+"="+dir)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "READY" {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return c
		}
	}
	t.Fatalf("gw does not start: %v", c.cmd.Wait())
	return nil
}

func (c *child) say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) terminate() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatalf("gw after SIGTERM: %v", err)
	}
}

// sessionFar is the test itself, as far.
func sessionFar(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"gw", "far"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g := newGateOf(t, "far", sessionDocument, newKernel(t, sessionDocument, withoutVRF), filepath.Join(dir, "far"))
	g.fake.kernel = g.kernel
	g.start().waitReady()
	// What far loses, from now on.
	var mu sync.Mutex
	var lost []string
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = g.WatchRoutes(ctx, "CORE", func(r RouteStatus, withdrawn bool) error {
			mu.Lock()
			defer mu.Unlock()
			if withdrawn {
				lost = append(lost, r.Prefix.String())
			}
			return nil
		})
	}()
	wantLost := func(want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(lost)
		if !slices.Equal(lost, want) {
			t.Errorf("far lost %q, want %q", lost, want)
		}
		lost = nil
	}
	// The routes that far has of gw's; a "*" follows one that is kept over a restart.
	wantRoutes := func(want ...string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("far's routes %q", want), func() (any, bool) {
			var have []string
			_ = g.Routes("CORE", func(r RouteStatus) bool {
				text := r.Prefix.String()
				if r.Stale {
					text += "*"
				}
				if r.From == "gw" {
					have = append(have, text)
				}
				return true
			})
			return fmt.Sprintf("%q %+v", have, g.speaker.Peers()), slices.Equal(have, want)
		})
	}

	gw := startChild(t, filepath.Join(dir, "gw"))
	wantRoutes("10.1.0.0/16", "10.8.0.1/32", "10.9.0.0/16")
	gw.say("ce 10.3.0.0/16")
	gw.say("add 10.7.0.0/16")
	all := []string{"10.1.0.0/16", "10.3.0.0/16", "10.7.0.0/16", "10.8.0.1/32", "10.9.0.0/16"}
	wantRoutes(all...)
	wantLost()

	gw.say("drain")
	wantRoutes()
	gw.say("undrain")
	wantRoutes(all...)
	wantLost(all...)

	established := func() (s PeerStatus) {
		for _, p := range g.Snapshot().Peers {
			if p.Name == "gw" {
				s = p
			}
		}
		return s
	}
	first := established().Since
	gw.terminate()
	gw = startChild(t, filepath.Join(dir, "gw"))
	waitFor(t, "a new session", func() (any, bool) {
		p := established()
		return p, p.State == "established" && p.Since.After(first)
	})
	wantRoutes(all...)
	wantLost()

	// gw's own neighbour does not come back.
	wantRoutes("10.1.0.0/16", "10.7.0.0/16", "10.8.0.1/32", "10.9.0.0/16")
	wantLost("10.3.0.0/16")
	gw.say("del 10.7.0.0/16")
	wantRoutes("10.1.0.0/16", "10.8.0.1/32", "10.9.0.0/16")
	gw.terminate()
	// And now gw does not: nothing of it is left once its restart time is over.
	begun := time.Now()
	wantRoutes("10.1.0.0/16*", "10.8.0.1/32*", "10.9.0.0/16*")
	wantRoutes()
	if took := time.Since(begun); took < 4*time.Second {
		t.Errorf("far kept gw's routes for %v only", took)
	}
}
