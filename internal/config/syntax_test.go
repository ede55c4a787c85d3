package config

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A document that is wrong in many places is reported whole, in the order of the file.
func TestAllProblemsAtOnce(t *testing.T) {
	text := `fabric: {name: Bad Name, mss: many}
vrfs:
  - {name: CORE, table: 200, vni: 1, colour: red}
  - {name: CORE, table: 200, vni: 1}
sites:
  - name: a
    gateways:
      - {name: a, asn: 0, vtep: 10.0.0.300, wireguard: {public-key: secret}}
`
	want := `f.yaml:1:16: fabric.name: "Bad Name" is not a valid name; use 1 to 32 of a-z, 0-9 and '-'
f.yaml:1:31: fabric.mss: must be a whole number, not text; write a plain decimal number
f.yaml:3:38: vrfs[0].colour: unknown key "colour"; known here: name, table, vni, import-rt, export-rt, allow-default
f.yaml:4:12: vrfs[1].name: duplicate VRF name "CORE", used by vrfs[0].name on line 3; give each its own
f.yaml:4:25: vrfs[1].table: duplicate table "200", used by vrfs[0].table on line 3; give each its own
f.yaml:4:35: vrfs[1].vni: duplicate VNI "1", used by vrfs[0].vni on line 3; give each its own
f.yaml:8:24: sites[0].gateways[0].asn: AS number 0 is reserved; use a private AS number, 64512 to 65534 or 4200000000 to 4294967294
f.yaml:8:33: sites[0].gateways[0].vtep: "10.0.0.300" is not an IP address; write it like 192.0.2.1 or "2001:db8::1"
f.yaml:8:69: sites[0].gateways[0].wireguard.public-key: not a WireGuard public key (32 bytes in base64); paste what fabric-site keygen or wg pubkey printed`
	d, err := Parse("f.yaml", []byte(text))
	if d != nil || err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestNotADocument(t *testing.T) {
	deep := strings.Repeat("[", 40)
	bomb := "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
	cases := []struct{ name, text, want string }{
		{"empty", "", "f.yaml:1:1: document is empty; describe a fabric"},
		{"comment only", "# nothing\n", "document is empty"},
		{"header only", "---\n", "document is empty"},
		{"oversized", "fabric: " + strings.Repeat("x", MaxSize), "document has 4194312 bytes, more than 4194304"},
		{"not UTF-8", "fabric:\n  name: caf\xe9\n", "f.yaml:2:12: byte 0xe9 is not UTF-8; save the file as UTF-8"},
		{"control character", "fabric:\n  name: a\x00b\n", "f.yaml:2:10: control character 0x00"},
		{"scalar", "hello", "f.yaml:1:1: must hold keys, not text"},
		{"list", "- a\n- b\n", "must hold keys, not a list"},
		{"null", "~", "has no value"},
		{"anchor", bomb, "f.yaml:1:4: anchors are not allowed; write the values out\nf.yaml:2:4: anchors are not allowed; write the values out\nf.yaml:2:8: aliases"},
		{"merge", "a: {}\nb:\n  <<: {}\n", "f.yaml:3:3: merge keys are not allowed"},
		{"tag", "fabric: !!binary aGk=\n", "tags are not allowed"},
		{"block scalar", "fabric:\n  name: |\n    x\n", "block scalars (|) are not allowed"},
		{"second document", "---\nfabric: {}\n---\nvrfs: []\n", "f.yaml:3:1: several documents in one file are not allowed"},
		{"directive", "%YAML 1.2\n---\nfabric: {}\n", "directives are not allowed"},
		{"explicit key", "? a\n: b\n", "explicit keys (?) are not allowed"},
		{"deep flow", deep, "nested more than 32 deep"},
		{"deep blocks", strings.Repeat("- ", 40) + "x", "nested more than 32 deep"},
		{"many keys", strings.Repeat("a:\n", 300), "f.yaml:257:2: more than 256 keys in one mapping"},
		{"many keys in brackets", "{" + strings.Repeat("a: b,", 300) + "}", "more than 256 keys in one mapping"},
		{"many elements", strings.Repeat(",", maxTokens+1), "more than 1048576 elements"},
		{"unbalanced", "fabric: {name: x\n", "not YAML: "},
		{"bad indentation", "fabric:\n  name: x\n vrfs: []\n", "not YAML: "},
		{"quote", "fabric: \"x\n", "not YAML: "},
		{"tab", "fabric:\n\tname: x\n", "not YAML: "},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			d, err := Parse("f.yaml", []byte(c.text))
			if err == nil || d != nil {
				t.Fatal("was accepted")
			}
			if c.name == "scalar" && len(err.(Problems)) != 1 {
				t.Errorf("got more than one problem:\n%s", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got\n%.500s\nwithout\n%s", err, c.want)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestByteOrderMarkAndCRLF(t *testing.T) {
	mustParse(t, "\ufeff"+strings.ReplaceAll(example(t), "\n", "\r\n"))
	mustParse(t, "---\n"+example(t))
}

// A report stays readable when a generator got every line wrong.
func TestReportIsBounded(t *testing.T) {
	text := replace(t, example(t), "loopbacks: [10.1.0.2/32]", "loopbacks: ["+strings.Repeat("10.0.0.0/8, ", 3000)+"]")
	_, err := Parse("f.yaml", []byte(text))
	var ps Problems
	if !errors.As(err, &ps) || len(ps) != maxProblems+1 {
		t.Fatalf("%d problems", len(ps))
	}
	if want := "f.yaml: and 2500 more problems; mend those above first"; ps[maxProblems].String() != want {
		t.Errorf("ends with %q, not %q", ps[maxProblems], want)
	}
}

// A document of the largest size is read in seconds.
func TestLargeDocument(t *testing.T) {
	var b strings.Builder
	for i := range 20000 {
		b.WriteString("\n              - prefix: 10." + itoa(20+i>>16) + "." + itoa(i>>8&255) + "." + itoa(i&255) + "/32")
	}
	text := replace(t, example(t), "vtep: 10.255.0.2", "vtep: 192.0.2.2")
	text = replace(t, text, "            prefixes: [{prefix: 172.31.0.0/16, communities: [\"64512:31\"]}]", "            prefixes:"+b.String())
	if len(text) > MaxSize {
		t.Fatal("too large to be a test")
	}
	start := time.Now()
	d := mustParse(t, text)
	t.Logf("%d bytes in %s", len(text), time.Since(start))
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
	if _, g, _ := d.Find("hk-1-gw"); len(g.VRFs[0].Prefixes) != 20000 {
		t.Errorf("%d prefixes", len(g.VRFs[0].Prefixes))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example(f)))
	for _, s := range []string{"", "[", "{a: b", "? a", "a: |\n  x", "- - -", "a: 'b", "&a *a", "fabric: {name: x}\nvrfs: [{}]\nsites: [{gateways: [{}]}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse("f.yaml", data)
		if err != nil {
			if d != nil || err.Error() == "" {
				t.Errorf("document %v with error %q", d, err)
			}
			return
		}
		text, err := d.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("again.yaml", text)
		if err != nil {
			t.Fatalf("the canonical form is refused: %v\n%s", err, text)
		}
		if twice, err := again.YAML(); err != nil || string(twice) != string(text) {
			t.Errorf("the canonical form changes: %v\n%s\n%s", err, text, twice)
		}
		for _, name := range d.gatewayNames() {
			d.Neighbours(name)
		}
	})
}
