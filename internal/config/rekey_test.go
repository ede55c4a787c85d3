package config

import (
	"strings"
	"testing"
	"time"
)

func TestRekey(t *testing.T) {
	const age = "name: demo\n  wireguard-rekey-age: 24h"
	const hk = "endpoints: [{address: 203.0.113.2}]"
	const pair = "    - between: [sz-1-gw, hk-1-gw]\n"
	for _, c := range []struct {
		name   string
		change []string
		want   string
	}{
		{"by age", []string{"name: demo", age}, ""},
		{"too often", []string{"name: demo", "name: demo\n  wireguard-rekey-age: 30m"}, "wireguard-rekey-age"},
		{"last ports", []string{"name: demo", age + "\n  wireguard-port: 65021"}, ""},
		{"beyond the last port", []string{"name: demo", age + "\n  wireguard-port: 65022"}, "keys that are replaced need ports up to 512 above those of the tunnels, and 65536"},
		{"without age the ports are nobody's concern", []string{"name: demo", "name: demo\n  wireguard-port: 65022"}, ""},
		{"beyond the last public port", []string{"name: demo", age, "public-port: 51900", "public-port: 65522"}, "cannot be used"},
		{"VXLAN port", []string{"name: demo", age + "\n  vxlan-port: 52077"}, "52077"},
		{"port of direct tunnels", []string{"name: demo", age + "\n  direct-port: 52077"}, "52077"},
		{"NAT of two gateways", []string{"name: demo", age, hk, "endpoints: [{address: 203.0.113.1, public-port: 52156}]"}, `is needed by gateways "sz-1-gw" and "hk-1-gw"`},
		{"NAT of two gateways, apart", []string{"name: demo", age, hk, "endpoints: [{address: 203.0.113.1, public-port: 51910}]"}, ""},
		{"preshared key", []string{pair, pair + "      preshared-key-file: /etc/fabric/keys/hk-sz.psk\n"}, ""},
		{"preshared key by a bare name", []string{pair, pair + "      preshared-key-file: hk-sz.psk\n"}, "preshared-key-file: \"hk-sz.psk\" is not an absolute path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := example(t)
			for i := 0; i < len(c.change); i += 2 {
				text = replace(t, text, c.change[i], c.change[i+1])
			}
			d, err := Parse("f.yaml", []byte(text))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error is %v, want one with %q", err, c.want)
			case c.name == "by age" && d.Fabric.WireGuardRekeyAge.Std() != 24*time.Hour:
				t.Errorf("age is %s", d.Fabric.WireGuardRekeyAge)
			case c.name == "preshared key" && d.Neighbours("hk-1-gw")[1].PresharedKeyFile+d.Neighbours("sz-1-gw")[1].PresharedKeyFile != strings.Repeat("/etc/fabric/keys/hk-sz.psk", 2):
				t.Errorf("links are %+v and %+v", d.Neighbours("hk-1-gw"), d.Neighbours("sz-1-gw"))
			}
		})
	}
}

func TestSlotStride(t *testing.T) {
	d := mustParse(t, example(t))
	for _, c := range []struct{ links, pair, want int }{{0, 1, 256}, {1, 0, 256}, {4, 1, 256}, {1, 5, 512}, {9, 1, 768}} {
		d.Links.Tunnels, d.Links.Pairs[0].Tunnels = make([]Tunnel, c.links), make([]Tunnel, c.pair)
		if got := d.SlotStride(); got != c.want {
			t.Errorf("%d tunnels and %d: %d, want %d", c.links, c.pair, got, c.want)
		}
	}
}
