package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the command, so that what is tested is the process.
func TestMain(m *testing.M) {
	if os.Getenv("CLOUDEMU_BE_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const seed = `{
  "regions": [{"id": "cn-a"}],
  "keys": [{"id": "ak", "secret": "sk", "policy": [{"actions": ["*"]}]}],
  "metadataInstance": "i-1",
  "vpcs": [{"id": "vpc-1", "region": "cn-a", "cidr": "172.18.0.0/16",
    "vswitches": [{"id": "vsw-1", "cidr": "172.18.1.0/24"}],
    "routeTables": [{"id": "vtb-1", "type": "System"}],
    "instances": [{"id": "i-1", "vswitch": "vsw-1", "privateIp": "172.18.1.1"}]}]
}`

func command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "CLOUDEMU_BE_MAIN=1", "GOCOVERDIR="+os.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	good := write(t, "seed.json", seed)
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "--seed and one of", nil},
		{2, "unknown flag", []string{"--colour"}},
		{1, "no such file", []string{"--seed", "/nonexistent", "--api", "127.0.0.1:0"}},
		{1, "unknown field", []string{"--seed", write(t, "s.json", `{"colour": 1}`), "--api", "127.0.0.1:0"}},
		{1, "use realistic", []string{"--seed", good, "--api", "127.0.0.1:0", "--profile", "fast"}},
		{1, "use none or kernel", []string{"--seed", good, "--api", "127.0.0.1:0", "--dataplane", "ebpf"}},
		{1, "--metadata", []string{"--seed", good, "--api", "127.0.0.1:0", "--metadata", "203.0.113.1:1"}},
	} {
		out, err := command(c.args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("%v: %v, %s; want exit %d saying %q", c.args, err, out, c.code, c.says)
		}
	}
}

// The command in a network namespace of its own: all listeners, a certificate
// the CA file vouches for, a route in the kernel, and a clean end on SIGTERM.
func TestCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	dir := t.TempDir()
	ready, ca, sock := filepath.Join(dir, "ready"), filepath.Join(dir, "ca.pem"), filepath.Join(dir, "control")
	start := filepath.Join(dir, "start")
	// The shell prepares the namespace and becomes the command.
	script := `ip link set lo up && ip link add v type veth peer name w && ip link set v up && ip link set w up &&
	ip route add 172.18.1.1/32 dev v && exec "$@"`
	cmd := command()
	self := os.Args[0]
	cmd.Path = "/bin/sh"
	cmd.Args = []string{"sh", "-c", script, start, self, "--seed", write(t, "seed.json", seed), "--api", "127.0.0.1:0", "--api-tls", "127.0.0.1:0",
		"--ca-out", ca, "--metadata", "127.0.0.1:0", "--control", sock, "--profile", "instant", "--dataplane", "kernel", "--ready-file", ready}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	listeners := map[string]string{}
	wait(t, "the ready file", func() bool {
		b, err := os.ReadFile(ready)
		for _, line := range strings.Fields(string(b)) {
			name, addr, _ := strings.Cut(line, "=")
			listeners[name] = addr
		}
		return err == nil
	})
	if len(listeners) != 4 {
		t.Fatalf("listeners: %v", listeners)
	}
	post := func(path, body string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		}}}
		r, err := c.Post("http://emu/_emu/"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, _ := io.ReadAll(r.Body); r.StatusCode != 200 {
			t.Fatalf("%s: %s", path, b)
		}
	}
	post("external", `{"op":"create","table":"vtb-1","cidr":"10.1.0.0/16","nextHopType":"Instance","nextHopId":"i-1"}`)
	// The kernel and TCP parts are looked at from inside the namespace.
	inside := func(args ...string) string {
		out, _ := exec.Command("nsenter", append([]string{"-n", "-t", strconv.Itoa(cmd.Process.Pid)}, args...)...).Output()
		return string(out)
	}
	wait(t, "the kernel route", func() bool {
		return strings.Contains(inside("ip", "route", "show", "proto", "50"), "10.1.0.0/16 via 172.18.1.1 dev v")
	})
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("CA file: %v %s", err, pem)
	}
	if got := inside(self, "-test.run=^TestInsideClient$", "-test.v", "--", "https://"+listeners["api-tls"]+"/", ca); !strings.Contains(got, `"Code":"MissingAction"`) {
		t.Errorf("over TLS: %s", got)
	}
	if got := inside(self, "-test.run=^TestInsideClient$", "-test.v", "--", "http://"+listeners["metadata"]+"/latest/meta-data/instance-id", ca); !strings.Contains(got, "i-1") {
		t.Errorf("metadata: %s", got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("exit: %v\n%s", err, &log)
		}
	case <-time.After(30 * time.Second):
		t.Error("SIGTERM does not end it")
	}
}

// TestInsideClient is the client of TestCommand in the namespace: it prints
// what a URL answers.
func TestInsideClient(t *testing.T) {
	args := os.Args[len(os.Args)-2:]
	if !strings.HasPrefix(args[0], "http") {
		t.Skip("only used by TestCommand")
	}
	pem, err := os.ReadFile(args[1])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	r, err := c.Get(args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	t.Logf("%s %v", b, err)
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not appear", what)
		}
	}
}
