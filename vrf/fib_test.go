package vrf_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
	"fabric/internal/reconcile"
	"fabric/overlay"
	"fabric/vrf"
)

// member is a VRF in table 200 with two networks, one of them within the other, and a loopback.
func member() *vrf.Member {
	prefix := netip.MustParsePrefix
	return &vrf.Member{
		Name: "A", Table: 200, VNI: 1000, VXLAN: "fxv1000", Interfaces: []string{"eth1", "eth2"},
		Source4: netip.MustParseAddr("10.1.0.1"), Source6: netip.MustParseAddr("fd00:1::1"),
		Connected: []vrf.Connected{
			{Prefix: prefix("10.1.0.0/16"), Device: "eth1"}, {Prefix: prefix("10.1.2.0/24"), Device: "eth2"},
			{Prefix: prefix("fd00:1::/64"), Device: "eth1"}, {Prefix: prefix("10.5.0.1/32"), Device: "eth1"},
			{Prefix: prefix("10.9.0.1/32")}, {Prefix: prefix("169.254.1.0/30"), Device: "eth4"},
		},
		RouterMACs: map[netip.Addr][6]byte{netip.MustParseAddr("10.255.0.4"): {0x0e, 0, 0x5e, 0x10, 0, 1}},
	}
}

// choice is a route as the rib chose it: "KIND PREFIX [via NEXTHOP] [dev DEVICE] [vni VNI] [mac MAC]"; the router MAC is the one derived from the
// next hop unless it says another.
func choice(t *testing.T, text string) rib.Choice {
	t.Helper()
	f := strings.Fields(text)
	kinds := map[string]rib.SourceKind{"connected": rib.Connected, "static": rib.Static, "peer": rib.Peer, "fabric": rib.Fabric}
	prefix := netip.MustParsePrefix(f[1])
	p := rib.Path{Key: rib.PathKey{Source: rib.Source{Kind: kinds[f[0]], VRF: "A", Name: "far"}, Prefix: prefix}}
	for i := 2; i+1 < len(f); i += 2 {
		switch f[i] {
		case "via":
			p.Attrs.NextHop = netip.MustParseAddr(f[i+1])
			if f[0] == "fabric" {
				p.Attrs.RouterMAC = overlay.RouterMAC(p.Attrs.NextHop)
			}
		case "dev":
			p.Interface = f[i+1]
		case "mac":
			mac, err := net.ParseMAC(f[i+1])
			if err != nil {
				t.Fatal(err)
			}
			p.Attrs.RouterMAC = [6]byte(mac)
		case "vni":
			if _, err := fmt.Sscan(f[i+1], &p.Attrs.VNI); err != nil {
				t.Fatal(err)
			}
		}
	}
	return rib.Choice{Key: rib.Key{VRF: "A", Prefix: prefix}, Best: &p}
}

// table resolves by a rib that has the paths given.
func table(t *testing.T, texts ...string) vrf.Resolver {
	target := rib.RT{0, 2, 0, 1, 0, 0, 0, 1}
	r := rib.NewTable()
	r.SetVRFs([]rib.VRF{{Name: "A", Import: []rib.RT{target}, Resolve: true, Networks: member().Networks()}})
	for _, s := range texts {
		p := *choice(t, s).Best
		if p.Key.Source.Kind == rib.Fabric {
			p.Key.Source.VRF, p.Attrs.RTs = "", []rib.RT{target}
		}
		r.Update(p)
	}
	return r.Resolve
}

