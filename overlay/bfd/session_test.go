package bfd

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// epoch is when tests begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var fast = Params{DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 200 * time.Millisecond, DetectMult: 3, Independent: true}

const remoteDiscr = 77

// bench steps one session by hand: the test plays the clock and the neighbour.
type bench struct {
	t   *testing.T
	s   *Session
	now time.Time
	out Output
	// peer is what the neighbour sends, but for its YourDiscr.
	peer Packet
}

func newBench(t *testing.T, p Params) *bench {
	t.Helper()
	b := &bench{t: t, s: NewSession(p, 7, 1), now: epoch, peer: Packet{
		State: Down, DetectMult: 4, MyDiscr: remoteDiscr, DesiredMinTx: 150 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond,
	}}
	b.step(Event{})
	return b
}

func (b *bench) step(ev Event) Output {
	b.out = b.s.Step(b.now, ev)
	return b.out
}

// rx receives the neighbour's packet in the given state.
func (b *bench) rx(state State, change ...func(*Packet)) Output {
	p := b.peer
	p.State = state
	if state > Down {
		p.YourDiscr = b.s.Discriminator()
	}
	for _, f := range change {
		f(&p)
	}
	return b.step(Event{Kind: Received, Packet: &p})
}

// wait lets time pass, with a Tick whenever the session asked for one, and returns what was sent when.
func (b *bench) wait(d time.Duration) (sent []Packet, at []time.Time, changes []Transition) {
	end := b.now.Add(d)
	for !b.out.Wake.IsZero() && !b.out.Wake.After(end) {
		if b.out.Wake.After(b.now) {
			b.now = b.out.Wake
		}
		o := b.step(Event{})
		if o.Send {
			sent, at = append(sent, o.Packet), append(at, b.now)
		}
		if o.Changed {
			changes = append(changes, o.Change)
		}
		if !o.Send && !o.Changed && !o.Wake.After(b.now) && !o.Wake.IsZero() {
			b.t.Fatalf("spins at %v", b.now.Sub(epoch))
		}
	}
	b.now = end
	return sent, at, changes
}

// up brings the session Up, Poll Sequence included.
func (b *bench) up() *bench {
	b.t.Helper()
	b.rx(Down)
	b.rx(Up)
	b.rx(Up, func(p *Packet) { p.Final = true })
	if b.s.State() != Up || b.s.Polling() {
		b.t.Fatalf("state %v, polling %v", b.s.State(), b.s.Polling())
	}
	return b
}

