// Package vrf says what the VRFs of a gateway are on its host: devices or rules, tables, VXLAN, addresses, packet
// marks, and how a route that the RIB chose becomes a kernel route. It is pure: it compiles the intent to values that
// the edges of package kernel make true.
package vrf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
)

// Backend is how VRFs are made on this host.
type Backend string

// The backends.
const (
	// Devices uses VRF devices (CONFIG_NET_VRF).
	Devices Backend = "vrf-device"
	// Rules uses policy rules and packet marks, with the same isolation, where the kernel has no VRF devices.
	Rules Backend = "rules"
)

// Host is everything the VRFs of a gateway need on the host, but for the routes that BGP chose.
type Host struct {
	Backend Backend
	VRFs    []Member
	// Tables are the kernel tables of the VRFs.
	Tables     []uint32
	Links      map[string]kernel.Link
	Ports      map[string]kernel.Port
	Addresses  map[kernel.AddressKey]kernel.Address
	Rules      map[kernel.RuleKey]kernel.Rule
	Routes     map[kernel.RouteKey]kernel.Route
	Neighbours map[kernel.NeighbourKey]kernel.Neighbour
	FDB        map[kernel.FDBKey]kernel.FDBEntry
	Sysctls    map[string]string
	Filter     kernel.Filter
}

// Member is one VRF at this gateway.
type Member struct {
	Name  string
	Table uint32
	VNI   uint32
	// Device is the VRF device or "" (rules, and the VRF "default").
	Device string
	// VXLAN is the VXLAN device.
	VXLAN string
	// Interfaces are the member devices of the intent.
	Interfaces []string
	// Source4 and Source6 are the addresses the gateway itself speaks from in this VRF, loopbacks where there are any; zero
	// where it has none.
	Source4, Source6 netip.Addr
	// Connected are the networks on the members, with their devices; loopbacks have device "". Link-local IPv6 networks are
	// not among them: every member has the same one.
	Connected []Connected
	// RouterMACs are the hardware addresses that packets for other gateways get, by VTEP. Not to be changed: VRFs share it.
	RouterMACs map[netip.Addr][6]byte
}

// Connected is a network that the gateway is attached to.
type Connected struct {
	Prefix netip.Prefix
	Device string
}

// IsMain says whether the VRF is the main table.
func (m *Member) IsMain() bool { return m.Table == kernel.MainTable }

// VRFDevices are the VRF devices by VRF name; a VRF that has none is left out.
func (h *Host) VRFDevices() map[string]string {
	devices := map[string]string{}
	for _, m := range h.VRFs {
		if m.Device != "" {
			devices[m.Name] = m.Device
		}
	}
	return devices
}

// Compile says what the gateway's VRFs need on a host with the given features.
func Compile(doc *config.Document, gateway string, f kernel.Features) (*Host, error) {
	_, gw, ok := doc.Find(gateway)
	if !ok {
		return nil, fmt.Errorf("gateway %q is not in the document", gateway)
	}
	devices := map[string]string{}
	for i := range gw.VRFs {
		if v, ok := doc.VRF(gw.VRFs[i].VRF); ok && hasDevice(v, f) {
			devices[v.Name] = v.Name
		}
	}
	plan, err := overlay.Compile(doc, gateway, overlay.Host{VRFDevices: devices})
	if err != nil {
		return nil, err
	}
	h := &Host{
		Backend:    Rules,
		Links:      map[string]kernel.Link{},
		Ports:      map[string]kernel.Port{},
		Addresses:  map[kernel.AddressKey]kernel.Address{},
		Rules:      map[kernel.RuleKey]kernel.Rule{},
		Routes:     map[kernel.RouteKey]kernel.Route{},
		Neighbours: map[kernel.NeighbourKey]kernel.Neighbour{},
		FDB:        map[kernel.FDBKey]kernel.FDBEntry{},
		Sysctls:    map[string]string{},
	}
	if f.VRF {
		h.Backend = Devices
	}
	c := &compiler{
		doc: doc, gw: gw, features: f, host: h, mtu: overlay.MTU(doc, gateway),
		remotes: map[netip.Addr][6]byte{},
		owners:  map[netip.Addr][]string{gw.VTEP: {""}}, anycast: map[netip.Addr][]string{},
	}
	for _, e := range gw.Endpoints {
		c.owners[e.Address] = []string{""}
	}
	for i := range plan.Tunnels {
		t := &plan.Tunnels[i]
		// Those of later keys too, from the start: a tunnel changes its device when its keys are replaced.
		c.tunnels = append(c.tunnels, t.Devices()...)
		if t.Kind == overlay.KindDirect {
			c.directPort, c.directSources = t.ListenPort, append(c.directSources, t.Endpoint.Addr().String())
		}
	}
	c.spread = len(plan.Shared()) > 0
	for i := range plan.VTEPs {
		if _, remote, ok := doc.Find(plan.VTEPs[i].Gateway); ok {
			c.remotes[plan.VTEPs[i].Addr] = overlay.GatewayMAC(remote)
		}
	}
	for i := range gw.VRFs {
		if err := c.vrf(&gw.VRFs[i]); err != nil {
			return nil, err
		}
	}
	c.sysctls()
	if h.Backend == Rules && len(h.Tables) > 0 {
		c.rules()
	}
	c.filter(overlay.MSS(doc, gateway))
	return h, nil
}

