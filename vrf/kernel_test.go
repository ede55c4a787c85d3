package vrf_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/kernel/linux"
	"fabric/internal/reconcile"
	"fabric/vrf"
)

// The gateway's document. VRFs A and B have the same networks, and a host of B even has an address that is the gateway's in A:
//
//	a1 10.1.0.5 ---- ga1 .1 |    | gb1 .1 ---- b1 10.1.0.5
//	                   A    | gw |    B
//	a2 10.2.0.5 ---- ga2 .1 |    | gb2 .254 -- b2 10.2.0.1
//	                        |    |
//	                        | gm 192.0.2.1 ---- m 192.0.2.5, the way out of the main table; answers to 10.3.0.1 too
//
// The same in IPv6: 10.X.0.Y is fd00:X::Y.
const twoVRFs = `
fabric: {name: two-vrfs}
vrfs:
  - {name: default, vni: 999}
  - {name: A, table: 200, vni: 1000}
  - {name: B, table: 201, vni: 1001}
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}
        vrfs:
          - vrf: default
            interfaces: [{name: gm, addresses: [192.0.2.1/24, "fd00:ff::1/64"]}]
            loopbacks: [10.8.0.1/32, "fd00:8::1/128"]
          - vrf: A
            interfaces:
              - {name: ga1, addresses: [10.1.0.1/24, "fd00:1::1/64"]}
              - {name: ga2, addresses: [10.2.0.1/24, "fd00:2::1/64"], mtu: 1400}
            loopbacks: [10.9.0.1/32, "fd00:9::1/128", 10.9.1.1/32, "fd00:9:1::1/128"]
          - vrf: B
            interfaces:
              - {name: gb1, addresses: [10.1.0.1/24, "fd00:1::1/64"]}
              - {name: gb2, addresses: [10.2.0.254/24, "fd00:2::fe/64"]}
            loopbacks: [10.9.0.1/32, "fd00:9::1/128", 10.9.2.1/32, "fd00:9:2::1/128"]
  - name: far
    gateways:
      - name: far
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}
`

// world is the gateway and its hosts.
type world struct {
	t      *testing.T
	nodes  map[string]*node
	kernel *linux.Host
	host   *vrf.Host
	steps  []step
}

// step makes one kind of object as wanted; it returns what it would do, or has done.
type step func(apply bool) []string

func newWorld(t *testing.T, backend vrf.Backend) *world {
	w := &world{t: t, nodes: map[string]*node{}}
	gw := newNode(t, "gw")
	w.nodes["gw"] = gw
	var err error
	gw.do(func() { w.kernel, err = linux.Open(nil) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.kernel.Close(); err != nil {
			t.Error(err)
		}
	})
	f := w.kernel.Features()
	if backend == vrf.Devices && !f.VRF {
		t.Skip("this kernel has no VRF devices")
	}
	f.VRF = backend == vrf.Devices
	doc, err := config.Parse("two-vrfs.yaml", []byte(twoVRFs))
	if err != nil {
		t.Fatal(err)
	}
	if w.host, err = vrf.Compile(doc, "gw", f); err != nil {
		t.Fatal(err)
	}
	for _, h := range []struct{ name, device, addr4, addr6, gateway4, gateway6 string }{
		{"a1", "ga1", "10.1.0.5/24", "fd00:1::5/64", "10.1.0.1", "fd00:1::1"},
		{"a2", "ga2", "10.2.0.5/24", "fd00:2::5/64", "10.2.0.1", "fd00:2::1"},
		{"b1", "gb1", "10.1.0.5/24", "fd00:1::5/64", "10.1.0.1", "fd00:1::1"},
		{"b2", "gb2", "10.2.0.1/24", "fd00:2::1/64", "10.2.0.254", "fd00:2::fe"},
		{"m", "gm", "192.0.2.5/24", "fd00:ff::5/64", "192.0.2.1", "fd00:ff::1"},
	} {
		n := newNode(t, h.name)
		w.nodes[h.name] = n
		gw.run("ip link add "+h.device+" type veth peer name eth0 netns "+n.path(), "ip link set "+h.device+" up")
		n.run("ip link set eth0 up", "ip addr add "+h.addr4+" dev eth0", "ip addr add "+h.addr6+" dev eth0 nodad",
			"ip route add 10.0.0.0/8 via "+h.gateway4, "ip route add fd00::/16 via "+h.gateway6)
		if h.name == "m" {
			n.run("ip addr add 10.3.0.1/32 dev lo", "ip addr add fd00:3::1/128 dev lo")
		} else {
			n.run("ip route add 192.0.2.0/24 via " + h.gateway4)
		}
		n.serve(h.name, fmt.Sprintf(":%d", echoPort), "")
		n.serveUDP()
	}
	// One error per second and host would not do here.
	gw.run("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=100000",
		"ip addr add 10.255.0.1/32 dev lo")
	w.makeSteps()
	w.apply()
	gw.run("ip route add default via 192.0.2.5", "ip route add default via fd00:ff::5")
	return w
}

