package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/site"
	"fabric/overlay/links"
)

var update = flag.Bool("update", false, "write the golden files anew")

// commands are all commands, each with its golden file: what it prints as a table, as JSON and as YAML.
var commands = []struct {
	golden string
	before [][]string // command lines to run first
	args   []string
}{
	{"version", nil, []string{"version"}},
	{"doctor", nil, []string{"doctor"}},
	{"site-status", nil, []string{"site", "status"}},
	{"site-drain", nil, []string{"site", "drain"}},
	{"site-undrain", [][]string{{"site", "drain", "--wait"}}, []string{"site", "undrain", "--wait"}},
	{"vrf-list", nil, []string{"vrf", "list"}},
	{"tunnel-list", nil, []string{"tunnel", "list"}},
	{"tunnel-show", nil, []string{"tunnel", "show", "sz-1/hk-1/0"}},
	{"tunnel-show-silent", nil, []string{"tunnel", "show", "gz-1"}},
	{"tunnel-show-gateway", nil, []string{"tunnel", "show", "hk-1"}},
	{"tunnel-drain", nil, []string{"tunnel", "drain", "fxwabc"}},
	{"tunnel-drain-forced", nil, []string{"tunnel", "drain", "fxwdef", "--force"}},
	{"tunnel-drain-last", [][]string{{"tunnel", "drain", "fxwabd"}}, []string{"tunnel", "drain", "fxwabc", "--force"}},
	{"tunnel-undrain", [][]string{{"tunnel", "drain", "fxwabc"}}, []string{"tunnel", "undrain", "sz-1/hk-1/0"}},
	{"tunnel-rotate", nil, []string{"tunnel", "rotate", "sz-1/hk-1/0"}},
	{"tunnel-rotate-wait", [][]string{{"tunnel", "rotate", "sz-1/hk-1/0"}}, []string{"tunnel", "rotate", "--all", "--wait"}},
	{"bfd-list", nil, []string{"bfd", "list"}},
	{"bfd-list-vrf", nil, []string{"bfd", "list", "--vrf", "CORE"}},
	{"bfd-show", nil, []string{"bfd", "show", "fxwabc"}},
	{"bfd-counters", nil, []string{"bfd", "counters"}},
	{"bfd-counters-one", nil, []string{"bfd", "counters", "core-router"}},
	{"cloud-list", nil, []string{"cloud", "list"}},
	{"cloud-list-entries", nil, []string{"cloud", "list", "--entries"}},
	{"cloud-plan", nil, []string{"cloud", "plan"}},
	{"cloud-approve", nil, []string{"cloud", "approve"}},
	{"peer-list", nil, []string{"peer", "list"}},
	{"peer-list-empty", nil, []string{"peer", "list", "--vrf", "OPS"}},
	{"peer-show", nil, []string{"peer", "show", "core-router"}},
	{"peer-show-gateway", nil, []string{"peer", "show", "hk-1"}},
	{"peer-add", nil, []string{"peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--name", "frr", "--hold", "9s", "--wait"}},
	{
		"peer-show-bfd",
		[][]string{{"peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--name", "frr", "--bfd-interval", "50ms", "--bfd-multiplier", "4", "--bfd-auth", "sha1", "--bfd-key-id", "7", "--bfd-key-file", "/etc/fabric/keys/bfd", "--wait"}},
		[]string{"peer", "show", "frr"},
	},
	{"peer-show-bfd-default", [][]string{{"peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--bfd", "--wait"}}, []string{"peer", "show", "172.20.0.2"}},
	{"peer-add-dry-run", nil, []string{"peer", "add", "172.20.0.2", "--asn", "65021", "--vrf", "CORE", "--dry-run"}},
	{"peer-del", nil, []string{"peer", "del", "core-router", "--wait"}},
	{"peer-disable", nil, []string{"peer", "disable", "core-router", "--wait"}},
	{"peer-enable", [][]string{{"peer", "disable", "core-router", "--wait"}}, []string{"peer", "enable", "172.20.0.1", "--wait"}},
	{"peer-reset", nil, []string{"peer", "reset", "core-router"}},
	{"peer-reset-soft", nil, []string{"peer", "reset", "core-router", "--soft"}},
	{"prefix-list", nil, []string{"prefix", "list"}},
	{"prefix-show", nil, []string{"prefix", "show", "172.18.0.0/16"}},
	{"prefix-add", nil, []string{"prefix", "add", "172.21.0.0/16", "--vrf", "CORE", "--community", "65001:7", "--wait"}},
	{"prefix-del", nil, []string{"prefix", "del", "172.18.0.0/16", "--vrf", "CORE", "--wait"}},
	{"route-list", nil, []string{"route", "list"}},
	{"route-list-empty", nil, []string{"route", "list", "--vrf", "OPS"}},
	{"route-show", nil, []string{"route", "show", "10.0.1.77", "--vrf", "CORE"}},
	{"route-explain", nil, []string{"route", "explain", "10.0.1.77", "--vrf", "CORE"}},
	{"route-explain-none", nil, []string{"route", "explain", "fd00::1", "--vrf", "OPS"}},
	{"config-show", nil, []string{"config", "show"}},
	{"config-diff", [][]string{{"site", "drain"}}, []string{"config", "diff", "1", "2"}},
	{"config-history", [][]string{{"site", "drain"}}, []string{"config", "history"}},
	{"config-rollback", [][]string{{"site", "drain", "--wait"}}, []string{"config", "rollback", "1", "--wait"}},
}

