package api

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"fabric/internal/peercred"
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
	case peercred.Peer:
		if info.Refused != nil {
			return "", info.Refused
		}
		return userName(info.UID), nil
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

// members admits root, the daemon's user and members of the socket's group.
func members(daemon, group uint32) func(peercred.Peer) error {
	return func(p peercred.Peer) error {
		if p.UID == 0 || p.UID == daemon || p.In(group) {
			return nil
		}
		return fmt.Errorf("uid %d may not use this socket: it is for root, the daemon's user and members of group %s; add the user to the group, then log in anew", p.UID, groupName(group))
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
