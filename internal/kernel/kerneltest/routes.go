package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Addresses implements kernel.Host.
func (k *Kernel) Addresses(protocol uint8) kernel.Addresses {
	return &edge[kernel.AddressKey, kernel.Address]{
		k: k, name: "addresses", equal: kernel.EqualAddress,
		observe: func() (map[kernel.AddressKey]kernel.Address, error) {
			found := map[kernel.AddressKey]kernel.Address{}
			for key, a := range k.addresses {
				if a.protocol == protocol {
					found[key] = a.Address
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[kernel.AddressKey, kernel.Address]) error {
			d, err := k.device(op.Key.Device)
			if err != nil {
				if op.Kind == reconcile.Delete {
					return nil
				}
				return fmt.Errorf("address %s: %w", op.Key, err)
			}
			for key, a := range k.addresses {
				same := key == op.Key || !key.Prefix.Addr().Is4() && key.Device == op.Key.Device && key.Prefix.Addr() == op.Key.Prefix.Addr()
				if same && (a.protocol != protocol || key != op.Key) && op.Kind != reconcile.Delete {
					return foreign("address "+op.Key.String(), fmt.Sprintf("address protocol %d", a.protocol))
				}
			}
			if a, ok := k.addresses[op.Key]; ok {
				if a.protocol != protocol {
					return foreign("address "+op.Key.String(), fmt.Sprintf("address protocol %d", a.protocol))
				}
				k.deleteAddress(op.Key)
			}
			if op.Kind == reconcile.Delete {
				return nil
			}
			a := address{op.New, protocol}
			if op.Key.Prefix.Addr().Is4() {
				a.NoDAD = false
			}
			k.addresses[op.Key] = a
			if d.Up {
				k.addressRoutes(op.Key, a)
			}
			return nil
		},
	}
}

// addressRoutes adds what the kernel adds for an address: a local route and, but for NoPrefixRoute, a connected one.
func (k *Kernel) addressRoutes(key kernel.AddressKey, a address) {
	addr := key.Prefix.Addr()
	local := kernel.RouteKey{Table: kernel.LocalTable, Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	k.setRoute(local, kernel.Route{Type: kernel.Local, Device: key.Device, Protocol: protocolKernel})
	if !a.NoPrefixRoute && key.Prefix.Bits() < addr.BitLen() {
		metric := uint32(0)
		if !addr.Is4() {
			metric = 256
		}
		net := kernel.RouteKey{Table: kernel.MainTable, Prefix: key.Prefix.Masked(), Metric: metric}
		k.setRoute(net, kernel.NormalRoute(net, kernel.Route{Scope: kernel.LinkScope, Device: key.Device, Protocol: protocolKernel}))
	}
}

func (k *Kernel) deleteAddress(key kernel.AddressKey) {
	delete(k.addresses, key)
	addr := key.Prefix.Addr()
	local := kernel.RouteKey{Table: kernel.LocalTable, Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	for rk, r := range k.routes {
		mine := rk == local || rk.Table == kernel.MainTable && rk.Prefix == key.Prefix.Masked() && r.Protocol == protocolKernel
		if mine && r.Device == key.Device {
			k.deleteRoute(rk)
		}
	}
}

// Rules implements kernel.Host.
func (k *Kernel) Rules(protocol uint8) kernel.Rules {
	return &edge[kernel.RuleKey, kernel.Rule]{
		k: k, name: "rules", equal: equals[kernel.RuleKey, kernel.Rule],
		observe: func() (map[kernel.RuleKey]kernel.Rule, error) {
			found := map[kernel.RuleKey]kernel.Rule{}
			for _, r := range k.rules {
				if r.protocol == protocol {
					found[r.key] = r.rule
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[kernel.RuleKey, kernel.Rule]) error {
			i := slices.IndexFunc(k.rules, func(r rule) bool { return r.key == op.Key })
			if i >= 0 && k.rules[i].protocol != protocol {
				return foreign("rule "+op.Key.String(), fmt.Sprintf("protocol %d", k.rules[i].protocol))
			}
			if i >= 0 {
				k.rules = slices.Delete(k.rules, i, i+1)
			}
			if op.Kind == reconcile.Delete {
				return nil
			}
			if op.New.Action == kernel.Lookup && op.New.Table == 0 && !op.New.L3MDEV {
				return fmt.Errorf("rule %s: lookup without a table", op.Key)
			}
			k.rules = append(k.rules, rule{op.Key, op.New, protocol})
			return nil
		},
	}
}

// MoveLocalRule implements kernel.Host.
func (k *Kernel) MoveLocalRule(_ context.Context, pref uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, r := range k.rules {
		bare := kernel.RuleKey{IPv6: r.key.IPv6, Priority: r.key.Priority}
		if r.protocol == protocolKernel && r.rule == (kernel.Rule{Table: kernel.LocalTable}) && r.key == bare {
			k.rules[i].key.Priority = pref
		}
	}
	return nil
}

// Routes implements kernel.Host.
func (k *Kernel) Routes(protocol uint8, tables ...uint32) kernel.Routes {
	return &edge[kernel.RouteKey, kernel.Route]{
		k: k, name: "routes", equal: kernel.EqualRoute,
		observe: func() (map[kernel.RouteKey]kernel.Route, error) {
			found := map[kernel.RouteKey]kernel.Route{}
			for key, r := range k.routes {
				if r.Protocol == protocol && (len(tables) == 0 || slices.Contains(tables, key.Table)) {
					found[key] = r
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[kernel.RouteKey, kernel.Route]) error {
			have, ok := k.routes[op.Key]
			if ok && have.Protocol != protocol {
				if op.Kind == reconcile.Delete {
					return nil
				}
				return foreign("route "+op.Key.String(), fmt.Sprintf("protocol %d", have.Protocol))
			}
			if op.Kind == reconcile.Delete {
				k.deleteRoute(op.Key)
				return nil
			}
			r := kernel.NormalRoute(op.Key, op.New)
			r.Protocol = protocol
			if err := k.checkRoute(op.Key, r); err != nil {
				return fmt.Errorf("%s route %s: %w", op.Kind, op.Key, err)
			}
			k.setRoute(op.Key, r)
			return nil
		},
	}
}

// basic reports a route that others are checked against: a local one, or a connected one. They are few, and kept apart, so that a
// check does not go through all routes.
func basic(r kernel.Route) bool {
	return r.Type == kernel.Local || r.Type == kernel.Unicast && !r.Gateway.IsValid() && r.NextHopID == 0
}

func (k *Kernel) setRoute(key kernel.RouteKey, r kernel.Route) {
	k.deleteRoute(key)
	k.routes[key] = r
	if basic(r) {
		k.bases[key] = r
	}
}

func (k *Kernel) deleteRoute(key kernel.RouteKey) {
	delete(k.routes, key)
	delete(k.bases, key)
}

func (k *Kernel) checkRoute(key kernel.RouteKey, r kernel.Route) error {
	switch {
	case !key.Prefix.IsValid() || key.Prefix != key.Prefix.Masked():
		return fmt.Errorf("%s is no prefix: host bits are set", key.Prefix)
	case key.Table == 0:
		return fmt.Errorf("no table: %w", syscall.EINVAL)
	case !key.Prefix.Addr().Is4() && (key.Metric == 0 || r.Gateway.Is4()):
		return fmt.Errorf("not for IPv6: %w", syscall.EINVAL)
	case !k.knowsSource(key, r):
		return fmt.Errorf("invalid source %s: %w", r.Src, syscall.EINVAL)
	case r.NextHopID != 0:
		if r.Device != "" || r.Gateway.IsValid() {
			return fmt.Errorf("both a next-hop object and a device or gateway: %w", syscall.EINVAL)
		}
		if nh, ok := k.nexthops[r.NextHopID]; !ok {
			return fmt.Errorf("nexthop id does not exist: %w", syscall.EINVAL)
		} else if !key.Prefix.Addr().Is4() && nh.Gateway.Is4() {
			return fmt.Errorf("IPv6 routes can not use an IPv4 nexthop: %w", syscall.EINVAL)
		}
		return nil
	case r.Type == kernel.UnreachableRoute || r.Type == kernel.Blackhole:
		return nil
	}
	return k.checkHop(key.Table, r.Device, r.Gateway, r.OnLink)
}

// knowsSource says whether a route's source is an address of the host: for IPv4 in the route's own table or in local, for IPv6
// on any device. A local route to the source itself may bring it.
func (k *Kernel) knowsSource(key kernel.RouteKey, r kernel.Route) bool {
	if !r.Src.IsValid() {
		return true
	}
	if r.Src.Is4() && r.Type == kernel.Local && r.Src == key.Prefix.Addr() {
		return true
	}
	if r.Src.Is4() {
		for have, x := range k.bases {
			if x.Type == kernel.Local && (have.Table == key.Table || have.Table == kernel.LocalTable) && have.Prefix.Contains(r.Src) {
				return true
			}
		}
		return false
	}
	for have := range k.addresses {
		if have.Prefix.Addr() == r.Src {
			return true
		}
	}
	return false
}

// checkHop says whether the kernel would take a device and gateway.
func (k *Kernel) checkHop(table uint32, dev string, gw netip.Addr, onlink bool) error {
	d, err := k.device(dev)
	if err != nil {
		return err
	}
	if !d.Up {
		return syscall.ENETDOWN
	}
	if gw.IsValid() && !onlink && !k.contains(dev, gw, table) {
		return syscall.ENETUNREACH
	}
	return nil
}

// NextHops implements kernel.Host.
func (k *Kernel) NextHops(protocol uint8) kernel.NextHops {
	return &edge[uint32, kernel.NextHop]{
		k: k, name: "nexthops", equal: kernel.EqualNextHop,
		observe: func() (map[uint32]kernel.NextHop, error) {
			found := map[uint32]kernel.NextHop{}
			for id, nh := range k.nexthops {
				if nh.Protocol == protocol {
					found[id] = nh
				}
			}
			return found, nil
		},
		rank: kernel.NextHopRank,
		apply: func(op reconcile.Op[uint32, kernel.NextHop]) error {
			what := fmt.Sprintf("next hop %d", op.Key)
			have, ok := k.nexthops[op.Key]
			if ok && have.Protocol != protocol {
				return foreign(what, fmt.Sprintf("protocol %d", have.Protocol))
			}
			if op.Kind == reconcile.Delete {
				k.deleteNextHop(op.Key)
				return nil
			}
			nh := op.New
			nh.Protocol = protocol
			if err := k.checkNextHop(nh); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if ok && (have.Group == "") != (nh.Group == "") {
				k.deleteNextHop(op.Key)
			}
			k.nexthops[op.Key] = nh
			return nil
		},
	}
}

func (k *Kernel) checkNextHop(nh kernel.NextHop) error {
	switch {
	case nh.Group != "":
		for _, id := range groupIDs(nh.Group) {
			if m, ok := k.nexthops[id]; !ok || m.Group != "" {
				return fmt.Errorf("group member %d: %w", id, syscall.EINVAL)
			}
		}
		return nil
	case nh.Blackhole:
		return nil
	}
	return k.checkHop(kernel.MainTable, nh.Device, nh.Gateway, nh.OnLink)
}

func groupIDs(s string) (ids []uint32) {
	for f := range strings.SplitSeq(s, ",") {
		id, _ := strconv.ParseUint(f, 10, 32)
		ids = append(ids, uint32(id))
	}
	return ids
}

// deleteNextHop takes the object out of groups, and routes that are left without one go.
func (k *Kernel) deleteNextHop(id uint32) {
	if _, ok := k.nexthops[id]; !ok {
		return
	}
	delete(k.nexthops, id)
	for key, r := range k.routes {
		if r.NextHopID == id {
			k.deleteRoute(key)
		}
	}
	for gid, g := range k.nexthops {
		if g.Group == "" {
			continue
		}
		var rest []string
		for _, m := range groupIDs(g.Group) {
			if m != id {
				rest = append(rest, strconv.Itoa(int(m)))
			}
		}
		if len(rest) == 0 {
			k.deleteNextHop(gid)
			continue
		}
		g.Group = strings.Join(rest, ",")
		k.nexthops[gid] = g
	}
}
