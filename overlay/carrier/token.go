package carrier

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// minSecret is the length, in characters, of the shortest secret that is taken: the 32 bytes of GenerateSecret have 44.
const minSecret = 32

// Token is the token of the tunnel with this name, derived from the secret in a file of mode 0600: one secret, copied to every gateway, makes
// a token of its own for each tunnel, and from a token nobody comes to another.
func Token(secretFile, name string) (string, error) {
	if _, err := checkSecret(secretFile); err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	b, err := os.ReadFile(secretFile)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if len(secret) < minSecret {
		return "", fmt.Errorf("token file %s holds fewer than %d characters: make one with fabric-site tls-token and copy it to every gateway", secretFile, minSecret)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("fabric tls tunnel\x00" + name))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// GenerateSecret writes a new secret for Token to a file of mode 0600. A file that exists is never overwritten: the error wraps
// os.ErrExist.
func GenerateSecret(file string) error {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("make token file: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("make token file: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make token file: %w; a secret in use is not overwritten, remove it first if it is not", err)
	}
	if err != nil {
		return fmt.Errorf("make token file: %w", err)
	}
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(raw) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(file)
		return fmt.Errorf("make token file: %w", err)
	}
	return nil
}
