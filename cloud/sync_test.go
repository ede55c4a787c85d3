package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/cloud/cloudtest"
	"fabric/internal/config"
	"fabric/internal/reconcile"
	"fabric/policy"
)

var info = cloud.Info{
	Provider: "model", Region: "r-1", ID: "vpc-1", Instance: "i-gw", Tables: []string{"vtb-1", "vtb-2"},
	CIDRs: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16"), netip.MustParsePrefix("172.18.171.0/24")},
}

var wish = cloud.Wish{Provider: "model", VRF: "CORE", Fabric: "f", Site: "s", Gateway: "gw-1", Quota: 200, Resync: time.Hour}

const mark = "fabric:f:s:gw-1"

var (
	hub    = rib.Source{Kind: rib.Fabric, Name: "hk-1", Addr: netip.MustParseAddr("10.255.0.2")}
	peer   = rib.Source{Kind: rib.Peer, VRF: "CORE", Name: "frr", Addr: netip.MustParseAddr("172.20.0.1")}
	static = rib.Source{Kind: rib.Static, VRF: "CORE"}
	local  = rib.Source{Kind: rib.Connected, VRF: "CORE"}
	target = rib.RT{0, 2, 0, 1, 0, 0, 0, 1}
)

// world is a gateway's RIB, a VPC in memory and the Sync between them.
type world struct {
	t    *testing.T
	rib  *rib.Table
	vpc  *cloudtest.Model
	sync *cloud.Sync
	stop context.CancelFunc
	done chan error
}

func newWorld(t *testing.T, edit ...func(*cloud.Wish)) *world {
	t.Helper()
	w := &world{t: t, rib: rib.NewTable(), vpc: cloudtest.New(info)}
	w.rib.SetVRFs([]rib.VRF{{Name: "CORE", Import: []rib.RT{target}}})
	ask := wish
	for _, e := range edit {
		e(&ask)
	}
	w.start(&ask)
	t.Cleanup(func() {
		w.halt()
		if w.vpc.Clashed() {
			t.Error("two writes ran at once in one VPC")
		}
	})
	return w
}

// start runs a new Sync, as a restarted daemon does.
func (w *world) start(ask *cloud.Wish) {
	w.t.Helper()
	w.sync = cloud.NewSync(cloud.Config{
		RIB: w.rib, Open: w.vpc.Open, DeleteHold: time.Hour, Backoff: reconcile.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
	})
	w.sync.Configure(ask)
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.done = make(chan error, 1)
	run := w.sync
	go func() { w.done <- run.Run(ctx) }()
}

func (w *world) halt() {
	w.t.Helper()
	w.stop()
	select {
	case err := <-w.done:
		if err != nil {
			w.t.Errorf("Run returned %v", err)
		}
		w.done <- nil
	case <-time.After(10 * time.Second):
		w.t.Fatal("Run did not return")
	}
}

func (w *world) tell(s rib.Source, prefixes ...string) {
	for _, p := range prefixes {
		path := rib.Path{Key: rib.PathKey{Source: s, Prefix: netip.MustParsePrefix(p)}, Attrs: rib.Attrs{NextHop: s.Addr, LocalPref: 100}}
		if s.Kind == rib.Fabric {
			path.Attrs.RTs = []rib.RT{target}
		}
		w.rib.Update(path)
	}
}

func (w *world) withdraw(s rib.Source, prefixes ...string) {
	for _, p := range prefixes {
		w.rib.Withdraw(rib.PathKey{Source: s, Prefix: netip.MustParsePrefix(p)})
	}
}

// until waits for something to become so.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never came: %s\ntables:\n%sstatus: %+v", what, w.vpc, w.sync.Tables())
		}
	}
}

// table waits until vtb-1 holds these entries of ours, "PREFIX via HOP" each, and the loop is at rest with them.
func (w *world) table(want ...string) {
	w.t.Helper()
	w.until(strings.Join(want, ", "), func() bool { return slices.Equal(w.ours(), want) })
}

func (w *world) ours() []string {
	var got []string
	for l := range strings.Lines(w.vpc.String()) {
		if p, ok := strings.CutPrefix(l, "vtb-1 "); ok {
			if p, ok := strings.CutSuffix(p, " "+mark+"\n"); ok {
				got = append(got, p)
			}
		}
	}
	return got
}

func (w *world) inSync() {
	w.t.Helper()
	w.until("in sync", func() bool {
		ts := w.sync.Tables()
		return len(ts) > 0 && !slices.ContainsFunc(ts, func(t cloud.TableStatus) bool { return !t.InSync })
	})
}

