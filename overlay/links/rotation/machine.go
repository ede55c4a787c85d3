// Package rotation replaces the keys of a WireGuard tunnel without a gap: the two ends agree new keys inside the tunnel, bring a second
// device up beside the first, move traffic, and only then take the first away.
//
// Keys have generations. Generation 0 are the gateways' identity keys, which the document names; later ones are made for one tunnel. One end,
// the initiator, begins; it is the gateway whose name sorts first.
//
//	initiator                                  responder
//	propose n+1, over n      ────────────────► keep n+1, bring it up beside n
//	keep n+1, bring it up    ◄──────────────── its public key
//	              BFD is up on n+1: each end moves its traffic by one route
//	moved to n+1, over n+1   ────────────────► n+1 is up here too: n+1 is the present one; n goes after Linger
//	n goes after Linger      ◄──────────────── so be it
//
// Each end keeps on disk which generations it shall have up (Record), written before it acts on it, so that whenever one or both are cut
// off at any point, the two have a generation in common and go on from there:
//
//   - The responder gives n up only when told over n+1 that the initiator has moved, the initiator only when that was answered.
//   - Either gives n+1 up only while n has been up for longer than the other end could have it up after giving it up.
//   - If none of an end's generations has been up for FallbackAfter, it brings generation 0 up beside: the other end may have lost its
//     state. What comes up is used, and over generation 0 new keys are agreed.
//
// Tunnel and its methods are pure: time and what the host says come in as arguments.
package rotation

import (
	"fmt"
	"time"

	"fabric/overlay"
)

// The times of a rotation.
const (
	// Linger is how long the former keys stay usable after an end has given them up, for what is under way and for the other end to follow.
	Linger = 3 * time.Second
	// AbandonAfter is how long new keys may take to come up, while the present ones are up; the responder waits longer by Linger.
	AbandonAfter = 15 * time.Second
	// FallbackAfter is how long a tunnel with replaced keys is dead before the identity keys are brought up beside.
	FallbackAfter = time.Minute
	// FallbackSettle is how long one of them is up before the other is given up, or new keys are agreed over the identity keys.
	FallbackSettle = 10 * time.Second
	// retryFirst and retryMost bound the time to the next attempt after one that failed; it doubles.
	retryFirst, retryMost = 10 * time.Second, time.Hour
	// repeat is the time between messages that were not answered, or not yet with yes, askAgain that between wishes.
	repeat   = 500 * time.Millisecond
	askAgain = 5 * time.Second
)

// Key is one generation of a tunnel's keys, as one end has it. It names files and holds no secret. Of generation 0 only Generation and Made
// are set.
type Key struct {
	Generation int `json:"generation"`
	// Made is when it was agreed; of generation 0, when the tunnel was first seen.
	Made time.Time `json:"made"`
	// Public is the other end's key, Own our public one, both base64.
	Public string `json:"public-key,omitempty"`
	Own    string `json:"own-public-key,omitempty"`
	// PrivateKeyFile and PresharedKeyFile hold the secrets.
	PrivateKeyFile   string `json:"private-key-file,omitempty"`
	PresharedKeyFile string `json:"preshared-key-file,omitempty"`
}

// Record is what an end keeps on disk of a tunnel: the generations to have up.
type Record struct {
	// Identity is a digest of the identity keys under which all others were agreed: with other ones they count for nothing.
	Identity string `json:"identity"`
	Current  Key    `json:"current"`
	// Next is to follow Current.
	Next *Key `json:"next,omitempty"`
}

// Tunnel is one end's state of one tunnel. It is a value; methods return the next one.
type Tunnel struct {
	Record
	// Initiator: this end begins.
	Initiator bool
	// Age is the age at which keys are replaced, 0 for never.
	Age time.Duration
	// Asked: the operator, or the other end, wants new keys.
	Asked bool
	// Failures in a row, the next attempt, and what went wrong last, "" after a success.
	Failures int
	Retry    time.Time
	Trouble  string

	// old are generations that were given up and linger.
	old []retired
	// fallback: generation 0 is up beside Current.
	fallback bool
	// currentUp, nextUp and fallbackUp are since when they are up, zero if they are not; nextDown since when Next is not.
	currentUp, nextUp, fallbackUp, nextDown time.Time
	// dead is since when none is up.
	dead time.Time
	// again is when the next message may be sent.
	again time.Time
}

type retired struct {
	key   Key
	until time.Time
}

// View is what the host says of a tunnel.
type View struct {
	// Up says whether a generation carries packets.
	Up func(generation int) bool
	// Drained: an operator at either end holds the tunnel's sessions down, so nothing can be told from them.
	Drained bool
	// Detection is the longest time in which a failure shows.
	Detection time.Duration
}

// Verb says what an Action does.
type Verb int

// The verbs.
const (
	// Propose new keys to the other end.
	Propose Verb = iota + 1
	// Moved tells the other end that traffic has moved to the new keys.
	Moved
	// Abandon tells the other end that the new keys did not come up.
	Abandon
	// Ask the other end, which is the initiator, to begin.
	Ask
)

