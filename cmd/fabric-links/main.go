// Command fabric-links keeps a gateway's tunnels, the routes to remote VTEPs and next-hop objects as fabric-site last planned
// them, also while fabric-site is away.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"fabric/internal/daemon"
	"fabric/internal/version"
)

// options are the flags that all commands share.
type options struct {
	stateDir, runDir, socket string
	log                      daemon.Log
	tunnelManager            string
	metrics                  string
}

func main() { daemon.Main(command()) }

func command() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "fabric-links",
		Short:         "Keep a gateway's tunnels, VTEP routes and next hops as planned",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Version,
	}
	f := root.PersistentFlags()
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/fabric-links", "folder that keeps the plan")
	f.StringVar(&o.runDir, "run-dir", "/run/fabric-links", "folder for locks, the socket and logs of tunnel processes")
	f.StringVar(&o.socket, "socket", "", "unix socket to serve (default RUN-DIR/links.sock)")
	o.log.Flags(f)
	f.StringVar(&o.tunnelManager, "tunnel-manager", "exec", `who starts userspace tunnels: "exec" (this process) or "systemd" (fabric-tunnel@.service)`)

	run := &cobra.Command{
		Use:   "run",
		Short: "Run the engine until SIGTERM; nothing is torn down at its end",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runEngine(c.Context(), o) },
	}
	run.Flags().StringVar(&o.metrics, "metrics", "", "address:port for Prometheus metrics (default none)")
	// Without a command the engine runs too.
	root.Flags().StringVar(&o.metrics, "metrics", "", "address:port for Prometheus metrics (default none)")
	root.RunE = run.RunE

	tunnel := &cobra.Command{
		Use:   "tunnel DEVICE",
		Short: "Carry one userspace WireGuard tunnel; started by the engine or by fabric-tunnel@DEVICE.service",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("tunnel: name one device")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return runTunnel(c.Context(), o, args[0]) },
	}
	carrier := &cobra.Command{
		Use:   "carrier",
		Short: "Take the TLS connections of tunnels that other gateways dial; started by the engine or as fabric-carrier.service",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runCarrier(c.Context(), o) },
	}
	cleanup := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all that fabric-links has made on this host, and its plan; stop the engine first",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runCleanup(c.Context(), o, c.OutOrStdout()) },
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Print the running engine's state as JSON",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runStatus(c.Context(), o, c.OutOrStdout()) },
	}
	apply := &cobra.Command{
		Use:   "apply FILE",
		Short: "Hand the running engine a plan in JSON (- is standard input) and print how each object stands",
		Long:  "Hand the running engine a plan in JSON (- is standard input) and print how each object stands.\nfabric-site does this by itself; it sends its own plan again when it next connects.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("apply: name one file")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return runApply(c.Context(), o, args[0], c.InOrStdin(), c.OutOrStdout())
		},
	}
	versions := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		Run:   func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), version.Version) },
	}
	root.AddCommand(run, tunnel, carrier, cleanup, status, apply, versions)
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s: unexpected argument %q", c.Name(), args[0])
	}
	return nil
}

func (o options) socketPath() string {
	if o.socket != "" {
		return o.socket
	}
	return filepath.Join(o.runDir, "links.sock")
}