func (w *world) state(p string) string {
	return w.sync.State(rib.Key{VRF: "CORE", Prefix: netip.MustParsePrefix(p)})
}

func TestRoutesFollowTheRIB(t *testing.T) {
	w := newWorld(t)
	w.tell(hub, "172.31.0.0/16", "172.20.0.0/16")
	w.tell(peer, "192.168.7.0/24")
	w.tell(static, "192.168.8.0/24", "172.18.171.247/32")
	w.tell(local, "192.168.9.0/24")
	w.rib.Release()
	w.table("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw", "192.168.7.0/24 via i-gw", "192.168.8.0/24 via i-gw")
	w.inSync()
	ts := w.sync.Tables()
	if len(ts) != 2 || ts[0].Table != "vtb-1" || ts[0].VPC != "vpc-1" || ts[0].Region != "r-1" || ts[0].Instance != "i-gw" ||
		ts[0].Desired != 4 || ts[0].Owned != 4 || ts[0].Quota != 200 || len(ts[0].Plan) != 0 || ts[0].LastSync.IsZero() || len(ts[0].Entries) != 4 {
		t.Errorf("status %+v", ts)
	}
	for p, want := range map[string]string{"172.31.0.0/16": "available", "172.18.171.247/32": "", "192.168.9.0/24": "", "10.0.0.0/8": ""} {
		if got := w.state(p); got != want {
			t.Errorf("state of %s: %q, want %q", p, got, want)
		}
	}
	w.withdraw(hub, "172.20.0.0/16")
	w.table("172.31.0.0/16 via i-gw", "192.168.7.0/24 via i-gw", "192.168.8.0/24 via i-gw")
	w.inSync()
}

// Nothing that is none of ours, or would hurt the VPC, is ever written, and explain says why.
func TestLeftOut(t *testing.T) {
	w := newWorld(t, func(w *cloud.Wish) { w.Protected = []netip.Prefix{netip.MustParsePrefix("203.0.113.20/32")} })
	w.tell(hub, "172.31.0.0/16", "0.0.0.0/0", "100.64.0.0/10", "100.100.0.0/16", "172.18.0.0/16", "172.18.5.0/24", "203.0.113.0/24", "203.0.113.20/32",
		"10.0.0.0/31", "127.0.0.0/8", "2001:db8::/32", "172.16.0.0/12")
	w.rib.Release()
	w.table("172.16.0.0/12 via i-gw", "172.31.0.0/16 via i-gw")
	w.inSync()
	for p, want := range map[string]string{
		"0.0.0.0/0": "export policy", "100.64.0.0/10": "guard/shared-address", "100.100.0.0/16": "guard/shared-address", "203.0.113.0/24": "tunnels",
		"203.0.113.20/32": "tunnels", "10.0.0.0/31": "guard", "127.0.0.0/8": "guard", "2001:db8::/32": "IPv4",
	} {
		if got := w.state(p); !strings.HasPrefix(got, "left out: ") || !strings.Contains(got, want) {
			t.Errorf("state of %s: %q, want it to name %q", p, got, want)
		}
	}
}