var elapsed = regexp.MustCompile(`(in effect after |elapsed"?: "?)[0-9.]+m?s`)

func TestCommands(t *testing.T) {
	for _, c := range commands {
		t.Run(c.golden, func(t *testing.T) {
			var got bytes.Buffer
			for _, format := range []string{"table", "json", "yaml"} {
				d := newDaemon(t, nil)
				for _, args := range c.before {
					if r := d.ctl(t, args...); r.code != exitOK {
						t.Fatalf("%v: %+v", args, r)
					}
				}
				r := d.ctl(t, append([]string{"-o", format}, c.args...)...)
				if r.code != exitOK || r.err != "" {
					t.Fatalf("exit code %d: %s", r.code, r.err)
				}
				if format == "json" && !json.Valid([]byte(r.out)) {
					t.Errorf("not JSON: %s", r.out)
				}
				var v any
				if err := yaml.Unmarshal([]byte(r.out), &v); format == "yaml" && err != nil {
					t.Errorf("not YAML: %v: %s", err, r.out)
				}
				out := elapsed.ReplaceAllString(r.out, "${1}0.001s")
				out = strings.ReplaceAll(out, filepath.Dir(d.file), "/etc/fabric")
				fmt.Fprintf(&got, "$ fabricctl -o %s %s\n%s", format, strings.Join(c.args, " "), out)
			}
			path := filepath.Join("testdata", c.golden+".golden")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("output differs from %s (-want +got):\n%s", path, diff)
			}
		})
	}
}

// Every leaf of the tree is in the table above, so that a new command gets its test.
func TestCommandsAreAllTested(t *testing.T) {
	tested := map[string]bool{"prefix watch": true, "tunnel watch": true, "config rebase": true} // have tests of their own
	for _, c := range commands {
		tested[strings.Join(c.args[:min(2, len(c.args))], " ")] = true
	}
	for _, group := range (&app{}).command().Commands() {
		if !group.HasSubCommands() && !tested[group.Name()] {
			t.Errorf("%s has no test", group.Name())
		}
		for _, leaf := range group.Commands() {
			if name := group.Name() + " " + leaf.Name(); !tested[name] {
				t.Errorf("%s has no test", name)
			}
			if leaf.Short == "" {
				t.Errorf("%s has no help", leaf.Name())
			}
		}
	}
}

