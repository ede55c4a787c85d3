package links

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"fabric/overlay"
	"fabric/overlay/bfd"
	"fabric/overlay/links/rotation"
)

// kindKeys is the kind of object that stands for the keys of a tunnel.
const kindKeys = "keys"

// KeyExchange carries messages between the two ends of tunnels, inside them; *rotation.Exchange is one. Its answers must be Engine.Answer's.
type KeyExchange interface {
	// Listen takes the whole set of devices to answer on. The error is about those that are not ready.
	Listen([]rotation.End) error
	// Ask puts a question to the other end.
	Ask(context.Context, rotation.End, rotation.Message) (rotation.Message, error)
}

// rotations are the keys of all tunnels. They belong to Run's goroutine.
type rotations struct {
	// digest of the plan they were made for.
	digest string
	// tunnels by the device of the plan.
	tunnels map[string]*rotating
	// planned is the device of the plan for each that there may be.
	planned map[string]string
	// writes counts what was put on the disk in this pass; the next one begins behind last.
	writes int
	last   string
}

// rotating are the keys of one tunnel.
type rotating struct {
	t    rotation.Tunnel
	plan overlay.Tunnel
	// busy: a question is under way.
	busy bool
	// dial is when the next keys are brought up by an end that dials: the other one is ready by then, and a handshake that finds nobody is
	// repeated only after 5 s (REKEY_TIMEOUT).
	dial time.Time
	// kept: the record is on disk. Problem is why the former one could not be used.
	kept    bool
	problem error
}

// adopt makes the keys known of the tunnels of a plan that can have others than the plan's.
func (e *Engine) adopt(plan overlay.Plan) {
	if e.cfg.Keys == nil || e.keys.digest == plan.Digest() {
		return
	}
	was := e.keys.tunnels
	e.keys = rotations{digest: plan.Digest(), tunnels: map[string]*rotating{}, planned: map[string]string{}}
	there := map[string]bool{}
	for _, t := range plan.Tunnels {
		for _, d := range t.Devices() {
			e.keys.planned[d] = t.Device
		}
		there[t.Device] = t.Kind == overlay.KindWireGuard
		if len(t.Slots) == 0 || t.Kind != overlay.KindWireGuard {
			continue
		}
		identity := identityOf(t)
		r := was[t.Device]
		if r == nil || identity != "" && r.t.Identity != identity {
			record, kept, err := e.cfg.Keys.Load(t.Device, identity, e.cfg.Wall())
			r = &rotating{t: rotation.Load(record, plan.Gateway < t.Remote), kept: kept, problem: err}
			if err != nil {
				e.cfg.Log.Error("tunnel goes back to its identity keys", "tunnel", t.Name, "err", err)
			}
		}
		r.plan, r.t.Age = t, time.Duration(t.RekeyAge)*time.Second
		if !e.judged(t) && r.t.Current.Generation == 0 && r.t.Next == nil {
			continue
		}
		e.keys.tunnels[t.Device] = r
	}
	// A plan that says nothing of other keys, from an older fabric-site, is no reason to destroy those of a tunnel that is still there.
	if err := e.cfg.Keys.Forget(func(d string) bool { return there[d] }); err != nil {
		e.cfg.Log.Warn("keys of tunnels that are gone stay on disk", "err", err)
	}
}

// judged says whether BFD tells of a tunnel if it is up. Without it keys stay what they are.
func (e *Engine) judged(t overlay.Tunnel) bool { return t.BFD != nil && e.cfg.BFD != nil }

// identityOf is a digest of the keys that the document gives a tunnel's ends, "" if our own cannot be read now.
func identityOf(t overlay.Tunnel) string {
	data, err := os.ReadFile(t.PrivateKeyFile)
	if err != nil {
		return ""
	}
	private, err := wgtypes.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		return ""
	}
	s := sha256.Sum256([]byte(private.PublicKey().String() + " " + t.PublicKey))
	return hex.EncodeToString(s[:8])
}

