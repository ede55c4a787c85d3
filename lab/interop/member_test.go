package interop

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	fabricv1 "fabric/proto/fabric/v1"

	"fabric/overlay"
)

// A fabric of one gateway of ours and one that is FRR, over a WireGuard tunnel that FRR's host has made by hand:
//
//	west ── w0 ── gw ══ WireGuard ══ frr ── e0 ── east
//	10.1.0.0/24   10.255.0.1  10.255.0.9    10.9.0.0/24
//	fd00:1::/64                             fd00:9::/64
//
// The document knows FRR as a gateway with a router-mac; FRR has an L3VNI: VRF device, bridge and VXLAN device. Both have a network of two
// addresses besides, which must not get to the other.
type memberLab struct {
	g         *gateway
	frr       *node
	west      *node
	east      *node
	memberMAC string
}

const (
	memberASN   = 4200000009
	memberVTEP  = "10.255.0.9"
	memberVNI   = 5001
	memberTable = 200
	gatewayVTEP = "10.255.0.1"
	// memberKey and memberPort: what the host of FRR needs to know of the tunnel, the document's first WireGuard port being 51820.
	memberPort, gatewayPort = 51820, 51821
)

// needsVRF skips a test where the kernel has no VRF devices or no WireGuard, which FRR's host cannot do without.
func needsVRF(t *testing.T) {
	t.Helper()
	n := newNode(t, "look")
	for _, kind := range []string{"vrf table 10", "wireguard"} {
		if out, err := n.try("sh", "-c", "ip link add look type "+kind+" && ip link del look"); err != nil {
			t.Skipf("FRR's L3VNI needs VRF devices and WireGuard in the kernel; run lab/vm/test.sh lab/interop:%s: %s: %s", t.Name(), strings.Fields(kind)[0], out)
		}
	}
}

func newMemberLab(t *testing.T) *memberLab {
	t.Helper()
	l := &memberLab{g: newGateway(t, "gw"), frr: newNode(t, "frr"), west: newNode(t, "west"), east: newNode(t, "east"), memberMAC: "0e:00:5e:10:00:09"}
	g, f := l.g, l.frr
	g.link("u0", f, "u0")
	g.link("w0", l.west, "eth0")
	f.link("e0", l.east, "eth0")
	g.sh("ip addr add 203.0.113.1/24 dev u0")
	for n, end := range map[*node]string{l.west: "1", l.east: "9"} {
		n.sh("ip addr add 10."+end+".0.2/24 dev eth0", "ip addr add fd00:"+end+"::2/64 dev eth0 nodad",
			"ip route add default via 10."+end+".0.1", "ip -6 route add default via fd00:"+end+"::1")
	}
	l.makeVTEP()
	g.run(fmt.Sprintf(`
fabric: {name: member, bgp: {keepalive: 3s, hold: 9s, connect-retry: 2s}, bfd: {interval: %v, multiplier: 4}}
vrfs: [{name: CORE, table: %d, vni: %d}]
sites:
  - name: here
    gateways:
      - name: gw
        asn: %d
        vtep: %s
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: %q, private-key-file: %s}
        vrfs:
          - vrf: CORE
            interfaces: [{name: w0, addresses: [10.1.0.1/24, "fd00:1::1/64", 10.1.99.1/30, "fd00:1:99::1/126"]}]
            prefixes: [{prefix: 10.1.0.0/24}, {prefix: "fd00:1::/64"}, {prefix: 10.1.98.0/30, next-hop: 10.1.0.2, announce: false}, {prefix: "fd00:1:98::/126", next-hop: "fd00:1::2", announce: false}]
  - name: there
    gateways:
      - name: frr
        asn: %d
        vtep: %s
        router-mac: %s
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: %q}
        vrfs: [{vrf: CORE}]
`, bfdInterval, memberTable, memberVNI, ourASN, gatewayVTEP, g.public, g.path("wg.key"), memberASN, memberVTEP, l.memberMAC, strings.TrimSpace(f.sh("wg show wg0 public-key"))))
	l.configure()
	startFRR(f, "zebra", "bfdd", "bgpd")
	return l
}

