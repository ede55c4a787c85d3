package rib

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the Table as one would write it without caring for time: all paths in one map, every choice computed from
// scratch by literal elimination.
type model struct {
	vrfs map[string][]RT
	// multipath of VRFs.
	multipath map[string]int
	// networks of the VRFs that resolve next hops.
	networks map[string][]Network
	paths    map[PathKey]Path
	reach    map[NextHop]Reach
	dead     map[Source]bool
}

func newModel() *model {
	return &model{vrfs: make(map[string][]RT), multipath: make(map[string]int), networks: make(map[string][]Network), paths: make(map[PathKey]Path), reach: make(map[NextHop]Reach), dead: make(map[Source]bool)}
}

func (m *model) usable(p Path) bool {
	if m.reach[p.Hop()] != Reachable || m.dead[p.Key.Source] {
		return false
	}
	if k := p.Key.Source.Kind; k != Static && k != Peer || p.Interface != "" || m.networks[p.Key.Source.VRF] == nil {
		return true
	}
	_, ok := m.resolve(p.Key.Source.VRF, p.Attrs.NextHop, map[netip.Addr]bool{})
	return ok
}

// candidates are the paths of a key, in no order.
func (m *model) candidates(k Key) []Path {
	var ps []Path
	for _, p := range m.paths {
		imported := slices.ContainsFunc(p.Attrs.RTs, func(rt RT) bool { return slices.Contains(m.vrfs[k.VRF], rt) })
		local := p.Key.Source.Kind != Fabric && p.Key.Source.VRF == k.VRF
		if p.Key.Prefix == k.Prefix && (local || p.Key.Source.Kind == Fabric && imported) {
			ps = append(ps, p)
		}
	}
	return ps
}

// keep returns those of ps with the lowest of a value.
func keep[T cmp.Ordered](ps []Path, value func(Path) T) []Path {
	var out []Path
	for _, p := range ps {
		switch {
		case len(out) == 0 || value(p) < value(out[0]):
			out = []Path{p}
		case value(p) == value(out[0]):
			out = append(out, p)
		}
	}
	return out
}

// best eliminates until one is left.
func best(ps []Path) Path {
	ps = equals(ps)
	ps = keep(ps, func(p Path) bool01 { return is(p.Stale) })
	for _, text := range []func(Path) string{
		func(p Path) string { return string(p.Attrs.RouterID.AsSlice()) },
		func(p Path) string {
			return fmt.Sprintf("%03d%s", p.Key.Source.Addr.BitLen(), p.Key.Source.Addr.AsSlice())
		},
		func(p Path) string { return string(p.Key.RD[:]) },
		func(p Path) string { return fmt.Sprint(p.Key.PathID) },
		func(p Path) string { return p.Key.Source.Name },
	} {
		ps = keep(ps, text)
	}
	if len(ps) != 1 {
		panic(fmt.Sprintf("%d paths tie: %+v", len(ps), ps))
	}
	return ps[0]
}

// equals eliminates down to the kind of neighbour: what is left are equally good ways.
func equals(ps []Path) []Path {
	ps = keep(ps, func(p Path) int {
		return map[SourceKind]int{Connected: 0, Static: 1, Peer: 2, Fabric: 2}[p.Key.Source.Kind]
	})
	ps = keep(ps, func(p Path) int { return -int(p.Attrs.LocalPref) })
	ps = keep(ps, func(p Path) int {
		n := 0
		for _, s := range p.Attrs.ASPath {
			if s.Set {
				n++
			} else {
				n += len(s.ASNs)
			}
		}
		return n
	})
	ps = keep(ps, func(p Path) Origin { return p.Attrs.Origin })
	first := func(p Path) uint32 {
		if len(p.Attrs.ASPath) == 0 || p.Attrs.ASPath[0].Set {
			return 0
		}
		return p.Attrs.ASPath[0].ASNs[0]
	}
	var left []Path
	for _, p := range ps {
		if !slices.ContainsFunc(ps, func(o Path) bool { return first(o) == first(p) && o.Attrs.MED < p.Attrs.MED }) {
			left = append(left, p)
		}
	}
	return keep(left, func(p Path) bool01 { return is(p.Key.Source.Kind == Fabric) })
}

type bool01 int

