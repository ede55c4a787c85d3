package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// wait makes a change wait; it converges at once where the gateway follows the store.
var wait = &fabricv1.ChangeOptions{WaitMs: uint32(patience.Milliseconds())}

// What is asked of a peer's next hops is what it has.
func TestPeerExtendedNextHop(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	six := &fabricv1.PeerConfig{Name: "six", Address: "fd00:20::7", Asn: 65021, Families: []string{"ipv4", "ipv6"}, ExtendedNextHop: true}
	if _, err := r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{Vrf: "CORE", Peer: six, Options: wait}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "six"}); err != nil || !got.GetConfig().GetExtendedNextHop() {
		t.Errorf("show: %v, %v", got, err)
	}
}

func TestPeerLifecycle(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	add, err := r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{
		Vrf: "CORE", Peer: &fabricv1.PeerConfig{Name: "frr", Address: "172.20.0.2", Asn: 65021, MaxPrefix: 7}, Options: wait,
	})
	if err != nil {
		t.Fatal(err)
	}
	res := add.GetResult()
	if res.GetGeneration() != 2 || !res.GetConverged() || !slices.Equal(res.GetPlan(), []string{"add BGP peer frr in VRF CORE"}) {
		t.Errorf("result %v", res)
	}
	got, err := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "172.20.0.2"})
	if err != nil || got.GetPeer().GetName() != "frr" || got.GetConfig().GetMaxPrefix() != 7 || got.GetPeer().GetState() != "established" {
		t.Errorf("show: %v, %v", got, err)
	}
	if _, err := r.client.DisablePeer(ctx, &fabricv1.DisablePeerRequest{Name: "frr", Options: wait}); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "frr"}); !got.GetConfig().GetDisabled() || got.GetPeer().GetState() != "idle" {
		t.Errorf("disabled peer: %v", got)
	}
	_, err = r.client.ResetPeer(ctx, &fabricv1.ResetPeerRequest{Name: "frr"})
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := r.client.EnablePeer(ctx, &fabricv1.EnablePeerRequest{Name: "frr", Options: wait}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.ResetPeer(ctx, &fabricv1.ResetPeerRequest{Name: "frr", Soft: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.ResetPeer(ctx, &fabricv1.ResetPeerRequest{Name: "hk-1"}); err != nil {
		t.Fatal(err)
	}
	if got := r.gw.Resets(); !slices.Equal(got, []string{"CORE/frr soft=true", "/hk-1 soft=false"}) {
		t.Errorf("resets %q", got)
	}
	if _, err := r.client.DeletePeer(ctx, &fabricv1.DeletePeerRequest{Vrf: "CORE", Name: "frr", Options: wait}); err != nil {
		t.Fatal(err)
	}
	_, err = r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "frr"})
	wantCode(t, err, codes.NotFound)
	gens, err := r.client.ListGenerations(ctx, &fabricv1.ListGenerationsRequest{})
	if err != nil || gens.GetCurrent() != 5 || len(gens.GetGenerations()) != 5 {
		t.Fatalf("history %v, %v", gens, err)
	}
	if g := gens.GetGenerations()[3]; g.GetWho() != "root (uid 0)" || g.GetKind() != "mutation" {
		t.Errorf("generation %v, want it made by root", g)
	}
}

func TestPrefixLifecycle(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	add := func(p *fabricv1.PrefixConfig) *fabricv1.ChangeResult {
		t.Helper()
		res, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "OPS", Prefix: p, Options: wait})
		if err != nil || !res.GetResult().GetConverged() {
			t.Fatalf("%v, %v", res, err)
		}
		return res.GetResult()
	}
	add(&fabricv1.PrefixConfig{Prefix: "172.21.0.0/16", Communities: []string{"65001:7"}})
	add(&fabricv1.PrefixConfig{Prefix: "fd00:21::/48", Local: true})
	got, err := r.client.GetPrefix(ctx, &fabricv1.GetPrefixRequest{Prefix: "172.21.0.0/16"})
	if err != nil || !got.GetPrefix().GetAnnounced() || got.GetConfig().GetCommunities()[0] != "65001:7" {
		t.Errorf("%v, %v", got, err)
	}
	got, err = r.client.GetPrefix(ctx, &fabricv1.GetPrefixRequest{Prefix: "fd00:21::/48"})
	if err != nil || got.GetPrefix().GetAnnounced() || !got.GetConfig().GetLocal() {
		t.Errorf("local prefix: %v, %v", got, err)
	}
	if _, err := r.client.DeletePrefix(ctx, &fabricv1.DeletePrefixRequest{Prefix: "172.21.0.0/16", Options: wait}); err != nil {
		t.Fatal(err)
	}
	_, err = r.client.DeletePrefix(ctx, &fabricv1.DeletePrefixRequest{Prefix: "172.21.0.0/16"})
	wantCode(t, err, codes.NotFound)
}

