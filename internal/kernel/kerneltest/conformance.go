package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// World is a host together with the hands of an administrator who changes it behind our back.
type World interface {
	kernel.Host
	// AddDevice adds a device that is not ours, up.
	AddDevice(name string) error
	// AddTUN adds a TUN device without alias, as a tunnel process does.
	AddTUN(name string) error
	DeleteDevice(name string) error
	SetUp(name string, up bool) error
	// AddTable adds an nft table of somebody else; BreakTable deletes a rule of one of ours.
	AddTable(name string) error
	BreakTable(name string) error
	HasTable(name string) (bool, error)
	// FlushRuleset deletes every nft table.
	FlushRuleset() error
	// AddVRF adds a VRF device of somebody else.
	AddVRF(name string, table uint32) error
}

// protocolStaticRoute owns what the suite's administrator adds.
const protocolStaticRoute = protocolStatic

// Conformance runs the suite. open returns a fresh world; reopen returns a new host on the same kernel, as a daemon that was
// killed and started again would.
func Conformance(t *testing.T, open func(t *testing.T) World, reopen func(t *testing.T, w World) kernel.Host) {
	for _, tt := range []struct {
		name string
		test func(s *suite)
	}{
		{"links", (*suite).links},
		{"vrf", (*suite).vrf},
		{"tun", (*suite).tun},
		{"ports", (*suite).ports},
		{"addresses", (*suite).addresses},
		{"rules", (*suite).rules},
		{"local rule", (*suite).localRule},
		{"routes", (*suite).routes},
		{"routes by next hop", (*suite).routesByNextHop},
		{"ten thousand routes", (*suite).manyRoutes},
		{"route errors", (*suite).routeErrors},
		{"sources", (*suite).sources},
		{"strangers", (*suite).strangers},
		{"link down", (*suite).linkDown},
		{"next hops", (*suite).nextHops},
		{"neighbours", (*suite).neighbours},
		{"forwarding entries", (*suite).fdb},
		{"sysctls", (*suite).sysctls},
		{"filters", (*suite).filters},
		{"flushed ruleset", (*suite).flushedRuleset},
		{"canceled", (*suite).canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := open(t)
			tt.test(&suite{t: t, w: w, ctx: t.Context(), reopen: func() kernel.Host { return reopen(t, w) }})
		})
	}
}

type suite struct {
	t      *testing.T
	w      World
	ctx    context.Context
	reopen func() kernel.Host
}

