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
	plan string
	lock *os.File
}

// planFile is the plan's name in the state folder.
const planFile = "plan.json"

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
	return &Store{plan: filepath.Join(stateDir, planFile), lock: f}, nil
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
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("keep plan: %w", err)
	}
	dir := filepath.Dir(s.plan)
	f, err := os.CreateTemp(dir, planFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep plan: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("keep plan in %s (the former plan stays): %w", dir, err)
	}
	if err := os.Rename(f.Name(), s.plan); err != nil {
		return fmt.Errorf("keep plan: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("keep plan: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// Forget removes the plan.
func (s *Store) Forget() error {
	if err := os.Remove(s.plan); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget plan: %w", err)
	}
	return nil
}
