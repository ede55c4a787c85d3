package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

// grace is what an answer may take beyond the time that the daemon was asked to wait.
const grace = 10 * time.Second

// changeFlags are the flags of every command that changes the intent.
type changeFlags struct {
	dryRun, wait bool
	base         uint64
}

func (f *changeFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until the change has taken effect, at most --timeout")
	cmd.Flags().Uint64Var(&f.base, "base", 0, "refuse unless this generation is the current one")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "wait")
}

// makeChange sends a change and prints what came of it.
func (a *app) makeChange(ctx context.Context, f *changeFlags, send func(context.Context, *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error)) error {
	opts := &fabricv1.ChangeOptions{DryRun: f.dryRun, Base: f.base}
	limit := a.timeout
	if f.wait {
		opts.WaitMs = uint32(min(a.timeout.Milliseconds(), 1<<32-1))
		limit += grace
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := send(ctx, opts)
	if err != nil {
		return err
	}
	if a.output != "table" {
		if err := a.printObject(res); err != nil {
			return err
		}
	} else {
		a.printChange(res, f.wait)
	}
	if f.wait && !res.GetConverged() {
		return &exitError{exitWaitTimeout, fmt.Sprintf(
			"generation %d is kept, but after %s it still waits for %s; it goes on by itself, see `fabricctl site status`", res.GetGeneration(), a.timeout, res.GetWaitingFor())}
	}
	return nil
}

func (a *app) printChange(res *fabricv1.ChangeResult, wait bool) {
	if len(res.GetPlan()) == 0 {
		fmt.Fprintln(a.out, "plan: nothing to do on this gateway")
	} else {
		fmt.Fprintln(a.out, "plan:")
		for _, line := range res.GetPlan() {
			fmt.Fprintln(a.out, "  "+line)
		}
	}
	if res.GetDryRun() {
		fmt.Fprintf(a.out, "dry run on generation %d, nothing was changed: %s\n", res.GetGeneration(), res.GetWhat())
		return
	}
	fmt.Fprintf(a.out, "generation %d: %s\n", res.GetGeneration(), res.GetWhat())
	if wait && res.GetConverged() {
		fmt.Fprintf(a.out, "in effect after %s\n", res.GetElapsed().AsDuration().Round(time.Millisecond))
	}
}

// changeCommand makes a command that changes the intent.
func (a *app) changeCommand(cmd *cobra.Command, send func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error)) *cobra.Command {
	var f changeFlags
	f.register(cmd)
	cmd.RunE = a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
		return a.makeChange(ctx, &f, func(ctx context.Context, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
			return send(ctx, c, args, o)
		})
	})
	return cmd
}
