package links

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// pass collects what one pass over the host finds and leaves for its end.
type pass struct {
	ctx     context.Context
	objects map[[2]string]Object
	// removals run at the end, last registered first: what stands on something goes before it.
	removals []func()
	// changes counts operations that succeeded; after a change the world is looked at once more.
	changes int
	// log is told each operation.
	log func(op, kind, name string, err error)
}

// note records the outcome for an object. A later note of the same object replaces the earlier one.
func (p *pass) note(kind, name string, err error) {
	p.objects[[2]string{kind, name}] = newObject(kind, name, err)
}

// objectList is all objects, sorted.
func (p *pass) objectList() []Object {
	return slices.SortedFunc(maps.Values(p.objects), func(a, b Object) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
}

// kind describes one kind of object.
type kind[K comparable, V any] struct {
	name string
	edge reconcile.Edge[K, V]
	// label is how people know an object.
	label func(K) string
	// explain may turn an operation's error into a better one; nil leaves it.
	explain func(K, error) error
	// order may rearrange creates and replaces; nil sorts by label.
	order func(have map[K]V, ops []reconcile.Op[K, V]) []reconcile.Op[K, V]
	// keep holds the removal of what is not wanted back; nil removes all of it.
	keep func(K, V) bool
}

// converge makes the objects of a kind as wanted, and leaves the removal of the others to the end of the pass. It returns what it found before;
// an unread world is an error, and then nothing is changed.
func converge[K comparable, V comparable](p *pass, k kind[K, V], want map[K]V) (map[K]V, error) {
	have, err := k.edge.Observe(p.ctx)
	if err != nil {
		err = fmt.Errorf("read %ss: %w", k.name, err)
		for key := range want {
			p.note(k.name, k.label(key), err)
		}
		if len(want) == 0 {
			p.note(k.name, "*", err)
		}
		return nil, err
	}
	equal := func(_ K, want, have V) bool { return want == have }
	if e, ok := k.edge.(reconcile.Equaler[K, V]); ok {
		equal = e.Equal
	}
	var ops, gone []reconcile.Op[K, V]
	for key, w := range want {
		h, there := have[key]
		switch {
		case !there:
			ops = append(ops, reconcile.Op[K, V]{Kind: reconcile.Create, Key: key, New: w})
		case !equal(key, w, h):
			ops = append(ops, reconcile.Op[K, V]{Kind: reconcile.Replace, Key: key, Old: h, New: w})
		default:
			p.note(k.name, k.label(key), nil)
		}
	}
	for key, h := range have {
		if _, wanted := want[key]; !wanted && (k.keep == nil || !k.keep(key, h)) {
			gone = append(gone, reconcile.Op[K, V]{Kind: reconcile.Delete, Key: key, Old: h})
		}
	}
	byLabel := func(a, b reconcile.Op[K, V]) int { return cmp.Compare(k.label(a.Key), k.label(b.Key)) }
	slices.SortFunc(ops, byLabel)
	slices.SortFunc(gone, byLabel)
	if k.order != nil {
		ops = k.order(have, ops)
	}
	carryOut(p, k, ops)
	if len(gone) > 0 {
		p.removals = append(p.removals, func() { carryOut(p, k, gone) })
	}
	return have, nil
}

// carryOut applies ops and notes each outcome.
func carryOut[K comparable, V any](p *pass, k kind[K, V], ops []reconcile.Op[K, V]) {
	if len(ops) == 0 {
		return
	}
	errs := k.edge.Apply(p.ctx, ops)
	for i, op := range ops {
		label := k.label(op.Key)
		err := errs[i]
		if err != nil && k.explain != nil {
			err = k.explain(op.Key, err)
		}
		p.log(op.Kind.String(), k.name, label, err)
		if err == nil {
			p.changes++
		}
		if op.Kind != reconcile.Delete || err != nil {
			p.note(k.name, label, err)
		}
	}
}

// orderPorts arranges changes of listen ports so that no device asks for a port that another one of ours still has. Where
// devices exchange ports, one of them first goes to a spare port.
func orderPorts(have map[string]kernel.WireGuard, ops []reconcile.Op[string, kernel.WireGuard]) []reconcile.Op[string, kernel.WireGuard] {
	holder := map[int]string{}
	for device, w := range have {
		if w.ListenPort != 0 {
			holder[w.ListenPort] = device
		}
	}
	current := maps.Clone(have)
	if current == nil {
		current = map[string]kernel.WireGuard{}
	}
	free := func(op reconcile.Op[string, kernel.WireGuard]) bool {
		h, held := holder[op.New.ListenPort]
		return !held || h == op.Key
	}
	var out []reconcile.Op[string, kernel.WireGuard]
	apply := func(op reconcile.Op[string, kernel.WireGuard]) {
		if old := current[op.Key].ListenPort; holder[old] == op.Key {
			delete(holder, old)
		}
		if op.New.ListenPort != 0 {
			holder[op.New.ListenPort] = op.Key
		}
		current[op.Key] = op.New
		out = append(out, op)
	}
	ops = slices.Clone(ops)
	for len(ops) > 0 {
		i := slices.IndexFunc(ops, free)
		if i < 0 {
			// All wait: for each other, then the holder goes to a spare port first; or for a device that is removed at the end of
			// this pass, then this one is refused now and made in the next.
			device := holder[ops[0].New.ListenPort]
			j := slices.IndexFunc(ops, func(op reconcile.Op[string, kernel.WireGuard]) bool { return op.Key == device })
			if j < 0 {
				apply(ops[0])
				ops = ops[1:]
				continue
			}
			aside := ops[j]
			for aside.New.ListenPort = 65535; wanted(ops, aside.New.ListenPort) || holder[aside.New.ListenPort] != ""; aside.New.ListenPort-- {
			}
			apply(aside)
			continue
		}
		apply(ops[i])
		ops = slices.Delete(ops, i, i+1)
	}
	return out
}

// wanted says whether one of ops asks for a listen port.
func wanted(ops []reconcile.Op[string, kernel.WireGuard], port int) bool {
	return slices.ContainsFunc(ops, func(op reconcile.Op[string, kernel.WireGuard]) bool { return op.New.ListenPort == port })
}
