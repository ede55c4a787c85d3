package links

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"fabric/overlay"
)

type drainRequest struct {
	device  string
	drained bool
	done    chan<- error
}

var errNoTunnel = errors.New("no such tunnel")

// Drain takes traffic off a tunnel, at both ends, as long as there is another that is up, or gives it back. It returns after the pass
// that does so. It is kept on disk, and dropped with the tunnel.
func (e *Engine) Drain(ctx context.Context, device string, drained bool) error {
	done := make(chan error, 1)
	select {
	case e.drains <- drainRequest{device, drained, done}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain is Drain on Run's goroutine.
func (e *Engine) drain(ctx context.Context, device string, drained bool) error {
	if e.plan == nil {
		return fmt.Errorf("drain %s: %w: fabric-links has no plan yet", device, errNoTunnel)
	}
	device = e.plannedDevice(device)
	i := slices.IndexFunc(e.plan.Tunnels, func(t overlay.Tunnel) bool { return t.Device == device })
	if i < 0 {
		return fmt.Errorf("drain %s: %w: it is not a tunnel device of %s; fabric-links status lists them", device, errNoTunnel, e.plan.Gateway)
	}
	if e.drained[device] != drained {
		next := maps.Clone(e.drained)
		if drained {
			next[device] = true
		} else {
			delete(next, device)
		}
		if err := e.cfg.Store.SaveDrained(slices.Sorted(maps.Keys(next))); err != nil {
			return err
		}
		e.drained = next
		// Traffic first, then the session: the far end is told by it.
		e.repair.drain(e.spread(next))
		e.cfg.Log.Info("tunnel drained", "tunnel", e.plan.Tunnels[i].Name, "device", device, "drained", drained)
	}
	e.onePass(ctx)
	return nil
}

// loadDrained takes up what was drained before this process started. A list that cannot be read is no reason to stand still.
func (e *Engine) loadDrained() {
	devices, err := e.cfg.Store.LoadDrained()
	if err != nil {
		e.cfg.Log.Error("which tunnels are drained cannot be read; none is until the operator drains them again", "err", err)
	}
	for _, d := range devices {
		e.drained[d] = true
	}
}

// forgetDrained drops drains of tunnels that the plan has no more: one of the same name that comes later is another.
func (e *Engine) forgetDrained(plan overlay.Plan) {
	next := maps.Clone(e.drained)
	maps.DeleteFunc(next, func(d string, _ bool) bool {
		return !slices.ContainsFunc(plan.Tunnels, func(t overlay.Tunnel) bool { return t.Device == d })
	})
	if len(next) == len(e.drained) {
		return
	}
	if err := e.cfg.Store.SaveDrained(slices.Sorted(maps.Keys(next))); err != nil {
		e.cfg.Log.Warn("drains of tunnels that are gone stay on disk", "err", err)
	}
	e.drained = next
}
