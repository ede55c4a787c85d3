package bfd

import (
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

// gaps are the times between packets.
func gaps(at []time.Time) (least, most time.Duration) {
	least = time.Hour
	for i := 1; i < len(at); i++ {
		g := at[i].Sub(at[i-1])
		least, most = min(least, g), max(most, g)
	}
	return least, most
}

// TestJitter: each gap is drawn from 75 to 100 % of the interval, 75 to 90 % with multiplier 1, and the whole range is used.
func TestJitter(t *testing.T) {
	for _, tt := range []struct {
		mult        uint8
		least, most time.Duration
	}{{3, 75 * ms, 100 * ms}, {1, 75 * ms, 90 * ms}, {255, 75 * ms, 100 * ms}} {
		p := fast
		p.DetectMult = tt.mult
		b := newBench(t, p)
		b.peer.DetectMult = 255
		b.peer.DesiredMinTx = time.Minute
		b.up()
		b.wait(time.Second)
		_, at, _ := b.wait(time.Minute)
		least, most := gaps(at)
		if least < tt.least || least > tt.least+ms || most > tt.most || most < tt.most-ms {
			t.Errorf("multiplier %d: gaps %v to %v, want all of %v to %v", tt.mult, least, most, tt.least, tt.most)
		}
	}
}

// TestSlowStart: while not Up a second or more, whatever is configured and asked for; on Up the configured interval at once.
func TestSlowStart(t *testing.T) {
	b := newBench(t, fast)
	for _, state := range []State{Down, Init} {
		if b.s.State() != state {
			t.Fatalf("state %v, want %v", b.s.State(), state)
		}
		if got := b.s.TxInterval(); got != SlowInterval {
			t.Errorf("%v: interval %v", state, got)
		}
		sent, at, _ := b.wait(500 * ms)
		if len(sent) != 0 {
			t.Errorf("%v: sent after %v", state, at)
		}
		b.rx(Down)
	}
	o := b.rx(Up)
	if o.Packet.DesiredMinTx != fast.DesiredMinTx || o.Packet.State != Up {
		t.Errorf("first packet in Up: %+v", o.Packet)
	}
	if o.Wake.After(b.now.Add(100 * ms)) {
		t.Errorf("next packet after %v", o.Wake.Sub(b.now))
	}
	p := fast
	p.DesiredMinTx = 5 * time.Second
	if o := NewSession(p, 1, 1).Step(epoch, Event{}); o.Packet.DesiredMinTx != 5*time.Second {
		t.Errorf("more than a second is kept: %v", o.Packet.DesiredMinTx)
	}
}

// TestNegotiation of both intervals (sections 6.8.2 and 6.8.4).
func TestNegotiation(t *testing.T) {
	for _, tt := range []struct {
		name       string
		remoteTx   time.Duration
		remoteRx   time.Duration
		mult       uint8
		tx, detect time.Duration
	}{
		{"ours rule", 10 * ms, 10 * ms, 3, 100 * ms, 600 * ms},
		{"neighbour's rule", 300 * ms, 250 * ms, 5, 250 * ms, 1500 * ms},
		{"multiplier 1", 200 * ms, 100 * ms, 1, 100 * ms, 200 * ms},
		{"multiplier 255 of a minute", time.Minute, time.Minute, 255, time.Minute, 255 * time.Minute},
		{"asks for nothing", 200 * ms, 0, 3, 0, 600 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, fast)
			b.peer.DesiredMinTx, b.peer.RequiredMinRx, b.peer.DetectMult = tt.remoteTx, tt.remoteRx, tt.mult
			b.up()
			if got := b.s.TxInterval(); got != tt.tx {
				t.Errorf("tx interval %v, want %v", got, tt.tx)
			}
			if got := b.s.DetectionTime(); got != tt.detect {
				t.Errorf("detection time %v, want %v", got, tt.detect)
			}
			if b.s.DetectDue(b.now.Add(tt.detect-1)) || !b.s.DetectDue(b.now.Add(tt.detect)) {
				t.Errorf("detection is due after %v", b.s.detect.Sub(b.now))
			}
		})
	}
}

