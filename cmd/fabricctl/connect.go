package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	fabricv1 "fabric/proto/fabric/v1"
)

// maxMessage bounds one message of the daemon. Long lists are streamed; what comes close is a document.
const maxMessage = 64 << 20

// dialError keeps why the last attempt to connect failed; gRPC passes on the text only.
type dialError struct {
	mu  sync.Mutex
	err error
}

func (d *dialError) set(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *dialError) get() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// checkConnectFlags refuses flags that contradict each other.
func (a *app) checkConnectFlags(cmd *cobra.Command) error {
	tlsFlags := a.cert != "" || a.key != "" || a.caFile != ""
	switch {
	case a.address == "" && tlsFlags:
		return fmt.Errorf("--cert, --key and --ca are for --address")
	case a.address == "":
		return nil
	case cmd.Flags().Changed("socket"):
		return fmt.Errorf("--socket and --address: choose one")
	case a.cert == "" || a.key == "" || a.caFile == "":
		return fmt.Errorf("--address needs --cert, --key and --ca: the API is not served over TCP without mutual TLS")
	}
	if _, _, err := net.SplitHostPort(a.address); err != nil {
		return fmt.Errorf("--address %s: not HOST:PORT", a.address)
	}
	return nil
}

// connect makes the client. It does not dial before the first call.
func (a *app) connect() (fabricv1.FabricServiceClient, error) {
	network, addr := "unix", a.socket
	creds := insecure.NewCredentials()
	target := "passthrough:///localhost"
	if a.address != "" {
		network, addr = "tcp", a.address
		target = "passthrough:///" + a.address
		var err error
		if creds, err = a.clientTLS(); err != nil {
			return nil, err
		}
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, addr)
			a.dialErr.set(err)
			return c, err
		}))
	if err != nil {
		return nil, err
	}
	a.conn = conn
	return fabricv1.NewFabricServiceClient(conn), nil
}

func (a *app) clientTLS() (credentials.TransportCredentials, error) {
	pair, err := tls.LoadX509KeyPair(a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("--cert %s, --key %s: %w", a.cert, a.key, err)
	}
	ca, err := os.ReadFile(a.caFile)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("--ca %s: holds no PEM certificate", a.caFile)
	}
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool}), nil
}