func (s *suite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// converge makes the edge hold want with passes of a loop, and checks what every edge owes: the first pass succeeds, the
// second has nothing to do, and a host opened anew sees the same.
func converge[K comparable, V any](s *suite, edge func(kernel.Host) reconcile.Edge[K, V], want map[K]V) {
	s.t.Helper()
	l := reconcile.NewLoop(reconcile.Config[K, V]{
		Name: "test", Edge: edge(s.w),
		Want: func() (map[K]V, bool) { return maps.Clone(want), true },
	})
	s.must(l.Pass(s.ctx))
	for name, h := range map[string]kernel.Host{"same host": s.w, "reopened": s.reopen()} {
		again := reconcile.NewLoop(reconcile.Config[K, V]{
			Name: "test", Edge: edge(h),
			Want: func() (map[K]V, bool) { return maps.Clone(want), true },
		})
		ops, err := again.Plan(s.ctx)
		s.must(err)
		for i, op := range ops {
			if i < 5 {
				s.t.Errorf("%s: left to do after a pass: %v", name, op)
			}
		}
		if len(ops) > 0 {
			s.t.FailNow()
		}
	}
}

// refused checks that the edge finds somebody else's object at k and leaves it; untouched says whether it still stands.
func refused[K comparable, V any](s *suite, e reconcile.Edge[K, V], k K, v V, untouched func() bool) {
	s.t.Helper()
	err := e.Apply(s.ctx, []reconcile.Op[K, V]{{Kind: reconcile.Create, Key: k, New: v}})[0]
	var f *reconcile.ForeignError
	if !errors.As(err, &f) {
		s.t.Errorf("create %v where somebody else's stands: error %v, want a ForeignError", k, err)
	} else if f.What == "" || f.Owner == "" || f.Mend == "" {
		s.t.Errorf("the error does not say what, whose and how to mend: %+v", f)
	}
	if !untouched() {
		s.t.Errorf("somebody else's %v was touched", k)
	}
}

// holds checks what an edge observes.
func holds[K comparable, V any](s *suite, e reconcile.Edge[K, V], k K, want V) bool {
	s.t.Helper()
	have, err := e.Observe(s.ctx)
	s.must(err)
	v, ok := have[k]
	return ok && e.(reconcile.Equaler[K, V]).Equal(k, want, v)
}

func apply[K comparable, V any](s *suite, e reconcile.Edge[K, V], ops ...reconcile.Op[K, V]) {
	s.t.Helper()
	s.must(errors.Join(e.Apply(s.ctx, ops)...))
}

func put[K comparable, V any](s *suite, e reconcile.Edge[K, V], k K, v V) {
	s.t.Helper()
	apply(s, e, reconcile.Op[K, V]{Kind: reconcile.Create, Key: k, New: v})
}

func remove[K comparable, V any](s *suite, e reconcile.Edge[K, V], k K) {
	s.t.Helper()
	apply(s, e, reconcile.Op[K, V]{Kind: reconcile.Delete, Key: k})
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func vxlan(name string, vni uint32) kernel.Link {
	return kernel.Link{
		Name: name, Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + name, MTU: 1370, Up: true,
		VXLAN: kernel.VXLAN{VNI: vni, Local: ip("192.0.2.1"), Port: 4789}, MAC: [6]byte{2, 0, 0, 0, 9, byte(vni)},
	}
}

// direct has the MTU that such a tunnel has on a path of 1500 bytes.
func direct(name string, vni uint32, local, remote string) kernel.Link {
	l := vxlan(name, vni)
	l.Kind, l.VXLAN = kernel.KindDirect, kernel.VXLAN{VNI: vni, Local: ip(local), Remote: ip(remote), Port: 4790}
	return l
}

func edgeLinks(h kernel.Host) reconcile.Edge[string, kernel.Link] { return h.Links() }

func (s *suite) links() {
	s.must(s.w.AddDevice("ext0"))
	a, b := vxlan("fxv1", 1), vxlan("fxv2", 2)
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
	// Changes in place, a change that needs a new device, and fields left open.
	a.MTU, a.Up, a.MAC = 1300, false, [6]byte{2, 1, 1, 1, 1, 1}
	b.VXLAN.VNI, b.MAC = 22, [6]byte{}
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
	for _, spread := range []bool{true, false, true} {
		a.Spread = spread
		converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
	}
	// Drift: somebody sets it down, somebody deletes it.
	b.MTU = 1370
	s.must(s.w.SetUp("fxv2", false))
	s.must(s.w.DeleteDevice("fxv1"))
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
	// An edge of other kinds sees neither.
	others, err := s.w.Links(kernel.KindWireGuard, kernel.KindTUN).Observe(s.ctx)
	s.must(err)
	if len(others) != 0 {
		s.t.Errorf("an edge for tunnels sees %v", others)
	}
	ports := s.w.Ports(func() []string { return []string{"ext0"} })
	refused(s, s.w.Links(), "ext0", kernel.Link{Name: "ext0", Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + "x", VXLAN: a.VXLAN},
		func() bool { return holds(s, ports, "ext0", kernel.Port{Name: "ext0"}) })
	// A direct tunnel is no VXLAN device of the VRFs' kind, though the kernel takes it for one.
	d := direct("fxwd1", 77, "192.0.2.1", "192.0.2.9")
	d6 := direct("fxwd2", 78, "2001:db8::1", "2001:db8::9")
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxwd1": d, "fxwd2": d6})
	for kind, want := range map[kernel.LinkKind]int{kernel.KindVXLAN: 1, kernel.KindDirect: 2} {
		if have, err := s.w.Links(kind).Observe(s.ctx); err != nil || len(have) != want {
			s.t.Errorf("links of kind %s: %v, error %v, want %d", kind, have, err, want)
		}
	}
	// The far end moves: it cannot be changed on a living device.
	d.VXLAN.Remote = ip("192.0.2.10")
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxwd1": d})
	for name, bad := range map[string]kernel.Link{"direct without a remote": d, "VXLAN with a remote": a} {
		bad.Name = "fxwbad"
		bad.VXLAN.Remote = netip.Addr{}
		if bad.Kind == kernel.KindVXLAN {
			bad.VXLAN.Remote = ip("192.0.2.9")
		}
		if errs := s.w.Links().Apply(s.ctx, []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: bad.Name, New: bad}}); errs[0] == nil {
			s.t.Errorf("%s was made", name)
		}
	}
	v6 := vxlan("fxv3", 3)
	v6.VXLAN.Local = ip("2001:db8::1")
	converge(s, edgeLinks, map[string]kernel.Link{"fxv3": v6})
	converge(s, edgeLinks, map[string]kernel.Link{})
}

