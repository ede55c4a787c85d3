package links

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"fabric/overlay"
)

// tunnelLock is the file that a tunnel process holds locked as long as it lives.
func tunnelLock(runDir, device string) string {
	return filepath.Join(runDir, "tunnel-"+device+".lock")
}

// RunTunnel is the tunnel process: userspace WireGuard on one TUN device, over UDP or as the run folder's file says, until ctx ends or
// the device goes. It configures nothing, it only carries: keys, peer, addresses and routes come from the engine, through the UAPI socket
// (/var/run/wireguard/DEVICE.sock) and netlink. So it has no reason to change or restart when the plan does.
//
// ready is called when the device is there and the socket answers. A second process for the same device is refused.
func RunTunnel(ctx context.Context, name, runDir string, log *slog.Logger, ready func()) error {
	if !strings.HasPrefix(name, overlay.TunnelPrefix) || strings.ContainsAny(name, "/. ") {
		return fmt.Errorf("tunnel %q: not a tunnel device name (%s…)", name, overlay.TunnelPrefix)
	}
	if err := os.MkdirAll(runDir, 0o750); err != nil {
		return fmt.Errorf("tunnel %s: run folder: %w", name, err)
	}
	lock, err := claim(tunnelLock(runDir, name))
	if err != nil {
		return fmt.Errorf("tunnel %s: %w", name, err)
	}
	defer lock.Close()
	transport, err := awaitTransport(ctx, runDir, name, log)
	if err != nil || transport == nil {
		return err
	}
	dev, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		return fmt.Errorf("tunnel %s: create TUN device (needs CAP_NET_ADMIN and /dev/net/tun): %w", name, err)
	}
	socket, err := ipc.UAPIOpen(name)
	if err != nil {
		dev.Close()
		return fmt.Errorf("tunnel %s: open UAPI socket: %w", name, err)
	}
	listener, err := ipc.UAPIListen(name, socket)
	if err != nil {
		dev.Close()
		return fmt.Errorf("tunnel %s: listen on UAPI socket: %w", name, err)
	}
	// device.Logger's verbose lines name peers and handshakes, never keys.
	wg := device.NewDevice(dev, transport, &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "tunnel", name) },
		Errorf:   func(format string, args ...any) { log.Warn(fmt.Sprintf(format, args...), "tunnel", name) },
	})
	defer wg.Close()
	defer listener.Close()
	// Up from the start: a listen port that is taken is then refused when it is configured, where the engine sees it. In the
	// other order the device would silently stay down.
	if err := wg.Up(); err != nil {
		return fmt.Errorf("tunnel %s: open its sockets: %w", name, err)
	}
	gone := make(chan error, 1)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				gone <- err
				return
			}
			go wg.IpcHandle(c)
		}
	}()
	log.Info("tunnel process runs", "tunnel", name, "pid", os.Getpid())
	ready()
	telling, enough := context.WithCancel(ctx)
	told := make(chan error, 1)
	go func() { told <- transport.tell(telling) }()
	defer func() {
		enough()
		<-told
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-wg.Wait():
		return fmt.Errorf("tunnel %s: device is gone", name)
	case err := <-told:
		told <- nil
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("tunnel %s: %w", name, err)
	case err := <-gone:
		return fmt.Errorf("tunnel %s: UAPI socket: %w", name, err)
	}
}

// claim opens a tunnel's lock file and locks it for the life of this process. A POSIX record lock, because it can be asked about
// (holder) without being taken, not even for a moment.
func claim(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%s is locked: another process does this already", path)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// holder is the id of the process that carries the tunnel of this lock file, 0 when none does.
func holder(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	ask := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &ask); err != nil {
		return 0, fmt.Errorf("lock %s: %w", path, err)
	}
	if ask.Type == unix.F_UNLCK {
		return 0, nil
	}
	if ask.Pid < 2 {
		return 0, fmt.Errorf("%s is locked by a process outside this process namespace; run fabric-links beside its tunnels", path)
	}
	return int(ask.Pid), nil
}
