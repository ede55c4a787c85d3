package rib

import (
	"net/netip"
	"slices"
	"sync"
)

// Table holds the paths of all VRFs of a gateway and what it chose among them.
//
// Paths of a peer, statics and connected networks live in their source's VRF. Paths of the fabric are stored once and
// are candidates in each VRF that imports one of their route targets. Every change re-chooses the keys it touches, and
// only those; a changed choice marks its key in every Feed.
//
// A Table may be used by any number of goroutines and starts none. One mutex guards all of it, feeds included; no
// method calls out while holding it, and none waits for a consumer. The end state depends on the calls, not on the
// order in which calls about different things came.
type Table struct {
	mu      sync.Mutex
	vrfs    map[string]*vrf
	byRT    map[RT][]*vrf
	fabric  map[netip.Prefix][]*record
	sources map[Source]*source
	hops    map[NextHop]*hop
	feeds   []*Feed

	expecting bool // Expect was called
	complete  bool // all that was expected is in; stays
	awaited   map[Source]struct{}
	ended     map[Source]struct{}

	// doubted are the next hops to be resolved anew before the lock is given back; settling while that is done.
	doubted  []*hop
	settling bool

	// changes counts what Update, Withdraw and the like have changed of the paths.
	changes uint64

	scratch [2][]*vrf
}

// vrf is a VRF that was declared or that a path lives in.
type vrf struct {
	name    string
	imports []RT // ascending, no duplicates
	// multipath is how many paths may share traffic.
	multipath int
	// resolve: next hops are resolved here, on networks and through routes. questions are the addresses asked for them.
	resolve   bool
	networks  []Network
	questions questions
	entries   map[netip.Prefix]*entry
	chosen    int // entries with a best path
	// lengths counts the entries per prefix length: v4 and v6.
	lengths [2][129]int
	// sorted caches the keys in order; nil once a key came or went. keys counts those changes.
	sorted []netip.Prefix
	keys   uint64
}

// entry is one key: its paths, in order of preference, and the choice.
type entry struct {
	paths    []*record
	best     *Path
	runnerUp *Path
	reason   Reason
	// equal points to the paths that share with best. Few entries have any, so nil takes the least room.
	equal *[]*Path
}

// record is the place of a path. The Path it points to is published and never written again.
type record struct {
	path   *Path
	source *source
	hop    *hop // nil for a path without next hop
	// Positions in source.paths and hop.users.
	sourceAt, hopAt int32
}

// usable says whether a path may be chosen: its source is alive, and its next hop leads somewhere.
func (r *record) usable() bool { return r.alive() && (!r.resolves() || r.hop.via.Why == "") }

// unusable says why a record is not usable.
func (r *record) unusable() Reason {
	if r.source.reach != Reachable {
		return ByLiveness
	}
	return ByReachability
}

// source is the index of what one source gave us.
type source struct {
	name  Source
	reach Reach
	paths []*record
}

// hop is a next hop and the index of what uses it.
type hop struct {
	name  NextHop
	reach Reach
	users []*record
	// via is where it leads, in a VRF that resolves; asked are the addresses that say so. doubted: it is to be resolved anew.
	via     Resolution
	asked   []netip.Addr
	doubted bool
}

// NewTable returns an empty Table. It has no VRFs that import; paths may come before SetVRFs.
func NewTable() *Table {
	return &Table{
		vrfs:    make(map[string]*vrf),
		byRT:    make(map[RT][]*vrf),
		fabric:  make(map[netip.Prefix][]*record),
		sources: make(map[Source]*source),
		hops:    make(map[NextHop]*hop),
		awaited: make(map[Source]struct{}),
		ended:   make(map[Source]struct{}),
	}
}

