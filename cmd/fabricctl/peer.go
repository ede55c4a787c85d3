package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	fabricv1 "fabric/proto/fabric/v1"
)

func (a *app) peerCommand() *cobra.Command {
	return group("peer", "BGP neighbours",
		a.peerAdd(),
		a.peerChange("del", "Remove a peer", func(ctx context.Context, c fabricv1.FabricServiceClient, vrf, name string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
			res, err := c.DeletePeer(ctx, &fabricv1.DeletePeerRequest{Vrf: vrf, Name: name, Options: o})
			return res.GetResult(), err
		}),
		a.peerList(), a.peerShow(), a.peerReset(),
		a.peerChange("enable", "Let a disabled peer connect again", func(ctx context.Context, c fabricv1.FabricServiceClient, vrf, name string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
			res, err := c.EnablePeer(ctx, &fabricv1.EnablePeerRequest{Vrf: vrf, Name: name, Options: o})
			return res.GetResult(), err
		}),
		a.peerChange("disable", "Keep a peer configured but down", func(ctx context.Context, c fabricv1.FabricServiceClient, vrf, name string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
			res, err := c.DisablePeer(ctx, &fabricv1.DisablePeerRequest{Vrf: vrf, Name: name, Options: o})
			return res.GetResult(), err
		}),
	)
}

func (a *app) peerAdd() *cobra.Command {
	var p fabricv1.PeerConfig
	var vrf string
	var keepalive, hold, bfdInterval time.Duration
	var bfd fabricv1.PeerBfdConfig
	var withBFD bool
	cmd := &cobra.Command{
		Use:   "add ADDRESS --asn ASN [--vrf VRF]",
		Short: "Add a peer; --wait follows until the session is established",
		Example: `  fabricctl peer add 172.20.0.1 --asn 65020 --vrf CORE --name core-router --wait
  fabricctl peer add fe80::1 --interface eth1 --asn 65020 --vrf CORE --dry-run
  fabricctl peer add 172.20.0.2 --asn 65020 --vrf CORE --bfd --bfd-interval 50ms --bfd-multiplier 3`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	a.vrfFlag(cmd, &vrf)
	f.StringVar(&p.Name, "name", "", "name of the peer (default the address)")
	f.Uint32Var(&p.Asn, "asn", 0, "AS number of the peer")
	f.Uint32Var(&p.LocalAsn, "local-asn", 0, "our AS number towards it (default the gateway's)")
	f.StringVar(&p.Interface, "interface", "", "device of the VRF that the session is bound to")
	f.StringVar(&p.UpdateSource, "update-source", "", "our address of the session")
	f.StringSliceVar(&p.Families, "family", nil, "ipv4, ipv6 or both (default the address's)")
	f.BoolVar(&p.Passive, "passive", false, "wait for the peer to connect")
	f.Uint32Var(&p.Multihop, "multihop", 0, "TTL of a session that is not directly connected")
	f.Uint32Var(&p.TtlSecurity, "ttl-security", 0, "accept only packets that came at most so many hops")
	f.StringVar(&p.PasswordFile, "password-file", "", "file on the gateway with the TCP MD5 key, mode 0600")
	f.Uint32Var(&p.Port, "port", 0, "TCP port of the peer (default the fabric's)")
	f.DurationVar(&keepalive, "keepalive", 0, "keepalive interval (default the fabric's)")
	f.DurationVar(&hold, "hold", 0, "hold time (default the fabric's)")
	f.StringVar(&p.Import, "import", "", "policy for what is received")
	f.StringVar(&p.Export, "export", "", "policy for what is announced")
	f.StringVar(&p.NextHop, "next-hop", "", "next hop that the peer is told (default our address of the session)")
	f.BoolVar(&p.ExtendedNextHop, "extended-next-hop", false, "take and announce IPv4 routes with IPv6 next hops")
	f.BoolVar(&p.AsOverride, "as-override", false, "replace the peer's AS number in announced paths by ours")
	f.Uint32Var(&p.AllowOwnAs, "allow-own-as", 0, "how often our own AS number may occur in received paths")
	f.Uint32Var(&p.MaxPrefix, "max-prefix", 0, "number of prefixes admitted per family (default the fabric's)")
	f.BoolVar(&withBFD, "bfd", false, "watch the peer with BFD: its paths are unusable while the session is not up")
	f.DurationVar(&bfdInterval, "bfd-interval", 0, "how often BFD packets are sent and wanted (default the fabric's)")
	f.Uint32Var(&bfd.Multiplier, "bfd-multiplier", 0, "BFD detect multiplier (default the fabric's)")
	f.StringVar(&bfd.Auth, "bfd-auth", "", "BFD authentication: simple, sha1 or meticulous-sha1")
	f.Uint32Var(&bfd.KeyId, "bfd-key-id", 0, "number of the BFD key, 0 to 255")
	f.StringVar(&bfd.KeyFile, "bfd-key-file", "", "file on the gateway with the BFD key, mode 0600")
	f.BoolVar(&p.Disabled, "disabled", false, "add the peer, but keep it down")
	_ = cmd.MarkFlagRequired("asn")
	_ = cmd.RegisterFlagCompletionFunc("bfd-auth", cobra.FixedCompletions([]string{"simple", "sha1", "meticulous-sha1"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("family", cobra.FixedCompletions([]string{"ipv4", "ipv6"}, cobra.ShellCompDirectiveNoFileComp))
	return a.changeCommand(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		p.Address = args[0]
		if keepalive != 0 {
			p.Keepalive = durationpb.New(keepalive)
		}
		if hold != 0 {
			p.Hold = durationpb.New(hold)
		}
		if bfdInterval != 0 {
			bfd.Interval = durationpb.New(bfdInterval)
		}
		// A flag of BFD without --bfd would else be lost without a word.
		if withBFD || !f.Changed("bfd") && slices.ContainsFunc([]string{"bfd-interval", "bfd-multiplier", "bfd-auth", "bfd-key-id", "bfd-key-file"}, f.Changed) {
			p.Bfd = &bfd
		}
		res, err := c.AddPeer(ctx, &fabricv1.AddPeerRequest{Vrf: vrf, Peer: &p, Options: o})
		return res.GetResult(), err
	})
}

// peerChange makes a command that changes one peer of the document.
func (a *app) peerChange(name, short string, send func(ctx context.Context, c fabricv1.FabricServiceClient, vrf, name string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error)) *cobra.Command {
	var vrf string
	cmd := &cobra.Command{Use: name + " NAME|ADDRESS [--vrf VRF]", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePeers(&vrf, false)}
	a.vrfFlag(cmd, &vrf)
	return a.changeCommand(cmd, func(ctx context.Context, c fabricv1.FabricServiceClient, args []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		return send(ctx, c, vrf, args[0], o)
	})
}

func (a *app) peerList() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "list [--vrf VRF]", Short: "List peers and other gateways with the state of their sessions", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListPeers(ctx, &fabricv1.ListPeersRequest{Vrf: vrf})
			if err != nil {
				return err
			}
			return printList(a, "peers", a.peerColumns(), res.GetPeers())
		}),
	}
	a.vrfFlag(cmd, &vrf)
	return cmd
}