func is(b bool) bool01 {
	if b {
		return 1
	}
	return 0
}

// ranking puts the usable ones in order by taking the best of those left, again and again.
func (m *model) ranking(k Key) []Path {
	var left, out []Path
	for _, p := range m.candidates(k) {
		if m.usable(p) {
			left = append(left, p)
		}
	}
	for len(left) > 0 {
		b := best(left)
		out = append(out, b)
		left = slices.DeleteFunc(left, func(p Path) bool { return p.Key == b.Key })
	}
	return out
}

// choice is the model's outcome.
func (m *model) choice(k Key) Choice {
	c := Choice{Key: k}
	ps := m.ranking(k)
	if len(ps) == 0 {
		return c
	}
	c.Best = &ps[0]
	used := []NextHop{ps[0].Hop()}
	good := equals(ps)
	for i, p := range ps {
		if slices.Contains(used, p.Hop()) {
			continue
		}
		isGood := slices.ContainsFunc(good, func(g Path) bool { return g.Key == p.Key })
		if isGood && len(used) < m.multipath[k.VRF] && p.Key.Source.Kind >= Peer {
			used = append(used, p.Hop())
			c.Equal = append(c.Equal, &ps[i])
		}
	}
	for i, p := range ps {
		if c.RunnerUp == nil && !slices.Contains(used, p.Hop()) {
			c.RunnerUp = &ps[i]
		}
	}
	return c
}

// resolve says where a next hop leads, without a word why if it leads nowhere.
func (m *model) resolve(v string, nh netip.Addr, asked map[netip.Addr]bool) (r Resolution, ok bool) {
	if m.networks[v] == nil {
		return r, false
	}
	bits := -1
	for _, n := range m.networks[v] {
		if n.Prefix.Contains(nh) && n.Prefix.Bits() > bits {
			r, bits = Resolution{Gateway: nh, Device: n.Device}, n.Prefix.Bits()
		}
	}
	if bits >= 0 {
		return r, true
	}
	asked[nh] = true
	covering := slices.DeleteFunc(slices.Clone(modelPrefixes), func(p netip.Prefix) bool { return !p.Contains(nh) })
	slices.SortFunc(covering, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	for _, p := range covering {
		left := slices.DeleteFunc(m.candidates(Key{v, p}), func(p Path) bool { return m.dead[p.Key.Source] || m.reach[p.Hop()] != Reachable })
		for len(left) > 0 {
			b := best(left)
			left = slices.DeleteFunc(left, func(p Path) bool { return p.Key == b.Key })
			switch {
			case b.Key.Source.Kind == Fabric:
				return r, false
			case b.Interface != "":
				return Resolution{Gateway: b.Attrs.NextHop, Device: b.Interface}, true
			case asked[b.Attrs.NextHop]:
			default:
				if r, ok := m.resolve(v, b.Attrs.NextHop, asked); ok {
					return r, true
				}
			}
		}
	}
	return r, false
}

// keys are all keys that could have a choice.
func (m *model) keys() []Key {
	var ks []Key
	for _, v := range modelVRFs {
		for _, p := range modelPrefixes {
			ks = append(ks, Key{v, p})
		}
	}
	return ks
}

var (
	modelVRFs     = []string{"A", "B", "C"}
	modelPrefixes = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), net10, net101, netip.MustParsePrefix("10.1.2.3/32"),
		netip.MustParsePrefix("::/0"), netV6,
	}
	modelSources = []Source{connectedA, staticA, peer1, peer2, peer3, peerB, gateway1, gateway2}
	modelHops    = []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("10.255.0.1"),
		netip.MustParseAddr("10.255.0.2"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("2001:db8::3"),
	}
	modelNetworks = []Network{
		{netip.MustParsePrefix("192.0.2.0/24"), "eth1"}, {netip.MustParsePrefix("192.0.2.0/31"), "eth2"}, {netip.MustParsePrefix("10.255.0.0/31"), "eth3"},
	}
	modelRTs = []RT{rt1, rt2, {0, 2, 0, 0, 0, 0, 0, 3}}
)

func genSource() *rapid.Generator[Source] { return rapid.SampledFrom(modelSources) }

