package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// contains is what a prefix range means, bit by bit and without any index.
func contains(r prefixRange, p netip.Prefix) bool {
	if !p.IsValid() || p.Addr().BitLen() != r.base.Addr().BitLen() || p.Bits() < r.ge || p.Bits() > r.le || p.Bits() < r.base.Bits() {
		return false
	}
	a, b := p.Addr().AsSlice(), r.base.Addr().AsSlice()
	for i := range r.base.Bits() {
		if (a[i/8]^b[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func TestPrefixRange(t *testing.T) {
	tests := []struct {
		text    string
		in, out string
	}{
		{"10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/9 0.0.0.0/0 11.0.0.0/8 10.0.0.0/7 10.1.0.0/16"},
		{"10.0.0.0/8 le 24", "10.0.0.0/8 10.1.0.0/16 10.1.2.0/24", "10.1.2.0/25 10.0.0.0/7 11.1.0.0/16"},
		{"10.0.0.0/8 ge 16", "10.1.0.0/16 10.1.2.3/32", "10.0.0.0/8 10.0.0.0/15"},
		{"10.0.0.0/8 ge 16 le 24", "10.1.0.0/16 10.1.2.0/24", "10.0.0.0/15 10.1.2.0/25"},
		{"10.0.0.0/8 le 24 ge 16", "10.1.0.0/16 10.1.2.0/24", "10.0.0.0/15 10.1.2.0/25"},
		{" 10.0.0.0/8   ge  8 ", "10.0.0.0/8 10.0.0.0/32", "10.0.0.0/7"},
		{"0.0.0.0/0 le 32", "0.0.0.0/0 255.255.255.255/32", "::/0"},
		{"::/0 le 128", "::/0 2001:db8::1/128", "0.0.0.0/0"},
		{"2001:db8::/32 ge 48 le 64", "2001:db8::/48 2001:db8:ffff:ffff::/64", "2001:db8::/32 2001:db8::/65 2001:db9::/48"},
		{"::/0", "::/0", "::/1"},
	}
	for _, tt := range tests {
		r, err := parsePrefixRange(tt.text)
		if err != nil {
			t.Fatal(err)
		}
		s := newPrefixSet([]prefixRange{r})
		for want, list := range map[bool]string{true: tt.in, false: tt.out} {
			for p := range strings.FieldsSeq(list) {
				if got := s.matches(netip.MustParsePrefix(p)); got != want {
					t.Errorf("%q matches %s: %v", tt.text, p, got)
				}
			}
		}
	}
	if newPrefixSet([]prefixRange{{netip.MustParsePrefix("::/0"), 0, 128}}).matches(netip.Prefix{}) {
		t.Error("the zero prefix is matched")
	}
}

// Of nested bases with ranges of their own, every one that covers the prefix counts, not only the longest.
func TestAllCoveringBasesCount(t *testing.T) {
	s := newPrefixSet([]prefixRange{mustRange("10.0.0.0/8 ge 24 le 24"), mustRange("10.1.0.0/16"), mustRange("10.0.0.0/8 ge 28 le 28")})
	for p, want := range map[string]bool{"10.1.0.0/16": true, "10.1.2.0/24": true, "10.1.2.0/28": true, "10.1.2.0/26": false, "10.2.0.0/16": false} {
		if s.matches(netip.MustParsePrefix(p)) != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
}

// A set of ranges matches exactly what one of them contains; addresses are drawn close together so that they nest.
func TestPrefixSetAgainstReference(t *testing.T) {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "v6") {
			b := [16]byte{0x20, 1, 0xd, 0xb8, rapid.ByteRange(0, 3).Draw(t, "5th"), 15: rapid.Byte().Draw(t, "last")}
			return netip.PrefixFrom(netip.AddrFrom16(b), rapid.IntRange(0, 128).Draw(t, "bits"))
		}
		b := [4]byte{10, rapid.ByteRange(0, 3).Draw(t, "2nd"), 0, rapid.Byte().Draw(t, "last")}
		return netip.PrefixFrom(netip.AddrFrom4(b), rapid.IntRange(0, 32).Draw(t, "bits"))
	})
	rapid.Check(t, func(t *rapid.T) {
		var rs []prefixRange
		for range rapid.IntRange(0, 8).Draw(t, "ranges") {
			base := prefix.Draw(t, "base").Masked()
			longest := base.Addr().BitLen()
			ge := rapid.IntRange(base.Bits(), longest).Draw(t, "ge")
			rs = append(rs, prefixRange{base, ge, rapid.IntRange(ge, longest).Draw(t, "le")})
		}
		s := newPrefixSet(rs)
		for range 20 {
			p := prefix.Draw(t, "prefix")
			want := false
			for _, r := range rs {
				want = want || contains(r, p)
			}
			if s.matches(p) != want {
				t.Fatalf("%v of %v: %v", p, rs, !want)
			}
		}
	})
}

// FuzzMatcher reads a list of ranges, one a line, and a prefix. Whatever is accepted must print back to the same range and
// match as the reference does; nothing may panic.
func FuzzMatcher(f *testing.F) {
	for _, s := range []string{
		"10.0.0.0/8", "10.0.0.0/8 le 24", "10.0.0.0/8 ge 16 le 24\n10.1.0.0/16", "0.0.0.0/0 le 32\n::/0 le 128",
		"2001:db8::/32 ge 48 le 64", "fe80::/10 le 128", "::ffff:0.0.0.0/96", "10.0.0.1/8", "x", "10.0.0.0/8 le", "10.0.0.0/8 le 999",
	} {
		f.Add(s, []byte{10, 1, 2, 3}, uint8(24))
		f.Add(s, []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, uint8(48))
		f.Add(s, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0}, uint8(104))
	}
	f.Fuzz(func(t *testing.T, list string, addr []byte, bits uint8) {
		var rs []prefixRange
		for line := range strings.Lines(list) {
			r, err := parsePrefixRange(line)
			if err != nil {
				continue
			}
			if r.base != r.base.Masked() || r.ge < r.base.Bits() || r.ge > r.le || r.le > r.base.Addr().BitLen() {
				t.Fatalf("%q was read as %+v", line, r)
			}
			again, err := parsePrefixRange(fmt.Sprintf("%s ge %d le %d", r.base, r.ge, r.le))
			if err != nil || again != r {
				t.Fatalf("%q was read as %+v, printed and read again %+v, %v", line, r, again, err)
			}
			rs = append(rs, r)
		}
		s := newPrefixSet(rs)
		a, _ := netip.AddrFromSlice(addr)
		ask := []netip.Prefix{netip.PrefixFrom(a, int(bits))}
		for _, r := range rs { // and the ranges' own edges
			ask = append(ask, r.base, netip.PrefixFrom(r.base.Addr(), r.ge), netip.PrefixFrom(r.base.Addr(), r.le))
		}
		for _, p := range ask {
			want := false
			for _, r := range rs {
				want = want || contains(r, p)
			}
			if got := s.matches(p); got != want {
				t.Fatalf("%v of %v: %v, want %v", p, rs, got, want)
			}
		}
	})
}