func TestRoute(t *testing.T) {
	vtep := netip.MustParseAddr("10.255.0.2")
	nhid := fmt.Sprintf("nhid %d", overlay.NextHopID(1000, vtep))
	for _, c := range []struct {
		name   string
		choice string
		others []string
		want   string // "" is no route, "error: ..." an error with that text
	}{
		{name: "fabric", choice: "fabric 172.20.0.0/16 via 10.255.0.2 vni 1000", want: nhid + " src 10.1.0.1 proto 201"},
		{name: "fabric, IPv6", choice: "fabric fd00:20::/48 via 10.255.0.2 vni 1000", want: nhid + " src fd00:1::1 proto 201"},
		{name: "fabric, default route", choice: "fabric 0.0.0.0/0 via 10.255.0.2 vni 1000", want: nhid + " src 10.1.0.1 proto 201"},
		{name: "fabric, another VNI", choice: "fabric 172.20.0.0/16 via 10.255.0.2 vni 1001",
			want: "error: 172.20.0.0/16 from far carries VNI 1001, but VRF A has VNI 1000: check that both gateways run the same document"},
		{name: "fabric, the router MAC of the document", choice: "fabric 172.20.0.0/16 via 10.255.0.4 vni 1000 mac 0e:00:5e:10:00:01",
			want: fmt.Sprintf("nhid %d src 10.1.0.1 proto 201", overlay.NextHopID(1000, netip.MustParseAddr("10.255.0.4")))},
		{name: "fabric, another router MAC", choice: "fabric 172.20.0.0/16 via 10.255.0.4 vni 1000 mac 0e:00:5e:10:00:02",
			want: "error: 172.20.0.0/16 from far carries router MAC 0e:00:5e:10:00:02, but the document has 0e:00:5e:10:00:01 for 10.255.0.4: a router of another make needs its router-mac there"},
		{name: "connected", choice: "connected 10.1.0.0/16 dev eth1", want: ""},
		{name: "loopback", choice: "connected 10.9.0.1/32", want: ""},
		{name: "static that is only announced", choice: "static 172.20.0.0/16", want: ""},
		{name: "static on a connected network", choice: "static 172.20.0.0/16 via 10.1.0.9", want: "via 10.1.0.9 dev eth1 proto 201"},
		{name: "static with its device", choice: "static 172.20.0.0/16 via 10.1.0.9 dev eth1", want: "via 10.1.0.9 dev eth1 proto 201"},
		{name: "static off the network, with its device", choice: "static 10.7.0.1/32 via 10.7.0.1 dev eth1", want: "via 10.7.0.1 dev eth1 onlink proto 201"},
		{name: "connected, but to another device", choice: "static 10.7.0.1/32 via 10.1.2.9 dev eth3", want: "via 10.1.2.9 dev eth3 onlink src 10.1.0.1 proto 201"},
		{name: "IPv4 link-local is on no network by itself", choice: "static 10.7.0.0/16 via 169.254.0.1 dev eth1", want: "via 169.254.0.1 dev eth1 onlink proto 201"},
		{name: "IPv4 over an IPv6 next hop", choice: "peer 172.20.0.0/16 via fe80::9 dev eth1", want: "via fe80::9 dev eth1 proto 201"},
		{name: "peer", choice: "peer 172.20.0.0/16 via 10.1.0.9", want: "via 10.1.0.9 dev eth1 proto 201"},
		{name: "peer on a device with a link-local address alone", choice: "peer 172.20.0.0/16 via 169.254.1.2", want: "via 169.254.1.2 dev eth4 src 10.1.0.1 proto 201"},
		{name: "peer, IPv6", choice: "peer fd00:20::/48 via fd00:1::9", want: "via fd00:1::9 dev eth1 proto 201"},
		{name: "peer, link-local with device", choice: "peer fd00:20::/48 via fe80::9 dev eth2", want: "via fe80::9 dev eth2 src fd00:1::1 proto 201"},
		{name: "peer, link-local with zone", choice: "peer fd00:20::/48 via fe80::9%eth2", want: "via fe80::9 dev eth2 src fd00:1::1 proto 201"},
		{name: "peer, link-local with both", choice: "peer fd00:20::/48 via fe80::9%eth2 dev eth2", want: "via fe80::9 dev eth2 src fd00:1::1 proto 201"},
		{name: "peer, link-local on no device", choice: "peer fd00:20::/48 via fe80::9", want: "error: fd00:20::/48: no route to next hop fe80::9 in VRF A"},
		{name: "the longer of two networks", choice: "peer 172.20.0.0/16 via 10.1.2.9", want: "via 10.1.2.9 dev eth2 proto 201"},
		{name: "no route to the next hop", choice: "peer 172.20.0.0/16 via 10.7.0.1", want: "error: 172.20.0.0/16: no route to next hop 10.7.0.1 in VRF A"},
		{name: "a single address is no network", choice: "peer 172.20.0.0/16 via 10.5.0.1", want: "error: 172.20.0.0/16: no route to next hop 10.5.0.1 in VRF A"},
		{name: "peer's loopback by a static host route (X7)", choice: "peer 172.20.0.0/16 via 10.7.0.1", others: []string{"static 10.7.0.1/32 via 10.1.0.9 dev eth1"},
			want: "via 10.1.0.9 dev eth1 proto 201"},
		{name: "peer's loopback on the link itself (X7)", choice: "peer 172.20.0.0/16 via 10.7.0.1", others: []string{"static 10.7.0.1/32 via 10.7.0.1 dev eth1"},
			want: "via 10.7.0.1 dev eth1 onlink proto 201"},
		{name: "peer's loopback by a link-local next hop", choice: "peer fd00:20::/48 via fd00:7::1", others: []string{"peer fd00:7::1/128 via fe80::9%eth2"},
			want: "via fe80::9 dev eth2 src fd00:1::1 proto 201"},
		{name: "through two routes", choice: "peer 172.20.0.0/16 via 10.7.0.1", others: []string{"peer 10.7.0.0/16 via 10.8.0.1", "static 10.8.0.0/16 via 10.1.2.9"},
			want: "via 10.1.2.9 dev eth2 proto 201"},
		{name: "behind another gateway", choice: "static 172.20.0.0/16 via 10.7.0.1", others: []string{"fabric 10.7.0.0/16 via 10.255.0.2 vni 1000"},
			want: "error: 172.20.0.0/16: next hop 10.7.0.1 in VRF A lies behind another gateway (far)"},
		{name: "our own loopback", choice: "static 172.20.0.0/16 via 10.9.0.1", others: []string{"connected 10.9.0.1/32"},
			want: "error: 172.20.0.0/16: next hop 10.9.0.1 in VRF A is covered by 10.9.0.1/32, which leads to no interface"},
		{name: "through itself", choice: "peer 10.7.0.0/16 via 10.7.0.1", others: []string{"peer 10.7.0.0/16 via 10.7.0.1"},
			want: "error: 10.7.0.0/16: next hop 10.7.0.1 in VRF A is only reached by routes that lead back to it"},
		{name: "through itself, and a shorter one", choice: "peer 10.7.0.0/16 via 10.7.0.1", others: []string{"peer 10.7.0.0/16 via 10.7.0.1", "static 10.0.0.0/8 via 10.1.2.9"},
			want: "via 10.1.2.9 dev eth2 proto 201"},
		{name: "in a circle", choice: "peer 172.20.0.0/16 via 10.7.0.1", others: []string{"peer 10.7.0.0/16 via 10.8.0.1", "peer 10.8.0.0/16 via 10.7.0.1"},
			want: "error: 172.20.0.0/16: next hop 10.7.0.1 in VRF A is only reached by routes that lead back to it"},
		{name: "in a circle, and a shorter one", choice: "peer 172.20.0.0/16 via 10.7.0.1",
			others: []string{"peer 10.7.0.0/16 via 10.8.0.1", "peer 10.8.0.0/16 via 10.7.0.1", "static 10.0.0.0/9 via 10.1.2.9"}, want: "via 10.1.2.9 dev eth2 proto 201"},
		{name: "a route that leads nowhere, and a shorter one", choice: "peer 172.20.0.0/16 via 10.7.0.1",
			others: []string{"static 10.7.0.0/16 via 172.30.0.1", "static 10.0.0.0/9 via 10.1.2.9"}, want: "via 10.1.2.9 dev eth2 proto 201"},
		{name: "a prefix that is only announced, and a shorter one", choice: "peer 172.20.0.0/16 via 10.7.0.1",
			others: []string{"static 10.7.0.0/16", "static 10.0.0.0/9 via 10.1.2.9"}, want: "via 10.1.2.9 dev eth2 proto 201"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := choice(t, c.choice)
			key, r, ok, err := member().Route(ch, table(t, c.others...))
			got := ""
			switch {
			case err != nil:
				got = "error: " + err.Error()
			case ok:
				got = r.String()
			}
			if got != c.want || ok && err != nil {
				t.Errorf("%q, want %q", got, c.want)
			}
			if want := (kernel.RouteKey{Table: 200, Prefix: ch.Key.Prefix, Metric: kernel.Metric}); key != want {
				t.Errorf("key is %s, want %s", key, want)
			}
		})
	}
}

