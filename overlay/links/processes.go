package links

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Processes starts and ends tunnel processes. They live on when the engine ends: whoever comes next finds them by their locks.
type Processes interface {
	// Alive says whether the device's tunnel process runs, whoever started it.
	Alive(device string) (bool, error)
	// Start starts it and returns at once; the device appears soon after.
	Start(ctx context.Context, device string) error
	// Stop asks it to end, and with it the device, and returns at once.
	Stop(ctx context.Context, device string) error
	// Sweep removes what one that was killed has left.
	Sweep(device string) error
	// Kill ends it by force, because it does not answer.
	Kill(device string) error
	// List names the devices whose tunnel processes run.
	List() ([]string, error)
}

// locks is what both ways of starting share: the lock files in the run folder.
type locks struct{ runDir string }

// Alive implements Processes.
func (l locks) Alive(device string) (bool, error) {
	pid, err := holder(tunnelLock(l.runDir, device))
	return pid != 0, err
}

// List implements Processes.
func (l locks) List() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(l.runDir, "tunnel-*.lock"))
	if err != nil {
		return nil, err
	}
	var devices []string
	var errs []error
	for _, f := range files {
		pid, err := holder(f)
		if err != nil {
			errs = append(errs, err)
		} else if pid != 0 {
			devices = append(devices, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "tunnel-"), ".lock"))
		}
	}
	return devices, errors.Join(errs...)
}

// Kill implements Processes.
func (l locks) Kill(device string) error { return l.signal(device, unix.SIGKILL) }

func (l locks) signal(device string, sig unix.Signal) error {
	pid, err := holder(tunnelLock(l.runDir, device))
	if err != nil || pid == 0 {
		return err
	}
	if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end tunnel process %d of %s: %w", pid, device, err)
	}
	return nil
}

// Sweep implements Processes. It removes the UAPI socket: wg(8) and whoever else lists WireGuard devices would fail at it.
func (l locks) Sweep(device string) error {
	if alive, err := l.Alive(device); err != nil || alive {
		return err
	}
	if err := os.Remove(filepath.Join(uapiDir, device+".sock")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove socket of a tunnel process that is gone: %w", err)
	}
	return nil
}

// ExecProcesses starts tunnel processes as children in sessions of their own.
type ExecProcesses struct {
	locks
	program string
	died    func()
}

// maxTunnelLog is the size, in bytes, beyond which a tunnel's log begins anew at the next start.
const maxTunnelLog = 1 << 20

// NewExecProcesses starts program (this one's path) with "tunnel DEVICE --run-dir runDir"; died is called when a child ends.
func NewExecProcesses(program, runDir string, died func()) *ExecProcesses {
	return &ExecProcesses{locks{runDir}, program, died}
}

// Start implements Processes. What the process says goes to tunnel-DEVICE.log in the run folder.
func (p *ExecProcesses) Start(_ context.Context, device string) error {
	if err := p.Sweep(device); err != nil {
		return err
	}
	if err := p.spawn("tunnel-"+device+".log", "tunnel", device); err != nil {
		return fmt.Errorf("tunnel process of %s: %w", device, err)
	}
	return nil
}

// spawn starts the program with args, in a session of its own and with a log of that name in the run folder.
func (p *ExecProcesses) spawn(logName string, args ...string) error {
	name := filepath.Join(p.runDir, logName)
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if fi, err := os.Stat(name); err == nil && fi.Size() > maxTunnelLog {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(name, flags, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not CommandContext: the process outlives this one.
	cmd := exec.Command(p.program, append(args, "--run-dir", p.runDir)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own: no signal to the engine's terminal or group reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// NOTIFY_SOCKET and WATCHDOG_* are promises of the engine, not of its children.
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NOTIFY_") && !strings.HasPrefix(v, "WATCHDOG_") && !strings.HasPrefix(v, "LISTEN_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		// Its fate is read from the lock; this only reaps it and tells the engine to look.
		_ = cmd.Wait()
		p.died()
	}()
	return nil
}

// Stop implements Processes.
func (p *ExecProcesses) Stop(_ context.Context, device string) error {
	return p.signal(device, unix.SIGTERM)
}

// SystemdProcesses starts tunnel processes as units fabric-tunnel@DEVICE.service, so that stopping the engine's unit leaves them.
type SystemdProcesses struct{ locks }

// NewSystemdProcesses uses the run folder that the unit names too.
func NewSystemdProcesses(runDir string) *SystemdProcesses {
	return &SystemdProcesses{locks{runDir}}
}

// systemctl is given less time than the watchdog: the engine waits for it.
func systemctl(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Start implements Processes.
func (p *SystemdProcesses) Start(ctx context.Context, device string) error {
	if err := p.Sweep(device); err != nil {
		return err
	}
	return systemctl(ctx, "start", "--no-block", "fabric-tunnel@"+device+".service")
}

// Stop implements Processes. A process that systemd did not start is ended too.
func (p *SystemdProcesses) Stop(ctx context.Context, device string) error {
	if err := systemctl(ctx, "stop", "--no-block", "fabric-tunnel@"+device+".service"); err != nil {
		return err
	}
	return p.signal(device, unix.SIGTERM)
}
