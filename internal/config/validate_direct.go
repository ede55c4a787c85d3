package config

import "slices"

// KindDirect is the kind of tunnels that carry packets unencrypted, on a path that is trusted (a VPC).
const KindDirect = "direct"

// encryption checks that whoever chooses a tunnel without encryption says so.
func (v *validator) encryption(t Tunnel, path string) {
	switch {
	case t.Kind == KindDirect && t.Encryption == "":
		v.add(path+".encryption", "write encryption: none if the path between the gateways is trusted, or use kind wireguard",
			"a tunnel of kind direct carries packets unencrypted, and the document has to say that this is meant")
	case t.Kind == KindDirect:
		v.oneOf(path+".encryption", t.Encryption, "none")
	case t.Encryption != "":
		v.add(path+".encryption", "remove it, or use kind direct on a trusted path", "a tunnel of kind %q always encrypts", t.Kind)
	}
}

func isDirect(t Tunnel) bool { return t.Kind == KindDirect }

// usesPort says whether the tunnel listens on a port counted from Fabric.WireGuardPort, and is dialled on one.
func (t Tunnel) usesPort() bool { return !isDirect(t) && t.Kind != KindTLS }

// direct checks what tunnels of kind direct need: an address of each end that the other one reaches as it is, and a port.
func (v *validator) direct() {
	d, used := v.doc, false
	pairs := d.Links.byName()
	port := d.Fabric.DirectPort
	for i := range d.Sites {
		for j := range d.Sites[i].Gateways {
			g := &d.Sites[i].Gateways[j]
			path := index(index("sites", i)+".gateways", j) + ".endpoints"
			lonely := false
			near := d.neighbours(&d.Sites[i], g, pairs)
			for _, n := range near {
				for place, t := range n.tunnels {
					if !isDirect(t) {
						continue
					}
					used = true
					own, ok := g.Endpoint(place)
					far, okFar := n.gateway.Endpoint(place)
					switch {
					case !ok:
						if !lonely {
							v.add(path, "give it the address that the others reach it by, or another kind of tunnel with a pair",
								"%q has no endpoint, which the direct tunnel to %q starts from", g.Name, n.gateway.Name)
						}
						lonely = true
					case !okFar || g.Name > n.gateway.Name:
						// Said of the other one, or already said of this pair.
					case own.Address.Unmap().Is4() != far.Address.Unmap().Is4():
						v.add(path, "order the endpoints such that those of one place are of one family",
							"a direct tunnel cannot go from %s of %q to %s of %q", own.Address, g.Name, far.Address, n.gateway.Name)
					}
				}
			}
			if !slices.ContainsFunc(near, func(n neighbour) bool { return slices.ContainsFunc(n.tunnels, isDirect) }) {
				continue
			}
			for _, n := range near {
				if n.takes(port-d.Fabric.WireGuardPort, d.PortStride()) {
					v.add("fabric.direct-port", "move one of them", "a tunnel from %q to %q would listen on port %d too", g.Name, n.gateway.Name, port)
				}
			}
		}
	}
	if used && port == d.Fabric.VXLANPort {
		v.add("fabric.direct-port", "choose another", "%d is the port of the VRFs' VXLAN, which the packet filter keeps inside tunnels", port)
	}
}
