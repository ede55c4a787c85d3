package main

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/config"
	fabricv1 "fabric/proto/fabric/v1"
)

func TestExitCodes(t *testing.T) {
	slow := func(g *apitest.Gateway) { g.PeerState = func(string) string { return "active" } }
	refuseDrain := func(g *apitest.Gateway) {
		g.OnDrain = func(string, bool) error { return errors.New("disk full") }
	}
	refuseRotate := func(g *apitest.Gateway) {
		g.OnRotate = func(device string) (int, error) {
			if device == "fxwabd" {
				return 0, nil
			}
			return 0, errors.New("its keys cannot be replaced")
		}
	}
	rotateForEver := func(g *apitest.Gateway) { g.OnRotate = func(string) (int, error) { return 0, nil } }
	for _, c := range []struct {
		name    string
		prepare func(*apitest.Gateway)
		args    []string
		code    int
		says    string
	}{
		{"done", nil, []string{"site", "status"}, exitOK, ""},
		{"help", nil, []string{"--help"}, exitOK, ""},
		{"exists", nil, []string{"peer", "add", "172.20.0.1", "--asn", "1", "--vrf", "CORE"}, exitFailed, "exists already"},
		{"invalid", nil, []string{"peer", "add", "x", "--asn", "1", "--vrf", "CORE"}, exitFailed, `"x" is not an IP address`},
		{"two problems", nil, []string{"peer", "add", "172.20.0.7", "--asn", "1", "--vrf", "CORE", "--import", "a", "--export", "b"}, exitFailed, "nothing was changed:\n"},
		{"gateway is no peer", nil, []string{"peer", "disable", "hk-1"}, exitFailed, "another gateway"},
		{"no such command", nil, []string{"frobnicate"}, exitUsage, "frobnicate"},
		{"no such subcommand", nil, []string{"peer", "frobnicate"}, exitUsage, "use one of add, del, list"},
		{"no subcommand", nil, []string{"peer"}, exitUsage, "which?"},
		{"no such flag", nil, []string{"peer", "list", "--frobnicate"}, exitUsage, "--frobnicate"},
		{"missing argument", nil, []string{"peer", "del"}, exitUsage, "accepts 1 arg"},
		{"missing flag", nil, []string{"peer", "add", "172.20.0.2"}, exitUsage, `"asn"`},
		{"no such output", nil, []string{"site", "status", "-o", "xml"}, exitUsage, "table, json or yaml"},
		{"bad generation", nil, []string{"config", "rollback", "last"}, exitUsage, "config history"},
		{"bad timeout", nil, []string{"site", "status", "--timeout", "0s"}, exitUsage, "--timeout"},
		{"dry run and wait", nil, []string{"site", "drain", "--dry-run", "--wait"}, exitUsage, "dry-run"},
		{"certificate without address", nil, []string{"site", "status", "--cert", "c"}, exitUsage, "--address"},
		{"socket and address", nil, []string{"site", "status", "--address", "h:1"}, exitUsage, "choose one"},
		{"wait runs out", slow, []string{"peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--wait", "--timeout", "50ms"}, exitWaitTimeout, "generation 2 is kept"},
		{"no such peer", nil, []string{"peer", "show", "nobody"}, exitNotFound, "CORE/core-router"},
		{"no such tunnel", nil, []string{"tunnel", "show", "fxwxyz"}, exitNotFound, `no tunnel "fxwxyz" at this gateway; it has sz-1/hk-1/0 (fxwabc), sz-1/hk-1/1 (fxwabd), sz-1/gz-1/0 (fxwdef)`},
		{"no such tunnel to watch", nil, []string{"tunnel", "watch", "fxwxyz"}, exitNotFound, "sz-1/hk-1/0 (fxwabc)"},
		{"no such tunnel to drain", nil, []string{"tunnel", "drain", "fxwxyz"}, exitNotFound, "sz-1/hk-1/0 (fxwabc)"},
		{"no such tunnel to undrain", nil, []string{"tunnel", "undrain", "fxwxyz"}, exitNotFound, "sz-1/hk-1/0 (fxwabc)"},
		{"which tunnel", nil, []string{"tunnel", "drain", "hk-1"}, exitFailed, `which tunnel? "hk-1" fits sz-1/hk-1/0 (fxwabc), sz-1/hk-1/1 (fxwabd)`},
		{"drain refused", refuseDrain, []string{"tunnel", "drain", "fxwabc"}, exitFailed, "tunnel drain fxwabc: disk full"},
		{"rotate refused", refuseRotate, []string{"tunnel", "rotate", "fxwabc"}, exitFailed, "tunnel rotate sz-1/hk-1/0: its keys cannot be replaced"},
		{"rotate one of all refused", refuseRotate, []string{"tunnel", "rotate", "--all"}, exitFailed, "the keys of sz-1/hk-1/0, sz-1/gz-1/0 were not replaced"},
		{"rotate for ever", rotateForEver, []string{"tunnel", "rotate", "fxwabc", "--wait", "--timeout", "50ms"}, exitWaitTimeout, "after 50ms the keys of sz-1/hk-1/0 are still being replaced"},
		{"rotate nothing", nil, []string{"tunnel", "rotate"}, exitUsage, "give one tunnel, or --all"},
		{"rotate one and all", nil, []string{"tunnel", "rotate", "fxwabc", "--all"}, exitUsage, "give one tunnel, or --all"},
		{"rotate no such tunnel", nil, []string{"tunnel", "rotate", "fxwxyz"}, exitNotFound, "sz-1/hk-1/0 (fxwabc)"},
		{"two tunnels", nil, []string{"tunnel", "drain", "fxwabc", "fxwabd"}, exitUsage, "accepts 1 arg"},
		{"no such BFD session", nil, []string{"bfd", "show", "nobody"}, exitNotFound, `it has sz-1/hk-1/0, CORE/core-router`},
		{"no such BFD session to count", nil, []string{"bfd", "counters", "nobody"}, exitNotFound, `it has sz-1/hk-1/0, CORE/core-router`},
		{"no such VRF of BFD", nil, []string{"bfd", "list", "--vrf", "LAB"}, exitNotFound, "CORE, OPS"},
		{"no such VRF", nil, []string{"route", "list", "--vrf", "LAB"}, exitNotFound, "CORE, OPS"},
		{"no such prefix", nil, []string{"prefix", "del", "10.1.0.0/16"}, exitNotFound, "does not originate"},
		{"no such generation", nil, []string{"config", "show", "99"}, exitNotFound, "99"},
		{"doctor finds an error", nil, []string{"doctor", "--probe"}, exitFailed, "1 errors, 1 warnings"},
		{"stale", nil, []string{"site", "drain", "--base", "9"}, exitStale, "generation 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newDaemon(t, c.prepare).ctl(t, c.args...)
			if r.code != c.code || !strings.Contains(r.err, c.says) {
				t.Errorf("exit code %d, want %d; stderr %q, want %q", r.code, c.code, r.err, c.says)
			}
			if (r.err == "") != (c.code == exitOK) {
				t.Errorf("stderr %q with exit code %d", r.err, r.code)
			}
		})
	}
}

