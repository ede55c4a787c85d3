package config

import (
	"strings"
	"testing"
)

func TestRanks(t *testing.T) {
	const pair = "      tunnels: [{kind: wireguard, underlay-mtu: 1450}]\n"
	for _, c := range []struct{ name, tunnels, ranks, want string }{
		{"left out", "{kind: wireguard}, {kind: wireguard}", "01", ""},
		{"equal", "{kind: wireguard, rank: 0}, {kind: wireguard, rank: 0}", "00", ""},
		{"a pair with a backup", "{kind: wireguard}, {kind: wireguard, rank: 0}, {kind: wireguard, rank: 1}", "001", ""},
		{"backups first", "{kind: wireguard, rank: 1}, {kind: wireguard, rank: 0}", "10", ""},
		{"gap", "{kind: wireguard}, {kind: wireguard, rank: 0}, {kind: wireguard}", "", "tunnels: no tunnel has rank 1, and one has a higher one; write rank at each of them"},
		{"none preferred", "{kind: wireguard, rank: 1}, {kind: wireguard}", "", "no tunnel has rank 0"},
		{"negative", "{kind: wireguard, rank: -1}", "", "tunnels[0].rank: "},
		{"far off", "{kind: wireguard}, {kind: wireguard, rank: 70000}", "", "tunnels[1].rank: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Parse("f.yaml", []byte(replace(t, example(t), pair, "      tunnels: ["+c.tunnels+"]\n")))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error is %v, want one with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for place, tunnel := range d.Links.Pairs[0].Tunnels {
				got += string(rune('0' + tunnel.RankAt(place)))
			}
			if got != c.ranks {
				t.Errorf("ranks are %s, want %s", got, c.ranks)
			}
		})
	}
}