// String returns the verb as it goes over the wire.
func (v Verb) String() string {
	return [...]string{"", "propose", "moved", "abandon", "rotate"}[v]
}

// Action is one message to the other end.
type Action struct {
	Verb Verb
	// Over is the generation whose tunnel carries the message.
	Over int
	// Generation it is about.
	Generation int
}

// Load is the state after a start, with what was kept.
func Load(r Record, initiator bool) Tunnel { return Tunnel{Record: r, Initiator: initiator} }

// Live are the generations to have up, best first; those that only linger come after ways of them.
func (t Tunnel) Live() (live []Key, ways int) {
	if t.Next != nil {
		live = append(live, *t.Next)
	}
	live = append(live, t.Current)
	if t.fallback {
		live = append(live, Key{})
	}
	ways = len(live)
	for _, o := range t.old {
		live = append(live, o.key)
	}
	return live, ways
}

// Step takes the time and the host's word, and says what to tell the other end, nil for nothing. The state must be in force, and its Record
// on disk if that has changed, before the message goes out.
func (t Tunnel) Step(now time.Time, v View) (Tunnel, *Action) {
	t.old = without(t.old, func(o retired) bool { return !now.Before(o.until) })
	since := func(was time.Time, up bool) time.Time {
		if !up {
			return time.Time{}
		}
		if was.IsZero() {
			return now
		}
		return was
	}
	if v.Drained {
		t.currentUp, t.nextUp, t.fallbackUp, t.dead, t.nextDown = time.Time{}, time.Time{}, time.Time{}, time.Time{}, now
		return t, nil
	}
	t.currentUp = since(t.currentUp, v.Up(t.Current.Generation))
	t.nextUp = since(t.nextUp, t.Next != nil && v.Up(t.Next.Generation))
	t.nextDown = since(t.nextDown, t.nextUp.IsZero())
	t.fallbackUp = since(t.fallbackUp, t.fallback && v.Up(0))
	t.dead = since(t.dead, t.currentUp.IsZero() && t.nextUp.IsZero())

	t = t.stepFallback(now)
	if t.Next != nil {
		return t.stepNext(now, v)
	}
	return t.stepStart(now)
}

// stepFallback decides whether generation 0 is up beside.
func (t Tunnel) stepFallback(now time.Time) Tunnel {
	switch {
	case t.Current.Generation == 0:
		t.fallback = false
	case !t.fallback && !t.dead.IsZero() && now.Sub(t.dead) >= FallbackAfter:
		t.fallback = true
	case t.fallback && (lasts(t.currentUp, now, FallbackSettle) || lasts(t.nextUp, now, FallbackSettle)):
		t.fallback = false
	}
	return t
}

// stepNext waits for the next generation.
func (t Tunnel) stepNext(now time.Time, v View) (Tunnel, *Action) {
	if !t.nextUp.IsZero() {
		if !t.Initiator || now.Before(t.again) {
			return t, nil
		}
		t.again = now.Add(repeat)
		return t, &Action{Moved, t.Next.Generation, t.Next.Generation}
	}
	// Whoever has given the present generation up has it up for Linger at most, and that shows after a detection time.
	wait := max(AbandonAfter, Linger+3*v.Detection)
	if !t.Initiator {
		wait += Linger
	}
	if !lasts(t.currentUp, now, wait) || !lasts(t.nextDown, now, wait) {
		return t, nil
	}
	generation := t.Next.Generation
	t = t.drop()
	if !t.Initiator {
		t.Trouble = fmt.Sprintf("generation %d of keys, which the other end had proposed, did not come up within %s", generation, wait)
		return t, nil
	}
	t = t.Failed(now, fmt.Sprintf("generation %d of keys did not come up within %s: is its UDP port open at both ends?", generation, wait))
	return t, &Action{Abandon, t.Current.Generation, generation}
}

// stepStart begins when there is a reason to.
func (t Tunnel) stepStart(now time.Time) (Tunnel, *Action) {
	over, wanted := t.Current.Generation, t.Asked || t.due(now)
	switch {
	case !t.currentUp.IsZero():
	case lasts(t.fallbackUp, now, FallbackSettle):
		over, wanted = 0, true
	default:
		return t, nil
	}
	if !wanted || len(t.old) > 0 || now.Before(t.Retry) || now.Before(t.again) {
		return t, nil
	}
	if !t.Initiator {
		t.again = now.Add(askAgain)
		return t, &Action{Verb: Ask, Over: over}
	}
	t.again = now.Add(repeat)
	return t, &Action{Propose, over, t.Current.Generation + 1}
}

// due says whether the keys have reached their age.
func (t Tunnel) due(now time.Time) bool {
	// Not all tunnels at once: they come into being together.
	return t.Initiator && t.Age > 0 && now.Sub(t.Current.Made) >= t.Age-t.jitter()
}

