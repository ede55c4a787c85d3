package links

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"fabric/overlay"
)

// Store keeps the plan in the state folder and the claim on the run folder: one engine per run folder.
type Store struct {
	plan, drained, endpoints string
	lock                     *os.File
}

// planFile is the plan's name in the state folder.
const planFile = "plan.json"

// drainedFile is the name of the list of drained devices.
const drainedFile = "drained.json"

// OpenStore makes the folders where they are missing and claims the run folder. A second process is refused.
func OpenStore(stateDir, runDir string) (*Store, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o750); err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	name := filepath.Join(runDir, "engine.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("run folder %s belongs to another fabric-links that is running; stop it, or give this one a --run-dir and --state-dir of its own", runDir)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &Store{
		plan: filepath.Join(stateDir, planFile), drained: filepath.Join(stateDir, drainedFile), endpoints: filepath.Join(stateDir, endpointsFile), lock: f,
	}, nil
}

// Close gives the run folder up.
func (s *Store) Close() error { return s.lock.Close() }

// Load reads the plan; nil when none is kept.
func (s *Store) Load() (*overlay.Plan, error) {
	data, err := os.ReadFile(s.plan)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kept plan: %w", err)
	}
	p, err := overlay.ParsePlan(data)
	if err != nil {
		return nil, fmt.Errorf("kept plan %s: %w", s.plan, err)
	}
	return &p, nil
}

// Save keeps the plan, all or nothing: a full disk leaves the former one.
func (s *Store) Save(p overlay.Plan) error {
	if err := replaceFile(s.plan, p); err != nil {
		return fmt.Errorf("keep plan (the former plan stays): %w", err)
	}
	return nil
}

// LoadDrained reads the devices of the tunnels that the operator has drained.
func (s *Store) LoadDrained() ([]string, error) {
	data, err := os.ReadFile(s.drained)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kept drains: %w", err)
	}
	var devices []string
	if err := json.Unmarshal(data, &devices); err != nil {
		return nil, fmt.Errorf("kept drains %s: %w", s.drained, err)
	}
	return devices, nil
}

// SaveDrained keeps them, all or nothing.
func (s *Store) SaveDrained(devices []string) error {
	if err := replaceFile(s.drained, devices); err != nil {
		return fmt.Errorf("keep drains (what was drained before stays so): %w", err)
	}
	return nil
}

// replaceFile writes v as JSON to a file of mode 0600, all or nothing.
func replaceFile(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// KeysDir is where the keys that tunnels have agreed are kept in a state folder.
func KeysDir(stateDir string) string { return filepath.Join(stateDir, "keys") }

// Forget removes the plan, the drains, the endpoints and the keys that tunnels have agreed.
func (s *Store) Forget() error {
	if err := os.RemoveAll(KeysDir(filepath.Dir(s.plan))); err != nil {
		return fmt.Errorf("forget keys: %w", err)
	}
	for _, f := range []string{s.plan, s.drained, s.endpoints} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("forget plan: %w", err)
		}
	}
	return nil
}
