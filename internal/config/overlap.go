package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
)

var prefixType = reflect.TypeFor[netip.Prefix]()

// guarded are the prefixes of which nothing may travel between sites, and why (RFC 6890).
var guarded = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "0.0.0.0/8 is this network"},
	{netip.MustParsePrefix("100.64.0.0/10"), "100.64.0.0/10 is the carriers' and the clouds' own"},
	{netip.MustParsePrefix("127.0.0.0/8"), "127.0.0.0/8 is the host itself"},
	{netip.MustParsePrefix("169.254.0.0/16"), "169.254.0.0/16 is link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "224.0.0.0/4 is multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "240.0.0.0/4 is reserved"},
	{netip.MustParsePrefix("::/128"), ":: is unspecified"},
	{netip.MustParsePrefix("::1/128"), "::1 is the host itself"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "::ffff:0:0/96 is IPv4 in IPv6 form"},
	{netip.MustParsePrefix("fe80::/10"), "fe80::/10 is link-local"},
	{netip.MustParsePrefix("ff00::/8"), "ff00::/8 is multicast"},
}

// neverLeaves says why a prefix must not travel between sites, or "".
func neverLeaves(p netip.Prefix, allowDefault bool) string {
	if p.Bits() == 0 {
		if allowDefault {
			return ""
		}
		return "the VRF does not allow a default route"
	}
	if p.Bits() == p.Addr().BitLen()-2 || p.Bits() == p.Addr().BitLen()-1 {
		return fmt.Sprintf("a /%d joins two routers and nothing else", p.Bits())
	}
	for _, g := range guarded {
		if g.prefix.Overlaps(p) && g.prefix.Bits() <= p.Bits() {
			return g.reason
		}
	}
	return ""
}

// origin is a prefix that a gateway announces.
type origin struct {
	prefix    netip.Prefix
	path      string
	site, vrf string
	shared    bool
}

// origins lists what gateways announce, by VRF. A loopback that is listed as a prefix too takes its marks from there.
func (d *Document) origins() map[string][]origin {
	by := map[string][]origin{}
	for i := range d.Sites {
		s := &d.Sites[i]
		for j := range s.Gateways {
			for k := range s.Gateways[j].VRFs {
				a := &s.Gateways[j].VRFs[k]
				path := index(index(index("sites", i)+".gateways", j)+".vrfs", k)
				listed := map[netip.Prefix]bool{}
				for n, p := range a.Prefixes {
					listed[p.Prefix] = true
					if p.Prefix.IsValid() && p.Announced() {
						by[a.VRF] = append(by[a.VRF], origin{p.Prefix.Masked(), index(path+".prefixes", n) + ".prefix", s.Name, a.VRF, p.Shared})
					}
				}
				for n, l := range a.Loopbacks {
					if l.IsValid() && !listed[l] {
						by[a.VRF] = append(by[a.VRF], origin{l.Masked(), index(path+".loopbacks", n), s.Name, a.VRF, false})
					}
				}
			}
		}
	}
	return by
}

// overlaps checks prefixes against each other and against the addresses that the tunnels run on.
func (v *validator) overlaps() {
	under := v.underlayAddresses()
	for _, list := range v.doc.origins() {
		slices.SortStableFunc(list, func(a, b origin) int {
			return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
		})
		v.betweenSites(list)
		for _, o := range list {
			v.overUnderlay(o, under)
		}
	}
}

// betweenSites reports prefixes of different sites that overlap; the list is sorted so that what covers a prefix comes
// before it. A default route covers everything on purpose and clashes only with another one.
func (v *validator) betweenSites(list []origin) {
	var open []origin
	for _, o := range list {
		open = slices.DeleteFunc(open, func(p origin) bool { return !p.prefix.Overlaps(o.prefix) })
		for _, p := range open {
			if p.site == o.site || p.shared && o.shared || (p.prefix.Bits() == 0) != (o.prefix.Bits() == 0) {
				continue
			}
			later, earlier := o, p
			if v.after(p.path, o.path) {
				later, earlier = p, o
			}
			v.add(later.path, "write shared: true at both, or announce prefixes that do not overlap",
				"%s of site %q overlaps %s of site %q in VRF %q", later.prefix, later.site, earlier.prefix, earlier.site, o.vrf)
			break
		}
		// Of equal prefixes of one site, one stands for all: it keeps the list as short as prefixes are long.
		if !slices.ContainsFunc(open, func(p origin) bool { return p.prefix == o.prefix && p.site == o.site && p.shared == o.shared }) {
			open = append(open, o)
		}
	}
}

// after says whether a stands after b in the file.
func (v *validator) after(a, b string) bool {
	p, q := v.find(a), v.find(b)
	return cmp.Or(cmp.Compare(p.line, q.line), cmp.Compare(p.column, q.column), cmp.Compare(a, b)) > 0
}

// underlayAddress is an address that tunnels need to reach another gateway.
type underlayAddress struct {
	address netip.Addr
	what    string
	private bool
}

// underlayAddresses lists the VTEPs and endpoints, sorted by address.
func (v *validator) underlayAddresses() []underlayAddress {
	var list []underlayAddress
	for _, s := range v.doc.Sites {
		for _, g := range s.Gateways {
			if g.VTEP.IsValid() {
				list = append(list, underlayAddress{g.VTEP, fmt.Sprintf("VTEP %s of gateway %q", g.VTEP, g.Name), false})
			}
			for _, e := range g.Endpoints {
				if e.Address.IsValid() {
					list = append(list, underlayAddress{e.Address, fmt.Sprintf("endpoint %s of gateway %q", e.Address, g.Name), e.Address.IsPrivate()})
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b underlayAddress) int { return a.address.Compare(b.address) })
	return list
}

// overUnderlay reports a prefix that would draw the tunnels' own packets into the tunnels. Outside the main table a
// default route and a private endpoint do no harm.
func (v *validator) overUnderlay(o origin, under []underlayAddress) {
	main := o.vrf == "default"
	if o.prefix.Bits() == 0 && !main {
		return
	}
	i, _ := slices.BinarySearchFunc(under, o.prefix.Addr(), func(u underlayAddress, a netip.Addr) int { return u.address.Compare(a) })
	for ; i < len(under) && o.prefix.Contains(under[i].address); i++ {
		if under[i].private && !main {
			continue
		}
		v.add(o.path, "announce prefixes that leave it out", "%s covers %s, which the tunnels run on", o.prefix, under[i].what)
		return
	}
}
