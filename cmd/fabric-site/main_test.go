package main

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// call runs the program without a node: for what touches no network.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(os.Environ(), asProgram+"=1", "FABRIC_GATEWAY=")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	_ = c.Run()
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// keygen makes a key of mode 0600 and never overwrites one; the key itself is not printed.
func TestKeygen(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "gw.key")
	code, public, stderr := call(t, "keygen", file)
	if code != 0 || len(strings.TrimSpace(public)) != 44 {
		t.Fatalf("%d %q %q", code, public, stderr)
	}
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	code, stdout, stderr := call(t, "keygen", file)
	if code != 1 || !strings.Contains(stderr, file) || !strings.Contains(stderr, "exists") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, key) {
		t.Errorf("the key changed: %v", err)
	}
	if strings.Contains(public+stdout+stderr, strings.TrimSpace(string(key))) {
		t.Error("the private key was printed")
	}
}

// The exit codes and texts of what is asked of a document or a command line.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, doc string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good.yaml", strings.ReplaceAll(document, "KEY", "/etc/fabric/gw.key"))
	bad := write("bad.yaml", strings.NewReplacer("table: 201", "table: 200", "asn: 65002", "asn: 65001", "KEY", "/etc/fabric/gw.key").Replace(document))
	bare := write("bare.yaml", strings.NewReplacer("{vrf: OPS}\n  - name: there", "{vrf: OPS, peers: [{address: 192.0.2.9, asn: 65200, multihop: 5}]}\n  - name: there",
		"KEY", "/etc/fabric/gw.key").Replace(document))
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"good", []string{"check-config", good}, 0, good + ": ok\n", ""},
		{"good for a gateway", []string{"check-config", good, "--gateway", "far"}, 0, good + ": ok\n", ""},
		{"by flag", []string{"check-config", "--config", good}, 0, good + ": ok\n", ""},
		{"no such gateway", []string{"check-config", good, "--gateway", "nobody"}, 1, "", `gateway "nobody" is not in the document`},
		{"all problems", []string{"check-config", bad}, 1, "table", bad + ": 2 problems"},
		{"compiles not", []string{"check-config", bare}, 1, "", "no address to listen on"},
		{"no file", []string{"check-config", filepath.Join(dir, "none.yaml")}, 1, "", "no such file"},
		{"flag", []string{"check-config", "--colour"}, 2, "", "--colour"},
		{"log level", []string{"run", "--log-level", "loud", "--gateway", "gw"}, 2, "", `--log-level "loud": want debug, info, warn or error`},
		{"log format", []string{"run", "--log-format", "xml", "--gateway", "gw"}, 2, "", `--log-format "xml": want text or json`},
		{"too many", []string{"check-config", good, bad}, 2, "", "accepts at most 1 arg"},
		{"unknown command", []string{"dance"}, 2, "", `unknown command "dance"`},
		{"output of check", []string{"check", "-o", "xml", "--gateway", "gw"}, 2, "", `--output "xml": want table or json`},
		{"check finds a fault", []string{"check", "--config", good, "--gateway", "gw", "-o", "json"}, 1, `"id": "private-key-missing"`, " errors, "},
		{"check of no such gateway", []string{"check", "--config", good, "--gateway", "nobody"}, 1, "", `gateway "nobody" is not in the document`},
		{"start without probes", []string{"check", "--start", "--probe", "--config", good, "--gateway", "gw"}, 2, "", "choose one"},
		{"start goes on", []string{"check", "--start", "--config", good, "--gateway", "gw", "--state-dir", dir}, 0, "error    private-key-missing", ""},
		{"start in vain", []string{"check", "--start", "--config", good, "--gateway", "gw", "--state-dir", good}, 1, "error    state-not-writable", "a start would be in vain: state-not-writable"},
		{"start with a bad document", []string{"check", "--start", "--config", bad, "--gateway", "gw", "--state-dir", dir}, 0, "not checked: ", ""},
		{"start without a document", []string{"check", "--start", "--config", filepath.Join(dir, "none.yaml"), "--gateway", "gw"}, 0, "not checked: ", ""},
		{"schema", []string{"schema"}, 0, `"$schema"`, ""},
		{"version", []string{"version"}, 0, "\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := call(t, c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit %d, want %d\nstdout %s\nstderr %s", code, c.code, stdout, stderr)
			}
		})
	}
}
