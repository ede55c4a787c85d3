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

// gateway is the answer of the gateway itself: it has nothing on the port.
const gateway = "gateway"

// probe is one line of what reaches what: who answers from an address, "gateway", unreachable or silent.
type probe struct{ from, to4, to6, want string }

func reachability(backend vrf.Backend) []probe {
	// Main's packets to a VRF's address: with rules the filter drops them. With devices the gateway does not know the
	// address and sends them out by its default route.
	return []probe{
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
		{"a1", "10.9.2.1", "fd00:9:2::1", unreachable},
		{"a2", "10.9.2.1", "fd00:9:2::1", unreachable},
		{"b1", "10.9.1.1", "fd00:9:1::1", unreachable},
		// Nothing from A and B to main: the gateway's addresses there, its VTEP, its neighbour, its way out.
		{"a1", "192.0.2.1", "fd00:ff::1", unreachable},
		{"a1", "10.8.0.1", "fd00:8::1", unreachable},
		{"a1", "10.255.0.1", "", unreachable},
		{"a1", "10.255.0.2", "", unreachable},
		{"a1", "192.0.2.5", "fd00:ff::5", unreachable},
		{"a1", "10.3.0.1", "fd00:3::1", unreachable},
		{"b1", "192.0.2.1", "fd00:ff::1", unreachable},
		{"b1", "192.0.2.5", "fd00:ff::5", unreachable},
		{"b2", "10.3.0.1", "fd00:3::1", unreachable},
		// Main has its own, and nothing of A and B.
		{"m", "192.0.2.1", "fd00:ff::1", gateway},
		{"m", "10.8.0.1", "fd00:8::1", gateway},
		{"m", "10.1.0.1", "fd00:1::1", silent},
		{"m", "10.2.0.1", "fd00:2::1", silent},
		{"m", "10.2.0.254", "fd00:2::fe", silent},
		{"m", "10.9.0.1", "fd00:9::1", silent},
		{"m", "10.9.1.1", "fd00:9:1::1", silent},
		{"m", "10.9.2.1", "fd00:9:2::1", silent},
		{"m", "10.1.0.5", "fd00:1::5", silent},
		{"m", "10.2.0.5", "fd00:2::5", silent},
	}
}

