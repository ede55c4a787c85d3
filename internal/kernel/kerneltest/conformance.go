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
		{"link down", (*suite).linkDown},
		{"next hops", (*suite).nextHops},
		{"neighbours", (*suite).neighbours},
		{"forwarding entries", (*suite).fdb},
		{"sysctls", (*suite).sysctls},
		{"filters", (*suite).filters},
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

func edgeLinks(h kernel.Host) reconcile.Edge[string, kernel.Link] { return h.Links() }

func (s *suite) links() {
	s.must(s.w.AddDevice("ext0"))
	a, b := vxlan("fxv1", 1), vxlan("fxv2", 2)
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
	// Changes in place, a change that needs a new device, and fields left open.
	a.MTU, a.Up, a.MAC = 1300, false, [6]byte{2, 1, 1, 1, 1, 1}
	b.VXLAN.VNI, b.MAC = 22, [6]byte{}
	converge(s, edgeLinks, map[string]kernel.Link{"fxv1": a, "fxv2": b})
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

func edgeRoutes(tables ...uint32) func(h kernel.Host) reconcile.Edge[kernel.RouteKey, kernel.Route] {
	return func(h kernel.Host) reconcile.Edge[kernel.RouteKey, kernel.Route] {
		return h.Routes(kernel.Protocol, tables...)
	}
}

func rk(table uint32, p string) kernel.RouteKey {
	return kernel.RouteKey{Table: table, Prefix: pfx(p), Metric: kernel.Metric}
}

func (s *suite) withDevice() {
	s.t.Helper()
	s.must(s.w.AddDevice("ext0"))
	put(s, s.w.Addresses(0), kernel.AddressKey{Device: "ext0", Prefix: pfx("10.0.0.1/24")}, kernel.Address{})
	put(s, s.w.Addresses(0), kernel.AddressKey{Device: "ext0", Prefix: pfx("2001:db8::1/64")}, kernel.Address{NoDAD: true})
}

func (s *suite) routes() {
	s.withDevice()
	want := map[kernel.RouteKey]kernel.Route{
		rk(200, "10.1.0.0/16"):              {Gateway: ip("10.0.0.2"), Device: "ext0"},
		rk(200, "0.0.0.0/0"):                {Gateway: ip("10.0.0.3"), Device: "ext0"},
		rk(200, "10.2.0.0/16"):              {Gateway: ip("fe80::2"), Device: "ext0"},
		rk(200, "10.3.0.0/16"):              {Gateway: ip("172.16.0.1"), Device: "ext0", OnLink: true},
		rk(200, "10.4.0.0/16"):              {Device: "ext0", Scope: kernel.LinkScope, Src: ip("10.0.0.1"), MTU: 1370},
		rk(200, "10.5.0.1/32"):              {Type: kernel.Local, Device: "lo"},
		rk(200, "10.5.0.2/32"):              {Type: kernel.Local},
		rk(200, "10.6.0.0/16"):              {Type: kernel.Blackhole},
		rk(200, "2001:db8:1::/48"):          {Gateway: ip("fe80::2"), Device: "ext0"},
		rk(200, "2001:db8:2::/48"):          {Gateway: ip("2001:db8::2"), Device: "ext0", MTU: 1400},
		rk(200, "2001:db8:3::/48"):          {Device: "ext0", Scope: kernel.LinkScope},
		rk(200, "2001:db8:4::1/128"):        {Type: kernel.Local},
		rk(200, "2001:db8:5::/48"):          {Type: kernel.Blackhole},
		rk(200, "::/0"):                     {Gateway: ip("fe80::3"), Device: "ext0"},
		rk(100000, "10.1.0.0/16"):           {Gateway: ip("10.0.0.2"), Device: "ext0"},
		rk(kernel.MainTable, "10.9.0.0/16"): {Device: "ext0", Scope: kernel.LinkScope},
	}
	for _, p := range []string{"0.0.0.0/0", "::/0"} {
		k := rk(200, p)
		k.Metric = kernel.BackstopMetric
		want[k] = kernel.Route{Type: kernel.UnreachableRoute}
	}
	converge(s, edgeRoutes(), want)
	converge(s, edgeRoutes(200, 100000, kernel.MainTable, 77), want)
	// Every kind into another, v4 and v6.
	want[rk(200, "10.1.0.0/16")] = kernel.Route{Type: kernel.Blackhole}
	want[rk(200, "10.6.0.0/16")] = kernel.Route{Gateway: ip("10.0.0.9"), Device: "ext0"}
	want[rk(200, "2001:db8:1::/48")] = kernel.Route{Type: kernel.Blackhole}
	want[rk(200, "2001:db8:5::/48")] = kernel.Route{Gateway: ip("fe80::9"), Device: "ext0"}
	want[rk(200, "2001:db8:2::/48")] = kernel.Route{Gateway: ip("2001:db8::3"), Device: "ext0"}
	converge(s, edgeRoutes(), want)
	// Drift: one gone, one there that nobody wants.
	e := s.w.Routes(kernel.Protocol)
	remove(s, e, rk(200, "10.2.0.0/16"))
	put(s, e, rk(200, "10.250.0.0/16"), kernel.Route{Type: kernel.Blackhole})
	converge(s, edgeRoutes(), want)
	// Created again by one who does not know it is there: replaced, being ours.
	put(s, e, rk(200, "0.0.0.0/0"), kernel.Route{Gateway: ip("10.0.0.4"), Device: "ext0"})
	if !holds(s, e, rk(200, "0.0.0.0/0"), kernel.Route{Gateway: ip("10.0.0.4"), Device: "ext0"}) {
		s.t.Error("create over our own route did not replace it")
	}
	// Somebody else's at our key, v4 and v6; and beside it with another metric.
	other := s.w.Routes(protocolStaticRoute)
	for _, p := range []string{"10.77.0.0/16", "2001:db8:77::/48"} {
		put(s, other, rk(200, p), kernel.Route{Device: "ext0"})
		refused(s, e, rk(200, p), kernel.Route{Type: kernel.Blackhole}, func() bool {
			return holds(s, other, rk(200, p), kernel.Route{Device: "ext0"})
		})
		remove(s, e, rk(200, p)) // ours is not there: no error, and theirs stays
	}
	converge(s, edgeRoutes(), map[kernel.RouteKey]kernel.Route{})
	for _, p := range []string{"10.77.0.0/16", "2001:db8:77::/48"} {
		if !holds(s, other, rk(200, p), kernel.Route{Device: "ext0"}) {
			s.t.Errorf("somebody else's route %s went", p)
		}
	}
}

func edgeNextHops(h kernel.Host) reconcile.Edge[uint32, kernel.NextHop] {
	return h.NextHops(kernel.ProtocolLinks)
}

func (s *suite) routesByNextHop() {
	s.withDevice()
	converge(s, edgeNextHops, map[uint32]kernel.NextHop{
		1: {Device: "ext0", Gateway: ip("fe80::1"), OnLink: true},
		2: {Device: "ext0", Gateway: ip("fe80::2")},
		3: {Group: "1,2"},
	})
	want := map[kernel.RouteKey]kernel.Route{
		rk(200, "10.1.0.0/16"):     {NextHopID: 1},
		rk(200, "2001:db8:1::/48"): {NextHopID: 1},
		rk(200, "10.2.0.0/16"):     {NextHopID: 3},
		rk(200, "2001:db8:2::/48"): {NextHopID: 3},
	}
	converge(s, edgeRoutes(200), want)
	for k := range want {
		want[k] = kernel.Route{NextHopID: 2}
	}
	converge(s, edgeRoutes(200), want)
	want[rk(200, "10.1.0.0/16")] = kernel.Route{Gateway: ip("fe80::2"), Device: "ext0"}
	want[rk(200, "2001:db8:1::/48")] = kernel.Route{Gateway: ip("fe80::2"), Device: "ext0"}
	converge(s, edgeRoutes(200), want)
	want[rk(200, "10.1.0.0/16")] = kernel.Route{NextHopID: 1}
	want[rk(200, "2001:db8:1::/48")] = kernel.Route{NextHopID: 1}
	converge(s, edgeRoutes(200), want)
	// A next hop goes and takes its routes along; both come back.
	remove(s, s.w.NextHops(kernel.ProtocolLinks), 1)
	e := s.w.Routes(kernel.Protocol, 200)
	if holds(s, e, rk(200, "10.1.0.0/16"), kernel.Route{NextHopID: 1}) {
		s.t.Error("the route outlived its next hop")
	}
	err := e.Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: rk(200, "10.1.0.0/16"), New: kernel.Route{NextHopID: 1}},
	})[0]
	if err == nil {
		s.t.Error("a route by a next hop that is not there was accepted")
	}
	put(s, s.w.NextHops(kernel.ProtocolLinks), 1, kernel.NextHop{Device: "ext0", Gateway: ip("fe80::1"), OnLink: true})
	converge(s, edgeRoutes(200), want)
}

