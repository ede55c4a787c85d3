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
	note := func(what string, n int, err error) {
		total += n
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	add := func(what string) func(int, error) { return func(n int, err error) { note(what, n, err) } }
	// The reverse of how they were made: rules first, so that no packet is sent to an emptied table.
	add("rules")(removeAll(ctx, k.Rules(kernel.Protocol)))
	if err := k.MoveLocalRule(ctx, 0); err != nil {
		errs = append(errs, err)
	}
	add("routes")(removeAll(ctx, k.Routes(kernel.Protocol)))
	add("forwarding entries")(removeAll(ctx, k.FDB()))
	add("neighbours")(removeAll(ctx, k.Neighbours()))
	add("addresses")(removeAll(ctx, k.Addresses(kernel.Protocol)))
	add("ports")(removeAll(ctx, k.Ports(func() []string { return nil })))
	add("links")(removeAll(ctx, k.Links(kernel.KindVRF, kernel.KindVXLAN)))
	add("filter")(removeAll(ctx, k.Filters(filterTable)))
	return total, errors.Join(errs...)
}

// removeAll deletes all objects of one edge.
func removeAll[K comparable, V any](ctx context.Context, edge reconcile.Edge[K, V]) (int, error) {
	have, err := edge.Observe(ctx)
	if err != nil {
		return 0, err
	}
	ops := reconcile.Diff(nil, have, nil)
	n := 0
	var errs []error
	for _, err := range edge.Apply(ctx, ops) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}
