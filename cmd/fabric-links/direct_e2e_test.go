package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"fabric/internal/config"
	"fabric/overlay"
)

// twoUnderlays makes two nodes with two veths between them, which are the first and the second endpoints, and compiles the tunnels,
// with BFD of 200 ms x 5 on each: the machine may be busy.
//
//	a: 192.0.2.1    ── veth "under"  ── 192.0.2.2    :b   place 0
//	a: 198.51.100.1 ── veth "under2" ── 198.51.100.2 :b   place 1
func twoUnderlays(t *testing.T, tunnels ...config.Tunnel) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	a, b = newNode(t, "a", "10.255.0.1"), newNode(t, "b", "10.255.0.2")
	for device, network := range map[string]string{"under": "192.0.2", "under2": "198.51.100"} {
		a.must(fmt.Sprintf("ip link add %s type veth peer name %s netns /proc/%d/ns/net", device, device, b.pid))
		for i, n := range []*node{a, b} {
			n.must(fmt.Sprintf("ip addr add %s.%d/24 dev %s && ip link set %s addrgenmode none up", network, i+1, device, device))
		}
	}
	gw := func(n *node, i uint32) config.Gateway {
		return config.Gateway{
			Name: n.name, ASN: 65000 + i, VTEP: n.vtep,
			Endpoints: []config.Endpoint{
				{Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i))}, {Address: netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i))},
			},
			WireGuard: config.WireGuard{PublicKey: n.pk, PrivateKeyFile: n.keyFile, Keepalive: config.Duration(time.Second)},
		}
	}
	doc := &config.Document{
		Fabric: config.Fabric{Name: "test", VTEPFamily: "ipv4", DirectPort: 4790, BFD: config.BFD{Interval: config.Duration(slowly(400 * time.Millisecond)), Multiplier: 5}},
		Sites: []config.Site{
			{Name: "a-1", Gateways: []config.Gateway{gw(a, 1)}}, {Name: "b-1", Gateways: []config.Gateway{gw(b, 2)}},
		},
		Links: config.Links{Mesh: "full", Tunnels: tunnels},
	}
	for i, n := range []*node{a, b} {
		p, err := overlay.Compile(doc, n.name, overlay.Host{})
		if err != nil {
			t.Fatal(err)
		}
		plans[i] = p
	}
	return a, b, plans
}

// cut drops all that an underlay of the node carries, until the function returned is called.
func (n *node) cut(device string) (mend func()) {
	n.t.Helper()
	n.must("nft 'table inet cut { chain in { type filter hook input priority -300; iifname " + device +
		" drop; }; chain out { type filter hook output priority -300; oifname " + device + " drop; }; }'")
	return func() {
		n.t.Helper()
		n.must("nft delete table inet cut")
	}
}

// awaitAnswers waits until the probe is answered.
func (p *probe) awaitAnswers(a *node) {
	a.t.Helper()
	a.wait("probes are answered", func() error {
		if p.heard.Load() < 10 {
			return fmt.Errorf("%d answers", p.heard.Load())
		}
		return nil
	})
}

// A direct tunnel as the backup of a WireGuard one.
func TestDirectBackup(t *testing.T) {
	a, b, plans := twoUnderlays(t, config.Tunnel{Kind: "wireguard"}, config.Tunnel{Kind: "direct", Encryption: "none"})
	bringUp(t, a, b, plans)
	for _, n := range []*node{a, b} {
		n.wait("both sessions are up, traffic on the first", over(n, 0, "up", "up"))
	}
	direct := plans[0].Tunnels[1]
	t.Run("host as planned", func(t *testing.T) {
		for _, check := range []struct{ line, want string }{
			{"ip -d link show dev " + direct.Device, fmt.Sprintf("vxlan id %d remote 198.51.100.2 local 198.51.100.1", direct.VNI)},
			{"ip -d link show dev " + direct.Device, "dstport 4790 nolearning"},
			{"ip link show dev " + direct.Device, "mtu 1450"},
			{"ip neigh show dev " + direct.Device, direct.RemoteLinkLocal.String() + " lladdr 02:"},
			{"ip -6 addr show dev " + direct.Device, direct.LinkLocal.String() + "/64"},
			{"cat /sys/class/net/" + direct.Device + "/ifalias", "fabric:a/b/1"},
		} {
			if got := a.must(check.line); !strings.Contains(got, check.want) {
				t.Errorf("%s\n%swant %s", check.line, got, check.want)
			}
		}
		if got := a.must("ip -6 addr show scope link dev " + direct.Device); strings.Count(got, "inet6") != 1 {
			t.Errorf("more than one link-local address:\n%s", got)
		}
		s, err := a.state()
		if err != nil || s.Tunnels[1].Kind != "direct" || s.Tunnels[1].Implementation != "kernel" || s.Tunnels[1].ListenPort != 4790 ||
			s.Tunnels[1].Endpoint.String() != "198.51.100.2:4790" || s.Tunnels[1].RxBytes == 0 || s.Tunnels[1].Err != "" {
			t.Errorf("tunnel is %+v, error %v", s.Tunnels[1], err)
		}
	})
	p := startProbe(t, a, b)
	p.awaitAnswers(a)
	detection := slowly(3 * time.Second)
	t.Run("wireguard is cut and comes back", func(t *testing.T) {
		var mend func()
		lost, gap := p.phase(func() {
			mend = a.cut("under")
			a.wait("traffic on the direct one", over(a, 1, "down", "up"))
			b.wait("traffic on the direct one", over(b, 1, "down", "up"))
			if out := a.must("ip route show 10.255.0.2 metric 201"); !strings.Contains(out, "via inet6 "+direct.RemoteLinkLocal.String()+" dev "+direct.Device) {
				t.Errorf("route is %s", out)
			}
			a.must("ping -n -c1 -W2 -M do -s 1422 10.255.0.2")
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if gap > detection || lost == 0 {
			t.Errorf("longest gap is %s, want at most %s, and one at all", gap, detection)
		}
		lost, gap = p.phase(func() {
			mend()
			a.wait("traffic on the first", over(a, 0, "up", "up"))
			b.wait("traffic on the first", over(b, 0, "up", "up"))
		})
		t.Logf("longest gap %s, %d without answer", gap, lost)
		if lost > 0 {
			t.Errorf("%d without answer on the return", lost)
		}
	})
	t.Run("restart, harm and cleanup", func(t *testing.T) {
		ops := len(a.logged("kind="))
		a.stop(syscall.SIGTERM)
		a.start()
		a.wait("sessions are up again", over(a, 0, "up", "up"))
		if more := a.logged("kind="); len(more) != ops {
			t.Errorf("operations after a restart: %v", more[ops:])
		}
		a.must("ip neigh flush dev " + direct.Device + " nud permanent && ip link set " + direct.Device + " down")
		a.wait("mended", func() error {
			if out := a.must("ip neigh show dev " + direct.Device + " nud permanent"); !strings.Contains(out, direct.RemoteLinkLocal.String()) {
				return fmt.Errorf("neighbours are %q", out)
			}
			return over(a, 0, "up", "up")()
		})
		less := plans[0]
		less.Tunnels = less.Tunnels[:1]
		less.VTEPs = []overlay.RemoteVTEP{plans[0].VTEPs[0]}
		less.VTEPs[0].Devices = less.VTEPs[0].Devices[:1]
		a.apply(less)
		if out := a.try("ip link show dev " + direct.Device); !strings.Contains(out, "does not exist") {
			t.Errorf("a plan without the tunnel left it:\n%s", out)
		}
	})
}