// makeSteps lists what a gateway does, in its order.
func (w *world) makeSteps() {
	k, h := w.kernel, w.host
	w.steps = []step{
		newStep(w, "filter", k.Filters("fabric"), map[string]kernel.Filter{"fabric": h.Filter}),
		newStep(w, "link", k.Links(kernel.KindVRF, kernel.KindVXLAN), h.Links),
		newStep(w, "port", k.Ports(func() []string { return reconcile.Keys(h.Ports) }), h.Ports),
		newStep(w, "sysctl", k.Sysctls(func() []string { return reconcile.Keys(h.Sysctls) }), h.Sysctls),
		newStep(w, "address", k.Addresses(kernel.Protocol), h.Addresses),
		newStep(w, "neighbour", k.Neighbours(), h.Neighbours),
		newStep(w, "forwarding entry", k.FDB(), h.FDB),
		newStep(w, "route", k.Routes(kernel.Protocol), h.Routes),
		newStep(w, "rule", k.Rules(kernel.Protocol), h.Rules),
	}
}

func newStep[K comparable, V any](w *world, name string, edge reconcile.Edge[K, V], want map[K]V) step {
	loop := reconcile.NewLoop(reconcile.Config[K, V]{
		Name: name, Edge: edge,
		Want: func() (map[K]V, bool) { return want, true },
	})
	return func(apply bool) (lines []string) {
		w.t.Helper()
		ops, err := loop.Plan(w.t.Context())
		if err != nil {
			w.t.Fatalf("plan of %s: %v", name, err)
		}
		for _, op := range ops {
			lines = append(lines, name+": "+op.String())
		}
		if apply {
			if err := loop.Pass(w.t.Context()); err != nil {
				w.t.Fatalf("apply %s: %v", name, err)
			}
		}
		return lines
	}
}

// plan is what is left to do.
func (w *world) plan() (lines []string) {
	w.t.Helper()
	for _, s := range w.steps {
		lines = append(lines, s(false)...)
	}
	return lines
}

func (w *world) apply() {
	w.t.Helper()
	for _, s := range w.steps {
		s(true)
	}
	w.moveLocal(vrf.LocalRulePriority)
}

func (w *world) moveLocal(priority uint32) {
	w.t.Helper()
	if err := w.kernel.MoveLocalRule(w.t.Context(), priority); err != nil {
		w.t.Fatal(err)
	}
}

// Expectations beside the name of who answers.
const (
	// gateway is the gateway itself: it has nothing on the port.
	gateway = "gateway"
	// nothing: neither an answer nor is it heard by anybody. The kernel limits how often it says unreachable.
	nothing = "nothing"
)

// probe is one line of what reaches what: who answers, over all protocols and both families.
type probe struct{ from, to4, to6, want string }

