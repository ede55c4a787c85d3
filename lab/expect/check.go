package expect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// Run runs a command in a node and returns its standard output.
type Run func(ctx context.Context, node string, argv ...string) ([]byte, error)

// settle is how long the expected state must have lasted: what must not come, a route that is sent back, comes late.
const settle = 2 * time.Second

// Check asks every node until all are as expected twice in a row, or the time is over, and writes a line per node: ok, or
// FAIL with the differences. The error is nil only if all are as expected.
func Check(ctx context.Context, w io.Writer, s *State, run Run) error {
	return check(ctx, w, s, run, settle)
}

func check(ctx context.Context, w io.Writer, s *State, run Run, settle time.Duration) error {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	var told map[string][]string
	equal := time.Time{} // since when all is as expected
	for {
		found := round(bounded, s, run)
		if bounded.Err() != nil && told != nil {
			break // what the end of the time broke off says nothing
		}
		told = found
		if bad(told) > 0 {
			equal = time.Time{}
		} else if equal.IsZero() {
			equal = time.Now()
		} else if time.Since(equal) >= settle {
			break
		}
		pause := 250 * time.Millisecond
		if !equal.IsZero() {
			pause = settle
		}
		select {
		case <-bounded.Done():
		case <-time.After(pause):
			continue
		}
		break
	}
	for _, name := range slices.Sorted(maps.Keys(told)) {
		word := "ok"
		if len(told[name]) > 0 {
			word = "FAIL"
		}
		fmt.Fprintf(w, "%-4s  %s\n", word, name)
		for _, line := range told[name] {
			fmt.Fprintf(w, "        %s\n", line)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bad(told) > 0:
		return fmt.Errorf("%d of %d nodes are not as expected after %.0fs", bad(told), len(told), time.Since(began).Seconds())
	}
	fmt.Fprintf(w, "%d nodes as expected after %.1fs\n", len(told), equal.Sub(began).Seconds())
	return nil
}

func bad(told map[string][]string) (n int) {
	for _, lines := range told {
		if len(lines) > 0 {
			n++
		}
	}
	return n
}

// round asks each node once, a few at a time, and returns the differences.
func round(ctx context.Context, s *State, run Run) map[string][]string {
	var mu sync.Mutex
	told := map[string][]string{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for name, n := range s.Nodes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			lines := ask(ctx, name, n, run)
			mu.Lock()
			defer mu.Unlock()
			told[name] = lines
		})
	}
	wg.Wait()
	return told
}

// ask compares one node. Pings are sent once the rest is as expected: an answer that is waited for in vain costs seconds.
func ask(ctx context.Context, name string, n Node, run Run) []string {
	on := func(argv ...string) ([]byte, error) { return run(ctx, name, argv...) }
	got := facts{}
	var err error
	switch n.Speaks {
	case "fabric":
		got, err = askFabric(on)
	case "frr":
		got, err = askFRR(on)
	case "bird":
		got, err = askBIRD(on)
	}
	if err != nil {
		return []string{err.Error()}
	}
	if lines := difference(n.facts(), got); len(lines) > 0 {
		return lines
	}
	var lines []string
	for _, p := range n.Pings {
		ttl, err := ping(on, p.To.String())
		switch {
		case err != nil:
			lines = append(lines, fmt.Sprintf("ping %s: %v", p.To, err))
		case ttl != p.TTL:
			lines = append(lines, fmt.Sprintf("ping %s: ttl %d, want %d", p.To, ttl, p.TTL))
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			break
		}
	}
	return lines
}
