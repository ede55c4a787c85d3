package carrier

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const pinPrefix = "sha256:"

// Pin names the public key of a certificate: "sha256:" and the base64 of the hash of its SubjectPublicKeyInfo (as in RFC 7469). It stays
// the same when the certificate is renewed with its key.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return pinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

// checkPin says whether s has the form of a pin.
func checkPin(s string) error {
	hash, ok := strings.CutPrefix(s, pinPrefix)
	b, err := base64.StdEncoding.DecodeString(hash)
	if !ok || err != nil || len(b) != sha256.Size {
		return fmt.Errorf("pin %q: must be %sBASE64 of 32 bytes", s, pinPrefix)
	}
	return nil
}

// clientTLS says whom a Dialer trusts. With a pin alone, the key is what counts: no authority is asked and the name does not matter, but
// the certificate must be valid today. Otherwise the chain must lead to roots (nil: the system's), and to the pin if there is one.
func clientTLS(serverName, pin string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: serverName,
		NextProtos: []string{"http/1.1"},
		// VerifyConnection below does the verifying: the standard one cannot be told to trust a key.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return verify(s.PeerCertificates, serverName, pin, roots, time.Now())
		},
	}
}

func verify(chain []*x509.Certificate, serverName, pin string, roots *x509.CertPool, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the far end showed no certificate")
	}
	leaf := chain[0]
	if pin != "" {
		if got := Pin(leaf); got != pin {
			return fmt.Errorf("the far end's certificate has pin %s, want %s: its key was changed, or something between reads along", got, pin)
		}
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("the far end's certificate expired at %s: renew it there", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("the far end's certificate is valid only from %s: is the clock right?", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	if pin != "" && roots == nil {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: serverName, CurrentTime: now}); err != nil {
		return fmt.Errorf("the far end's certificate (pin %s) is not trusted: %w", Pin(leaf), err)
	}
	return nil
}

// loadRoots reads certificates of authorities; no file means nil.
func loadRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("CA file %s: no PEM certificate in it", file)
	}
	return pool, nil
}

// checkSecret refuses a secret file that others may read.
func checkSecret(file string) (os.FileInfo, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o and holds a secret: chmod 600 it", file, fi.Mode().Perm())
	}
	return fi, nil
}

// certificate is the listener's, read again when its file was changed, so that renewing it needs no restart.
type certificate struct {
	certFile, keyFile string

	mu       sync.Mutex
	modified [2]time.Time
	loaded   *tls.Certificate
}

// get returns the newest that can be read. A half-written renewal leaves the one before in use.
func (c *certificate) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, modified, err := c.load()
	if err != nil {
		if c.loaded != nil {
			return c.loaded, nil
		}
		return nil, err
	}
	if fresh != nil {
		c.loaded, c.modified = fresh, modified
	}
	return c.loaded, nil
}

// load returns nil when nothing was changed.
func (c *certificate) load() (*tls.Certificate, [2]time.Time, error) {
	var modified [2]time.Time
	certInfo, err := os.Stat(c.certFile)
	if err != nil {
		return nil, modified, fmt.Errorf("certificate: %w", err)
	}
	keyInfo, err := checkSecret(c.keyFile)
	if err != nil {
		return nil, modified, fmt.Errorf("certificate key: %w", err)
	}
	modified = [2]time.Time{certInfo.ModTime(), keyInfo.ModTime()}
	if c.loaded != nil && modified == c.modified {
		return nil, modified, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, modified, fmt.Errorf("certificate %s: %w", c.certFile, err)
	}
	return &pair, modified, nil
}

// selfSignedYears is how long a certificate of EnsureCertificate is valid. Its pin is what is trusted, so that an early end would only
// be an outage.
const selfSignedYears = 20

// EnsureCertificate makes a key (mode 0600) and a certificate signed by itself for name, a host name or address, unless both files are there, and returns
// the pin for the far ends' configuration.
func EnsureCertificate(certFile, keyFile, name string) (pin string, err error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	pair, err := c.get()
	if errors.Is(err, os.ErrNotExist) {
		if err := selfSigned(certFile, keyFile, name, time.Now(), time.Now().AddDate(selfSignedYears, 0, 0)); err != nil {
			return "", fmt.Errorf("make certificate for %s: %w", name, err)
		}
		pair, err = c.get()
	}
	if err != nil {
		return "", err
	}
	return Pin(pair.Leaf), nil
}

// selfSigned writes a certificate for its key, which is made too if it is not there.
func selfSigned(certFile, keyFile, name string, from, until time.Time) error {
	key, err := ensureKey(keyFile)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: from.Add(-time.Hour), NotAfter: until, // the far clock may be behind
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	return os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// ensureKey reads a key, or makes it. An existing file is never written over: its pin may be in use.
func ensureKey(file string) (*ecdsa.PrivateKey, error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		if _, err := checkSecret(file); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s: no PEM key in it", file)
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: not a PKCS #8 key", file)
		}
		key, ok := k.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s: not an ECDSA key; make its certificate beside it", file)
		}
		return key, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return nil, err
	}
	return key, f.Sync()
}
