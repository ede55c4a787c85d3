package api

import (
	"context"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// changes is how a list in snapshots is followed: what tells its items apart, whether one has changed, and where events go.
type changes[T any, K comparable] struct {
	list func(*site.Snapshot) []T
	key  func(T) K
	same func(old, now T) bool
	send func(fabricv1.EventKind, T) error
}

// follow sends what is there once check passes, and then each change until ctx ends. It compares snapshots: changes that cancel
// each other between two of them are not seen, and a slow client sees fewer events, never an old state.
func follow[T any, K comparable](ctx context.Context, s *Service, check func(*site.Snapshot) error, c changes[T, K]) error {
	changed, end := s.gateway.Changed()
	defer end()
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	if err := check(snap); err != nil {
		return err
	}
	var last []T
	for {
		next := c.list(snap)
		if err := c.step(last, next); err != nil {
			return err
		}
		last = next
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
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

// step sends how to get from one state to the next: withdrawals first, then what came or changed, in order.
func (c changes[T, K]) step(last, next []T) error {
	now := make(map[K]bool, len(next))
	for _, item := range next {
		now[c.key(item)] = true
	}
	before := make(map[K]T, len(last))
	for _, item := range last {
		before[c.key(item)] = item
		if now[c.key(item)] {
			continue
		}
		if err := c.send(fabricv1.EventKind_EVENT_KIND_WITHDRAWN, item); err != nil {
			return err
		}
	}
	for _, item := range next {
		old, was := before[c.key(item)]
		kind := fabricv1.EventKind_EVENT_KIND_ADDED
		switch {
		case was && c.same(old, item):
			continue
		case was:
			kind = fabricv1.EventKind_EVENT_KIND_CHANGED
		}
		if err := c.send(kind, item); err != nil {
			return err
		}
	}
	return nil
}

// prefixKey identifies an originated prefix.
type prefixKey struct {
	vrf    string
	prefix netip.Prefix
}

// WatchPrefixes streams the originated prefixes and their changes.
func (s *Service) WatchPrefixes(req *fabricv1.WatchPrefixesRequest, stream fabricv1.FabricService_WatchPrefixesServer) error {
	check := func(snap *site.Snapshot) error { return knownVRF(snap, req.GetVrf()) }
	return follow(stream.Context(), s, check, changes[site.PrefixStatus, prefixKey]{
		list: func(snap *site.Snapshot) []site.PrefixStatus { return prefixesOf(snap, req.GetVrf()) },
		key:  func(p site.PrefixStatus) prefixKey { return prefixKey{p.VRF, p.Prefix} },
		same: func(old, now site.PrefixStatus) bool { return old == now },
		send: func(kind fabricv1.EventKind, p site.PrefixStatus) error {
			return stream.Send(&fabricv1.WatchPrefixesResponse{Kind: kind, Prefix: prefixStatus(p)})
		},
	})
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
