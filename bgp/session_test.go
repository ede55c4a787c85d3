package bgp

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

func secret(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// 100,000 prefixes against a limit of 1,000: the session stays, a thousand are admitted and keep updating, the rest is counted
// and some of it listed; a place that is given up can be taken.
func TestMaxPrefixFreezes(t *testing.T) {
	const limit, total = 1000, 100_000
	n := newNetwork(t)
	doc := n.document()
	// A flood of this size keeps both ends from speaking for longer than the harness's 3 s on a busy machine.
	doc.Fabric.BGP.Keepalive, doc.Fabric.BGP.Hold = config.Duration(20*time.Second), config.Duration(time.Minute)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "flood", ASN: 65100, MaxPrefix: limit, Families: []string{IPv4}}, 11, 101)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "calm", ASN: 65101, Families: []string{IPv4}}, 11, 102)
	r, calm := n.router(65100, 101, 11, 65001, ceOptions{}), n.router(65101, 102, 11, 65001, ceOptions{})
	g := n.start(doc, "gw1")
	first := route{prefix: "10.200.0.0/24"}
	r.announce(first)
	calm.announce(route{prefix: "192.168.7.0/24"})
	g.wantRoutes("CORE", "10.200.0.0/24 peer flood [65100]", "192.168.7.0/24 peer calm [65101]")

	var rs []route
	for i := range total - 1 {
		rs = append(rs, route{prefix: fmt.Sprintf("%d.%d.%d.0/24", 11+i>>16, i>>8&255, i&255)})
	}
	begin := time.Now()
	r.announce(rs...)
	p := g.wantPeer("CORE", "flood", "with all prefixes received", func(p PeerState) bool { return p.Received == total })
	t.Logf("%d prefixes in %v", total, time.Since(begin).Round(time.Millisecond))
	if !p.Frozen || p.Admitted != limit || p.Rejected != total-limit || p.State != "established" || p.Flaps != 0 {
		t.Errorf("%+v", p)
	}
	if got := len(g.routes("CORE")); got != limit+1 {
		t.Errorf("%d routes in the RIB, want %d", got, limit+1)
	}
	rejected := g.Rejected("CORE")
	if len(rejected) != maxRejections || rejected[0].Policy != frozenTerm {
		t.Errorf("%d rejected listed, the first by %q", len(rejected), rejected[0].Policy)
	}
	// The admitted one updates.
	first.med = 5
	r.announce(first)
	wait(t, "MED 5 in the RIB", patience, func() (string, bool) {
		c, ok := g.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix(first.prefix)})
		return fmt.Sprintf("%v %+v", ok, c), ok && c.Best.Attrs.MED == 5
	})
	// Frozen paths do not get past us to the other router either.
	wait(t, "the calm router to hear the admitted prefixes", patience, func() (string, bool) {
		got := len(calm.heard(n.addr(11)))
		return fmt.Sprint(got), got == limit
	})
	// A place given up is taken by the next to come.
	r.withdraw(first.prefix)
	g.wantPeer("CORE", "flood", "with one place", func(p PeerState) bool { return p.Admitted == limit-1 })
	r.announce(route{prefix: "10.201.0.0/24"})
	g.wantPeer("CORE", "flood", "full again", func(p PeerState) bool { return p.Frozen && p.Admitted == limit })
	if c, ok := g.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix("10.201.0.0/24")}); !ok || c.Best == nil {
		t.Error("the place given up was not taken")
	}
	// With plenty of room, those refused before are asked again. The last withdrawal alone makes it plenty: one that came apart would leave
	// places that are given up after the asking.
	const scarce = limit * warnPercent / 100
	var gone []string
	for _, s := range g.routes("CORE")[1 : limit-scarce+2] {
		gone = append(gone, strings.Fields(s)[0])
	}
	r.withdraw(gone[1:]...)
	g.wantPeer("CORE", "flood", "short of plenty", func(p PeerState) bool { return p.Admitted == scarce && p.Received == total-len(gone)+1 })
	r.withdraw(gone[0])
	g.wantPeer("CORE", "flood", "full of those refused before", func(p PeerState) bool {
		return p.Admitted == limit && p.Received == total-len(gone)
	})
}

