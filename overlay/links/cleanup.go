package links

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Cleanup removes all that is ours from the host: next hops, routes, addresses, tunnels, their processes, and the kept plan. The caller
// has claimed the run folder by opening store, so no engine is running. It tells each removal to say.
//
// Next hops go first, and with them the routes through them; the backstops go last but for the tunnels themselves.
func Cleanup(ctx context.Context, h kernel.Host, processes Processes, carrier CarrierProcess, store *Store, runDir string, say func(string)) error {
	// The plan first: if this is interrupted, the next boot must not bring half of it back.
	errs := []error{store.Forget()}
	errs = append(errs,
		removeAll(ctx, kindNextHop, h.NextHops(kernel.ProtocolLinks), say),
		removeAll(ctx, kindRoute, h.Routes(kernel.ProtocolLinks, kernel.MainTable), say),
		removeAll(ctx, kindAddress, h.Addresses(kernel.ProtocolLinks), say))
	devices, err := processes.List()
	errs = append(errs, err)
	for _, d := range devices {
		if err := processes.Stop(ctx, d); err != nil {
			errs = append(errs, fmt.Errorf("stop tunnel process of %s: %w", d, err))
			continue
		}
		if err := awaitEnd(ctx, processes, d); err != nil {
			errs = append(errs, fmt.Errorf("stop tunnel process of %s: %w", d, err))
			continue
		}
		say("stopped tunnel process of " + d)
	}
	errs = append(errs, endCarrier(ctx, carrier, say))
	errs = append(errs, removeAll(ctx, kindLink, h.Links(kernel.KindWireGuard, kernel.KindDirect), say))
	for _, pattern := range []string{"tunnel-*", "carrier*"} {
		left, err := filepath.Glob(filepath.Join(runDir, pattern))
		errs = append(errs, err)
		for _, f := range left {
			errs = append(errs, os.Remove(f))
		}
	}
	return errors.Join(errs...)
}

// endCarrier ends the carrier process and waits for that.
func endCarrier(ctx context.Context, carrier CarrierProcess, say func(string)) error {
	if carrier == nil {
		return nil
	}
	alive, err := carrier.Alive()
	if err != nil || !alive {
		return err
	}
	if err := carrier.Stop(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	for {
		if alive, err = carrier.Alive(); err != nil || !alive {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the carrier process did not end within %s: %w", stopWithin, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err == nil {
		say("stopped carrier process")
	}
	return err
}

// awaitEnd waits for a tunnel process that was asked to end, kills it when it takes too long, and sweeps.
func awaitEnd(ctx context.Context, processes Processes, device string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(stopWithin)
	defer late.Stop()
	killed := false
	for {
		alive, err := processes.Alive(device)
		if err != nil {
			return err
		}
		if !alive {
			return processes.Sweep(device)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-late.C:
			if killed {
				return fmt.Errorf("it runs on after SIGKILL")
			}
			killed = true
			if err := processes.Kill(device); err != nil {
				return err
			}
			late.Reset(stopWithin)
		}
	}
}

func removeAll[K comparable, V any](ctx context.Context, kind string, edge reconcile.Edge[K, V], say func(string)) error {
	have, err := edge.Observe(ctx)
	if err != nil {
		return fmt.Errorf("read %ss: %w", kind, err)
	}
	var ops []reconcile.Op[K, V]
	for k, v := range have {
		ops = append(ops, reconcile.Op[K, V]{Kind: reconcile.Delete, Key: k, Old: v})
	}
	var errs []error
	for i, err := range edge.Apply(ctx, ops) {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete %s %v: %w", kind, ops[i].Key, err))
			continue
		}
		say(fmt.Sprintf("deleted %s %v", kind, ops[i].Key))
	}
	return errors.Join(errs...)
}