func compiled(t *testing.T, terms ...config.Term) policy.Policy {
	t.Helper()
	p, err := policy.Compile(config.Policy{Name: "EXPORT", Terms: terms})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExportPolicy(t *testing.T) {
	allow := func(prefixes ...string) policy.Policy {
		return compiled(t, config.Term{Name: "some", Match: config.Match{Prefixes: prefixes}, Then: "accept"})
	}
	w := newWorld(t, func(w *cloud.Wish) { w.Export = allow("172.16.0.0/12 le 32") })
	w.tell(hub, "172.31.0.0/16", "10.1.0.0/16", "0.0.0.0/0")
	w.rib.Release()
	w.table("172.31.0.0/16 via i-gw")
	if got := w.state("10.1.0.0/16"); got != "left out: refused by EXPORT/default" {
		t.Errorf("state %q", got)
	}
	// A changed policy is applied to all choices, and may let a default route in by name.
	ask := wish
	ask.Export = allow("10.0.0.0/8 le 32", "0.0.0.0/0")
	w.sync.Configure(&ask)
	w.table("0.0.0.0/0 via i-gw", "10.1.0.0/16 via i-gw")
	if w.vpc.Opens() != 1 {
		t.Error("a changed policy opened the VPC anew")
	}
}

// A restarted daemon finds its entries, and knows nothing yet: it must neither delete nor write.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.tell(hub, "172.31.0.0/16", "172.20.0.0/16")
	w.rib.Release()
	w.table("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw")
	w.inSync()
	w.halt()
	w.vpc.Writes()

	w.rib = rib.NewTable()
	w.rib.SetVRFs([]rib.VRF{{Name: "CORE", Import: []rib.RT{target}}})
	w.rib.Expect([]rib.Source{hub, peer})
	w.start(&wish)
	w.tell(hub, "172.20.0.0/16")
	w.until("one wanted", func() bool { ts := w.sync.Tables(); return ts[0].Desired == 1 && ts[0].Owned == 2 })
	w.rib.EndOfRIB(hub)
	if got := w.ours(); len(got) != 2 || len(w.sync.Tables()[0].Plan) != 0 {
		t.Errorf("before the last peer has spoken: %q, %q", got, w.sync.Tables()[0].Plan)
	}
	// Told and taken back before the end: still kept.
	w.tell(peer, "192.168.7.0/24")
	w.table("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw", "192.168.7.0/24 via i-gw")
	w.withdraw(peer, "192.168.7.0/24")
	w.tell(peer, "192.168.6.0/24") // its arrival shows that the withdrawal was seen
	w.table("172.20.0.0/16 via i-gw", "172.31.0.0/16 via i-gw", "192.168.6.0/24 via i-gw", "192.168.7.0/24 via i-gw")
	if ws := w.vpc.Writes(); slices.ContainsFunc(ws, func(s string) bool { return strings.HasPrefix(s, "delete") }) {
		t.Errorf("writes %q", ws)
	}
	w.rib.EndOfRIB(peer)
	w.table("172.20.0.0/16 via i-gw", "192.168.6.0/24 via i-gw")

	// And once more, with everything known at once: no write at all.
	w.inSync()
	w.halt()
	w.vpc.Writes()
	w.start(&wish)
	w.inSync()
	if ws := w.vpc.Writes(); len(ws) != 0 {
		t.Errorf("a restart wrote %q", ws)
	}
}

func TestForeign(t *testing.T) {
	w := newWorld(t, func(w *cloud.Wish) { w.Resync = 20 * time.Millisecond })
	w.vpc.Set("vtb-1", "172.31.0.0/16", cloudtest.Entry{NextHop: "i-x", Mark: "billing team"})
	w.vpc.Set("vtb-1", "172.20.0.0/16", cloudtest.Entry{NextHop: "tr-1", Kind: "dynamic"})
	w.vpc.Set("vtb-2", "172.31.0.0/16", cloudtest.Entry{NextHop: "i-gw2", Mark: "fabric:f:s:gw-2"})
	w.tell(hub, "172.31.0.0/16", "172.20.0.0/16", "172.21.0.0/16")
	w.rib.Release()
	w.table("172.21.0.0/16 via i-gw")
	w.until("conflicts told", func() bool {
		var conflicts []string
		for _, ts := range w.sync.Tables() {
			for _, e := range ts.Entries {
				if e.State == cloud.Conflict {
					conflicts = append(conflicts, ts.Table+" "+e.Prefix.String())
				}
			}
		}
		return slices.Equal(conflicts, []string{"vtb-1 172.20.0.0/16", "vtb-1 172.31.0.0/16", "vtb-2 172.31.0.0/16"})
	})
	ts := w.sync.Tables()
	if ts[0].InSync || ts[1].InSync || ts[0].Foreign != 1 || !strings.Contains(ts[0].Err, "billing team") || !strings.Contains(ts[1].Err, "gateway gw-2 of this site") {
		t.Errorf("status %+v", ts)
	}
	if got := w.state("172.31.0.0/16"); !strings.Contains(got, "not ours") {
		t.Errorf("state %q", got)
	}
	// Whoever made it takes it away; the next look puts ours there.
	w.vpc.Remove("vtb-1", "172.31.0.0/16")
	w.table("172.21.0.0/16 via i-gw", "172.31.0.0/16 via i-gw")
}

