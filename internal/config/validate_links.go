package config

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// links checks how the gateways are joined, and the ports this takes.
func (v *validator) links() {
	l := &v.doc.Links
	v.oneOf("links.mesh", l.Mesh, "full", "communities", meshHub)
	if (l.Mesh == "full" || l.Mesh == meshHub) && len(l.Communities) > 0 {
		v.add("links.communities", "write mesh: communities, or remove them", "communities mean nothing in a full mesh, nor around hubs")
	}
	v.hubs()
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
	v.direct()
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
	v.presharedKey(p, path)
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
	v.ranks(ts, path)
	for i, t := range ts {
		v.oneOf(index(path, i)+".kind", t.Kind, KindWireGuard, KindTLS, KindDirect)
		v.encryption(t, index(path, i))
		if t.UnderlayMTU != 0 && t.Kind == KindTLS {
			v.add(index(path, i)+".underlay-mtu", "remove it", "a tls tunnel has none: TCP cuts its stream to fit the path")
		} else if t.UnderlayMTU != 0 {
			v.underlay(index(path, i)+".underlay-mtu", t.UnderlayMTU)
		}
		if t.BFD != nil {
			v.ownBFD(index(path, i)+".bfd", *t.BFD)
		}
	}
}

// ports checks that every link can be dialled from one side, and that the ports of all tunnels are there and free.
func (v *validator) ports() {
	d := v.doc
	pairs := d.Links.byName()
	stride := d.PortStride()
	base := d.Fabric.WireGuardPort
	farthest, busiest := 0, "" // how far above base a gateway listens, and which
	shared := d.sharedAddresses()
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			path := index(index("sites", i)+".gateways", j)
			near := d.neighbours(&d.Sites[i], g, pairs)
			for _, n := range near {
				if g.Name < n.gateway.Name {
					v.tlsLink(g, &n, path)
				}
				if g.Name < n.gateway.Name && n.has(KindWireGuard) && len(g.Endpoints) == 0 && len(n.gateway.Endpoints) == 0 {
					v.add(path+".endpoints", "give one of them an endpoint, or unlink them with a pair without tunnels",
						"neither %q nor %q has an endpoint, so neither can dial the other", g.Name, n.gateway.Name)
				}
				if far := (len(n.tunnels)-1)*stride + n.ordinal; far > farthest {
					farthest, busiest = far, g.Name
				}
				if vx := d.Fabric.VXLANPort; n.takes(vx-base, stride) {
					v.add("fabric.wireguard-port", "move one of them", "a tunnel from %q to %q would listen on the VXLAN port %d", g.Name, n.gateway.Name, vx)
				}
			}
			for k := range min(len(g.Endpoints), maxEndpoints) {
				v.endpointPorts(g, k, index(path+".endpoints", k), near, shared[g.Endpoints[k].Address])
			}
		}
	}
	if base+farthest > 65535 {
		v.add("fabric.wireguard-port", portMend(farthest), "%d leaves no room for the tunnels of gateway %q, the last of which is %d above it",
			base, busiest, farthest)
	}
	v.rekeyPorts()
}

// takes says whether a tunnel with the neighbour uses the port that is offset above the first.
func (n *neighbour) takes(offset, stride int) bool {
	offset -= n.ordinal
	return offset >= 0 && offset%stride == 0 && offset/stride < len(n.tunnels) && n.tunnels[offset/stride].usesPort()
}

// portMend says how to make room for tunnels that reach so many ports above the first.
func portMend(farthest int) string {
	if farthest >= 65535 {
		return "have fewer tunnels for each link"
	}
	return fmt.Sprintf("write %d or less", 65535-farthest)
}

// sharedAddresses returns a map, for each address that is an endpoint more than once, to hold who is dialled on its ports.
func (d *Document) sharedAddresses() map[netip.Addr]map[int]*Gateway {
	shared := map[netip.Addr]map[int]*Gateway{}
	seen := map[netip.Addr]bool{}
	for _, s := range d.Sites {
		for _, g := range s.Gateways {
			for _, e := range g.Endpoints {
				if seen[e.Address] && e.Address.IsValid() {
					shared[e.Address] = map[int]*Gateway{}
				}
				seen[e.Address] = true
			}
		}
	}
	return shared
}

// dialled returns the ports of the k-th endpoint that neighbours dial, relative to its first one, each once, and by whom.
func (g *Gateway) dialled(k int, near []neighbour, stride int) iter.Seq2[int, *Gateway] {
	return func(yield func(int, *Gateway) bool) {
		for _, n := range near {
			for rank, t := range n.tunnels {
				if e, _ := g.Endpoint(rank); t.usesPort() && e == &g.Endpoints[k] && !yield(rank*stride+n.ordinal, n.gateway) {
					return
				}
			}
		}
	}
}

// endpointPorts checks the public ports of the k-th endpoint. Owner says who before it is dialled on which port of its
// address, and is nil if the address is not listed again.
func (v *validator) endpointPorts(g *Gateway, k int, path string, near []neighbour, owner map[int]*Gateway) {
	e := g.Endpoints[k]
	fabric, stride := &v.doc.Fabric, v.doc.PortStride()
	first := e.PublicPort
	fill(&first, fabric.WireGuardPort)
	if e.PublicPort != 0 {
		farthest := 0
		for far, by := range g.dialled(k, near, stride) {
			farthest = max(farthest, far)
			if first+far == fabric.VXLANPort {
				// The filter of the dialling side lets this port out through tunnels only.
				v.add(path+".public-port", "choose another", "gateway %q would dial the VXLAN port %d", by.Name, first+far)
			}
		}
		if first+farthest > 65535 {
			v.add(path+".public-port", portMend(farthest), "%d leaves no room for the tunnels of gateway %q, the last of which is %d above it",
				first, g.Name, farthest)
		}
	}
	if owner == nil {
		return
	}
	if slices.ContainsFunc(g.Endpoints[:k], func(o Endpoint) bool { return o == e }) {
		v.add(path+".address", "keep one of them", "duplicate endpoint: %s is listed twice at gateway %q", e.Address, g.Name)
		return
	}
	for far, by := range g.dialled(k, near, stride) {
		if other, taken := owner[first+far]; taken {
			v.add(path+".address", "give each its own address, or public-ports that keep them apart",
				"duplicate endpoint: port %d of %s, which gateway %q would dial, is taken by gateway %q", first+far, e.Address, by.Name, other.Name)
			return
		}
		owner[first+far] = g
	}
}
