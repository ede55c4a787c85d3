package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// roundTime is how long a round of rotations takes, about: what the control run goes by.
	roundTime = 6 * time.Second
	// patience is how long an answer to a handshake is waited for.
	patience = time.Second
	// stall is how late a sender must be for a loss to be the machine's: then the round is made again, spare rounds at most.
	stall = 60 * time.Millisecond
	spare = 6
)

// slow is how many times slower than a processor of its own the machine is: 1, or what FABRIC_TEST_SLOW says, which a virtual machine sets whose
// processors are simulated.
var slow = func() int {
	n, _ := strconv.Atoi(os.Getenv("FABRIC_TEST_SLOW"))
	return max(1, n)
}()

// refusedWithin is how long former keys may be of use after new ones were agreed.
var refusedWithin = 10 * time.Second * time.Duration(slow)

// rates are packets a second of each flow, tried in turn until the machine carries one without any rotation.
var rates = []int{1000, 500, 250, 100, 20}

// rotations replaces the keys of all tunnels, round after round, under traffic between all hosts.
func (d *demo) rotations(ctx context.Context) (string, error) {
	perSecond, lines, err := d.carried(ctx)
	if err != nil {
		return strings.Join(lines, "\n"), err
	}
	f, err := d.startFlows(perSecond)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.close() }()
	var errs []error
	var total count
	var longest, refused time.Duration
	for round, void := 1, 0; round <= d.rounds; round++ {
		r, err := d.rotate(ctx)
		if err != nil {
			return strings.Join(lines, "\n"), errors.Join(fmt.Errorf("round %d: %w", round, err), f.close())
		}
		c := f.count()
		lines = append(lines, fmt.Sprintf("round %d: %s; keys of generation %d in use at %d ends after %.1fs, the former ones refused %.1fs after they were agreed",
			round, c, r.generation, r.ends, r.took.Seconds(), r.refused.Seconds()))
		if c.lost > 0 && c.late > stall && void < spare {
			lines = append(lines, "round made again: the machine stalled")
			round, void = round-1, void+1
			continue
		}
		total.sent, total.lost = total.sent+c.sent, total.lost+c.lost
		longest, refused = max(longest, r.took), max(refused, r.refused)
	}
	if total.lost > 0 || total.sent == 0 {
		errs = append(errs, fmt.Errorf("%d of %d packets lost", total.lost, total.sent))
	}
	lines = append(lines, fmt.Sprintf("%d rounds at %d packets/s of each of %d flows: %d packets sent, %d lost; rounds took up to %.1fs, former keys were refused at most %.1fs after new ones were agreed",
		d.rounds, perSecond, len(f.all), total.sent, total.lost, longest.Seconds(), refused.Seconds()))
	if err := errors.Join(append(errs, f.close())...); err != nil {
		return strings.Join(lines, "\n"), err
	}
	answered, err := d.presentKeys(ctx)
	return strings.Join(append(lines, answered), "\n"), err
}

// carried finds the highest rate that the machine carries while nothing is rotated, for as long as the rotations will take.
func (d *demo) carried(ctx context.Context) (perSecond int, lines []string, err error) {
	for i, again := 0, false; i < len(rates); {
		perSecond := max(1, rates[i]/slow)
		f, err := d.startFlows(perSecond)
		if err != nil {
			return 0, lines, err
		}
		select {
		case <-ctx.Done():
			return 0, lines, errors.Join(ctx.Err(), f.close())
		case <-time.After(time.Duration(d.rounds) * roundTime):
		}
		c := f.count()
		if err := f.close(); err != nil {
			return 0, lines, err
		}
		lines = append(lines, fmt.Sprintf("without rotation at %d packets/s: %s", perSecond, c))
		if c.lost == 0 {
			return perSecond, lines, nil
		}
		// A stall of the machine is no reason for a lower rate, the first time.
		if again = c.late > stall && !again; !again {
			i++
		}
	}
	return 0, lines, errors.New("packets are lost at any rate, without rotation")
}

