package rotation

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"fabric/overlay"
)

// end is one end of a tunnel in a pair: its state, and the record on its disk.
type end struct {
	t    Tunnel
	disk Record
	// secrets are the preshared keys, by generation: what makes a generation the same at both ends.
	secrets map[int]string
	// off until then: the process was killed.
	off time.Duration
}

// pair is two ends with a path between them, and time that is moved by hand.
//
//	a (initiator) ══ path ══ b
//
// A generation is up at both ends once both have had it, with the same keys, for 300 ms of a path that carries it.
type pair struct {
	t    *testing.T
	a, b *end
	now  time.Duration
	// blocked generations do not get through; cut: none does.
	blocked func(generation int) bool
	cut     bool
	ready   map[string]time.Duration
	keys    int
	// gap is how long there was no generation up while the path was whole.
	gap, longest time.Duration
	// sent counts messages; lose says what is lost of the n-th: "question", "answer", or the end that is killed after handling it.
	sent int
	lose map[int]string
	log  []string
}

const tick = 100 * time.Millisecond

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newPair(t *testing.T) *pair {
	r := Record{Current: Key{Made: start}}
	return &pair{
		t: t, ready: map[string]time.Duration{}, blocked: func(int) bool { return false }, lose: map[int]string{},
		a: &end{t: Load(r, true), disk: r, secrets: map[int]string{}}, b: &end{t: Load(r, false), disk: r, secrets: map[int]string{}},
	}
}

func (p *pair) time() time.Time { return start.Add(p.now) }

// set is the only way a state changes: on disk first.
func (e *end) set(t Tunnel) { e.disk, e.t = t.Record, t }

func (p *pair) kill(e *end, away time.Duration) {
	e.off = p.now + away
	e.t = Load(e.disk, e.t.Initiator)
	p.note("killed", e)
}

// lost is a gateway made anew: only its identity keys are left.
func (p *pair) lost(e *end) {
	r := Record{Current: Key{Made: p.time()}}
	e.secrets = map[int]string{}
	e.disk, e.t = r, Load(r, e.t.Initiator)
	p.note("lost", e)
}

func (p *pair) note(what string, e *end) {
	name := "b"
	if e == p.a {
		name = "a"
	}
	live, ways := e.t.Live()
	line := fmt.Sprintf("%8s %-7s %s:", p.now, what, name)
	for i, k := range live {
		if i == ways {
			line += " |"
		}
		line += fmt.Sprintf(" %d", k.Generation)
	}
	p.log = append(p.log, line)
}

func has(e *end, generation int, ways bool) bool {
	live, n := e.t.Live()
	if !ways {
		n = len(live)
	}
	return slices.ContainsFunc(live[:n], func(k Key) bool { return k.Generation == generation })
}

// up says whether a generation is up at both ends.
func (p *pair) up(generation int) bool {
	at, ok := p.ready[p.name(generation)]
	return ok && p.now >= at
}

func (p *pair) name(generation int) string {
	if !has(p.a, generation, false) || !has(p.b, generation, false) || p.a.off > p.now || p.b.off > p.now || p.cut || p.blocked(generation) {
		return ""
	}
	if p.a.secrets[generation] != p.b.secrets[generation] {
		return ""
	}
	return fmt.Sprint(generation, p.a.secrets[generation])
}

func (p *pair) view() View { return View{Up: p.up, Detection: 300 * time.Millisecond} }

// step moves time by one tick.
func (p *pair) step() {
	p.now += tick
	present := map[string]time.Duration{}
	whole := !p.cut && p.a.off <= p.now && p.b.off <= p.now
	some := false
	live, _ := p.a.t.Live()
	for _, k := range live {
		g := k.Generation
		name := p.name(g)
		if name == "" {
			continue
		}
		at, known := p.ready[name]
		if !known {
			at = p.now + 3*tick
		}
		present[name] = at
		some = some || p.now >= at && has(p.a, g, true) && has(p.b, g, true)
	}
	p.ready = present
	if whole && !some {
		p.gap += tick
		p.longest = max(p.longest, p.gap)
	} else {
		p.gap = 0
	}
	for _, e := range []*end{p.a, p.b} {
		live, _ := e.t.Live()
		places := map[int]bool{}
		for _, k := range live {
			if s := overlay.SlotOf(k.Generation); places[s] {
				p.t.Fatalf("two generations in slot %d: %+v\n%s", s, live, p.story())
			} else {
				places[s] = true
			}
		}
		if e.off > p.now {
			continue
		}
		next, action := e.t.Step(p.time(), p.view())
		e.set(next)
		if action != nil {
			p.act(e, *action)
		}
	}
}

