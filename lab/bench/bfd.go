package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// intervalMs and multiplier of all sessions, at both ends.
	intervalMs = 100
	multiplier = 3
	// upLimit is how long the sessions may take to come up before the run is given up.
	upLimit = time.Minute
	// maxSessions is what a /16 of addresses for each end and the descriptors of a process allow with ease.
	maxSessions = 2000
)

// bfdFlags are the parameters of a run.
type bfdFlags struct {
	sessions []int
	seconds  int
	who      []string
	profile  string
}

func parseBFD(args []string) (bfdFlags, error) {
	fs := flag.NewFlagSet("bench bfd", flag.ContinueOnError)
	sessions := fs.String("sessions", "50,200,500", "numbers of sessions, one run each")
	seconds := fs.Int("seconds", 60, "how long to measure once all sessions are Up")
	who := fs.String("who", "fabric,frr", "what to measure; the ratio needs both")
	profile := fs.String("cpuprofile", "", "write a CPU profile of our engine's last run to this file; profiling itself takes a little CPU")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return bfdFlags{}, err
		}
		return bfdFlags{}, errUsage
	}
	wrong := func(format string, v ...any) (bfdFlags, error) {
		fmt.Fprintf(os.Stderr, "bench bfd: "+format+"\n", v...)
		return bfdFlags{}, errUsage
	}
	f := bfdFlags{seconds: *seconds, who: strings.Split(*who, ","), profile: *profile}
	for _, word := range strings.Split(*sessions, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > maxSessions {
			return wrong("-sessions %q: %q is not a number from 1 to %d", *sessions, word, maxSessions)
		}
		f.sessions = append(f.sessions, n)
	}
	for _, w := range f.who {
		if w != "fabric" && w != "frr" {
			return wrong("-who %q: write fabric, frr or both with a comma", *who)
		}
	}
	if f.seconds < 1 {
		return wrong("-seconds %d: measure for a second at least", f.seconds)
	}
	if fs.NArg() > 0 {
		return wrong("unexpected argument %q", fs.Arg(0))
	}
	return f, nil
}

// benchBFD measures each number of sessions with our engine, then with bfdd, and prints the ratio of their CPU.
func benchBFD(ctx context.Context, args []string, out *json.Encoder) error {
	f, err := parseBFD(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("bfd: needs root: it makes network namespaces")
	}
	sweep(ctx)
	for _, n := range f.sessions {
		params := map[string]any{"sessions": n, "interval_ms": intervalMs, "multiplier": multiplier, "seconds": f.seconds}
		cpu := map[string]float64{}
		for _, who := range f.who {
			m, err := measure(ctx, who, n, time.Duration(f.seconds)*time.Second, f.profile)
			if err != nil {
				return fmt.Errorf("bfd, %s with %d sessions: %w", who, n, err)
			}
			cpu[who] = m["cpu_cores"]
			if err := out.Encode(result{"bfd", who, params, m}); err != nil {
				return err
			}
		}
		if cpu["fabric"] > 0 && cpu["frr"] > 0 {
			ratio := map[string]float64{"cpu_ratio": round(cpu["fabric"] / cpu["frr"])}
			if err := out.Encode(result{"bfd", "ratio", params, ratio}); err != nil {
				return err
			}
		}
	}
	return nil
}

// round keeps three decimals: more are noise.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }

// speaker is a BFD daemon at one end of the link.
type speaker interface {
	pid() int
	// counts may take CPU of the daemon: ask outside of what is measured.
	counts(ctx context.Context) (counts, error)
	// ended is closed when the process has ended.
	ended() <-chan struct{}
	close()
}

// counts are sums over all sessions of a speaker.
type counts struct {
	Sessions int
	// Up sessions, and those of them that have settled: nothing is polled, and both ends keep to intervalMs.
	Up, Settled int
	// Downs is how often a session left Up.
	Downs uint64
	// Sent and Received are control packets.
	Sent, Received uint64
}

// measure brings up n sessions between who, in one namespace, and our engine in another, and looks at who for that long.
func measure(ctx context.Context, who string, n int, length time.Duration, profile string) (_ map[string]float64, err error) {
	l, err := newLink(ctx, n)
	if err != nil {
		return nil, err
	}
	defer l.close()
	far, err := startEngine(ctx, l, 1, n, "")
	if err != nil {
		return nil, err
	}
	defer far.close()
	start := startEngine
	if who == "frr" {
		start = startFRR
	}
	began := time.Now()
	near, err := start(ctx, l, 0, n, profile)
	if err != nil {
		return nil, err
	}
	defer near.close()
	if f, ok := near.(*frr); ok {
		began = f.began // zebra came first
	}
	up, err := awaitUp(ctx, near, far, n, began)
	if err != nil {
		return nil, err
	}
	before, err := near.counts(ctx)
	if err != nil {
		return nil, err
	}
	if before.Up != n {
		return nil, fmt.Errorf("%d of %d sessions Up at the beginning", before.Up, n)
	}
	cpu, err := cpuTime(near.pid())
	if err != nil {
		return nil, err
	}
	from := time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-near.ended():
		return nil, errors.New("the measured process ended")
	case <-far.ended():
		return nil, errors.New("the process at the far end ended")
	case <-time.After(length):
	}
	used, err := cpuTime(near.pid())
	if err != nil {
		return nil, err
	}
	took := time.Since(from)
	rss, err := residentBytes(near.pid())
	if err != nil {
		return nil, err
	}
	after, err := near.counts(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"cpu_cores":              round((used - cpu).Seconds() / took.Seconds()),
		"rss_mb":                 round(float64(rss) / 1e6),
		"false_downs":            float64(after.Downs - before.Downs),
		"up_seconds":             round(up.Seconds()),
		"packets_per_second_out": math.Round(float64(after.Sent-before.Sent) / took.Seconds()),
		"packets_per_second_in":  math.Round(float64(after.Received-before.Received) / took.Seconds()),
	}, nil
}

// awaitUp waits until the far end sees all sessions Up, and then until they have settled; it returns how long the first took. The near
// end, which is measured, is not asked.
func awaitUp(ctx context.Context, near, far speaker, n int, began time.Time) (up time.Duration, err error) {
	for {
		c, err := far.counts(ctx)
		switch {
		case err != nil:
			return 0, err
		case c.Up == n && up == 0:
			up = time.Since(began)
		case time.Since(began) > upLimit:
			return 0, fmt.Errorf("after %v %d of %d sessions are Up, %d with the intervals wanted", upLimit, c.Up, n, c.Settled)
		}
		if c.Settled == n {
			return up, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-near.ended():
			return 0, errors.New("the measured process ended before its sessions were Up")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