func (s *suite) vrf() {
	if !s.w.Features().VRF {
		s.t.Skip("no CONFIG_NET_VRF")
	}
	s.must(s.w.AddDevice("ext0"))
	vrf := kernel.Link{Name: "fxr200", Kind: kernel.KindVRF, Alias: kernel.AliasPrefix + "CORE", Up: true, Table: 200}
	v := vxlan("fxv1", 1)
	v.Master = "fxr200"
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": v, "fxr200": vrf})
	edgePorts := func(h kernel.Host) reconcile.Edge[string, kernel.Port] {
		return h.Ports(func() []string { return nil })
	}
	converge(s, func(h kernel.Host) reconcile.Edge[string, kernel.Port] {
		return h.Ports(func() []string { return []string{"ext0"} })
	}, map[string]kernel.Port{"ext0": {Name: "ext0", Master: "fxr200", MTU: 1400}})
	// No longer named: the device stands in our VRF, so it is released.
	converge(s, edgePorts, map[string]kernel.Port{})
	vrf.Table = 201
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": v, "fxr200": vrf})
}

func (s *suite) tun() {
	tun := kernel.Link{Name: "fxw1", Kind: kernel.KindTUN, Alias: kernel.AliasPrefix + "a-b", MTU: 1420, Up: true}
	err := s.w.Links().Apply(s.ctx, []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: "fxw1", New: tun}})[0]
	if !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("a TUN device nobody has made: error %v, want os.ErrNotExist", err)
	}
	s.must(s.w.AddTUN("fxw1"))
	converge(s, edgeLinks, map[string]kernel.Link{"fxw1": tun})
	tun.MTU = 1300
	converge(s, edgeLinks, map[string]kernel.Link{"fxw1": tun})
	converge(s, edgeLinks, map[string]kernel.Link{})
	s.must(s.w.SetUp("fxw1", true)) // it is still there: the tunnel process owns it
}

func (s *suite) ports() {
	s.must(s.w.AddDevice("ext0"))
	named := func(h kernel.Host) reconcile.Edge[string, kernel.Port] {
		return h.Ports(func() []string { return []string{"ext0", "absent"} })
	}
	converge(s, named, map[string]kernel.Port{"ext0": {Name: "ext0", MTU: 1400}})
	converge(s, named, map[string]kernel.Port{"ext0": {Name: "ext0"}})
	if !holds(s, named(s.w), "ext0", kernel.Port{Name: "ext0", MTU: 1400}) {
		s.t.Error("an MTU of 0 did not leave what was there")
	}
	err := named(s.w).Apply(s.ctx, []reconcile.Op[string, kernel.Port]{
		{Kind: reconcile.Create, Key: "absent", New: kernel.Port{Name: "absent"}},
	})[0]
	if !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("absent device: error %v, want os.ErrNotExist", err)
	}
}

