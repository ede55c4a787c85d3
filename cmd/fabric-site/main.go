// Command fabric-site is a gateway's control plane: it speaks BGP per VRF and with the other gateways, and keeps kernel
// tables and VPC tables equal to what BGP chose.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"fabric/internal/api"
	"fabric/internal/config"
	"fabric/internal/daemon"
	"fabric/internal/version"
)

// options are the flags of the daemon.
type options struct {
	gateway, config         string
	stateDir, socket, group string
	links, metrics          string
	log                     daemon.Log
}

func main() { daemon.Main(command()) }

func command() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "fabric-site",
		Short:         "Route a gateway of the fabric",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Version,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&o.gateway, "gateway", os.Getenv("FABRIC_GATEWAY"), "this gateway's name in the document (default $FABRIC_GATEWAY, else the host's name)")
	f.StringVar(&o.config, "config", "/etc/fabric/fabric.yaml", "the fabric's document")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/fabric-site", "folder for generations and the checkpoint")
	o.log.Flags(f)

	run := &cobra.Command{
		Use:   "run",
		Short: "Run until SIGTERM; forwarding goes on after it. SIGHUP reads the document again",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runSite(c.Context(), o) },
	}
	run.Flags().StringVar(&o.socket, "socket", api.DefaultSocket, "unix socket of the gRPC API")
	run.Flags().StringVar(&o.group, "group", "", "group whose members may use the socket (default the daemon's own)")
	run.Flags().StringVar(&o.links, "links", "/run/fabric-links/links.sock", "unix socket of fabric-links")
	run.Flags().StringVar(&o.metrics, "metrics", "", "address:port for Prometheus metrics (default the document's)")

	check := &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Check a document and print everything that is wrong with it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			file := o.config
			if len(args) == 1 {
				file = args[0]
			}
			return checkConfig(c.OutOrStdout(), file, o.gateway)
		},
	}
	keygen := &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a WireGuard key in FILE, mode 0600, and print the public key for the document",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			public, err := config.GenerateKey(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), public)
			return err
		},
	}
	schema := &cobra.Command{
		Use:   "schema",
		Short: "Print the document's JSON schema",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := config.Schema()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(b)
			return err
		},
	}
	cleanup := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything of fabric-site's from this host; stop the daemon first",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return runCleanup(c.Context(), c.OutOrStdout(), o) },
	}
	versions := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), version.Version) },
	}
	root.AddCommand(run, checkCommand(&o), check, keygen, schema, cleanup, versions)
	root.AddCommand(tlsCommands(&o)...)
	return root
}

// name is the gateway's name: the flag, or the host's name.
func (o *options) name() (string, error) {
	if o.gateway != "" {
		return o.gateway, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", daemon.Usage(fmt.Errorf("--gateway is not given and the host has no name: %w", err))
	}
	return host, nil
}