// expand is the plan with each tunnel as often as generations of its keys are up, the next one first, and with their keys.
func (e *Engine) expand(plan overlay.Plan) overlay.Plan {
	plan.Tunnels = plan.Slotted()
	e.adopt(plan)
	if len(e.keys.tunnels) == 0 {
		return plan
	}
	devices := map[string][]string{}
	tunnels := make([]overlay.Tunnel, 0, len(plan.Tunnels))
	for _, t := range plan.Tunnels {
		r := e.keys.tunnels[t.Device]
		if r == nil {
			tunnels, devices[t.Device] = append(tunnels, t), []string{t.Device}
			continue
		}
		live, ways := r.t.Live()
		for i, k := range live {
			one, _ := t.In(overlay.SlotOf(k.Generation))
			if i == 0 && r.t.Next != nil && one.Endpoint.IsValid() {
				switch now := e.cfg.Now(); {
				case r.t.Initiator && now.Before(r.dial):
					continue
				case !r.t.Initiator && now.Before(r.dial.Add(yield)):
					one.Endpoint = netip.AddrPort{}
				}
			}
			one.Slots, one.Planned = nil, t.Device
			if k.Generation > 0 {
				one.PublicKey, one.PrivateKeyFile, one.PresharedKeyFile = k.Public, k.PrivateKeyFile, k.PresharedKeyFile
			}
			tunnels = append(tunnels, one)
			if i < ways {
				devices[t.Device] = append(devices[t.Device], one.Device)
			}
		}
	}
	plan.Tunnels = tunnels
	vteps := slices.Clone(plan.VTEPs)
	for i := range vteps {
		var all []string
		for _, d := range vteps[i].Devices {
			all = append(all, devices[d]...)
		}
		vteps[i].Devices = all
	}
	plan.VTEPs = vteps
	return plan
}

// plannedDevice is the device by which the plan names the tunnel of a device.
func (e *Engine) plannedDevice(device string) string { return cmp.Or(e.keys.planned[device], device) }

// spread is a set of the plan's devices with all devices that their tunnels may have.
func (e *Engine) spread(devices map[string]bool) map[string]bool {
	all := maps.Clone(devices)
	for d, planned := range e.keys.planned {
		if devices[planned] {
			all[d] = true
		}
	}
	return all
}

// prompt are the devices of keys that are to follow: traffic moves there as soon as they are up.
func (e *Engine) prompt() map[string]bool {
	devices := map[string]bool{}
	for _, r := range e.keys.tunnels {
		if r.t.Next != nil {
			one, _ := r.plan.In(overlay.SlotOf(r.t.Next.Generation))
			devices[one.Device] = true
		}
	}
	return devices
}

// view is what the repair table says of a tunnel's generations.
func (e *Engine) view(r *rotating) rotation.View {
	e.repair.mu.Lock()
	defer e.repair.mu.Unlock()
	v := rotation.View{Drained: e.drained[r.plan.Device] || !e.judged(r.plan)}
	up := map[int]bool{}
	live, ways := r.t.Live()
	away := 0
	for _, k := range live[:ways] {
		one, _ := r.plan.In(overlay.SlotOf(k.Generation))
		if l := e.repair.legs[one.Device]; l != nil {
			up[k.Generation] = l.bfd && l.usable && l.state == bfd.Up
			v.Detection = max(v.Detection, l.detection)
			// What was drained long ago by one who is not heard of any more may have been made anew.
			if l.remoteDrained && l.fresh {
				away++
			}
		}
	}
	v.Drained = v.Drained || away == ways
	v.Up = func(generation int) bool { return up[generation] }
	return v
}

// mostWrites bounds how many tunnels' keys are put on the disk in one pass, each with a handful of fsyncs: a pass that does so for hundreds of
// tunnels at once would leave all of them alone for seconds.
const mostWrites = 8

// rotate takes each tunnel's keys on by a step. exists says whether a device is there.
func (e *Engine) rotate(p *pass, exists func(device string) bool) {
	if e.cfg.KeysProblem != nil {
		p.note(kindKeys, "*", e.cfg.KeysProblem)
	}
	if e.cfg.Keys == nil {
		return
	}
	now := e.cfg.Now()
	var ends []rotation.End
	devices := slices.Sorted(maps.Keys(e.keys.tunnels))
	first, found := slices.BinarySearch(devices, e.keys.last)
	if found {
		first++
	}
	e.keys.writes, e.keys.last = 0, ""
	for i := range devices {
		d := devices[(first+i)%len(devices)]
		r := e.keys.tunnels[d]
		if e.keys.writes < mostWrites {
			e.stepKeys(p, r, now)
			if e.keys.writes >= mostWrites {
				e.keys.last = d
				e.Wake()
			}
		} else {
			p.note(kindKeys, r.plan.Name, r.problem)
		}
		live, _ := r.t.Live()
		for _, k := range live {
			if one := r.end(k.Generation); exists(one.Device) {
				ends = append(ends, one)
			}
		}
	}
	if err := e.cfg.Exchange.Listen(ends); err != nil {
		p.note(kindKeys, "exchange", err)
	}
}