// SetVRFs says which VRFs import which route targets from the fabric, how many paths share traffic and how next hops are resolved, and
// re-imports and re-chooses where that changed. It is the whole list: a VRF left out imports nothing, has one path and resolves nothing. Paths of a VRF's own sources stay until they
// are withdrawn.
func (t *Table) SetVRFs(vs []VRF) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.wake()

	want := make(map[string][]RT, len(vs))
	multipath := make(map[string]int, len(vs))
	resolve := make(map[string]bool, len(vs))
	networks := make(map[string][]Network, len(vs))
	for _, v := range vs {
		resolve[v.Name] = resolve[v.Name] || v.Resolve
		networks[v.Name] = append(networks[v.Name], v.Networks...)
		multipath[v.Name] = max(multipath[v.Name], v.Multipath)
		rts := slices.Concat(want[v.Name], v.Import)
		slices.SortFunc(rts, compareRT)
		want[v.Name] = slices.Compact(rts)
		t.vrf(v.Name)
	}
	type change struct {
		vrf *vrf
		old map[RT]struct{}
	}
	var changed []change
	clear(t.byRT)
	for name, v := range t.vrfs {
		rts := want[name]
		if !slices.Equal(rts, v.imports) {
			old := make(map[RT]struct{}, len(v.imports))
			for _, rt := range v.imports {
				old[rt] = struct{}{}
			}
			changed = append(changed, change{v, old})
			v.imports = rts
		}
		for _, rt := range rts {
			t.byRT[rt] = append(t.byRT[rt], v)
		}
	}
	for name, v := range t.vrfs {
		if n := max(1, multipath[name]); n != max(1, v.multipath) {
			v.multipath = n
			for prefix := range v.entries {
				t.choose(v, prefix)
			}
		}
	}
	t.setNetworks(resolve, networks)
	if len(changed) == 0 {
		return
	}
	for prefix, rs := range t.fabric {
		for _, c := range changed {
			touched := false
			for _, r := range rs {
				was := slices.ContainsFunc(r.path.Attrs.RTs, func(rt RT) bool { _, ok := c.old[rt]; return ok })
				is := slices.ContainsFunc(r.path.Attrs.RTs, func(rt RT) bool { return slices.Contains(c.vrf.imports, rt) })
				if was == is {
					continue
				}
				touched = true
				if is {
					c.vrf.attach(r)
				} else {
					c.vrf.detach(r)
				}
			}
			if touched {
				t.choose(c.vrf, prefix)
			}
		}
	}
}

// setNetworks takes over how the VRFs resolve next hops.
func (t *Table) setNetworks(resolve map[string]bool, networks map[string][]Network) {
	anew := map[string]bool{}
	for name, v := range t.vrfs {
		if v.resolve != resolve[name] || !slices.Equal(v.networks, networks[name]) {
			v.resolve, v.networks = resolve[name], networks[name]
			anew[name] = true
		}
	}
	if len(anew) == 0 {
		return
	}
	for nh, h := range t.hops {
		if anew[nh.VRF] {
			t.doubt(h)
		}
	}
}

// Update adds paths or replaces those with the same key. A path equal to the one known changes nothing. Prefixes are
// masked; a path without a valid prefix is ignored. The paths' slices must not be written afterwards.
func (t *Table) Update(ps ...Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range ps {
		p := ps[i]
		p.Key.Prefix = p.Key.Prefix.Masked()
		if p.Key.Prefix.IsValid() {
			t.update(&p)
		}
	}
	t.wake()
}

// Withdraw removes paths. Unknown keys are ignored.
func (t *Table) Withdraw(ks ...PathKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range ks {
		k.Prefix = k.Prefix.Masked()
		if r := t.find(&k); r != nil {
			t.remove(r)
		}
	}
	t.wake()
}

// WithdrawSource removes all paths of a source.
func (t *Table) WithdrawSource(s Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src := t.sources[s]; src != nil {
		for len(src.paths) > 0 {
			t.remove(src.paths[len(src.paths)-1])
		}
	}
	t.wake()
}

// MarkStale marks all paths of a source as kept over its restart (RFC 4724). An Update makes a path fresh again;
// EndOfRIB prunes what is left.
func (t *Table) MarkStale(s Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src := t.sources[s]; src != nil {
		for _, r := range src.paths {
			if r.path.Stale {
				continue
			}
			p := *r.path
			p.Stale = true
			r.path = &p
			t.changes++
			t.rechoose(r)
		}
	}
	t.wake()
}

// EndOfRIB says that a source has sent all it has (RFC 4724 section 2): its stale paths are removed, and it is no longer
// awaited.
func (t *Table) EndOfRIB(s Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src := t.sources[s]; src != nil {
		// From the end, since remove fills the gap with the last.
		for i := len(src.paths) - 1; i >= 0; i-- {
			if src.paths[i].path.Stale {
				t.remove(src.paths[i])
			}
		}
	}
	t.ended[s] = struct{}{}
	delete(t.awaited, s)
	t.checkComplete()
	t.wake()
}

// Expect says whose EndOfRIB is awaited before batches carry Complete. It is the whole list; who has sent it before
// is not awaited again. Before the first call nothing is complete. Complete, once reached, stays.
func (t *Table) Expect(ss []Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expecting = true
	clear(t.awaited)
	for _, s := range ss {
		if _, ok := t.ended[s]; !ok {
			t.awaited[s] = struct{}{}
		}
	}
	t.checkComplete()
	t.wake()
}