// manyRoutes creates, replaces and deletes ten thousand routes, in an order that is not that of the prefixes: contiguous
// deletes hit a slow path of the kernel's trie.
func (s *suite) manyRoutes() {
	s.withDevice()
	for id := range uint32(2) {
		put(s, s.w.NextHops(kernel.ProtocolLinks), id+1,
			kernel.NextHop{Device: "ext0", Gateway: ip(fmt.Sprintf("fe80::%d", id+1)), OnLink: true})
	}
	want := map[kernel.RouteKey]kernel.Route{}
	for i := range 5000 {
		want[rk(200, fmt.Sprintf("%d.%d.%d.0/24", 11+i%50, i/256%256, i%256))] = kernel.Route{NextHopID: 1}
		want[rk(200, fmt.Sprintf("2001:db8:%x:%x::/64", i%97+1, i))] = kernel.Route{NextHopID: 1}
	}
	if len(want) != 10000 {
		s.t.Fatalf("%d keys", len(want))
	}
	converge(s, edgeRoutes(200), want)
	for k := range want {
		want[k] = kernel.Route{NextHopID: 2}
	}
	converge(s, edgeRoutes(200), want)
	converge(s, edgeRoutes(200), map[kernel.RouteKey]kernel.Route{})
}

// routeErrors: each step of a batch has its own result.
func (s *suite) routeErrors() {
	s.withDevice()
	var ops []reconcile.Op[kernel.RouteKey, kernel.Route]
	bad := map[int]bool{}
	for i := range 600 {
		r := kernel.Route{Gateway: ip("10.0.0.2"), Device: "ext0"}
		switch i {
		case 0, 300, 599:
			r.Gateway = ip("172.31.0.1") // not reachable
			bad[i] = true
		case 301:
			r.Device = "absent"
			bad[i] = true
		case 302:
			r = kernel.Route{NextHopID: 4711}
			bad[i] = true
		}
		ops = append(ops, reconcile.Op[kernel.RouteKey, kernel.Route]{
			Kind: reconcile.Create, Key: rk(200, fmt.Sprintf("20.%d.%d.0/24", i/256, i%256)), New: r,
		})
	}
	e := s.w.Routes(kernel.Protocol, 200)
	errs := e.Apply(s.ctx, ops)
	for i, err := range errs {
		if (err != nil) != bad[i] {
			s.t.Errorf("step %d (%v): error %v, want one: %v", i, ops[i], err, bad[i])
		}
		if err != nil && !strings.Contains(err.Error(), ops[i].Key.Prefix.String()) {
			s.t.Errorf("step %d: error %q does not name the prefix", i, err)
		}
	}
	have, err := e.Observe(s.ctx)
	s.must(err)
	if len(have) != 595 {
		s.t.Errorf("%d routes, want 595", len(have))
	}
	for _, k := range []kernel.RouteKey{
		{Table: 200, Prefix: netip.MustParsePrefix("10.0.0.1/8"), Metric: 1},
		{Table: 200, Prefix: pfx("2001:db8:9::/48")},
		{Prefix: pfx("10.0.0.0/8"), Metric: 1},
	} {
		err := e.Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
			{Kind: reconcile.Create, Key: k, New: kernel.Route{Type: kernel.Blackhole}},
		})[0]
		if err == nil {
			s.t.Errorf("route %v was accepted", k)
		}
	}
}