var reachability = []probe{
	// A: the gateway on every one of its addresses in A, and the other host.
	{"a1", "10.1.0.1", "fd00:1::1", gateway},
	{"a1", "10.2.0.1", "fd00:2::1", gateway},
	{"a1", "10.9.0.1", "fd00:9::1", gateway},
	{"a1", "10.9.1.1", "fd00:9:1::1", gateway},
	{"a1", "10.2.0.5", "fd00:2::5", "a2"},
	{"a2", "10.1.0.5", "fd00:1::5", "a1"},
	// B: the same addresses are others.
	{"b1", "10.1.0.1", "fd00:1::1", gateway},
	{"b1", "10.2.0.254", "fd00:2::fe", gateway},
	{"b1", "10.9.0.1", "fd00:9::1", gateway},
	{"b1", "10.9.2.1", "fd00:9:2::1", gateway},
	{"b1", "10.2.0.1", "fd00:2::1", "b2"},
	{"b2", "10.1.0.5", "fd00:1::5", "b1"},
	{"b2", "10.2.0.254", "fd00:2::fe", gateway},
	// Nothing between A and B.
	{"a1", "10.9.2.1", "fd00:9:2::1", nothing},
	{"a2", "10.9.2.1", "fd00:9:2::1", nothing},
	{"a1", "10.2.0.254", "fd00:2::fe", nothing},
	{"b1", "10.9.1.1", "fd00:9:1::1", nothing},
	{"b1", "10.2.0.5", "fd00:2::5", nothing},
	// Nothing from A and B to main: the gateway's addresses there, VTEPs, its neighbour, its way out.
	{"a1", "192.0.2.1", "fd00:ff::1", nothing},
	{"a1", "10.8.0.1", "fd00:8::1", nothing},
	{"a1", "10.255.0.1", "fd00:ff::", nothing},
	{"a1", "10.255.0.2", "", nothing},
	{"a1", "192.0.2.5", "fd00:ff::5", nothing},
	{"a1", "10.3.0.1", "fd00:3::1", nothing},
	{"b1", "192.0.2.1", "fd00:ff::1", nothing},
	{"b1", "192.0.2.5", "fd00:ff::5", nothing},
	{"b2", "10.3.0.1", "fd00:3::1", nothing},
	// Main has its own, and nothing of A and B: the gateway's addresses, networks' own addresses (IPv4 broadcast, IPv6
	// subnet-router anycast), hosts.
	{"m", "192.0.2.1", "fd00:ff::1", gateway},
	{"m", "10.8.0.1", "fd00:8::1", gateway},
	{"m", "10.1.0.1", "fd00:1::1", nothing},
	{"m", "10.2.0.1", "fd00:2::1", nothing},
	{"m", "10.2.0.254", "fd00:2::fe", nothing},
	{"m", "10.9.0.1", "fd00:9::1", nothing},
	{"m", "10.9.1.1", "fd00:9:1::1", nothing},
	{"m", "10.9.2.1", "fd00:9:2::1", nothing},
	{"m", "10.1.0.255", "fd00:1::", nothing},
	{"m", "10.1.0.5", "fd00:1::5", nothing},
	{"m", "10.2.0.5", "fd00:2::5", nothing},
}

// patience is how long a probe waits: where an answer is wanted, only a failure takes so long.
func patience(want string) time.Duration {
	if want == nothing {
		return 400 * time.Millisecond
	}
	return 5 * time.Second
}

// meets says whether an outcome is as wanted.
func meets(got, want string) bool {
	return got == want || want == nothing && (got == silent || got == unreachable)
}

