package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// star is three hubs and three spokes; h3 is linked with s3 only by a pair.
func star(l Links) *Document {
	d := &Document{Links: l}
	for _, name := range []string{"s3", "h2", "s1", "h1", "s2", "h3"} {
		d.Sites = append(d.Sites, Site{Name: "at-" + name, Gateways: []Gateway{{Name: name}}})
	}
	return d
}

// transits prints what a gateway reaches over which hubs.
func transits(d *Document, gateway string) string {
	var out []string
	for _, t := range d.Transits(gateway) {
		var hubs []string
		for i, h := range t.Hubs {
			hubs = append(hubs, fmt.Sprintf("%s:%d+%d", h.Remote.Name, len(h.Tunnels), len(t.Onward[i])))
		}
		out = append(out, t.Remote.Name+" over "+strings.Join(hubs, ","))
	}
	return strings.Join(out, "; ")
}

func TestTransits(t *testing.T) {
	one := []Tunnel{{Kind: "wireguard"}}
	two := []Tunnel{{Kind: "wireguard"}, {Kind: "wireguard"}}
	community := func(name string, gateways ...string) Community {
		c := Community{Name: name}
		for _, g := range gateways {
			c.Sites = append(c.Sites, "at-"+g)
		}
		return c
	}
	tests := []struct {
		name    string
		links   Links
		gateway string
		linked  []string
		want    string
	}{
		{"full mesh", Links{Mesh: "full", Hubs: []string{"h1"}, Tunnels: one}, "s1", []string{"h1", "h2", "h3", "s2", "s3"}, ""},
		{"around one hub", Links{Mesh: "hub", Hubs: []string{"h1"}, Tunnels: one}, "s1", []string{"h1"}, "h2 over h1:1+1; h3 over h1:1+1; s2 over h1:1+1; s3 over h1:1+1"},
		{"at the hub", Links{Mesh: "hub", Hubs: []string{"h1"}, Tunnels: one}, "h1", []string{"h2", "h3", "s1", "s2", "s3"}, ""},
		{"in the order of hubs", Links{Mesh: "hub", Hubs: []string{"h3", "h1", "h2"}, Tunnels: one}, "s1", []string{"h1", "h2", "h3"}, "s2 over h3:1+1,h1:1+1,h2:1+1; s3 over h3:1+1,h1:1+1,h2:1+1"},
		{"a pair beside them", Links{Mesh: "hub", Hubs: []string{"h1"}, Tunnels: one, Pairs: []LinkPair{{Between: []string{"s1", "s2"}, Tunnels: two}}}, "s1", []string{"h1", "s2"}, "h2 over h1:1+1; h3 over h1:1+1; s3 over h1:1+1"},
		{"one spoke lacks a hub", Links{Mesh: "hub", Hubs: []string{"h1", "h2"}, Tunnels: one, Pairs: []LinkPair{{Between: []string{"h1", "s2"}, Tunnels: nil}}}, "s1", []string{"h1", "h2"}, "h3 over h1:1+1,h2:1+1; s2 over h2:1+1; s3 over h1:1+1,h2:1+1"},
		{"unlinked with a hub is over the other", Links{Mesh: "hub", Hubs: []string{"h1", "h2"}, Tunnels: one, Pairs: []LinkPair{{Between: []string{"h1", "s2"}, Tunnels: nil}}}, "s2", []string{"h2"}, "h1 over h2:1+1; h3 over h2:1+1; s1 over h2:1+1; s3 over h2:1+1"},
		{"tunnels of each part", Links{Mesh: "hub", Hubs: []string{"h1"}, Tunnels: one, Pairs: []LinkPair{{Between: []string{"h1", "s2"}, Tunnels: two}}}, "s1", []string{"h1"}, "h2 over h1:1+1; h3 over h1:1+1; s2 over h1:1+2; s3 over h1:1+1"},
		{"communities that meet in a hub", Links{Mesh: "communities", Hubs: []string{"h1"}, Tunnels: one, Communities: []Community{community("a", "s1", "h1", "h2"), community("b", "s2", "h1", "h3")}}, "s1", []string{"h1", "h2"}, "h3 over h1:1+1; s2 over h1:1+1"},
		{"communities that meet in no hub", Links{Mesh: "communities", Hubs: []string{"h2"}, Tunnels: one, Communities: []Community{community("a", "s1", "h1", "h2"), community("b", "s2", "h1", "h3")}}, "s1", []string{"h1", "h2"}, ""},
		{"two hubs in a row are none", Links{Mesh: "communities", Hubs: []string{"h1", "h2"}, Tunnels: one, Communities: []Community{community("a", "s1", "h1"), community("b", "h1", "h2"), community("c", "h2", "s2")}}, "s1", []string{"h1"}, "h2 over h1:1+1"},
		{"nobody", Links{Mesh: "hub", Hubs: []string{"h1"}, Tunnels: one}, "x", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := star(tt.links)
			if got := names(d.Neighbours(tt.gateway)); !reflect.DeepEqual(got, tt.linked) {
				t.Errorf("%s is linked with %v, want %v", tt.gateway, got, tt.linked)
			}
			if got := transits(d, tt.gateway); got != tt.want {
				t.Errorf("%s reaches %q, want %q", tt.gateway, got, tt.want)
			}
			// Each sees the other over the same hubs.
			for _, tr := range d.Transits(tt.gateway) {
				var there, back []string
				for _, h := range tr.Hubs {
					there = append(there, h.Remote.Name)
				}
				for _, b := range d.Transits(tr.Remote.Name) {
					for _, h := range b.Hubs {
						if b.Remote.Name == tt.gateway {
							back = append(back, h.Remote.Name)
						}
					}
				}
				if !reflect.DeepEqual(there, back) {
					t.Errorf("%s reaches %s over %v, and is reached over %v", tt.gateway, tr.Remote.Name, there, back)
				}
			}
		})
	}
}

