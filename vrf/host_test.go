package vrf_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/vrf"
)

var update = flag.Bool("update", false, "write what was compiled to testdata; read the difference before committing it")

func parse(t testing.TB, text string) *config.Document {
	t.Helper()
	doc, err := config.Parse("fabric.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func compile(t testing.TB, text string, backend vrf.Backend) *vrf.Host {
	t.Helper()
	h, err := vrf.Compile(parse(t, text), "gw", kernel.Features{VRF: backend == vrf.Devices})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// listing writes a host as ip(8) and its like do, one object a line.
func listing(h *vrf.Host) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	add("backend %s", h.Backend)
	for _, m := range h.VRFs {
		add("vrf %s table %d vni %d device %q vxlan %s interfaces %v src %s %s", m.Name, m.Table, m.VNI, m.Device, m.VXLAN, m.Interfaces, m.Source4, m.Source6)
		for _, c := range m.Connected {
			add("vrf %s connected %s dev %q", m.Name, c.Prefix, c.Device)
		}
	}
	add("tables %v", h.Tables)
	for _, k := range reconcile.Keys(h.Links) {
		l := h.Links[k]
		s := fmt.Sprintf("link %s type %s", k, l.Kind)
		if l.Kind == kernel.KindVRF {
			s += fmt.Sprintf(" table %d", l.Table)
		} else {
			s += fmt.Sprintf(" id %d local %s dstport %d mtu %d address % x master %q", l.VXLAN.VNI, l.VXLAN.Local, l.VXLAN.Port, l.MTU, l.MAC, l.Master)
		}
		add("%s up %t alias %s", s, l.Up, l.Alias)
	}
	for _, k := range reconcile.Keys(h.Ports) {
		add("port %s master %q mtu %d", k, h.Ports[k].Master, h.Ports[k].MTU)
	}
	for _, k := range reconcile.Keys(h.Addresses) {
		s := "addr " + k.String()
		if a := h.Addresses[k]; a.NoPrefixRoute {
			s += " noprefixroute"
		}
		if h.Addresses[k].NoDAD {
			s += " nodad"
		}
		add("%s", s)
	}
	for _, k := range reconcile.Keys(h.Rules) {
		add("rule %s %s", k, h.Rules[k])
	}
	for _, k := range reconcile.Keys(h.Routes) {
		add("route %s: %s", k, h.Routes[k])
	}
	for _, k := range reconcile.Keys(h.Neighbours) {
		add("neigh %s %s", k, h.Neighbours[k])
	}
	for _, k := range reconcile.Keys(h.FDB) {
		add("fdb %s %s", k, h.FDB[k])
	}
	for _, k := range reconcile.Keys(h.Sysctls) {
		add("sysctl %s=%s", k, h.Sysctls[k])
	}
	f := h.Filter
	add("filter %s mss %d %d on %s", f.Comment, f.MSS4, f.MSS6, f.ClampDevices)
	add("filter udp dport %d only on %s", f.VXLANPort, f.VXLANDevices)
	add("filter marks %q", f.Marks)
	if f.DirectPort != 0 {
		add("filter udp dport %d only from %s", f.DirectPort, f.DirectSources)
	}
	return lines
}

// TestCompile shows the whole of a gateway with two VRFs that have the same addresses, and the main table, as both backends
// make it.
func TestCompile(t *testing.T) {
	for _, backend := range []vrf.Backend{vrf.Rules, vrf.Devices} {
		t.Run(string(backend), func(t *testing.T) {
			got := strings.Join(listing(compile(t, twoVRFs, backend)), "\n") + "\n"
			golden := "testdata/two-vrfs." + string(backend) + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("compiled:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// document is a fabric of two gateways; gw has the VRFs given.
func document(fabric, vtep, far, vrfs string) string {
	s := `
fabric: {name: t` + fabric + `}
vrfs:
  - {name: default, vni: 999}
  - {name: A, table: 200, vni: 1000}
  - {name: B, table: 4000000000, vni: 1001}
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: "` + vtep + `"
        router-id: 192.0.2.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}
        vrfs: ` + vrfs
	if far == "" {
		return s + "\n"
	}
	return s + `
  - name: far
    gateways:
      - name: far
        asn: 65002
        vtep: "` + far + `"
        router-id: 192.0.2.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}
`
}

func v4(vrfs string) string { return document("", "10.255.0.1", "10.255.0.2", vrfs) }

// TestCompileCases looks at single lines. A line that ends in "*" stands for all that begin so.
func TestCompileCases(t *testing.T) {
	for _, c := range []struct {
		name     string
		document string
		backend  vrf.Backend
		has      []string
		lacks    []string
	}{
		{
			name: "no VRFs", document: v4("[]"), backend: vrf.Rules,
			has:   []string{"tables []", "sysctl net.ipv4.ip_forward=1", "filter fabric:gw mss 1300 1300 on fxw*", `filter marks ""`},
			lacks: []string{"rule *", "route *", "link *", "sysctl net.ipv4.fwmark_reflect*", "sysctl net.ipv4.conf.all.rp_filter*"},
		},
		{
			name: "a gateway of another make has the router MAC that the document gives it, and so have we", backend: vrf.Rules,
			document: strings.NewReplacer("asn: 65001", "asn: 65001\n        router-mac: 0e:00:5e:10:00:02",
				"asn: 65002", "asn: 65002\n        router-mac: 0e:00:5e:10:00:01").Replace(v4("[{vrf: A}]")),
			has: []string{
				"link fxv1000 type vxlan id 1000 local 10.255.0.1 dstport 4789 mtu 1370 address 0e 00 5e 10 00 02 *",
				"neigh fe80::5efe:aff:2 dev fxv1000 lladdr 0e:00:5e:10:00:01", "fdb 0e:00:5e:10:00:01 dev fxv1000 dst 10.255.0.2",
			},
		},
		{
			name: "the main table alone needs neither rules nor marks", backend: vrf.Rules,
			document: v4(`[{vrf: default, interfaces: [{name: eth1, addresses: [10.1.0.1/24, "fd00:1::1/64"]}], loopbacks: [10.9.0.1/32]}]`),
			has: []string{
				`vrf default table 254 vni 999 device "" vxlan fxv999 interfaces [eth1] src 10.9.0.1 fd00:1::1`,
				`vrf default connected 10.1.0.0/24 dev "eth1"`, `vrf default connected 10.9.0.1/32 dev ""`,
				"tables []", "addr 10.1.0.1/24 dev eth1", "addr fd00:1::1/64 dev eth1 nodad", "addr 10.9.0.1/32 dev lo",
				`link fxv999 type vxlan id 999 local 10.255.0.1 dstport 4789 mtu 1370 *`,
				"sysctl net.ipv4.conf.eth1.rp_filter=2",
			},
			lacks: []string{"rule *", "route *", "sysctl net.ipv4.fwmark_reflect*", "sysctl net.ipv4.conf.eth1.accept_local*", "sysctl net.ipv4.conf.all.rp_filter*"},
		},
		{
			name: "the main table has no VRF device", backend: vrf.Devices,
			document: v4(`[{vrf: default, interfaces: [{name: eth1, addresses: [10.1.0.1/24]}]}]`),
			has:      []string{`port eth1 master "" mtu 0`, "sysctl net.ipv4.tcp_l3mdev_accept=0"},
			lacks:    []string{"link default*", "route *", "rule *"},
		},
		{
			name: "a shared address leads to no VRF by itself", backend: vrf.Rules,
			document: v4(`[{vrf: A, loopbacks: [10.9.0.1/32, 10.9.1.1/32]}, {vrf: B, loopbacks: [10.9.0.1/32]}]`),
			has: []string{
				"rule 106: from 10.9.1.1/32 iif lo lookup 200", "rule 107: from 10.9.1.1/32 iif lo unreachable",
				"rule 108: from all to 10.9.0.1/32 unreachable", "rule 108: from all to 10.9.1.1/32 unreachable",
				"route 10.9.0.1/32 table 200 metric 1: local dev lo scope host proto 201",
				"route 10.9.0.1/32 table 4000000000 metric 1: local dev lo scope host proto 201",
				`filter marks "fxv1000=200,fxv1001=4000000000"`,
				"rule -6 104: from all fwmark 0xee6b2800/0xffffffff lookup 4000000000",
			},
			lacks: []string{"rule 106: from 10.9.0.1*", "rule 107: from 10.9.0.1*"},
		},
		{
			name: "what the main table has too is not hidden from it", backend: vrf.Rules,
			document: v4(`[{vrf: default, interfaces: [{name: eth0, addresses: [10.1.0.1/24, "fd00:1::1/64"]}]},
               {vrf: A, interfaces: [{name: eth1, addresses: [10.1.0.1/24, "fd00:1::2/64", 203.0.113.1/32]}]}]`),
			has:   []string{"rule -6 108: from all to fd00:1::2/128 unreachable", "rule -6 106: from fd00:1::2/128 iif lo lookup 200"},
			lacks: []string{"rule 106:*", "rule 108:*", "rule -6 108: from all to fd00:1::/128*"},
		},
		{
			name: "anycast addresses of networks are hidden, of two routers alone there is none", backend: vrf.Rules,
			document: v4(`[{vrf: A, interfaces: [{name: eth1, addresses: ["fd00:1::1/64", "fd00:2::1/127"]}]}]`),
			has:      []string{"rule -6 108: from all to fd00:1::/128 unreachable", "rule -6 108: from all to fd00:2::1/128 unreachable"},
			lacks:    []string{"rule -6 108: from all to fd00:2::/128*", "rule -6 106: from fd00:1::/128*"},
		},
		{
			name: "link-local addresses stay where the kernel puts them", backend: vrf.Rules,
			document: v4(`[{vrf: A, interfaces: [{name: eth1, addresses: ["fe80::1/64", 169.254.1.1/30, 10.1.0.1/24]}]}]`),
			has: []string{
				"addr fe80::1/64 dev eth1 nodad", "addr 10.1.0.1/24 dev eth1 noprefixroute",
				`vrf A table 200 vni 1000 device "" vxlan fxv1000 interfaces [eth1] src 10.1.0.1 invalid IP`,
				"rule -6 80: from all to fe80::/10 lookup 255", "rule -6 81: from all to fe80::/10 lookup 254",
			},
			lacks: []string{"route fe80::*", "vrf A connected fe80::*", "rule -6 108:*"},
		},
		{
			name: "a cloud's tunnel address speaks where there is no other", backend: vrf.Rules,
			document: v4(`[{vrf: A, interfaces: [{name: eth1, addresses: [169.254.1.1/30, 169.254.2.1/30]}]}]`),
			has:      []string{`vrf A table 200 vni 1000 device "" vxlan fxv1000 interfaces [eth1] src 169.254.1.1 invalid IP`},
		},
		{
			name: "a dot in a device's name", backend: vrf.Rules,
			document: v4(`[{vrf: A, interfaces: [{name: eth0.100, addresses: [10.1.0.1/32], mtu: 1400}]}]`),
			has: []string{
				"port eth0.100 master \"\" mtu 1400", "sysctl net.ipv4.conf.eth0/100.rp_filter=0", "sysctl net.ipv4.conf.eth0/100.accept_local=1",
				"sysctl net.ipv6.conf.eth0/100.keep_addr_on_down=1", "rule 100: from all iif eth0.100 lookup 200", "rule 101: from all iif eth0.100 unreachable",
				`filter marks "eth0.100=200,fxv1000=200"`,
			},
			lacks: []string{"route 10.1.0.1/32 table 200 metric 1: dev*"},
		},
		{
			name: "two interfaces on one network: the first has the route", backend: vrf.Rules,
			document: v4(`[{vrf: A, interfaces: [{name: eth1, addresses: [10.1.0.1/24]}, {name: eth2, addresses: [10.1.0.2/24]}]}]`),
			has: []string{
				"route 10.1.0.0/24 table 200 metric 1: dev eth1 scope link src 10.1.0.1 proto 201",
				"route 10.1.0.2/32 table 200 metric 1: local dev eth2 scope host proto 201",
			},
		},
		{
			name: "VTEPs of IPv6", backend: vrf.Rules,
			document: document(`, vtep-family: ipv6`, "fd00:ffff::1", "fd00:ffff::2", `[{vrf: A, loopbacks: [10.9.0.1/32]}]`),
			has: []string{
				"rule -6 90: from all to fd00:ffff::2/128 iif lo lookup 254", "rule -6 91: from all to fd00:ffff::2/128 iif lo unreachable",
				"link fxv1000 type vxlan id 1000 local fd00:ffff::1 dstport 4789 mtu 1350 *", "filter fabric:gw mss 1300 1290 on *",
				"fdb 02:* dst fd00:ffff::2",
			},
			lacks: []string{"rule 90:*"},
		},
		{
			name: "a narrow underlay", backend: vrf.Devices,
			document: document(`, underlay-mtu: 1420, vxlan-port: 8472`, "10.255.0.1", "10.255.0.2", `[{vrf: A}]`),
			has: []string{
				`link fxv1000 type vxlan id 1000 local 10.255.0.1 dstport 8472 mtu 1290 *`, "filter fabric:gw mss 1250 1230 on fxv1000,fxw*",
				"filter udp dport 8472 only on fxw*", "link A type vrf table 200 up true alias fabric:vrf:A",
				"route 0.0.0.0/0 table 200 metric 4278198272: unreachable proto 201", "route ::/0 table 200 metric 4278198272: unreachable proto 201",
			},
			lacks: []string{"rule *", "sysctl net.ipv4.fwmark_reflect*", "sysctl net.ipv4.conf.fxv1000.accept_local*"},
		},
		{
			name: "a gateway alone", backend: vrf.Rules, document: document("", "10.255.0.1", "", `[{vrf: A}]`),
			has:   []string{"link fxv1000 *", "rule 100: from all iif fxv1000 lookup 200", "filter udp dport 4789 only on "},
			lacks: []string{"rule 90:*", "fdb *", "neigh *"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := listing(compile(t, c.document, c.backend))
			matches := func(pattern string) bool {
				before, after, open := strings.Cut(pattern, "*")
				return slices.ContainsFunc(lines, func(l string) bool {
					return l == pattern || open && strings.HasPrefix(l, before) && strings.HasSuffix(l, after)
				})
			}
			for _, p := range c.has {
				if !matches(p) {
					t.Errorf("lacks %q", p)
				}
			}
			for _, p := range c.lacks {
				if matches(p) {
					t.Errorf("has %q", p)
				}
			}
			if t.Failed() {
				t.Log(strings.Join(lines, "\n"))
			}
		})
	}
}

// TestEveryLookupHasAnEnd: behind each rule that asks a VRF's table there is one with the same selectors that ends the lookup.
func TestEveryLookupHasAnEnd(t *testing.T) {
	h := compile(t, twoVRFs, vrf.Rules)
	for k, r := range h.Rules {
		if r.Action != kernel.Lookup || !slices.Contains(h.Tables, r.Table) {
			continue
		}
		k.Priority++
		if end, ok := h.Rules[k]; !ok || end.Action != kernel.RuleUnreachable {
			t.Errorf("%s has no end", k)
		}
		if k.Priority >= vrf.LocalRulePriority {
			t.Errorf("%s stands behind the table local", k)
		}
	}
	for _, m := range h.VRFs {
		for _, p := range []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} {
			r, ok := h.Routes[kernel.RouteKey{Table: m.Table, Prefix: p, Metric: kernel.BackstopMetric}]
			if ok == m.IsMain() || ok && r.Type != kernel.UnreachableRoute {
				t.Errorf("table %d: backstop %s is %v, %v", m.Table, p, r, ok)
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	doc := parse(t, twoVRFs)
	if _, err := vrf.Compile(doc, "nobody", kernel.Features{}); err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("an unknown gateway: %v", err)
	}
	doc.Sites[0].Gateways[0].VRFs[1].VRF = "C"
	if _, err := vrf.Compile(doc, "gw", kernel.Features{}); err == nil || !strings.Contains(err.Error(), `VRF "C"`) {
		t.Errorf("an unknown VRF: %v", err)
	}
}

// Two VRFs may each have a neighbour of the same address over several hops: their devices tell the BFD sessions apart, rules do not.
func TestCompileSameFarNeighbour(t *testing.T) {
	doc := parse(t, twoVRFs)
	for i := 1; i <= 2; i++ {
		doc.Sites[0].Gateways[0].VRFs[i].Peers = []config.Peer{{
			Name: "far", Address: netip.MustParseAddr("10.77.0.1"), ASN: 65010, Multihop: 3,
			UpdateSource: netip.MustParseAddr("10.9.0.1"), BFD: &config.PeerBFD{},
		}}
	}
	if _, err := vrf.Compile(doc, "gw", kernel.Features{VRF: true}); err != nil {
		t.Errorf("with devices: %v", err)
	}
	if _, err := vrf.Compile(doc, "gw", kernel.Features{}); err == nil || !strings.Contains(err.Error(), `"A/far" and "B/far"`) {
		t.Errorf("with rules: %v", err)
	}
}

// A direct tunnel may carry the VRFs' VXLAN as any other, and its own packets come in from the far end alone.
func TestFilterOfDirectTunnels(t *testing.T) {
	doc := parse(t, twoVRFs)
	before, err := vrf.Compile(doc, "gw", kernel.Features{})
	if err != nil {
		t.Fatal(err)
	}
	if before.Filter.DirectPort != 0 || before.Filter.DirectSources != "" {
		t.Errorf("without direct tunnels the filter is %+v", before.Filter)
	}
	doc.Links.Tunnels = append(doc.Links.Tunnels, config.Tunnel{Kind: "direct", Encryption: "none"})
	for i := range doc.Sites {
		for j := range doc.Sites[i].Gateways {
			doc.Sites[i].Gateways[j].Endpoints = []config.Endpoint{{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(10*i + j)})}}
		}
	}
	h, err := vrf.Compile(doc, "gw", kernel.Features{})
	if err != nil {
		t.Fatal(err)
	}
	var far []string
	for _, l := range doc.Neighbours("gw") {
		far = append(far, l.Remote.Endpoints[0].Address.String())
	}
	slices.Sort(far)
	if h.Filter.DirectPort != 4790 || h.Filter.DirectSources != strings.Join(far, ",") || len(far) == 0 {
		t.Errorf("filter is %+v, want the sources %v", h.Filter, far)
	}
	// A direct tunnel has one device, one of WireGuard three: two for later keys.
	if n := len(strings.Split(h.Filter.VXLANDevices, ",")); n != 4*len(far) {
		t.Errorf("VXLAN may go over %s: want four devices to each of %d gateways", h.Filter.VXLANDevices, len(far))
	}
}

// VXLAN's flows take several ways where tunnels have equal rank, and nowhere else.
func TestSpread(t *testing.T) {
	doc := parse(t, twoVRFs)
	for _, ranks := range [][2]int{{0, 1}, {0, 0}} {
		doc.Links.Tunnels = []config.Tunnel{{Kind: "wireguard", Rank: &ranks[0]}, {Kind: "wireguard", Rank: &ranks[1]}}
		h, err := vrf.Compile(doc, "gw", kernel.Features{VRF: true})
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range h.Links {
			if want := ranks[0] == ranks[1] && l.Kind == kernel.KindVXLAN; l.Spread != want {
				t.Errorf("ranks %v: %s spreads: %v, want %v", ranks, name, l.Spread, want)
			}
		}
	}
}
