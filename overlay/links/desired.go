package links

import (
	"net/netip"
	"strconv"

	"fabric/internal/kernel"
	"fabric/overlay"
)

// desired is what the host shall hold for a plan, but for what depends on liveness.
type desired struct {
	links      map[string]kernel.Link
	sysctls    map[string]string
	addresses  map[kernel.AddressKey]kernel.Address
	wireguards map[string]kernel.WireGuard
	backstops  map[kernel.RouteKey]kernel.Route
	nextHops   map[uint32]kernel.NextHop
	neighbours map[kernel.NeighbourKey]kernel.Neighbour
	// members of groups of tunnels of equal rank.
	members map[uint32]kernel.NextHop
}

// desire works out what a plan asks for. userspace says which tunnels are carried by a process.
func desire(p overlay.Plan, userspace func(device string) bool) desired {
	d := desired{
		links:      map[string]kernel.Link{},
		sysctls:    map[string]string{},
		addresses:  map[kernel.AddressKey]kernel.Address{},
		wireguards: map[string]kernel.WireGuard{},
		backstops:  map[kernel.RouteKey]kernel.Route{},
		nextHops:   map[uint32]kernel.NextHop{},
		neighbours: map[kernel.NeighbourKey]kernel.Neighbour{},
		members:    map[uint32]kernel.NextHop{},
	}
	d.addresses[kernel.AddressKey{Device: "lo", Prefix: host(p.VTEP)}] = kernel.Address{NoDAD: p.VTEP.Is6()}
	for _, t := range p.Tunnels {
		kind := kernel.KindWireGuard
		if userspace(t.Device) {
			kind = kernel.KindTUN
		}
		d.links[t.Device] = kernel.Link{Name: t.Device, Kind: kind, Alias: kernel.AliasPrefix + t.Name, MTU: t.MTU, Up: true}
		for k, v := range tunnelSysctls(t.Device) {
			d.sysctls[k] = v
		}
		d.addresses[kernel.AddressKey{Device: t.Device, Prefix: netip.PrefixFrom(t.LinkLocal, 64)}] = kernel.Address{NoDAD: true}
		if p.VTEP.Is4() {
			// On a device without any IPv4 address the loose reverse path filter is a strict one (fib_validate_source), and packets would
			// be dropped while the other end routes to us over another tunnel than we to it.
			d.addresses[kernel.AddressKey{Device: t.Device, Prefix: host(p.VTEP)}] = kernel.Address{}
		}
		if t.Kind == overlay.KindDirect {
			d.direct(t)
			continue
		}
		key, err := overlay.ParsePublicKey(t.PublicKey)
		if err != nil {
			// Validate has refused such a plan.
			continue
		}
		w := kernel.WireGuard{
			ListenPort:     t.ListenPort,
			PrivateKeyFile: t.PrivateKeyFile,
			Peer:           kernel.WireGuardPeer{PublicKey: key, Endpoint: t.Endpoint, Keepalive: t.Keepalive, PresharedKeyFile: t.PresharedKeyFile},
		}
		if t.Carrier != nil {
			// On both sides: whichever has something to send begins, whoever dialled.
			w.Peer.Endpoint = farEnd
		}
		d.wireguards[t.Device] = w
	}
	for _, v := range p.VTEPs {
		key := kernel.RouteKey{Table: kernel.MainTable, Prefix: host(v.Addr), Metric: kernel.BackstopMetric}
		d.backstops[key] = kernel.Route{Type: kernel.UnreachableRoute, Protocol: kernel.ProtocolLinks}
	}
	d.groups(p)
	for _, n := range p.NextHops {
		d.nextHops[n.ID] = kernel.NextHop{Device: n.Device, Gateway: n.Gateway, OnLink: true, Protocol: kernel.ProtocolLinks}
	}
	return d
}

// tunnelSysctls of a device: packets from a VTEP may come in over any tunnel (loose reverse path filter), and the
// link-local address is ours alone to give.
func tunnelSysctls(device string) map[string]string {
	return map[string]string{
		"net.ipv4.conf." + device + ".rp_filter":     "2",
		"net.ipv6.conf." + device + ".addr_gen_mode": "1",
	}
}

// hostSysctls hold for the whole network namespace: a next hop that changes is told once, not once per route.
var hostSysctls = map[string]string{compatMode: "0"}

const compatMode = "net.ipv4.nexthop_compat_mode"

// vtepRoute is the route to a remote VTEP over a tunnel device, through gateway on direct tunnels. It prefers our VTEP as source:
// the device has no address of its own but a link-local one.
func vtepRoute(own netip.Addr, device string, gateway netip.Addr) kernel.Route {
	if gateway.IsValid() {
		return kernel.Route{Gateway: gateway, Device: device, Src: own, Protocol: kernel.ProtocolLinks}
	}
	return kernel.Route{Scope: kernel.LinkScope, Device: device, Src: own, Protocol: kernel.ProtocolLinks}
}

// vtepKey is the key of that route. One metric for all tunnels: changing over is one replace.
func vtepKey(remote netip.Addr) kernel.RouteKey {
	return kernel.RouteKey{Table: kernel.MainTable, Prefix: host(remote), Metric: kernel.Metric}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// routeName is how people know a route.
func routeName(k kernel.RouteKey) string {
	return k.Prefix.String() + " metric " + strconv.FormatUint(uint64(k.Metric), 10)
}