func TestSocketIsTheDaemons(t *testing.T) {
	if defaultSocket != api.DefaultSocket {
		t.Errorf("fabricctl asks %s, fabric-site listens on %s", defaultSocket, api.DefaultSocket)
	}
}

func TestConfigRebase(t *testing.T) {
	d := newDaemon(t, nil)
	if r := d.ctl(t, "prefix", "add", "172.30.0.0/16", "--vrf", "CORE", "--wait"); r.code != exitOK {
		t.Fatal(r)
	}
	changed := strings.Replace(apitest.Document, "172.31.0.0/16", "172.30.0.0/16", 1)
	if err := os.WriteFile(d.file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _ = d.store.Reload()
	if r := d.ctl(t, "config", "history"); !strings.Contains(r.out, "conflict: ") {
		t.Errorf("history does not tell of the conflict: %+v", r)
	}
	if r := d.ctl(t, "config", "rebase", "--wait"); r.code != exitOK || !strings.Contains(r.out, "remove prefix 172.30.0.0/16") {
		t.Errorf("%+v", r)
	}
	if r := d.ctl(t, "config", "rebase"); r.code != exitFailed {
		t.Errorf("nothing to rebase: %+v", r)
	}
}

// watch shows what is there, then what comes and goes, and ends well when it is interrupted.
func TestPrefixWatch(t *testing.T) {
	for format, want := range map[string][]string{
		"table": {"added      CORE          172.18.0.0/16", "added      CORE          172.21.0.0/16", "withdrawn  CORE          172.21.0.0/16"},
		"json":  {`{"kind":"EVENT_KIND_ADDED","prefix":{"vrf":"CORE","prefix":"172.18.0.0/16"`, `"prefix":"172.21.0.0/16"`, `{"kind":"EVENT_KIND_WITHDRAWN","prefix":{"vrf":"CORE","prefix":"172.21.0.0/16"`},
		"yaml":  {"---\nkind: \"EVENT_KIND_ADDED\"\nprefix:\n  vrf: \"CORE\"\n  prefix: \"172.18.0.0/16", "prefix: \"172.21.0.0/16", "kind: \"EVENT_KIND_WITHDRAWN\"\nprefix:\n  vrf: \"CORE\"\n  prefix: \"172.21.0.0/16"},
	} {
		t.Run(format, func(t *testing.T) {
			d := newDaemon(t, nil)
			ctx, interrupt := context.WithCancel(context.Background())
			defer interrupt()
			var out, errs output
			code := make(chan int, 1)
			go func() {
				code <- run(ctx, []string{"--socket", d.socket, "-o", format, "prefix", "watch", "--vrf", "CORE"}, &out, &errs)
			}()
			see := func(want string) {
				t.Helper()
				until(t, want+" in "+out.String()+errs.String(), func() bool { return strings.Contains(out.String(), want) })
			}
			see(want[0])
			if r := d.ctl(t, "prefix", "add", "172.21.0.0/16", "--vrf", "CORE", "--wait"); r.code != exitOK {
				t.Fatal(r)
			}
			see(want[1])
			if r := d.ctl(t, "prefix", "del", "172.21.0.0/16", "--wait"); r.code != exitOK {
				t.Fatal(r)
			}
			see(want[2])
			interrupt()
			if got := <-code; got != exitOK || errs.String() != "" {
				t.Errorf("exit code %d: %s", got, errs.String())
			}
		})
	}
}

// tunnel watch shows the tunnels, then what becomes of them, and no mere traffic.
func TestTunnelWatch(t *testing.T) {
	for format, want := range map[string][]string{
		"table": {
			"03:07:17  added      sz-1/hk-1/0               fxwabc  up, active, bfd up, rtt 12.35ms, loss 1.67%, endpoint 198.51.100.1:51820: BFD up\n",
			"03:07:17  added      sz-1/hk-1/1               fxwabd  up: handshake 2s ago\n",
			"03:07:17  changed    sz-1/hk-1/0               fxwabc  up, drained, bfd up, rtt 12.34ms, loss 1.67%, endpoint 198.51.100.1:51820: BFD up\n",
			"03:07:17  changed    sz-1/hk-1/1               fxwabd  up, active: handshake 2s ago\n",
			"03:07:17  withdrawn  sz-1/hk-1/0               fxwabc\n",
		},
		"json": {
			`{"kind":"EVENT_KIND_ADDED","tunnel":{"remote":"hk-1","name":"sz-1/hk-1/0",`, `{"kind":"EVENT_KIND_ADDED","tunnel":{"remote":"hk-1","name":"sz-1/hk-1/1",`,
			`{"kind":"EVENT_KIND_CHANGED","tunnel":{"remote":"hk-1","name":"sz-1/hk-1/0",`, `{"kind":"EVENT_KIND_CHANGED","tunnel":{"remote":"hk-1","name":"sz-1/hk-1/1",`,
			`{"kind":"EVENT_KIND_WITHDRAWN","tunnel":{"remote":"hk-1","name":"sz-1/hk-1/0",`,
		},
	} {
		t.Run(format, func(t *testing.T) {
			d := newDaemon(t, nil)
			ctx, interrupt := context.WithCancel(context.Background())
			defer interrupt()
			var out, errs output
			a := &app{out: &out, err: &errs, now: clock}
			code := make(chan int, 1)
			go func() { code <- a.run(ctx, []string{"--socket", d.socket, "-o", format, "tunnel", "watch", "hk-1"}) }()
			see := func(n int) {
				t.Helper()
				until(t, fmt.Sprintf("%d lines", n), func() bool { return strings.Count(out.String(), "\n") >= n })
			}
			see(2)
			d.gw.Publish(func(s *site.Snapshot) { // none of this is a change of state
				s.Tunnels[0].RxBytes++
				s.Tunnels[0].LastHandshake = apitest.Epoch.Add(time.Minute)
				s.Sessions[0].Received++
				s.Tunnels[0].Path = links.PathState{RTT: 12340 * time.Microsecond, MinRTT: 1, Probes: 60, Lost: 1}
			})
			if r := d.ctl(t, "tunnel", "drain", "fxwabc"); r.code != exitOK {
				t.Fatal(r)
			}
			see(4)
			d.gw.Publish(func(s *site.Snapshot) { s.Tunnels = s.Tunnels[1:] })
			see(5)
			interrupt()
			if got := <-code; got != exitOK || errs.String() != "" {
				t.Errorf("exit code %d: %s", got, errs.String())
			}
			lines := strings.SplitAfter(out.String(), "\n")
			if len(lines) != len(want)+1 {
				t.Fatalf("%d lines, want %d:\n%s", len(lines)-1, len(want), out.String())
			}
			for i, w := range want {
				if !strings.HasPrefix(lines[i], w) {
					t.Errorf("line %d is %q, want %q", i, lines[i], w)
				}
				if format == "json" && !json.Valid([]byte(lines[i])) {
					t.Errorf("line %d is no JSON: %s", i, lines[i])
				}
			}
		})
	}
}

func TestPrefixWatchTimeout(t *testing.T) {
	d := newDaemon(t, nil)
	if r := d.ctl(t, "prefix", "watch", "--timeout", "300ms"); r.code != exitOK {
		t.Errorf("%+v", r)
	}
}

// A long list is printed while it comes, and is whole JSON in the end.
func TestLongListStreams(t *testing.T) {
	n := 50_000
	seen := make(chan struct{})
	d := newDaemon(t, func(g *apitest.Gateway) {
		g.RouteSource = func(vrf string, fn func(site.RouteStatus) bool) error {
			if vrf != "CORE" {
				return nil
			}
			for i := range n {
				if i == n/2 {
					select {
					case <-seen:
					case <-time.After(patience):
						return fmt.Errorf("nothing was printed after %d routes", i)
					}
				}
				if !fn(apitest.Route(vrf, i)) {
					return nil
				}
			}
			return nil
		}
	})
	for _, format := range []string{"table", "json", "yaml"} {
		if format == "yaml" {
			n = 5_000 // as many pieces as it takes; the encoder is slow under the race detector
		}
		seen = make(chan struct{})
		var out output
		code := make(chan int, 1)
		go func() {
			code <- run(context.Background(), []string{"--socket", d.socket, "-o", format, "route", "list"}, &out, os.Stderr)
		}()
		until(t, "the first routes as "+format, func() bool { return strings.Contains(out.String(), "10.0.9.0/24") })
		close(seen)
		if got := <-code; got != exitOK {
			t.Fatalf("%s: exit code %d", format, got)
		}
		if got := strings.Count(out.String(), "hk-1"); got != n {
			t.Errorf("%s: %d routes, want %d", format, got, n)
		}
		if format == "json" && !json.Valid([]byte(out.String())) {
			t.Error("not JSON")
		}
	}
}

func TestCompletion(t *testing.T) {
	d := newDaemon(t, nil)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"peer", "del", ""}, "core-router\n:4"},
		{[]string{"peer", "show", ""}, "core-router\nhk-1\n:4"},
		{[]string{"peer", "show", "core-router", ""}, ":4"},
		{[]string{"peer", "enable", "--vrf", "OPS", ""}, ":4"},
		{[]string{"peer", "add", "--vrf", ""}, "CORE\nOPS\n:4"},
		{[]string{"prefix", "del", ""}, "172.18.0.0/16\n172.20.0.0/24\n172.19.0.0/16\n:4"},
		{[]string{"tunnel", "show", ""}, "hk-1\nsz-1/hk-1/0\nsz-1/hk-1/1\ngz-1\nsz-1/gz-1/0\n:4"},
		{[]string{"tunnel", "watch", ""}, "hk-1\nsz-1/hk-1/0\nsz-1/hk-1/1\ngz-1\nsz-1/gz-1/0\n:4"},
		{[]string{"tunnel", "drain", ""}, "sz-1/hk-1/0\nsz-1/hk-1/1\nsz-1/gz-1/0\n:4"},
		{[]string{"tunnel", "undrain", "fxwabc", ""}, ":4"},
		{[]string{"bfd", "show", ""}, "sz-1/hk-1/0\nCORE/core-router\n:4"},
		{[]string{"bfd", "counters", ""}, "sz-1/hk-1/0\nCORE/core-router\n:4"},
		{[]string{"peer", "add", "--bfd-auth", ""}, "simple\nsha1\nmeticulous-sha1\n:4"},
		{[]string{"config", "rollback", ""}, "1\n:4"},
		{[]string{"route", "list", "-o", ""}, "table\njson\nyaml\n:4"},
		{[]string{"route", "list", "--source", ""}, "connected\nstatic\npeer\nfabric\n:4"},
	} {
		r := ctl(t, append([]string{"__completeNoDesc", "--socket", d.socket}, c.args...)...)
		if strings.TrimSpace(r.out) != c.want {
			t.Errorf("%v: %q, want %q", c.args, r.out, c.want)
		}
	}
	if r := ctl(t, "__complete", "--socket", d.socket, "peer", "del", ""); !strings.Contains(r.out, "core-router\tVRF CORE, AS 65020, established") {
		t.Errorf("with descriptions: %+v", r)
	}
	// No daemon, no noise.
	if r := ctl(t, "__completeNoDesc", "--socket", "/nonexistent", "peer", "del", ""); r.code != exitOK || strings.TrimSpace(r.out) != ":4" {
		t.Errorf("without a daemon: %+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := ctl(t, "completion", shell); r.code != exitOK || !strings.Contains(r.out, "fabricctl") {
			t.Errorf("%s: exit code %d: %s", shell, r.code, r.err)
		}
	}
}
