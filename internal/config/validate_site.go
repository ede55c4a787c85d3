package config

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// site checks one site and its gateways.
func (v *validator) site(s *Site, path string) {
	v.name(path+".name", s.Name, siteName, siteNameMend)
	v.unique(path+".name", "site name", s.Name)
	if len(s.Gateways) == 0 {
		v.add(path+".gateways", "describe at least one gateway", "site %q has no gateway", s.Name)
	}
	if s.Cloud != nil {
		v.cloud(s, path+".cloud")
	}
	for i := range s.Gateways {
		v.gateway(&s.Gateways[i], index(path+".gateways", i))
	}
}

// cloud checks what the fabric keeps of a VPC.
func (v *validator) cloud(s *Site, path string) {
	c := s.Cloud
	v.oneOf(path+".provider", c.Provider, "alibaba")
	if v.knownVRF(path+".vrf", c.VRF) {
		attached := slices.ContainsFunc(s.Gateways, func(g Gateway) bool { _, ok := g.VRF(c.VRF); return ok })
		if !attached {
			v.add(path+".vrf", "add it under vrfs of a gateway of this site", "no gateway of site %q has VRF %q", s.Name, c.VRF)
		}
	}
	seen := map[string]bool{}
	for i, t := range c.RouteTables {
		if t == "" || seen[t] {
			v.add(index(path+".route-tables", i), "name each table once", "route table %s is empty or named twice", quoteShort(t))
		}
		seen[t] = true
	}
	if c.Endpoint != "" && !isHostPort(c.Endpoint) {
		v.add(path+".endpoint", "write host or host:port, without https://", "%s is not a host", quoteShort(c.Endpoint))
	}
	if c.CAFile != "" {
		v.file(path+".ca-file", c.CAFile)
	}
	if c.CredentialsFile != "" {
		v.file(path+".credentials-file", c.CredentialsFile)
	}
	v.number(path+".quota", int64(c.Quota), 1, 1<<20)
	if c.Resync.Std() < time.Second {
		v.add(path+".resync", "write 1s or more", "%s is too short", c.Resync)
	}
	v.knownPolicy(path+".export", c.Export)
}

