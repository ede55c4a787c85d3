package bfd

import (
	"encoding/binary"
	"math"
	"time"
)

const (
	// HeaderLen is the length of a control packet without authentication (RFC 5880 section 4.1).
	HeaderLen = 24
	// MaxLen is the length of the longest packet this package sends or looks into: a header and a SHA1 section.
	MaxLen = HeaderLen + sha1Len

	version = 1
)

// Bits of the second byte.
const (
	bitPoll = 1 << (5 - iota)
	bitFinal
	bitIndependent
	bitAuth
	bitDemand
	bitMultipoint
)

// Packet is a BFD control packet. Intervals are whole microseconds, 0 to 4294.967295 s; what does not fit is cut to that on encoding.
type Packet struct {
	State State
	Diag  Diag
	// Poll asks for an answer with Final; never both.
	Poll, Final bool
	// Independent is the C bit: the sender's BFD goes on when its control plane restarts.
	Independent bool
	// Demand asks the receiver to stop its periodic packets while both ends are Up.
	Demand     bool
	DetectMult uint8
	// MyDiscr names the session at the sender and is never 0; YourDiscr names it at the receiver and is 0 while unknown.
	MyDiscr, YourDiscr uint32
	DesiredMinTx       time.Duration
	// RequiredMinRx 0 asks the receiver to send no periodic packets at all.
	RequiredMinRx     time.Duration
	RequiredMinEchoRx time.Duration
	// Auth has type NoAuth if there is no authentication section.
	Auth AuthSection
}

// Decode reads a datagram into p and makes each check of RFC 5880 section 6.8.6 that needs no session. Bytes beyond the packet's own
// length are ignored. Whatever it returns, it never panics, keeps no reference to b and allocates nothing; p is meaningful only with
// Kept. Digests are checked by the session, which has the keys.
func Decode(b []byte, p *Packet) Drop {
	*p = Packet{}
	if len(b) < HeaderLen {
		return DropShort
	}
	if b[0]>>5 != version {
		return DropVersion
	}
	flags, length := b[1], int(b[3])
	auth := flags&bitAuth != 0
	switch {
	case length < HeaderLen, auth && length < HeaderLen+authHeaderLen:
		return DropLength
	case length > len(b):
		return DropShort
	case b[2] == 0:
		return DropMultiplier
	case flags&bitMultipoint != 0:
		return DropMultipoint
	case flags&bitPoll != 0 && flags&bitFinal != 0:
		return DropPollFinal
	}
	p.Diag = Diag(b[0] & 0x1f)
	p.State = State(flags >> 6)
	p.Poll = flags&bitPoll != 0
	p.Final = flags&bitFinal != 0
	p.Independent = flags&bitIndependent != 0
	p.Demand = flags&bitDemand != 0
	p.DetectMult = b[2]
	p.MyDiscr = binary.BigEndian.Uint32(b[4:])
	p.YourDiscr = binary.BigEndian.Uint32(b[8:])
	p.DesiredMinTx = interval(b[12:])
	p.RequiredMinRx = interval(b[16:])
	p.RequiredMinEchoRx = interval(b[20:])
	switch {
	case p.MyDiscr == 0:
		return DropMyDiscr
	case p.YourDiscr == 0 && p.State > Down:
		return DropYourDiscr
	}
	if auth {
		return p.Auth.decode(b[HeaderLen:length])
	}
	return Kept
}

// Encode writes the packet to b, which must have room for MaxLen bytes, and returns its length. The secret is used if p.Auth has a
// type: sent as it is with SimplePassword, digested with the SHA1 types.
func (p *Packet) Encode(b []byte, secret Secret) int {
	flags := byte(p.State) << 6
	for _, f := range [...]struct {
		set bool
		bit byte
	}{{p.Poll, bitPoll}, {p.Final, bitFinal}, {p.Independent, bitIndependent}, {p.Auth.Type != NoAuth, bitAuth}, {p.Demand, bitDemand}} {
		if f.set {
			flags |= f.bit
		}
	}
	length := HeaderLen + p.Auth.size(secret)
	b = b[:length]
	b[0] = version<<5 | byte(p.Diag)&0x1f
	b[1] = flags
	b[2] = p.DetectMult
	b[3] = byte(length)
	binary.BigEndian.PutUint32(b[4:], p.MyDiscr)
	binary.BigEndian.PutUint32(b[8:], p.YourDiscr)
	putInterval(b[12:], p.DesiredMinTx)
	putInterval(b[16:], p.RequiredMinRx)
	putInterval(b[20:], p.RequiredMinEchoRx)
	p.Auth.encode(b, secret)
	return length
}

func interval(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

func putInterval(b []byte, d time.Duration) {
	us := min(max(d/time.Microsecond, 0), math.MaxUint32)
	binary.BigEndian.PutUint32(b, uint32(us))
}