// stepKeys takes one tunnel's keys on.
func (e *Engine) stepKeys(p *pass, r *rotating, now time.Time) {
	before, _ := r.t.Live()
	next, action := r.t.Step(now, e.view(r))
	err := e.keep(r, next)
	if err == nil && !r.kept && r.plan.RekeyAge > 0 {
		// The age counts from now on.
		err = e.save(r, r.t.Record, nil)
		r.kept = err == nil
	}
	p.note(kindKeys, r.plan.Name, errors.Join(r.problem, err))
	after, _ := r.t.Live()
	if !reflect.DeepEqual(before, after) {
		p.changes++
		e.cfg.Log.Info("tunnel keys", "tunnel", r.plan.Name, "generation", r.t.Current.Generation, "now", r.describe(now))
	}
	if err == nil && action != nil && !r.busy {
		e.ask(p.ctx, r, *action)
	}
}

// save puts a record on the disk.
func (e *Engine) save(r *rotating, record rotation.Record, keep []rotation.Key) error {
	e.keys.writes++
	e.beat()
	return e.cfg.Keys.Save(r.plan.Device, record, keep)
}

// dialAfter is what the end that dials gives the other to get ready. Where both could dial the one that proposed does: two handshakes that
// cross make each end wait for the other until they are repeated, 15 s later at worst. The other end yields for a while.
const (
	dialAfter = time.Second
	yield     = 3 * time.Second
)

// keep puts a state in force, on disk first if what is kept there changes: the files of keys that are over go with it.
func (e *Engine) keep(r *rotating, next rotation.Tunnel) error {
	was, _ := r.t.Live()
	live, _ := next.Live()
	if !reflect.DeepEqual(r.t.Record, next.Record) || !reflect.DeepEqual(was, live) {
		if err := e.save(r, next.Record, live); err != nil {
			return err
		}
		r.kept, r.problem = true, nil
	}
	if next.Next != nil && (r.t.Next == nil || *next.Next != *r.t.Next) {
		r.dial = e.cfg.Now().Add(dialAfter)
	}
	if next.Trouble != "" && next.Trouble != r.t.Trouble {
		e.cfg.Log.Warn("keys of tunnel were not replaced; the present ones stay", "tunnel", r.plan.Name, "why", next.Trouble)
	}
	r.t = next
	return nil
}

// end is where the two ends of a generation's device speak.
func (r *rotating) end(generation int) rotation.End {
	one, _ := r.plan.In(overlay.SlotOf(generation))
	return rotation.End{Device: one.Device, Local: one.LinkLocal, Remote: one.RemoteLinkLocal}
}

// ask puts a question to the other end, beside the loop, and brings the answer back into it.
func (e *Engine) ask(ctx context.Context, r *rotating, a rotation.Action) {
	m := rotation.Message{Verb: a.Verb.String(), Generation: a.Generation}
	var key rotation.Key
	if a.Verb == rotation.Propose {
		e.keys.writes++
		var err error
		if key, m.Preshared, err = e.cfg.Keys.NewKeys(r.plan.Device, a.Generation, "", e.cfg.Wall().Round(0)); err != nil {
			_ = e.keep(r, r.t.Failed(e.cfg.Now(), err.Error()))
			return
		}
		m.Public = key.Own
	}
	r.busy = true
	end := r.end(a.Over)
	e.asking.Go(func() {
		answer, err := e.cfg.Exchange.Ask(ctx, end, m)
		_ = e.call(ctx, func() {
			r.busy = false
			if e.keys.tunnels[r.plan.Device] != r {
				return // the plan has changed
			}
			e.answered(r, a, key, answer, err)
			e.Wake()
		})
	})
}