// makeVTEP makes what FRR expects to find: the tunnel with the addresses that the fabric's other end goes by, the VTEP, and the L3VNI.
func (l *memberLab) makeVTEP() {
	l.frr.sh(
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
		"ip addr add 203.0.113.2/24 dev u0",
		"ip link add wg0 type wireguard",
		"wg genkey > "+l.frr.path("wg.key"),
		fmt.Sprintf("wg set wg0 listen-port %d private-key %s peer %s allowed-ips 0.0.0.0/0,::/0 endpoint 203.0.113.1:%d persistent-keepalive 5", memberPort, l.frr.path("wg.key"), l.g.public, gatewayPort),
		"ip link set wg0 mtu 1420 up",
		fmt.Sprintf("ip addr add %s/64 dev wg0", overlay.LinkLocal("frr", "gw", 0)),
		"ip addr add "+memberVTEP+"/32 dev lo",
		"ip route add "+gatewayVTEP+"/32 dev wg0 src "+memberVTEP,
		fmt.Sprintf("ip link add CORE type vrf table %d", memberTable),
		"ip link set CORE up",
		"ip link add br5001 type bridge",
		"ip link set br5001 addrgenmode none address "+l.memberMAC+" master CORE up",
		fmt.Sprintf("ip link add vx5001 type vxlan id %d local %s dstport 4789 nolearning", memberVNI, memberVTEP),
		"ip link set vx5001 mtu 1370 addrgenmode none master br5001 up",
		"ip link set e0 master CORE up",
		"ip addr add 10.9.0.1/24 dev e0", "ip addr add 10.9.99.1/30 dev e0",
		"ip addr add fd00:9::1/64 dev e0 nodad", "ip addr add fd00:9:99::1/126 dev e0 nodad",
	)
}

func (l *memberLab) configure() {
	f := l.frr
	f.file("zebra.conf", fmt.Sprintf("vrf CORE\n vni %d\nexit-vrf\n", memberVNI))
	f.file("bfdd.conf", fmt.Sprintf(`bfd
 peer %s local-address %s interface wg0
  detect-multiplier 4
  receive-interval %d
  transmit-interval %d
`, overlay.LinkLocal("gw", "frr", 0), overlay.LinkLocal("frr", "gw", 0), bfdInterval.Milliseconds(), bfdInterval.Milliseconds()))
	f.file("bgpd.conf", fmt.Sprintf(`frr defaults datacenter
router bgp %[1]d
 bgp router-id %[2]s
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 timers bgp 3 9
 neighbor %[3]s remote-as %[4]d
 neighbor %[3]s update-source %[2]s
 neighbor %[3]s ebgp-multihop 255
 neighbor %[3]s timers connect 2
 address-family l2vpn evpn
  neighbor %[3]s activate
  advertise-all-vni
 exit-address-family
exit
router bgp %[1]d vrf CORE
 bgp router-id %[2]s
 address-family ipv4 unicast
  redistribute connected
 exit-address-family
 address-family ipv6 unicast
  redistribute connected
 exit-address-family
 address-family l2vpn evpn
  advertise ipv4 unicast
  advertise ipv6 unicast
  rd %[2]s:%[5]d
  route-target import 64512:%[6]d
  route-target export 64512:%[6]d
 exit-address-family
exit
`, memberASN, memberVTEP, gatewayVTEP, ourASN, memberTable, memberVNI))
	f.sh("chown -R frr:frr " + f.dir)
}

// connected lets FRR announce its networks, or no longer.
func (l *memberLab) connected(word string) {
	for _, family := range []string{"ipv4", "ipv6"} {
		configure(l.frr, fmt.Sprintf("router bgp %d vrf CORE", memberASN), "address-family "+family+" unicast", word+"redistribute connected")
	}
}

// imported are the prefixes that FRR wrote into its VRF's table.
func (l *memberLab) imported() (out []string) {
	for _, family := range []string{"-4", "-6"} {
		text, _ := l.frr.try("ip", family, "-o", "route", "show", "table", fmt.Sprint(memberTable), "proto", "bgp")
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 0 {
				out = append(out, f[0])
			}
		}
	}
	slices.Sort(out)
	return out
}

// want waits until both kernels have just these prefixes of the other.
func (l *memberLab) want(t *testing.T, ours, theirs []string) {
	t.Helper()
	wait(t, fmt.Sprintf("%v in our kernel and %v in FRR's", theirs, ours), patience, func() (string, bool) {
		here, there := l.g.kernel(memberTable), l.imported()
		own := []string{"10.1.98.0/30", "fd00:1:98::/126"} // static routes of the document, which are for this gateway alone
		here = slices.DeleteFunc(here, func(p string) bool { return slices.Contains(own, p) })
		return fmt.Sprintf("ours %v, FRR's %v; peers %v", here, there, l.g.peers("")), slices.Equal(here, theirs) && slices.Equal(there, ours)
	})
}

