package policy

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// received is a path of a peer as it might come in.
func received(prefix string) rib.Path {
	return rib.Path{
		Key: rib.PathKey{
			Source: rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "frr", Addr: netip.MustParseAddr("192.0.2.1")},
			Prefix: netip.MustParsePrefix(prefix),
		},
		Attrs: rib.Attrs{
			NextHop:          netip.MustParseAddr("192.0.2.1"),
			LocalPref:        100,
			ASPath:           []rib.ASSegment{{ASNs: []uint32{65001, 65002}}},
			Communities:      []rib.Community{65001<<16 | 1, 65001<<16 | 5},
			LargeCommunities: []rib.LargeCommunity{{65001, 1, 1}},
		},
		Interface: "eth1",
	}
}

// compile is Compile of a policy that must be right.
func compile(t testing.TB, p config.Policy) Policy {
	t.Helper()
	c, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMatch(t *testing.T) {
	path := received("10.1.0.0/16")
	set := received("10.1.0.0/16")
	set.Attrs.ASPath = append(set.Attrs.ASPath, rib.ASSegment{Set: true, ASNs: []uint32{65003, 65004}})
	static := rib.Path{Key: rib.PathKey{Source: rib.Source{Kind: rib.Static}, Prefix: netip.MustParsePrefix("10.1.0.0/16")}}
	gateway := rib.Path{Key: rib.PathKey{Source: rib.Source{Kind: rib.Fabric, Name: "hk-1"}, Prefix: netip.MustParsePrefix("2001:db8::/48")}}
	tests := []struct {
		name  string
		match config.Match
		path  rib.Path
		want  bool
	}{
		{"empty", config.Match{}, path, true},
		{"empty, zero path", config.Match{}, rib.Path{}, true},
		{"prefix", config.Match{Prefixes: []string{"192.0.2.0/24", "10.0.0.0/8 le 16"}}, path, true},
		{"other prefix", config.Match{Prefixes: []string{"10.0.0.0/8"}}, path, false},
		{"prefix of the other family", config.Match{Prefixes: []string{"0.0.0.0/0 le 32"}}, gateway, false},
		{"prefix, zero path", config.Match{Prefixes: []string{"::/0 le 128", "0.0.0.0/0 le 32"}}, rib.Path{}, false},
		{"community", config.Match{Communities: []string{"65001:9", "65001:5"}}, path, true},
		{"other community", config.Match{Communities: []string{"65001:9"}}, path, false},
		{"AS in path", config.Match{ASPath: []uint32{1, 65001}}, path, true},
		{"AS in a set", config.Match{ASPath: []uint32{65004}}, set, true},
		{"AS not in path", config.Match{ASPath: []uint32{65003}}, path, false},
		{"origin AS", config.Match{OriginAS: []uint32{65002}}, path, true},
		{"transit AS", config.Match{OriginAS: []uint32{65001}}, path, false},
		{"a set has no origin", config.Match{OriginAS: []uint32{65002, 65003, 65004}}, set, false},
		{"no path, no origin", config.Match{OriginAS: []uint32{65002}}, static, false},
		{"source", config.Match{Source: []string{"static", "peer"}}, path, true},
		{"other source", config.Match{Source: []string{"connected", "fabric"}}, path, false},
		{"peer", config.Match{Peers: []string{"frr", "bird"}}, path, true},
		{"other peer", config.Match{Peers: []string{"bird"}}, path, false},
		{"gateway", config.Match{Source: []string{"fabric"}, Peers: []string{"hk-1"}}, gateway, true},
		{"all must hold", config.Match{Source: []string{"peer"}, Peers: []string{"frr"}, ASPath: []uint32{65003}}, path, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, config.Policy{Name: "P", Terms: []config.Term{{Name: "t", Match: tt.match, Then: "accept"}}})
			_, v, term := p.Eval(tt.path)
			wantV, wantT := Reject, Term{"P", "default"}
			if tt.want {
				wantV, wantT = Accept, Term{"P", "t"}
			}
			if v != wantV || term != wantT {
				t.Errorf("%v by %v, want %v by %v", v, term, wantV, wantT)
			}
		})
	}
}