// TestStates is the state machine of RFC 5880 sections 6.2 and 6.8.6, every local state with every event.
func TestStates(t *testing.T) {
	// Events: the states as received, the detection time, the operator.
	const expired, disabled, enabled = "expired", "disabled", "enabled"
	type outcome struct {
		to     State
		diag   Diag
		reason string // part of it; empty: no transition
	}
	stay := func(s State) outcome { return outcome{to: s} }
	table := map[State]map[string]outcome{
		AdminDown: {
			"admin-down": stay(AdminDown),
			"down":       stay(AdminDown),
			"init":       stay(AdminDown),
			"up":         stay(AdminDown),
			expired:      stay(AdminDown),
			disabled:     stay(AdminDown),
			enabled:      {Down, DiagNone, "administratively enabled"},
		},
		Down: {
			"admin-down": stay(Down),
			"down":       {Init, DiagNone, "neighbour heard"},
			"init":       {Up, DiagNone, "neighbour hears us"},
			"up":         stay(Down),
			expired:      stay(Down),
			disabled:     {AdminDown, DiagAdministrativelyDown, "administratively disabled"},
			enabled:      stay(Down),
		},
		Init: {
			"admin-down": {Down, DiagNeighbourDown, "neighbour is administratively down"},
			"down":       stay(Init),
			"init":       {Up, DiagNone, "neighbour hears us"},
			"up":         {Up, DiagNone, "neighbour hears us"},
			expired:      {Down, DiagExpired, "nothing heard for 4s (detection time 4s)"},
			disabled:     {AdminDown, DiagAdministrativelyDown, "administratively disabled"},
			enabled:      stay(Init),
		},
		Up: {
			"admin-down": {Down, DiagNeighbourDown, "neighbour is administratively down"},
			"down":       {Down, DiagNeighbourDown, "neighbour went down: echo function failed"},
			"init":       stay(Up),
			"up":         stay(Up),
			expired:      {Down, DiagExpired, "nothing heard for 4s (detection time 4s)"},
			disabled:     {AdminDown, DiagAdministrativelyDown, "administratively disabled"},
			enabled:      stay(Up),
		},
	}
	reach := map[State]func(*bench){
		AdminDown: func(b *bench) { b.rx(Down); b.step(Event{Kind: Disabled}) },
		Down:      func(b *bench) { b.rx(AdminDown) },
		Init:      func(b *bench) { b.rx(Down) },
		Up:        func(b *bench) { b.up() },
	}
	count := 0
	for from, events := range table {
		for event, want := range events {
			count++
			t.Run(fmt.Sprintf("%v/%v", from, event), func(t *testing.T) {
				b := newBench(t, fast)
				b.peer.DesiredMinTx = time.Second // × multiplier 4
				b.peer.Diag = DiagEchoFailed
				reach[from](b)
				if b.s.State() != from {
					t.Fatalf("could not reach %v: %v", from, b.s.State())
				}
				before := b.s.Diag()
				var o Output
				switch event {
				case expired:
					b.now = b.now.Add(4 * time.Second)
					o = b.step(Event{})
				case disabled:
					o = b.step(Event{Kind: Disabled})
				case enabled:
					o = b.step(Event{Kind: Enabled})
				default:
					for s := AdminDown; s <= Up; s++ {
						if s.String() == event {
							o = b.rx(s)
						}
					}
				}
				if want.reason == "" {
					if o.Changed || b.s.State() != want.to || b.s.Diag() != before {
						t.Errorf("changed: %+v", o.Change)
					}
				} else {
					c := o.Change
					if !o.Changed || c.From != from || c.To != want.to || c.Diag != want.diag || b.s.Diag() != want.diag ||
						b.s.State() != want.to || !strings.Contains(c.Reason, want.reason) {
						t.Errorf("got %+v, want %+v", c, want)
					}
					if !o.Send || o.Packet.State != want.to || o.Packet.Diag != want.diag {
						t.Errorf("a change must be sent at once: %v %+v", o.Send, o.Packet)
					}
					if c.RemoteAdminDown() != (event == "admin-down") {
						t.Errorf("RemoteAdminDown %v", c.RemoteAdminDown())
					}
				}
				if _, _, discr := b.s.Remote(); event == expired && discr != 0 {
					t.Errorf("remote discriminator %d after expiry", discr)
				}
			})
		}
	}
	if count != 4*7 {
		t.Errorf("%d cases", count)
	}
}

// TestFirstPacket: a new session speaks at once, as section 6.8.1 has it.
func TestFirstPacket(t *testing.T) {
	s := NewSession(fast, 7, 1)
	o := s.Step(epoch, Event{})
	want := Packet{State: Down, DetectMult: 3, MyDiscr: 7, Independent: true, DesiredMinTx: SlowInterval, RequiredMinRx: fast.RequiredMinRx}
	if !o.Send || o.Packet != want {
		t.Errorf("got %v %+v\nwant %+v", o.Send, o.Packet, want)
	}
	if o.Changed || s.DetectionTime() != 0 || s.DetectDue(epoch.Add(time.Hour)) {
		t.Errorf("a new session has nothing to detect: %+v", o)
	}
}

