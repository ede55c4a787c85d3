package check

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"fabric/overlay/carrier"
)

// The certificate's pin is read, and the secrets of TLS tunnels are among the files that are looked at.
func TestGatherTLS(t *testing.T) {
	dir := t.TempDir()
	f := healthy(t)
	withTLS(&f)
	_, gw, _ := f.Document.Find("gw")
	l := gw.TLS.Listen
	l.CertificateFile, l.KeyFile = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	gw.TLS.Proxy, gw.TLS.ProxyCredentialsFile = "http://p:1", filepath.Join(dir, "proxy")
	look := func() map[string]string {
		asked := map[string]string{}
		f.tls(gw, newSubject(f), func(purpose, path string) { asked[path] = purpose })
		return asked
	}
	asked := look()
	for _, path := range []string{l.KeyFile, gw.TLS.ProxyCredentialsFile, "/etc/fabric/keys/test.token"} {
		if asked[path] == "" {
			t.Errorf("%s is not looked at: %v", path, asked)
		}
	}
	if f.Certificate.Path != l.CertificateFile || !errors.Is(f.Certificate.Err, fs.ErrNotExist) {
		t.Errorf("certificate is %+v", f.Certificate)
	}
	pin, err := carrier.EnsureCertificate(l.CertificateFile, l.KeyFile, "gw")
	if err != nil {
		t.Fatal(err)
	}
	if look(); f.Certificate.PublicKey != pin || f.Certificate.Err != nil {
		t.Errorf("certificate is %+v, want pin %s", f.Certificate, pin)
	}
	if err := os.WriteFile(l.CertificateFile, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	if look(); f.Certificate.Err == nil {
		t.Error("what is no certificate is not told")
	}
}
