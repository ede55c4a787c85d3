package config

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func peerAdd(vrf, address string, asn uint32) Mutation {
	return Mutation{Action: PeerAdd, VRF: vrf, Peer: &Peer{Address: netip.MustParseAddr(address), ASN: asn}}
}

func prefixAdd(vrf, prefix string) Mutation {
	return Mutation{Action: PrefixAdd, VRF: vrf, Prefix: &Prefix{Prefix: netip.MustParsePrefix(prefix)}}
}

func prefixDel(vrf, prefix string) Mutation {
	return Mutation{Action: PrefixDel, VRF: vrf, Prefix: &Prefix{Prefix: netip.MustParsePrefix(prefix)}}
}

func peerDo(action, vrf, name string) Mutation { return Mutation{Action: action, VRF: vrf, Name: name} }

func TestApply(t *testing.T) {
	base := mustParse(t, example(t))
	before, _ := base.YAML()
	cases := []struct {
		name, gateway string
		ms            []Mutation
		check         func(g *Gateway) bool
	}{
		{"peer add", "gz-1-gw", []Mutation{peerAdd("CORE", "172.20.0.2", 65021)}, func(g *Gateway) bool {
			p := g.VRFs[0].Peers[2]
			return p.Name == "172.20.0.2" && p.ASN == 65021 && p.MaxPrefix == 10000 && p.LocalASN == 65003
		}},
		{"peer add attaches a VRF", "gz-1-gw", []Mutation{peerAdd("OPS", "172.20.0.2", 65021)}, func(g *Gateway) bool {
			return g.VRFs[1].VRF == "OPS" && len(g.VRFs[1].Peers) == 1
		}},
		{"peer del", "gz-1-gw", []Mutation{peerDo(PeerDel, "CORE", "core-router"), peerDo(PeerDel, "CORE", "fd00:20::1")}, func(g *Gateway) bool {
			return g.VRFs[0].Peers == nil
		}},
		{"peer disable", "gz-1-gw", []Mutation{peerDo(PeerDisable, "CORE", "fd00:20::1")}, func(g *Gateway) bool { return g.VRFs[0].Peers[1].Disabled }},
		{"peer enable", "gz-1-gw", []Mutation{peerDo(PeerDisable, "CORE", "core-router"), peerDo(PeerEnable, "CORE", "core-router")},
			func(g *Gateway) bool { return !g.VRFs[0].Peers[0].Disabled }},
		{"prefix add", "sz-1-gw", []Mutation{prefixAdd("CORE", "172.19.0.0/16")}, func(g *Gateway) bool { return len(g.VRFs[0].Prefixes) == 2 }},
		{"prefix del", "sz-1-gw", []Mutation{prefixDel("CORE", "172.18.0.0/16")}, func(g *Gateway) bool { return g.VRFs[0].Prefixes == nil }},
		{"drain", "sz-1-gw", []Mutation{{Action: SiteDrain}}, func(g *Gateway) bool { return g.Drained }},
		{"undrain", "sz-1-gw", []Mutation{{Action: SiteDrain}, {Action: SiteUndrain}}, func(g *Gateway) bool { return !g.Drained }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := base
			for _, m := range c.ms {
				var err error
				if d, err = Apply(d, c.gateway, m); err != nil {
					t.Fatal(err)
				}
			}
			if _, g, _ := d.Find(c.gateway); !c.check(g) {
				t.Errorf("gateway is %+v", g)
			}
			text, _ := d.YAML()
			if again := mustParse(t, string(text)); !reflect.DeepEqual(again, d) {
				t.Error("the result does not survive its canonical form")
			}
		})
	}
	if after, _ := base.YAML(); string(after) != string(before) {
		t.Error("Apply changed its argument")
	}
}

func TestApplyRefuses(t *testing.T) {
	base := mustParse(t, example(t))
	same := Mutation{Action: PeerAdd, VRF: "CORE", Peer: &base.Sites[2].Gateways[0].VRFs[0].Peers[0]}
	cases := []struct {
		name, gateway string
		m             Mutation
		is            error
		want          string
	}{
		{"no action", "sz-1-gw", Mutation{}, nil, `unknown action ""`},
		{"no VRF", "sz-1-gw", peerAdd("", "192.0.2.1", 1), nil, "peer add: needs a VRF"},
		{"no peer", "sz-1-gw", Mutation{Action: PeerAdd, VRF: "CORE"}, nil, "needs a peer"},
		{"no name", "sz-1-gw", Mutation{Action: PeerDel, VRF: "CORE"}, nil, "needs the name of a peer"},
		{"no prefix", "sz-1-gw", Mutation{Action: PrefixDel, VRF: "CORE"}, nil, "needs a prefix"},
		{"unknown gateway", "nowhere", Mutation{Action: SiteDrain}, os.ErrNotExist, `gateway "nowhere" is not in the document`},
		{"unknown VRF", "sz-1-gw", prefixAdd("X", "10.0.0.0/8"), os.ErrNotExist, `VRF "X" is not in the document`},
		{"peer there", "gz-1-gw", same, os.ErrExist, "peer add core-router in CORE (AS 65020): file already exists; nothing to change"},
		{"other peer there", "gz-1-gw", Mutation{Action: PeerAdd, VRF: "CORE", Peer: &Peer{Name: "core-router", Address: netip.MustParseAddr("172.20.0.5"), ASN: 1}},
			os.ErrExist, "exists with other settings"},
		{"prefix there", "sz-1-gw", prefixAdd("OPS", "172.18.0.0/16"), os.ErrExist, "prefix add 172.18.0.0/16 in OPS: file already exists"},
		{"other prefix there", "sz-1-gw", prefixAdd("CORE", "172.18.0.0/16"), os.ErrExist, "exists with other settings"},
		{"no such peer", "gz-1-gw", peerDo(PeerDel, "CORE", "x"), os.ErrNotExist, "peer del x in CORE"},
		{"no such peer in a VRF not attached", "gz-1-gw", peerDo(PeerDel, "OPS", "x"), os.ErrNotExist, "peer del x in OPS"},
		{"no such peer to enable", "gz-1-gw", peerDo(PeerEnable, "OPS", "x"), os.ErrNotExist, "peer enable x in OPS"},
		{"no such prefix", "gz-1-gw", prefixDel("CORE", "10.0.0.0/8"), os.ErrNotExist, "prefix del 10.0.0.0/8 in CORE"},
		{"not valid", "sz-1-gw", prefixAdd("CORE", "172.31.7.0/24"), nil, `overlaps 172.18.0.0/16 of site`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, err := Apply(base, c.gateway, c.m)
			if err == nil || d != nil {
				t.Fatal("was accepted")
			}
			if c.name == "not valid" {
				var ps Problems
				if !errors.As(err, &ps) || !strings.Contains(err.Error(), "172.31.7.0/24 of site \"sz-1\"") {
					t.Errorf("error is %v", err)
				}
				return
			}
			if !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error is %v, not %s", err, c.want)
			}
		})
	}
}

