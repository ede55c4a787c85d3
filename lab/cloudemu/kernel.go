package cloudemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// KernelDataPlane writes the active routes of one VPC's system table into the
// main routing table of the network namespace it runs in, so that this
// namespace is the router of that VPC. It owns the routes that carry its
// protocol number and touches no others.
type KernelDataPlane struct {
	// VPC is the only VPC it serves; empty serves whichever it is told, which
	// is right for a seed with one VPC.
	VPC string
	// Protocol is the route protocol number that marks its routes; default 50.
	Protocol int
	// Handle is the netlink socket of the namespace; nil uses the namespace of
	// the process.
	Handle *netlink.Handle
}

// nexthop is what the data plane decides about a destination.
type nexthop struct {
	typ  int // unix.RTN_UNICAST or RTN_BLACKHOLE
	via  netip.Addr
	link int // device index
}

// Set implements [DataPlane]. System entries are left to the routes of the
// namespace's devices. A route whose hop has no address is a black hole. A
// foreign kernel route for the same destination is reported and left alone;
// everything else is still done.
func (k *KernelDataPlane) Set(_ context.Context, vpcID string, routes []FIBEntry) error {
	if k.VPC != "" && k.VPC != vpcID {
		return nil
	}
	if k.Handle == nil {
		k.Handle = &netlink.Handle{}
	}
	have, foreign, err := k.observe()
	if err != nil {
		return err
	}
	var errs []error
	want := map[netip.Prefix]nexthop{}
	for _, f := range routes {
		if !f.SystemTable || f.Type == "System" {
			continue
		}
		hop, err := k.nexthop(f)
		if err != nil {
			errs = append(errs, err)
		}
		want[f.Destination] = hop
	}
	// Replace before delete, so that a covering route is there first.
	for dst, hop := range want {
		if owner, ok := foreign[dst]; ok {
			errs = append(errs, fmt.Errorf("route %s is in the main table with protocol %d, not %d; remove it", dst, owner, k.protocol()))
			continue
		}
		if have[dst] == hop {
			continue
		}
		if err := k.Handle.RouteReplace(k.route(dst, hop)); err != nil {
			errs = append(errs, fmt.Errorf("route %s via %s: %w", dst, hop.via, err))
		}
	}
	for dst := range have {
		if _, ok := want[dst]; !ok {
			// Scope nowhere matches a route of any scope.
			gone := &netlink.Route{Dst: ipNet(dst), Table: unix.RT_TABLE_MAIN, Protocol: netlink.RouteProtocol(k.protocol()),
				Scope: netlink.SCOPE_NOWHERE}
			if err := k.Handle.RouteDel(gone); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("route %s: delete: %w", dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (k *KernelDataPlane) protocol() int {
	if k.Protocol == 0 {
		return 50
	}
	return k.Protocol
}

// observe reads the main table: our routes, and the protocol of the others.
func (k *KernelDataPlane) observe() (have map[netip.Prefix]nexthop, foreign map[netip.Prefix]int, err error) {
	have, foreign = map[netip.Prefix]nexthop{}, map[netip.Prefix]int{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := k.Handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, nil, fmt.Errorf("read the main routing table: %w", err)
		}
		for _, r := range rs {
			dst, ok := prefixOf(r.Dst, family)
			if !ok {
				continue
			}
			if int(r.Protocol) != k.protocol() {
				foreign[dst] = int(r.Protocol)
				continue
			}
			via, _ := netip.AddrFromSlice(r.Gw)
			hop := nexthop{typ: r.Type, via: via.Unmap(), link: r.LinkIndex}
			if r.Type == unix.RTN_BLACKHOLE {
				hop = nexthop{typ: r.Type} // v6 black holes are listed on lo
			}
			have[dst] = hop
		}
	}
	return have, foreign, nil
}

func prefixOf(n *net.IPNet, family int) (netip.Prefix, bool) {
	if n == nil { // older libraries say nil for the default route
		if family == unix.AF_INET {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if family == unix.AF_INET {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok
}

// nexthop finds the device behind the address of a hop. When there is none the
// result is a black hole, as it is in a VPC, and an error says why.
func (k *KernelDataPlane) nexthop(f FIBEntry) (nexthop, error) {
	lost := nexthop{typ: unix.RTN_BLACKHOLE}
	if !f.Via.IsValid() {
		return lost, nil
	}
	if f.Device != "" {
		l, err := k.Handle.LinkByName(f.Device)
		if err != nil {
			return lost, fmt.Errorf("route %s: device %s towards %s: %w", f.Destination, f.Device, f.NextHopID, err)
		}
		return nexthop{unix.RTN_UNICAST, f.Via, l.Attrs().Index}, nil
	}
	rs, err := k.Handle.RouteGet(f.Via.AsSlice())
	if err == nil && len(rs) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return lost, fmt.Errorf("route %s: no device leads to %s at %s: %w", f.Destination, f.NextHopID, f.Via, err)
	}
	if rs[0].Gw != nil {
		return lost, fmt.Errorf("route %s: %s at %s is not directly connected; add a route to it or name its device in the seed", f.Destination, f.NextHopID, f.Via)
	}
	return nexthop{unix.RTN_UNICAST, f.Via, rs[0].LinkIndex}, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *KernelDataPlane) route(dst netip.Prefix, hop nexthop) *netlink.Route {
	r := &netlink.Route{
		Dst:      ipNet(dst),
		Table:    unix.RT_TABLE_MAIN,
		Protocol: netlink.RouteProtocol(k.protocol()),
		Type:     hop.typ,
	}
	if hop.typ == unix.RTN_UNICAST {
		r.Gw, r.LinkIndex, r.Flags = hop.via.AsSlice(), hop.link, int(netlink.FLAG_ONLINK)
	}
	return r
}
