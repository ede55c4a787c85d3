package links

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

var b1Direct = overlay.DirectDevice("a", "b", 1)

// directPlan is bfdPlan with a direct tunnel in the second place.
func directPlan() overlay.Plan {
	p := bfdPlan()
	t := &p.Tunnels[1]
	t.Kind, t.Device, t.PublicKey, t.PrivateKeyFile, t.Keepalive = overlay.KindDirect, b1Direct, "", "", 0
	t.Local, t.VNI, t.ListenPort, t.Endpoint = netip.MustParseAddr("192.0.2.1"), 77, 4790, netip.MustParseAddrPort("192.0.2.3:4790")
	p.VTEPs[0].Devices = []string{b0, b1Direct}
	return p
}

// runningDirect is a world in which the plan is applied and both ways to b are up.
func runningDirect(t *testing.T) (*world, *Engine, *fakeBFD) {
	t.Helper()
	w := newWorld(t)
	for key := range tunnelSysctls(b1Direct) {
		if err := w.k.SetSysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	e, f := w.withBFD()
	w.take(e, directPlan())
	w.allUp()
	w.settle(e)
	f.up(b0, b1Direct)
	w.age(holdMost)
	w.settle(e)
	w.expectRoute("both up", b0)
	return w, e, f
}

// The tunnel has no process and no keys; its far end has a permanent neighbour, and the route goes through that.
func TestDirectTunnel(t *testing.T) {
	w, e, f := runningDirect(t)
	if slices.Contains(mapKeys(w.alive), b1Direct) {
		t.Error("a direct tunnel has a process")
	}
	tunnel := directPlan().Tunnels[1]
	link, err := w.k.Links(kernel.KindDirect).Observe(context.Background())
	want := kernel.VXLAN{VNI: 77, Local: tunnel.Local, Remote: tunnel.Endpoint.Addr(), Port: 4790}
	if err != nil || len(link) != 1 || link[b1Direct].VXLAN != want || link[b1Direct].MAC != overlay.DirectMAC(tunnel.LinkLocal) {
		t.Errorf("links are %+v, error %v", link, err)
	}
	neighbours := func() map[kernel.NeighbourKey]kernel.Neighbour {
		have, err := w.k.Neighbours(kernel.KindDirect).Observe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
	key := kernel.NeighbourKey{Device: b1Direct, Addr: tunnel.RemoteLinkLocal}
	if got := neighbours(); len(got) != 1 || got[key].MAC != overlay.DirectMAC(tunnel.RemoteLinkLocal) {
		t.Errorf("neighbours are %v", got)
	}
	s := w.tunnel(e, b1Direct)
	if s.Kind != "direct" || s.Implementation != "kernel" || s.State != Up || s.Endpoint != tunnel.Endpoint || s.ListenPort != 4790 || s.Err != "" {
		t.Errorf("state is %+v", s)
	}
	if p := e.State().Problems; slices.ContainsFunc(p, func(o Object) bool { return strings.Contains(o.Name, b1Direct) }) {
		t.Errorf("problems are %+v", p)
	}

	f.down(b0)
	w.expectRoute("the other one is down", b1Direct)
	have, err := w.k.Routes(kernel.ProtocolLinks).Observe(context.Background())
	if r := have[vtepKey(netip.MustParseAddr("10.255.0.2"))]; err != nil || r.Gateway != tunnel.RemoteLinkLocal || r.Src != directPlan().VTEP {
		t.Errorf("route is %s, error %v", r, err)
	}
	w.settle(e)
	w.expectRoute("after a pass", b1Direct)

	// Drained, it is still better than nothing: its device is up.
	if err := e.drain(context.Background(), b1Direct, true); err != nil {
		t.Fatal(err)
	}
	w.expectRoute("drained, with nothing else", b1Direct)
	f.up(b0)
	w.age(holdMost)
	w.settle(e)
	w.expectRoute("the other one is back", b0)

	// Another one in its place, and none.
	w.take(e, bfdPlan())
	if got := neighbours(); len(got) != 0 {
		t.Errorf("neighbours that are left: %v", got)
	}
	if link, err := w.k.Links(kernel.KindDirect).Observe(context.Background()); err != nil || len(link) != 0 {
		t.Errorf("links that are left: %v, error %v", link, err)
	}
}

// Without BFD a direct tunnel is taken to be alive while its device is up.
func TestDirectWithoutBFD(t *testing.T) {
	w, e, _ := runningDirect(t)
	p := directPlan()
	p.Tunnels[0].BFD, p.Tunnels[1].BFD = nil, nil
	p.VTEPs[0].Devices = []string{b1Direct}
	w.take(e, p)
	w.expectRoute("device is up", b1Direct)
	if err := w.k.DeleteDevice(b1Direct); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.expectRoute("made again", b1Direct)
}

func TestDirectCleanup(t *testing.T) {
	w, e, f := runningDirect(t)
	f.turn(b0, bfd.Down, bfd.Up)
	store := e.cfg.Store
	if err := Cleanup(t.Context(), w.k, w, nil, store, w.runDir, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if left := w.picture(); left != "" {
		t.Errorf("left:\n%s", left)
	}
}

func mapKeys(m map[string]bool) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}