// A list of mutations and its squashed form do the same to the file, however they are mixed.
func TestSquash(t *testing.T) {
	base := mustParse(t, example(t))
	pool := []Mutation{
		peerAdd("CORE", "172.20.0.2", 65021), peerDo(PeerDel, "CORE", "172.20.0.2"), peerDo(PeerDisable, "CORE", "172.20.0.2"),
		peerDo(PeerDel, "CORE", "fd00:20::1"), peerAdd("CORE", "fd00:20::1", 65030), peerDo(PeerDisable, "CORE", "fd00:20::1"), peerDo(PeerEnable, "CORE", "fd00:20::1"),
		prefixAdd("CORE", "10.9.0.0/16"), prefixDel("CORE", "10.9.0.0/16"), prefixDel("CORE", "172.20.0.0/16"), prefixAdd("CORE", "172.20.0.0/16"),
		{Action: SiteDrain}, {Action: SiteUndrain},
	}
	for seed := range 200 {
		d := base
		var list []Mutation
		for i := range 60 {
			m := pool[(seed*31+i*i*7+i*seed)%len(pool)]
			next, err := Apply(d, "gz-1-gw", m)
			if err != nil {
				continue
			}
			d, list = next, append(list, m)
		}
		short := squash(list)
		if len(short) > 9 {
			t.Fatalf("seed %d: %d mutations are left of %d: %v", seed, len(short), len(list), short)
		}
		got, _, conflicts := replay(base, "gz-1-gw", short)
		if conflicts != nil {
			t.Fatalf("seed %d: %v\n%v", seed, conflicts, short)
		}
		// The order of entries is no difference.
		if !reflect.DeepEqual(sortedDoc(got), sortedDoc(d)) {
			diff, _ := DiffDocuments("one by one", d, "squashed", got)
			t.Fatalf("seed %d: %v\n%s", seed, list, diff)
		}
	}
}

func sortedDoc(d *Document) *Document {
	d = d.Clone()
	_, g, _ := d.Find("gz-1-gw")
	for i := range g.VRFs {
		slices.SortFunc(g.VRFs[i].Prefixes, func(a, b Prefix) int { return strings.Compare(a.Prefix.String(), b.Prefix.String()) })
		slices.SortFunc(g.VRFs[i].Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	}
	return d
}

// The file may come to say what a mutation said, or to contradict it.
func TestReplay(t *testing.T) {
	list := []Mutation{prefixAdd("CORE", "10.9.0.0/16"), peerDo(PeerDisable, "CORE", "core-router"), prefixDel("OPS", "10.0.0.0/8")}
	base := mustParse(t, replace(t, example(t), "              - prefix: 172.20.0.0/16", "              - prefix: 172.20.0.0/16\n              - prefix: 10.9.0.0/16"))
	d, kept, conflicts := replay(base, "gz-1-gw", list)
	if len(conflicts) > 0 || len(kept) != 1 || kept[0].Action != PeerDisable {
		t.Errorf("kept %v, conflicts %v", kept, conflicts)
	}
	if _, g, _ := d.Find("gz-1-gw"); !g.VRFs[0].Peers[0].Disabled {
		t.Error("the peer is not disabled")
	}
	base = mustParse(t, replace(t, replace(t, example(t), "name: core-router", "name: core-one"), "prefix: 172.31.0.0/16", "prefix: 10.9.4.0/24"))
	_, kept, conflicts = replay(base, "gz-1-gw", list)
	if len(kept) != 0 || len(conflicts) != 2 {
		t.Fatalf("kept %v, conflicts %v", kept, conflicts)
	}
	for i, want := range []string{"prefix add 10.9.0.0/16 in CORE: sites[", "peer disable core-router in CORE: file does not exist"} {
		if !strings.HasPrefix(conflicts[i], want) {
			t.Errorf("conflict %q is not %q", conflicts[i], want)
		}
	}
}
