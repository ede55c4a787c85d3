package config

import (
	"cmp"
	"slices"
)

// Link is one gateway linked with another, as seen from the one.
type Link struct {
	// Remote is the other gateway, RemoteSite its site.
	Remote     *Gateway
	RemoteSite *Site
	// Index is the ordinal of Remote, RemoteIndex our own: the place in the document, from 0, over all gateways in the
	// order they appear, whether linked or not. We listen on the first WireGuard port + rank × PortStride + Index and
	// dial Remote's first (public) port + rank × PortStride + RemoteIndex. So a port depends on nothing but the order
	// of gateways: append new ones at the end of the document, and no port of an existing link moves.
	Index, RemoteIndex int
	// Tunnels in the document's order, at least one.
	Tunnels []Tunnel
	// PresharedKeyFile is the pair's, "" for none.
	PresharedKeyFile string
}

// Neighbours returns the gateways linked with this one, sorted by name; none if the gateway is unknown.
func (d *Document) Neighbours(gateway string) []Link {
	site, own, ok := d.Find(gateway)
	if !ok {
		return nil
	}
	pairs := d.Links.byName()
	near := d.neighbours(site, own, pairs)
	ordinal := slices.Index(d.gatewayNames(), own.Name)
	links := make([]Link, len(near))
	for i, n := range near {
		links[i] = Link{Remote: n.gateway, RemoteSite: n.site, Index: n.ordinal, RemoteIndex: ordinal, Tunnels: n.tunnels}
		links[i].PresharedKeyFile = d.Links.presharedKeyFile(own.Name, n.gateway.Name)
	}
	return links
}

// portBlock is what PortStride is rounded up to.
const portBlock = 64

// PortStride is the distance, in ports, from one rank of tunnels to the next: the number of gateways, rounded up to a multiple
// of 64. Append new gateways at the end of the document: then the ports of existing links stay, but for those of
// second and further tunnels when the fabric outgrows a multiple of 64.
func (d *Document) PortStride() int {
	return (len(d.gatewayNames()) + portBlock - 1) / portBlock * portBlock
}

// Endpoint returns what others dial for tunnels of a rank, from 0: the endpoint of that place, else the first; false if
// there is none. A backup goes to another address where there is one: two tunnels to one address fail together.
// The pointer leads into g.
func (g *Gateway) Endpoint(rank int) (*Endpoint, bool) {
	if len(g.Endpoints) == 0 {
		return nil, false
	}
	if rank >= len(g.Endpoints) {
		rank = 0
	}
	return &g.Endpoints[rank], true
}

// neighbour is a gateway at the other end of a link.
type neighbour struct {
	site    *Site
	gateway *Gateway
	// ordinal is the gateway's place in the document, from 0.
	ordinal int
	tunnels []Tunnel
}

// neighbours finds the gateways linked with one, sorted by name.
func (d *Document) neighbours(site *Site, own *Gateway, pairs map[[2]string][]Tunnel) []neighbour {
	joined := d.Links.joined(site.Name)
	var near []neighbour
	before := 0 // gateways of the sites before s
	for i := range d.Sites {
		s := &d.Sites[i]
		first := before
		before += len(s.Gateways)
		if !joined(s.Name) {
			continue
		}
		for j := range s.Gateways {
			g := &s.Gateways[j]
			if g.Name == own.Name {
				continue
			}
			tunnels, override := pairs[pairKey(own.Name, g.Name)]
			if !override {
				tunnels = d.Links.usual(own.Name, g.Name)
			}
			if len(tunnels) > 0 {
				near = append(near, neighbour{s, g, first + j, tunnels})
			}
		}
	}
	slices.SortFunc(near, func(a, b neighbour) int { return cmp.Compare(a.gateway.Name, b.gateway.Name) })
	return near
}

// joined returns whether gateways of a site are linked with those of another one. Gateways of one site are linked
// with each other wherever their site is linked at all.
func (l *Links) joined(site string) func(other string) bool {
	if l.Mesh != "communities" {
		return func(string) bool { return true }
	}
	with := map[string]bool{}
	for _, c := range l.Communities {
		if slices.Contains(c.Sites, site) {
			for _, s := range c.Sites {
				with[s] = true
			}
		}
	}
	return func(other string) bool { return with[other] }
}

// byName indexes the pairs by their two names.
func (l *Links) byName() map[[2]string][]Tunnel {
	pairs := make(map[[2]string][]Tunnel, len(l.Pairs))
	for _, p := range l.Pairs {
		if len(p.Between) == 2 {
			pairs[pairKey(p.Between[0], p.Between[1])] = p.Tunnels
		}
	}
	return pairs
}

func pairKey(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }
