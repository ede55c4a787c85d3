package links

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"syscall"
	"time"

	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// Sessions runs BFD; *bfd.Engine is one. Its OnChange must call Engine.SessionChanged.
type Sessions interface {
	// Configure takes the whole set.
	Configure([]bfd.SessionConfig) error
	// States and Totals are snapshots. They may wait for SessionChanged to return.
	States() []bfd.Status
	Totals() bfd.Totals
}

// SessionChanged takes a change of a BFD session, on the BFD engine's thread: it writes one route per remote VTEP and one object per
// next-hop set that is concerned, waits for nothing else, and has the rest done by the next pass.
func (e *Engine) SessionChanged(c bfd.Change) {
	e.repair.changed(c)
	select {
	case e.urgent <- struct{}{}:
	default:
	}
}

// tunnelPath is the path of a tunnel's session.
func tunnelPath(t overlay.Tunnel) bfd.Path {
	return bfd.Path{Interface: t.Device, Local: t.LinkLocal, Peer: t.RemoteLinkLocal}
}

func params(b overlay.BFD) bfd.Params {
	interval := time.Duration(b.IntervalMs) * time.Millisecond
	// Multipliers beyond a byte are refused, not cut.
	mult := uint8(0)
	if b.Multiplier > 0 && b.Multiplier < 256 {
		mult = uint8(b.Multiplier)
	}
	return bfd.Params{DesiredMinTx: interval, RequiredMinRx: interval, DetectMult: mult, Independent: true}
}

// sessionPath is the path of a third-party peer's session.
func sessionPath(s overlay.Session) bfd.Path {
	return bfd.Path{VRF: s.VRFDevice, Interface: s.Interface, Local: s.Local, Peer: s.Remote, Multihop: s.Multihop}
}

// sessionConfig reads what the session needs.
func sessionConfig(s overlay.Session) (bfd.SessionConfig, error) {
	c := bfd.SessionConfig{Name: s.Name, Path: sessionPath(s), Params: params(s.BFD)}
	if s.Multihop {
		if s.MinTTL < 0 || s.MinTTL > 255 {
			return c, fmt.Errorf("minimum TTL %d is not within 0 to 255", s.MinTTL)
		}
		c.MinTTL = uint8(s.MinTTL)
	}
	types := map[string]bfd.AuthType{"simple": bfd.SimplePassword, "sha1": bfd.KeyedSHA1, "meticulous-sha1": bfd.MeticulousKeyedSHA1}
	if s.Auth == "" {
		return c, nil
	}
	kind, known := types[s.Auth]
	if !known {
		return c, fmt.Errorf("authentication %q is not known: want simple, sha1 or meticulous-sha1", s.Auth)
	}
	if s.KeyID < 0 || s.KeyID > 255 {
		return c, fmt.Errorf("key id %d is not within 0 to 255", s.KeyID)
	}
	secret, err := readSecret(s.KeyFile)
	if err != nil {
		return c, err
	}
	c.Auth = &bfd.Auth{Type: kind, Keys: []bfd.Key{{ID: uint8(s.KeyID), Secret: secret}}}
	return c, nil
}

// readSecret reads a key: the file's first line, without its end.
func readSecret(path string) (bfd.Secret, error) {
	const most = 256
	// Not to wait for a writer if someone put a FIFO there.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("BFD key file: %w; write the key the neighbour has to it, with mode 0600", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("BFD key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("BFD key file %s is not a regular file; name one", path)
	}
	if mode := info.Mode().Perm(); mode&^0o600 != 0 {
		return nil, fmt.Errorf("BFD key file %s has mode %04o, others could read it: %w; chmod 600 it, and change the key if others may have read it", path, mode, os.ErrPermission)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("BFD key file %s belongs to user %d: %w; chown it to root", path, st.Uid, os.ErrPermission)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, fmt.Errorf("BFD key file: %w", err)
	}
	for i, b := range data {
		if b == '\n' || b == '\r' {
			data = data[:i]
			break
		}
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("BFD key file %s is empty; write the key the neighbour has to it", path)
	}
	return data, nil
}

