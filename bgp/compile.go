package bgp

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"fabric/bgp/rib"
	"fabric/internal/config"
	"fabric/policy"
)

// fabricTTL is the TTL of sessions between gateways: VTEP loopbacks, with hubs in between (RFC 5082 does not apply).
const fabricTTL = 255

// Compile says what the speakers of a gateway shall be. The document must be valid; errors are what only this gateway's
// host makes impossible, all at once (errors.Join).
func Compile(doc *config.Document, gateway string, host HostFacts) (Desired, error) {
	_, gw, ok := doc.Find(gateway)
	if !ok {
		return Desired{}, fmt.Errorf("bgp: gateway %q is not in the document; start with --gateway NAME of one that is", gateway)
	}
	c := &compiler{doc: doc, gw: gw, host: host, routerID: gw.RouterID}
	if !c.routerID.IsValid() && gw.VTEP.Is4() {
		c.routerID = gw.VTEP
	}
	if !c.routerID.Is4() {
		return Desired{}, fmt.Errorf("bgp: gateway %s has no IPv4 router id; set router-id", gw.Name)
	}
	var d Desired
	d.Fabric = c.fabric()
	d.Imports, d.Originations = c.vrfs()
	for i := range gw.VRFs {
		if gv := &gw.VRFs[i]; len(gv.Peers) > 0 {
			d.VRFs = append(d.VRFs, c.server(gv))
		}
	}
	c.listeners(d.VRFs)
	if gw.Drained {
		d.Originations = nil
	}
	if err := errors.Join(c.errs...); err != nil {
		return Desired{}, err
	}
	return d, nil
}

type compiler struct {
	doc      *config.Document
	gw       *config.Gateway
	host     HostFacts
	routerID netip.Addr
	errs     []error
}

func (c *compiler) errorf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("bgp: gateway "+c.gw.Name+": "+format, args...))
}

func (c *compiler) fabric() *Server {
	b := c.doc.Fabric.BGP
	s := &Server{ASN: c.gw.ASN, RouterID: c.routerID, Listen: []netip.Addr{c.gw.VTEP}, Port: b.Port}
	for _, remote := range c.remotes() {
		s.Peers = append(s.Peers, Peer{
			Name:         remote.Name,
			Address:      remote.VTEP,
			ASN:          remote.ASN,
			LocalASN:     c.gw.ASN,
			LocalAddress: c.gw.VTEP,
			Families:     []string{EVPN},
			Multihop:     fabricTTL,
			Port:         b.Port,
			Keepalive:    b.Keepalive.Std(),
			Hold:         b.Hold.Std(),
			ConnectRetry: b.ConnectRetry.Std(),
			RestartTime:  b.RestartTime.Std(),
			// Only the gateway with the higher VTEP dials, the one whose connection would win a collision (RFC 4271 section
			// 6.8). If both do at the same moment, two GoBGP v4.8.0 each go on with their own and wait for the hold time.
			Passive: c.gw.VTEP.Less(remote.VTEP),
			// Default routes are looked at by the importing VRFs (Import.AllowDefault).
			Import: policy.Chain(policy.Guard(true), policy.OwnAS(c.gw.ASN, c.allowOwnAS())),
		})
	}
	return s
}

