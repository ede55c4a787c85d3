package kerneltest

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Strangers implements kernel.Host.
func (k *Kernel) Strangers(ctx context.Context, tables []uint32) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := k.call("observe strangers"); err != nil {
		return nil, err
	}
	var s kernel.Strangers
	for _, name := range reconcile.Keys(k.devices) {
		d := k.devices[name]
		if d.Kind == kernel.KindVRF && !d.ours() && slices.Contains(tables, d.Table) {
			s.Device(name, fmt.Sprintf("alias %q", d.Alias), d.Table)
		}
	}
	for _, t := range tables {
		for _, key := range reconcile.Keys(k.routes) {
			if p := k.routes[key].Protocol; key.Table == t && kernel.Strange(p) {
				s.Route(key, p)
			}
		}
	}
	return s.Sentences(), nil
}

// AddVRF adds a VRF device of somebody else, up.
func (k *Kernel) AddVRF(name string, table uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.devices[name]; ok {
		return errno("device "+name, syscall.EEXIST)
	}
	k.addDevice(kernel.Link{Name: name, Kind: kernel.KindVRF, Table: table, Up: true})
	k.event(kernel.ChangedLinks)
	return nil
}
