package config

import (
	"fmt"
	"net/netip"
	"time"
)

// The defaults that the comments of the types name.
const (
	defaultUnderlayMTU   = 1500
	defaultMSS           = 1300
	defaultVXLANPort     = 4789
	defaultWireGuardPort = 51820
	defaultDirectPort    = 4790
	defaultBFDInterval   = Duration(300 * time.Millisecond)
	defaultBFDMultiplier = 3
	defaultBGPPort       = 179
	defaultKeepalive     = Duration(3 * time.Second)
	defaultHold          = Duration(9 * time.Second)
	defaultConnectRetry  = Duration(5 * time.Second)
	defaultRestartTime   = Duration(120 * time.Second)
	defaultMaxPrefix     = 10000
	defaultQuota         = 200
	defaultResync        = Duration(60 * time.Second)
	defaultWGKeepalive   = Duration(5 * time.Second)
	defaultRTASN         = 64512
	keyFolder            = "/etc/fabric/keys/"
)

// What WireGuard and VXLAN add to a packet, in bytes: outer IPv6 40, UDP 8, WireGuard 32; inner IPv4 20 or IPv6 40, UDP 8,
// VXLAN 8, Ethernet 14. WireGuard is reckoned over IPv6 always, so that the path may change family.
const (
	wireGuardOverhead = 80
	vxlanOverhead4    = 50
	vxlanOverhead6    = 70
	// tcpOverhead is an IPv4 and a TCP header without options; IPv6 takes 20 more.
	tcpOverhead = 40
	// minInnerMTU is IPv6's least MTU (RFC 8200 section 5). Below it Linux takes IPv6 off a device, and with it the
	// link-local next hops that IPv4 routes use as well.
	minInnerMTU = 1280
)

// InnerMTU is the MTU, in bytes, left inside VXLAN inside a WireGuard tunnel over a path of the given MTU.
func (f Fabric) InnerMTU(underlay int) int {
	if f.VTEPFamily == "ipv6" {
		return underlay - wireGuardOverhead - vxlanOverhead6
	}
	return underlay - wireGuardOverhead - vxlanOverhead4
}

// RoomForMSS is the largest TCP segment, in bytes, over IPv4 that fits the fabric's underlay MTU.
func (f Fabric) RoomForMSS() int { return f.InnerMTU(f.UnderlayMTU) - tcpOverhead }

// Announced says whether the prefix is announced to other gateways and to peers, or stays on this gateway.
func (p Prefix) Announced() bool { return p.Announce == nil || *p.Announce }

// fill sets v to def if it is zero.
func fill[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// setDefaults fills in what the document leaves out. It is idempotent, so that a document with its defaults written
// out means the same.
func (d *Document) setDefaults() {
	d.Fabric.setDefaults()
	for i := range d.VRFs {
		v := &d.VRFs[i]
		rt := fmt.Sprintf("%d:%d", defaultRTASN, v.VNI)
		if len(v.ImportRT) == 0 {
			v.ImportRT = []string{rt}
		}
		if len(v.ExportRT) == 0 {
			v.ExportRT = []string{rt}
		}
	}
	for i := range d.Policies {
		fill(&d.Policies[i].Default, "reject")
	}
	for i := range d.Sites {
		if c := d.Sites[i].Cloud; c != nil {
			fill(&c.Quota, defaultQuota)
			fill(&c.Resync, defaultResync)
		}
		for j := range d.Sites[i].Gateways {
			d.Sites[i].Gateways[j].setDefaults(&d.Fabric)
		}
	}
	fill(&d.Links.Mesh, "full")
	if len(d.Links.Tunnels) == 0 {
		d.Links.Tunnels = []Tunnel{{Kind: "wireguard"}}
	}
	tunnelDefaults(d.Links.Tunnels, d.Fabric.BFD)
	for _, p := range d.Links.Pairs {
		tunnelDefaults(p.Tunnels, d.Fabric.BFD)
	}
	d.tlsDefaults()
}

// tunnelDefaults completes timers that are given in part. A tunnel without any has the fabric's.
func tunnelDefaults(tunnels []Tunnel, f BFD) {
	for _, t := range tunnels {
		if t.BFD != nil {
			t.BFD.setDefaults(f)
		}
	}
}

func (b *BFD) setDefaults(def BFD) {
	fill(&b.Interval, def.Interval)
	fill(&b.Multiplier, def.Multiplier)
}

func (f *Fabric) setDefaults() {
	fill(&f.VTEPFamily, "ipv4")
	fill(&f.UnderlayMTU, defaultUnderlayMTU)
	fill(&f.MSS, min(defaultMSS, max(1, f.RoomForMSS())))
	fill(&f.VXLANPort, defaultVXLANPort)
	fill(&f.WireGuardPort, defaultWireGuardPort)
	fill(&f.DirectPort, defaultDirectPort)
	f.BFD.setDefaults(BFD{Interval: defaultBFDInterval, Multiplier: defaultBFDMultiplier})
	b := &f.BGP
	fill(&b.Port, defaultBGPPort)
	fillTimers(&b.Keepalive, &b.Hold, defaultKeepalive, defaultHold)
	fill(&b.ConnectRetry, defaultConnectRetry)
	fill(&b.RestartTime, defaultRestartTime)
	fill(&b.MaxPrefix, defaultMaxPrefix)
}

// fillTimers fills in the BGP timers; a hold time given alone pulls the keepalive interval down with it.
func fillTimers(keepalive, hold *Duration, defKeepalive, defHold Duration) {
	fill(hold, defHold)
	third := Duration(hold.Std().Truncate(3*time.Second) / 3)
	fill(keepalive, min(defKeepalive, max(third, Duration(time.Second))))
}

func (g *Gateway) setDefaults(f *Fabric) {
	if g.VTEP.Is4() {
		fill(&g.RouterID, g.VTEP)
	}
	if g.Name != "" {
		fill(&g.WireGuard.PrivateKeyFile, keyFolder+g.Name+".key")
	}
	fill(&g.WireGuard.Keepalive, defaultWGKeepalive)
	for i := range g.VRFs {
		v := &g.VRFs[i]
		fill(&v.Multipath, 1)
		for j := range v.Prefixes {
			if p := &v.Prefixes[j]; p.Announce == nil {
				p.Announce = new(true)
			}
		}
		for j := range v.Peers {
			v.Peers[j].setDefaults(f, g)
		}
	}
}

func (p *Peer) setDefaults(f *Fabric, g *Gateway) {
	if p.Address.IsValid() {
		fill(&p.Name, p.Address.String())
	}
	fill(&p.LocalASN, g.ASN)
	if len(p.Families) == 0 {
		p.Families = []string{family(p.Address)}
	}
	fill(&p.Port, f.BGP.Port)
	fillTimers(&p.Keepalive, &p.Hold, f.BGP.Keepalive, f.BGP.Hold)
	fill(&p.MaxPrefix, f.BGP.MaxPrefix)
	if p.BFD != nil {
		b := *p.BFD // p may be a copy of a peer that stays as it is
		b.setDefaults(f.BFD)
		p.BFD = &b
	}
}

// family names the family of an address as documents do.
func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}
