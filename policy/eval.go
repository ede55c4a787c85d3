package policy

import (
	"fmt"
	"slices"

	"fabric/bgp/rib"
)

func (c *compiled) text() string { return c.source }

func (c *compiled) eval(p rib.Path, asn uint32) (rib.Path, Verdict, Term) {
	for i := range c.terms {
		t := &c.terms[i]
		if !t.match.holds(&p) {
			continue
		}
		if t.then == thenReject {
			return p, Reject, Term{Policy: c.name, Name: t.name}
		}
		if t.set != nil {
			p = t.set.apply(p, asn)
		}
		if t.then == thenAccept {
			return p, Accept, Term{Policy: c.name, Name: t.name}
		}
	}
	return p, c.verdict, Term{Policy: c.name, Name: "default"}
}

func (m *match) holds(p *rib.Path) bool {
	if m.prefixes != nil && !m.prefixes.matches(p.Key.Prefix) {
		return false
	}
	has := func(c rib.Community) bool { return slices.Contains(p.Attrs.Communities, c) }
	if len(m.communities) > 0 && !slices.ContainsFunc(m.communities, has) {
		return false
	}
	if len(m.asPath) > 0 && !slices.ContainsFunc(m.asPath, func(asn uint32) bool { return p.Attrs.CountAS(asn) > 0 }) {
		return false
	}
	if len(m.originAS) > 0 {
		if asn, ok := p.Attrs.OriginAS(); !ok || !slices.Contains(m.originAS, asn) {
			return false
		}
	}
	if len(m.sources) > 0 && !slices.Contains(m.sources, p.Key.Source.Kind) {
		return false
	}
	return len(m.peers) == 0 || slices.Contains(m.peers, p.Key.Source.Name)
}

// apply returns the path with the rewrites. Slices of the path given are never written to.
func (s *set) apply(p rib.Path, asn uint32) rib.Path {
	// A next hop of the other family would make the path unusable: a term may well match both.
	if s.nextHop.IsValid() && s.nextHop.Is4() == p.Key.Prefix.Addr().Is4() {
		p.Attrs.NextHop = s.nextHop
		p.Interface = "" // was the old next hop's
	}
	if s.localPref != nil {
		p.Attrs.LocalPref = *s.localPref
	}
	if s.med != nil {
		p.Attrs.MED, p.Attrs.HasMED = *s.med, true
	}
	if s.prepend > 0 {
		if asn == 0 {
			asn = p.Attrs.NeighbourAS()
		}
		if asn != 0 {
			p.Attrs.ASPath = Prepend(p.Attrs.ASPath, asn, s.prepend)
		}
	}
	if len(s.remove) > 0 || len(s.add) > 0 {
		p.Attrs.Communities = rewrite(p.Attrs.Communities, s.remove, s.add)
	}
	return p
}

// rewrite returns a list without some communities and then with others, in ascending order without duplicates.
func rewrite(list, remove, add []rib.Community) []rib.Community {
	out := make([]rib.Community, 0, len(list)+len(add))
	for _, c := range list {
		if !slices.Contains(remove, c) {
			out = append(out, c)
		}
	}
	out = append(out, add...)
	slices.Sort(out)
	return slices.Compact(out)
}

func (o *ownAS) text() string { return fmt.Sprintf("%s %d allow=%d", ownASPolicy, o.asn, o.allow) }

func (o *ownAS) eval(p rib.Path, _ uint32) (rib.Path, Verdict, Term) {
	if p.Attrs.CountAS(o.asn) > o.allow {
		return p, Reject, Term{Policy: ownASPolicy, Name: "loop"}
	}
	return p, Accept, Term{Policy: ownASPolicy, Name: "default"}
}
