package vrf

import (
	"fmt"
	"net/netip"
	"slices"

	"fabric/internal/kernel"
)

// Rule priorities of the rules backend, in the order in which the kernel asks them. They lie below 1000, where the
// kernel puts its own VRF rule, and the rule for the table "local" moves behind all of them (LocalRulePriority).
//
//	 80  to fe80::/10, ff00::/8             lookup local, then main
//	 90  iif lo to VTEP                     lookup main,  else unreachable
//	100  iif MEMBER                         lookup T,     else unreachable
//	102  oif MEMBER                         lookup T,     else unreachable
//	104  fwmark T                           lookup T,     else unreachable
//	106  iif lo from ADDRESS                lookup T,     else unreachable
//	108  to ADDRESS                         unreachable
//
// Every lookup of a VRF has its own end, so that none goes on to local and main, also while the table is still empty.
const (
	// prioLinkLocal: IPv6 link-local and multicast are scoped to a device and never cross VRFs.
	prioLinkLocal = 80
	// prioUnderlay: VXLAN's outer packet inherits the mark of the inner one and must still find its VTEP in the main
	// table, else a default route in the VRF makes it recurse into itself.
	prioUnderlay = 90
	// prioIn: what comes in on a member.
	prioIn = 100
	// prioOut: sockets bound to a member. The kernel skips routes of other devices for them, IPv6 the unreachable
	// default too, so they need the end behind the table more than others.
	prioOut = 102
	// prioMark: what the gateway itself answers (ICMP errors, RSTs, accepted connections).
	prioMark = 104
	// prioFrom: what the gateway itself sends from an address of the VRF (sessions between loopbacks, X7). Only for
	// addresses that no other VRF has.
	prioFrom = 106
	// prioGuard: the kernel keeps every address of the host in the table local too, where the main table's neighbours would
	// find those of a VRF. (What came in on a member, or is marked, never gets here: the same address may be a
	// host's in another VRF.)
	prioGuard = 108
	// LocalRulePriority is where the rule for the table "local" goes: behind the VRFs, before main.
	LocalRulePriority = 32765
)

// rules makes the VRFs of policy rules and marks.
func (c *compiler) rules() {
	for i := range c.host.VRFs {
		if m := &c.host.VRFs[i]; !m.IsMain() {
			c.memberRules(m)
		}
	}
	for vtep := range c.remotes {
		c.lookup(kernel.RuleKey{IPv6: vtep.Is6(), Priority: prioUnderlay, Iif: "lo", Dst: single(vtep)}, kernel.MainTable)
	}
	for _, p := range []string{"fe80::/10", "ff00::/8"} {
		key := kernel.RuleKey{IPv6: true, Priority: prioLinkLocal, Dst: netip.MustParsePrefix(p)}
		c.host.Rules[key] = kernel.Rule{Action: kernel.Lookup, Table: kernel.LocalTable}
		key.Priority++
		c.host.Rules[key] = kernel.Rule{Action: kernel.Lookup, Table: kernel.MainTable}
	}
	s := c.host.Sysctls
	s["net.ipv4.fwmark_reflect"] = "1"
	s["net.ipv6.fwmark_reflect"] = "1"
	s["net.ipv4.tcp_fwmark_accept"] = "1"
	// Without VRF devices the BGP servers listen on every address of their VRF by name. One that is not there yet, or not any
	// more, must not keep a server from listening on the others, nor the fabric's from the VTEP.
	s["net.ipv4.ip_nonlocal_bind"] = "1"
	s["net.ipv6.ip_nonlocal_bind"] = "1"
	// The larger of "all" and the device's counts.
	s["net.ipv4.conf.all.rp_filter"] = "0"
}

func (c *compiler) memberRules(m *Member) {
	for _, v6 := range []bool{false, true} {
		for _, d := range m.devices() {
			c.lookup(kernel.RuleKey{IPv6: v6, Priority: prioIn, Iif: d}, m.Table)
			c.lookup(kernel.RuleKey{IPv6: v6, Priority: prioOut, Oif: d}, m.Table)
		}
		c.lookup(kernel.RuleKey{IPv6: v6, Priority: prioMark, Mark: m.Table, Mask: ^uint32(0)}, m.Table)
	}
	for _, d := range m.devices() {
		c.marks = append(c.marks, fmt.Sprintf("%s=%d", d, m.Table))
		// The kernel looks the sender of an ARP request up without a mark and so in local and main: one whose address is
		// the gateway's in another VRF, or is not in main, would get no answer. Without any check on the source
		// it does not look.
		c.host.Sysctls["net.ipv4.conf."+sysctlName(d)+".rp_filter"] = "0"
		c.host.Sysctls["net.ipv4.conf."+sysctlName(d)+".accept_local"] = "1"
	}
	for a, vrfs := range c.owners {
		if c.guard(a, vrfs, m) && len(vrfs) == 1 {
			c.lookup(kernel.RuleKey{IPv6: a.Is6(), Priority: prioFrom, Iif: "lo", Src: single(a)}, m.Table)
		}
	}
	for a, vrfs := range c.anycast {
		c.guard(a, vrfs, m)
	}
}

// guard hides an address of a VRF from the main table, unless that has it too: then it must be reached from there.
func (c *compiler) guard(a netip.Addr, vrfs []string, m *Member) bool {
	if !slices.Contains(vrfs, m.Name) || slices.Contains(vrfs, "") {
		return false
	}
	c.host.Rules[kernel.RuleKey{IPv6: a.Is6(), Priority: prioGuard, Dst: single(a)}] = kernel.Rule{Action: kernel.RuleUnreachable}
	return true
}

// lookup adds a rule that asks a table, and the end behind it.
func (c *compiler) lookup(key kernel.RuleKey, table uint32) {
	c.host.Rules[key] = kernel.Rule{Action: kernel.Lookup, Table: table}
	key.Priority++
	c.host.Rules[key] = kernel.Rule{Action: kernel.RuleUnreachable}
}
