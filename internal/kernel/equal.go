package kernel

import "net/netip"

// EqualLink reports whether have meets want; an MTU of 0 and a zero MAC in want leave what is there.
func EqualLink(_ string, want, have Link) bool {
	if want.MTU == 0 {
		want.MTU = have.MTU
	}
	if want.MAC == ([6]byte{}) {
		want.MAC = have.MAC
	}
	return want == have
}

// EqualPort reports whether have meets want; an MTU of 0 in want leaves what is there.
func EqualPort(_ string, want, have Port) bool {
	if want.MTU == 0 {
		want.MTU = have.MTU
	}
	return want == have
}

// EqualAddress reports whether have meets want; IPv4 knows no duplicate address detection.
func EqualAddress(k AddressKey, want, have Address) bool {
	if k.Prefix.Addr().Is4() {
		want.NoDAD, have.NoDAD = false, false
	}
	return want == have
}

// EqualRoute reports whether have meets want. IPv6 has no scope, a route without packets to send (unreachable, blackhole)
// has no device, and a local route without a device is one on lo.
// The protocol is the edge's.
func EqualRoute(k RouteKey, want, have Route) bool {
	want.Protocol = have.Protocol
	return NormalRoute(k, want) == NormalRoute(k, have)
}

// EqualNextHop reports whether have meets want. The protocol is the edge's.
func EqualNextHop(_ uint32, want, have NextHop) bool {
	want.Protocol = have.Protocol
	return want == have
}

// NormalRoute returns r as the kernel understands it at k.
func NormalRoute(k RouteKey, r Route) Route {
	if !k.Prefix.Addr().Is4() || r.Type != Unicast {
		r.Scope = Universe
	}
	switch r.Type {
	case UnreachableRoute, Blackhole:
		r.Device, r.Gateway, r.OnLink, r.NextHopID = "", netip.Addr{}, false, 0
	case Local:
		if r.Device == "" {
			r.Device = "lo"
		}
	}
	return r
}