// check runs probes by ICMP, TCP and UDP over both families, many at a time, and returns what was other than wanted.
func (w *world) check(probes []probe) (wrong []string) {
	for _, n := range w.nodes {
		n.mu.Lock()
		clear(n.heard)
		n.mu.Unlock()
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 24)
	try := func(what, want string, probe func(timeout time.Duration) string) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if got := probe(patience(want)); !meets(got, want) {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Sprintf("%s: %s, want %s", what, got, want))
			}
		})
	}
	each := func(fn func(p probe, to, what string)) {
		for _, p := range probes {
			for _, to := range []string{p.to4, p.to6} {
				if to != "" {
					fn(p, to, p.from+" > "+to)
				}
			}
		}
	}
	each(func(p probe, to, what string) {
		n := w.nodes[p.from]
		ping, port := answered, p.want
		switch p.want {
		case nothing:
			ping = nothing
		case gateway:
			port = refused
		}
		try(what+" icmp", ping, func(d time.Duration) string { return n.ping(to, d, "") })
		for _, network := range []string{"tcp", "udp"} {
			try(what+" "+network, port, func(d time.Duration) string {
				return n.dial(network, "", netip.AddrPortFrom(netip.MustParseAddr(to), echoPort), d)
			})
		}
	})
	wg.Wait()
	// A packet may leak although no answer finds its way back.
	each(func(p probe, _, what string) {
		for name, n := range w.nodes {
			if name != p.want && n.hears(what) {
				wrong = append(wrong, what+": heard by "+name)
			}
		}
	})
	slices.Sort(wrong)
	return wrong
}

func (w *world) wantReachability(probes []probe) {
	w.t.Helper()
	if wrong := w.check(probes); len(wrong) > 0 {
		w.t.Errorf("%d probes:\n%s", len(wrong), strings.Join(wrong, "\n"))
		w.dump()
	}
}

// dump shows the gateway's state after a failure.
func (w *world) dump() {
	for _, line := range []string{"ip rule", "ip -6 rule", "ip route show table 200", "ip -6 route show table 200", "ip neigh", "nft list ruleset"} {
		out, err := w.nodes["gw"].output(line)
		w.t.Logf("%s (%v)\n%s", line, err, out)
	}
}

func TestIsolation(t *testing.T) {
	for _, backend := range []vrf.Backend{vrf.Rules, vrf.Devices} {
		t.Run(string(backend), func(t *testing.T) { testIsolation(t, backend) })
	}
}

