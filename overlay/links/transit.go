package links

import (
	"fmt"
	"slices"
	"time"

	"fabric/overlay"
	"fabric/overlay/bfd"
)

// transit is what the choice knows of a VTEP that is reached over hubs. The tunnels to the hubs have sessions of their own; one more, over
// several hops between the two VTEPs, takes the same way as traffic and tells whether the hub brings it on.
//
// It is one for both directions, and each end chooses its hub by itself. So an end that hears nothing does not know whose choice is bad:
//
//	neighbour says it hears nothing ──── our way is bad ──► the hub is blamed, the next one taken at once
//	neighbour is heard, and stays Down ─ so it is ────────► the same after a detection time
//	nothing is heard ─────────────────── theirs may be ───► the same if patience does not help
//
// A hub that was blamed is not returned to while another leads there: nothing tells that it would bring packets on again. The route stays on
// a hub also while the VTEP counts as unreachable: the session needs it to come up, and the hub has a backstop, so nothing leaves in clear.
type transit struct {
	path bfd.Path
	// hubs are those of the way's devices, in the same order; count is how many there are.
	hubs      []string
	count     int
	detection time.Duration

	state  bfd.State
	reason string
	// blamed are hubs that did not bring packets on.
	blamed map[string]bool
	// trust is until when a session that is not Up says nothing about the way.
	trust time.Time
	// failed: it was not up in time, and has not been since.
	failed bool
	// excused is until when it is no failure that the session is down, because the neighbour's operator, or its end, took it down; zero where
	// nobody did.
	excused time.Time
}

// excuse is how long a session that was taken down by intent says nothing about the neighbour, since that was last heard: as long as
// WireGuard's handshake vouches for one that is reached directly.
const excuse = RejectAfter

func newTransit(plan overlay.Plan, v overlay.RemoteVTEP, now time.Time) *transit {
	t := &transit{
		path: transitPath(plan, v), blamed: map[string]bool{}, state: bfd.Down,
		detection: time.Duration(v.BFD.IntervalMs*v.BFD.Multiplier) * time.Millisecond,
		// A route that is found is trusted (adopt); else the session comes first.
		failed: true, reason: "no answer yet",
	}
	seen := map[string]bool{}
	for _, d := range v.Devices {
		hub := plan.Hub(v, d)
		t.hubs = append(t.hubs, hub)
		seen[hub] = true
	}
	t.count = len(seen)
	t.trust = now.Add(t.patience())
	return t
}

// transitPath is the path of the session across a hub.
func transitPath(plan overlay.Plan, v overlay.RemoteVTEP) bfd.Path {
	return bfd.Path{Local: plan.VTEP, Peer: v.Addr, Multihop: true}
}

// patience is how long a session may take to come up.
func (t *transit) patience() time.Duration { return t.detection + slowStart }

// adopt trusts a route that is there already: another process, or another session, found it good. hub is the one that it is over: those
// that would come first were not good, or were just away, and the session must fail before they are tried again.
func (t *transit) adopt(hub string, now time.Time) {
	if t.state == bfd.Up {
		return
	}
	t.failed, t.trust = false, now.Add(t.patience())
	if i := slices.Index(t.hubs, hub); i > 0 {
		for _, better := range t.hubs[:i] {
			t.blamed[better] = true
		}
	}
}

// tell notes a change of the session. hub is the one that the route is over.
func (t *transit) tell(c bfd.Transition, hub string, now time.Time) {
	switch {
	case c.To == bfd.Up:
		t.failed, t.excused, t.trust = false, time.Time{}, time.Time{}
	case c.RemoteAdminDown():
		t.excused = now.Add(excuse)
	case c.To == bfd.AdminDown:
	case c.From == bfd.Up:
		if c.RemoteRestarted() {
			// That says nothing about the hub. Silence would be borne for as long.
			t.trust = now.Add(t.detection)
			break
		}
		t.failed = t.count < 2
		t.trust = now.Add(t.patience())
		if c.Diag == bfd.DiagNeighbourDown {
			t.blame(hub)
		}
	case c.To == bfd.Init && !t.excused.IsZero():
		// The session begins anew.
		t.excused, t.trust = time.Time{}, now.Add(t.patience())
	case c.To == bfd.Init:
		// It answers at once if it hears us.
		if soon := now.Add(t.detection); t.trust.After(soon) {
			t.trust = soon
		}
	}
	t.state, t.reason = c.To, c.Reason
}