// genPath draws from few values each, so that paths tie up to every step.
func genPath() *rapid.Generator[Path] {
	return rapid.Custom(func(t *rapid.T) Path {
		p := Path{Key: PathKey{
			Source: genSource().Draw(t, "source"),
			Prefix: rapid.SampledFrom(modelPrefixes).Draw(t, "prefix"),
			PathID: rapid.Uint32Range(0, 1).Draw(t, "path id"),
		}}
		p.Attrs = Attrs{
			LocalPref: 100,
			NextHop:   rapid.SampledFrom(modelHops).Draw(t, "next hop"),
			RouterID:  netip.AddrFrom4([4]byte{1, 1, 1, rapid.ByteRange(0, 2).Draw(t, "router id")}),
			Origin:    Origin(rapid.SampledFrom([]int{0, 0, 0, 2}).Draw(t, "origin")),
		}
		if p.Key.Source.Kind != Fabric && rapid.IntRange(0, 5).Draw(t, "device") == 0 {
			p.Interface = "eth4"
		}
		if p.Key.Source.Kind == Fabric {
			p.Key.RD[7] = rapid.ByteRange(0, 1).Draw(t, "rd")
			p.Attrs.RTs = rapid.SliceOfNDistinct(rapid.SampledFrom(modelRTs), 0, 2, rapid.ID).Draw(t, "rts")
		}
		if rapid.IntRange(0, 5).Draw(t, "preferred") == 0 {
			p.Attrs.LocalPref = 200
		}
		p.Attrs.ASPath = rapid.SampledFrom([][]ASSegment{
			nil,
			{{ASNs: []uint32{7}}},
			{{ASNs: []uint32{8}}},
			{{ASNs: []uint32{8}}},
			{{Set: true, ASNs: []uint32{7, 8}}},
			{{ASNs: []uint32{7}}, {Set: true, ASNs: []uint32{8, 9}}},
		}).Draw(t, "as path")
		if p.Attrs.HasMED = rapid.Bool().Draw(t, "has med"); p.Attrs.HasMED {
			p.Attrs.MED = rapid.Uint32Range(0, 2).Draw(t, "med")
		}
		p.Stale = rapid.IntRange(0, 4).Draw(t, "stale") == 0
		return p
	})
}

func genVRFs() *rapid.Generator[[]VRF] {
	return rapid.Custom(func(t *rapid.T) []VRF {
		var vs []VRF
		for _, name := range modelVRFs {
			if rapid.IntRange(0, 3).Draw(t, "declared") > 0 {
				v := VRF{Name: name, Import: rapid.SliceOfNDistinct(rapid.SampledFrom(modelRTs), 0, 3, rapid.ID).Draw(t, "import"), Multipath: rapid.IntRange(0, 3).Draw(t, "multipath")}
				if v.Resolve = rapid.Bool().Draw(t, "resolve"); v.Resolve {
					v.Networks = rapid.SliceOfNDistinct(rapid.SampledFrom(modelNetworks), 0, 2, rapid.ID).Draw(t, "networks")
				}
				vs = append(vs, v)
			}
		}
		return vs
	})
}

func genHop() *rapid.Generator[NextHop] {
	return rapid.Custom(func(t *rapid.T) NextHop {
		return NextHop{
			VRF:  rapid.SampledFrom([]string{"", "A", "B"}).Draw(t, "vrf"),
			Addr: rapid.SampledFrom(modelHops).Draw(t, "addr"),
		}
	})
}

func sameChoice(a, b Choice) bool {
	same := func(a, b *Path) bool { return (a == nil) == (b == nil) && (a == nil || equalPaths(a, b)) }
	return a.Key == b.Key && same(a.Best, b.Best) && same(a.RunnerUp, b.RunnerUp) && slices.EqualFunc(a.Equal, b.Equal, same)
}

