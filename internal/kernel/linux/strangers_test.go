package linux

import (
	"slices"
	"testing"

	"fabric/internal/kernel"
)

// VRF devices of others are told also where this kernel has none to make.
func TestStrangeVRFs(t *testing.T) {
	n := &names{links: map[uint32]linkInfo{
		1: {name: "red", kind: "vrf", table: 200, alias: kernel.AliasPrefix + "vrf:red"},
		2: {name: "green", kind: "vrf", table: 200, alias: "theirs"},
		3: {name: "blue", kind: "vrf", table: 201},
		4: {name: "grey", kind: "vrf", table: 300},
		5: {name: "eth0", table: 200},
	}}
	var s kernel.Strangers
	n.strangers([]uint32{200, 201}, &s)
	want := []string{
		"VRF device blue uses table 201 and is not ours (a vrf device without alias): delete it, or give it another table",
		`VRF device green uses table 200 and is not ours (a vrf device with alias "theirs"): delete it, or give it another table`,
	}
	if got := s.Sentences(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestFilterMeaning(t *testing.T) {
	event := func(name string) []byte {
		var m message
		m.buf = []byte{0, 0, 0, 0}
		m.u32(1, 7)
		m.str(genProcName, name)
		return m.buf
	}
	const commit, rule = 0xa0f, 0xa06
	for _, c := range []struct {
		typ  uint16
		body []byte
		want kernel.Changed
	}{
		{commit, event("nft"), kernel.ChangedFilters},
		{commit, event("fabric-site"), 0},
		{commit, event("fabric-links"), kernel.ChangedFilters},
		{commit, event("")[:4], kernel.ChangedFilters}, // older kernels do not say who
		{commit, nil, 0},
		{rule, event("nft"), 0}, // the end of its transaction is still to come
	} {
		if got := filterMeaning(c.typ, c.body, "fabric-site"); got != c.want {
			t.Errorf("event %#x %q: %b, want %b", c.typ, c.body, got, c.want)
		}
	}
}