// check runs probes by ICMP, TCP and UDP over both families, many at a time, and returns what was other than wanted.
func (w *world) check(probes []probe) (wrong []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 24)
	try := func(what, want string, probe func(timeout time.Duration) string) {
		timeout := 5 * time.Second // only a failure takes so long
		if want == silent {
			timeout = 400 * time.Millisecond
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if got := probe(timeout); got != want {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Sprintf("%s: %s, want %s", what, got, want))
			}
		})
	}
	for _, p := range probes {
		n := w.nodes[p.from]
		for _, to := range []string{p.to4, p.to6} {
			if to == "" {
				continue
			}
			ping, port := p.want, p.want
			switch p.want {
			case unreachable, silent:
			case gateway:
				ping, port = answered, refused
			default:
				ping = answered
			}
			what := p.from + " > " + to
			try(what+" icmp", ping, func(d time.Duration) string { return n.ping(to, d, "") })
			for _, network := range []string{"tcp", "udp"} {
				try(what+" "+network, port, func(d time.Duration) string {
					return n.dial(network, netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr(to), echoPort), d)
				})
			}
		}
	}
	wg.Wait()
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
	probes := reachability(backend)
	w.wantReachability(probes)

	gw := w.nodes["gw"]
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
		for device, want := range map[string]string{"ga1": answered, "gb1": silent, "gm": silent} {
			out, err := gw.output("ip -6 -o addr show dev " + device + " scope link")
			f := strings.Fields(out)
			if err != nil || len(f) < 4 {
				t.Fatalf("%v: %s", err, out)
			}
			ll := netip.MustParsePrefix(f[3]).Addr()
			if got := w.nodes["a1"].ping(ll.String()+"%eth0", 500*time.Millisecond, ""); got != want && got != unreachable {
				t.Errorf("a1 > %s of %s: %s, want %s", ll, device, got, want)
			} else if want == answered && got != answered {
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
		for _, c := range []struct{ from, to, want string }{
			{"a1", "10.9.1.1:7001", "gw in A"},
			{"a2", "10.9.1.1:7001", "gw in A"},
			{"b1", "10.9.1.1:7001", unreachable},
			{"m", "10.9.1.1:7001", silent},
			{"a1", "[fd00:9:1::1]:7001", "gw in A"},
			{"b1", "[fd00:9:1::1]:7001", unreachable},
			{"m", "[fd00:9:1::1]:7001", silent},
			{"a1", "10.9.0.1:7002", "gw in A"},
			{"b1", "10.9.0.1:7002", "gw in B"},
			{"b2", "10.9.0.1:7002", device(refused, "gw in B")},
		} {
			timeout := 5 * time.Second
			if c.want == silent {
				timeout = 400 * time.Millisecond
			}
			if got := w.nodes[c.from].dial("tcp", netip.Addr{}, netip.MustParseAddrPort(c.to), timeout); got != c.want {
				t.Errorf("%s > %s: %s, want %s", c.from, c.to, got, c.want)
			}
		}
	})

	if backend == vrf.Rules {
		// Sessions between loopbacks know no device.
		t.Run("from a loopback", func(t *testing.T) {
			for _, c := range []struct{ from, to, want string }{
				{"10.9.1.1", "10.1.0.5", "a1"}, {"10.9.2.1", "10.1.0.5", "b1"},
				{"fd00:9:1::1", "fd00:1::5", "a1"}, {"fd00:9:2::1", "fd00:1::5", "b1"},
				{"10.9.1.1", "192.0.2.5", unreachable}, {"10.9.1.1", "10.3.0.1", unreachable},
				{"fd00:9:1::1", "fd00:3::1", unreachable},
				{"10.8.0.1", "192.0.2.5", "m"}, {"fd00:8::1", "fd00:ff::5", "m"},
			} {
				to := netip.AddrPortFrom(netip.MustParseAddr(c.to), echoPort)
				if got := gw.dial("tcp", netip.MustParseAddr(c.from), to, 5*time.Second); got != c.want {
					t.Errorf("gateway from %s > %s: %s, want %s", c.from, c.to, got, c.want)
				}
			}
		})
	}

	t.Run("without a default route in main", func(t *testing.T) {
		gw.run("ip route del default", "ip -6 route del default via fd00:ff::5")
		for _, n := range w.nodes {
			n.run("ip neigh flush all")
		}
		some := slices.DeleteFunc(slices.Clone(probes), func(p probe) bool { return p.want == silent })
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
	for _, c := range []struct {
		name  string
		cut   func()
		probe probe
		want  string
	}{
		{"rule local first", func() { w.moveLocal(0) }, probe{"a1", "10.9.2.1", "fd00:9:2::1", unreachable}, refused},
		{"no guards", func() { gw.run("nft flush chain inet fabric prerouting") }, probe{"m", "10.9.1.1", "fd00:9:1::1", silent}, refused},
		{"nothing of ga1", func() {
			for _, f := range []string{"ip", "ip -6"} {
				gw.run(f+" rule del pref 100 iif ga1", f+" rule del pref 101 iif ga1")
			}
			gw.run("nft flush chain inet fabric prerouting")
		}, probe{"a1", "10.3.0.1", "fd00:3::1", unreachable}, "m"},
		{"no ends", func() {
			for _, f := range []string{"ip", "ip -6"} {
				gw.run(f+" rule del pref 101 iif ga1", f+" rule del pref 105 fwmark 200", f+" route del unreachable default table 200")
			}
		}, probe{"a1", "10.3.0.1", "fd00:3::1", unreachable}, "m"},
		{"no mark", func() {
			for _, f := range []string{"ip", "ip -6"} {
				gw.run(f + " rule del pref 104 fwmark 200")
			}
		}, probe{"a1", "10.9.0.1", "fd00:9::1", gateway}, silent},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cut()
			for _, to := range []string{c.probe.to4, c.probe.to6} {
				timeout := 5 * time.Second
				if c.want == silent {
					timeout = 400 * time.Millisecond
				}
				got := w.nodes[c.probe.from].dial("tcp", netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr(to), echoPort), timeout)
				if got != c.want {
					t.Errorf("%s > %s: %s, want the leak to show as %s", c.probe.from, to, got, c.want)
				}
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
