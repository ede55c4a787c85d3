// Package rib holds the routing information bases of a gateway, one per VRF: paths from every source, the decision
// which of them is best and why, next-hop tracking, and change feeds for those who act on the choice (kernel, cloud,
// neighbours). It is pure: no goroutine, no socket, no clock.
package rib

import (
	"net/netip"
)

// SourceKind says where a path came from.
type SourceKind uint8

// The source kinds. A lower kind is preferred where both are present (administrative distance).
const (
	// Connected is a network on one of our interfaces or loopbacks.
	Connected SourceKind = iota + 1
	// Static comes from the intent: a prefix with or without next hop.
	Static
	// Peer is a third-party BGP neighbour in a VRF.
	Peer
	// Fabric is another gateway, by EVPN type 5 (RFC 9136).
	Fabric
)

// String returns "connected", "static", "peer" or "fabric".
func (k SourceKind) String() string {
	switch k {
	case Connected:
		return "connected"
	case Static:
		return "static"
	case Peer:
		return "peer"
	case Fabric:
		return "fabric"
	}
	return "unknown"
}

// Source names one origin of paths. It is comparable and serves as a map key.
type Source struct {
	Kind SourceKind
	// VRF is the VRF that the source itself lives in; "" for Fabric, whose paths are imported by route target.
	VRF string
	// Name is the peer's name from the intent, the remote gateway's name, or "" for Connected and Static.
	Name string
	// Addr is the neighbour's address; the VTEP for Fabric; zero for Connected and Static.
	Addr netip.Addr
}

// PathKey identifies a path: one source has at most one path for a prefix, RD and path id.
type PathKey struct {
	Source Source
	Prefix netip.Prefix
	// RD is the route distinguisher of an EVPN path, in wire order; zero for all others.
	RD RD
	// PathID is the add-path identifier (RFC 7911); 0 without.
	PathID uint32
}

// RD is a route distinguisher (RFC 4364 section 4.2) in wire order.
type RD [8]byte

// RT is a route target extended community (RFC 4360) in wire order.
type RT [8]byte

// Community is a BGP community (RFC 1997).
type Community uint32

// LargeCommunity is a large community (RFC 8092).
type LargeCommunity [3]uint32

// Origin is the ORIGIN attribute (RFC 4271 section 5.1.1). Lower is preferred.
type Origin uint8

// The origins.
const (
	OriginIGP Origin = iota
	OriginEGP
	OriginIncomplete
)

// ASSegment is one segment of an AS_PATH. A set counts as one hop.
type ASSegment struct {
	Set  bool
	ASNs []uint32
}

// Attrs are the attributes of a path. Values are immutable once they are in a Table and may be shared.
type Attrs struct {
	Origin    Origin
	ASPath    []ASSegment
	NextHop   netip.Addr
	MED       uint32
	HasMED    bool
	LocalPref uint32 // 100 where the path carries none
	// Communities and the like are in ascending order without duplicates.
	Communities      []Community
	LargeCommunities []LargeCommunity
	// RTs are the route targets of an EVPN path.
	RTs []RT
	// SiteOfOrigin is the site-of-origin extended community (RFC 4364 section 7) or zero.
	SiteOfOrigin RT
	// RouterMAC and VNI of an EVPN type 5 path (RFC 9135 section 8.1, RFC 9136); zero for others.
	RouterMAC [6]byte
	VNI       uint32
	// RouterID is the BGP identifier of the speaker the path came from; breaks ties.
	RouterID netip.Addr
}

// Path is one way to a prefix.
type Path struct {
	Key   PathKey
	Attrs Attrs
	// Interface is the device of the next hop, where it is known: a connected network's, a static's, a link-local peer's.
	Interface string
	// Stale marks a path kept over a graceful restart (RFC 4724).
	Stale bool
	// LocalOnly keeps a static path out of every announcement.
	LocalOnly bool
	// Policy is what the import policy said, for explain: "POLICY/TERM".
	Policy string
}

// Hop is the next hop of the path in the context it is resolved in: the VTEP in "" for a fabric path, an address in the
// source's own VRF for all others. The Addr is zero where the path has no next hop.
func (p *Path) Hop() NextHop {
	if p.Key.Source.Kind == Fabric {
		return NextHop{Addr: p.Attrs.NextHop}
	}
	return NextHop{VRF: p.Key.Source.VRF, Addr: p.Attrs.NextHop}
}

// Reach says whether a next hop, or what a source told, can be used.
type Reach uint8

// The reachabilities. A next hop or source nobody has spoken about counts as Reachable.
const (
	Reachable Reach = iota
	Unreachable
)

// NextHop is a next hop in the context it is resolved in. VRF is "" for VTEPs. A link-local address that occurs on
// more than one device carries its device as the zone, in paths and here alike.
type NextHop struct {
	VRF  string
	Addr netip.Addr
}

// Key is one choice to make: the best path to a prefix in a VRF.
type Key struct {
	VRF    string
	Prefix netip.Prefix
}

// Reason says by which step of the decision process the best path beat the runner-up.
type Reason string

// The reasons, in the order of the steps (RFC 4271 section 9.1.2.2 and our administrative distance before it).
const (
	OnlyPath        Reason = "only path"
	ByLiveness      Reason = "neighbour alive (BFD)"
	ByReachability  Reason = "next hop reachable"
	BySource        Reason = "source (connected, static, BGP)"
	ByLocalPref     Reason = "local preference"
	ByASPathLength  Reason = "AS_PATH length"
	ByOrigin        Reason = "origin"
	ByMED           Reason = "MED"
	ByNeighbourKind Reason = "site's own peer before fabric"
	ByFresh         Reason = "fresh before stale"
	ByRouterID      Reason = "router id"
	ByAddress       Reason = "neighbour address"
	// ByPathID tells apart two paths of one neighbour: by route distinguisher, path id and, last, name.
	ByPathID Reason = "RD, path id"
)

// Choice is the outcome for one Key. The zero Choice (no Best) says that there is no usable path: remove it.
type Choice struct {
	Key Key
	// Best is nil where nothing is usable.
	Best *Path
	// Equal are the paths of BGP that tie with Best up to and with MED and share traffic with it, in order of preference and each
	// with a next hop of its own; none unless the VRF has Multipath.
	Equal []*Path
	// RunnerUp is the next best usable path with another next hop than Best and Equal, or nil.
	RunnerUp *Path
	// Reason is why Best comes before the next best path with another next hop, which may be one of Equal.
	Reason Reason
}

// VRF is a routing domain of a Table.
type VRF struct {
	Name string
	// Import are the route targets of fabric paths that come in.
	Import []RT
	// Multipath is how many paths may share traffic, Best among them; less than 2: one.
	Multipath int
	// Resolve says that the next hops of peers and static routes are looked for: on Networks, which the VRF's interfaces are on, or through
	// other routes of the VRF. A path whose next hop leads nowhere is not usable then (RFC 4271 section 9.1.2.1), unless it names its
	// Interface. Without Resolve any next hop will do, and Table.Resolve knows of none.
	Resolve  bool
	Networks []Network
}