// TestAbsentInterface: an interface of the VRF that is not there costs the routes through it and no others.
func TestAbsentInterface(t *testing.T) {
	h := compile(t, v4(`[{vrf: A, loopbacks: [10.9.0.1/32, "fd00:9::1/128"], interfaces: [
            {name: absent, addresses: [10.1.0.1/24, "fd00:1::1/64"]}, {name: eth2, addresses: [10.2.0.1/24, "fd00:2::1/64"]}]}]`), vrf.Rules)
	k := kerneltest.New()
	if err := k.AddDevice("eth2"); err != nil {
		t.Fatal(err)
	}
	for key, a := range h.Addresses {
		err := k.Addresses(kernel.Protocol).Apply(t.Context(), []reconcile.Op[kernel.AddressKey, kernel.Address]{{Kind: reconcile.Create, Key: key, New: a}})[0]
		if (err != nil) != (key.Device == "absent") {
			t.Fatalf("%s: %v", key, err)
		}
	}
	routes := func(key kernel.RouteKey, r kernel.Route) error {
		return k.Routes(kernel.Protocol).Apply(t.Context(), []reconcile.Op[kernel.RouteKey, kernel.Route]{{Kind: reconcile.Create, Key: key, New: r}})[0]
	}
	for _, key := range reconcile.Keys(h.Routes) {
		if err := routes(key, h.Routes[key]); (err != nil) != (h.Routes[key].Device == "absent") {
			t.Errorf("%s %s: %v", key, h.Routes[key], err)
		}
	}
	vtep := netip.MustParseAddr("10.255.0.2")
	err := k.NextHops(kernel.ProtocolLinks).Apply(t.Context(), []reconcile.Op[uint32, kernel.NextHop]{
		{Kind: reconcile.Create, Key: overlay.NextHopID(1000, vtep), New: kernel.NextHop{Device: "eth2", Gateway: overlay.VTEPGateway(vtep), OnLink: true}}})[0]
	if err != nil {
		t.Fatal(err)
	}
	for text, taken := range map[string]bool{
		"fabric 172.20.0.0/16 via 10.255.0.2 vni 1000": true, "fabric fd00:20::/48 via 10.255.0.2 vni 1000": true,
		"peer 172.21.0.0/16 via 10.2.0.9": true, "peer fd00:21::/48 via fd00:2::9": true,
		"static 172.22.0.0/16 via 10.7.0.1 dev eth2": true, "static fd00:22::/48 via fd00:2::9": true,
		"peer 172.23.0.0/16 via 10.1.0.9": false, "static fd00:23::/48 via fd00:1::9": false,
	} {
		key, r, ok, err := h.VRFs[0].Route(choice(t, text), table(t))
		if !ok || err != nil {
			t.Errorf("%s: %t, %v", text, ok, err)
		}
		if err := routes(key, r); (err == nil) != taken {
			t.Errorf("%s: %s: %v, want it taken: %t", text, r, err, taken)
		}
	}
}

