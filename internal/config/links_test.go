package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
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
			ordinal := map[string]int{"sz-1-gw": 0, "hk-1-gw": 1, "gz-1-gw": 2} // as in the document, whoever is linked
			for _, l := range links {
				if l.Index != ordinal[l.Remote.Name] || l.RemoteIndex != ordinal[c.gateway] {
					t.Errorf("link with %s has indices %d and %d", l.Remote.Name, l.Index, l.RemoteIndex)
				}
				back := c.doc.Neighbours(l.Remote.Name)
				i := slices.IndexFunc(back, func(b Link) bool { return b.Remote.Name == c.gateway })
				if i < 0 || back[i].Index != l.RemoteIndex || back[i].RemoteIndex != l.Index {
					t.Fatalf("%s sees other indices: %+v", l.Remote.Name, back)
				}
				if !reflect.DeepEqual(back[i].Tunnels, l.Tunnels) {
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

// Gateways of one site count one by one, also those nobody is linked with.
func TestOrdinals(t *testing.T) {
	d := &Document{Sites: []Site{
		{Name: "a", Gateways: []Gateway{{Name: "a2"}, {Name: "a1"}}},
		{Name: "alone", Gateways: []Gateway{{Name: "x"}, {Name: "y"}}},
		{Name: "b", Gateways: []Gateway{{Name: "b1"}}},
	}, Links: Links{Mesh: "communities", Communities: []Community{{Name: "c", Sites: []string{"a", "b"}}}, Tunnels: []Tunnel{{Kind: "wireguard"}}}}
	cases := []struct{ gateway, want string }{
		{"a2", "a1:1/0 b1:4/0"}, {"a1", "a2:0/1 b1:4/1"}, {"b1", "a1:1/4 a2:0/4"}, {"x", ""},
	}
	for _, c := range cases {
		var got []string
		for _, l := range d.Neighbours(c.gateway) {
			got = append(got, fmt.Sprintf("%s:%d/%d", l.Remote.Name, l.Index, l.RemoteIndex))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s has %q, want %q", c.gateway, s, c.want)
		}
	}
}

func TestPortStride(t *testing.T) {
	for gateways, want := range map[int]int{1: 64, 3: 64, 64: 64, 65: 128, 128: 128, 129: 192} {
		d := &Document{Sites: []Site{{Gateways: make([]Gateway, gateways/2)}, {Gateways: make([]Gateway, gateways-gateways/2)}}}
		if got := d.PortStride(); got != want {
			t.Errorf("%d gateways: stride %d, want %d", gateways, got, want)
		}
	}
}

func TestEndpointOfRank(t *testing.T) {
	g := &Gateway{Endpoints: []Endpoint{{PublicPort: 1}, {PublicPort: 2}}}
	for rank, want := range []int{0, 1, 0, 0} {
		if e, ok := g.Endpoint(rank); !ok || e != &g.Endpoints[want] {
			t.Errorf("rank %d dials %+v", rank, e)
		}
	}
	if e, ok := (&Gateway{}).Endpoint(0); ok || e != nil {
		t.Errorf("dials %+v, which is not there", e)
	}
}

// The ports of the example's gateways, relative to their first one, are sz-1-gw 1 and 2, hk-1-gw 0 and 2, gz-1-gw 0 and 1; a
// second tunnel for each link takes the same ones 64 further.
func TestPorts(t *testing.T) {
	const sz, hk, gz = "          - address: 203.0.113.1\n            public-port: 51900\n", "endpoints: [{address: 203.0.113.2}]", "vtep: 10.255.0.3"
	const two = "links:\n  tunnels: [{kind: wireguard}, {kind: wireguard}]\n"
	const pairs = "  pairs:\n    - between: [sz-1-gw, hk-1-gw]\n      tunnels: [{kind: wireguard, underlay-mtu: 1450}]\n"
	shared := func(port int) string {
		return fmt.Sprintf("endpoints: [{address: 203.0.113.1, public-port: %d}]", port)
	}
	base := func(port int) string { return fmt.Sprintf("name: demo\n  wireguard-port: %d", port) }
	cases := []struct {
		name   string
		change []string // old and new, in turn
		want   string   // in the error; none if empty
	}{
		{"last port", []string{"name: demo", base(65533)}, ""},
		{"beyond the last port", []string{"name: demo", base(65534)}, `wireguard-port: 65534 leaves no room for the tunnels of gateway "sz-1-gw", the last of which is 2 above it; write 65533 or less`},
		{"last port of two ranks", []string{pairs, "", "links:\n", two, "name: demo", base(65469)}, ""},
		{"beyond the last port of two ranks", []string{pairs, "", "links:\n", two, "name: demo", base(65470)}, `the last of which is 66 above it; write 65469 or less`},
		{"more tunnels than ports", []string{"public-port: 51900", "public-port: 0", "links:\n", "links:\n  tunnels: [" + strings.Repeat("{kind: wireguard},", 1025) + "]\n"}, `have fewer tunnels for each link`},
		{"last public port", []string{"public-port: 51900", "public-port: 65533"}, ""},
		{"beyond the last public port", []string{"public-port: 51900", "public-port: 65534"}, `public-port: 65534 leaves no room for the tunnels of gateway "sz-1-gw", the last of which is 2 above it; write 65533 or less`},
		{"own place is free", []string{"name: demo", base(51820), "public-port: 51900", "public-port: 4789"}, ""},
		{"VXLAN port dialled", []string{"public-port: 51900", "public-port: 4788"}, `public-port: gateway "hk-1-gw" would dial the VXLAN port 4789; choose another`},
		{"VXLAN port", []string{"name: demo", base(4787)}, `a tunnel from "sz-1-gw" to "gz-1-gw" would listen on the VXLAN port 4789; move one of them`},
		{"VXLAN port behind the last", []string{"name: demo", base(4786)}, ""},
		{"VXLAN port between the ranks", []string{pairs, "", "links:\n", two, "name: demo", base(4786)}, ""},
		{"VXLAN port of the second rank", []string{pairs, "", "links:\n", two, "name: demo", base(4725)}, `a tunnel from "hk-1-gw" to "sz-1-gw" would listen on the VXLAN port 4789`},
		{"one address", []string{hk, shared(51902)}, `address: duplicate endpoint: port 51902 of 203.0.113.1, which gateway "sz-1-gw" would dial, is taken by gateway "sz-1-gw"`},
		{"one address, ports apart", []string{hk, shared(51903)}, ""},
		{"one address, last port met", []string{hk, shared(51899)}, `port 51901 of 203.0.113.1, which gateway "gz-1-gw" would dial, is taken by gateway "sz-1-gw"`},
		{"one address, free place between", []string{hk, shared(51898)}, ""},
		// Taken: 51901, 51902, 51966.
		{"one address, between the ranks", []string{pairs, strings.Replace(pairs, "sz-1", "gz-1", 1), "links:\n", two, hk, shared(51903)}, ""},
		{"one address, second rank met", []string{pairs, "", "links:\n", two, hk, shared(51964)}, `port 51966 of 203.0.113.1, which gateway "gz-1-gw" would dial, is taken`},
		{"address given twice", []string{sz, sz + sz}, `address: duplicate endpoint: 203.0.113.1 is listed twice at gateway "sz-1-gw"; keep one of them`},
		{"backup on a port of its own", []string{pairs, "", "links:\n", two, sz, sz + strings.Replace(sz, "51900", "52000", 1)}, ""},
		// hk-1-gw is dialled at 203.0.113.1 by rank 1 only.
		{"other rank on the address", []string{pairs, "", "links:\n", two, hk, "endpoints: [{address: 203.0.113.2}, {address: 203.0.113.1, public-port: 51900}]"}, `port 51966 of 203.0.113.1`},
		{"rank that nobody has", []string{hk, "endpoints: [{address: 203.0.113.2}, {address: 203.0.113.1, public-port: 51900}]"}, ""},
		{"third gateway", []string{gz, gz + "\n        " + shared(51902)}, `port 51902 of 203.0.113.1, which gateway "sz-1-gw" would dial, is taken by gateway "sz-1-gw"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			text := example(t)
			for i := 0; i < len(c.change); i += 2 {
				text = replace(t, text, c.change[i], c.change[i+1])
			}
			_, err := Parse("f.yaml", []byte(text))
			if c.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

// What must be accepted though it looks like something that is refused.
func TestAccepted(t *testing.T) {
	cases := []struct{ name, old, new string }{
		{"shared by two sites", "              - prefix: 172.18.0.0/16\n                next-hop: 172.18.171.253\n                interface: eth0",
			"              - {prefix: 172.18.0.0/16, shared: true}\n              - {prefix: 172.20.0.0/16, announce: false}"},
		{"private endpoint in its site's prefix", "203.0.113.2", "172.31.185.158"},
		{"two gateways behind one address", "{address: 203.0.113.2}", "{address: 203.0.113.1, public-port: 51903}"},
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
