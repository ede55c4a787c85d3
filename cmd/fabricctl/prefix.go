package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) prefixCommand() *cobra.Command {
	return group("prefix", "Prefixes that this gateway originates", a.prefixAdd(), a.prefixDel(), a.prefixList(), a.prefixShow(), a.prefixWatch())
}

func (a *app) prefixAdd() *cobra.Command {
	var p fabricv1.PrefixConfig
	var vrf string
	cmd := &cobra.Command{
		Use:   "add PREFIX [--vrf VRF]",
		Short: "Originate a prefix; --wait follows until it is announced",
		Example: `  fabricctl prefix add 172.18.0.0/16 --vrf CORE --wait
  fabricctl prefix add 10.8.0.0/24 --vrf CORE --next-hop 172.18.171.250`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	a.vrfFlag(cmd, &vrf)
	f.StringVar(&p.NextHop, "next-hop", "", "where this gateway sends the traffic (default: the prefix is attached)")
	f.StringVar(&p.Interface, "interface", "", "device of the next hop")
	f.BoolVar(&p.Shared, "shared", false, "other sites originate the prefix, too, on purpose")
	f.BoolVar(&p.Local, "local", false, "keep the route at this gateway, do not announce it")
	f.StringSliceVar(&p.Communities, "community", nil, "communities to announce it with, as ASN:N")
	return a.changeCommand(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		p.Prefix = args[0]
		res, err := c.AddPrefix(ctx, &fabricv1.AddPrefixRequest{Vrf: vrf, Prefix: &p, Options: o})
		return res.GetResult(), err
	})
}

func (a *app) prefixDel() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "del PREFIX [--vrf VRF]", Short: "Stop originating a prefix; --wait follows until it is withdrawn", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completePrefixes(&vrf),
	}
	a.vrfFlag(cmd, &vrf)
	return a.changeCommand(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		res, err := c.DeletePrefix(ctx, &fabricv1.DeletePrefixRequest{Vrf: vrf, Prefix: args[0], Options: o})
		return res.GetResult(), err
	})
}

var prefixColumns = []column[*fabricv1.Prefix]{
	{"VRF", (*fabricv1.Prefix).GetVrf},
	{"PREFIX", (*fabricv1.Prefix).GetPrefix},
	{"NEXT-HOP", (*fabricv1.Prefix).GetNextHop},
	{"SOURCE", (*fabricv1.Prefix).GetSource},
	{"ANNOUNCED", func(p *fabricv1.Prefix) string { return yesNo(p.GetAnnounced()) }},
	{"SHARED", func(p *fabricv1.Prefix) string { return yesNo(p.GetShared()) }},
	{"NOTE", (*fabricv1.Prefix).GetError},
}

func (a *app) prefixList() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "list [--vrf VRF]", Short: "List the prefixes that this gateway originates", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			l := newLister(a, "prefixes", prefixColumns)
			err := each(ctx, a.timeout, func(ctx context.Context) (grpc.ServerStreamingClient[fabricv1.ListPrefixesResponse], error) {
				return c.ListPrefixes(ctx, &fabricv1.ListPrefixesRequest{Vrf: vrf})
			}, func(m *fabricv1.ListPrefixesResponse) error { return l.add(m.GetPrefixes()...) })
			if err != nil {
				return err
			}
			return l.end()
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

func (a *app) prefixShow() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "show PREFIX [--vrf VRF]", Short: "Show one originated prefix with its configuration", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePrefixes(&vrf),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetPrefix(ctx, &fabricv1.GetPrefixRequest{Vrf: vrf, Prefix: args[0]})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			if res.GetPrefix() == nil {
				fmt.Fprintln(a.out, "state: not originated yet")
			} else if err := a.printObject(res.GetPrefix()); err != nil {
				return err
			}
			if res.GetConfig() == nil {
				return nil
			}
			fmt.Fprintln(a.out, "\nconfiguration:")
			return a.printObject(res.GetConfig())
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

// prefixWatch follows the prefixes.
func (a *app) prefixWatch() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "watch [--vrf VRF]", Short: "Show originated prefixes and each change until interrupted, or for --timeout if that is given", Args: cobra.NoArgs,
	}
	a.vrfFlag(cmd, &vrf)
	return watch(a, cmd, func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) (grpc.ServerStreamingClient[fabricv1.WatchPrefixesResponse], error) {
		return c.WatchPrefixes(ctx, &fabricv1.WatchPrefixesRequest{Vrf: vrf})
	}, prefixEvent)
}

func prefixEvent(m *fabricv1.WatchPrefixesResponse) string {
	p := m.GetPrefix()
	text := fmt.Sprintf("%-12s  %-24s", p.GetVrf(), p.GetPrefix())
	if m.GetKind() != fabricv1.EventKind_EVENT_KIND_WITHDRAWN {
		text += "  announced " + yesNo(p.GetAnnounced())
		if p.GetNextHop() != "" {
			text += ", via " + p.GetNextHop()
		}
		if p.GetError() != "" {
			text += ": " + p.GetError()
		}
	}
	return text
}
