package overlay

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// TunnelNextHopID is the id of the next-hop object that stands for a tunnel device in the groups of tunnels of equal rank.
func TunnelNextHopID(device string) uint32 {
	s := sum("tunnel next hop", device)
	return NextHopFirst | binary.BigEndian.Uint32(s[:4])
}

// TunnelGroupID is the id of the group of next hops that leads to a remote VTEP over tunnels of equal rank.
func TunnelGroupID(vtep netip.Addr) uint32 {
	s := sum("tunnel group", vtep.Unmap().String())
	return NextHopFirst | binary.BigEndian.Uint32(s[:4])
}

// Shared says which of the plan's tunnel devices belong to a tunnel that has another one of equal rank to the same gateway. Generations
// of one tunnel are one.
func (p *Plan) Shared() map[string]bool {
	type way struct {
		remote string
		rank   int
	}
	equal := map[way]map[string]bool{}
	for _, t := range p.Tunnels {
		w := way{t.Remote, t.Rank}
		if equal[w] == nil {
			equal[w] = map[string]bool{}
		}
		equal[w][t.Of()] = true
	}
	shared := map[string]bool{}
	for _, t := range p.Tunnels {
		if len(equal[way{t.Remote, t.Rank}]) > 1 {
			shared[t.Device] = true
		}
	}
	return shared
}

// Groups says whether the VTEP has tunnels of equal rank; shared is Plan.Shared.
func (v *RemoteVTEP) Groups(shared map[string]bool) bool {
	return slices.ContainsFunc(v.Devices, func(d string) bool { return shared[d] })
}

// validateGroups refuses ids that meet those of other next hops.
func (p *Plan) validateGroups(bad func(format string, args ...any)) {
	holder := map[uint32]string{}
	for _, n := range p.NextHops {
		holder[n.ID] = "VTEP " + n.VTEP.String()
	}
	for _, s := range p.AllSets() {
		for _, id := range s.IDs() {
			holder[id] = "a next-hop set"
		}
	}
	take := func(id uint32, what string) {
		if other, taken := holder[id]; taken {
			bad("next hop %d stands for both %s and %s; rename a gateway, or give its tunnels different ranks", id, other, what)
		}
		holder[id] = what
	}
	shared := p.Shared()
	for _, t := range p.Tunnels {
		if shared[t.Device] {
			take(TunnelNextHopID(t.Device), "tunnel "+t.Name)
		}
	}
	for i := range p.VTEPs {
		if v := &p.VTEPs[i]; v.Groups(shared) {
			take(TunnelGroupID(v.Addr), "tunnels to "+v.Gateway)
		}
	}
}
