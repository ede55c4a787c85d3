package api_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// newTunnelRig has two tunnels to hk-1, the first with a session, one to gz-1, and a peer's session.
func newTunnelRig(t *testing.T, prepare func(*apitest.Gateway)) *rig {
	t.Helper()
	r := newRig(t, prepare)
	r.gw.Publish(func(s *site.Snapshot) {
		s.Tunnels = []links.TunnelState{
			{Remote: "gz-1", Name: "sz-1/gz-1/0", Device: "fxw3", State: links.Up, Active: true},
			{Remote: "hk-1", Name: "sz-1/hk-1/0", Device: "fxw1", State: links.Up, Active: true},
			{Remote: "hk-1", Name: "sz-1/hk-1/1", Device: "fxw2", State: links.Up, Rank: 1},
		}
		s.Sessions = []links.SessionState{
			{Name: "sz-1/hk-1/0", Device: "fxw1", State: "up", Detection: 900 * time.Millisecond, Dropped: map[string]uint64{"ttl": 2}},
			{Name: "CORE/core-router", VRF: "CORE", Peer: "core-router", State: "down"},
			{Name: "OPS/core-router", VRF: "OPS", Peer: "core-router", State: "up"},
		}
	})
	return r
}

func TestListTunnels(t *testing.T) {
	r := newTunnelRig(t, nil)
	ctx := testContext(t)
	for name, want := range map[string][]string{
		"":            {"fxw3", "fxw1", "fxw2"},
		"fxw2":        {"fxw2"},
		"sz-1/hk-1/0": {"fxw1"},
		"hk-1":        {"fxw1", "fxw2"},
	} {
		res, err := r.client.ListTunnels(ctx, &fabricv1.ListTunnelsRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, tun := range res.GetTunnels() {
			got = append(got, tun.GetDevice())
			if has := tun.GetBfd().GetDetection().AsDuration() == 900*time.Millisecond; has != (tun.GetDevice() == "fxw1") {
				t.Errorf("%s has session %v", tun.GetDevice(), tun.GetBfd())
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	_, err := r.client.ListTunnels(ctx, &fabricv1.ListTunnelsRequest{Name: "fxw"})
	if st := wantCode(t, err, codes.NotFound); !strings.Contains(st.Message(), "sz-1/gz-1/0 (fxw3), sz-1/hk-1/0 (fxw1), sz-1/hk-1/1 (fxw2)") {
		t.Error(st.Message())
	}
}

func TestListBfdSessions(t *testing.T) {
	r := newTunnelRig(t, nil)
	ctx := testContext(t)
	for _, c := range []struct {
		vrf, name string
		want      []string
	}{
		{"", "", []string{"sz-1/hk-1/0", "CORE/core-router", "OPS/core-router"}},
		{"OPS", "", []string{"OPS/core-router"}},
		{"", "fxw1", []string{"sz-1/hk-1/0"}},
		{"", "core-router", []string{"CORE/core-router", "OPS/core-router"}},
		{"CORE", "core-router", []string{"CORE/core-router"}},
		{"", "OPS/core-router", []string{"OPS/core-router"}},
	} {
		res, err := r.client.ListBfdSessions(ctx, &fabricv1.ListBfdSessionsRequest{Vrf: c.vrf, Name: c.name})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range res.GetSessions() {
			got = append(got, s.GetName())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("VRF %q, name %q: %q, want %q", c.vrf, c.name, got, c.want)
		}
	}
	// While keys are replaced there is one on each device.
	r.gw.Publish(func(s *site.Snapshot) {
		later := s.Sessions[0]
		later.Name, later.Device = "sz-1/hk-1/0.1", "fxw9"
		s.Sessions = slices.Insert(slices.Clone(s.Sessions), 1, later)
	})
	res, err := r.client.ListBfdSessions(ctx, &fabricv1.ListBfdSessionsRequest{Name: "sz-1/hk-1/0"})
	if err != nil || len(res.GetSessions()) != 2 || res.GetSessions()[1].GetName() != "sz-1/hk-1/0.1" {
		t.Errorf("%v, %v", res, err)
	}
	_, err = r.client.ListBfdSessions(ctx, &fabricv1.ListBfdSessionsRequest{Vrf: "LAB"})
	wantCode(t, err, codes.NotFound)
	_, err = r.client.ListBfdSessions(ctx, &fabricv1.ListBfdSessionsRequest{Vrf: "OPS", Name: "fxw1"})
	if st := wantCode(t, err, codes.NotFound); !strings.Contains(st.Message(), "in VRF OPS") || strings.Contains(st.Message(), "CORE/") {
		t.Error(st.Message())
	}
}

func TestWatchTunnels(t *testing.T) {
	r := newTunnelRig(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := r.client.WatchTunnels(ctx, &fabricv1.WatchTunnelsRequest{Name: "hk-1"})
	if err != nil {
		t.Fatal(err)
	}
	want := func(event string) {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		tun := m.GetTunnel()
		got := fmt.Sprintf("%s %s %s bfd=%s", strings.TrimPrefix(m.GetKind().String(), "EVENT_KIND_"), tun.GetDevice(), tun.GetState(), tun.GetBfd().GetState())
		if got != event {
			t.Fatalf("event %q, want %q", got, event)
		}
	}
	want("ADDED fxw1 up bfd=up")
	want("ADDED fxw2 up bfd=")
	for _, c := range []struct {
		name   string
		change func(*site.Snapshot)
		event  string // "" for no change
	}{
		{"bytes received", func(s *site.Snapshot) { s.Tunnels[1].RxBytes++ }, ""},
		{"bytes sent", func(s *site.Snapshot) { s.Tunnels[1].TxBytes++ }, ""},
		{"handshake", func(s *site.Snapshot) { s.Tunnels[1].LastHandshake = apitest.Epoch }, ""},
		{"packets", func(s *site.Snapshot) { s.Sessions[0].Received++; s.Sessions[0].Sent++ }, ""},
		{"dropped", func(s *site.Snapshot) { s.Sessions[0].Dropped = map[string]uint64{"ttl": 3} }, ""},
		{"another gateway's", func(s *site.Snapshot) { s.Tunnels[0].State = links.Down }, ""},
		{"state", func(s *site.Snapshot) { s.Tunnels[2].State = links.Down }, "CHANGED fxw2 down bfd="},
		{"session's state", func(s *site.Snapshot) { s.Sessions[0].State = "init" }, "CHANGED fxw1 up bfd=init"},
		{"detection time", func(s *site.Snapshot) { s.Sessions[0].Detection = time.Second }, "CHANGED fxw1 up bfd=init"},
		{"neighbour's state", func(s *site.Snapshot) { s.Sessions[0].RemoteAdminDown = true }, "CHANGED fxw1 up bfd=init"},
		{"session gone", func(s *site.Snapshot) { s.Sessions = nil }, "CHANGED fxw1 up bfd="},
		{"roaming", func(s *site.Snapshot) { s.Tunnels[1].ListenPort = 7 }, "CHANGED fxw1 up bfd="},
		{"other keys on another device", func(s *site.Snapshot) { s.Tunnels[2].Device = "fxw9" }, "CHANGED fxw9 down bfd="},
		{"gone", func(s *site.Snapshot) { s.Tunnels = s.Tunnels[:2] }, "WITHDRAWN fxw9 down bfd="},
	} {
		before := r.gw.Reads()
		r.gw.Publish(c.change)
		until(t, "the watch and the health to look at it", func() bool { return r.gw.Reads() >= before+2 })
		if c.event != "" {
			want(c.event)
			continue
		}
		// That nothing comes shows in what comes next: a mark that is taken away again.
		r.gw.Publish(func(s *site.Snapshot) { s.Tunnels[1].Err = c.name })
		want("CHANGED fxw1 up bfd=up")
		r.gw.Publish(func(s *site.Snapshot) { s.Tunnels[1].Err = "" })
		want("CHANGED fxw1 up bfd=up")
	}
	cancel()
	_, err = stream.Recv()
	wantCode(t, err, codes.Canceled)
	until(t, "the subscription to end", func() bool { return r.gw.Subscribers() == 1 })
	stream, err = r.client.WatchTunnels(testContext(t), &fabricv1.WatchTunnelsRequest{Name: "nobody"})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.NotFound)
}

// The answer comes once traffic has moved, and says where to.
func TestDrainTunnel(t *testing.T) {
	called := make(chan string, 1)
	r := newTunnelRig(t, func(g *apitest.Gateway) {
		g.OnDrain = func(device string, drained bool) error { called <- fmt.Sprint(device, drained); return nil }
	})
	answer := make(chan *fabricv1.TunnelChange, 1)
	go func() {
		res, err := r.client.DrainTunnel(testContext(t), &fabricv1.DrainTunnelRequest{Name: "sz-1/hk-1/0"})
		if err != nil {
			t.Error(err)
		}
		answer <- res.GetResult()
	}()
	if got := <-called; got != "fxw1true" {
		t.Errorf("drained %s", got)
	}
	select {
	case res := <-answer:
		t.Fatalf("nothing has moved, but the answer is %v", res)
	case <-time.After(20 * time.Millisecond): // long enough for a wrong answer to come, mostly
	}
	r.gw.Publish(func(s *site.Snapshot) {
		s.Tunnels[1].Drained, s.Tunnels[1].Active, s.Tunnels[2].Active = true, false, true
	})
	res := <-answer
	if !res.GetTunnel().GetDrained() || res.GetTunnel().GetDevice() != "fxw1" || res.GetActive() != "sz-1/hk-1/1" || res.GetActiveDevice() != "fxw2" {
		t.Errorf("result %v", res)
	}
}

// While keys are replaced the tunnel has two devices, and the drain may change which of them stands for it.
func TestDrainTunnelWhileKeysAreReplaced(t *testing.T) {
	var r *rig
	r = newTunnelRig(t, func(g *apitest.Gateway) {
		g.OnDrain = func(string, bool) error {
			r.gw.Publish(func(s *site.Snapshot) {
				s.Tunnels[1].Device, s.Tunnels[1].Drained, s.Tunnels[1].Active, s.Tunnels[2].Active = "fxw9", true, false, true
			})
			return nil
		}
	})
	res, err := r.client.DrainTunnel(testContext(t), &fabricv1.DrainTunnelRequest{Name: "fxw1"})
	if err != nil || res.GetResult().GetTunnel().GetDevice() != "fxw9" || res.GetResult().GetActiveDevice() != "fxw2" {
		t.Errorf("%v, %v", res, err)
	}
}

// Of two that are drained at once one is refused: else there would be none left.
func TestDrainBothAtOnce(t *testing.T) {
	var r *rig
	r = newTunnelRig(t, func(g *apitest.Gateway) {
		g.OnDrain = func(device string, drained bool) error {
			time.Sleep(20 * time.Millisecond) // room for the other to come between, if it may
			r.gw.Publish(func(s *site.Snapshot) {
				i := slices.IndexFunc(s.Tunnels, func(t links.TunnelState) bool { return t.Device == device })
				s.Tunnels[i].Drained = drained
			})
			return nil
		}
	})
	ctx := testContext(t)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, device := range []string{"fxw1", "fxw2"} {
		wg.Go(func() {
			_, errs[i] = r.client.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: device})
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("errors %v", errs)
	}
	// Both can be undrained, and drained by force.
	for _, device := range []string{"fxw1", "fxw2"} {
		if _, err := r.client.UndrainTunnel(ctx, &fabricv1.UndrainTunnelRequest{Name: device}); err != nil {
			t.Error(err)
		}
	}
	for _, device := range []string{"fxw1", "fxw2"} {
		if res, err := r.client.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: device, Force: true}); err != nil || !res.GetResult().GetTunnel().GetDrained() {
			t.Errorf("%v, %v", res, err)
		}
	}
}

func TestDrainRefusals(t *testing.T) {
	drain := func(name string, force bool) func(context.Context, *rig) error {
		return func(ctx context.Context, r *rig) error {
			_, err := r.client.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: name, Force: force})
			return err
		}
	}
	undrain := func(name string) func(context.Context, *rig) error {
		return func(ctx context.Context, r *rig) error {
			_, err := r.client.UndrainTunnel(ctx, &fabricv1.UndrainTunnelRequest{Name: name})
			return err
		}
	}
	fails := func(err error) func(*apitest.Gateway) {
		return func(g *apitest.Gateway) { g.OnDrain = func(string, bool) error { return err } }
	}
	never := fails(errors.New("fabric-links must not be asked"))
	for _, c := range []struct {
		name    string
		prepare func(*apitest.Gateway)
		before  func(*site.Snapshot)
		call    func(context.Context, *rig) error
		code    codes.Code
		says    string
	}{
		{"no name", never, nil, drain("", false), codes.InvalidArgument, "which tunnel?"},
		{"unknown", never, nil, drain("fxw9", true), codes.NotFound, "sz-1/gz-1/0 (fxw3)"},
		{"unknown to undrain", never, nil, undrain("fxw9"), codes.NotFound, "sz-1/gz-1/0 (fxw3)"},
		{"ambiguous", never, nil, drain("hk-1", true), codes.InvalidArgument, "sz-1/hk-1/0 (fxw1), sz-1/hk-1/1 (fxw2)"},
		{"the only one", never, nil, drain("gz-1", false), codes.FailedPrecondition, "traffic would stay on it; with --force"},
		{"the only one, with a kept route", never, func(s *site.Snapshot) { s.Tunnels[0].State = links.Starting }, drain("fxw3", false), codes.FailedPrecondition, "the only one to gz-1"},
		{"the other is down", never, func(s *site.Snapshot) { s.Tunnels[2].State = links.Down }, drain("fxw1", false), codes.FailedPrecondition, "the only one to hk-1"},
		{"the other is drained", never, func(s *site.Snapshot) { s.Tunnels[1].Drained = true }, drain("fxw2", false), codes.FailedPrecondition, "the only one to hk-1"},
		{"disk full", fails(errors.New("disk full")), nil, drain("fxw1", false), codes.FailedPrecondition, "tunnel drain fxw1: disk full"},
		{"not in the plan", fails(fmt.Errorf("no tunnel: %w", fs.ErrNotExist)), nil, undrain("fxw1"), codes.NotFound, "tunnel undrain fxw1"},
		{"links away", fails(fmt.Errorf("fabric-links: %w", status.Error(codes.Unavailable, "gone"))), nil, drain("fxw1", false), codes.Unavailable, "gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTunnelRig(t, c.prepare)
			if c.before != nil {
				r.gw.Publish(c.before)
			}
			if st := wantCode(t, c.call(testContext(t), r), c.code); !strings.Contains(st.Message(), c.says) {
				t.Errorf("message %q does not say %q", st.Message(), c.says)
			}
		})
	}
	t.Run("a tunnel that is down", func(t *testing.T) {
		r := newTunnelRig(t, nil)
		r.gw.Publish(func(s *site.Snapshot) { s.Tunnels[0].State, s.Tunnels[0].Active = links.Down, false })
		res, err := r.client.DrainTunnel(testContext(t), &fabricv1.DrainTunnelRequest{Name: "gz-1"})
		if err != nil || res.GetResult().GetActive() != "" { // hk-1's active tunnel is not its own
			t.Errorf("%v, %v", res, err)
		}
	})
	t.Run("caller gone", func(t *testing.T) {
		r := newTunnelRig(t, fails(nil))
		ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
		defer cancel()
		wantCode(t, drain("fxw1", false)(ctx, r), codes.DeadlineExceeded)
		until(t, "the subscription to end", func() bool { return r.gw.Subscribers() == 1 })
	})
}

