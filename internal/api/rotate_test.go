package api_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/api/apitest"
	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

func keyed(t *testing.T, prepare func(*apitest.Gateway)) *rig {
	t.Helper()
	r := newTunnelRig(t, prepare)
	r.gw.Publish(func(s *site.Snapshot) {
		for i := range s.Tunnels {
			s.Tunnels[i].Kind = "wireguard"
		}
		s.Tunnels = append(s.Tunnels, links.TunnelState{Remote: "hk-1", Name: "sz-1/hk-1/2", Device: "fxw4", Kind: "tls", State: links.Up})
	})
	return r
}

// With waiting, the answer comes once the former keys are refused; the device may be another by then.
func TestRotateTunnels(t *testing.T) {
	called := make(chan string, 1)
	r := keyed(t, func(g *apitest.Gateway) {
		g.OnRotate = func(device string) (int, error) { called <- device; return 4, nil }
	})
	answer := make(chan *fabricv1.RotateTunnelsResponse, 1)
	go func() {
		res, err := r.client.RotateTunnels(testContext(t), &fabricv1.RotateTunnelsRequest{Name: "sz-1/hk-1/0", WaitMs: 60_000})
		if err != nil {
			t.Error(err)
		}
		answer <- res
	}()
	if got := <-called; got != "fxw1" {
		t.Errorf("rotated %s", got)
	}
	for _, change := range []func(*links.TunnelState){
		func(s *links.TunnelState) { s.KeyGeneration, s.Rotation = 4, "generation 5 is brought up on fxw9" },
		func(s *links.TunnelState) { s.KeyGeneration, s.Rotation, s.Device = 5, "generation 4 goes", "fxw9" },
	} {
		r.gw.Publish(func(s *site.Snapshot) { change(&s.Tunnels[1]) })
		select {
		case res := <-answer:
			t.Fatalf("answered too early: %v", res)
		default:
		}
	}
	r.gw.Publish(func(s *site.Snapshot) { s.Tunnels[1].Rotation = "" })
	res := (<-answer).GetRotations()
	if len(res) != 1 || !res[0].GetDone() || res[0].GetBefore() != 4 || res[0].GetGeneration() != 5 || res[0].GetProblem() != "" {
		t.Errorf("result %v", res)
	}
}

func TestRotateTunnelsLate(t *testing.T) {
	r := keyed(t, func(g *apitest.Gateway) { g.OnRotate = func(string) (int, error) { return 0, nil } })
	r.gw.Publish(func(s *site.Snapshot) { s.Tunnels[0].Rotation = "generation 1 did not come up" })
	res, err := r.client.RotateTunnels(testContext(t), &fabricv1.RotateTunnelsRequest{Name: "gz-1", WaitMs: 30})
	if err != nil || len(res.GetRotations()) != 1 || res.GetRotations()[0].GetDone() || res.GetRotations()[0].GetProblem() != "generation 1 did not come up" {
		t.Errorf("result %v, error %v", res, err)
	}
	res, err = r.client.RotateTunnels(testContext(t), &fabricv1.RotateTunnelsRequest{Name: "gz-1"})
	if err != nil || res.GetRotations()[0].GetProblem() != "" {
		t.Errorf("without waiting: %v, error %v", res, err)
	}
}

// Of all, one that refuses does not keep the others from it; one of another kind is not asked.
func TestRotateAllTunnels(t *testing.T) {
	var asked []string
	r := keyed(t, func(g *apitest.Gateway) {
		g.OnRotate = func(device string) (int, error) {
			asked = append(asked, device)
			if device == "fxw1" {
				return 0, status.Error(codes.FailedPrecondition, "it is drained")
			}
			return 0, nil
		}
	})
	res, err := r.client.RotateTunnels(testContext(t), &fabricv1.RotateTunnelsRequest{All: true})
	if err != nil || len(res.GetRotations()) != 3 || strings.Join(asked, " ") != "fxw3 fxw1 fxw2" {
		t.Fatalf("asked %v, result %v, error %v", asked, res, err)
	}
	for _, one := range res.GetRotations() {
		if refused := one.GetName() == "sz-1/hk-1/0"; refused != (one.Before == nil) || refused != strings.Contains(one.GetProblem(), "drained") {
			t.Errorf("result %v", one)
		}
	}
}

