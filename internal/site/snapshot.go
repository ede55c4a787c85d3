// Package site is one running gateway: it compiles the intent, wires the parts, owns every goroutine, and publishes
// immutable snapshots of what is so.
package site

import (
	"net/netip"
	"time"

	"fabric/overlay/links"
)

// Snapshot is what the gateway knows of itself at one moment. It is immutable.
type Snapshot struct {
	Taken time.Time
	Site  SiteStatus
	VRFs  []VRFStatus
	Peers []PeerStatus
	// Prefixes are what this gateway originates, by VRF and prefix.
	Prefixes []PrefixStatus
	// Tunnels and BFD Sessions are as fabric-links last told them; they are not to be changed.
	Tunnels  []links.TunnelState
	Sessions []links.SessionState
	Clouds   []CloudStatus
}

// SiteStatus sums up the gateway.
type SiteStatus struct {
	Fabric, Site, Gateway string
	ASN                   uint32
	VTEP                  netip.Addr
	RouterID              netip.Addr
	Version               string
	Started               time.Time
	// Generation is the intent's; Applied is the newest generation that has been fully applied.
	Generation, Applied uint64
	// Ready is true once systemd was told so.
	Ready   bool
	Drained bool
	// LinksConnected says whether fabric-links answers; LinksErr why not.
	LinksConnected bool
	LinksErr       string
	// Backend is "vrf-device" or "rules".
	Backend string
	// Problems are what an operator should look at, each a sentence.
	Problems []string
}

// VRFStatus is one VRF at this gateway.
type VRFStatus struct {
	Name  string
	Table uint32
	VNI   uint32
	// Device is the VRF device's name or "" in rules mode; VXLAN the VXLAN device's name.
	Device, VXLAN string
	Interfaces    []string
	ImportRT      []string
	ExportRT      []string
	// Routes counts rib choices, Kernel the routes of ours in the kernel's table.
	Routes, Kernel int
	// InSync says whether the kernel's table equals the choice.
	InSync bool
	Err    string
}

// PeerStatus is one BGP neighbour: a third party in a VRF, or another gateway (VRF "").
type PeerStatus struct {
	VRF, Name string
	Address   netip.Addr
	ASN       uint32
	LocalASN  uint32
	// Fabric says that the neighbour is another gateway.
	Fabric bool
	// State is the FSM's (RFC 4271 section 8.2.2): "idle", "connect", "active", "opensent", "openconfirm", "established".
	State string
	Since time.Time
	// Disabled by the intent; Frozen: at max-prefix, new prefixes are refused.
	Disabled, Frozen bool
	Received         int
	Admitted         int
	Rejected         int
	Advertised       int
	MaxPrefix        int
	Families         []string
	// Restarting says that paths are kept over the neighbour's graceful restart.
	Restarting bool
	LastError  string
	Hold       time.Duration
	Keepalive  time.Duration
	Flaps      int
	// BFD is "" without BFD, else "up", "down", "waits" (never up so far, or up but for the hold-off) or "admin-down".
	BFD string
}

// PrefixStatus is one prefix that this gateway originates.
type PrefixStatus struct {
	VRF     string
	Prefix  netip.Prefix
	NextHop netip.Addr
	// Source is "document", "mutation", "interface" or "loopback".
	Source string
	// Announced into the fabric.
	Announced bool
	Shared    bool
	Err       string
}

// RouteStatus is one rib choice and what became of it.
type RouteStatus struct {
	VRF     string
	Prefix  netip.Prefix
	NextHop netip.Addr
	// Via is the device.
	Via string
	// Source is "connected", "static", "peer" or "fabric"; From names the peer or gateway.
	Source, From string
	ASPath       string
	Communities  []string
	LocalPref    uint32
	MED          uint32
	VNI          uint32
	Reason       string
	RunnerUp     string
	// NextHops are those that traffic takes where a next-hop set decides: several that share it, or a spare one that has taken over. VTEPs
	// of other gateways are among them.
	NextHops []string
	Stale    bool
	// Kernel says whether the kernel's table holds it: "ok", "pending" or an error.
	Kernel string
	// Cloud says the same of the VPC tables, "" where none.
	Cloud string
}

// Explanation says why a prefix is routed as it is: all candidates in order of preference.
type Explanation struct {
	VRF    string
	Prefix netip.Prefix
	// Matched is the route that covers the prefix asked for, if that is another.
	Matched    netip.Prefix
	Candidates []Candidate
	// Rejected are paths that policy or the guard refused, with the term that did.
	Rejected []Candidate
	// Lines tell the story in sentences: chosen why, kernel, cloud, announced to whom.
	Lines []string
}

// Candidate is one path of an Explanation.
type Candidate struct {
	Route RouteStatus
	Best  bool
	// Equal: it shares traffic with the best.
	Equal bool
	// Why it lost or was refused; for the best, why it won.
	Why string
}

// CloudStatus is one VPC route table.
type CloudStatus struct {
	Provider, Region, VPC, Table string
	// Instance is the next hop of our entries.
	Instance string
	// Desired, Owned and Foreign count entries; Quota is the limit.
	Desired, Owned, Foreign, Quota int
	Entries                        []CloudEntry
	// Plan is what the next pass would do, in words.
	Plan     []string
	LastSync time.Time
	InSync   bool
	Err      string
}

// CloudEntry is one entry of a VPC table that is ours or wanted.
type CloudEntry struct {
	Prefix  netip.Prefix
	NextHop string
	// State is "available", "pending", "modifying", "deleting", "missing" or "conflict".
	State string
	Err   string
}
