package links

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"fabric/overlay"
	"fabric/overlay/bfd"
	"fabric/overlay/links/rotation"
)

// otherEnd is the gateway at the other end of every tunnel: it agrees to what it is asked, unless it refuses.
type otherEnd struct {
	mu      sync.Mutex
	asked   []string
	ends    []rotation.End
	refuses error
	public  string
}

// Listen implements KeyExchange.
func (o *otherEnd) Listen(ends []rotation.End) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = ends
	return nil
}

// Ask implements KeyExchange.
func (o *otherEnd) Ask(_ context.Context, end rotation.End, m rotation.Message) (rotation.Message, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, m.Verb+" over "+end.Device)
	if o.refuses != nil {
		return rotation.Message{}, o.refuses
	}
	return rotation.Message{OK: true, Public: o.public}, nil
}

// rotationPlan is the test's plan in which the tunnels to b have BFD and places for other keys.
func rotationPlan(t *testing.T, w *world) overlay.Plan {
	t.Helper()
	p := bfdPlan()
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.stateDir, "identity")
	if err := os.WriteFile(file, []byte(private.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range p.Tunnels {
		one := &p.Tunnels[i]
		one.PrivateKeyFile = file
		for slot := 1; slot <= 2; slot++ {
			s := overlay.Slot{
				Device: overlay.SlotDevice("a", one.Remote, one.Rank, slot), Name: one.Name + "." + string(rune('0'+slot)),
				LinkLocal: overlay.SlotLinkLocal("a", one.Remote, one.Rank, slot), RemoteLinkLocal: overlay.SlotLinkLocal(one.Remote, "a", one.Rank, slot),
				ListenPort: one.ListenPort + 256*slot,
			}
			one.Slots = append(one.Slots, s)
		}
	}
	return p
}

var (
	b0first  = overlay.SlotDevice("a", "b", 0, 1)
	b0second = overlay.SlotDevice("a", "b", 0, 2)
)

// runningRotation is a world in which that plan is applied, and all is up.
func runningRotation(t *testing.T) (*world, *Engine, *fakeBFD, *otherEnd) {
	t.Helper()
	w := newWorld(t)
	e, f := w.withBFD()
	o := &otherEnd{public: base64.StdEncoding.EncodeToString(make([]byte, 32))}
	store, err := rotation.OpenStore(KeysDir(w.stateDir), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.Keys, e.cfg.Exchange = store, o
	w.take(e, rotationPlan(t, w))
	w.allUp()
	w.settle(e)
	f.up(b0, b1)
	w.age(time.Hour)
	w.settle(e)
	w.expectRoute("at first", b0)
	return w, e, f, o
}

// serve runs what comes in from beside until nothing is under way, then passes.
func (w *world) serve(e *Engine) {
	w.t.Helper()
	for slices.ContainsFunc(slices.Collect(maps.Values(e.keys.tunnels)), func(r *rotating) bool { return r.busy }) {
		(<-e.calls)()
	}
	w.settle(e)
}

// begin is Rotate.
func (w *world) begin(e *Engine, device string) (int, error) {
	type result struct {
		generation int
		err        error
	}
	out := make(chan result, 1)
	go func() {
		generation, err := e.Rotate(context.Background(), device)
		out <- result{generation, err}
	}()
	(<-e.calls)()
	r := <-out
	return r.generation, r.err
}

func (w *world) answerTo(e *Engine, device string, m rotation.Message) rotation.Message {
	out := make(chan rotation.Message, 1)
	go func() { out <- e.Answer(context.Background(), device, m) }()
	(<-e.calls)()
	return <-out
}

func (w *world) later(e *Engine, d time.Duration) {
	w.age(d)
	w.settle(e)
	w.serve(e)
}

// The engine proposes, brings the second device up beside the first, moves the route by one step as soon as the session is up, and takes
// the first away.
func TestRotateBesideTheFirst(t *testing.T) {
	w, e, f, o := runningRotation(t)
	if was, err := w.begin(e, b0); err != nil || was != 0 {
		t.Fatalf("generation %d, error %v", was, err)
	}
	w.settle(e)
	w.serve(e)
	if !slices.Contains(o.asked, "propose over "+b0) {
		t.Fatalf("asked %v", o.asked)
	}
	w.later(e, dialAfter)
	if !w.alive[b0first] || !w.alive[b0] {
		t.Fatalf("devices are %v\n%s", w.alive, w.picture())
	}
	wg := observe(t, w.k.WireGuards())
	if !strings.Contains(wg[b0first], "/keys/"+b0+"-1-") || !strings.Contains(wg[b0first], ".psk") || strings.Contains(wg[b0], ".psk") {
		t.Errorf("configurations are %v", wg)
	}
	w.expectRoute("before it is up", b0)
	if s := w.tunnel(e, b0); s.KeyGeneration != 0 || !strings.Contains(s.Rotation, "generation 1 is brought up") || s.Name != "a/b/0" {
		t.Errorf("tunnel is %+v", s)
	}
	before := len(w.k.Applied())
	f.up(b0first)
	w.expectRoute("as soon as it is up, without a hold and before a pass", b0first)
	if got := w.k.Applied()[before:]; len(got) != 1 || !strings.Contains(got[0], "replace") {
		t.Errorf("steps are %q", got)
	}
	w.settle(e)
	w.serve(e)
	if !slices.Contains(o.asked, "moved over "+b0first) {
		t.Fatalf("asked %v", o.asked)
	}
	if s := w.tunnel(e, b0first); s.KeyGeneration != 1 || s.Rotation != "generation 0 goes" || !s.Active || s.Name != "a/b/0" {
		t.Errorf("tunnel is %+v", s)
	}
	if !w.alive[b0] {
		t.Error("the former device is gone at once: what is under way is lost")
	}
	w.later(e, rotation.Linger)
	w.expectRoute("afterwards", b0first)
	if w.alive[b0] {
		t.Error("the former device is still there")
	}
	if s := w.tunnel(e, b0first); s.Rotation != "" || len(e.State().Tunnels) != 3 {
		t.Errorf("tunnels are %+v", e.State().Tunnels)
	}
	if got := e.State().Digest; got != e.plan.Digest() {
		t.Errorf("digest is %s, that of the plan %s", got, e.plan.Digest())
	}
	// The next ones are in the third place, and a drain by the plan's device means the tunnel.
	if was, err := w.begin(e, b0first); err != nil || was != 1 {
		t.Fatalf("generation %d, error %v", was, err)
	}
	w.settle(e)
	w.serve(e)
	w.later(e, dialAfter)
	f.up(b0second)
	w.settle(e)
	w.serve(e)
	w.later(e, rotation.Linger)
	w.expectRoute("after the second rotation", b0second)
	if w.alive[b0first] || w.alive[b0] {
		t.Errorf("devices are %v", w.alive)
	}
	if err := e.drain(context.Background(), b0, true); err != nil {
		t.Fatal(err)
	}
	w.expectRoute("drained", b1)
	if s := w.tunnel(e, b0second); !s.Drained {
		t.Errorf("tunnel is %+v", s)
	}
	if _, err := w.begin(e, b0); !errors.Is(err, errNoRotation) || !strings.Contains(err.Error(), "drained") {
		t.Errorf("rotation of a drained tunnel: %v", err)
	}
	// A restart finds the keys in use.
	w.kill(e)
	keys := e.cfg.Keys
	e, f = w.withBFD()
	e.cfg.Keys, e.cfg.Exchange = keys, o
	e.loadDrained()
	starts := w.starts
	w.settle(e)
	f.up(b0second, b1)
	w.settle(e)
	if w.starts != starts || !w.alive[b0second] || w.alive[b0] {
		t.Errorf("after a restart %d processes were started, devices are %v", w.starts-starts, w.alive)
	}
}

// The responder's part: it keeps the keys before it answers, and gives the former up only when it is told over the new.
func TestRotateAnswers(t *testing.T) {
	w, e, f, _ := runningRotation(t)
	r := e.keys.tunnels[b0]
	r.t.Initiator = false
	secret, err := wgtypes.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	public := secret.PublicKey().String()
	good := rotation.Message{Verb: "propose", Generation: 1, Public: public, Preshared: secret.String()}
	for name, tt := range map[string]struct {
		device string
		change func(*rotation.Message)
		want   string
	}{
		"no key":                    {b0, func(m *rotation.Message) { m.Public = "x" }, "no key"},
		"no preshared key":          {b0, func(m *rotation.Message) { m.Preshared = "" }, "preshared"},
		"a preshared key of no use": {b0, func(m *rotation.Message) { m.Preshared = "x" }, "preshared"},
		"no generation":             {b0, func(m *rotation.Message) { m.Generation = 0 }, "no generation"},
		"a generation too large":    {b0, func(m *rotation.Message) { m.Generation = 1 << 40 }, "no generation"},
		"over what is not in use":   {b0first, func(*rotation.Message) {}, "given up"},
		"an unknown device":         {"eth0", func(*rotation.Message) {}, "keeps its keys"},
		"without BFD":               {c0, func(*rotation.Message) {}, "keeps its keys"},
		"no verb":                   {b0, func(m *rotation.Message) { m.Verb = "" }, "not understood"},
		"moved to nothing":          {b0, func(m *rotation.Message) { m.Verb = "moved" }, "not the next"},
		"not the initiator":         {b0, func(m *rotation.Message) { m.Verb = "rotate" }, "does not propose"},
	} {
		m := good
		tt.change(&m)
		if got := w.answerTo(e, tt.device, m); got.OK || !strings.Contains(got.Error, tt.want) || strings.Contains(got.Error, secret.String()) {
			t.Errorf("%s: %+v, error %q", name, got.OK, got.Error)
		}
		if r.t.Next != nil {
			t.Fatalf("%s: next is %+v", name, r.t.Next)
		}
	}
	// What cannot be kept is not promised.
	dir := KeysDir(w.stateDir)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if got := w.answerTo(e, b0, good); got.OK || r.t.Next != nil {
		t.Errorf("with a disk that fails: %v, next %+v", got.OK, r.t.Next)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	got := w.answerTo(e, b0, good)
	if key, err := overlay.ParsePublicKey(got.Public); !got.OK || err != nil || key == [32]byte{} {
		t.Fatalf("answer is ok %v, error %q", got.OK, got.Error)
	}
	if kept, _, err := e.cfg.Keys.Load(b0, "", w.now); err != nil || kept.Next == nil || kept.Next.Public != public {
		t.Errorf("kept is %+v, error %v", kept, err)
	}
	w.later(e, dialAfter)
	if got := w.answerTo(e, b0first, rotation.Message{Verb: "moved", Generation: 1}); got.OK || !strings.Contains(got.Error, "not up") {
		t.Errorf("moved before it is up: %v %q", got.OK, got.Error)
	}
	f.up(b0first)
	w.settle(e)
	w.expectRoute("up", b0first)
	if got := w.answerTo(e, b0first, rotation.Message{Verb: "moved", Generation: 1}); !got.OK {
		t.Errorf("moved: %q", got.Error)
	}
	if kept, _, err := e.cfg.Keys.Load(b0, "", w.now); err != nil || kept.Current.Generation != 1 || kept.Next != nil {
		t.Errorf("kept is %+v, error %v", kept, err)
	}
	w.later(e, rotation.Linger)
	if w.alive[b0] {
		t.Error("the former device is still there")
	}
}

// What the other end refuses is told, and tried again later; the present keys go on.
func TestRotateRefused(t *testing.T) {
	w, e, _, o := runningRotation(t)
	o.refuses = &rotation.RefusedError{Why: "this tunnel keeps its keys here"}
	if _, err := w.begin(e, b0); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.serve(e)
	if s := w.tunnel(e, b0); !strings.Contains(s.Rotation, "keeps its keys here; tried again at") || s.State != Up {
		t.Errorf("tunnel is %+v", s)
	}
	if files, _ := filepath.Glob(filepath.Join(KeysDir(w.stateDir), "*.key")); len(files) != 0 {
		t.Errorf("keys that came to nothing are kept: %v", files)
	}
	asked := len(o.asked)
	w.later(e, 5*time.Second)
	if len(o.asked) != asked {
		t.Errorf("asked again at once: %v", o.asked)
	}
	o.refuses = nil
	w.later(e, 10*time.Second)
	if e.keys.tunnels[b0].t.Next == nil {
		t.Errorf("not tried again: %v", o.asked)
	}
}

func TestRotateCannot(t *testing.T) {
	w, e, f, _ := runningRotation(t)
	if _, err := w.begin(e, "fxwnone"); !errors.Is(err, errNoTunnel) {
		t.Errorf("unknown device: %v", err)
	}
	for _, tt := range []struct {
		do   func()
		want string
	}{
		{func() { f.down(b0) }, "it is down"},
		{func() { e.plan.Tunnels[0].Slots = nil }, "no UDP ports"},
		{func() { e.plan.Tunnels[0].BFD = nil }, "without BFD"},
		{func() { e.plan.Tunnels[0].Kind = "tls" }, "of kind tls"},
		{func() { e.plan = nil }, "no plan yet"},
	} {
		tt.do()
		if _, err := w.begin(e, b0); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error is %v, want one with %q", err, tt.want)
		}
	}
}

// Other identity keys in the plan void what was agreed under the former ones.
func TestRotateOtherIdentity(t *testing.T) {
	w, e, _, _ := rotated(t)
	if e.keys.tunnels[b0].t.Current.Generation != 1 {
		t.Fatal("not rotated")
	}
	p := *e.plan
	p.Tunnels = slices.Clone(p.Tunnels)
	// An unrelated change keeps the keys.
	p.Tunnels[2].MTU = 1300
	w.take(e, p)
	if e.keys.tunnels[b0].t.Current.Generation != 1 || !w.alive[b0first] {
		t.Error("an unrelated change of the plan has dropped the keys")
	}
	p.Tunnels = slices.Clone(p.Tunnels)
	p.Tunnels[0].PublicKey = base64.StdEncoding.EncodeToString(append(make([]byte, 31), 9))
	w.take(e, p)
	if e.keys.tunnels[b0].t.Current.Generation != 0 || w.alive[b0first] || !w.alive[b0] {
		t.Errorf("keys are %+v, devices %v", e.keys.tunnels[b0].t.Record, w.alive)
	}
}

// A neighbour that took its sessions down by intent and is heard no more may have been made anew.
func TestRotateViewOfDrained(t *testing.T) {
	w, e, f, _ := runningRotation(t)
	f.turn(b0, bfd.Down, bfd.AdminDown)
	w.settle(e)
	if !e.view(e.keys.tunnels[b0]).Drained {
		t.Error("drained at the other end, and not seen")
	}
	w.age(RejectAfter+time.Second, b0)
	w.settle(e)
	if e.view(e.keys.tunnels[b0]).Drained {
		t.Error("still counts as drained")
	}
}

// Of two tunnels of equal rank one gets other keys: traffic is shared with its present generation or with the next, never by the two.
func TestRotateInAGroup(t *testing.T) {
	w := newWorld(t)
	e, f := w.withBFD()
	o := &otherEnd{public: base64.StdEncoding.EncodeToString(make([]byte, 32))}
	store, err := rotation.OpenStore(KeysDir(w.stateDir), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.Keys, e.cfg.Exchange = store, o
	p := rotationPlan(t, w)
	p.Tunnels[1].Rank = 0
	w.take(e, p)
	w.allUp()
	w.settle(e)
	f.up(b0, b1)
	w.age(time.Hour)
	w.settle(e)
	over := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		// nick knows another b1.
		if got := strings.Fields(strings.ReplaceAll(w.ways(), "b0", b0)); len(got) != len(want)+1 || got[0] != "group" || !slices.Equal(slices.Sorted(slices.Values(got[1:])), want) {
			t.Errorf("%s: the route is over %q, want a group of %q", what, got, want)
		}
	}
	over("at first", b0, b1)
	if _, err := w.begin(e, b0); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.serve(e)
	w.later(e, dialAfter)
	over("before the next keys are up", b0, b1)
	f.up(b0first)
	over("as soon as they are up", b0first, b1)
	w.settle(e)
	over("after a pass", b0first, b1)
	w.serve(e)
	w.later(e, rotation.Linger)
	over("afterwards", b0first, b1)
	if v := e.State().VTEPs[0]; !strings.HasSuffix(v.Reason, "; shared by 2 tunnels of rank 0") {
		t.Errorf("told is %+v", v)
	}
	if w.alive[b0] {
		t.Error("the former device is still there")
	}
	f.down(b0first)
	over("without it", b1)
}

// A gateway is reached over hubs b and c, and b does not bring packets on: that it gets other keys is no reason to try it again.
func TestRotationLeavesABlamedHubAlone(t *testing.T) {
	w, e, f, _ := runningRotation(t)
	p := rotationPlan(t, w)
	hubs := hubPlan("b", "c")
	p.Tunnels[2].BFD, p.VTEPs = hubs.Tunnels[2].BFD, hubs.VTEPs
	w.take(e, p)
	w.allUp()
	w.settle(e)
	f.up(c0)
	f.crossUp()
	w.age(time.Hour)
	w.expectD(e, "at first", b0, b0)
	f.signaled()
	f.crossUp()
	w.expectD(e, "hub b is blamed", c0, c0)

	if _, err := w.begin(e, b0); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	w.serve(e)
	w.later(e, dialAfter)
	if !w.alive[b0first] {
		t.Fatal("no device for the next keys")
	}
	w.expectD(e, "the next keys' device is there", c0, c0)
	f.up(b0first)
	w.expectD(e, "they are up", c0, c0)
	w.expectRoute("to the hub itself", b0first)
}

// Where both ends could dial, the one that answers leaves it to the other for a while: handshakes that cross help nobody.
func TestRotateDialsOneWay(t *testing.T) {
	far := netip.MustParseAddrPort("192.0.2.2:52076")
	for _, initiator := range []bool{true, false} {
		w, e, _, _ := runningRotation(t)
		p := rotationPlan(t, w)
		p.Tunnels[0].PrivateKeyFile = e.plan.Tunnels[0].PrivateKeyFile
		p.Tunnels[0].Slots[0].Endpoint = far
		w.take(e, p)
		r := e.keys.tunnels[b0]
		r.t.Initiator = initiator
		if initiator {
			if _, err := w.begin(e, b0); err != nil {
				t.Fatal(err)
			}
		} else {
			secret, err := wgtypes.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			if got := w.answerTo(e, b0, rotation.Message{Verb: "propose", Generation: 1, Public: secret.PublicKey().String(), Preshared: secret.String()}); !got.OK {
				t.Fatal(got)
			}
		}
		w.settle(e)
		w.serve(e)
		dials := func() (there bool, endpoint netip.AddrPort) {
			have, err := w.k.WireGuards().Observe(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return w.alive[b0first], have[b0first].Peer.Endpoint
		}
		if there, _ := dials(); there == initiator {
			t.Errorf("initiator %v: device is there at once: %v", initiator, there)
		}
		w.later(e, dialAfter)
		if there, to := dials(); !there || (to == far) != initiator {
			t.Errorf("initiator %v: device is there: %v, dials %v", initiator, there, to)
		}
		w.later(e, yield)
		if there, to := dials(); !there || to != far {
			t.Errorf("initiator %v: in the end the device is there: %v, dials %v", initiator, there, to)
		}
	}
}
