package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// example is the text of the example document.
func example(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("testdata/three-sites.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mustParse(t testing.TB, text string) *Document {
	t.Helper()
	d, err := Parse("fabric.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// replace changes one place of the example, and fails if that place is not there.
func replace(t testing.TB, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("the example has no %q", old)
	}
	return strings.Replace(text, old, new, 1)
}

func TestParseFillsInDefaults(t *testing.T) {
	d := mustParse(t, example(t))
	wantFabric := Fabric{Name: "demo", VTEPFamily: "ipv4", UnderlayMTU: 1500, MSS: 1300, VXLANPort: 4789, WireGuardPort: 51820, DirectPort: 4790,
		BFD: BFD{Interval: Duration(300 * time.Millisecond), Multiplier: 3},
		BGP: BGPDefaults{Port: 179, Keepalive: Duration(3 * time.Second), Hold: Duration(9 * time.Second),
			ConnectRetry: Duration(5 * time.Second), RestartTime: Duration(2 * time.Minute), MaxPrefix: 10000}}
	if d.Fabric != wantFabric {
		t.Errorf("fabric is %+v", d.Fabric)
	}
	ops, _ := d.VRF("OPS")
	if want := []string{"64512:1001"}; !reflect.DeepEqual(ops.ImportRT, want) || !reflect.DeepEqual(ops.ExportRT, want) {
		t.Errorf("OPS has %v, %v", ops.ImportRT, ops.ExportRT)
	}
	core, _ := d.VRF("CORE")
	if core.ImportRT[1] != "192.0.2.1:7" || core.ExportRT[0] != "64512:1000" {
		t.Errorf("CORE has %v, %v", core.ImportRT, core.ExportRT)
	}
	s, g, ok := d.Find("sz-1-gw")
	if !ok || s.Name != "sz-1" {
		t.Fatal("sz-1-gw not found")
	}
	if s.Cloud.Quota != 200 || s.Cloud.Resync.Std() != time.Minute {
		t.Errorf("cloud is %+v", s.Cloud)
	}
	if g.RouterID != netip.MustParseAddr("10.255.0.1") || g.WireGuard.PrivateKeyFile != "/etc/fabric/keys/sz-1-gw.key" ||
		g.WireGuard.Keepalive.Std() != 5*time.Second {
		t.Errorf("gateway is %+v", g)
	}
	vrf, _ := g.VRF("OPS")
	if vrf.Multipath != 1 {
		t.Errorf("multipath is %d", vrf.Multipath)
	}
	if !vrf.Prefixes[0].Announced() || vrf.Prefixes[1].Announced() || vrf.Prefixes[0].Announce == nil {
		t.Errorf("prefixes are %+v", vrf.Prefixes)
	}
	_, g, _ = d.Find("gz-1-gw")
	first, second := g.VRFs[0].Peers[0], g.VRFs[0].Peers[1]
	if first.Keepalive.Std() != 3*time.Second || first.LocalASN != 65003 || first.Port != 179 || first.MaxPrefix != 10000 ||
		!reflect.DeepEqual(first.Families, []string{"ipv4"}) {
		t.Errorf("first peer is %+v", first)
	}
	if second.Name != "fd00:20::1" || second.Hold.Std() != 9*time.Second {
		t.Errorf("second peer is %+v", second)
	}
	if d.Policies[0].Default != "reject" || *d.Policies[0].Terms[0].Set.MED != 0 || d.Policies[0].Terms[1].Set != nil {
		t.Errorf("policy is %+v", d.Policies[0])
	}
	if !reflect.DeepEqual(d.Links.Tunnels, []Tunnel{{Kind: "wireguard"}}) {
		t.Errorf("tunnels are %v", d.Links.Tunnels)
	}
	// A short hold time pulls the keepalive interval down; a small MTU the segment size.
	d = mustParse(t, replace(t, replace(t, example(t), "hold: 30s", "hold: 4s"), "name: demo", "name: demo\n  underlay-mtu: 1420"))
	_, g, _ = d.Find("gz-1-gw")
	if k := g.VRFs[0].Peers[0].Keepalive.Std(); k != time.Second {
		t.Errorf("keepalive is %s with a hold time of 4s", k)
	}
	if d.Fabric.MSS != 1250 {
		t.Errorf("MSS is %d", d.Fabric.MSS)
	}
}

func TestFindNothing(t *testing.T) {
	d := mustParse(t, example(t))
	if _, _, ok := d.Find("nowhere"); ok {
		t.Error("found a gateway that is not there")
	}
	if _, ok := d.VRF("nowhere"); ok {
		t.Error("found a VRF that is not there")
	}
	if _, ok := d.Policy("nowhere"); ok {
		t.Error("found a policy that is not there")
	}
	if n := d.Neighbours("nowhere"); n != nil {
		t.Errorf("an unknown gateway has neighbours %v", n)
	}
}

// Each case breaks one thing in the example; the report must name exactly it, with its place.
func TestRefused(t *testing.T) {
	key := "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
	big := "sites:"
	for i := range 2100 {
		big += fmt.Sprintf("\n  - {name: s%d, gateways: []}", i)
	}
	cases := []struct {
		name, old, new string
		want           []string // regular expressions, one for each line of the error
	}{
		// Form.
		{"unknown key", "    vni: 1000", "    vnii: 1000", []string{
			`^fabric.yaml:5:5: vrfs\[0\].vni: required key is missing; add it$`,
			`^fabric.yaml:7:5: vrfs\[0\].vnii: unknown key "vnii"; known here: name, table, vni,`}},
		{"duplicate key", "    vni: 1000", "    vni: 1000\n    vni: 7", []string{`^fabric.yaml:8:5: vrfs\[0\].vni: duplicate key, first on line 7; keep one`}},
		{"text for number", "asn: 65001", "asn: core", []string{`^fabric.yaml:27:14: sites\[0\].gateways\[0\].asn: must be a whole number, not text`}},
		{"number for text", "name: demo", "name: 77", []string{`3:9: fabric.name: must be text, not a number; put it in quotes`}},
		{"list for text", "name: demo", "name: [a]", []string{`fabric.name: must be text, not a list; write one line of text, in quotes if it has a colon`}},
		{"text for bool", "allow-default: true", "allow-default: yes", []string{`vrfs\[1\].allow-default: must be true or false, not text`, `VRF does not allow`}},
		{"multipath out of range", "      - vrf: OPS\n", "      - vrf: OPS\n            multipath: 9\n", []string{`multipath: 9 is out of range; write a number from 1 to 8`}},
		{"negative multipath", "      - vrf: OPS\n", "      - vrf: OPS\n            multipath: -1\n", []string{`multipath: -1 is out of range`}},
		{"text for list", "sites: [sz-1, hk-1, gz-1]", "sites: sz-1", []string{`links.communities\[0\].sites: must be a list, not text`, `not linked`}},
		{"text for mapping", "fabric:\n  name: demo", "fabric: demo", []string{`2:9: fabric: must hold keys, not text`}},
		{"list for address", "vtep: 10.255.0.1", "vtep: [10.255.0.1]", []string{`vtep: must be an IP address, not a list`}},
		{"no value", "asn: 65001", "asn:", []string{`27:9: sites\[0\].gateways\[0\].asn: has no value`}},
		{"null in list", "communities: [\"64512:31\"]", "communities: [~]", []string{`communities\[0\]: has no value`}},
		{"hexadecimal", "table: 200", "table: 0xc8", []string{`0xc8 is not a decimal number`}},
		{"octal", "table: 200", "table: 0200", []string{`0200 is not a decimal number`}},
		{"grouped", "table: 200", "table: 2_000", []string{`2_000 is not a decimal number`}},
		{"fraction", "table: 200", "table: 200.5", []string{`must be a whole number`}},
		{"huge number", "table: 200", "table: 99999999999999999999", []string{`out of range`}},
		{"beyond 32 bits", "table: 200", "table: 4294967296", []string{`4294967296 is out of range`}},
		{"negative", "asn: 65001", "asn: -5", []string{`-5 is out of range`}},
		{"missing", "        vtep: 10.255.0.2\n", "", []string{`sites\[1\].gateways\[0\].vtep: required key is missing`}},
		{"key not text", "  name: demo", "  name: demo\n  7: x", []string{`4:3: fabric: key must be text, not a number`}},
		{"bad address", "vtep: 10.255.0.1", "vtep: 10.255.0.256", []string{`"10.255.0.256" is not an IP address; write it like`}},
		{"bad prefix", "prefix: 172.31.0.0/16", "prefix: 172.31.0.0", []string{`is not a prefix`}},
		{"bad duration", "hold: 30s", "hold: 30", []string{`peers\[0\].hold: "30" is not a duration; write it like 300ms`}},
		{"bad listen address", "metrics: 127.0.0.1:9100", "metrics: 127.0.0.1", []string{`is not an address with a port`}},
		// Whole document.
		{"no VRFs", "vrfs:", "vrfs: []\nlist:", []string{`vrfs: has no VRF`, `unknown key "list"`, `unknown VRF "CORE"; there are: none`, `unknown VRF`, `unknown VRF`, `unknown VRF`, `unknown VRF`, `unknown VRF`}},
		{"too many", "sites:", big + "\nrest:", []string{`sites: 2100 are more than 2048`, `unknown key "rest"`}},
		// Fabric.
		{"bad fabric name", "name: demo", "name: De mo", []string{`3:9: fabric.name: "De mo" is not a valid name; use 1 to 32 of`}},
		{"bad family", "name: demo", "name: demo\n  vtep-family: ipx", []string{`"ipx" is not known; write ipv4 or ipv6`,
			`VTEP`, `VTEP`, `VTEP`}},
		{"router MAC of many", "vtep: 10.255.0.2", "vtep: 10.255.0.2\n        router-mac: 01:00:5e:00:00:01", []string{`^fabric.yaml:\d+:21: sites\[1\].gateways\[0\].router-mac: "01:00:5e:00:00:01" is not the hardware address of one host; write six octets`}},
		{"router MAC of none", "vtep: 10.255.0.2", "vtep: 10.255.0.2\n        router-mac: 00:00:00:00:00:00", []string{`"00:00:00:00:00:00" is not the hardware address of one host`}},
		{"router MAC too long", "vtep: 10.255.0.2", "vtep: 10.255.0.2\n        router-mac: 02:00:5e:10:00:00:00:01", []string{`is not the hardware address of one host`}},
		{"VTEP family mismatch", "vtep: 10.255.0.2", "vtep: fd00::2\n        router-id: 10.0.0.2", []string{`VTEP fd00::2 is not ipv4; use an ipv4 address, or change fabric.vtep-family`}},
		{"small MTU", "name: demo", "name: demo\n  underlay-mtu: 1400", []string{`fabric.underlay-mtu: 1400 leaves 1270 inside the tunnels, less than IPv6's minimum of 1280; use a path of at least 1410`}},
		{"huge MTU", "name: demo", "name: demo\n  underlay-mtu: 70000", []string{`70000 is out of range`}},
		{"MSS beyond MTU", "name: demo", "name: demo\n  mss: 1400", []string{`fabric.mss: 1400 does not fit: an underlay MTU of 1500 leaves segments of 1330; write 1330 or less`}},
		{"small MSS", "name: demo", "name: demo\n  mss: 500", []string{`500 is out of range`}},
		{"port out of range", "name: demo", "name: demo\n  vxlan-port: 65536", []string{`65536 is out of range; write a number from 1 to 65535`}},
		{"no room for ports", "name: demo", "name: demo\n  wireguard-port: 65535", []string{`fabric.wireguard-port: 65535 leaves no room for the tunnels of gateway "sz-1-gw"`}},
		{"ports meet", "name: demo", "name: demo\n  wireguard-port: 4788", []string{`would listen on the VXLAN port 4789`}},
		{"public ports beyond", "public-port: 51900", "public-port: 65535", []string{`65535 leaves no room for the tunnels of gateway "sz-1-gw", the last of which is 2 above it; write 65533 or less`}},
		{"short hold", "name: demo", "name: demo\n  bgp: {hold: 2s, keepalive: 1s}", []string{`fabric.bgp.hold: 2s is out of range; write whole seconds from 3s`, `more than a third`}},
		{"hold in fractions", "hold: 30s", "hold: 30500ms", []string{`30.5s is out of range`}},
		{"keepalive beyond a third", "hold: 30s", "hold: 30s\n                keepalive: 11s", []string{`11s is more than a third of the hold time 30s`}},
		{"long restart time", "name: demo", "name: demo\n  bgp: {restart-time: 2h}", []string{`restart-time: 2h0m0s is out of range`}},
		// VRFs.
		{"bad VRF name", "name: OPS", "name: OPERATIONS-VRF", []string{`not a valid name; use 1 to 12`, `unknown VRF`, `unknown VRF`}},
		{"duplicate VRF name", "name: OPS", "name: CORE", []string{`9:11: vrfs\[1\].name: duplicate VRF name "CORE", used by vrfs\[0\].name on line 5`, `unknown VRF`, `unknown VRF`}},
		{"duplicate table", "table: 201", "table: 200", []string{`duplicate table "200"`}},
		{"duplicate VNI", "vni: 1001", "vni: 1000", []string{`duplicate VNI "1000"`}},
		{"VNI out of range", "vni: 1001", "vni: 16777216", []string{`16777216 is out of range`}},
		{"no table", "    table: 201\n", "", []string{`VRF "OPS" needs a routing table number`}},
		{"kernel's table", "table: 201", "table: 254", []string{`table 254 is the kernel's own`}},
		{"default with a table", "vrfs:", "vrfs:\n  - {name: default, table: 7, vni: 9}", []string{`is the main table and has no table number; remove it`}},
		{"bad route target", "64512:1000", "64512:x", []string{`"64512:x" is not a route target`}},
		{"long route target", "64512:1000", "4200000000:65536", []string{`is not a route target`}},
		{"IPv6 route target", "192.0.2.1:7", "2001:db8::1:7", []string{`is not a route target`}},
		// Sites and clouds.
		{"duplicate site", "name: hk-1\n", "name: sz-1\n", []string{`duplicate site name "sz-1"`, `unknown site "hk-1"`}},
		{"no gateway", "sites:", "sites:\n  - {name: empty, gateways: []}", []string{`site "empty" has no gateway`}},
		{"unknown provider", "provider: alibaba", "provider: nimbus", []string{`"nimbus" is not known; write alibaba`}},
		{"unknown cloud VRF", "alibaba, vrf: CORE", "alibaba, vrf: CORD", []string{`unknown VRF "CORD"; there are: CORE, OPS`}},
		{"cloud VRF not attached", "name: sz-1\n    cloud: {provider: alibaba, vrf: CORE, ", "name: sz-1\n    cloud: {provider: alibaba, vrf: third, ", []string{`unknown VRF "third"`}},
		{"cloud endpoint", "127.0.0.1:8443", "https://x", []string{`"https://x" is not a host`}},
		{"cloud endpoint port", "127.0.0.1:8443", "x:70000", []string{`is not a host`}},
		{"cloud quota", "provider: alibaba", "provider: alibaba, quota: -1, resync: 1ms, credentials-file: x, route-tables: [a, a], export: no-such", []string{
			`-1 is out of range`, `1ms is too short`, `"x" is not an absolute path`, `route table "a" is empty or named twice`, `unknown policy "no-such"`}},
		{"relative file", "ca-file: /etc/fabric/ca.pem}\n    g", "ca-file: ca.pem}\n    g", []string{`"ca.pem" is not an absolute path`}},
		// Gateways.
		{"bad gateway name", "name: sz-1-gw", "name: sz_1", []string{`"sz_1" is not a valid name`, `unknown gateway "sz-1-gw"; there are: sz_1, hk-1-gw, gz-1-gw`}},
		{"duplicate gateway", "name: gz-1-gw", "name: hk-1-gw", []string{`duplicate gateway name "hk-1-gw"`}},
		{"duplicate ASN", "asn: 65002", "asn: 65001", []string{`duplicate ASN "65001", used by sites\[0\].gateways\[0\].asn on line 27`}},
		{"reserved ASN", "asn: 65002", "asn: 23456", []string{`AS number 23456 is reserved`}},
		{"zero ASN", "asn: 65020", "asn: 0", []string{`AS number 0 is reserved`}},
		{"duplicate VTEP", "vtep: 10.255.0.2", "vtep: 10.255.0.1", []string{`duplicate VTEP "10.255.0.1"`}},
		{"loopback VTEP", "vtep: 10.255.0.2", "vtep: 127.0.0.1", []string{`127.0.0.1 is not the address of a host`}},
		{"link-local VTEP", "vtep: 10.255.0.2", "vtep: 169.254.0.2", []string{`VTEP 169.254.0.2 is link-local`}},
		{"router id of IPv6", "instance: i-sz1", "router-id: fd00::1", []string{`fd00::1 is not a BGP identifier`}},
		{"duplicate router id", "instance: i-sz1", "router-id: 10.255.0.3", []string{`duplicate router id "10.255.0.3"`}},
		{"zone", "vtep: 10.255.0.2", "vtep: fe80::1%eth0", []string{`has a zone`}},
		{"IPv4 in IPv6", "address: 203.0.113.2", "address: '::ffff:203.0.113.2'", []string{`is an IPv4 address in IPv6 form; write 203.0.113.2`}},
		{"duplicate endpoint", "address: 203.0.113.2", "address: 203.0.113.1, public-port: 51901", []string{`duplicate endpoint: port 51901 of 203.0.113.1, which gateway "sz-1-gw" would dial, is taken by gateway "sz-1-gw"`}},
		{"multicast endpoint", "address: 203.0.113.2", "address: 224.0.0.1", []string{`not the address of a host`}},
		{"many endpoints", "[{address: 203.0.113.2}]", "[" + strings.Repeat("{address: 203.0.113.2},", 17) + "]", []string{`17 are more than 16`}},
		{"no endpoint on either side", "endpoints: [{address: 203.0.113.2}]", "drained: false", []string{`neither "gz-1-gw" nor "hk-1-gw" has an endpoint`}},
		{"short key", key, "AgIC", []string{`public-key: not a WireGuard public key \(32 bytes in base64\); paste`}},
		{"duplicate key of two gateways", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", key, []string{`the same public key as sites\[0\]`}},
		{"relative key file", "keepalive: 10s", "private-key-file: key", []string{`"key" is not an absolute path`}},
		{"long keepalive", "keepalive: 10s", "keepalive: 24h", []string{`24h0m0s is out of range`}},
		{"API without port", "192.0.2.3:8443", "192.0.2.3:0", []string{`cannot listen on 192.0.2.3:0`}},
		{"listeners meet", "        instance: i-sz1", "        api: {listen: '127.0.0.1:9100', cert-file: /a, key-file: /b, ca-file: /c}", []string{`the API listens on 127.0.0.1:9100 as well`}},
		{"VRF twice", "- vrf: OPS\n            prefixes: [{", "- vrf: CORE\n            prefixes: [{", []string{`VRF "CORE" is listed twice at gateway "hk-1-gw"`, `must not leave`}},
		// Prefixes.
		{"host bits", "prefix: 172.31.0.0/16", "prefix: 172.31.0.9/16", []string{`172.31.0.9/16 has host bits set; write 172.31.0.0/16`}},
		{"/30", "prefix: 172.31.0.0/16", "prefix: 172.31.0.0/30", []string{`172.31.0.0/30 must not leave a site: a /30 joins two routers and nothing else; announce a prefix that covers it`}},
		{"/31", "prefix: 172.31.0.0/16", "prefix: 172.31.0.0/31", []string{`a /31 joins`}},
		{"/126", "prefix: 172.31.0.0/16", "prefix: 'fd00:31::/126'", []string{`a /126 joins`}},
		{"/127", "prefix: 172.31.0.0/16", "prefix: 'fd00:31::/127'", []string{`a /127 joins`}},
		{"loopback net", "prefix: 172.31.0.0/16", "prefix: 127.1.0.0/16", []string{`127.0.0.0/8 is the host itself`}},
		{"shared space", "prefix: 172.31.0.0/16", "prefix: 100.64.0.0/10", []string{`carriers`}},
		{"link-local net", "prefix: 172.31.0.0/16", "prefix: 'fe80::/64'", []string{`link-local`}},
		{"default route", "prefix: 172.31.0.0/16", "prefix: 0.0.0.0/0", []string{`the VRF does not allow a default route; write allow-default: true`}},
		{"prefix twice", "- prefix: 172.18.171.252/30", "- prefix: 172.18.0.0/16", []string{`prefix 172.18.0.0/16 is listed twice in VRF "OPS" here`}},
		{"overlap of sites", "prefix: 172.31.0.0/16", "prefix: 172.18.4.0/24", []string{`56:33: sites\[1\].gateways\[0\].vrfs\[0\].prefixes\[0\].prefix: 172.18.4.0/24 of site "hk-1" overlaps 172.18.0.0/16 of site "sz-1" in VRF "CORE"; write shared: true at both`}},
		{"overlap half shared", "prefix: 172.31.0.0/16", "prefix: 172.18.0.0/16, shared: true", []string{`overlaps 172.18.0.0/16 of site "sz-1"`}},
		{"loopback in another's prefix", "[10.1.0.2/32]", "[172.18.0.1/32]", []string{`172.18.0.1/32 of site "hk-1" overlaps`}},
		{"covers a VTEP", "prefix: 172.31.0.0/16", "prefix: 10.255.0.0/24", []string{`10.255.0.0/24 covers VTEP 10.255.0.1 of gateway "sz-1-gw", which the tunnels run on`}},
		{"covers an endpoint", "prefix: 172.31.0.0/16", "prefix: 203.0.113.0/24", []string{`covers endpoint 203.0.113.1`}},
		{"next hop of the other family", "172.18.171.253", "fd00::5", nil},
		{"next hop without device", "next-hop: 192.0.2.9", "next-hop: 'fd00::5'", []string{`next hop fd00::5 of IPv4 prefix 0.0.0.0/0 is IPv6`}},
		{"IPv4 next hop", "prefix: 172.31.0.0/16", "prefix: 'fd00:31::/48', next-hop: 192.0.2.1", []string{`of IPv6 prefix fd00:31::/48 is IPv4`}},
		{"link-local next hop", "prefix: 172.31.0.0/16", "prefix: 'fd00:31::/48', next-hop: 'fe80::1'", []string{`link-local next hop fe80::1 needs an interface`}},
		{"device of a prefix", "interface: eth0", "interface: a-name-too-long-for-linux", []string{`is not an interface name`}},
		{"community", "[\"64512:31\"]", "[\"64512:65536\", \"no-export\"]", []string{`"64512:65536" is not a community`, `"no-export" is not a community`}},
		// Loopbacks and interfaces.
		{"loopback not /32", "[10.1.0.2/32]", "[10.1.0.2/31]", []string{`loopback 10.1.0.2/31 is not a single address; write 10.1.0.2/32`}},
		{"guarded loopback", "[10.1.0.2/32]", "[127.0.0.2/32]", []string{`loopback 127.0.0.2/32 must not leave a site`}},
		{"loopback twice", "[10.1.0.2/32]", "[10.1.0.2/32, 10.1.0.2/32]", []string{`loopback 10.1.0.2/32 is listed twice`}},
		{"long device name", "- name: eth1", "- name: enp0s31f6-uplink", []string{`is not an interface name; use 1 to 15`, `does not belong to VRF "CORE"`}},
		{"device of the system", "- name: eth1", "- name: lo", []string{`interface "lo" is the system's own`, `does not belong`}},
		{"device twice", "                mtu: 1500", "              - name: eth1", []string{`interface "eth1" is used twice at this gateway`}},
		{"network as address", "172.20.0.9/24", "172.20.0.0/24", []string{`172.20.0.0/24 is a network`}},
		{"address twice", "172.20.0.9/24,", "172.20.0.9/24, 172.20.0.9/25,", []string{`address 172.20.0.9 is used twice`}},
		{"MTU below IPv6's", "mtu: 1500", "mtu: 1000", []string{`1000 is out of range; write a number from 1280`}},
		// Peers.
		{"peer address twice", "address: fd00:20::1", "address: 172.20.0.1", []string{`peer address 172.20.0.1 is used twice in VRF "CORE"`, `different families`}},
		{"peer name twice", "- address: fd00:20::1", "- name: core-router\n                address: fd00:20::1", []string{`duplicate peer name "core-router"`}},
		{"peer is us", "address: 172.20.0.1\n", "address: 172.20.0.9\n", []string{`172.20.0.9 is our own address on eth1`}},
		{"link-local peer", "address: fd00:20::1", "address: fe80::1", []string{`link-local neighbour fe80::1 needs an interface`}},
		{"device of another VRF", "interface: eth1", "interface: eth2", []string{`interface "eth2" does not belong to VRF "CORE" here; list it`}},
		{"unknown family", "families: [ipv6]", "families: [ipv6, evpn, ipv6]", []string{`"evpn" is not known`, `family "ipv6" is listed twice`}},
		{"multihop with ttl-security", "multihop: 5", "multihop: 5\n                ttl-security: 1", []string{`multihop and ttl-security exclude each other`}},
		{"relative password file", "password-file: /etc/fabric/core.md5", "password-file: secret", []string{`not an absolute path`}},
		{"unknown policy", "import: from-dc", "import: from-cd", []string{`unknown policy "from-cd"; describe it under policies`}},
		{"IPv6 next hops on a session over IPv4", "interface: eth1\n                hold: 30s", "interface: eth1\n                extended-next-hop: true\n                hold: 30s", []string{
			`peers\[0\].extended-next-hop: it is for sessions over IPv6 that carry ipv4, and the one with 172.20.0.1 is none; give the neighbour an IPv6 address`}},
		{"IPv6 next hops on a session without IPv4", "address: fd00:20::1", "address: fd00:20::1\n                extended-next-hop: true", []string{
			`peers\[1\].extended-next-hop: it is for sessions over IPv6 that carry ipv4, and the one with fd00:20::1 is none`}},
		{"IPv6 next hops and an IPv4 one", "families: [ipv6]", "families: [ipv6, ipv4]\n                extended-next-hop: true\n                next-hop: 172.20.0.9", []string{
			`peers\[1\].next-hop: extended-next-hop tells the neighbour an IPv6 next hop for IPv4 routes, and 172.20.0.9 is another; remove one of them`}},
		{"peer numbers", "multihop: 5", "multihop: 256\n                allow-own-as: 11\n                max-prefix: -1\n                port: 70000\n                next-hop: 0.0.0.0", []string{
			`256 is out of range`, `11 is out of range`, `-1 is out of range`, `70000 is out of range`, `0.0.0.0 is not the address of a host`}},
		// Policies.
		{"term name", "- name: rest", "- name: own ranges", []string{`duplicate term name "own ranges"`}},
		{"empty term name", "- name: rest", "- name: ''", []string{`a term needs a name`}},
		{"unknown action", "then: reject", "then: drop", []string{`"drop" is not known; write accept or reject or next`}},
		{"rewrite of a reject", "then: accept", "then: reject", []string{`a term that rejects rewrites nothing`}},
		{"unknown source", "source: [peer]", "source: [ospf], peers: ['']", []string{`"ospf" is not known`, `empty peer name`}},
		{"match of host bits", "172.20.0.0/16 ge", "172.20.0.1/16 ge", []string{`172.20.0.1/16 has host bits set`}},
		{"match not a prefix", "172.20.0.0/16 ge", "x ge", []string{`"x" is not a prefix`}},
		{"match not a match", "ge 17 le 24", "ge 17 le", []string{`is not a prefix match`}},
		{"match out of order", "ge 17 le 24", "le 24 ge 17", []string{`is not a prefix match`}},
		{"match range", "ge 17 le 24", "ge 17 le 16", []string{`le "16" is not from 17 to 32`}},
		{"match range of IPv6", "le 64\"", "le 129\"", []string{`le "129" is not from 32 to 128`}},
		{"policy set", "local-pref: 200", "prepend: 17, next-hop: '::', remove-communities: ['1']", []string{`17 is out of range`, `:: is not the address of a host`, `"1" is not a community`}},
		{"match communities", "source: [peer]", "communities: ['1:2:3']", []string{`"1:2:3" is not a community`}},
		// Links.
		{"unknown mesh", "mesh: communities", "mesh: star", []string{`"star" is not known`}},
		{"communities in full mesh", "mesh: communities", "mesh: full", []string{`links.communities: communities mean nothing in a full mesh`}},
		{"unknown site", "sites: [sz-1, hk-1, gz-1]", "sites: [sz-1, hk-1, gz-2]", []string{`unknown site "gz-2"`}},
		{"site twice", "sites: [sz-1, hk-1, gz-1]", "sites: [sz-1, hk-1, hk-1]", []string{`site "hk-1" is listed twice`}},
		{"empty community", "sites: [sz-1, hk-1, gz-1]", "sites: []", []string{`community "all" joins no site`, `not linked, so there is nothing to override`}},
		{"unknown gateway in pair", "[sz-1-gw, hk-1-gw]", "[sz-1-gw, sz-9-gw]", []string{`unknown gateway "sz-9-gw"`}},
		{"pair of one", "[sz-1-gw, hk-1-gw]", "[sz-1-gw, sz-1-gw]", []string{`a pair is between exactly two gateways`}},
		{"pair twice", "  pairs:", "  pairs:\n    - {between: [hk-1-gw, sz-1-gw], tunnels: []}", []string{`the pair of "hk-1-gw" and "sz-1-gw" is listed twice`}},
		{"tunnel kind", "{kind: wireguard, underlay-mtu: 1450}", "{kind: gre, underlay-mtu: 1300}", []string{`"gre" is not known`, `1300 leaves 1170 inside`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("fabric.yaml", []byte(replace(t, example(t), c.old, c.new)))
			if err == nil {
				if len(c.want) > 0 {
					t.Fatal("was accepted")
				}
				return
			}
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("the error is a %T", err)
			}
			lines := strings.Split(err.Error(), "\n")
			for i, want := range c.want {
				if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
					t.Errorf("line %d is not %s", i+1, want)
				}
			}
			if len(lines) != len(c.want) {
				t.Errorf("%d problems, not %d", len(lines), len(c.want))
			}
			if t.Failed() {
				t.Log("\n" + err.Error())
			}
			for _, p := range ps {
				if p.Line == 0 || p.Column == 0 || p.Mend == "" || p.File != "fabric.yaml" {
					t.Errorf("problem lacks a place or a mend: %+v", p)
				}
			}
		})
	}
}
