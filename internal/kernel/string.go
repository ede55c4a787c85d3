package kernel

import (
	"fmt"
	"net"
	"strings"
)

// String is like "10.0.0.0/8 table 200 metric 188".
func (k RouteKey) String() string {
	return fmt.Sprintf("%s table %d metric %d", k.Prefix, k.Table, k.Metric)
}

// String is like the right half of a line of ip route: "via 10.0.0.1 dev eth0".
func (r Route) String() string {
	var b strings.Builder
	switch r.Type {
	case Local:
		b.WriteString("local ")
	case UnreachableRoute:
		b.WriteString("unreachable ")
	case Blackhole:
		b.WriteString("blackhole ")
	}
	if r.NextHopID != 0 {
		fmt.Fprintf(&b, "nhid %d ", r.NextHopID)
	}
	if r.Gateway.IsValid() {
		fmt.Fprintf(&b, "via %s ", r.Gateway)
	}
	if r.Device != "" {
		fmt.Fprintf(&b, "dev %s ", r.Device)
	}
	switch r.Scope {
	case LinkScope:
		b.WriteString("scope link ")
	case HostScope:
		b.WriteString("scope host ")
	}
	if r.OnLink {
		b.WriteString("onlink ")
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, "src %s ", r.Src)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, "mtu %d ", r.MTU)
	}
	fmt.Fprintf(&b, "proto %d", r.Protocol)
	return b.String()
}

// String is like "100: from all iif eth0 fwmark 0x1/0xff", with "-6" in front for IPv6.
func (k RuleKey) String() string {
	var b strings.Builder
	if k.IPv6 {
		b.WriteString("-6 ")
	}
	fmt.Fprintf(&b, "%d: from ", k.Priority)
	if k.Src.IsValid() {
		b.WriteString(k.Src.String())
	} else {
		b.WriteString("all")
	}
	if k.Dst.IsValid() {
		fmt.Fprintf(&b, " to %s", k.Dst)
	}
	if k.Iif != "" {
		b.WriteString(" iif " + k.Iif)
	}
	if k.Oif != "" {
		b.WriteString(" oif " + k.Oif)
	}
	if k.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", k.Mark, k.Mask)
	}
	return b.String()
}

// String is "lookup 200", "unreachable" or "lookup [l3mdev-table]".
func (r Rule) String() string {
	switch {
	case r.L3MDEV:
		return "lookup [l3mdev-table]"
	case r.Action == RuleUnreachable:
		return "unreachable"
	}
	return fmt.Sprintf("lookup %d", r.Table)
}

// String is like "10.0.0.1/24 dev eth0".
func (k AddressKey) String() string { return k.Prefix.String() + " dev " + k.Device }

// String is like "10.0.0.1 dev vx1000".
func (k NeighbourKey) String() string { return k.Addr.String() + " dev " + k.Device }

// String is the hardware address.
func (n Neighbour) String() string { return "lladdr " + net.HardwareAddr(n.MAC[:]).String() }

// String is like "02:00:00:00:00:01 dev vx1000".
func (k FDBKey) String() string { return net.HardwareAddr(k.MAC[:]).String() + " dev " + k.Device }

// String is like "dst 10.0.0.1".
func (e FDBEntry) String() string { return "dst " + e.Dst.String() }

// String is like "via fe80::1 dev vx1000 onlink" or "group 1,2".
func (n NextHop) String() string {
	switch {
	case n.Group != "":
		return "group " + n.Group
	case n.Blackhole:
		return "blackhole"
	}
	s := "dev " + n.Device
	if n.Gateway.IsValid() {
		s = "via " + n.Gateway.String() + " " + s
	}
	if n.OnLink {
		s += " onlink"
	}
	return s
}