// rotated says how a round went.
type rotated struct {
	generation, ends int
	// took is from the command to its last answer, refused from when the new keys were agreed until the former ones were of no use anywhere.
	took, refused time.Duration
}

// rotate replaces the keys of all tunnels at once, and has somebody try the former ones who read them at every gateway just before.
func (d *demo) rotate(ctx context.Context) (r rotated, err error) {
	former, err := d.tunnelEnds()
	if err != nil {
		return r, err
	}
	if len(former) == 0 {
		return r, errors.New("no tunnel has keys that can be replaced")
	}
	began := time.Now()
	if err := each(former, func(e tunnelEnd) error {
		if e.gateway > e.plan.Remote {
			return nil // the other end is asked
		}
		_, err := d.ctl(ctx, e.gateway, "tunnel", "rotate", e.plan.Name, "--wait", "--timeout", "60s")
		return err
	}); err != nil {
		return r, err
	}
	r.took, r.ends = time.Since(began), len(former)
	for {
		tried := time.Now()
		agreed, err := d.refused(ctx, former)
		r.refused = tried.Sub(agreed)
		if err == nil && r.refused <= refusedWithin {
			break
		}
		if r.refused > refusedWithin || time.Since(began)-r.took > refusedWithin || ctx.Err() != nil {
			return r, fmt.Errorf("former keys %.1fs after new ones were agreed: %w", r.refused.Seconds(), cmp.Or(err, errors.New("only now are they refused")))
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.generation = former[0].generation + 1
	return r, nil
}

// refused says whether every end has its next keys, and nobody answers the former ones at any gateway: neither at the port they had nor at the present one.
// Agreed is when the first of the next keys were.
func (d *demo) refused(ctx context.Context, former []tunnelEnd) (agreed time.Time, err error) {
	agreed = time.Now()
	now, err := d.tunnelEnds()
	if err != nil {
		return agreed, err
	}
	if len(now) != len(former) {
		return agreed, fmt.Errorf("%d ends of tunnels, %d before", len(now), len(former))
	}
	var tries []func() error
	for i, e := range former {
		if now[i].generation != e.generation+1 || now[i].private == e.private || now[i].public == e.public {
			return agreed, fmt.Errorf("%s has keys of generation %d, before %d", e.name(), now[i].generation, e.generation)
		}
		if now[i].made.Before(agreed) {
			agreed = now[i].made
		}
		for _, at := range []int{e.generation, now[i].generation} {
			tries = append(tries, func() error {
				answered, err := d.knock(ctx, e, e.endpoint(at), patience)
				if err == nil && answered {
					err = fmt.Errorf("keys of generation %d of the %s are answered at %s", e.generation, e.name(), e.endpoint(at))
				}
				return err
			})
		}
	}
	return agreed, each(tries, func(try func() error) error { return try() })
}

// presentKeys has the same done with the keys in use, which are answered: so the refusals were refusals. One end of each tunnel only: an end that answers
// sends there until it hears the other one.
func (d *demo) presentKeys(ctx context.Context) (string, error) {
	ends, err := d.tunnelEnds()
	if err != nil {
		return "", err
	}
	tunnels := 0
	for _, e := range ends {
		if e.gateway > e.plan.Remote {
			continue
		}
		tunnels++
		if _, err := until(ctx, 10*time.Second, func(ctx context.Context) error {
			answered, err := d.knock(ctx, e, e.endpoint(e.generation), patience)
			if err == nil && !answered {
				err = fmt.Errorf("the present keys of the %s are not answered at %s", e.name(), e.endpoint(e.generation))
			}
			return err
		}); err != nil {
			return "", err
		}
	}
	_, err = until(ctx, 30*time.Second, func(ctx context.Context) error {
		if err := d.allConverged(ctx); err != nil {
			return err
		}
		_, err := d.pingPairs(ctx)
		return err
	})
	return fmt.Sprintf("the same handshakes with the keys in use are answered on all %d tunnels", tunnels), err
}

// each calls fn for all at once and joins their errors.
func each[T any](all []T, fn func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { errs[i] = fn(one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
