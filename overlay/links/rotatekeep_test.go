package links

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/overlay"
	"fabric/overlay/links/rotation"
)

// rotated is a world in which the first tunnel has keys of its own, generation 1.
func rotated(t *testing.T) (*world, *Engine, *fakeBFD, *otherEnd) {
	t.Helper()
	w, e, f, o := runningRotation(t)
	if _, err := w.begin(e, b0); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.serve(e)
	w.later(e, dialAfter)
	f.up(b0first)
	w.settle(e)
	w.serve(e)
	w.later(e, rotation.Linger)
	w.expectRoute("with keys of its own", b0first)
	return w, e, f, o
}

// A plan that does not say a word of other keys, as that of an older fabric-site, leaves those in use alone; over a restart too. One that knows
// of them again finds all as it was.
func TestPlanWithoutSlotsKeepsKeys(t *testing.T) {
	for _, withBFD := range []bool{true, false} {
		t.Run(fmt.Sprintf("BFD %v", withBFD), func(t *testing.T) {
			w, e, _, o := rotated(t)
			full := *e.plan
			older := full
			older.Tunnels = slices.Clone(full.Tunnels)
			for i := range older.Tunnels {
				older.Tunnels[i].Slots, older.Tunnels[i].RekeyAge = nil, 0
				if !withBFD {
					older.Tunnels[i].BFD = nil
				}
			}
			check := func(what string) {
				t.Helper()
				w.settle(e)
				w.handshake[b0first] = w.wall()
				w.settle(e)
				w.expectRoute(what, b0first)
				if !w.alive[b0first] || w.alive[b0] {
					t.Errorf("%s: devices are %v", what, w.alive)
				}
				if s := w.tunnel(e, b0first); s.KeyGeneration != 1 || s.State != Up {
					t.Errorf("%s: tunnel is %+v", what, s)
				}
				if files, _ := filepath.Glob(filepath.Join(KeysDir(w.stateDir), b0+"*")); len(files) != 3 {
					t.Errorf("%s: kept are %v", what, files)
				}
			}
			w.handshake[b0first] = w.wall()
			if a := e.take(t.Context(), older); a.err != nil {
				t.Fatal(a.err)
			}
			check("without places")
			if got := e.State().Digest; got != older.Digest() {
				t.Errorf("digest is %s, that of the plan sent %s", got, older.Digest())
			}
			w.kill(e)
			keys := e.cfg.Keys
			e, f := w.withBFD()
			e.cfg.Keys, e.cfg.Exchange = keys, o
			e.loadDrained()
			w.settle(e)
			f.up(b0first, b1)
			check("after a restart")
			w.age(time.Hour)
			check("an hour later")
			w.take(e, full)
			f.up(b0first)
			w.age(time.Hour)
			check("with places again")
			if was, err := w.begin(e, b0); err != nil || was != 1 {
				t.Errorf("generation %d, error %v", was, err)
			}
		})
	}
}

// Where the tunnel is gone, or of another kind by now, its keys go; where its places may be taken, they stay on the disk.
func TestPlanWithoutSlotsForgets(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*overlay.Plan)
		files  int
	}{
		"the tunnel is gone": {func(p *overlay.Plan) {
			p.Tunnels, p.VTEPs[0].Devices = p.Tunnels[1:], p.VTEPs[0].Devices[1:]
		}, 0},
		"it is of another kind": {func(p *overlay.Plan) {
			one := &p.Tunnels[0]
			one.Kind, one.Carrier, one.Endpoint, one.ListenPort = "tls", &overlay.Carrier{TokenFile: "/token", TokenName: "x", Dial: "192.0.2.2:443"}, netip.AddrPort{}, 0
		}, 0},
		"it has another port": {func(p *overlay.Plan) { p.Tunnels[0].ListenPort = 60000 }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w, e, _, _ := rotated(t)
			p := *e.plan
			p.Tunnels, p.VTEPs = slices.Clone(p.Tunnels), slices.Clone(p.VTEPs)
			for i := range p.Tunnels {
				p.Tunnels[i].Slots = nil
			}
			tt.change(&p)
			w.take(e, p)
			if files, _ := filepath.Glob(filepath.Join(KeysDir(w.stateDir), b0+"*")); len(files) != tt.files || w.alive[b0first] {
				t.Errorf("kept are %v, devices %v", files, w.alive)
			}
		})
	}
}

