package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) bfdCommand() *cobra.Command {
	return group("bfd", "BFD sessions of tunnels and peers", a.bfdList(), a.bfdShow(), a.bfdCounters())
}

// bfdSessions asks for sessions and hands them on.
func (a *app) bfdSessions(req func(args []string) *fabricv1.ListBfdSessionsRequest, show func(*fabricv1.ListBfdSessionsResponse) error) func(*cobra.Command, []string) error {
	return a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
		ctx, cancel := a.call(ctx)
		defer cancel()
		res, err := c.ListBfdSessions(ctx, req(args))
		if err != nil {
			return err
		}
		return show(res)
	})
}

func (a *app) bfdList() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "list [--vrf VRF]", Short: "List the sessions; with --vrf only those of peers in it", Args: cobra.NoArgs,
		RunE: a.bfdSessions(func([]string) *fabricv1.ListBfdSessionsRequest {
			return &fabricv1.ListBfdSessionsRequest{Vrf: vrf}
		}, func(res *fabricv1.ListBfdSessionsResponse) error {
			return printList(a, "sessions", a.bfdColumns(), res.GetSessions())
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

func (a *app) bfdColumns() []column[*fabricv1.BfdSession] {
	return []column[*fabricv1.BfdSession]{
		{"NAME", (*fabricv1.BfdSession).GetName},
		{"DEVICE", func(s *fabricv1.BfdSession) string { return cmp.Or(s.GetDevice(), s.GetInterface()) }},
		{"REMOTE", (*fabricv1.BfdSession).GetRemote},
		{"STATE", (*fabricv1.BfdSession).GetState},
		{"FOR", func(s *fabricv1.BfdSession) string { return a.ago(s.GetSince()) }},
		{"INTERVAL", func(s *fabricv1.BfdSession) string {
			if s.GetTxInterval() == nil {
				return ""
			}
			return s.GetTxInterval().AsDuration().String()
		}},
		{"DETECTION", detection},
		{"THEIRS", (*fabricv1.BfdSession).GetRemoteState},
		{"NOTE", func(s *fabricv1.BfdSession) string { return cmp.Or(s.GetProblem(), s.GetReason()) }},
	}
}

// detection is the negotiated detection time, "" where there is none.
func detection(s *fabricv1.BfdSession) string {
	if s.GetDetection() == nil {
		return ""
	}
	return s.GetDetection().AsDuration().String()
}

func (a *app) bfdShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME|DEVICE|PEER", Short: "Show a session", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeSessions(),
		RunE: a.bfdSessions(func(args []string) *fabricv1.ListBfdSessionsRequest {
			return &fabricv1.ListBfdSessionsRequest{Name: args[0]}
		}, func(res *fabricv1.ListBfdSessionsResponse) error {
			return printBlocks(a, res, res.GetSessions())
		}),
	}
}

var counterColumns = []column[*fabricv1.BfdSession]{
	{"NAME", (*fabricv1.BfdSession).GetName},
	{"STATE", (*fabricv1.BfdSession).GetState},
	{"RECEIVED", func(s *fabricv1.BfdSession) string { return fmt.Sprint(s.GetReceived()) }},
	{"SENT", func(s *fabricv1.BfdSession) string { return fmt.Sprint(s.GetSent()) }},
	{"UPS", func(s *fabricv1.BfdSession) string { return fmt.Sprint(s.GetUps()) }},
	{"DOWNS", func(s *fabricv1.BfdSession) string { return fmt.Sprint(s.GetDowns()) }},
	{"DROPPED", func(s *fabricv1.BfdSession) string {
		var parts []string
		for why, n := range s.GetDropped() {
			parts = append(parts, fmt.Sprintf("%s %d", why, n))
		}
		slices.Sort(parts)
		return strings.Join(parts, ", ")
	}},
}

func (a *app) bfdCounters() *cobra.Command {
	return &cobra.Command{
		Use: "counters [NAME|DEVICE|PEER]", Short: "List the sessions' packets, and those dropped by reason", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeSessions(),
		RunE: a.bfdSessions(func(args []string) *fabricv1.ListBfdSessionsRequest {
			return &fabricv1.ListBfdSessionsRequest{Name: strings.Join(args, "")}
		}, func(res *fabricv1.ListBfdSessionsResponse) error {
			return printList(a, "sessions", counterColumns, res.GetSessions())
		}),
	}
}

// completeSessions offers the names of sessions.
func (a *app) completeSessions() cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			res, err := c.ListBfdSessions(ctx, &fabricv1.ListBfdSessionsRequest{})
			var out []string
			for _, s := range res.GetSessions() {
				out = append(out, cobra.CompletionWithDesc(s.GetName(), s.GetState()))
			}
			return out, err
		})
	}
}
