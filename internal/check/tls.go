package check

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fabric/internal/config"
	"fabric/overlay/carrier"
)

// tlsChecks are about tunnels of kind "tls".
var tlsChecks = []check{
	{"port-taken-tls", whyPort, func(s *subject) []fault {
		if s.plan.Listener == nil {
			return nil
		}
		return s.taken("tcp", s.plan.Listener.Port, func(p Port) bool { return p.Local.Addr().IsLoopback() })
	}},
	{"tls-certificate", "Other gateways know this one by its certificate: without it, or with another, no TLS tunnel comes about.", func(s *subject) []fault {
		l := s.plan.Listener
		if l == nil {
			return nil
		}
		listen := s.gw.TLS.Listen
		mend := fmt.Sprintf("fabric-site tls-certificate %s %s  # and what it prints into the document: pin of tls.listen", l.CertificateFile, l.KeyFile)
		switch c := s.Certificate; {
		case errors.Is(c.Err, fs.ErrNotExist):
			return one(Error, mend, "%s is not there", c.Path)
		case c.Err != nil && !unreadable(c.Err):
			return one(Error, mend, "%s: %v", c.Path, c.Err)
		case c.PublicKey != "" && listen.Pin != "" && c.PublicKey != listen.Pin:
			return one(Error, "# in the document, tls.listen of gateway "+s.Gateway+": pin: "+c.PublicKey, "%s has pin %s, the document says %s", c.Path, c.PublicKey, listen.Pin)
		}
		return nil
	}},
}

// tls reads what the document names for tunnels of kind "tls".
func (f *Facts) tls(gw *config.Gateway, s *subject, secret func(purpose, path string)) {
	if l := s.plan.Listener; l != nil {
		secret("key of the certificate for tls tunnels", l.KeyFile)
		f.Certificate = File{Purpose: "certificate for tls tunnels", Path: l.CertificateFile}
		f.Certificate.PublicKey, f.Certificate.Err = pinOf(l.CertificateFile)
	}
	for _, t := range s.plan.Tunnels {
		if t.Carrier != nil {
			secret("secret of tls tunnels", t.Carrier.TokenFile)
			break
		}
	}
	if gw.TLS != nil {
		secret("credentials for the proxy of tls tunnels", gw.TLS.ProxyCredentialsFile)
	}
}

// pinOf is the pin of the first certificate in a PEM file.
func pinOf(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return "", errors.New("no PEM certificate in it")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return carrier.Pin(c), nil
}
