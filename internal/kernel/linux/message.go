package linux

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink headers and integers.
var native = binary.NativeEndian

const headerLen = unix.SizeofNlMsghdr

// message appends one netlink message to a buffer that may already hold others.
type message struct {
	buf   []byte
	start int
}

// begin starts a message of type typ with flags (NLM_F_REQUEST is added) and a fixed header of size bytes, returned
// zeroed for the caller to fill.
func (m *message) begin(typ uint16, flags uint16, size int) []byte {
	m.start = len(m.buf)
	m.buf = append(m.buf, make([]byte, headerLen+size)...)
	h := m.buf[m.start:]
	native.PutUint16(h[4:], typ)
	native.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	return h[headerLen:]
}

// attr appends one attribute.
func (m *message) attr(typ uint16, data []byte) {
	n := 4 + len(data)
	m.buf = native.AppendUint16(m.buf, uint16(n))
	m.buf = native.AppendUint16(m.buf, typ)
	m.buf = append(m.buf, data...)
	for ; n%4 != 0; n++ {
		m.buf = append(m.buf, 0)
	}
}

func (m *message) u8(typ uint16, v uint8)   { m.attr(typ, []byte{v}) }
func (m *message) u32(typ uint16, v uint32) { m.attr(typ, native.AppendUint32(nil, v)) }
func (m *message) str(typ uint16, s string) { m.attr(typ, append([]byte(s), 0)) }
func (m *message) addr(typ uint16, a netip.Addr) {
	m.attr(typ, a.AsSlice())
}

// end fills in the length and the sequence number.
func (m *message) end(seq uint32) {
	h := m.buf[m.start:]
	native.PutUint32(h, uint32(len(h)))
	native.PutUint32(h[8:], seq)
}

// ack asks for an acknowledgement of the message that begins at offset.
func (m *message) ack(offset int) {
	h := m.buf[offset:]
	native.PutUint16(h[6:], native.Uint16(h[6:])|unix.NLM_F_ACK)
}

// attrs calls fn for each attribute in b; broken trailing bytes are ignored, as the kernel's own parsers do.
func attrs(b []byte, fn func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		fn(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		n = (n + 3) &^ 3
		if n > len(b) {
			return
		}
		b = b[n:]
	}
}

func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func toAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

// family returns the address family of a.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// zeroAddr is the unspecified address of a family, which a missing destination attribute means.
func zeroAddr(fam uint8) netip.Addr {
	if fam == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
