package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"fabric/internal/daemon"
	"fabric/internal/kernel/linux"
	"fabric/overlay"
	"fabric/overlay/bfd"
	"fabric/overlay/links"
	"fabric/overlay/links/rotation"
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
	return nil, nil, daemon.Usage(fmt.Errorf("--tunnel-manager %q: want exec or systemd", o.tunnelManager))
}

func runEngine(ctx context.Context, o options) error {
	log, err := o.log.Logger()
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
	prober := links.NewProber()
	keys, keysProblem := rotation.OpenStore(links.KeysDir(o.stateDir), log)
	if keysProblem != nil {
		// Tunnels come first: those that are there stay, and others have the document's keys.
		log.Error("tunnels have their identity keys, and no others are made; mend this and restart fabric-links", "err", keysProblem)
	}
	exchange := rotation.NewExchange(log, func(ctx context.Context, device string, m rotation.Message) rotation.Message {
		return engine.Answer(ctx, device, m)
	})
	defer exchange.Close()
	engine = links.New(links.Config{
		Log: log, Host: host, Repair: repair, Processes: processes, Reader: reader,
		Carriers: links.NewCarriers(o.runDir, carrier), Liveness: links.Handshake{}, BFD: sessions, Paths: prober, Store: store,
		Keys: keys, Exchange: exchange, KeysProblem: keysProblem,
		Ready: func() { close(ready) },
		Beat:  func() { daemon.Notify(daemon.Watchdog) },
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
	g.Go(func() error {
		// What is only shown is no reason to leave tunnels alone.
		if err := prober.Run(ctx); err != nil {
			log.Warn("round-trip times and loss of tunnels are not measured", "err", err)
		}
		return nil
	})
	g.Go(func() error { return links.Serve(ctx, engine, o.socketPath(), log) })
	if o.metrics != "" {
		registry := daemon.Registry()
		registry.MustRegister(links.NewCollector(engine))
		g.Go(func() error { return daemon.ServeMetrics(ctx, o.metrics, registry, log) })
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
		daemon.Notify(daemon.Ready)
		return nil
	})
	err = g.Wait()
	daemon.Notify(daemon.Stopping)
	log.Info("stopped; tunnels and routes stay")
	return err
}

func runTunnel(ctx context.Context, o options, device string) error {
	log, err := o.log.Logger()
	if err != nil {
		return err
	}
	return links.RunTunnel(ctx, device, o.runDir, log, func() { daemon.Notify(daemon.Ready) })
}

func runCarrier(ctx context.Context, o options) error {
	log, err := o.log.Logger()
	if err != nil {
		return err
	}
	return links.RunCarrier(ctx, o.runDir, log, func() { daemon.Notify(daemon.Ready) })
}

func runCleanup(ctx context.Context, o options, out io.Writer) error {
	log, err := o.log.Logger()
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
