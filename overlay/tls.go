package overlay

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"fabric/internal/config"
)

// Kinds of tunnels: WireGuard over UDP, and WireGuard's packets inside TLS over TCP (overlay/carrier).
const (
	KindWireGuard = config.KindWireGuard
	KindTLS       = config.KindTLS
)

// Carrier is how the packets of a "tls" tunnel travel. It names secret files and holds no secret.
type Carrier struct {
	// TokenFile holds the fabric's secret, TokenName is what the tunnel's token is derived from it by. The name is the same at both
	// ends and another for each tunnel.
	TokenFile string `json:"token-file"`
	TokenName string `json:"token-name"`
	// Dial is HOST:PORT of the other gateway; "" where it dials us, and nothing below is set then.
	Dial string `json:"dial,omitempty"`
	// Pin is the key of the certificate that is trusted; "": the system's authorities tell.
	Pin string `json:"pin,omitempty"`
	// Proxy is the HTTP proxy to dial through, ProxyCredentialsFile holds USER:PASSWORD for it.
	Proxy                string `json:"proxy,omitempty"`
	ProxyCredentialsFile string `json:"proxy-credentials-file,omitempty"`
}

// Listener takes the connections of the "tls" tunnels that other gateways dial.
type Listener struct {
	// Port is the TCP port.
	Port int `json:"port"`
	// CertificateFile and KeyFile are PEM.
	CertificateFile string `json:"certificate-file"`
	KeyFile         string `json:"key-file"`
}

// undialled says why a tunnel of a kind between two gateways cannot be, "" when one of them can dial it.
func undialled(own, remote *config.Gateway, kind string, rank int) string {
	if kind == KindTLS {
		if _, ok := own.DialsTLS(remote, rank); !ok {
			return fmt.Sprintf("neither %s nor %s takes TLS connections; give one of them tls.listen", own.Name, remote.Name)
		}
	} else if len(own.Endpoints) == 0 && len(remote.Endpoints) == 0 {
		return fmt.Sprintf("neither %s nor %s has an endpoint that the other could dial; give one of them endpoints", own.Name, remote.Name)
	}
	return ""
}

// compileCarrier completes a tunnel of kind "tls".
func compileCarrier(doc *config.Document, own, remote *config.Gateway, t *Tunnel, place int) {
	t.ListenPort = 0
	t.Carrier = &Carrier{
		TokenFile: doc.Fabric.TLSTokenFile,
		// Ordered, so that both ends say the same.
		TokenName: doc.Fabric.Name + "/" + TunnelName(min(own.Name, remote.Name), max(own.Name, remote.Name), place),
	}
	if dials, _ := own.DialsTLS(remote, place); !dials {
		return
	}
	t.Keepalive = keepalive(own)
	t.Carrier.Dial, _ = remote.TLSAddress(place)
	t.Carrier.Pin = remote.TLS.Listen.Pin
	if own.TLS != nil {
		t.Carrier.Proxy, t.Carrier.ProxyCredentialsFile = own.TLS.Proxy, own.TLS.ProxyCredentialsFile
	}
}

// compileListener is the listener that the tunnels need, nil when none does.
func compileListener(own *config.Gateway, tunnels []Tunnel) *Listener {
	for _, t := range tunnels {
		if t.Accepts() {
			l := own.TLS.Listen
			return &Listener{Port: cmp.Or(l.Port, 443), CertificateFile: l.CertificateFile, KeyFile: l.KeyFile}
		}
	}
	return nil
}

// Accepts says whether the tunnel is one of kind "tls" that the other gateway dials.
func (t Tunnel) Accepts() bool { return t.Carrier != nil && t.Carrier.Dial == "" }

// validateCarrier calls bad for all that is wrong with how a tunnel's packets travel.
func (p Plan) validateCarrier(t Tunnel, bad func(format string, args ...any)) {
	c := t.Carrier
	switch {
	case t.Kind != KindTLS && c != nil:
		bad("a tunnel of kind %s has no carrier", t.Kind)
	case t.Kind != KindTLS:
	case c == nil:
		bad("a tunnel of kind %s needs a carrier", t.Kind)
	default:
		if t.ListenPort != 0 || t.Endpoint.IsValid() {
			bad("a tunnel of kind %s has neither UDP port nor endpoint", t.Kind)
		}
		if c.TokenName == "" {
			bad("its token has no name")
		}
		if !filepath.IsAbs(c.TokenFile) {
			bad("token file %q is not an absolute path", c.TokenFile)
		}
		c.validateDial(p.Listener, bad)
	}
}

func (c *Carrier) validateDial(l *Listener, bad func(format string, args ...any)) {
	if c.Dial == "" {
		if c.Pin != "" || c.Proxy != "" || c.ProxyCredentialsFile != "" {
			bad("it is dialled by the other end, and has a pin or a proxy to dial with")
		}
		if l == nil {
			bad("it is dialled by the other end, but the plan has no listener")
		}
		return
	}
	host, port, err := net.SplitHostPort(c.Dial)
	if n, atoi := strconv.Atoi(port); err != nil || host == "" || strings.ContainsAny(host, "/@ ") || atoi != nil || n < 1 || n > 65535 {
		bad("%q is no HOST:PORT to dial", c.Dial)
	}
	if c.Proxy != "" {
		// The URL is not shown: there may be a password in it.
		if u, err := url.Parse(c.Proxy); err != nil || u.Scheme != "http" || u.Hostname() == "" || u.User != nil {
			bad("the proxy is not of the form http://HOST[:PORT]")
		}
	}
	if c.ProxyCredentialsFile != "" && !filepath.IsAbs(c.ProxyCredentialsFile) {
		bad("proxy credentials file %q is not an absolute path", c.ProxyCredentialsFile)
	}
}

// validateListener calls bad for all that is wrong with the listener.
func (p Plan) validateListener(bad func(format string, args ...any)) {
	l := p.Listener
	if l == nil {
		return
	}
	if l.Port < 1 || l.Port > 65535 {
		bad("listener: %d is not a port", l.Port)
	}
	for _, f := range []string{l.CertificateFile, l.KeyFile} {
		if !filepath.IsAbs(f) {
			bad("listener: file %q is not an absolute path", f)
		}
	}
	names := map[string]string{}
	for _, t := range p.Tunnels {
		if !t.Accepts() {
			continue
		}
		if other, ok := names[t.Carrier.TokenName]; ok {
			bad("tunnels %q and %q: both have token %q", other, t.Name, t.Carrier.TokenName)
		}
		names[t.Carrier.TokenName] = t.Name
	}
}
