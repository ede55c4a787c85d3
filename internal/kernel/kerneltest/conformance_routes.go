package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

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
	// A gateway on a network that only the VRF's own table knows (rules mode) is found from that table and from no other.
	for _, c := range []struct{ address, network, gateway, remote string }{
		{"172.20.0.1/24", "172.20.0.0/24", "172.20.0.9", "10.78.0.0/16"},
		{"2001:db8:20::1/64", "2001:db8:20::/64", "2001:db8:20::9", "2001:db8:78::/48"},
	} {
		put(s, s.w.Addresses(kernel.Protocol), kernel.AddressKey{Device: "ext0", Prefix: pfx(c.address)}, kernel.Address{NoPrefixRoute: true, NoDAD: true})
		put(s, e, rk(300, c.network), kernel.Route{Device: "ext0", Scope: kernel.LinkScope})
		put(s, e, rk(300, c.remote), kernel.Route{Gateway: ip(c.gateway), Device: "ext0"})
		errs := e.Apply(s.t.Context(), []reconcile.Op[kernel.RouteKey, kernel.Route]{
			{Kind: reconcile.Create, Key: rk(301, c.remote), New: kernel.Route{Gateway: ip(c.gateway), Device: "ext0"}}})
		if errs[0] == nil {
			s.t.Errorf("%s via %s: taken into a table that knows no way to it", c.remote, c.gateway)
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

// sources: a route whose source is no address of the host is refused.
func (s *suite) sources() {
	s.withDevice()
	put(s, s.w.NextHops(kernel.ProtocolLinks), 1, kernel.NextHop{Device: "ext0", Gateway: ip("fe80::1"), OnLink: true})
	put(s, s.w.Addresses(kernel.Protocol), kernel.AddressKey{Device: "lo", Prefix: pfx("10.9.0.1/32")}, kernel.Address{})
	put(s, s.w.Addresses(kernel.Protocol), kernel.AddressKey{Device: "lo", Prefix: pfx("2001:db8:9::1/128")}, kernel.Address{NoDAD: true})
	e := s.w.Routes(kernel.Protocol, 200)
	for i, c := range []struct {
		v6    bool
		route kernel.Route
		ok    bool
	}{
		{false, kernel.Route{NextHopID: 1, Src: ip("10.0.0.1")}, true},
		{false, kernel.Route{NextHopID: 1, Src: ip("10.9.0.1")}, true},
		{false, kernel.Route{NextHopID: 1, Src: ip("10.9.0.2")}, false},
		{false, kernel.Route{Gateway: ip("10.0.0.2"), Device: "ext0", Src: ip("10.9.0.1")}, true},
		{false, kernel.Route{Gateway: ip("10.0.0.2"), Device: "ext0", Src: ip("10.9.0.2")}, false},
		{true, kernel.Route{NextHopID: 1, Src: ip("2001:db8::1")}, true},
		{true, kernel.Route{NextHopID: 1, Src: ip("2001:db8:9::1")}, true},
		{true, kernel.Route{NextHopID: 1, Src: ip("2001:db8:9::2")}, false},
		{true, kernel.Route{Gateway: ip("2001:db8::2"), Device: "ext0", Src: ip("2001:db8:9::1")}, true},
		{true, kernel.Route{Gateway: ip("2001:db8::2"), Device: "ext0", Src: ip("2001:db8:9::2")}, false},
	} {
		k := rk(200, fmt.Sprintf("10.%d.0.0/16", 100+i))
		if c.v6 {
			k = rk(200, fmt.Sprintf("2001:db8:%d::/48", 100+i))
		}
		err := e.Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{{Kind: reconcile.Create, Key: k, New: c.route}})[0]
		if (err == nil) != c.ok {
			s.t.Errorf("%s %s: error %v, want it taken: %v", k, c.route, err, c.ok)
		}
	}
	// An IPv4 source may also be local in the route's own table alone, and in no other.
	put(s, e, rk(200, "10.9.0.9/32"), kernel.Route{Type: kernel.Local, Device: "lo"})
	put(s, e, rk(200, "10.150.0.0/16"), kernel.Route{NextHopID: 1, Src: ip("10.9.0.9")})
	err := e.Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: rk(201, "10.150.0.0/16"), New: kernel.Route{NextHopID: 1, Src: ip("10.9.0.9")}}})[0]
	if err == nil {
		s.t.Error("a source that is local in another table was taken")
	}
	// Without a next-hop object: with one, Linux takes over what another route with the same values has passed.
	remove(s, e, rk(200, "10.9.0.9/32"))
	err = e.Apply(s.ctx, []reconcile.Op[kernel.RouteKey, kernel.Route]{
		{Kind: reconcile.Create, Key: rk(200, "10.151.0.0/16"), New: kernel.Route{Gateway: ip("10.0.0.2"), Device: "ext0", Src: ip("10.9.0.9")}}})[0]
	if err == nil {
		s.t.Error("a source that is no longer local was taken")
	}
}

// strangers: what others put into our tables is told, and nothing else.
func (s *suite) strangers() {
	s.withDevice()
	told := func() []string {
		s.t.Helper()
		all, err := s.w.Strangers(s.ctx, []uint32{200, 100000})
		s.must(err)
		return all
	}
	for _, p := range []uint8{kernel.Protocol, kernel.ProtocolLinks, 2, 9} {
		for _, prefix := range []string{"10.%d.0.0/16", "2001:db8:%d::/48"} {
			put(s, s.w.Routes(p), rk(200, fmt.Sprintf(prefix, p)), kernel.Route{Device: "ext0"})
		}
	}
	put(s, s.w.Routes(4), rk(300, "10.1.0.0/16"), kernel.Route{Device: "ext0"}) // none of our tables
	if all := told(); len(all) != 0 {
		s.t.Errorf("nobody is a stranger, but: %q", all)
	}
	put(s, s.w.Routes(12), rk(200, "10.77.0.0/16"), kernel.Route{Device: "ext0"})
	put(s, s.w.Routes(4), rk(100000, "0.0.0.0/0"), kernel.Route{Type: kernel.Blackhole})
	put(s, s.w.Routes(250), rk(100000, "2001:db8:77::/48"), kernel.Route{Device: "ext0"})
	for i, begin := range []string{
		"route 10.77.0.0/16 table 200 metric 201 is not ours (protocol bird (12)): ",
		"route 0.0.0.0/0 table 100000 metric 201 is not ours (protocol static (4)): ",
		"route 2001:db8:77::/48 table 100000 metric 201 is not ours (protocol 250): ",
	} {
		if all := told(); len(all) != 3 || !strings.HasPrefix(all[i], begin) {
			s.t.Errorf("told %q, want three of which %d begins with %q", all, i, begin)
		}
	}
	for i := range 30 {
		put(s, s.w.Routes(4), rk(200, fmt.Sprintf("20.%d.0.0/16", i)), kernel.Route{Type: kernel.Blackhole})
	}
	if all := told(); len(all) != 21 || all[20] != "and 13 more routes that are not ours" {
		s.t.Errorf("of 33 strangers told %q", all)
	}
	if !s.w.Features().VRF {
		return
	}
	s.must(s.w.AddVRF("blue", 100000))
	s.must(s.w.AddVRF("green", 300))
	put(s, s.w.Links(), "red", kernel.Link{Name: "red", Kind: kernel.KindVRF, Alias: kernel.AliasPrefix + "vrf:red", Table: 200, Up: true})
	if all := told(); len(all) != 22 || !strings.HasPrefix(all[0], "VRF device blue uses table 100000 and is not ours (") {
		s.t.Errorf("with a VRF device told %q", all)
	}
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
