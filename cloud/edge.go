package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"fabric/internal/reconcile"
)

// entryKey names an entry of any table of the VPC: one loop serves all of them, since the VPC takes one change at a time.
type entryKey struct {
	Table  string
	Prefix netip.Prefix
}

// Compare orders by table, then prefix.
func (k entryKey) Compare(o entryKey) int {
	return cmp.Or(strings.Compare(k.Table, o.Table), k.Prefix.Compare(o.Prefix))
}

// String prints "10.0.0.0/8 in vtb-1".
func (k entryKey) String() string { return k.Prefix.String() + " in " + k.Table }

// tableState is what the last look at a table showed, with what we have done since.
type tableState struct {
	routes map[netip.Prefix]Route
	limits Limits
}

// equalRoutes says whether an entry meets a wish. One that is on its way somewhere does not yet: Apply waits for it.
func equalRoutes(want, have Route) bool {
	return want.NextHop == have.NextHop && have.State == Available
}

// want is the whole wish of all tables. Until every peer has told all its routes, what was wanted once stays wanted.
func (x *session) want() (map[entryKey]Route, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	prefixes := x.verdicts.wanted()
	want := make(map[entryKey]Route, len(prefixes)*len(x.info.Tables))
	x.leftOut = map[entryKey]string{}
	for _, id := range x.info.Tables {
		t := x.have[id]
		in, out := fit(prefixes, t.routes, room(x.wish.Quota, t.limits))
		for _, p := range in {
			want[entryKey{id, p}] = Route{NextHop: x.info.Instance, State: Available}
		}
		for _, p := range out {
			x.leftOut[entryKey{id, p}] = fmt.Sprintf("left out: no room in %s for more than %d entries of ours; raise the quota or aggregate",
				id, room(x.wish.Quota, t.limits))
		}
	}
	if !x.complete {
		for k, r := range x.last {
			if _, ok := want[k]; !ok && slices.Contains(x.info.Tables, k.Table) {
				want[k] = r
			}
		}
	}
	x.last = maps.Clone(want)
	return want, x.complete
}

// Observe reads all tables. It is the loop's.
func (x *session) Observe(ctx context.Context) (map[entryKey]Route, error) {
	info, err := x.vpc.Describe(ctx)
	if err != nil {
		return nil, err
	}
	all := map[entryKey]Route{}
	have := map[string]tableState{}
	for _, id := range info.Tables {
		t := x.vpc.Table(id)
		routes, err := t.Observe(ctx)
		if err != nil {
			return nil, fmt.Errorf("route table %s: %w", id, err)
		}
		for p, r := range routes {
			all[entryKey{id, p}] = r
		}
		have[id] = tableState{routes: routes, limits: t.Limits()}
	}
	x.mu.Lock()
	moved := !slices.Equal(info.CIDRs, x.info.CIDRs) && x.feed != nil
	again := !slices.Equal(info.Tables, x.info.Tables) && x.feed != nil
	x.info, x.have, x.observed = info, have, time.Now()
	for k := range x.errs {
		_, wanted := x.last[k]
		r, there := all[k]
		if !wanted && !there || wanted && there && equalRoutes(x.last[k], r) {
			delete(x.errs, k)
		}
	}
	x.mu.Unlock()
	if moved {
		x.feed.Resync()
	}
	if moved || again {
		x.loop.Wake()
	}
	x.cfg.Changed()
	return all, nil
}

// Apply hands steps to the tables one after another. It is the loop's.
func (x *session) Apply(ctx context.Context, ops []reconcile.Op[entryKey, Route]) []error {
	results := make([]error, len(ops))
	x.begin(ops)
	failed := map[entryKey]bool{}
	for _, g := range x.groups(ops) {
		var todo []int
		for _, i := range g.steps {
			op := ops[i]
			if op.Kind == reconcile.Delete {
				// What a wider entry is to take over stays until that one is there.
				if k, ok := covering(failed, op.Key); ok {
					results[i] = fmt.Errorf("%v is kept until %v is there", op.Key, k.Prefix)
					continue
				}
			}
			todo = append(todo, i)
		}
		steps := make([]reconcile.Op[netip.Prefix, Route], len(todo))
		for n, i := range todo {
			steps[n] = reconcile.Op[netip.Prefix, Route]{Kind: ops[i].Kind, Key: ops[i].Key.Prefix, Old: ops[i].Old, New: ops[i].New}
		}
		if len(steps) > 0 {
			t := x.vpc.Table(g.table)
			errs := t.Apply(ctx, steps)
			if len(errs) != len(steps) {
				errs = slices.Repeat([]error{fmt.Errorf("route table %s returned %d results for %d steps", g.table, len(errs), len(steps))}, len(steps))
			}
			for n, i := range todo {
				if err := errs[n]; err != nil {
					failed[ops[i].Key] = ops[i].Kind != reconcile.Delete
					results[i] = fmt.Errorf("%v: %w", ops[i].Key, err)
				}
			}
			x.setLimits(g.table, t.Limits())
		}
		x.ended(ops, g.steps, results)
	}
	return results
}

