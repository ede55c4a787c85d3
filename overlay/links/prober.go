package links

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

// Paths measures the paths of tunnels; *Prober does.
type Paths interface {
	// Watch takes the whole set of paths, by device. One that is gone is forgotten.
	Watch(map[string]PathTarget)
	// States are what is known of each path, by device.
	States() map[string]PathState
}

// PathTarget are the link-local addresses at the two ends of a tunnel.
type PathTarget struct{ Local, Remote netip.Addr }

// Prober sends an ICMPv6 echo request (RFC 4443 section 4.1) per second over each tunnel, between the link-local addresses at its ends, and
// measures when they are answered. The other end needs nothing but a kernel that answers. It is apart from BFD: nothing depends on it.
//
// One raw socket serves all tunnels: a link-local address is reached over the device that it is sent with, and over no other.
type Prober struct {
	// cookie is in each request, and tells our answers from those to other programs and earlier processes.
	cookie [8]byte
	now    func() time.Time

	mu    sync.Mutex
	paths map[string]*path
}

// path is one tunnel's.
type path struct {
	PathTarget
	// index of the device as it was last, 0 for none. A device made anew has another.
	index  uint32
	window pathWindow
}

// NewProber makes one; Run starts it.
func NewProber() *Prober {
	p := &Prober{now: time.Now, paths: map[string]*path{}}
	// Rand.Read does not fail.
	_, _ = rand.Read(p.cookie[:])
	return p
}

// Watch implements Paths.
func (p *Prober) Watch(targets map[string]PathTarget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, t := range targets {
		if old := p.paths[d]; old == nil || old.PathTarget != t {
			p.paths[d] = &path{PathTarget: t}
		}
	}
	for d := range p.paths {
		if _, wanted := targets[d]; !wanted {
			delete(p.paths, d)
		}
	}
}

// States implements Paths.
func (p *Prober) States() map[string]PathState {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	states := make(map[string]PathState, len(p.paths))
	for d, t := range p.paths {
		states[d] = t.window.state(now)
	}
	return states
}

// Run measures until ctx ends; it returns nil then. The error is that there can be no socket.
func (p *Prober) Run(ctx context.Context) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("measure paths: open an ICMPv6 socket (needs CAP_NET_RAW): %w", err)
	}
	f := os.NewFile(uintptr(fd), "icmp6")
	defer f.Close()
	// RFC 3542 section 3.2: a bit set means that the type is held back.
	filter := unix.ICMPv6Filter{}
	for i := range filter.Data {
		filter.Data[i] = ^uint32(0)
	}
	filter.Data[echoReply/32] &^= 1 << (echoReply % 32)
	if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmpv6Filter, &filter); err != nil {
		return fmt.Errorf("measure paths: ask for echo replies only: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return f.Close()
	})
	g.Go(func() error { return p.receive(ctx, f) })
	g.Go(func() error {
		tick := time.NewTicker(pathInterval)
		defer tick.Stop()
		for {
			if err := p.send(f); err != nil && ctx.Err() == nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return g.Wait()
}

// Numbers of RFC 4443 and of linux/icmpv6.h.
const (
	echoRequest  = 128
	echoReply    = 129
	icmpv6Filter = 1
	// echoSize is the header with identifier and sequence number, and the cookie.
	echoSize = 16
)

// send sends one request over each tunnel whose device is there. One that cannot be sent is lost.
func (p *Prober) send(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return raw.Control(func(fd uintptr) {
		for device, t := range p.paths {
			index := deviceIndex(int(fd), device)
			if index != t.index {
				t.index, t.window = index, pathWindow{}
			}
			if index == 0 {
				continue
			}
			// The kernel fills in the checksum (RFC 3542 section 3.1).
			echo := [echoSize]byte{0: echoRequest}
			binary.BigEndian.PutUint16(echo[6:], t.window.send(p.now()))
			copy(echo[8:], p.cookie[:])
			source := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: t.Local.As16(), Ifindex: index})
			_ = unix.Sendmsg(int(fd), echo[:], source, &unix.SockaddrInet6{Addr: t.Remote.As16(), ZoneId: index}, 0)
		}
	})
}

// deviceIndex is 0 for a device that is not there.
func deviceIndex(fd int, device string) uint32 {
	r, err := unix.NewIfreq(device)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r) != nil {
		return 0
	}
	return r.Uint32()
}

// receive takes answers.
func (p *Prober) receive(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 256)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("measure paths: %w", err)
		case failed != nil:
			// An error of the path, not of the socket.
			continue
		}
		if from, ok := from.(*unix.SockaddrInet6); ok {
			p.take(buf[:n], netip.AddrFrom16(from.Addr), from.ZoneId)
		}
	}
}

// take takes what came in over a device.
func (p *Prober) take(echo []byte, from netip.Addr, index uint32) {
	if len(echo) != echoSize || echo[0] != echoReply || [8]byte(echo[8:]) != p.cookie {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.paths {
		if t.index == index && t.Remote == from {
			t.window.answer(binary.BigEndian.Uint16(echo[6:]), p.now())
			return
		}
	}
}

// watchPaths has the paths of the plan's tunnels measured.
func (e *Engine) watchPaths(plan overlay.Plan) {
	if e.cfg.Paths == nil {
		return
	}
	targets := map[string]PathTarget{}
	for _, t := range plan.Tunnels {
		if t.LinkLocal.IsValid() && t.RemoteLinkLocal.IsValid() {
			targets[t.Device] = PathTarget{Local: t.LinkLocal, Remote: t.RemoteLinkLocal}
		}
	}
	e.cfg.Paths.Watch(targets)
}

// pathStates is what was measured, by device.
func (e *Engine) pathStates() map[string]PathState {
	if e.cfg.Paths == nil {
		return nil
	}
	return e.cfg.Paths.States()
}

func pathToWire(s PathState) *linksv1.Path {
	if s == (PathState{}) {
		return nil
	}
	w := &linksv1.Path{Probes: uint32(s.Probes), Lost: uint32(s.Lost)}
	if s.RTT > 0 {
		w.Rtt, w.MinRtt = durationpb.New(s.RTT), durationpb.New(s.MinRTT)
	}
	return w
}

func pathFromWire(w *linksv1.Path) PathState {
	return PathState{RTT: w.GetRtt().AsDuration(), MinRTT: w.GetMinRtt().AsDuration(), Probes: int(w.GetProbes()), Lost: int(w.GetLost())}
}
