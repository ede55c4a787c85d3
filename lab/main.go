// Command lab runs a containerlab topology: in network namespaces of this host, by containerlab, or in a virtual machine.
//
//	lab up      TOPOLOGY [--runner=netns|containerlab]     start it; on failure nothing is left
//	lab check   TOPOLOGY [--runner=netns|containerlab|vm]  compare it with its expected.json, a line per node
//	lab down    TOPOLOGY [--runner=netns|containerlab]     end it; also after a start that was broken off
//	lab exec    TOPOLOGY NODE -- CMD                       run a command in a node; its exit code is ours
//	lab inspect TOPOLOGY [-o json]                         nodes, their addresses and processes
//
// TOPOLOGY is a file, or the name of a folder of lab/topologies. --runner=vm brings the lab up, checks it and takes it down
// within one virtual machine. exec and inspect know namespaces alone. --dir names the lab's folder, /run/fabric-lab/NAME by
// default. Exit code 0: done, and as expected; 1: failed.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"fabric/lab/netns"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	opts := netns.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Run a containerlab topology in network namespaces of this host",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&opts.Dir, "dir", "", "the lab's folder (default "+netns.DefaultRoot+"/NAME)")

	how := "netns"
	var within time.Duration
	run := func(use, short string, act func(*labRun, context.Context, io.Writer) error) *cobra.Command {
		c := &cobra.Command{Use: use + " TOPOLOGY", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			l, err := newLabRun(args[0], how, opts)
			if err != nil {
				return err
			}
			l.within = within
			return act(l, cmd.Context(), cmd.OutOrStdout())
		}}
		c.Flags().StringVar(&how, "runner", how, "netns, containerlab or vm (check only)")
		return c
	}
	up := run("up", "Start the lab", (*labRun).up)
	check := run("check", "Compare the lab with its expected.json until it is equal, or the time given there is over", (*labRun).check)
	check.Flags().DurationVar(&within, "within", 0, "how long it may take, in place of what expected.json says")
	down := run("down", "End the lab; no error if it is not up", (*labRun).down)
	enter := &cobra.Command{
		Use:   "exec TOPOLOGY NODE -- COMMAND...",
		Short: "Run a command in a node",
		Args:  cobra.MinimumNArgs(3),
		RunE: func(_ *cobra.Command, args []string) error {
			lab, err := netns.Open(topologyFile(args[0]), opts)
			if err != nil {
				return err
			}
			if _, ok := lab.Topology.Node(args[1]); !ok {
				return fmt.Errorf("lab %s has no node %q", lab.Topology.Name, args[1])
			}
			return lab.Node(args[1]).Exec(args[2:]...)
		},
	}
	var output string
	inspect := &cobra.Command{
		Use:   "inspect TOPOLOGY",
		Short: "Show the nodes, their addresses and processes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := netns.Open(topologyFile(args[0]), opts)
			if err != nil {
				return err
			}
			return show(cmd.Context(), cmd.OutOrStdout(), lab, output)
		},
	}
	inspect.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	root.AddCommand(up, check, down, enter, inspect)
	return root
}

// nodeView is one node as inspect prints it.
type nodeView struct {
	Name       string          `json:"name"`
	Pid        int             `json:"pid"`
	NetNS      string          `json:"netns"`
	Interfaces []string        `json:"interfaces"`
	Processes  []netns.Process `json:"processes"`
}

func show(ctx context.Context, w io.Writer, lab *netns.Lab, output string) error {
	var views []nodeView
	for _, config := range lab.Topology.Nodes {
		n := lab.Node(config.Name)
		processes, err := n.Processes()
		if err != nil {
			return fmt.Errorf("node %s: %w", config.Name, err)
		}
		out, err := n.Command(ctx, "ip", "-br", "address").Output()
		if err != nil {
			return fmt.Errorf("node %s: ip address: %w", config.Name, err)
		}
		v := nodeView{Name: config.Name, Pid: n.Pid(), NetNS: n.NetNS(), Processes: processes}
		for line := range strings.Lines(string(out)) {
			v.Interfaces = append(v.Interfaces, strings.Join(strings.Fields(line), " "))
		}
		views = append(views, v)
	}
	switch output {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(views)
	case "table":
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "NODE\tPID\tPROCESSES\tINTERFACES")
		for _, v := range views {
			fmt.Fprintf(tw, "%s\t%d\t%d\t%s\n", v.Name, v.Pid, len(v.Processes), strings.Join(v.Interfaces, "; "))
		}
		return tw.Flush()
	}
	return fmt.Errorf("output %q: write table or json", output)
}
