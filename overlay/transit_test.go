package overlay

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
)

// aroundHubs: hk and sz are hubs, gz and bj only dial. hk is preferred; sz has two tunnels to bj, the second narrow.
func aroundHubs() *config.Document {
	doc := threeSites()
	doc.Sites = append(doc.Sites, config.Site{Name: "bj-1", Gateways: []config.Gateway{gateway("bj", 4)}})
	doc.Links.Mesh, doc.Links.Hubs = "hub", []string{"hk", "sz"}
	doc.Links.Pairs = []config.LinkPair{{Between: []string{"sz", "bj"}, Tunnels: []config.Tunnel{{Kind: "wireguard"}, {Kind: "wireguard", UnderlayMTU: 1400}}}}
	return doc
}

// The ways over a hub are the tunnels that there are to it, in the order of their ranks and whatever their kind.
func TestCompileTransitTunnels(t *testing.T) {
	second, first := 1, 0
	hk0, sz0, sz1 := TunnelDevice("bj", "hk", 0), TunnelDevice("bj", "sz", 0), DirectDevice("bj", "sz", 1)
	tests := []struct {
		name    string
		change  func(doc *config.Document, bj, hk, sz *config.Gateway)
		devices []string
		problem string
	}{
		{"one is direct", func(doc *config.Document, bj, _, _ *config.Gateway) {
			bj.Endpoints = []config.Endpoint{{Address: netip.MustParseAddr("203.0.113.4")}}
			doc.Links.Pairs[0].Tunnels[1] = config.Tunnel{Kind: "direct"}
		}, []string{hk0, sz0, sz1}, ""},
		{"ranks are not in order", func(doc *config.Document, bj, _, _ *config.Gateway) {
			bj.Endpoints = []config.Endpoint{{Address: netip.MustParseAddr("203.0.113.4")}}
			doc.Links.Pairs[0].Tunnels = []config.Tunnel{{Kind: "wireguard", Rank: &second}, {Kind: "direct", Rank: &first}}
		}, []string{hk0, sz1, sz0}, ""},
		{"nobody can dial those to one hub", func(_ *config.Document, _, _, sz *config.Gateway) { sz.Endpoints = nil }, []string{hk0}, ""},
		{"nor those to the other", func(_ *config.Document, _, hk, sz *config.Gateway) { sz.Endpoints, hk.Endpoints = nil, nil }, nil,
			"there is no tunnel to hk or sz, over which it would be reached"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := aroundHubs()
			_, bj, _ := doc.Find("bj")
			_, hk, _ := doc.Find("hk")
			_, sz, _ := doc.Find("sz")
			tt.change(doc, bj, hk, sz)
			p, err := Compile(doc, "bj", Host{})
			if err != nil {
				t.Fatal(err)
			}
			if v := p.VTEPs[0]; v.Gateway != "gz" || !slices.Equal(v.Devices, tt.devices) || v.Problem != tt.problem {
				t.Errorf("gz is %+v, want devices %q and problem %q", v, tt.devices, tt.problem)
			}
		})
	}
}

