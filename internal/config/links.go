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
	// Index is the position of Remote among our neighbours, RemoteIndex ours among Remote's: what each side adds to its
	// first WireGuard port.
	Index, RemoteIndex int
	// Tunnels in rank order, at least one.
	Tunnels []Tunnel
}

// Neighbours returns the gateways linked with this one, sorted by name; none if the gateway is unknown.
func (d *Document) Neighbours(gateway string) []Link {
	site, own, ok := d.Find(gateway)
	if !ok {
		return nil
	}
	pairs := d.Links.byName()
	near := d.neighbours(site, own, pairs)
	links := make([]Link, len(near))
	for i, n := range near {
		back := d.neighbours(n.site, n.gateway, pairs)
		links[i] = Link{Remote: n.gateway, RemoteSite: n.site, Index: i, Tunnels: n.tunnels,
			RemoteIndex: slices.IndexFunc(back, func(m neighbour) bool { return m.gateway == own })}
	}
	return links
}

// neighbour is a gateway at the other end of a link.
type neighbour struct {
	site    *Site
	gateway *Gateway
	tunnels []Tunnel
}

// neighbours finds the gateways linked with one, sorted by name.
func (d *Document) neighbours(site *Site, own *Gateway, pairs map[[2]string][]Tunnel) []neighbour {
	joined := d.Links.joined(site.Name)
	var near []neighbour
	for i := range d.Sites {
		s := &d.Sites[i]
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
				tunnels = d.Links.Tunnels
			}
			if len(tunnels) > 0 {
				near = append(near, neighbour{s, g, tunnels})
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
