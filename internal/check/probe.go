package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fabric/overlay"
)

// Probe is what echo requests that must not be fragmented (DF) have shown of one way.
type Probe struct {
	// To is an address that tunnels dial, or a remote VTEP: then Gateway is whose, and the way is inside the tunnel.
	To      netip.Addr
	Gateway string
	// Want is the size in bytes of the IP packets that the arithmetic counts on, Passed the largest that was answered, 0 if none.
	Want, Passed int
	// Told is the MTU in bytes that this host or a router on the way named (RFC 1191, RFC 8201), 0 if none did.
	Told int
	// Err is why nothing could be sent.
	Err error
}

const (
	// An answer is waited for so long; once one came, twenty times as long as that took, but no less than the least.
	probeWait, leastWait = 700 * time.Millisecond, 200 * time.Millisecond
	probeTries           = 2
	// probesAtOnce is how many ways are probed at a time.
	probesAtOnce = 32
	// Every path carries these: the least IPv6 MTU, and for IPv4 what every host takes (RFC 791).
	leastIPv4, leastIPv6 = 576, 1280
)

// way is what to probe, and the address to do it from, zero for the kernel's choice.
type way struct {
	probe Probe
	from  netip.Addr
}

// probes asks every way once.
func (f *Facts) probes(ctx context.Context, s *subject) {
	var ways []way
	for _, p := range f.Paths {
		// A tunnel over TLS is a TCP connection, which finds its own size.
		datagrams := slices.ContainsFunc(s.plan.Tunnels, func(t overlay.Tunnel) bool { return t.Endpoint.Addr() == p.To && t.Kind != overlay.KindTLS })
		if want := s.underlay(p.To); p.Err == nil && datagrams && want > 0 {
			ways = append(ways, way{probe: Probe{To: p.To, Want: want}})
		}
	}
	for _, v := range s.plan.VTEPs {
		want := 0
		for _, t := range s.plan.Tunnels {
			if t.Remote == v.Gateway && (want == 0 || t.MTU < want) {
				want = t.MTU
			}
		}
		if want > 0 {
			ways = append(ways, way{Probe{To: v.Addr, Gateway: v.Gateway, Want: want}, s.gw.VTEP})
		}
	}
	f.Probes = probeAll(ctx, ways)
}

// probeAll probes some ways at a time: one that is silent takes three seconds, and who asks waits for half a minute. The sockets are
// made one after the other, as they are of the calling thread's network namespace.
func probeAll(ctx context.Context, ways []way) (out []Probe) {
	for some := range slices.Chunk(ways, probesAtOnce) {
		if ctx.Err() != nil {
			break
		}
		found := make([]Probe, len(some))
		var g errgroup.Group
		for i, w := range some {
			found[i] = w.probe
			e, err := newEcho(w.probe.To, w.from)
			if err != nil {
				found[i].Err = err
				continue
			}
			g.Go(func() error {
				defer e.close()
				found[i] = e.probe(ctx, w.probe)
				return nil
			})
		}
		_ = g.Wait()
		out = append(out, found...)
	}
	return out
}

// underlay is the MTU in bytes that the tunnels to an address count on, 0 where none leads there.
func (s *subject) underlay(to netip.Addr) (want int) {
	for _, t := range s.plan.Tunnels {
		if t.Endpoint.Addr() == to {
			want = max(want, t.MTU+overlay.Overhead(t))
		}
	}
	return want
}

// overhead is the most, in bytes, that a tunnel to a gateway adds to a packet.
func (s *subject) overhead(gateway string) (most int) {
	for _, t := range s.plan.Tunnels {
		if t.Remote == gateway {
			most = max(most, overlay.Overhead(t))
		}
	}
	return most
}

// probe finds out how large a packet may be.
func (e *echo) probe(ctx context.Context, p Probe) Probe {
	least := leastIPv4
	if p.To.Is6() {
		least = leastIPv6
	}
	p.Passed, p.Told, p.Err = search(p.Want, min(least, p.Want), func(size int) (bool, int, error) { return e.ask(ctx, size) })
	return p
}

