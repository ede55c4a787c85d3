package bgp

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
)

// defaultLocalPref is what a path has that carries no LOCAL_PREF (RFC 4271 section 9.1.1 leaves it to us).
const defaultLocalPref = 100

// families maps our names to GoBGP's.
var families = map[string]gobgp.Family{IPv4: gobgp.RF_IPv4_UC, IPv6: gobgp.RF_IPv6_UC, EVPN: gobgp.RF_EVPN}

// familyName is the other way round; "" for families we do not use.
func familyName(f gobgp.Family) string {
	for name, g := range families {
		if f == g {
			return name
		}
	}
	return ""
}

// received is a path as a neighbour sent it, converted. Its source and device are not known yet.
type received struct {
	withdraw bool
	path     rib.Path
	// refuse names the term that forbids the path whatever policy says; "" is none.
	refuse string
}

// What a type 5 path may lack so that it cannot be forwarded (terms of the pseudo policy "evpn").
const (
	refuseOverlayIndex = "evpn/overlay-index"   // gateway address or ESI given: not the interface-less model (RFC 9136 section 4.4.1)
	refuseRouterMAC    = "evpn/no-router-mac"   // RFC 9136 section 4.4.1 needs it
	refuseEncap        = "evpn/not-vxlan"       // another tunnel type (RFC 8365 section 5.1.3)
	refuseVNI          = "evpn/no-vni"          // label 0
	refuseNextHop      = "wire/no-next-hop"     // none, or 0.0.0.0
	refuseFamily       = "wire/next-hop-family" // a next hop of the other family, which the document does not allow the peer (RFC 8950)
)

// decoder converts the paths of one callback. Those of one UPDATE share their attributes; what was converted for the
// last one is shared, too.
type decoder struct {
	asPathOf *gobgp.PathAttributeAsPath
	asPath   []rib.ASSegment
	commsOf  *gobgp.PathAttributeCommunities
	comms    []rib.Community
	largeOf  *gobgp.PathAttributeLargeCommunities
	large    []rib.LargeCommunity
	extOf    *gobgp.PathAttributeExtendedCommunities
	ext      extended
}

// extended are the extended communities that we know.
type extended struct {
	rts   []rib.RT
	soo   rib.RT
	mac   [6]byte
	encap gobgp.TunnelType
}

// decode converts a path. ok is false for NLRI that are not ours to read: other families, other EVPN route types.
func (d *decoder) decode(p *apiutil.Path) (r received, ok bool) {
	r.withdraw = p.Withdrawal
	k := &r.path.Key
	k.PathID = p.RemoteID
	a := &r.path.Attrs
	var evpn *gobgp.EVPNIPPrefixRoute
	switch n := p.Nlri.(type) {
	case *gobgp.IPAddrPrefix:
		k.Prefix = n.Prefix.Masked()
	case *gobgp.EVPNNLRI:
		if evpn, ok = n.RouteTypeData.(*gobgp.EVPNIPPrefixRoute); !ok {
			return r, false
		}
		k.Prefix = netip.PrefixFrom(evpn.IPPrefix, int(evpn.IPPrefixLength)).Masked()
		if b, err := evpn.RD.Serialize(); err == nil {
			copy(k.RD[:], b)
		}
		a.VNI = evpn.Label
	}
	if !k.Prefix.IsValid() {
		return r, false
	}
	if r.withdraw {
		return r, true
	}
	a.LocalPref = defaultLocalPref
	a.RouterID = p.PeerID
	d.attributes(p.Attrs, a)
	r.refuse = refusal(k.Prefix, a, evpn, d.ext.encap)
	return r, true
}

