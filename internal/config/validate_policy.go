package config

import (
	"net/netip"
	"strconv"
	"strings"
)

// policy checks one policy.
func (v *validator) policy(p *Policy, path string) {
	v.name(path+".name", p.Name, policyName, policyNameMend)
	v.unique(path+".name", "policy name", p.Name)
	v.oneOf(path+".default", p.Default, "accept", "reject")
	seen := map[string]bool{}
	for i := range p.Terms {
		t := &p.Terms[i]
		at := index(path+".terms", i)
		if t.Name == "" {
			v.add(at+".name", "say what the term is for", "a term needs a name")
		} else if seen[t.Name] {
			v.add(at+".name", "give each its own", "duplicate term name %s in policy %q", quoteShort(t.Name), p.Name)
		}
		seen[t.Name] = true
		v.match(&t.Match, at+".match")
		v.oneOf(at+".then", t.Then, "accept", "reject", "next")
		if t.Set != nil {
			v.set(t.Set, at+".set")
			if t.Then == "reject" {
				v.add(at+".set", "remove set, or accept", "a term that rejects rewrites nothing")
			}
		}
	}
}

// match checks the conditions of a term.
func (v *validator) match(m *Match, path string) {
	for i, s := range m.Prefixes {
		v.prefixMatch(index(path+".prefixes", i), s)
	}
	for i, s := range m.Communities {
		v.community(index(path+".communities", i), s)
	}
	for i, s := range m.Source {
		v.oneOf(index(path+".source", i), s, "connected", "static", "peer", "fabric")
	}
	for i, s := range m.Peers {
		if s == "" {
			v.add(index(path+".peers", i), "name a peer", "empty peer name")
		}
	}
}

// prefixMatch checks "PREFIX [ge N] [le N]", with length(PREFIX) <= ge <= le <= length of the family.
func (v *validator) prefixMatch(path, s string) {
	const mend = "write it like \"10.0.0.0/8\", \"10.0.0.0/8 le 24\" or \"10.0.0.0/8 ge 16 le 24\""
	words := strings.Fields(s)
	if len(words)%2 != 1 || len(words) > 5 {
		v.add(path, mend, "%s is not a prefix match", quoteShort(s))
		return
	}
	p, err := netip.ParsePrefix(words[0])
	if err != nil || p.Addr().Is4In6() {
		v.add(path, mend, "%s is not a prefix", quoteShort(words[0]))
		return
	}
	if !v.masked(path, p) {
		return
	}
	low, last := p.Bits(), ""
	for i := 1; i < len(words); i += 2 {
		word := words[i]
		n, err := strconv.ParseUint(words[i+1], 10, 8)
		switch {
		case word != "ge" && word != "le" || word == last || last == "le":
			v.add(path, mend, "%s is not a prefix match", quoteShort(s))
			return
		case err != nil || int(n) < low || int(n) > p.Addr().BitLen():
			v.add(path, mend, "%s %s is not from %d to %d", word, quoteShort(words[i+1]), low, p.Addr().BitLen())
			return
		}
		low, last = int(n), word
	}
}

// set checks the rewrites of a term.
func (v *validator) set(s *Set, path string) {
	if s.NextHop.IsValid() {
		v.unicast(path+".next-hop", s.NextHop)
	}
	v.number(path+".prepend", int64(s.Prepend), 0, 16)
	for i, c := range s.AddCommunities {
		v.community(index(path+".add-communities", i), c)
	}
	for i, c := range s.RemoveCommunities {
		v.community(index(path+".remove-communities", i), c)
	}
}

// community checks ASN:N, 16 bits each (RFC 1997).
func (v *validator) community(path, s string) {
	a, n, ok := strings.Cut(s, ":")
	if !ok || !isNumber(a, 16) || !isNumber(n, 16) {
		v.add(path, "write ASN:N, both from 0 to 65535, in quotes", "%s is not a community", quoteShort(s))
	}
}

// routeTarget checks ASN:N or IP:N (RFC 4360, RFC 5668): 2 and 4 bytes, or 4 and 2.
func (v *validator) routeTarget(path, s string) {
	a, n, ok := strings.Cut(s, ":")
	ip, err := netip.ParseAddr(a)
	short := isNumber(a, 16) && isNumber(n, 32)
	long := (isNumber(a, 32) || err == nil && ip.Is4()) && isNumber(n, 16)
	if !ok || !short && !long {
		v.add(path, "write ASN:N or IP:N, like 64512:1000 or 192.0.2.1:1000; N up to 65535 with an IP or a 4-byte ASN",
			"%s is not a route target", quoteShort(s))
	}
}

// isNumber says whether s is a plain decimal number of so many bits.
func isNumber(s string, bits int) bool {
	n, err := strconv.ParseUint(s, 10, bits)
	return err == nil && strconv.FormatUint(n, 10) == s
}
