package site

import (
	"context"
	"errors"
	"fmt"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Cleanup removes everything of fabric-site's from the host and returns how many objects that were. What others own stays.
// The rule for the table "local" goes back to where the kernel puts it.
func Cleanup(ctx context.Context, k kernel.Host) (int, error) {
	total := 0
	var errs []error
	add := func(n int, err error) {
		total += n
		if err != nil {
			errs = append(errs, err)
		}
	}
	// The reverse of how they were made: rules first, so that no packet is sent to an emptied table.
	add(removeAll(ctx, "rules", k.Rules(kernel.Protocol)))
	add(0, k.MoveLocalRule(ctx, 0))
	add(removeAll(ctx, "routes", k.Routes(kernel.Protocol)))
	add(removeAll(ctx, "forwarding entries", k.FDB()))
	add(removeAll(ctx, "neighbours", k.Neighbours()))
	add(removeAll(ctx, "addresses", k.Addresses(kernel.Protocol)))
	add(removeAll(ctx, "ports", k.Ports(func() []string { return nil })))
	add(removeAll(ctx, "links", k.Links(kernel.KindVRF, kernel.KindVXLAN)))
	add(removeAll(ctx, "filter", k.Filters(filterTable)))
	return total, errors.Join(errs...)
}

// removeAll deletes all objects of one edge; what names them in the error.
func removeAll[K comparable, V any](ctx context.Context, what string, edge reconcile.Edge[K, V]) (int, error) {
	have, err := edge.Observe(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	n := 0
	var errs []error
	for _, err := range edge.Apply(ctx, reconcile.Diff(nil, have, nil)) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("%s: %w", what, err)
	}
	return n, nil
}