func (s *suite) addresses() {
	s.must(s.w.AddDevice("ext0"))
	edge := func(h kernel.Host) reconcile.Edge[kernel.AddressKey, kernel.Address] {
		return h.Addresses(kernel.Protocol)
	}
	key := func(dev, p string) kernel.AddressKey { return kernel.AddressKey{Device: dev, Prefix: pfx(p)} }
	want := map[kernel.AddressKey]kernel.Address{
		key("lo", "192.0.2.1/32"):      {},
		key("lo", "2001:db8::1/128"):   {NoDAD: true},
		key("ext0", "10.1.0.1/24"):     {NoPrefixRoute: true, NoDAD: true},
		key("ext0", "10.2.0.1/24"):     {},
		key("ext0", "fe80::77/64"):     {NoDAD: true},
		key("ext0", "2001:db8:1::/64"): {NoPrefixRoute: true, NoDAD: true},
	}
	delete(want, key("ext0", "2001:db8:1::/64")) // the subnet-router anycast address is no address of a router's own
	want[key("ext0", "2001:db8:1::1/64")] = kernel.Address{NoPrefixRoute: true, NoDAD: true}
	converge(s, edge, want)
	routes := s.w.Routes(protocolKernel, kernel.MainTable, kernel.LocalTable)
	connected := func(p string) bool {
		have, err := routes.Observe(s.ctx)
		s.must(err)
		for k := range have {
			if k.Table == kernel.MainTable && k.Prefix == pfx(p) {
				return true
			}
		}
		return false
	}
	if connected("10.1.0.0/24") || connected("2001:db8:1::/64") {
		s.t.Error("NoPrefixRoute has a connected route")
	}
	if !connected("10.2.0.0/24") {
		s.t.Error("no connected route for an ordinary address")
	}
	// In place and back.
	want[key("ext0", "10.1.0.1/24")] = kernel.Address{}
	want[key("ext0", "2001:db8:1::1/64")] = kernel.Address{NoDAD: true}
	converge(s, edge, want)
	// Somebody else's.
	other := s.w.Addresses(0)
	put(s, other, key("ext0", "10.9.0.1/24"), kernel.Address{})
	refused(s, s.w.Addresses(kernel.Protocol), key("ext0", "10.9.0.1/24"), kernel.Address{}, func() bool {
		return holds(s, other, key("ext0", "10.9.0.1/24"), kernel.Address{})
	})
	// The other daemon's are not this one's.
	put(s, s.w.Addresses(kernel.ProtocolLinks), key("lo", "192.0.2.9/32"), kernel.Address{})
	converge(s, edge, map[kernel.AddressKey]kernel.Address{})
	if !holds(s, s.w.Addresses(kernel.ProtocolLinks), key("lo", "192.0.2.9/32"), kernel.Address{}) {
		s.t.Error("the other daemon's address went")
	}
	if !holds(s, other, key("ext0", "10.9.0.1/24"), kernel.Address{}) {
		s.t.Error("somebody else's address went")
	}
	// A delete of what went with its device is no error.
	s.must(s.w.DeleteDevice("ext0"))
	remove(s, s.w.Addresses(kernel.Protocol), key("ext0", "10.2.0.1/24"))
}