// act carries a message, if its tunnel is up.
func (p *pair) act(e *end, a Action) {
	other := p.b
	if e == p.b {
		other = p.a
	}
	p.sent++
	n := p.sent
	p.log = append(p.log, fmt.Sprintf("%8s message %d: %s %d over %d", p.now, n, a.Verb, a.Generation, a.Over))
	if !p.up(a.Over) || p.lose[n] == "question" {
		if a.Verb == Propose {
			e.set(e.t.Failed(p.time(), "no answer"))
		}
		return
	}
	var err error
	secret := ""
	switch a.Verb {
	case Propose:
		p.keys++
		secret = fmt.Sprint("secret ", p.keys)
		var next Tunnel
		if next, err = other.t.Agreed(p.time(), a.Over, Key{Generation: a.Generation, Made: p.time()}); err == nil {
			other.secrets[a.Generation] = secret
			other.set(next)
		}
	case Moved:
		var next Tunnel
		if next, err = other.t.Follow(p.time(), a.Generation, p.view()); err == nil {
			other.set(next)
		}
	case Abandon:
		other.set(other.t.GivenUp(a.Over, a.Generation))
	case Ask:
		other.set(other.t.Begin())
	}
	p.note(a.Verb.String(), other)
	switch p.lose[n] {
	case "killed there":
		p.kill(other, time.Second)
		fallthrough
	case "answer":
		err = errors.New("lost")
	case "killed here":
		p.kill(e, time.Second)
		return
	}
	switch {
	case a.Verb == Propose && err != nil:
		e.set(e.t.Failed(p.time(), err.Error()))
	case a.Verb == Propose:
		next, err := e.t.Agreed(p.time(), a.Over, Key{Generation: a.Generation, Made: p.time()})
		if err != nil {
			p.t.Fatalf("%v\n%s", err, p.story())
		}
		e.secrets[a.Generation] = secret
		e.set(next)
	case a.Verb == Moved && err == nil:
		e.set(e.t.Confirmed(p.time(), a.Generation))
	case a.Verb == Ask && err == nil:
		e.t.Asked = false
	}
	p.note(a.Verb.String()+"!", e)
	if p.lose[n] == "killed after" {
		p.kill(e, time.Second)
	}
}

func (p *pair) run(d time.Duration) {
	for end := p.now + d; p.now < end; {
		p.step()
	}
}

// quiet runs until both ends are settled and nothing lingers, for that long at most, and a little on.
func (p *pair) quiet(most time.Duration) {
	for end := p.now + most; p.now < end; {
		p.step()
		la, _ := p.a.t.Live()
		lb, _ := p.b.t.Live()
		if len(la) == 1 && len(lb) == 1 && !p.a.t.Asked && !p.b.t.Asked && p.a.off <= p.now && p.b.off <= p.now && p.up(p.a.t.Current.Generation) {
			break
		}
	}
	p.run(2 * time.Second)
}

func (p *pair) story() string {
	out := ""
	for _, l := range p.log {
		out += l + "\n"
	}
	return out
}

// settled wants both ends with one and the same generation, up, and nothing else. It returns that.
func (p *pair) settled(what string) int {
	p.t.Helper()
	g := p.a.t.Current.Generation
	la, _ := p.a.t.Live()
	lb, _ := p.b.t.Live()
	if len(la) != 1 || len(lb) != 1 || p.b.t.Current.Generation != g || !p.up(g) {
		p.t.Fatalf("%s: a has %+v, b has %+v\n%s", what, la, lb, p.story())
	}
	return g
}

func TestRotate(t *testing.T) {
	p := newPair(t)
	p.run(time.Second)
	for want := 1; want <= 5; want++ {
		who := p.a
		if want%2 == 0 {
			who = p.b // asks a
		}
		began := p.now
		who.set(who.t.Begin())
		for p.a.t.Current.Generation != want || p.b.t.Current.Generation != want {
			if p.step(); p.now > began+10*time.Second {
				t.Fatalf("no rotation\n%s", p.story())
			}
		}
		took := p.now - began
		p.run(Linger + tick)
		if got := p.settled("after a rotation"); got != want {
			t.Errorf("generation %d, want %d", got, want)
		}
		if took > 2*time.Second || p.longest > 300*time.Millisecond {
			t.Errorf("took %s, gap %s\n%s", took, p.longest, p.story())
		}
		if p.a.t.Asked || p.b.t.Asked {
			t.Error("still asked for")
		}
	}
}