// checkIndexes proves that the table's inner lists fit each other and that nothing is left behind.
func checkIndexes(t *rapid.T, tab *Table, m *model) {
	n := 0
	for s, src := range tab.sources {
		if len(src.paths) == 0 && src.reach == Reachable {
			t.Fatalf("empty source %v is kept", s)
		}
		if (src.reach != Reachable) != m.dead[s] {
			t.Fatalf("source %v has reach %v", s, src.reach)
		}
		for i, r := range src.paths {
			n++
			if r.source != src || int(r.sourceAt) != i || r.path.Key.Source != s {
				t.Fatalf("source index of %+v", r.path.Key)
			}
		}
	}
	if n != len(m.paths) {
		t.Fatalf("%d paths, want %d", n, len(m.paths))
	}
	used := 0
	for nh, h := range tab.hops {
		if len(h.users) == 0 && h.reach == Reachable {
			t.Fatalf("next hop %v is kept for nobody", nh)
		}
		for i, r := range h.users {
			used++
			if r.hop != h || int(r.hopAt) != i || r.path.Hop() != nh {
				t.Fatalf("next-hop index of %+v", r.path.Key)
			}
		}
	}
	asked := 0
	for nh, h := range tab.hops {
		asked += len(h.asked)
		for _, a := range h.asked {
			if _, ok := tab.vrfs[nh.VRF].questions.hops[a][h]; !ok {
				t.Fatalf("next hop %v asked for %v, which is not in the index", nh, a)
			}
		}
		if h.doubted {
			t.Fatalf("next hop %v is still doubted", nh)
		}
	}
	for _, v := range tab.vrfs {
		for _, hs := range v.questions.hops {
			asked -= len(hs)
		}
	}
	if asked != 0 {
		t.Fatalf("%d questions too few in the index", asked)
	}
	if used != len(m.paths) {
		t.Fatalf("%d paths have a next hop, want %d", used, len(m.paths))
	}
	for name, v := range tab.vrfs {
		total, chosen := 0, 0
		for _, l := range v.lengths {
			for _, n := range l {
				total += n
			}
		}
		for _, e := range v.entries {
			if len(e.paths) == 0 {
				t.Fatalf("empty entry in %s", name)
			}
			chosen += int(is(e.best != nil))
		}
		if total != len(v.entries) || chosen != v.chosen {
			t.Fatalf("%s: %d keys counted of %d, %d chosen of %d", name, total, len(v.entries), v.chosen, chosen)
		}
	}
}

// checkTable compares every answer of the table with the model's.
func checkTable(t *rapid.T, tab *Table, m *model) {
	checkIndexes(t, tab, m)
	for _, v := range modelVRFs {
		for _, nh := range modelHops {
			got := tab.Resolve(v, nh)
			want, ok := m.resolve(v, nh, map[netip.Addr]bool{})
			if (got.Why == "") != ok || ok && got != want || !ok && got.Device != "" {
				t.Fatalf("next hop %s in VRF %s: %+v, want %+v, %v", nh, v, got, want, ok)
			}
		}
	}
	for _, v := range modelVRFs {
		var walked, should []Choice
		tab.Walk(v, func(c Choice) bool { walked = append(walked, c); return true })
		for _, p := range modelPrefixes {
			k := Key{v, p}
			want := m.choice(k)
			got, ok := tab.Best(k)
			if ok != (want.Best != nil) || !sameChoice(got, want) {
				t.Fatalf("%v:\n got %+v, %+v\nwant %+v, %+v", k, got.Best, got.RunnerUp, want.Best, want.RunnerUp)
			}
			if ok {
				should = append(should, want)
			}
			ranked := m.ranking(k)
			cs := tab.Candidates(k)
			if len(cs) != len(m.candidates(k)) || !slices.EqualFunc(cs[:len(ranked)], ranked, func(a, b Path) bool { return equalPaths(&a, &b) }) {
				t.Fatalf("%v: candidates\n got %+v\nwant %+v", k, cs, ranked)
			}
			for i, c := range tab.Ranking(k) {
				if shares := slices.ContainsFunc(want.Equal, func(p *Path) bool { return p.Key == c.Path.Key }); c.Equal != shares {
					t.Fatalf("%v: candidate %d: %+v", k, i, c)
				}
				if c.Usable != (i < len(ranked)) || (c.Lost == "") != (i == 0 && c.Usable) {
					t.Fatalf("%v: candidate %d: %+v", k, i, c)
				}
			}
			// Longest match, the slow way.
			var longest Choice
			for _, q := range modelPrefixes {
				if c := m.choice(Key{v, q}); c.Best != nil && q.Overlaps(p) && q.Bits() <= p.Bits() &&
					(longest.Best == nil || q.Bits() > longest.Key.Prefix.Bits()) {
					longest = c
				}
			}
			if got, ok := tab.Lookup(v, p); ok != (longest.Best != nil) || ok && !sameChoice(got, longest) {
				t.Fatalf("Lookup(%v) = %v, want %v", k, got.Key, longest.Key)
			}
		}
		slices.SortFunc(should, func(a, b Choice) int { return a.Key.Compare(b.Key) })
		if !slices.EqualFunc(walked, should, sameChoice) {
			t.Fatalf("Walk(%s): %v, want %v", v, walked, should)
		}
		if tab.Len(v) != len(should) {
			t.Fatalf("Len(%s) = %d, want %d", v, tab.Len(v), len(should))
		}
	}
}

