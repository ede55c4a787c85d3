package bfd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// realtime gives the calling thread, which must be locked, SCHED_FIFO of that priority, and says in words what it has now. Negative
// leaves it as it is. Threads made from it do not inherit. restore takes it back.
func realtime(priority int) (scheduling string, restore func()) {
	const self = 0
	keep := func() {}
	if priority < 0 {
		return "normal, as configured", keep
	}
	old, err := unix.SchedGetAttr(self, 0)
	if err == nil {
		err = unix.SchedSetAttr(self, &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: uint32(priority),
		}, 0)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return "normal: SCHED_FIFO is refused; give the process CAP_SYS_NICE or LimitRTPRIO", keep
	case err != nil:
		return fmt.Sprintf("normal: SCHED_FIFO %d: %v", priority, err), keep
	}
	return fmt.Sprintf("SCHED_FIFO %d", priority), func() { _ = unix.SchedSetAttr(self, old, 0) }
}
