package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"fabric/cloud"
	"fabric/cloud/alibaba"
	"fabric/internal/api"
	"fabric/internal/check"
	"fabric/internal/config"
	"fabric/internal/daemon"
	"fabric/internal/kernel"
	"fabric/internal/kernel/linux"
	"fabric/internal/site"
	"fabric/internal/version"
	"fabric/overlay/links"
)

// gcPercent is how much the heap may grow before it is collected, unless GOGC says otherwise. GoBGP's tables cost much while they are
// empty, so with many VRFs most of the heap lives long: less room to grow saves memory, and costs little time.
const gcPercent = 60

// runSite runs the daemon.
func runSite(ctx context.Context, o options) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log, err := o.log.Logger()
	if err != nil {
		return err
	}
	gateway, err := o.name()
	if err != nil {
		return err
	}
	if err := needNetAdmin(); err != nil {
		return err
	}
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	store, err := config.Open(o.stateDir, o.config, gateway,
		config.WithCheck(func(d *config.Document) error { return site.Check(d, gateway, host.Features()) }))
	if err != nil {
		return err
	}
	defer store.Close()
	client, err := links.Dial(o.links)
	if err != nil {
		return err
	}
	defer client.Close()
	registry := daemon.Registry()
	s, err := site.New(site.Config{
		Gateway: gateway, Store: store, Kernel: host, Links: client, StateDir: o.stateDir, Log: log,
		Version: version.Version, Registry: registry, Cloud: openCloud,
		Ready: func() { daemon.Notify(daemon.Ready) },
	})
	if err != nil {
		return err
	}
	service := api.New(api.Config{
		Gateway: s, Store: store, Log: log, Version: version.Version,
		Doctor: doctor(store, gateway, check.Options{StateDir: o.stateDir, Socket: o.socket, Links: o.links, Confined: true}),
	})
	_, gw, _ := store.Current().Document.Find(gateway)

	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { daemon.Notify(daemon.Stopping) })
	defer stop()
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error { return service.Serve(ctx, api.Listen{Socket: o.socket, Group: o.group, TCP: gw.API}) })
	g.Go(func() error {
		return reloadOnHangup(ctx, store, func() bool { return s.Snapshot().Site.Ready }, log.Error)
	})
	g.Go(func() error { return watchdog(ctx, s) })
	address := o.metrics
	if address == "" && gw.Metrics.IsValid() {
		address = gw.Metrics.String()
	}
	if address != "" {
		g.Go(func() error { return daemon.ServeMetrics(ctx, address, registry, log) })
	}
	return g.Wait()
}

// openCloud picks the vendor that speaks to a site's cloud.
func openCloud(ctx context.Context, w cloud.Wish, log *slog.Logger) (cloud.VPC, error) {
	switch w.Provider {
	case "alibaba":
		return alibaba.Open(ctx, w, log)
	}
	return nil, fmt.Errorf("cloud provider %q is not known to this program", w.Provider)
}

// watchdog tells systemd that we live, as long as snapshots keep coming: a daemon that hangs publishes none.
func watchdog(ctx context.Context, s *site.Site) error {
	interval, err := systemd.SdWatchdogEnabled(false)
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
				daemon.Notify(daemon.Watchdog)
			}
		}
	}
}

// reloadOnHangup reads the document again on SIGHUP; a bad one changes nothing and is told.
func reloadOnHangup(ctx context.Context, store *config.Store, ready func() bool, tell func(string, ...any)) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			daemon.Notify(daemon.Reloading)
			if _, err := store.Reload(); err != nil {
				tell("the document was not taken; the one before stays in force", "err", err)
			}
			if ready() {
				daemon.Notify(daemon.Ready)
			}
		}
	}
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
	for _, s := range doc.Sites {
		for _, g := range s.Gateways {
			if gateway != "" && gateway != g.Name {
				continue
			}
			// For either kind of host: which one the gateway is, is not known here.
			for _, f := range []kernel.Features{{VRF: true}, {}} {
				if err := site.Check(doc, g.Name, f); err != nil {
					return fmt.Errorf("%s: gateway %s: %w", file, g.Name, err)
				}
			}
		}
	}
	if _, _, ok := doc.Find(gateway); gateway != "" && !ok {
		return fmt.Errorf("%s: gateway %q is not in the document", file, gateway)
	}
	_, err = fmt.Fprintf(w, "%s: ok\n", file)
	return err
}

// runCleanup removes what is ours from the host.
func runCleanup(ctx context.Context, w io.Writer, o options) error {
	log, err := o.log.Logger()
	if err != nil {
		return err
	}
	if err := needNetAdmin(); err != nil {
		return err
	}
	// Held by a daemon that runs: cleaning up under it would only make it build everything again.
	unlock, err := config.Lock(o.stateDir)
	if err != nil {
		return err
	}
	defer unlock()
	host, err := linux.Open(log)
	if err != nil {
		return err
	}
	defer host.Close()
	n, err := site.Cleanup(ctx, host)
	err = errors.Join(err, site.ForgetCheckpoint(o.stateDir))
	fmt.Fprintf(w, "removed %d objects\n", n)
	return err
}
