package links

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
	"fabric/overlay"
)

const kindCarrier = "tls listener"

// CarrierProcess starts and ends the one process that takes TLS connections (RunCarrier). It lives on when the engine ends.
type CarrierProcess interface {
	// Alive says whether it runs, whoever started it.
	Alive() (bool, error)
	// Start starts it and returns at once.
	Start(ctx context.Context) error
	// Stop asks it to end and returns at once.
	Stop(ctx context.Context) error
}

// Carriers tells the processes of "tls" tunnels what to do, and reads how they stand.
type Carriers struct {
	runDir  string
	process CarrierProcess
	// listener spaces the starts of the process.
	listener respawn
}

// NewCarriers works in a run folder; process is started where another gateway dials this one.
func NewCarriers(runDir string, process CarrierProcess) *Carriers {
	return &Carriers{runDir: runDir, process: process}
}

// farEnd stands for the far end of a "tls" tunnel in WireGuard's configuration until the tunnel process tells its own word for it
// (carrier.Endpoint): a carrier has one far end and takes any address for it. 100::/64 is where packets are never sent to (RFC 6666).
var farEnd = netip.MustParseAddrPort("[100::1]:443")

// tellCarriers writes what the tunnel processes are to know before they are started, and ends those that run with something else: they are
// started again with what is in the file. ours is the edge of tunnel devices, present what it has; devices that go are taken out of it.
func (e *Engine) tellCarriers(p *pass, plan overlay.Plan, ours kernel.Links, present map[string]kernel.Link) {
	c := e.cfg.Carriers
	if c == nil {
		return
	}
	wanted := map[string]bool{}
	for _, t := range plan.Tunnels {
		wanted[t.Device] = true
		if link, there := present[t.Device]; there && t.Carrier != nil && link.Kind == kernel.KindWireGuard {
			// It was a tunnel over UDP, in the kernel: the device makes room for the process's.
			err := ours.Apply(p.ctx, []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Delete, Key: t.Device, Old: link}})[0]
			e.logOp("delete (it becomes a tls tunnel)", kindLink, t.Device, err)
			delete(present, t.Device)
			p.changes++
		}
		if err := e.tellCarrier(p, t, present); err != nil {
			e.logOp("tell", kindProcess, t.Device, err)
			p.note(kindProcess, t.Device, err)
		}
	}
	for _, suffix := range []string{".carrier.json", ".status.json"} {
		for _, d := range tunnelFiles(c.runDir, suffix) {
			if !wanted[d] {
				_ = os.Remove(filepath.Join(c.runDir, "tunnel-"+d+suffix)) // it harms nobody
			}
		}
	}
}

