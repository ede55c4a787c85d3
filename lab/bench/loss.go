package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

// lossParams is a network that loses packets and forgets flows.
type lossParams struct {
	kinds    []string
	bfdMs    int
	percent  int
	nat      int // seconds that the translation remembers a UDP flow
	duration time.Duration
}

// lossFigures are what came of it.
type lossFigures struct {
	switches, downs, resets, received, lost int
	gapMs, lateMs                           float64
}

// loss has the network drop that share of all packets at random, both ways, with a behind a translation that forgets a UDP flow early.
func loss(ctx context.Context, p programs, o lossParams) (f lossFigures, err error) {
	w, err := newPair(ctx, pairOptions{programs: p, kinds: o.kinds, bfdMs: o.bfdMs, prefixes: 100, perSecond: 1000, nat: true, natSeconds: o.nat})
	if err != nil {
		return f, err
	}
	defer w.close()
	downs, err := w.downs(ctx)
	if err != nil {
		return f, err
	}
	flaps, err := w.flaps(ctx)
	if err != nil {
		return f, err
	}
	if err := w.mark(); err != nil {
		return f, err
	}
	if err := w.nft(ctx, fmt.Sprintf("add rule inet fault forward numgen random mod 100 < %d drop\n", o.percent)); err != nil {
		return f, err
	}
	for end := time.Now().Add(o.duration); time.Now().Before(end); {
		if err := pause(ctx, min(time.Until(end), 10*time.Second)); err != nil {
			return f, err
		}
		if f.switches, err = w.switches(); err != nil {
			return f, err
		}
		say("%v left: %d switches", time.Until(end).Round(time.Second), f.switches)
	}
	if f.switches > 0 {
		w.a.tell("vtep route", "BFD session changed")
		w.b.tell("vtep route", "BFD session changed")
	}
	r, err := reportAll(w.probes...)
	if err != nil {
		return f, err
	}
	f.received, f.lost, f.gapMs, f.lateMs = r.Received, r.Lost, r.GapMs, r.SenderLateMs
	if f.downs, err = w.downs(ctx); err != nil {
		return f, err
	}
	if f.resets, err = w.flaps(ctx); err != nil {
		return f, err
	}
	f.downs, f.resets = f.downs-downs, f.resets-flaps
	return f, nil
}

func (f lossFigures) metrics() map[string]float64 {
	return map[string]float64{"switches": float64(f.switches), "bfd_downs": float64(f.downs), "bgp_resets": float64(f.resets),
		"packets_received": float64(f.received), "packets_lost": float64(f.lost), "gap_ms_max": round(f.gapMs), "probe_late_ms_max": round(f.lateMs)}
}

// benchLoss measures how steady tunnels are in a bad network.
func benchLoss(ctx context.Context, args []string, out *json.Encoder) error {
	fs := flag.NewFlagSet("bench loss", flag.ContinueOnError)
	duration := fs.Duration("duration", 5*time.Minute, "how long")
	bfdMs := fs.Int("bfd", 300, "BFD interval in milliseconds; the multiplier is 3")
	percent := fs.Int("percent", 1, "percentage of packets dropped at random, each way")
	nat := fs.Int("nat", 10, "seconds until the address translation in the middle forgets a UDP flow")
	kinds := fs.String("tunnels", "wireguard,tls", "kinds of the tunnels in rank order")
	if err := parse(fs, args); err != nil {
		return err
	}
	list, err := words(*kinds, tunnelKinds...)
	if err != nil {
		return wrong(fs, "-tunnels: %v", err)
	}
	if *duration < time.Second || *bfdMs < 10 || *percent < 0 || *percent > 99 || *nat < 1 {
		return wrong(fs, "-duration from 1s, -bfd from 10, -percent from 0 to 99, -nat from 1")
	}
	dir, p, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	f, err := loss(ctx, p, lossParams{kinds: list, bfdMs: *bfdMs, percent: *percent, nat: *nat, duration: *duration})
	if err != nil {
		return fmt.Errorf("loss: %w", err)
	}
	return out.Encode(result{"loss", "fabric",
		map[string]any{"tunnels": *kinds, "bfd_ms": *bfdMs, "multiplier": 3, "drop_percent": *percent, "nat_seconds": *nat, "seconds": duration.Seconds()},
		f.metrics()})
}