// hasDevice says whether a VRF has a device of its name on a host with the given features.
func hasDevice(v *config.VRF, f kernel.Features) bool {
	return f.VRF && v.Table != 0 && v.Table != kernel.MainTable
}

type compiler struct {
	doc      *config.Document
	gw       *config.Gateway
	features kernel.Features
	host     *Host
	mtu      int
	tunnels  []string
	// remotes are the router MACs of the other gateways by VTEP.
	remotes map[netip.Addr][6]byte
	// owners are the VRFs that have an address of the gateway, by name; "" is the main table.
	owners map[netip.Addr][]string
	// anycast are likewise the subnet-router anycast addresses of IPv6 networks (RFC 4291 section 2.6.1), which the kernel
	// answers to on its own.
	anycast map[netip.Addr][]string
	// marks in the form of kernel.Filter.
	marks []string
	// spread: there are tunnels of equal rank, which share traffic by flow.
	spread bool
	// directPort is the UDP port of direct tunnels, 0 without any; directSources are the far ends' addresses.
	directPort    int
	directSources []string
}

func (c *compiler) vrf(gv *config.GatewayVRF) error {
	v, ok := c.doc.VRF(gv.VRF)
	if !ok {
		return fmt.Errorf("gateway %s: VRF %q is not in the document", c.gw.Name, gv.VRF)
	}
	m := Member{Name: v.Name, Table: v.Table, VNI: v.VNI, VXLAN: overlay.VXLANDevice(v.VNI), RouterMACs: c.remotes}
	if m.Table == 0 {
		m.Table = kernel.MainTable
	}
	if hasDevice(v, c.features) {
		m.Device = v.Name
		c.host.Links[v.Name] = kernel.Link{
			Name: v.Name, Kind: kernel.KindVRF, Alias: kernel.AliasPrefix + "vrf:" + v.Name, Table: v.Table, Up: true,
		}
	}
	c.vxlan(&m)
	// Loopbacks first: what the gateway speaks from should not go with an interface.
	for _, p := range gv.Loopbacks {
		c.loopback(&m, p)
	}
	for i := range gv.Interfaces {
		c.member(&m, &gv.Interfaces[i])
	}
	if !m.IsMain() {
		c.backstop(&m)
		c.host.Tables = append(c.host.Tables, m.Table)
	}
	c.host.VRFs = append(c.host.VRFs, m)
	return nil
}

// vxlan adds the VRF's VXLAN device with one forwarding entry and one neighbour per remote VTEP: nothing is learnt.
func (c *compiler) vxlan(m *Member) {
	c.host.Links[m.VXLAN] = kernel.Link{
		Name: m.VXLAN, Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + "vxlan:" + m.Name, MTU: c.mtu, Up: true,
		VXLAN:  kernel.VXLAN{VNI: m.VNI, Local: c.gw.VTEP, Port: uint16(c.doc.Fabric.VXLANPort)},
		Spread: c.spread,
		MAC:    overlay.GatewayMAC(c.gw),
		Master: m.Device,
	}
	for vtep, mac := range c.remotes {
		c.host.FDB[kernel.FDBKey{Device: m.VXLAN, MAC: mac}] = kernel.FDBEntry{Dst: vtep}
		c.host.Neighbours[kernel.NeighbourKey{Device: m.VXLAN, Addr: overlay.VTEPGateway(vtep)}] = kernel.Neighbour{MAC: mac}
	}
}

// member adds an interface of the intent. With a VRF device the kernel makes the connected and local routes itself; with
// rules they go into the VRF's table by hand, because the kernel would put them into main and local. Link-local IPv6 addresses
// are scoped to their device and stay where the kernel puts them.
func (c *compiler) member(m *Member, itf *config.Interface) {
	m.Interfaces = append(m.Interfaces, itf.Name)
	c.host.Ports[itf.Name] = kernel.Port{Name: itf.Name, Master: m.Device, MTU: itf.MTU}
	for _, p := range itf.Addresses {
		linkLocal := p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()
		byHand := m.Device == "" && !m.IsMain() && !linkLocal
		c.host.Addresses[kernel.AddressKey{Device: itf.Name, Prefix: p}] = kernel.Address{NoPrefixRoute: byHand, NoDAD: p.Addr().Is6()}
		if linkLocal {
			continue
		}
		c.own(m, p.Addr())
		if p.Addr().Is6() && p.Bits() < 127 {
			note(c.anycast, p.Masked().Addr(), m)
		}
		m.Connected = append(m.Connected, Connected{Prefix: p.Masked(), Device: itf.Name})
		if !byHand {
			continue
		}
		c.local(m, p.Addr(), itf.Name)
		if !p.IsSingleIP() {
			r := kernel.Route{Device: itf.Name, Scope: kernel.LinkScope, Protocol: kernel.Protocol}
			if p.Addr().Is4() {
				r.Src = p.Addr()
			} else {
				r.Scope = kernel.Universe
			}
			// The first of two interfaces on one network has the route, as in Paths.
			key := kernel.RouteKey{Table: m.Table, Prefix: p.Masked(), Metric: connectedMetric}
			if _, taken := c.host.Routes[key]; !taken {
				c.host.Routes[key] = r
			}
		}
	}
}