// isHostPort says whether s is a host name or address, with or without a port.
func isHostPort(s string) bool {
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return false
		}
		host = h
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host != "" && !strings.ContainsFunc(host, func(c rune) bool {
		return c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
}

// gateway checks one gateway.
func (v *validator) gateway(g *Gateway, path string) {
	v.name(path+".name", g.Name, siteName, siteNameMend)
	v.unique(path+".name", "gateway name", g.Name)
	v.asn(path+".asn", g.ASN)
	if g.ASN != 0 {
		v.unique(path+".asn", "ASN", fmt.Sprint(g.ASN))
	}
	v.vtep(g, path)
	if n := len(g.Endpoints); n > maxEndpoints {
		v.add(path+".endpoints", "keep the best", "%d are more than %d", n, maxEndpoints)
	}
	for i, e := range g.Endpoints {
		p := index(path+".endpoints", i)
		v.unicast(p+".address", e.Address)
		if e.PublicPort != 0 {
			v.port(p+".public-port", e.PublicPort)
		}
	}
	v.wireGuard(&g.WireGuard, path+".wireguard")
	if g.TLS != nil {
		v.tls(g, path+".tls")
	}
	if g.API != nil {
		v.listener(path+".api.listen", g.API.Listen)
		v.file(path+".api.cert-file", g.API.CertFile)
		v.file(path+".api.key-file", g.API.KeyFile)
		v.file(path+".api.ca-file", g.API.CAFile)
	}
	if g.Metrics.IsValid() {
		v.listener(path+".metrics", g.Metrics)
	}
	if g.API != nil && g.Metrics.IsValid() && g.API.Listen == g.Metrics {
		v.add(path+".metrics", "use another port", "the API listens on %s as well", g.Metrics)
	}
	devices := map[string]string{}
	seen := map[string]bool{}
	for i := range g.VRFs {
		a := &g.VRFs[i]
		p := index(path+".vrfs", i)
		if seen[a.VRF] {
			v.add(p+".vrf", "join the two entries", "VRF %q is listed twice at gateway %q", a.VRF, g.Name)
		}
		seen[a.VRF] = true
		v.attachment(a, p, devices)
	}
}

// vtep checks the tunnel endpoint and the BGP identifier.
func (v *validator) vtep(g *Gateway, path string) {
	if v.unicast(path+".vtep", g.VTEP) {
		if want := v.doc.Fabric.VTEPFamily; family(g.VTEP) != want {
			v.add(path+".vtep", "use an "+want+" address, or change fabric.vtep-family", "VTEP %s is not %s", g.VTEP, want)
		}
		if g.VTEP.IsLinkLocalUnicast() {
			v.add(path+".vtep", "use a loopback address of your own", "VTEP %s is link-local", g.VTEP)
		}
		v.unique(path+".vtep", "VTEP", g.VTEP.String())
	}
	v.routerMAC(path+".router-mac", g.RouterMAC)
	if v.seen[path+".vtep"] {
		return // the router id may come from it
	}
	switch {
	case !g.RouterID.IsValid() && g.VTEP.Is6():
		v.add(path+".router-id", "add an IPv4 address that no other gateway has", "router-id is required where the VTEP is IPv6")
	case g.RouterID.IsValid() && (!g.RouterID.Is4() || g.RouterID.IsUnspecified()):
		v.add(path+".router-id", "write an IPv4 address", "%s is not a BGP identifier", g.RouterID)
	case g.RouterID.IsValid():
		v.unique(path+".router-id", "router id", g.RouterID.String())
	}
}

// routerMAC checks a hardware address; "" is the derived one.
func (v *validator) routerMAC(path, text string) {
	if text == "" {
		return
	}
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		v.add(path, "write six octets, such as 02:00:5e:10:00:01", "%s is not the hardware address of one host", quoteShort(text))
		return
	}
	v.unique(path, "router MAC", mac.String())
}

// wireGuard checks a gateway's keys. The key is not shown: people paste private keys here too.
func (v *validator) wireGuard(w *WireGuard, path string) {
	if raw, err := base64.StdEncoding.Strict().DecodeString(w.PublicKey); err != nil || len(raw) != 32 || len(w.PublicKey) != 44 {
		v.add(path+".public-key", "paste what fabric-site keygen or wg pubkey printed", "not a WireGuard public key (32 bytes in base64)")
	} else {
		v.uniqueKey(path+".public-key", w.PublicKey)
	}
	v.file(path+".private-key-file", w.PrivateKeyFile)
	v.seconds(path+".keepalive", w.Keepalive, time.Second, 65535*time.Second)
}

// uniqueKey reports a key that two gateways have, without showing it.
func (v *validator) uniqueKey(path, key string) {
	if first, twice := v.first[[2]string{"public key", key}]; twice {
		v.add(path, "give each gateway its own key", "the same public key as %s", first)
		return
	}
	v.first[[2]string{"public key", key}] = path
}

// listener checks an address that the daemon listens on.
func (v *validator) listener(path string, a netip.AddrPort) {
	if !a.IsValid() || a.Port() == 0 || a.Addr().IsMulticast() {
		v.add(path, "write address:port with a port from 1 to 65535", "cannot listen on %s", a)
	}
}

// knownVRF checks a reference to a VRF.
func (v *validator) knownVRF(path, name string) bool {
	if _, ok := v.doc.VRF(name); !ok {
		var names []string
		for _, f := range v.doc.VRFs {
			names = append(names, f.Name)
		}
		v.add(path, "there are: "+listed(names), "unknown VRF %s", quoteShort(name))
		return false
	}
	return true
}

// knownPolicy checks a reference to a policy; "" is none.
func (v *validator) knownPolicy(path, name string) {
	if _, ok := v.doc.Policy(name); !ok && name != "" {
		v.add(path, "describe it under policies", "unknown policy %s", quoteShort(name))
	}
}
