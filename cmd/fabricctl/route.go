package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) routeCommand() *cobra.Command {
	return group("route", "Chosen routes", a.routeList(), a.routeShow(), a.routeExplain())
}

var routeColumns = []column[*fabricv1.Route]{
	{"VRF", (*fabricv1.Route).GetVrf},
	{"PREFIX", (*fabricv1.Route).GetPrefix},
	{"NEXT-HOP", nextHops},
	{"DEVICE", (*fabricv1.Route).GetVia},
	{"SOURCE", (*fabricv1.Route).GetSource},
	{"FROM", (*fabricv1.Route).GetFrom},
	{"AS-PATH", (*fabricv1.Route).GetAsPath},
	{"KERNEL", func(r *fabricv1.Route) string {
		if r.GetStale() {
			return r.GetKernel() + " (stale)"
		}
		return r.GetKernel()
	}},
	{"CLOUD", (*fabricv1.Route).GetCloud},
}

// nextHops are those that traffic takes, where that is known, else that of the chosen path.
func nextHops(r *fabricv1.Route) string {
	if hops := r.GetNextHops(); len(hops) > 0 {
		return strings.Join(hops, ",")
	}
	return r.GetNextHop()
}

func (a *app) routeList() *cobra.Command {
	req := &fabricv1.ListRoutesRequest{}
	cmd := &cobra.Command{
		Use: "list [--vrf VRF] [--source SOURCE] [--within PREFIX]", Short: "List the chosen routes", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			l := newLister(a, "routes", routeColumns)
			err := each(ctx, a.timeout, func(ctx context.Context) (grpc.ServerStreamingClient[fabricv1.ListRoutesResponse], error) {
				return c.ListRoutes(ctx, req)
			}, func(m *fabricv1.ListRoutesResponse) error { return l.add(m.GetRoutes()...) })
			if err != nil {
				return err
			}
			return l.end()
		}),
	}
	a.vrfFlag(cmd, &req.Vrf)
	cmd.Flags().StringVar(&req.Source, "source", "", "only routes from this source: connected, static, peer or fabric")
	cmd.Flags().StringVar(&req.Within, "within", "", "only routes inside this prefix")
	_ = cmd.RegisterFlagCompletionFunc("source", cobra.FixedCompletions([]string{"connected", "static", "peer", "fabric"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) routeShow() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "show PREFIX|ADDRESS [--vrf VRF]", Short: "Show the route that a destination takes", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetRoute(ctx, &fabricv1.GetRouteRequest{Vrf: vrf, Prefix: args[0]})
			if err != nil {
				return err
			}
			return a.printObject(res)
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

func (a *app) routeExplain() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "explain PREFIX|ADDRESS [--vrf VRF]", Short: "Say why a destination is routed as it is", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ExplainRoute(ctx, &fabricv1.ExplainRouteRequest{Vrf: vrf, Prefix: args[0]})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			return a.printExplanation(res)
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

func (a *app) printExplanation(ex *fabricv1.ExplainRouteResponse) error {
	head := fmt.Sprintf("%s in VRF %s", ex.GetPrefix(), ex.GetVrf())
	switch ex.GetMatched() {
	case "", ex.GetPrefix():
	default:
		head += ", covered by " + ex.GetMatched()
	}
	fmt.Fprintln(a.out, head)
	for _, line := range ex.GetLines() {
		fmt.Fprintln(a.out, "  "+line)
	}
	if err := a.printCandidates("candidates, best first:", ex.GetCandidates()); err != nil {
		return err
	}
	return a.printCandidates("refused:", ex.GetRejected())
}

func (a *app) printCandidates(title string, cs []*fabricv1.Candidate) error {
	if len(cs) == 0 {
		return nil
	}
	fmt.Fprintln(a.out, title)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for _, c := range cs {
		mark := " "
		if c.GetBest() {
			mark = "*"
		} else if c.GetEqual() {
			mark = "="
		}
		r := c.GetRoute()
		from := r.GetSource()
		if r.GetFrom() != "" {
			from += " " + r.GetFrom()
		}
		via := r.GetNextHop()
		if via == "" {
			via = r.GetVia()
		}
		fmt.Fprintf(w, "%s %s\tvia %s\tfrom %s\tpath [%s]\t%s\n", mark, r.GetPrefix(), via, from, r.GetAsPath(), c.GetWhy())
	}
	return w.Flush()
}