// Release stops waiting for those expected: the stale timer ran out.
func (t *Table) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expecting = true
	clear(t.awaited)
	t.checkComplete()
	t.wake()
}

// Awaited are the sources whose EndOfRIB is still awaited, in no order.
func (t *Table) Awaited() []Source {
	t.mu.Lock()
	defer t.mu.Unlock()
	ss := make([]Source, 0, len(t.awaited))
	for s := range t.awaited {
		ss = append(ss, s)
	}
	return ss
}

func (t *Table) checkComplete() {
	t.complete = t.complete || t.expecting && len(t.awaited) == 0
}

// SetNextHop says whether a next hop can be used and re-chooses what uses it. It may be called before the first path
// with that next hop and holds until it is called again.
func (t *Table) SetNextHop(nh NextHop, r Reach) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !nh.Addr.IsValid() {
		return
	}
	h := t.hops[nh]
	switch {
	case h == nil && r == Reachable:
		return
	case h == nil:
		h = &hop{name: nh}
		t.hops[nh] = h
		t.trace(h)
	case h.reach == r:
		return
	}
	h.reach = r
	for _, u := range h.users {
		t.rechoose(u)
	}
	t.dropHop(h)
	t.wake()
}

// SetSource says whether what a source told can be used, whatever its next hops: a neighbour that BFD has found dead
// keeps its paths, but none is chosen. All of them are re-chosen at once, so a Feed sees what takes over in one batch. It may be
// called before the source's first path and holds, for paths to come too, until it is called again.
func (t *Table) SetSource(s Source, r Reach) {
	t.mu.Lock()
	defer t.mu.Unlock()
	src := t.sources[s]
	switch {
	case src == nil && r == Reachable:
		return
	case src == nil:
		src = &source{name: s}
		t.sources[s] = src
	case src.reach == r:
		return
	}
	src.reach = r
	for _, f := range t.feeds {
		f.expect(len(src.paths))
	}
	for _, u := range src.paths {
		t.rechoose(u)
	}
	t.dropSource(src)
	t.wake()
}

// dropSource forgets a source that has no paths and that nothing was said about.
func (t *Table) dropSource(s *source) {
	if len(s.paths) == 0 && s.reach == Reachable {
		delete(t.sources, s.name)
	}
}

// find returns the record of a key with a masked prefix, or nil.
func (t *Table) find(k *PathKey) *record {
	var rs []*record
	if k.Source.Kind == Fabric {
		rs = t.fabric[k.Prefix]
	} else if v := t.vrfs[k.Source.VRF]; v != nil {
		if e := v.entries[k.Prefix]; e != nil {
			rs = e.paths
		}
	}
	for _, r := range rs {
		if r.path.Key == *k {
			return r
		}
	}
	return nil
}

func (t *Table) update(p *Path) {
	r := t.find(&p.Key)
	if r != nil && equalPaths(r.path, p) {
		return
	}
	t.changes++
	if r == nil {
		src := t.sources[p.Key.Source]
		if src == nil {
			src = &source{name: p.Key.Source}
			t.sources[p.Key.Source] = src
		}
		p.Key.Source = src.name // share the strings
		r = &record{path: p, source: src, sourceAt: int32(len(src.paths))}
		src.paths = append(src.paths, r)
		if p.Key.Source.Kind == Fabric {
			t.fabric[p.Key.Prefix] = append(t.fabric[p.Key.Prefix], r)
		}
		t.useHop(r)
		for _, v := range t.homes(0, p) {
			v.attach(r)
			t.choose(v, p.Key.Prefix)
		}
		return
	}
	was := t.homes(0, r.path)
	is := t.homes(1, p)
	p.Key.Source = r.source.name
	r.path = p
	t.useHop(r)
	for _, v := range was {
		if !slices.Contains(is, v) {
			v.detach(r)
			t.choose(v, p.Key.Prefix)
		}
	}
	for _, v := range is {
		if !slices.Contains(was, v) {
			v.attach(r)
		}
		t.choose(v, p.Key.Prefix)
	}
}

func (t *Table) remove(r *record) {
	t.changes++
	prefix := r.path.Key.Prefix
	for _, v := range t.homes(0, r.path) {
		v.detach(r)
		t.choose(v, prefix)
	}
	if r.path.Key.Source.Kind == Fabric {
		if rs := without(t.fabric[prefix], r); len(rs) > 0 {
			t.fabric[prefix] = rs
		} else {
			delete(t.fabric, prefix)
		}
	}
	t.leaveHop(r)
	src := r.source
	last := len(src.paths) - 1
	src.paths[r.sourceAt] = src.paths[last]
	src.paths[r.sourceAt].sourceAt = r.sourceAt
	src.paths[last] = nil
	src.paths = src.paths[:last]
	t.dropSource(src)
}

