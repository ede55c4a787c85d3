package config

import "slices"

// Find returns a gateway and its site by the gateway's name. The pointers lead into d.
func (d *Document) Find(gateway string) (*Site, *Gateway, bool) {
	for i := range d.Sites {
		s := &d.Sites[i]
		for j := range s.Gateways {
			if s.Gateways[j].Name == gateway {
				return s, &s.Gateways[j], true
			}
		}
	}
	return nil, nil, false
}

// VRF returns a VRF by name. The pointer leads into d.
func (d *Document) VRF(name string) (*VRF, bool) {
	if i := slices.IndexFunc(d.VRFs, func(v VRF) bool { return v.Name == name }); i >= 0 {
		return &d.VRFs[i], true
	}
	return nil, false
}

// Policy returns a policy by name. The pointer leads into d.
func (d *Document) Policy(name string) (*Policy, bool) {
	if i := slices.IndexFunc(d.Policies, func(p Policy) bool { return p.Name == name }); i >= 0 {
		return &d.Policies[i], true
	}
	return nil, false
}

// VRF returns what is attached to a VRF at this gateway. The pointer leads into g.
func (g *Gateway) VRF(name string) (*GatewayVRF, bool) {
	if i := slices.IndexFunc(g.VRFs, func(v GatewayVRF) bool { return v.VRF == name }); i >= 0 {
		return &g.VRFs[i], true
	}
	return nil, false
}

// gatewayNames lists all gateways, in the order of the document.
func (d *Document) gatewayNames() []string {
	var names []string
	for _, s := range d.Sites {
		for _, g := range s.Gateways {
			names = append(names, g.Name)
		}
	}
	return names
}