// What does not fit is named, and which it is does not depend on the order of events: what is there stays, then the
// wider prefixes.
func TestQuota(t *testing.T) {
	var ask cloud.Wish
	w := newWorld(t, func(w *cloud.Wish) { w.Quota = 3; ask = *w })
	w.tell(hub, "10.5.1.0/24", "10.5.2.0/24")
	w.rib.Release()
	w.table("10.5.1.0/24 via i-gw", "10.5.2.0/24 via i-gw")
	// The three are seen at once: the first alone would be there before the wider one comes.
	w.halt()
	w.tell(hub, "10.3.0.0/24", "10.2.0.0/16", "10.4.0.0/24")
	w.start(&ask)
	w.table("10.2.0.0/16 via i-gw", "10.5.1.0/24 via i-gw", "10.5.2.0/24 via i-gw")
	w.until("what is left out is named", func() bool {
		ts := w.sync.Tables()[0]
		return !ts.InSync && ts.Desired == 5 && ts.Owned == 3 && strings.Contains(ts.Err, "no room for 10.3.0.0/24, 10.4.0.0/24")
	})
	if got := w.state("10.4.0.0/24"); !strings.Contains(got, "no room") {
		t.Errorf("state %q", got)
	}
	// One goes, the next comes, with the delete first.
	w.vpc.Writes()
	w.withdraw(hub, "10.5.1.0/24")
	w.table("10.2.0.0/16 via i-gw", "10.3.0.0/24 via i-gw", "10.5.2.0/24 via i-gw")
}

// The vendor's limit, learnt from its refusal, is as good as ours, and others' entries count.
func TestVendorLimit(t *testing.T) {
	w := newWorld(t)
	w.vpc.Set("vtb-1", "192.0.2.0/24", cloudtest.Entry{NextHop: "i-x", Mark: "billing team"})
	w.vpc.SetLimit(3)
	w.tell(hub, "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")
	w.rib.Release()
	w.table("10.1.0.0/16 via i-gw", "10.2.0.0/16 via i-gw")
	w.until("named", func() bool { return strings.Contains(w.sync.Tables()[0].Err, "no room for 10.3.0.0/16") })
	if q := w.sync.Tables()[0].Quota; q != 2 {
		t.Errorf("quota %d", q)
	}
}

func TestMassDeleteIsHeld(t *testing.T) {
	w := newWorld(t)
	var ps []string
	for i := range 20 {
		ps = append(ps, fmt.Sprintf("10.%d.0.0/16", i+1))
	}
	w.tell(hub, ps...)
	w.rib.Release()
	w.until("all there", func() bool { return len(w.ours()) == 20 })
	w.inSync()
	w.rib.WithdrawSource(hub)
	w.until("held", func() bool { return strings.Contains(w.sync.Tables()[0].Err, "held back") })
	if n := len(w.ours()); n != 20 {
		t.Errorf("%d entries are left", n)
	}
	if plan := w.sync.Tables()[0].Plan; len(plan) != 20 || plan[0] != "delete 10.1.0.0/16 via i-gw" {
		t.Errorf("plan %q", plan)
	}
	if n := w.sync.Approve(); n != 20*len(w.sync.Tables()) {
		t.Errorf("%d deletes were approved", n)
	}
	w.table()
	if n := w.sync.Approve(); n != 0 {
		t.Errorf("%d deletes were approved with none held", n)
	}
}

// The same hold ends by itself.
func TestHoldEnds(t *testing.T) {
	w := newWorld(t)
	w.halt()
	w.sync = cloud.NewSync(cloud.Config{RIB: w.rib, Open: w.vpc.Open, DeleteHold: 50 * time.Millisecond, Backoff: reconcile.Backoff{Min: time.Millisecond}})
	for i := range 20 {
		w.vpc.Set("vtb-1", fmt.Sprintf("10.%d.0.0/16", i+1), cloudtest.Entry{NextHop: "i-gw", Mark: mark})
	}
	w.sync.Configure(&wish)
	ctx, cancel := context.WithCancel(t.Context())
	w.stop = cancel
	go func() { w.done <- w.sync.Run(ctx) }()
	<-w.done // the first Run's
	w.rib.Release()
	w.table()
}

func TestFailures(t *testing.T) {
	w := newWorld(t)
	w.halt()
	<-w.done
	boom := errors.New("boom")
	for _, call := range []string{"open", "open", "describe", "observe vtb-2", "create 10.1.0.0/16 vtb-1", "create 10.2.0.0/16 vtb-2", "observe vtb-1"} {
		w.vpc.Fail(call, boom)
	}
	w.start(&wish)
	w.tell(hub, "10.1.0.0/16", "10.2.0.0/16")
	w.rib.Release()
	w.table("10.1.0.0/16 via i-gw", "10.2.0.0/16 via i-gw")
	w.inSync()
	// A failed delete is done later, and a failed look never reads as an empty table.
	w.vpc.Fail("delete 10.1.0.0/16 vtb-1", boom)
	w.vpc.Fail("observe vtb-1", boom)
	w.withdraw(hub, "10.1.0.0/16")
	w.table("10.2.0.0/16 via i-gw")
	w.inSync()
}