// linkDown: a link that goes down takes routes and next hops along, and one pass after it is up brings them back.
func (s *suite) linkDown() {
	s.withDevice()
	nhs := map[uint32]kernel.NextHop{1: {Device: "ext0", Gateway: ip("fe80::1"), OnLink: true}}
	routes := map[kernel.RouteKey]kernel.Route{
		rk(200, "10.1.0.0/16"):     {NextHopID: 1},
		rk(200, "2001:db8:1::/48"): {NextHopID: 1},
		rk(200, "10.2.0.0/16"):     {Gateway: ip("10.0.0.2"), Device: "ext0"},
		rk(200, "10.3.0.0/16"):     {Type: kernel.Blackhole},
	}
	converge(s, edgeNextHops, nhs)
	converge(s, edgeRoutes(200), routes)
	s.must(s.w.SetUp("ext0", false))
	have, err := s.w.Routes(kernel.Protocol, 200).Observe(s.ctx)
	s.must(err)
	if len(have) != 1 {
		s.t.Errorf("after the link went down: %v, want only the blackhole", have)
	}
	if holds(s, s.w.NextHops(kernel.ProtocolLinks), 1, nhs[1]) {
		s.t.Error("the next hop outlived its link")
	}
	errs := s.w.Routes(kernel.Protocol, 200).Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: rk(200, "10.2.0.0/16"), New: routes[rk(200, "10.2.0.0/16")]},
		{Kind: reconcile.Delete, Key: rk(200, "10.1.0.0/16")},
	})
	if errs[0] == nil || errs[1] != nil {
		s.t.Errorf("with the link down: create %v, want an error; delete of what is gone %v, want none", errs[0], errs[1])
	}
	s.must(s.w.SetUp("ext0", true))
	converge(s, edgeNextHops, nhs)
	converge(s, edgeRoutes(200), routes)
}

