package rib

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// The well-known communities that restrict announcing (RFC 1997).
const (
	NoExport          Community = 0xffffff01
	NoAdvertise       Community = 0xffffff02
	NoExportSubconfed Community = 0xffffff03
)

// ParseCommunity reads "ASN:N", both 0 to 65535 (RFC 1997).
func ParseCommunity(s string) (Community, error) {
	a, b, ok := strings.Cut(s, ":")
	hi, err1 := strconv.ParseUint(a, 10, 16)
	lo, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("community %q: want ASN:N with two numbers from 0 to 65535, such as 64512:100", s)
	}
	return Community(hi<<16 | lo), nil
}

// String prints "ASN:N".
func (c Community) String() string { return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff) }

// String prints "ASN:N:N".
func (l LargeCommunity) String() string { return fmt.Sprintf("%d:%d:%d", l[0], l[1], l[2]) }

// ParseRT reads a route target "ASN:N" or "IP:N" (RFC 4360 section 4, RFC 5668). N has 32 bits behind an ASN of 16, else
// 16 bits.
func ParseRT(s string) (RT, error) {
	const subtype = 2 // route target
	bad := func(format string, args ...any) (RT, error) {
		return RT{}, fmt.Errorf("route target %q: "+format, append([]any{s}, args...)...)
	}
	admin, number, ok := strings.Cut(s, ":")
	if !ok {
		return bad("want ASN:N or IP:N, such as 64512:1000")
	}
	rt, bits := RT{kindASN2, subtype}, 16
	if ip, err := netip.ParseAddr(admin); err == nil && ip.Is4() {
		rt[0] = kindIPv4
		copy(rt[2:], ip.AsSlice())
	} else if asn, err := strconv.ParseUint(admin, 10, 32); err != nil {
		return bad("%q is neither an AS number nor an IPv4 address", admin)
	} else if asn > math.MaxUint16 {
		rt[0] = kindASN4
		binary.BigEndian.PutUint32(rt[2:], uint32(asn))
	} else {
		bits = 32
		binary.BigEndian.PutUint16(rt[2:], uint16(asn))
	}
	n, err := strconv.ParseUint(number, 10, bits)
	if err != nil {
		return bad("%q is not a number of %d bits; choose one up to %d", number, bits, uint64(1)<<bits-1)
	}
	if bits == 32 {
		binary.BigEndian.PutUint32(rt[4:], uint32(n))
	} else {
		binary.BigEndian.PutUint16(rt[6:], uint16(n))
	}
	return rt, nil
}

// String prints "ASN:N" or "IP:N", and what is neither in hexadecimal.
func (rt RT) String() string {
	if rt[1] == 2 || rt[1] == 3 {
		if s, ok := administratorString(rt[0], rt[2:]); ok {
			return s
		}
	}
	return fmt.Sprintf("%x", rt[:])
}

// String prints "ASN:N" or "IP:N", and what is neither in hexadecimal.
func (rd RD) String() string {
	if rd[0] == 0 {
		if s, ok := administratorString(rd[1], rd[2:]); ok {
			return s
		}
	}
	return fmt.Sprintf("%x", rd[:])
}

// Kinds of the administrator in route targets and distinguishers: the number of its type.
const (
	kindASN2 = iota
	kindIPv4
	kindASN4
)

// administratorString reads the six bytes behind the type.
func administratorString(kind byte, b []byte) (string, bool) {
	switch kind {
	case kindASN2:
		return fmt.Sprintf("%d:%d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])), true
	case kindIPv4:
		return fmt.Sprintf("%s:%d", netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[4:])), true
	case kindASN4:
		return fmt.Sprintf("%d:%d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:])), true
	}
	return "", false
}

func compareRT(a, b RT) int { return bytes.Compare(a[:], b[:]) }