func TestCompileTransit(t *testing.T) {
	p := compile(t, aroundHubs(), "bj")
	hk0, sz0, sz1 := TunnelDevice("bj", "hk", 0), TunnelDevice("bj", "sz", 0), TunnelDevice("bj", "sz", 1)
	addr := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 255, 0, n}) }
	want := []RemoteVTEP{
		{Gateway: "gz", Addr: addr(3), Devices: []string{hk0, sz0, sz1}, Via: []string{"hk", "sz"}, BFD: &BFD{300, 3}},
		{Gateway: "hk", Addr: addr(2), Devices: []string{hk0}},
		{Gateway: "sz", Addr: addr(1), Devices: []string{sz0, sz1}},
	}
	if !reflect.DeepEqual(p.VTEPs, want) {
		t.Errorf("VTEPs are %+v, want %+v", p.VTEPs, want)
	}
	for _, tunnel := range p.Tunnels {
		if tunnel.Remote == "gz" {
			t.Errorf("there is a tunnel to gz: %+v", tunnel)
		}
	}
	// Its VXLAN is as any other's.
	for _, vni := range []uint32{1000, 1001} {
		found := false
		for _, n := range p.NextHops {
			found = found || n == NextHop{ID: NextHopID(vni, addr(3)), Device: VXLANDevice(vni), Gateway: VTEPGateway(addr(3)), VNI: vni, VTEP: addr(3)}
		}
		if !found {
			t.Errorf("no next hop for gz on VNI %d in %+v", vni, p.NextHops)
		}
	}
	for device, hub := range map[string]string{hk0: "hk", sz1: "sz", "fxwnone": ""} {
		if got := p.Hub(p.VTEPs[0], device); got != hub {
			t.Errorf("%s leads over hub %q, want %q", device, got, hub)
		}
	}
	if got := p.Hub(p.VTEPs[1], hk0); got != "" {
		t.Errorf("a VTEP with tunnels of its own is over hub %q", got)
	}
	// The hub itself has nothing of the kind.
	for _, v := range compile(t, aroundHubs(), "hk").VTEPs {
		if len(v.Via) > 0 || v.BFD != nil {
			t.Errorf("the hub reaches %+v", v)
		}
	}
	doc := aroundHubs()
	doc.Fabric.BFD.Multiplier = 5
	if got := compile(t, doc, "gz").VTEPs[0].BFD; !reflect.DeepEqual(got, &BFD{300, 5}) {
		t.Errorf("timers are %+v, not the fabric's", got)
	}
}

// The narrowest tunnel of the whole path counts, also where it is not the gateway's own.
func TestTransitMTU(t *testing.T) {
	for gw, want := range map[string]int{
		"bj": 1400 - 80 - 50,
		"gz": 1400 - 80 - 50, // sz's second tunnel to bj
		"sz": 1400 - 80 - 50,
		"hk": 1500 - 80 - 50, // forwards to bj over its own only
	} {
		if got := MTU(aroundHubs(), gw); got != want {
			t.Errorf("MTU of %s is %d, want %d", gw, got, want)
		}
	}
}

func TestTransitPlanIsChecked(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Plan)
		want   string
	}{
		{"over itself", func(p *Plan) { p.VTEPs[0].Via = append(p.VTEPs[0].Via, "gz") }, "is reached over itself or over this gateway"},
		{"over us", func(p *Plan) { p.VTEPs[0].Via = append(p.VTEPs[0].Via, "bj") }, "is reached over itself or over this gateway"},
		{"device of no hub", func(p *Plan) { p.VTEPs[0].Via = []string{"hk"} }, "leads to sz, which is none of its hubs"},
		{"unknown device", func(p *Plan) { p.VTEPs[0].Devices[0] = "fxwnone" }, `no tunnel has device "fxwnone"`},
		{"timers", func(p *Plan) { p.VTEPs[0].BFD = &BFD{1, 3} }, "VTEP 10.255.0.3 of gz: BFD: interval of 1 ms"},
		{"timers without a hub", func(p *Plan) { p.VTEPs[1].BFD = &BFD{300, 3} }, "VTEP 10.255.0.2 of hk has BFD timers but no hub"},
		{"a peer's session on the same path", func(p *Plan) {
			p.Sessions = append(p.Sessions, Session{BFD: BFD{300, 3}, Name: "default/x", VRF: "default", Peer: "x", Local: p.VTEP, Remote: p.VTEPs[0].Addr, Multihop: true, MinTTL: 1})
		}, `BFD sessions "bj/gz/transit" and "default/x" are both from`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, aroundHubs(), "bj")
			tt.change(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
}

// Two gateways whose router MACs meet are told apart by no VXLAN device, whoever is between them.
func TestTransitMACsMeet(t *testing.T) {
	doc := aroundHubs()
	doc.Sites[0].Gateways[0].VTEP = doc.Sites[3].Gateways[0].VTEP
	if _, err := Compile(doc, "bj", Host{}); err == nil || !strings.Contains(err.Error(), "have one router MAC") {
		t.Errorf("error is %v", err)
	}
}