func TestDrain(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	if res, err := r.client.DrainSite(ctx, &fabricv1.DrainSiteRequest{Options: wait}); err != nil || !res.GetResult().GetConverged() {
		t.Fatalf("%v, %v", res, err)
	}
	if got, err := r.client.GetSite(ctx, &fabricv1.GetSiteRequest{}); err != nil || !got.GetSite().GetDrained() {
		t.Fatalf("%v, %v", got, err)
	}
	if res, err := r.client.UndrainSite(ctx, &fabricv1.UndrainSiteRequest{Options: wait}); err != nil || !res.GetResult().GetConverged() {
		t.Fatalf("%v, %v", res, err)
	}
	if got, err := r.client.GetSite(ctx, &fabricv1.GetSiteRequest{}); err != nil || got.GetSite().GetDrained() {
		t.Fatalf("%v, %v", got, err)
	}
}

// Every refusal has its code, names its cause and leaves the generation as it is.
func TestRefusals(t *testing.T) {
	peer := func(vrf string, p *fabricv1.PeerConfig) func(context.Context, *rig) error {
		return func(ctx context.Context, r *rig) error {
			_, err := r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{Vrf: vrf, Peer: p})
			return err
		}
	}
	prefix := func(vrf, p string) func(context.Context, *rig) error {
		return func(ctx context.Context, r *rig) error {
			_, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: vrf, Prefix: &fabricv1.PrefixConfig{Prefix: p}})
			return err
		}
	}
	for _, c := range []struct {
		name string
		call func(context.Context, *rig) error
		code codes.Code
		says string
	}{
		{"peer exists", peer("CORE", &fabricv1.PeerConfig{Name: "core-router", Address: "172.20.0.7", Asn: 1}), codes.AlreadyExists, "core-router"},
		{"peer address exists", peer("CORE", &fabricv1.PeerConfig{Address: "172.20.0.1", Asn: 1}), codes.AlreadyExists, "172.20.0.1"},
		{"no such VRF", peer("LAB", &fabricv1.PeerConfig{Address: "172.20.0.7", Asn: 1}), codes.NotFound, `no VRF "LAB"`},
		{"which VRF", peer("", &fabricv1.PeerConfig{Address: "172.20.0.7", Asn: 1}), codes.InvalidArgument, "CORE, OPS"},
		{"bad address and no AS", peer("CORE", &fabricv1.PeerConfig{Address: "x"}), codes.InvalidArgument, `"x" is not an IP address`},
		{"bad port", peer("CORE", &fabricv1.PeerConfig{Address: "172.20.0.7", Asn: 1, Port: 65536}), codes.InvalidArgument, "65536"},
		{"unknown policy", peer("CORE", &fabricv1.PeerConfig{Address: "172.20.0.7", Asn: 1, Import: "nope"}), codes.InvalidArgument, "nope"},
		{"prefix exists", prefix("CORE", "172.18.0.0/16"), codes.AlreadyExists, "172.18.0.0/16"},
		{"host bits", prefix("CORE", "172.18.0.1/16"), codes.InvalidArgument, "did you mean 172.18.0.0/16"},
		{"no prefix", prefix("CORE", ""), codes.InvalidArgument, "ADDRESS/LENGTH"},
		{"another site's prefix", prefix("CORE", "172.31.0.0/16"), codes.InvalidArgument, "172.31.0.0/16"},
		{"gateway is no peer", func(ctx context.Context, r *rig) error {
			_, err := r.client.DeletePeer(ctx, &fabricv1.DeletePeerRequest{Name: "hk-1"})
			return err
		}, codes.FailedPrecondition, "another gateway"},
		{"no such peer", func(ctx context.Context, r *rig) error {
			_, err := r.client.EnablePeer(ctx, &fabricv1.EnablePeerRequest{Name: "nobody"})
			return err
		}, codes.NotFound, "CORE/core-router"},
		{"interface's prefix", func(ctx context.Context, r *rig) error {
			_, err := r.client.DeletePrefix(ctx, &fabricv1.DeletePrefixRequest{Prefix: "172.20.0.0/24"})
			return err
		}, codes.FailedPrecondition, "interface"},
		{"no such generation", func(ctx context.Context, r *rig) error {
			_, err := r.client.RollbackConfig(ctx, &fabricv1.RollbackConfigRequest{Generation: 99})
			return err
		}, codes.NotFound, "99"},
		{"nothing to rebase", func(ctx context.Context, r *rig) error {
			_, err := r.client.RebaseConfig(ctx, &fabricv1.RebaseConfigRequest{})
			return err
		}, codes.FailedPrecondition, "no conflicts"},
		{"stale base", func(ctx context.Context, r *rig) error {
			_, err := r.client.DrainSite(ctx, &fabricv1.DrainSiteRequest{Options: &fabricv1.ChangeOptions{Base: 7}})
			return err
		}, codes.Aborted, "generation 7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			st := wantCode(t, c.call(testContext(t), r), c.code)
			if !strings.Contains(st.Message(), c.says) {
				t.Errorf("message %q does not say %q", st.Message(), c.says)
			}
			if n := r.store.Current().Number; n != 1 {
				t.Errorf("generation %d after a refusal", n)
			}
		})
	}
}