// refusal says what makes a path unusable before any policy looks at it.
func refusal(prefix netip.Prefix, a *rib.Attrs, evpn *gobgp.EVPNIPPrefixRoute, encap gobgp.TunnelType) string {
	switch {
	case !a.NextHop.IsValid() || a.NextHop.IsUnspecified():
		return refuseNextHop
	case evpn == nil:
		if a.NextHop.Is4() != prefix.Addr().Is4() {
			return refuseFamily
		}
	case evpn.GWIPAddress.IsValid() && !evpn.GWIPAddress.IsUnspecified() || slices.ContainsFunc(evpn.ESI.Value, func(b byte) bool { return b != 0 }):
		return refuseOverlayIndex
	case a.VNI == 0:
		return refuseVNI
	case encap != 0 && encap != gobgp.TUNNEL_TYPE_VXLAN:
		return refuseEncap
	case a.RouterMAC == [6]byte{}:
		return refuseRouterMAC
	}
	return ""
}

func (d *decoder) attributes(attrs []gobgp.PathAttributeInterface, a *rib.Attrs) {
	hasExt := false
	for _, attr := range attrs {
		switch v := attr.(type) {
		case *gobgp.PathAttributeOrigin:
			a.Origin = rib.Origin(v.Value)
		case *gobgp.PathAttributeAsPath:
			if v != d.asPathOf {
				d.asPathOf, d.asPath = v, segments(v)
			}
			a.ASPath = d.asPath
		case *gobgp.PathAttributeNextHop:
			a.NextHop = v.Value.Unmap()
		case *gobgp.PathAttributeMpReachNLRI:
			a.NextHop = v.Nexthop.Unmap()
			if ll := v.LinkLocalNexthop; ll.IsValid() && (!a.NextHop.IsValid() || a.NextHop.IsUnspecified()) {
				a.NextHop = ll
			}
		case *gobgp.PathAttributeMultiExitDisc:
			a.MED, a.HasMED = v.Value, true
		case *gobgp.PathAttributeLocalPref:
			a.LocalPref = v.Value
		case *gobgp.PathAttributeCommunities:
			if v != d.commsOf {
				d.commsOf, d.comms = v, communities(v)
			}
			a.Communities = d.comms
		case *gobgp.PathAttributeLargeCommunities:
			if v != d.largeOf {
				d.largeOf, d.large = v, largeCommunities(v)
			}
			a.LargeCommunities = d.large
		case *gobgp.PathAttributeExtendedCommunities:
			if v != d.extOf {
				d.extOf, d.ext = v, extendedCommunities(v)
			}
			hasExt = true
		}
	}
	if !hasExt {
		d.extOf, d.ext = nil, extended{}
	}
	a.RTs, a.SiteOfOrigin, a.RouterMAC = d.ext.rts, d.ext.soo, d.ext.mac
}

func segments(v *gobgp.PathAttributeAsPath) []rib.ASSegment {
	var out []rib.ASSegment
	for _, s := range v.Value {
		asns := s.GetAS()
		if len(asns) == 0 {
			continue
		}
		t := s.GetType()
		out = append(out, rib.ASSegment{
			Set:  t == gobgp.BGP_ASPATH_ATTR_TYPE_SET || t == gobgp.BGP_ASPATH_ATTR_TYPE_CONFED_SET,
			ASNs: slices.Clone(asns),
		})
	}
	return out
}