func TestTermsInOrder(t *testing.T) {
	p := compile(t, config.Policy{Name: "P", Default: "accept", Terms: []config.Term{
		{Name: "mark", Match: config.Match{Prefixes: []string{"10.0.0.0/8 le 32"}}, Then: "next",
			Set: &config.Set{AddCommunities: []string{"65000:7"}, LocalPref: new(uint32(50))}},
		{Name: "drop", Match: config.Match{Prefixes: []string{"10.9.0.0/16"}}, Then: "reject"},
		{Name: "marked", Match: config.Match{Communities: []string{"65000:7"}}, Then: "accept", Set: &config.Set{MED: new(uint32(3))}},
		{Name: "never", Match: config.Match{Communities: []string{"65000:7"}}, Then: "reject"},
	}})
	for _, tt := range []struct {
		prefix string
		want   Verdict
		term   string
		pref   uint32
	}{
		{"10.1.0.0/16", Accept, "P/marked", 50}, // sees what the first term wrote
		{"10.9.0.0/16", Reject, "P/drop", 50},
		{"192.0.2.0/24", Accept, "P/default", 100},
	} {
		out, v, term := p.Eval(received(tt.prefix))
		if v != tt.want || term.String() != tt.term || out.Attrs.LocalPref != tt.pref || out.Attrs.HasMED != (tt.term == "P/marked") {
			t.Errorf("%s: %v by %v with %+v", tt.prefix, v, term, out.Attrs)
		}
	}
}

func TestSet(t *testing.T) {
	v6 := received("2001:db8::/32")
	empty := received("10.0.0.0/8")
	empty.Attrs.ASPath = nil
	tests := []struct {
		name string
		set  config.Set
		asn  uint32
		in   rib.Path
		want func(*rib.Path)
	}{
		{"nothing", config.Set{}, 0, received("10.0.0.0/8"), func(*rib.Path) {}},
		{"next hop", config.Set{NextHop: netip.MustParseAddr("192.0.2.77")}, 0, received("10.0.0.0/8"), func(p *rib.Path) {
			p.Attrs.NextHop, p.Interface = netip.MustParseAddr("192.0.2.77"), ""
		}},
		{"next hop of the other family", config.Set{NextHop: netip.MustParseAddr("192.0.2.77")}, 0, v6, func(*rib.Path) {}},
		{"preference and MED, zero too", config.Set{LocalPref: new(uint32(0)), MED: new(uint32(0))}, 0, received("10.0.0.0/8"), func(p *rib.Path) {
			p.Attrs.LocalPref, p.Attrs.MED, p.Attrs.HasMED = 0, 0, true
		}},
		{"prepend the neighbour", config.Set{Prepend: 2}, 0, received("10.0.0.0/8"), func(p *rib.Path) {
			p.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{65001, 65001, 65001, 65002}}}
		}},
		{"prepend ours", config.Set{Prepend: 2}, 64512, received("10.0.0.0/8"), func(p *rib.Path) {
			p.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{64512, 64512, 65001, 65002}}}
		}},
		{"prepend nobody", config.Set{Prepend: 2}, 0, empty, func(*rib.Path) {}},
		{"prepend ours to nothing", config.Set{Prepend: 1}, 64512, empty, func(p *rib.Path) {
			p.Attrs.ASPath = []rib.ASSegment{{ASNs: []uint32{64512}}}
		}},
		{"communities sorted, once", config.Set{AddCommunities: []string{"65001:5", "65001:3", "1:1"}, RemoveCommunities: []string{"65001:1", "9:9"}}, 0,
			received("10.0.0.0/8"), func(p *rib.Path) {
				p.Attrs.Communities = []rib.Community{1<<16 | 1, 65001<<16 | 3, 65001<<16 | 5}
			}},
		{"removed and added is there", config.Set{AddCommunities: []string{"65001:5"}, RemoveCommunities: []string{"65001:5"}}, 0,
			received("10.0.0.0/8"), func(*rib.Path) {}},
		{"no communities left", config.Set{RemoveCommunities: []string{"65001:1", "65001:5"}}, 0,
			received("10.0.0.0/8"), func(p *rib.Path) { p.Attrs.Communities = []rib.Community{} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, config.Policy{Name: "P", Terms: []config.Term{{Name: "t", Then: "accept", Set: &tt.set}}}).WithASN(tt.asn)
			in, before := tt.in, deepCopy(tt.in)
			got, v, _ := p.Eval(in)
			want := deepCopy(tt.in)
			tt.want(&want)
			if v != Accept || !reflect.DeepEqual(got, want) {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
			if !reflect.DeepEqual(in, before) {
				t.Errorf("the path given was written to:\n now %+v\n was %+v", in, before)
			}
		})
	}
}

