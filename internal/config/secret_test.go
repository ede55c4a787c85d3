package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	writeFile(t, path, "hush")
	for _, c := range []struct {
		mode os.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o640, false}, {0o604, false}, {0o660, false}, {0o620, false}, {0o700, false}, {0o644, false}} {
		t.Run(fmt.Sprintf("%04o", c.mode), func(t *testing.T) {
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			data, err := ReadSecretFile(path)
			if c.ok && (err != nil || string(data) != "hush") {
				t.Errorf("was refused: %v", err)
			}
			if !c.ok && (!errors.Is(err, os.ErrPermission) || data != nil || strings.Contains(err.Error(), "hush")) {
				t.Errorf("error is %v", err)
			}
		})
	}
	if _, err := ReadSecretFile(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := ReadSecretFile(dir); err == nil {
		t.Error("a folder was read")
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretFile(fifo); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a FIFO: %v", err)
	}
	writeFile(t, filepath.Join(dir, "big"), strings.Repeat("x", maxSecret+1))
	if _, err := ReadSecretFile(filepath.Join(dir, "big")); err == nil {
		t.Error("a huge file was read")
	}
	if os.Getuid() == 0 {
		if err := errors.Join(os.Chmod(path, 0o600), os.Chown(path, 12345, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSecretFile(path); !errors.Is(err, os.ErrPermission) {
			t.Errorf("another user's file: %v", err)
		}
	}
}

func TestGenerateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "gw.key")
	public, err := GenerateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	if again, err := PublicKey(path); err != nil || again != public {
		t.Errorf("the public key is %s, not %s; %v", again, public, err)
	}
	data, _ := os.ReadFile(path)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(raw) != 32 || raw[0]&7 != 0 || raw[31]>>6 != 1 {
		t.Errorf("the file does not hold a clamped key: %v", err)
	}
	if _, err := GenerateKey(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if after, _ := os.ReadFile(path); string(after) != string(data) {
		t.Error("the key was overwritten")
	}
	if _, err := GenerateKey(filepath.Join(path, "x")); err == nil {
		t.Error("a key inside a file")
	}
	if _, err := GenerateKey(filepath.Join(filepath.Dir(path), strings.Repeat("x", 300))); err == nil {
		t.Error("a key under a name that cannot be")
	}
}

func TestPublicKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	// RFC 7748 section 6.1, Alice.
	private := []byte{0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
		0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a}
	writeFile(t, path, base64.StdEncoding.EncodeToString(private)+"\n")
	if public, err := PublicKey(path); err != nil || public != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("public key is %s, %v", public, err)
	}
	writeFile(t, path, "not-a-key-but-secret")
	if _, err := PublicKey(path); err == nil || strings.Contains(err.Error(), "secret\"") || strings.Contains(err.Error(), "not-a-key") {
		t.Errorf("error is %v", err)
	}
	if _, err := PublicKey(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
