package cloudtest

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/cloud"
	"fabric/internal/reconcile"
)

// Bed is an implementation under test: a VPC with one table that holds nothing but system routes, and another user of it.
// Instances i-gw and i-other exist.
type Bed struct {
	Open cloud.Opener
	Wish cloud.Wish
	// Table is the id of the table.
	Table string
	// Set and Remove change entries as another user does. An Entry of Kind "dynamic" may be asked for at start only.
	Set    func(t testing.TB, prefix string, e Entry)
	Remove func(t testing.TB, prefix string)
	// Entries prints the entries that are not the system's, by prefix, one a line: "10.0.0.0/8 via i-gw MARK".
	Entries func(t testing.TB) string
	// Limit sets how many custom entries the table takes.
	Limit func(t testing.TB, n int)
}

// Run runs the suite; bed makes a fresh Bed for each test.
func Run(t *testing.T, bed func(t *testing.T) Bed) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, b Bed, tab cloud.Table)
	}{
		{"what is created is observed and owned", created},
		{"a create that is there already writes nothing", again},
		{"a next hop is changed in place", moved},
		{"deletes delete, twice is once", deleted},
		{"entries of others are named and untouched", foreign},
		{"another gateway of the site is another owner", colleague},
		{"results belong to their steps", mixed},
		{"a full table says so", full},
		{"what was removed or changed by hand is seen", drift},
		{"a second process owns what the first wrote", restart},
		{"more than one batch", many},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := bed(t)
			c.run(t, b, b.table(t))
		})
	}
}

func (b Bed) table(t testing.TB) cloud.Table {
	t.Helper()
	v, err := b.Open(t.Context(), b.Wish, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	info, err := v.Describe(t.Context())
	if err != nil || !slices.Contains(info.Tables, b.Table) || info.Instance != "i-gw" || len(info.CIDRs) == 0 {
		t.Fatalf("info %+v %v", info, err)
	}
	return v.Table(b.Table)
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func step(k reconcile.Kind, p string, hop string) reconcile.Op[netip.Prefix, cloud.Route] {
	op := reconcile.Op[netip.Prefix, cloud.Route]{Kind: k, Key: prefix(p)}
	if k != reconcile.Delete {
		op.New = cloud.Route{NextHop: hop, State: cloud.Available}
	}
	return op
}

// does applies steps and wants no error.
func does(t testing.TB, tab cloud.Table, ops ...reconcile.Op[netip.Prefix, cloud.Route]) {
	t.Helper()
	for i, err := range tab.Apply(t.Context(), ops) {
		if err != nil {
			t.Errorf("%v: %v", ops[i], err)
		}
	}
}

// holds wants the table to be so; MARK stands for our mark.
func (b Bed) holds(t testing.TB, lines ...string) {
	t.Helper()
	want := strings.ReplaceAll(strings.Join(append(lines, ""), "\n"), "MARK", b.Wish.Mark())
	if got := b.Entries(t); got != want {
		t.Errorf("the table:\n%swant:\n%s", got, want)
	}
}

// sees wants these entries to be ours, as "PREFIX HOP".
func sees(t testing.TB, tab cloud.Table, want ...string) {
	t.Helper()
	if got := observed(t, tab); !slices.Equal(got, want) {
		t.Errorf("observed %q, want %q", got, want)
	}
}

// comesToSee waits for what sees wants: reads may lag behind what others did.
func comesToSee(t testing.TB, tab cloud.Table, want ...string) {
	t.Helper()
	got := observed(t, tab)
	for end := time.Now().Add(10 * time.Second); !slices.Equal(got, want) && time.Now().Before(end); got = observed(t, tab) {
		time.Sleep(5 * time.Millisecond)
	}
	if !slices.Equal(got, want) {
		t.Errorf("observed %q, want %q", got, want)
	}
}

func observed(t testing.TB, tab cloud.Table) (got []string) {
	t.Helper()
	have, err := tab.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range reconcile.Keys(have) {
		if have[p].State != cloud.Available {
			t.Errorf("%v is %s", p, have[p].State)
		}
		got = append(got, p.String()+" "+have[p].NextHop)
	}
	return got
}

func created(t *testing.T, b Bed, tab cloud.Table) {
	sees(t, tab)
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Create, "10.2.0.0/16", "i-gw"))
	sees(t, tab, "10.1.0.0/16 i-gw", "10.2.0.0/16 i-gw")
	b.holds(t, "10.1.0.0/16 via i-gw MARK", "10.2.0.0/16 via i-gw MARK")
}

func again(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"))
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Replace, "10.1.0.0/16", "i-gw"))
	b.holds(t, "10.1.0.0/16 via i-gw MARK")
}

func moved(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-other"))
	does(t, tab, step(reconcile.Replace, "10.1.0.0/16", "i-gw"))
	b.holds(t, "10.1.0.0/16 via i-gw MARK")
}

func deleted(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Create, "10.2.0.0/16", "i-gw"), step(reconcile.Create, "10.3.0.0/16", "i-gw"))
	does(t, tab, step(reconcile.Delete, "10.1.0.0/16", ""), step(reconcile.Delete, "10.3.0.0/16", ""))
	does(t, tab, step(reconcile.Delete, "10.1.0.0/16", ""))
	b.holds(t, "10.2.0.0/16 via i-gw MARK")
}

