package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

// tunnelTrials is one run of tunnel failovers.
type tunnelTrials struct {
	kinds                   []string
	bfdMs, prefixes, trials int
}

// tunnelFigures are what the trials gave, an element each.
type tunnelFigures struct {
	gaps, switchMessages, returnMessages, returnLost, returnSeconds, late []float64
	resets                                                                int
}

// failoverTunnel cuts the first of two tunnels again and again.
//
// Between two trials fabric-links is restarted at both ends, with tunnels and plan as they are: it keeps the hold time, which doubles with
// each flap, in memory, and would let the 10th trial wait for minutes.
func failoverTunnel(ctx context.Context, p programs, t tunnelTrials) (f tunnelFigures, err error) {
	w, err := newPair(ctx, pairOptions{programs: p, kinds: t.kinds, bfdMs: t.bfdMs, prefixes: t.prefixes, perSecond: 1000})
	if err != nil {
		return f, err
	}
	defer w.close()
	for i := range t.trials {
		if err := f.trial(ctx, w, t, i == 0); err != nil {
			return f, fmt.Errorf("trial %d: %w", i+1, err)
		}
		last := len(f.gaps) - 1
		say("%d ms × 3, trial %d of %d: gap %.0f ms, %v messages; return: %v lost, %v messages, after %.1f s; probe late %.0f ms", t.bfdMs, i+1, t.trials,
			f.gaps[last], f.switchMessages[last], f.returnLost[last], f.returnMessages[last], f.returnSeconds[last], f.late[last])
	}
	return f, nil
}

// add appends the figures of more trials.
func (f *tunnelFigures) add(g tunnelFigures) {
	f.gaps = append(f.gaps, g.gaps...)
	f.switchMessages = append(f.switchMessages, g.switchMessages...)
	f.returnMessages = append(f.returnMessages, g.returnMessages...)
	f.returnLost = append(f.returnLost, g.returnLost...)
	f.returnSeconds = append(f.returnSeconds, g.returnSeconds...)
	f.late = append(f.late, g.late...)
	f.resets += g.resets
}

func (f *tunnelFigures) trial(ctx context.Context, w *pair, t tunnelTrials, fresh bool) error {
	if !fresh {
		for _, g := range []*gateway{w.b, w.a} {
			if err := g.restartLinks(ctx); err != nil {
				return err
			}
		}
	}
	if err := w.settled(ctx); err != nil {
		return err
	}
	detection := 3 * time.Duration(t.bfdMs) * time.Millisecond
	// Nothing is to happen any more from what came before.
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	flaps, err := w.flaps(ctx)
	if err != nil {
		return err
	}
	if err := w.mark(); err != nil {
		return err
	}
	if err := w.cut(ctx); err != nil {
		return err
	}
	if err := until(ctx, 20*time.Second, "the second tunnel carries", func() error { return w.onFirst(ctx, false) }); err != nil {
		return err
	}
	if err := pause(ctx, time.Second+detection); err != nil {
		return err
	}
	r, err := reportAll(w.probes...)
	if err != nil {
		return err
	}
	messages, err := w.netlink()
	if err != nil {
		return err
	}
	f.gaps = append(f.gaps, r.GapMs)
	f.late = append(f.late, r.SenderLateMs)
	f.switchMessages = append(f.switchMessages, float64(messages))

	if err := w.mark(); err != nil {
		return err
	}
	mended := time.Now()
	if err := w.mend(ctx); err != nil {
		return err
	}
	if err := until(ctx, time.Minute, "the first tunnel carries again", func() error { return w.onFirst(ctx, true) }); err != nil {
		return err
	}
	f.returnSeconds = append(f.returnSeconds, time.Since(mended).Seconds())
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	if r, err = reportAll(w.probes...); err != nil {
		return err
	}
	if messages, err = w.netlink(); err != nil {
		return err
	}
	f.returnLost = append(f.returnLost, float64(r.Lost))
	f.returnMessages = append(f.returnMessages, float64(messages))
	after, err := w.flaps(ctx)
	if err != nil {
		return err
	}
	f.resets += after - flaps
	return nil
}