// blame has another hub taken. When all are blamed, they are tried again.
func (t *transit) blame(hub string) {
	if hub == "" || t.count < 2 {
		return
	}
	if t.blamed[hub] = true; len(t.blamed) >= t.count {
		clear(t.blamed)
		t.blamed[hub] = true
	}
}

// lapse sees to what patience did not help.
func (t *transit) lapse(hub string, now time.Time) {
	if !t.excused.IsZero() && !now.Before(t.excused) {
		t.excused, t.trust = time.Time{}, now
		t.reason = "it was taken down at the other end, which has not been heard for " + excuse.String()
	}
	if t.state == bfd.Up || !t.excused.IsZero() || t.trust.IsZero() || now.Before(t.trust) {
		return
	}
	t.failed, t.trust = true, time.Time{}
	if t.count > 1 {
		t.blame(hub)
		t.trust = now.Add(t.patience())
	}
}

// moved gives the session time on another way.
func (t *transit) moved(now time.Time) {
	if t != nil && t.state != bfd.Up && !t.trust.IsZero() {
		t.trust = now.Add(t.patience())
	}
}

// down says why the VTEP counts as unreachable though a hub is reached; "" if it does not.
func (t *transit) down() string {
	if t == nil || t.state == bfd.Up || !t.excused.IsZero() || !t.failed {
		return ""
	}
	return "BFD across the hub: " + t.reason
}

// hub is the one that the route is over, "" for none.
func (w *way) hub() string {
	if w.transit == nil || len(w.current) == 0 {
		return ""
	}
	if i := slices.Index(w.devices, w.current[0]); i >= 0 {
		return w.transit.hubs[i]
	}
	return ""
}

// crossed takes a change of a session across a hub. It runs on the BFD engine's thread, under mu.
func (r *repair) crossed(c bfd.Change, now time.Time) {
	for _, w := range r.ways {
		if w.transit != nil && w.transit.path == c.Path {
			was := w.transit.down()
			w.transit.tell(c.Transition, w.hub(), now)
			r.correct(w, now)
			if (was == "") != (w.transit.down() == "") {
				r.moveSets(now)
			}
		}
	}
}

// transitConfigs are the sessions across hubs.
func transitConfigs(plan overlay.Plan) []bfd.SessionConfig {
	var out []bfd.SessionConfig
	for _, v := range plan.VTEPs {
		if v.BFD != nil && len(v.Via) > 0 {
			out = append(out, bfd.SessionConfig{
				Name: overlay.TransitName(plan.Gateway, v.Gateway), Path: transitPath(plan, v), Params: params(*v.BFD), MinTTL: overlay.TransitMinTTL,
			})
		}
	}
	return out
}

// transitReason says over which hub a VTEP is reached.
func transitReason(plan overlay.Plan, v overlay.RemoteVTEP, device, reason string) string {
	if hub := plan.Hub(v, device); hub != "" {
		return fmt.Sprintf("over hub %s; %s", hub, reason)
	}
	return reason
}

// inherit goes on from what was known under the plan before, unless it was of another session or over other hubs. That a tunnel to a hub
// has other devices for a while, because its keys are replaced, makes no difference.
func (t *transit) inherit(old *transit) {
	if t == nil || old == nil || t.path != old.path {
		return
	}
	t.state, t.reason, t.trust, t.failed, t.excused = old.state, old.reason, old.trust, old.failed, old.excused
	if slices.Equal(slices.Compact(slices.Clone(t.hubs)), slices.Compact(slices.Clone(old.hubs))) {
		t.blamed = old.blamed
	}
}

// hubPlaces are the places of the devices' hubs in a VTEP's list of them; 0 for all where it is reached directly.
func hubPlaces(plan overlay.Plan, v overlay.RemoteVTEP) map[string]int {
	places := map[string]int{}
	for _, d := range v.Devices {
		places[d] = max(0, slices.Index(v.Via, plan.Hub(v, d)))
	}
	return places
}
