package bfd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// rcvBuf holds bursts of all neighbours; the kernel charges about 800 bytes for a packet of 24.
	rcvBuf = 4 << 20
	// tosCS6 marks network control, as the priority does on our own side.
	tosCS6       = 0xc0
	priorityCtrl = 6
	// Source ports of RFC 5881 section 4.
	firstPort, lastPort = 49152, 65535
	portTries           = 64
)

// option is one socket option with a number for value.
type option struct {
	name       string
	level, opt int
	value      int
}

func setOptions(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	return nil
}

// udpSocket makes a socket that neither blocks nor survives exec, bound to a device unless that is empty.
func udpSocket(v6 bool, device string) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if v6 {
		err = setOptions(fd, []option{{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}})
	}
	if err == nil && device != "" {
		if err = unix.BindToDevice(fd, device); err != nil {
			err = fmt.Errorf("bind to device %s: %w", device, err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// listen opens a socket for receiving from all neighbours of one VRF and family. alone says that this engine has no other socket on
// the port: then another daemon on it is noticed. Beside our own, sockets of several VRFs need SO_REUSEADDR.
func listen(device string, v6 bool, port int, alone bool) (int, error) {
	var any unix.Sockaddr = &unix.SockaddrInet4{Port: port}
	if v6 {
		any = &unix.SockaddrInet6{Port: port}
	}
	if alone {
		probe, err := udpSocket(v6, device)
		if err != nil {
			return -1, err
		}
		err = unix.Bind(probe, any)
		_ = unix.Close(probe)
		if err != nil {
			return -1, bindError(port, err)
		}
	}
	fd, err := udpSocket(v6, device)
	if err != nil {
		return -1, err
	}
	options := []option{
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"SO_RXQ_OVFL", unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1},
		{"SO_TIMESTAMPNS", unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
	}
	if v6 {
		options = append(options,
			option{"IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			option{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1})
	} else {
		options = append(options,
			option{"IP_RECVTTL", unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
			option{"IP_PKTINFO", unix.IPPROTO_IP, unix.IP_PKTINFO, 1})
	}
	err = setOptions(fd, options)
	if err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvBuf) != nil {
		// Without CAP_NET_ADMIN as much as rmem_max allows.
		err = setOptions(fd, []option{{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, rcvBuf}})
	}
	if err == nil {
		if err = unix.Bind(fd, any); err != nil {
			err = bindError(port, err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindError(port int, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is taken: stop the other BFD daemon of this host (ss -lunp 'sport = :%d')", port, port)
	}
	return fmt.Errorf("bind to UDP port %d: %w", port, err)
}

// dial opens the sending socket of a session: its own source port (RFC 5881 section 4 wants one per session), TTL 255.
func dial(p Path, ifindex int) (int, error) {
	v6 := p.Local.Is6()
	fd, err := udpSocket(v6, p.out())
	if err != nil {
		return -1, err
	}
	options := []option{{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, 1}} // nobody reads here
	if v6 {
		options = append(options,
			option{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255},
			option{"IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tosCS6})
	} else {
		options = append(options,
			option{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, 255},
			option{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, tosCS6})
	}
	// After IP_TOS, which sets the priority to what it thinks of the TOS.
	options = append(options, option{"SO_PRIORITY", unix.SOL_SOCKET, unix.SO_PRIORITY, priorityCtrl})
	if err = setOptions(fd, options); err == nil {
		err = bindSource(fd, p.Local, ifindex)
	}
	if err == nil {
		port := SingleHopPort
		if p.Multihop {
			port = MultihopPort
		}
		if err = unix.Connect(fd, sockaddr(p.Peer, port, ifindex)); err != nil {
			err = fmt.Errorf("no way to %v: %w", p.Peer, err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bindSource takes a random free port.
func bindSource(fd int, local netip.Addr, ifindex int) error {
	var err error
	for range portTries {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if err = unix.Bind(fd, sockaddr(local, port, ifindex)); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("bind to local address %v: %w", local, err)
	}
	return nil
}

func sockaddr(a netip.Addr, port, ifindex int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	sa := &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	if a.IsLinkLocalUnicast() {
		sa.ZoneId = uint32(ifindex)
	}
	return sa
}

// linkEvents opens a netlink socket that becomes readable when a link or an address changes. It is read for its wake only.
func linkEvents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("netlink socket", err)
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("netlink bind", err)
	}
	return fd, nil
}
