package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fabric/internal/version"
	fabricv1 "fabric/proto/fabric/v1"
)

const defaultSocket = "/run/fabric-site/fabric.sock"

const rootHelp = `fabricctl asks and changes one gateway of the fabric: the one whose fabric-site daemon answers on
the unix socket, or, with --address, over TCP with mutual TLS.

Every change is planned and checked as a whole before anything happens; it is kept as a new
generation or refused, never half applied. --dry-run stops after the plan. --wait follows the
change until it has taken effect.

Output is a table for people, or with -o json or -o yaml for programs: the messages of
fabric.v1.FabricService (64-bit numbers are strings, as in all JSON of protocol buffers). Lists are
one object with the list in it; watch prints one object per line (json) or document (yaml).

Exit codes:
  0  done
  1  refused or failed; doctor found an error
  2  wrong usage
  3  the daemon cannot be reached, does not answer in time, or is still starting
  4  --wait ran out of time; the change is kept and goes on taking effect
  5  what was named does not exist
  6  not permitted
  7  the generation given with --base is not the current one any more; look and try again`

// app is one call of fabricctl.
type app struct {
	out, err io.Writer
	now      func() time.Time

	socket, address   string
	cert, key, caFile string
	output            string
	timeout           time.Duration

	conn    *grpc.ClientConn
	dialErr dialError
	// started is set once the command line has been understood: errors after that are not usage errors.
	started bool
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{out: stdout, err: stderr, now: time.Now}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		_ = a.conn.Close()
	}
	if err == nil {
		return exitOK
	}
	if !a.started {
		err = usage("%v; see fabricctl --help", err)
	}
	code, text := a.explain(err)
	fmt.Fprintln(a.err, "fabricctl: "+text)
	return code
}

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "fabricctl",
		Short:         "Ask and change one gateway of the fabric",
		Long:          rootHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", defaultSocket, "unix socket of fabric-site")
	f.StringVar(&a.address, "address", "", "HOST:PORT of fabric-site, over mutual TLS; needs --cert, --key and --ca")
	f.StringVar(&a.cert, "cert", "", "PEM file of our certificate")
	f.StringVar(&a.key, "key", "", "PEM file of its private key")
	f.StringVar(&a.caFile, "ca", "", "PEM file of the CA that signed the daemon's certificate")
	f.StringVarP(&a.output, "output", "o", "table", "output: table, json or yaml")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for an answer and, with --wait, for the change to take effect")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(
		a.peerCommand(), a.prefixCommand(), a.routeCommand(), a.tunnelCommand(), a.bfdCommand(), a.vrfCommand(), a.cloudCommand(),
		a.siteCommand(), a.configCommand(), a.doctorCommand(), a.versionCommand(),
	)
	return root
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(subs...)
	c.Args = func(c *cobra.Command, args []string) error {
		names := make([]string, len(subs))
		for i, s := range subs {
			names[i] = s.Name()
		}
		if len(args) > 0 {
			return fmt.Errorf("%q is not a command of %s; use one of %s", args[0], use, strings.Join(names, ", "))
		}
		return fmt.Errorf("%s: which? Use one of %s", use, strings.Join(names, ", "))
	}
	// Without it cobra prints the help and succeeds.
	c.RunE = func(*cobra.Command, []string) error { return nil }
	return c
}

// action is what a command does once its command line is understood.
type action func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error

// do connects and runs an action.
func (a *app) do(act action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, a.output) {
			return fmt.Errorf("-o %s: there is no such output; use table, json or yaml", a.output)
		}
		if a.timeout <= 0 {
			return fmt.Errorf("--timeout %s: must be longer than 0", a.timeout)
		}
		if err := a.checkConnectFlags(cmd); err != nil {
			return err
		}
		a.started = true
		client, err := a.connect()
		if err != nil {
			return err
		}
		return act(cmd.Context(), client, args)
	}
}

// call bounds one call by --timeout.
func (a *app) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of fabricctl and the daemon", Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			res, err := c.GetVersion(ctx, &fabricv1.GetVersionRequest{})
			if a.output != "table" {
				if err != nil {
					return err
				}
				return a.printObject(res)
			}
			// Our own version is worth knowing also where no daemon runs.
			fmt.Fprintf(a.out, "fabricctl    %s\n", version.Version)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "fabric-site  %s\n", res.GetVersion())
			return nil
		}),
	}
}

// each opens a stream and calls fn for every message of it. The time limit counts while waiting for the daemon, not
// while our own output waits for a pager; limit 0 waits for ever.
func each[M any](ctx context.Context, limit time.Duration, open func(context.Context) (grpc.ServerStreamingClient[M], error), fn func(*M) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// await runs one step that waits for the daemon.
	await := func(step func() error) error {
		if limit == 0 {
			return step()
		}
		late := time.AfterFunc(limit, cancel)
		err := step()
		if !late.Stop() && err != nil {
			return errNoAnswer
		}
		return err
	}
	var stream grpc.ServerStreamingClient[M]
	if err := await(func() (err error) { stream, err = open(ctx); return err }); err != nil {
		return err
	}
	for {
		var m *M
		err := await(func() (err error) { m, err = stream.Recv(); return err })
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := fn(m); err != nil {
			return err
		}
	}
}
