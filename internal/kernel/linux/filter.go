package linux

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// ownerChain is a chain without a hook that no packet passes. The comment of its first rule is Filter.Comment, those of the
// rest together are the Filter as text: so a table says whose it is and what it should hold, to programs and to readers of
// "nft list ruleset".
const (
	ownerChain = "owner"
	// commentBytes keeps a comment below what nft(8) reads back (128 bytes).
	commentBytes = 120
)

// filterEdge is the kernel.Filters of the tables named.
type filterEdge struct {
	h      *Host
	tables []string
}

// Filters are nft tables of family inet with these names. Every change replaces the whole table in one transaction.
func (h *Host) Filters(tables ...string) kernel.Filters { return &filterEdge{h, tables} }

// Equal implements reconcile.Equaler.
func (e *filterEdge) Equal(_ string, want, have kernel.Filter) bool { return want == have }

// Observe implements reconcile.Edge. A table of ours that does not hold what its owner chain says (somebody deleted or
// changed a rule) comes back with an empty Comment, which no wish has.
func (e *filterEdge) Observe(context.Context) (map[string]kernel.Filter, error) {
	found := map[string]kernel.Filter{}
	err := e.h.within(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for _, name := range e.tables {
			f, state, err := observeTable(c, name)
			if err != nil {
				return fmt.Errorf("table inet %s: %w", name, err)
			}
			if state == tableOurs {
				found[name] = f
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", explain(err))
	}
	return found, nil
}

type tableState uint8

const (
	tableAbsent tableState = iota
	tableForeign
	tableOurs
)

func observeTable(c *nftables.Conn, name string) (f kernel.Filter, state tableState, err error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return f, 0, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if i < 0 {
		return f, tableAbsent, nil
	}
	table := tables[i]
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return f, 0, err
	}
	have := layout{sets: map[string][]string{}}
	var comments []string
	for _, ch := range all {
		if ch.Table.Name != name {
			continue
		}
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return f, 0, err
		}
		if ch.Name == ownerChain {
			for _, r := range rules {
				s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
				comments = append(comments, s)
			}
			continue
		}
		have.chains = append(have.chains, chainOf(ch, rules))
	}
	if len(comments) == 0 || !strings.HasPrefix(comments[0], kernel.AliasPrefix) {
		return f, tableForeign, nil
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return f, 0, err
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return f, 0, err
		}
		members := []string{}
		for _, el := range elements {
			members = append(members, cstring(el.Key))
		}
		sort.Strings(members)
		have.sets[s.Name] = members
	}
	f, err = decodeFilter(comments)
	if err != nil {
		return kernel.Filter{}, tableOurs, nil
	}
	want, err := compileFilter(f)
	if err != nil || !want.equal(have) {
		f.Comment = ""
	}
	return f, tableOurs, nil
}

// chainOf reads a chain back into the form compileFilter makes.
func chainOf(ch *nftables.Chain, rules []*nftables.Rule) chain {
	c := chain{name: ch.Name}
	if ch.Hooknum != nil {
		c.hook = *ch.Hooknum
	}
	if ch.Priority != nil {
		c.priority = *ch.Priority
	}
	c.accept = ch.Policy == nil || *ch.Policy == nftables.ChainPolicyAccept
	for _, r := range rules {
		c.rules = append(c.rules, r.Exprs)
	}
	return c
}

func (l layout) equal(o layout) bool {
	if !reflect.DeepEqual(l.sets, o.sets) || len(l.chains) != len(o.chains) {
		return false
	}
	for _, c := range l.chains {
		i := slices.IndexFunc(o.chains, func(x chain) bool { return x.name == c.name })
		if i < 0 || !c.equal(o.chains[i]) {
			return false
		}
	}
	return true
}

func (c chain) equal(o chain) bool {
	return c.hook == o.hook && c.priority == o.priority && c.accept == o.accept &&
		slices.EqualFunc(c.rules, o.rules, func(a, b []expr.Any) bool {
			return slices.EqualFunc(a, b, equalExpr)
		})
}

// equalExpr compares expressions but for what counts packets and for ids that only live within a transaction.
func equalExpr(a, b expr.Any) bool {
	switch x := a.(type) {
	case *expr.Counter:
		_, ok := b.(*expr.Counter)
		return ok
	case *expr.Lookup:
		y, ok := b.(*expr.Lookup)
		return ok && x.SetName == y.SetName && x.Invert == y.Invert && x.SourceRegister == y.SourceRegister
	}
	return reflect.DeepEqual(a, b)
}

