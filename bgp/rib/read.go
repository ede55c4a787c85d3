package rib

import (
	"maps"
	"net/netip"
	"slices"
)

// walkChunk is how many keys Walk reads under the lock at once.
const walkChunk = 1024

// Candidate is one path of a key, as explain shows it.
type Candidate struct {
	Path Path
	// Usable is false where the next hop is unreachable or the source is. Problem says where a next hop stops that leads nowhere, "" for any
	// other reason.
	Usable  bool
	Problem string
	// Equal: it shares traffic with the best.
	Equal bool
	// Lost says by which step the path lost to the best; "" for the best itself and where there is none. One that shares traffic has
	// lost only the first place.
	Lost Reason
}

// Best returns the choice for a key; false, and a Choice without Best, where there is none.
func (t *Table) Best(k Key) (Choice, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k.Prefix = k.Prefix.Masked()
	v := t.vrfs[k.VRF]
	if v == nil {
		return Choice{Key: k}, false
	}
	c := v.choice(k.Prefix)
	return c, c.Best != nil
}

// Lookup returns the choice for the longest prefix that covers a and has a best path; an address is asked for as /32
// or /128. False where nothing covers it.
func (t *Table) Lookup(vrf string, a netip.Prefix) (Choice, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.vrfs[vrf]
	if v == nil || !a.IsValid() {
		return Choice{}, false
	}
	family := 0
	if a.Addr().Is6() {
		family = 1
	}
	for bits := a.Bits(); bits >= 0; bits-- {
		if v.lengths[family][bits] == 0 {
			continue
		}
		p := netip.PrefixFrom(a.Addr(), bits).Masked()
		if e := v.entries[p]; e != nil && e.best != nil {
			return v.choice(p), true
		}
	}
	return Choice{}, false
}

// Walk calls fn for each choice of a VRF that has a best path, IPv4 first, in order of address and length, until fn returns
// false. fn runs without the lock and may use the Table. A choice is as of when it is reached: keys that come during
// the walk are not seen, keys that go may be.
func (t *Table) Walk(vrf string, fn func(Choice) bool) {
	keys := t.sortedKeys(vrf)
	choices := make([]Choice, 0, min(walkChunk, len(keys)))
	for chunk := range slices.Chunk(keys, walkChunk) {
		choices = choices[:0]
		t.mu.Lock()
		v := t.vrfs[vrf]
		for _, p := range chunk {
			if c := v.choice(p); c.Best != nil {
				choices = append(choices, c)
			}
		}
		t.mu.Unlock()
		for _, c := range choices {
			if !fn(c) {
				return
			}
		}
	}
}

// sortedKeys returns the keys of a VRF in order. They are sorted outside the lock and kept until a key comes or goes.
func (t *Table) sortedKeys(vrf string) []netip.Prefix {
	keys, at, sorted := t.keys(vrf)
	if !sorted {
		slices.SortFunc(keys, netip.Prefix.Compare)
		t.cache(vrf, keys, at)
	}
	return keys
}

// keys returns the keys of a VRF and the number of changes among them so far; sorted says that they are the cached ones,
// which must not be written.
func (t *Table) keys(vrf string) (keys []netip.Prefix, at uint64, sorted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.vrfs[vrf]
	switch {
	case v == nil:
		return nil, 0, true
	case v.sorted != nil:
		return v.sorted, v.keys, true
	}
	return slices.AppendSeq(make([]netip.Prefix, 0, len(v.entries)), maps.Keys(v.entries)), v.keys, false
}

// cache keeps sorted keys for the next walk, unless a key came or went since.
func (t *Table) cache(vrf string, keys []netip.Prefix, at uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.vrfs[vrf]; v.keys == at {
		v.sorted = keys
	}
}

// Candidates returns the paths of a key in order of preference, those that cannot be used last.
func (t *Table) Candidates(k Key) []Path {
	var ps []Path
	for _, c := range t.Ranking(k) {
		ps = append(ps, c.Path)
	}
	return ps
}

// Ranking is Candidates with what became of each.
func (t *Table) Ranking(k Key) []Candidate {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.vrfs[k.VRF]
	if v == nil {
		return nil
	}
	e := v.entries[k.Prefix.Masked()]
	if e == nil {
		return nil
	}
	cs := make([]Candidate, len(e.paths))
	for i, r := range e.paths {
		cs[i] = Candidate{Path: *r.path, Usable: r.usable()}
		switch {
		case !r.usable():
			cs[i].Lost = r.unusable()
			if r.alive() {
				cs[i].Problem = r.hop.via.Why
			}
		case i > 0:
			cs[i].Lost = lostTo(e.best, r.path)
			cs[i].Equal = e.equal != nil && slices.Contains(*e.equal, r.path)
		}
	}
	return cs
}

// Len is the number of keys of a VRF that have a best path.
func (t *Table) Len(vrf string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.vrfs[vrf]; v != nil {
		return v.chosen
	}
	return 0
}

// Sources returns the sources that have paths, in no order.
func (t *Table) Sources() []Source {
	t.mu.Lock()
	defer t.mu.Unlock()
	ss := make([]Source, 0, len(t.sources))
	for s, src := range t.sources {
		if len(src.paths) > 0 {
			ss = append(ss, s)
		}
	}
	return ss
}

// SourceLen is the number of paths of a source.
func (t *Table) SourceLen(s Source) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src := t.sources[s]; src != nil {
		return len(src.paths)
	}
	return 0
}

// SourcePaths returns all paths of a source, in no order: what a checkpoint keeps.
func (t *Table) SourcePaths(s Source) []Path {
	t.mu.Lock()
	defer t.mu.Unlock()
	src := t.sources[s]
	if src == nil {
		return nil
	}
	ps := make([]Path, len(src.paths))
	for i, r := range src.paths {
		ps[i] = *r.path
	}
	return ps
}

// Changes is a number that grows with every change of a path, whether or not a choice changes with it.
func (t *Table) Changes() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changes
}

// choice puts the choice for a masked prefix together.
func (v *vrf) choice(p netip.Prefix) Choice {
	c := Choice{Key: Key{VRF: v.name, Prefix: p}}
	if e := v.entries[p]; e != nil {
		c.Best, c.RunnerUp, c.Reason = e.best, e.runnerUp, e.reason
		if e.equal != nil {
			c.Equal = *e.equal
		}
	}
	return c
}
