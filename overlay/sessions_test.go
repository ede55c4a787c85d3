package overlay

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"fabric/internal/config"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func timers(interval time.Duration, multiplier int) config.BFD {
	return config.BFD{Interval: config.Duration(interval), Multiplier: multiplier}
}

// withPeers gives sz interfaces in CORE and OPS, which use the same addresses, and peers in both.
func withPeers(core, ops []config.Peer) *config.Document {
	doc := threeSites()
	sz := &doc.Sites[2].Gateways[0]
	nets := []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8:1::9/64"), netip.MustParsePrefix("fe80::9/64")}
	sz.VRFs[0].Interfaces = []config.Interface{
		{Name: "eth0.7", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.9/32")}},
		{Name: "eth1", Addresses: nets},
	}
	sz.VRFs[1].Interfaces = []config.Interface{{Name: "eth2", Addresses: nets[:2]}}
	sz.VRFs[0].Peers, sz.VRFs[1].Peers = core, ops
	return doc
}

func TestCompileTunnelBFD(t *testing.T) {
	tests := []struct {
		name   string
		fabric config.BFD
		tunnel *config.BFD
		want   BFD
	}{
		{"nothing given", config.BFD{}, nil, BFD{300, 3}},
		{"the fabric's", timers(50*time.Millisecond, 5), nil, BFD{50, 5}},
		{"the tunnel's", timers(50*time.Millisecond, 5), new(timers(time.Minute, 1)), BFD{60000, 1}},
		{"in part", config.BFD{Multiplier: 5}, &config.BFD{Interval: config.Duration(10 * time.Millisecond)}, BFD{10, 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := threeSites()
			doc.Fabric.BFD = tt.fabric
			doc.Links.Tunnels[0].BFD = tt.tunnel
			for _, tunnel := range compile(t, doc, "sz").Tunnels {
				if tunnel.BFD == nil || *tunnel.BFD != tt.want {
					t.Errorf("%s has %+v", tunnel.Name, tunnel.BFD)
				}
			}
		})
	}
}

func TestCompileSessions(t *testing.T) {
	type peer = config.Peer
	ask := &config.PeerBFD{}
	tests := []struct {
		name string
		peer config.Peer
		host Host
		want *Session
	}{
		{"does not ask", peer{Address: addr("192.0.2.1")}, Host{}, nil},
		{"disabled", peer{Address: addr("192.0.2.1"), BFD: ask, Disabled: true}, Host{}, nil},
		{"v4", peer{Address: addr("192.0.2.1"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/192.0.2.1", Peer: "192.0.2.1", Interface: "eth1", Local: addr("192.0.2.9"), Remote: addr("192.0.2.1")}},
		{"v6 with a name and a VRF device", peer{Name: "core", Address: addr("2001:db8:1::1"), BFD: ask}, Host{VRFDevices: map[string]string{"CORE": "CORE"}},
			&Session{BFD: BFD{100, 4}, Name: "CORE/core", Peer: "core", VRFDevice: "CORE", Interface: "eth1", Local: addr("2001:db8:1::9"), Remote: addr("2001:db8:1::1")}},
		{"update-source", peer{Name: "p", Address: addr("192.0.2.1"), UpdateSource: addr("192.0.2.77"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Interface: "eth1", Local: addr("192.0.2.77"), Remote: addr("192.0.2.1")}},
		{"its own interface", peer{Name: "p", Address: addr("203.0.113.1"), Interface: "eth0.7", UpdateSource: addr("198.51.100.9"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Interface: "eth0.7", Local: addr("198.51.100.9"), Remote: addr("203.0.113.1")}},
		{"link-local, our address in the document", peer{Name: "p", Address: addr("fe80::1"), Interface: "eth1", BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Interface: "eth1", Local: addr("fe80::9"), Remote: addr("fe80::1")}},
		{"link-local, update-source", peer{Name: "p", Address: addr("fe80::1"), Interface: "eth0.7", UpdateSource: addr("fe80::7"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Interface: "eth0.7", Local: addr("fe80::7"), Remote: addr("fe80::1")}},
		{"several hops", peer{Name: "p", Address: addr("203.0.113.1"), Multihop: 5, Interface: "eth1", UpdateSource: addr("198.51.100.9"), BFD: ask},
			Host{VRFDevices: map[string]string{"CORE": "CORE"}},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", VRFDevice: "CORE", Local: addr("198.51.100.9"), Remote: addr("203.0.113.1"), Multihop: true, MinTTL: 60}},
		{"multihop of one", peer{Name: "p", Address: addr("203.0.113.1"), Multihop: 1, UpdateSource: addr("198.51.100.9"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Local: addr("198.51.100.9"), Remote: addr("203.0.113.1"), Multihop: true, MinTTL: 64}},
		{"more hops than 64", peer{Name: "p", Address: addr("203.0.113.1"), Multihop: 255, UpdateSource: addr("198.51.100.9"), BFD: ask}, Host{},
			&Session{BFD: BFD{100, 4}, Name: "CORE/p", Peer: "p", Local: addr("198.51.100.9"), Remote: addr("203.0.113.1"), Multihop: true, MinTTL: 1}},
		{"own timers and key", peer{Name: "p", Address: addr("192.0.2.1"), BFD: &config.PeerBFD{BFD: timers(time.Second, 0), Auth: "sha1", KeyID: 9, KeyFile: "/k"}}, Host{},
			&Session{BFD: BFD{1000, 4}, Name: "CORE/p", Peer: "p", Interface: "eth1", Local: addr("192.0.2.9"), Remote: addr("192.0.2.1"), Auth: "sha1", KeyID: 9, KeyFile: "/k"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := withPeers([]config.Peer{tt.peer}, nil)
			doc.Fabric.BFD = timers(100*time.Millisecond, 4)
			p, err := Compile(doc, "sz", tt.host)
			if err != nil {
				t.Fatal(err)
			}
			var want []Session
			if tt.want != nil {
				tt.want.VRF = "CORE"
				want = []Session{*tt.want}
			}
			if !reflect.DeepEqual(p.Sessions, want) {
				t.Errorf("got\n%+v, want\n%+v", p.Sessions, want)
			}
			// As it goes to fabric-links.
			b, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParsePlan(b); err != nil || !reflect.DeepEqual(again, p) || again.Digest() != p.Digest() {
				t.Errorf("read back as %+v, %v", again, err)
			}
			if len(p.Sessions) > 0 {
				q := p
				q.Sessions = nil
				if q.Digest() == p.Digest() {
					t.Error("a session less, the same digest")
				}
			}
		})
	}
}

func TestCompileSessionsOrder(t *testing.T) {
	bfd := &config.PeerBFD{}
	// VRFs may use the same addresses: over one hop the interface tells them apart, over several the VRF's device.
	near := []config.Peer{{Name: "z", Address: addr("192.0.2.1"), BFD: bfd}, {Name: "a", Address: addr("192.0.2.2"), BFD: bfd}}
	far := config.Peer{Name: "far", Address: addr("203.0.113.1"), Multihop: 3, UpdateSource: addr("192.0.2.9"), BFD: bfd}
	devices := Host{VRFDevices: map[string]string{"CORE": "CORE", "OPS": "OPS"}}
	p, err := Compile(withPeers(append(near, far), append(near, far)), "sz", devices)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range p.Sessions {
		names = append(names, s.Name)
	}
	if want := []string{"CORE/a", "CORE/far", "CORE/z", "OPS/a", "OPS/far", "OPS/z"}; !reflect.DeepEqual(names, want) {
		t.Errorf("sessions are %v, want %v", names, want)
	}
	if _, err := Compile(withPeers(near, near), "sz", Host{}); err != nil {
		t.Errorf("over one hop without VRF devices: %v", err)
	}
	if _, err := Compile(withPeers([]config.Peer{far}, []config.Peer{far}), "sz", Host{}); err == nil || !strings.Contains(err.Error(), `"CORE/far" and "OPS/far" are both from 192.0.2.9 to 203.0.113.1`) {
		t.Errorf("over several hops without VRF devices: %v", err)
	}
}

func TestCompileSessionErrors(t *testing.T) {
	type peer = config.Peer
	bfd := &config.PeerBFD{}
	tests := []struct {
		name string
		peer config.Peer
		want string
	}{
		{"several hops from nowhere", peer{Name: "p", Address: addr("203.0.113.1"), Multihop: 2, BFD: bfd}, "gateway sz: VRF CORE: BFD with peer p: a session over several hops needs our address; set the peer's update-source"},
		{"not connected", peer{Address: addr("203.0.113.1"), BFD: bfd}, "peer 203.0.113.1: 203.0.113.1 is on no network of the VRF's interfaces"},
		{"not connected, our address given", peer{Address: addr("203.0.113.1"), UpdateSource: addr("198.51.100.9"), BFD: bfd}, "on no network"},
		{"not on its interface", peer{Address: addr("192.0.2.1"), Interface: "eth0.7", BFD: bfd}, "does not say which address of ours on eth0.7"},
		{"link-local", peer{Name: "p", Address: addr("fe80::1"), Interface: "eth0.7", BFD: bfd}, "BFD with peer p: the document does not say which address of ours on eth0.7 is on one network with fe80::1; set the peer's update-source"},
		{"link-local without interface", peer{Name: "p", Address: addr("fe80::1"), BFD: bfd}, "on no network"},
		{"interval", peer{Address: addr("192.0.2.1"), BFD: &config.PeerBFD{BFD: timers(time.Hour, 3)}}, `session "CORE/192.0.2.1": interval of 3600000 ms`},
		{"our own address", peer{Name: "p", Address: addr("192.0.2.9"), BFD: bfd}, "192.0.2.9 is at both ends"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile(withPeers([]config.Peer{tt.peer}, nil), "sz", Host{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
	// Each is told.
	_, err := Compile(withPeers([]config.Peer{tests[0].peer, tests[1].peer}, nil), "sz", Host{})
	if err == nil || len(strings.Split(err.Error(), "\n")) != 2 {
		t.Errorf("two wrong peers: %v", err)
	}
}

// A plan comes over a socket; see TestValidate.
func TestValidateSessions(t *testing.T) {
	bfd := &config.PeerBFD{}
	doc := withPeers([]config.Peer{
		{Name: "far", Address: addr("203.0.113.1"), Multihop: 5, UpdateSource: addr("198.51.100.9"), BFD: bfd},
		{Name: "near", Address: addr("192.0.2.1"), BFD: bfd},
		{Name: "v6", Address: addr("fe80::1"), Interface: "eth1", BFD: &config.PeerBFD{Auth: "sha1", KeyFile: "/k"}},
	}, nil)
	const far, near, v6 = 0, 1, 2
	tests := []struct {
		name   string
		change func(*Plan)
		want   string // "" where the plan is right
	}{
		{"as compiled", func(*Plan) {}, ""},
		{"older fabric-site", func(p *Plan) { p.Sessions, p.Tunnels[0].BFD, p.Tunnels[1].BFD = nil, nil, nil }, ""},
		{"limits", func(p *Plan) {
			*p.Tunnels[0].BFD, p.Sessions[far].BFD, p.Sessions[far].MinTTL = BFD{10, 1}, BFD{60000, 255}, 255
			p.Sessions[v6].KeyID, p.Sessions[v6].Auth = 255, "meticulous-sha1"
		}, ""},
		{"short interval of a tunnel", func(p *Plan) { p.Tunnels[0].BFD.IntervalMs = 9 }, `tunnel "sz/gz/0": BFD: interval of 9 ms is not from 10`},
		{"multiplier of a tunnel", func(p *Plan) { p.Tunnels[0].BFD.Multiplier = 256 }, "multiplier 256 is not from 1"},
		{"no other end of a tunnel", func(p *Plan) { p.Tunnels[0].RemoteLinkLocal = netip.Addr{} }, "not the link-local address of another end"},
		{"a tunnel with itself", func(p *Plan) { p.Tunnels[0].RemoteLinkLocal = p.Tunnels[0].LinkLocal }, "not the link-local address of another end"},
		{"long interval", func(p *Plan) { p.Sessions[near].IntervalMs = 60001 }, `BFD session "CORE/near": interval of 60001 ms`},
		{"no multiplier", func(p *Plan) { p.Sessions[near].Multiplier = 0 }, "multiplier 0 is not"},
		{"name", func(p *Plan) { p.Sessions[near].Name = "x" }, `name is not VRF "CORE", a slash and peer "near"`},
		{"no VRF", func(p *Plan) { p.Sessions[near].VRF, p.Sessions[near].Name = "", "/near" }, "name is not VRF"},
		{"name twice", func(p *Plan) { p.Sessions[near].Name, p.Sessions[near].Peer = "CORE/far", "far" }, `session "CORE/far" is there twice`},
		{"path twice", func(p *Plan) {
			s := p.Sessions[near]
			s.Name, s.Peer = "CORE/x", "x"
			p.Sessions = append(p.Sessions, s)
		}, `"CORE/near" and "CORE/x" are both from 192.0.2.9`},
		{"a tunnel's path", func(p *Plan) {
			s, t := &p.Sessions[v6], p.Tunnels[0]
			s.Interface, s.Local, s.Remote = t.Device, t.LinkLocal, t.RemoteLinkLocal
		}, `"sz/gz/0" and "CORE/v6" are both`},
		{"no local address", func(p *Plan) { p.Sessions[near].Local = netip.Addr{} }, "not a unicast address"},
		{"multicast", func(p *Plan) { p.Sessions[near].Remote = addr("224.0.0.1") }, `"224.0.0.1" is not a unicast`},
		{"unspecified", func(p *Plan) { p.Sessions[near].Remote = addr("0.0.0.0") }, `"0.0.0.0" is not a unicast`},
		{"loopback", func(p *Plan) { p.Sessions[near].Local = addr("127.0.0.1") }, `"127.0.0.1" is not a unicast`},
		{"zone", func(p *Plan) { p.Sessions[v6].Remote = addr("fe80::1%eth1") }, `"fe80::1%eth1" is not a unicast`},
		{"IPv4 in IPv6", func(p *Plan) { p.Sessions[near].Remote = addr("::ffff:192.0.2.1") }, "not a unicast"},
		{"families", func(p *Plan) { p.Sessions[near].Local = addr("2001:db8::1") }, "of different families"},
		{"both ends", func(p *Plan) { p.Sessions[near].Local = p.Sessions[near].Remote }, "at both ends"},
		{"link-local without interface", func(p *Plan) { p.Sessions[v6].Interface = "" }, "link-local addresses need an interface"},
		{"link-local over several hops", func(p *Plan) { p.Sessions[far].Local, p.Sessions[far].Remote = addr("fe80::9"), addr("fe80::2") }, "reach one hop only"},
		{"interface over several hops", func(p *Plan) { p.Sessions[far].Interface = "eth1" }, "over several hops has none"},
		{"no TTL over several hops", func(p *Plan) { p.Sessions[far].MinTTL = 0 }, "least TTL 0"},
		{"large TTL", func(p *Plan) { p.Sessions[far].MinTTL = 256 }, "least TTL 256"},
		{"TTL over one hop", func(p *Plan) { p.Sessions[near].MinTTL = 60 }, "least TTL 60"},
		{"interface that climbs", func(p *Plan) { p.Sessions[near].Interface = "../x" }, `"../x" is not a device name`},
		{"VLAN device", func(p *Plan) { p.Sessions[near].Interface = "eth0.100" }, ""},
		{"long VRF device", func(p *Plan) { p.Sessions[far].VRFDevice = "a123456789012345" }, "not a device name"},
		{"VRF device with a space", func(p *Plan) { p.Sessions[far].VRFDevice = "a b" }, "not a device name"},
		{"unknown authentication", func(p *Plan) { p.Sessions[v6].Auth = "md5" }, `authentication "md5" is not known`},
		{"no key file", func(p *Plan) { p.Sessions[v6].KeyFile = "" }, `key file "" is not an absolute path`},
		{"relative key file", func(p *Plan) { p.Sessions[v6].KeyFile = "k" }, `key file "k" is not an absolute path`},
		{"key id", func(p *Plan) { p.Sessions[v6].KeyID = 256 }, "key id 256 is not from 0"},
		{"key without authentication", func(p *Plan) { p.Sessions[near].KeyFile = "/k" }, "key without authentication"},
		{"key id without authentication", func(p *Plan) { p.Sessions[near].KeyID = 1 }, "key without authentication"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, doc, "sz")
			tt.change(&p)
			err := p.Validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

// A plan on disk of before there was BFD is carried out as it was.
func TestParsePlanWithoutBFD(t *testing.T) {
	var m map[string]any
	b, err := json.Marshal(compile(t, threeSites(), "sz"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, "sessions")
	for _, tunnel := range m["tunnels"].([]any) {
		delete(tunnel.(map[string]any), "bfd")
	}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	p, err := ParsePlan(b)
	if err != nil || len(p.Tunnels) != 2 || p.Tunnels[0].BFD != nil || p.Sessions != nil {
		t.Errorf("plan is %+v, %v", p, err)
	}
}
