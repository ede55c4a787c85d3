package bfd

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCrowd: with many sessions the loop does not wake for each packet and each timer, and they stay Up all the same.
func TestCrowd(t *testing.T) {
	a, _ := newSpaces(t, 0)
	a.in(func() {
		const length = 500 * time.Millisecond
		l := pairLoop(t, 100, Params{DesiredMinTx: MinInterval, RequiredMinRx: MinInterval, DetectMult: 100})
		ctx, cancel := context.WithTimeout(context.Background(), length)
		defer cancel()
		defer context.AfterFunc(ctx, l.interrupt)()
		waits := func() int64 {
			var used unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_THREAD, &used)
			return used.Nvcsw
		}
		before, sent, start := waits(), packets(l), time.Now()
		l.run(ctx)
		took, n := time.Since(start), packets(l)-sent
		// A rest, then a wait if nothing came meanwhile.
		if got, most := waits()-before, int64(2*took/restTime); got > most {
			t.Errorf("waited %d times in %v for %d packets, want at most %d", got, took, n, most)
		}
		// 200 sessions, each sends and receives; a loaded machine does less.
		if least := uint64(200 * 2 * took / MinInterval / 20); n < least {
			t.Errorf("%d packets in %v, want %d at least", n, took, least)
		}
		for path, s := range l.sessions {
			if s.downs > 0 {
				t.Errorf("%v went down", path)
			}
		}
	})
}