// The last tunnel to a gateway that is up is drained only by force, and what is drained already does not count.
func TestDrainLastTunnel(t *testing.T) {
	d := newDaemon(t, nil)
	if r := d.ctl(t, "tunnel", "drain", "fxwabc"); r.code != exitOK {
		t.Fatal(r)
	}
	r := d.ctl(t, "tunnel", "drain", "fxwabd")
	if r.code != exitFailed || !strings.Contains(r.err, "traffic would stay on it; with --force") || r.out != "" {
		t.Errorf("%+v", r)
	}
	if d.gw.Snapshot().Tunnels[1].Drained {
		t.Error("drained all the same")
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock")
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	_ = lis.Close()
	// One that accepts and never says a word.
	mute := filepath.Join(dir, "mute.sock")
	deaf, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deaf.Close() })
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"no socket", []string{"--socket", filepath.Join(dir, "absent.sock"), "site", "status"}, "does not exist"},
		{"nobody listens", []string{"--socket", left, "site", "status"}, "nobody answers"},
		{"no answer", []string{"--socket", mute, "--timeout", "100ms", "site", "status"}, "did not answer within 100ms"},
		{"no answer to a watch", []string{"--socket", mute, "--timeout", "100ms", "prefix", "watch"}, "did not answer within 100ms"},
		{"no answer to a list", []string{"--socket", mute, "--timeout", "100ms", "route", "list"}, "did not answer within 100ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			if r := ctl(t, c.args...); r.code != exitUnreachable || !strings.Contains(r.err, c.says) {
				t.Errorf("%+v, want exit code %d and %q", r, exitUnreachable, c.says)
			}
			if took := time.Since(start); took > patience/2 {
				t.Errorf("took %s", took)
			}
		})
	}
	t.Run("still starting", func(t *testing.T) {
		if r := answered(t, status.Error(codes.Unavailable, "the gateway is still starting")); r.code != exitUnreachable || !strings.Contains(r.err, "still starting") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("version without a daemon", func(t *testing.T) {
		if r := ctl(t, "--socket", left, "version"); r.code != exitUnreachable || !strings.Contains(r.out, "fabricctl") {
			t.Errorf("%+v", r)
		}
	})
}

func TestOtherAnswers(t *testing.T) {
	for code, want := range map[codes.Code]int{
		codes.PermissionDenied: exitNotPermitted, codes.Unauthenticated: exitNotPermitted, codes.Unimplemented: exitFailed,
		codes.Internal: exitFailed, codes.ResourceExhausted: exitFailed, codes.Canceled: exitFailed,
	} {
		if r := answered(t, status.Error(code, "told so")); r.code != want || r.err == "" {
			t.Errorf("%s: %+v, want exit code %d", code, r, want)
		}
	}
}

// answered asks a server that has one answer to everything.
func answered(t *testing.T, answer error) result {
	t.Helper()
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "one.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, answer
	}))
	fabricv1.RegisterFabricServiceServer(srv, fabricv1.UnimplementedFabricServiceServer{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	defer func() { srv.Stop(); <-done }()
	return ctl(t, "--socket", lis.Addr().String(), "site", "status")
}

// A wait that ends early leaves the change in place and prints it all the same.
func TestWaitTimeoutPrintsTheChange(t *testing.T) {
	d := newDaemon(t, func(g *apitest.Gateway) { g.PeerState = func(string) string { return "active" } })
	start := time.Now()
	r := d.ctl(t, "peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--wait", "--timeout", "50ms")
	if r.code != exitWaitTimeout || !strings.Contains(r.out, "generation 2: peer add") || !strings.Contains(r.err, "it is active") {
		t.Errorf("%+v", r)
	}
	if took := time.Since(start); took > patience/2 {
		t.Errorf("took %s", took)
	}
	if d.store.Current().Number != 2 {
		t.Error("the change is not kept")
	}
}

// The help lists every exit code.
func TestHelpListsExitCodes(t *testing.T) {
	r := ctl(t, "--help")
	for code := exitOK; code <= exitStale; code++ {
		if !strings.Contains(r.out, "\n  "+strconv.Itoa(code)+"  ") {
			t.Errorf("exit code %d is not in the help", code)
		}
	}
}

func TestTLSFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--address", "127.0.0.1:1"}, exitUsage, "--cert, --key and --ca"},
		{[]string{"--address", "127.0.0.1", "--cert", "a", "--key", "b", "--ca", "c"}, exitUsage, "HOST:PORT"},
		{[]string{"--address", "127.0.0.1:1", "--cert", "/nonexistent", "--key", "/nonexistent", "--ca", os.DevNull}, exitFailed, "/nonexistent"},
	} {
		if r := ctl(t, append(c.args, "site", "status")...); r.code != c.code || !strings.Contains(r.err, c.says) {
			t.Errorf("%v: %+v", c.args, r)
		}
	}
}

