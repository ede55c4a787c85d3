package site

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"fabric/bgp/rib"
	"fabric/internal/config"
	"fabric/overlay"
)

func peerDisable(name string) config.Mutation {
	return config.Mutation{Action: "peer disable", VRF: "CORE", Name: name}
}

func samePath(a, b rib.Path) bool { return reflect.DeepEqual(a, b) }

// rewriteFile changes the document on disk and reads it again.
func (g *gate) rewriteFile(old, new string) error {
	g.t.Helper()
	b, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	if strings.Count(string(b), old) == 0 {
		g.t.Fatalf("the document has no %q", old)
	}
	if err := os.WriteFile(g.file, []byte(strings.ReplaceAll(string(b), old, new)), 0o600); err != nil {
		g.t.Fatal(err)
	}
	_, err = g.cfg.Store.Reload()
	return err
}

// A generation that does not compile changes nothing; the next one that does is taken.
func TestCompileError(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.wantHealthy()
	before := dump(t, g.kernel)
	if err := g.rewriteFile("vtep: 10.255.0.1", "vtep: 10.255.0.7"); err != nil {
		t.Fatal(err)
	}
	g.wantProblem("generation 2", "VTEP of gateway gw changes from 10.255.0.1 to 10.255.0.7", "restart")
	if s := g.Snapshot().Site; s.Generation != 2 || s.Applied != 1 || s.VTEP.String() != "10.255.0.1" {
		t.Errorf("%+v", s)
	}
	if err := g.rewriteFile("vtep: 10.255.0.7", "vtep: 10.255.0.1"); err != nil {
		t.Fatal(err)
	}
	g.wantHealthy()
	// A peer in a VRF that has no address to speak from: only bgp's compiler knows.
	g.commit(config.Mutation{Action: "peer add", VRF: "BARE", Peer: &config.Peer{
		Name: "x", Address: netip.MustParseAddr("192.0.2.9"), ASN: 65200, Multihop: 5}})
	g.wantProblem("generation 4", "VRF BARE has peers but no address to listen on")
	if have := dump(t, g.kernel); !slices.Equal(have, before) {
		t.Errorf("the host changed:\n%s\nbefore:\n%s", strings.Join(have, "\n"), strings.Join(before, "\n"))
	}
	if _, err := g.Plan(t.Context(), g.cfg.Store.Current().Document); err == nil || !strings.Contains(err.Error(), "VRF BARE") {
		t.Errorf("plan of a document that does not compile: %v", err)
	}
	g.commit(config.Mutation{Action: "peer del", VRF: "BARE", Name: "x"})
	g.wantHealthy()
}

// What the daemon reads at start only is told when it changes, and no more once it is changed back; the rest takes effect.
func TestListenersNeedRestart(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.wantHealthy()
	const vtep = "vtep: 10.255.0.1\n"
	set := func(old, new string) {
		t.Helper()
		if err := g.rewriteFile(old, new); err != nil {
			t.Fatal(err)
		}
	}
	const metrics = "        metrics: 127.0.0.1:9100\n"
	const api = "        api: {listen: 127.0.0.1:9101, cert-file: /a, key-file: /b, ca-file: /c}\n"
	set(vtep, vtep+metrics)
	g.wantProblem("generation 2", "metrics address", "takes effect with a restart")
	set(metrics, api)
	g.wantProblem("generation 3", "gateway gw's api", "takes effect with a restart")
	if s := g.Snapshot().Site; s.Generation != 3 {
		t.Errorf("%+v", s)
	}
	set(api, "")
	g.wantHealthy()
}

// A document that is not valid never becomes a generation; the problem says what is wrong with it.
func TestBadDocument(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.wantHealthy()
	if err := g.rewriteFile("table: 201", "table: 200"); err == nil {
		t.Fatal("taken")
	}
	waitFor(t, "the problem", func() (any, bool) {
		s := g.Snapshot().Site
		return s, s.Generation == 1 && len(s.Problems) > 0 && strings.Contains(s.Problems[0], "200")
	})
}

// A prefix comes and goes as the intent says.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.wantRoutes(static)
	p := netip.MustParsePrefix("10.7.0.0/16")
	g.commit(config.Mutation{Action: "prefix add", VRF: "CORE", Prefix: &config.Prefix{Prefix: p, NextHop: netip.MustParseAddr("10.1.0.7")}})
	g.wantRoutes(static, "10.7.0.0/16 via 10.1.0.7 dev eth1")
	g.wantHealthy()
	var lines []string
	for _, st := range g.Snapshot().Prefixes {
		lines = append(lines, fmt.Sprintf("%s %s %s %v %s", st.VRF, st.Prefix, st.Source, st.Announced, st.Err))
	}
	want := []string{"CORE 10.1.0.0/16 document true ", "CORE 10.7.0.0/16 mutation true ", "CORE 10.8.0.1/32 loopback true ", "CORE 10.9.0.0/16 document true "}
	if !slices.Equal(lines, want) {
		t.Errorf("prefixes %q, want %q", lines, want)
	}
	g.commit(config.Mutation{Action: "prefix del", VRF: "CORE", Prefix: &config.Prefix{Prefix: p}})
	g.wantRoutes(static)
	g.wantHealthy()
}