// search asks for the largest size that passes: the least, which also finds the neighbours, the wanted one, what is told on the
// way, and then by halves. told is the smallest MTU that ask named.
func search(want, least int, ask func(size int) (passed bool, told int, err error)) (largest, told int, err error) {
	try := func(size int) bool {
		passed, mtu, e := ask(size)
		if mtu > 0 && (told == 0 || mtu < told) {
			told = mtu
		}
		if e != nil {
			err = e
		}
		return passed && e == nil
	}
	alive := try(least)
	if err == nil && try(want) {
		return want, told, nil
	}
	if err != nil || !alive {
		return 0, told, err
	}
	if told >= least && told < want && try(told) {
		return told, told, nil
	}
	low, high := least, want // low passes, high does not
	for high-low > 1 && err == nil {
		if middle := (low + high) / 2; try(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	if err == nil && told == 0 && try(want) { // it was lost by chance
		return want, told, nil
	}
	return low, told, err
}

// echo is a socket for echo requests to one address (RFC 792, RFC 4443). It needs CAP_NET_RAW.
type echo struct {
	fd int
	// to is whom it asks. Until its connect the socket hears also what is for other ways.
	to  netip.Addr
	id  uint16
	seq uint16
	// wait is how long an answer is waited for.
	wait time.Duration
}

func newEcho(to, from netip.Addr) (*echo, error) {
	e, err := openEcho(to, from)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(e.fd, sockaddr(to)); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// openEcho makes the socket, which is yet to be connected.
func openEcho(to, from netip.Addr) (*echo, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	e := &echo{fd: fd, to: to, id: uint16(os.Getpid()), wait: probeWait}
	set := func(level, option, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, option, value)
		}
	}
	if e.to.Is6() {
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		set(unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	} else {
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		set(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	}
	if err == nil && from.IsValid() {
		if err = unix.Bind(fd, sockaddr(from)); err != nil {
			err = fmt.Errorf("from %s: %w", from, err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return e, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

func (e *echo) close() { _ = unix.Close(e.fd) }

// ask sends echo requests in IP packets of size bytes until one is answered, an MTU is named, or all tries are lost.
func (e *echo) ask(ctx context.Context, size int) (passed bool, told int, err error) {
	for range probeTries {
		if ctx.Err() != nil {
			return false, 0, ctx.Err()
		}
		e.seq++
		sent := time.Now()
		_, err := unix.Write(e.fd, e.request(size))
		if errors.Is(err, unix.EMSGSIZE) {
			return false, e.mtu(), nil
		}
		if err != nil && !soft(err) {
			return false, 0, err
		}
		switch passed, err := e.await(); {
		case passed:
			e.wait = min(probeWait, max(leastWait, 20*time.Since(sent)))
			return true, 0, nil
		case errors.Is(err, unix.EMSGSIZE):
			return false, e.mtu(), nil
		case err != nil:
			return false, 0, err
		}
	}
	return false, 0, nil
}

// soft reports what does not end the probing: an earlier packet's ICMP error, and a packet that is lost here already.
func soft(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.ENOBUFS) // the device did not take it: lost
}

// request is an echo request that makes an IP packet of size bytes.
func (e *echo) request(size int) []byte {
	header, typ := 20, byte(8)
	if e.to.Is6() {
		header, typ = 40, 128
	}
	b := make([]byte, max(size-header, 8))
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	if !e.to.Is6() { // for ICMPv6 the kernel computes it
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// await waits for the answer to the last request.
func (e *echo) await() (bool, error) {
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(e.wait); ; {
		left := time.Until(end)
		if left <= 0 {
			return false, nil
		}
		fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return false, err
		}
		n, from, err := unix.Recvfrom(e.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EMSGSIZE):
			return false, err
		case err != nil:
			// Something else came back; whether an answer comes is still open.
			_ = e.mtu()
			continue
		}
		if e.concerns(from) && e.answers(buf[:n]) {
			return true, nil
		}
	}
}

// concerns reports whether an address is the one that is asked.
func (e *echo) concerns(a unix.Sockaddr) bool {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr) == e.to
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr) == e.to.WithZone("")
	}
	return false
}

// answers reports whether a packet is the answer to the last request. IPv4's raw sockets give the IP header as well.
func (e *echo) answers(b []byte) bool {
	typ := byte(129)
	if !e.to.Is6() {
		typ = 0
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		b = b[int(b[0]&15)*4:]
	}
	return len(b) >= 8 && b[0] == typ && binary.BigEndian.Uint16(b[4:]) == e.id && binary.BigEndian.Uint16(b[6:]) == e.seq
}

// mtu empties the socket's queue of errors and returns the last MTU named in it, by a router or by this host; 0 if none.
func (e *echo) mtu() (mtu int) {
	oob := make([]byte, 512)
	for {
		// The address is whom the packet was for that the error is about.
		_, n, _, to, err := unix.Recvmsg(e.fd, nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return mtu
		}
		if !e.concerns(to) {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return mtu
		}
		for _, m := range messages {
			// struct sock_extended_err (linux/errqueue.h): the error, four bytes of where from, then for EMSGSIZE the MTU.
			if (m.Header.Type == unix.IP_RECVERR || m.Header.Type == unix.IPV6_RECVERR) && len(m.Data) >= 16 &&
				syscall.Errno(binary.NativeEndian.Uint32(m.Data)) == unix.EMSGSIZE {
				mtu = int(binary.NativeEndian.Uint32(m.Data[8:]))
			}
		}
	}
}

// probeChecks judge what probes have shown; without probes they say nothing.
var probeChecks = []check{
	{"path-mtu", "Tunnels send packets of that size; where they are lost, large transfers hang while pings work.", func(s *subject) (faults []fault) {
		for _, p := range s.Probes {
			if p.Gateway != "" || p.Err != nil || p.Passed == 0 || p.Passed >= p.Want {
				continue
			}
			how := "larger ones vanish without a word"
			if p.Told > 0 {
				how = fmt.Sprintf("a router on the way, or this host, says the MTU is %d", p.Told)
			}
			faults = append(faults, fault{Error, fmt.Sprintf("unfragmented packets to %s pass up to %d bytes, the document says %d; %s", p.To, p.Passed, p.Want, how),
				fmt.Sprintf("# in the document: underlay-mtu: %d  (or have the path repaired: ping -M do -s %d %s)", p.Passed, payload(p.To, p.Want), p.To)})
		}
		return faults
	}},
	{"path-mtu-unknown", "Whether packets of full size arrive shows only by an answer.", func(s *subject) (faults []fault) {
		for _, p := range s.Probes {
			if p.Gateway != "" || p.Passed > 0 {
				continue
			}
			what := fmt.Sprintf("%s answers no ping of any size: the MTU of the path is not proved", p.To)
			if p.Err != nil {
				what = fmt.Sprintf("%s could not be probed: %v", p.To, p.Err)
			} else if p.Told > 0 && p.Told < p.Want {
				what += fmt.Sprintf(", but a router on the way, or this host, says %d, the document %d", p.Told, p.Want)
			}
			faults = append(faults, fault{Info, what, fmt.Sprintf("ping -M do -s %d %s  # after the other end lets echo requests in", payload(p.To, p.Want), p.To)})
		}
		return faults
	}},
	{"tunnel-mtu", "A VXLAN frame of full size makes a packet of that size inside the tunnel.", func(s *subject) (faults []fault) {
		for _, p := range s.Probes {
			if p.Gateway == "" || p.Err != nil || p.Passed == 0 || p.Passed >= p.Want {
				continue
			}
			faults = append(faults, fault{Error, fmt.Sprintf("inside the tunnel to %s packets pass up to %d bytes, the arithmetic says %d", p.Gateway, p.Passed, p.Want),
				fmt.Sprintf("# in the document: underlay-mtu: %d\nfabricctl tunnel show %s", p.Passed+s.overhead(p.Gateway), p.Gateway)})
		}
		return faults
	}},
	{"tunnel-silent", "Gateways reach each other's VTEP inside the tunnel, and everything between them goes there.", func(s *subject) (faults []fault) {
		for _, p := range s.Probes {
			if p.Gateway == "" || p.Passed > 0 {
				continue
			}
			what := fmt.Sprintf("the VTEP %s of %s does not answer inside the tunnel", p.To, p.Gateway)
			if p.Err != nil {
				what += ": " + p.Err.Error()
			}
			faults = append(faults, fault{Warning, what, "fabricctl tunnel show " + p.Gateway})
		}
		return faults
	}},
}

// payload is ping's -s for an IP packet of size bytes.
func payload(to netip.Addr, size int) int {
	if to.Is6() {
		return size - 48
	}
	return size - 28
}
