package kernel

import "net/netip"

// Survey is what stands on a host whoever made it, for a look before anything is changed. A part that could not be read is
// empty and named in Unread.
type Survey struct {
	Devices   []Device
	Addresses []AddressKey
	Rules     []FoundRule
	// NextHops are the next-hop objects by id.
	NextHops map[uint32]NextHop
	Tables   []FilterTable
	Chains   []FilterChain
	// VXLAN reports whether the kernel makes VXLAN devices.
	VXLAN  bool
	Unread []Unread
}

// Unread is a part of the host that could not be read.
type Unread struct {
	// Part is "devices", "addresses", "rules", "next hops", "nftables" or what else was looked at.
	Part string
	Err  error
}

// Device is a network device, ours or not.
type Device struct {
	Name, Alias, Master string
	// Kind is rtnetlink's, "" for a physical device.
	Kind LinkKind
	MTU  int
	Up   bool
	// Table of a VRF device, VXLAN of a VXLAN device.
	Table uint32
	VXLAN VXLAN
}

// FoundRule is a policy rule, ours or not.
type FoundRule struct {
	Key      RuleKey
	Rule     Rule
	Protocol uint8
	// Odd is set when it has an action or a match that RuleKey and Rule have no words for.
	Odd bool
}

// FilterTable is an nft table.
type FilterTable struct {
	// Family is "ip", "ip6", "inet", "arp", "bridge" or "netdev".
	Family, Name string
	// Comment is that of the owner chain where there is one: Filter.Comment.
	Comment string
	// Clamps is the number of rules that set the MSS, Clamped the number of packets whose MSS they lowered.
	Clamps  int
	Clamped uint64
}

// FilterChain is a base chain of type filter.
type FilterChain struct {
	Family, Table, Name string
	// Hook is "input", "forward" and so on.
	Hook string
	// Drops is set when what no rule accepts is dropped: by the policy, or by a last rule without a condition.
	Drops bool
}

// Has reports whether a device has the address.
func (s *Survey) Has(device string, a netip.Addr) bool {
	for _, k := range s.Addresses {
		if k.Device == device && k.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// Device returns a device by name.
func (s *Survey) Device(name string) (Device, bool) {
	for _, d := range s.Devices {
		if d.Name == name {
			return d, true
		}
	}
	return Device{}, false
}

// Ours reports whether the alias says so.
func (d Device) Ours() bool {
	return len(d.Alias) >= len(AliasPrefix) && d.Alias[:len(AliasPrefix)] == AliasPrefix
}