func (s *suite) nextHops() {
	s.withDevice()
	want := map[uint32]kernel.NextHop{
		10:         {Device: "ext0", Gateway: ip("10.0.0.2")},
		11:         {Device: "ext0", Gateway: ip("fe80::2"), OnLink: true},
		12:         {Device: "ext0"},
		13:         {Blackhole: true},
		14:         {Group: "10,12"},
		15:         {Group: "11"},
		4000000001: {Device: "ext0", Gateway: ip("2001:db8::2")},
	}
	converge(s, edgeNextHops, want)
	// Gateway, group, and single into group and back.
	want[11] = kernel.NextHop{Device: "ext0", Gateway: ip("fe80::3"), OnLink: true}
	want[14] = kernel.NextHop{Group: "10,11,12"}
	want[15] = kernel.NextHop{Device: "ext0", Gateway: ip("fe80::4")}
	converge(s, edgeNextHops, want)
	want[15] = kernel.NextHop{Group: "11,12"}
	converge(s, edgeNextHops, want)
	// A member goes: the group loses it and gets it back.
	remove(s, s.w.NextHops(kernel.ProtocolLinks), 11)
	converge(s, edgeNextHops, want)
	// Somebody else's.
	other := s.w.NextHops(protocolStaticRoute)
	theirs := kernel.NextHop{Device: "ext0", Gateway: ip("10.0.0.9")}
	put(s, other, 20, theirs)
	e := s.w.NextHops(kernel.ProtocolLinks)
	refused(s, e, 20, want[11], func() bool { return holds(s, other, 20, theirs) })
	for _, kind := range []reconcile.Kind{reconcile.Replace, reconcile.Delete} {
		err := e.Apply(s.ctx, []reconcile.Op[uint32, kernel.NextHop]{{Kind: kind, Key: 20, New: want[11]}})[0]
		var f *reconcile.ForeignError
		if !errors.As(err, &f) {
			s.t.Errorf("%s of somebody else's next hop: error %v, want a ForeignError", kind, err)
		}
	}
	converge(s, edgeNextHops, map[uint32]kernel.NextHop{})
	if !holds(s, other, 20, theirs) {
		s.t.Error("somebody else's next hop went")
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
		Guards: "ext0=10.0.0.1,ext0=2001:db8::1,ext1=10.0.0.1",
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