// ping sends from both hosts to the other, in both families, packets that just fit.
func (l *memberLab) ping(t *testing.T) {
	t.Helper()
	for _, p := range []struct {
		from *node
		to   string
		size int // with 28 bytes of IPv4 and ICMP, or 48 of IPv6, 1370
	}{{l.west, "10.9.0.2", 1342}, {l.east, "10.1.0.2", 1342}, {l.west, "fd00:9::2", 1322}, {l.east, "fd00:1::2", 1322}} {
		// The first ones may be lost while hosts ask for each other's hardware addresses.
		wait(t, p.from.name+"'s ping to "+p.to, step, func() (string, bool) {
			out, err := p.from.try("ping", "-n", "-c", "3", "-i", "0.3", "-W", fmt.Sprint(slow), "-M", "do", "-s", fmt.Sprint(p.size), p.to)
			return out, err == nil
		})
	}
}

// TestMember: FRR is a gateway of the fabric, by type 5 routes alone.
func TestMember(t *testing.T) {
	needs(t, "vtysh", "ping")
	needsVRF(t)
	needs(t, "wg")
	l := newMemberLab(t)
	ours, theirs := []string{"10.1.0.0/24", "fd00:1::/64"}, []string{"10.9.0.0/24", "fd00:9::/64"}
	began := time.Now()
	l.want(t, ours, theirs)
	t.Logf("routes of both in both kernels %v after the start of FRR; VRFs here by %s, there by vrf-device", time.Since(began).Round(100*time.Millisecond), l.g.backend())
	l.ping(t)

	// What FRR has read: the route target, our router's MAC, and nothing that is not for it.
	routes := vtysh(l.frr, "show bgp l2vpn evpn route detail")
	mac := overlay.RouterMAC(netip.MustParseAddr(gatewayVTEP))
	for _, part := range []string{fmt.Sprintf("RT:64512:%d", memberVNI), "Rmac:" + net.HardwareAddr(mac[:]).String(), fmt.Sprintf("VNI %d", memberVNI), "[5]:[0]:[24]:[10.1.0.0]", "[5]:[0]:[64]:[fd00:1::]"} {
		if !strings.Contains(routes, part) {
			t.Errorf("FRR's EVPN routes have no %s:\n%s", part, routes)
		}
	}
	for _, part := range []string{":[30]:[10.1.", ":[126]:[fd00:1:"} {
		if strings.Contains(routes, part) {
			t.Errorf("FRR was told %s:\n%s", part, routes)
		}
	}
	// And we refused its own two, and what it sent back of ours.
	if p := l.g.peer("", "frr"); p.GetAdmitted() != 2 || p.GetRejected() != 4 {
		t.Errorf("of FRR's four networks two are for us: %v", p)
	}

	t.Log("ours are withdrawn, and announced again")
	for _, p := range ours {
		if _, err := l.g.client.DeletePrefix(l.g.context(), &fabricv1.DeletePrefixRequest{Vrf: "CORE", Prefix: p}); err != nil {
			t.Fatal(err)
		}
	}
	l.want(t, nil, theirs)
	for _, p := range ours {
		if _, err := l.g.client.AddPrefix(l.g.context(), &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: p}}); err != nil {
			t.Fatal(err)
		}
	}
	l.want(t, ours, theirs)

	t.Log("FRR's are withdrawn, and announced again")
	l.connected("no ")
	l.want(t, ours, nil)
	l.connected("")
	l.want(t, ours, theirs)
	l.ping(t)

	// Last, since Linux forgets the neighbours of a device whose address changes, those that FRR wrote as well.
	t.Log("FRR takes another router's MAC than the document has: no black hole")
	l.frr.sh("ip link set br5001 address 0e:00:5e:10:00:99")
	l.want(t, ours, nil)
	l.frr.sh("ip link set br5001 address " + l.memberMAC)
	l.want(t, ours, theirs)
	if p := l.g.peer("", "frr"); p.GetFlaps() != 0 {
		t.Errorf("the session was lost meanwhile: %v", p)
	}
	if full() {
		publish(t, "member", l.g.backend(), func(b *strings.Builder) {
			b.WriteString("| Feature | Result |\n|---|---|\n")
			for _, f := range memberFeatures {
				fmt.Fprintf(b, "| %s | yes |\n", f)
			}
		})
	}
}

// memberFeatures are what TestMember has seen when it passes.
var memberFeatures = []string{
	"WireGuard tunnel made by hand, BFD on it",
	"EVPN type 5 both ways (RFC 9136), IPv4 and IPv6, 4-byte ASNs",
	"ping both ways, IPv4 and IPv6, packets of 1370 bytes unfragmented",
	"route target and Router's MAC read by the other, both ways",
	"/30 and /126 of neither reach the other",
	"withdrawn and announced again, both ways, as the other's kernel shows it",
	"another Router's MAC than router-mac: no route, instead of a black hole",
}
