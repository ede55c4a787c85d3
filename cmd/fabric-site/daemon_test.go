package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	fabricv1 "fabric/proto/fabric/v1"
)

// start starts a daemon; it ends with the test.
func (n *node) start(name string, c *exec.Cmd) *exec.Cmd {
	n.t.Helper()
	f, err := os.Create(filepath.Join(n.dir, fmt.Sprintf("%s-%d.log", name, len(n.logs))))
	if err != nil {
		n.t.Fatal(err)
	}
	n.logs = append(n.logs, f)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if c.ProcessState == nil {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	})
	return c
}

// startLinks runs fabric-links.
func (n *node) startLinks() {
	n.t.Helper()
	program, err := linksProgram()
	if err != nil {
		n.t.Fatal(err)
	}
	// Tunnel processes outlive the engine; a cleanup ends them.
	n.t.Cleanup(n.stopLinks)
	n.runLinks(program)
}

// runLinks starts the program and waits for its socket.
func (n *node) runLinks(program string) {
	n.t.Helper()
	n.links = n.start("fabric-links", n.Command(program, "run", "--state-dir", filepath.Join(n.dir, "links-state"), "--run-dir", n.linksRun()))
	n.waitFor("fabric-links' socket", func() (any, bool) {
		_, err := os.Stat(filepath.Join(n.linksRun(), "links.sock"))
		return err, err == nil
	})
}

// restartLinks ends fabric-links as systemd does, and runs it again.
func (n *node) restartLinks() {
	n.t.Helper()
	n.terminate(n.links)
	program, _ := linksProgram()
	n.runLinks(program)
}

// stopLinks ends fabric-links and removes all that it made.
func (n *node) stopLinks() {
	n.t.Helper()
	if n.links == nil {
		return
	}
	_ = n.links.Process.Kill()
	_ = n.links.Wait()
	n.links = nil
	program, _ := linksProgram()
	out, err := n.Command(program, "cleanup", "--state-dir", filepath.Join(n.dir, "links-state"), "--run-dir", n.linksRun()).CombinedOutput()
	if err != nil {
		n.t.Errorf("fabric-links cleanup: %v\n%s", err, out)
	}
}

// startSite runs fabric-site until READY.
func (n *node) startSite() *exec.Cmd {
	n.t.Helper()
	c := n.run()
	c.Env = append(c.Env, "WATCHDOG_USEC=3000000")
	n.start("fabric-site", c)
	n.told("READY=1")
	return c
}

// told waits until systemd would have been told something.
func (n *node) told(state string) {
	n.t.Helper()
	buf := make([]byte, 4096)
	var seen []string
	_ = n.notify.SetReadDeadline(time.Now().Add(patience))
	for {
		k, err := n.notify.Read(buf)
		if err != nil {
			n.t.Fatalf("systemd was not told %q but %q: %v", state, seen, err)
		}
		if seen = append(seen, string(buf[:k])); string(buf[:k]) == state {
			return
		}
	}
}

const patience = 30 * time.Second

func (n *node) waitFor(what string, ok func() (have any, done bool)) {
	n.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		have, done := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("want %s; have %v", what, have)
		}
	}
}

// api is the daemon's gRPC service.
func (n *node) api() fabricv1.FabricServiceClient {
	n.t.Helper()
	conn, err := grpc.NewClient("unix:"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return fabricv1.NewFabricServiceClient(conn)
}

// status is what the daemon says of itself.
func (n *node) status(api fabricv1.FabricServiceClient) (*fabricv1.SiteStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := api.GetSite(ctx, &fabricv1.GetSiteRequest{})
	return r.GetSite(), err
}

// wantProblem waits until a problem has all the texts.
func (n *node) wantProblem(api fabricv1.FabricServiceClient, texts ...string) {
	n.t.Helper()
	n.waitFor(fmt.Sprintf("a problem with %q", texts), func() (any, bool) {
		s, err := n.status(api)
		if err != nil {
			return err, false
		}
		return strings.Join(s.GetProblems(), "\n"), slices.ContainsFunc(s.GetProblems(), func(p string) bool {
			return !slices.ContainsFunc(texts, func(x string) bool { return !strings.Contains(p, x) })
		})
	})
}

// wantApplied waits until generation g is in force and nothing is wrong.
func (n *node) wantApplied(api fabricv1.FabricServiceClient, g uint64) {
	n.t.Helper()
	n.waitFor(fmt.Sprintf("generation %d applied and no problem", g), func() (any, bool) {
		s, err := n.status(api)
		if err != nil {
			return err, false
		}
		return s, s.GetApplied() == g && s.GetGeneration() == g && len(s.GetProblems()) == 0
	})
}

// terminate ends a daemon as systemd does.
func (n *node) terminate(c *exec.Cmd) {
	n.t.Helper()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		n.t.Fatalf("after SIGTERM: %v", err)
	}
}
