package links

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"fabric/overlay"
	"fabric/overlay/carrier"
)

// A tunnel process learns how its packets travel from a file in the run folder that the engine writes before it starts the process, and
// tells how it stands in another one. So it needs neither the engine nor the plan, and starts alike as a child and as a unit. The files
// name secret files and hold no secret.

// tunnelCarrier is the file that tells a tunnel process of its carrier. There is none for UDP.
func tunnelCarrier(runDir, device string) string {
	return filepath.Join(runDir, "tunnel-"+device+".carrier.json")
}

// tunnelStatus is the file that a tunnel process tells in how it stands.
func tunnelStatus(runDir, device string) string {
	return filepath.Join(runDir, "tunnel-"+device+".status.json")
}

// processStatus is what a tunnel process says of itself.
type processStatus struct {
	// Config is the digest of the carrier's configuration that it runs with, "" with UDP.
	Config string `json:"config"`
	// Err says why it cannot run with it.
	Err string `json:"error,omitempty"`
	carrier.Status
}

// statusEvery is the time between looks of a process at its own state and at the files that it depends on.
const statusEvery = 200 * time.Millisecond

// carrierDigest identifies a configuration, "" for none.
func carrierDigest(c *overlay.Carrier) string {
	if c == nil {
		return ""
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic("links: " + err.Error()) // it has only strings
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

// readJSON reads a file of the run folder; false when there is none.
func readJSON(name string, v any) (bool, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// transport is the conn.Bind of a tunnel process.
type transport struct {
	conn.Bind
	statusFile string
	config     *overlay.Carrier
	token      string
	status     func() carrier.Status // nil with UDP
}

// openTransport makes the Bind that the run folder's file asks for. Why it cannot be made is also told in the status.
func openTransport(runDir, device string) (*transport, error) {
	t := &transport{statusFile: tunnelStatus(runDir, device)}
	var c overlay.Carrier
	there, err := readJSON(tunnelCarrier(runDir, device), &c)
	if err == nil && there {
		t.config = &c
		err = t.open(runDir, device)
	} else if err == nil {
		t.Bind = conn.NewDefaultBind()
	}
	said := processStatus{Config: carrierDigest(t.config)}
	if err != nil {
		said.Err = err.Error()
	}
	return t, errors.Join(err, replaceFile(t.statusFile, said))
}

// awaitTransport tries until the Bind can be made: what is missing is mostly a file that the operator has still to put there. nil when ctx
// has ended.
func awaitTransport(ctx context.Context, runDir, device string, log *slog.Logger) (*transport, error) {
	tick := time.NewTicker(5 * statusEvery)
	defer tick.Stop()
	said := ""
	for {
		t, err := openTransport(runDir, device)
		if err == nil {
			return t, nil
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("tunnel waits", "tunnel", device, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
		}
	}
}

func (t *transport) open(runDir, device string) (err error) {
	c := t.config
	if t.token, err = carrier.Token(c.TokenFile, c.TokenName); err != nil {
		return err
	}
	if c.Dial == "" {
		a, err := carrier.NewAcceptor(carrier.SocketPath(runDir, device), t.token)
		if err != nil {
			return err
		}
		t.Bind, t.status = a, a.Status
		return nil
	}
	d, err := carrier.NewDialer(carrier.DialerConfig{
		URL: "wss://" + c.Dial + carrier.PathPrefix + t.token, Pin: c.Pin, Proxy: c.Proxy, ProxyCredentialsFile: c.ProxyCredentialsFile,
	})
	if err != nil {
		return err
	}
	t.Bind, t.status = d, d.Status
	return nil
}

var errTokenChanged = errors.New("the token file has changed; to be started anew")

// tell keeps the status file true until ctx ends, or until the token is another than the one that the process started with.
func (t *transport) tell(ctx context.Context) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var told processStatus
	var toldAt time.Time
	for t.status != nil {
		now := processStatus{Config: carrierDigest(t.config), Status: t.status()}
		// A secret that cannot be read just now is no other secret.
		if token, err := carrier.Token(t.config.TokenFile, t.config.TokenName); err == nil && token != t.token {
			return errTokenChanged
		}
		changed := told.Connected != now.Connected || told.Connections != now.Connections || !told.LastErrorAt.Equal(now.LastErrorAt)
		if changed || time.Since(toldAt) > 25*statusEvery {
			// What is not told now is told soon.
			if err := replaceFile(t.statusFile, now); err == nil {
				told, toldAt = now, time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	<-ctx.Done()
	return nil
}

// tunnelFiles are the devices that files of a kind are in the run folder for.
func tunnelFiles(runDir, suffix string) []string {
	files, _ := filepath.Glob(filepath.Join(runDir, "tunnel-*"+suffix)) // the pattern is well formed
	var devices []string
	for _, f := range files {
		devices = append(devices, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "tunnel-"), suffix))
	}
	return devices
}