// The router crashes with graceful restart: its paths stay, stale, also at the other gateway; when it is back, End-of-RIB
// prunes what it no longer has.
func TestGracefulRestartOfPeer(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ce", ASN: 65100}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{restart: true})
	again := n.router(65100, 101, 11, 65001, ceOptions{restart: true, standby: true})
	g1, g2 := n.pair(doc)
	r.announce(route{prefix: "10.1.0.0/16"}, route{prefix: "10.2.0.0/16"}, route{prefix: "2001:db8:1::/48"})
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]", "10.2.0.0/16 fabric gw1 [65001 65100]", "2001:db8:1::/48 fabric gw1 [65001 65100]")
	g1.crashable("CORE", "ce")
	r.die()
	g1.wantPeer("CORE", "ce", "restarting", func(p PeerState) bool { return p.Restarting && p.State != "established" })
	stale := func(p string) bool {
		c, ok := g1.rib.Best(rib.Key{VRF: "CORE", Prefix: prefix(p)})
		return ok && c.Best != nil && c.Best.Stale
	}
	wait(t, "stale paths", patience, func() (string, bool) { return "", stale("10.1.0.0/16") && stale("2001:db8:1::/48") })
	again.announce(route{prefix: "10.1.0.0/16"}, route{prefix: "10.3.0.0/16"})
	again.join()
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]", "10.3.0.0/16 fabric gw1 [65001 65100]")
	p := g1.wantPeer("CORE", "ce", "done", func(p PeerState) bool { return !p.Restarting })
	if p.Received != 2 || p.Admitted != 2 || stale("10.1.0.0/16") {
		t.Errorf("after the restart: %+v", p)
	}
	// Leaving with a CEASE is no restart.
	again.stop()
	g2.wantRoutes("CORE")
}

// crashable is called before a neighbour with graceful restart dies. GoBGP v4.8.0 marks its paths stale in a field that its
// watcher reads without a lock. We do not look at that field, but the race detector does: anything that takes GoBGP's lock
// after we have seen the paths puts the two in order.
func (g *gateway) crashable(vrf, name string) {
	g.t.Helper()
	if err := g.Reset(vrf, name, true); err != nil {
		g.t.Fatal(err)
	}
}

// A router that never comes back: its paths go when its restart time is over.
func TestRestartTimeRunsOut(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ce", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{restart: true, restartTime: 3})
	g1 := n.start(doc, "gw1")
	r.announce(route{prefix: "10.1.0.0/16"})
	g1.wantRoutes("CORE", "10.1.0.0/16 peer ce [65100]")
	g1.crashable("CORE", "ce")
	r.die()
	g1.wantPeer("CORE", "ce", "restarting", func(p PeerState) bool { return p.Restarting })
	g1.wantRoutes("CORE")
	if p := g1.wantPeer("CORE", "ce", "given up", func(p PeerState) bool { return !p.Restarting }); p.Received != 0 {
		t.Errorf("%+v", p)
	}
}

// A gateway that is started warm: what was checkpointed is in the RIB, stale, and stays until the neighbours are
// complete; what they no longer have goes. The end of Run says nothing to neighbours.
func TestWarmStart(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ce", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{restart: true})
	table := rib.NewTable()
	src := rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "ce", Addr: n.addr(101)}
	for _, p := range []string{"10.1.0.0/16", "10.2.0.0/16"} {
		table.Update(rib.Path{Key: rib.PathKey{Source: src, Prefix: prefix(p)}, Stale: true, Attrs: rib.Attrs{
			LocalPref: 100, NextHop: n.addr(101), ASPath: []rib.ASSegment{{ASNs: []uint32{65100}}}}})
	}
	g1, g2 := n.pair(doc, func(c *Config) { c.RIB, c.Restarting = table, true })
	r.announce(route{prefix: "10.1.0.0/16"})
	g1.wantRoutes("CORE", "10.1.0.0/16 peer ce [65100]")
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]")
	wait(t, "End-of-RIB of all", patience, func() (string, bool) {
		aw := table.Awaited()
		return fmt.Sprint(aw), len(aw) == 0
	})
	// The neighbours were told that we restart and have kept forwarding.
	if flags := r.restartBits(n.addr(11)); flags != "restarting, forwarding kept: ipv4" {
		t.Errorf("router saw %q", flags)
	}
	g1.kill()
	<-g1.done
	r.announce(route{prefix: "10.7.0.0/16"})
	if got := g2.peer("", "gw1"); got.State != "established" {
		t.Errorf("the end of Run was noticed: %+v", got)
	}
}

