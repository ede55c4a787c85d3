package kernel

import "context"

// Host gives the edges of one network namespace. linux.Host and kerneltest.Kernel both satisfy it. Edges may be used from
// any goroutine; each takes its turns inside. All of them implement reconcile.Equaler, so a wish with open fields
// (an MTU of 0) compares equal with what leaves nothing to do.
type Host interface {
	// Features says what this kernel offers.
	Features() Features
	// Links are our devices of the kinds named, or of every kind when none is named.
	Links(kinds ...LinkKind) Links
	// Ports are the devices that names returns at each Observe, and any other device that stands in a VRF device of ours.
	Ports(names func() []string) Ports
	// Addresses are those whose IFA_PROTO is protocol.
	Addresses(protocol uint8) Addresses
	// Rules are those whose FRA_PROTOCOL is protocol.
	Rules(protocol uint8) Rules
	// Routes are those with protocol in tables; in every table when none is named.
	Routes(protocol uint8, tables ...uint32) Routes
	// NextHops are next-hop objects with protocol.
	NextHops(protocol uint8) NextHops
	// Neighbours are permanent neighbour entries on our VXLAN devices of the kinds named: KindVXLAN when none is.
	Neighbours(kinds ...LinkKind) Neighbours
	// FDB are the forwarding entries of our VXLAN devices.
	FDB() FDB
	// Sysctls are the keys that keys returns at each Observe.
	Sysctls(keys func() []string) Sysctls
	// Filters are nft tables of family inet with these names.
	Filters(names ...string) Filters
	// WireGuards are the configurations of our tunnel devices.
	WireGuards() WireGuards
	// MoveLocalRule moves the rule "from all lookup local" of both families to priority pref; it adds the new one before
	// it deletes the old. A pref of 0 moves it back. Doing it twice changes nothing.
	MoveLocalRule(ctx context.Context, pref uint32) error
	// Strangers says, a sentence each, what in these tables is neither ours nor the kernel's own: at most MaxStrangers
	// routes (of any type), how many more, and every VRF device of somebody else on one of the tables. It changes nothing.
	// A sentence names the object and its owner. It reads the tables whole.
	Strangers(ctx context.Context, tables []uint32) ([]string, error)
	// Watch calls wake whenever somebody else changed the kernel, until ctx ends; it returns nil then. A wake carries
	// no more than which kinds of objects to look at; lost events (ENOBUFS) wake all.
	Watch(ctx context.Context, wake func(Changed)) error
}

// Changed is a set of kinds of kernel objects that somebody else changed.
type Changed uint16

// The kinds of objects that Watch tells apart.
const (
	ChangedLinks Changed = 1 << iota
	ChangedAddresses
	ChangedRoutes
	ChangedRules
	ChangedNextHops
	ChangedNeighbours
	// ChangedFilters is a change of any nft table.
	ChangedFilters
	// ChangedAll is everything: events were lost.
	ChangedAll = ChangedLinks | ChangedAddresses | ChangedRoutes | ChangedRules | ChangedNextHops | ChangedNeighbours |
		ChangedFilters
)
