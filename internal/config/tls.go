package config

import (
	"cmp"
	"encoding/base64"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Kinds of tunnels.
const (
	KindWireGuard = "wireguard"
	KindTLS       = "tls"
)

// defaultTLSPort holds where the document leaves the value out.
const defaultTLSPort = 443

// TLSAddress is what others dial for a "tls" tunnel of a rank, HOST:PORT, and false if this gateway takes none.
func (g *Gateway) TLSAddress(rank int) (string, bool) {
	if g.TLS == nil || g.TLS.Listen == nil {
		return "", false
	}
	l := g.TLS.Listen
	host := l.Host
	if host == "" {
		e, ok := g.Endpoint(rank)
		if !ok {
			return "", false
		}
		host = e.Address.Unmap().String()
	}
	return net.JoinHostPort(host, strconv.Itoa(cmp.Or(l.PublicPort, l.Port, defaultTLSPort))), true
}

// DialsTLS says whether this gateway, and not the other, dials their "tls" tunnel of a rank. Both sides come to the same answer. ok is
// false if neither can be dialled.
func (g *Gateway) DialsTLS(other *Gateway, rank int) (dials, ok bool) {
	_, own := g.TLSAddress(rank)
	_, far := other.TLSAddress(rank)
	switch {
	case own != far:
		return far, true
	case !own:
		return false, false
	}
	// Whoever needs a proxy to get out is unlikely to be got at.
	if a, b := g.TLS.Proxy != "", other.TLS.Proxy != ""; a != b {
		return a, true
	}
	return g.VTEP.Compare(other.VTEP) > 0, true
}

// hasTLS says whether any link may have a "tls" tunnel.
func (d *Document) hasTLS() bool {
	isTLS := func(t Tunnel) bool { return t.Kind == KindTLS }
	return slices.ContainsFunc(d.Links.Tunnels, isTLS) ||
		slices.ContainsFunc(d.Links.Pairs, func(p LinkPair) bool { return slices.ContainsFunc(p.Tunnels, isTLS) })
}

func (d *Document) tlsDefaults() {
	if d.hasTLS() && d.Fabric.Name != "" {
		fill(&d.Fabric.TLSTokenFile, keyFolder+d.Fabric.Name+".token")
	}
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			if g.TLS == nil || g.TLS.Listen == nil {
				continue
			}
			l := g.TLS.Listen
			fill(&l.Port, defaultTLSPort)
			if g.Name != "" {
				fill(&l.CertificateFile, keyFolder+g.Name+"-tls.crt")
				fill(&l.KeyFile, keyFolder+g.Name+"-tls.key")
			}
		}
	}
}

// tls checks a gateway's part in "tls" tunnels.
func (v *validator) tls(g *Gateway, path string) {
	t := g.TLS
	if t.Proxy != "" {
		// What url.Parse says has the URL in it, and people write passwords there.
		u, err := url.Parse(t.Proxy)
		switch {
		case err != nil || u.Scheme != "http" || u.Host == "" || !isHostPort(u.Host) || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			v.add(path+".proxy", "write http://HOST:PORT", "not the URL of an HTTP proxy")
		case u.User != nil:
			v.add(path+".proxy", "write USER:PASSWORD into a file of mode 0600 and name it under proxy-credentials-file, and change the password", "there are credentials in it")
		}
	}
	if t.ProxyCredentialsFile != "" {
		v.file(path+".proxy-credentials-file", t.ProxyCredentialsFile)
		if t.Proxy == "" {
			v.add(path+".proxy-credentials-file", "name the proxy under proxy, or remove it", "there is no proxy that they are for")
		}
	}
	if t.Listen != nil {
		v.tlsListen(g, path+".listen")
	}
}

func (v *validator) tlsListen(g *Gateway, path string) {
	l := g.TLS.Listen
	v.port(path+".port", l.Port)
	if l.PublicPort != 0 {
		v.port(path+".public-port", l.PublicPort)
	}
	v.file(path+".certificate-file", l.CertificateFile)
	v.file(path+".key-file", l.KeyFile)
	if l.Host != "" && (!isHostPort(l.Host) || net.ParseIP(l.Host) != nil || strings.ContainsAny(l.Host, ":")) {
		v.add(path+".host", "write a name such as gw1.example.com; an address belongs under endpoints, a port under public-port", "%s is not a host name", quoteShort(l.Host))
	}
	switch {
	case l.Pin != "" && !isPin(l.Pin):
		v.add(path+".pin", "paste what fabric-site tls-certificate printed", "not a pin (sha256: and 32 bytes in base64)")
	case l.Pin == "" && l.Host == "":
		v.add(path+".pin", "paste what fabric-site tls-certificate prints on that gateway, or name the host that its certificate is for",
			"others dial an address, for which no authority signs a certificate, and have no pin to know it by")
	}
	if l.Host == "" && len(g.Endpoints) == 0 {
		v.add(path+".host", "write the name that others dial, or give the gateway endpoints", "gateway %q listens, but nobody is told where", g.Name)
	}
	if g.API != nil && int(g.API.Listen.Port()) == l.Port {
		v.add(path+".port", "use another port", "the API of gateway %q listens on port %d as well", g.Name, l.Port)
	}
	if g.Metrics.IsValid() && int(g.Metrics.Port()) == l.Port {
		v.add(path+".port", "use another port", "the metrics of gateway %q are on port %d as well", g.Name, l.Port)
	}
	// Two gateways behind one public address need two public ports.
	ranks := max(1, len(g.Endpoints))
	if l.Host != "" {
		ranks = 1
	}
	for rank := range ranks {
		if a, ok := g.TLSAddress(rank); ok && !slices.ContainsFunc(g.Endpoints[:min(rank, len(g.Endpoints))], func(e Endpoint) bool {
			return e.Address == g.Endpoints[rank].Address
		}) {
			v.unique(path+".public-port", "TLS address", strings.ToLower(a))
		}
	}
}

// isPin says whether s has the form of a pin: RFC 7469's hash of a public key.
func isPin(s string) bool {
	hash, ok := strings.CutPrefix(s, "sha256:")
	b, err := base64.StdEncoding.DecodeString(hash)
	return ok && err == nil && len(b) == 32
}

// has says whether the link has a tunnel of a kind.
func (n *neighbour) has(kind string) bool {
	return slices.ContainsFunc(n.tunnels, func(t Tunnel) bool { return t.Kind == kind })
}

// tlsLink checks that one of two gateways takes the connections of their "tls" tunnels.
func (v *validator) tlsLink(g *Gateway, n *neighbour, path string) {
	for rank, t := range n.tunnels {
		if t.Kind != KindTLS {
			continue
		}
		if _, ok := g.DialsTLS(n.gateway, rank); !ok {
			v.add(path+".tls", "give one of them tls.listen (and a host or an endpoint), or override their tunnels under links.pairs",
				"%q and %q are to have a tls tunnel, but neither takes TLS connections", g.Name, n.gateway.Name)
			return
		}
	}
}
