package overlay

import "fabric/internal/config"

// Header sizes in bytes.
const (
	// wireGuardOverhead is IPv6 40 + UDP 8 + WireGuard data 32. The outer family may change under way, so the larger counts.
	wireGuardOverhead = 80
	// vxlanOverhead4 and vxlanOverhead6 are outer IP 20 or 40 + UDP 8 + VXLAN 8 + inner Ethernet 14.
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
	// tcpOverhead4 and tcpOverhead6 are IP 20 or 40 + TCP 20.
	tcpOverhead4 = 40
	tcpOverhead6 = 60
)

// defaultUnderlayMTU holds where the document leaves the value out.
const defaultUnderlayMTU = 1500

// defaultMSS holds where the document leaves the value out (X18).
const defaultMSS = 1300

// tunnelMTU is the MTU, in bytes, of the interface of the tunnel in the given place of a link with remote.
//
// That of a "tls" tunnel could be anything: TCP cuts its stream to fit the path, and the carrier takes datagrams up to 65535. It is what
// WireGuard over UDP has on the fabric's underlay. A larger one would be of no use, since the narrowest tunnel of the gateway decides
// what its VXLAN devices have (MTU below), and with equal ones nobody learns a path MTU anew when traffic changes over. A
// smaller one, so that a full packet with its WireGuard, WebSocket and TLS headers fills one TCP segment and not one and a
// bit, would take from the tunnels over UDP what the backup gains.
func tunnelMTU(doc *config.Document, t config.Tunnel, remote *config.Gateway, place int) int {
	underlay := t.UnderlayMTU
	if underlay == 0 || t.Kind == KindTLS {
		underlay = doc.Fabric.UnderlayMTU
	}
	if underlay == 0 {
		underlay = defaultUnderlayMTU
	}
	if t.Kind == KindDirect {
		return directMTU(underlay, remote, place)
	}
	return underlay - wireGuardOverhead
}

// MTU is the MTU, in bytes, of the VXLAN devices of a gateway: the least of its tunnels, and of those that lead on from
// hubs, less the VXLAN header. A packet may take any tunnel, so the narrowest counts. A gateway without tunnels has what the fabric's underlay MTU gives.
func MTU(doc *config.Document, gateway string) int {
	least := transitMTU(doc, gateway)
	for _, link := range doc.Neighbours(gateway) {
		for place, t := range link.Tunnels {
			if m := tunnelMTU(doc, t, link.Remote, place); least == 0 || m < least {
				least = m
			}
		}
	}
	if least == 0 {
		least = tunnelMTU(doc, config.Tunnel{}, nil, 0)
	}
	if doc.Fabric.VTEPFamily == "ipv6" {
		return least - vxlanOverhead6
	}
	return least - vxlanOverhead4
}

// MSS is the largest TCP segment, in bytes, for IPv4 and IPv6 across the fabric from a gateway: the configured ceiling, or less where
// the MTU asks for it.
func MSS(doc *config.Document, gateway string) (v4, v6 int) {
	ceiling := doc.Fabric.MSS
	if ceiling == 0 {
		ceiling = defaultMSS
	}
	mtu := MTU(doc, gateway)
	return min(ceiling, mtu-tcpOverhead4), min(ceiling, mtu-tcpOverhead6)
}
