package bfd

import (
	"container/heap"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is two sessions and a link that may lose, delay and reorder:
//
//	sessions[0] ── encode ── lost? delayed? ── decode ── sessions[1]    and the same back
//
// Its time jumps from event to event.
type world struct {
	t        *rapid.T
	now      time.Time
	sessions [2]*Session
	wake     [2]time.Time
	flight   flights
	sent     int
	changes  [2][]Transition
	// loss in percent and delay for packets from either end.
	loss             [2]int
	delay, delaySpan time.Duration
	luck             func(n int) int
	// oneSided is since when exactly one end is Up, and the longest detection times seen since then.
	oneSided  time.Time
	detection [2]time.Duration
	maxDelay  time.Duration
}

// flight is one datagram under way.
type flight struct {
	at  time.Time
	no  int
	to  int
	raw []byte
}

type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].at.Before(f[j].at) || f[i].at.Equal(f[j].at) && f[i].no < f[j].no
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

func newWorld(t *rapid.T, params [2]Params) *world {
	w := &world{t: t, now: epoch}
	seed := rapid.Uint64().Draw(t, "seed")
	w.luck = func(n int) int { // a cheap generator: a draw per packet would drown rapid
		seed = seed*6364136223846793005 + 1442695040888963407
		return int(seed>>33) % n
	}
	for i := range w.sessions {
		w.sessions[i] = NewSession(params[i], uint32(100+i), seed+uint64(i))
		w.wake[i] = w.now
	}
	return w
}

func (w *world) step(i int, ev Event) {
	o := w.sessions[i].Step(w.now, ev)
	w.wake[i] = o.Wake
	if o.Changed {
		w.changes[i] = append(w.changes[i], o.Change)
	}
	if o.Send {
		raw := make([]byte, MaxLen)
		raw = raw[:w.sessions[i].Marshal(raw, &o.Packet)]
		if w.luck(100) >= w.loss[i] {
			w.sent++
			at := w.now.Add(w.delay + time.Duration(w.luck(int(w.delaySpan)+1)))
			heap.Push(&w.flight, flight{at, w.sent, 1 - i, raw})
		}
	}
	w.checkOneSided()
}

// checkOneSided: an end that is alone in being Up learns so: either a packet tells it, or silence does, after at most its detection
// time. An Init neighbour keeps it waiting for no more than the neighbour's own detection time.
func (w *world) checkOneSided() {
	a, b := w.sessions[0], w.sessions[1]
	if (a.State() == Up) == (b.State() == Up) {
		w.oneSided, w.detection = time.Time{}, [2]time.Duration{}
		return
	}
	if w.oneSided.IsZero() {
		w.oneSided = w.now
	}
	for i, s := range w.sessions {
		w.detection[i] = max(w.detection[i], s.DetectionTime())
	}
	if d := w.now.Sub(w.oneSided); d > w.detection[0]+w.detection[1]+2*w.maxDelay {
		w.t.Fatalf("%v and %v for %v; detection times %v", a.State(), b.State(), d, w.detection)
	}
}

func (w *world) run(d time.Duration) {
	w.runUntil(d, func() bool { return false })
}

// runUntil says whether the condition came about within d.
func (w *world) runUntil(d time.Duration, stop func() bool) bool {
	w.maxDelay = max(w.maxDelay, w.delay+w.delaySpan)
	end := w.now.Add(d)
	for !stop() {
		next, who := earliest(w.wake[0], w.wake[1]), -1
		for i, t := range w.wake {
			if !t.IsZero() && t.Equal(next) {
				who = i
			}
		}
		deliver := len(w.flight) > 0 && (who < 0 || !w.flight[0].at.After(next))
		if deliver {
			next = w.flight[0].at
		}
		if !deliver && who < 0 || next.After(end) {
			w.now = end
			return stop()
		}
		if next.After(w.now) {
			w.now = next
		}
		if !deliver {
			w.step(who, Event{})
			continue
		}
		f := heap.Pop(&w.flight).(flight)
		var p Packet
		if d := Decode(f.raw, &p); d != Kept {
			w.t.Fatalf("%x: %v", f.raw, d)
		}
		if p.YourDiscr == 0 || p.YourDiscr == w.sessions[f.to].Discriminator() {
			w.step(f.to, Event{Kind: Received, Packet: &p, Raw: f.raw})
		}
	}
	return true
}

func (w *world) bothUp() bool { return w.sessions[0].State() == Up && w.sessions[1].State() == Up }

func drawParams(t *rapid.T, name string, auth *Auth) Params {
	interval := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.SampledFrom([]int{10, 20, 50, 100, 300, 1000, 2000}).Draw(t, "ms")) * ms
	})
	return Params{
		DesiredMinTx: interval.Draw(t, name+" tx"), RequiredMinRx: interval.Draw(t, name+" rx"),
		DetectMult: uint8(rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, name+" multiplier")), Auth: auth,
	}
}

