package config

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSecret is the size of the largest secret file, in bytes.
const maxSecret = 64 << 10

// ReadSecretFile returns the content of a file that only its owner may read (mode 0600 or stricter) and that belongs to
// this process's user or to root. A wider mode is refused rather than mended: others may have read it already.
func ReadSecretFile(path string) ([]byte, error) {
	// Not to wait for a writer if someone put a FIFO there.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("secret file %s is not a regular file; name one", path)
	}
	if mode := info.Mode().Perm(); mode&^0o600 != 0 {
		return nil, fmt.Errorf("secret file %s has mode %04o, which lets others at it: %w; chmod 600 it, and change the secret if others may have read it",
			path, mode, os.ErrPermission)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("secret file %s belongs to user %d: %w; chown it to the daemon's user or root", path, st.Uid, os.ErrPermission)
	}
	if info.Size() > maxSecret {
		return nil, fmt.Errorf("secret file %s has %d bytes, more than %d; name the right file", path, info.Size(), maxSecret)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	return data, nil
}

// GenerateKey writes a new WireGuard private key to a file of mode 0600 in the form of wg genkey, and returns its
// public key. A file that exists is never overwritten: the error wraps os.ErrExist.
func GenerateKey(path string) (publicKey string, err error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("generate key: %w", err)
	}
	// RFC 7748 section 5: what every user of the key does to it; done here so that the file holds what is used.
	raw[0] &= 248
	raw[31] = raw[31]&127 | 64
	publicKey, err = publicOf(raw)
	if err != nil {
		return "", fmt.Errorf("generate key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("generate key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("generate key: %w; a key in use is not overwritten, remove it first if it is not", err)
	}
	if err != nil {
		return "", fmt.Errorf("generate key: %w", err)
	}
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(raw) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(path)
		return "", fmt.Errorf("generate key: %w", err)
	}
	return publicKey, nil
}

// PublicKey returns the public key of a WireGuard private key file, which must be as ReadSecretFile wants it.
func PublicKey(path string) (string, error) {
	data, err := ReadSecretFile(path)
	if err != nil {
		return "", err
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(raw) != 32 {
		// The decoder's error would quote the key.
		return "", fmt.Errorf("secret file %s does not hold a WireGuard private key (32 bytes in base64); make one with fabric-site keygen", path)
	}
	return publicOf(raw)
}

// publicOf returns the public key of a Curve25519 private key, in base64.
func publicOf(raw []byte) (string, error) {
	key, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()), nil
}

// readBounded reads at most limit bytes of a file.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
