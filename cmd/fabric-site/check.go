package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"fabric/cloud"
	"fabric/internal/api"
	"fabric/internal/check"
	"fabric/internal/config"
	"fabric/internal/daemon"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// checkCommand is the self-check of a host.
func checkCommand(o *options) *cobra.Command {
	var where check.Options
	output, start := "table", false
	c := &cobra.Command{
		Use:   "check",
		Short: "Look at this host and say what would keep the fabric from working, and how to mend it",
		Long: `check looks at this host, before or while the daemons run, and changes nothing.

Exit code 0 without errors (warnings and information alone are no errors), 1 with one or when the document cannot be read, 2 for
wrong usage. With --start, which is for the unit's ExecStartPre, only errors are printed, and only those fail with which a start
would be in vain: a kernel without next-hop objects or nftables, or a state folder that cannot be written to. A document that cannot
be read does not fail either: fabric-site may have an earlier one that it runs with.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return daemon.Usage(fmt.Errorf("--output %q: want table or json", output))
			}
			gateway, err := o.name()
			if err != nil {
				return err
			}
			where.StateDir, where.Confined = o.stateDir, start
			if start && where.Probe {
				return daemon.Usage(errors.New("--start and --probe: choose one; a start waits for no other host"))
			}
			if start {
				return checkStart(c.Context(), c.OutOrStdout(), o.config, gateway, where)
			}
			return checkHost(c.Context(), c.OutOrStdout(), o.config, gateway, output, where)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", output, `"table" or "json"`)
	c.Flags().BoolVar(&start, "start", false, "fail only where a start of fabric-site would be in vain; print errors alone")
	c.Flags().BoolVar(&where.Probe, "probe", false, "also send probes to the other gateways and ask the cloud's API, which takes some seconds")
	c.Flags().StringVar(&where.Socket, "socket", api.DefaultSocket, "unix socket of fabric-site")
	c.Flags().StringVar(&where.Links, "links", "/run/fabric-links/links.sock", "unix socket of fabric-links")
	return c
}

// look makes the report for the document in a file.
func look(ctx context.Context, file, gateway string, where check.Options) (check.Report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return check.Report{}, err
	}
	doc, err := config.Parse(file, data)
	if err != nil {
		return check.Report{}, err
	}
	where.Cloud = examine(doc, gateway)
	facts, err := check.Gather(ctx, doc, gateway, where)
	if err != nil {
		return check.Report{}, fmt.Errorf("%s: %w", file, err)
	}
	return check.NewReport(gateway, check.Run(ctx, facts)), nil
}

// examine asks the API of the gateway's cloud what the gateway may do there; nil where it keeps no table.
func examine(doc *config.Document, gateway string) func(context.Context) (cloud.Examination, error) {
	wish, err := site.CloudWish(doc, gateway)
	if wish == nil && err == nil {
		return nil
	}
	return func(ctx context.Context) (cloud.Examination, error) {
		if err != nil {
			return cloud.Examination{}, err
		}
		vpc, err := openCloud(ctx, *wish, slog.New(slog.DiscardHandler))
		if err != nil {
			return cloud.Examination{}, err
		}
		defer vpc.Close()
		x, ok := vpc.(cloud.Examiner)
		if !ok {
			return cloud.Examination{}, fmt.Errorf("%s has no dry runs", wish.Provider)
		}
		return x.Examine(ctx)
	}
}

// doctor is the report for the document in force, for the API.
func doctor(store *config.Store, gateway string, where check.Options) func(context.Context, bool) (*fabricv1.DoctorResponse, error) {
	return func(ctx context.Context, probe bool) (*fabricv1.DoctorResponse, error) {
		generation := store.Current()
		if generation == nil || generation.Document == nil {
			return nil, errors.New("there is no document in force; see the daemon's log")
		}
		where := where
		where.Probe, where.Cloud = probe, examine(generation.Document, gateway)
		facts, err := check.Gather(ctx, generation.Document, gateway, where)
		if err != nil {
			return nil, err
		}
		r := check.NewReport(gateway, check.Run(ctx, facts))
		res := &fabricv1.DoctorResponse{Gateway: r.Gateway, Errors: uint32(r.Errors), Warnings: uint32(r.Warnings)}
		for _, f := range r.Findings {
			res.Findings = append(res.Findings, &fabricv1.Finding{Severity: string(f.Severity), Id: f.ID, What: f.What, Why: f.Why, Mend: f.Mend})
		}
		return res, nil
	}
}

// checkStart prints errors and fails with the first that makes a start pointless.
func checkStart(ctx context.Context, w io.Writer, file, gateway string, where check.Options) error {
	r, err := look(ctx, file, gateway, where)
	if err != nil {
		_, err = fmt.Fprintf(w, "not checked: %v\n", err)
		return err
	}
	r.Findings = slices.DeleteFunc(r.Findings, func(f check.Finding) bool { return f.Severity != check.Error })
	if err := printFindings(w, r); err != nil {
		return err
	}
	if i := slices.IndexFunc(r.Findings, check.PreventsStart); i >= 0 {
		return fmt.Errorf("a start would be in vain: %s: %s", r.Findings[i].ID, r.Findings[i].What)
	}
	return nil
}

// checkHost prints what is found and fails if an error is among it.
func checkHost(ctx context.Context, w io.Writer, file, gateway, output string, where check.Options) error {
	r, err := look(ctx, file, gateway, where)
	if err != nil {
		return err
	}
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
