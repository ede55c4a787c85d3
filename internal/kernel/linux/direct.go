package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"

	"fabric/internal/kernel"
)

// directGuard drops what comes in on the port of direct tunnels from anybody but their far ends: a VXLAN device takes a frame of its
// VNI from whoever sends it. One rule per family, since a comparison of addresses says nothing about the other one.
func directGuard(f kernel.Filter) ([][]expr.Any, error) {
	if f.DirectPort == 0 {
		return nil, nil
	}
	sources, err := addresses(f.DirectSources)
	if err != nil {
		return nil, fmt.Errorf("sources of direct tunnels: %w", err)
	}
	var rules [][]expr.Any
	for _, fam := range []struct {
		proto          byte
		offset, length uint32
	}{{ipv4, 12, 4}, {ipv6, 8, 16}} {
		rule := slices.Concat(nfproto(fam.proto), udpTo(uint16(f.DirectPort)))
		first := true
		for _, a := range sources {
			if uint32(len(a.AsSlice())) != fam.length {
				continue
			}
			if first {
				rule = append(rule, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: fam.offset, Len: fam.length})
				first = false
			}
			rule = append(rule, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()})
		}
		rules = append(rules, append(rule, drop()...))
	}
	return rules, nil
}

// addresses splits a comma-joined list.
func addresses(s string) ([]netip.Addr, error) {
	var list []netip.Addr
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		a, err := netip.ParseAddr(part)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}
