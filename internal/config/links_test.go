package config

import (
	"reflect"
	"testing"
)

// names lists the remote gateways of links.
func names(links []Link) []string {
	var list []string
	for _, l := range links {
		list = append(list, l.Remote.Name)
	}
	return list
}

func TestNeighbours(t *testing.T) {
	d := mustParse(t, example(t))
	full := d.Clone()
	full.Links = Links{Tunnels: []Tunnel{{Kind: "wireguard"}}}
	hub := d.Clone()
	hub.Links.Communities = []Community{{Name: "a", Sites: []string{"sz-1", "hk-1"}}, {Name: "b", Sites: []string{"gz-1", "hk-1"}}}
	cut := d.Clone()
	cut.Links.Pairs = []LinkPair{{Between: []string{"hk-1-gw", "sz-1-gw"}}}
	cases := []struct {
		name, gateway string
		doc           *Document
		want          []string
	}{
		{"full", "sz-1-gw", full, []string{"gz-1-gw", "hk-1-gw"}},
		{"one community", "gz-1-gw", d, []string{"hk-1-gw", "sz-1-gw"}},
		{"hub", "hk-1-gw", hub, []string{"gz-1-gw", "sz-1-gw"}},
		{"spoke", "sz-1-gw", hub, []string{"hk-1-gw"}},
		{"pair without tunnels", "sz-1-gw", cut, []string{"gz-1-gw"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			links := c.doc.Neighbours(c.gateway)
			if got := names(links); !reflect.DeepEqual(got, c.want) {
				t.Fatalf("%s is linked with %v, not %v", c.gateway, got, c.want)
			}
			for i, l := range links {
				back := c.doc.Neighbours(l.Remote.Name)
				if l.Index != i || back[l.RemoteIndex].Remote.Name != c.gateway || back[l.RemoteIndex].RemoteIndex != i {
					t.Errorf("indices of %s do not match: %+v", l.Remote.Name, l)
				}
				if !reflect.DeepEqual(back[l.RemoteIndex].Tunnels, l.Tunnels) {
					t.Errorf("the ends of the link with %s disagree on its tunnels", l.Remote.Name)
				}
				if l.RemoteSite.Gateways[0].Name != l.Remote.Name {
					t.Errorf("site of %s is %s", l.Remote.Name, l.RemoteSite.Name)
				}
			}
		})
	}
	if l := d.Neighbours("sz-1-gw"); l[0].Tunnels[0].UnderlayMTU != 0 || l[1].Tunnels[0].UnderlayMTU != 1450 {
		t.Errorf("tunnels are %+v", l)
	}
}

// What must be accepted though it looks like something that is refused.
func TestAccepted(t *testing.T) {
	cases := []struct{ name, old, new string }{
		{"shared by two sites", "              - prefix: 172.18.0.0/16\n                next-hop: 172.18.171.253\n                interface: eth0",
			"              - {prefix: 172.18.0.0/16, shared: true}\n              - {prefix: 172.20.0.0/16, announce: false}"},
		{"private endpoint in its site's prefix", "203.0.113.2", "172.31.185.158"},
		{"two gateways behind one address", "{address: 203.0.113.2}", "{address: 203.0.113.1, public-port: 51902}"},
		{"IPv4 over an IPv6 next hop on a device", "172.18.171.253", "fe80::1"},
		{"VRF default", "vrfs:\n  - name: CORE\n    table: 200", "vrfs:\n  - {name: default, vni: 77}\n  - name: CORE\n    table: 200"},
		{"4-byte ASN", "asn: 65001", "asn: 4200000001"},
		{"no tunnels", "tunnels: [{kind: wireguard, underlay-mtu: 1450}]", "tunnels: []"},
		{"cloud endpoint by name", "127.0.0.1:8443", "vpc.example.com"},
		{"cloud endpoint by IPv6", "127.0.0.1:8443", "[::1]:8443"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { mustParse(t, replace(t, example(t), c.old, c.new)) })
	}
	t.Run("anycast loopback", func(t *testing.T) {
		const anycast = "prefixes: [{prefix: 1.1.1.1/32, shared: true}], loopbacks: [1.1.1.1/32]"
		text := replace(t, example(t), "            prefixes: [{prefix: 0.0.0.0/0, next-hop: 192.0.2.9}]", "            prefixes: [{prefix: 1.1.1.1/32, shared: true}]\n            loopbacks: [1.1.1.1/32]")
		text = replace(t, text, "links:\n", "          - {vrf: OPS, "+anycast+"}\nlinks:\n")
		mustParse(t, text)
		_, err := Parse("f.yaml", []byte(replace(t, text, anycast, "loopbacks: [1.1.1.1/32]")))
		if err == nil {
			t.Error("an anycast loopback that only one site calls shared was accepted")
		}
	})
	t.Run("community without quotes", func(t *testing.T) {
		mustParse(t, replace(t, example(t), "- prefix: 172.20.0.0/16", "- prefix: 172.20.0.0/16\n                communities:\n                  - 64512:31"))
	})
	t.Run("IPv6 VTEPs", func(t *testing.T) {
		text := replace(t, example(t), "name: demo", "name: demo\n  vtep-family: ipv6")
		for _, n := range []string{"1", "2", "3"} {
			text = replace(t, text, "vtep: 10.255.0."+n, "vtep: fd00:ffff::"+n+"\n        router-id: 10.255.0."+n)
		}
		if d := mustParse(t, text); d.Fabric.RoomForMSS() != 1310 {
			t.Errorf("room for %d", d.Fabric.RoomForMSS())
		}
	})
	t.Run("default routes", func(t *testing.T) {
		// Two sites may offer a default route only if both say so; it overlaps nothing else.
		text := replace(t, example(t), "- prefix: 172.18.171.252/30\n                announce: false", "- prefix: 0.0.0.0/0\n                shared: true")
		if _, err := Parse("f.yaml", []byte(text)); err == nil {
			t.Error("two default routes were accepted")
		}
		mustParse(t, replace(t, text, "{prefix: 0.0.0.0/0,", "{prefix: 0.0.0.0/0, shared: true,"))
	})
	t.Run("default route in the main table", func(t *testing.T) {
		text := replace(t, example(t), "vrfs:\n", "vrfs:\n  - {name: default, vni: 77, allow-default: true}\n")
		text = replace(t, text, "          - vrf: OPS\n            prefixes: [{", "          - vrf: default\n            prefixes: [{")
		if _, err := Parse("f.yaml", []byte(text)); err == nil {
			t.Error("a default route under the tunnels was accepted")
		}
	})
}
