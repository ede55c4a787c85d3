// Package kerneltest is a model of a kernel: the same edges as kernel/linux on maps instead of netlink, with what matters
// of the real one's behaviour (routes go when their link goes down or their next-hop object is deleted, an address brings a
// local route, exclusive creates). Conformance is the suite that both pass; so what is tested on the model holds for
// the real thing as far as the suite goes.
package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Kernel is a model kernel. Its zero value is not usable; see New.
type Kernel struct {
	mu       sync.Mutex
	features kernel.Features

	devices    map[string]*device
	nextIndex  int
	addresses  map[kernel.AddressKey]address
	routes     map[kernel.RouteKey]kernel.Route
	bases      map[kernel.RouteKey]kernel.Route // see basic
	rules      []rule
	nexthops   map[uint32]kernel.NextHop
	neighbours map[kernel.NeighbourKey]kernel.Neighbour
	fdb        map[kernel.FDBKey]kernel.FDBEntry
	sysctls    map[string]string
	tables     map[string]table
	wireguards map[string]kernel.WireGuard

	calls    int
	failAt   int
	failErr  error
	failNext map[string]error
	applied  []string
	watchers map[*func(kernel.Changed)]struct{}
}

type device struct {
	kernel.Link
	index int
	tun   bool
}

func (d *device) ours() bool { return strings.HasPrefix(d.Alias, kernel.AliasPrefix) }

type address struct {
	kernel.Address
	protocol uint8
}

type rule struct {
	key      kernel.RuleKey
	rule     kernel.Rule
	protocol uint8
}

type table struct {
	filter  kernel.Filter
	foreign bool
	broken  bool
}

var _ kernel.Host = (*Kernel)(nil)

// Owners that the model's kernel and administrator use.
const (
	protocolKernel = 2
	protocolStatic = 4
)

// New returns a kernel with lo up, the usual three rules per family, and every feature.
func New() *Kernel {
	k := &Kernel{
		features: kernel.Features{
			VRF: true, WireGuard: true, NextHops: true, RuleProtocol: true, AddressProtocol: true, Release: "6.0.0-model",
		},
		devices: map[string]*device{}, addresses: map[kernel.AddressKey]address{}, routes: map[kernel.RouteKey]kernel.Route{}, bases: map[kernel.RouteKey]kernel.Route{},
		nexthops: map[uint32]kernel.NextHop{}, neighbours: map[kernel.NeighbourKey]kernel.Neighbour{},
		fdb: map[kernel.FDBKey]kernel.FDBEntry{}, tables: map[string]table{}, wireguards: map[string]kernel.WireGuard{},
		sysctls: map[string]string{
			"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0", "net.ipv4.nexthop_compat_mode": "1",
			"net.ipv4.fib_multipath_hash_policy": "0", "net.ipv6.fib_multipath_hash_policy": "0",
			"net.ipv4.fwmark_reflect": "0", "net.ipv6.fwmark_reflect": "0", "net.ipv4.tcp_fwmark_accept": "0",
			"net.ipv4.tcp_l3mdev_accept": "0", "net.ipv4.udp_l3mdev_accept": "0", "net.ipv4.conf.all.rp_filter": "0",
		},
		failNext: map[string]error{}, watchers: map[*func(kernel.Changed)]struct{}{},
	}
	k.addDevice(kernel.Link{Name: "lo", MTU: 65536, Up: true})
	for _, v6 := range []bool{false, true} {
		k.rules = append(k.rules,
			rule{kernel.RuleKey{IPv6: v6}, kernel.Rule{Table: kernel.LocalTable}, protocolKernel},
			rule{kernel.RuleKey{IPv6: v6, Priority: 32766}, kernel.Rule{Table: kernel.MainTable}, protocolKernel})
	}
	return k
}

// Without takes features away, as CONFIG_NET_VRF is not set everywhere.
func (k *Kernel) Without(change func(f *kernel.Features)) *Kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.features)
	return k
}

// Features implements kernel.Host.
func (k *Kernel) Features() kernel.Features {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.features
}

// FailNext makes the next call of a kind fail: "observe" or "apply", a blank, and the edge in lower case ("apply routes").
// Each step of an Apply is a call.
func (k *Kernel) FailNext(kind string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failNext[kind] = err
}

// FailNth makes the n-th call from now on fail, whatever it is; n counts from 1. Trying every n until Failed says false
// runs every error path there is.
func (k *Kernel) FailNth(n int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failAt, k.failErr = k.calls+n, err
}

// Failed reports whether the failure asked for with FailNth has happened.
func (k *Kernel) Failed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failAt != 0 && k.calls >= k.failAt
}

// Calls is the number of calls so far.
func (k *Kernel) Calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