func (s *suite) rules() {
	edge := func(h kernel.Host) reconcile.Edge[kernel.RuleKey, kernel.Rule] { return h.Rules(kernel.Protocol) }
	want := map[kernel.RuleKey]kernel.Rule{}
	for _, v6 := range []bool{false, true} {
		src, dst := pfx("10.0.0.0/8"), pfx("192.0.2.0/24")
		if v6 {
			src, dst = pfx("2001:db8::/32"), pfx("2001:db8:1::/48")
		}
		want[kernel.RuleKey{IPv6: v6, Priority: 100, Iif: "nowhere0"}] = kernel.Rule{Table: 200}
		want[kernel.RuleKey{IPv6: v6, Priority: 101, Iif: "nowhere0"}] = kernel.Rule{Action: kernel.RuleUnreachable}
		want[kernel.RuleKey{IPv6: v6, Priority: 100, Oif: "nowhere0"}] = kernel.Rule{Table: 200}
		want[kernel.RuleKey{IPv6: v6, Priority: 102, Mark: 200, Mask: 0xffffffff}] = kernel.Rule{Table: 200}
		want[kernel.RuleKey{IPv6: v6, Priority: 103, Src: src}] = kernel.Rule{Table: 100000}
		want[kernel.RuleKey{IPv6: v6, Priority: 90, Iif: "lo", Dst: dst}] = kernel.Rule{Table: kernel.MainTable}
		want[kernel.RuleKey{IPv6: v6, Priority: 1000}] = kernel.Rule{L3MDEV: true}
	}
	if !s.w.Features().VRF {
		for k, r := range want {
			if r.L3MDEV { // the kernel knows no l3mdev rules without VRF devices
				delete(want, k)
			}
		}
	}
	converge(s, edge, want)
	k := kernel.RuleKey{Priority: 100, Iif: "nowhere0"}
	want[k] = kernel.Rule{Table: 201}
	converge(s, edge, want)
	want[k] = kernel.Rule{Action: kernel.RuleUnreachable}
	converge(s, edge, want)
	// Drift.
	remove(s, s.w.Rules(kernel.Protocol), k)
	converge(s, edge, want)
	// Somebody else's, with another table at our key, and identical.
	other := s.w.Rules(protocolStaticRoute)
	ok := kernel.RuleKey{Priority: 50, Iif: "other0"}
	put(s, other, ok, kernel.Rule{Table: 7})
	for _, table := range []uint32{7, 8} {
		refused(s, s.w.Rules(kernel.Protocol), ok, kernel.Rule{Table: table}, func() bool {
			return holds(s, other, ok, kernel.Rule{Table: 7})
		})
	}
	converge(s, edge, map[kernel.RuleKey]kernel.Rule{})
	if !holds(s, other, ok, kernel.Rule{Table: 7}) {
		s.t.Error("somebody else's rule went")
	}
}

func (s *suite) localRule() {
	at := func() (prefs []string) {
		have, err := s.w.Rules(protocolKernel).Observe(s.ctx)
		s.must(err)
		for k, r := range have {
			if r.Table == kernel.LocalTable {
				prefs = append(prefs, fmt.Sprint(k.IPv6, k.Priority))
			}
		}
		return prefs
	}
	for _, pref := range []uint32{32700, 32700, 0} {
		s.must(s.w.MoveLocalRule(s.ctx, pref))
		got := at()
		for _, v6 := range []bool{false, true} {
			if want := fmt.Sprint(v6, pref); len(got) != 2 || got[0] != want && got[1] != want {
				s.t.Errorf("local rules at %v, want one per family at %d", got, pref)
			}
		}
	}
}

// withVXLAN makes a VXLAN device of ours and one that is not.
func (s *suite) withVXLAN() {
	s.t.Helper()
	s.must(s.w.AddDevice("ext0"))
	put(s, s.w.Links(), "fxv1", vxlan("fxv1", 1))
}

