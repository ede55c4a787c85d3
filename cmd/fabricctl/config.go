package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "The document and its generations", a.configShow(), a.configDiff(), a.configHistory(), a.configRollback(), a.configRebase())
}

// generationArg reads a generation number of the command line.
func generationArg(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not the number of a generation; see `fabricctl config history`", s)
	}
	return n, nil
}

// generationArgs accepts up to so many numbers of generations.
func generationArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.RangeArgs(least, most)(cmd, args); err != nil {
			return err
		}
		for _, arg := range args {
			if _, err := generationArg(arg); err != nil {
				return err
			}
		}
		return nil
	}
}

func argAt(args []string, i int) uint64 {
	if i >= len(args) {
		return 0
	}
	n, _ := generationArg(args[i]) // checked by generationArgs
	return n
}

func (a *app) configShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [GENERATION]", Short: "Show the document in force, or as it was at a generation, as YAML (-o json: as JSON)",
		Args: generationArgs(0, 1), ValidArgsFunction: a.completeGenerations(1),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetConfig(ctx, &fabricv1.GetConfigRequest{Generation: argAt(args, 0)})
			if err != nil {
				return err
			}
			if a.output != "json" {
				_, err = fmt.Fprint(a.out, res.GetYaml())
				return err
			}
			var doc any
			if err := yaml.Unmarshal([]byte(res.GetYaml()), &doc); err != nil {
				return err
			}
			enc := json.NewEncoder(a.out)
			enc.SetIndent("", "  ")
			return enc.Encode(doc)
		}),
	}
}

func (a *app) configDiff() *cobra.Command {
	return &cobra.Command{
		Use:   "diff [FROM [TO]]",
		Short: "Compare two generations",
		Long: `Compare two generations of the document. Without FROM the file is compared, with what runtime changes
made of it; without TO the generation in force is meant.`,
		Args: generationArgs(0, 2), ValidArgsFunction: a.completeGenerations(2),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.DiffConfig(ctx, &fabricv1.DiffConfigRequest{From: argAt(args, 0), To: argAt(args, 1)})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			_, err = fmt.Fprint(a.out, res.GetDiff())
			return err
		}),
	}
}

func (a *app) configHistory() *cobra.Command {
	var limit uint32
	cmd := &cobra.Command{
		Use: "history [--limit N]", Short: "List the generations, newest first", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListGenerations(ctx, &fabricv1.ListGenerationsRequest{Limit: limit})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			cols := []column[*fabricv1.Generation]{
				{"GENERATION", func(g *fabricv1.Generation) string {
					if g.GetNumber() == res.GetCurrent() {
						return fmt.Sprintf("%d *", g.GetNumber())
					}
					return fmt.Sprint(g.GetNumber())
				}},
				{"TIME", func(g *fabricv1.Generation) string { return g.GetTime().AsTime().Local().Format(time.DateTime) }},
				{"KIND", (*fabricv1.Generation).GetKind},
				{"WHO", (*fabricv1.Generation).GetWho},
				{"WHAT", (*fabricv1.Generation).GetWhat},
			}
			if err := printList(a, "generations", cols, res.GetGenerations()); err != nil {
				return err
			}
			for _, conflict := range res.GetConflicts() {
				fmt.Fprintln(a.out, "conflict: "+conflict)
			}
			return nil
		}),
	}
	cmd.Flags().Uint32Var(&limit, "limit", 0, "only the newest N (default all that are kept)")
	return cmd
}

func (a *app) configRollback() *cobra.Command {
	return a.changeCommand(&cobra.Command{
		Use: "rollback GENERATION", Short: "Make the document as it was at a generation; that is a new generation",
		Args: generationArgs(1, 1), ValidArgsFunction: a.completeGenerations(1),
	}, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		res, err := c.RollbackConfig(ctx, &fabricv1.RollbackConfigRequest{Generation: argAt(args, 0), Options: o})
		return res.GetResult(), err
	})
}

func (a *app) configRebase() *cobra.Command {
	return a.changeCommand(&cobra.Command{
		Use: "rebase", Short: "Take a changed file into use and drop the runtime changes that do not fit it any more", Args: cobra.NoArgs,
	}, func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		res, err := c.RebaseConfig(ctx, &fabricv1.RebaseConfigRequest{Options: o})
		return res.GetResult(), err
	})
}
