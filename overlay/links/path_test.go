package links

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// A path is probed once per second, by a clock that is moved by hand.
func TestPathWindow(t *testing.T) {
	const ms = time.Millisecond
	// answers are round-trip times in ms, 0 for a probe that is lost; after is the time from the last probe to the sum.
	repeat := func(n int, answers ...int) (out []int) {
		for range n {
			out = append(out, answers...)
		}
		return out
	}
	tests := []struct {
		name    string
		answers []int
		after   time.Duration
		want    PathState
	}{
		{"nothing yet", nil, 0, PathState{}},
		{"the first is still under way", []int{0}, pathPatience - 1, PathState{}},
		{"the first is lost", []int{0}, pathPatience, PathState{Probes: 1, Lost: 1}},
		{"the first is answered", []int{16}, 20 * ms, PathState{RTT: 16 * ms, MinRTT: 16 * ms, Probes: 1}},
		{"smoothed by an eighth", []int{16, 24, 8}, 20 * ms, PathState{RTT: 15875 * time.Microsecond, MinRTT: 8 * ms, Probes: 3}},
		{"one in four is lost", repeat(15, 10, 0, 10, 10), 20 * ms, PathState{RTT: 10 * ms, MinRTT: 10 * ms, Probes: 60, Lost: 15}},
		{"the last two are open", append(repeat(58, 10), 0, 0), 500 * ms, PathState{RTT: 10 * ms, MinRTT: 10 * ms, Probes: 58}},
		{"the last two are lost", append(repeat(58, 10), 0, 0), 10 * time.Second, PathState{RTT: 10 * ms, MinRTT: 10 * ms, Probes: 60, Lost: 2}},
		{"older ones count no more", append(repeat(40, 0), repeat(60, 10)...), 20 * ms, PathState{RTT: 10 * ms, MinRTT: 10 * ms, Probes: 60}},
		{"nor does an older minimum", append([]int{1}, repeat(60, 9)...), 20 * ms, PathState{RTT: 8997350, MinRTT: 9 * ms, Probes: 60}},
		{"silent for a minute", append(repeat(60, 10), repeat(60, 0)...), pathPatience, PathState{Probes: 60, Lost: 60}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w pathWindow
			now := time.Unix(1700000000, 0)
			for i, rtt := range tt.answers {
				if i > 0 {
					now = now.Add(pathInterval)
				}
				if seq := w.send(now); rtt > 0 {
					w.answer(seq, now.Add(time.Duration(rtt)*ms))
				}
			}
			got := w.state(now.Add(tt.after))
			// How the average of many comes out is not the matter: to a thousandth.
			if d := got.RTT - tt.want.RTT; d.Abs() <= tt.want.RTT/1000 {
				got.RTT = tt.want.RTT
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// After a silence the average begins anew.
func TestPathAverageBeginsAnew(t *testing.T) {
	var w pathWindow
	now := time.Unix(1700000000, 0)
	w.answer(w.send(now), now.Add(400*time.Millisecond))
	for range pathProbes {
		now = now.Add(pathInterval)
		w.send(now)
	}
	if s := w.state(now); s.RTT != 0 {
		t.Fatalf("in silence: %+v", s)
	}
	w.answer(w.send(now), now.Add(10*time.Millisecond))
	if s := w.state(now); s.RTT != 10*time.Millisecond {
		t.Errorf("after it: %+v", s)
	}
}

// Answers that no open probe waits for.
func TestPathAnswersThatDoNotCount(t *testing.T) {
	var w pathWindow
	now := time.Unix(1700000000, 0)
	w.answer(0, now)
	w.answer(65535, now)
	if s := w.state(now); s != (PathState{}) {
		t.Fatalf("before the first probe: %+v", s)
	}
	// Around the end of the sequence numbers.
	for range 1<<16 + 30 {
		now = now.Add(pathInterval)
		w.send(now)
	}
	late := now.Add(time.Hour)
	for _, seq := range []uint16{30, 31, 1<<16 - 31, 40000} {
		if w.answer(seq, now); w.state(late).Lost != pathProbes {
			t.Errorf("an answer to probe %d, which is none of the last, counts", seq)
		}
	}
	for _, seq := range []uint16{29, 0, 1<<16 - 30} {
		w.answer(seq, now)
	}
	once := w.state(late)
	if w.answer(29, late); w.state(late) != once {
		t.Errorf("a second answer counts: %+v, before %+v", w.state(late), once)
	}
	if s := w.state(late); s.Probes != pathProbes || s.Lost != pathProbes-3 {
		t.Errorf("three were answered: %+v", s)
	}
	// What was waited for in vain and comes all the same is an answer.
	if s := w.state(late); s.MinRTT != 1 {
		t.Errorf("least is %s", s.MinRTT)
	}
}

// Whatever comes back, the window's sums hold together.
func TestPathWindowHoldsTogether(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w pathWindow
	now := time.Unix(1700000000, 0)
	for range 20000 {
		now = now.Add(time.Duration(r.Int64N(int64(pathInterval))))
		switch r.IntN(3) {
		case 0:
			w.send(now)
		case 1:
			w.answer(uint16(w.sent)-uint16(r.IntN(2*pathProbes)), now)
		default:
			s := w.state(now)
			if s.Lost < 0 || s.Lost > s.Probes || s.Probes > pathProbes || (s.RTT == 0) != (s.MinRTT == 0) || (s.RTT == 0) != (s.Probes == s.Lost) || s.RTT < 0 {
				t.Fatalf("%+v", s)
			}
		}
	}
}

func TestPathLoss(t *testing.T) {
	if _, known := (PathState{}).Loss(); known {
		t.Error("known before the first probe")
	}
	if share, known := (PathState{Probes: 60, Lost: 15}).Loss(); !known || share != 0.25 {
		t.Errorf("%v, %v", share, known)
	}
}

// Only the answer to a request of ours, over the device that it was sent over and from its other end, counts.
func TestProberTakesItsOwnAnswersOnly(t *testing.T) {
	now := time.Unix(1700000000, 0)
	local, remote := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	answer := func(p *Prober, change func([]byte)) []byte {
		echo := make([]byte, echoSize)
		echo[0] = echoReply
		binary.BigEndian.PutUint16(echo[6:], 0)
		copy(echo[8:], p.cookie[:])
		change(echo)
		return echo
	}
	same := func([]byte) {}
	for _, tt := range []struct {
		name   string
		change func([]byte)
		from   netip.Addr
		index  uint32
		cut    int
		want   int
	}{
		{"ours", same, remote, 7, 0, 1},
		{"another device", same, remote, 8, 0, 0},
		{"another sender", same, local, 7, 0, 0},
		{"another program's", func(b []byte) { b[15]++ }, remote, 7, 0, 0},
		{"a request", func(b []byte) { b[0] = echoRequest }, remote, 7, 0, 0},
		{"another number", func(b []byte) { b[7] = 1 }, remote, 7, 0, 0},
		{"cut short", same, remote, 7, 9, 0},
		{"empty", same, remote, 7, echoSize, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := NewProber()
			p.now = func() time.Time { return now }
			p.Watch(map[string]PathTarget{"fxwa": {local, remote}})
			p.paths["fxwa"].index = 7
			p.paths["fxwa"].window.send(now)
			p.take(answer(p, tt.change)[:echoSize-tt.cut], tt.from, tt.index)
			if got := p.States()["fxwa"].Probes; got != tt.want {
				t.Errorf("%d answers, want %d", got, tt.want)
			}
		})
	}
}

// What is watched is what the last word says; a path that stays keeps what is known of it.
func TestProberWatch(t *testing.T) {
	p := NewProber()
	now := time.Unix(1700000000, 0)
	p.now = func() time.Time { return now }
	one, two := PathTarget{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")}, PathTarget{netip.MustParseAddr("fe80::3"), netip.MustParseAddr("fe80::4")}
	p.Watch(map[string]PathTarget{"fxwa": one, "fxwb": one, "fxwc": one})
	for _, path := range p.paths {
		path.window.answer(path.window.send(now), now.Add(time.Millisecond))
	}
	p.Watch(map[string]PathTarget{"fxwa": one, "fxwb": two})
	want := map[string]PathState{"fxwa": {RTT: time.Millisecond, MinRTT: time.Millisecond, Probes: 1}, "fxwb": {}}
	if got := p.States(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// measured is a Paths whose states are given.
type measured struct {
	watched map[string]PathTarget
	states  map[string]PathState
}

// Watch implements Paths.
func (m *measured) Watch(t map[string]PathTarget) { m.watched = t }

// States implements Paths.
func (m *measured) States() map[string]PathState { return m.states }

// Each tunnel of the plan is measured between its link-local addresses, and what is measured is in the state.
func TestPathsInState(t *testing.T) {
	w, e := running(t)
	m := &measured{states: map[string]PathState{b0: {RTT: 3, MinRTT: 2, Probes: 60, Lost: 6}}}
	e.cfg.Paths = m
	w.settle(e)
	for i, tunnel := range testPlan().Tunnels {
		if got := m.watched[tunnel.Device]; got != (PathTarget{tunnel.LinkLocal, tunnel.RemoteLinkLocal}) {
			t.Errorf("%s is measured as %+v", tunnel.Device, got)
		}
		if got := e.State().Tunnels[i].Path; got != m.states[tunnel.Device] {
			t.Errorf("%s has %+v", tunnel.Device, got)
		}
	}
}
