package config

import (
	"net/netip"
	"slices"
)

// MaxMultipath is how many next hops a VRF's multipath allows.
const MaxMultipath = 8

// attachment checks what is attached to a VRF at a gateway. Devices maps the gateway's interfaces so far to their path.
func (v *validator) attachment(a *GatewayVRF, path string, devices map[string]string) {
	vrf := &VRF{AllowDefault: true} // an unknown VRF is reported once
	if v.knownVRF(path+".vrf", a.VRF) {
		vrf, _ = v.doc.VRF(a.VRF)
	}
	v.number(path+".multipath", int64(a.Multipath), 1, MaxMultipath)
	seen := map[netip.Prefix]bool{}
	for i := range a.Prefixes {
		p := index(path+".prefixes", i)
		v.prefix(&a.Prefixes[i], vrf, p)
		if seen[a.Prefixes[i].Prefix] {
			v.add(p+".prefix", "keep one of them", "prefix %s is listed twice in VRF %q here", a.Prefixes[i].Prefix, a.VRF)
		}
		seen[a.Prefixes[i].Prefix] = true
	}
	clear(seen)
	for i, l := range a.Loopbacks {
		p := index(path+".loopbacks", i)
		v.loopback(p, l)
		if seen[l] {
			v.add(p, "keep one of them", "loopback %s is listed twice", l)
		}
		seen[l] = true
	}
	addresses := map[netip.Addr]bool{}
	for i := range a.Interfaces {
		v.iface(&a.Interfaces[i], index(path+".interfaces", i), devices, addresses)
	}
	session := sessions{own: map[netip.Addr]string{}, devices: map[string]bool{}, names: map[string]bool{}, peers: map[session]bool{}}
	for _, f := range a.Interfaces {
		session.devices[f.Name] = true
		for _, address := range f.Addresses {
			session.own[address.Addr()] = f.Name
		}
	}
	for i := range a.Peers {
		v.peer(&a.Peers[i], a.VRF, index(path+".peers", i), session)
	}
}

// sessions is what the peers of one VRF are checked against.
type sessions struct {
	// own maps our addresses to their device.
	own            map[netip.Addr]string
	devices, names map[string]bool
	peers          map[session]bool
}

// session is what tells neighbours of one VRF apart; the device counts for link-local addresses alone.
type session struct {
	address netip.Addr
	device  string
}

// prefix checks one origination.
func (v *validator) prefix(p *Prefix, vrf *VRF, path string) {
	if v.masked(path+".prefix", p.Prefix) && p.Announced() {
		if reason := neverLeaves(p.Prefix, vrf.AllowDefault); reason != "" {
			mend := "announce a prefix that covers it, or write announce: false to keep it at this gateway"
			if p.Prefix.Bits() == 0 {
				mend = "write allow-default: true for the VRF, or announce: false"
			}
			v.add(path+".prefix", mend, "%s must not leave a site: %s", p.Prefix, reason)
		}
	}
	if p.NextHop.IsValid() && v.unicast(path+".next-hop", p.NextHop) {
		if p.NextHop.Is4() && p.Prefix.Addr().Is6() {
			v.add(path+".next-hop", "write an IPv6 address", "next hop %s of IPv6 prefix %s is IPv4", p.NextHop, p.Prefix)
		}
		if p.NextHop.Is6() && p.Prefix.Addr().Is4() && p.Interface == "" {
			v.add(path+".next-hop", "write an IPv4 address, or name the interface (RFC 8950)",
				"next hop %s of IPv4 prefix %s is IPv6", p.NextHop, p.Prefix)
		}
		if p.NextHop.Is6() && p.NextHop.IsLinkLocalUnicast() && p.Interface == "" {
			v.add(path+".next-hop", "add interface", "link-local next hop %s needs an interface", p.NextHop)
		}
	}
	if p.Interface != "" {
		v.device(path+".interface", p.Interface)
	}
	for i, c := range p.Communities {
		v.community(index(path+".communities", i), c)
	}
}

