package bgp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// insideNamespace says that this process is the one that TestFRR started in its network namespace.
const insideNamespace = "BGP_TEST_INSIDE_NAMESPACE"

const (
	bgpd  = "/usr/lib/frr/bgpd"
	vtysh = "/usr/bin/vtysh"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// FRR's bgpd is both a gateway's EVPN neighbour and a third-party router in VRF CORE, in a namespace of its own.
func TestFRR(t *testing.T) {
	if os.Getenv(insideNamespace) != "" {
		frrInside(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, tool := range []string{bgpd, vtysh} {
		if _, err := os.Stat(tool); err != nil {
			t.Skip("needs FRR: ", err)
		}
	}
	ns := fmt.Sprintf("bgp-frr-%d", os.Getpid())
	run(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
	run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	for i := 1; i <= 4; i++ {
		run(t, "ip", "-n", ns, "addr", "add", fmt.Sprintf("10.99.0.%d/32", i), "dev", "lo")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, self, "-test.run=^TestFRR$", "-test.v")
	cmd.Env = append(os.Environ(), insideNamespace+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	}
}

const frrConf = `
frr defaults datacenter
bgp no-rib
router bgp 65100
 bgp router-id 10.99.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp disable-ebgp-connected-route-check
 timers bgp 1 3
 neighbor 10.99.0.1 remote-as 65001
 neighbor 10.99.0.1 update-source 10.99.0.2
 neighbor 10.99.0.1 ebgp-multihop 8
 neighbor 10.99.0.1 timers connect 1
 neighbor 10.99.0.3 remote-as 65001
 neighbor 10.99.0.3 update-source 10.99.0.4
 neighbor 10.99.0.3 ebgp-multihop 2
 neighbor 10.99.0.3 timers connect 1
 neighbor 10.99.0.3 password %s
 address-family ipv4 unicast
  no neighbor 10.99.0.1 activate
  network 172.20.128.0/17
  network 172.20.129.0/30
  network 172.20.129.8/31
  network 0.0.0.0/0
  network 127.0.0.0/8
 exit-address-family
 address-family ipv6 unicast
  neighbor 10.99.0.3 activate
  neighbor 10.99.0.3 route-map six out
  network 2001:db8:20::/48
 exit-address-family
 address-family l2vpn evpn
  neighbor 10.99.0.1 activate
 exit-address-family
!
route-map six permit 10
 set ipv6 next-hop global 2001:db8:ffff::4
!
`

func frrInside(t *testing.T) {
	dir, err := os.MkdirTemp("", "bgp-frr") // t.TempDir lies in a folder that user frr cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "bgpd.conf")
	const password = "battery-staple"
	if err := os.WriteFile(conf, fmt.Appendf(nil, frrConf, password), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "chown", "-R", "frr:frr", dir)
	ctx, cancel := context.WithCancel(context.Background())
	frr := exec.CommandContext(ctx, bgpd, "-f", conf, "-i", filepath.Join(dir, "pid"), "--vty_socket", dir,
		"-A", "127.0.0.1", "-P", "0", "-l", "10.99.0.2", "-l", "10.99.0.4", "-Z", "--log", "file:"+filepath.Join(dir, "log"))
	if err := frr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = frr.Wait() // killed
	})
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("bgpd says:\n%s", b)
		}
	})
	show := func(command string) string {
		out, err := exec.Command(vtysh, "--vty_socket", dir, "-c", command).CombinedOutput()
		if err != nil {
			return err.Error() + string(out)
		}
		return string(out)
	}

	n := &network{t: t, port: 179}
	doc := n.document()
	gw1, gw2 := &doc.Sites[0].Gateways[0], &doc.Sites[1].Gateways[0]
	gw1.VTEP, gw2.VTEP, gw2.ASN = netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"), 65100
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	gw1.VRFs[0].Peers = []config.Peer{{
		Name: "frr", Address: netip.MustParseAddr("10.99.0.4"), ASN: 65100, UpdateSource: netip.MustParseAddr("10.99.0.3"), Multihop: 2,
		Families: []string{IPv4, IPv6}, NextHop: netip.MustParseAddr("2001:db8:ffff::3"), PasswordFile: key, Port: 179, MaxPrefix: 100,
		Keepalive: doc.Fabric.BGP.Keepalive, Hold: doc.Fabric.BGP.Hold,
	}}
	g := n.start(doc, "gw1")
	g.static("CORE", "172.18.0.0/16", "2001:db8:1::/48")
	g.static("OPS", "172.18.0.0/16")
	g.wantRoutes("CORE", "172.18.0.0/16 static  []", "172.20.128.0/17 peer frr [65100]", "2001:db8:1::/48 static  []", "2001:db8:20::/48 peer frr [65100]")
	// Four are illegal, and FRR sends our own two back.
	g.wantPeer("CORE", "frr", "with the illegal rejected", func(p PeerState) bool { return p.Rejected == 6 && len(p.Families) == 2 })
	g.wantState("", "gw2", "established")

	for _, want := range []struct{ command, text string }{
		{"show bgp ipv4 unicast 172.18.0.0/16 json", `"172.18.0.0/16" "65001" "10.99.0.3"`},
		{"show bgp ipv6 unicast 2001:db8:1::/48 json", `"2001:db8:1::/48" "65001" "2001:db8:ffff::3"`},
	} {
		wait(t, want.command+" to hold "+want.text, patience, func() (string, bool) {
			out := show(want.command)
			for _, part := range strings.Fields(want.text) {
				if !strings.Contains(out, part) {
					return out, false
				}
			}
			return out, true
		})
	}
	// RFC 9136: as FRR reads it. VNI 70001 has more than 16 bits; the RD's number is the table's.
	wait(t, "type 5 routes at FRR", patience, func() (string, bool) {
		out := show("show bgp l2vpn evpn route detail json") + show("show bgp l2vpn evpn route detail")
		for _, part := range []string{"10.0.0.1:200", "10.0.0.1:201", "[5]:[0]:[16]:[172.18.0.0]", "[5]:[0]:[48]:[2001:db8:1::]",
			"VNI 1000", "VNI 70001", "RT:64512:1000", "RT:64512:1001", "ET:8", "Rmac:02:00:00:00:00:e9", "10.99.0.1"} {
			if !strings.Contains(out, part) {
				return "no " + part + " in:\n" + out, false
			}
		}
		return out, true
	})
	count := func() int {
		var summary struct {
			Peers map[string]struct{ PfxRcd int }
		}
		if err := json.Unmarshal([]byte(show("show bgp l2vpn evpn summary json")), &summary); err != nil {
			return -1
		}
		return summary.Peers["10.99.0.1"].PfxRcd
	}
	if got := count(); got != 3 {
		t.Errorf("FRR has %d EVPN prefixes, want 3", got)
	}
	for _, p := range []string{"172.20.129.0/30", "172.20.129.8/31", "0.0.0.0/0", "127.0.0.0/8"} {
		if c, ok := g.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix(p)}); ok && c.Best != nil {
			t.Errorf("%s reached the RIB", p)
		}
	}
	g.rib.Withdraw(staticPath("CORE", "172.18.0.0/16").Key)
	wait(t, "the withdrawal at FRR", patience, func() (string, bool) {
		v4 := show("show bgp ipv4 unicast json")
		return v4, count() == 2 && !strings.Contains(v4, "172.18.0.0/16")
	})
}
