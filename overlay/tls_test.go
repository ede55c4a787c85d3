package overlay

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
)

// tlsDocument has two gateways with a tunnel over UDP and one over TLS: b listens, a has a proxy. change may rewrite them.
func tlsDocument(change func(a, b *config.Gateway)) *config.Document {
	const key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	gw := func(name, vtep, endpoint string) config.Gateway {
		g := config.Gateway{
			Name: name, VTEP: netip.MustParseAddr(vtep),
			WireGuard: config.WireGuard{PublicKey: key, PrivateKeyFile: "/keys/" + name},
			TLS:       &config.TLS{},
		}
		if endpoint != "" {
			g.Endpoints = []config.Endpoint{{Address: netip.MustParseAddr(endpoint)}}
		}
		return g
	}
	a, b := gw("a", "10.255.0.1", ""), gw("b", "10.255.0.2", "192.0.2.2")
	a.TLS.Proxy, a.TLS.ProxyCredentialsFile = "http://proxy:3128", "/keys/proxy"
	b.TLS.Listen = &config.TLSListen{Pin: "sha256:pin-of-b", CertificateFile: "/keys/b.crt", KeyFile: "/keys/b.tls"}
	if change != nil {
		change(&a, &b)
	}
	return &config.Document{
		Fabric: config.Fabric{Name: "test", TLSTokenFile: "/keys/token"},
		Sites:  []config.Site{{Name: "a-1", Gateways: []config.Gateway{a}}, {Name: "b-1", Gateways: []config.Gateway{b}}},
		Links:  config.Links{Tunnels: []config.Tunnel{{Kind: "wireguard"}, {Kind: "tls", UnderlayMTU: 1300}}},
	}
}

func bothListen(a, b *config.Gateway) {
	a.Endpoints = []config.Endpoint{{Address: netip.MustParseAddr("2001:db8::1")}}
	a.TLS = &config.TLS{Listen: &config.TLSListen{Port: 8443, Pin: "sha256:pin-of-a", CertificateFile: "/keys/a.crt", KeyFile: "/keys/a.tls"}}
}