// masked checks that a prefix is one and has no host bits.
func (v *validator) masked(path string, p netip.Prefix) bool {
	if !p.IsValid() {
		v.add(path, textTypes[prefixType][1], "no prefix is given")
		return false
	}
	if p != p.Masked() {
		v.add(path, "write "+p.Masked().String(), "%s has host bits set", p)
		return false
	}
	return true
}

// loopback checks a host address.
func (v *validator) loopback(path string, l netip.Prefix) {
	if !l.IsValid() || !l.IsSingleIP() {
		mend := "write address/32 or address/128"
		if l.IsValid() {
			mend = "write " + netip.PrefixFrom(l.Addr(), l.Addr().BitLen()).String()
		}
		v.add(path, mend, "loopback %s is not a single address", l)
		return
	}
	if reason := neverLeaves(l, false); reason != "" {
		v.add(path, "use an address of your own", "loopback %s must not leave a site: %s", l, reason)
	}
}

// iface checks a device of a VRF.
func (v *validator) iface(f *Interface, path string, devices map[string]string, addresses map[netip.Addr]bool) {
	v.device(path+".name", f.Name)
	if first, twice := devices[f.Name]; twice {
		v.add(path+".name", "a device belongs to one VRF; keep one of them", "interface %q is used twice at this gateway, first by %s", f.Name, first)
	} else {
		devices[f.Name] = path
	}
	ipv6 := false
	for i, a := range f.Addresses {
		p := index(path+".addresses", i)
		ipv6 = ipv6 || a.Addr().Is6()
		if !a.IsValid() || !v.unicast(p, a.Addr()) {
			continue
		}
		if a.Bits() == 0 || a == a.Masked() && a.Addr().Is4() && a.Bits() < 31 {
			v.add(p, "write the host's address with the length of the network", "%s is a network, not an address in one", a)
		}
		if addresses[a.Addr()] {
			v.add(p, "keep one of them", "address %s is used twice in this VRF", a.Addr())
		}
		addresses[a.Addr()] = true
	}
	if f.MTU != 0 {
		least := int64(576)
		if ipv6 {
			least = minInnerMTU
		}
		v.number(path+".mtu", int64(f.MTU), least, 65535)
	}
}

// peer checks one neighbour of a VRF.
func (v *validator) peer(p *Peer, vrf, path string, others sessions) {
	v.name(path+".name", p.Name, policyName, policyNameMend)
	if others.names[p.Name] {
		v.add(path+".name", "give each its own", "duplicate peer name %q in VRF %q", p.Name, vrf)
	}
	others.names[p.Name] = true
	if v.unicast(path+".address", p.Address) {
		v.peerAddress(p, vrf, path, others)
	}
	v.asn(path+".asn", p.ASN)
	v.asn(path+".local-asn", p.LocalASN)
	if p.Interface != "" {
		v.device(path+".interface", p.Interface)
		if vrf != "default" && !others.devices[p.Interface] {
			v.add(path+".interface", "list it under interfaces of the VRF", "interface %q does not belong to VRF %q here", p.Interface, vrf)
		}
	}
	if p.UpdateSource.IsValid() && v.unicast(path+".update-source", p.UpdateSource) && p.UpdateSource.Is4() != p.Address.Is4() {
		v.add(path+".update-source", "use an address of the neighbour's family", "update source %s and neighbour %s are of different families",
			p.UpdateSource, addrText(p.Address))
	}
	v.families(path, p)
	switch {
	case !p.ExtendedNextHop:
	case p.Address.Is4() || !slices.Contains(p.Families, "ipv4"):
		v.add(path+".extended-next-hop", "give the neighbour an IPv6 address and families: [ipv4, ipv6], or remove it",
			"it is for sessions over IPv6 that carry ipv4, and the one with %s is none", addrText(p.Address))
	case p.NextHop.Is4():
		v.add(path+".next-hop", "remove one of them", "extended-next-hop tells the neighbour an IPv6 next hop for IPv4 routes, and %s is another", p.NextHop)
	}
	v.number(path+".multihop", int64(p.Multihop), 0, 255)
	v.number(path+".ttl-security", int64(p.TTLSecurity), 0, 254)
	if p.Multihop > 0 && p.TTLSecurity > 0 {
		v.add(path+".ttl-security", "keep one of them; ttl-security counts hops by itself", "multihop and ttl-security exclude each other (RFC 5082)")
	}
	if p.PasswordFile != "" {
		v.file(path+".password-file", p.PasswordFile)
	}
	if p.BFD != nil {
		v.peerBFD(path, p)
	}
	v.port(path+".port", p.Port)
	if b := v.doc.Fabric.BGP; p.Hold != b.Hold || p.Keepalive != b.Keepalive {
		v.timers(path, p.Keepalive, p.Hold)
	}
	v.knownPolicy(path+".import", p.Import)
	v.knownPolicy(path+".export", p.Export)
	if p.NextHop.IsValid() {
		v.unicast(path+".next-hop", p.NextHop)
	}
	v.number(path+".allow-own-as", int64(p.AllowOwnAS), 0, 10)
	v.number(path+".max-prefix", int64(p.MaxPrefix), 1, 1<<31-1)
}