// jitter is up to a tenth of the age, by the tunnel's own keys.
func (t Tunnel) jitter() time.Duration {
	h := uint64(14695981039346656037)
	for _, b := range []byte(t.Identity + t.Current.Own) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return t.Age / 10 / 1000 * time.Duration(h%1000)
}

// Agreed takes the next generation, which both ends now know: the initiator by the answer to its proposal, the responder by the proposal. Over
// is the generation whose tunnel carried it: that is the present one, whatever was thought before.
func (t Tunnel) Agreed(now time.Time, over int, next Key) (Tunnel, error) {
	current, ok := t.find(over)
	if !ok {
		return t, fmt.Errorf("generation %d, over which it came, is not in use here", over)
	}
	if next.Generation < 1 || overlay.SlotOf(next.Generation) == overlay.SlotOf(over) {
		return t, fmt.Errorf("generation %d cannot follow generation %d", next.Generation, over)
	}
	if over != t.Current.Generation {
		t.Current, t.fallback = current, false
		t.currentUp = now
	}
	t.Next = &next
	t.nextUp, t.nextDown, t.again = time.Time{}, now, time.Time{}
	// Its place is needed.
	t.old = without(t.old, func(o retired) bool { return overlay.SlotOf(o.key.Generation) == overlay.SlotOf(next.Generation) })
	return t, nil
}

// find is the key of a generation that is up or shall be.
func (t Tunnel) find(generation int) (Key, bool) {
	live, ways := t.Live()
	for _, k := range live[:ways] {
		if k.Generation == generation {
			if generation == 0 && k.Made.IsZero() {
				k.Made = t.Current.Made
			}
			return k, true
		}
	}
	return Key{}, false
}

// Follow is the responder's answer to Moved: the generation is the present one from now on, or the error says why not.
func (t Tunnel) Follow(now time.Time, generation int, v View) (Tunnel, error) {
	switch {
	case t.Next == nil && t.Current.Generation == generation:
		return t, nil
	case t.Next == nil || t.Next.Generation != generation:
		return t, fmt.Errorf("generation %d is not the next one here", generation)
	case !v.Up(generation):
		return t, fmt.Errorf("generation %d is not up here yet", generation)
	}
	return t.commit(now), nil
}

// Confirmed tells the initiator that the other end follows to a generation.
func (t Tunnel) Confirmed(now time.Time, generation int) Tunnel {
	if t.Next == nil || t.Next.Generation != generation {
		return t
	}
	return t.commit(now)
}

func (t Tunnel) commit(now time.Time) Tunnel {
	t.old = append(without(t.old, func(retired) bool { return false }), retired{t.Current, now.Add(Linger)})
	t.Current, t.Next, t.fallback = *t.Next, nil, false
	t.currentUp, t.nextUp = t.nextUp, time.Time{}
	t.Asked, t.Failures, t.Retry, t.Trouble, t.again = false, 0, time.Time{}, "", time.Time{}
	return t
}

// GivenUp takes the initiator's word that a generation did not come up. It counts only if it came over the present one.
func (t Tunnel) GivenUp(over, generation int) Tunnel {
	if t.Next == nil || t.Next.Generation != generation || over != t.Current.Generation {
		return t
	}
	t = t.drop()
	t.Trouble = fmt.Sprintf("generation %d of keys did not come up, says the other end", generation)
	return t
}

func (t Tunnel) drop() Tunnel {
	t.Next, t.nextUp = nil, time.Time{}
	return t
}

// Failed notes that an attempt came to nothing; the next one waits.
func (t Tunnel) Failed(now time.Time, why string) Tunnel {
	wait := retryMost
	if t.Failures < 10 {
		wait = min(retryMost, retryFirst<<t.Failures)
	}
	t.Failures++
	t.Retry, t.Trouble = now.Add(wait), why
	return t
}

// Begin takes the wish for new keys: by command, or of the other end. What failed before does not delay it.
func (t Tunnel) Begin() Tunnel {
	t.Asked, t.Retry, t.again = true, time.Time{}, time.Time{}
	return t
}

// Wake is when time alone makes the next Step do something, zero for nothing soon. Coming up and going down are events.
func (t Tunnel) Wake(now time.Time) time.Time {
	var next time.Time
	add := func(at time.Time) {
		if at.After(now) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, o := range t.old {
		add(o.until)
	}
	add(t.again)
	if t.Asked {
		add(t.Retry)
	}
	if t.Next != nil || !t.dead.IsZero() && t.Current.Generation > 0 {
		add(now.Add(time.Second))
	}
	return next
}

// lasts says whether something is so since a time that is set, for that long.
func lasts(since, now time.Time, long time.Duration) bool {
	return !since.IsZero() && now.Sub(since) >= long
}

// without copies those that are not to go: a Tunnel is a value and shares no memory with the one before.
func without(old []retired, gone func(retired) bool) []retired {
	var kept []retired
	for _, o := range old {
		if !gone(o) {
			kept = append(kept, o)
		}
	}
	return kept
}