func TestHubProblems(t *testing.T) {
	const mesh = "  mesh: communities\n"
	tests := []struct {
		name, links, want string
	}{
		{"unknown", mesh + "  hubs: [hk-1-gw, nobody]\n", `links.hubs\[1\]: unknown gateway "nobody"; there are: `},
		{"a site", mesh + "  hubs: [hk-1]\n", `links.hubs\[0\]: unknown gateway "hk-1"`},
		{"twice", mesh + "  hubs: [hk-1-gw, sz-1-gw, hk-1-gw]\n", `links.hubs\[2\]: hub "hk-1-gw" is listed twice; keep one of them`},
		{"no hub", "  mesh: hub\n", `links.hubs: with mesh: hub and no hubs nobody would be linked`},
		{"communities around hubs", "  mesh: hub\n  hubs: [hk-1-gw]\n", `links.communities: communities mean nothing in a full mesh, nor around hubs`},
		{"unknown mesh", "  mesh: wheel\n", `links.mesh: .*wheel`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("fabric.yaml", []byte(replace(t, example(t), mesh, tt.links)))
			var ps Problems
			if !errors.As(err, &ps) || !regexp.MustCompile("(?m)"+tt.want).MatchString(err.Error()) {
				t.Fatalf("no %q in\n%v", tt.want, err)
			}
			for _, p := range ps {
				if p.Line == 0 || p.Column == 0 || p.Mend == "" {
					t.Errorf("problem lacks a place or a mend: %+v", p)
				}
			}
		})
	}
}

// Gateways without endpoints need none where they are linked with hubs alone.
func TestSpokesNeedNoEndpoints(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("fabric: {name: star}\nvrfs: [{name: CORE, table: 200, vni: 1000}]\nlinks: {LINKS}\nsites:\n")
	for i, name := range []string{"h1", "s1", "s2"} {
		endpoints := ""
		if i == 0 {
			endpoints = "endpoints: [{address: 198.51.100.1}], "
		}
		key := base64.StdEncoding.EncodeToString(append([]byte{byte(i + 1)}, make([]byte, 31)...))
		fmt.Fprintf(&doc, "  - {name: at-%s, gateways: [{name: %s, asn: %d, vtep: 10.255.0.%d, %swireguard: {public-key: %q}, vrfs: [{vrf: CORE}]}]}\n", name, name, 65001+i, i+1, endpoints, key)
	}
	if _, err := Parse("fabric.yaml", []byte(replace(t, doc.String(), "LINKS", "mesh: full, hubs: [h1]"))); err == nil || !strings.Contains(err.Error(), `neither "s1" nor "s2" has an endpoint`) {
		t.Errorf("full mesh: %v", err)
	}
	for _, links := range []string{"mesh: hub, hubs: [h1]", "hubs: [h1], pairs: [{between: [s1, s2], tunnels: []}]"} {
		d, err := Parse("fabric.yaml", []byte(replace(t, doc.String(), "LINKS", links)))
		if err != nil {
			t.Errorf("%s: %v", links, err)
		} else if got := transits(d, "s1"); got != "s2 over h1:1+1" {
			t.Errorf("%s: s1 reaches %q", links, got)
		}
	}
}
