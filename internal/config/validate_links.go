package config

import "fmt"

// links checks how the gateways are joined, and the ports this takes.
func (v *validator) links() {
	l := &v.doc.Links
	v.oneOf("links.mesh", l.Mesh, "full", "communities")
	if l.Mesh == "full" && len(l.Communities) > 0 {
		v.add("links.communities", "write mesh: communities, or remove them", "communities mean nothing in a full mesh")
	}
	for i, c := range l.Communities {
		v.linkCommunity(c, index("links.communities", i))
	}
	v.tunnels(l.Tunnels, "links.tunnels")
	seen := map[[2]string]bool{}
	sites := map[string]string{}
	joined := map[string]func(string) bool{}
	for _, s := range v.doc.Sites {
		joined[s.Name] = l.joined(s.Name)
		for _, g := range s.Gateways {
			sites[g.Name] = s.Name
		}
	}
	for i, p := range l.Pairs {
		v.linkPair(p, index("links.pairs", i), sites, joined, seen)
	}
	v.ports()
}

// linkCommunity checks one set of sites.
func (v *validator) linkCommunity(c Community, path string) {
	v.name(path+".name", c.Name, policyName, policyNameMend)
	v.unique(path+".name", "community name", c.Name)
	if len(c.Sites) == 0 {
		v.add(path+".sites", "name the sites that it joins", "community %q joins no site", c.Name)
	}
	seen := map[string]bool{}
	for i, s := range c.Sites {
		if _, ok := v.first[[2]string{"site name", s}]; !ok {
			v.add(index(path+".sites", i), "name a site of this document", "unknown site %s", quoteShort(s))
		} else if seen[s] {
			v.add(index(path+".sites", i), "keep one of them", "site %q is listed twice", s)
		}
		seen[s] = true
	}
}

// linkPair checks the tunnels of one link. Sites maps gateways to sites, joined sites to the sites they are joined with.
func (v *validator) linkPair(p LinkPair, path string, sites map[string]string, joined map[string]func(string) bool, seen map[[2]string]bool) {
	v.tunnels(p.Tunnels, path+".tunnels")
	between := path + ".between"
	if len(p.Between) != 2 || p.Between[0] == p.Between[1] {
		v.add(between, "write [one, other]", "a pair is between exactly two gateways")
		return
	}
	for i, name := range p.Between {
		if _, ok := sites[name]; !ok {
			v.add(index(between, i), "there are: "+listed(v.doc.gatewayNames()), "unknown gateway %s", quoteShort(name))
			return
		}
	}
	key := pairKey(p.Between[0], p.Between[1])
	if seen[key] {
		v.add(between, "keep one of them", "the pair of %q and %q is listed twice", key[0], key[1])
	}
	seen[key] = true
	if !joined[sites[key[0]]](sites[key[1]]) {
		v.add(between, "put their sites into one community", "%q and %q are not linked, so there is nothing to override", key[0], key[1])
	}
}

func (v *validator) tunnels(ts []Tunnel, path string) {
	for i, t := range ts {
		v.oneOf(index(path, i)+".kind", t.Kind, "wireguard")
		if t.UnderlayMTU != 0 {
			v.underlay(index(path, i)+".underlay-mtu", t.UnderlayMTU)
		}
	}
}

// portRange is what a gateway's links take of an endpoint.
type portRange struct {
	address, path, gateway string
	first, last            int
}

// ports checks that every link can be dialled from one side, and that the ports of a gateway's links are there and free.
func (v *validator) ports() {
	d := v.doc
	pairs := d.Links.byName()
	base := d.Fabric.WireGuardPort
	var taken []portRange
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			path := index(index("sites", i)+".gateways", j)
			near := d.neighbours(&d.Sites[i], g, pairs)
			for _, n := range near {
				if g.Name < n.gateway.Name && len(g.Endpoints) == 0 && len(n.gateway.Endpoints) == 0 {
					v.add(path+".endpoints", "give one of them an endpoint, or unlink them with a pair without tunnels",
						"neither %q nor %q has an endpoint, so neither can dial the other", g.Name, n.gateway.Name)
				}
			}
			last := base + max(len(near), 1) - 1
			if last > 65535 {
				v.add("fabric.wireguard-port", fmt.Sprintf("write %d or less", 65536-len(near)),
					"%d leaves no room for the %d links of gateway %q", base, len(near), g.Name)
			}
			if vx := d.Fabric.VXLANPort; vx >= base && vx <= last {
				v.add("fabric.wireguard-port", "move one of them", "ports %d to %d of the tunnels of %q include the VXLAN port %d", base, last, g.Name, vx)
			}
			for k, e := range g.Endpoints {
				taken = v.endpointPorts(g, e, index(path+".endpoints", k), base, last-base, taken)
			}
		}
	}
}

// endpointPorts checks the public ports of one endpoint against those of all before it.
func (v *validator) endpointPorts(g *Gateway, e Endpoint, path string, base, more int, taken []portRange) []portRange {
	first := e.PublicPort
	fill(&first, base)
	own := portRange{address: e.Address.String(), path: path, gateway: g.Name, first: first, last: first + more}
	if own.last > 65535 && e.PublicPort != 0 {
		v.add(path+".public-port", fmt.Sprintf("write %d or less", 65535-more), "%d leaves no room for the %d links of gateway %q",
			e.PublicPort, more+1, g.Name)
	}
	if !e.Address.IsValid() {
		return taken
	}
	for _, t := range taken {
		if t.address == own.address && t.first <= own.last && own.first <= t.last {
			v.add(path+".address", "give each its own address, or public-ports that do not overlap",
				"duplicate endpoint: ports %d to %d of %s overlap ports %d to %d of gateway %q", own.first, own.last, own.address, t.first, t.last, t.gateway)
			break
		}
	}
	return append(taken, own)
}
