package rib

import "slices"

// share finds the paths that share traffic with the best of ranked paths, at most n with it, and says whether they are the same as
// before. It returns the runner-up to those: runnerUp is that to the best alone.
func (e *entry) share(n int, runnerUp *Path) (next *Path, same bool) {
	var equal []*Path
	if n > 1 && runnerUp != nil {
		equal, runnerUp = shared(e.paths, n)
	}
	switch {
	case len(equal) == 0:
		same = e.equal == nil
		e.equal = nil
	case e.equal != nil && slices.Equal(*e.equal, equal):
		same = true
	default:
		e.equal = &equal // published and never written again
	}
	return runnerUp, same
}

// shared are the paths of ranked ones, the first of which is usable, that tie with it by all steps that say how good a way is: to MED, and
// the kind of neighbour. What remains tells equal ways apart, by age and number, and a path kept over a restart is as good a way as it was.
// The paths may lead through different ASes of the same number: each gateway is an AS of its own. With them the runner-up to all of them.
func shared(rs []*record, n int) (equal []*Path, runnerUp *Path) {
	best := rs[0].path
	kind := best.Key.Source.Kind
	bgp := kind == Peer || kind == Fabric
	tied := rs
	for i, r := range rs {
		if c, _ := beforeMED(best, r.path); c != 0 || !r.usable() {
			tied = rs[:i]
			break
		}
	}
	for i, r := range rs[1:] {
		if !r.usable() || !bgp || len(equal) == n-1 || i+1 == len(tied) {
			break
		}
		p := r.path
		if sameHop(best, p) || slices.ContainsFunc(equal, func(o *Path) bool { return sameHop(o, p) }) {
			continue
		}
		beaten := func(o *record) bool { return compareMED(o.path, p) < 0 }
		if p.Key.Source.Kind == kind && !slices.ContainsFunc(tied, beaten) {
			equal = append(equal, p)
		}
	}
	for _, r := range rs[1:] {
		if p := r.path; r.usable() && !sameHop(best, p) && !slices.ContainsFunc(equal, func(o *Path) bool { return sameHop(o, p) }) {
			return equal, p
		}
	}
	return equal, nil
}
