package kerneltest

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// ourVXLAN is nil when dev is a VXLAN device of ours of one of the kinds.
func (k *Kernel) ourVXLAN(dev, what string, kinds ...kernel.LinkKind) error {
	d, err := k.device(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !d.ours() || !slices.Contains(kinds, d.Kind) {
		return foreign(what, fmt.Sprintf("device with alias %q", d.Alias))
	}
	return nil
}

// Neighbours implements kernel.Host.
func (k *Kernel) Neighbours(kinds ...kernel.LinkKind) kernel.Neighbours {
	if len(kinds) == 0 {
		kinds = []kernel.LinkKind{kernel.KindVXLAN}
	}
	return &edge[kernel.NeighbourKey, kernel.Neighbour]{
		k: k, name: "neighbours", equal: equals[kernel.NeighbourKey, kernel.Neighbour],
		observe: func() (map[kernel.NeighbourKey]kernel.Neighbour, error) {
			found := map[kernel.NeighbourKey]kernel.Neighbour{}
			for key, n := range k.neighbours {
				if k.ourVXLAN(key.Device, "", kinds...) == nil {
					found[key] = n
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[kernel.NeighbourKey, kernel.Neighbour]) error {
			if err := k.ourVXLAN(op.Key.Device, "neighbour "+op.Key.String(), kinds...); err != nil {
				return gone(op.Kind, k.devices[op.Key.Device] == nil, err)
			}
			delete(k.neighbours, op.Key)
			if op.Kind != reconcile.Delete {
				k.neighbours[op.Key] = op.New
			}
			return nil
		},
	}
}

// gone forgives deletes of what went with its device.
func gone(kind reconcile.Kind, absent bool, err error) error {
	if kind == reconcile.Delete && absent {
		return nil
	}
	return err
}

// FDB implements kernel.Host.
func (k *Kernel) FDB() kernel.FDB {
	return &edge[kernel.FDBKey, kernel.FDBEntry]{
		k: k, name: "fdb", equal: equals[kernel.FDBKey, kernel.FDBEntry],
		observe: func() (map[kernel.FDBKey]kernel.FDBEntry, error) {
			found := map[kernel.FDBKey]kernel.FDBEntry{}
			for key, e := range k.fdb {
				if k.ourVXLAN(key.Device, "", kernel.KindVXLAN) == nil {
					found[key] = e
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[kernel.FDBKey, kernel.FDBEntry]) error {
			if err := k.ourVXLAN(op.Key.Device, "forwarding entry "+op.Key.String(), kernel.KindVXLAN); err != nil {
				return gone(op.Kind, k.devices[op.Key.Device] == nil, err)
			}
			delete(k.fdb, op.Key)
			if op.Kind != reconcile.Delete {
				k.fdb[op.Key] = op.New
			}
			return nil
		},
	}
}

// Sysctls implements kernel.Host. The model has a few keys; SetSysctl adds more.
func (k *Kernel) Sysctls(keys func() []string) kernel.Sysctls {
	plain := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	return &edge[string, string]{
		k: k, name: "sysctls",
		equal: func(_ string, want, have string) bool { return plain(want) == plain(have) },
		observe: func() (map[string]string, error) {
			found := map[string]string{}
			for _, key := range keys() {
				if v, ok := k.sysctls[key]; ok {
					found[key] = plain(v)
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[string, string]) error {
			if op.Kind == reconcile.Delete {
				return nil
			}
			if _, ok := k.sysctls[op.Key]; !ok {
				return errno("sysctl "+op.Key, syscall.ENOENT)
			}
			k.sysctls[op.Key] = op.New
			return nil
		},
	}
}

// SetSysctl sets a value behind our back; a key that was not there is there from then on.
func (k *Kernel) SetSysctl(key, value string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sysctls[key] = value
	return nil
}

// Filters implements kernel.Host.
func (k *Kernel) Filters(names ...string) kernel.Filters {
	return &edge[string, kernel.Filter]{
		k: k, name: "filters", equal: equals[string, kernel.Filter],
		observe: func() (map[string]kernel.Filter, error) {
			found := map[string]kernel.Filter{}
			for _, name := range names {
				if t, ok := k.tables[name]; ok && !t.foreign {
					if t.broken {
						t.filter.Comment = ""
					}
					found[name] = t.filter
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[string, kernel.Filter]) error {
			if t, ok := k.tables[op.Key]; ok && t.foreign {
				return foreign("nft table inet "+op.Key, "no comment of the fabric")
			}
			if op.Kind == reconcile.Delete {
				delete(k.tables, op.Key)
				return nil
			}
			if !strings.HasPrefix(op.New.Comment, kernel.AliasPrefix) {
				return fmt.Errorf("nft table %s: comment %q does not begin with %q", op.Key, op.New.Comment, kernel.AliasPrefix)
			}
			k.tables[op.Key] = table{filter: op.New}
			return nil
		},
	}
}

// AddTable adds an nft table of somebody else.
func (k *Kernel) AddTable(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tables[name] = table{foreign: true}
	k.event(kernel.ChangedFilters)
	return nil
}

// BreakTable deletes a rule from a table of ours behind our back.
func (k *Kernel) BreakTable(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tables[name]
	t.broken = true
	k.tables[name] = t
	k.event(kernel.ChangedFilters)
	return nil
}

// FlushRuleset deletes every nft table, as many a firewall script begins.
func (k *Kernel) FlushRuleset() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.tables)
	k.event(kernel.ChangedFilters)
	return nil
}

// HasTable reports whether there is an nft table of this name, whoever owns it.
func (k *Kernel) HasTable(name string) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.tables[name]
	return ok, nil
}

// WireGuards implements kernel.Host. Key files are not read: their paths stand for the keys.
func (k *Kernel) WireGuards() kernel.WireGuards {
	return &edge[string, kernel.WireGuard]{
		k: k, name: "wireguards", equal: equals[string, kernel.WireGuard],
		observe: func() (map[string]kernel.WireGuard, error) {
			found := map[string]kernel.WireGuard{}
			for name, w := range k.wireguards {
				if d, ok := k.devices[name]; ok && d.ours() {
					found[name] = w
				}
			}
			return found, nil
		},
		apply: func(op reconcile.Op[string, kernel.WireGuard]) error {
			d, err := k.device(op.Key)
			if err != nil {
				return gone(op.Kind, true, fmt.Errorf("WireGuard %s: %w", op.Key, err))
			}
			if !d.ours() {
				return foreign("device "+op.Key, fmt.Sprintf("alias %q", d.Alias))
			}
			delete(k.wireguards, op.Key)
			if op.Kind != reconcile.Delete {
				k.wireguards[op.Key] = op.New
			}
			return nil
		},
	}
}