// Whichever message is lost, and whoever is killed around it, the ends meet again on one generation, and were never without one in common.
func TestEveryCut(t *testing.T) {
	kinds := []string{"question", "answer", "killed there", "killed here", "killed after"}
	for _, from := range []int{0, 1, 2} {
		for first := 1; first <= 4; first++ {
			for _, kind := range kinds {
				for second := first + 1; second <= 5; second++ {
					for _, other := range append(kinds, "") {
						p := newPair(t)
						p.run(time.Second)
						for range from {
							p.a.set(p.a.t.Begin())
							p.run(10 * time.Second)
						}
						was := p.settled("before")
						sent := p.sent
						p.lose[sent+first], p.lose[sent+second] = kind, other
						p.longest = 0
						p.a.set(p.a.t.Begin())
						p.quiet(5 * time.Minute)
						if got := p.settled(kind + ", " + other); got < was || p.longest > time.Second {
							t.Fatalf("%d %s, %d %s: generation %d after %d, gap %s\n%s", first, kind, second, other, got, was, p.longest, p.story())
						}
					}
				}
			}
		}
	}
}

// Killed at any moment, either end or both, for a moment or long.
func TestEveryMoment(t *testing.T) {
	for at := time.Duration(0); at <= 6*time.Second; at += tick {
		for _, who := range []string{"a", "b", "ab"} {
			for _, away := range []time.Duration{tick, 20 * time.Second, 3 * time.Minute} {
				p := newPair(t)
				p.run(time.Second)
				p.a.set(p.a.t.Begin())
				p.run(at)
				if who != "b" {
					p.kill(p.a, away)
				}
				if who != "a" {
					p.kill(p.b, away)
				}
				p.run(away)
				p.quiet(5 * time.Minute)
				p.settled(fmt.Sprintf("%s killed after %s for %s", who, at, away))
				if p.longest > time.Second {
					t.Fatalf("%s killed after %s for %s: gap of %s\n%s", who, at, away, p.longest, p.story())
				}
			}
		}
	}
}

// The other end has followed, but its answer was lost, and then the new keys do not get through for a while. The initiator keeps them: the
// other end has no others any more.
func TestInDoubt(t *testing.T) {
	p := newPair(t)
	p.run(time.Second)
	p.lose[p.sent+2] = "answer"
	p.a.set(p.a.t.Begin())
	for p.b.t.Current.Generation == 0 {
		p.step()
	}
	p.blocked = func(g int) bool { return g == 1 }
	p.run(40 * time.Second)
	p.blocked = func(int) bool { return false }
	p.run(8 * time.Second)
	if p.settled("in doubt") != 1 {
		t.Errorf("went back\n%s", p.story())
	}
}

// The path is cut at any moment: what was agreed stays, and nobody is alone afterwards.
func TestCutPath(t *testing.T) {
	for at := time.Duration(0); at <= 6*time.Second; at += tick {
		for _, long := range []time.Duration{time.Second, 30 * time.Second, 10 * time.Minute} {
			p := newPair(t)
			p.run(time.Second)
			p.a.set(p.a.t.Begin())
			p.run(at)
			p.cut = true
			p.run(long)
			p.cut = false
			p.run(2 * time.Minute)
			p.settled(fmt.Sprintf("cut after %s for %s", at, long))
			if p.longest > time.Second {
				t.Fatalf("cut after %s for %s: gap of %s\n%s", at, long, p.longest, p.story())
			}
		}
	}
}

// New keys that do not get through are given up, said, and tried again ever later; the old ones go on meanwhile.
func TestAbandon(t *testing.T) {
	p := newPair(t)
	p.run(time.Second)
	p.blocked = func(g int) bool { return g > 0 }
	p.a.set(p.a.t.Begin())
	p.run(20 * time.Second)
	if p.settled("given up") != 0 || p.a.t.Failures != 1 || p.a.t.Trouble == "" || p.b.t.Trouble == "" {
		t.Fatalf("a is %+v, b %+v", p.a.t, p.b.t)
	}
	p.run(time.Hour)
	if n := p.a.t.Failures; n < 5 || n > 12 {
		t.Errorf("%d attempts in an hour", n)
	}
	p.blocked = func(int) bool { return false }
	p.run(2 * time.Hour)
	if p.settled("it gets through again") != 1 || p.a.t.Failures != 0 || p.a.t.Trouble != "" {
		t.Errorf("a is %+v", p.a.t)
	}
	if p.longest > 300*time.Millisecond {
		t.Errorf("gap of %s", p.longest)
	}
}

