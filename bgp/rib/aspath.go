package rib

import (
	"slices"
	"strconv"
	"strings"
)

// PathLen is the length of the AS_PATH as the decision process counts it: a set counts one (RFC 4271 section 9.1.2.2).
func (a *Attrs) PathLen() int {
	n := 0
	for _, s := range a.ASPath {
		switch {
		case len(s.ASNs) == 0:
		case s.Set:
			n++
		default:
			n += len(s.ASNs)
		}
	}
	return n
}

// NeighbourAS is the AS the path was heard from: the first of the AS_PATH. It is 0 where the path is empty (it starts
// in our own AS) or begins with a set.
func (a *Attrs) NeighbourAS() uint32 {
	for _, s := range a.ASPath {
		if len(s.ASNs) == 0 {
			continue
		}
		if s.Set {
			return 0
		}
		return s.ASNs[0]
	}
	return 0
}

// OriginAS is the AS that originated the path: the last of the AS_PATH. ok is false where the path is empty or ends in
// a set, which has no one origin (RFC 6811 section 2).
func (a *Attrs) OriginAS() (asn uint32, ok bool) {
	for _, s := range slices.Backward(a.ASPath) {
		if len(s.ASNs) == 0 {
			continue
		}
		if s.Set {
			return 0, false
		}
		return s.ASNs[len(s.ASNs)-1], true
	}
	return 0, false
}

// CountAS is how often asn occurs in the AS_PATH, sets included.
func (a *Attrs) CountAS(asn uint32) int {
	n := 0
	for _, s := range a.ASPath {
		for _, v := range s.ASNs {
			if v == asn {
				n++
			}
		}
	}
	return n
}

// ASPathString prints the AS_PATH as routers do: "65001 65002 {65003 65004}".
func (a *Attrs) ASPathString() string {
	var b strings.Builder
	for _, s := range a.ASPath {
		if len(s.ASNs) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		if s.Set {
			b.WriteByte('{')
		}
		for i, asn := range s.ASNs {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(strconv.FormatUint(uint64(asn), 10))
		}
		if s.Set {
			b.WriteByte('}')
		}
	}
	return b.String()
}

// equalPaths says whether two paths say the same, by value.
func equalPaths(a, b *Path) bool {
	return a.Key == b.Key && a.Interface == b.Interface && a.Stale == b.Stale && a.LocalOnly == b.LocalOnly &&
		a.Policy == b.Policy && equalAttrs(&a.Attrs, &b.Attrs)
}

func equalAttrs(a, b *Attrs) bool {
	return a.Origin == b.Origin && a.NextHop == b.NextHop && a.MED == b.MED && a.HasMED == b.HasMED &&
		a.LocalPref == b.LocalPref && a.SiteOfOrigin == b.SiteOfOrigin && a.RouterMAC == b.RouterMAC &&
		a.VNI == b.VNI && a.RouterID == b.RouterID &&
		slices.Equal(a.Communities, b.Communities) &&
		slices.Equal(a.LargeCommunities, b.LargeCommunities) &&
		slices.Equal(a.RTs, b.RTs) &&
		slices.EqualFunc(a.ASPath, b.ASPath, func(x, y ASSegment) bool {
			return x.Set == y.Set && slices.Equal(x.ASNs, y.ASNs)
		})
}
