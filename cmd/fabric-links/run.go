package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"fabric/internal/kernel/linux"
	"fabric/overlay"
	"fabric/overlay/bfd"
	"fabric/overlay/links"
)

func (o options) processes(died func()) (links.Processes, links.CarrierProcess, error) {
	switch o.tunnelManager {
	case "exec":
		self, err := os.Executable()
		if err != nil {
			return nil, nil, fmt.Errorf("find this program: %w", err)
		}
		p := links.NewExecProcesses(self, o.runDir, died)
		return p, p.Carrier(), nil
	case "systemd":
		p := links.NewSystemdProcesses(o.runDir)
		return p, p.Carrier(), nil
	}
	return nil, nil, usageError{fmt.Errorf("--tunnel-manager %q: want exec or systemd", o.tunnelManager)}
}

func runEngine(ctx context.Context, o options) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	processes, carrier, err := o.processes(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	store, err := links.OpenStore(o.stateDir, o.runDir)
	if err != nil {
		return err
	}
	defer store.Close()
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	reader, err := links.NewWireGuardReader()
	if err != nil {
		return err
	}
	defer reader.Close()
	// Repairs have a connection to the kernel of their own.
	repair, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer repair.Close()
	ready := make(chan struct{})
	var engine *links.Engine
	sessions := bfd.New(bfd.Config{Log: log, OnChange: func(c bfd.Change) { engine.SessionChanged(c) }})
	engine = links.New(links.Config{
		Log: log, Host: host, Repair: repair, Processes: processes, Reader: reader,
		Carriers: links.NewCarriers(o.runDir, carrier), Liveness: links.Handshake{}, BFD: sessions, Store: store,
		Ready: func() { close(ready) },
		Beat:  func() { notify(daemon.SdNotifyWatchdog) },
	})

	g, ctx := errgroup.WithContext(ctx)
	// BFD ends after the engine, which takes leave of the neighbours.
	bfdCtx, endBFD := context.WithCancel(context.WithoutCancel(ctx))
	defer endBFD()
	g.Go(func() error { return sessions.Run(bfdCtx) })
	g.Go(func() error {
		defer endBFD()
		return engine.Run(ctx)
	})
	g.Go(func() error { return links.Serve(ctx, engine, o.socketPath(), log) })
	if o.metrics != "" {
		g.Go(func() error { return serveMetrics(ctx, o.metrics, metricsHandler(engine), metricsRetry, log) })
	}
	// SIGHUP means look again; all else that could be reloaded comes in the plan.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangup:
			case <-wake:
			}
			engine.Wake()
		}
	})
	g.Go(func() error {
		// READY is a promise: the kept plan has been looked at and callers are answered.
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
		client, err := links.Dial(o.socketPath())
		if err != nil {
			return err
		}
		defer client.Close()
		if err := client.WaitReady(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		log.Info("ready", "socket", o.socketPath())
		notify(daemon.SdNotifyReady)
		return nil
	})
	err = g.Wait()
	notify(daemon.SdNotifyStopping)
	log.Info("stopped; tunnels and routes stay")
	return err
}

// notify tells systemd; without one there is nobody to tell, and no harm.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }

// metricsRetry is the time between attempts to serve metrics.
const metricsRetry = 5 * time.Second

func metricsHandler(e *links.Engine) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(links.NewCollector(e), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

// serveMetrics serves until ctx ends. An address that cannot be bound, because it comes later or somebody else has it, is no reason to
// leave tunnels alone: it is said once and tried on.
func serveMetrics(ctx context.Context, address string, h http.Handler, retry time.Duration, log *slog.Logger) error {
	said := ""
	for {
		err := serveOnce(ctx, address, h, func() {
			said = ""
			log.Info("metrics are served", "address", address)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("metrics are not served; trying on", "address", address, "every", retry, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

func serveOnce(ctx context.Context, address string, h http.Handler, bound func()) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	bound()
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err := s.Close()
		<-done
		return err
	}
}

func runTunnel(ctx context.Context, o options, device string) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	return links.RunTunnel(ctx, device, o.runDir, log, func() { notify(daemon.SdNotifyReady) })
}

func runCarrier(ctx context.Context, o options) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	return links.RunCarrier(ctx, o.runDir, log, func() { notify(daemon.SdNotifyReady) })
}

func runCleanup(ctx context.Context, o options, out io.Writer) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	processes, carrier, err := o.processes(func() {})
	if err != nil {
		return err
	}
	store, err := links.OpenStore(o.stateDir, o.runDir)
	if err != nil {
		return err
	}
	defer store.Close()
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	return links.Cleanup(ctx, host, processes, carrier, store, o.runDir, func(s string) { fmt.Fprintln(out, s) })
}

func runStatus(ctx context.Context, o options, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := links.Dial(o.socketPath())
	if err != nil {
		return err
	}
	defer client.Close()
	state, err := client.Get(ctx)
	if err != nil {
		return err
	}
	return printJSON(out, state)
}

func runApply(ctx context.Context, o options, file string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	plan, err := overlay.ParsePlan(data)
	if err != nil {
		return err
	}
	client, err := links.Dial(o.socketPath())
	if err != nil {
		return err
	}
	defer client.Close()
	result, err := client.Apply(ctx, plan)
	if err != nil {
		return err
	}
	if err := printJSON(out, result); err != nil {
		return err
	}
	var errs []error
	for _, p := range result.Problems() {
		if p.Status != links.Pending {
			errs = append(errs, fmt.Errorf("%s %s: %s", p.Kind, p.Name, p.Message))
		}
	}
	return errors.Join(errs...)
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
