package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

type callerKey struct{}

// WithCaller returns a context that names who is calling. The listeners do that themselves; it is for those who call
// the Service's methods directly.
func WithCaller(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, callerKey{}, who)
}

// Caller returns who is calling, as it goes into the history: "alice (uid 1000)", "CN=ops", or "unknown".
func Caller(ctx context.Context) string {
	if who, ok := ctx.Value(callerKey{}).(string); ok {
		return who
	}
	return "unknown"
}

// identify says who is at the other end of the connection, or why they may not use the API.
func identify(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("the connection says nothing about who is calling")
	}
	switch info := p.AuthInfo.(type) {
	case unixPeer:
		if !info.allowed {
			return "", fmt.Errorf("uid %d may not use this socket: it is for root, the daemon's user and members of group %s; add the user to the group, then log in anew", info.uid, groupName(info.group))
		}
		return userName(info.uid), nil
	case credentials.TLSInfo:
		if len(info.State.VerifiedChains) == 0 {
			return "", errors.New("no verified client certificate")
		}
		cn := info.State.PeerCertificates[0].Subject.CommonName
		if cn == "" {
			return "", errors.New("the client certificate has no common name; the history would not know who it was")
		}
		return "CN=" + cn, nil
	}
	return "", errors.New("the connection has neither peer credentials nor a client certificate")
}

// peerCredentials is the transport of the unix socket: no encryption, but the kernel says who is at the other end.
// The mode of the socket keeps most callers out; this check also holds when somebody widened the mode or handed on an
// open socket.
type peerCredentials struct {
	uid uint32 // the daemon's
	gid uint32 // the socket's group
}

// unixPeer is who the kernel says has connected.
type unixPeer struct {
	credentials.CommonAuthInfo
	uid, group uint32
	allowed    bool
}

// AuthType names the kind of authentication.
func (unixPeer) AuthType() string { return "peercred" }

// ServerHandshake asks the kernel who has connected.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("peer credentials of a %T: not a unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var groups []uint32
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			groups, credErr = peerGroups(int(fd))
		}
	}); err != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", credErr)
	}
	info := unixPeer{uid: cred.Uid, group: c.gid}
	info.SecurityLevel = credentials.PrivacyAndIntegrity // it does not leave the host
	info.allowed = cred.Uid == 0 || cred.Uid == c.uid || cred.Gid == c.gid || slices.Contains(groups, c.gid)
	return conn, info, nil
}

// ClientHandshake is not part of a listener's credentials.
func (c peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for the listening side")
}

// Info describes the transport.
func (c peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone returns a copy.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is without effect.
func (c peerCredentials) OverrideServerName(string) error { return nil }

// peerGroups reads the supplementary groups of the process that connected (SO_PEERGROUPS, Linux 4.13). They are what
// the kernel goes by, where a look into the group file may tell of a membership that the process has not got yet.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		switch {
		case errno == unix.ERANGE && n > len(groups): // size is what it takes
			groups = make([]uint32, n)
		case errno != 0:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		default:
			return groups[:n], nil
		}
	}
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username + " (uid " + id + ")"
	}
	return "uid " + id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