func TestCompileTLS(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(a, b *config.Gateway)
		// a and b are what each dials, "" for neither: no tunnel.
		a, b string
		// proxies and pin of the side that dials.
		proxy, pin string
		port       int
	}{
		{"one listens", nil, "192.0.2.2:443", "", "http://proxy:3128", "sha256:pin-of-b", 443},
		{"without a word on TLS", func(a, _ *config.Gateway) { a.TLS = nil }, "192.0.2.2:443", "", "", "sha256:pin-of-b", 443},
		{"by name", func(_, b *config.Gateway) { b.TLS.Listen.Host, b.Endpoints = "b.example", nil }, "b.example:443", "", "http://proxy:3128", "sha256:pin-of-b", 443},
		{"behind NAT", func(_, b *config.Gateway) { b.TLS.Listen.Port, b.TLS.Listen.PublicPort = 8443, 444 }, "192.0.2.2:444", "", "http://proxy:3128", "sha256:pin-of-b", 8443},
		{"second address", func(_, b *config.Gateway) {
			b.Endpoints = append(b.Endpoints, config.Endpoint{Address: netip.MustParseAddr("198.51.100.2"), PublicPort: 7})
		}, "198.51.100.2:443", "", "http://proxy:3128", "sha256:pin-of-b", 443},
		{"both listen: the higher VTEP dials", bothListen, "", "[2001:db8::1]:8443", "", "sha256:pin-of-a", 8443},
		{"both listen: who has a proxy dials", func(a, b *config.Gateway) { bothListen(a, b); a.TLS.Proxy = "http://p:1" },
			"192.0.2.2:443", "", "http://p:1", "sha256:pin-of-b", 443},
		{"both listen, both have a proxy: the higher VTEP dials", func(a, b *config.Gateway) { bothListen(a, b); a.TLS.Proxy, b.TLS.Proxy = "http://p:1", "http://q:1" },
			"", "[2001:db8::1]:8443", "http://q:1", "sha256:pin-of-a", 8443},
		{"nobody can be found", func(_, b *config.Gateway) { b.Endpoints = nil }, "", "", "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := tlsDocument(tt.change)
			var tunnels [2]Tunnel
			var plans [2]Plan
			for i, name := range []string{"a", "b"} {
				p, err := Compile(doc, name, Host{})
				if err != nil {
					t.Fatal(err)
				}
				plans[i] = p
				if k := slices.IndexFunc(p.Tunnels, func(t Tunnel) bool { return t.Kind == KindTLS }); k >= 0 {
					tunnels[i] = p.Tunnels[k]
				}
			}
			if tt.port == 0 {
				for i, p := range plans {
					if tunnels[i].Kind != "" || p.Listener != nil || len(p.VTEPs[0].Devices) != 0 || !strings.Contains(p.VTEPs[0].Problem, "neither") {
						t.Errorf("plan is %+v", p)
					}
				}
				return
			}
			far := map[bool]int{true: 0, false: 1}
			dialler := far[tt.a != ""]
			for i, want := range []string{tt.a, tt.b} {
				c := tunnels[i].Carrier
				if c == nil || c.Dial != want || c.TokenFile != "/keys/token" || c.TokenName != "test/a/b/1" {
					t.Fatalf("carrier %d is %+v, want to dial %q", i, c, want)
				}
				if tunnels[i].ListenPort != 0 || tunnels[i].Endpoint.IsValid() || tunnels[i].MTU != 1420 || tunnels[i].Rank != 1 {
					t.Errorf("tunnel is %+v", tunnels[i])
				}
				if dials := i == dialler; dials != (tunnels[i].Keepalive > 0) || dials != (plans[i].Listener == nil) || dials == tunnels[i].Accepts() {
					t.Errorf("dials %v, but keepalive is %d and the listener %+v", dials, tunnels[i].Keepalive, plans[i].Listener)
				}
			}
			if c := tunnels[dialler].Carrier; c.Proxy != tt.proxy || c.Pin != tt.pin {
				t.Errorf("carrier is %+v", c)
			}
			if c := tunnels[1-dialler].Carrier; c.Proxy != "" || c.Pin != "" || c.ProxyCredentialsFile != "" {
				t.Errorf("who is dialled has %+v", c)
			}
			if l := plans[1-dialler].Listener; l.Port != tt.port || l.CertificateFile == "" || l.KeyFile == "" {
				t.Errorf("listener is %+v", l)
			}
			// The plan survives the disk.
			b, err := json.Marshal(plans[1-dialler])
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParsePlan(b); err != nil || again.Digest() != plans[1-dialler].Digest() {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

func TestValidateTLSPlan(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(p *Plan, t *Tunnel)
	}{
		{"no carrier", "needs a carrier", func(_ *Plan, t *Tunnel) { t.Carrier = nil }},
		{"a carrier for UDP", "has no carrier", func(_ *Plan, t *Tunnel) { t.Kind, t.ListenPort = KindWireGuard, 7 }},
		{"a UDP port", "neither UDP port nor endpoint", func(_ *Plan, t *Tunnel) { t.ListenPort = 7 }},
		{"no token name", "token has no name", func(_ *Plan, t *Tunnel) { t.Carrier.TokenName = "" }},
		{"token file", "token file \"x\" is not an absolute path", func(_ *Plan, t *Tunnel) { t.Carrier.TokenFile = "x" }},
		{"no port to dial", "no HOST:PORT", func(_ *Plan, t *Tunnel) { t.Carrier.Dial = "192.0.2.2" }},
		{"port zero", "no HOST:PORT", func(_ *Plan, t *Tunnel) { t.Carrier.Dial = "192.0.2.2:0" }},
		{"a path", "no HOST:PORT", func(_ *Plan, t *Tunnel) { t.Carrier.Dial = "b/c:443" }},
		{"proxy with password", "http://HOST[:PORT]", func(_ *Plan, t *Tunnel) { t.Carrier.Proxy = "http://u:secret@p:1" }},
		{"proxy credentials", "not an absolute path", func(_ *Plan, t *Tunnel) { t.Carrier.ProxyCredentialsFile = "p" }},
		{"no listener", "the plan has no listener", func(_ *Plan, t *Tunnel) { *t.Carrier = Carrier{TokenFile: "/t", TokenName: "n"} }},
		{"pin of the dialled", "has a pin or a proxy to dial with", func(p *Plan, t *Tunnel) {
			t.Carrier.Dial, p.Listener = "", &Listener{Port: 443, CertificateFile: "/c", KeyFile: "/k"}
		}},
		{"listener's port", "0 is not a port", func(p *Plan, _ *Tunnel) { p.Listener = &Listener{CertificateFile: "/c", KeyFile: "/k"} }},
		{"listener's files", "listener: file \"\"", func(p *Plan, _ *Tunnel) { p.Listener = &Listener{Port: 1} }},
		{"one token twice", "both have token", func(p *Plan, t *Tunnel) {
			*t.Carrier = Carrier{TokenFile: "/t", TokenName: "n"}
			p.Listener = &Listener{Port: 443, CertificateFile: "/c", KeyFile: "/k"}
			other := *t
			other.Device, other.Name = TunnelDevice("a", "c", 0), "a/c/0"
			p.Tunnels = append(p.Tunnels, other)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Compile(tlsDocument(nil), "a", Host{})
			if err != nil {
				t.Fatal(err)
			}
			tt.change(&p, &p.Tunnels[slices.IndexFunc(p.Tunnels, func(t Tunnel) bool { return t.Kind == KindTLS })])
			err = p.Validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Error("the password is shown")
			}
		})
	}
}