// Over TCP only with a certificate of the daemon's CA; the history names its common name.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca, other := apitest.NewAuthority(t), apitest.NewAuthority(t)
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, ca.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	serverCert, serverKey := ca.Issue(t, dir, "gateway", x509.ExtKeyUsageServerAuth)
	cert, key := ca.Issue(t, dir, "ops", x509.ExtKeyUsageClientAuth)
	badCert, badKey := other.Issue(t, dir, "mallory", x509.ExtKeyUsageClientAuth)
	listen := apitest.FreeAddress(t)
	d := newDaemon(t, nil)
	d.serve(t, api.Listen{
		Socket: filepath.Join(dir, "second.sock"),
		TCP:    &config.API{Listen: listen, CertFile: serverCert, KeyFile: serverKey, CAFile: caFile},
	})
	if r := ctl(t, "--address", listen.String(), "--cert", badCert, "--key", badKey, "--ca", caFile, "site", "drain"); r.code != exitUnreachable || !strings.Contains(r.err, "--cert") {
		t.Errorf("certificate of another CA: %+v", r)
	}
	if r := ctl(t, "--address", listen.String(), "--cert", cert, "--key", key, "--ca", caFile, "site", "drain"); r.code != exitOK {
		t.Errorf("good certificate: %+v", r)
	}
	if cur := d.store.Current(); cur.Who != "CN=ops" || cur.Number != 2 {
		t.Errorf("generation %d by %q", cur.Number, cur.Who)
	}
}