func (s *suite) neighbours() {
	s.withVXLAN()
	edge := func(h kernel.Host) reconcile.Edge[kernel.NeighbourKey, kernel.Neighbour] { return h.Neighbours() }
	want := map[kernel.NeighbourKey]kernel.Neighbour{
		{Device: "fxv1", Addr: ip("192.0.2.2")}: {MAC: [6]byte{2, 0, 0, 0, 0, 2}},
		{Device: "fxv1", Addr: ip("fe80::2")}:   {MAC: [6]byte{2, 0, 0, 0, 0, 2}},
	}
	converge(s, edge, want)
	k := kernel.NeighbourKey{Device: "fxv1", Addr: ip("fe80::2")}
	want[k] = kernel.Neighbour{MAC: [6]byte{2, 0, 0, 0, 0, 3}}
	converge(s, edge, want)
	remove(s, s.w.Neighbours(), k)
	converge(s, edge, want)
	foreign := kernel.NeighbourKey{Device: "ext0", Addr: ip("10.0.0.2")}
	refused(s, s.w.Neighbours(), foreign, want[k], func() bool { return true })
	converge(s, edge, map[kernel.NeighbourKey]kernel.Neighbour{})
	s.must(s.w.DeleteDevice("fxv1"))
	remove(s, s.w.Neighbours(), k)
	// Those on direct tunnels have another owner: each edge sees and makes its own alone.
	put(s, s.w.Links(), "fxv1", vxlan("fxv1", 1))
	put(s, s.w.Links(), "fxwd1", direct("fxwd1", 77, "192.0.2.1", "192.0.2.9"))
	onDirect := func(h kernel.Host) reconcile.Edge[kernel.NeighbourKey, kernel.Neighbour] {
		return h.Neighbours(kernel.KindDirect)
	}
	d := kernel.NeighbourKey{Device: "fxwd1", Addr: ip("fe80::9")}
	converge(s, edge, map[kernel.NeighbourKey]kernel.Neighbour{k: want[k]})
	converge(s, onDirect, map[kernel.NeighbourKey]kernel.Neighbour{d: want[k]})
	converge(s, edge, map[kernel.NeighbourKey]kernel.Neighbour{})
	refused(s, s.w.Neighbours(), d, want[k], func() bool { return holds(s, s.w.Neighbours(kernel.KindDirect), d, want[k]) })
	refused(s, s.w.Neighbours(kernel.KindDirect), k, want[k], func() bool { return true })
	// What the kernel itself says where everything goes is no forwarding entry of ours.
	if have, err := s.w.FDB().Observe(s.ctx); err != nil || len(have) != 0 {
		s.t.Errorf("forwarding entries %v, error %v", have, err)
	}
}

func (s *suite) fdb() {
	s.withVXLAN()
	edge := func(h kernel.Host) reconcile.Edge[kernel.FDBKey, kernel.FDBEntry] { return h.FDB() }
	k := kernel.FDBKey{Device: "fxv1", MAC: [6]byte{2, 0, 0, 0, 0, 2}}
	want := map[kernel.FDBKey]kernel.FDBEntry{
		k: {Dst: ip("192.0.2.2")},
		{Device: "fxv1", MAC: [6]byte{2, 0, 0, 0, 0, 3}}: {Dst: ip("192.0.2.3")},
	}
	converge(s, edge, want)
	want[k] = kernel.FDBEntry{Dst: ip("192.0.2.4")}
	converge(s, edge, want)
	remove(s, s.w.FDB(), k)
	converge(s, edge, want)
	refused(s, s.w.FDB(), kernel.FDBKey{Device: "ext0", MAC: k.MAC}, want[k], func() bool { return true })
	converge(s, edge, map[kernel.FDBKey]kernel.FDBEntry{})
	s.must(s.w.DeleteDevice("fxv1"))
	remove(s, s.w.FDB(), k)
}

func (s *suite) sysctls() {
	keys := func() []string { return []string{"net.ipv4.ip_forward", "net.ipv4.no_such_key"} }
	edge := func(h kernel.Host) reconcile.Edge[string, string] { return h.Sysctls(keys) }
	for _, v := range []string{"1", "0", "1"} {
		converge(s, edge, map[string]string{"net.ipv4.ip_forward": v})
	}
	err := s.w.Sysctls(keys).Apply(s.ctx, []reconcile.Op[string, string]{{Kind: reconcile.Create, Key: "net.ipv4.no_such_key", New: "1"}})[0]
	if !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("a key the kernel has not: error %v, want os.ErrNotExist", err)
	}
	remove(s, s.w.Sysctls(keys), "net.ipv4.ip_forward")
	if !holds(s, s.w.Sysctls(keys), "net.ipv4.ip_forward", "1") {
		s.t.Error("a delete changed the value")
	}
}

