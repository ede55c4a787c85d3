package api

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/config"
	fabricv1 "fabric/proto/fabric/v1"
)

// GetConfig returns the document of a generation.
func (s *Service) GetConfig(_ context.Context, req *fabricv1.GetConfigRequest) (*fabricv1.GetConfigResponse, error) {
	gen := s.store.Current()
	if n := req.GetGeneration(); n != 0 {
		var err error
		if gen, err = s.store.Generation(n); err != nil {
			return nil, toStatus(err, fmt.Sprintf("generation %d", n))
		}
	}
	if gen == nil || gen.Document == nil {
		return nil, status.Error(codes.FailedPrecondition, "there is no document in force; see the daemon's log")
	}
	yaml, err := gen.Document.YAML()
	if err != nil {
		return nil, toStatus(err, fmt.Sprintf("generation %d", gen.Number))
	}
	return &fabricv1.GetConfigResponse{Generation: generation(*gen), Yaml: string(yaml)}, nil
}

// DiffConfig compares two generations.
func (s *Service) DiffConfig(_ context.Context, req *fabricv1.DiffConfigRequest) (*fabricv1.DiffConfigResponse, error) {
	diff, err := s.store.Diff(req.GetFrom(), req.GetTo())
	if err != nil {
		return nil, toStatus(err, "config diff")
	}
	return &fabricv1.DiffConfigResponse{Diff: diff}, nil
}

// ListGenerations returns the history, newest first.
func (s *Service) ListGenerations(_ context.Context, req *fabricv1.ListGenerationsRequest) (*fabricv1.ListGenerationsResponse, error) {
	gens, err := s.store.History()
	if err != nil {
		return nil, toStatus(err, "config history")
	}
	if n := int(req.GetLimit()); n > 0 && n < len(gens) {
		gens = gens[:n]
	}
	out := &fabricv1.ListGenerationsResponse{Generations: convert(gens, generation), Conflicts: s.store.Conflicts()}
	if cur := s.store.Current(); cur != nil {
		out.Current = cur.Number
	}
	return out, nil
}

// RollbackConfig makes the document as it was at a generation.
func (s *Service) RollbackConfig(ctx context.Context, req *fabricv1.RollbackConfigRequest) (*fabricv1.RollbackConfigResponse, error) {
	n := req.GetGeneration()
	if n == 0 {
		return nil, status.Error(codes.InvalidArgument, "which generation? See `fabricctl config history`")
	}
	res, err := s.apply(ctx, req.GetOptions(), fmt.Sprintf("config rollback %d", n), func(who string) (*config.Proposal, error) {
		return s.store.Rollback(n, who)
	}, nil)
	return &fabricv1.RollbackConfigResponse{Result: res}, err
}

// RebaseConfig drops the runtime changes that do not fit the file any more.
func (s *Service) RebaseConfig(ctx context.Context, req *fabricv1.RebaseConfigRequest) (*fabricv1.RebaseConfigResponse, error) {
	if len(s.store.Conflicts()) == 0 {
		return nil, status.Error(codes.FailedPrecondition, "config rebase: there are no conflicts between the file and runtime changes, nothing to drop")
	}
	res, err := s.apply(ctx, req.GetOptions(), "config rebase", s.store.Rebase, nil)
	return &fabricv1.RebaseConfigResponse{Result: res}, err
}