// A gateway that was made anew has only its identity keys: the tunnel is back within FallbackAfter, and has keys of its own soon after.
func TestLostState(t *testing.T) {
	for _, rotations := range []int{1, 2, 3} {
		for _, who := range []string{"a", "b"} {
			p := newPair(t)
			p.run(time.Second)
			for range rotations {
				p.a.set(p.a.t.Begin())
				p.run(10 * time.Second)
			}
			p.longest = 0
			if who == "a" {
				p.lost(p.a)
			} else {
				p.lost(p.b)
			}
			p.run(2 * time.Minute)
			if g := p.settled("healed"); g == 0 {
				t.Errorf("identity keys are still in use\n%s", p.story())
			}
			if p.longest < FallbackAfter || p.longest > FallbackAfter+2*time.Second {
				t.Errorf("%d rotations, %s lost: gap of %s", rotations, who, p.longest)
			}
		}
	}
}

// A long outage brings the identity keys up beside, but they are not used when the others come back, and go.
func TestOutageKeepsKeys(t *testing.T) {
	p := newPair(t)
	p.run(time.Second)
	p.a.set(p.a.t.Begin())
	p.run(10 * time.Second)
	secret := p.a.secrets[1]
	p.cut = true
	p.run(2 * FallbackAfter)
	if !has(p.a, 0, true) || !has(p.b, 0, true) {
		t.Errorf("no fallback\n%s", p.story())
	}
	p.cut = false
	p.run(time.Minute)
	if p.settled("back") != 1 || p.a.secrets[1] != secret {
		t.Errorf("other keys\n%s", p.story())
	}
}

func TestByAge(t *testing.T) {
	p := newPair(t)
	p.a.t.Age, p.b.t.Age = time.Hour, time.Hour
	p.run(54*time.Minute - time.Second)
	if p.settled("young") != 0 {
		t.Error("rotated early")
	}
	p.run(7 * time.Minute)
	if p.settled("old") != 1 {
		t.Error("not rotated by age")
	}
	p.run(50 * time.Minute)
	if p.settled("young again") != 1 {
		t.Error("rotated twice")
	}
}

func TestDrainedIsLeftAlone(t *testing.T) {
	p := newPair(t)
	p.run(time.Second)
	p.a.set(p.a.t.Begin())
	p.run(time.Second)
	for range 1000 {
		p.now += time.Second
		next, action := p.a.t.Step(p.time(), View{Up: func(int) bool { return false }, Drained: true})
		if action != nil {
			t.Fatalf("acts: %+v", action)
		}
		p.a.set(next)
	}
	if live, _ := p.a.t.Live(); len(live) > 2 || has(p.a, 0, true) && p.a.t.Current.Generation > 0 {
		t.Errorf("live are %+v", live)
	}
	p.run(time.Minute)
	if p.settled("undrained") != 1 {
		t.Error("the rotation has not gone on")
	}
}

func TestRefusals(t *testing.T) {
	r := Record{Current: Key{Generation: 3}}
	now := start
	tun := Load(r, false)
	for _, tt := range []struct{ over, generation int }{{2, 4}, {0, 4}, {3, 3}, {3, 5}, {3, 0}, {3, -1}} {
		if next, err := tun.Agreed(now, tt.over, Key{Generation: tt.generation}); err == nil || next.Next != nil {
			t.Errorf("generation %d over %d was taken", tt.generation, tt.over)
		}
	}
	up := View{Up: func(int) bool { return true }}
	if _, err := tun.Follow(now, 4, up); err == nil {
		t.Error("follows to a generation that was not agreed")
	}
	if _, err := tun.Follow(now, 3, up); err != nil {
		t.Errorf("does not confirm what is so: %v", err)
	}
	next, err := tun.Agreed(now, 3, Key{Generation: 4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Follow(now, 4, View{Up: func(int) bool { return false }}); err == nil {
		t.Error("follows to what is not up")
	}
	if got := next.GivenUp(4, 4); got.Next == nil {
		t.Error("given up by a word that came over itself")
	}
	if got := next.GivenUp(3, 4); got.Next != nil {
		t.Error("not given up")
	}
}
