package api

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// prefixKey identifies an originated prefix.
type prefixKey struct{ vrf, prefix string }

// WatchPrefixes streams the originated prefixes and their changes. It compares snapshots: changes that cancel each
// other between two of them are not seen, and a slow client sees fewer events, never an old state.
func (s *Service) WatchPrefixes(req *fabricv1.WatchPrefixesRequest, stream fabricv1.FabricService_WatchPrefixesServer) error {
	changed, end := s.gateway.Changed()
	defer end()
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	if err := knownVRF(snap, req.GetVrf()); err != nil {
		return err
	}
	var last []site.PrefixStatus
	for {
		next := prefixesOf(snap, req.GetVrf())
		for _, ev := range prefixEvents(last, next) {
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
		last = next
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case _, open := <-changed:
			if !open {
				return status.Error(codes.Unavailable, "the daemon is stopping")
			}
		}
		if snap, err = s.snapshot(); err != nil {
			return err
		}
	}
}

func prefixesOf(snap *site.Snapshot, vrf string) []site.PrefixStatus {
	if vrf == "" {
		return snap.Prefixes
	}
	var out []site.PrefixStatus
	for _, p := range snap.Prefixes {
		if p.VRF == vrf {
			out = append(out, p)
		}
	}
	return out
}

// prefixEvents says how to get from one state to the next: withdrawals first, then what came or changed, in order.
func prefixEvents(last, next []site.PrefixStatus) []*fabricv1.WatchPrefixesResponse {
	var out []*fabricv1.WatchPrefixesResponse
	event := func(kind fabricv1.EventKind, p site.PrefixStatus) {
		out = append(out, &fabricv1.WatchPrefixesResponse{Kind: kind, Prefix: prefixStatus(p)})
	}
	key := func(p site.PrefixStatus) prefixKey { return prefixKey{p.VRF, p.Prefix.String()} }
	now := make(map[prefixKey]bool, len(next))
	for _, p := range next {
		now[key(p)] = true
	}
	before := make(map[prefixKey]site.PrefixStatus, len(last))
	for _, p := range last {
		before[key(p)] = p
		if !now[key(p)] {
			event(fabricv1.EventKind_EVENT_KIND_WITHDRAWN, p)
		}
	}
	for _, p := range next {
		old, was := before[key(p)]
		switch {
		case !was:
			event(fabricv1.EventKind_EVENT_KIND_ADDED, p)
		case old != p:
			event(fabricv1.EventKind_EVENT_KIND_CHANGED, p)
		}
	}
	return out
}

// WatchRoutes streams the chosen routes and their changes.
func (s *Service) WatchRoutes(req *fabricv1.WatchRoutesRequest, stream fabricv1.FabricService_WatchRoutesServer) error {
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	vrf := req.GetVrf()
	if err := knownVRF(snap, vrf); err != nil {
		return err
	}
	err = s.gateway.WatchRoutes(stream.Context(), vrf, func(r site.RouteStatus, withdrawn bool) error {
		kind := fabricv1.EventKind_EVENT_KIND_ADDED
		if withdrawn {
			kind = fabricv1.EventKind_EVENT_KIND_WITHDRAWN
		}
		return stream.Send(&fabricv1.WatchRoutesResponse{Kind: kind, Route: routeStatus(r)})
	})
	if ctxErr := stream.Context().Err(); ctxErr != nil {
		return status.FromContextError(ctxErr).Err()
	}
	if err == nil {
		err = status.Error(codes.Unavailable, "the daemon is stopping")
	}
	return toStatus(err, "watch of routes"+inVRF(vrf))
}
