// Command bench measures the fabric beside FRR and BIRD on this host, in network namespaces of its own, and prints one JSON object per
// line; nothing of it is left afterwards, also on SIGINT and SIGTERM.
//
//	bench bfd [-sessions 50,200,500] [-seconds 60]   CPU, memory and false Downs of overlay/bfd and of FRR's bfdd
//	bench failover [-trials 30] [-path-trials 5] …   how long traffic stops when a tunnel or a third-party path fails, beside FRR and BIRD
//	bench loss [-duration 5m] …                      switches of tunnels where packets are lost and address translation forgets
//	bench restart [-trials 10] …                     what restarts of fabric-site cost: packets, routes, withdrawals at neighbours
//	bench links-check                                short runs of these, compared with their limits
//
// Exit codes: 0 measured, whatever the figures but for links-check; 1 failed, or a limit of links-check missed, 2 wrong usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"fabric/lab/packets"
)

// result is one line of output. Units are in the names of the metrics.
type result struct {
	Bench   string             `json:"bench"`
	Who     string             `json:"who"`
	Params  map[string]any     `json:"params"`
	Metrics map[string]float64 `json:"metrics"`
}

// errUsage: the command line was wrong, and what is wrong has been said.
var errUsage = errors.New("wrong usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	switch {
	case errors.Is(err, errUsage), errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "bfd":
		return benchBFD(ctx, args[1:], json.NewEncoder(out))
	case "failover":
		return benchFailover(ctx, args[1:], json.NewEncoder(out))
	case "loss":
		return benchLoss(ctx, args[1:], json.NewEncoder(out))
	case "restart":
		return benchRestart(ctx, args[1:], json.NewEncoder(out))
	case "links-check":
		return linksCheck(ctx, args[1:], json.NewEncoder(out))
	case engineCommand: // started by benchBFD only
		return engineProcess(ctx, args[1:], in, out)
	case probeCommand: // started by startProbe only
		if err := packets.Serve(args[1:], in, out); !errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	fmt.Fprintln(os.Stderr, "usage: bench bfd|failover|loss|restart|links-check [flags]; bench COMMAND -help lists them")
	return errUsage
}