// remotes are the gateways that a session is kept with: those we are linked with, and those behind a hub. To BGP there is no difference:
// sessions are between VTEPs, and the hub does not take part.
func (c *compiler) remotes() []*config.Gateway {
	var out []*config.Gateway
	for _, l := range c.doc.Neighbours(c.gw.Name) {
		out = append(out, l.Remote)
	}
	for _, t := range c.doc.Transits(c.gw.Name) {
		out = append(out, t.Remote)
	}
	slices.SortFunc(out, func(a, b *config.Gateway) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// allowOwnAS is how often our ASN may be in a path from the fabric: as often as the most liberal of our peers may send
// it, since a site of ours behind another gateway says the same as one behind ours.
func (c *compiler) allowOwnAS() (n int) {
	for i := range c.gw.VRFs {
		for j := range c.gw.VRFs[i].Peers {
			n = max(n, c.gw.VRFs[i].Peers[j].AllowOwnAS)
		}
	}
	return n
}

func (c *compiler) vrfs() (imports []Import, originations []Origination) {
	numbers := map[uint16]string{}
	for i := range c.gw.VRFs {
		v, ok := c.doc.VRF(c.gw.VRFs[i].VRF)
		if !ok {
			c.errorf("VRF %q is not in the document; declare it under vrfs", c.gw.VRFs[i].VRF)
			continue
		}
		n := uint16(v.Table)
		if other, taken := numbers[n]; taken {
			c.errorf("VRFs %s and %s would have the same route distinguisher %s:%d; choose table numbers that differ in their low 16 bits",
				other, v.Name, c.routerID, n)
		}
		numbers[n] = v.Name
		imports = append(imports, Import{VRF: v.Name, RTs: c.targets(v.Name, v.ImportRT), AllowDefault: v.AllowDefault, Multipath: c.gw.VRFs[i].Multipath})
		originations = append(originations, Origination{
			VRF: v.Name, VNI: v.VNI, RD: routeDistinguisher(c.routerID, n), RTs: c.targets(v.Name, v.ExportRT),
			Export: policy.Guard(v.AllowDefault),
		})
	}
	return imports, originations
}

func (c *compiler) targets(vrf string, texts []string) []rib.RT {
	var rts []rib.RT
	for _, t := range texts {
		rt, err := rib.ParseRT(t)
		if err != nil {
			c.errorf("VRF %s: %w", vrf, err)
			continue
		}
		rts = append(rts, rt)
	}
	return rts
}

// routeDistinguisher is a type 1 RD (RFC 4364 section 4.2). Its number has 16 bits, too few for a VNI.
func routeDistinguisher(id netip.Addr, number uint16) (rd rib.RD) {
	a := id.As4()
	rd[1] = 1
	copy(rd[2:6], a[:])
	binary.BigEndian.PutUint16(rd[6:], number)
	return rd
}

// server compiles a VRF's server.
func (c *compiler) server(gv *config.GatewayVRF) Server {
	s := Server{
		VRF: gv.VRF, ASN: c.gw.ASN, RouterID: c.routerID, Port: c.doc.Fabric.BGP.Port,
		BindDevice: c.host.VRFDevices[gv.VRF], Silent: c.gw.Drained,
	}
	if s.BindDevice == "" {
		for _, i := range gv.Interfaces {
			for _, a := range i.Addresses {
				s.Listen = append(s.Listen, a.Addr())
			}
		}
		for _, l := range gv.Loopbacks {
			s.Listen = append(s.Listen, l.Addr())
		}
	}
	seen := map[netip.Addr]string{}
	for i := range gv.Peers {
		p := c.peer(gv, &gv.Peers[i])
		if other, taken := seen[p.neighbour()]; taken {
			c.errorf("VRF %s: peers %s and %s have the same address %s; give one peer per address", gv.VRF, other, p.Name, p.Address)
		}
		seen[p.neighbour()] = p.Name
		if s.BindDevice == "" && p.LocalAddress.IsValid() {
			s.Listen = append(s.Listen, p.LocalAddress)
		}
		s.Peers = append(s.Peers, p)
	}
	// Nobody can listen on a link-local address without its device, and GoBGP v4.8.0 has no way to name one: it would not
	// start at all. Sessions between link-local addresses are ours to open.
	s.Listen = slices.DeleteFunc(s.Listen, func(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() })
	slices.SortFunc(s.Listen, netip.Addr.Compare)
	s.Listen = slices.Compact(s.Listen)
	if s.BindDevice == "" && len(s.Listen) == 0 {
		c.errorf("VRF %s has peers but no address to listen on; give its interface an address or the peer an update-source", gv.VRF)
	}
	return s
}

func (c *compiler) peer(gv *config.GatewayVRF, in *config.Peer) Peer {
	b := c.doc.Fabric.BGP
	p := Peer{
		Name: in.Name, VRF: gv.VRF, Address: in.Address, ASN: in.ASN, LocalASN: in.LocalASN,
		LocalAddress: in.UpdateSource, Interface: in.Interface, Families: in.Families, Passive: in.Passive,
		Multihop: in.Multihop, TTLSecurity: in.TTLSecurity, PasswordFile: in.PasswordFile, Port: in.Port,
		Keepalive: in.Keepalive.Std(), Hold: in.Hold.Std(),
		ConnectRetry: b.ConnectRetry.Std(), RestartTime: b.RestartTime.Std(),
		ExtendedNextHop: in.ExtendedNextHop,
		ASOverride:      in.ASOverride, MaxPrefix: in.MaxPrefix, Disabled: in.Disabled, BFD: in.BFD != nil,
	}
	if p.Name == "" {
		p.Name = p.Address.String()
	}
	if p.LocalASN == 0 {
		p.LocalASN = c.gw.ASN
	}
	connected, local := onInterface(gv, p.Address, p.Interface)
	if p.Interface == "" {
		p.Interface = connected
	}
	if !p.LocalAddress.IsValid() && p.Multihop == 0 {
		p.LocalAddress = local
	}
	switch device := c.host.VRFDevices[gv.VRF]; {
	case device != "":
		p.BindDevice = device
	case in.Interface != "" || p.Multihop == 0:
		// A directly connected peer's packets must leave by its device whatever the main table says. Sessions between
		// loopbacks are led by the rules for their source.
		p.BindDevice = p.Interface
	}
	for _, i := range gv.Interfaces {
		for _, a := range i.Addresses {
			p.Own = append(p.Own, a.Addr())
			if i.Name == p.Interface {
				p.Networks = append(p.Networks, a.Masked())
			}
		}
	}
	for _, l := range gv.Loopbacks {
		p.Own = append(p.Own, l.Addr())
	}
	if in.NextHop.Is4() {
		p.NextHop4 = in.NextHop
	} else {
		p.NextHop6 = in.NextHop
	}
	for _, family := range p.Families {
		c.nextHop(gv, &p, family)
	}
	c.policies(gv, in, &p)
	return p
}

// nextHop finds the next hop of a family that is not the session's: GoBGP knows one address of ours, the session's.
func (c *compiler) nextHop(gv *config.GatewayVRF, p *Peer, family string) {
	nh, is4 := &p.NextHop6, family == IPv4
	if is4 {
		nh = &p.NextHop4
	}
	if nh.IsValid() || p.Address.Is4() == is4 && !p.Address.IsLinkLocalUnicast() || is4 && p.ExtendedNextHop {
		return
	}
	for _, i := range gv.Interfaces {
		if p.Interface != "" && i.Name != p.Interface {
			continue
		}
		for _, a := range i.Addresses {
			if a.Addr().Is4() == is4 && !a.Addr().IsLinkLocalUnicast() {
				*nh = a.Addr()
				return
			}
		}
	}
	if p.Address.Is4() == is4 {
		return // a link-local session: its own address will do
	}
	c.errorf("VRF %s: peer %s carries %s over a session of the other family, and its interface has no %s address; give it one, or the peer a next-hop",
		gv.VRF, p.Name, family, family)
}

func (c *compiler) policies(gv *config.GatewayVRF, in *config.Peer, p *Peer) {
	allowDefault := false
	if v, ok := c.doc.VRF(gv.VRF); ok {
		allowDefault = v.AllowDefault
	}
	named := func(name string) policy.Policy {
		if name == "" {
			return policy.Policy{}
		}
		i := slices.IndexFunc(c.doc.Policies, func(q config.Policy) bool { return q.Name == name })
		if i < 0 {
			c.errorf("VRF %s: peer %s refers to policy %q, which is not in the document; add it under policies", gv.VRF, p.Name, name)
			return policy.Policy{}
		}
		compiled, err := policy.Compile(c.doc.Policies[i])
		if err != nil {
			c.errorf("VRF %s: peer %s: %w", gv.VRF, p.Name, err)
		}
		return compiled.WithASN(p.LocalASN)
	}
	guards := []policy.Policy{policy.Guard(allowDefault), policy.OwnAS(c.gw.ASN, in.AllowOwnAS)}
	if p.LocalASN != c.gw.ASN {
		guards = append(guards, policy.OwnAS(p.LocalASN, in.AllowOwnAS))
	}
	p.Import = policy.Chain(append(guards, named(in.Import))...)
	p.Export = policy.Chain(policy.Guard(allowDefault), named(in.Export))
}

// onInterface finds the VRF's interface that a neighbour is connected on, and our address there. Link-local neighbours
// name theirs.
func onInterface(gv *config.GatewayVRF, a netip.Addr, name string) (device string, local netip.Addr) {
	for _, i := range gv.Interfaces {
		if name != "" && i.Name != name {
			continue
		}
		for _, own := range i.Addresses {
			if !own.IsSingleIP() && own.Contains(a.WithZone("")) {
				return i.Name, own.Addr()
			}
		}
	}
	return "", netip.Addr{}
}

// listeners settles addresses that several servers want in rules mode, where sockets of all VRFs share one port space:
// two may listen on the same address only when each is bound to a device of its own. An address that no session of the
// VRF uses is left out; where one is used, the server is bound to the device that all its peers share.
func (c *compiler) listeners(servers []Server) {
	users := map[netip.Addr][]*Server{}
	for i := range servers {
		for _, a := range servers[i].Listen {
			users[a] = append(users[a], &servers[i])
		}
	}
	for i := range servers {
		s := &servers[i]
		if len(s.Listen) == 0 {
			continue
		}
		s.Listen = slices.DeleteFunc(s.Listen, func(a netip.Addr) bool {
			return len(users[a]) > 1 && !slices.ContainsFunc(s.Peers, func(p Peer) bool { return p.LocalAddress == a })
		})
		if len(s.Listen) == 0 {
			c.errorf("VRF %s shares all of its addresses with other VRFs, and no peer says which it uses; give the peers an update-source", s.VRF)
		}
	}
	clear(users)
	for i := range servers {
		for _, a := range servers[i].Listen {
			users[a] = append(users[a], &servers[i])
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(users), netip.Addr.Compare) {
		ss := users[a]
		if len(ss) < 2 {
			continue
		}
		for _, s := range ss {
			device := s.Peers[0].BindDevice
			if device == "" || slices.ContainsFunc(s.Peers, func(p Peer) bool { return p.BindDevice != device }) {
				c.errorf("VRFs %s and %s both use the address %s for BGP, and without VRF devices that needs all peers of each on one device, which VRF %s has not; give them addresses of their own, or use a kernel with VRF devices",
					ss[0].VRF, ss[1].VRF, a, s.VRF)
				break
			}
			s.BindDevice = device
		}
	}
}
