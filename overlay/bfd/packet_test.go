package bfd

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample has a value of its own in every field.
var sample = Packet{
	State: Init, Diag: DiagNeighbourDown, Poll: true, Independent: true, Demand: true, DetectMult: 5,
	MyDiscr: 0x01020304, YourDiscr: 0x05060708,
	DesiredMinTx: 300 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond, RequiredMinEchoRx: 7 * time.Microsecond,
}

func TestEncode(t *testing.T) {
	// Computed apart from this code: header by hand from RFC 5880 section 4, digests by another SHA1 over the packet with the padded key.
	const header = "23aa0518010203040506070800" + "0493e0" + "0000c350" + "00000007"
	tests := []struct {
		name   string
		auth   AuthSection
		secret string
		want   string
	}{
		{"no authentication", AuthSection{}, "", header},
		{"password", AuthSection{Type: SimplePassword, KeyID: 9}, "pass",
			"23ae051f" + header[8:] + "01070970617373"},
		{"keyed SHA1", AuthSection{Type: KeyedSHA1, KeyID: 9, Sequence: 0x0a0b0c0d}, "fabric",
			"23ae0534" + header[8:] + "041c09000a0b0c0d" + "64560b688145e250d278e84b90bd9258a8953d46"},
		{"meticulous keyed SHA1", AuthSection{Type: MeticulousKeyedSHA1, KeyID: 9, Sequence: 1}, "01234567890123456789",
			"23ae0534" + header[8:] + "051c090000000001" + "666c1e5a1db774aebab50ef736fbb079233cc9d9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := sample
			p.Auth = tt.auth
			var b [MaxLen]byte
			n := p.Encode(b[:], Secret(tt.secret))
			if got := hex.EncodeToString(b[:n]); got != tt.want {
				t.Errorf("encoded\n got %s\nwant %s", got, tt.want)
			}
			var back Packet
			if d := Decode(b[:n], &back); d != Kept {
				t.Fatalf("decode: %v", d)
			}
			if diff := cmp.Diff(p, back); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if tt.auth.Type == NoAuth {
				return
			}
			if !back.Auth.verify(b[:n], Secret(tt.secret)) {
				t.Error("right secret refused")
			}
			if back.Auth.verify(b[:n], Secret("x"+tt.secret)) {
				t.Error("wrong secret accepted")
			}
		})
	}
}

// TestFlags: each bit of the second byte is the field it should be.
func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		bit byte
		set func(*Packet)
	}{
		{0x20, func(p *Packet) { p.Poll = true }},
		{0x10, func(p *Packet) { p.Final = true }},
		{0x08, func(p *Packet) { p.Independent = true }},
		{0x02, func(p *Packet) { p.Demand = true }},
	} {
		p := Packet{State: Up, DetectMult: 1, MyDiscr: 1, YourDiscr: 1}
		tt.set(&p)
		var b [MaxLen]byte
		p.Encode(b[:], nil)
		if b[1] != 0xc0|tt.bit {
			t.Errorf("%+v: second byte %#x, want %#x", p, b[1], 0xc0|tt.bit)
		}
	}
}

