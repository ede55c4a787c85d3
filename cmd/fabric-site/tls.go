package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"fabric/overlay/carrier"
)

// tlsCommands make what "tls" tunnels need beside WireGuard's keys.
func tlsCommands(o *options) []*cobra.Command {
	token := &cobra.Command{
		Use:   "tls-token FILE",
		Short: "Make the secret of tls tunnels in FILE, mode 0600; copy it to every gateway",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return carrier.GenerateSecret(args[0]) },
	}
	host := ""
	certificate := &cobra.Command{
		Use:   "tls-certificate CERTIFICATE-FILE KEY-FILE",
		Short: "Make a certificate for tls tunnels unless it is there, and print the pin for the document",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if host == "" {
				name, err := o.name()
				if err != nil {
					return err
				}
				host = name
			}
			pin, err := carrier.EnsureCertificate(args[0], args[1], host)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), pin)
			return err
		},
	}
	certificate.Flags().StringVar(&host, "host", "", "name in the certificate (default the gateway's)")
	return []*cobra.Command{token, certificate}
}
