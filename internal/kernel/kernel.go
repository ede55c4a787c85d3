// Package kernel holds the words for objects of the host: links, addresses, rules, routes, neighbours, forwarding
// entries, next hops, packet filter and sysctls. It speaks to no kernel itself: kernel/linux does (netlink, wgctrl, nftables),
// and kernel/kerneltest is a model of one. Both pass the same conformance suite.
//
// Ownership can be read back from every object (Protocol on routes, rules and next hops; Alias on links; the table's name and
// comment in nftables), and each Edge observes only what is ours. What is found foreign at a key we want is reported as
// *reconcile.ForeignError and left alone.
package kernel

import (
	"net/netip"

	"fabric/internal/reconcile"
)

// Protocol is the rtm_protocol that marks our routes, rules, addresses and next hops; see systemd/rt_protos.d. It is none
// of those that linux/rtnetlink.h names or that FRR takes for its own (186 to 198).
const Protocol = 201

// ProtocolLinks marks what fabric-links owns: VTEP routes and next-hop objects.
const ProtocolLinks = 202

// Metric is the priority of all our routes in VRF tables.
const Metric = 201

// BackstopMetric is the worst metric: of unreachable routes behind our own (FRR reads 0xFF002000 as distance 255, metric 8192).
const BackstopMetric = 4278198272

// MainTable and LocalTable are the kernel's own tables.
const (
	MainTable  = 254
	LocalTable = 255
)

// AliasPrefix begins the alias of every link that is ours; the full name follows.
const AliasPrefix = "fabric:"

// LinkKind is the type of a link.
type LinkKind string

// The kinds of links that we make.
const (
	KindVRF       LinkKind = "vrf"
	KindVXLAN     LinkKind = "vxlan"
	KindWireGuard LinkKind = "wireguard"
	// KindDirect is a VXLAN device with one remote: a tunnel without encryption. To the kernel it is a VXLAN device too.
	KindDirect LinkKind = "direct"
	// KindTUN is a userspace WireGuard's device. It is created by the tunnel process; a link edge sets its MTU,
	// alias and state but neither creates nor deletes it.
	KindTUN LinkKind = "tun"
)

// Link is a network device of ours. Key: Name.
type Link struct {
	// Name has at most 15 bytes.
	Name string
	Kind LinkKind
	// Alias is AliasPrefix and the full name.
	Alias string
	// MTU in bytes; 0 leaves it.
	MTU int
	// Up is the administrative state.
	Up bool
	// Table of a VRF device.
	Table uint32
	// VXLAN settings.
	VXLAN VXLAN
	// MAC is the hardware address; zero leaves it.
	MAC [6]byte
	// Spread lets the flows of a VXLAN device take several ways: without it the kernel remembers the way of the first one for all.
	Spread bool
	// Master is the name of the VRF device it is enslaved to, or "".
	Master string
}

// VXLAN are the settings of a VXLAN device: always nolearning, with static forwarding entries.
type VXLAN struct {
	VNI   uint32
	Local netip.Addr
	// Remote is where a KindDirect device sends everything; zero for the others.
	Remote netip.Addr
	Port   uint16
}

// Port is a device that is not ours (an interface of the intent): we only enslave it and set its MTU. Key: Name.
type Port struct {
	Name   string
	Master string
	MTU    int
}

// AddressKey names an address on a device.
type AddressKey struct {
	Device string
	Prefix netip.Prefix
}

// Address is an address on a device; ours are marked with the address protocol (IFA_PROTO) where the kernel has it
// and are listed in the state otherwise.
type Address struct {
	// NoPrefixRoute keeps the kernel from adding the connected route (rules mode: it belongs in the VRF's table).
	NoPrefixRoute bool
	// NoDAD makes an IPv6 address usable at once.
	NoDAD bool
}

// RuleKey identifies a policy rule; ours carry Protocol.
type RuleKey struct {
	IPv6     bool
	Priority uint32
	// Iif and Oif match the incoming or outgoing device, "" any.
	Iif, Oif string
	// Src and Dst match prefixes, zero any.
	Src, Dst netip.Prefix
	// Mark matches the packet mark under Mask; Mask 0 is any.
	Mark, Mask uint32
}

// RuleAction is what a rule does.
type RuleAction uint8

// The actions.
const (
	Lookup RuleAction = iota
	RuleUnreachable
)

// Rule is the value of a RuleKey.
type Rule struct {
	Action RuleAction
	// Table for Lookup.
	Table uint32
	// L3MDEV is the rule "lookup [l3mdev-table]"; Table is 0 then.
	L3MDEV bool
}

// RouteKey identifies a route.
type RouteKey struct {
	Table  uint32
	Prefix netip.Prefix
	Metric uint32
}

// RouteType is the kind of a route.
type RouteType uint8

// The types.
const (
	Unicast RouteType = iota
	// Local delivers to this host.
	Local
	// UnreachableRoute answers ICMP unreachable.
	UnreachableRoute
	// Blackhole drops.
	Blackhole
)

// Scope is the scope of an IPv4 route; ignored for IPv6.
type Scope uint8

// The scopes.
const (
	Universe  Scope = 0
	LinkScope Scope = 253
	HostScope Scope = 254
)

// Route is the value of a RouteKey. It is comparable.
type Route struct {
	Type  RouteType
	Scope Scope
	// NextHopID refers to a next-hop object; the other next-hop fields are zero then.
	NextHopID uint32
	Gateway   netip.Addr
	Device    string
	OnLink    bool
	// Src is the preferred source address.
	Src netip.Addr
	// MTU locks nothing; 0 is the device's.
	MTU int
	// Protocol marks the owner.
	Protocol uint8
}

