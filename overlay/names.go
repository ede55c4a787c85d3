package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"

	"fabric/internal/config"
)

// TunnelPrefix begins the name of every tunnel device.
const TunnelPrefix = "fxw"

// VXLANPrefix begins the name of every VXLAN device of the fabric.
const VXLANPrefix = "fxv"

// Next-hop ids of the fabric lie in [NextHopFirst, 2^32). Other routing programs count up from low numbers.
const NextHopFirst uint32 = 1 << 31

// sum is the hash behind all derived names. The kind keeps names of different kinds apart.
func sum(kind string, parts ...string) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(kind))
	for _, p := range parts {
		h.Write([]byte{0})
		h.Write([]byte(p))
	}
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out
}

// TunnelDevice is the name of the local gateway's interface for its tunnel of the given rank to remote: 15 bytes, the most
// that Linux takes. It is the same on every start.
func TunnelDevice(local, remote string, rank int) string {
	s := sum("tunnel", local, remote, strconv.Itoa(rank))
	return TunnelPrefix + hex.EncodeToString(s[:6])
}

// TunnelName is the full name behind TunnelDevice, for people and for the alias.
func TunnelName(local, remote string, rank int) string {
	return local + "/" + remote + "/" + strconv.Itoa(rank)
}

// VXLANDevice is the name of the VXLAN device of a VNI.
func VXLANDevice(vni uint32) string {
	return VXLANPrefix + strconv.FormatUint(uint64(vni), 10)
}

// RouterMAC is the hardware address of a gateway's VXLAN devices and the Router's MAC of its EVPN routes (RFC 9136 section 4.4) where the
// document gives it none: locally administered, derived from the VTEP, so that every gateway can tell every other's.
func RouterMAC(vtep netip.Addr) [6]byte {
	s := sum("mac", vtep.Unmap().String())
	return [6]byte{0x02, s[0], s[1], s[2], s[3], s[4]}
}

// GatewayMAC is the router's MAC of a gateway of the document: the one written there, or else RouterMAC of its VTEP.
func GatewayMAC(g *config.Gateway) [6]byte {
	if mac, err := net.ParseMAC(g.RouterMAC); err == nil && len(mac) == 6 {
		return [6]byte(mac)
	}
	return RouterMAC(g.VTEP)
}

// LinkLocal is the IPv6 address of the local gateway's end of a tunnel, in fe80::/64. Both ends can tell both addresses.
func LinkLocal(local, remote string, rank int) netip.Addr {
	s := sum("link-local", local, remote, strconv.Itoa(rank))
	return linkLocal([8]byte(s[:8]))
}

// VTEPGateway is the link-local IPv6 address that stands for a remote VTEP on a VXLAN device. Routes of both families go
// through it: an IPv6 route cannot have an IPv4 gateway, the other way round works. An IPv4 VTEP can be read in it:
// 10.255.0.2 is fe80::5efe:aff:2 (the form of RFC 5214).
func VTEPGateway(vtep netip.Addr) netip.Addr {
	vtep = vtep.Unmap()
	if vtep.Is4() {
		v := vtep.As4()
		return linkLocal([8]byte{0, 0, 0x5e, 0xfe, v[0], v[1], v[2], v[3]})
	}
	s := sum("gateway", vtep.String())
	return linkLocal([8]byte(s[:8]))
}

func linkLocal(id [8]byte) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80}
	copy(a[8:], id[:])
	return netip.AddrFrom16(a)
}

// NextHopID is the id of the next-hop object for a remote VTEP on a VNI's VXLAN device. Two pairs may hash to one id (2^31 are
// possible); Compile refuses such a plan.
func NextHopID(vni uint32, vtep netip.Addr) uint32 {
	s := sum("next hop", strconv.FormatUint(uint64(vni), 10), vtep.Unmap().String())
	return NextHopFirst | binary.BigEndian.Uint32(s[:4])
}