// TestRemoteWantsNothing: RequiredMinRx 0 stops periodic packets, not answers nor news.
func TestRemoteWantsNothing(t *testing.T) {
	b := newBench(t, fast)
	b.peer.RequiredMinRx = 0
	b.up()
	if sent, _, _ := b.wait(500 * ms); len(sent) != 0 {
		t.Errorf("%d packets", len(sent))
	}
	if o := b.rx(Up, func(p *Packet) { p.Poll = true }); !o.Send || !o.Packet.Final {
		t.Error("poll not answered")
	}
	if o := b.rx(Down); !o.Send || o.Packet.State != Down {
		t.Error("change not sent")
	}
	b.peer.RequiredMinRx = 50 * ms
	b.rx(AdminDown)
	if sent, _, _ := b.wait(2 * time.Second); len(sent) == 0 {
		t.Error("does not start again")
	}
}

// TestShrinkMeasuredFromLastPacket: when the neighbour asks for more packets, none is later than the new interval after the last one;
// when it asks for fewer, none is sooner.
func TestShrinkMeasuredFromLastPacket(t *testing.T) {
	b := newBench(t, fast)
	b.peer.RequiredMinRx, b.peer.DetectMult = 10*time.Second, 255
	b.up()
	_, at, _ := b.wait(20 * time.Second)
	last := at[len(at)-1]
	b.now = last.Add(2 * time.Second)
	b.peer.RequiredMinRx = 4 * time.Second
	if o := b.rx(Up); o.Wake.Before(last.Add(3*time.Second)) || o.Wake.After(last.Add(4*time.Second)) {
		t.Errorf("after shrinking: next %v after the last", o.Wake.Sub(last))
	}
	b.peer.RequiredMinRx = 500 * ms
	if o := b.rx(Up); !o.Send {
		t.Error("overdue packet is not sent at once")
	}
	last = b.now
	b.peer.RequiredMinRx = 8 * time.Second
	if o := b.rx(Up); o.Wake.Before(last.Add(6 * time.Second)) {
		t.Errorf("after growing: next %v after the last", o.Wake.Sub(last))
	}
}

// TestPollOnUp: the faster interval is announced with P on each packet until F comes.
func TestPollOnUp(t *testing.T) {
	b := newBench(t, fast)
	b.peer.DetectMult = 50
	b.rx(Down)
	if o := b.rx(Up); !o.Packet.Poll {
		t.Errorf("no P: %+v", o.Packet)
	}
	sent, at, _ := b.wait(time.Second)
	for _, p := range sent {
		if !p.Poll || p.Final {
			t.Fatalf("not P: %+v", p)
		}
	}
	if least, _ := gaps(at); least < 75*ms {
		t.Errorf("a Poll must not add packets: gap %v", least)
	}
	b.rx(Up, func(p *Packet) { p.Final = true })
	sent, _, _ = b.wait(time.Second)
	for _, p := range sent {
		if p.Poll || p.Final {
			t.Fatalf("P after F: %+v", p)
		}
	}
	// Nothing to announce, no Poll.
	p := fast
	p.DesiredMinTx = 2 * time.Second
	b = newBench(t, p)
	b.rx(Down)
	if o := b.rx(Up); o.Packet.Poll {
		t.Error("Poll without a change")
	}
}