// While the VPC cannot be opened the status says why; the wish may change meanwhile.
func TestNotOpen(t *testing.T) {
	w := newWorld(t)
	w.halt()
	<-w.done
	for range 1000 {
		w.vpc.Fail("open", errors.New("no metadata service"))
	}
	w.start(&wish)
	w.until("the reason", func() bool {
		ts := w.sync.Tables()
		return len(ts) == 1 && strings.Contains(ts[0].Err, "no metadata service") && !ts[0].InSync
	})
	if got := w.state("10.1.0.0/16"); got != "" {
		t.Errorf("state %q", got)
	}
	w.sync.Configure(nil)
	w.until("no status", func() bool { return len(w.sync.Tables()) == 0 })
}

// A gateway that is no longer wanted leaves what it wrote, and stops writing.
func TestConfigureNil(t *testing.T) {
	w := newWorld(t)
	w.tell(hub, "10.1.0.0/16")
	w.rib.Release()
	w.table("10.1.0.0/16 via i-gw")
	w.sync.Configure(nil)
	w.until("no status", func() bool { return len(w.sync.Tables()) == 0 })
	w.withdraw(hub, "10.1.0.0/16")
	w.sync.Configure(&wish)
	w.table()
}

// A new instance id moves every entry in place.
func TestInstanceChanges(t *testing.T) {
	w := newWorld(t)
	w.tell(hub, "10.1.0.0/16", "10.2.0.0/16")
	w.rib.Release()
	w.inSync()
	w.until("there", func() bool { return len(w.ours()) == 2 })
	w.vpc.Writes()
	next := info
	next.Instance, next.Tables = "i-new", []string{"vtb-1"}
	w.vpc.SetInfo(next)
	ask := wish
	ask.Instance = "i-new"
	w.sync.Configure(&ask)
	w.table("10.1.0.0/16 via i-new", "10.2.0.0/16 via i-new")
	if ws := w.vpc.Writes(); !slices.Equal(ws, []string{"replace 10.1.0.0/16 via i-new in vtb-1", "replace 10.2.0.0/16 via i-new in vtb-1"}) {
		t.Errorf("writes %q", ws)
	}
}

// The plan is there to be read while it is carried out, and what is under way is pending.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	w.halt()
	<-w.done
	w.vpc.Gate = make(chan struct{})
	w.vpc.Set("vtb-1", "10.2.0.0/16", cloudtest.Entry{NextHop: "i-old", Mark: mark})
	w.vpc.Set("vtb-1", "10.3.0.0/16", cloudtest.Entry{NextHop: "i-gw", Mark: mark})
	w.tell(hub, "10.1.0.0/16", "10.2.0.0/16")
	w.rib.Release()
	w.start(&wish)
	want := []string{"create 10.1.0.0/16 via i-gw", "replace 10.2.0.0/16 via i-gw, was via i-old", "delete 10.3.0.0/16 via i-gw"}
	w.until("the plan", func() bool {
		ts := w.sync.Tables()
		return len(ts) > 0 && slices.Equal(ts[0].Plan, want) && w.state("10.1.0.0/16") == "pending" &&
			ts[0].Entries[1].State == cloud.Modifying && ts[0].Entries[2].State == cloud.Deleting
	})
	close(w.vpc.Gate)
	w.table("10.1.0.0/16 via i-gw", "10.2.0.0/16 via i-gw")
	w.inSync()
}

// A specific entry is kept until the aggregate that replaces it is there.
func TestAggregateFirst(t *testing.T) {
	w := newWorld(t)
	w.tell(hub, "10.1.1.0/24", "10.1.2.0/24")
	w.rib.Release()
	w.inSync()
	w.until("there", func() bool { return len(w.ours()) == 2 })
	w.vpc.Writes()
	boom := errors.New("boom")
	w.vpc.Fail("create 10.1.0.0/16 vtb-1", boom)
	w.tell(hub, "10.1.0.0/16")
	w.withdraw(hub, "10.1.1.0/24", "10.1.2.0/24")
	w.table("10.1.0.0/16 via i-gw")
	var ws []string
	for _, s := range w.vpc.Writes() {
		if strings.HasSuffix(s, "in vtb-1") {
			ws = append(ws, s)
		}
	}
	if len(ws) != 3 || ws[0] != "create 10.1.0.0/16 via i-gw in vtb-1" {
		t.Errorf("writes %q", ws)
	}
}
