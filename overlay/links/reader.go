package links

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
)

// uapiDir is where WireGuard's userspace implementations have their sockets.
const uapiDir = "/var/run/wireguard"

// answerWithin is how long a tunnel process may take to answer before it counts as hung.
const answerWithin = 3 * time.Second

// WireGuardReader reads facts through wgctrl.
type WireGuardReader struct{ client *wgctrl.Client }

// NewWireGuardReader opens the ways to WireGuard.
func NewWireGuardReader() (*WireGuardReader, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return &WireGuardReader{c}, nil
}

// Close gives them up.
func (r *WireGuardReader) Close() error { return r.client.Close() }

// Facts implements Reader.
func (r *WireGuardReader) Facts(ctx context.Context, devices []string) (map[string]Facts, error) {
	answers := r.ask(ctx, devices)
	facts := map[string]Facts{}
	var errs []error
	for _, d := range devices {
		if err := answers[d]; errors.Is(err, os.ErrDeadlineExceeded) {
			facts[d] = Facts{Hung: true}
			continue
		} else if err != nil && !errors.Is(err, errNoSocket) {
			continue
		}
		dev, err := r.client.Device(d)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("tunnel %s: %w", d, err))
			continue
		}
		f := Facts{ListenPort: dev.ListenPort}
		for _, p := range dev.Peers {
			// A device of ours has one peer; while it is changed to another, none or the former.
			f.LastHandshake = p.LastHandshakeTime
			f.RxBytes, f.TxBytes = uint64(p.ReceiveBytes), uint64(p.TransmitBytes)
			if p.Endpoint != nil {
				ap := p.Endpoint.AddrPort()
				f.Endpoint = netipUnmap(ap)
			}
		}
		facts[d] = f
	}
	return facts, errors.Join(errs...)
}

var errNoSocket = errors.New("no UAPI socket")

// ask finds out which tunnel processes answer: wgctrl would wait for one that hangs for ever.
func (r *WireGuardReader) ask(ctx context.Context, devices []string) map[string]error {
	answers := make([]error, len(devices))
	var wg sync.WaitGroup
	for i, d := range devices {
		wg.Go(func() { answers[i] = askOne(ctx, filepath.Join(uapiDir, d+".sock")) })
	}
	wg.Wait()
	out := map[string]error{}
	for i, d := range devices {
		out[d] = answers[i]
	}
	return out
}

func askOne(ctx context.Context, socket string) error {
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		return errNoSocket
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write([]byte("get=1\n\n")); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	return err
}