func testIsolation(t *testing.T, backend vrf.Backend) {
	w := newWorld(t, backend)
	if left := w.plan(); len(left) > 0 {
		t.Errorf("a second apply would do:\n%s", strings.Join(left, "\n"))
	}
	gw := w.nodes["gw"]
	// First, since the kernel says so five times in a row and then once per second and neighbour.
	t.Run("no route", func(t *testing.T) {
		for _, from := range []string{"a2", "b2"} {
			for _, to := range []string{"10.3.0.1", "fd00:3::1"} {
				if got := w.nodes[from].ping(to, 5*time.Second, ""); got != unreachable {
					t.Errorf("%s: ping %s: %s, want %s", from, to, got, unreachable)
				}
			}
		}
	})
	w.wantReachability(reachability)

	t.Run("errors of the gateway", func(t *testing.T) {
		for _, c := range []struct{ from, to, flags, want string }{
			{"a1", "10.2.0.5", "-t 1", expired},
			{"a1", "fd00:2::5", "-t 1", expired},
			{"b1", "10.2.0.1", "-t 1", expired},
			{"b1", "fd00:2::1", "-t 1", expired},
			{"a1", "10.2.0.5", "-M do -s 1472", tooBig},
			{"a1", "fd00:2::5", "-M do -s 1452", tooBig},
			{"a1", "10.2.0.5", "-M do -s 1372", answered},
			{"b1", "10.2.0.1", "-M do -s 1472", answered},
		} {
			if got := w.nodes[c.from].ping(c.to, 5*time.Second, c.flags); got != c.want {
				t.Errorf("%s: ping %s %s: %s, want %s", c.from, c.flags, c.to, got, c.want)
			}
		}
	})

	t.Run("link-local", func(t *testing.T) {
		for device, want := range map[string]string{"ga1": answered, "gb1": nothing, "gm": nothing} {
			out, err := gw.output("ip -6 -o addr show dev " + device + " scope link")
			f := strings.Fields(out)
			if err != nil || len(f) < 4 {
				t.Fatalf("%v: %s", err, out)
			}
			ll := netip.MustParsePrefix(f[3]).Addr()
			if got := w.nodes["a1"].ping(ll.String()+"%eth0", patience(want), ""); !meets(got, want) {
				t.Errorf("a1 > %s of %s: %s, want %s", ll, device, got, want)
			}
		}
	})

	t.Run("listeners", func(t *testing.T) {
		device := func(rules, name string) string {
			if backend == vrf.Devices {
				return name
			}
			return rules
		}
		gw.serve("gw in A", "10.9.1.1:7001", device("", "A"))
		gw.serve("gw in A", "[fd00:9:1::1]:7001", device("", "A"))
		// The same address in both needs sockets of a device each.
		gw.serve("gw in A", "10.9.0.1:7002", device("ga1", "A"))
		gw.serve("gw in B", "10.9.0.1:7002", device("gb1", "B"))
		if backend == vrf.Rules {
			// Bound to no device, on an address that both have: the answer goes where the question came from.
			gw.serve("gw", "10.1.0.1:7003", "")
			for _, from := range []string{"a1", "a2", "b1", "b2"} {
				if got := w.nodes[from].dial("tcp", "", netip.MustParseAddrPort("10.1.0.1:7003"), 5*time.Second); got != "gw" {
					t.Errorf("%s > 10.1.0.1:7003: %s, want gw", from, got)
				}
			}
		}
		for _, c := range []struct{ from, to, want string }{
			{"a1", "10.9.1.1:7001", "gw in A"},
			{"a2", "10.9.1.1:7001", "gw in A"},
			{"b1", "10.9.1.1:7001", nothing},
			{"m", "10.9.1.1:7001", nothing},
			{"a1", "[fd00:9:1::1]:7001", "gw in A"},
			{"b1", "[fd00:9:1::1]:7001", nothing},
			{"m", "[fd00:9:1::1]:7001", nothing},
			{"a1", "10.9.0.1:7002", "gw in A"},
			{"b1", "10.9.0.1:7002", "gw in B"},
			{"b2", "10.9.0.1:7002", device(refused, "gw in B")},
		} {
			if got := w.nodes[c.from].dial("tcp", "", netip.MustParseAddrPort(c.to), patience(c.want)); !meets(got, c.want) {
				t.Errorf("%s > %s: %s, want %s", c.from, c.to, got, c.want)
			}
		}
	})

	t.Run("the gateway's own", func(t *testing.T) {
		type session struct{ from, to, want string }
		sessions := []session{{"10.8.0.1", "192.0.2.5", "m"}, {"fd00:8::1", "fd00:ff::5", "m"}, {"", "10.3.0.1", "m"}}
		if backend == vrf.Rules {
			sessions = append(sessions,
				// Sessions between loopbacks know no device.
				session{"10.9.1.1", "10.1.0.5", "a1"}, session{"10.9.2.1", "10.1.0.5", "b1"},
				session{"fd00:9:1::1", "fd00:1::5", "a1"}, session{"fd00:9:2::1", "fd00:1::5", "b1"},
				session{"10.9.1.1", "192.0.2.5", unreachable}, session{"10.9.1.1", "10.3.0.1", unreachable},
				session{"fd00:9:1::1", "fd00:3::1", unreachable},
				session{"ga1", "10.1.0.5", "a1"}, session{"ga1", "fd00:1::5", "a1"}, session{"gb1", "10.1.0.5", "b1"}, session{"gb1", "fd00:1::5", "b1"},
				session{"ga1", "fd00:3::1", unreachable})
		} else {
			sessions = append(sessions, session{"A", "10.1.0.5", "a1"}, session{"A", "fd00:1::5", "a1"}, session{"B", "10.1.0.5", "b1"}, session{"B", "fd00:1::5", "b1"},
				session{"A", "10.3.0.1", unreachable}, session{"A", "fd00:3::1", unreachable})
		}
		for _, c := range sessions {
			to := netip.AddrPortFrom(netip.MustParseAddr(c.to), echoPort)
			if got := gw.dial("tcp", c.from, to, 5*time.Second); got != c.want {
				t.Errorf("gateway from %q > %s: %s, want %s", c.from, c.to, got, c.want)
			}
		}
	})

	t.Run("a host with an address of the gateway in main", func(t *testing.T) {
		b1 := w.nodes["b1"]
		gw.run("ip route add 10.8.0.1/32 dev gb1 table 201")
		b1.run("ip addr add 10.8.0.1/32 dev lo", "ip neigh flush all")
		if got := b1.dial("tcp", "10.8.0.1", netip.MustParseAddrPort("10.1.0.1:7000"), 5*time.Second); got != refused {
			t.Errorf("b1 from 10.8.0.1 > 10.1.0.1: %s, want %s", got, refused)
		}
		gw.run("ip route del 10.8.0.1/32 dev gb1 table 201")
		b1.run("ip addr del 10.8.0.1/32 dev lo")
	})

	t.Run("without a default route in main", func(t *testing.T) {
		gw.run("ip route del default", "ip -6 route del default via fd00:ff::5")
		for _, n := range w.nodes {
			n.run("ip neigh flush all")
		}
		some := slices.DeleteFunc(slices.Clone(reachability), func(p probe) bool { return p.want == nothing })
		(&world{t: t, nodes: w.nodes}).wantReachability(some)
		gw.run("ip route add default via 192.0.2.5", "ip route add default via fd00:ff::5")
	})

	if backend == vrf.Rules {
		t.Run("leaks are seen", func(t *testing.T) { w.leaks(t) })
	}
}

