package api_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"fabric/internal/api"
	fabricv1 "fabric/proto/fabric/v1"
)

func TestDoctor(t *testing.T) {
	svc := api.New(api.Config{})
	_, err := svc.Doctor(t.Context(), &fabricv1.DoctorRequest{})
	wantCode(t, err, codes.Unimplemented)

	svc = api.New(api.Config{Doctor: func(_ context.Context, probe bool) (*fabricv1.DoctorResponse, error) {
		if probe {
			return nil, errors.New("there is no document in force")
		}
		return &fabricv1.DoctorResponse{Gateway: "gw"}, nil
	}})
	if res, err := svc.Doctor(t.Context(), &fabricv1.DoctorRequest{}); err != nil || res.GetGateway() != "gw" {
		t.Errorf("%v, %v", res, err)
	}
	_, err = svc.Doctor(t.Context(), &fabricv1.DoctorRequest{Probe: true})
	wantCode(t, err, codes.FailedPrecondition)
}

// One looks at a time; who waits for their turn may give up.
func TestDoctorsTakeTurns(t *testing.T) {
	var active, most atomic.Int32
	busy := api.New(api.Config{Doctor: func(context.Context, bool) (*fabricv1.DoctorResponse, error) {
		most.Store(max(most.Load(), active.Add(1)))
		time.Sleep(time.Millisecond) // so that others come
		active.Add(-1)
		return &fabricv1.DoctorResponse{}, nil
	}})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			if _, err := busy.Doctor(t.Context(), &fabricv1.DoctorRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if most.Load() != 1 {
		t.Errorf("%d looked at once", most.Load())
	}

	looking, done := make(chan struct{}), make(chan error, 1)
	svc := api.New(api.Config{Doctor: func(ctx context.Context, _ bool) (*fabricv1.DoctorResponse, error) {
		looking <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	first, stop := context.WithCancel(testContext(t))
	go func() {
		_, err := svc.Doctor(first, &fabricv1.DoctorRequest{})
		done <- err
	}()
	<-looking
	second, giveUp := context.WithCancel(t.Context())
	giveUp()
	_, err := svc.Doctor(second, &fabricv1.DoctorRequest{})
	wantCode(t, err, codes.Canceled)
	select {
	case <-looking:
		t.Error("two looked at once")
	default:
	}
	stop()
	wantCode(t, <-done, codes.Canceled)
}
