package overlay

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/internal/config"
)

func key(b byte) string {
	var k [32]byte
	k[0] = b
	return base64.StdEncoding.EncodeToString(k[:])
}

func gateway(name string, n byte, endpoints ...config.Endpoint) config.Gateway {
	return config.Gateway{
		Name: name, ASN: 65000 + uint32(n), VTEP: netip.AddrFrom4([4]byte{10, 255, 0, n}),
		Endpoints: endpoints,
		WireGuard: config.WireGuard{PublicKey: key(n), PrivateKeyFile: "/etc/fabric/keys/" + name + ".key"},
		VRFs:      []config.GatewayVRF{{VRF: "CORE"}, {VRF: "OPS"}},
	}
}

func endpoint(addr string, port int) config.Endpoint {
	return config.Endpoint{Address: netip.MustParseAddr(addr), PublicPort: port}
}

// threeSites: sz and hk can be dialled, gz only dials. hk is behind NAT with mapped ports.
func threeSites() *config.Document {
	return &config.Document{
		Fabric: config.Fabric{Name: "lab", VTEPFamily: "ipv4", UnderlayMTU: 1500, MSS: 1300, WireGuardPort: 51820, DirectPort: 4790},
		VRFs:   []config.VRF{{Name: "CORE", Table: 200, VNI: 1000}, {Name: "OPS", Table: 201, VNI: 1001}},
		Sites: []config.Site{
			{Name: "gz-1", Gateways: []config.Gateway{gateway("gz", 3)}},
			{Name: "hk-1", Gateways: []config.Gateway{gateway("hk", 2, endpoint("198.51.100.2", 40000), endpoint("2001:db8::2", 0))}},
			{Name: "sz-1", Gateways: []config.Gateway{gateway("sz", 1, endpoint("203.0.113.1", 0))}},
		},
		Links: config.Links{Mesh: "full", Tunnels: []config.Tunnel{{Kind: "wireguard"}}},
	}
}