func (s *suite) filters() {
	edge := func(h kernel.Host) reconcile.Edge[string, kernel.Filter] { return h.Filters("fabric") }
	f := kernel.Filter{
		Comment: kernel.AliasPrefix + "gw-1", MSS4: 1300, MSS6: 1280, ClampDevices: "ext0,fxv1",
		VXLANPort: 4789, VXLANDevices: "fxw1,fxw2", Marks: "ext0=200,ext1=201",
		DirectPort: 4790, DirectSources: "192.0.2.9,2001:db8::9",
	}
	converge(s, edge, map[string]kernel.Filter{"fabric": f})
	var many []string
	for i := range 300 {
		many = append(many, fmt.Sprintf("fxw%08d", i))
	}
	f.VXLANDevices = strings.Join(many, ",")
	converge(s, edge, map[string]kernel.Filter{"fabric": f})
	s.must(s.w.BreakTable("fabric"))
	if holds(s, s.w.Filters("fabric"), "fabric", f) {
		s.t.Error("a deleted rule was not seen")
	}
	converge(s, edge, map[string]kernel.Filter{"fabric": f})
	converge(s, edge, map[string]kernel.Filter{"fabric": {Comment: kernel.AliasPrefix + "gw", VXLANPort: 4789}})
	converge(s, edge, map[string]kernel.Filter{"fabric": {Comment: kernel.AliasPrefix + "gw", DirectPort: 4790, DirectSources: "192.0.2.9,192.0.2.10"}})
	converge(s, edge, map[string]kernel.Filter{"fabric": {Comment: kernel.AliasPrefix + "gw"}})
	s.must(s.w.AddTable("theirs"))
	theirs := func() bool {
		ok, err := s.w.HasTable("theirs")
		s.must(err)
		return ok
	}
	refused(s, s.w.Filters("theirs"), "theirs", f, theirs)
	converge(s, edge, map[string]kernel.Filter{})
	if !theirs() {
		s.t.Error("somebody else's table went")
	}
	if there, err := s.w.HasTable("fabric"); err != nil || there {
		s.t.Errorf("the table is still there (%v, %v)", there, err)
	}
	err := s.w.Filters("fabric").Apply(s.ctx, []reconcile.Op[string, kernel.Filter]{{Kind: reconcile.Create, Key: "fabric"}})[0]
	if err == nil {
		s.t.Error("a table without our comment was accepted")
	}
}

// flushedRuleset: what Watch says about it comes at once.
func (s *suite) flushedRuleset() {
	want := map[string]kernel.Filter{"fabric": {Comment: kernel.AliasPrefix + "gw", VXLANPort: 4789}}
	edge := func(h kernel.Host) reconcile.Edge[string, kernel.Filter] { return h.Filters("fabric") }
	converge(s, edge, want)
	ctx, cancel := context.WithCancel(s.ctx)
	said, done := make(chan kernel.Changed, 100), make(chan error, 1)
	go func() { done <- s.w.Watch(ctx, func(c kernel.Changed) { said <- c }) }()
	if c := <-said; c != kernel.ChangedAll {
		s.t.Errorf("Watch begins with %b, want all (%b)", c, kernel.ChangedAll)
	}
	expect := func(what string) {
		s.t.Helper()
		select {
		case c := <-said:
			if c != kernel.ChangedFilters {
				s.t.Errorf("%s: Watch said %b, want filters (%b)", what, c, kernel.ChangedFilters)
			}
		case <-time.After(2 * time.Second):
			s.t.Errorf("%s: Watch said nothing", what)
		}
	}
	s.must(s.w.FlushRuleset())
	expect("flush ruleset")
	if there, err := s.w.HasTable("fabric"); err != nil || there {
		s.t.Errorf("after the flush the table is there: %v, %v", there, err)
	}
	converge(s, edge, want)
	s.must(s.w.AddTable("theirs"))
	expect("somebody else's table")
	cancel()
	s.must(<-done)
	select {
	case c := <-said:
		s.t.Errorf("Watch said %b once more: our own change should be silent", c)
	default:
	}
}

func (s *suite) canceled() {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.w.Routes(kernel.Protocol).Observe(ctx); !errors.Is(err, context.Canceled) {
		s.t.Errorf("observe: %v", err)
	}
	err := s.w.Routes(kernel.Protocol).Apply(ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: rk(200, "10.0.0.0/8"), New: kernel.Route{Type: kernel.Blackhole}},
	})[0]
	if !errors.Is(err, context.Canceled) {
		s.t.Errorf("apply: %v", err)
	}
}
