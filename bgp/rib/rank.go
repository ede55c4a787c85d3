package rib

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// distance is the administrative distance of a source; lower is preferred. All BGP is one distance. What has no kind
// comes last.
func distance(k SourceKind) int {
	switch k {
	case Connected:
		return 1
	case Static:
		return 2
	case Peer, Fabric:
		return 3
	}
	return 4
}

// beforeMED compares by the steps ahead of MED. Negative: a is preferred.
func beforeMED(a, b *Path) (int, Reason) {
	if c := cmp.Compare(distance(a.Key.Source.Kind), distance(b.Key.Source.Kind)); c != 0 {
		return c, BySource
	}
	if c := cmp.Compare(b.Attrs.LocalPref, a.Attrs.LocalPref); c != 0 {
		return c, ByLocalPref
	}
	if c := cmp.Compare(a.Attrs.PathLen(), b.Attrs.PathLen()); c != 0 {
		return c, ByASPathLength
	}
	if c := cmp.Compare(a.Attrs.Origin, b.Attrs.Origin); c != 0 {
		return c, ByOrigin
	}
	return 0, ""
}

// compareMED compares the MED of two paths from one neighbouring AS, or of two that have none. A path without MED has
// the lowest (RFC 4271 section 9.1.2.2 c). Paths from different neighbouring ASes are equal here.
func compareMED(a, b *Path) int {
	am, bm := med(a), med(b)
	if am == bm || a.Attrs.NeighbourAS() != b.Attrs.NeighbourAS() {
		return 0
	}
	return cmp.Compare(am, bm)
}

func med(p *Path) uint32 {
	if !p.Attrs.HasMED {
		return 0
	}
	return p.Attrs.MED
}

// afterMED compares by the steps behind MED. It is 0 only for paths with equal keys.
func afterMED(a, b *Path) (int, Reason) {
	as, bs := &a.Key.Source, &b.Key.Source
	if (as.Kind == Fabric) != (bs.Kind == Fabric) {
		if bs.Kind == Fabric {
			return -1, ByNeighbourKind
		}
		return 1, ByNeighbourKind
	}
	if a.Stale != b.Stale {
		if b.Stale {
			return -1, ByFresh
		}
		return 1, ByFresh
	}
	if c := a.Attrs.RouterID.Compare(b.Attrs.RouterID); c != 0 {
		return c, ByRouterID
	}
	if c := as.Addr.Compare(bs.Addr); c != 0 {
		return c, ByAddress
	}
	if c := bytes.Compare(a.Key.RD[:], b.Key.RD[:]); c != 0 {
		return c, ByPathID
	}
	return cmp.Or(
		cmp.Compare(a.Key.PathID, b.Key.PathID),
		strings.Compare(as.Name, bs.Name),
		strings.Compare(as.VRF, bs.VRF),
		cmp.Compare(as.Kind, bs.Kind),
	), ByPathID
}

// Compare puts two usable paths to one prefix in order and says which step decided: negative where a is preferred,
// 0 and "" for the same path. Because MED counts only within one neighbouring AS, the order of more than two
// paths is not that of their pairs; the Table's is.
func Compare(a, b *Path) (int, Reason) {
	if c, r := beforeMED(a, b); c != 0 {
		return c, r
	}
	if c := compareMED(a, b); c != 0 {
		return c, ByMED
	}
	c, r := afterMED(a, b)
	if c == 0 {
		return 0, ""
	}
	return c, r
}

// lostTo says by which step the path other lost to best, both usable. Where the pair alone would have gone the other
// way, a third path of other's neighbouring AS had the lower MED.
func lostTo(best, other *Path) Reason {
	c, r := Compare(best, other)
	if c > 0 {
		return ByMED
	}
	return r
}

// rank puts the paths of one key in order of preference: what is usable first, then by the decision process.
func rank(rs []*record) {
	if len(rs) < 2 {
		return
	}
	n := 0
	for i, r := range rs {
		if r.usable() {
			rs[i], rs[n] = rs[n], rs[i]
			n++
		}
	}
	order(rs[:n])
	order(rs[n:])
}

// order puts paths of one key in order by the decision process. The outcome does not depend on the order they come in: paths that tie
// up to MED are eliminated as in RFC 4271 section 9.1.2.2, each time among all that are left.
func order(rs []*record) {
	slices.SortFunc(rs, func(a, b *record) int {
		if c, _ := beforeMED(a.path, b.path); c != 0 {
			return c
		}
		c, _ := afterMED(a.path, b.path)
		return c
	})
	for i := 0; i < len(rs); {
		j := i + 1
		for j < len(rs) {
			if c, _ := beforeMED(rs[i].path, rs[j].path); c != 0 {
				break
			}
			j++
		}
		rankMED(rs[i:j])
		i = j
	}
}

// rankMED orders paths that tie up to MED and are in order of the steps behind it: each place goes to the first that
// no other of those left beats by MED.
func rankMED(rs []*record) {
	for i := 0; i < len(rs)-1; i++ {
		for j := i; j < len(rs); j++ {
			beaten := slices.ContainsFunc(rs[i:], func(o *record) bool {
				return compareMED(o.path, rs[j].path) < 0
			})
			if beaten {
				continue
			}
			r := rs[j]
			copy(rs[i+1:j+1], rs[i:j])
			rs[i] = r
			break
		}
	}
}

// choose reads the outcome off ranked paths.
func choose(rs []*record) (best, runnerUp *Path, why Reason) {
	if len(rs) == 0 || !rs[0].usable() {
		return nil, nil, ""
	}
	best = rs[0].path
	if len(rs) == 1 {
		return best, nil, OnlyPath
	}
	if !rs[1].usable() {
		return best, nil, rs[1].unusable()
	}
	for _, r := range rs[1:] {
		if !r.usable() {
			break
		}
		if !sameHop(best, r.path) {
			return best, r.path, lostTo(best, r.path)
		}
	}
	return best, nil, lostTo(best, rs[1].path)
}

// sameHop says whether two paths leave by the same way. The device tells apart what an address does not: paths
// without next hop and link-local ones.
func sameHop(a, b *Path) bool {
	if a.Hop() != b.Hop() {
		return false
	}
	if nh := a.Attrs.NextHop; nh.IsValid() && !nh.IsLinkLocalUnicast() {
		return true
	}
	return a.Interface == b.Interface
}
