package bfd

import (
	"testing"
	"time"
)

// signed makes a Received event of a packet as a neighbour with these keys would send it.
func signed(p Packet, a *Auth, seq uint32, packet *Packet) Event {
	var raw [MaxLen]byte
	var secret Secret
	if a != nil {
		p.Auth = AuthSection{Type: a.Type, KeyID: a.Keys[0].ID}
		secret = a.Keys[0].Secret
		if a.Type != SimplePassword {
			p.Auth.Sequence = seq
		}
	}
	n := p.Encode(raw[:], secret)
	if Decode(raw[:n], packet) != Kept {
		panic("not kept")
	}
	return Event{Kind: Received, Packet: packet, Raw: raw[:n]}
}

// TestAuthentication is section 6.7: what does not pass changes nothing, not even the detection timer.
func TestAuthentication(t *testing.T) {
	auth := func(typ AuthType, id uint8, secret string) *Auth { return &Auth{typ, []Key{{id, Secret(secret)}}} }
	pass, sha, met := auth(SimplePassword, 1, "secret"), auth(KeyedSHA1, 1, "secret"), auth(MeticulousKeyedSHA1, 1, "secret")
	two := &Auth{KeyedSHA1, []Key{{2, Secret("new")}, {1, Secret("secret")}}}
	for _, tt := range []struct {
		name       string
		ours, peer *Auth
		want       Drop
	}{
		{"none", nil, nil, Kept},
		{"password", pass, pass, Kept},
		{"SHA1", sha, sha, Kept},
		{"meticulous", met, met, Kept},
		{"missing", sha, nil, DropAuthMissing},
		{"unexpected", nil, sha, DropAuthUnexpected},
		{"type", sha, met, DropAuthType},
		{"type, simpler", sha, pass, DropAuthType},
		{"key id", sha, auth(KeyedSHA1, 2, "secret"), DropAuthKey},
		{"password wrong", pass, auth(SimplePassword, 1, "secre7"), DropAuthDigest},
		{"password longer", pass, auth(SimplePassword, 1, "secrets"), DropAuthDigest},
		{"password shorter", pass, auth(SimplePassword, 1, "secre"), DropAuthDigest},
		{"SHA1 wrong", sha, auth(KeyedSHA1, 1, "secre7"), DropAuthDigest},
		{"second key", two, sha, Kept},
		{"first key", two, auth(KeyedSHA1, 2, "new"), Kept},
		{"keys swapped", two, auth(KeyedSHA1, 2, "secret"), DropAuthDigest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := fast
			p.Auth = tt.ours
			b := newBench(t, p)
			before := *b.s
			q := b.peer
			q.State = Down
			o := b.step(signed(q, tt.peer, 1, new(Packet)))
			if o.Drop != tt.want {
				t.Fatalf("%v, want %v", o.Drop, tt.want)
			}
			if tt.want != Kept && *b.s != before {
				t.Errorf("a dropped packet changed\n%+v\nto\n%+v", before, *b.s)
			}
			if tt.want == Kept && b.s.State() != Init {
				t.Errorf("state %v", b.s.State())
			}
		})
	}
}

// TestFlippedBits: no bit of a signed packet can be changed.
func TestFlippedBits(t *testing.T) {
	p := fast
	p.Auth = &Auth{KeyedSHA1, []Key{{1, Secret("secret")}}}
	b := newBench(t, p)
	var q Packet
	ev := signed(b.peer, p.Auth, 5, &q)
	for bit := range len(ev.Raw) * 8 {
		raw := append([]byte(nil), ev.Raw...)
		raw[bit/8] ^= 1 << (bit % 8)
		if Decode(raw, &q) != Kept || bit/8 == HeaderLen+3 { // reserved byte; covered by the digest as well
			continue
		}
		s := *b.s
		if o := s.Step(b.now, Event{Kind: Received, Packet: &q, Raw: raw}); o.Drop == Kept {
			t.Errorf("bit %d", bit)
		}
	}
}

