package cloudemu

import (
	"sync"
	"time"
)

// Clock is the emulator's time: real, scaled, or moved by hand. It starts at
// the real time. The zero value is not usable; see [NewClock].
type Clock struct {
	mu    sync.Mutex
	base  time.Time // emulated time at real
	real  time.Time
	scale float64
	moved chan struct{} // closed and renewed when Advance was called
}

// NewClock returns a clock that runs scale times as fast as real time; with
// scale 0 it stands still until [Clock.Advance] moves it.
func NewClock(scale float64) *Clock {
	now := time.Now()
	return &Clock{base: now, real: now, scale: scale, moved: make(chan struct{})}
}

// Now returns the emulated time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *Clock) now() time.Time {
	return c.base.Add(time.Duration(float64(time.Since(c.real)) * c.scale))
}

// Advance moves the clock forward by d at once.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.real = c.now().Add(d), time.Now()
	close(c.moved)
	c.moved = make(chan struct{})
}

// until returns the real time that passes until the emulated time t, and a
// channel that closes when somebody moves the clock meanwhile. A clock that
// stands still says ok=false for any t in the future.
func (c *Clock) until(t time.Time) (d time.Duration, ok bool, moved <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := t.Sub(c.now())
	if left <= 0 {
		return 0, true, c.moved
	}
	if c.scale == 0 {
		return 0, false, c.moved
	}
	return time.Duration(float64(left)/c.scale) + time.Millisecond, true, c.moved
}