// deepCopy shares no slice with p.
func deepCopy(p rib.Path) rib.Path {
	p.Attrs.Communities = slices.Clone(p.Attrs.Communities)
	p.Attrs.ASPath = slices.Clone(p.Attrs.ASPath)
	for i, s := range p.Attrs.ASPath {
		p.Attrs.ASPath[i].ASNs = slices.Clone(s.ASNs)
	}
	return p
}

// Room behind the slices of a shared path must not be used either: two policies on one path would write over each other.
func TestSpareCapacityIsNotWritten(t *testing.T) {
	in := received("10.0.0.0/8")
	in.Attrs.Communities = append(make([]rib.Community, 0, 9), in.Attrs.Communities...)
	in.Attrs.ASPath = append(make([]rib.ASSegment, 0, 9), in.Attrs.ASPath...)
	p := compile(t, config.Policy{Name: "P", Terms: []config.Term{{Name: "t", Then: "accept", Set: &config.Set{AddCommunities: []string{"65535:1"}, Prepend: 1}}}})
	p.WithASN(1).Eval(in)
	if in.Attrs.Communities[:3][2] != 0 || in.Attrs.ASPath[:2][1].ASNs != nil {
		t.Error("spare capacity was written to")
	}
}

func TestCompileErrors(t *testing.T) {
	term := func(m config.Match, s *config.Set) []config.Term {
		return []config.Term{{Name: "t", Match: m, Then: "accept", Set: s}}
	}
	prefix := func(s string) []config.Term { return term(config.Match{Prefixes: []string{s}}, nil) }
	tests := []struct {
		name  string
		terms []config.Term
		want  string
	}{
		{"no prefix", prefix(" "), `policy "P": term 1 (t): match: prefix is empty; write it as`},
		{"not a prefix", prefix("10.0.0.0"), `prefix "10.0.0.0": "10.0.0.0" is not a prefix; write ADDRESS/LENGTH`},
		{"host bits", prefix("10.0.0.1/8 le 32"), `has host bits; write 10.0.0.0/8`},
		{"unknown word", prefix("10.0.0.0/8 lt 9"), `unknown word "lt"; only ge N and le N may follow`},
		{"twice", prefix("10.0.0.0/8 le 9 le 10"), `le is given twice; keep one`},
		{"no length", prefix("10.0.0.0/8 ge"), `ge lacks its length; write ge N`},
		{"le too short", prefix("10.0.0.0/8 le 7"), `le 7 is not a length from 8 to 32`},
		{"ge too long", prefix("10.0.0.0/8 ge 33"), `ge 33 is not a length from 8 to 32`},
		{"not a number", prefix("::/0 ge x"), `ge x is not a length from 0 to 128`},
		{"empty range", prefix("::/0 ge 9 le 8"), `matches nothing: ge 9 is above le 8; swap them`},
		{"community", term(config.Match{Communities: []string{"65536:1"}}, nil), `match: community "65536:1": want ASN:N`},
		{"AS 0", term(config.Match{OriginAS: []uint32{0}}, nil), `0 is not an AS number (RFC 7607); remove it`},
		{"source", term(config.Match{Source: []string{"bgp"}}, nil), `source "bgp" is not known; write connected, static, peer or fabric`},
		{"peer", term(config.Match{Peers: []string{""}}, nil), `a peer has no name`},
		{"next hop", term(config.Match{}, &config.Set{NextHop: netip.MustParseAddr("0.0.0.0")}), `next-hop 0.0.0.0 is no address of a router`},
		{"prepend", term(config.Match{}, &config.Set{Prepend: 17}), `prepend 17 is not a number from 0 to 16`},
		{"add", term(config.Match{}, &config.Set{AddCommunities: []string{"x"}}), `set: add-communities: community "x"`},
		{"remove", term(config.Match{}, &config.Set{RemoveCommunities: []string{"1:x"}}), `set: remove-communities: community "1:x"`},
		{"no then", []config.Term{{Name: "t"}}, `term 1 (t): then is missing; write accept, reject or next`},
		{"then", []config.Term{{Name: "t", Then: "permit"}}, `then "permit" is not known; write accept, reject or next`},
		{"set and reject", []config.Term{{Name: "t", Then: "reject", Set: &config.Set{}}}, `set does nothing in a term that rejects`},
		{"no name", []config.Term{{Then: "accept"}}, `term 1 (): name is missing`},
		{"name twice", []config.Term{{Name: "t", Then: "accept"}, {Name: "u", Then: "accept"}, {Name: "t", Then: "accept"}}, `term 3 (t): name is that of term 1; choose another`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile(config.Policy{Name: "P", Terms: tt.terms})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant one line with %s", err, tt.want)
			}
		})
	}
	_, err := Compile(config.Policy{Default: "maybe", Terms: []config.Term{
		{Match: config.Match{Prefixes: []string{"a", "b"}, Communities: []string{"c", "d"}}},
		{Name: "t", Then: "no", Set: &config.Set{Prepend: -1, AddCommunities: []string{"e", "f"}}},
	}})
	if err == nil || strings.Count(err.Error(), "\n") != 11 {
		t.Errorf("want all 12 errors at once, a line each; got\n%v", err)
	}
}

