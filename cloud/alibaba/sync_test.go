package alibaba

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/internal/reconcile"
	"fabric/lab/cloudemu"
)

var (
	target = rib.RT{0, 2, 0, 1, 0, 0, 0, 1}
	hub    = rib.Source{Kind: rib.Fabric, Name: "hk-1", Addr: netip.MustParseAddr("10.255.0.2")}
)

// gateway is the whole way from a RIB to the emulated table.
type gateway struct {
	*emu
	rib  *rib.Table
	sync *cloud.Sync
	stop context.CancelFunc
	done chan struct{}
}

func newGateway(e *emu) *gateway {
	g := &gateway{emu: e, rib: rib.NewTable()}
	g.rib.SetVRFs([]rib.VRF{{Name: "CORE", Import: []rib.RT{target}}})
	g.start()
	e.t.Cleanup(func() { g.halt() })
	return g
}

func (g *gateway) start() {
	g.sync = cloud.NewSync(cloud.Config{RIB: g.rib, Open: g.opener, Log: g.logs.logger(), Backoff: reconcile.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond}})
	g.sync.Configure(&g.wish)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	g.stop, g.done = cancel, done
	run := g.sync
	go func() { defer close(done); _ = run.Run(ctx) }()
}

func (g *gateway) halt() {
	g.t.Helper()
	g.stop()
	select {
	case <-g.done:
	case <-time.After(10 * time.Second):
		g.t.Error("Run does not return")
	}
}

func (g *gateway) tell(prefixes ...string) {
	for _, p := range prefixes {
		g.rib.Update(rib.Path{Key: rib.PathKey{Source: hub, Prefix: pfx(p)}, Attrs: rib.Attrs{NextHop: hub.Addr, LocalPref: 100, RTs: []rib.RT{target}}})
	}
}

func (g *gateway) until(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("never came: %s\n%s\n%+v\n%s", what, g.entries("vtb-sz"), g.sync.Tables(), g.logs)
		}
	}
}

// holds waits until the table holds these of ours, besides others' entries as they were, and all is in order.
func (g *gateway) holds(want ...string) {
	g.t.Helper()
	mark := " " + g.wish.Mark() + "\n"
	g.until(strings.Join(want, ", "), func() bool {
		var ours, others []string
		for l := range strings.Lines(g.entries("vtb-sz")) {
			if p, ok := strings.CutSuffix(l, mark); ok {
				ours = append(ours, p)
			} else {
				others = append(others, l)
			}
		}
		return strings.Join(ours, ", ") == strings.Join(want, ", ") && strings.Join(others, "") == untouched
	})
}

func (g *gateway) inSync() {
	g.t.Helper()
	g.until("in sync", func() bool { ts := g.sync.Tables(); return len(ts) == 1 && ts[0].InSync })
}

func TestSync(t *testing.T) {
	for _, profile := range []string{"instant", "realistic"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			e := newEmu(t, profile)
			e.wish.Resync = 100 * time.Millisecond
			g := newGateway(e)
			g.tell("172.31.0.0/16", "172.20.0.0/16", "172.18.0.0/16", "172.18.171.0/24", "10.200.1.0/24", "100.64.1.0/24", "10.9.0.0/16", "10.7.0.0/16", "192.0.2.0/24")
			g.rib.Release()
			g.holds("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw")
			g.until("conflicts named", func() bool {
				ts := g.sync.Tables()
				return len(ts) == 1 && strings.Contains(ts[0].Err, "a dynamic route of CEN") && strings.Contains(ts[0].Err, "gateway sz-2 of this site") && strings.Contains(ts[0].Err, "somebody-else")
			})
			g.rib.WithdrawSource(hub)
			g.tell("172.31.0.0/16", "172.20.0.0/16")
			g.inSync()

			// Drift is repaired, by whoever it was made.
			if err := g.Do(cloudemu.External{Op: "delete", Table: "vtb-sz", CIDR: "172.31.0.0/16"}); err != nil {
				t.Fatal(err)
			}
			if err := g.Do(cloudemu.External{Op: "modify", Table: "vtb-sz", CIDR: "172.20.0.0/16", NextHopType: "Instance", NextHopID: "i-host", Description: g.wish.Mark()}); err != nil {
				t.Fatal(err)
			}
			g.holds("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw")

			// A restart adopts what is there and writes nothing.
			g.inSync()
			g.halt()
			g.control("DELETE", "requests", "", nil)
			g.start()
			g.inSync()
			if n := g.writes(""); n != 0 {
				t.Errorf("a restart made %d writes", n)
			}
			g.rib.Withdraw(rib.PathKey{Source: hub, Prefix: pfx("172.20.0.0/16")})
			g.holds("172.31.0.0/16 via i-gw")
			g.behaved()
		})
	}
}

// Everything goes wrong now and then, and the table is right in the end.
func TestSyncUnderFire(t *testing.T) {
	for _, profile := range []string{"instant", "realistic"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			e := newEmu(t, profile)
			e.wish.Resync = 100 * time.Millisecond
			e.timing.Call = 200 * time.Millisecond
			g := newGateway(e)
			for _, effect := range []cloudemu.Effect{
				{DropAfterApply: true, CloseConn: true}, {CloseConn: true}, {GarbageBody: true}, {HTMLBody: true, HTTP: 502}, {Truncate: true},
				{Code: "Throttling.User"}, {Code: "TaskConflict"}, {Code: "InternalError", HTTP: 500}, {Vanish: true}, {DropAfterApply: true},
			} {
				e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Probability: 0.05}, Do: effect, Times: 20})
			}
			var want []string
			for i := range 12 {
				p := fmt.Sprintf("10.%d.0.0/16", 20+i)
				g.tell(p)
				want = append(want, p+" via i-gw")
			}
			g.rib.Release()
			g.holds(want...)
			for i := range 3 {
				g.rib.Withdraw(rib.PathKey{Source: hub, Prefix: pfx(fmt.Sprintf("10.%d.0.0/16", 20+i))})
			}
			g.holds(want[3:]...)
			g.control("DELETE", "fault", "", nil)
			g.inSync()
			f := g.requests().Findings
			if f.UnownedWrites != 0 || f.UnstableRetries != 0 || f.OverlapWrites != 0 {
				t.Errorf("findings %+v", f)
			}
			leaks(t, e.logs.String())
		})
	}
}

func TestSyncQuota(t *testing.T) {
	e := newEmu(t, "instant")
	e.wish.Resync = 50 * time.Millisecond
	e.control("POST", "quota", `{"table": "vtb-sz", "routeEntries": 5}`, nil) // three are others'
	g := newGateway(e)
	g.tell("10.21.0.0/16", "10.22.0.0/16", "10.23.0.0/16")
	g.rib.Release()
	g.holds("10.21.0.0/16 via i-gw", "10.22.0.0/16 via i-gw")
	g.until("the third is named", func() bool { return strings.Contains(g.sync.Tables()[0].Err, "no room for 10.23.0.0/16") })
	n := g.writes("")
	looks := len(g.requests().Requests)
	g.until("several more looks", func() bool { return len(g.requests().Requests) > looks+5 })
	if m := g.writes(""); m != n {
		t.Errorf("%d more writes into a full table", m-n)
	}
	g.rib.Withdraw(rib.PathKey{Source: hub, Prefix: pfx("10.21.0.0/16")})
	g.holds("10.22.0.0/16 via i-gw", "10.23.0.0/16 via i-gw")
	g.behaved()
}
