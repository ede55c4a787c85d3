package site

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	Paths   []rib.Path
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// save writes the checkpoint beside the old one and renames it, so that a crash of ours or a full disk leaves a whole one.
// A crash of the host needs no fsync: the file is of no use after another boot.
func (c *checkpoint) save(dir string) error {
	name := filepath.Join(dir, checkpointFile)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	err = errors.Join(gob.NewEncoder(f).Encode(c), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("checkpoint: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// ForgetCheckpoint removes the checkpoint of a state folder. After Cleanup the kernel holds none of our routes, and the next
// start must not tell neighbours that forwarding has survived.
func ForgetCheckpoint(dir string) error {
	err := os.Remove(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// touchCheckpoint says that the checkpoint was true until now.
func touchCheckpoint(dir string) error {
	now := time.Now()
	return os.Chtimes(filepath.Join(dir, checkpointFile), now, now)
}

// loadCheckpoint returns the paths of this boot's checkpoint, marked stale; none when there is no such checkpoint, or when
// we have been away for longer than maxAge: the neighbours have given us up by then. An unreadable file is reported and
// otherwise treated as absent: starting cold is always right, only slower.
func loadCheckpoint(dir, gateway string, maxAge time.Duration) ([]rib.Path, error) {
	f, err := os.Open(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || time.Since(info.ModTime()) > maxAge {
		return nil, err
	}
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

// runStaleTimer ends the wait for neighbours that do not come back: after the restart time what they left is pruned.
func (s *Site) runStaleTimer(ctx context.Context) error {
	timer := time.NewTimer(time.Duration(s.intent.Load().doc.Fabric.BGP.RestartTime))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	var names []string
	for _, src := range s.rib.Awaited() {
		names = append(names, src.Name)
		s.rib.EndOfRIB(src)
	}
	if len(names) > 0 {
		slices.Sort(names)
		s.log.Warn("stale timer: neighbours have not come back, what they left is pruned", "neighbours", strings.Join(names, ", "))
	}
	s.rib.Release()
	return nil
}

// runCheckpoint keeps the checkpoint a second behind the rib; a large one, which takes long to write, up to checkpointTouch behind.
func (s *Site) runCheckpoint(ctx context.Context) error {
	tick := time.NewTicker(checkpointDelay)
	defer tick.Stop()
	var saved uint64 // what the rib had changed by then
	var written, rest = time.Time{}, time.Duration(0)
	due, told := true, "" // due: it is to be written even if nothing changes
	for {
		done := false
		select {
		case <-ctx.Done():
			done = true // also at the end, for what changed since
		case <-tick.C:
		}
		// Read first: a change that comes while we write is in the next one.
		changes := s.rib.Changes()
		switch since := time.Since(written); {
		case due || changes != saved:
			if since < rest && !done {
				continue
			}
			begun := time.Now()
			c := checkpoint{Version: checkpointVersion, BootID: bootID(), Gateway: s.cfg.Gateway, Paths: learnt(s.rib)}
			err := c.save(s.cfg.StateDir)
			written, saved, due = time.Now(), changes, err != nil
			if err == nil {
				rest, told = checkpointRest(written.Sub(begun)), ""
				break
			}
			// The one that is there is no longer true: it grows old untouched.
			rest = checkpointTouch
			if err.Error() != told {
				told = err.Error()
				s.log.Error("a start now would be cold, or from an older checkpoint; trying on", "err", err)
			}
		case done || since >= checkpointTouch:
			due = touchCheckpoint(s.cfg.StateDir) != nil // gone: it is written anew
			written, rest = time.Now(), 0
		}
		if done {
			return nil
		}
	}
}

// checkpointRest is how long after a checkpoint that took so long there is no other: writing takes a twentieth of the time at most,
// but what is there stays young enough for a restart.
func checkpointRest(took time.Duration) time.Duration {
	return min(20*took, checkpointTouch)
}
