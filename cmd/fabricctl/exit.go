package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit codes; --help lists them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitUnreachable
	exitWaitTimeout
	exitNotFound
	exitNotPermitted
	exitStale
)

// exitError is an error that knows its exit code.
type exitError struct {
	code int
	text string
}

// Error is the text.
func (e *exitError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...)}
}

// errNoAnswer says that a stream has come to a halt.
var errNoAnswer = status.Error(codes.DeadlineExceeded, "no answer")

// explain turns an error into an exit code and what to tell.
func (a *app) explain(err error) (int, string) {
	var own *exitError
	if errors.As(err, &own) {
		return own.code, own.text
	}
	st, ok := status.FromError(err)
	if !ok {
		return exitFailed, err.Error()
	}
	where := "socket " + a.socket
	if a.address != "" {
		where = a.address
	}
	switch st.Code() {
	case codes.Unavailable:
		return a.unreachable(where, st.Message())
	case codes.DeadlineExceeded:
		return exitUnreachable, fmt.Sprintf("fabric-site on %s did not answer within %s; give it more time with --timeout, or see its log", where, a.timeout)
	case codes.Canceled:
		return exitFailed, "interrupted"
	case codes.Unimplemented:
		return exitFailed, fmt.Sprintf("fabric-site on %s does not know this call (%s); it is of another version, see `fabricctl version`", where, st.Message())
	case codes.NotFound:
		return exitNotFound, st.Message()
	case codes.PermissionDenied, codes.Unauthenticated:
		return exitNotPermitted, st.Message()
	case codes.Aborted:
		return exitStale, st.Message()
	case codes.InvalidArgument:
		if strings.Contains(st.Message(), "\n") {
			return exitFailed, "refused, nothing was changed:\n" + st.Message()
		}
		return exitFailed, "refused: " + st.Message()
	}
	return exitFailed, st.Message()
}

// unreachable tells why there is no connection, as far as we know it ourselves.
func (a *app) unreachable(where, msg string) (int, string) {
	cause := a.dialErr.get()
	switch {
	case cause == nil && a.address != "":
		// A refused handshake shows as a TLS alert or just as the end of the connection.
		return exitUnreachable, fmt.Sprintf("no TLS connection with %s: %s; check that --cert is signed by the daemon's CA, and --ca the one that signed the daemon's", where, msg)
	case errors.Is(cause, fs.ErrPermission):
		return exitNotPermitted, fmt.Sprintf("%s: permission denied; become root or a member of the socket's group", where)
	case errors.Is(cause, fs.ErrNotExist):
		return exitUnreachable, fmt.Sprintf("%s does not exist: fabric-site is not running, or listens elsewhere (see --socket)", where)
	case errors.Is(cause, syscall.ECONNREFUSED):
		return exitUnreachable, fmt.Sprintf("%s: nobody answers; is fabric-site running?", where)
	case cause != nil:
		return exitUnreachable, fmt.Sprintf("%s: %v", where, cause)
	}
	return exitUnreachable, fmt.Sprintf("fabric-site on %s: %s", where, msg)
}
