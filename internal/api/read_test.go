package api_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

func TestNotReadyYet(t *testing.T) {
	svc := api.New(api.Config{Gateway: &apitest.Gateway{}, Store: apitest.Store(t), Log: slog.New(slog.DiscardHandler), Version: "v1"})
	ctx := context.Background()
	_, err := svc.GetSite(ctx, &fabricv1.GetSiteRequest{})
	wantCode(t, err, codes.Unavailable)
	_, err = svc.DrainSite(ctx, &fabricv1.DrainSiteRequest{Options: &fabricv1.ChangeOptions{DryRun: true}})
	wantCode(t, err, codes.Unavailable)
	if v, err := svc.GetVersion(ctx, &fabricv1.GetVersionRequest{}); err != nil || v.GetVersion() != "v1" {
		t.Errorf("%v, %v", v, err)
	}
}

func TestListPeersByVRF(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	names := func(vrf string) []string {
		res, err := r.client.ListPeers(ctx, &fabricv1.ListPeersRequest{Vrf: vrf})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range res.GetPeers() {
			out = append(out, p.GetVrf()+"/"+p.GetName())
		}
		return out
	}
	if got := names(""); !slices.Equal(got, []string{"CORE/core-router", "/hk-1"}) {
		t.Errorf("all: %q", got)
	}
	if got := names("CORE"); !slices.Equal(got, []string{"CORE/core-router"}) {
		t.Errorf("CORE: %q", got)
	}
	_, err := r.client.ListPeers(ctx, &fabricv1.ListPeersRequest{Vrf: "LAB"})
	if st := wantCode(t, err, codes.NotFound); !strings.Contains(st.Message(), "CORE, OPS") {
		t.Error(st.Message())
	}
}

// The same name in two VRFs needs the VRF.
func TestAmbiguousPeer(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	if _, err := r.client.AddPeer(ctx, &fabricv1.AddPeerRequest{Vrf: "OPS", Peer: &fabricv1.PeerConfig{Name: "core-router", Address: "172.20.0.1", Asn: 65020}, Options: wait}); err != nil {
		t.Fatal(err)
	}
	_, err := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "core-router"})
	if st := wantCode(t, err, codes.InvalidArgument); !strings.Contains(st.Message(), "CORE/core-router, OPS/core-router") {
		t.Error(st.Message())
	}
	if got, err := r.client.GetPeer(ctx, &fabricv1.GetPeerRequest{Name: "core-router", Vrf: "OPS"}); err != nil || got.GetPeer().GetVrf() != "OPS" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestRouteOfDestination(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	got, err := r.client.GetRoute(ctx, &fabricv1.GetRouteRequest{Vrf: "CORE", Prefix: "10.0.1.77"})
	if err != nil || got.GetRoute().GetPrefix() != "10.0.1.0/24" {
		t.Errorf("%v, %v", got, err)
	}
	_, err = r.client.GetRoute(ctx, &fabricv1.GetRouteRequest{Vrf: "OPS", Prefix: "10.0.1.77"})
	wantCode(t, err, codes.NotFound)
	_, err = r.client.GetRoute(ctx, &fabricv1.GetRouteRequest{Vrf: "OPS", Prefix: "everywhere"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = r.client.GetRoute(ctx, &fabricv1.GetRouteRequest{Prefix: "10.0.1.77"})
	wantCode(t, err, codes.InvalidArgument)
	ex, err := r.client.ExplainRoute(ctx, &fabricv1.ExplainRouteRequest{Vrf: "CORE", Prefix: "10.0.1.77/32"})
	if err != nil || ex.GetMatched() != "10.0.1.0/24" || len(ex.GetCandidates()) != 1 || len(ex.GetRejected()) != 1 {
		t.Errorf("%v, %v", ex, err)
	}
}

func TestRouteFilters(t *testing.T) {
	r := newRig(t, func(g *apitest.Gateway) {
		own := site.RouteStatus{VRF: "CORE", Prefix: apitest.Route("CORE", 300).Prefix, Source: "connected"}
		g.RouteList["CORE"] = append(apitest.Routes("CORE", 300), own)
		g.RouteList["OPS"] = apitest.Routes("OPS", 2)
	})
	for _, c := range []struct {
		name string
		req  *fabricv1.ListRoutesRequest
		want int
	}{
		{"all", &fabricv1.ListRoutesRequest{}, 303},
		{"VRF", &fabricv1.ListRoutesRequest{Vrf: "OPS"}, 2},
		{"source", &fabricv1.ListRoutesRequest{Source: "connected"}, 1},
		{"within", &fabricv1.ListRoutesRequest{Vrf: "CORE", Within: "10.0.0.0/23"}, 2},
		{"within nothing", &fabricv1.ListRoutesRequest{Within: "fd00::/8"}, 0},
		{"within longer", &fabricv1.ListRoutesRequest{Within: "10.0.0.0/25"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream, err := r.client.ListRoutes(testContext(t), c.req)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				n += len(m.GetRoutes())
			}
			if n != c.want {
				t.Errorf("%d routes, want %d", n, c.want)
			}
		})
	}
	for _, req := range []*fabricv1.ListRoutesRequest{{Source: "ospf"}, {Within: "10.0.0.1/8"}} {
		stream, err := r.client.ListRoutes(testContext(t), req)
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, codes.InvalidArgument)
	}
}