// MD5: the right key gets through, a wrong one does not, a changed file is noticed, and so is a key that is taken away.
func TestMD5(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	key := secret(t, "right horse\n") // the line's end is not part of the key
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "good", ASN: 65100, PasswordFile: key, Families: []string{IPv4}}, 11, 101)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "bad", ASN: 65101, PasswordFile: secret(t, "wrong horse"), Families: []string{IPv4}}, 11, 102)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "open", ASN: 65102, PasswordFile: secret(t, "x"), Families: []string{IPv4}}, 11, 103)
	loose := secret(t, "x")
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "loose", ASN: 65103, PasswordFile: loose, Families: []string{IPv4}}, 11, 104)
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "empty", ASN: 65104, PasswordFile: secret(t, "\r\n"), Families: []string{IPv4}}, 11, 105)
	n.router(65100, 101, 11, 65001, ceOptions{password: "right horse"})
	n.router(65101, 102, 11, 65001, ceOptions{password: "right horse"})
	n.router(65102, 103, 11, 65001, ceOptions{dials: true})
	wrong0, missing0 := md5Drops(t)
	g := n.start(doc, "gw1")
	g.wantState("CORE", "good", "established")
	wait(t, "the kernel to have dropped segments with a wrong key and without one", patience, func() (string, bool) {
		wrong, missing := md5Drops(t)
		return fmt.Sprint(wrong, missing), wrong > wrong0 && missing > missing0
	})
	p := g.wantPeer("CORE", "loose", "refused", func(p PeerState) bool { return p.LastError != "" })
	if p.State != "idle" || !strings.Contains(p.LastError, loose) || strings.Contains(p.LastError, "horse") {
		t.Errorf("%+v", p)
	}
	p = g.wantPeer("CORE", "empty", "refused", func(p PeerState) bool { return p.LastError != "" })
	if p.State != "idle" || !strings.Contains(p.LastError, "holds no key") {
		t.Errorf("%+v", p)
	}
	for _, name := range []string{"bad", "open"} {
		if p := g.peer("CORE", name); p.State == "established" {
			t.Errorf("%s came up with another key", name)
		}
	}
	// The key is taken away from one, and corrected for the other.
	if err := os.WriteFile(g.file(doc, "bad"), []byte("right horse"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := doc.Clone()
	ps := next.Sites[0].Gateways[0].VRFs[0].Peers
	ps[2].PasswordFile, ps[2].Passive = "", true // only the listener is left to come up by
	g.configure(next)
	g.wantState("CORE", "bad", "established")
	g.wantState("CORE", "open", "established")
	if p := g.peer("CORE", "good"); p.Flaps != 0 {
		t.Errorf("good was touched: %+v", p)
	}
}

// md5Drops are the kernel's counters of segments dropped for a wrong MD5 key and for none. Of this thread: the
// process's first may have been left in another namespace.
func md5Drops(t *testing.T) (wrong, missing int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		values := strings.Fields(lines[i+1])
		for j, name := range strings.Fields(lines[i]) {
			switch name {
			case "TCPMD5Failure":
				wrong, _ = strconv.Atoi(values[j])
			case "TCPMD5NotFound":
				missing, _ = strconv.Atoi(values[j])
			}
		}
	}
	return wrong, missing
}

func (g *gateway) file(doc *config.Document, peer string) string {
	_, gw, _ := doc.Find(g.name)
	for _, p := range gw.VRFs[0].Peers {
		if p.Name == peer {
			return p.PasswordFile
		}
	}
	return ""
}