// A document that would not be valid is refused with all its problems as a detail.
func TestProblemsAsDetail(t *testing.T) {
	r := newRig(t, nil)
	_, err := r.client.AddPeer(testContext(t), &fabricv1.AddPeerRequest{Vrf: "CORE", Peer: &fabricv1.PeerConfig{
		Address: "172.20.0.7", Asn: 65021, Import: "nope", Export: "neither",
	}})
	st := wantCode(t, err, codes.InvalidArgument)
	var paths []string
	for _, d := range st.Details() {
		for _, p := range d.(*fabricv1.Problems).GetProblems() {
			if p.GetMessage() == "" || p.GetMend() == "" {
				t.Errorf("problem %v says too little", p)
			}
			paths = append(paths, p.GetPath())
		}
	}
	if len(paths) != 2 {
		t.Errorf("problems at %q, want both policies", paths)
	}
}

func TestDryRun(t *testing.T) {
	r := newRig(t, nil)
	res, err := r.client.AddPrefix(testContext(t), &fabricv1.AddPrefixRequest{
		Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: "172.21.0.0/16"}, Options: &fabricv1.ChangeOptions{DryRun: true, WaitMs: 1000},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := res.GetResult()
	if !got.GetDryRun() || got.GetGeneration() != 1 || !slices.Equal(got.GetPlan(), []string{"add prefix 172.21.0.0/16 in VRF CORE"}) {
		t.Errorf("result %v", got)
	}
	if n := r.store.Current().Number; n != 1 {
		t.Errorf("a dry run made generation %d", n)
	}
}

// The file changes between the plan and the commit: what was planned is not what would happen, so it is refused.
func TestStaleWhileCommitting(t *testing.T) {
	var store *config.Store
	r := newRig(t, func(g *apitest.Gateway) {
		g.OnPlan = func(*config.Document) error {
			p, err := store.Propose(config.Mutation{Action: config.SiteDrain})
			if err == nil {
				_, err = store.Commit(p, "somebody else")
			}
			return err
		}
	})
	store = r.store
	_, err := r.client.AddPrefix(testContext(t), &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: "172.21.0.0/16"}})
	wantCode(t, err, codes.Aborted)
	if cur := r.store.Current(); cur.Number != 2 || cur.Who != "somebody else" {
		t.Errorf("generation %d by %s", cur.Number, cur.Who)
	}
}

// What cannot be planned is not committed.
func TestPlanFails(t *testing.T) {
	r := newRig(t, func(g *apitest.Gateway) {
		g.OnPlan = func(*config.Document) error { return fmt.Errorf("table 200 belongs to networkd") }
	})
	_, err := r.client.DrainSite(testContext(t), &fabricv1.DrainSiteRequest{})
	if st := wantCode(t, err, codes.FailedPrecondition); !strings.Contains(st.Message(), "networkd") {
		t.Error(st.Message())
	}
	if n := r.store.Current().Number; n != 1 {
		t.Errorf("generation %d", n)
	}
}

// Callers at once take turns: all of them succeed, and each has a generation of its own.
func TestConcurrentChanges(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	const n = 16
	gens := make([]uint64, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			res, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: fmt.Sprintf("10.%d.0.0/16", i)}})
			if err != nil {
				t.Error(err)
			}
			gens[i] = res.GetResult().GetGeneration()
		})
	}
	wg.Wait()
	slices.Sort(gens)
	if len(slices.Compact(gens)) != n || r.store.Current().Number != n+1 {
		t.Errorf("generations %v, current %d", gens, r.store.Current().Number)
	}
}