// metrics of the trials; limit is what the longest gap should keep to.
func (f tunnelFigures) metrics(limitMs float64) map[string]float64 {
	return map[string]float64{
		"gap_ms_p50": round(percentile(f.gaps, 0.5)), "gap_ms_max": round(most(f.gaps)), "gaps_within_limit": float64(within(f.gaps, limitMs)),
		"bgp_resets": float64(f.resets), "netlink_messages_max": most(f.switchMessages), "netlink_messages_return_max": most(f.returnMessages),
		"return_packets_lost": sum(f.returnLost), "return_seconds_p50": round(percentile(f.returnSeconds, 0.5)),
		"probe_late_ms_max": round(most(f.late)),
	}
}

// gapLimitMs is what the longest gap should keep to at an interval: detection, and what a busy host adds to it.
func gapLimitMs(bfdMs int) float64 {
	if bfdMs <= 50 {
		return 250
	}
	return 4 * float64(bfdMs)
}

// benchFailover measures the failover of a tunnel, then that of a third-party path.
func benchFailover(ctx context.Context, args []string, out *json.Encoder) error {
	fs := flag.NewFlagSet("bench failover", flag.ContinueOnError)
	what := fs.String("what", "tunnel,path", "what fails: tunnel, path or both")
	trials := fs.Int("trials", 30, "how often a tunnel fails, for each interval")
	intervals := fs.String("bfd", "200,50", "BFD intervals of tunnels in milliseconds, one run each; the multiplier is 3")
	prefixes := fs.Int("prefixes", 10000, "prefixes behind the tunnel")
	kinds := fs.String("tunnels", "wireguard,tls", "kinds of the tunnels in rank order")
	sizes := fs.String("path-prefixes", "1000,10000,100000", "prefixes behind the two third-party paths, one run each")
	pathTrials := fs.Int("path-trials", 5, "how often a third-party path fails, for each size and router")
	who := fs.String("who", "fabric,frr,bird", "routers whose third-party path fails")
	if err := parse(fs, args); err != nil {
		return err
	}
	bfdMs, err := numbers(*intervals, 10, 60000)
	if err != nil {
		return wrong(fs, "-bfd: %v", err)
	}
	counts, err := numbers(*sizes, 2, announcedSlots)
	if err != nil {
		return wrong(fs, "-path-prefixes: %v", err)
	}
	routers, err := words(*who, "fabric", "frr", "bird")
	if err != nil {
		return wrong(fs, "-who: %v", err)
	}
	parts, err := words(*what, "tunnel", "path")
	if err != nil {
		return wrong(fs, "-what: %v", err)
	}
	if *trials < 1 || *pathTrials < 1 || *prefixes < 1 || *prefixes > announcedSlots {
		return wrong(fs, "-trials, -path-trials and -prefixes: from 1 on, %d prefixes at most", announcedSlots)
	}
	list, err := words(*kinds, tunnelKinds...)
	if err != nil {
		return wrong(fs, "-tunnels: %v", err)
	}
	if len(list) < 2 {
		return wrong(fs, "-tunnels %q: failover takes two", *kinds)
	}
	dir, p, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, part := range parts {
		if part == "path" {
			if err := benchPaths(ctx, p, routers, counts, *pathTrials, out); err != nil {
				return err
			}
			continue
		}
		for _, ms := range bfdMs {
			t := tunnelTrials{kinds: list, bfdMs: ms, prefixes: *prefixes, trials: *trials}
			f, err := failoverTunnel(ctx, p, t)
			if err != nil {
				return fmt.Errorf("failover, tunnel, %d ms: %w", ms, err)
			}
			params := map[string]any{"what": "tunnel", "tunnels": *kinds, "bfd_ms": ms, "multiplier": 3, "prefixes": *prefixes, "trials": *trials, "gap_limit_ms": gapLimitMs(ms)}
			if err := out.Encode(result{"failover", "fabric", params, f.metrics(gapLimitMs(ms))}); err != nil {
				return err
			}
		}
	}
	return nil
}
