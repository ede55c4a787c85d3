package api

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// keyedKind is the kind of tunnels whose keys are replaced.
const keyedKind = "wireguard"

// answerTime is how long before the caller's deadline asking and waiting end at the most, so that the answer still arrives.
const answerTime = time.Second

// RotateTunnels has the keys of one tunnel or of all replaced. With all, each tunnel has a result of its own, also where it refuses. What was
// begun goes on by itself, so that is answered even where the caller's time ends before all have been asked.
func (s *Service) RotateTunnels(ctx context.Context, req *fabricv1.RotateTunnelsRequest) (*fabricv1.RotateTunnelsResponse, error) {
	var wanted []tunnel
	switch {
	case req.GetAll() && req.GetName() != "":
		return nil, status.Error(codes.InvalidArgument, "which tunnel? Give a name or all, not both")
	case req.GetAll():
		snap, err := s.snapshot()
		if err != nil {
			return nil, err
		}
		wanted = slices.DeleteFunc(tunnels(snap, ""), func(t tunnel) bool { return t.Kind != keyedKind })
		if len(wanted) == 0 {
			return nil, status.Error(codes.NotFound, "no tunnel of this gateway has keys that can be replaced")
		}
	default:
		t, err := s.oneTunnel(req.GetName())
		if err != nil {
			return nil, err
		}
		wanted = []tunnel{t}
	}
	ctx, cancel := untilAnswer(ctx)
	defer cancel()
	out := &fabricv1.RotateTunnelsResponse{}
	for _, t := range wanted {
		if ctx.Err() != nil && req.GetAll() {
			out.Rotations = append(out.Rotations, kept(t, "not asked: the time of the call was over"))
			continue
		}
		about := "tunnel rotate " + t.Name
		before, err := s.gateway.RotateTunnel(ctx, t.Device)
		if err = toStatusOr(codes.FailedPrecondition, err, about); err != nil {
			s.log.WarnContext(ctx, "change refused", "change", about, "who", Caller(ctx), "err", err)
			if !req.GetAll() {
				return nil, err
			}
			out.Rotations = append(out.Rotations, kept(t, status.Convert(err).Message()))
			continue
		}
		s.log.InfoContext(ctx, "change made", "change", about, "tunnel", t.Name, "generation", before, "who", Caller(ctx))
		out.Rotations = append(out.Rotations, &fabricv1.TunnelRotation{Name: t.Name, Before: proto.Uint32(count(before)), Generation: proto.Uint32(count(before))})
	}
	s.awaitRotations(ctx, out.GetRotations(), time.Duration(req.GetWaitMs())*time.Millisecond)
	return out, nil
}

// untilAnswer ends with ctx, or somewhat before its deadline.
func untilAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	late, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, late.Add(-min(answerTime, time.Until(late)/4)))
}

// kept is the result of a tunnel whose keys stay.
func kept(t tunnel, problem string) *fabricv1.TunnelRotation {
	return &fabricv1.TunnelRotation{Name: t.Name, Generation: proto.Uint32(count(t.KeyGeneration)), Problem: problem}
}

// awaitRotations follows the snapshots until all that were begun are done, or for that long.
func (s *Service) awaitRotations(ctx context.Context, rotations []*fabricv1.TunnelRotation, long time.Duration) {
	if long == 0 {
		return
	}
	changed, end := s.gateway.Changed()
	defer end()
	late := time.NewTimer(long)
	defer late.Stop()
	for {
		if snap := s.gateway.Snapshot(); snap != nil && !follows(snap, rotations) {
			return
		}
		select {
		case <-changed:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// follows notes in rotations how the tunnels are, and says whether there is one to wait for.
func follows(snap *site.Snapshot, rotations []*fabricv1.TunnelRotation) (waits bool) {
	for _, r := range rotations {
		if r.Before == nil {
			continue // refused
		}
		i := slices.IndexFunc(snap.Tunnels, func(t links.TunnelState) bool { return t.Name == r.GetName() })
		if i < 0 {
			r.Problem = "the tunnel has gone in the meantime"
			continue
		}
		t := &snap.Tunnels[i]
		r.Generation = proto.Uint32(count(t.KeyGeneration))
		// The snapshot may be older than the wish, so a lesser generation says nothing.
		r.Done = t.KeyGeneration > int(r.GetBefore()) && t.Rotation == ""
		r.Problem = ""
		if !r.GetDone() {
			waits = true
			if r.Problem = t.Rotation; r.GetProblem() == "" {
				r.Problem = fmt.Sprintf("generation %d is still in use", t.KeyGeneration)
			}
		}
	}
	return waits
}