func compile(t testing.TB, doc *config.Document, gw string) Plan {
	t.Helper()
	p, err := Compile(doc, gw, Host{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCompileWhoDialsWhom(t *testing.T) {
	type want struct {
		listen    int
		endpoint  string
		keepalive int
	}
	// Places in the document: gz 0, hk 1, sz 2. A port is the first one plus the place of the gateway at the other end.
	tests := []struct {
		gw, remote string
		want       want
	}{
		{"gz", "hk", want{51821, "198.51.100.2:40000", 5}},
		{"gz", "sz", want{51822, "203.0.113.1:51820", 5}},
		{"hk", "gz", want{51820, "", 0}},
		{"hk", "sz", want{51822, "203.0.113.1:51821", 5}},
		{"sz", "gz", want{51820, "", 0}},
		{"sz", "hk", want{51821, "198.51.100.2:40002", 5}},
	}
	for _, tt := range tests {
		t.Run(tt.gw+" to "+tt.remote, func(t *testing.T) {
			p := compile(t, threeSites(), tt.gw)
			for _, tunnel := range p.Tunnels {
				if tunnel.Remote != tt.remote {
					continue
				}
				got := want{tunnel.ListenPort, "", tunnel.Keepalive}
				if tunnel.Endpoint.IsValid() {
					got.endpoint = tunnel.Endpoint.String()
				}
				if got != tt.want {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
				return
			}
			t.Fatal("no tunnel")
		})
	}
}

// Whoever is dialled must listen where the other dials, for every rank, and both must agree on addresses.
func TestCompileEndsMeet(t *testing.T) {
	doc := threeSites()
	doc.Links.Tunnels = append(doc.Links.Tunnels, config.Tunnel{Kind: "wireguard", UnderlayMTU: 1400})
	plans := map[string]Plan{}
	for _, g := range []string{"gz", "hk", "sz"} {
		plans[g] = compile(t, doc, g)
		if n := len(plans[g].Tunnels); n != 4 {
			t.Fatalf("%s has %d tunnels, want 4", g, n)
		}
	}
	for local, p := range plans {
		for _, a := range p.Tunnels {
			met := false
			for _, b := range plans[a.Remote].Tunnels {
				if b.Remote != local || b.Rank != a.Rank {
					continue
				}
				met = true
				if a.LinkLocal != b.RemoteLinkLocal || a.MTU != b.MTU {
					t.Errorf("%s and %s disagree: %+v %+v", a.Name, b.Name, a, b)
				}
				// Only hk's first endpoint maps ports: 40000 stands for 51820.
				port := int(a.Endpoint.Port())
				if port >= 40000 && port < 50000 {
					port += 51820 - 40000
				}
				if a.Endpoint.IsValid() && port != b.ListenPort {
					t.Errorf("%s dials %s, %s listens on %d", a.Name, a.Endpoint, b.Name, b.ListenPort)
				}
				if a.Endpoint.IsValid() != (a.Keepalive > 0) {
					t.Errorf("%s: endpoint %s with keepalive %d", a.Name, a.Endpoint, a.Keepalive)
				}
			}
			if !met {
				t.Errorf("%s has no other end", a.Name)
			}
		}
	}
	// The backup takes the second address where there is one.
	for _, tunnel := range plans["sz"].Tunnels {
		if tunnel.Remote == "hk" && tunnel.Rank == 1 && tunnel.Endpoint.Addr() != netip.MustParseAddr("2001:db8::2") {
			t.Errorf("backup dials %s", tunnel.Endpoint)
		}
	}
	for _, v := range plans["sz"].VTEPs {
		want := []string{TunnelDevice("sz", v.Gateway, 0), TunnelDevice("sz", v.Gateway, 1)}
		if !reflect.DeepEqual(v.Devices, want) {
			t.Errorf("VTEP of %s over %v, want %v", v.Gateway, v.Devices, want)
		}
	}
}

// ports lists where each tunnel of each gateway of a document listens and dials, by the tunnel's name.
func ports(t *testing.T, doc *config.Document) map[string]string {
	t.Helper()
	list := map[string]string{}
	for _, s := range doc.Sites {
		for _, g := range s.Gateways {
			for _, tunnel := range compile(t, doc, g.Name).Tunnels {
				list[tunnel.Name] = fmt.Sprintf("%d to %s", tunnel.ListenPort, tunnel.Endpoint)
			}
		}
	}
	return list
}

// A gateway that joins must not cut the others off until all have the new document.
func TestAppendedGatewayMovesNoPort(t *testing.T) {
	start := threeSites()
	start.Links.Tunnels = append(start.Links.Tunnels, config.Tunnel{Kind: "wireguard"})
	start.Links.Pairs = []config.LinkPair{{Between: []string{"gz", "sz"}, Tunnels: []config.Tunnel{{Kind: "wireguard"}}}}
	crowd := start.Clone()
	for n := range byte(61) {
		name := fmt.Sprintf("m%d", n)
		crowd.Sites = append(crowd.Sites, config.Site{Name: name, Gateways: []config.Gateway{gateway(name, 10+n, endpoint("192.0.2.1", 0))}})
	}
	alone := start.Clone()
	alone.Links.Pairs = append(alone.Links.Pairs, config.LinkPair{Between: []string{"aa", "sz"}}, config.LinkPair{Between: []string{"aa", "gz"}})
	// Names that sort before all others: the order of names must not matter.
	joins := gateway("aa", 9, endpoint("192.0.2.9", 0))
	at := func(i int) func(*config.Document) {
		return func(d *config.Document) {
			d.Sites = slices.Insert(d.Sites, i, config.Site{Name: "aa-1", Gateways: []config.Gateway{joins}})
		}
	}
	last := func(d *config.Document) {
		s := &d.Sites[len(d.Sites)-1]
		s.Gateways = append(s.Gateways, joins)
	}
	// gz keeps its place unless something comes before it, and nobody dials it.
	toFirst := func(tunnel string) bool { return strings.Contains(tunnel, "/gz/") }
	tests := []struct {
		name   string
		doc    *config.Document
		change func(*config.Document)
		moved  func(tunnel string) bool // nil: none
	}{
		{"new last site", start, at(3), nil},
		{"second gateway of the last site", start, last, nil},
		{"linked with few", alone, at(3), nil},
		{"another pair of tunnels", start, func(d *config.Document) { d.Links.Pairs = nil }, nil},
		// Why the rule says: append.
		{"inserted first", start, at(0), func(string) bool { return true }},
		{"inserted before the last", start, at(2), func(tunnel string) bool { return strings.Contains(tunnel, "sz/") && !toFirst(tunnel) }},
		{"reordered", start, func(d *config.Document) { d.Sites[1], d.Sites[2] = d.Sites[2], d.Sites[1] },
			func(tunnel string) bool { return !toFirst(tunnel) }},
		{"beyond a multiple of 64", crowd, at(64), func(tunnel string) bool { return strings.HasSuffix(tunnel, "/1") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := tt.doc.Clone()
			before := ports(t, doc)
			tt.change(doc)
			after := ports(t, doc)
			if len(before) < 10 {
				t.Fatalf("tunnels are %v", before)
			}
			for tunnel, was := range before {
				if moved := after[tunnel] != was; moved != (tt.moved != nil && tt.moved(tunnel)) {
					t.Errorf("%s was %s, is %s", tunnel, was, after[tunnel])
				}
			}
		})
	}
}

func TestCompileWholePlan(t *testing.T) {
	p := compile(t, threeSites(), "sz")
	if p.Version != PlanVersion || p.Gateway != "sz" || p.Fabric != "lab" || p.VTEP != netip.MustParseAddr("10.255.0.1") {
		t.Errorf("head is %+v", p)
	}
	tunnel := p.Tunnels[0]
	if tunnel.Name != "sz/gz/0" || tunnel.Device != TunnelDevice("sz", "gz", 0) || tunnel.MTU != 1420 ||
		tunnel.PublicKey != key(3) || tunnel.PrivateKeyFile != "/etc/fabric/keys/sz.key" || tunnel.Kind != "wireguard" {
		t.Errorf("tunnel is %+v", tunnel)
	}
	var got []string
	for _, n := range p.NextHops {
		if n.ID != NextHopID(n.VNI, n.VTEP) || n.Gateway != VTEPGateway(n.VTEP) {
			t.Errorf("next hop is %+v", n)
		}
		got = append(got, n.Device+" "+n.VTEP.String())
	}
	want := []string{"fxv1000 10.255.0.3", "fxv1000 10.255.0.2", "fxv1001 10.255.0.3", "fxv1001 10.255.0.2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("next hops are %v, want %v", got, want)
	}
	if again := compile(t, threeSites(), "sz"); !reflect.DeepEqual(p, again) || p.Digest() != again.Digest() {
		t.Error("a second compile differs")
	}
	doc := threeSites()
	doc.Sites[0].Gateways[0].WireGuard.PublicKey = key(9)
	if other := compile(t, doc, "sz"); other.Digest() == p.Digest() {
		t.Error("another key, the same digest")
	}
}

func TestCompileDefaults(t *testing.T) {
	doc := threeSites()
	doc.Fabric = config.Fabric{Name: "lab"}
	doc.Sites[2].Gateways[0].WireGuard.Keepalive = config.Duration(1500 * time.Millisecond)
	p := compile(t, doc, "sz")
	hk := p.Tunnels[1]
	if hk.ListenPort != 51821 || hk.MTU != 1420 || hk.Keepalive != 2 {
		t.Errorf("tunnel is %+v", hk)
	}
	if v4, v6 := MSS(doc, "sz"); v4 != 1300 || v6 != 1300 {
		t.Errorf("MSS is %d and %d", v4, v6)
	}
}

func TestCompileNobodyDials(t *testing.T) {
	doc := threeSites()
	doc.Sites[1].Gateways[0].Endpoints = nil
	p := compile(t, doc, "gz")
	if len(p.Tunnels) != 1 || len(p.VTEPs) != 2 {
		t.Fatalf("plan is %+v", p)
	}
	hk := p.VTEPs[0]
	if hk.Gateway != "hk" || len(hk.Devices) != 0 || !strings.Contains(hk.Problem, "endpoint") {
		t.Errorf("VTEP is %+v", hk)
	}
}

func TestCompileErrors(t *testing.T) {
	tests := []struct {
		name   string
		gw     string
		change func(*config.Document)
		want   string
	}{
		{"unknown gateway", "nobody", func(*config.Document) {}, `gateway "nobody"`},
		{"unknown VRF", "sz", func(d *config.Document) { d.VRFs = d.VRFs[:1] }, `VRF "OPS"`},
		{"listen port", "sz", func(d *config.Document) { d.Fabric.WireGuardPort = 65535 }, "listen port 65536"},
		{"public port", "sz", func(d *config.Document) { d.Sites[1].Gateways[0].Endpoints[0].PublicPort = 65535 }, "port to dial would be 65537"},
		{"MTU", "sz", func(d *config.Document) { d.Fabric.UnderlayMTU = 1300 }, "MTU 1220"},
		{"key", "sz", func(d *config.Document) { d.Sites[1].Gateways[0].WireGuard.PublicKey = "x" }, "public key"},
		{"key file", "sz", func(d *config.Document) { d.Sites[2].Gateways[0].WireGuard.PrivateKeyFile = "sz.key" }, "absolute path"},
		{"kind", "sz", func(d *config.Document) { d.Links.Tunnels[0].Kind = "gre" }, `kind "gre"`},
		{"same VTEP", "sz", func(d *config.Document) { d.Sites[1].Gateways[0].VTEP = d.Sites[2].Gateways[0].VTEP }, "one router MAC"},
		{"same router MAC", "sz", func(d *config.Document) {
			mac := RouterMAC(d.Sites[2].Gateways[0].VTEP)
			d.Sites[1].Gateways[0].RouterMAC = net.HardwareAddr(mac[:]).String()
		}, "one router MAC; choose another router-mac"},
		{"same VNI", "sz", func(d *config.Document) { d.VRFs[1].VNI = 1000 }, "choose another VNI"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := threeSites()
			tt.change(doc)
			_, err := Compile(doc, tt.gw, Host{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestMTUAndMSS(t *testing.T) {
	tests := []struct {
		name           string
		family         string
		underlay       int
		tunnels        []config.Tunnel
		mss            int
		mtu, mss4, ms6 int
	}{
		{"plain", "ipv4", 1500, []config.Tunnel{{}}, 1300, 1370, 1300, 1300},
		{"v6 VTEPs", "ipv6", 1500, []config.Tunnel{{}}, 1300, 1350, 1300, 1290},
		{"jumbo", "ipv4", 9000, []config.Tunnel{{}}, 8000, 8870, 8000, 8000},
		{"narrow backup", "ipv4", 1500, []config.Tunnel{{}, {UnderlayMTU: 1420}}, 1300, 1290, 1250, 1230},
		{"wide ceiling", "ipv4", 1500, []config.Tunnel{{}}, 9000, 1370, 1330, 1310},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := threeSites()
			doc.Fabric.VTEPFamily, doc.Fabric.UnderlayMTU, doc.Fabric.MSS = tt.family, tt.underlay, tt.mss
			doc.Links.Tunnels = tt.tunnels
			if got := MTU(doc, "sz"); got != tt.mtu {
				t.Errorf("MTU is %d, want %d", got, tt.mtu)
			}
			if v4, v6 := MSS(doc, "sz"); v4 != tt.mss4 || v6 != tt.ms6 {
				t.Errorf("MSS is %d and %d, want %d and %d", v4, v6, tt.mss4, tt.ms6)
			}
		})
	}
	alone := threeSites()
	alone.Sites = alone.Sites[:1]
	if got := MTU(alone, "gz"); got != 1370 {
		t.Errorf("MTU of a gateway alone is %d", got)
	}
}

func TestNames(t *testing.T) {
	vtep4, vtep6 := netip.MustParseAddr("10.255.0.2"), netip.MustParseAddr("2001:db8::2")
	// Pinned: another value would strand what a former release has made on hosts.
	for _, tt := range []struct{ what, got, want string }{
		{"tunnel device", TunnelDevice("sz", "hk", 0), "fxw4b017dfe6275"},
		{"tunnel name", TunnelName("sz", "hk", 0), "sz/hk/0"},
		{"VXLAN device", VXLANDevice(16777215), "fxv16777215"},
		{"v4 gateway", VTEPGateway(vtep4).String(), "fe80::5efe:aff:2"},
		{"mapped gateway", VTEPGateway(netip.MustParseAddr("::ffff:10.255.0.2")).String(), "fe80::5efe:aff:2"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %s, want %s", tt.what, tt.got, tt.want)
		}
		if strings.HasPrefix(tt.want, "fx") && len(tt.got) > 15 {
			t.Errorf("%s %s is too long", tt.what, tt.got)
		}
	}
	if m := RouterMAC(vtep4); m[0] != 0x02 || m == RouterMAC(vtep6) || m != RouterMAC(netip.MustParseAddr("::ffff:10.255.0.2")) {
		t.Errorf("router MAC is %x", m)
	}
	if m := GatewayMAC(&config.Gateway{VTEP: vtep4}); m != RouterMAC(vtep4) {
		t.Errorf("router MAC without one in the document is %x", m)
	}
	if m := GatewayMAC(&config.Gateway{VTEP: vtep4, RouterMAC: "0E:00:5E:10:00:01"}); m != [6]byte{0x0e, 0, 0x5e, 0x10, 0, 1} {
		t.Errorf("router MAC of the document is %x", m)
	}
	for _, a := range []netip.Addr{VTEPGateway(vtep6), LinkLocal("sz", "hk", 0), LinkLocal("hk", "sz", 0)} {
		if !netip.MustParsePrefix("fe80::/64").Contains(a) {
			t.Errorf("%s is not in fe80::/64", a)
		}
	}
	seen := map[string]bool{}
	for _, n := range []string{TunnelDevice("sz", "hk", 0), TunnelDevice("sz", "hk", 1), TunnelDevice("hk", "sz", 0), TunnelDevice("s", "zhk", 0)} {
		if seen[n] {
			t.Errorf("device %s twice", n)
		}
		seen[n] = true
	}
	if LinkLocal("sz", "hk", 0) == LinkLocal("hk", "sz", 0) {
		t.Error("both ends of a tunnel have one address")
	}
	if a, b := NextHopID(1000, vtep4), NextHopID(1001, vtep4); a == b || a < NextHopFirst || b < NextHopFirst {
		t.Errorf("next-hop ids are %d and %d", a, b)
	}
}

// FuzzParsePlan: what lies on a disk makes nothing panic, and what passes for a plan is the same when it is written and read again.
func FuzzParsePlan(f *testing.F) {
	write := func(t testing.TB, p Plan) []byte {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, p := range []Plan{{}, {Version: PlanVersion}, compile(f, threeSites(), "sz"), setPlan(f)} {
		f.Add(write(f, p))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePlan(data)
		if err != nil {
			return
		}
		again, err := ParsePlan(write(t, p))
		if err != nil || !bytes.Equal(write(t, again), write(t, p)) || again.Digest() != p.Digest() {
			t.Errorf("plan %s\nread again %s, error %v", write(t, p), write(t, again), err)
		}
	})
}

func TestParsePlan(t *testing.T) {
	good, err := json.Marshal(compile(t, threeSites(), "sz"))
	if err != nil {
		t.Fatal(err)
	}
	// with changes fields of the plan as it lies on a disk.
	with := func(change func(map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	version := func(v any) []byte { return with(func(m map[string]any) { m["version"] = v }) }
	tests := []struct {
		name string
		data []byte
		want string
		// versionErr: the error is a *VersionError.
		versionErr bool
	}{
		{"as written", good, "", false},
		{"next version with a field of its own", with(func(m map[string]any) { m["version"], m["bfd"] = PlanVersion+1, 3 }), "", false},
		{"two versions on", version(PlanVersion + 2), "version 3 is not understood", true},
		{"no version", with(func(m map[string]any) { delete(m, "version") }), "version 0 is not understood", true},
		{"negative version", version(-1), "version -1 is not understood", true},
		{"another version that is all different", []byte(`{"version":7,"tunnels":"none"}`), "version 7", true},
		{"cut off", good[:len(good)/2], "unexpected end", false},
		{"not a plan", []byte(`{"version":1,"tunnels":"none"}`), "cannot unmarshal", false},
		{"no gateway", with(func(m map[string]any) { delete(m, "gateway") }), "no gateway", false},
		{"VTEP", with(func(m map[string]any) { m["vtep"] = "127.0.0.1" }), "own VTEP", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParsePlan(tt.data)
			if tt.want == "" {
				if err != nil || p.Gateway != "sz" || len(p.Tunnels) != 2 {
					t.Errorf("plan is %+v, error %v", p, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
			var v *VersionError
			if errors.As(err, &v) != tt.versionErr {
				t.Errorf("error is a %T", err)
			}
		})
	}
}

// A plan comes over a socket; each of these would have the engine do what no Compile asks for.
func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Plan)
		want   string
	}{
		{"device of somebody else", func(p *Plan) { p.Tunnels[0].Device = "eth0" }, `device "eth0"`},
		{"device that climbs", func(p *Plan) { p.Tunnels[0].Device = "fxw/../x" }, "device"},
		{"device too long", func(p *Plan) { p.Tunnels[0].Device = "fxw0123456789abc" }, "device"},
		{"device twice", func(p *Plan) { p.Tunnels[0].Device = p.Tunnels[1].Device }, "both use device"},
		{"port twice", func(p *Plan) { p.Tunnels[0].ListenPort = p.Tunnels[1].ListenPort }, "both listen"},
		{"link-local", func(p *Plan) { p.Tunnels[0].LinkLocal = netip.MustParseAddr("10.0.0.1") }, "not an IPv6 link-local"},
		{"keepalive", func(p *Plan) { p.Tunnels[0].Keepalive = 1 << 17 }, "keepalive"},
		{"VTEP family", func(p *Plan) { p.VTEPs[0].Addr = netip.MustParseAddr("2001:db8::1") }, "family"},
		{"own VTEP", func(p *Plan) { p.VTEPs[0].Addr = p.VTEP }, "own one"},
		{"VTEP twice", func(p *Plan) { p.VTEPs[0].Addr = p.VTEPs[1].Addr }, "both"},
		{"unknown device", func(p *Plan) { p.VTEPs[0].Devices = []string{"fxw0"} }, "no tunnel"},
		{"default route", func(p *Plan) { p.VTEPs[0].Addr = netip.IPv4Unspecified() }, "not a unicast"},
		{"low id", func(p *Plan) { p.NextHops[0].ID = 7 }, "below the fabric's range"},
		{"id twice", func(p *Plan) { p.NextHops[0].ID = p.NextHops[1].ID }, "stands for both"},
		{"next-hop device", func(p *Plan) { p.NextHops[0].Device = "" }, "not a device name"},
		{"next-hop gateway", func(p *Plan) { p.NextHops[0].Gateway = netip.Addr{} }, "no gateway"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, threeSites(), "sz")
			tt.change(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}
