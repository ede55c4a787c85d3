package config

import "path/filepath"

// slotBlock is what the number of tunnels in SlotStride is rounded up to.
const slotBlock = 4

// SlotStride is the distance, in ports, from a tunnel's port to the one that its second keys use, and from that to the one of its third:
// PortStride times the most tunnels that any link has, rounded up to a multiple of 4. The keys of a tunnel that are replaced alternate between
// these two. With up to 64 gateways and 4 tunnels a link it is 256.
func (d *Document) SlotStride() int {
	most := len(d.Links.Tunnels)
	for _, p := range d.Links.Pairs {
		most = max(most, len(p.Tunnels))
	}
	return max(1, (most+slotBlock-1)/slotBlock) * slotBlock * d.PortStride()
}

// presharedKeyFile is that of the pair of two gateways, "" for none.
func (l *Links) presharedKeyFile(a, b string) string {
	for _, p := range l.Pairs {
		if len(p.Between) == 2 && pairKey(p.Between[0], p.Between[1]) == pairKey(a, b) {
			return p.PresharedKeyFile
		}
	}
	return ""
}

// presharedKey checks the name of a pair's preshared key.
func (v *validator) presharedKey(p LinkPair, path string) {
	if p.PresharedKeyFile != "" && !filepath.IsAbs(p.PresharedKeyFile) {
		v.add(path+".preshared-key-file", "write the whole path", "%s is not an absolute path", quoteShort(p.PresharedKeyFile))
	}
}

// rekeyPorts checks, where keys are replaced by age, that their ports are there and free. Without an age a tunnel that has no ports for other
// keys keeps those it has.
func (v *validator) rekeyPorts() {
	d := v.doc
	if d.Fabric.WireGuardRekeyAge == 0 {
		return
	}
	const path = "fabric.wireguard-rekey-age"
	second := d.SlotStride()
	pairs, stride := d.Links.byName(), d.PortStride()
	shared := map[portOf]string{}
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			near := d.neighbours(&d.Sites[i], g, pairs)
			firsts := []int{d.Fabric.WireGuardPort}
			for k := range min(len(g.Endpoints), maxEndpoints) {
				e := g.Endpoints[k]
				first := e.PublicPort
				fill(&first, d.Fabric.WireGuardPort)
				firsts = append(firsts, first)
				for far := range g.dialled(k, near, stride) {
					for slot := range 3 {
						at := portOf{e.Address.String(), first + far + slot*second}
						if other, taken := shared[at]; taken && other != g.Name {
							v.add(path, "give each its own address, or public-ports that keep them apart by more, or remove wireguard-rekey-age",
								"port %d of %s, which keys that are replaced need, is needed by gateways %q and %q", at.port, at.address, other, g.Name)
							return
						}
						shared[at] = g.Name
					}
				}
			}
			for _, first := range firsts {
				for _, n := range near {
					for rank := range n.tunnels {
						for slot := 1; slot <= 2; slot++ {
							port := first + rank*stride + n.ordinal + slot*second
							if port > 65535 || port == d.Fabric.VXLANPort || port == d.Fabric.DirectPort {
								v.add(path, "choose a lower wireguard-port or public-port, or remove wireguard-rekey-age",
									"keys that are replaced need ports up to %d above those of the tunnels, and %d, for gateways %q and %q, cannot be used", 2*second, port, g.Name, n.gateway.Name)
								return
							}
						}
					}
				}
			}
		}
	}
}

// portOf is a port of an address.
type portOf struct {
	address string
	port    int
}
