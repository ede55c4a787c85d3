package bgp

import (
	"fmt"
	"testing"

	"fabric/bgp/rib"
)

// Two gateways, a static prefix of each family at each, in two VRFs with the same addresses.
//
//	gw1 CORE 172.18.0.0/16 2001:db8:1::/48   gw2 CORE 172.31.0.0/16
//	    OPS  172.18.0.0/16                       OPS  172.18.0.0/16
func TestType5BothWays(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	g1, g2 := n.pair(doc)
	g1.static("CORE", "172.18.0.0/16", "2001:db8:1::/48")
	g1.static("OPS", "172.18.0.0/16")
	g2.static("CORE", "172.31.0.0/16")
	g2.wantRoutes("CORE", "172.18.0.0/16 fabric gw1 [65001]", "172.31.0.0/16 static  []", "2001:db8:1::/48 fabric gw1 [65001]")
	g2.wantRoutes("OPS", "172.18.0.0/16 fabric gw1 [65001]")
	g1.wantRoutes("CORE", "172.18.0.0/16 static  []", "172.31.0.0/16 fabric gw2 [65002]", "2001:db8:1::/48 static  []")

	c, _ := g2.rib.Best(rib.Key{VRF: "OPS", Prefix: prefix("172.18.0.0/16")})
	a := c.Best.Attrs
	if a.NextHop != n.addr(1) || a.VNI != 70001 || a.RouterMAC != [6]byte{2, 0, 0, 0, 0, 0xe9} || c.Best.Key.RD != (rib.RD{0, 1, 10, 0, 0, 1, 0, 201}) {
		t.Errorf("type 5 path of OPS: next hop %s VNI %d MAC %x RD %x", a.NextHop, a.VNI, a.RouterMAC, c.Best.Key.RD)
	}
	// Nobody passes on what came from the fabric.
	g1.wantPeer("", "gw2", "to be told of three prefixes", func(p PeerState) bool { return p.Advertised == 3 && p.Received == 1 })
	g2.wantPeer("", "gw1", "to be told of one prefix", func(p PeerState) bool { return p.Advertised == 1 && p.Received == 3 })
	g1.rib.Withdraw(staticPath("CORE", "172.18.0.0/16").Key)
	g2.wantRoutes("CORE", "172.31.0.0/16 static  []", "2001:db8:1::/48 fabric gw1 [65001]")
	g2.wantRoutes("OPS", "172.18.0.0/16 fabric gw1 [65001]")
}

// A default route is let in only where the importing VRF allows it, and that may change at run time.
func TestDefaultRouteFromFabric(t *testing.T) {
	n := newNetwork(t)
	strict := n.document()
	open := strict.Clone()
	open.VRFs[0].AllowDefault = true
	g1, g2 := n.pair(strict)
	g1.configure(open)
	g1.static("CORE", "0.0.0.0/0", "10.0.0.0/8")
	g1.static("OPS", "0.0.0.0/0", "10.0.0.0/8")
	g2.wantRoutes("CORE", "10.0.0.0/8 fabric gw1 [65001]")
	g2.wantRoutes("OPS", "10.0.0.0/8 fabric gw1 [65001]")
	wait(t, "the default route to be rejected", patience, func() (string, bool) {
		r := g2.Rejected("")
		return fmt.Sprint(r), len(r) == 1 && r[0].Policy == defaultTerm
	})
	g2.configure(open)
	g2.wantRoutes("CORE", "0.0.0.0/0 fabric gw1 [65001]", "10.0.0.0/8 fabric gw1 [65001]")
	g2.configure(strict)
	g2.wantRoutes("CORE", "10.0.0.0/8 fabric gw1 [65001]")
	g2.wantRoutes("OPS", "10.0.0.0/8 fabric gw1 [65001]")
	if p := g2.peer("", "gw1"); p.Flaps != 0 {
		t.Errorf("%+v", p)
	}
}
