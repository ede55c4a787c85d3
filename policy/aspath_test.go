package policy

import (
	"reflect"
	"slices"
	"testing"

	"fabric/bgp/rib"
)

func seq(asns ...uint32) rib.ASSegment { return rib.ASSegment{ASNs: asns} }
func asSet(asns ...uint32) rib.ASSegment {
	return rib.ASSegment{Set: true, ASNs: asns}
}

func TestPrepend(t *testing.T) {
	full := seq(slices.Repeat([]uint32{9}, 254)...)
	tests := []struct {
		name string
		in   []rib.ASSegment
		n    int
		want []rib.ASSegment
	}{
		{"to nothing", nil, 2, []rib.ASSegment{seq(7, 7)}},
		{"to a sequence", []rib.ASSegment{seq(1), asSet(2)}, 1, []rib.ASSegment{seq(7, 1), asSet(2)}},
		{"to a set", []rib.ASSegment{asSet(1, 2)}, 1, []rib.ASSegment{seq(7), asSet(1, 2)}},
		{"not at all", []rib.ASSegment{seq(1)}, 0, []rib.ASSegment{seq(1)}},
		{"negative", []rib.ASSegment{seq(1)}, -1, []rib.ASSegment{seq(1)}},
		{"over a full segment", []rib.ASSegment{full}, 3, []rib.ASSegment{seq(7, 7), seq(append([]uint32{7}, full.ASNs...)...)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := deepCopy(rib.Path{Attrs: rib.Attrs{ASPath: tt.in}}).Attrs.ASPath
			if got := Prepend(tt.in, 7, tt.n); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if !reflect.DeepEqual(tt.in, before) {
				t.Error("the path given was written to")
			}
		})
	}
}

func TestOverride(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in, want []rib.ASSegment
	}{
		{"empty", nil, nil},
		{"not in it", []rib.ASSegment{seq(1, 2)}, []rib.ASSegment{seq(1, 2)}},
		{"everywhere", []rib.ASSegment{seq(5, 1, 5), seq(3), asSet(4, 5)}, []rib.ASSegment{seq(7, 1, 7), seq(3), asSet(4, 7)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := deepCopy(rib.Path{Attrs: rib.Attrs{ASPath: tt.in}}).Attrs.ASPath
			if got := Override(tt.in, 5, 7); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if !reflect.DeepEqual(tt.in, before) {
				t.Error("the path given was written to")
			}
		})
	}
}
