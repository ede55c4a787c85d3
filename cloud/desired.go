package cloud

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"fabric/bgp/rib"
	"fabric/policy"
)

var (
	defaultV4 = netip.MustParsePrefix("0.0.0.0/0")

	// What never belongs into a table; among it is 100.64.0.0/10, where the clouds' DNS, metadata and storage are. A default
	// route is the export policy's to allow.
	guard = policy.Guard(true)
)

// filter decides which choices of the RIB are for the VPC's tables.
type filter struct {
	wish  Wish
	cidrs []netip.Prefix // of the VPC and its vSwitches
}

// wants says whether a choice is for the tables. Where it is not, why says the reason; "" if the choice is none of the
// tables' business at all.
func (f filter) wants(c rib.Choice) (ok bool, why string) {
	if c.Best == nil || c.Key.VRF != f.wish.VRF {
		return false, ""
	}
	switch c.Best.Key.Source.Kind {
	case rib.Fabric, rib.Peer, rib.Static:
	default:
		return false, "" // a network of this gateway's own interfaces is the VPC's own
	}
	p := c.Key.Prefix
	for _, own := range f.cidrs {
		if own.Bits() <= p.Bits() && own.Overlaps(p) {
			return false, "" // the VPC delivers these itself
		}
	}
	if !p.Addr().Is4() {
		return false, "left out: only IPv4 goes into VPC tables"
	}
	isDefault := p == defaultV4
	if _, v, term := guard.Eval(*c.Best); v != policy.Accept {
		return false, fmt.Sprintf("left out: refused by %v", term)
	}
	for _, u := range f.wish.Protected {
		if u.Overlaps(p) && !isDefault {
			return false, fmt.Sprintf("left out: covers %v, over which the tunnels run", u)
		}
	}
	_, v, term := f.wish.Export.Eval(*c.Best)
	switch {
	case v != policy.Accept:
		return false, fmt.Sprintf("left out: refused by %v", term)
	case isDefault && (term == policy.Term{} || term.Name == "default"):
		return false, "left out: a default route needs an export policy with a term that accepts it"
	}
	return true, ""
}

// fit chooses what goes into a table with room for so many entries: those that are there already first, so that a full
// table does not change, then the shorter prefixes, which reach more, then by address. room < 0 is no limit.
func fit(want []netip.Prefix, have map[netip.Prefix]Route, room int) (in, out []netip.Prefix) {
	order := slices.Clone(want)
	slices.SortFunc(order, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(absent(have, a), absent(have, b)), cmp.Compare(a.Bits(), b.Bits()), a.Compare(b))
	})
	if room < 0 || room >= len(order) {
		return order, nil
	}
	return order[:room], order[room:]
}

func absent(have map[netip.Prefix]Route, p netip.Prefix) int {
	if _, ok := have[p]; ok {
		return 0
	}
	return 1
}

// room is how many entries of ours a table takes; -1 for no limit.
func room(quota int, l Limits) int {
	r := -1
	if quota > 0 {
		r = quota
	}
	if l.Entries > 0 {
		if free := max(0, l.Entries-l.Foreign); r < 0 || free < r {
			r = free
		}
	}
	return r
}

// verdicts are what filter said of each choice: "" for those that are wanted. What is none of our business is not in it.
type verdicts map[netip.Prefix]string

// judge takes in a choice and says whether that changed anything.
func (v verdicts) judge(f filter, c rib.Choice) bool {
	old, had := v[c.Key.Prefix]
	ok, why := f.wants(c)
	if !ok && why == "" {
		delete(v, c.Key.Prefix)
		return had
	}
	v[c.Key.Prefix] = why
	return !had || old != why
}

// wanted are the prefixes that are for the tables.
func (v verdicts) wanted() []netip.Prefix {
	var ps []netip.Prefix
	for p, why := range v {
		if why == "" {
			ps = append(ps, p)
		}
	}
	return ps
}