// 50,000 routes come in pieces: the client has the first while the gateway has made no more than half, and when the
// client goes away the gateway is told to stop.
func TestRoutesStream(t *testing.T) {
	const n = 50_000
	gotFirst, result := make(chan struct{}), make(chan int, 1)
	r := newRig(t, func(g *apitest.Gateway) {
		g.RouteSource = func(vrf string, fn func(site.RouteStatus) bool) error {
			made := 0
			defer func() { result <- made }()
			for made < n {
				if made == n/2 {
					select {
					case <-gotFirst:
					case <-t.Context().Done():
						return t.Context().Err()
					}
				}
				made++
				if !fn(apitest.Route(vrf, made)) {
					return nil
				}
			}
			return nil
		}
	})
	read := func(ctx context.Context, limit int) int {
		stream, err := r.client.ListRoutes(ctx, &fabricv1.ListRoutesRequest{Vrf: "CORE"})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for got < limit {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if got == 0 {
				select {
				case <-gotFirst:
				default:
					close(gotFirst)
				}
			}
			if got += len(m.GetRoutes()); len(m.GetRoutes()) > 1000 {
				t.Fatalf("a piece of %d routes", len(m.GetRoutes()))
			}
		}
		return got
	}
	if got := read(testContext(t), n+1); got != n {
		t.Errorf("%d routes came, want %d", got, n)
	}
	if made := <-result; made != n {
		t.Errorf("%d routes were made", made)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	read(ctx, 1)
	cancel()
	if made := <-result; made == n {
		t.Errorf("all %d routes were made for a client that read one piece: the stream is buffered, or does not stop", made)
	}
}

func TestWatchPrefixes(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := r.client.WatchPrefixes(ctx, &fabricv1.WatchPrefixesRequest{Vrf: "CORE"})
	if err != nil {
		t.Fatal(err)
	}
	next := func() string {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(m.GetKind().String(), "EVENT_KIND_") + " " + m.GetPrefix().GetPrefix()
	}
	want := func(events ...string) {
		t.Helper()
		for _, w := range events {
			if got := next(); got != w {
				t.Fatalf("event %q, want %q", got, w)
			}
		}
	}
	want("ADDED 172.18.0.0/16", "ADDED 172.20.0.0/24")
	if _, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "OPS", Prefix: &fabricv1.PrefixConfig{Prefix: "172.22.0.0/16"}, Options: wait}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: "CORE", Prefix: &fabricv1.PrefixConfig{Prefix: "172.21.0.0/16"}, Options: wait}); err != nil {
		t.Fatal(err)
	}
	want("ADDED 172.21.0.0/16") // and not the one of OPS
	r.gw.Publish(func(s *site.Snapshot) {
		for i, p := range s.Prefixes {
			if p.Prefix.String() == "172.21.0.0/16" {
				s.Prefixes[i].Announced = false
			}
		}
	})
	want("CHANGED 172.21.0.0/16")
	if _, err := r.client.DeletePrefix(ctx, &fabricv1.DeletePrefixRequest{Vrf: "CORE", Prefix: "172.21.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	want("WITHDRAWN 172.21.0.0/16")
	cancel()
	_, err = stream.Recv()
	wantCode(t, err, codes.Canceled)
	until(t, "the subscription to end", func() bool { return r.gw.Subscribers() == 1 })
}

func TestWatchRoutes(t *testing.T) {
	r := newRig(t, func(g *apitest.Gateway) { g.RouteEvents = make(chan apitest.RouteEvent, 1) })
	stream, err := r.client.WatchRoutes(testContext(t), &fabricv1.WatchRoutesRequest{Vrf: "CORE"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		m, err := stream.Recv()
		if err != nil || m.GetKind() != fabricv1.EventKind_EVENT_KIND_ADDED || m.GetRoute().GetPrefix() != apitest.Route("CORE", i).Prefix.String() {
			t.Fatalf("%v, %v", m, err)
		}
	}
	r.gw.RouteEvents <- apitest.RouteEvent{Route: apitest.Route("CORE", 1), Withdrawn: true}
	m, err := stream.Recv()
	if err != nil || m.GetKind() != fabricv1.EventKind_EVENT_KIND_WITHDRAWN || m.GetRoute().GetPrefix() != "10.0.1.0/24" {
		t.Fatalf("%v, %v", m, err)
	}
}

// Held deletes go once; with none held the call is refused and says what to look at.
func TestApproveCloud(t *testing.T) {
	r := newRig(t, func(g *apitest.Gateway) { g.HeldDeletes = 3 })
	res, err := r.client.ApproveCloud(testContext(t), &fabricv1.ApproveCloudRequest{})
	if err != nil || res.GetHeld() != 3 {
		t.Errorf("%v, %v", res, err)
	}
	if _, err := r.client.ApproveCloud(testContext(t), &fabricv1.ApproveCloudRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("with none held: %v", err)
	}
}
