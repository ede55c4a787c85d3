package overlay

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"fabric/internal/config"
)

func TestSlotOf(t *testing.T) {
	for generation, want := range []int{0, 1, 2, 1, 2, 1} {
		if got := SlotOf(generation); got != want {
			t.Errorf("generation %d is in slot %d, want %d", generation, got, want)
		}
	}
}

// Both ends of every slot fit together, and nothing of the first slot differs from a tunnel that has no others.
func TestSlotsMeet(t *testing.T) {
	doc := threeSites()
	doc.Links.Tunnels = append(doc.Links.Tunnels, config.Tunnel{Kind: "wireguard"})
	plans := map[string]Plan{}
	for _, g := range []string{"gz", "hk", "sz"} {
		plans[g] = compile(t, doc, g)
	}
	seen := map[string]bool{}
	for own, p := range plans {
		for _, tunnel := range p.Tunnels {
			i := slices.IndexFunc(plans[tunnel.Remote].Tunnels, func(o Tunnel) bool { return o.Remote == own && o.Rank == tunnel.Rank })
			other := plans[tunnel.Remote].Tunnels[i]
			if first, ok := tunnel.In(0); !ok || first.Device != tunnel.Device || first.ListenPort != tunnel.ListenPort {
				t.Errorf("%s: slot 0 is %+v", tunnel.Name, first)
			}
			if _, ok := tunnel.In(3); ok {
				t.Errorf("%s has a fourth slot", tunnel.Name)
			}
			for slot := range slots {
				a, ok := tunnel.In(slot)
				b, also := other.In(slot)
				if !ok || !also {
					t.Fatalf("%s has no slot %d", tunnel.Name, slot)
				}
				if a.LinkLocal != b.RemoteLinkLocal || a.RemoteLinkLocal != b.LinkLocal {
					t.Errorf("%s slot %d: addresses %s, %s and %s, %s", tunnel.Name, slot, a.LinkLocal, a.RemoteLinkLocal, b.LinkLocal, b.RemoteLinkLocal)
				}
				if want := tunnel.ListenPort + slot*256; a.ListenPort != want {
					t.Errorf("%s slot %d listens on %d, want %d", tunnel.Name, slot, a.ListenPort, want)
				}
				if a.Endpoint.IsValid() {
					// The public port of hk's first address is 40000 where it listens on 51820.
					want := b.ListenPort
					if a.Endpoint.Addr().String() == "198.51.100.2" {
						want += 40000 - 51820
					}
					if int(a.Endpoint.Port()) != want {
						t.Errorf("%s slot %d dials %s, the other end is behind %d", tunnel.Name, slot, a.Endpoint, want)
					}
				}
				for _, unique := range []string{a.Device, own + a.LinkLocal.String()} {
					if seen[unique] {
						t.Errorf("%s slot %d: %s is there twice", tunnel.Name, slot, unique)
					}
					seen[unique] = true
				}
				if len(a.Device) > 15 || !strings.HasPrefix(a.Device, TunnelPrefix) {
					t.Errorf("device %q", a.Device)
				}
			}
			if got := tunnel.Devices(); len(got) != slots || got[0] != tunnel.Device {
				t.Errorf("devices are %v", got)
			}
		}
	}
}

// Where the ports do not fit a tunnel has no further slots, and is otherwise as ever.
func TestSlotsNeedPorts(t *testing.T) {
	for name, change := range map[string]func(*config.Document){
		"beyond the last port":    func(d *config.Document) { d.Fabric.WireGuardPort = 65535 - 513 },
		"VXLAN port in the range": func(d *config.Document) { d.Fabric.VXLANPort = 51820 + 512 },
		"port of direct tunnels":  func(d *config.Document) { d.Fabric.DirectPort = 51820 + 512 },
		"dialled VXLAN port":      func(d *config.Document) { d.Fabric.VXLANPort = 40000 + 256 },
	} {
		doc := threeSites()
		change(doc)
		without := 0
		for _, g := range []string{"gz", "hk", "sz"} {
			for _, tunnel := range compile(t, doc, g).Tunnels {
				if len(tunnel.Slots) == 0 {
					without++
				}
			}
		}
		if without == 0 || without == 6 {
			t.Errorf("%s: %d of 6 tunnels have no further slots", name, without)
		}
	}
}