// Draining is logged with who did it, as every change is.
func TestDrainIsLogged(t *testing.T) {
	store := apitest.Store(t)
	gw := &apitest.Gateway{}
	gw.Adopt(store.Current())
	gw.Publish(func(s *site.Snapshot) {
		s.Tunnels = []links.TunnelState{{Remote: "hk-1", Name: "sz-1/hk-1/0", Device: "fxw1", State: links.Up}}
	})
	var log strings.Builder
	svc := api.New(api.Config{Gateway: gw, Store: store, Log: slog.New(slog.NewTextHandler(&log, nil))})
	ctx := api.WithCaller(testContext(t), "alice (uid 1000)")
	if _, err := svc.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: "fxw1"}); err == nil {
		t.Error("not refused")
	}
	if _, err := svc.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: "fxw1", Force: true}); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"change refused", "change made", `who="alice (uid 1000)"`, "device=fxw1"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

// What a peer's BFD is asked for reaches the document and comes back.
func TestPeerBFD(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	want := &fabricv1.PeerBfdConfig{Interval: durationpb.New(50 * time.Millisecond), Multiplier: 4, Auth: "sha1", KeyId: 255, KeyFile: "/etc/fabric/keys/bfd"}
	if _, err := r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{
		Vrf: "CORE", Peer: &fabricv1.PeerConfig{Name: "frr", Address: "172.20.0.2", Asn: 65021, Bfd: want}, Options: wait,
	}); err != nil {
		t.Fatal(err)
	}
	got, err := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "frr"})
	if err != nil {
		t.Fatal(err)
	}
	if b := got.GetConfig().GetBfd(); b.GetInterval().AsDuration() != 50*time.Millisecond || b.GetMultiplier() != 4 || b.GetAuth() != "sha1" || b.GetKeyId() != 255 || b.GetKeyFile() != want.GetKeyFile() {
		t.Errorf("configuration %v, want %v", b, want)
	}
	if got.GetPeer().GetBfd() != "up" {
		t.Errorf("session %q", got.GetPeer().GetBfd())
	}
	got, err = r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "core-router"})
	if err != nil || got.GetConfig().GetBfd() != nil {
		t.Errorf("a peer without BFD: %v, %v", got, err)
	}
	_, err = r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{
		Vrf: "CORE", Peer: &fabricv1.PeerConfig{Address: "172.20.0.3", Asn: 65021, Bfd: &fabricv1.PeerBfdConfig{Multiplier: 256}},
	})
	if st := wantCode(t, err, codes.InvalidArgument); !strings.Contains(st.Message(), "multiplier") {
		t.Error(st.Message())
	}
}
