package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// busyMs is how late the probe may be with sending before a trial that missed a limit says more of the machine than of us, and is void.
	busyMs = 60
	// messagesLimit is how many route and next-hop messages a switch may cause at a gateway.
	messagesLimit = 5
	// maxVoid is how many trials of a kind may be run again.
	maxVoid = 6
)

// checker compares figures of short runs with their limits.
type checker struct {
	out    *json.Encoder
	p      programs
	dir    string
	trials int
	missed []string
}

// atMost notes whether a figure keeps to its limit.
func (c *checker) atMost(what string, got, limit float64) {
	if got <= limit {
		say("ok: %s: %v, at most %v", what, round(got), limit)
		return
	}
	say("MISSED: %s: %v, at most %v", what, round(got), limit)
	c.missed = append(c.missed, fmt.Sprintf("%s: %v, at most %v", what, round(got), limit))
}

// repeat runs trials until as many as wanted were not void.
func (c *checker) repeat(what string, trial func() (void bool, err error)) error {
	for good, again := 0, 0; good < c.trials; {
		void, err := trial()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if !void {
			good++
			continue
		}
		if again++; again > maxVoid {
			return fmt.Errorf("%s: %d trials were void: the machine is too busy to measure", what, again)
		}
		say("void: %s: the machine was too busy", what)
	}
	return nil
}

// tunnel: the first of two tunnels fails.
func (c *checker) tunnel(ctx context.Context, kinds []string, bfdMs int, limitMs float64) error {
	const prefixes = 2000
	what := fmt.Sprintf("tunnel, %d ms × 3", bfdMs)
	w, err := newPair(ctx, pairOptions{programs: c.p, kinds: kinds, bfdMs: bfdMs, prefixes: prefixes, perSecond: 1000})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer w.close()
	var all tunnelFigures
	fresh := true
	if err := c.repeat(what, func() (bool, error) {
		var f tunnelFigures
		if err := f.trial(ctx, w, tunnelTrials{bfdMs: bfdMs}, fresh); err != nil {
			return false, err
		}
		fresh = false
		if f.late[0] > busyMs && (f.gaps[0] > limitMs || f.resets > 0 || f.switchMessages[0] > messagesLimit || f.returnLost[0] > 0) {
			return true, nil
		}
		all.add(f)
		return false, nil
	}); err != nil {
		return err
	}
	c.atMost(what+", longest gap in ms", most(all.gaps), limitMs)
	c.atMost(what+", BGP sessions reset", float64(all.resets), 0)
	c.atMost(what+", route and next-hop messages per switch", most(all.switchMessages), messagesLimit)
	c.atMost(what+", packets lost at return", sum(all.returnLost), 0)
	return c.out.Encode(result{"failover", "fabric",
		map[string]any{"what": "tunnel", "bfd_ms": bfdMs, "multiplier": 3, "prefixes": prefixes, "trials": c.trials, "gap_limit_ms": limitMs}, all.metrics(limitMs)})
}

// path: the first of two third-party paths fails.
func (c *checker) path(ctx context.Context, limitMs float64) error {
	const prefixes = 1000
	x, err := newPaths(ctx, c.p, "fabric", prefixes)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	defer x.close()
	var all pathFigures
	if err := c.repeat("path", func() (bool, error) {
		var f pathFigures
		if err := x.refresh(ctx); err != nil {
			return false, err
		}
		if err := f.trial(ctx, x, prefixes); err != nil {
			return false, err
		}
		if f.late[0] > busyMs && f.moved[0] > limitMs {
			return true, nil
		}
		all.add(f)
		return false, nil
	}); err != nil {
		return err
	}
	c.atMost("path, last prefix moved in ms", most(all.moved), limitMs)
	return c.out.Encode(result{"failover", "fabric", map[string]any{"what": "path", "bfd_ms": pathBFDMs, "multiplier": 3, "prefixes": prefixes, "trials": c.trials}, all.metrics()})
}