func TestPresharedKeyAndAgeInPlan(t *testing.T) {
	doc := threeSites()
	doc.Fabric.WireGuardRekeyAge = config.Duration(24 * 3600 * 1e9)
	doc.Links.Pairs = []config.LinkPair{{Between: []string{"sz", "hk"}, Tunnels: []config.Tunnel{{Kind: "wireguard"}}, PresharedKeyFile: "/etc/fabric/keys/hk-sz.psk"}}
	for _, g := range []string{"hk", "sz"} {
		for _, tunnel := range compile(t, doc, g).Tunnels {
			want := ""
			if tunnel.Remote != "gz" {
				want = "/etc/fabric/keys/hk-sz.psk"
			}
			if tunnel.PresharedKeyFile != want || tunnel.RekeyAge != 86400 {
				t.Errorf("%s: preshared key %q, age %d", tunnel.Name, tunnel.PresharedKeyFile, tunnel.RekeyAge)
			}
		}
	}
}

func TestValidateSlots(t *testing.T) {
	for _, tt := range []struct {
		change func(*Tunnel)
		want   string
	}{
		{func(t *Tunnel) { t.PresharedKeyFile = "psk" }, "not an absolute path"},
		{func(t *Tunnel) { t.RekeyAge = -1 }, "rekey age"},
		{func(t *Tunnel) { t.Slots = t.Slots[:1] }, "has 1 slots"},
		{func(t *Tunnel) { t.Slots[0].Device = "eth0" }, "not of the form"},
		{func(t *Tunnel) { t.Slots[0].Device = t.Device }, "is another's too"},
		{func(t *Tunnel) { t.Slots[1].ListenPort = t.ListenPort }, "listens on port"},
		{func(t *Tunnel) { t.Slots[1].ListenPort = 70000 }, "not a port"},
		{func(t *Tunnel) { t.Slots[1].LinkLocal = t.Slots[1].RemoteLinkLocal }, "link-local addresses of two ends"},
	} {
		p := compile(t, threeSites(), "sz")
		p.Tunnels[0].Slots = slices.Clone(p.Tunnels[0].Slots)
		tt.change(&p.Tunnels[0])
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error is %v, want one with %q", err, tt.want)
		}
	}
	p := compile(t, threeSites(), "sz")
	p.VTEPs[0].Devices = []string{p.Tunnels[0].Slots[0].Device}
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "no tunnel has device") {
		t.Errorf("a VTEP over a slot: %v", err)
	}
}

// Places that a plan does not mention are kept from the plan before, unless the tunnel is another one or the places are taken.
func TestKeepSlots(t *testing.T) {
	former := compile(t, threeSites(), "gz")
	for name, tt := range map[string]struct {
		change func(*Plan)
		kept   bool
	}{
		"nothing else":     {func(*Plan) {}, true},
		"has places":       {func(p *Plan) { p.Tunnels[0].Slots = slices.Clone(former.Tunnels[0].Slots) }, false},
		"another port":     {func(p *Plan) { p.Tunnels[0].ListenPort = 60000 }, false},
		"another endpoint": {func(p *Plan) { p.Tunnels[0].Endpoint = netip.MustParseAddrPort("192.0.2.99:1") }, false},
		"another key":      {func(p *Plan) { p.Tunnels[0].PublicKey = p.Tunnels[1].PublicKey }, false},
		"a port is taken":  {func(p *Plan) { p.Tunnels[1].ListenPort = former.Tunnels[0].Slots[1].ListenPort }, false},
		"a device is taken": {func(p *Plan) {
			d := former.Tunnels[0].Slots[0].Device
			for i := range p.VTEPs {
				if j := slices.Index(p.VTEPs[i].Devices, p.Tunnels[1].Device); j >= 0 {
					p.VTEPs[i].Devices[j] = d
				}
			}
			p.Tunnels[1].Device = d
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, threeSites(), "gz")
			for i := range p.Tunnels {
				p.Tunnels[i].Slots = nil
			}
			tt.change(&p)
			digest, d := p.Digest(), p.Tunnels[0].Device
			p.KeepSlots(former)
			if _, kept := p.KeptSlots[d]; kept != tt.kept || p.Digest() != digest {
				t.Errorf("kept %v, want %v; digest %s, was %s", kept, tt.kept, p.Digest(), digest)
			}
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			// Over the disk and two plans later it is the same.
			data, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			read, err := ParsePlan(data)
			if err != nil {
				t.Fatal(err)
			}
			next := p
			next.KeptSlots = nil
			next.KeepSlots(read)
			if !reflect.DeepEqual(next.KeptSlots, p.KeptSlots) {
				t.Errorf("next are %v, want %v", next.KeptSlots, p.KeptSlots)
			}
			if want := len(p.Tunnels[0].Slots) > 0 || tt.kept; (len(next.Slotted()[0].Slots) > 0) != want {
				t.Errorf("slotted is %+v, want places %v", next.Slotted()[0], want)
			}
		})
	}
}
