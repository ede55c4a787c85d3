package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

// doctorCommand runs the self-check within the daemon and prints what `fabric-site check` prints.
func (a *app) doctorCommand() *cobra.Command {
	var probe bool
	c := &cobra.Command{
		Use: "doctor", Short: "Look at the gateway's host, say what keeps the fabric from working, and how to mend it", Args: cobra.NoArgs,
		Long: `doctor runs the self-check of ` + "`fabric-site check`" + ` with the daemon's eyes and rights. Nothing is changed.

Exit code 0 without errors (warnings and information alone are no errors), 1 with one; the others as always.`,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.Doctor(ctx, &fabricv1.DoctorRequest{Probe: probe})
			if err != nil {
				return err
			}
			if err := a.printFindings(res); err != nil {
				return err
			}
			if res.GetErrors() > 0 {
				return &exitError{exitFailed, fmt.Sprintf("%d errors, %d warnings", res.GetErrors(), res.GetWarnings())}
			}
			return nil
		}),
	}
	c.Flags().BoolVar(&probe, "probe", false, "also send probes to the other gateways and ask the cloud's API, which takes some seconds")
	return c
}

func (a *app) printFindings(res *fabricv1.DoctorResponse) error {
	if a.output != "table" {
		return a.printObject(res)
	}
	for _, f := range res.GetFindings() {
		fmt.Fprintf(a.out, "%-8s %s: %s\n         why:  %s\n", f.GetSeverity(), f.GetId(), f.GetWhat(), f.GetWhy())
		if f.GetMend() != "" {
			fmt.Fprintf(a.out, "         mend: %s\n", strings.ReplaceAll(f.GetMend(), "\n", "\n               "))
		}
	}
	_, err := fmt.Fprintf(a.out, "gateway %s: %d errors, %d warnings\n", res.GetGateway(), res.GetErrors(), res.GetWarnings())
	return err
}