// peerAddress checks where a neighbour is reached.
func (v *validator) peerAddress(p *Peer, vrf, path string, others sessions) {
	key := session{address: p.Address}
	if p.Address.IsLinkLocalUnicast() && p.Address.Is6() {
		key.device = p.Interface
		if p.Interface == "" {
			v.add(path+".interface", "add the device", "link-local neighbour %s needs an interface", p.Address)
		}
	}
	if others.peers[key] {
		v.add(path+".address", "a neighbour has one session per VRF; keep one of them", "peer address %s is used twice in VRF %q", p.Address, vrf)
	}
	others.peers[key] = true
	if device, ours := others.own[p.Address]; ours {
		v.add(path+".address", "write the neighbour's", "%s is our own address on %s", p.Address, device)
	}
}

// ownBFD checks timers that stand in for the fabric's. What is wrong with those is said once, at the fabric.
func (v *validator) ownBFD(path string, b BFD) {
	f := v.doc.Fabric.BFD
	if b.Interval == f.Interval {
		b.Interval = defaultBFDInterval
	}
	if b.Multiplier == f.Multiplier {
		b.Multiplier = defaultBFDMultiplier
	}
	v.bfd(path, b)
}

// peerBFD checks what a neighbour's BFD session is made of.
func (v *validator) peerBFD(path string, p *Peer) {
	b, at := p.BFD, path+".bfd"
	v.ownBFD(at, b.BFD)
	switch {
	case p.Multihop > 0 && p.Address.Is6() && p.Address.IsLinkLocalUnicast():
		v.add(at, "remove multihop", "link-local neighbour %s is not reached over several hops", p.Address)
	case p.Multihop > 0 && !p.UpdateSource.IsValid():
		v.add(at, "add update-source, the address of ours that the neighbour has its session with", "a BFD session over several hops needs our address")
	}
	v.number(at+".key-id", int64(b.KeyID), 0, 255)
	if b.Auth == "" {
		if b.KeyFile != "" || b.KeyID != 0 {
			v.add(at, "add auth: simple, sha1 or meticulous-sha1, or remove the key", "a key without auth signs nothing")
		}
		return
	}
	v.oneOf(at+".auth", b.Auth, "simple", "sha1", "meticulous-sha1")
	if b.KeyFile == "" {
		v.add(at+".key-file", "name a file that holds the key, mode 0600", "auth %s needs a key", quoteShort(b.Auth))
	} else {
		v.file(at+".key-file", b.KeyFile)
	}
}

// families checks the address families of a session.
func (v *validator) families(path string, p *Peer) {
	for i, f := range p.Families {
		v.oneOf(index(path+".families", i), f, "ipv4", "ipv6")
		if slices.Contains(p.Families[:i], f) {
			v.add(index(path+".families", i), "keep one of them", "family %q is listed twice", f)
		}
	}
}