func TestRouteOfNothing(t *testing.T) {
	key, _, ok, err := member().Route(rib.Choice{Key: rib.Key{VRF: "A", Prefix: netip.MustParsePrefix("10.0.0.0/8")}}, nil)
	if ok || err != nil || key.String() != "10.0.0.0/8 table 200 metric 201" {
		t.Errorf("a choice without a path: %s, %t, %v", key, ok, err)
	}
	_, _, ok, err = member().Route(choice(t, "peer 172.20.0.0/16 via 10.7.0.1"), nil)
	if ok || err == nil || !strings.HasSuffix(err.Error(), "is not on a connected network") {
		t.Errorf("without a rib: %t, %v", ok, err)
	}
}

// TestPaths: what the gateway brings in itself.
func TestPaths(t *testing.T) {
	const attached = `[{vrf: A,
            interfaces: [{name: eth1, addresses: [10.1.0.1/24, 10.1.0.2/24, 10.2.0.1/24, "fe80::1/64"]}],
            loopbacks: [10.9.0.1/32, 10.9.0.2/32],
            prefixes: [
              {prefix: 10.1.0.0/24, communities: ["64512:7", "64512:5", "64512:7"]},
              {prefix: 10.9.0.2/32, announce: false},
              {prefix: 172.20.0.0/16, next-hop: 10.1.0.9, interface: eth1, shared: true},
              {prefix: 172.21.0.0/16, next-hop: 10.1.0.9, announce: false},
              {prefix: 172.22.0.0/16}]}]`
	list := func(drained bool) (lines []string) {
		doc := parse(t, v4(attached))
		h, err := vrf.Compile(doc, "gw", kernel.Features{})
		if err != nil {
			t.Fatal(err)
		}
		gw := &doc.Sites[0].Gateways[0]
		gw.Drained = drained
		for _, p := range h.VRFs[0].Paths(gw) {
			if p.Key.Source.VRF != "A" || p.Attrs.LocalPref != 100 {
				t.Errorf("%+v", p)
			}
			s := fmt.Sprintf("%s %s", p.Key.Source.Kind, p.Key.Prefix)
			if p.Attrs.NextHop.IsValid() {
				s += " via " + p.Attrs.NextHop.String()
			}
			if p.Interface != "" {
				s += " dev " + p.Interface
			}
			for _, c := range p.Attrs.Communities {
				s += fmt.Sprintf(" %d:%d", c>>16, c&0xffff)
			}
			if p.LocalOnly {
				s += " local"
			}
			lines = append(lines, s)
		}
		return lines
	}
	want := []string{
		"connected 10.9.0.1/32",
		"connected 10.9.0.2/32 local",
		// Connected beats static, so it carries what the prefix says.
		"connected 10.1.0.0/24 dev eth1 64512:5 64512:7",
		"connected 10.2.0.0/24 dev eth1 local",
		"static 10.1.0.0/24 64512:5 64512:7",
		"static 10.9.0.2/32 local",
		"static 172.20.0.0/16 via 10.1.0.9 dev eth1",
		"static 172.21.0.0/16 via 10.1.0.9 local",
		"static 172.22.0.0/16",
	}
	if got := list(false); !slices.Equal(got, want) {
		t.Errorf("paths are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i, s := range list(true) {
		if s != strings.TrimSuffix(want[i], " local")+" local" {
			t.Errorf("drained: %s, want it local", s)
		}
	}
	if ps := (&vrf.Member{Name: "B"}).Paths(&config.Gateway{}); ps != nil {
		t.Errorf("a VRF without anything has %v", ps)
	}
}