// TestPair is the promise of BFD, over any parameters, authentication, loss, delay and order of packets.
func TestPair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		auth := rapid.SampledFrom([]*Auth{
			nil,
			{SimplePassword, []Key{{1, Secret("pw")}}},
			{KeyedSHA1, []Key{{1, Secret("key")}}},
			{MeticulousKeyedSHA1, []Key{{1, Secret("key")}}},
		}).Draw(t, "auth")
		w := newWorld(t, [2]Params{drawParams(t, "a", auth), drawParams(t, "b", auth)})

		// 1. Storm: loss, delay and reordering, and operators at work.
		w.loss = [2]int{rapid.IntRange(0, 100).Draw(t, "loss"), rapid.IntRange(0, 100).Draw(t, "loss back")}
		w.delaySpan = time.Duration(rapid.IntRange(0, 500).Draw(t, "delay")) * ms
		for range rapid.IntRange(0, 4).Draw(t, "storm") {
			w.run(time.Duration(rapid.IntRange(0, 3000).Draw(t, "for")) * ms)
			i := rapid.IntRange(0, 1).Draw(t, "end")
			switch rapid.IntRange(0, 3).Draw(t, "does") {
			case 0:
				w.step(i, Event{Kind: Configured, Params: drawParams(t, "storm", auth)})
			case 1:
				w.step(i, Event{Kind: Disabled})
			case 2:
				w.step(i, Event{Kind: Enabled})
			case 3: // restarts
				w.sessions[i] = NewSession(drawParams(t, "restarted", auth), 200+uint32(w.sent)*2+uint32(i), uint64(w.sent))
				w.step(i, Event{})
			}
		}

		// 2. Calm: Up at both ends, and Up they stay, whatever intervals are configured.
		w.loss = [2]int{}
		w.delaySpan = 0
		w.delay = time.Duration(rapid.IntRange(0, 20).Draw(t, "calm delay")) * ms
		for i := range w.sessions {
			w.step(i, Event{Kind: Enabled})
		}
		if !w.runUntil(time.Minute, w.bothUp) {
			t.Fatalf("not Up after a minute of calm: %v", w)
		}
		// What the storm left: packets under way, and sequence numbers too far ahead, which cost a session its life a detection time later
		// if the multiplier, and with it the window, became smaller while packets were lost.
		w.run(20*time.Second + 2*w.maxDelay)
		if !w.runUntil(time.Minute, w.bothUp) {
			t.Fatalf("not Up again: %v", w)
		}
		w.changes = [2][]Transition{}
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			w.step(rapid.IntRange(0, 1).Draw(t, "end"), Event{Kind: Configured, Params: drawParams(t, "calm", auth)})
			w.run(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * ms)
		}
		w.run(10 * time.Second)
		if len(w.changes[0])+len(w.changes[1]) != 0 {
			t.Fatalf("flapped in calm: %v", w)
		}
		for i, s := range w.sessions {
			if s.Polling() || s.pollNext {
				t.Fatalf("end %d still polls", i)
			}
			o := w.sessions[1-i]
			if want := max(s.params.DesiredMinTx, o.params.RequiredMinRx); s.TxInterval() != want {
				t.Fatalf("end %d sends every %v, want %v", i, s.TxInterval(), want)
			}
			if want := time.Duration(o.params.DetectMult) * o.TxInterval(); s.DetectionTime() != want {
				t.Fatalf("end %d detects in %v, want %v", i, s.DetectionTime(), want)
			}
		}

		// 3. Cut, one way or both: the end that hears nothing is Down after exactly its detection time from the last packet on its way,
		// the other at the latest one delay later.
		switch rapid.IntRange(0, 2).Draw(t, "cut") {
		case 0:
			w.loss = [2]int{100, 0}
		case 1:
			w.loss = [2]int{0, 100}
		case 2:
			w.loss = [2]int{100, 100}
		}
		cut := w.now
		longest := 2*w.delay + ms
		for i, s := range w.sessions {
			if w.loss[1-i] == 100 {
				longest = max(longest, s.DetectionTime()+2*w.delay+ms)
			}
		}
		down := func() bool { return w.sessions[0].State() != Up && w.sessions[1].State() != Up }
		if !w.runUntil(longest, down) {
			t.Fatalf("Up %v after the cut: %v", w.now.Sub(cut), w)
		}
	})
}

// String is what happened lately, for failures.
func (w *world) String() string {
	out := fmt.Sprintf("\n%v", w.now.Sub(epoch))
	for i, s := range w.sessions {
		out += fmt.Sprintf("\nend %d: %v %v tx %v detection %v params %+v", i, s.State(), s.Diag(), s.TxInterval(), s.DetectionTime(), s.params)
		for _, c := range w.changes[i] {
			out += fmt.Sprintf("\n  %v %v → %v: %s", c.At.Sub(epoch), c.From, c.To, c.Reason)
		}
	}
	return out
}