// TestExpiryForgets: after a detection time the neighbour is as unknown as at the start.
func TestExpiryForgets(t *testing.T) {
	for _, state := range []State{Init, Up} {
		b := newBench(t, fast)
		b.peer.RequiredMinRx = 5 * time.Second
		b.peer.Demand = true
		if b.rx(Down); state == Up {
			b.rx(Up)
		}
		_, _, changes := b.wait(time.Minute)
		if len(changes) != 1 || changes[0].To != Down || changes[0].Diag != DiagExpired {
			t.Fatalf("%v: %+v", state, changes)
		}
		if got := changes[0].At.Sub(epoch); got != 4*200*time.Millisecond {
			t.Errorf("%v: expired after %v", state, got)
		}
		if r := b.s.remote; r.discr != 0 || r.demand || r.requiredRx != time.Microsecond {
			t.Errorf("%v: remote %+v", state, r)
		}
		if sent, _, _ := b.wait(10 * time.Second); len(sent) < 10 || sent[0].YourDiscr != 0 {
			t.Errorf("%v: %d packets in 10 s", state, len(sent))
		}
	}
}

// TestExpiryBeforeUp: a neighbour that falls silent while we are Down or AdminDown is forgotten too.
func TestExpiryBeforeUp(t *testing.T) {
	for _, ev := range []EventKind{Tick, Disabled} {
		b := newBench(t, fast)
		b.step(Event{Kind: ev})
		b.rx(AdminDown)
		if _, _, d := b.s.Remote(); d != remoteDiscr {
			t.Fatalf("remote discriminator %d", d)
		}
		if _, _, changes := b.wait(2 * time.Second); len(changes) != 0 {
			t.Errorf("changes: %+v", changes)
		}
		if st, _, d := b.s.Remote(); d != 0 || st != AdminDown {
			t.Errorf("remote %v, discriminator %d", st, d)
		}
	}
}

// TestLateReader: arrival counts, not when we got round to it, and never makes time run backwards.
func TestLateReader(t *testing.T) {
	b := newBench(t, fast).up() // detection time 800 ms
	p := b.peer
	p.State, p.YourDiscr = Up, 7
	last := b.now.Add(700 * time.Millisecond)
	b.now = b.now.Add(1100 * time.Millisecond)
	if !b.s.DetectDue(b.now) {
		t.Fatal("detection is due")
	}
	// Drained before the verdict: a packet that waited in the socket.
	if o := b.step(Event{Kind: Received, Packet: &p, At: last}); o.Changed || !o.Wake.Before(last.Add(801*time.Millisecond)) {
		t.Fatalf("changed %v, wake %v", o.Changed, o.Wake)
	}
	b.step(Event{Kind: Received, Packet: &p, At: last.Add(-time.Second)})
	if b.s.DetectDue(last.Add(799*time.Millisecond)) || !b.s.DetectDue(last.Add(800*time.Millisecond)) {
		t.Errorf("detection at %v", b.s.detect.Sub(last))
	}
	// A time stamp from the future cannot keep a dead neighbour alive.
	b.step(Event{Kind: Received, Packet: &p, At: b.now.Add(time.Hour)})
	if !b.s.DetectDue(b.now.Add(800 * time.Millisecond)) {
		t.Error("believes a time stamp from the future")
	}
}

// TestRestartedNeighbour: a Down packet without our discriminator ends an Up session at once, and the new one comes up.
func TestRestartedNeighbour(t *testing.T) {
	b := newBench(t, fast).up()
	b.peer.MyDiscr++
	if o := b.rx(Down); !o.Changed || o.Change.To != Down || o.Packet.YourDiscr != remoteDiscr+1 {
		t.Fatalf("%+v", o)
	}
	if o := b.rx(Init); !o.Changed || o.Change.To != Up {
		t.Fatalf("%+v", o)
	}
}

