package site

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"fabric/bgp/rib"
)

// A daemon that was away for longer than its neighbours keep its paths starts cold; a touched checkpoint is as good as new.
func TestCheckpointAge(t *testing.T) {
	dir := t.TempDir()
	src := rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "ce"}
	c := checkpoint{Version: checkpointVersion, BootID: bootID(), Gateway: "gw",
		Paths: []rib.Path{{Key: rib.PathKey{Source: src, Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}}
	if err := c.save(dir); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-3 * time.Minute)
	if err := os.Chtimes(filepath.Join(dir, checkpointFile), old, old); err != nil {
		t.Fatal(err)
	}
	if ps, err := loadCheckpoint(dir, "gw", 2*time.Minute); err != nil || len(ps) != 0 {
		t.Errorf("after three minutes: %v, %v", ps, err)
	}
	if err := touchCheckpoint(dir); err != nil {
		t.Fatal(err)
	}
	if ps, err := loadCheckpoint(dir, "gw", 2*time.Minute); err != nil || len(ps) != 1 || !ps[0].Stale {
		t.Errorf("touched: %v, %v", ps, err)
	}
}

// A checkpoint that cannot be written is tried again until it can, also if nothing changes any more; the one before is not marked as true
// meanwhile. One that somebody has removed is written anew.
func TestCheckpointIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := &Site{cfg: Config{StateDir: dir, Gateway: "gw"}, log: slog.New(slog.DiscardHandler), rib: rib.NewTable()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.runCheckpoint(ctx) }()
		learn := func(n int) {
			src := rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "ce"}
			s.rib.Update(rib.Path{Key: rib.PathKey{Source: src, Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", n))}})
		}
		after := func(d time.Duration, paths int) time.Time {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			ps, err := loadCheckpoint(dir, "gw", time.Hour)
			if err != nil || len(ps) != paths {
				t.Errorf("after %s: %d paths, error %v, want %d", d, len(ps), err, paths)
			}
			info, err := os.Stat(filepath.Join(dir, checkpointFile))
			if err != nil {
				t.Fatal(err)
			}
			return info.ModTime()
		}
		learn(1)
		was := after(2*checkpointDelay, 1)

		inTheWay := filepath.Join(dir, checkpointFile+".new")
		if err := os.Mkdir(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		learn(2)
		if at := after(4*checkpointTouch, 1); !at.Equal(was) {
			t.Errorf("the old checkpoint was marked as true until %s", at)
		}
		if err := os.Remove(inTheWay); err != nil {
			t.Fatal(err)
		}
		after(checkpointTouch+2*checkpointDelay, 2)

		if err := os.Remove(filepath.Join(dir, checkpointFile)); err != nil {
			t.Fatal(err)
		}
		after(checkpointTouch+2*checkpointDelay, 2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