// Peers come, go, are disabled and get other timers, all at run time; nobody else's session is touched.
func TestPeersAtRunTime(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "stays", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	more := doc.Clone()
	n.addPeer(more, "gw1", "CORE", config.Peer{Name: "comes", ASN: 65101, Families: []string{IPv4}}, 11, 102)
	r, r2 := n.router(65100, 101, 11, 65001, ceOptions{}), n.router(65101, 102, 11, 65001, ceOptions{})
	g := n.start(doc, "gw1")
	r.announce(route{prefix: "10.1.0.0/16"})
	r2.announce(route{prefix: "10.2.0.0/16"})
	self := n.addr(11).String()
	g.wantRoutes("CORE", "10.1.0.0/16 peer stays [65100]")

	g.configure(more)
	g.wantRoutes("CORE", "10.1.0.0/16 peer stays [65100]", "10.2.0.0/16 peer comes [65101]")
	r.wantHeard(n.addr(11), "10.2.0.0/16 "+self+" [65001 65101]")
	r2.wantHeard(n.addr(11), "10.1.0.0/16 "+self+" [65001 65100]")

	off := more.Clone()
	off.Sites[0].Gateways[0].VRFs[0].Peers[1].Disabled = true
	g.configure(off)
	g.wantRoutes("CORE", "10.1.0.0/16 peer stays [65100]")
	if p := g.wantPeer("CORE", "comes", "disabled", func(p PeerState) bool { return p.Disabled }); p.State != "idle" {
		t.Errorf("%+v", p)
	}
	g.configure(more)
	g.wantRoutes("CORE", "10.1.0.0/16 peer stays [65100]", "10.2.0.0/16 peer comes [65101]")

	timers := more.Clone()
	timers.Sites[0].Gateways[0].VRFs[0].Peers[1].Hold = config.Duration(6 * time.Second)
	timers.Sites[0].Gateways[0].VRFs[0].Peers[1].Keepalive = config.Duration(2 * time.Second)
	flaps := g.peer("CORE", "comes").Flaps
	g.configure(timers)
	if err := g.Reset("CORE", "stays", true); err != nil { // also makes sure that the configuration was applied
		t.Fatal(err)
	}
	if p := g.peer("CORE", "comes"); p.State != "established" || p.Flaps != flaps {
		t.Errorf("other timers took the session down: %+v", p)
	}
	if err := g.Reset("CORE", "127.77."+strings.SplitN(n.addr(102).String(), ".", 3)[2], false); err != nil {
		t.Fatal(err)
	}
	g.wantPeer("CORE", "comes", "up with the new hold time", func(p PeerState) bool {
		return p.State == "established" && p.Hold == 6*time.Second && p.Flaps == flaps+1
	})
	if err := g.Reset("CORE", "nobody", false); err == nil {
		t.Error("reset of an unknown peer succeeds")
	}

	g.configure(doc)
	g.wantRoutes("CORE", "10.1.0.0/16 peer stays [65100]")
	r.wantHeard(n.addr(11))
	// Run publishes the peers behind the routes.
	wait(t, "two peers, gw2 and stays", patience, func() (string, bool) {
		ps := g.Peers()
		return fmt.Sprintf("%+v", ps), len(ps) == 2
	})
	if p := g.peer("CORE", "stays"); p.Flaps != 0 || p.State != "established" {
		t.Errorf("stays was touched: %+v", p)
	}
	// The VRF loses its last peer, and gets it again.
	none := doc.Clone()
	none.Sites[0].Gateways[0].VRFs[0].Peers = nil
	g.configure(none)
	g.wantRoutes("CORE")
}

// A gateway is drained: it announces nothing any more, anywhere, and still hears.
func TestDrained(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ce", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{})
	g1, g2 := n.pair(doc)
	r.announce(route{prefix: "10.1.0.0/16"})
	g2.static("CORE", "10.2.0.0/16")
	self := n.addr(11).String()
	both := []string{"10.1.0.0/16 peer ce [65100]", "10.2.0.0/16 fabric gw2 [65002]"}
	g1.wantRoutes("CORE", both...)
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]", "10.2.0.0/16 static  []")
	drained := doc.Clone()
	drained.Sites[0].Gateways[0].Drained = true
	g1.configure(drained)
	g2.wantRoutes("CORE", "10.2.0.0/16 static  []")
	r.wantHeard(n.addr(11))
	g1.wantRoutes("CORE", both...)
	g1.configure(doc)
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001 65100]", "10.2.0.0/16 static  []")
	r.wantHeard(n.addr(11), "10.2.0.0/16 "+self+" [65001 65002]")
	if p := g1.peer("CORE", "ce"); p.Flaps != 0 {
		t.Errorf("draining touched the session: %+v", p)
	}
}

// The address is not there yet when the server starts: status says so, and it comes up by itself later.
func TestListenerIsTriedAgain(t *testing.T) {
	n := newNetwork(t)
	doc := n.document()
	taken, err := listen(n.addr(1), n.port)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g1, g2 := n.pair(doc)
	g1.static("CORE", "10.1.0.0/16")
	g1.wantPeer("", "gw2", "held up", func(p PeerState) bool { return strings.Contains(p.LastError, "cannot listen") && p.State == "idle" })
	taken.Close()
	g2.wantRoutes("CORE", "10.1.0.0/16 fabric gw1 [65001]")
}