// connectedMetric is better than kernel.Metric: connected beats everything. Not 0, which IPv6 reads as 1024.
const connectedMetric = 1

// loopback adds an address that belongs to the VRF but to no interface. With rules it stands on lo, and only the
// VRF's members reach it.
func (c *compiler) loopback(m *Member, p netip.Prefix) {
	device := m.Device
	if device == "" {
		device = "lo"
	}
	c.host.Addresses[kernel.AddressKey{Device: device, Prefix: p}] = kernel.Address{NoDAD: p.Addr().Is6()}
	c.own(m, p.Addr())
	m.Connected = append(m.Connected, Connected{Prefix: p})
	if m.Device == "" && !m.IsMain() {
		c.local(m, p.Addr(), "lo")
	}
}

func (c *compiler) local(m *Member, a netip.Addr, device string) {
	scope := kernel.HostScope
	if a.Is6() {
		scope = kernel.Universe
	}
	c.host.Routes[kernel.RouteKey{Table: m.Table, Prefix: single(a), Metric: connectedMetric}] =
		kernel.Route{Type: kernel.Local, Scope: scope, Device: device, Protocol: kernel.Protocol}
}

// own notes an address of the gateway in a VRF. The first of a family is what the gateway speaks from; an IPv4 link-local one
// (169.254.0.0/16, as on tunnels to clouds) only where there is no other, since nobody further away can answer it.
func (c *compiler) own(m *Member, a netip.Addr) {
	note(c.owners, a, m)
	src := &m.Source4
	if a.Is6() {
		src = &m.Source6
	}
	if !src.IsValid() || src.IsLinkLocalUnicast() && !a.IsLinkLocalUnicast() {
		*src = a
	}
}

// note adds a VRF to those that have an address.
func note(owners map[netip.Addr][]string, a netip.Addr, m *Member) {
	name := m.Name
	if m.IsMain() {
		name = ""
	}
	if !slices.Contains(owners[a], name) {
		owners[a] = append(owners[a], name)
	}
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// backstop ends a lookup that found nothing: without it the kernel goes on to main.
func (c *compiler) backstop(m *Member) {
	for _, p := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		c.host.Routes[kernel.RouteKey{Table: m.Table, Prefix: p, Metric: kernel.BackstopMetric}] =
			kernel.Route{Type: kernel.UnreachableRoute, Protocol: kernel.Protocol}
	}
}

// sysctls adds what all VRFs share, whatever they are made of.
func (c *compiler) sysctls() {
	s := c.host.Sysctls
	s["net.ipv4.ip_forward"] = "1"
	s["net.ipv6.conf.all.forwarding"] = "1"
	s["net.ipv4.conf.all.send_redirects"] = "0"
	// With compat mode a next-hop change is told once per route: seconds instead of microseconds at 1M routes.
	s["net.ipv4.nexthop_compat_mode"] = "0"
	for _, m := range c.host.VRFs {
		for _, d := range m.devices() {
			// 2 is loose, and wins over "all", whose strict 1 would drop asymmetric paths.
			s["net.ipv4.conf."+sysctlName(d)+".rp_filter"] = "2"
			s["net.ipv4.conf."+sysctlName(d)+".send_redirects"] = "0"
			s["net.ipv6.conf."+sysctlName(d)+".keep_addr_on_down"] = "1"
		}
	}
	if c.host.Backend == Devices {
		// Sockets are bound to their VRF; unbound listeners must not answer in one (X26).
		s["net.ipv4.tcp_l3mdev_accept"] = "0"
		s["net.ipv4.udp_l3mdev_accept"] = "0"
	}
}

// devices are the VRF's interfaces and its VXLAN device.
func (m *Member) devices() []string { return append(slices.Clone(m.Interfaces), m.VXLAN) }

// sysctlName writes a device name as sysctl does: a '.' in it becomes '/'.
func sysctlName(device string) string { return strings.ReplaceAll(device, ".", "/") }

func (c *compiler) filter(mss4, mss6 int) {
	clamp := slices.Clone(c.tunnels)
	for _, m := range c.host.VRFs {
		clamp = append(clamp, m.VXLAN)
		clamp = append(clamp, m.Interfaces...)
	}
	c.host.Filter = kernel.Filter{
		Comment: kernel.AliasPrefix + c.gw.Name,
		MSS4:    mss4, MSS6: mss6,
		ClampDevices: join(clamp),
		VXLANPort:    c.doc.Fabric.VXLANPort,
		VXLANDevices: join(slices.Clone(c.tunnels)),
		Marks:        join(c.marks),
		DirectPort:   c.directPort, DirectSources: join(c.directSources),
	}
}

func join(s []string) string {
	slices.Sort(s)
	return strings.Join(slices.Compact(s), ",")
}
