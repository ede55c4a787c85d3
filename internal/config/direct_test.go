package config

import (
	"strings"
	"testing"
)

// Of the three gateways, gz-1-gw has no endpoint.
func TestDirectTunnels(t *testing.T) {
	const pair = "      tunnels: [{kind: wireguard, underlay-mtu: 1450}]\n"
	const direct = "      tunnels: [{kind: direct, encryption: none}]\n"
	const hk = "endpoints: [{address: 203.0.113.2}]"
	port := func(lines string) string { return "name: demo\n  " + lines }
	cases := []struct {
		name   string
		change []string // old and new, in turn
		want   string   // in the error; none if empty
	}{
		{"said", []string{pair, direct}, ""},
		{"beside wireguard", []string{pair, "      tunnels: [{kind: wireguard}, {kind: direct, encryption: none}]\n"}, ""},
		{"not said", []string{pair, "      tunnels: [{kind: direct}]\n"}, `tunnels[0].encryption: a tunnel of kind direct carries packets unencrypted, and the document has to say that this is meant; write encryption: none`},
		{"said wrongly", []string{pair, "      tunnels: [{kind: direct, encryption: aes}]\n"}, `tunnels[0].encryption: `},
		{"said of another", []string{pair, "      tunnels: [{kind: wireguard, encryption: none}]\n"}, `tunnels[0].encryption: a tunnel of kind "wireguard" always encrypts; remove it`},
		{"no endpoint at one end", []string{"links:\n", "links:\n  tunnels: [{kind: direct, encryption: none}]\n"}, `sites[2].gateways[0].endpoints: "gz-1-gw" has no endpoint, which the direct tunnel to "hk-1-gw" starts from`},
		{"families apart", []string{pair, direct, hk, `endpoints: [{address: "2001:db8::2"}]`}, `a direct tunnel cannot go from 2001:db8::2 of "hk-1-gw" to 203.0.113.1 of "sz-1-gw"`},
		{"port of the VRFs", []string{pair, direct, "name: demo", port("direct-port: 4789")}, `fabric.direct-port: 4789 is the port of the VRFs' VXLAN`},
		{"port of the VRFs, no direct tunnel", []string{"name: demo", port("direct-port: 4789")}, ""},
		{"port of a tunnel", []string{pair, direct, "name: demo", port("direct-port: 51822")}, `fabric.direct-port: a tunnel from "sz-1-gw" to "gz-1-gw" would listen on port 51822 too`},
		// What would be its port is free: 51821 is where sz-1-gw would listen for hk-1-gw.
		{"port it does not use", []string{pair, direct, "name: demo", port("direct-port: 51824")}, ""},
		{"no port", []string{"name: demo", port("direct-port: 70000")}, `fabric.direct-port`},
		// Of 203.0.113.1 only 51902 is taken then: the direct tunnel is dialled on no such port.
		{"public port that it frees", []string{pair, direct, hk, "endpoints: [{address: 203.0.113.1, public-port: 51901}]"}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			text := example(t)
			for i := 0; i < len(c.change); i += 2 {
				text = replace(t, text, c.change[i], c.change[i+1])
			}
			d, err := Parse("f.yaml", []byte(text))
			if c.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if c.want == "" && err == nil && d.Fabric.DirectPort == 0 {
				t.Error("no default port")
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}
