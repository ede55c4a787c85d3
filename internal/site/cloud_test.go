package site

import (
	"testing"

	"fabric/internal/config"
)

// A VPC's table takes one next hop for a prefix: only one of a site's gateways may write it.
func TestOneGatewayKeepsTheCloud(t *testing.T) {
	gateway := func(name string, drained bool, vrfs ...string) config.Gateway {
		g := config.Gateway{Name: name, Drained: drained}
		for _, v := range vrfs {
			g.VRFs = append(g.VRFs, config.GatewayVRF{VRF: v})
		}
		return g
	}
	for _, c := range []struct {
		name     string
		gateways []config.Gateway
		keeper   string
	}{
		{"the first", []config.Gateway{gateway("a", false, "CORE"), gateway("b", false, "CORE")}, "a"},
		{"the first that has the VRF", []config.Gateway{gateway("a", false, "OPS"), gateway("b", false, "OPS", "CORE")}, "b"},
		{"not a drained one", []config.Gateway{gateway("a", true, "CORE"), gateway("b", false, "CORE")}, "b"},
		{"none", []config.Gateway{gateway("a", true, "CORE")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			site := &config.Site{Cloud: &config.Cloud{VRF: "CORE"}, Gateways: c.gateways}
			for i := range site.Gateways {
				in := &intent{site: site, gw: &site.Gateways[i]}
				if got, want := in.keepsCloud(), in.gw.Name == c.keeper; got != want {
					t.Errorf("gateway %s keeps the cloud: %v, want %v", in.gw.Name, got, want)
				}
			}
		})
	}
}
