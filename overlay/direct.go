package overlay

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"

	"fabric/internal/config"
)

// KindDirect tunnels carry packets unencrypted in a VXLAN of their own (RFC 7348), over a network that is trusted.
const KindDirect = config.KindDirect

// DirectDevice is TunnelDevice for a direct tunnel. It has a name of its own, so that a tunnel that changes its kind is made anew
// beside the old one.
func DirectDevice(local, remote string, place int) string {
	s := sum("direct tunnel", local, remote, strconv.Itoa(place))
	return TunnelPrefix + hex.EncodeToString(s[:6])
}

// DirectVNI is the VXLAN network identifier, 1 to 2^24-1, of the direct tunnel in the given place of a link's list. It is the same
// at both ends. Two tunnels of one gateway may hash to one; Compile refuses such a plan.
func DirectVNI(one, other string, place int) uint32 {
	s := sum("direct vni", min(one, other), max(one, other), strconv.Itoa(place))
	return 1 + binary.BigEndian.Uint32(s[:4])%(1<<24-1)
}

// DirectMAC is the hardware address of the end of a direct tunnel that has this link-local address: locally administered,
// so that each end can tell the other's.
func DirectMAC(linkLocal netip.Addr) [6]byte {
	a := linkLocal.As16()
	return [6]byte{0x02, a[11], a[12], a[13], a[14], a[15]}
}

// Encryption of a tunnel of this kind: "none", or what it is named after.
func Encryption(kind string) string {
	if kind == KindDirect {
		return "none"
	}
	return KindWireGuard
}

// compileDirect fills in what a direct tunnel has: both ends' addresses, the port that all of them share, and the number that tells
// them apart. There is no dialling side, and the endpoints are dialled as they are.
func compileDirect(doc *config.Document, own, remote *config.Gateway, tunnel *Tunnel, place int) error {
	here, ok := own.Endpoint(place)
	there, okThere := remote.Endpoint(place)
	if !ok || !okThere {
		return fmt.Errorf("tunnel %s: a direct tunnel needs an endpoint of both %s and %s", tunnel.Name, own.Name, remote.Name)
	}
	tunnel.ListenPort = doc.Fabric.DirectPort
	tunnel.Local, tunnel.Endpoint = here.Address.Unmap(), netip.AddrPortFrom(there.Address.Unmap(), uint16(tunnel.ListenPort))
	tunnel.VNI = DirectVNI(own.Name, remote.Name, place)
	tunnel.PublicKey, tunnel.PrivateKeyFile, tunnel.Keepalive = "", "", 0
	return nil
}

// directMTU is the MTU, in bytes, of a direct tunnel between two gateways.
func directMTU(underlay int, remote *config.Gateway, place int) int {
	if e, ok := remote.Endpoint(place); ok && !e.Address.Unmap().Is4() {
		return underlay - vxlanOverhead6
	}
	return underlay - vxlanOverhead4
}

// Overhead is what a tunnel adds to a packet, in bytes: its MTU was reckoned with it from the underlay's.
func Overhead(t Tunnel) int {
	switch {
	case t.Kind != KindDirect:
		return wireGuardOverhead
	case t.Local.Is4():
		return vxlanOverhead4
	}
	return vxlanOverhead6
}

// validateDirect tells what is wrong with the i-th tunnel, which is a direct one.
func (p *Plan) validateDirect(i int, bad func(format string, args ...any)) {
	t := &p.Tunnels[i]
	if !unicast(t.Local) || !unicast(t.Endpoint.Addr()) || t.Local.Is4() != t.Endpoint.Addr().Is4() {
		bad("tunnel %q: a direct tunnel from %q to %q: want unicast addresses of one family", t.Name, t.Local, t.Endpoint.Addr())
	}
	if t.ListenPort < 1 || t.ListenPort > 65535 || int(t.Endpoint.Port()) != t.ListenPort {
		bad("tunnel %q: listen port %d and far port %d: a direct tunnel has one port at both ends", t.Name, t.ListenPort, t.Endpoint.Port())
	}
	if t.VNI < 1 || t.VNI >= 1<<24 {
		bad("tunnel %q: VNI %d is not within 1 to %d", t.Name, t.VNI, 1<<24-1)
	}
	if !t.RemoteLinkLocal.Is6() || !t.RemoteLinkLocal.IsLinkLocalUnicast() {
		bad("tunnel %q: %q of the other end is not an IPv6 link-local address", t.Name, t.RemoteLinkLocal)
	} else if DirectMAC(t.LinkLocal) == DirectMAC(t.RemoteLinkLocal) {
		bad("tunnel %q: both ends have one hardware address; rename one of the gateways", t.Name)
	}
	for j := range i {
		if o := &p.Tunnels[j]; o.Kind == KindDirect && o.VNI == t.VNI && o.ListenPort == t.ListenPort {
			bad("tunnels %q and %q: both have VNI %d; rename a gateway, or give one of them another kind", o.Name, t.Name, t.VNI)
		}
	}
}