// answered takes the other end's answer.
func (e *Engine) answered(r *rotating, a rotation.Action, key rotation.Key, answer rotation.Message, err error) {
	now, next := e.cfg.Now(), r.t
	switch a.Verb {
	case rotation.Propose:
		if err == nil {
			key.Public = answer.Public
			if _, err = overlay.ParsePublicKey(answer.Public); err == nil {
				next, err = next.Agreed(now, a.Over, key)
			}
		}
		if err == nil {
			err = e.keep(r, next)
		}
		if err != nil {
			_ = e.keep(r, r.t.Failed(now, err.Error()))
			// What was made for it goes.
			live, _ := r.t.Live()
			if err := e.save(r, r.t.Record, live); err != nil {
				e.cfg.Log.Warn("keys that came to nothing stay on disk", "tunnel", r.plan.Name, "err", err)
			}
		}
		return
	case rotation.Moved:
		if err != nil {
			e.cfg.Log.Debug("the other end has not followed yet", "tunnel", r.plan.Name, "err", err)
			return
		}
		next = next.Confirmed(now, a.Generation)
	case rotation.Ask:
		if err != nil {
			next = next.Failed(now, err.Error())
			break
		}
		next.Asked = false
	}
	if err := e.keep(r, next); err != nil {
		e.cfg.Log.Warn("keys of tunnel stay in doubt", "tunnel", r.plan.Name, "err", err)
	}
}

// maxGeneration bounds what another's message can make of a file name.
const maxGeneration = 1 << 30

// Answer answers a question that came over a tunnel's device.
func (e *Engine) Answer(ctx context.Context, device string, m rotation.Message) rotation.Message {
	var answer rotation.Message
	err := e.call(ctx, func() {
		public, err := e.answer(device, m)
		if err != nil {
			e.cfg.Log.Info("key exchange: refused", "device", device, "what", m.String(), "why", err)
			answer = rotation.Message{Error: err.Error()}
			return
		}
		answer = rotation.Message{OK: true, Generation: m.Generation, Public: public}
		e.Wake()
	})
	if err != nil {
		return rotation.Message{Error: "busy"}
	}
	return answer
}

func (e *Engine) answer(device string, m rotation.Message) (public string, err error) {
	r := e.keys.tunnels[e.keys.planned[device]]
	if r == nil {
		return "", errors.New("this tunnel keeps its keys here")
	}
	if e.drained[r.plan.Device] {
		return "", errors.New("the tunnel is drained here")
	}
	over := -1
	live, ways := r.t.Live()
	for _, k := range live[:ways] {
		if r.end(k.Generation).Device == device {
			over = k.Generation
		}
	}
	if over < 0 {
		return "", errors.New("it came over keys that were given up")
	}
	now := e.cfg.Now()
	switch m.Verb {
	case rotation.Propose.String():
		if r.t.Initiator {
			return "", errors.New("this end is the one that proposes")
		}
		if _, err := overlay.ParsePublicKey(m.Public); err != nil || m.Generation < 1 || m.Generation > maxGeneration {
			return "", errors.New("the proposal has no key or no generation")
		}
		if _, err := r.t.Agreed(now, over, rotation.Key{Generation: m.Generation}); err != nil {
			return "", err
		}
		if m.Preshared == "" {
			return "", errors.New("the proposal has no preshared key")
		}
		key, _, err := e.cfg.Keys.NewKeys(r.plan.Device, m.Generation, m.Preshared, e.cfg.Wall().Round(0))
		if err != nil {
			return "", err
		}
		key.Public = m.Public
		next, err := r.t.Agreed(now, over, key)
		if err != nil {
			return "", err
		}
		return key.Own, e.keep(r, next)
	case rotation.Moved.String():
		next, err := r.t.Follow(now, m.Generation, e.view(r))
		if err != nil {
			return "", err
		}
		return "", e.keep(r, next)
	case rotation.Abandon.String():
		return "", e.keep(r, r.t.GivenUp(over, m.Generation))
	case rotation.Ask.String():
		if !r.t.Initiator {
			return "", errors.New("this end does not propose")
		}
		return "", e.keep(r, r.t.Begin())
	}
	return "", errors.New("not understood")
}

var errNoRotation = errors.New("its keys cannot be replaced")

// Rotate has the keys of the tunnel of a device replaced. It returns the generation of the present ones at once; how it goes is in the state.
func (e *Engine) Rotate(ctx context.Context, device string) (generation int, err error) {
	if called := e.call(ctx, func() {
		var r *rotating
		if r, err = e.rotatable(device); err == nil {
			generation = r.t.Current.Generation
			err = e.keep(r, r.t.Begin())
			e.cfg.Log.Info("tunnel keys are to be replaced", "tunnel", r.plan.Name, "generation", generation)
			e.Wake()
		}
	}); called != nil {
		return 0, called
	}
	return generation, err
}

