package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) tunnelRotate() *cobra.Command {
	var all, wait bool
	cmd := &cobra.Command{
		Use: "rotate {NAME|DEVICE | --all} [--wait]", Short: "Replace the WireGuard keys of a tunnel, or of all, without a gap",
		Long: "Replace the WireGuard keys of a tunnel, or of all, without a gap: both ends make new keys, bring them up beside the present ones, move traffic\n" +
			"and drop the former ones. With --wait the answer comes when those are refused; without, see `fabricctl tunnel show`.",
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) == 1) || len(args) > 1 {
				return usage("give one tunnel, or --all")
			}
			return nil
		},
		ValidArgsFunction: a.completeTunnels(false),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			req := &fabricv1.RotateTunnelsRequest{Name: strings.Join(args, ""), All: all}
			limit := a.timeout
			if wait {
				req.WaitMs = uint32(min(a.timeout.Milliseconds(), 1<<32-1))
				limit += grace
			}
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			res, err := c.RotateTunnels(ctx, req)
			if err != nil {
				return err
			}
			return a.printRotations(res, wait)
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all tunnels with WireGuard keys")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the former keys are refused, at most --timeout")
	return cmd
}

// printRotations says what became of each tunnel's keys, and fails if that is not what was wished.
func (a *app) printRotations(res *fabricv1.RotateTunnelsResponse, wait bool) error {
	if a.output != "table" {
		if err := a.printObject(res); err != nil {
			return err
		}
	}
	var refused, late []string
	for _, r := range res.GetRotations() {
		text := fmt.Sprintf("tunnel %s: keys of generation %d are being replaced", r.GetName(), r.GetBefore())
		switch {
		case r.Before == nil:
			text = fmt.Sprintf("tunnel %s: keys of generation %d stay: %s", r.GetName(), r.GetGeneration(), r.GetProblem())
			refused = append(refused, r.GetName())
		case r.GetDone():
			text = fmt.Sprintf("tunnel %s: keys of generation %d follow those of generation %d, which are refused now", r.GetName(), r.GetGeneration(), r.GetBefore())
		case wait:
			text += ": " + r.GetProblem()
			late = append(late, r.GetName())
		}
		if a.output == "table" {
			if _, err := fmt.Fprintln(a.out, text); err != nil {
				return err
			}
		}
	}
	switch {
	case len(refused) > 0:
		return &exitError{exitFailed, "the keys of " + strings.Join(refused, ", ") + " were not replaced"}
	case len(late) > 0:
		return &exitError{exitWaitTimeout, fmt.Sprintf("after %s the keys of %s are still being replaced; that goes on by itself, see `fabricctl tunnel show`", a.timeout, strings.Join(late, ", "))}
	}
	return nil
}