// Where the caller's time ends in the middle, the answer still says what was begun and what was not.
func TestRotateAllTunnelsOutOfTime(t *testing.T) {
	for _, c := range []struct {
		name string
		end  string   // the device at which the time ends; "" while waiting
		want []string // a line per tunnel: its name, and whether it was begun
	}{
		{"while waiting", "", []string{"sz-1/gz-1/0 begun", "sz-1/hk-1/0 begun", "sz-1/hk-1/1 begun"}},
		{"while asking", "fxw1", []string{"sz-1/gz-1/0 begun", "sz-1/hk-1/0 api call ended", "sz-1/hk-1/1 not asked: the time of the call was over"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(testContext(t))
			asked := 0
			r := keyed(t, func(g *apitest.Gateway) {
				g.OnRotate = func(device string) (int, error) {
					asked++
					if device == c.end {
						cancel()
						return 0, status.Error(codes.DeadlineExceeded, "api call ended")
					}
					if asked == 3 {
						cancel()
					}
					return 0, nil
				}
			})
			res, err := r.svc.RotateTunnels(ctx, &fabricv1.RotateTunnelsRequest{All: true, WaitMs: 60_000})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, one := range res.GetRotations() {
				line := one.GetName() + " " + one.GetProblem()
				if one.Before != nil {
					line = one.GetName() + " begun"
				}
				got = append(got, line)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// The answer comes before the caller's deadline. A machine may be too busy for a short one, so longer ones follow.
func TestRotateTunnelsAnswersInTime(t *testing.T) {
	r := keyed(t, func(g *apitest.Gateway) { g.OnRotate = func(string) (int, error) { return 0, nil } })
	var err error
	for long := 400 * time.Millisecond; long < 15*time.Second; long *= 3 {
		ctx, cancel := context.WithTimeout(t.Context(), long)
		var res *fabricv1.RotateTunnelsResponse
		res, err = r.client.RotateTunnels(ctx, &fabricv1.RotateTunnelsRequest{All: true, WaitMs: 600_000})
		cancel()
		if err == nil {
			if len(res.GetRotations()) != 3 || res.GetRotations()[0].GetProblem() == "" {
				t.Errorf("answer %v", res)
			}
			return
		}
	}
	t.Error(err)
}

func TestRotateTunnelsErrors(t *testing.T) {
	r := keyed(t, func(g *apitest.Gateway) {
		g.OnRotate = func(string) (int, error) { return 0, errors.New("its keys cannot be replaced") }
	})
	for _, c := range []struct {
		req  *fabricv1.RotateTunnelsRequest
		code codes.Code
	}{
		{&fabricv1.RotateTunnelsRequest{}, codes.InvalidArgument},
		{&fabricv1.RotateTunnelsRequest{Name: "fxw1", All: true}, codes.InvalidArgument},
		{&fabricv1.RotateTunnelsRequest{Name: "hk-1"}, codes.InvalidArgument},
		{&fabricv1.RotateTunnelsRequest{Name: "fxwnone"}, codes.NotFound},
		{&fabricv1.RotateTunnelsRequest{Name: "fxw1"}, codes.FailedPrecondition},
	} {
		_, err := r.client.RotateTunnels(testContext(t), c.req)
		wantCode(t, err, c.code)
	}
	r.gw.Publish(func(s *site.Snapshot) { s.Tunnels = s.Tunnels[3:] })
	_, err := r.client.RotateTunnels(testContext(t), &fabricv1.RotateTunnelsRequest{All: true})
	wantCode(t, err, codes.NotFound)
}
