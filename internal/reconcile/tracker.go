package reconcile

import (
	"errors"
	"time"
)

// tracker remembers what is wanted, what was last known of the world, and what became of each object. It does no I/O and
// is not safe for concurrent use. So that a large table is not held three times, the known world is kept only where it
// differs from the wish:
//
//	in want, not in missing, not in other: there as wanted
//	in want and missing:                   not there
//	in want and other:                     there, different
//	in other only:                         there, not wanted
type tracker[K comparable, V any] struct {
	equal   func(k K, want, have V) bool
	compare func(a, b K) int
	part    func(k K) uint32

	want map[K]V
	// wanted are the numbers of want's keys by part.
	wanted   map[uint32]int
	missing  map[K]struct{}
	other    map[K]V
	complete bool
	// known is false until the first observation.
	known bool
	// withdrawn are keys that were wanted once and are no longer: proof enough to delete them before the wish is complete.
	withdrawn map[K]struct{}

	since  map[K]int64 // Unix nanoseconds at which Synced last changed
	failed map[K]failure
}

type failure struct {
	err     error
	foreign bool
}

func newTracker[K comparable, V any](equal func(K, V, V) bool, compare func(a, b K) int, part func(K) uint32) *tracker[K, V] {
	if part == nil {
		part = func(K) uint32 { return 0 }
	}
	return &tracker[K, V]{
		equal: equal, compare: compare, part: part,
		want: map[K]V{}, wanted: map[uint32]int{}, missing: map[K]struct{}{}, other: map[K]V{},
		withdrawn: map[K]struct{}{}, since: map[K]int64{}, failed: map[K]failure{},
	}
}

// wish replaces all that is wanted. It is followed by observed, before anyone looks.
func (t *tracker[K, V]) wish(want map[K]V, complete bool) {
	if want == nil {
		want = map[K]V{}
	}
	for k := range t.want {
		if _, ok := want[k]; !ok {
			t.withdrawn[k] = struct{}{}
		}
	}
	for k := range t.withdrawn {
		if _, ok := want[k]; ok {
			delete(t.withdrawn, k)
		}
	}
	for k := range t.failed {
		if v, ok := want[k]; !ok || !t.equal(k, v, t.want[k]) {
			delete(t.failed, k)
		}
	}
	t.want, t.complete = want, complete
	clear(t.wanted)
	for k := range want {
		t.wanted[t.part(k)]++
	}
}

// observed takes in a whole observation, which is the tracker's from then on.
func (t *tracker[K, V]) observed(have map[K]V, now time.Time) {
	wasMissing, wasOther := t.missing, t.other
	t.known = true
	t.missing, t.other = map[K]struct{}{}, have
	for k, w := range t.want {
		h, there := have[k]
		is := there && t.equal(k, w, h)
		if is {
			delete(have, k)
			delete(t.failed, k)
		} else if !there {
			t.missing[k] = struct{}{}
		}
		_, missing := wasMissing[k]
		_, other := wasOther[k]
		if was := !missing && !other; is != was || t.since[k] == 0 {
			t.since[k] = now.UnixNano()
		}
	}
	for k := range have {
		if t.since[k] == 0 {
			t.since[k] = now.UnixNano()
		}
	}
	for k := range t.since {
		if !t.relevant(k) {
			delete(t.since, k)
		}
	}
	for k := range t.failed {
		if !t.relevant(k) {
			delete(t.failed, k)
		}
	}
	for k := range t.withdrawn {
		if _, there := t.other[k]; !there {
			delete(t.withdrawn, k)
		}
	}
}

func (t *tracker[K, V]) relevant(k K) bool {
	if _, ok := t.want[k]; ok {
		return true
	}
	_, ok := t.other[k]
	return ok
}

// set wants v at k.
func (t *tracker[K, V]) set(k K, v V, now time.Time) {
	old, had := t.want[k]
	if !had {
		t.wanted[t.part(k)]++
	}
	if !t.synced(k) || !had {
		old, had = t.other[k]
		if _, gone := t.missing[k]; gone {
			had = false
		}
	}
	t.want[k] = v
	delete(t.withdrawn, k)
	delete(t.failed, k)
	t.place(k, old, had, now)
}

