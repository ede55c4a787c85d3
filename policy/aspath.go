package policy

import (
	"slices"

	"fabric/bgp/rib"
)

// maxSegment is the most AS numbers a segment of an AS_PATH can hold (RFC 4271 section 4.3: the count is one octet).
const maxSegment = 255

// Prepend returns the AS_PATH with asn put before it n times. The path given is not written to.
func Prepend(path []rib.ASSegment, asn uint32, n int) []rib.ASSegment {
	if n <= 0 {
		return path
	}
	out := slices.Clone(path)
	for n > 0 {
		if len(out) == 0 || out[0].Set || len(out[0].ASNs) >= maxSegment {
			out = slices.Insert(out, 0, rib.ASSegment{})
		}
		k := min(n, maxSegment-len(out[0].ASNs))
		out[0].ASNs = slices.Concat(slices.Repeat([]uint32{asn}, k), out[0].ASNs)
		n -= k
	}
	return out
}

// Override returns the AS_PATH with every asn replaced by own (as-override): sites of one customer that share an AS
// number take each other's paths. The path given is not written to.
func Override(path []rib.ASSegment, asn, own uint32) []rib.ASSegment {
	out := path
	for i, s := range path {
		if !slices.Contains(s.ASNs, asn) {
			continue
		}
		if &out[0] == &path[0] {
			out = slices.Clone(path)
		}
		out[i].ASNs = slices.Clone(s.ASNs)
		for j, v := range s.ASNs {
			if v == asn {
				out[i].ASNs[j] = own
			}
		}
	}
	return out
}

// ownASPolicy is the name that OwnAS goes by in explain.
const ownASPolicy = "own-as"

// OwnAS returns the guard against our own routes coming back (RFC 4271 section 9.1.2): it rejects a path in which
// asn occurs more than allow times, with the term "own-as/loop".
func OwnAS(asn uint32, allow int) Policy {
	return Policy{steps: []step{&ownAS{asn: asn, allow: allow}}}
}

type ownAS struct {
	asn   uint32
	allow int
}
