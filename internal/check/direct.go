package check

import (
	"fmt"
	"net/netip"
	"slices"

	"fabric/internal/kernel"
	"fabric/overlay"
)

// directChecks are about tunnels without encryption.
var directChecks = []check{
	{"direct-unencrypted", "Whoever sees or injects packets on the way sees or injects those of the VRFs; only a network that is trusted may carry such a tunnel.", func(s *subject) (faults []fault) {
		for _, t := range s.direct() {
			faults = append(faults, fault{Info, fmt.Sprintf("tunnel %s is of kind direct: packets from %s to %s are not encrypted", t.Name, t.Local, t.Endpoint.Addr()), ""})
		}
		return faults
	}},
	{"direct-address-missing", "A direct tunnel starts from the gateway's endpoint as it is; behind address translation it cannot.", func(s *subject) (faults []fault) {
		if !s.read("addresses") {
			return nil
		}
		var seen []netip.Addr
		for _, t := range s.direct() {
			there := slices.ContainsFunc(s.Host.Addresses, func(k kernel.AddressKey) bool { return k.Prefix.Addr() == t.Local })
			if there || slices.Contains(seen, t.Local) {
				continue
			}
			seen = append(seen, t.Local)
			faults = append(faults, fault{Error, fmt.Sprintf("%s, which tunnel %s starts from, is no address of this host", t.Local, t.Name),
				"ip addr show  # name the host's own address in endpoints, or use kind wireguard for this link"})
		}
		return faults
	}},
	{"port-taken-direct", whyPort, func(s *subject) []fault {
		if len(s.direct()) == 0 {
			return nil
		}
		// VXLAN devices of the kernel's share the port.
		return s.taken("udp", s.direct()[0].ListenPort, func(p Port) bool { return p.Kernel })
	}},
}

// direct are the plan's tunnels without encryption.
func (s *subject) direct() (all []overlay.Tunnel) {
	for _, t := range s.plan.Tunnels {
		if t.Kind == overlay.KindDirect {
			all = append(all, t)
		}
	}
	return all
}