// NextHop is a next-hop object (RTM_NEWNEXTHOP). Key: its id, uint32.
type NextHop struct {
	// Device and Gateway of a single next hop.
	Device  string
	Gateway netip.Addr
	OnLink  bool
	// Group lists the ids of a multipath group, in ascending order, joined by commas; "" for a single next hop.
	// (A string so that values compare.)
	Group string
	// Blackhole drops what is sent to it.
	Blackhole bool
	Protocol  uint8
}

// NextHopRank is the place of an operation among those of one Apply, lowest first: groups are made behind the single next hops they refer
// to, and deleted before them.
func NextHopRank(op reconcile.Op[uint32, NextHop]) int {
	switch {
	case op.Kind != reconcile.Delete && op.New.Group == "":
		return 0
	case op.Kind != reconcile.Delete:
		return 1
	case op.Old.Group != "":
		return 2
	}
	return 3
}

// NeighbourKey identifies a permanent neighbour entry (ARP, ND).
type NeighbourKey struct {
	Device string
	Addr   netip.Addr
}

// Neighbour is the value of a NeighbourKey.
type Neighbour struct{ MAC [6]byte }

// FDBKey identifies a forwarding entry of a VXLAN device.
type FDBKey struct {
	Device string
	MAC    [6]byte
}

// FDBEntry is the value of an FDBKey: the remote VTEP.
type FDBEntry struct{ Dst netip.Addr }

// WireGuardPeer is the one peer of a tunnel interface. It is comparable but for nothing secret: it holds none.
type WireGuardPeer struct {
	PublicKey [32]byte
	// Endpoint is zero on the passive side (X15).
	Endpoint netip.AddrPort
	// Keepalive in seconds; 0 is off.
	Keepalive int
	// PresharedKeyFile or "".
	PresharedKeyFile string
}

// WireGuard configures one tunnel interface. Key: device name.
type WireGuard struct {
	ListenPort     int
	PrivateKeyFile string
	// Peer's allowed-IPs are always 0.0.0.0/0 and ::/0: routing decides.
	Peer WireGuardPeer
	// FwMark of the outer packets; 0 none.
	FwMark int
}

// Features says what the running kernel offers; found by trying, once, at start.
type Features struct {
	// VRF devices (CONFIG_NET_VRF).
	VRF bool
	// WireGuard devices (CONFIG_WIREGUARD).
	WireGuard bool
	// NextHops: next-hop objects.
	NextHops bool
	// RuleProtocol: FRA_PROTOCOL on rules.
	RuleProtocol bool
	// AddressProtocol: IFA_PROTO on addresses (Linux 5.18).
	AddressProtocol bool
	// Release is the kernel's release string.
	Release string
}

// The edges. linux.New and kerneltest.New both return values of all of these.
type (
	// Links of kinds KindVRF, KindVXLAN, KindDirect, KindWireGuard, KindTUN whose alias begins with AliasPrefix.
	Links = reconcile.Edge[string, Link]
	// Ports are devices we enslave. Observe returns those named to the edge's constructor.
	Ports = reconcile.Edge[string, Port]
	// Addresses on our links and ports and on lo.
	Addresses = reconcile.Edge[AddressKey, Address]
	// Rules with our protocol.
	Rules = reconcile.Edge[RuleKey, Rule]
	// Routes with the protocol and in the tables named to the constructor.
	Routes = reconcile.Edge[RouteKey, Route]
	// NextHops with the protocol named to the constructor.
	NextHops = reconcile.Edge[uint32, NextHop]
	// Neighbours are permanent entries on our VXLAN devices of the kinds named to the constructor.
	Neighbours = reconcile.Edge[NeighbourKey, Neighbour]
	// FDB entries of our VXLAN devices.
	FDB = reconcile.Edge[FDBKey, FDBEntry]
	// Sysctls: key is the dotted path below /proc/sys; Delete leaves the value.
	Sysctls = reconcile.Edge[string, string]
	// Filters is the one nft table of each family named by the Filter. Key: table name.
	Filters = reconcile.Edge[string, Filter]
	// WireGuards are tunnel interface configurations.
	WireGuards = reconcile.Edge[string, WireGuard]
)

// Filter is the contents of one nft table of family inet. It is compared by value, so slices are kept out: Devices
// and the like are sorted and joined by commas.
type Filter struct {
	// Comment marks the table as ours: AliasPrefix and the gateway's name.
	Comment string
	// Clamps are the TCP MSS clamps in bytes: for traffic forwarded through, received from or sent to Devices,
	// both directions (X18, X19).
	MSS4, MSS6 int
	// ClampDevices is a sorted comma-joined list of devices the clamp acts on.
	ClampDevices string
	// VXLANPort is dropped in and out on every device but those of VXLANDevices (decision 11). 0: no guard.
	VXLANPort int
	// VXLANDevices is a sorted comma-joined list of tunnel devices.
	VXLANDevices string
	// DirectPort is the UDP port of tunnels without encryption: what comes in on it from any address but DirectSources is dropped.
	// 0: no guard.
	DirectPort int
	// DirectSources is a sorted comma-joined list of the far ends' addresses.
	DirectSources string
	// Marks are "device=mark" entries, sorted, comma-joined: in prerouting, packets that come in on device get the mark
	// (rules mode). mark is decimal.
	Marks string
}
