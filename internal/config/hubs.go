package config

import (
	"cmp"
	"slices"
)

// meshHub is the Mesh in which only hubs are linked with everybody.
const meshHub = "hub"

// Transit is a gateway that is reached over hubs, as seen from another: the two are not linked.
type Transit struct {
	// Remote is the gateway, RemoteSite its site.
	Remote     *Gateway
	RemoteSite *Site
	// Hubs are our links with the hubs that lead there, in the order of Links.Hubs, at least one; Onward are the tunnels of each to
	// Remote, in rank order.
	Hubs   []Link
	Onward [][]Tunnel
}

// Transits returns the gateways that this one reaches over hubs, sorted by name. A hub is linked with both, so a packet crosses one hub at
// most: no hub has to send it on to another.
func (d *Document) Transits(gateway string) []Transit {
	if len(d.Links.Hubs) == 0 {
		return nil
	}
	links := d.linksByName(gateway)
	// Of each hub that we are linked with, in order of preference.
	onward := map[string]map[string]Link{}
	var hubs []string
	for _, h := range d.Links.Hubs {
		if _, linked := links[h]; linked && onward[h] == nil {
			onward[h] = d.linksByName(h)
			hubs = append(hubs, h)
		}
	}
	var out []Transit
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			if _, linked := links[g.Name]; linked || g.Name == gateway {
				continue
			}
			t := Transit{Remote: g, RemoteSite: &d.Sites[i]}
			for _, h := range hubs {
				if l, leads := onward[h][g.Name]; leads {
					t.Hubs, t.Onward = append(t.Hubs, links[h]), append(t.Onward, l.Tunnels)
				}
			}
			if len(t.Hubs) > 0 {
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b Transit) int { return cmp.Compare(a.Remote.Name, b.Remote.Name) })
	return out
}

// linksByName are the links of a gateway by the other one's name.
func (d *Document) linksByName(gateway string) map[string]Link {
	links := map[string]Link{}
	for _, l := range d.Neighbours(gateway) {
		links[l.Remote.Name] = l
	}
	return links
}

// usual are the tunnels of two gateways that no pair speaks of.
func (l *Links) usual(a, b string) []Tunnel {
	if l.Mesh == meshHub && !slices.Contains(l.Hubs, a) && !slices.Contains(l.Hubs, b) {
		return nil
	}
	return l.Tunnels
}

// hubs checks the hubs.
func (v *validator) hubs() {
	l := &v.doc.Links
	names := v.doc.gatewayNames()
	for i, h := range l.Hubs {
		path := index("links.hubs", i)
		switch {
		case !slices.Contains(names, h):
			v.add(path, "there are: "+listed(names), "unknown gateway %s", quoteShort(h))
		case slices.Contains(l.Hubs[:i], h):
			v.add(path, "keep one of them", "hub %q is listed twice", h)
		}
	}
	if l.Mesh == meshHub && len(l.Hubs) == 0 {
		v.add("links.hubs", "name the gateways that the others are linked with", "with mesh: hub and no hubs nobody would be linked")
	}
}