func (e *Engine) tellCarrier(p *pass, t overlay.Tunnel, present map[string]kernel.Link) error {
	file, status := tunnelCarrier(e.cfg.Carriers.runDir, t.Device), tunnelStatus(e.cfg.Carriers.runDir, t.Device)
	var have overlay.Carrier
	there, err := readJSON(file, &have)
	var said processStatus
	told, statusErr := readJSON(status, &said)
	changed := err != nil || there != (t.Carrier != nil) || there && have != *t.Carrier
	if !changed && (!told || statusErr != nil || said.Config == carrierDigest(t.Carrier)) {
		return nil
	}
	switch {
	case !changed:
	case t.Carrier == nil:
		err = os.Remove(file)
	default:
		err = replaceFile(file, t.Carrier)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// After the file: should this process end in between, the next one sees by the status that the tunnel process has not what is wanted.
	alive, err := e.cfg.Processes.Alive(t.Device)
	if err == nil && alive {
		err = e.cfg.Processes.Kill(t.Device)
		// Its device goes with it: what takes its place is decided anew.
		delete(present, t.Device)
		// It did not die of itself: the next start need not wait.
		e.tunnels[t.Device].process = respawn{}
		e.logOp("kill (its carrier has changed)", kindProcess, t.Device, err)
		p.changes++
	}
	if err == nil {
		if err = os.Remove(status); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// keepListener makes the carrier process run where it is needed, and end where it is not.
func (e *Engine) keepListener(p *pass, plan overlay.Plan) {
	e.listenerErr = ""
	c := e.cfg.Carriers
	if c == nil {
		return
	}
	config := filepath.Join(c.runDir, carrierConfig)
	alive, err := c.process.Alive()
	if plan.Listener == nil {
		if err == nil && alive {
			p.removals = append(p.removals, func() {
				// Without its file it closes all connections, also if it does not end.
				_ = os.Remove(config)
				err := c.process.Stop(p.ctx)
				e.logOp("stop", kindCarrier, "process", err)
			})
		}
		return
	}
	name := fmt.Sprintf("port %d", plan.Listener.Port)
	want := listenConfig{Listener: *plan.Listener}
	for _, t := range plan.Tunnels {
		if t.Accepts() {
			want.Tunnels = append(want.Tunnels, listenTunnel{t.Device, t.Carrier.TokenFile, t.Carrier.TokenName})
		}
	}
	var have listenConfig
	if there, readErr := readJSON(config, &have); err == nil && (readErr != nil || !there || !reflect.DeepEqual(have, want)) {
		err = replaceFile(config, want)
	}
	now := e.cfg.Now()
	switch {
	case err != nil:
	case alive:
		c.listener.seen = now
		var s listenStatus
		if _, err = readJSON(filepath.Join(c.runDir, carrierState), &s); err == nil && s.Err != "" {
			err = errors.New(s.Err)
		}
	default:
		if err = c.listener.next(now); err == nil {
			c.listener.start(now)
			e.beat()
			err = c.process.Start(p.ctx)
			e.logOp("start", kindCarrier, "process", err)
		}
	}
	if err != nil {
		e.listenerErr = err.Error()
	}
	p.note(kindCarrier, name, err)
}

// readCarriers is what the tunnel processes that live say of their connections; of one that does not, why it could not run.
func (e *Engine) readCarriers(plan overlay.Plan) map[string]processStatus {
	said := map[string]processStatus{}
	if e.cfg.Carriers == nil {
		return said
	}
	for _, t := range plan.Tunnels {
		if t.Carrier == nil {
			continue
		}
		var s processStatus
		if there, err := readJSON(tunnelStatus(e.cfg.Carriers.runDir, t.Device), &s); err != nil || !there || s.Config != carrierDigest(t.Carrier) {
			continue
		}
		if alive, err := e.cfg.Processes.Alive(t.Device); err == nil && !alive {
			s = processStatus{Config: s.Config, Err: s.Err}
		}
		said[t.Device] = s
	}
	return said
}

// carrierReason adds to a tunnel's reason how its TLS connection stands.
func carrierReason(t overlay.Tunnel, s processStatus, listener, state, reason string) string {
	if t.Carrier == nil {
		return reason
	}
	at := func(when time.Time) string { return when.UTC().Format(time.TimeOnly) + " UTC" }
	way := ""
	switch accepts := t.Accepts(); {
	case s.Err != "":
		return "TLS: " + s.Err
	case s.Connected && accepts:
		way = "TLS from " + s.Remote
	case s.Connected && t.Carrier.Proxy != "":
		way = "TLS to " + t.Carrier.Dial + " through proxy " + s.Remote
	case s.Connected:
		way = "TLS to " + t.Carrier.Dial
	case accepts && listener != "":
		return "TLS: " + listener
	case accepts && s.LastError != "":
		return fmt.Sprintf("TLS: waits for %s to connect; the last connection ended at %s: %s", t.Remote, at(s.LastErrorAt), s.LastError)
	case accepts:
		return "TLS: waits for " + t.Remote + " to connect"
	case s.LastError != "":
		return "TLS: " + s.LastError
	default:
		return "TLS: connects to " + t.Carrier.Dial
	}
	if state == Up {
		return reason + "; " + way
	}
	return reason + "; connected: " + way
}

// connectedTo is the TCP address at the far end of a tunnel's connection, zero where there is none.
func (s processStatus) connectedTo() netip.AddrPort {
	if !s.Connected {
		return netip.AddrPort{}
	}
	return readAddrPort(s.Remote)
}

// carrierLocks is what both ways of starting the carrier process share.
type carrierLocks struct{ runDir string }

// Alive implements CarrierProcess.
func (c carrierLocks) Alive() (bool, error) {
	pid, err := holder(filepath.Join(c.runDir, carrierLock))
	return pid != 0, err
}

func (c carrierLocks) terminate() error {
	pid, err := holder(filepath.Join(c.runDir, carrierLock))
	if err != nil || pid == 0 {
		return err
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end carrier process %d: %w", pid, err)
	}
	return nil
}

type execCarrier struct {
	carrierLocks
	p *ExecProcesses
}

// Carrier is the carrier process as a child in a session of its own. What it says goes to carrier.log in the run folder.
func (p *ExecProcesses) Carrier() CarrierProcess { return execCarrier{carrierLocks{p.runDir}, p} }

// Start implements CarrierProcess.
func (c execCarrier) Start(context.Context) error {
	if err := c.p.spawn("carrier.log", "carrier"); err != nil {
		return fmt.Errorf("carrier process: %w", err)
	}
	return nil
}

// Stop implements CarrierProcess.
func (c execCarrier) Stop(context.Context) error { return c.terminate() }

type systemdCarrier struct{ carrierLocks }

const carrierUnit = "fabric-carrier.service"

// Carrier is the carrier process as fabric-carrier.service.
func (p *SystemdProcesses) Carrier() CarrierProcess { return systemdCarrier{carrierLocks{p.runDir}} }

// Start implements CarrierProcess.
func (c systemdCarrier) Start(ctx context.Context) error {
	return systemctl(ctx, "start", "--no-block", carrierUnit)
}

// Stop implements CarrierProcess. A process that systemd did not start is ended too.
func (c systemdCarrier) Stop(ctx context.Context) error {
	if err := systemctl(ctx, "stop", "--no-block", carrierUnit); err != nil {
		return err
	}
	return c.terminate()
}
