package site

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fabric/bgp/rib"
)

// The checkpoint keeps what neighbours told us, so that a restarted daemon can go on announcing it before they have told it
// again: without it, the other gateways would take our End-of-RIB for a withdrawal of everything learnt from the CEs.
// It is a cache of facts, not of decisions: the paths come back stale and go at each neighbour's End-of-RIB.

// checkpointVersion changes with the meaning of the file; another version is ignored.
const checkpointVersion = 1

const checkpointFile = "checkpoint.gob"

type checkpoint struct {
	Version int
	// BootID ties the file to this boot: after another one the kernel holds none of our routes.
	BootID  string
	Gateway string
	Saved   time.Time
	Paths   []rib.Path
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// save writes the checkpoint beside the old one and renames it, so that a crash or a full disk leaves a whole one.
func (c *checkpoint) save(dir string) (err error) {
	f, err := os.CreateTemp(dir, checkpointFile+".*")
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("checkpoint: %w", err), f.Close(), os.Remove(f.Name()))
		}
	}()
	if err = gob.NewEncoder(f).Encode(c); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, checkpointFile))
}

// loadCheckpoint returns the paths of this boot's checkpoint, marked stale; none when there is no such checkpoint. An
// unreadable file is reported and otherwise treated as absent: starting cold is always right, only slower.
func loadCheckpoint(dir, gateway string) ([]rib.Path, error) {
	f, err := os.Open(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	defer f.Close()
	var c checkpoint
	if err := gob.NewDecoder(f).Decode(&c); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", f.Name(), err)
	}
	if c.Version != checkpointVersion || c.Gateway != gateway || c.BootID != bootID() {
		return nil, nil
	}
	for i := range c.Paths {
		c.Paths[i].Stale = true
	}
	return c.Paths, nil
}

// learnt are the paths that a checkpoint keeps: those that somebody told us.
func learnt(t *rib.Table) []rib.Path {
	var ps []rib.Path
	for _, s := range t.Sources() {
		if s.Kind == rib.Peer || s.Kind == rib.Fabric {
			ps = append(ps, t.SourcePaths(s)...)
		}
	}
	return ps
}
