package bgp

import (
	"net/netip"
	"time"

	"fabric/bgp/rib"
	"fabric/policy"
)

// The address families of a session.
const (
	IPv4 = "ipv4" // IPv4 unicast
	IPv6 = "ipv6" // IPv6 unicast
	EVPN = "evpn" // L2VPN EVPN (RFC 7432), of which only type 5 (RFC 9136) is used
)

// Desired is all that the speakers of a gateway shall be.
type Desired struct {
	// Fabric is the server towards other gateways.
	Fabric *Server
	// VRFs are the servers towards third parties, one for each VRF that has peers, in the order of the intent.
	VRFs []Server
	// Originations are the VRFs whose choices are announced to other gateways; none while the gateway is drained.
	Originations []Origination
	// Imports are the VRFs of this gateway that take paths from the fabric.
	Imports []Import
}

// Origination says how the choices of a VRF are announced to other gateways.
type Origination struct {
	VRF string
	VNI uint32
	// RD is of type 1 (RFC 4364 section 4.2): the router id, and the low 16 bits of the table's number.
	RD rib.RD
	// RTs are the export route targets.
	RTs []rib.RT
	// Export is what may leave.
	Export policy.Policy
}

// Import is a VRF that takes paths from the fabric.
type Import struct {
	VRF string
	RTs []rib.RT
	// AllowDefault lets default routes in.
	AllowDefault bool
	// Multipath is how many equal paths share traffic.
	Multipath int
}

// Server is one BGP speaker.
type Server struct {
	// VRF is the VRF's name, "" for the fabric.
	VRF      string
	ASN      uint32
	RouterID netip.Addr
	// Listen are the local addresses; none means the wildcards, which only a server with a VRF device may use.
	Listen []netip.Addr
	// Port is the TCP port listened on.
	Port int
	// BindDevice binds all listeners to a device: the VRF's, or in rules mode the one device that all peers share.
	BindDevice string
	// Silent announces nothing: the gateway is drained.
	Silent bool
	Peers  []Peer
}

// Peer is one neighbour of a Server.
type Peer struct {
	// Name is unique in the Server: a gateway's or the intent's peer name.
	Name string
	// VRF is the Server's.
	VRF     string
	Address netip.Addr
	ASN     uint32
	// LocalASN is ours towards this peer.
	LocalASN uint32
	// LocalAddress is our address of the session; zero leaves it to the kernel.
	LocalAddress netip.Addr
	// Interface is the device the peer is on, BindDevice what the session's socket is bound to; "" is neither.
	Interface, BindDevice string
	// Families are IPv4, IPv6, EVPN.
	Families []string
	Passive  bool
	// Multihop is the TTL of a session to a neighbour that is not directly connected; 0 means directly connected.
	Multihop int
	// TTLSecurity is the number of hops the neighbour may be away (RFC 5082); 0 is off.
	TTLSecurity int
	// PasswordFile holds the TCP MD5 key (RFC 2385).
	PasswordFile string
	// Port is the neighbour's TCP port.
	Port int
	// Keepalive, Hold, ConnectRetry and RestartTime have a resolution of one second.
	Keepalive, Hold, ConnectRetry, RestartTime time.Duration
	// Import is what paths from the peer go through: guard, own AS, and the intent's policy.
	Import policy.Policy
	// Export is what paths to the peer go through: guard, and the intent's policy.
	Export policy.Policy
	// NextHop4 and NextHop6 are what the peer is told as next hop; zero is our address of the session.
	NextHop4, NextHop6 netip.Addr
	// Own are our addresses in the VRF, and Networks what is connected on the peer's device: a next hop that it sends must not be
	// the one and, with a directly connected neighbour, must be on the other (RFC 4271 section 6.3). No Networks: not checked.
	Own      []netip.Addr
	Networks []netip.Prefix
	// ExtendedNextHop: IPv4 paths have IPv6 next hops in both directions (RFC 8950); NextHop4 is zero then.
	ExtendedNextHop bool
	// ASOverride replaces the peer's ASN by ours in what it is told.
	ASOverride bool
	// MaxPrefix is the number of prefixes admitted per family; 0 is no limit.
	MaxPrefix int
	Disabled  bool
	// BFD: there is a session only while BFD says that the neighbour is alive; see SetLiveness.
	BFD bool
}

// Source is what the RIB knows the peer by.
func (p *Peer) Source() rib.Source {
	if p.VRF == "" {
		return rib.Source{Kind: rib.Fabric, Name: p.Name, Addr: p.Address}
	}
	return rib.Source{Kind: rib.Peer, VRF: p.VRF, Name: p.Name, Addr: p.Address}
}

// neighbour is the address that GoBGP knows the peer by: link-local ones with their device.
func (p *Peer) neighbour() netip.Addr {
	if p.Address.IsLinkLocalUnicast() && p.Address.Is6() {
		return p.Address.WithZone(p.Interface)
	}
	return p.Address
}

// internal says whether the session is iBGP.
func (p *Peer) internal() bool { return p.ASN == p.LocalASN }

// HostFacts is what Compile must know of the host.
type HostFacts struct {
	// VRFDevices are the VRF devices by VRF name. A VRF without one is made of rules and marks, or is the main table.
	VRFDevices map[string]string
}