// TestFarewell: a disabled session goes on at its old pace for the neighbour's detection time, then at a second; one never heard has
// nobody to say goodbye to.
func TestFarewell(t *testing.T) {
	b := newBench(t, fast).up()
	o := b.step(Event{Kind: Disabled})
	if !o.Send || o.Packet.State != AdminDown || o.Packet.Diag != DiagAdministrativelyDown || o.Packet.DesiredMinTx != SlowInterval {
		t.Fatalf("%+v", o)
	}
	start := b.now
	sent, _, _ := b.wait(299 * time.Millisecond)
	if len(sent) < 2 || !b.s.Farewell(b.now) {
		t.Errorf("%d packets after the first, farewell %v", len(sent), b.s.Farewell(b.now))
	}
	b.now = start.Add(300 * time.Millisecond)
	if b.s.Farewell(b.now) {
		t.Error("farewell does not end")
	}
	if sent, _, _ := b.wait(10 * time.Second); len(sent) < 9 || len(sent) > 15 {
		t.Errorf("%d packets in 10 s of AdminDown", len(sent))
	}
	b = newBench(t, fast)
	b.step(Event{Kind: Disabled})
	if b.s.Farewell(b.now) {
		t.Error("farewell to nobody")
	}
}

// TestFarewellWakes: also where nothing is sent any more, the end of the farewell is a reason to wake.
func TestFarewellWakes(t *testing.T) {
	b := newBench(t, fast)
	b.peer.RequiredMinRx = 0
	b.up()
	if o := b.step(Event{Kind: Disabled}); !o.Wake.Equal(b.now.Add(300 * time.Millisecond)) {
		t.Errorf("wakes after %v", o.Wake.Sub(b.now))
	}
}

func TestParamsValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Params)
		want   string
	}{
		{"good", func(*Params) {}, ""},
		{"least", func(p *Params) { p.DesiredMinTx, p.RequiredMinRx, p.DetectMult = MinInterval, MinInterval, 1 }, ""},
		{"most", func(p *Params) { p.DesiredMinTx, p.RequiredMinRx, p.DetectMult = MaxInterval, MaxInterval, 255 }, ""},
		{"tx short", func(p *Params) { p.DesiredMinTx = MinInterval - 1 }, "desired-min-tx"},
		{"rx short", func(p *Params) { p.RequiredMinRx = 0 }, "required-min-rx"},
		{"tx long", func(p *Params) { p.DesiredMinTx = MaxInterval + 1 }, "10ms to 1m0s"},
		{"multiplier", func(p *Params) { p.DetectMult = 0 }, "detect-multiplier"},
		{"auth", func(p *Params) { p.Auth = &Auth{} }, "authentication"},
	} {
		p := fast
		tt.change(&p)
		err := p.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestSessionAllocates(t *testing.T) {
	p := fast
	p.Auth = &Auth{Type: MeticulousKeyedSHA1, Keys: []Key{{1, Secret("secret")}}}
	s := NewSession(p, 7, 1)
	now := epoch
	var raw [MaxLen]byte
	seq := uint32(0)
	in := Packet{State: Init, DetectMult: 3, MyDiscr: 9, YourDiscr: 7, DesiredMinTx: time.Second, RequiredMinRx: time.Microsecond}
	in.Auth = AuthSection{Type: MeticulousKeyedSHA1, KeyID: 1}
	s.Step(now, Event{})
	var got Packet // the engine has one too
	if n := testing.AllocsPerRun(500, func() {
		seq++
		in.Auth.Sequence = seq
		n := in.Encode(raw[:], p.Auth.Keys[0].Secret)
		if Decode(raw[:n], &got) != Kept {
			t.Fatal("decode")
		}
		now = now.Add(50 * time.Millisecond)
		if o := s.Step(now, Event{Kind: Received, Packet: &got, Raw: raw[:n]}); o.Drop != Kept {
			t.Fatal(o.Drop)
		}
		now = now.Add(50 * time.Millisecond)
		if o := s.Step(now, Event{}); o.Send {
			s.Marshal(raw[:], &o.Packet)
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}