// unset takes a key out of the wish. Proof: it was in it, also if no pass has seen that.
func (t *tracker[K, V]) unset(k K, proof bool, now time.Time) {
	v, ok := t.want[k]
	if !ok {
		if proof {
			t.withdrawn[k] = struct{}{}
		}
		return
	}
	synced := t.synced(k)
	delete(t.want, k)
	t.wanted[t.part(k)]--
	delete(t.failed, k)
	delete(t.missing, k)
	t.withdrawn[k] = struct{}{}
	if synced {
		t.other[k] = v
	}
	if _, there := t.other[k]; !there && t.known {
		delete(t.since, k)
		delete(t.withdrawn, k)
		return
	}
	t.since[k] = now.UnixNano()
}

// place files key k, wanted, under what is there.
func (t *tracker[K, V]) place(k K, have V, there bool, now time.Time) {
	was := t.synced(k)
	if _, ok := t.since[k]; !ok {
		was = true // new: its time begins now in any case
	}
	delete(t.missing, k)
	delete(t.other, k)
	switch {
	case !there:
		t.missing[k] = struct{}{}
	case !t.equal(k, t.want[k], have):
		t.other[k] = have
	}
	if is := t.synced(k); is != was || t.since[k] == 0 {
		t.since[k] = now.UnixNano()
	}
}

// synced reports whether k is wanted and there as wanted.
func (t *tracker[K, V]) synced(k K) bool {
	if _, ok := t.want[k]; !ok {
		return false
	}
	if _, ok := t.missing[k]; ok {
		return false
	}
	_, ok := t.other[k]
	return !ok
}

// plan returns the steps for keys, or for all when keys is nil. Keys that failed as foreign are left out unless retry.
func (t *tracker[K, V]) plan(keys map[K]struct{}, retry bool) []Op[K, V] {
	var ops []Op[K, V]
	add := func(k K) {
		if f, ok := t.failed[k]; ok && f.foreign && !retry {
			return
		}
		w, wanted := t.want[k]
		h, there := t.other[k]
		_, missing := t.missing[k]
		switch {
		case wanted && missing:
			ops = append(ops, Op[K, V]{Kind: Create, Key: k, New: w})
		case wanted && there:
			ops = append(ops, Op[K, V]{Kind: Replace, Key: k, Old: h, New: w})
		case there:
			if _, proof := t.withdrawn[k]; t.complete || proof {
				ops = append(ops, Op[K, V]{Kind: Delete, Key: k, Old: h})
			}
		}
	}
	if keys != nil {
		for k := range keys {
			add(k)
		}
	} else {
		for k := range t.missing {
			add(k)
		}
		for k := range t.other {
			add(k)
		}
	}
	sortOps(ops, t.compare)
	return ops
}

// applied takes in the result of one step.
func (t *tracker[K, V]) applied(op Op[K, V], err error, now time.Time) {
	if err != nil {
		var foreign *ForeignError
		t.failed[op.Key] = failure{err, errors.As(err, &foreign)}
		return
	}
	delete(t.failed, op.Key)
	if op.Kind == Delete {
		delete(t.other, op.Key)
		delete(t.since, op.Key)
		delete(t.withdrawn, op.Key)
		return
	}
	t.place(op.Key, op.New, true, now)
}

// status returns what is known of k.
func (t *tracker[K, V]) status(k K) Status {
	s := Status{Synced: t.known && t.synced(k)}
	if ns, ok := t.since[k]; ok {
		s.Since = time.Unix(0, ns)
	}
	if f, ok := t.failed[k]; ok {
		s.Err = f.err.Error()
	}
	return s
}

// survey counts what is there as wanted, by part, and calls fn for all else.
func (t *tracker[K, V]) survey(fn func(K, Status)) map[uint32]int {
	synced := map[uint32]int{}
	if !t.known {
		for k := range t.want {
			fn(k, t.status(k))
		}
		return synced
	}
	for part, n := range t.wanted {
		if n > 0 {
			synced[part] = n
		}
	}
	for k := range t.missing {
		synced[t.part(k)]--
		fn(k, t.status(k))
	}
	for k := range t.other {
		if _, wanted := t.want[k]; wanted {
			synced[t.part(k)]--
		}
		fn(k, t.status(k))
	}
	return synced
}
