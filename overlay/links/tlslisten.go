package links

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"fabric/overlay"
	"fabric/overlay/carrier"
)

// The carrier process takes the TCP connections of all "tls" tunnels that others dial, on one port, and hands each to its tunnel process.
// It is a process of its own so that connections outlive the engine, and so that what faces the network has no right but to bind a low
// port.

// Files of the carrier process in the run folder.
const (
	carrierLock   = "carrier.lock"
	carrierConfig = "carrier.json"
	carrierState  = "carrier.status.json"
)

// listenConfig is what the engine tells the carrier process.
type listenConfig struct {
	overlay.Listener
	Tunnels []listenTunnel `json:"tunnels"`
}

type listenTunnel struct {
	Device    string `json:"device"`
	TokenFile string `json:"token-file"`
	TokenName string `json:"token-name"`
}

// listenStatus is what the carrier process says of itself.
type listenStatus struct {
	// Err says why it does not listen, or not for all tunnels.
	Err string `json:"error,omitempty"`
	carrier.ListenerStatus
}

// RunCarrier is the carrier process: it takes TLS connections as the engine's file in the run folder says, also when that changes, until ctx ends. A
// second one in the same run folder is refused. ready is called before the first look.
func RunCarrier(ctx context.Context, runDir string, log *slog.Logger, ready func()) error {
	if err := os.MkdirAll(runDir, 0o750); err != nil {
		return fmt.Errorf("carrier: run folder: %w", err)
	}
	lock, err := claim(filepath.Join(runDir, carrierLock))
	if err != nil {
		return fmt.Errorf("carrier: %w", err)
	}
	defer lock.Close()
	log.Info("carrier process runs", "pid", os.Getpid())
	ready()
	s := &carrierServer{runDir: runDir, log: log}
	defer s.stop()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		s.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.ended():
			log.Warn("carrier listener ended; it is opened again", "err", err)
			s.running = nil
		case <-tick.C:
		}
	}
}

// carrierServer is the state of the carrier process.
type carrierServer struct {
	runDir  string
	log     *slog.Logger
	running *runningListener
	told    listenStatus
	toldAt  time.Time
}

type runningListener struct {
	*carrier.Listener
	config overlay.Listener
	// sockets by token, as last set.
	sockets map[string]string
	cancel  context.CancelFunc
	done    chan error
}

func (s *carrierServer) ended() <-chan error {
	if s.running == nil {
		return nil
	}
	return s.running.done
}

// stop closes the listener with all its connections.
func (s *carrierServer) stop() {
	if s.running != nil {
		s.running.cancel()
		<-s.running.done
		s.running = nil
	}
}

// look does what the file says now and tells how that went.
func (s *carrierServer) look(ctx context.Context) {
	err := s.follow(ctx)
	var now listenStatus
	if s.running != nil {
		now.ListenerStatus = s.running.Status()
	}
	if err != nil {
		now.Err = err.Error()
	}
	if now.Err != s.told.Err && err != nil {
		s.log.Warn("carrier listener", "err", err)
	}
	changed := now.Err != s.told.Err || now.Tunnels != s.told.Tunnels || now.Address != s.told.Address || now.Pin != s.told.Pin
	if changed || time.Since(s.toldAt) > 25*statusEvery {
		// What is not told now is told soon.
		if err := replaceFile(filepath.Join(s.runDir, carrierState), now); err == nil {
			s.told, s.toldAt = now, time.Now()
		}
	}
}

// follow makes the listener what the file says.
func (s *carrierServer) follow(ctx context.Context) error {
	var want listenConfig
	there, err := readJSON(filepath.Join(s.runDir, carrierConfig), &want)
	if err != nil {
		// What was told before stands.
		return err
	}
	if !there {
		s.stop()
		return nil
	}
	if s.running != nil && s.running.config != want.Listener {
		s.stop()
	}
	if s.running == nil {
		l, err := carrier.Listen(carrier.ListenerConfig{
			Address: ":" + strconv.Itoa(want.Port), CertFile: want.CertificateFile, KeyFile: want.KeyFile, Log: s.log,
		})
		if err != nil {
			return err
		}
		r := &runningListener{Listener: l, config: want.Listener, done: make(chan error, 1)}
		var run context.Context
		run, r.cancel = context.WithCancel(ctx)
		go func() { r.done <- l.Run(run) }()
		s.running = r
		s.log.Info("carrier listens", "address", l.Addr())
	}
	sockets, errs := map[string]string{}, []error{}
	for _, t := range want.Tunnels {
		// Read every time: a token file that was changed, or mended, counts at once.
		token, err := carrier.Token(t.TokenFile, t.TokenName)
		if err != nil {
			if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
				errs = append(errs, err)
			}
			continue
		}
		sockets[token] = carrier.SocketPath(s.runDir, t.Device)
	}
	if len(errs) > 0 && len(sockets) == 0 && len(s.running.sockets) > 0 {
		// A secret that cannot be read just now is no reason to cut what lives.
		return errors.Join(errs...)
	}
	if !maps.Equal(sockets, s.running.sockets) {
		if err := s.running.SetTunnels(sockets); err != nil {
			return err
		}
		s.running.sockets = sockets
	}
	return errors.Join(errs...)
}
