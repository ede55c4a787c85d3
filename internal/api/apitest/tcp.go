package apitest

import (
	"net"
	"net/netip"
	"testing"
)

// FreeAddress is an address of this host with a port that was free a moment ago: Listen takes one, as the document does.
func FreeAddress(t testing.TB) netip.AddrPort {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return netip.MustParseAddrPort(lis.Addr().String())
}

// Listening says whether somebody accepts connections at an address.
func Listening(at netip.AddrPort) bool {
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
