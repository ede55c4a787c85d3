package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"fabric/internal/api"
	"fabric/internal/check"
	"fabric/internal/config"
	"fabric/internal/daemon"
)

// checkCommand is the self-check of a host.
func checkCommand(o *options) *cobra.Command {
	var where check.Options
	output := "table"
	c := &cobra.Command{
		Use:   "check",
		Short: "Look at this host and say what would keep the fabric from working, and how to mend it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return daemon.Usage(fmt.Errorf("--output %q: want table or json", output))
			}
			gateway, err := o.name()
			if err != nil {
				return err
			}
			where.StateDir = o.stateDir
			return checkHost(c.Context(), c.OutOrStdout(), o.config, gateway, output, where)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", output, `"table" or "json"`)
	c.Flags().StringVar(&where.Socket, "socket", api.DefaultSocket, "unix socket of fabric-site")
	c.Flags().StringVar(&where.Links, "links", "/run/fabric-links/links.sock", "unix socket of fabric-links")
	return c
}

// checkHost prints what is found and fails if an error is among it.
func checkHost(ctx context.Context, w io.Writer, file, gateway, output string, where check.Options) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	doc, err := config.Parse(file, data)
	if err != nil {
		return err
	}
	facts, err := check.Gather(ctx, doc, gateway, where)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r := check.NewReport(gateway, check.Run(ctx, facts))
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = printFindings(w, r)
	}
	if err == nil && r.Errors > 0 {
		err = fmt.Errorf("%d errors, %d warnings", r.Errors, r.Warnings)
	}
	return err
}

func printFindings(w io.Writer, r check.Report) error {
	for _, f := range r.Findings {
		text := fmt.Sprintf("%-8s %s: %s\n         why:  %s\n", f.Severity, f.ID, f.What, f.Why)
		if f.Mend != "" {
			text += "         mend: " + strings.ReplaceAll(f.Mend, "\n", "\n               ") + "\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "gateway %s: %d errors, %d warnings\n", r.Gateway, r.Errors, r.Warnings)
	return err
}
