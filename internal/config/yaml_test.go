package config

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strconv"
	"testing"
	"time"
)

func itoa(i int) string { return strconv.Itoa(i) }

func TestCanonicalFormOfExample(t *testing.T) {
	d := mustParse(t, example(t))
	text, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again := mustParse(t, string(text))
	if !reflect.DeepEqual(d, again) {
		t.Errorf("read back as\n%+v\nnot\n%+v", again, d)
	}
}

// nasty are texts that a careless writer would leave without quotes.
var nasty = []string{"", " ", "~", "null", "Yes", "n", "off", "1", "-1", "1.5", "0x1", "1e3", ".inf", "1:2", "12:30:45", "a: b", "a #b", "#", "- x", "-", "?", "*a", "&a",
	"!x", "|", ">", "@a", "`", "%x", "[", "{", "]", "}", ",", "a,b", "'", "\"", "\\", "\\n", "::", "fd00::", "fe80::1", "a\nb", "\t", "é", "日本", "\u0085", "\u2028", "\ufeff", "\x00", "\x7f",
	"<<", "---", "...", "=", "a ", " a", "1_000", "5s", "10.0.0.1", "10.0.0.0/8 le 24", "/etc/x", "2001-01-01"}

// randomize fills a value with random content.
func randomize(r *rand.Rand, v reflect.Value) {
	random4 := func() netip.Addr {
		return netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	}
	address := func() netip.Addr {
		if r.IntN(2) == 0 {
			return random4()
		}
		a := netip.MustParseAddr([]string{"::", "::1", "fd00::", "2001:db8::1", "fe80::1:0:0:1", "1:2:3:4:5:6:7:8"}[r.IntN(6)])
		return a
	}
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(address()))
		return
	case netip.Prefix:
		a := address()
		v.Set(reflect.ValueOf(netip.PrefixFrom(a, r.IntN(a.BitLen()+1))))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(address(), uint16(r.Uint32()))))
		return
	case Duration:
		v.Set(reflect.ValueOf(Duration(time.Duration(1+r.IntN(100000)) * time.Millisecond)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(nasty[r.IntN(len(nasty))])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int:
		v.SetInt(int64(int32(r.Uint32())))
	case reflect.Uint32:
		v.SetUint(uint64(r.Uint32()))
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			randomize(r, v.Elem())
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				randomize(r, v.Index(i))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			randomize(r, v.Field(i))
		}
	}
}

// What is written is read back equal, whatever it is; a copy is equal and shares nothing.
func TestCanonicalFormOfRandomDocuments(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := new(Document)
		randomize(r, reflect.ValueOf(d).Elem())
		text, err := d.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, report := decode("again.yaml", text)
		if len(report.list) > 0 {
			t.Fatalf("seed %d: %v\n%s", seed, report.list, text)
		}
		if !reflect.DeepEqual(d, again) {
			second, _ := again.YAML()
			diff, _ := DiffDocuments("written", d, "read", again)
			t.Fatalf("seed %d: read back differently:\n%s\n%s", seed, diff, second)
		}
		c := d.Clone()
		if !reflect.DeepEqual(d, c) {
			t.Fatalf("seed %d: the copy differs", seed)
		}
		randomize(r, reflect.ValueOf(c).Elem())
		if after, _ := d.YAML(); string(after) != string(text) {
			t.Fatalf("seed %d: the copy shares memory", seed)
		}
		once := again.Clone()
		once.setDefaults()
		twice := once.Clone()
		twice.setDefaults()
		if !reflect.DeepEqual(once, twice) {
			t.Fatalf("seed %d: defaults are not idempotent", seed)
		}
	}
}

func TestDuration(t *testing.T) {
	for _, s := range []string{"300ms", "5s", "2m0s", "-1s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(s)); err != nil || d.String() != s {
			t.Errorf("%s is read as %s, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "5", "0", "s", "1y"} {
		if err := new(Duration).UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
