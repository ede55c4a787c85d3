package bgp

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"fabric/internal/config"
)

// compileDocument is the two gateways with an interface in each VRF of gw1.
func compileDocument() *config.Document {
	doc := (&network{port: 179}).document()
	gw := &doc.Sites[0].Gateways[0]
	gw.VRFs[0].Interfaces = []config.Interface{{Name: "eth1", Addresses: []netip.Prefix{prefix("172.20.0.9/24"), prefix("2001:db8:20::9/64")}}}
	gw.VRFs[0].Multipath = 3
	gw.VRFs[1].Interfaces = []config.Interface{{Name: "eth2", Addresses: []netip.Prefix{prefix("172.20.0.9/24")}}}
	return doc
}

func thirdParty(name, address string) config.Peer {
	return config.Peer{
		Name: name, Address: netip.MustParseAddr(address), ASN: 65100, Families: []string{IPv4}, Port: 179, MaxPrefix: 100,
		Keepalive: config.Duration(3 * time.Second), Hold: config.Duration(9 * time.Second),
	}
}

func mustCompile(t *testing.T, doc *config.Document, h HostFacts) Desired {
	t.Helper()
	d, err := Compile(doc, "gw1", h)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCompileFabric(t *testing.T) {
	doc := compileDocument()
	d := mustCompile(t, doc, HostFacts{})
	f := d.Fabric
	if f.ASN != 65001 || f.RouterID.String() != "10.0.0.1" || !reflect.DeepEqual(f.Listen, []netip.Addr{doc.Sites[0].Gateways[0].VTEP}) || len(f.Peers) != 1 {
		t.Errorf("fabric server %+v", f)
	}
	p := f.Peers[0]
	if p.Name != "gw2" || p.ASN != 65002 || p.Multihop != fabricTTL || p.LocalAddress != f.Listen[0] || !reflect.DeepEqual(p.Families, []string{EVPN}) {
		t.Errorf("fabric peer %+v", p)
	}
	other, err := Compile(doc, "gw2", HostFacts{})
	if err != nil || len(other.Fabric.Peers) != 1 {
		t.Fatalf("%v, %+v", err, other.Fabric)
	}
	if !p.Passive || other.Fabric.Peers[0].Passive {
		t.Errorf("gw1 passive %v, gw2 passive %v; the higher VTEP dials, and only it", p.Passive, other.Fabric.Peers[0].Passive)
	}
	if len(d.VRFs) != 0 || len(d.Originations) != 2 || len(d.Imports) != 2 || d.Imports[0].Multipath != 3 || d.Originations[1].RD != [8]byte{0, 1, 10, 0, 0, 1, 0, 201} {
		t.Errorf("%+v", d)
	}
	doc.Sites[0].Gateways[0].Drained = true
	if d := mustCompile(t, doc, HostFacts{}); len(d.Originations) != 0 || len(d.Imports) != 2 {
		t.Errorf("drained: %+v", d)
	}
}

// Gateways behind a hub are peers like any other: sessions are between VTEPs, and the hub does not take part.
func TestCompileFabricAcrossHub(t *testing.T) {
	doc := compileDocument()
	for i, name := range []string{"hub", "far"} {
		doc.Sites = append(doc.Sites, config.Site{Name: "at-" + name, Gateways: []config.Gateway{{
			Name: name, ASN: 65003 + uint32(i), VTEP: netip.AddrFrom4([4]byte{127, 1, 0, byte(3 + i)}), RouterID: netip.AddrFrom4([4]byte{10, 0, 0, byte(3 + i)}),
		}}})
	}
	doc.Links = config.Links{Mesh: "hub", Hubs: []string{"hub"}, Tunnels: []config.Tunnel{{Kind: "wireguard"}}}
	var got []string
	for _, p := range mustCompile(t, doc, HostFacts{}).Fabric.Peers {
		got = append(got, p.Name)
		if p.Multihop != fabricTTL || p.LocalAddress != doc.Sites[0].Gateways[0].VTEP || !reflect.DeepEqual(p.Families, []string{EVPN}) || p.Passive != doc.Sites[0].Gateways[0].VTEP.Less(p.Address) {
			t.Errorf("peer %+v", p)
		}
	}
	if want := []string{"far", "gw2", "hub"}; !reflect.DeepEqual(got, want) {
		t.Errorf("peers are %v, want %v", got, want)
	}
	doc.Links.Hubs = nil
	if peers := mustCompile(t, doc, HostFacts{}).Fabric.Peers; len(peers) != 0 {
		t.Errorf("without hubs there are peers %+v", peers)
	}
}

func TestCompilePeers(t *testing.T) {
	doc := compileDocument()
	gv := &doc.Sites[0].Gateways[0].VRFs[0]
	direct := thirdParty("direct", "172.20.0.1")
	direct.Families = []string{IPv4, IPv6}
	ll := thirdParty("ll", "fe80::1")
	ll.Interface, ll.Families = "eth1", []string{IPv4, IPv6}
	far := thirdParty("far", "192.0.2.1")
	far.Multihop, far.UpdateSource = 4, netip.MustParseAddr("172.20.0.9")
	six := thirdParty("six", "2001:db8:20::1")
	six.Families, six.ExtendedNextHop = []string{IPv4, IPv6}, true
	gv.Peers = []config.Peer{direct, ll, far, six}

	// A link-local address is none to listen on.
	gv.Interfaces[0].Addresses = append(gv.Interfaces[0].Addresses, prefix("fe80::9/10"))
	gv.Peers[1].UpdateSource = netip.MustParseAddr("fe80::9")
	s := mustCompile(t, doc, HostFacts{}).VRFs[0]
	if s.BindDevice != "" || !reflect.DeepEqual(s.Listen, []netip.Addr{netip.MustParseAddr("172.20.0.9"), netip.MustParseAddr("2001:db8:20::9")}) {
		t.Errorf("rules mode listens on %v of %q", s.Listen, s.BindDevice)
	}
	for i, want := range []struct{ local, device, nh4, nh6, neighbour string }{
		{"172.20.0.9", "eth1", "invalid IP", "2001:db8:20::9", "172.20.0.1"},
		{"fe80::9", "eth1", "172.20.0.9", "2001:db8:20::9", "fe80::1%eth1"},
		{"172.20.0.9", "", "invalid IP", "invalid IP", "192.0.2.1"},
		{"2001:db8:20::9", "eth1", "invalid IP", "invalid IP", "2001:db8:20::1"}, // its own address is the next hop of both families (RFC 8950)
	} {
		p := &s.Peers[i]
		got := struct{ local, device, nh4, nh6, neighbour string }{p.LocalAddress.String(), p.BindDevice, p.NextHop4.String(), p.NextHop6.String(), p.neighbour().String()}
		if got != want {
			t.Errorf("%s: %+v, want %+v", p.Name, got, want)
		}
	}
	s = mustCompile(t, doc, HostFacts{VRFDevices: map[string]string{"CORE": "vrf-core"}}).VRFs[0]
	if s.BindDevice != "vrf-core" || len(s.Listen) != 0 || s.Peers[0].BindDevice != "vrf-core" || s.Peers[2].BindDevice != "vrf-core" {
		t.Errorf("device mode: %+v", s)
	}
}

// Two VRFs with the same address: each on a device of its own is fine, anything else is an error that names both.
func TestCompileSharedAddress(t *testing.T) {
	doc := compileDocument()
	vrfs := doc.Sites[0].Gateways[0].VRFs
	vrfs[0].Peers = []config.Peer{thirdParty("a", "172.20.0.1")}
	vrfs[1].Peers = []config.Peer{thirdParty("b", "172.20.0.1")}
	d := mustCompile(t, doc, HostFacts{})
	if d.VRFs[0].BindDevice != "eth1" || d.VRFs[1].BindDevice != "eth2" {
		t.Errorf("bound to %q and %q", d.VRFs[0].BindDevice, d.VRFs[1].BindDevice)
	}
	far := thirdParty("far", "192.0.2.1")
	far.Multihop, far.UpdateSource = 4, netip.MustParseAddr("172.20.0.9")
	vrfs[1].Peers = append(vrfs[1].Peers, far)
	_, err := Compile(doc, "gw1", HostFacts{})
	if err == nil || !strings.Contains(err.Error(), "CORE and OPS") || !strings.Contains(err.Error(), "172.20.0.9") {
		t.Errorf("shared address without a device of its own: %v", err)
	}
	// An address that no session uses is not worth an error.
	vrfs[1].Interfaces = append(vrfs[1].Interfaces, config.Interface{Name: "eth3", Addresses: []netip.Prefix{prefix("10.3.0.1/24")}})
	vrfs[1].Peers = []config.Peer{thirdParty("b", "10.3.0.2"), func() config.Peer { p := far; p.UpdateSource = netip.MustParseAddr("10.3.0.1"); return p }()}
	d = mustCompile(t, doc, HostFacts{})
	if d.VRFs[1].BindDevice != "" || !reflect.DeepEqual(d.VRFs[1].Listen, []netip.Addr{netip.MustParseAddr("10.3.0.1")}) {
		t.Errorf("OPS listens on %v of %q", d.VRFs[1].Listen, d.VRFs[1].BindDevice)
	}
}

func TestCompileErrors(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*config.Document)
		want []string
	}{
		"unknown gateway": {func(d *config.Document) { d.Sites[0].Gateways[0].Name = "other" }, []string{`"gw1" is not in the document`}},
		"same RD":         {func(d *config.Document) { d.VRFs[1].Table = 200 + 1<<16 }, []string{"CORE and OPS", "low 16 bits"}},
		"no router id": {func(d *config.Document) {
			d.Sites[0].Gateways[0].VTEP, d.Sites[0].Gateways[0].RouterID = netip.MustParseAddr("2001:db8::1"), netip.Addr{}
		}, []string{"router-id"}},
		"all at once": {func(d *config.Document) {
			p := thirdParty("p", "172.20.0.1")
			p.Import = "NOWHERE"
			q := thirdParty("q", "172.20.0.1")
			r := thirdParty("r", "10.9.9.9")
			r.Families = []string{IPv6}
			d.Sites[0].Gateways[0].VRFs[1].Peers = []config.Peer{p, q, r}
			d.VRFs[0].ImportRT = []string{"x"}
		}, []string{"NOWHERE", "p and q have the same address", "r carries ipv6", `"x"`}},
		"no address": {func(d *config.Document) {
			p := thirdParty("p", "192.0.2.1")
			p.Multihop = 3
			d.Sites[0].Gateways[0].VRFs[1].Interfaces = nil
			d.Sites[0].Gateways[0].VRFs[1].Peers = []config.Peer{p}
		}, []string{"OPS", "update-source"}},
	} {
		t.Run(name, func(t *testing.T) {
			doc := compileDocument()
			c.edit(doc)
			_, err := Compile(doc, "gw1", HostFacts{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in: %v", w, err)
				}
			}
		})
	}
}
