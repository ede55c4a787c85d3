package carrier

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys", "token")
	if err := GenerateSecret(file); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, error %v", fi, err)
	}
	secret, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := GenerateSecret(file); !errors.Is(err, os.ErrExist) {
		t.Errorf("a secret in use: error is %v", err)
	}
	if again, _ := os.ReadFile(file); string(again) != string(secret) {
		t.Error("the secret was overwritten")
	}
	seen := map[string]string{}
	for _, name := range []string{"f/a/b/0", "f/a/b/1", "f/a/c/0", "g/a/b/0"} {
		token, err := Token(file, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkToken(token); err != nil || seen[token] != "" || strings.Contains(token, strings.TrimSpace(string(secret))) {
			t.Errorf("token of %s is %q, also of %q: %v", name, token, seen[token], err)
		}
		seen[token] = name
		if again, _ := Token(file, name); again != token {
			t.Errorf("token of %s is not always the same", name)
		}
	}
	// The end of a line is no part of the secret: editors add it.
	if err := os.WriteFile(file, []byte(strings.TrimSpace(string(secret))+"\r\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if token, err := Token(file, "f/a/b/0"); err != nil || seen[token] != "f/a/b/0" {
		t.Errorf("with another end of line: %v", err)
	}
	for _, bad := range []struct {
		content string
		mode    os.FileMode
		want    string
	}{
		{"too-short-a-secret", 0o600, "fewer than 32 characters: make one with fabric-site tls-token"},
		{string(secret), 0o640, "mode 0640 and holds a secret: chmod 600 it"},
	} {
		if err := os.WriteFile(file, []byte(bad.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, bad.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Token(file, "x"); err == nil || !strings.Contains(err.Error(), bad.want) || strings.Contains(err.Error(), bad.content) {
			t.Errorf("error is %v, want %q", err, bad.want)
		}
	}
	if _, err := Token(file+"none", "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