// isForeign wants a ForeignError that says whose the entry is.
func isForeign(t testing.TB, err error, owner string) {
	t.Helper()
	var f *reconcile.ForeignError
	if !errors.As(err, &f) || !strings.Contains(f.Owner, owner) {
		t.Errorf("error %v, want a ForeignError that names %q", err, owner)
	}
}

func foreign(t *testing.T, b Bed, tab cloud.Table) {
	b.Set(t, "192.0.2.0/24", Entry{NextHop: "i-other", Mark: "billing team"})
	errs := tab.Apply(t.Context(), []reconcile.Op[netip.Prefix, cloud.Route]{
		step(reconcile.Create, "192.0.2.0/24", "i-gw"), step(reconcile.Replace, "192.0.2.0/24", "i-gw"), step(reconcile.Delete, "192.0.2.0/24", "")})
	isForeign(t, errs[0], "billing team")
	isForeign(t, errs[1], "billing team")
	if errs[2] != nil {
		t.Errorf("there is nothing of ours to delete, but: %v", errs[2])
	}
	sees(t, tab)
	if l := tab.Limits(); l.Foreign != 1 {
		t.Errorf("limits %+v", l)
	}
	b.holds(t, "192.0.2.0/24 via i-other billing team")
}

func colleague(t *testing.T, b Bed, tab cloud.Table) {
	other := b.Wish
	other.Gateway = "gw-2"
	b.Set(t, "10.1.0.0/16", Entry{NextHop: "i-other", Mark: other.Mark()})
	errs := tab.Apply(t.Context(), []reconcile.Op[netip.Prefix, cloud.Route]{step(reconcile.Create, "10.1.0.0/16", "i-gw")})
	isForeign(t, errs[0], "gateway gw-2 of this site")
	sees(t, tab)
	b.holds(t, "10.1.0.0/16 via i-other "+other.Mark())
}

func mixed(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-other"), step(reconcile.Create, "10.4.0.0/16", "i-gw"))
	b.Set(t, "10.2.0.0/16", Entry{NextHop: "i-other", Mark: "billing team"})
	errs := tab.Apply(t.Context(), []reconcile.Op[netip.Prefix, cloud.Route]{
		step(reconcile.Replace, "10.1.0.0/16", "i-gw"), step(reconcile.Create, "10.2.0.0/16", "i-gw"),
		step(reconcile.Create, "10.3.0.0/16", "i-gw"), step(reconcile.Delete, "10.4.0.0/16", "")})
	isForeign(t, errs[1], "billing team")
	if errs[0] != nil || errs[2] != nil || errs[3] != nil {
		t.Errorf("errors %v", errs)
	}
	b.holds(t, "10.1.0.0/16 via i-gw MARK", "10.2.0.0/16 via i-other billing team", "10.3.0.0/16 via i-gw MARK")
}

func full(t *testing.T, b Bed, tab cloud.Table) {
	b.Set(t, "192.0.2.0/24", Entry{NextHop: "i-other", Mark: "billing team"})
	b.Limit(t, 3)
	errs := tab.Apply(t.Context(), []reconcile.Op[netip.Prefix, cloud.Route]{
		step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Create, "10.2.0.0/16", "i-gw"), step(reconcile.Create, "10.3.0.0/16", "i-gw")})
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], cloud.ErrQuota) {
		t.Errorf("errors %v", errs)
	}
	sees(t, tab, "10.1.0.0/16 i-gw", "10.2.0.0/16 i-gw")
	if l := tab.Limits(); l.Entries != 3 || l.Foreign != 1 {
		t.Errorf("limits %+v", l)
	}
}

func drift(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Create, "10.2.0.0/16", "i-gw"))
	b.Remove(t, "10.1.0.0/16")
	b.Set(t, "10.2.0.0/16", Entry{NextHop: "i-other", Mark: b.Wish.Mark()})
	comesToSee(t, tab, "10.2.0.0/16 i-other")
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"), step(reconcile.Replace, "10.2.0.0/16", "i-gw"))
	b.holds(t, "10.1.0.0/16 via i-gw MARK", "10.2.0.0/16 via i-gw MARK")
	// Made theirs by hand: no longer ours to change.
	b.Set(t, "10.2.0.0/16", Entry{NextHop: "i-other", Mark: "billing team"})
	comesToSee(t, tab, "10.1.0.0/16 i-gw")
}

func restart(t *testing.T, b Bed, tab cloud.Table) {
	does(t, tab, step(reconcile.Create, "10.1.0.0/16", "i-gw"))
	next := b.table(t)
	sees(t, next, "10.1.0.0/16 i-gw")
	does(t, next, step(reconcile.Delete, "10.1.0.0/16", ""))
	b.holds(t)
}

func many(t *testing.T, b Bed, tab cloud.Table) {
	const n = 120
	var make, drop []reconcile.Op[netip.Prefix, cloud.Route]
	for i := range n {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100, byte(i), 0}), 24).String()
		make, drop = append(make, step(reconcile.Create, p, "i-gw")), append(drop, step(reconcile.Delete, p, ""))
	}
	does(t, tab, make...)
	have, err := tab.Observe(t.Context())
	if err != nil || len(have) != n {
		t.Errorf("%d entries, %v", len(have), err)
	}
	does(t, tab, drop...)
	b.holds(t)
}