// TestAnswer: P is answered with F at once, without P, and the periodic packets keep their times.
func TestAnswer(t *testing.T) {
	b := newBench(t, fast).up()
	wake := b.out.Wake
	for range 3 { // unpaced
		b.now = b.now.Add(ms)
		o := b.rx(Up, func(p *Packet) { p.Poll = true })
		if !o.Send || !o.Packet.Final || o.Packet.Poll || !o.Wake.Equal(wake) {
			t.Fatalf("%v %+v, next %v", o.Send, o.Packet, o.Wake.Sub(wake))
		}
	}
	// While our own Poll runs: F first, P with the next packet.
	p := fast
	p.RequiredMinRx = 300 * ms
	b.step(Event{Kind: Configured, Params: p})
	if o := b.rx(Up, func(p *Packet) { p.Poll = true }); !o.Packet.Final || o.Packet.Poll {
		t.Errorf("%+v", o.Packet)
	}
	if sent, _, _ := b.wait(100 * ms); len(sent) == 0 || !sent[0].Poll || sent[0].Final {
		t.Errorf("%+v", sent)
	}
}

// TestTimerChange: which side of a change waits for the end of the Poll Sequence (section 6.8.3).
func TestTimerChange(t *testing.T) {
	for _, tt := range []struct {
		name               string
		tx, rx             time.Duration // new values; 100 and 200 ms before
		txBefore, rxBefore time.Duration // used until F
	}{
		{"tx longer waits", 400 * ms, 200 * ms, 100 * ms, 200 * ms},
		{"tx shorter at once", 60 * ms, 200 * ms, 60 * ms, 200 * ms},
		{"rx shorter waits", 100 * ms, 160 * ms, 100 * ms, 200 * ms},
		{"rx longer at once", 100 * ms, 900 * ms, 100 * ms, 900 * ms},
		{"both", 500 * ms, 155 * ms, 100 * ms, 200 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, fast).up() // neighbour: tx 150 ms × 4, rx 50 ms
			p := fast
			p.DesiredMinTx, p.RequiredMinRx = tt.tx, tt.rx
			b.step(Event{Kind: Configured, Params: p})
			check := func(when string, tx, rx time.Duration) {
				t.Helper()
				if got := b.s.TxInterval(); got != tx {
					t.Errorf("%s: tx interval %v, want %v", when, got, tx)
				}
				if got := b.s.DetectionTime(); got != 4*max(rx, 150*ms) {
					t.Errorf("%s: detection time %v, want 4 × %v", when, got, max(rx, 150*ms))
				}
			}
			check("before F", tt.txBefore, tt.rxBefore)
			sent, _, _ := b.wait(150 * ms)
			if len(sent) == 0 {
				t.Fatal("nothing sent")
			}
			for _, q := range sent {
				if !q.Poll || q.DesiredMinTx != tt.tx || q.RequiredMinRx != tt.rx {
					t.Fatalf("sent %+v", q)
				}
			}
			b.rx(Up)
			check("another packet", tt.txBefore, tt.rxBefore)
			b.rx(Up, func(p *Packet) { p.Final = true })
			check("after F", tt.tx, tt.rx)
		})
	}
}

// TestTimerChangeDown: while not Up nobody counts on anything: all is told with the next packet and used at once.
func TestTimerChangeDown(t *testing.T) {
	b := newBench(t, fast)
	p := fast
	p.DesiredMinTx, p.RequiredMinRx = 3*time.Second, 50*ms
	b.step(Event{Kind: Configured, Params: p})
	sent, _, _ := b.wait(4 * time.Second)
	if len(sent) == 0 || sent[0].Poll || sent[0].DesiredMinTx != 3*time.Second || sent[0].RequiredMinRx != 50*ms {
		t.Errorf("%+v", sent)
	}
	if got := b.s.TxInterval(); got != 3*time.Second {
		t.Errorf("interval %v", got)
	}
}

