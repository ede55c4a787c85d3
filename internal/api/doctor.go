package api

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fabricv1 "fabric/proto/fabric/v1"
)

// Doctor looks at the host as the daemon sees it. Callers take turns.
func (s *Service) Doctor(ctx context.Context, req *fabricv1.DoctorRequest) (*fabricv1.DoctorResponse, error) {
	if s.doctor == nil {
		return nil, status.Error(codes.Unimplemented, "this daemon does not look at its host; run `fabric-site check` there")
	}
	select {
	case s.looking <- struct{}{}:
		defer func() { <-s.looking }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	res, err := s.doctor(ctx, req.GetProbe())
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return nil, status.Errorf(codes.FailedPrecondition, "doctor: %v", err)
	}
	return res, nil
}
