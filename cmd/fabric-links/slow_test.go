package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// slow is how many times slower than a processor of its own the machine is: 1, or what FABRIC_TEST_SLOW says. A virtual machine whose
// processors are simulated sets it. BFD's timers grow with it, and what tests allow for them.
var slow = func() int {
	n, _ := strconv.Atoi(os.Getenv("FABRIC_TEST_SLOW"))
	return max(1, n)
}()

// slowly is a time that grows on a slow machine.
func slowly(d time.Duration) time.Duration { return d * time.Duration(slow) }

// watch is how busy the machine has been since a moment. Userspace tunnels that wait for a processor drop packets, and then BFD of a few
// hundred milliseconds goes down, by themselves: of what is lost, and how long it takes, nothing can be said while others have the processors.
type watch struct {
	began  time.Time
	waited time.Duration
}

func watchMachine() watch { return watch{time.Now(), waited()} }

// tooBusy is the share of the time, in percent, in which something waited for a processor, from which no verdict is spoken. A machine that
// has only these tests to run stays far below it.
const tooBusy = 60

// errorf fails the test, or says why not.
func (w watch) errorf(t *testing.T, format string, args ...any) {
	t.Helper()
	if busy := 100 * (waited() - w.waited) / max(time.Since(w.began), 1); busy > tooBusy {
		t.Logf("not judged, since something waited for a processor %d %% of the time: "+format, append([]any{int(busy)}, args...)...)
		return
	}
	t.Errorf(format, args...)
}

// waited is how long something has waited for a processor since the machine's start (/proc/pressure/cpu); 0 where the kernel does not count that.
func waited() time.Duration {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0
	}
	return pressure(string(text))
}

func pressure(text string) time.Duration {
	for line := range strings.Lines(text) {
		_, total, ok := strings.Cut(line, " total=")
		var us int64
		if _, err := fmt.Sscan(total, &us); ok && err == nil && strings.HasPrefix(line, "some ") {
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

func TestPressure(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"some avg10=98.86 avg60=98.45 avg300=95.31 total=12391002494\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n": 12391002494 * time.Microsecond,
		"full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n":                                                              0,
		"": 0,
	} {
		if got := pressure(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	w := watchMachine()
	for waited() == w.waited && time.Since(w.began) < 20*time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	if share := (waited() - w.waited) / max(time.Since(w.began), 1); share > 1 {
		t.Errorf("something waited %d times as long as time has gone by", share)
	}
}
