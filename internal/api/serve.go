package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"fabric/internal/config"
	"fabric/internal/peercred"
	fabricv1 "fabric/proto/fabric/v1"
)

// DefaultSocket is where fabric-site listens and fabricctl asks unless told otherwise.
const DefaultSocket = "/run/fabric-site/fabric.sock"

// Listen says where to serve.
type Listen struct {
	// Socket is the path of the unix socket; its folder must exist. "" for none.
	Socket string
	// Group is the name or number of the group whose members may use the socket; "" leaves it to the daemon's own.
	Group string
	// TCP, when set, serves over TCP with mutual TLS 1.3 as well.
	TCP *config.API
}

// drainTime is how long calls in flight may go on when the daemon stops.
const drainTime = 2 * time.Second

// listenRetry is the time between attempts to listen on TCP.
const listenRetry = 5 * time.Second

// Serve answers on the listeners until ctx ends, then lets calls in flight finish for a short time. It returns nil
// when ctx ended, and an error when the unix socket cannot be made or breaks. TCP comes second to routing: an address that is not
// there yet, or a certificate that is missing, is logged and tried again.
func (s *Service) Serve(ctx context.Context, l Listen) error {
	hs := health.NewServer()
	g, gctx := errgroup.WithContext(ctx)
	if l.Socket != "" {
		lis, gid, err := listenUnix(l.Socket, l.Group)
		if err != nil {
			return fmt.Errorf("API socket: %w", err)
		}
		g.Go(func() error {
			return s.answer(gctx, lis, peercred.Transport{Admit: members(uint32(os.Geteuid()), gid), Late: true}, hs)
		})
	}
	if l.TCP != nil {
		g.Go(func() error {
			lis, creds := s.listenTCP(gctx, *l.TCP)
			if lis == nil {
				return nil
			}
			return s.answer(gctx, lis, creds, hs)
		})
	}
	g.Go(func() error { s.followHealth(gctx, hs); return nil })
	return g.Wait()
}

// listenTCP tries until there is a listener, nil when ctx ended before.
func (s *Service) listenTCP(ctx context.Context, cfg config.API) (net.Listener, credentials.TransportCredentials) {
	told := ""
	for {
		creds, err := mutualTLS(cfg)
		if err == nil {
			var lc net.ListenConfig
			var lis net.Listener
			if lis, err = lc.Listen(ctx, "tcp", cfg.Listen.String()); err == nil {
				return lis, creds
			}
		}
		if err.Error() != told {
			told = err.Error()
			s.log.Error("the API over TCP is not served; trying on", "listen", cfg.Listen.String(), "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(listenRetry):
		}
	}
}

// answer serves one listener until ctx ends.
func (s *Service) answer(ctx context.Context, lis net.Listener, creds credentials.TransportCredentials, hs *health.Server) error {
	srv := s.newServer(creds, hs)
	stop := context.AfterFunc(ctx, func() {
		// Watches last for ever; they are cut once the short calls had their time.
		cut := time.AfterFunc(drainTime, srv.Stop)
		defer cut.Stop()
		hs.Shutdown()
		srv.GracefulStop()
	})
	defer stop()
	if err := srv.Serve(lis); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("API on %s: %w", lis.Addr(), err)
	}
	return nil
}

// newServer makes a gRPC server with the service, health and reflection, all behind the same check of the caller.
func (s *Service) newServer(creds credentials.TransportCredentials, hs healthv1.HealthServer) *grpc.Server {
	srv := grpc.NewServer(
		grpc.Creds(creds),
		grpc.ChainUnaryInterceptor(s.admitUnary),
		grpc.ChainStreamInterceptor(s.admitStream),
	)
	fabricv1.RegisterFabricServiceServer(srv, s)
	healthv1.RegisterHealthServer(srv, hs)
	reflection.Register(srv)
	return srv
}

// followHealth says SERVING only while the gateway is ready, for the server as a whole and for our service.
func (s *Service) followHealth(ctx context.Context, hs *health.Server) {
	changed, end := s.gateway.Changed()
	defer end()
	for {
		st := healthv1.HealthCheckResponse_NOT_SERVING
		if snap := s.gateway.Snapshot(); snap != nil && snap.Site.Ready {
			st = healthv1.HealthCheckResponse_SERVING
		}
		hs.SetServingStatus("", st)
		hs.SetServingStatus(fabricv1.FabricService_ServiceDesc.ServiceName, st)
		select {
		case <-ctx.Done():
			return
		case _, open := <-changed:
			if !open {
				return
			}
		}
	}
}

// listenUnix makes the socket of mode 0660 under another name and moves it into place, so that there is no moment at
// which others may connect, and so that a socket left over by a daemon that was killed is simply replaced. It
// returns the group that owns the socket.
func listenUnix(path, group string) (net.Listener, uint32, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, 0, fmt.Errorf("%s: another daemon answers there; stop it first or choose another socket", path)
	}
	gid := os.Getegid()
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, 0, err
		}
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, 0, err
	}
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, 0, err
	}
	// The name that the listener would unlink is not the one it ends up with.
	lis.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o660)
	if err == nil && gid != os.Getegid() {
		// Needs CAP_CHOWN; under systemd give the unit Group= instead, and the daemon's own group is the right one.
		err = os.Chown(tmp, -1, gid)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = lis.Close()
		_ = os.Remove(tmp)
		return nil, 0, err
	}
	return &unixListener{UnixListener: lis, path: path}, uint32(gid), nil
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if rm := os.Remove(l.path); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

func groupID(group string) (int, error) {
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w; create it with `groupadd --system %s`", group, err, group)
	}
	return strconv.Atoi(g.Gid)
}

// mutualTLS makes the server side of mutual TLS. The files are read now, so that a mistake shows at once, and again
// for every connection, so that a renewed certificate needs no restart.
func mutualTLS(cfg config.API) (credentials.TransportCredentials, error) {
	if _, err := serverTLS(cfg); err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		ClientAuth:         tls.RequireAndVerifyClientCert,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return serverTLS(cfg) },
	}), nil
}

func serverTLS(cfg config.API) (*tls.Config, error) {
	cert, err := os.ReadFile(cfg.CertFile)
	if err != nil {
		return nil, fmt.Errorf("cert-file: %w", err)
	}
	key, err := config.ReadSecretFile(cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("key-file: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("cert-file %s and key-file %s: %w", cfg.CertFile, cfg.KeyFile, err)
	}
	ca, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("ca-file %s: holds no PEM certificate", cfg.CAFile)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		NextProtos:   []string{"h2"},
	}, nil
}

// admitUnary refuses callers that may not use the API and tells the others' name to the handler.
func (s *Service) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// admitStream does the same for streams.
func (s *Service) admitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := s.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, &admitted{ServerStream: stream, ctx: ctx})
}

type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the stream's context with the caller's name.
func (a *admitted) Context() context.Context { return a.ctx }

func (s *Service) admit(ctx context.Context, method string) (context.Context, error) {
	who, err := identify(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "caller refused", "method", method, "err", err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return WithCaller(ctx, who), nil
}
