package kerneltest

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Links implements kernel.Host.
func (k *Kernel) Links(kinds ...kernel.LinkKind) kernel.Links {
	return &edge[string, kernel.Link]{
		k: k, name: "links", equal: kernel.EqualLink, apply: k.applyLink,
		observe: func() (map[string]kernel.Link, error) {
			found := map[string]kernel.Link{}
			for name, d := range k.devices {
				if d.ours() && (len(kinds) == 0 || slices.Contains(kinds, d.Kind)) {
					found[name] = d.Link
				}
			}
			return found, nil
		},
		rank: func(op reconcile.Op[string, kernel.Link]) int {
			if op.New.Kind == kernel.KindVRF {
				return 0
			}
			return 1
		},
	}
}

func (k *Kernel) applyLink(op reconcile.Op[string, kernel.Link]) error {
	d, ok := k.devices[op.Key]
	want := op.New
	if ok && !d.ours() && !(want.Kind == kernel.KindTUN && d.tun && d.Alias == "") {
		return foreign("device "+op.Key, fmt.Sprintf("alias %q", d.Alias))
	}
	if op.Kind == reconcile.Delete {
		switch {
		case !ok:
		case d.tun:
			d.Alias = ""
			k.setUp(d, false)
		default:
			k.deleteDevice(d)
		}
		return nil
	}
	if len(op.Key) > 15 || want.Name != op.Key {
		return fmt.Errorf("link %s: bad name %q", op.Key, want.Name)
	}
	if want.VXLAN.Remote.IsValid() != (want.Kind == kernel.KindDirect) {
		return fmt.Errorf("link %s: of kind %s with the remote address %q", op.Key, want.Kind, want.VXLAN.Remote)
	}
	if want.Master != "" {
		if _, err := k.device(want.Master); err != nil {
			return fmt.Errorf("link %s: %w", op.Key, err)
		}
	}
	var slaves []*device // enslaved again to a VRF device that has to be made anew
	if ok && (d.Kind != want.Kind || d.VXLAN != want.VXLAN || d.Table != want.Table) {
		if d.tun {
			return fmt.Errorf("link %s: the tunnel process keeps it open", op.Key)
		}
		for _, o := range k.devices {
			if o.Master == d.Name {
				slaves = append(slaves, o)
			}
		}
		k.deleteDevice(d)
		ok = false
	}
	if !ok {
		switch {
		case want.Kind == kernel.KindTUN:
			return fmt.Errorf("link %s: its tunnel process has not made it yet: %w", op.Key, os.ErrNotExist)
		case want.Kind == kernel.KindVRF && !k.features.VRF, want.Kind == kernel.KindWireGuard && !k.features.WireGuard:
			return errno("link "+op.Key, syscall.EOPNOTSUPP)
		}
		up := want.Up
		want.Up = false
		d = k.addDevice(want)
		want.Up = up
	}
	d.Alias = want.Alias
	if want.MTU != 0 {
		d.MTU = want.MTU
	}
	if want.MAC != ([6]byte{}) {
		d.MAC = want.MAC
	}
	d.Spread = want.Spread
	d.Master = want.Master
	k.setUp(d, want.Up)
	for _, o := range slaves {
		o.Master = d.Name
	}
	return nil
}

// setUp changes the state of a device: going down takes its routes, next hops and IPv6 addresses along.
func (k *Kernel) setUp(d *device, up bool) {
	if d.Up == up {
		return
	}
	d.Up = up
	if !up {
		k.flushDevice(d.Name, func(a kernel.AddressKey) bool { return !a.Prefix.Addr().Is4() })
		return
	}
	for a, x := range k.addresses {
		if a.Device == d.Name {
			k.addressRoutes(a, x)
		}
	}
}

