package carrier

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// limitListener bounds connections that have proven nothing yet. One over the limit is closed at once, before it costs a handshake.
type limitListener struct {
	net.Listener
	tls *tls.Config

	mu        sync.Mutex
	pending   int
	perSource map[netip.Prefix]int

	refused atomic.Uint64
}

// limitConn is one connection; it takes its place until it is closed or proven.
type limitConn struct {
	*burstConn
	free func()
}

// Accept implements net.Listener. The TLS handshake happens with the first read, under that read's deadline.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		tcp, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		src := source(tcp.RemoteAddr())
		if !l.take(src) {
			l.refused.Add(1)
			tcp.Close()
			continue
		}
		// A connection that is gone already fails here; the next read tells.
		_ = tune(tcp, 0)
		return &limitConn{
			burstConn: &burstConn{Conn: tls.Server(tcp, l.tls), tcp: tcp, patience: ordinary.write},
			free:      sync.OnceFunc(func() { l.give(src) }),
		}, nil
	}
}

func (l *limitListener) take(src netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending >= maxPending || l.perSource[src] >= maxPendingPerSource {
		return false
	}
	l.pending++
	l.perSource[src]++
	return true
}

func (l *limitListener) give(src netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending--
	if l.perSource[src]--; l.perSource[src] == 0 {
		delete(l.perSource, src)
	}
}

// proven gives the place back: a tunnel's connection does not count.
func (c *limitConn) proven() { c.free() }

// Close implements net.Conn.
func (c *limitConn) Close() error {
	c.free()
	return c.burstConn.Close()
}

// source is whom a connection counts for.
func source(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