// configureSessions makes the BFD sessions those of the plan. exists says whether a tunnel's device is there.
func (e *Engine) configureSessions(p *pass, plan overlay.Plan, exists func(device string) bool) {
	if e.cfg.BFD == nil {
		return
	}
	var want []bfd.SessionConfig
	taken := map[bfd.Path]string{}
	add := func(name string, c bfd.SessionConfig, err error) {
		if err == nil {
			err = c.Validate()
		}
		if other, twice := taken[c.Path]; err == nil && twice {
			err = fmt.Errorf("it has the same path as session %q: remove one of them", other)
		}
		if p.note(kindSession, name, err); err == nil {
			taken[c.Path] = name
			want = append(want, c)
		}
	}
	for _, t := range plan.Tunnels {
		if t.BFD == nil {
			continue
		}
		c := bfd.SessionConfig{Name: t.Name, Path: tunnelPath(t), Params: params(*t.BFD), AdminDown: e.drained[e.plannedDevice(t.Device)]}
		if !exists(t.Device) && !slices.ContainsFunc(e.configured, func(old bfd.SessionConfig) bool { return old.Path == c.Path }) {
			p.note(kindSession, t.Name, &pendingError{"device " + t.Device})
			continue
		}
		add(t.Name, c, nil)
	}
	for _, c := range transitConfigs(plan) {
		add(c.Name, c, nil)
	}
	for _, s := range plan.Sessions {
		c, err := sessionConfig(s)
		add(s.Name, c, err)
	}
	if reflect.DeepEqual(want, e.configured) {
		return
	}
	if err := e.cfg.BFD.Configure(want); err != nil {
		// Each was found right, and no two alike.
		p.note(kindSession, "*", err)
		return
	}
	e.configured = want
}

// expect makes the repair table know the plan's tunnels and VTEPs, before their sessions begin and before routes are chosen.
func (r *repair) expect(plan overlay.Plan, drained map[string]bool, withBFD bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	known := map[string]bool{}
	r.paths = map[bfd.Path]string{}
	for _, t := range plan.Tunnels {
		known[t.Device] = true
		l := r.legs[t.Device]
		if l == nil {
			// Until it is looked at, nothing speaks against it.
			l = &leg{usable: true, drained: drained[t.Device]}
			r.legs[t.Device] = l
		}
		if t.BFD == nil || !withBFD {
			l.bfd = false
			continue
		}
		path := tunnelPath(t)
		l.detection = time.Duration(t.BFD.IntervalMs*t.BFD.Multiplier) * time.Millisecond
		if !l.bfd || l.path != path {
			l.bfd, l.path, l.state, l.reason, l.remoteDrained = true, path, bfd.Down, "", false
			l.trust = now.Add(l.detection + slowStart)
		}
		r.paths[path] = t.Device
	}
	maps.DeleteFunc(r.legs, func(d string, _ *leg) bool { return !known[d] })
	ranks, tunnels, shared := map[string]int{}, map[string]string{}, map[string]bool{}
	if r.share {
		shared = plan.Shared()
	}
	for _, t := range plan.Tunnels {
		ranks[t.Device], tunnels[t.Device] = t.Rank, t.Of()
	}
	ways := make([]*way, 0, len(plan.VTEPs))
	for _, v := range plan.VTEPs {
		own := map[string]bool{}
		for _, d := range v.Devices {
			if shared[d] {
				own[d] = true
			}
		}
		w := newWay(v, ranks, hubPlaces(plan, v), tunnels, own, r.ways, now)
		if withBFD && v.BFD != nil && len(v.Via) > 0 {
			w.transit = newTransit(plan, v, now)
			if i := slices.IndexFunc(r.ways, func(old *way) bool { return old.key == w.key }); i >= 0 {
				if old := r.ways[i]; old.transit == nil && len(old.current) > 0 {
					// It was reached otherwise so far.
					w.transit.adopt("", now)
				} else {
					w.transit.inherit(old.transit)
				}
			}
		}
		ways = append(ways, w)
	}
	r.ways, r.own = ways, plan.VTEP
	gateways := map[string]netip.Addr{}
	for _, t := range plan.Tunnels {
		gateways[t.Device] = throughGateway(t)
	}
	r.route = func(device string) kernel.Route { return vtepRoute(plan.VTEP, device, gateways[device]) }
	r.expectSets(plan, withBFD, now)
}

