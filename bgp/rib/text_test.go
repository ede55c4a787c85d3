package rib

import (
	"encoding/hex"
	"testing"
)

func TestRouteTargetsAndDistinguishers(t *testing.T) {
	for _, tt := range []struct{ text, rt, rd string }{
		{"64512:1000", "0002fc00000003e8", "0000fc00000003e8"},
		{"65535:4294967295", "0002ffffffffffff", "0000ffffffffffff"},
		{"192.0.2.1:100", "0102c00002010064", "0001c00002010064"},
		{"4200000001:7", "0202fa56ea010007", "0002fa56ea010007"},
	} {
		rt, err := ParseRT(tt.text)
		if err != nil || hex.EncodeToString(rt[:]) != tt.rt || rt.String() != tt.text {
			t.Errorf("route target %s: %x, %s, %v", tt.text, rt[:], rt, err)
		}
		var rd RD
		if n, err := hex.Decode(rd[:], []byte(tt.rd)); n != len(rd) || err != nil || rd.String() != tt.text {
			t.Errorf("route distinguisher %s is shown as %s", tt.text, rd)
		}
	}
	for _, s := range []string{"", "1", "a:1", "1:a", "1:4294967296", "65536:65536", "192.0.2.1:65536", "::1:1", "4294967296:1", "1:-1", "-1:1", "1:1:1", "2001:db8::1:1"} {
		if rt, err := ParseRT(s); err == nil {
			t.Errorf("route target %q was read as %v", s, rt)
		}
	}
	// Site of origin reads the same way; others are shown raw.
	if s := (RT{0, 3, 0xfc, 0, 0, 0, 0, 1}).String(); s != "64512:1" {
		t.Errorf("site of origin: %s", s)
	}
	if s := (RT{3, 12, 0, 0, 0, 0, 0, 8}).String(); s != "030c000000000008" {
		t.Errorf("other extended community: %s", s)
	}
	if s := (RT{9, 2}).String(); s != "0902000000000000" {
		t.Errorf("unknown administrator: %s", s)
	}
	if s := (RD{0, 9}).String(); s != "0009000000000000" {
		t.Errorf("unknown distinguisher: %s", s)
	}
}

// FuzzText: what is taken for a route target or a community is the same when it is shown and read again.
func FuzzText(f *testing.F) {
	for _, s := range []string{"64512:1000", "65535:4294967295", "192.0.2.1:100", "4200000001:7", "1:1:1", "::1:1", "-1:+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if rt, err := ParseRT(s); err == nil {
			if again, err := ParseRT(rt.String()); err != nil || again != rt {
				t.Errorf("route target %q is %x, shown as %s, which is %x, %v", s, rt[:], rt, again[:], err)
			}
		}
		if c, err := ParseCommunity(s); err == nil {
			if again, err := ParseCommunity(c.String()); err != nil || again != c {
				t.Errorf("community %q is %d, shown as %s, which is %d, %v", s, uint32(c), c, uint32(again), err)
			}
		}
	})
}

func TestCommunities(t *testing.T) {
	c, err := ParseCommunity("64512:7")
	if err != nil || c != 64512<<16|7 || c.String() != "64512:7" || NoExport.String() != "65535:65281" {
		t.Errorf("%v %v", c, err)
	}
	for _, s := range []string{"", "1", "1:", ":1", "65536:1", "1:65536", "1:1:1", "-1:1", "x:1"} {
		if c, err := ParseCommunity(s); err == nil {
			t.Errorf("%q was read as %v", s, c)
		}
	}
	if s := (LargeCommunity{1, 2, 4294967295}).String(); s != "1:2:4294967295" {
		t.Errorf("large community: %s", s)
	}
}

func TestASPath(t *testing.T) {
	for _, tt := range []struct {
		path      []ASSegment
		text      string
		length    int
		neighbour uint32
		origin    uint32 // 0: none
	}{
		{nil, "", 0, 0, 0},
		{[]ASSegment{{}, {Set: true}}, "", 0, 0, 0},
		{[]ASSegment{{ASNs: []uint32{1, 2, 2}}}, "1 2 2", 3, 1, 2},
		{[]ASSegment{{}, {ASNs: []uint32{1}}, {ASNs: []uint32{2}}, {}}, "1 2", 2, 1, 2},
		{[]ASSegment{{ASNs: []uint32{1}}, {Set: true, ASNs: []uint32{3, 2}}}, "1 {3 2}", 2, 1, 0},
		{[]ASSegment{{Set: true, ASNs: []uint32{2}}, {ASNs: []uint32{4}}}, "{2} 4", 2, 0, 4},
	} {
		a := Attrs{ASPath: tt.path}
		origin, ok := a.OriginAS()
		if a.ASPathString() != tt.text || a.PathLen() != tt.length || a.NeighbourAS() != tt.neighbour || origin != tt.origin || ok != (tt.origin != 0) {
			t.Errorf("%v: %q, length %d, neighbour %d, origin %d %v", tt.path, a.ASPathString(), a.PathLen(), a.NeighbourAS(), origin, ok)
		}
		if n := a.CountAS(2); n != map[string]int{"1 2 2": 2, "1 2": 1, "1 {3 2}": 1, "{2} 4": 1}[tt.text] {
			t.Errorf("%v: AS 2 occurs %d times", tt.path, n)
		}
	}
}

// Each field counts when paths are compared: a change of any must reach those who act on it.
func TestEqualPathsSeesEveryField(t *testing.T) {
	base := path(gateway1, net10)
	for name, change := range map[string]func(*Path){
		"key":               func(p *Path) { p.Key.PathID = 1 },
		"interface":         func(p *Path) { p.Interface = "x" },
		"stale":             func(p *Path) { p.Stale = true },
		"local only":        func(p *Path) { p.LocalOnly = true },
		"policy":            func(p *Path) { p.Policy = "x" },
		"origin":            func(p *Path) { p.Attrs.Origin = 1 },
		"AS path":           asPath(1),
		"AS set":            func(p *Path) { p.Attrs.ASPath = []ASSegment{{Set: true}} },
		"next hop":          nextHop("192.0.2.99"),
		"MED":               func(p *Path) { p.Attrs.MED = 1 },
		"has MED":           func(p *Path) { p.Attrs.HasMED = true },
		"preference":        func(p *Path) { p.Attrs.LocalPref = 1 },
		"communities":       func(p *Path) { p.Attrs.Communities = []Community{1} },
		"large communities": func(p *Path) { p.Attrs.LargeCommunities = []LargeCommunity{{1}} },
		"route targets":     func(p *Path) { p.Attrs.RTs = []RT{rt2} },
		"site of origin":    func(p *Path) { p.Attrs.SiteOfOrigin = rt1 },
		"router MAC":        func(p *Path) { p.Attrs.RouterMAC[0] = 1 },
		"VNI":               func(p *Path) { p.Attrs.VNI = 1 },
		"router id":         routerID("9.9.9.9"),
	} {
		p := path(gateway1, net10, change)
		if equalPaths(&p, &base) || equalPaths(&base, &p) {
			t.Errorf("%s is not looked at", name)
		}
		if q := path(gateway1, net10, change); !equalPaths(&p, &q) {
			t.Errorf("equal paths with %s differ", name)
		}
	}
	for k, want := range map[SourceKind]string{Connected: "connected", Static: "static", Peer: "peer", Fabric: "fabric", 0: "unknown"} {
		if k.String() != want {
			t.Errorf("%d is %s", k, k)
		}
	}
}
