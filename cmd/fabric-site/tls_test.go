package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What TLS tunnels need is made with mode 0600 and never overwritten; secrets are not printed.
func TestTLSCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	token, cert, key := filepath.Join(dir, "token"), filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	code, stdout, stderr := call(t, "tls-token", token)
	if code != 0 || stdout != "" || stderr != "" {
		t.Fatalf("%d %q %q", code, stdout, stderr)
	}
	if code, _, stderr = call(t, "tls-token", token); code != 1 || !strings.Contains(stderr, "exists") {
		t.Errorf("%d %q", code, stderr)
	}
	code, pin, stderr := call(t, "tls-certificate", cert, key, "--host", "gw.example")
	if code != 0 || !regexp.MustCompile(`^sha256:[A-Za-z0-9+/]{43}=\n$`).MatchString(pin) {
		t.Fatalf("%d %q %q", code, pin, stderr)
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if code, again, _ := call(t, "tls-certificate", cert, key); code != 0 || again != pin {
		t.Errorf("again: %d %q, was %q", code, again, pin)
	}
	if after, _ := os.ReadFile(key); !bytes.Equal(before, after) {
		t.Error("the key was overwritten")
	}
	for _, f := range []string{token, key} {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, fi, err)
		}
	}
	if code, _, _ := call(t, "tls-certificate", cert); code != 2 {
		t.Errorf("one argument: exit code %d", code)
	}
}
