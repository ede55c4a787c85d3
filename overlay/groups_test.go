package overlay

import (
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
)

// Ranks order the ways to a gateway, and change nothing else.
func TestRanksMoveNothingButTraffic(t *testing.T) {
	doc := threeSites()
	tunnels := []config.Tunnel{{Kind: "wireguard"}, {Kind: "wireguard"}, {Kind: "wireguard"}}
	doc.Links.Tunnels = tunnels
	plain := compile(t, doc, "sz")
	if shared := plain.Shared(); len(shared) > 0 {
		t.Errorf("without equal ranks %v share", shared)
	}
	doc.Links.Tunnels = slices.Clone(tunnels)
	doc.Links.Tunnels[0].Rank, doc.Links.Tunnels[1].Rank, doc.Links.Tunnels[2].Rank = new(1), new(0), new(0)
	ranked := compile(t, doc, "sz")
	for _, was := range plain.Tunnels {
		i := slices.IndexFunc(ranked.Tunnels, func(n Tunnel) bool { return n.Device == was.Device })
		if i < 0 {
			t.Fatalf("%s is gone", was.Name)
		}
		is := ranked.Tunnels[i]
		if want := map[string]int{"0": 1, "1": 0, "2": 0}[was.Name[len(was.Name)-1:]]; is.Rank != want {
			t.Errorf("%s has rank %d, want %d", is.Name, is.Rank, want)
		}
		if is.Rank = was.Rank; is.Name != was.Name || is.ListenPort != was.ListenPort || is.Endpoint != was.Endpoint || is.LinkLocal != was.LinkLocal {
			t.Errorf("%+v has become %+v", was, is)
		}
	}
	shared := ranked.Shared()
	for _, v := range ranked.VTEPs {
		if !v.Groups(shared) {
			t.Errorf("tunnels to %s share nothing", v.Gateway)
		}
		want := []string{TunnelDevice("sz", v.Gateway, 1), TunnelDevice("sz", v.Gateway, 2), TunnelDevice("sz", v.Gateway, 0)}
		if !slices.Equal(v.Devices, want) {
			t.Errorf("ways to %s are %v, want %v", v.Gateway, v.Devices, want)
		}
		if shared[want[2]] {
			t.Errorf("the backup to %s shares", v.Gateway)
		}
	}
}

func TestValidateGroups(t *testing.T) {
	doc := threeSites()
	doc.Links.Tunnels = []config.Tunnel{{Kind: "wireguard", Rank: new(0)}, {Kind: "wireguard", Rank: new(0)}}
	p := compile(t, doc, "sz")
	for what, id := range map[string]uint32{"tunnel sz/hk/1": TunnelNextHopID(TunnelDevice("sz", "hk", 1)), "tunnels to hk": TunnelGroupID(p.VTEPs[1].Addr)} {
		bad := p
		bad.NextHops = slices.Clone(p.NextHops)
		bad.NextHops[0].ID = id
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "stands for both") {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	// Ids that nobody uses meet nobody.
	for i := range p.Tunnels {
		p.Tunnels[i].Rank = i % 2
	}
	p.NextHops[0].ID = TunnelGroupID(p.VTEPs[1].Addr)
	if err := p.Validate(); err != nil {
		t.Errorf("without equal ranks: %v", err)
	}
}
