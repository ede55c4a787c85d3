// Package daemon is what the gateway's two daemons have in common as programs: exit codes, logs, the word to systemd and the
// listener for metrics.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError is a command line that cannot be understood.
type usageError struct{ error }

// Unwrap returns what is wrong with it.
func (e usageError) Unwrap() error { return e.error }

// Usage says that err is the fault of the command line: the exit code is 2 then.
func Usage(err error) error { return usageError{err} }

// Main runs the command of a program until it ends or SIGINT or SIGTERM ends it, prints its error and exits: with 0 when done,
// 1 when it failed, 2 for a command line that cannot be understood.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	wrongUsage(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, root.Name()+": "+err.Error())
	var usage usageError
	if errors.As(err, &usage) {
		os.Exit(2)
	}
	os.Exit(1)
}

// wrongUsage marks the errors of flags and arguments, of root and all its commands.
func wrongUsage(root *cobra.Command) {
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Usage(err) })
	var mark func(c *cobra.Command)
	mark = func(c *cobra.Command) {
		if args := c.Args; args != nil {
			c.Args = func(c *cobra.Command, given []string) error {
				if err := args(c, given); err != nil {
					return Usage(err)
				}
				return nil
			}
		}
		for _, sub := range c.Commands() {
			mark(sub)
		}
	}
	mark(root)
}

// Log is how a daemon logs, as its flags say.
type Log struct{ format, level string }

// Flags adds --log-format and --log-level.
func (l *Log) Flags(f *pflag.FlagSet) {
	f.StringVar(&l.format, "log-format", "text", `"text" or "json"`)
	f.StringVar(&l.level, "log-level", "info", `"debug", "info", "warn" or "error"`)
}

// Logger writes to standard error; without a time where that is the journal, which has its own.
func (l *Log) Logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, Usage(fmt.Errorf("--log-level %q: want debug, info, warn or error", l.level))
	}
	opts := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, Usage(fmt.Errorf("--log-format %q: want text or json", l.format))
}

// What a daemon tells systemd (sd_notify(3)).
const (
	Ready     = daemon.SdNotifyReady
	Reloading = daemon.SdNotifyReloading
	Stopping  = daemon.SdNotifyStopping
	Watchdog  = daemon.SdNotifyWatchdog
)

// Notify tells systemd a state. Not being run by systemd is no error, and a broken socket shows there: as a start that times out.
func Notify(state string) { _, _ = daemon.SdNotify(false, state) }