// leaks takes a piece out and wants the probes to tell; then the piece comes back by itself.
func (w *world) leaks(t *testing.T) {
	gw := w.nodes["gw"]
	both := func(lines ...string) func() {
		return func() {
			for _, line := range lines {
				gw.run("ip "+line, "ip -6 "+line)
			}
		}
	}
	for _, c := range []struct {
		name string
		cut  func()
		probe
		tells string
	}{
		{"the local table first", func() { w.moveLocal(0) },
			probe{"a1", "10.9.2.1", "fd00:9:2::1", nothing}, "a1 > 10.9.2.1 tcp: refused, want nothing"},
		{"no guard", func() { gw.run("ip rule del pref 108 to 10.1.0.1") },
			probe{"m", "10.1.0.1", "", nothing}, "m > 10.1.0.1 icmp: answered, want nothing"},
		{"no guard in IPv6", func() { gw.run("ip -6 rule del pref 108 to fd00:1::1") },
			probe{"m", "", "fd00:1::1", nothing}, "m > fd00:1::1 udp: refused, want nothing"},
		{"no lookup for a member, no marks", func() {
			both("rule del pref 100 iif ga1", "rule del pref 101 iif ga1")()
			gw.run("nft flush chain inet fabric prerouting")
		}, probe{"a1", "10.3.0.1", "fd00:3::1", nothing}, "a1 > fd00:3::1: heard by m"},
		{"no ends", both("rule del pref 101 iif ga1", "rule del pref 105 fwmark 200", "route del unreachable default table 200 metric 4278198272"),
			probe{"a1", "10.3.0.1", "fd00:3::1", nothing}, "a1 > 10.3.0.1: heard by m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cut()
			if wrong := w.check([]probe{c.probe}); !slices.Contains(wrong, c.tells) {
				t.Errorf("it does not show:\n%s\nwant among it %s", strings.Join(wrong, "\n"), c.tells)
			}
			w.apply()
			if left := w.plan(); len(left) > 0 {
				t.Errorf("after it was mended, there is left to do:\n%s", strings.Join(left, "\n"))
			}
			if wrong := w.check([]probe{c.probe}); len(wrong) > 0 {
				t.Errorf("mended:\n%s", strings.Join(wrong, "\n"))
			}
		})
	}
}
