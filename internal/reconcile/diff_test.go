package reconcile

import (
	"fmt"
	"net/netip"
	"testing"
)

type plainKey struct{ A, B string }

func TestDiff(t *testing.T) {
	for _, tt := range []struct {
		name       string
		want, have map[plainKey]int
		equal      func(a, b int) bool
		ops        string
	}{
		{"nothing", nil, nil, nil, "[]"},
		{"equal", map[plainKey]int{{"a", "b"}: 1}, map[plainKey]int{{"a", "b"}: 1}, nil, "[]"},
		{
			"create and replace before delete, each in order",
			map[plainKey]int{{"c", ""}: 1, {"b", ""}: 2},
			map[plainKey]int{{"b", ""}: 1, {"d", ""}: 1, {"a", ""}: 1}, nil,
			"[replace {b }: 2, was 1 create {c }: 1 delete {a }: was 1 delete {d }: was 1]",
		},
		{
			"close enough", map[plainKey]int{{"a", ""}: 10}, map[plainKey]int{{"a", ""}: 11},
			func(a, b int) bool { return a/10 == b/10 }, "[]",
		},
	} {
		if got := fmt.Sprint(Diff(tt.want, tt.have, tt.equal)); got != tt.ops {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.ops)
		}
	}
}

func TestOrder(t *testing.T) {
	if got := fmt.Sprint(Keys(map[int]int{10: 0, 9: 0})); got != "[9 10]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Keys(map[uint32]int{10: 0, 9: 0})); got != "[9 10]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Keys(map[string]int{"b": 0, "a": 0})); got != "[a b]" {
		t.Error(got)
	}
	p := map[netip.Prefix]int{netip.MustParsePrefix("10.0.0.0/8"): 0, netip.MustParsePrefix("9.0.0.0/8"): 0}
	if got := fmt.Sprint(Keys(p)); got != "[9.0.0.0/8 10.0.0.0/8]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Keys(map[plainKey]int{{"b", ""}: 0, {"a", ""}: 0})); got != "[{a } {b }]" {
		t.Error(got)
	}
}

func TestStrings(t *testing.T) {
	if s := Kind(9).String() + " " + (Op[string, string]{}).String(); s != "unknown unknown step" {
		t.Error(s)
	}
}

type nocase struct{ *world }

func (nocase) Equal(_ string, want, have string) bool { return want == "any" || want == have }

func TestEqualer(t *testing.T) {
	w := newWorld("a=1", "b=1")
	l := loop(nocase{w}, wanted("a=any", "b=2"))
	pass(t, l)
	same(t, "applied", w.log(), "[replace b: 2, was 1]")
	// Config.Equal comes first.
	l = loop(nocase{w}, wanted("a=any", "b=2"), func(c *Config[string, string]) {
		c.Equal = func(a, b string) bool { return a == b }
	})
	pass(t, l)
	same(t, "applied", w.log(), "[replace a: any, was 1]")
}

// BenchmarkPatch changes one object of a hundred thousand.
func BenchmarkPatch(b *testing.B) {
	w, wish := newWorld(), wanted()
	for i := range 100000 {
		wish.want[fmt.Sprint(i)] = "1"
	}
	l := loop(w, wish)
	if err := l.Pass(b.Context()); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		l.Patch(map[string]string{"77": fmt.Sprint(i)})
		if _, err := l.run(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		w.applies = nil
	}
}
