package bgp

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
)

func mustRT(t *testing.T, s string) rib.RT {
	t.Helper()
	rt, err := rib.ParseRT(s)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// What we originate, another gateway reads as it was: through the wire's octets.
func TestType5RoundTrip(t *testing.T) {
	o := Origination{VRF: "CORE", VNI: 1<<24 - 1, RD: rib.RD{0, 1, 10, 0, 0, 1, 0, 200}, RTs: []rib.RT{mustRT(t, "64512:1"), mustRT(t, "64512:2")}}
	vtep, mac := netip.MustParseAddr("10.255.0.1"), [6]byte{2, 1, 2, 3, 4, 5}
	for _, p := range []string{"172.18.0.0/16", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128", "::/0"} {
		in := rib.Attrs{
			Origin: rib.OriginEGP, MED: 0, HasMED: true, LocalPref: 100, NextHop: vtep, VNI: o.VNI, RouterMAC: mac, RTs: o.RTs,
			ASPath:      []rib.ASSegment{{ASNs: []uint32{65001, 4200000001}}, {Set: true, ASNs: []uint32{7, 8}}},
			Communities: []rib.Community{1, rib.NoExport}, LargeCommunities: []rib.LargeCommunity{{1, 2, 3}},
			SiteOfOrigin: rib.RT{0, 3, 0, 1, 0, 0, 0, 9},
		}
		path, err := encodeEVPN(&o, vtep, mac, prefix(p), &in, false)
		if err != nil {
			t.Fatal(err)
		}
		r := overWire(t, path)
		if r.refuse != "" || r.withdraw || r.path.Key.Prefix != prefix(p) || r.path.Key.RD != o.RD || !reflect.DeepEqual(r.path.Attrs, in) {
			t.Errorf("%s came as %+v\nwant %+v", p, r, in)
		}
	}
}

// overWire serialises a path into an UPDATE and reads that.
func overWire(t *testing.T, p *apiutil.Path) received {
	t.Helper()
	m := gobgp.NewBGPUpdateMessage(nil, p.Attrs, nil)
	b, err := m.Serialize()
	if err != nil {
		t.Fatal(err)
	}
	m, err = gobgp.ParseBGPMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	attrs := m.Body.(*gobgp.BGPUpdate).PathAttributes
	q := &apiutil.Path{Attrs: attrs}
	for _, a := range attrs {
		if mp, ok := a.(*gobgp.PathAttributeMpReachNLRI); ok {
			q.Nlri = mp.Value[0].NLRI
		}
	}
	var d decoder
	r, ok := d.decode(q)
	if !ok {
		t.Fatal("not read")
	}
	return r
}

// A type 5 path that cannot be forwarded to is refused, with the reason.
func TestType5Refused(t *testing.T) {
	vtep := netip.MustParseAddr("10.255.0.1")
	base := func() (*gobgp.EVPNIPPrefixRoute, *rib.Attrs, gobgp.TunnelType) {
		return &gobgp.EVPNIPPrefixRoute{ESI: gobgp.EthernetSegmentIdentifier{Value: make([]byte, 9)}, GWIPAddress: netip.IPv4Unspecified()},
			&rib.Attrs{NextHop: vtep, VNI: 1000, RouterMAC: [6]byte{2}}, gobgp.TUNNEL_TYPE_VXLAN
	}
	for want, spoil := range map[string]func(n *gobgp.EVPNIPPrefixRoute, a *rib.Attrs, e *gobgp.TunnelType){
		"":              func(*gobgp.EVPNIPPrefixRoute, *rib.Attrs, *gobgp.TunnelType) {},
		refuseVNI:       func(_ *gobgp.EVPNIPPrefixRoute, a *rib.Attrs, _ *gobgp.TunnelType) { a.VNI = 0 },
		refuseRouterMAC: func(_ *gobgp.EVPNIPPrefixRoute, a *rib.Attrs, _ *gobgp.TunnelType) { a.RouterMAC = [6]byte{} },
		refuseEncap:     func(_ *gobgp.EVPNIPPrefixRoute, _ *rib.Attrs, e *gobgp.TunnelType) { *e = gobgp.TUNNEL_TYPE_MPLS },
		refuseNextHop:   func(_ *gobgp.EVPNIPPrefixRoute, a *rib.Attrs, _ *gobgp.TunnelType) { a.NextHop = netip.Addr{} },
		refuseOverlayIndex: func(n *gobgp.EVPNIPPrefixRoute, _ *rib.Attrs, _ *gobgp.TunnelType) {
			n.GWIPAddress = netip.MustParseAddr("10.0.0.9")
		},
	} {
		n, a, e := base()
		spoil(n, a, &e)
		if got := refusal(prefix("10.0.0.0/8"), a, n, e); got != want {
			t.Errorf("refused with %q, want %q", got, want)
		}
	}
	if got := refusal(prefix("10.0.0.0/8"), &rib.Attrs{NextHop: netip.MustParseAddr("2001:db8::1")}, nil, 0); got != refuseFamily {
		t.Errorf("an IPv4 prefix with an IPv6 next hop: %q", got)
	}
}

// Fingerprints differ where announcements do.
func TestFingerprint(t *testing.T) {
	all := []rib.Attrs{
		{}, {MED: 0, HasMED: true}, {MED: 1, HasMED: true}, {NextHop: netip.MustParseAddr("10.0.0.1")}, {Origin: 1}, {LocalPref: 7},
		{ASPath: []rib.ASSegment{{ASNs: []uint32{1, 2}}}}, {ASPath: []rib.ASSegment{{ASNs: []uint32{1}}, {ASNs: []uint32{2}}}},
		{ASPath: []rib.ASSegment{{Set: true, ASNs: []uint32{1, 2}}}}, {Communities: []rib.Community{1}}, {Communities: []rib.Community{1, 2}},
		{LargeCommunities: []rib.LargeCommunity{{1, 2, 3}}}, {SiteOfOrigin: rib.RT{1}},
	}
	seen := map[uint64]int{}
	for i := range all {
		fp := fingerprint(&all[i])
		if j, same := seen[fp]; same {
			t.Errorf("%+v and %+v have one fingerprint", all[i], all[j])
		}
		seen[fp] = i
	}
}