// consumer is one that applies batches when it comes to it.
type consumer struct {
	feed  *Feed
	world map[Key]Choice
}

func (c *consumer) take(t *rapid.T, complete bool) {
	known := len(c.world)
	if len(c.feed.pending) > known+c.feed.table.Len("A")+c.feed.table.Len("B")+c.feed.table.Len("C") {
		t.Fatalf("%d slots for %d known keys", len(c.feed.pending), known)
	}
	b, ok, err := c.feed.take()
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return
	}
	if b.Complete != complete {
		t.Fatalf("complete %v, want %v", b.Complete, complete)
	}
	seen := make(map[Key]bool)
	for _, ch := range b.Choices {
		if seen[ch.Key] {
			t.Fatalf("%v twice in a batch", ch.Key)
		}
		seen[ch.Key] = true
		if _, known := c.world[ch.Key]; ch.Best == nil && (b.Full || !known) {
			t.Fatalf("%v is removed but was never told", ch.Key)
		}
	}
	apply(c.world, b)
}

// Whatever is done to a table, it answers as the model does, and consumers that read rarely, often or start late end up
// with the same world.
func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab, m := NewTable(), newModel()
		var consumers []*consumer
		expected, ended, complete := map[Source]bool(nil), make(map[Source]bool), false
		settle := func() {
			if expected == nil {
				return
			}
			for s := range expected {
				if !ended[s] {
					return
				}
			}
			complete = true
		}
		subscribe := func() {
			consumers = append(consumers, &consumer{tab.Subscribe(), make(map[Key]Choice)})
		}
		subscribe()
		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				ps := rapid.SliceOfN(genPath(), 1, 6).Draw(t, "paths")
				tab.Update(ps...)
				for _, p := range ps {
					m.paths[p.Key] = p
				}
			},
			"withdraw": func(t *rapid.T) {
				var ks []PathKey
				for k := range m.paths {
					ks = append(ks, k)
				}
				slices.SortFunc(ks, func(a, b PathKey) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
				ks = append(ks, genPath().Draw(t, "unknown").Key)
				k := rapid.SampledFrom(ks).Draw(t, "key")
				tab.Withdraw(k)
				delete(m.paths, k)
			},
			"withdraw source": func(t *rapid.T) {
				s := genSource().Draw(t, "source")
				tab.WithdrawSource(s)
				for k := range m.paths {
					if k.Source == s {
						delete(m.paths, k)
					}
				}
			},
			"stale": func(t *rapid.T) {
				s := genSource().Draw(t, "source")
				tab.MarkStale(s)
				for k, p := range m.paths {
					if k.Source == s {
						p.Stale = true
						m.paths[k] = p
					}
				}
			},
			"end of rib": func(t *rapid.T) {
				s := genSource().Draw(t, "source")
				tab.EndOfRIB(s)
				for k, p := range m.paths {
					if k.Source == s && p.Stale {
						delete(m.paths, k)
					}
				}
				ended[s] = true
				settle()
			},
			"expect": func(t *rapid.T) {
				ss := rapid.SliceOfN(genSource(), 0, 4).Draw(t, "sources")
				tab.Expect(ss)
				expected = make(map[Source]bool)
				for _, s := range ss {
					expected[s] = true
				}
				settle()
			},
			"release": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
					tab.Release()
					complete = true
				}
			},
			"vrfs": func(t *rapid.T) {
				vs := genVRFs().Draw(t, "vrfs")
				tab.SetVRFs(vs)
				clear(m.vrfs)
				clear(m.multipath)
				clear(m.networks)
				for _, v := range vs {
					m.vrfs[v.Name], m.multipath[v.Name] = v.Import, v.Multipath
					if v.Resolve {
						m.networks[v.Name] = append([]Network{}, v.Networks...)
					}
				}
			},
			"next hop": func(t *rapid.T) {
				nh := genHop().Draw(t, "hop")
				r := Reach(rapid.ByteRange(0, 1).Draw(t, "reach"))
				tab.SetNextHop(nh, r)
				m.reach[nh] = r
			},
			"source": func(t *rapid.T) {
				s := genSource().Draw(t, "source")
				r := Reach(rapid.ByteRange(0, 1).Draw(t, "reach"))
				tab.SetSource(s, r)
				m.dead[s] = r != Reachable
			},
			"subscribe": func(t *rapid.T) {
				if len(consumers) < 4 {
					subscribe()
				}
			},
			"take": func(t *rapid.T) {
				rapid.SampledFrom(consumers).Draw(t, "consumer").take(t, complete)
			},
			"resync": func(t *rapid.T) {
				rapid.SampledFrom(consumers).Draw(t, "consumer").feed.Resync()
			},
			"": func(t *rapid.T) { checkTable(t, tab, m) },
		})
		for i, c := range consumers {
			c.take(t, complete)
			quietWorld(t, tab, m, c, fmt.Sprintf("consumer %d", i))
		}
	})
}