// homes are the VRFs in which a path is a candidate. The result is valid until the next call with the same slot.
func (t *Table) homes(slot int, p *Path) []*vrf {
	vs := t.scratch[slot][:0]
	if p.Key.Source.Kind != Fabric {
		vs = append(vs, t.vrf(p.Key.Source.VRF))
	} else {
		for _, rt := range p.Attrs.RTs {
			for _, v := range t.byRT[rt] {
				if !slices.Contains(vs, v) {
					vs = append(vs, v)
				}
			}
		}
	}
	t.scratch[slot] = vs
	return vs
}

func (t *Table) vrf(name string) *vrf {
	v := t.vrfs[name]
	if v == nil {
		v = &vrf{name: name, entries: make(map[netip.Prefix]*entry)}
		t.vrfs[name] = v
	}
	return v
}

// useHop moves a record to the index of its path's next hop.
func (t *Table) useHop(r *record) {
	nh := r.path.Hop()
	if r.hop != nil && r.hop.name == nh {
		return
	}
	t.leaveHop(r)
	if !nh.Addr.IsValid() {
		return
	}
	h := t.hops[nh]
	if h == nil {
		h = &hop{name: nh}
		t.hops[nh] = h
		t.trace(h)
	}
	r.hop, r.hopAt = h, int32(len(h.users))
	h.users = append(h.users, r)
}

func (t *Table) leaveHop(r *record) {
	h := r.hop
	if h == nil {
		return
	}
	last := len(h.users) - 1
	h.users[r.hopAt] = h.users[last]
	h.users[r.hopAt].hopAt = r.hopAt
	h.users[last] = nil
	h.users = h.users[:last]
	r.hop = nil
	t.dropHop(h)
}

// dropHop forgets a next hop that nobody uses and that nothing was said about.
func (t *Table) dropHop(h *hop) {
	if len(h.users) == 0 && h.reach == Reachable {
		if len(h.asked) > 0 {
			t.vrfs[h.name.VRF].unasked(h)
		}
		delete(t.hops, h.name)
	}
}

// rechoose re-chooses every key in which a record is a candidate.
func (t *Table) rechoose(r *record) {
	for _, v := range t.homes(0, r.path) {
		t.choose(v, r.path.Key.Prefix)
	}
}

// choose ranks the paths of a key anew and tells the feeds if the choice is another.
func (t *Table) choose(v *vrf, p netip.Prefix) {
	e := v.entries[p]
	if e == nil {
		return
	}
	t.touch(v, p)
	rank(e.paths)
	best, runnerUp, why := choose(e.paths)
	had, has := e.best != nil, best != nil
	changed := best != e.best || why != e.reason
	if v.multipath > 1 || e.equal != nil {
		var same bool
		if runnerUp, same = e.share(v.multipath, runnerUp); !same {
			changed = true
		}
	}
	changed = changed || runnerUp != e.runnerUp
	e.best, e.runnerUp, e.reason = best, runnerUp, why
	switch {
	case had && !has:
		v.chosen--
	case has && !had:
		v.chosen++
	}
	if len(e.paths) == 0 {
		delete(v.entries, p)
		v.count(p, -1)
	}
	if changed {
		for _, f := range t.feeds {
			f.mark(Key{VRF: v.name, Prefix: p}, had, has)
		}
	}
}

// wake ends a change: next hops follow it, and the feeds are told.
func (t *Table) wake() {
	t.settle()
	for _, f := range t.feeds {
		f.signal()
	}
}

// attach makes a record a candidate; choose must follow.
func (v *vrf) attach(r *record) {
	p := r.path.Key.Prefix
	e := v.entries[p]
	if e == nil {
		e = new(entry)
		v.entries[p] = e
		v.count(p, 1)
	}
	e.paths = append(e.paths, r)
}

// detach ends a record's candidacy; choose must follow.
func (v *vrf) detach(r *record) {
	if e := v.entries[r.path.Key.Prefix]; e != nil {
		e.paths = without(e.paths, r)
	}
}

// count keeps the number of keys per prefix length.
func (v *vrf) count(p netip.Prefix, n int) {
	family := 0
	if p.Addr().Is6() {
		family = 1
	}
	v.lengths[family][p.Bits()] += n
	v.sorted = nil
	v.keys++
}

// without removes r from rs in place, keeping the order.
func without(rs []*record, r *record) []*record {
	if i := slices.Index(rs, r); i >= 0 {
		return slices.Delete(rs, i, i+1)
	}
	return rs
}