func communities(v *gobgp.PathAttributeCommunities) []rib.Community {
	out := make([]rib.Community, len(v.Value))
	for i, c := range v.Value {
		out[i] = rib.Community(c)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func largeCommunities(v *gobgp.PathAttributeLargeCommunities) []rib.LargeCommunity {
	out := make([]rib.LargeCommunity, len(v.Values))
	for i, c := range v.Values {
		out[i] = rib.LargeCommunity{c.ASN, c.LocalData1, c.LocalData2}
	}
	slices.SortFunc(out, func(a, b rib.LargeCommunity) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(out)
}

func extendedCommunities(v *gobgp.PathAttributeExtendedCommunities) (e extended) {
	for _, c := range v.Value {
		switch c := c.(type) {
		case *gobgp.EncapExtended:
			e.encap = c.TunnelType
			continue
		case *gobgp.RouterMacExtended:
			copy(e.mac[:], c.Mac)
			continue
		}
		t, sub := c.GetTypes()
		if t > gobgp.EC_TYPE_TRANSITIVE_FOUR_OCTET_AS_SPECIFIC {
			continue
		}
		b, err := c.Serialize()
		if err != nil || len(b) != len(rib.RT{}) {
			continue
		}
		switch sub {
		case gobgp.EC_SUBTYPE_ROUTE_TARGET:
			e.rts = append(e.rts, rib.RT(b))
		case gobgp.EC_SUBTYPE_ROUTE_ORIGIN:
			e.soo = rib.RT(b)
		}
	}
	slices.SortFunc(e.rts, func(a, b rib.RT) int { return slices.Compare(a[:], b[:]) })
	e.rts = slices.Compact(e.rts)
	return e
}

// encodeAttrs makes the attributes that all families carry: origin, AS_PATH, MED where there is one, communities.
func encodeAttrs(a *rib.Attrs) []gobgp.PathAttributeInterface {
	out := []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(uint8(a.Origin))}
	params := make([]gobgp.AsPathParamInterface, 0, len(a.ASPath))
	for _, s := range a.ASPath {
		t := uint8(gobgp.BGP_ASPATH_ATTR_TYPE_SEQ)
		if s.Set {
			t = gobgp.BGP_ASPATH_ATTR_TYPE_SET
		}
		// A segment holds at most 255 ASNs (RFC 4271 section 4.3).
		for asns := range slices.Chunk(s.ASNs, 255) {
			params = append(params, gobgp.NewAs4PathParam(t, slices.Clone(asns)))
		}
	}
	out = append(out, gobgp.NewPathAttributeAsPath(params))
	if a.HasMED {
		out = append(out, gobgp.NewPathAttributeMultiExitDisc(a.MED))
	}
	if len(a.Communities) > 0 {
		v := make([]uint32, len(a.Communities))
		for i, c := range a.Communities {
			v[i] = uint32(c)
		}
		out = append(out, gobgp.NewPathAttributeCommunities(v))
	}
	if len(a.LargeCommunities) > 0 {
		v := make([]*gobgp.LargeCommunity, len(a.LargeCommunities))
		for i, c := range a.LargeCommunities {
			v[i] = gobgp.NewLargeCommunity(c[0], c[1], c[2])
		}
		out = append(out, gobgp.NewPathAttributeLargeCommunities(v))
	}
	return out
}

// withNLRI finishes a path: GoBGP takes next hop and NLRI from MP_REACH_NLRI whatever the family.
func withNLRI(f gobgp.Family, nlri gobgp.NLRI, attrs []gobgp.PathAttributeInterface, nextHop netip.Addr, withdraw bool) (*apiutil.Path, error) {
	mp, err := gobgp.NewPathAttributeMpReachNLRI(f, []gobgp.PathNLRI{{NLRI: nlri}}, nextHop)
	if err != nil {
		return nil, err
	}
	return &apiutil.Path{Family: f, Nlri: nlri, Attrs: append(attrs, mp), Withdrawal: withdraw}, nil
}

// encodeEVPN makes a type 5 path (RFC 9136 section 3) of the interface-less model (section 4.4.1): no ESI, Ethernet tag
// and gateway address 0, the L3VNI as it is in the label field (RFC 8365 section 5.1.3), the router's MAC and VXLAN as
// extended communities.
func encodeEVPN(o *Origination, vtep netip.Addr, mac [6]byte, prefix netip.Prefix, a *rib.Attrs, withdraw bool) (*apiutil.Path, error) {
	gw := netip.IPv6Unspecified()
	if prefix.Addr().Is4() {
		gw = netip.IPv4Unspecified()
	}
	esi := gobgp.EthernetSegmentIdentifier{Type: gobgp.ESI_ARBITRARY, Value: make([]byte, 9)}
	nlri, err := gobgp.NewEVPNIPPrefixRoute(gobgp.GetRouteDistinguisher(o.RD[:]), esi, 0, uint8(prefix.Bits()), prefix.Addr(), gw, o.VNI)
	if err != nil {
		return nil, fmt.Errorf("%s in VRF %s: %w", prefix, o.VRF, err)
	}
	attrs := encodeAttrs(a)
	var ext []gobgp.ExtendedCommunityInterface
	rts := o.RTs
	if a.SiteOfOrigin != (rib.RT{}) {
		rts = append(slices.Clip(rts), a.SiteOfOrigin)
	}
	for _, rt := range rts {
		e, err := gobgp.ParseExtended(rt[:])
		if err != nil {
			return nil, fmt.Errorf("%s in VRF %s: route target %x: %w", prefix, o.VRF, rt, err)
		}
		ext = append(ext, e)
	}
	ext = append(ext, gobgp.NewEncapExtended(gobgp.TUNNEL_TYPE_VXLAN),
		gobgp.NewRoutersMacExtended(net.HardwareAddr(mac[:]).String()))
	attrs = append(attrs, gobgp.NewPathAttributeExtendedCommunities(ext))
	return withNLRI(gobgp.RF_EVPN, nlri, attrs, vtep, withdraw)
}

// peerTarget is the route distinguisher and the route target of a peer's GoBGP VRF; they never leave the process.
func peerTarget(n uint32) (gobgp.RouteDistinguisherInterface, gobgp.ExtendedCommunityInterface) {
	return gobgp.NewRouteDistinguisherTwoOctetAS(0, n),
		gobgp.NewTwoOctetAsSpecificExtended(gobgp.EC_SUBTYPE_ROUTE_TARGET, 0, n, true)
}

// encodeUnicast makes a path that GoBGP announces to the one peer whose VRF has number n.
func encodeUnicast(n uint32, prefix netip.Prefix, a *rib.Attrs, withdraw bool) (*apiutil.Path, error) {
	rd, rt := peerTarget(n)
	nlri, err := gobgp.NewLabeledVPNIPAddrPrefix(prefix, *gobgp.NewMPLSLabelStack(0), rd)
	if err != nil {
		return nil, err
	}
	f, nextHop := gobgp.RF_IPv6_VPN, netip.IPv6Unspecified()
	if prefix.Addr().Is4() {
		f, nextHop = gobgp.RF_IPv4_VPN, netip.IPv4Unspecified()
	}
	if a.NextHop.IsValid() {
		nextHop = a.NextHop
	}
	attrs := append(encodeAttrs(a), gobgp.NewPathAttributeExtendedCommunities([]gobgp.ExtendedCommunityInterface{rt}))
	if a.LocalPref != defaultLocalPref {
		attrs = append(attrs, gobgp.NewPathAttributeLocalPref(a.LocalPref))
	}
	return withNLRI(f, nlri, attrs, nextHop, withdraw)
}

// seed of the fingerprints: another one in each process, so that nobody can aim for a collision.
var seed = maphash.MakeSeed()

// fingerprint tells announcements apart, so that an unchanged one is not sent again.
func fingerprint(a *rib.Attrs) uint64 {
	b := make([]byte, 0, 128)
	b = append(b, byte(a.Origin))
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.ASPath)))
	for _, s := range a.ASPath {
		b = strconv.AppendBool(b, s.Set)
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.ASNs)))
		for _, asn := range s.ASNs {
			b = binary.BigEndian.AppendUint32(b, asn)
		}
	}
	nh := a.NextHop.AsSlice()
	b = append(append(b, byte(len(nh))), nh...)
	b = strconv.AppendBool(b, a.HasMED)
	b = binary.BigEndian.AppendUint32(b, a.MED)
	b = binary.BigEndian.AppendUint32(b, a.LocalPref)
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.Communities)))
	for _, c := range a.Communities {
		b = binary.BigEndian.AppendUint32(b, uint32(c))
	}
	for _, l := range a.LargeCommunities {
		for _, v := range l {
			b = binary.BigEndian.AppendUint32(b, v)
		}
	}
	b = append(b, a.SiteOfOrigin[:]...)
	return maphash.Bytes(seed, b)
}