func TestDecodeDrops(t *testing.T) {
	encode := func(p Packet, secret string) []byte {
		var b [MaxLen]byte
		return b[:p.Encode(b[:], Secret(secret))]
	}
	plain := encode(sample, "")
	withAuth := func(typ AuthType) []byte {
		p := sample
		p.Auth.Type = typ
		return encode(p, "secret")
	}
	set := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	tests := []struct {
		name string
		in   []byte
		want Drop
	}{
		{"good", plain, Kept},
		{"bytes beyond the packet", append(bytes.Clone(plain), 1, 2, 3), Kept},
		{"bytes beyond the section", append(withAuth(KeyedSHA1), 1, 2, 3), Kept},
		{"empty", nil, DropShort},
		{"one byte short", plain[:23], DropShort},
		{"section cut", withAuth(KeyedSHA1)[:51], DropShort},
		{"version 0", set(plain, 0, 0x03), DropVersion},
		{"version 2", set(plain, 0, 0x43), DropVersion},
		{"length 23", set(plain, 3, 23), DropLength},
		{"length 0", set(plain, 3, 0), DropLength},
		{"length beyond the datagram", set(plain, 3, 25), DropShort},
		{"authentication in 25 bytes", set(append(bytes.Clone(plain), 1), 1, plain[1]|bitAuth, 5, 25), DropLength},
		{"multiplier 0", set(plain, 2, 0), DropMultiplier},
		{"multipoint", set(plain, 1, plain[1]|bitMultipoint), DropMultipoint},
		{"poll and final", set(plain, 1, plain[1]|bitFinal), DropPollFinal},
		{"my discriminator 0", set(plain, 4, 0, 0, 0, 0), DropMyDiscr},
		{"your discriminator 0 in Init", set(plain, 8, 0, 0, 0, 0), DropYourDiscr},
		{"your discriminator 0 in Up", set(set(plain, 8, 0, 0, 0, 0), 1, 0xc0), DropYourDiscr},
		{"your discriminator 0 in Down", set(set(plain, 8, 0, 0, 0, 0), 1, 0x40), Kept},
		{"your discriminator 0 in AdminDown", set(set(plain, 8, 0, 0, 0, 0), 1, 0x00), Kept},
		{"section longer than the packet", set(withAuth(KeyedSHA1), 25, 29), DropAuthMalformed},
		{"section shorter than the packet", set(withAuth(SimplePassword), 25, 8), DropAuthMalformed},
		{"section of length 0", set(withAuth(KeyedSHA1), 25, 0), DropAuthMalformed},
		{"section of type 0", set(withAuth(KeyedSHA1), 24, 0), DropAuthMalformed},
		{"SHA1 in a password's size", set(withAuth(SimplePassword), 24, 4), DropAuthMalformed},
		{"password of 25 bytes", set(withAuth(KeyedSHA1), 24, 1), DropAuthMalformed},
		{"password of no bytes", set(withAuth(SimplePassword), 3, 27, 1, 2), DropAuthMalformed},
		{"type that we do not know", set(withAuth(KeyedSHA1), 24, 77), Kept},
	}
	// The one case whose bytes are not in a row.
	tests[len(tests)-2].in = set(set(withAuth(SimplePassword), 3, 27), 25, 3)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			if got := Decode(tt.in, &p); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	var b [MaxLen]byte
	for _, typ := range []AuthType{NoAuth, SimplePassword, KeyedSHA1, MeticulousKeyedSHA1, 2} {
		p := sample
		p.Auth.Type = typ
		f.Add(bytes.Clone(b[:p.Encode(b[:], Secret("secret"))]))
	}
	f.Add([]byte{0x20, 0x40, 1, 24})
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		var p Packet
		if Decode(in, &p) != Kept {
			return
		}
		if p.MyDiscr == 0 || p.DetectMult == 0 || p.Poll && p.Final || p.YourDiscr == 0 && p.State > Down {
			t.Fatalf("kept %+v", p)
		}
		right := Secret("secret")
		if p.Auth.Type == SimplePassword {
			right = Secret(in[HeaderLen+passwordHeader : in[3]])
		}
		p.Auth.verify(in, right)
		if !bytes.Equal(in, before) {
			t.Fatal("input changed")
		}
		if p.Auth.Type > MeticulousKeyedSHA1 || p.Auth.Type == 2 || p.Auth.Type == 3 {
			return // cannot be sent
		}
		// What is kept encodes to what was read, digest aside.
		var out [MaxLen]byte
		n := p.Encode(out[:], right)
		same := HeaderLen
		switch p.Auth.Type {
		case NoAuth:
			in[3] = HeaderLen // a longer length without authentication is allowed, and means nothing
		case SimplePassword:
			same = n
		case KeyedSHA1, MeticulousKeyedSHA1:
			same = HeaderLen + sha1Header
			in[27] = 0 // reserved
		}
		if n != int(in[3]) || !bytes.Equal(out[:same], in[:same]) {
			t.Fatalf("read    %x\nwritten %x", in[:in[3]], out[:n])
		}
		var again Packet
		if d := Decode(out[:n], &again); d != Kept || again != p {
			t.Fatalf("again: %v\n%+v\n%+v", d, p, again)
		}
	})
}

func TestCodecAllocates(t *testing.T) {
	for _, typ := range []AuthType{NoAuth, SimplePassword, KeyedSHA1} {
		p := sample
		p.Auth.Type = typ
		var b [MaxLen]byte
		secret := Secret("secret")
		if n := testing.AllocsPerRun(100, func() {
			n := p.Encode(b[:], secret)
			if Decode(b[:n], &p) != Kept || typ != NoAuth && !p.Auth.verify(b[:n], secret) {
				t.Fatal("broken")
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations", typ, n)
		}
	}
}

func TestSecretNeverPrinted(t *testing.T) {
	a := &Auth{Type: KeyedSHA1, Keys: []Key{{ID: 1, Secret: Secret("hunter2")}}}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "auth", a, "keys", a.Keys, "secret", a.Keys[0].Secret)
	js, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	hidden := hex.EncodeToString([]byte("hunter2"))
	for _, s := range []string{
		fmt.Sprintf("%v %+v %#v", a.Keys, a.Keys, a.Keys), fmt.Sprintf("%s %x %q %d", a.Keys[0].Secret, a.Keys[0].Secret, a.Keys[0].Secret,
			a.Keys[0].Secret), log.String(), string(js),
	} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, hidden) || strings.Contains(s, "104 117 110") {
			t.Errorf("secret in %q", s)
		}
	}
}

func TestAuthValidate(t *testing.T) {
	key := func(id uint8, n int) Key { return Key{ID: id, Secret: bytes.Repeat([]byte{1}, n)} }
	for _, tt := range []struct {
		auth *Auth
		want string // part of the error; empty for none
	}{
		{nil, ""},
		{&Auth{SimplePassword, []Key{key(1, 16)}}, ""},
		{&Auth{KeyedSHA1, []Key{key(1, 20), key(2, 1)}}, ""},
		{&Auth{SimplePassword, []Key{key(1, 17)}}, "1 to 16"},
		{&Auth{MeticulousKeyedSHA1, []Key{key(1, 21)}}, "1 to 20"},
		{&Auth{KeyedSHA1, []Key{key(1, 0)}}, "1 to 20"},
		{&Auth{KeyedSHA1, nil}, "no key"},
		{&Auth{KeyedSHA1, []Key{key(1, 1), key(1, 2)}}, "twice"},
		{&Auth{2, []Key{key(1, 1)}}, "type 2"},
	} {
		err := tt.auth.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.auth, err, tt.want)
		}
	}
}
