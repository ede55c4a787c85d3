package main

import (
	"context"
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

	"fabric/cloud"
	"fabric/cloud/alibaba"
	"fabric/internal/api"
	"fabric/internal/config"
	"fabric/internal/kernel/linux"
	"fabric/internal/site"
	"fabric/internal/version"
	"fabric/overlay/links"
)

// runSite runs the daemon.
func runSite(ctx context.Context, o options) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	gateway, err := o.name()
	if err != nil {
		return err
	}
	store, err := config.Open(o.stateDir, o.config, gateway)
	if err != nil {
		return err
	}
	defer store.Close()
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	client, err := links.Dial(o.links)
	if err != nil {
		return err
	}
	defer client.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s, err := site.New(site.Config{
		Gateway: gateway, Store: store, Kernel: host, Links: client, StateDir: o.stateDir, Log: log,
		Version: version.Version, Registry: registry, Cloud: openCloud,
		Ready: func() { notify(daemon.SdNotifyReady) },
	})
	if err != nil {
		return err
	}
	service := api.New(api.Config{Gateway: s, Store: store, Log: log, Version: version.Version})
	_, gw, _ := store.Current().Document.Find(gateway)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error { return service.Serve(ctx, api.Listen{Socket: o.socket, Group: o.group, TCP: gw.API}) })
	g.Go(func() error { return reloadOnHangup(ctx, store, log.Error) })
	g.Go(func() error { return watchdog(ctx, s) })
	address := o.metrics
	if address == "" && gw.Metrics.IsValid() {
		address = gw.Metrics.String()
	}
	if address != "" {
		g.Go(func() error { return serveMetrics(ctx, address, registry) })
	}
	err = g.Wait()
	notify(daemon.SdNotifyStopping)
	return err
}

// openCloud picks the vendor that speaks to a site's cloud.
func openCloud(ctx context.Context, w cloud.Wish, log *slog.Logger) (cloud.VPC, error) {
	switch w.Provider {
	case "alibaba":
		return alibaba.Open(ctx, w, log)
	}
	return nil, fmt.Errorf("cloud provider %q is not known to this program", w.Provider)
}

func notify(state string) {
	// Not being run by systemd is no error; a broken socket shows as a start that times out, with systemd's own words.
	_, _ = daemon.SdNotify(false, state)
}

// watchdog tells systemd that we live, as long as snapshots keep coming: a daemon that hangs publishes none.
func watchdog(ctx context.Context, s *site.Site) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return err
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if time.Since(s.Snapshot().Taken) < interval/2 {
				notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}

// reloadOnHangup reads the document again on SIGHUP; a bad one changes nothing and is told.
func reloadOnHangup(ctx context.Context, store *config.Store, tell func(string, ...any)) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			notify(daemon.SdNotifyReloading)
			if _, err := store.Reload(); err != nil {
				tell("the document was not taken; the one before stays in force", "err", err)
			}
			notify(daemon.SdNotifyReady)
		}
	}
}

func serveMetrics(ctx context.Context, address string, registry *prometheus.Registry) error {
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// checkConfig prints every problem of a document and fails if there is one.
func checkConfig(w io.Writer, file, gateway string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	doc, err := config.Parse(file, data)
	var problems config.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			fmt.Fprintln(w, p.String())
		}
		return fmt.Errorf("%s: %d problems", file, len(problems))
	}
	if err != nil {
		return err
	}
	if gateway != "" {
		if _, _, ok := doc.Find(gateway); !ok {
			return fmt.Errorf("%s: gateway %q is not in the document", file, gateway)
		}
	}
	_, err = fmt.Fprintf(w, "%s: ok\n", file)
	return err
}

// runCleanup removes what is ours from the host.
func runCleanup(ctx context.Context, w io.Writer, o options) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	n, err := site.Cleanup(ctx, host)
	fmt.Fprintf(w, "removed %d objects\n", n)
	return err
}