// Applied returns the steps carried out so far, printed, in order.
func (k *Kernel) Applied() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.applied...)
}

// call counts one and returns the failure it should have. k.mu is held.
func (k *Kernel) call(kind string) error {
	k.calls++
	if k.calls == k.failAt {
		return k.failErr
	}
	if err, ok := k.failNext[kind]; ok {
		delete(k.failNext, kind)
		return err
	}
	return nil
}

// edge is the common part of all edges of the model.
type edge[K comparable, V any] struct {
	k       *Kernel
	name    string
	observe func() (map[K]V, error)
	apply   func(op reconcile.Op[K, V]) error
	equal   func(k K, want, have V) bool
	// rank orders the steps of one Apply, where the real edge does.
	rank func(op reconcile.Op[K, V]) int
}

// Equal implements reconcile.Equaler.
func (e *edge[K, V]) Equal(k K, want, have V) bool { return e.equal(k, want, have) }

// Observe implements reconcile.Edge.
func (e *edge[K, V]) Observe(ctx context.Context) (map[K]V, error) {
	e.k.mu.Lock()
	defer e.k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.k.call("observe " + e.name); err != nil {
		return nil, err
	}
	return e.observe()
}

// Apply implements reconcile.Edge.
func (e *edge[K, V]) Apply(ctx context.Context, ops []reconcile.Op[K, V]) []error {
	e.k.mu.Lock()
	defer e.k.mu.Unlock()
	errs := make([]error, len(ops))
	for rank := range 4 {
		for i, op := range ops {
			if e.rank != nil && e.rank(op) != rank || e.rank == nil && rank != 0 {
				continue
			}
			if errs[i] = ctx.Err(); errs[i] != nil {
				continue
			}
			if errs[i] = e.k.call("apply " + e.name); errs[i] != nil {
				continue
			}
			if errs[i] = e.apply(op); errs[i] == nil {
				e.k.applied = append(e.k.applied, e.name+": "+op.String())
			}
		}
	}
	return errs
}

func equals[K, V comparable](_ K, want, have V) bool { return want == have }

// foreign is the error about an object that is not ours.
func foreign(what, owner string) error {
	return &reconcile.ForeignError{What: what, Owner: owner, Mend: "remove it"}
}

// errno is a kernel error with its object.
func errno(what string, e syscall.Errno) error { return fmt.Errorf("%s: %w", what, e) }

func (k *Kernel) addDevice(l kernel.Link) *device {
	k.nextIndex++
	if l.MTU == 0 {
		l.MTU = 1500
	}
	if l.MAC == ([6]byte{}) && (l.Kind == kernel.KindVXLAN || l.Kind == kernel.KindDirect || l.Kind == kernel.KindVRF || l.Kind == "") {
		l.MAC = [6]byte{2, 0, 0, 0, byte(k.nextIndex >> 8), byte(k.nextIndex)}
	}
	d := &device{Link: l, index: k.nextIndex}
	k.devices[l.Name] = d
	return d
}

func (k *Kernel) device(name string) (*device, error) {
	if d, ok := k.devices[name]; ok {
		return d, nil
	}
	return nil, fmt.Errorf("no device %q: %w", name, os.ErrNotExist)
}

// Watch implements kernel.Host. wake must not call the kernel back.
func (k *Kernel) Watch(ctx context.Context, wake func(kernel.Changed)) error {
	k.mu.Lock()
	k.watchers[&wake] = struct{}{}
	k.mu.Unlock()
	wake(kernel.ChangedAll)
	<-ctx.Done()
	k.mu.Lock()
	delete(k.watchers, &wake)
	k.mu.Unlock()
	return nil
}

// LoseEvents wakes every watcher for everything, as ENOBUFS does.
func (k *Kernel) LoseEvents() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.event(kernel.ChangedAll)
}

// event tells the watchers what somebody else changed. k.mu is held.
func (k *Kernel) event(c kernel.Changed) {
	for w := range k.watchers {
		(*w)(c)
	}
}

// contains reports whether a is a neighbour on the device: by an address there, or by a connected route in the table of the
// route that is to lead to it, where the kernel looks first.
func (k *Kernel) contains(dev string, a netip.Addr, table uint32) bool {
	for key, r := range k.bases {
		if key.Table == table && r.Type == kernel.Unicast && r.Device == dev && key.Prefix.Contains(a) {
			return true
		}
	}
	if a.IsLinkLocalUnicast() && a.Is6() {
		return true
	}
	for key, x := range k.addresses {
		if key.Device == dev && !x.NoPrefixRoute && key.Prefix.Masked().Contains(a) {
			return true
		}
	}
	return false
}
