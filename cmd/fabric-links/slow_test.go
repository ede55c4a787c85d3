package main

import (
	"os"
	"strconv"
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
