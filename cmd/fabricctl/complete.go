package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

// completeTime bounds a completion: a shell that hangs is worse than one that does not complete.
const completeTime = 2 * time.Second

// ask runs a question for a completion; without a daemon there is nothing to offer and nothing to say.
func (a *app) ask(cmd *cobra.Command, question func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if a.checkConnectFlags(cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	out, err := question(ctx, client)
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// vrfFlag adds --vrf with the gateway's VRFs as completion.
func (a *app) vrfFlag(cmd *cobra.Command, vrf *string) {
	cmd.Flags().StringVar(vrf, "vrf", "", "VRF; may be left out where only one fits")
	_ = cmd.RegisterFlagCompletionFunc("vrf", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			res, err := c.ListVrfs(ctx, &fabricv1.ListVrfsRequest{})
			var out []string
			for _, v := range res.GetVrfs() {
				out = append(out, v.GetName())
			}
			return out, err
		})
	})
}

// completePeers offers the names of peers; those of other gateways only where they make sense.
func (a *app) completePeers(vrf *string, gateways bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			res, err := c.ListPeers(ctx, &fabricv1.ListPeersRequest{Vrf: *vrf})
			var out []string
			for _, p := range res.GetPeers() {
				if p.GetFabric() && !gateways {
					continue
				}
				where := "VRF " + p.GetVrf()
				if p.GetFabric() {
					where = "gateway"
				}
				out = append(out, cobra.CompletionWithDesc(p.GetName(), fmt.Sprintf("%s, AS %d, %s", where, p.GetAsn(), p.GetState())))
			}
			return out, err
		})
	}
}

// completePrefixes offers the originated prefixes.
func (a *app) completePrefixes(vrf *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			stream, err := c.ListPrefixes(ctx, &fabricv1.ListPrefixesRequest{Vrf: *vrf})
			if err != nil {
				return nil, err
			}
			var out []string
			for {
				m, err := stream.Recv()
				if err == io.EOF {
					return out, nil
				}
				if err != nil {
					return out, err
				}
				for _, p := range m.GetPrefixes() {
					out = append(out, cobra.CompletionWithDesc(p.GetPrefix(), "VRF "+p.GetVrf()+", "+p.GetSource()))
				}
			}
		})
	}
}

// completeGenerations offers the newest generations for up to so many arguments.
func (a *app) completeGenerations(most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			res, err := c.ListGenerations(ctx, &fabricv1.ListGenerationsRequest{Limit: 20})
			var out []string
			for _, g := range res.GetGenerations() {
				out = append(out, cobra.CompletionWithDesc(fmt.Sprint(g.GetNumber()), g.GetKind()+" "+g.GetWhat()))
			}
			return out, err
		})
	}
}