// TestSequence: the accepted window is 3 × the packet's multiplier ahead, circular; meticulous is strictly increasing.
func TestSequence(t *testing.T) {
	const mult = 4
	for _, tt := range []struct {
		typ         AuthType
		first, next uint32
		want        Drop
	}{
		{KeyedSHA1, 100, 100, Kept},
		{KeyedSHA1, 100, 101, Kept},
		{KeyedSHA1, 100, 100 + 3*mult, Kept},
		{KeyedSHA1, 100, 101 + 3*mult, DropAuthSequence},
		{KeyedSHA1, 100, 99, DropAuthSequence},
		{KeyedSHA1, 0xffffffff, 3, Kept},
		{KeyedSHA1, 3, 0xffffffff, DropAuthSequence},
		{MeticulousKeyedSHA1, 100, 100, DropAuthSequence},
		{MeticulousKeyedSHA1, 100, 101, Kept},
		{MeticulousKeyedSHA1, 100, 100 + 3*mult, Kept},
		{MeticulousKeyedSHA1, 100, 101 + 3*mult, DropAuthSequence},
		{MeticulousKeyedSHA1, 100, 99, DropAuthSequence},
		{MeticulousKeyedSHA1, 0xffffffff, 0, Kept},
	} {
		p := fast
		p.Auth = &Auth{tt.typ, []Key{{1, Secret("secret")}}}
		b := newBench(t, p)
		b.peer.DetectMult = mult
		if o := b.step(signed(b.peer, p.Auth, tt.first, new(Packet))); o.Drop != Kept {
			t.Fatal(o.Drop)
		}
		if o := b.step(signed(b.peer, p.Auth, tt.next, new(Packet))); o.Drop != tt.want {
			t.Errorf("%v: %d after %d: %v, want %v", tt.typ, tt.next, tt.first, o.Drop, tt.want)
		}
	}
}

// TestSequenceForgotten: a neighbour that restarts with another number is heard again after two detection times of silence, no sooner.
func TestSequenceForgotten(t *testing.T) {
	p := fast
	p.Auth = &Auth{MeticulousKeyedSHA1, []Key{{1, Secret("secret")}}}
	b := newBench(t, p)
	b.peer.DesiredMinTx = time.Second // × 4
	b.step(signed(b.peer, p.Auth, 1000, new(Packet)))
	b.wait(8*time.Second - 1)
	if o := b.step(signed(b.peer, p.Auth, 5, new(Packet))); o.Drop != DropAuthSequence {
		t.Errorf("before: %v", o.Drop)
	}
	b.wait(1)
	if o := b.step(signed(b.peer, p.Auth, 5, new(Packet))); o.Drop != Kept {
		t.Errorf("after: %v", o.Drop)
	}
}

// TestSentSequence: numbers start anywhere and count every packet.
func TestSentSequence(t *testing.T) {
	p := fast
	p.Auth = &Auth{MeticulousKeyedSHA1, []Key{{3, Secret("secret")}}}
	first := map[uint32]bool{}
	for seed := range uint64(4) {
		s := NewSession(p, 7, seed)
		now := epoch
		o := s.Step(now, Event{})
		first[o.Packet.Auth.Sequence] = true
		for seq := o.Packet.Auth.Sequence; now.Before(epoch.Add(5 * time.Second)); now = o.Wake {
			if o = s.Step(now, Event{}); o.Send {
				seq++
				if o.Packet.Auth != (AuthSection{MeticulousKeyedSHA1, 3, seq}) {
					t.Fatalf("%+v, want sequence %d", o.Packet.Auth, seq)
				}
			}
		}
	}
	if len(first) != 4 {
		t.Errorf("first numbers: %v", first)
	}
}

// TestKeyRotation: append the new key at both ends, then make it the first at both: no packet is lost in any order.
func TestKeyRotation(t *testing.T) {
	old, fresh := Key{1, Secret("old")}, Key{2, Secret("new")}
	stages := []*Auth{{KeyedSHA1, []Key{old}}, {KeyedSHA1, []Key{old, fresh}}, {KeyedSHA1, []Key{fresh, old}}, {KeyedSHA1, []Key{fresh}}}
	p := fast
	p.Auth = stages[0]
	b := newBench(t, p)
	seq := uint32(10)
	for i, a := range stages {
		p.Auth = a
		b.step(Event{Kind: Configured, Params: p})
		for _, peer := range stages[max(i-1, 0):min(i+2, len(stages))] {
			seq++
			if o := b.step(signed(b.peer, peer, seq, new(Packet))); o.Drop != Kept {
				t.Errorf("stage %d: %v", i, o.Drop)
			}
		}
		// A number from before is still a replay.
		if o := b.step(signed(b.peer, a, 10, new(Packet))); o.Drop != DropAuthSequence {
			t.Errorf("stage %d: replay %v", i, o.Drop)
		}
	}
}