func TestChain(t *testing.T) {
	pref := func(name string, n uint32, then string) Policy {
		return compile(t, config.Policy{Name: name, Default: then, Terms: []config.Term{{Name: "t", Then: "next", Set: &config.Set{LocalPref: &n}}}})
	}
	in := received("10.0.0.0/8")
	if out, v, term := (Policy{}).Eval(in); v != Accept || term.String() != "" || !reflect.DeepEqual(out, in) {
		t.Errorf("the zero policy: %v by %v", v, term)
	}
	if _, v, term := Chain(Guard(false), OwnAS(1, 0)).Eval(in); v != Accept || term.String() != "own-as/default" {
		t.Errorf("guards: %v by %v", v, term)
	}
	c := Chain(Guard(false), Policy{}, pref("P", 7, "accept"), pref("Q", 8, "accept").WithASN(5))
	if out, v, term := c.Eval(in); v != Accept || term.String() != "Q/default" || out.Attrs.LocalPref != 8 {
		t.Errorf("chain: %v by %v with preference %d", v, term, out.Attrs.LocalPref)
	}
	if c.asn != 5 || c.String() != "guard, P, Q" || Chain(OwnAS(1, 0)).String() != "own-as" {
		t.Errorf("chain is %q with AS %d", c, c.asn)
	}
	if out, v, term := Chain(pref("P", 7, "reject"), pref("Q", 8, "accept")).Eval(in); v != Reject || term.String() != "P/default" || out.Attrs.LocalPref != 7 {
		t.Errorf("rejected early: %v by %v with preference %d", v, term, out.Attrs.LocalPref)
	}
	if Accept.String() != "accept" || Reject.String() != "reject" || Verdict(0) != Reject {
		t.Error("verdicts")
	}
}

func TestEqual(t *testing.T) {
	doc := func(then string) config.Policy {
		return config.Policy{Name: "P", Terms: []config.Term{{Name: "t", Then: then, Set: &config.Set{LocalPref: new(uint32(9))}}}}
	}
	// Compiled twice, so that no pointers are shared.
	all := []func() Policy{
		func() Policy { return Policy{} },
		func() Policy { return compile(t, doc("accept")) },
		func() Policy { return compile(t, doc("next")) },
		func() Policy { return compile(t, doc("accept")).WithASN(3) },
		func() Policy { return Guard(true) },
		func() Policy { return Guard(false) },
		func() Policy { return OwnAS(1, 0) },
		func() Policy { return OwnAS(1, 1) },
		func() Policy { return OwnAS(2, 0) },
		func() Policy { return Chain(Guard(true), compile(t, doc("accept"))) },
	}
	for i, p := range all {
		for j, q := range all {
			if p().Equal(q()) != (i == j) {
				t.Errorf("%d equal to %d: %v", i, j, i != j)
			}
		}
	}
}