// Many prefixes that are attached as well as listed are shown once each, and none as wrong.
func TestPrefixesAttached(t *testing.T) {
	t.Parallel()
	var loopbacks, prefixes []string
	for i := range 30 {
		loopbacks = append(loopbacks, fmt.Sprintf("10.8.1.%d/32", i))
		prefixes = append(prefixes, fmt.Sprintf("              - {prefix: 10.8.1.%d/32}\n", i))
	}
	doc := strings.Replace(document, "10.8.0.1/32", strings.Join(loopbacks, ", "), 1)
	doc = strings.Replace(doc, "            prefixes:\n", "            prefixes:\n"+strings.Join(prefixes, ""), 1)
	g := newGate(t, doc).start()
	ps := g.Snapshot().Prefixes
	for _, p := range ps {
		if p.Err != "" {
			t.Errorf("%s: %s", p.Prefix, p.Err)
		}
	}
	if len(ps) != 32 {
		t.Errorf("%d prefixes", len(ps))
	}
}

// Draining takes back what the gateway announces and leaves forwarding as it is.
func TestDrain(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	announced := func() (out []string) {
		in := g.Site.intent.Load()
		if len(in.bgp.Originations) > 0 {
			g.rib.Walk("CORE", func(c rib.Choice) bool {
				if !c.Best.LocalOnly && c.Best.Key.Source.Kind != rib.Fabric {
					out = append(out, c.Key.Prefix.String())
				}
				return true
			})
		}
		return out
	}
	want := []string{"10.1.0.0/16", "10.8.0.1/32", "10.9.0.0/16"}
	waitFor(t, "announced", func() (any, bool) { have := announced(); return have, slices.Equal(have, want) })
	g.commit(config.Mutation{Action: "site drain"})
	waitFor(t, "nothing announced", func() (any, bool) { have := announced(); return have, len(have) == 0 })
	g.wantHealthy()
	if s := g.Snapshot(); !s.Site.Drained || slices.ContainsFunc(s.Prefixes, func(p PrefixStatus) bool { return p.Announced }) || len(s.Prefixes) != 3 {
		t.Errorf("drained %v, prefixes %+v", s.Site.Drained, s.Prefixes)
	}
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.commit(config.Mutation{Action: "site undrain"})
	waitFor(t, "announced again", func() (any, bool) { have := announced(); return have, slices.Equal(have, want) })
	g.wantHealthy()
}

