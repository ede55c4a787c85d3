package linux

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// layout is the contents of a table as it goes into the kernel and is read back.
type layout struct {
	sets   map[string][]string // of device names, sorted
	chains []chain
}

type chain struct {
	name     string
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	accept   bool
	rules    [][]expr.Any
}

const (
	clampSet  = "clamped"
	tunnelSet = "tunnels"
	ipv4      = unix.NFPROTO_IPV4
	ipv6      = unix.NFPROTO_IPV6
)

// compileFilter says what a table holds for f:
//
//	prerouting (mangle)  marks by device
//	input                VXLAN guard, guard of direct tunnels, then clamp
//	output               VXLAN guard, then clamp
//	forward              VXLAN guard both ways between tunnels and the rest, then clamp
func compileFilter(f kernel.Filter) (layout, error) {
	l := layout{sets: map[string][]string{}}
	pre := chain{name: "prerouting", hook: *nftables.ChainHookPrerouting}
	in := chain{name: "input", hook: *nftables.ChainHookInput}
	fwd := chain{name: "forward", hook: *nftables.ChainHookForward}
	out := chain{name: "output", hook: *nftables.ChainHookOutput}
	var err error
	if pre.rules, err = marks(f.Marks); err != nil {
		return l, err
	}
	if f.VXLANPort != 0 {
		if l.sets[tunnelSet], err = devices(f.VXLANDevices); err != nil {
			return l, err
		}
		port := uint16(f.VXLANPort)
		drop := func(match ...[]expr.Any) []expr.Any {
			return slices.Concat(append([][]expr.Any{udpTo(port)}, append(match, drop())...)...)
		}
		in.rules = append(in.rules, drop(inSet(expr.MetaKeyIIFNAME, tunnelSet, false)))
		out.rules = append(out.rules, drop(inSet(expr.MetaKeyOIFNAME, tunnelSet, false)))
		// A transit gateway forwards VXLAN from tunnel to tunnel: it may neither leave in clear nor be fed in from outside.
		// VXLAN between other devices is the customers' own.
		fwd.rules = append(fwd.rules,
			drop(inSet(expr.MetaKeyIIFNAME, tunnelSet, true), inSet(expr.MetaKeyOIFNAME, tunnelSet, false)),
			drop(inSet(expr.MetaKeyIIFNAME, tunnelSet, false), inSet(expr.MetaKeyOIFNAME, tunnelSet, true)))
	}
	guard, err := directGuard(f)
	if err != nil {
		return l, err
	}
	in.rules = append(in.rules, guard...)
	if f.MSS4 != 0 || f.MSS6 != 0 {
		if l.sets[clampSet], err = devices(f.ClampDevices); err != nil {
			return l, err
		}
		for _, m := range []struct {
			proto byte
			mss   int
		}{{ipv4, f.MSS4}, {ipv6, f.MSS6}} {
			if m.mss == 0 {
				continue
			}
			if m.mss < 88 || m.mss > 65535 {
				return l, fmt.Errorf("an MSS of %d bytes cannot be", m.mss)
			}
			received := clamp(inSet(expr.MetaKeyIIFNAME, clampSet, true), m.proto, uint16(m.mss))
			sent := clamp(inSet(expr.MetaKeyOIFNAME, clampSet, true), m.proto, uint16(m.mss))
			in.rules = append(in.rules, received)
			fwd.rules = append(fwd.rules, received, sent)
			out.rules = append(out.rules, sent)
		}
	}
	for _, c := range []chain{pre, in, fwd, out} {
		if len(c.rules) > 0 {
			c.priority, c.accept = *nftables.ChainPriorityMangle, true
			l.chains = append(l.chains, c)
		}
	}
	return l, nil
}

// devices splits a comma-joined list.
func devices(s string) ([]string, error) {
	list := []string{}
	for d := range strings.SplitSeq(s, ",") {
		if d == "" {
			continue
		}
		if len(d) > 15 {
			return nil, fmt.Errorf("device name %q has more than 15 bytes", d)
		}
		list = append(list, d)
	}
	sort.Strings(list)
	return slices.Compact(list), nil
}

// marks makes one rule per "device=mark" entry.
func marks(s string) ([][]expr.Any, error) {
	var rules [][]expr.Any
	for p := range strings.SplitSeq(s, ",") {
		if p == "" {
			continue
		}
		device, value, ok := strings.Cut(p, "=")
		if !ok || device == "" || len(device) > 15 {
			return nil, fmt.Errorf("mark %q: want device=mark with a device name of at most 15 bytes", p)
		}
		mark, err := strconv.ParseUint(value, 0, 32)
		if err != nil {
			return nil, fmt.Errorf("mark of device %s: %w", device, err)
		}
		rules = append(rules, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(device)},
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(mark))},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		})
	}
	return rules, nil
}

func ifname(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}

func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// inSet matches the device against a named set.
func inSet(key expr.MetaKey, set string, member bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: !member},
	}
}

func nfproto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func udpTo(port uint16) []expr.Any {
	return append(l4proto(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)})
}

// clamp lowers the MSS option of a SYN to mss where it is larger:
// tcp flags & syn != 0, tcp option maxseg size > mss, counter, tcp option maxseg size set mss.
func clamp(device []expr.Any, proto byte, mss uint16) []expr.Any {
	const syn, flagsOffset, maxseg = 0x02, 13, 2
	size := binaryutil.BigEndian.PutUint16(mss)
	return slices.Concat(device, nfproto(proto), l4proto(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
		&expr.Exthdr{DestRegister: 1, Type: maxseg, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
		&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: size},
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: size},
		&expr.Exthdr{SourceRegister: 1, Type: maxseg, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}