func (x *session) setLimits(table string, l Limits) {
	x.mu.Lock()
	defer x.mu.Unlock()
	t := x.have[table]
	t.limits = l
	x.have[table] = t
}

// covering returns an entry of the same table that failed to be created and covers k.
func covering(failed map[entryKey]bool, k entryKey) (entryKey, bool) {
	for f, created := range failed {
		if created && f.Table == k.Table && f.Prefix.Bits() < k.Prefix.Bits() && f.Prefix.Overlaps(k.Prefix) {
			return f, true
		}
	}
	return entryKey{}, false
}

type group struct {
	table string
	steps []int
}

// groups cuts a plan into one part for each table and kind, creates and replaces before deletes, as the plan is. A table
// that is too full for its creates has its deletes first.
func (x *session) groups(ops []reconcile.Op[entryKey, Route]) []group {
	x.mu.Lock()
	defer x.mu.Unlock()
	creates := map[string]int{}
	for _, op := range ops {
		if op.Kind == reconcile.Create {
			creates[op.Key.Table]++
		}
	}
	order := func(op reconcile.Op[entryKey, Route]) int {
		t := x.have[op.Key.Table]
		r := room(x.wish.Quota, t.limits)
		full := r >= 0 && len(t.routes)+creates[op.Key.Table] > r
		switch {
		case op.Kind == reconcile.Replace:
			return 0 // these bring back what is broken
		case op.Kind == reconcile.Delete && full:
			return 1
		case op.Kind == reconcile.Create:
			return 2
		}
		return 3
	}
	index := make([]int, len(ops))
	for i := range index {
		index[i] = i
	}
	slices.SortStableFunc(index, func(a, b int) int { return cmp.Compare(order(ops[a]), order(ops[b])) })
	var gs []group
	last := -1
	for _, i := range index {
		if n := len(gs); n > 0 && gs[n-1].table == ops[i].Key.Table && last == order(ops[i]) {
			gs[n-1].steps = append(gs[n-1].steps, i)
			continue
		}
		gs, last = append(gs, group{ops[i].Key.Table, []int{i}}), order(ops[i])
	}
	return gs
}

// begin shows what is being done.
func (x *session) begin(ops []reconcile.Op[entryKey, Route]) {
	x.mu.Lock()
	for _, op := range ops {
		x.doing[op.Key] = map[reconcile.Kind]State{
			reconcile.Create: Pending, reconcile.Replace: Modifying, reconcile.Delete: Deleting}[op.Kind]
	}
	x.mu.Unlock()
	x.cfg.Changed()
}

// ended shows what became of steps.
func (x *session) ended(ops []reconcile.Op[entryKey, Route], steps []int, results []error) {
	x.mu.Lock()
	for _, i := range steps {
		op, t := ops[i], x.have[ops[i].Key.Table]
		delete(x.doing, op.Key)
		if err := results[i]; err != nil {
			var foreign *reconcile.ForeignError
			if errors.As(err, &foreign) && (x.errs[op.Key] == nil || x.errs[op.Key].Error() != err.Error()) {
				x.log.Warn("an entry that is not ours is in the way", "error", err)
			}
			x.errs[op.Key] = err
			continue
		}
		delete(x.errs, op.Key)
		if t.routes == nil {
			continue
		}
		if op.Kind == reconcile.Delete {
			delete(t.routes, op.Key.Prefix)
		} else {
			t.routes[op.Key.Prefix] = op.New
		}
		x.log.Info("vpc entry", "step", op.Kind.String(), "prefix", op.Key.Prefix, "table", op.Key.Table, "instance", cmp.Or(op.New.NextHop, op.Old.NextHop))
	}
	x.mu.Unlock()
	x.cfg.Changed()
}
