// Command cloudemu runs the emulated cloud of package cloudemu. With
// --dataplane kernel it is the router of the seed's VPC: start it inside that
// router's network namespace.
//
// Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start or a
// listener failed, 2 for wrong flags.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"fabric/lab/cloudemu"
)

type flags struct {
	seed, api, apiTLS, caOut, metadata, control string
	profile, dataplane, dataplaneVPC, readyFile string
	logLevel                                    string
	scale                                       float64
}

func main() {
	var f flags
	cmd := &cobra.Command{
		Use:           "cloudemu --seed FILE --api ADDR",
		Short:         "emulates the Alibaba VPC, ECS and metadata services, with a kernel data plane",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.seed, "seed", "", "JSON file with the world to start with")
	fl.StringVar(&f.api, "api", "", "address of the API over HTTP, such as 127.0.0.1:8080")
	fl.StringVar(&f.apiTLS, "api-tls", "", "address of the API over HTTPS")
	fl.StringVar(&f.caOut, "ca-out", "", "file to write the CA certificate of --api-tls to")
	fl.StringVar(&f.metadata, "metadata", "", "address of the metadata service, such as 100.100.100.200:80")
	fl.StringVar(&f.control, "control", "", "unix socket for the control API, besides /_emu/ on the API for loopback peers")
	fl.StringVar(&f.profile, "profile", "realistic", "task behaviour: realistic, strict, instant, slow or stuck")
	fl.StringVar(&f.dataplane, "dataplane", "none", "none, or kernel: routes of this network namespace")
	fl.StringVar(&f.dataplaneVPC, "dataplane-vpc", "", "VPC of the kernel data plane; needed when the seed has several")
	fl.StringVar(&f.readyFile, "ready-file", "", "file to write NAME=ADDRESS lines to once everything listens")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.Float64Var(&f.scale, "clock-scale", 1, "speed of the emulated clock; 0 stands still until ticked")
	usage := false
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { usage = true; return err })
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.seed == "" || f.api == "" && f.apiTLS == "" {
			usage = true
			return errors.New("--seed and one of --api and --api-tls are needed")
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return run(ctx, f)
	}
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "cloudemu:", err)
		if usage {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, f flags) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	seed, err := cloudemu.LoadSeed(f.seed)
	if err != nil {
		return err
	}
	profile, err := cloudemu.ProfileNamed(f.profile)
	if err != nil {
		return err
	}
	o := cloudemu.Options{Seed: seed, Profile: profile, Clock: cloudemu.NewClock(f.scale), Logger: log}
	switch f.dataplane {
	case "none":
	case "kernel":
		if f.dataplaneVPC == "" && len(seed.VPCs) > 1 {
			return errors.New("the seed has several VPCs: name the one to route with --dataplane-vpc")
		}
		o.DataPlane = &cloudemu.KernelDataPlane{VPC: f.dataplaneVPC}
	default:
		return fmt.Errorf("--dataplane %q: use none or kernel", f.dataplane)
	}
	srv, err := cloudemu.New(o)
	if err != nil {
		return err
	}
	return serve(ctx, f, srv, log)
}

// serve listens everywhere, says that it is ready, and runs until ctx ends.
func serve(ctx context.Context, f flags, srv *cloudemu.Server, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	var ready strings.Builder
	var open []net.Listener
	fail := func(err error) error {
		for _, l := range open {
			_ = l.Close()
		}
		return err
	}
	var servers []func()
	listen := func(name, network, addr string, h http.Handler, conf *tls.Config) error {
		if addr == "" {
			return nil
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		open = append(open, l)
		fmt.Fprintf(&ready, "%s=%s\n", name, l.Addr())
		hs := &http.Server{Handler: h, TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			BaseContext: func(net.Listener) context.Context { return ctx }}
		servers = append(servers, func() {
			g.Go(func() error {
				var err error
				if conf != nil {
					err = hs.ServeTLS(l, "", "")
				} else {
					err = hs.Serve(l)
				}
				if errors.Is(err, http.ErrServerClosed) {
					return nil
				}
				return fmt.Errorf("%s: %w", name, err)
			})
			g.Go(func() error {
				<-ctx.Done()
				end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				if err := hs.Shutdown(end); err != nil {
					return hs.Close()
				}
				return nil
			})
		})
		return nil
	}
	if err := listen("api", "tcp", f.api, srv.API(), nil); err != nil {
		return fail(err)
	}
	if f.apiTLS != "" {
		ca, err := cloudemu.NewCA()
		if err != nil {
			return fail(err)
		}
		if f.caOut != "" {
			if err := writeFile(f.caOut, ca.PEM); err != nil {
				return fail(fmt.Errorf("--ca-out: %w", err))
			}
		}
		if err := listen("api-tls", "tcp", f.apiTLS, srv.API(), ca.Config()); err != nil {
			return fail(err)
		}
	}
	if err := listen("metadata", "tcp", f.metadata, srv.Metadata(), nil); err != nil {
		return fail(err)
	}
	if f.control != "" {
		if err := os.Remove(f.control); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("--control: %w", err))
		}
		if err := listen("control", "unix", f.control, srv.Control(), nil); err != nil {
			return fail(err)
		}
		if err := os.Chmod(f.control, 0o600); err != nil {
			return fail(fmt.Errorf("--control: %w", err))
		}
	}
	for _, start := range servers {
		start()
	}
	g.Go(func() error { return srv.Run(ctx) })
	if f.readyFile != "" {
		if err := writeFile(f.readyFile, []byte(ready.String())); err != nil {
			log.Error("cannot write the ready file", "err", err)
		}
	}
	log.Info("ready", "listeners", strings.Fields(ready.String()))
	err := g.Wait()
	log.Info("stopped")
	return err
}

// writeFile puts a whole file in place at once, so that who waits for it never
// reads half.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".cloudemu-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	if _, err := tmp.Write(b); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