// heard takes what snapshots show of neighbours whose operator holds a session down since before it began here: that is no change.
// changes are those counted before the snapshot: after a later change it is stale.
func (r *repair) heard(states map[bfd.Path]bfd.Status, changes map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, device := range r.paths {
		l, st := r.legs[device], states[path]
		if l.state == bfd.Down && st.State == bfd.Down && st.Remote == bfd.AdminDown && st.RemoteDiscriminator != 0 && l.changes == changes[device] {
			l.remoteDrained = true
		}
	}
	r.heardSets(states, changes)
	for _, w := range r.ways {
		if t := w.transit; t != nil && t.state == bfd.Down {
			if st := states[t.path]; st.State == bfd.Down && st.Remote == bfd.AdminDown && st.RemoteDiscriminator != 0 {
				t.excused = r.now().Add(excuse)
			}
		}
	}
}

// counts are how many changes each leg has seen.
func (r *repair) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for d, l := range r.legs {
		counts[d] = l.changes
	}
	r.setCounts(counts)
	return counts
}

// bfdStates asks the BFD engine, and lets the repair table know.
func (e *Engine) bfdStates() map[bfd.Path]bfd.Status {
	if e.cfg.BFD == nil {
		return nil
	}
	counts := e.repair.counts()
	states := map[bfd.Path]bfd.Status{}
	for _, st := range e.cfg.BFD.States() {
		states[st.Path] = st
	}
	e.repair.heard(states, counts)
	return states
}

// sessionStates are the plan's sessions as they are, those on tunnels first. missing says why one was not configured.
func sessionStates(plan overlay.Plan, states map[bfd.Path]bfd.Status, missing func(name string) string) []SessionState {
	var out []SessionState
	add := func(s SessionState, path bfd.Path) {
		s.Interface, s.Local, s.Remote, s.Multihop = path.Interface, path.Local, path.Peer, path.Multihop
		st, there := states[path]
		if !there || st.Leaving {
			s.State, s.Problem = bfd.Down.String(), missing(s.Name)
			s.Reason = "not configured"
			out = append(out, s)
			return
		}
		s.State, s.Reason, s.Since = st.State.String(), st.Reason, st.Since
		s.RemoteState, s.RemoteDiag = st.Remote.String(), st.RemoteDiag.String()
		s.RemoteAdminDown = st.Remote == bfd.AdminDown && st.RemoteDiscriminator != 0
		s.TxInterval, s.Detection = st.TxInterval, st.DetectionTime
		s.Received, s.Sent, s.Ups, s.Downs, s.Problem = st.Received, st.Sent, st.Ups, st.Downs, st.Problem
		if len(st.Dropped) > 0 {
			s.Dropped = st.Dropped
		}
		out = append(out, s)
	}
	for _, t := range plan.Tunnels {
		if t.BFD != nil {
			add(SessionState{Name: t.Name, Device: t.Device}, tunnelPath(t))
		}
	}
	for _, c := range transitConfigs(plan) {
		add(SessionState{Name: c.Name}, c.Path)
	}
	for _, s := range plan.Sessions {
		add(SessionState{Name: s.Name, VRF: s.VRF, Peer: s.Peer}, sessionPath(s))
	}
	return out
}

// publishSessions tells of a session's change before the pass that follows it.
func (e *Engine) publishSessions() {
	was := e.State()
	if e.plan == nil || e.cfg.BFD == nil || was.Digest != e.plan.Digest() {
		return
	}
	problems := map[string]string{}
	for _, s := range was.Sessions {
		problems[s.Name] = s.Problem
	}
	s := *was
	s.Sessions = sessionStates(e.effective, e.bfdStates(), func(name string) string { return problems[name] })
	e.publish(&s)
}

// farewell is how long neighbours are told at the end that the sessions go by intent.
const farewell = 2 * time.Second

// leave ends the sessions such that neighbours take it for intent, not for a failure: they keep forwarding over tunnels that they have no
// better way beside. Routes stay as they are.
func (e *Engine) leave() {
	e.repair.close()
	if e.cfg.BFD == nil {
		return
	}
	if err := e.cfg.BFD.Configure(nil); err != nil {
		e.cfg.Log.Warn("BFD sessions end without a word", "err", err)
		return
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(farewell)
	defer late.Stop()
	for len(e.cfg.BFD.States()) > 0 {
		select {
		case <-tick.C:
		case <-late.C:
			return
		}
	}
}
