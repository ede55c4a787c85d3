// Package carrier carries the packets of WireGuard inside TLS over TCP 443, for networks that let nothing else out, also through an HTTP
// CONNECT proxy. It is a transport only: what it carries is encrypted and authenticated by WireGuard already, so TLS here opens
// doors, and its certificate says whom a token may be shown to.
//
//	 tunnel process                                    fabric-links              tunnel process
//	WireGuard ─ Dialer ══ TLS, WebSocket (RFC 6455) ══► Listener ─ unix socket ─► Acceptor ─ WireGuard
//
// One datagram is one binary message, and one frame on the unix socket. Dialer and Acceptor are WireGuard's conn.Bind: they behave as
// UDP does. Send never waits: what finds no room in a bounded queue, or no connection, is dropped and counted. Nothing is
// acknowledged or sent again but by TCP below.
//
// The last element of the path, the token, picks the tunnel at the listener. It is a secret: without it a caller sees a web server
// that has nothing to show. Neither token nor proxy password is ever part of an error or a status.
package carrier

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"time"
)

const (
	// PathPrefix is where a Listener answers; the token follows it.
	PathPrefix = "/fabric/v1/"
	// MinToken is the length, in bytes, of the shortest token that is taken.
	MinToken = 16
	// MaxMessage is the size, in bytes, of the largest message: the largest datagram that WireGuard knows.
	MaxMessage = 65535
)

const (
	minBackOff = 100 * time.Millisecond // the first wait before dialling again; doubles
	maxBackOff = 5 * time.Second
	// settled is how long a connection must live for the back-off to begin anew: two dialers with one token would else
	// push each other out ten times a second.
	settled = 5 * time.Second
	// queueLength bounds, in packets, what waits in either direction: some 6 ms at 1 Gbit/s and full packets. A longer one would
	// only make the packets older.
	queueLength = 512
	// notSentBytes bounds what waits unsent in the kernel, so that the bounded queue is what fills first and pings do not wait behind
	// megabytes on a slow path.
	notSentBytes = 128 << 10
)

// timing is how long a connection is waited for.
type timing struct {
	dial    time.Duration // from the first SYN to the upgrade, proxy included
	write   time.Duration // a peer that takes nothing for so long is gone
	silence time.Duration // so is one that answers no ping for so long
	ping    time.Duration // well below what makes proxies close an idle connection
}

var ordinary = timing{dial: 10 * time.Second, write: 5 * time.Second, silence: 5 * time.Second, ping: 2 * time.Second}

var errReplaced = errors.New("a newer connection with the same token has taken its place")

// Endpoint is the address that stands for the far end of a token's tunnel in WireGuard's configuration, on both sides. It is made from
// the token and lies in 100::/64, which no packet is ever sent to (RFC 6666): whatever TCP connection carries the tunnel,
// through whatever NAT, WireGuard sees the same far end.
func Endpoint(token string) netip.AddrPort {
	sum := sha256.Sum256([]byte("fabric carrier endpoint\x00" + token))
	a := [16]byte{0: 1}
	copy(a[8:], sum[:8])
	return netip.AddrPortFrom(netip.AddrFrom16(a), 443)
}

// endpoint implements conn.Endpoint.
type endpoint struct{ addr netip.AddrPort }

func (e *endpoint) ClearSrc()           {}
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) DstToString() string { return e.addr.String() }
func (e *endpoint) DstIP() netip.Addr   { return e.addr.Addr() }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }

func (e *endpoint) DstToBytes() []byte {
	b, _ := e.addr.MarshalBinary()
	return b
}
