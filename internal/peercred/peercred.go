// Package peercred is gRPC's transport on a unix socket: nothing is encrypted, since nothing leaves the host, and the kernel says
// who is at the other end (SO_PEERCRED and SO_PEERGROUPS of unix(7)).
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Peer is the process that has connected, as it was then. It is the AuthInfo of the connection.
type Peer struct {
	credentials.CommonAuthInfo
	PID      int32
	UID, GID uint32
	// Groups are the supplementary ones of the process. They are what the kernel goes by, where a look into the group file may tell of
	// a membership that the process has not got yet.
	Groups []uint32
	// Refused is why it may not use the socket, nil when it may; see Transport.Late.
	Refused error
}

// AuthType implements credentials.AuthInfo.
func (Peer) AuthType() string { return "peercred" }

// In says whether the process is in a group.
func (p Peer) In(group uint32) bool { return p.GID == group || slices.Contains(p.Groups, group) }

// Transport is the listening side's. The mode of a socket keeps most others out; Admit also holds when somebody widened the mode or handed on
// an open socket.
type Transport struct {
	// Admit says why a process may not use the socket, nil when it may.
	Admit func(Peer) error
	// Late lets who is refused connect all the same: the calls can then be answered with the reason, of which a connection that is
	// refused says nothing.
	Late bool
}

// ServerHandshake implements credentials.TransportCredentials.
func (t Transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := read(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", err)
	}
	if p.Refused = t.Admit(p); p.Refused != nil && !t.Late {
		return nil, nil, p.Refused
	}
	return conn, p, nil
}

func read(conn net.Conn) (Peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("a %T is no unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	p := Peer{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			p.PID, p.UID, p.GID = cred.Pid, cred.Uid, cred.Gid
			p.Groups, failed = groups(int(fd))
		}
	}); err != nil {
		return Peer{}, err
	}
	return p, failed
}

// groups asks for SO_PEERGROUPS (Linux 4.13).
func groups(fd int) ([]uint32, error) {
	list := make([]uint32, 64)
	for {
		size := uint32(len(list)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		switch {
		case errno == unix.ERANGE && n > len(list): // size is what it takes
			list = make([]uint32, n)
		case errno != 0:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		default:
			return list[:n], nil
		}
	}
}

// ClientHandshake implements credentials.TransportCredentials.
func (Transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for the listening side")
}

// Info implements credentials.TransportCredentials.
func (Transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (t Transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials; it is without effect.
func (Transport) OverrideServerName(string) error { return nil }
