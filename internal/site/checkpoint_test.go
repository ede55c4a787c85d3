package site

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
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
	touchCheckpoint(dir)
	if ps, err := loadCheckpoint(dir, "gw", 2*time.Minute); err != nil || len(ps) != 1 || !ps[0].Stale {
		t.Errorf("touched: %v, %v", ps, err)
	}
}
