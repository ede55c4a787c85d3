package bfd

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize = 32
	// A control packet says its length in one byte; what follows it in a datagram is of no interest.
	datagramSize = 256
	controlSize  = 256
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// batch is memory for one recvmmsg, made once.
type batch struct {
	hdrs    [batchSize]mmsghdr
	iovs    [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6 // has room for the one of IPv4
	data    [batchSize][datagramSize]byte
	control [batchSize][controlSize]byte
}

// arrival is what is known of a datagram besides its content.
type arrival struct {
	src, dst netip.Addr
	ttl      int
	ifindex  int
	// stamp is the kernel's time of receipt, Unix nanoseconds; 0 if it gave none.
	stamp int64
	// overflow counts what the socket had dropped before this datagram.
	overflow    uint32
	hasOverflow bool
	// complete: neither datagram nor control data were cut, and all of what the checks need is there.
	complete bool
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.hdrs {
		b.iovs[i].Base = &b.data[i][0]
		b.iovs[i].SetLen(datagramSize)
		h := &b.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Control = &b.control[i][0]
	}
	return b
}

// receive reads up to batchSize datagrams that wait on the socket, and returns how many; 0 if none does. It does not block, so it may
// keep its processor: a raw system call.
func (b *batch) receive(fd int) (int, error) {
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		h.Namelen = uint32(unsafe.Sizeof(b.names[i]))
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.hdrs[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

// datagram is the i-th of the batch.
func (b *batch) datagram(i int) []byte {
	return b.data[i][:min(int(b.hdrs[i].len), datagramSize)]
}

// arrival reads the i-th datagram's address and control data into a.
func (b *batch) arrival(i int, a *arrival) {
	h := &b.hdrs[i].hdr
	*a = arrival{ttl: -1}
	// A datagram of more than datagramSize is cut by us, and that is fine: no packet is so long.
	cut := h.Flags&unix.MSG_CTRUNC != 0
	switch b.names[i].Family {
	case unix.AF_INET:
		a.src = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&b.names[i])).Addr)
	case unix.AF_INET6:
		a.src = netip.AddrFrom16(b.names[i].Addr)
	}
	for rest := b.control[i][:h.Controllen]; len(rest) >= unix.SizeofCmsghdr; {
		c, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			cut = true
			break
		}
		rest = next
		switch {
		case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_TTL && len(data) >= 4,
			c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			a.ttl = int(int32(binary.NativeEndian.Uint32(data)))
		case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			p := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			a.ifindex, a.dst = int(p.Ifindex), netip.AddrFrom4(p.Addr)
		case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			p := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			a.ifindex, a.dst = int(p.Ifindex), netip.AddrFrom16(p.Addr)
		case c.Level == unix.SOL_SOCKET && c.Type == unix.SO_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			a.stamp = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case c.Level == unix.SOL_SOCKET && c.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			a.overflow, a.hasOverflow = binary.NativeEndian.Uint32(data), true
		}
	}
	a.complete = !cut && a.ttl >= 0 && a.ifindex != 0 && a.src.IsValid() && a.dst.IsValid()
}

// at turns the kernel's stamp, which is wall clock, into the time of this process: not after now, and not before the socket was last
// seen empty, whatever happens to the wall clock.
func (a *arrival) at(now, empty time.Time) time.Time {
	if a.stamp == 0 {
		return now
	}
	t := now.Add(-max(time.Duration(now.UnixNano()-a.stamp), 0))
	if t.Before(empty) {
		return empty
	}
	return t
}

// sendNow sends without blocking, on a connected socket.
func sendNow(fd int, b []byte) error {
	for tries := 0; ; tries++ {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == 0:
			return nil
		case (errno == unix.ECONNREFUSED || errno == unix.EINTR) && tries < 2:
			// ECONNREFUSED is an ICMP answer to an earlier packet: the neighbour's BFD is not there yet. This packet was not sent.
		default:
			return errno
		}
	}
}

// epollWait waits for at most d, to the nanosecond; epoll_wait(2) counts in milliseconds, a tenth of our shortest interval.
func epollWait(fd int, events []unix.EpollEvent, d time.Duration) (int, error) {
	ts := unix.NsecToTimespec(int64(max(d, 0)))
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// rest sleeps for d. Not time.Sleep: another thread would have to notice its end, and wake this one.
func rest(d time.Duration) {
	if d <= 0 {
		return
	}
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil) // a signal ends it early, and that is fine
}