func (k *Kernel) deleteDevice(d *device) {
	k.flushDevice(d.Name, func(kernel.AddressKey) bool { return true })
	for key := range k.neighbours {
		if key.Device == d.Name {
			delete(k.neighbours, key)
		}
	}
	for key := range k.fdb {
		if key.Device == d.Name {
			delete(k.fdb, key)
		}
	}
	for _, o := range k.devices {
		if o.Master == d.Name {
			o.Master = ""
		}
	}
	delete(k.wireguards, d.Name)
	delete(k.devices, d.Name)
}

// flushDevice removes next hops and routes of a device, and the addresses that drop says.
func (k *Kernel) flushDevice(name string, drop func(kernel.AddressKey) bool) {
	for id, nh := range k.nexthops {
		if nh.Device == name {
			k.deleteNextHop(id)
		}
	}
	for key, r := range k.routes {
		if r.Device == name && !(r.Type == kernel.Local && key.Prefix.Addr().Is4()) {
			k.deleteRoute(key)
		}
	}
	for a := range k.addresses {
		if a.Device == name && drop(a) {
			k.deleteAddress(a)
		}
	}
}

// Ports implements kernel.Host.
func (k *Kernel) Ports(named func() []string) kernel.Ports {
	return &edge[string, kernel.Port]{
		k: k, name: "ports", equal: kernel.EqualPort, apply: k.applyPort,
		observe: func() (map[string]kernel.Port, error) {
			found := map[string]kernel.Port{}
			list := named()
			for name, d := range k.devices {
				if !d.ours() && (slices.Contains(list, name) || k.inOurVRF(d)) {
					found[name] = kernel.Port{Name: name, Master: d.Master, MTU: d.MTU}
				}
			}
			return found, nil
		},
	}
}

func (k *Kernel) inOurVRF(d *device) bool {
	m, ok := k.devices[d.Master]
	return ok && m.Kind == kernel.KindVRF && m.ours()
}

func (k *Kernel) applyPort(op reconcile.Op[string, kernel.Port]) error {
	d, err := k.device(op.Key)
	if err != nil {
		if op.Kind == reconcile.Delete {
			return nil
		}
		return fmt.Errorf("port %s: %w", op.Key, err)
	}
	if d.ours() {
		return fmt.Errorf("port %s: it is a link of the fabric", op.Key)
	}
	if op.New.Master != "" {
		if _, err := k.device(op.New.Master); err != nil {
			return fmt.Errorf("port %s: %w", op.Key, err)
		}
	}
	if d.Master != "" && d.Master != op.New.Master && !k.inOurVRF(d) {
		if op.Kind == reconcile.Delete {
			return nil
		}
		return foreign("interface "+op.Key, "enslaved to "+d.Master)
	}
	if d.Master != op.New.Master {
		up := d.Up // enslaving cycles the device
		k.setUp(d, false)
		d.Master = op.New.Master
		k.setUp(d, up)
	}
	if op.New.MTU != 0 {
		d.MTU = op.New.MTU
	}
	return nil
}

// AddDevice adds what an administrator or the hardware would: a device that is not ours, up.
func (k *Kernel) AddDevice(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.devices[name]; ok {
		return errno("device "+name, syscall.EEXIST)
	}
	k.addDevice(kernel.Link{Name: name, Up: true})
	k.event(kernel.ChangedLinks)
	return nil
}

// AddTUN adds a TUN device, as a tunnel process does.
func (k *Kernel) AddTUN(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.devices[name]; ok {
		return errno("device "+name, syscall.EEXIST)
	}
	k.addDevice(kernel.Link{Name: name, Kind: kernel.KindTUN}).tun = true
	k.event(kernel.ChangedLinks)
	return nil
}

// DeleteDevice deletes a device, whoever it belongs to.
func (k *Kernel) DeleteDevice(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.device(name)
	if err == nil {
		k.deleteDevice(d)
		k.event(kernel.ChangedAll)
	}
	return err
}

// SetUp sets a device up or down behind our back.
func (k *Kernel) SetUp(name string, up bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.device(name)
	if err == nil {
		k.setUp(d, up)
		k.event(kernel.ChangedAll)
	}
	return err
}