// rotatable finds the keys of a tunnel that can be replaced now.
func (e *Engine) rotatable(device string) (*rotating, error) {
	device = e.plannedDevice(device)
	if e.plan == nil {
		return nil, fmt.Errorf("rotate %s: %w: fabric-links has no plan yet", device, errNoTunnel)
	}
	tunnels := e.plan.Slotted()
	i := slices.IndexFunc(tunnels, func(t overlay.Tunnel) bool { return t.Device == device })
	if i < 0 {
		return nil, fmt.Errorf("rotate %s: %w: it is not a tunnel device of %s; fabric-links status lists them", device, errNoTunnel, e.plan.Gateway)
	}
	t := tunnels[i]
	no := func(format string, args ...any) (*rotating, error) {
		return nil, fmt.Errorf("rotate %s: %w: "+format, append([]any{t.Name, errNoRotation}, args...)...)
	}
	r := e.keys.tunnels[device]
	switch {
	case t.Kind != "wireguard":
		return no("it is of kind %s, only those of kind wireguard have keys that are replaced", t.Kind)
	case t.BFD == nil || e.cfg.BFD == nil:
		return no("nothing tells whether new keys work without BFD on it")
	case len(t.Slots) == 0:
		return no("there are no UDP ports for other keys; choose a lower wireguard-port or public-port, and open those that fabric-site check names")
	case r == nil && e.cfg.KeysProblem != nil:
		return no("fabric-links keeps no keys: %w", e.cfg.KeysProblem)
	case r == nil:
		return no("fabric-links keeps no keys")
	case e.drained[device]:
		return no("it is drained; undrain it first")
	}
	v := e.view(r)
	live, ways := r.t.Live()
	if v.Drained || !slices.ContainsFunc(live[:ways], func(k rotation.Key) bool { return v.Up(k.Generation) }) {
		return no("it is down, and keys are agreed inside it")
	}
	return r, nil
}

// call runs f on Run's goroutine.
func (e *Engine) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case e.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nextRotation is when time alone takes some tunnel's keys on, zero for never.
func (e *Engine) nextRotation(now time.Time) (next time.Time) {
	for _, r := range e.keys.tunnels {
		for _, at := range []time.Time{r.t.Wake(now), r.dial, r.dial.Add(yield)} {
			if at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// describe says what goes on with a tunnel's keys, "" for nothing.
func (r *rotating) describe(now time.Time) string {
	live, ways := r.t.Live()
	switch {
	case r.t.Next != nil:
		return fmt.Sprintf("generation %d is brought up on %s", r.t.Next.Generation, r.end(r.t.Next.Generation).Device)
	case ways > 1:
		return fmt.Sprintf("generation %d is down; the identity keys are up beside on %s", r.t.Current.Generation, r.plan.Device)
	case len(live) > ways:
		return fmt.Sprintf("generation %d goes", live[ways].Generation)
	case r.t.Trouble != "" && r.t.Retry.After(now):
		return fmt.Sprintf("%s; tried again at %s UTC", r.t.Trouble, r.t.Retry.UTC().Format(time.TimeOnly))
	case r.t.Trouble != "":
		return r.t.Trouble
	case r.t.Asked:
		return "new keys are asked for"
	}
	return ""
}

// fold makes one state of those of a tunnel's generations: that of the one which carries traffic, else of the present one.
func (e *Engine) fold(states []TunnelState, now time.Time) []TunnelState {
	var out []TunnelState
	at := map[string]int{}
	for _, s := range states {
		planned := e.plannedDevice(s.Device)
		r := e.keys.tunnels[planned]
		if r == nil {
			out = append(out, s)
			continue
		}
		s.Name = r.plan.Name
		s.KeyGeneration, s.KeyMade, s.Rotation = r.t.Current.Generation, r.t.Current.Made, r.describe(now)
		i, seen := at[planned]
		switch {
		case !seen:
			at[planned] = len(out)
			out = append(out, s)
		case s.Active || !out[i].Active && s.Device == r.end(r.t.Current.Generation).Device:
			out[i] = s
		}
	}
	return out
}
