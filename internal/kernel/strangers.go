package kernel

import "fmt"

// MaxStrangers is how many routes Host.Strangers lists.
const MaxStrangers = 20

// Protocols (rtm_protocol) of routes that the kernel makes by itself.
const (
	ProtocolKernel = 2
	// ProtocolRA is of router advertisements (RFC 4861).
	ProtocolRA = 9
)

// Strange reports whether a route of protocol in a VRF's table is somebody else's: neither ours nor the kernel's own.
func Strange(protocol uint8) bool {
	switch protocol {
	case Protocol, ProtocolLinks, ProtocolKernel, ProtocolRA:
		return false
	}
	return true
}

// Strangers gathers what Host.Strangers says. The zero value is empty. A copy can be kept to go back to.
type Strangers struct {
	routes, devices []string
	more            int
}

// Route adds a route of somebody else.
func (s *Strangers) Route(k RouteKey, protocol uint8) {
	if len(s.routes) == MaxStrangers {
		s.more++
		return
	}
	s.routes = append(s.routes, fmt.Sprintf("route %s is not ours (protocol %s): remove it, or have its owner use another table",
		k, ProtocolName(protocol)))
}

// Device adds a VRF device of somebody else; owner says whose it is, as far as can be seen.
func (s *Strangers) Device(name, owner string, table uint32) {
	s.devices = append(s.devices, fmt.Sprintf("VRF device %s uses table %d and is not ours (%s): delete it, or give it another table",
		name, table, owner))
}

// Sentences returns the devices, the routes, and how many more routes there are.
func (s *Strangers) Sentences() []string {
	all := append(append([]string(nil), s.devices...), s.routes...)
	if s.more > 0 {
		all = append(all, fmt.Sprintf("and %d more routes that are not ours", s.more))
	}
	return all
}

// ProtocolName names the owner of a route, as iproute2 and routing daemons do, with its number.
func ProtocolName(p uint8) string {
	known := map[uint8]string{
		1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 15: "ntk", 16: "dhcp",
		18: "keepalived", 42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp", 196: "static-zebra",
		Protocol: "fabric-site", ProtocolLinks: "fabric-links",
	}
	if s, ok := known[p]; ok {
		return fmt.Sprintf("%s (%d)", s, p)
	}
	return fmt.Sprint(p)
}