// Peers and whole VRFs come and go; what a neighbour said goes with it.
func TestPeerAndVRFGo(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"), fromCE("10.3.0.0/16", "10.1.0.2"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 via 10.1.0.2")
	g.commit(peerDisable("ce"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	g.wantHealthy()
	if err := g.rewriteFile(`          - vrf: OPS
            interfaces: [{name: eth2, addresses: [10.1.0.1/24]}]
`, ""); err != nil {
		t.Fatal(err)
	}
	g.wantHealthy()
	if left := strings.Join(dump(t, g.kernel), "\n"); strings.Contains(left, overlay.VXLANDevice(1001)) || strings.Contains(left, "table 201") {
		t.Errorf("left of OPS:\n%s", left)
	}
}

// A plan is empty when nothing differs, and says what a change would do; it does nothing.
func TestPlan(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantHealthy()
	steps := len(g.kernel.Applied())
	for _, c := range []struct {
		old, new string
		want     []string
	}{
		{"fabric:", "fabric:", nil},
		{"mesh", "mesh", nil},
		{"loopbacks: [10.8.0.1/32]", "loopbacks: [10.8.0.1/32, 10.8.0.2/32]", []string{
			"create address 10.8.0.2/32 dev lo", "create rule 106:", "create route 10.8.0.2/32 in table 200", "create connected prefix 10.8.0.2/32 in VRF CORE"}},
		{"{name: ce, address: 10.1.0.2, asn: 65100}", "{name: ce2, address: 10.1.0.3, asn: 65100}", []string{
			"create session with peer ce2 in VRF CORE", "delete session with peer ce in VRF CORE"}},
		{"table: 200, vni: 1000", `table: 200, vni: 1000, import-rt: ["64512:7"]`, []string{"replace import of VRF CORE from other gateways"}},
		{"table: 200, vni: 1000", `table: 200, vni: 1000, export-rt: ["64512:7"]`, []string{"replace announcement of VRF CORE to other gateways"}},
		{"asn: 65001", "asn: 65009", []string{"replace BGP speaker towards other gateways", "replace BGP speaker of VRF CORE"}},
		{"203.0.113.2", "203.0.113.9", []string{"replace tunnel"}},
		{"vni: 1001", "vni: 1009", []string{"create link " + overlay.VXLANDevice(1009), "delete link " + overlay.VXLANDevice(1001)}},
		{"gateways:\n      - name: gw", "cloud: {provider: alibaba, vrf: CORE}\n    gateways:\n      - name: gw", []string{"create VPC tables kept from VRF CORE"}},
		{"asn: 65001", "drained: true\n        asn: 65001", []string{
			"replace static prefix 10.9.0.0/16", "delete announcement of VRF CORE to other gateways"}},
	} {
		doc, err := config.Parse("fabric.yaml", []byte(strings.Replace(document, c.old, c.new, 1)))
		if err != nil {
			t.Fatal(err)
		}
		have, err := g.Plan(t.Context(), doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range c.want {
			if !slices.ContainsFunc(have, func(l string) bool { return strings.HasPrefix(l, w) }) {
				t.Errorf("%s: %q is not in the plan %q", c.new, w, have)
			}
		}
		if (len(have) == 0) != (len(c.want) == 0) {
			t.Errorf("%s: plan %q", c.new, have)
		}
	}
	if more := g.kernel.Applied()[steps:]; len(more) > 0 {
		t.Errorf("planning changed the host: %q", more)
	}
}

// A next hop that lies behind another route follows it; a path whose next hop leads nowhere is not used, and explain says why.
func TestRecursiveNextHop(t *testing.T) {
	t.Parallel()
	g := newGate(t, document).start().waitReady()
	nowhere := func(asked string, candidates int) {
		t.Helper()
		x, err := g.Explain("CORE", netip.MustParsePrefix(asked))
		const why = "cannot be used: no next hop reachable: no route to next hop 10.30.0.1 in VRF CORE"
		if err != nil || len(x.Candidates) != candidates || x.Candidates[candidates-1].Why != why {
			t.Errorf("%s is explained as %+v, %v", asked, x, err)
		}
	}
	g.rib.Update(fromCE("10.20.0.0/16", "10.30.0.1"))
	nowhere("10.20.0.0/16", 1)
	nowhere("10.20.1.1/32", 1)
	g.wantRoutes(static)
	g.rib.Update(fromCE("10.20.0.0/15", "10.1.0.2"))
	g.wantRoutes(static, "10.20.0.0/15 via 10.1.0.2")
	nowhere("10.20.1.1/32", 2)
	g.rib.Withdraw(fromCE("10.20.0.0/15", "10.1.0.2").Key)
	g.rib.Update(fromCE("10.30.0.0/24", "10.1.0.2"))
	g.wantRoutes(static, "10.30.0.0/24 via 10.1.0.2 dev eth1", "10.20.0.0/16 via 10.1.0.2 dev eth1")
	g.rib.Update(fromCE("10.30.0.0/25", "10.1.0.3"))
	g.wantRoutes(static, "10.30.0.0/24 via 10.1.0.2", "10.30.0.0/25 via 10.1.0.3", "10.20.0.0/16 via 10.1.0.3 dev eth1")
	g.rib.Withdraw(fromCE("10.30.0.0/24", "10.1.0.2").Key, fromCE("10.30.0.0/25", "10.1.0.3").Key)
	g.wantRoutes(static)
	nowhere("10.20.0.0/16", 1)
}

// A prefix of the document whose next hop leads nowhere is not announced, and its state says why.
func TestPrefixToNowhere(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.Replace(document, "next-hop: 10.1.0.9}", "next-hop: 10.30.0.9}", 1)).start().waitReady()
	state := func(announced bool, why string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("10.9.0.0/16 announced %v, %q", announced, why), func() (any, bool) {
			for _, p := range g.Snapshot().Prefixes {
				if p.VRF == "CORE" && p.Prefix.String() == "10.9.0.0/16" {
					return p, p.Announced == announced && p.Err == why
				}
			}
			return nil, false
		})
	}
	state(false, "no route to next hop 10.30.0.9 in VRF CORE")
	g.wantRoutes()
	g.rib.Update(fromCE("10.30.0.0/16", "10.1.0.2"))
	state(true, "")
	g.wantRoutes("10.30.0.0/16 via 10.1.0.2", "10.9.0.0/16 via 10.1.0.2")
}

// New refuses a gateway that the document does not have, and says how to mend it.
func TestUnknownGateway(t *testing.T) {
	t.Parallel()
	g := newGate(t, document)
	g.cfg.Gateway = "nobody"
	if _, err := New(g.cfg); err == nil || !strings.Contains(err.Error(), `gateway "nobody" is not in the document; --gateway`) {
		t.Errorf("%v", err)
	}
}