// quietWorld checks that a consumer has nothing more to take and knows what the model says.
func quietWorld(t *rapid.T, tab *Table, m *model, c *consumer, who string) {
	if b, ok, _ := c.feed.take(); ok {
		t.Fatalf("%s: still something to tell: %s", who, show(b))
	}
	n := 0
	for _, k := range m.keys() {
		want := m.choice(k)
		if want.Best == nil {
			continue
		}
		n++
		if !sameChoice(c.world[k], want) {
			t.Fatalf("%s: %v\n got %+v\nwant %+v", who, k, c.world[k], want)
		}
		if now, _ := tab.Best(k); now.Reason != c.world[k].Reason {
			t.Fatalf("%s: %v: reason %q, table says %q", who, k, c.world[k].Reason, now.Reason)
		}
	}
	if n != len(c.world) {
		t.Fatalf("%s: knows %d keys, want %d", who, len(c.world), n)
	}
}

// Operations about different things (a path, a next hop, the VRFs) may come in any order relative to each other, and be
// read in any rhythm: the end state is the same.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// One queue of operations per thing; in order within.
		queues := make(map[any][]func(*Table))
		var order []any
		add := func(thing any, op func(*Table)) {
			queues[thing] = append(queues[thing], op)
			order = append(order, thing)
		}
		for range rapid.IntRange(1, 60).Draw(t, "operations") {
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				vs := genVRFs().Draw(t, "vrfs")
				add("vrfs", func(tab *Table) { tab.SetVRFs(vs) })
			case 1, 2:
				nh, r := genHop().Draw(t, "hop"), Reach(rapid.ByteRange(0, 1).Draw(t, "reach"))
				add(nh, func(tab *Table) { tab.SetNextHop(nh, r) })
			case 4:
				s, r := genSource().Draw(t, "source"), Reach(rapid.ByteRange(0, 1).Draw(t, "reach"))
				add(s, func(tab *Table) { tab.SetSource(s, r) })
			case 3:
				k := genPath().Draw(t, "key").Key
				add(k, func(tab *Table) { tab.Withdraw(k) })
			default:
				p := genPath().Draw(t, "path")
				add(p.Key, func(tab *Table) { tab.Update(p) })
			}
		}
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		run := func() map[Key]Choice {
			tab := NewTable()
			c := &consumer{tab.Subscribe(), make(map[Key]Choice)}
			at := make(map[any]int)
			for _, thing := range order {
				queues[thing][at[thing]](tab)
				at[thing]++
				if rnd.IntN(4) == 0 {
					c.take(t, false)
				}
			}
			c.take(t, false)
			return c.world
		}
		first := run()
		rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		second := run()
		if len(first) != len(second) {
			t.Fatalf("%d keys, then %d", len(first), len(second))
		}
		for k, c := range first {
			if !sameChoice(c, second[k]) || c.Reason != second[k].Reason {
				t.Fatalf("%v:\nfirst %+v\n then %+v", k, c, second[k])
			}
		}
	})
}
