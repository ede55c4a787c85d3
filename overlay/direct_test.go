package overlay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
)

// vpc: sz and hk joined by a WireGuard tunnel over public addresses and a direct one in the VPC.
func vpc(local, remote string) *config.Document {
	doc := threeSites()
	doc.Sites[1].Gateways[0].Endpoints = []config.Endpoint{endpoint("198.51.100.2", 0), endpoint(remote, 0)}
	doc.Sites[2].Gateways[0].Endpoints = []config.Endpoint{endpoint("203.0.113.1", 0), endpoint(local, 0)}
	doc.Links.Pairs = []config.LinkPair{{Between: []string{"sz", "hk"}, Tunnels: []config.Tunnel{{Kind: "wireguard"}, {Kind: "direct", Encryption: "none"}}}}
	return doc
}

func TestCompileDirect(t *testing.T) {
	for _, tt := range []struct {
		name, sz, hk string
		underlay     int
		port         int
		mtu          int
	}{
		{"v4", "10.0.0.1", "10.0.0.2", 0, 4790, 1450},
		{"v6", "fd00::1", "fd00::2", 0, 4799, 1430},
		{"jumbo path", "10.0.0.1", "10.0.0.2", 2000, 4790, 1950},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := vpc(tt.sz, tt.hk)
			doc.Links.Pairs[0].Tunnels[1].UnderlayMTU, doc.Fabric.DirectPort = tt.underlay, tt.port
			var ends []Tunnel
			for _, gw := range []string{"sz", "hk"} {
				p := compile(t, doc, gw)
				i := slices.IndexFunc(p.Tunnels, func(t Tunnel) bool { return t.Kind == KindDirect })
				if i < 0 {
					t.Fatalf("%s has no direct tunnel: %+v", gw, p.Tunnels)
				}
				ends = append(ends, p.Tunnels[i])
			}
			a, b := ends[0], ends[1]
			if a.VNI != b.VNI || a.VNI == 0 || a.VNI >= 1<<24 || a.LinkLocal != b.RemoteLinkLocal || a.RemoteLinkLocal != b.LinkLocal {
				t.Errorf("the ends do not meet: %+v %+v", a, b)
			}
			if a.Endpoint != netip.AddrPortFrom(netip.MustParseAddr(tt.hk), uint16(tt.port)) || b.Endpoint.Addr().String() != tt.sz || a.Local.String() != tt.sz || b.Local.String() != tt.hk {
				t.Errorf("from %s to %s, and from %s to %s", a.Local, a.Endpoint, b.Local, b.Endpoint)
			}
			if a.MTU != tt.mtu || a.ListenPort != tt.port || a.PublicKey != "" || a.PrivateKeyFile != "" || a.Keepalive != 0 || a.BFD == nil {
				t.Errorf("tunnel is %+v, want MTU %d", a, tt.mtu)
			}
			if DirectMAC(a.LinkLocal) == DirectMAC(b.LinkLocal) {
				t.Error("both ends have one hardware address")
			}
			// The WireGuard tunnel beside it is the narrower one.
			if got := MTU(doc, "sz"); got != 1370 {
				t.Errorf("MTU inside is %d, want 1370", got)
			}
			doc.Links.Tunnels, doc.Links.Pairs[0].Tunnels = nil, doc.Links.Pairs[0].Tunnels[1:]
			doc.Sites[1].Gateways[0].Endpoints = doc.Sites[1].Gateways[0].Endpoints[1:]
			doc.Sites[2].Gateways[0].Endpoints = doc.Sites[2].Gateways[0].Endpoints[1:]
			if got := MTU(doc, "sz"); got != tt.mtu-50 {
				t.Errorf("MTU inside direct tunnels alone is %d, want %d", got, tt.mtu-50)
			}
		})
	}
}

// Two direct tunnels of one gateway share the port; a third gateway in the same VPC too.
func TestDirectTunnelsShareThePort(t *testing.T) {
	doc := vpc("10.0.0.1", "10.0.0.2")
	doc.Links.Pairs = nil
	doc.Links.Tunnels = []config.Tunnel{{Kind: "direct", Encryption: "none"}, {Kind: "direct", Encryption: "none"}}
	doc.Sites[0].Gateways[0].Endpoints = []config.Endpoint{endpoint("10.0.0.3", 0)}
	p := compile(t, doc, "sz")
	vnis := map[uint32]bool{}
	for _, tunnel := range p.Tunnels {
		vnis[tunnel.VNI] = true
		if tunnel.ListenPort != 4790 {
			t.Errorf("%s listens on %d", tunnel.Name, tunnel.ListenPort)
		}
	}
	if len(p.Tunnels) != 4 || len(vnis) != 4 {
		t.Errorf("%d tunnels with VNIs %v, want 4 of each", len(p.Tunnels), vnis)
	}
}

func TestCompileDirectNeedsBothEndpoints(t *testing.T) {
	doc := vpc("10.0.0.1", "10.0.0.2")
	doc.Sites[2].Gateways[0].Endpoints = nil
	for _, gw := range []string{"sz", "hk"} {
		if _, err := Compile(doc, gw, Host{}); err == nil || !strings.Contains(err.Error(), "a direct tunnel needs an endpoint of both") {
			t.Errorf("%s: error is %v", gw, err)
		}
	}
}

func TestValidateDirect(t *testing.T) {
	good := func() Plan {
		p := compile(t, vpc("10.0.0.1", "10.0.0.2"), "sz")
		p.Tunnels = slices.DeleteFunc(p.Tunnels, func(t Tunnel) bool { return t.Remote != "hk" })
		p.VTEPs = slices.DeleteFunc(p.VTEPs, func(v RemoteVTEP) bool { return v.Gateway != "hk" })
		return p
	}
	for want, spoil := range map[string]func(d *Tunnel, p *Plan){
		"":                                     func(*Tunnel, *Plan) {},
		"want unicast addresses of one family": func(d *Tunnel, _ *Plan) { d.Local = netip.MustParseAddr("fd00::1") },
		`a direct tunnel from "invalid IP"`:    func(d *Tunnel, _ *Plan) { d.Local = netip.Addr{} },
		"one port at both ends":                func(d *Tunnel, _ *Plan) { d.ListenPort++ },
		"VNI 16777216 is not within":           func(d *Tunnel, _ *Plan) { d.VNI = 1 << 24 },
		"of the other end is not":              func(d *Tunnel, _ *Plan) { d.RemoteLinkLocal = netip.Addr{} },
		"one hardware address":                 func(d *Tunnel, _ *Plan) { d.RemoteLinkLocal = d.LinkLocal },
		"less than the 1280":                   func(d *Tunnel, _ *Plan) { d.MTU = 1200 },
		"both have VNI": func(d *Tunnel, p *Plan) {
			twin := *d
			twin.Device, twin.Name = TunnelPrefix+"twin", "twin"
			p.Tunnels = append(p.Tunnels, twin)
		},
	} {
		p := good()
		spoil(&p.Tunnels[1], &p)
		if err := p.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("want %q, error is %v", want, err)
		}
	}
}