// restart: fabric-site is restarted in each way.
func (c *checker) restart(ctx context.Context, restartTime time.Duration) error {
	const prefixes = 2000
	swap, err := buildPrograms(ctx, filepath.Join(c.dir, "other"), "bench-other")
	if err != nil {
		return err
	}
	r, err := newRestarts(ctx, c.p, swap, prefixes, restartTime)
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	defer r.close()
	one := *c
	one.trials = 1
	for _, how := range restartKinds {
		var f restartFigures
		what := "restart, " + how
		if err := one.repeat(what, func() (bool, error) {
			f = restartFigures{}
			if err := f.restart(ctx, r, how); err != nil {
				return false, errors.Join(err, r.gateway.site.alive("fabric-site"))
			}
			// A neighbour whose BFD session went down has dropped all routes, as it should.
			return (f.late[0] > busyMs || f.downs[0] > 0) && f.lost[0]+f.deletions[0]+f.withdraws[0] > 0, nil
		}); err != nil {
			return err
		}
		c.atMost(what+", packets lost", sum(f.lost), 0)
		c.atMost(what+", valid routes deleted", sum(f.deletions), 0)
		c.atMost(what+", routes withdrawn at neighbours", sum(f.withdraws), 0)
		limit := milliseconds(restartTime + 5*time.Second)
		c.atMost(what+", withdrawn route gone after ms", most(f.goneMs), limit)
		c.atMost(what+", withdrawn route gone at the neighbour after ms", most(f.goneFRRMs), limit)
		if err := c.out.Encode(result{"restart", "fabric", map[string]any{"how": how, "trials": 1, "prefixes": prefixes, "bfd_ms": restartBFDMs, "multiplier": 3,
			"restart_time_s": restartTime.Seconds()}, f.metrics()}); err != nil {
			return err
		}
	}
	return nil
}

// loss: the network loses packets.
func (c *checker) loss(ctx context.Context, kinds []string, duration time.Duration) error {
	var f lossFigures
	one := *c
	one.trials = 1
	if err := one.repeat("loss", func() (_ bool, err error) {
		f, err = loss(ctx, c.p, lossParams{kinds: kinds, bfdMs: 300, percent: 1, nat: 10, duration: duration})
		return f.lateMs > busyMs && f.switches > 0, err
	}); err != nil {
		return err
	}
	c.atMost("loss, switches", float64(f.switches), 0)
	return c.out.Encode(result{"loss", "fabric", map[string]any{"bfd_ms": 300, "multiplier": 3, "drop_percent": 1, "nat_seconds": 10, "seconds": duration.Seconds()}, f.metrics()})
}

// linksCheck runs short versions of what is measured, and fails if a figure misses its limit.
//
// Limits are those of the full runs but for gaps at 50 ms: there half a second is allowed instead of a quarter, as a stall of the machine
// of a tenth of a second, which every shared one has, would be a miss else. A trial that misses while the probe itself was stalled is run again.
func linksCheck(ctx context.Context, args []string, out *json.Encoder) error {
	fs := flag.NewFlagSet("bench links-check", flag.ContinueOnError)
	trials := fs.Int("trials", 3, "failovers of each kind")
	kinds := fs.String("tunnels", "wireguard,tls", "kinds of the tunnels in rank order")
	if err := parse(fs, args); err != nil {
		return err
	}
	list, err := words(*kinds, tunnelKinds...)
	if err != nil || len(list) < 2 || *trials < 1 {
		return wrong(fs, "-tunnels: two of %v; -trials from 1 on", tunnelKinds)
	}
	dir, p, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	began := time.Now()
	c := &checker{out: out, p: p, dir: dir, trials: *trials}
	for _, part := range []func() error{
		func() error { return c.tunnel(ctx, list, 200, 800) },
		func() error { return c.tunnel(ctx, list, 50, 500) },
		func() error { return c.path(ctx, 1000) },
		func() error { return c.restart(ctx, 10*time.Second) },
		func() error { return c.loss(ctx, list, 20*time.Second) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	for _, m := range c.missed {
		fmt.Fprintln(os.Stderr, "missed:", m)
	}
	if len(c.missed) > 0 {
		return fmt.Errorf("links-check: %d limits missed", len(c.missed))
	}
	say("links-check: ok in %v", time.Since(began).Round(time.Second))
	return nil
}
