package links

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"

	"fabric/overlay"
)

// endpointsFile is the name of the list of endpoints that were learnt.
const endpointsFile = "endpoints.json"

// LoadEndpoints reads where the other ends of tunnels were last heard, by device.
func (s *Store) LoadEndpoints() (map[string]netip.AddrPort, error) {
	data, err := os.ReadFile(s.endpoints)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kept endpoints: %w", err)
	}
	var m map[string]netip.AddrPort
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("kept endpoints %s: %w", s.endpoints, err)
	}
	return m, nil
}

// SaveEndpoints keeps them, all or nothing.
func (s *Store) SaveEndpoints(m map[string]netip.AddrPort) error {
	if err := replaceFile(s.endpoints, m); err != nil {
		return fmt.Errorf("keep endpoints: %w", err)
	}
	return nil
}

// loadEndpoints takes up where other ends were heard before this process started: after a boot nobody else knows.
func (e *Engine) loadEndpoints() {
	m, err := e.cfg.Store.LoadEndpoints()
	if err != nil {
		e.cfg.Log.Warn("where the other ends of tunnels were last heard cannot be read; those that dial are waited for", "err", err)
	}
	e.endpoints = m
}

// keepEndpoints keeps on disk where those ends are that only dial, so that they can be called back (roam).
func (e *Engine) keepEndpoints(plan overlay.Plan) {
	next := map[string]netip.AddrPort{}
	for _, t := range plan.Tunnels {
		if at := e.tunnels[t.Device].learnt; at.IsValid() && !t.Endpoint.IsValid() {
			next[t.Device] = at
		}
	}
	if maps.Equal(next, e.endpoints) {
		return
	}
	e.endpoints = next // also if it fails: the next change is another try
	if err := e.cfg.Store.SaveEndpoints(next); err != nil {
		e.cfg.Log.Warn("after a boot, ends of tunnels that only dial are waited for", "err", err)
	}
}
