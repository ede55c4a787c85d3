package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	fabricv1 "fabric/proto/fabric/v1"
)

var vrfColumns = []column[*fabricv1.Vrf]{
	{"NAME", (*fabricv1.Vrf).GetName},
	{"TABLE", func(v *fabricv1.Vrf) string { return fmt.Sprint(v.GetTable()) }},
	{"VNI", func(v *fabricv1.Vrf) string { return fmt.Sprint(v.GetVni()) }},
	{"DEVICE", (*fabricv1.Vrf).GetDevice},
	{"VXLAN", (*fabricv1.Vrf).GetVxlan},
	{"INTERFACES", func(v *fabricv1.Vrf) string { return strings.Join(v.GetInterfaces(), ",") }},
	{"IMPORT-RT", func(v *fabricv1.Vrf) string { return strings.Join(v.GetImportRt(), ",") }},
	{"EXPORT-RT", func(v *fabricv1.Vrf) string { return strings.Join(v.GetExportRt(), ",") }},
	{"ROUTES", func(v *fabricv1.Vrf) string { return fmt.Sprint(v.GetRoutes()) }},
	{"KERNEL", func(v *fabricv1.Vrf) string { return fmt.Sprint(v.GetKernel()) }},
	{"IN-SYNC", func(v *fabricv1.Vrf) string { return yesNo(v.GetInSync()) }},
	{"NOTE", (*fabricv1.Vrf).GetError},
}

func (a *app) vrfCommand() *cobra.Command {
	return group("vrf", "Routing domains at this gateway", &cobra.Command{
		Use: "list", Short: "List the VRFs", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListVrfs(ctx, &fabricv1.ListVrfsRequest{})
			if err != nil {
				return err
			}
			return printList(a, "vrfs", vrfColumns, res.GetVrfs())
		}),
	})
}

func (a *app) cloudColumns() []column[*fabricv1.Cloud] {
	return []column[*fabricv1.Cloud]{
		{"PROVIDER", (*fabricv1.Cloud).GetProvider},
		{"REGION", (*fabricv1.Cloud).GetRegion},
		{"VPC", (*fabricv1.Cloud).GetVpc},
		{"TABLE", (*fabricv1.Cloud).GetTable},
		{"INSTANCE", (*fabricv1.Cloud).GetInstance},
		{"WANTED", func(c *fabricv1.Cloud) string { return fmt.Sprint(c.GetDesired()) }},
		{"OURS", func(c *fabricv1.Cloud) string { return fmt.Sprintf("%d/%d", c.GetOwned(), c.GetQuota()) }},
		{"FOREIGN", func(c *fabricv1.Cloud) string { return fmt.Sprint(c.GetForeign()) }},
		{"IN-SYNC", func(c *fabricv1.Cloud) string { return yesNo(c.GetInSync()) }},
		{"READ", func(c *fabricv1.Cloud) string { return a.ago(c.GetLastSync()) }},
		{"NOTE", (*fabricv1.Cloud).GetError},
	}
}

// cloudEntry is an entry with the table it is in.
type cloudEntry struct {
	*fabricv1.CloudEntry
	table string
}

var cloudEntryColumns = []column[cloudEntry]{
	{"TABLE", func(e cloudEntry) string { return e.table }},
	{"PREFIX", func(e cloudEntry) string { return e.GetPrefix() }},
	{"NEXT-HOP", func(e cloudEntry) string { return e.GetNextHop() }},
	{"STATE", func(e cloudEntry) string { return e.GetState() }},
	{"NOTE", func(e cloudEntry) string { return e.GetError() }},
}

func (a *app) cloudCommand() *cobra.Command {
	var entries bool
	list := &cobra.Command{
		Use: "list [--entries]", Short: "List the VPC route tables that this gateway keeps", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListClouds(ctx, &fabricv1.ListCloudsRequest{})
			if err != nil {
				return err
			}
			// JSON and YAML have the entries in each table anyway.
			if !entries || a.output != "table" {
				return printList(a, "clouds", a.cloudColumns(), res.GetClouds())
			}
			var all []cloudEntry
			for _, t := range res.GetClouds() {
				for _, e := range t.GetEntries() {
					all = append(all, cloudEntry{e, t.GetTable()})
				}
			}
			return printList(a, "entries", cloudEntryColumns, all)
		}),
	}
	list.Flags().BoolVar(&entries, "entries", false, "list the entries that are ours or wanted")
	plan := &cobra.Command{
		Use: "plan", Short: "Show what the next pass would change in the VPC route tables", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ListClouds(ctx, &fabricv1.ListCloudsRequest{})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return printList(a, "clouds", a.cloudColumns(), res.GetClouds())
			}
			for _, t := range res.GetClouds() {
				fmt.Fprintf(a.out, "%s %s:\n", t.GetVpc(), t.GetTable())
				switch {
				case t.GetError() != "":
					fmt.Fprintln(a.out, "  not known: "+t.GetError())
				case len(t.GetPlan()) == 0:
					fmt.Fprintln(a.out, "  nothing to do")
				}
				for _, line := range t.GetPlan() {
					fmt.Fprintln(a.out, "  "+line)
				}
			}
			if len(res.GetClouds()) == 0 {
				fmt.Fprintln(a.out, "this gateway keeps no VPC route table")
			}
			return nil
		}),
	}
	approve := &cobra.Command{
		Use: "approve", Short: "Let deletes go that are held back because they are so many at once", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.ApproveCloud(ctx, &fabricv1.ApproveCloudRequest{})
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.printObject(res)
			}
			_, err = fmt.Fprintf(a.out, "%d deletes that were held back go ahead\n", res.GetHeld())
			return err
		}),
	}
	return group("cloud", "VPC route tables", list, plan, approve)
}

func (a *app) siteCommand() *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "Sum up the gateway", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetSite(ctx, &fabricv1.GetSiteRequest{})
			if err != nil {
				return err
			}
			return a.printObject(res)
		}),
	}
	drain := a.changeCommand(&cobra.Command{
		Use: "drain", Short: "Withdraw all that this gateway originates, so that traffic moves away", Args: cobra.NoArgs,
	}, func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		res, err := c.DrainSite(ctx, &fabricv1.DrainSiteRequest{Options: o})
		return res.GetResult(), err
	})
	undrain := a.changeCommand(&cobra.Command{
		Use: "undrain", Short: "Announce it again", Args: cobra.NoArgs,
	}, func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string, o *fabricv1.ChangeOptions) (*fabricv1.ChangeResult, error) {
		res, err := c.UndrainSite(ctx, &fabricv1.UndrainSiteRequest{Options: o})
		return res.GetResult(), err
	})
	return group("site", "This gateway", status, drain, undrain)
}
