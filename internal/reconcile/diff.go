package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// String says what the step does, for plans shown to people; keys and values print themselves.
func (o Op[K, V]) String() string {
	switch o.Kind {
	case Create:
		return fmt.Sprintf("create %v: %v", o.Key, o.New)
	case Replace:
		return fmt.Sprintf("replace %v: %v, was %v", o.Key, o.New, o.Old)
	case Delete:
		return fmt.Sprintf("delete %v: was %v", o.Key, o.Old)
	}
	return "unknown step"
}

// Diff returns the steps that make have equal to want: creates and replaces first, deletes after them, each part in the
// order of its keys. A nil equal compares with ==, which panics for values that have none.
func Diff[K comparable, V any](want, have map[K]V, equal func(want, have V) bool) []Op[K, V] {
	return diff(want, have, keyless[K](equal), nil)
}

// keyless turns an equality of values into one of objects.
func keyless[K comparable, V any](equal func(want, have V) bool) func(K, V, V) bool {
	if equal == nil {
		equal = func(a, b V) bool { return any(a) == any(b) }
	}
	return func(_ K, want, have V) bool { return equal(want, have) }
}

func diff[K comparable, V any](want, have map[K]V, equal func(K, V, V) bool, compare func(a, b K) int) []Op[K, V] {
	var ops []Op[K, V]
	for k, w := range want {
		h, ok := have[k]
		switch {
		case !ok:
			ops = append(ops, Op[K, V]{Kind: Create, Key: k, New: w})
		case !equal(k, w, h):
			ops = append(ops, Op[K, V]{Kind: Replace, Key: k, Old: h, New: w})
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			ops = append(ops, Op[K, V]{Kind: Delete, Key: k, Old: h})
		}
	}
	sortOps(ops, compare)
	return ops
}

// sortOps puts deletes last and orders the rest by key.
func sortOps[K comparable, V any](ops []Op[K, V], compare func(a, b K) int) {
	if compare == nil {
		compare = Order[K]()
		if compare == nil {
			sortPrinted(ops)
			return
		}
	}
	slices.SortFunc(ops, func(a, b Op[K, V]) int {
		return cmp.Or(last(a.Kind)-last(b.Kind), compare(a.Key, b.Key))
	})
}

func last(k Kind) int {
	if k == Delete {
		return 1
	}
	return 0
}

// sortPrinted orders by how keys print, each printed once.
func sortPrinted[K comparable, V any](ops []Op[K, V]) {
	printed := make(map[K]string, len(ops))
	for _, o := range ops {
		printed[o.Key] = fmt.Sprint(o.Key)
	}
	slices.SortFunc(ops, func(a, b Op[K, V]) int {
		return cmp.Or(last(a.Kind)-last(b.Kind), strings.Compare(printed[a.Key], printed[b.Key]))
	})
}

// Order returns the natural order of K: its own Compare method, or that of strings and numbers. It is nil when K has none.
func Order[K comparable]() func(a, b K) int {
	var k K
	switch any(k).(type) {
	case interface{ Compare(K) int }:
		return func(a, b K) int { return any(a).(interface{ Compare(K) int }).Compare(b) }
	case string:
		return func(a, b K) int { return cmp.Compare(any(a).(string), any(b).(string)) }
	case int:
		return func(a, b K) int { return cmp.Compare(any(a).(int), any(b).(int)) }
	case uint32:
		return func(a, b K) int { return cmp.Compare(any(a).(uint32), any(b).(uint32)) }
	}
	return nil
}

// Keys returns the keys of m in their order, for whoever prints or walks a map the same way every time.
func Keys[K comparable, V any](m map[K]V) []K {
	keys := slices.Collect(maps.Keys(m))
	compare := Order[K]()
	if compare == nil {
		compare = func(a, b K) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	}
	slices.SortFunc(keys, compare)
	return keys
}