// Hundreds of tunnels whose age begins to count do not keep the loop from its work: a few records are written in a pass, and the watchdog hears
// of each.
func TestRotationWritesInSlices(t *testing.T) {
	w := newWorld(t)
	e, _ := w.withBFD()
	store, err := rotation.OpenStore(KeysDir(w.stateDir), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	beats := 0
	e.cfg.Keys, e.cfg.Exchange, e.cfg.Beat = store, &otherEnd{}, func() { beats++ }
	const tunnels = 50
	p := rotationPlan(t, w)
	model := p.Tunnels[0]
	p.Tunnels, p.VTEPs = nil, nil
	for i := range tunnels {
		one := model
		one.Remote = fmt.Sprintf("r%02d", i)
		one.Device, one.Name, one.ListenPort, one.RekeyAge = overlay.TunnelDevice("a", one.Remote, 0), "a/"+one.Remote+"/0", 20000+i, 3600
		one.LinkLocal, one.RemoteLinkLocal = overlay.LinkLocal("a", one.Remote, 0), overlay.LinkLocal(one.Remote, "a", 0)
		one.Slots = slices.Clone(model.Slots)
		for j := range one.Slots {
			s := &one.Slots[j]
			s.Device, s.Name, s.ListenPort = overlay.SlotDevice("a", one.Remote, 0, j+1), one.Name+fmt.Sprint(".", j+1), 30000+1000*j+i
			s.LinkLocal, s.RemoteLinkLocal = overlay.SlotLinkLocal("a", one.Remote, 0, j+1), overlay.SlotLinkLocal(one.Remote, "a", 0, j+1)
		}
		p.Tunnels = append(p.Tunnels, one)
		p.VTEPs = append(p.VTEPs, overlay.RemoteVTEP{Gateway: one.Remote, Addr: netip.AddrFrom4([4]byte{10, 254, 0, byte(i)}), Devices: []string{one.Device}})
	}
	p.NextHops = nil
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	e.plan = &p
	written := func() int {
		files, _ := filepath.Glob(filepath.Join(KeysDir(w.stateDir), "*.json"))
		return len(files)
	}
	for passes := 1; ; passes++ {
		before := written()
		beats = 0
		e.pass(t.Context())
		n := written() - before
		if n > mostWrites || beats < n {
			t.Fatalf("pass %d wrote %d records, with %d beats", passes, n, beats)
		}
		if written() == tunnels {
			break
		}
		select {
		case <-e.wake:
		default:
			t.Fatalf("after pass %d there are %d records, and nobody goes on", passes, written())
		}
		if passes > 2*tunnels/mostWrites {
			t.Fatalf("%d passes have written %d records", passes, written())
		}
	}
}

// Without a place for keys the tunnels work, and every state says what is missing.
func TestRotationWithoutStore(t *testing.T) {
	w := newWorld(t)
	e, f := w.withBFD()
	e.cfg.KeysProblem = errors.New("the folder is another's")
	w.take(e, rotationPlan(t, w))
	w.allUp()
	w.settle(e)
	f.up(b0, b1)
	w.settle(e)
	w.expectRoute("with the identity keys", b0)
	if !slices.ContainsFunc(e.State().Problems, func(o Object) bool { return o.Kind == kindKeys && strings.Contains(o.Message, "another's") }) {
		t.Errorf("problems are %+v", e.State().Problems)
	}
	if _, err := w.begin(e, b0); !errors.Is(err, errNoRotation) || !strings.Contains(err.Error(), "another's") {
		t.Errorf("rotate: %v", err)
	}
}
