package rib

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Batch is what a Feed hands over.
type Batch struct {
	// Full marks a dump that replaces everything known: what is not in it is gone.
	Full bool
	// Complete says that every expected source has sent its End-of-RIB, or that waiting was called off: what was never
	// in a batch may be pruned.
	Complete bool
	// Choices are the choices as they stand now, ordered by VRF and prefix, each key once. A Choice without Best removes
	// its key; a Full batch holds none such.
	Choices []Choice
}

// Feed hands the choices of a Table to one consumer.
//
// The first batch is a full dump; each later one holds the keys whose choice changed since, with the choice as it is when
// the batch is taken. A key is in a batch once however often it changed, so a slow consumer costs no more than one slot
// per key that it knows or that exists, and never holds up the Table. Changes of one key are seen in order; changes
// of different keys are not ordered against each other. A consumer that applies every batch ends with the Table's state.
type Feed struct {
	table *Table
	wake  chan struct{} // one slot; carries no data
	done  chan struct{}

	// Below: guarded by table.mu.
	closed   bool
	dumped   bool // the consumer has had a full dump
	finished bool // the consumer has had Complete
	// pending are the marked keys, and whether the consumer knows the key.
	pending map[Key]bool
}

// Subscribe returns a new Feed. Close it when it is no longer read.
func (t *Table) Subscribe() *Feed {
	f := &Feed{
		table:   t,
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[Key]bool),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.feeds = append(t.feeds, f)
	return f
}

// Next waits for something to tell and returns it. It returns the context's error when that ends, and an error that is
// os.ErrClosed after Close. One goroutine at a time may call it.
func (f *Feed) Next(ctx context.Context) (Batch, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Batch{}, err
		}
		b, ok, err := f.take()
		if err != nil {
			return Batch{}, err
		}
		if ok {
			// Outside the lock: this is the expensive part of a full dump.
			slices.SortFunc(b.Choices, func(a, b Choice) int { return a.Key.Compare(b.Key) })
			return b, nil
		}
		select {
		case <-ctx.Done():
		case <-f.done:
		case <-f.wake:
		}
	}
}

// Resync makes the next batch a full dump, for a consumer that lost track.
func (f *Feed) Resync() {
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	f.dumped = false
	clear(f.pending)
	f.signal()
}

// Close ends the feed; a waiting Next returns. It may be called more than once.
func (f *Feed) Close() {
	t := f.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	f.pending = nil
	close(f.done)
	if i := slices.Index(t.feeds, f); i >= 0 {
		t.feeds = slices.Delete(t.feeds, i, i+1)
	}
}

// take collects what there is to tell, unsorted.
func (f *Feed) take() (b Batch, ok bool, err error) {
	t := f.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.closed {
		return Batch{}, false, fmt.Errorf("rib feed: %w", os.ErrClosed)
	}
	if f.dumped && len(f.pending) == 0 && f.finished == t.complete {
		return Batch{}, false, nil
	}
	b = Batch{Full: !f.dumped, Complete: t.complete}
	if b.Full {
		n := 0
		for _, v := range t.vrfs {
			n += v.chosen
		}
		b.Choices = make([]Choice, 0, n)
		for _, v := range t.vrfs {
			for p, e := range v.entries {
				if e.best != nil {
					b.Choices = append(b.Choices, v.choice(p))
				}
			}
		}
	} else if len(f.pending) > 0 {
		b.Choices = make([]Choice, 0, len(f.pending))
		for k := range f.pending {
			b.Choices = append(b.Choices, t.vrfs[k.VRF].choice(k.Prefix))
		}
		f.pending = make(map[Key]bool) // a new one, so that a burst's memory is given back
	}
	f.dumped, f.finished = true, t.complete
	return b, true, nil
}

// mark notes a changed choice: had and has say whether there was and is a best path.
func (f *Feed) mark(k Key, had, has bool) {
	if !f.dumped {
		return // the dump will tell
	}
	known, marked := f.pending[k]
	switch {
	case !marked:
		f.pending[k] = had
	case !known && !has:
		delete(f.pending, k) // came and went unseen
	}
}

// expect makes room for so many marks at once: growing by doubling is a tenth of the time that a large source takes
// (BenchmarkSourceDown: 62 instead of 56 ms for 100,000 prefixes).
func (f *Feed) expect(n int) {
	if f.dumped && len(f.pending) == 0 && n > 1024 {
		f.pending = make(map[Key]bool, n)
	}
}

// signal wakes Next if there is something to tell.
func (f *Feed) signal() {
	if f.dumped && len(f.pending) == 0 && f.finished == f.table.complete {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Compare orders keys by VRF, then family, address and length.
func (k Key) Compare(o Key) int {
	if c := strings.Compare(k.VRF, o.VRF); c != 0 {
		return c
	}
	return k.Prefix.Compare(o.Prefix)
}
