package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) tunnelCommand() *cobra.Command {
	return group("tunnel", "Tunnels to other gateways", a.tunnelList(), a.tunnelShow(), a.tunnelWatch(), a.tunnelDrain(), a.tunnelUndrain(), a.tunnelRotate())
}

func (a *app) tunnelList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tunnels with their state, transfer and BFD session", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListTunnels(ctx, &fabricv1.ListTunnelsRequest{})
			if err != nil {
				return err
			}
			return printList(a, "tunnels", a.tunnelColumns(), res.GetTunnels())
		}),
	}
}

func (a *app) tunnelColumns() []column[*fabricv1.Tunnel] {
	return []column[*fabricv1.Tunnel]{
		{"REMOTE", (*fabricv1.Tunnel).GetRemote},
		{"RANK", func(t *fabricv1.Tunnel) string { return fmt.Sprint(t.GetRank()) }},
		{"DEVICE", (*fabricv1.Tunnel).GetDevice},
		{"KIND", func(t *fabricv1.Tunnel) string { return t.GetKind() + "/" + t.GetImplementation() }},
		{"ENCRYPTION", (*fabricv1.Tunnel).GetEncryption},
		{"STATE", (*fabricv1.Tunnel).GetState},
		{"FOR", func(t *fabricv1.Tunnel) string { return a.ago(t.GetSince()) }},
		{"ACTIVE", func(t *fabricv1.Tunnel) string { return yesNo(t.GetActive()) }},
		{"DRAINED", func(t *fabricv1.Tunnel) string { return yesNo(t.GetDrained()) }},
		{"BFD", func(t *fabricv1.Tunnel) string { return t.GetBfd().GetState() }},
		{"DETECTION", func(t *fabricv1.Tunnel) string { return detection(t.GetBfd()) }},
		{"RTT", func(t *fabricv1.Tunnel) string { return roundTrip(t.GetRtt()) }},
		{"LOSS", lossText},
		{"ENDPOINT", (*fabricv1.Tunnel).GetEndpoint},
		{"HANDSHAKE", func(t *fabricv1.Tunnel) string { return a.ago(t.GetLastHandshake()) }},
		{"RX", func(t *fabricv1.Tunnel) string { return fmt.Sprint(t.GetRxBytes()) }},
		{"TX", func(t *fabricv1.Tunnel) string { return fmt.Sprint(t.GetTxBytes()) }},
		{"MTU", func(t *fabricv1.Tunnel) string { return fmt.Sprint(t.GetMtu()) }},
		{"NOTE", func(t *fabricv1.Tunnel) string { return cmp.Or(t.GetError(), t.GetReason()) }},
	}
}

// roundTrip is "" for a path without answers.
func roundTrip(d *durationpb.Duration) string {
	switch rtt := d.AsDuration(); {
	case d == nil:
		return ""
	case rtt < time.Millisecond:
		return rtt.Round(time.Microsecond).String()
	case rtt < 100*time.Millisecond:
		return rtt.Round(10 * time.Microsecond).String()
	default:
		return rtt.Round(time.Millisecond).String()
	}
}

// lossText is "" before anything is known.
func lossText(t *fabricv1.Tunnel) string {
	if t.LossPercent == nil {
		return ""
	}
	return strconv.FormatFloat(t.GetLossPercent(), 'f', -1, 64) + "%"
}

func (a *app) tunnelShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME|DEVICE|GATEWAY", Short: "Show a tunnel, or all tunnels to a gateway, with their BFD sessions", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTunnels(true),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListTunnels(ctx, &fabricv1.ListTunnelsRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return printBlocks(a, res, res.GetTunnels())
		}),
	}
}

// tunnelWatch follows the tunnels.
func (a *app) tunnelWatch() *cobra.Command {
	return watch(a, &cobra.Command{
		Use: "watch [NAME|DEVICE|GATEWAY]", Short: "Show tunnels and each change until interrupted, or for --timeout if that is given",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeTunnels(true),
	}, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) (grpc.ServerStreamingClient[fabricv1.WatchTunnelsResponse], error) {
		return c.WatchTunnels(ctx, &fabricv1.WatchTunnelsRequest{Name: strings.Join(args, "")})
	}, tunnelEvent)
}

func tunnelEvent(m *fabricv1.WatchTunnelsResponse) string {
	t := m.GetTunnel()
	text := fmt.Sprintf("%-24s  %s", t.GetName(), t.GetDevice())
	if m.GetKind() == fabricv1.EventKind_EVENT_KIND_WITHDRAWN {
		return text
	}
	text += "  " + t.GetState()
	if t.GetActive() {
		text += ", active"
	}
	if t.GetDrained() {
		text += ", drained"
	}
	if b := t.GetBfd(); b != nil {
		text += fmt.Sprintf(", bfd %s", b.GetState())
	}
	if rtt := roundTrip(t.GetRtt()); rtt != "" {
		text += ", rtt " + rtt
	}
	if loss := lossText(t); loss != "" {
		text += ", loss " + loss
	}
	if t.GetEndpoint() != "" {
		text += ", endpoint " + t.GetEndpoint()
	}
	if why := cmp.Or(t.GetError(), t.GetReason()); why != "" {
		text += ": " + why
	}
	return text
}

func (a *app) tunnelDrain() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "drain NAME|DEVICE [--force]", Short: "Take traffic off a tunnel, as long as another to the same gateway is up", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTunnels(false),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.DrainTunnel(ctx, &fabricv1.DrainTunnelRequest{Name: args[0], Force: force})
			if err != nil {
				return err
			}
			return a.printTunnelChange(res.GetResult(), "drained")
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also where no other tunnel to the gateway is up: traffic stays until one is")
	return cmd
}

func (a *app) tunnelUndrain() *cobra.Command {
	return &cobra.Command{
		Use: "undrain NAME|DEVICE", Short: "Let traffic use a tunnel again", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTunnels(false),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.UndrainTunnel(ctx, &fabricv1.UndrainTunnelRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.printTunnelChange(res.GetResult(), "no longer drained")
		}),
	}
}

// printTunnelChange says what became of a tunnel and over which its gateway is reached now.
func (a *app) printTunnelChange(res *fabricv1.TunnelChange, what string) error {
	if a.output != "table" {
		return a.printObject(res)
	}
	t := res.GetTunnel()
	where := fmt.Sprintf("%s is reached over %s (%s)", t.GetRemote(), res.GetActive(), res.GetActiveDevice())
	switch {
	case res.GetActive() == "":
		where = t.GetRemote() + " is reached over no tunnel"
	case t.GetActive() && t.GetDrained():
		where = fmt.Sprintf("traffic to %s stays on it until another tunnel is up", t.GetRemote())
	}
	_, err := fmt.Fprintf(a.out, "tunnel %s (%s) is %s; %s\n", t.GetName(), t.GetDevice(), what, where)
	return err
}

// completeTunnels offers the names of tunnels; gateways only where several tunnels may be meant.
func (a *app) completeTunnels(gateways bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient) ([]string, error) {
			res, err := c.ListTunnels(ctx, &fabricv1.ListTunnelsRequest{})
			var out []string
			last := ""
			for _, t := range res.GetTunnels() {
				if gateways && t.GetRemote() != last {
					last = t.GetRemote()
					out = append(out, cobra.CompletionWithDesc(last, "all tunnels to it"))
				}
				out = append(out, cobra.CompletionWithDesc(t.GetName(), fmt.Sprintf("%s, %s", t.GetDevice(), t.GetState())))
			}
			return out, err
		})
	}
}
