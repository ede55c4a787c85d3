package links

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"fabric/internal/peercred"
	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

// SocketMode is the mode of the unix socket.
const SocketMode = 0o660

// Serve answers gRPC on a unix socket until ctx ends; it returns nil then. Callers must be root, or run with this process's user or
// primary group. A socket that a dead process left behind is replaced.
func Serve(ctx context.Context, e *Engine, socket string, log *slog.Logger) error {
	l, err := listen(socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(peercred.Transport{Admit: func(p peercred.Peer) error {
		err := admit(p, os.Geteuid(), os.Getegid())
		if err != nil {
			log.Warn("caller refused", "err", err)
		}
		return err
	}}))
	linksv1.RegisterLinksServiceServer(s, &service{engine: e})
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", socket, err)
	case <-ctx.Done():
		// Not GracefulStop: watchers would hold it.
		s.Stop()
		<-done
		return nil
	}
}

// listen makes the socket. The caller holds the run folder's lock, so that a socket there can only be a dead one; elsewhere
// it is asked first.
func listen(socket string) (net.Listener, error) {
	if fi, err := os.Lstat(socket); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("socket %s: there is a file of that name that is no socket; remove it or choose another --socket", socket)
		}
		if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("socket %s: another process answers there; stop it or choose another --socket", socket)
		}
		if err := os.Remove(socket); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(socket, SocketMode); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// admit refuses callers that are neither root nor of this process's user or group.
func admit(p peercred.Peer, uid, gid int) error {
	if p.UID == 0 || int(p.UID) == uid || int(p.GID) == gid {
		return nil
	}
	return fmt.Errorf("process %d of user %d and group %d may not speak to fabric-links; run it as root or with group %d", p.PID, p.UID, p.GID, gid)
}

type service struct {
	linksv1.UnimplementedLinksServiceServer
	engine *Engine
}

// Apply implements the call of that name.
func (s *service) Apply(ctx context.Context, r *linksv1.ApplyRequest) (*linksv1.ApplyResponse, error) {
	p := planFromWire(r.GetPlan())
	objects, err := s.engine.Apply(ctx, p)
	if err != nil {
		return nil, statusOf(p, err)
	}
	return &linksv1.ApplyResponse{Digest: p.Digest(), Objects: objectsToWire(objects), Sets: setStatesToWire(s.engine.State().Sets)}, nil
}

func statusOf(p overlay.Plan, err error) error {
	var version *overlay.VersionError
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.As(err, &version):
		return status.Error(codes.FailedPrecondition, err.Error())
	case p.Validate() != nil:
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, errOtherGateway):
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

// Drain implements the call of that name.
func (s *service) Drain(ctx context.Context, r *linksv1.DrainRequest) (*linksv1.DrainResponse, error) {
	err := s.engine.Drain(ctx, r.GetDevice(), r.GetDrained())
	switch {
	case err == nil:
		return &linksv1.DrainResponse{}, nil
	case errors.Is(err, context.Canceled):
		return nil, status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return nil, status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, errNoTunnel):
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return nil, status.Error(codes.Internal, err.Error())
}

// Rotate implements the call of that name.
func (s *service) Rotate(ctx context.Context, r *linksv1.RotateRequest) (*linksv1.RotateResponse, error) {
	generation, err := s.engine.Rotate(ctx, r.GetDevice())
	switch {
	case err == nil:
		return &linksv1.RotateResponse{Generation: int64(generation)}, nil
	case errors.Is(err, context.Canceled):
		return nil, status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return nil, status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, errNoTunnel):
		return nil, status.Error(codes.NotFound, err.Error())
	case errors.Is(err, errNoRotation):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return nil, status.Error(codes.Internal, err.Error())
}

// Get implements the call of that name.
func (s *service) Get(context.Context, *linksv1.GetRequest) (*linksv1.GetResponse, error) {
	return &linksv1.GetResponse{State: stateToWire(s.engine.State())}, nil
}

// Watch implements the call of that name.
func (s *service) Watch(_ *linksv1.WatchRequest, stream grpc.ServerStreamingServer[linksv1.WatchResponse]) error {
	changed, end := s.engine.Subscribe()
	defer end()
	for {
		if err := stream.Send(&linksv1.WatchResponse{State: stateToWire(s.engine.State())}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}