// Apply implements reconcile.Edge.
func (e *filterEdge) Apply(_ context.Context, ops []reconcile.Op[string, kernel.Filter]) []error {
	errs := make([]error, len(ops))
	err := e.h.within(func() error {
		for i, op := range ops {
			errs[i] = applyFilter(op)
		}
		return nil
	})
	if err != nil {
		return failAll(len(ops), err)
	}
	return errs
}

func applyFilter(op reconcile.Op[string, kernel.Filter]) error {
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s nft table inet %s: %w", op.Kind, op.Key, explain(err))
	}
	c, err := nftables.New()
	if err != nil {
		return wrap(err)
	}
	_, state, err := observeTable(c, op.Key)
	if err != nil {
		return wrap(err)
	}
	if state == tableForeign {
		return &reconcile.ForeignError{
			What:  "nft table inet " + op.Key,
			Owner: "no chain " + ownerChain + " with a comment of the fabric",
			Mend:  "delete or rename it",
		}
	}
	table := &nftables.Table{Name: op.Key, Family: nftables.TableFamilyINet}
	if op.Kind == reconcile.Delete {
		if state == tableAbsent {
			return nil
		}
		c.DelTable(table)
		return wrap(c.Flush())
	}
	if !strings.HasPrefix(op.New.Comment, kernel.AliasPrefix) || len(op.New.Comment) > commentBytes {
		return wrap(fmt.Errorf("comment %q does not begin with %q or has more than %d bytes",
			op.New.Comment, kernel.AliasPrefix, commentBytes))
	}
	want, err := compileFilter(op.New)
	if err != nil {
		return wrap(err)
	}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	if err := want.install(c, table, encodeFilter(op.New)); err != nil {
		return wrap(err)
	}
	return wrap(c.Flush())
}

func (l layout) install(c *nftables.Conn, table *nftables.Table, comments []string) error {
	owner := c.AddChain(&nftables.Chain{Name: ownerChain, Table: table})
	for _, s := range comments {
		c.AddRule(&nftables.Rule{
			Table: table, Chain: owner, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}},
			UserData: userdata.AppendString(nil, userdata.TypeComment, s),
		})
	}
	ids := map[string]uint32{}
	for _, name := range slices.Sorted(maps.Keys(l.sets)) {
		members := l.sets[name]
		set := &nftables.Set{
			Table: table, Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		}
		var elements []nftables.SetElement
		for _, m := range members {
			elements = append(elements, nftables.SetElement{Key: ifname(m)})
		}
		if err := c.AddSet(set, elements); err != nil {
			return err
		}
		ids[name] = set.ID
	}
	accept := nftables.ChainPolicyAccept
	for _, ch := range l.chains {
		hook, priority := ch.hook, ch.priority
		added := c.AddChain(&nftables.Chain{
			Name: ch.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: &hook, Priority: &priority, Policy: &accept,
		})
		for _, exprs := range ch.rules {
			for _, x := range exprs {
				if l, ok := x.(*expr.Lookup); ok {
					l.SetID = ids[l.SetName]
				}
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: added, Exprs: exprs})
		}
	}
	return nil
}

// encodeFilter spells f as comments: the owner first, then the contents cut into pieces. Quotes and the like are escaped, so
// that the output of nft list can be loaded again.
func encodeFilter(f kernel.Filter) []string {
	v := url.Values{}
	set := func(k, s string) {
		if s != "" && s != "0" {
			v.Set(k, s)
		}
	}
	set("mss4", strconv.Itoa(f.MSS4))
	set("mss6", strconv.Itoa(f.MSS6))
	set("clamp", f.ClampDevices)
	set("port", strconv.Itoa(f.VXLANPort))
	set("tunnels", f.VXLANDevices)
	set("marks", f.Marks)
	set("direct", strconv.Itoa(f.DirectPort))
	set("sources", f.DirectSources)
	comments := []string{f.Comment}
	for s := v.Encode(); s != ""; {
		n := min(len(s), commentBytes)
		comments = append(comments, s[:n])
		s = s[n:]
	}
	return comments
}

var errComment = errors.New("the owner chain does not say what the table holds")

func decodeFilter(comments []string) (f kernel.Filter, err error) {
	v, err := url.ParseQuery(strings.Join(comments[1:], ""))
	if err != nil {
		return f, errComment
	}
	number := func(k string) int {
		n, e := strconv.Atoi(v.Get(k))
		if e != nil && v.Has(k) {
			err = errComment
		}
		return n
	}
	f = kernel.Filter{
		Comment: comments[0], MSS4: number("mss4"), MSS6: number("mss6"), ClampDevices: v.Get("clamp"),
		VXLANPort: number("port"), VXLANDevices: v.Get("tunnels"), Marks: v.Get("marks"),
		DirectPort: number("direct"), DirectSources: v.Get("sources"),
	}
	return f, err
}