// A peer that does not come up: the change is kept, and the answer says what it waits for.
func TestWaitRunsOut(t *testing.T) {
	r := newRig(t, func(g *apitest.Gateway) { g.PeerState = func(string) string { return "active" } })
	res, err := r.client.AddPeer(testContext(t), &fabricv1.AddPeerRequest{
		Vrf: "CORE", Peer: &fabricv1.PeerConfig{Address: "172.20.0.2", Asn: 65021}, Options: &fabricv1.ChangeOptions{WaitMs: 50},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := res.GetResult()
	if got.GetConverged() || got.GetGeneration() != 2 || !strings.Contains(got.GetWaitingFor(), "172.20.0.2 to be established, it is active") {
		t.Errorf("result %v", got)
	}
	if r.store.Current().Number != 2 {
		t.Error("the change was not kept")
	}
	until(t, "the subscription to end", func() bool { return r.gw.Subscribers() == 1 }) // health has one
}

// Waiting goes on until the site has applied the generation and the session is up, and not only the one or the other.
func TestWaitFollows(t *testing.T) {
	store := apitest.Store(t)
	gw := &apitest.Gateway{}
	gw.Adopt(store.Current())
	svc := api.New(api.Config{Gateway: gw, Store: store, Log: slog.New(slog.DiscardHandler)})
	done := make(chan *fabricv1.ChangeResult, 1)
	go func() {
		res, err := svc.AddPeer(api.WithCaller(context.Background(), "test"), &fabricv1.AddPeerRequest{
			Vrf: "CORE", Peer: &fabricv1.PeerConfig{Name: "frr", Address: "172.20.0.2", Asn: 65021}, Options: wait,
		})
		if err != nil {
			t.Error(err)
		}
		done <- res.GetResult()
	}()
	until(t, "the change to wait", func() bool { return gw.Subscribers() == 1 })
	still := func(why string) {
		t.Helper()
		select {
		case res := <-done:
			t.Fatalf("%s, but the answer is %v", why, res)
		case <-time.After(20 * time.Millisecond): // long enough for a wrong answer to come, mostly
		}
	}
	still("nothing is applied")
	gw.Publish(func(s *site.Snapshot) {
		s.Peers = append(s.Peers, site.PeerStatus{VRF: "CORE", Name: "frr", State: "established"})
	})
	still("the generation is not applied")
	gw.Publish(func(s *site.Snapshot) { s.Site.Applied, s.Peers = 2, nil })
	still("the peer is not there")
	gw.Publish(func(s *site.Snapshot) {
		s.Peers = append(s.Peers, site.PeerStatus{VRF: "CORE", Name: "frr", State: "opensent"})
	})
	still("the session is not up")
	gw.Publish(func(s *site.Snapshot) { s.Peers[len(s.Peers)-1].State = "established" })
	if res := <-done; !res.GetConverged() || res.GetWaitingFor() != "" {
		t.Errorf("result %v", res)
	}
	if cur := store.Current(); cur.Who != "test" {
		t.Errorf("who %q", cur.Who)
	}
}

func TestRollback(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	if _, err := r.client.DrainSite(ctx, &fabricv1.DrainSiteRequest{}); err != nil {
		t.Fatal(err)
	}
	diff, err := r.client.DiffConfig(ctx, &fabricv1.DiffConfigRequest{From: 1})
	if err != nil || !strings.Contains(diff.GetDiff(), "+        drained: true") {
		t.Errorf("diff %q, %v", diff.GetDiff(), err)
	}
	res, err := r.client.RollbackConfig(ctx, &fabricv1.RollbackConfigRequest{Generation: 1, Options: wait})
	if err != nil || res.GetResult().GetGeneration() != 3 || !res.GetResult().GetConverged() {
		t.Fatalf("%v, %v", res, err)
	}
	if got, _ := r.client.GetSite(ctx, &fabricv1.GetSiteRequest{}); got.GetSite().GetDrained() {
		t.Error("still drained after the rollback")
	}
	old, err := r.client.GetConfig(ctx, &fabricv1.GetConfigRequest{Generation: 2})
	if err != nil || !strings.Contains(old.GetYaml(), "drained: true") || old.GetGeneration().GetNumber() != 2 {
		t.Errorf("generation 2: %v, %v", old, err)
	}
	if _, err := config.Parse("answer", []byte(old.GetYaml())); err != nil {
		t.Errorf("the document does not parse: %v", err)
	}
}

// A runtime prefix that the changed file gives to another site is a conflict; rebase drops it.
func TestRebase(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	if _, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: "172.30.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(apitest.Document, "172.31.0.0/16", "172.30.0.0/16", 1)
	if err := os.WriteFile(r.file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Reload(); err == nil {
		t.Fatal("the file does not conflict")
	}
	got, err := r.client.GetSite(ctx, &fabricv1.GetSiteRequest{})
	if err != nil || len(got.GetSite().GetConflicts()) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	res, err := r.client.RebaseConfig(ctx, &fabricv1.RebaseConfigRequest{Options: wait})
	if err != nil || !slices.Equal(res.GetResult().GetPlan(), []string{"remove prefix 172.30.0.0/16 in VRF CORE"}) {
		t.Fatalf("%v, %v", res, err)
	}
	if got, _ := r.client.GetSite(ctx, &fabricv1.GetSiteRequest{}); len(got.GetSite().GetConflicts()) != 0 {
		t.Errorf("conflicts are left: %v", got)
	}
}
