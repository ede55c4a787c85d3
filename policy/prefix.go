package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// prefixRange is one entry of a prefix list: every prefix inside base whose length is from ge to le bits.
type prefixRange struct {
	base   netip.Prefix
	ge, le int
}

// parsePrefixRange reads "10.0.0.0/8", "10.0.0.0/8 le 24", "10.0.0.0/8 ge 16", "10.0.0.0/8 ge 16 le 24". Without ge the
// range starts at the prefix's own length; without le it ends there, or at the family's longest if ge is given.
func parsePrefixRange(s string) (prefixRange, error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return prefixRange{}, fmt.Errorf("prefix is empty; write it as 10.0.0.0/8, 10.0.0.0/8 le 24 or ::/0 ge 48 le 64")
	}
	base, err := netip.ParsePrefix(words[0])
	if err != nil {
		return prefixRange{}, fmt.Errorf("prefix %q: %q is not a prefix; write ADDRESS/LENGTH", s, words[0])
	}
	if m := base.Masked(); m != base {
		return prefixRange{}, fmt.Errorf("prefix %q has host bits; write %s", s, m)
	}
	r := prefixRange{base: base, ge: -1, le: -1}
	longest := base.Addr().BitLen()
	for words = words[1:]; len(words) > 0; words = words[2:] {
		var to *int
		switch words[0] {
		case "ge":
			to = &r.ge
		case "le":
			to = &r.le
		default:
			return prefixRange{}, fmt.Errorf("prefix %q: unknown word %q; only ge N and le N may follow", s, words[0])
		}
		if *to >= 0 {
			return prefixRange{}, fmt.Errorf("prefix %q: %s is given twice; keep one", s, words[0])
		}
		if len(words) < 2 {
			return prefixRange{}, fmt.Errorf("prefix %q: %s lacks its length; write %s N", s, words[0], words[0])
		}
		n, err := strconv.ParseUint(words[1], 10, 8)
		if err != nil || int(n) < base.Bits() || int(n) > longest {
			return prefixRange{}, fmt.Errorf("prefix %q: %s %s is not a length from %d to %d", s, words[0], words[1], base.Bits(), longest)
		}
		*to = int(n)
	}
	switch {
	case r.ge < 0 && r.le < 0:
		r.ge, r.le = base.Bits(), base.Bits()
	case r.le < 0:
		r.le = longest
	case r.ge < 0:
		r.ge = base.Bits()
	case r.ge > r.le:
		return prefixRange{}, fmt.Errorf("prefix %q matches nothing: ge %d is above le %d; swap them", s, r.ge, r.le)
	}
	return r, nil
}

// prefixSet is a set of prefix ranges that is asked in as many look-ups as there are distinct base lengths not longer
// than the prefix asked for; every base that covers it is looked at.
type prefixSet struct {
	ranges map[netip.Prefix]lengths
	// bases are the base lengths that occur, v4 and v6.
	bases [2]lengths
}

// lengths is a set of prefix lengths, 0 to 128.
type lengths [3]uint64

func (l *lengths) add(n int)      { l[n/64] |= 1 << (n % 64) }
func (l *lengths) has(n int) bool { return l[n/64]&(1<<(n%64)) != 0 }

func newPrefixSet(rs []prefixRange) *prefixSet {
	s := &prefixSet{ranges: make(map[netip.Prefix]lengths, len(rs))}
	for _, r := range rs {
		l := s.ranges[r.base]
		for n := r.ge; n <= r.le; n++ {
			l.add(n)
		}
		s.ranges[r.base] = l
		s.bases[family(r.base)].add(r.base.Bits())
	}
	return s
}

// matches says whether a prefix is in one of the ranges. Host bits are ignored; an invalid prefix is in none.
func (s *prefixSet) matches(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	bases := &s.bases[family(p)]
	for bits := 0; bits <= p.Bits(); bits++ {
		if !bases.has(bits) {
			continue
		}
		l := s.ranges[netip.PrefixFrom(p.Addr(), bits).Masked()]
		if l.has(p.Bits()) {
			return true
		}
	}
	return false
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}
