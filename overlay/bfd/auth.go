package bfd

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
)

// AuthType is how packets are authenticated (RFC 5880 section 4.1).
type AuthType uint8

// The types that a session can have. RFC 5880 makes the SHA1 types mandatory; keyed MD5 (2, 3) is not offered.
const (
	NoAuth              AuthType = 0
	SimplePassword      AuthType = 1
	KeyedSHA1           AuthType = 4
	MeticulousKeyedSHA1 AuthType = 5
)

// String is the type's name in documents.
func (t AuthType) String() string {
	switch t {
	case NoAuth:
		return "none"
	case SimplePassword:
		return "simple"
	case KeyedSHA1:
		return "keyed-sha1"
	case MeticulousKeyedSHA1:
		return "meticulous-keyed-sha1"
	}
	return "type " + strconv.Itoa(int(t))
}

const (
	authHeaderLen = 2
	// passwordHeader is type, length and key id.
	passwordHeader = 3
	maxPassword    = 16
	// sha1Len is a SHA1 section: type, length, key id, reserved, sequence number, digest.
	sha1Len    = sha1Header + sha1.Size
	sha1Header = 8
)

// Secret is a password or key. It prints as "(secret)" with every verb and in logs.
type Secret []byte

// Format implements fmt.Formatter.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// MarshalText keeps secrets out of JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// Key is one shared secret: 1 to 16 bytes for SimplePassword, 1 to 20 for the SHA1 types.
type Key struct {
	ID     uint8
	Secret Secret
}

// Auth is a session's authentication. Its keys are not changed once a session has it: to change them, configure another Auth.
type Auth struct {
	Type AuthType
	// Keys signs with the first, and accepts all: a new key is appended at both ends before it is made the first.
	Keys []Key
}

// Validate names what is wrong with it. A nil Auth is right: no authentication.
func (a *Auth) Validate() error {
	if a == nil {
		return nil
	}
	var longest int
	switch a.Type {
	case SimplePassword:
		longest = maxPassword
	case KeyedSHA1, MeticulousKeyedSHA1:
		longest = sha1.Size
	default:
		return fmt.Errorf("authentication %v: must be %v, %v or %v", a.Type, SimplePassword, KeyedSHA1, MeticulousKeyedSHA1)
	}
	if len(a.Keys) == 0 {
		return fmt.Errorf("authentication %v has no key: give at least one", a.Type)
	}
	var errs []error
	var seen [256]bool
	for _, k := range a.Keys {
		if len(k.Secret) < 1 || len(k.Secret) > longest {
			errs = append(errs, fmt.Errorf("authentication key %d has %d bytes: %v takes 1 to %d", k.ID, len(k.Secret), a.Type, longest))
		}
		if seen[k.ID] {
			errs = append(errs, fmt.Errorf("authentication key %d is there twice: ids must differ", k.ID))
		}
		seen[k.ID] = true
	}
	return errors.Join(errs...)
}

// equal compares the content.
func (a *Auth) equal(b *Auth) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.Type != b.Type || len(a.Keys) != len(b.Keys) {
		return false
	}
	for i := range a.Keys {
		if a.Keys[i].ID != b.Keys[i].ID || subtle.ConstantTimeCompare(a.Keys[i].Secret, b.Keys[i].Secret) != 1 {
			return false
		}
	}
	return true
}

// key finds a key by its id.
func (a *Auth) key(id uint8) (Secret, bool) {
	for i := range a.Keys {
		if a.Keys[i].ID == id {
			return a.Keys[i].Secret, true
		}
	}
	return nil, false
}

// AuthSection is the authentication section of a packet. Its password or digest stays in the datagram.
type AuthSection struct {
	Type  AuthType
	KeyID uint8
	// Sequence is 0 with SimplePassword.
	Sequence uint32
}

// decode reads a section that must be all of b.
func (s *AuthSection) decode(b []byte) Drop {
	if int(b[1]) != len(b) {
		return DropAuthMalformed
	}
	s.Type = AuthType(b[0])
	switch s.Type {
	case SimplePassword:
		if len(b) <= passwordHeader || len(b) > passwordHeader+maxPassword {
			return DropAuthMalformed
		}
		s.KeyID = b[2]
	case KeyedSHA1, MeticulousKeyedSHA1:
		if len(b) != sha1Len {
			return DropAuthMalformed
		}
		s.KeyID = b[2]
		s.Sequence = binary.BigEndian.Uint32(b[4:])
	case NoAuth: // reserved; must not be taken for the absence of a section
		return DropAuthMalformed
	}
	return Kept
}

// size is the section's length when sent.
func (s *AuthSection) size(secret Secret) int {
	switch s.Type {
	case SimplePassword:
		return passwordHeader + min(len(secret), maxPassword)
	case KeyedSHA1, MeticulousKeyedSHA1:
		return sha1Len
	}
	return 0
}

// encode writes the section of packet b, whose header is complete.
func (s *AuthSection) encode(b []byte, secret Secret) {
	sec := b[HeaderLen:]
	switch s.Type {
	case SimplePassword:
		sec[0], sec[1], sec[2] = byte(s.Type), byte(len(sec)), s.KeyID
		copy(sec[passwordHeader:], secret)
	case KeyedSHA1, MeticulousKeyedSHA1:
		sec[0], sec[1], sec[2], sec[3] = byte(s.Type), sha1Len, s.KeyID, 0
		binary.BigEndian.PutUint32(sec[4:], s.Sequence)
		digest := keyedSHA1(b, secret)
		copy(sec[sha1Header:], digest[:])
	}
}

// keyedSHA1 is the digest of a packet of MaxLen bytes, with the key padded with zeros in the digest's place (RFC 5880 section 6.7.4).
func keyedSHA1(packet []byte, secret Secret) [sha1.Size]byte {
	var b [MaxLen]byte
	copy(b[:HeaderLen+sha1Header], packet)
	copy(b[HeaderLen+sha1Header:], secret)
	return sha1.Sum(b[:])
}

// verify compares a decoded packet's password or digest with the secret, in constant time. raw is the datagram of p.
func (s *AuthSection) verify(raw []byte, secret Secret) bool {
	sec := raw[HeaderLen:raw[3]]
	switch s.Type {
	case SimplePassword:
		return subtle.ConstantTimeCompare(sec[passwordHeader:], secret) == 1
	case KeyedSHA1, MeticulousKeyedSHA1:
		digest := keyedSHA1(raw, secret)
		return subtle.ConstantTimeCompare(sec[sha1Header:], digest[:]) == 1
	}
	return false
}