func (a *app) peerColumns() []column[*fabricv1.Peer] {
	return []column[*fabricv1.Peer]{
		{"VRF", func(p *fabricv1.Peer) string {
			if p.GetFabric() {
				return "(fabric)"
			}
			return p.GetVrf()
		}},
		{"NAME", (*fabricv1.Peer).GetName},
		{"ADDRESS", (*fabricv1.Peer).GetAddress},
		{"AS", func(p *fabricv1.Peer) string { return fmt.Sprint(p.GetAsn()) }},
		{"STATE", (*fabricv1.Peer).GetState},
		{"FOR", func(p *fabricv1.Peer) string { return a.ago(p.GetSince()) }},
		{"RECEIVED", func(p *fabricv1.Peer) string { return fmt.Sprint(p.GetReceived()) }},
		{"ADMITTED", func(p *fabricv1.Peer) string { return fmt.Sprint(p.GetAdmitted()) }},
		{"ADVERTISED", func(p *fabricv1.Peer) string { return fmt.Sprint(p.GetAdvertised()) }},
		{"NOTE", peerNote},
	}
}

// peerNote says what is unusual about a peer.
func peerNote(p *fabricv1.Peer) string {
	var notes []string
	if p.GetDisabled() {
		notes = append(notes, "disabled")
	}
	if p.GetFrozen() {
		notes = append(notes, fmt.Sprintf("frozen at %d prefixes", p.GetMaxPrefix()))
	}
	if b := p.GetBfd(); b != "" && b != "up" {
		notes = append(notes, "BFD "+b)
	}
	if p.GetRestarting() {
		notes = append(notes, "restarting")
	}
	if p.GetState() != "established" && p.GetLastError() != "" {
		notes = append(notes, p.GetLastError())
	}
	return strings.Join(notes, ", ")
}

func (a *app) peerShow() *cobra.Command {
	var vrf string
	cmd := &cobra.Command{
		Use: "show NAME|ADDRESS [--vrf VRF]", Short: "Show one peer with its configuration", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePeers(&vrf, true),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetPeer(ctx, &fabricv1.GetPeerRequest{Vrf: vrf, Name: args[0]})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			if res.GetPeer() == nil {
				fmt.Fprintln(a.out, "session: none yet")
			} else if err := a.printObject(res.GetPeer()); err != nil {
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

func (a *app) peerReset() *cobra.Command {
	var vrf string
	var soft bool
	cmd := &cobra.Command{
		Use: "reset NAME|ADDRESS [--vrf VRF] [--soft]", Short: "End a session so that it starts anew", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePeers(&vrf, true),
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ResetPeer(ctx, &fabricv1.ResetPeerRequest{Vrf: vrf, Name: args[0], Soft: soft})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			what := "session reset"
			if soft {
				what = "routes refreshed"
			}
			_, err = fmt.Fprintf(a.out, "peer %s: %s\n", res.GetName(), what)
			return err
		}),
	}
	a.vrfFlag(cmd, &vrf)
	cmd.Flags().BoolVar(&soft, "soft", false, "keep the session, ask for and send all routes again")
	return cmd
}