// TestOnePollAtATime: a change during a Poll Sequence is told by the next one, after a packet without P; a second F to the first
// Poll does not end it early.
func TestOnePollAtATime(t *testing.T) {
	final := func(p *Packet) { p.Final = true }
	b := newBench(t, fast).up()
	b.peer.DetectMult = 200
	b.rx(Up)
	p := fast
	p.DesiredMinTx = 300 * ms
	b.step(Event{Kind: Configured, Params: p})
	b.wait(1200 * ms)
	p.DesiredMinTx = 400 * ms
	b.step(Event{Kind: Configured, Params: p})
	sent, _, _ := b.wait(200 * ms)
	for _, q := range sent {
		if !q.Poll || q.DesiredMinTx != 300*ms {
			t.Fatalf("the first Poll goes on: %+v", q)
		}
	}
	b.rx(Up, final)
	if b.s.TxInterval() != 300*ms {
		t.Errorf("after the first F: %v", b.s.TxInterval())
	}
	ended := b.now
	b.rx(Up, final) // a second answer to the first Poll
	sent, at, _ := b.wait(4 * time.Second)
	second := slices.IndexFunc(sent, func(p Packet) bool { return p.Poll })
	if second < 1 || sent[second-1].DesiredMinTx != 300*ms || sent[second].DesiredMinTx != 400*ms {
		t.Fatalf("the second Poll: %+v", sent)
	}
	if d := at[second].Sub(ended); d < 1400*ms {
		t.Errorf("the second Poll starts %v after the first, which took 1.4 s: a late F would end it", d)
	}
	if b.s.TxInterval() != 300*ms {
		t.Errorf("during the second Poll: %v", b.s.TxInterval())
	}
	b.rx(Up, final)
	if b.s.TxInterval() != 400*ms || b.s.Polling() {
		t.Errorf("after the second F: %v", b.s.TxInterval())
	}
}

// TestMultiplierChange needs no Poll.
func TestMultiplierChange(t *testing.T) {
	b := newBench(t, fast).up()
	p := fast
	p.DetectMult = 9
	b.step(Event{Kind: Configured, Params: p})
	if sent, _, _ := b.wait(100 * ms); len(sent) == 0 || sent[0].DetectMult != 9 || sent[0].Poll {
		t.Errorf("%+v", sent)
	}
}

// TestRemoteDemand: silence while both are Up, but for polls and answers; the neighbour is still watched.
func TestRemoteDemand(t *testing.T) {
	b := newBench(t, fast)
	b.peer.Demand = true
	b.rx(Down)
	b.rx(Up)
	if sent, _, _ := b.wait(300 * ms); len(sent) < 2 || !sent[0].Poll {
		t.Errorf("our Poll goes on in demand mode: %+v", sent)
	}
	b.rx(Up, func(p *Packet) { p.Final = true })
	if sent, _, _ := b.wait(500 * ms); len(sent) != 0 {
		t.Errorf("%d packets in demand mode", len(sent))
	}
	if o := b.rx(Up, func(p *Packet) { p.Poll = true }); !o.Packet.Final {
		t.Error("poll not answered")
	}
	// Two changes: two Polls, with the packet between them, then silence.
	p := fast
	p.DesiredMinTx = 80 * ms
	b.step(Event{Kind: Configured, Params: p})
	p.DesiredMinTx = 70 * ms
	b.step(Event{Kind: Configured, Params: p})
	b.wait(200 * ms)
	b.rx(Up, func(p *Packet) { p.Final = true })
	sent, _, _ := b.wait(400 * ms)
	second := slices.IndexFunc(sent, func(p Packet) bool { return p.Poll })
	if second < 1 || sent[second].DesiredMinTx != 70*ms {
		t.Errorf("second Poll in demand mode: %+v", sent)
	}
	b.rx(Up, func(p *Packet) { p.Final = true })
	if sent, _, _ := b.wait(300 * ms); len(sent) != 0 {
		t.Errorf("%d packets after the Polls", len(sent))
	}
	_, _, changes := b.wait(time.Second)
	if len(changes) != 1 || changes[0].Diag != DiagExpired {
		t.Errorf("%+v", changes)
	}
}

// TestControlPlaneIndependent is the C bit.
func TestControlPlaneIndependent(t *testing.T) {
	for _, c := range []bool{true, false} {
		p := fast
		p.Independent = c
		if o := NewSession(p, 1, 1).Step(epoch, Event{}); o.Packet.Independent != c {
			t.Errorf("C %v, want %v", o.Packet.Independent, c)
		}
	}
}
