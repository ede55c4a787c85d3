package carrier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// SocketPath is the unix socket of a device's tunnel process.
func SocketPath(runDir, device string) string {
	return filepath.Join(runDir, "carrier-"+device+".sock")
}

// Acceptor is the conn.Bind of a gateway that is connected to: it takes from a unix socket the connections that a Listener hands over. A
// newer one takes the place of the one before.
type Acceptor struct {
	bind
	socket string
}

// NewAcceptor is for the tunnel with this token. socket (see SocketPath) is made when the Acceptor is opened, with mode 0600.
func NewAcceptor(socket, token string) (*Acceptor, error) {
	if err := checkToken(token); err != nil {
		return nil, fmt.Errorf("carrier socket %s: %w", socket, err)
	}
	a := &Acceptor{socket: socket}
	a.far = &endpoint{Endpoint(token)}
	a.prepare = a.listen
	return a, nil
}

// SetMark implements conn.Bind. It does nothing: the TCP connection is the Listener's; see ListenerConfig.Mark.
func (a *Acceptor) SetMark(uint32) error { return nil }

func (a *Acceptor) listen() (func(context.Context, *opening), error) {
	// A process that was killed leaves its socket. That none other uses it is the tunnel lock's business.
	fi, err := os.Lstat(a.socket)
	if err == nil && fi.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("carrier socket %s: there is a file of another kind", a.socket)
	}
	if err == nil {
		err = os.Remove(a.socket)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("carrier socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("carrier socket: %w", err)
	}
	if err := os.Chmod(a.socket, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("carrier socket: %w", err)
	}
	return func(ctx context.Context, o *opening) { a.accept(ctx, o, l) }, nil
}

// accept carries over the newest connection until ctx ends.
func (a *Acceptor) accept(ctx context.Context, o *opening, listener *net.UnixListener) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	end := func() {}
	defer func() { end() }()
	for {
		c, err := listener.AcceptUnix()
		if err != nil {
			listener.Close()
			a.ended(err)
			return
		}
		l := newUnixLink(c)
		if err := l.readHello(); err != nil {
			l.close()
			a.ended(err)
			continue
		}
		end()
		end = a.carryBeside(ctx, o, l)
	}
}

// carryBeside starts to carry over l. end ends that for a newer one, and returns when it is over.
func (a *Acceptor) carryBeside(ctx context.Context, o *opening, l link) (end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.ended(a.carry(ctx, o, l))
	}()
	return func() {
		cancel(errReplaced)
		<-done
	}
}
