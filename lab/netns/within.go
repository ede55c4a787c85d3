package netns

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Within is Within for the node's network namespace.
func (n *Node) Within(f func() error) error {
	return Within(n.NetNS(), f)
}

// Within runs f on a thread that is in the network namespace of a path, such as /proc/PID/ns/net: sockets that it opens belong there for
// good. f starts no goroutine that does. The thread goes back afterwards and lives on: programs that it has started would be killed with it
// (Pdeathsig).
func Within(path string, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			failed <- err
			return // the thread ends with this function: it is not unlocked
		}
		defer func() { _ = before.Close() }()
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer func() { _ = ns.Close() }()
			if err = netns.Set(ns); err == nil {
				err = f()
			}
		} else {
			err = fmt.Errorf("network namespace %s: %w", path, err)
		}
		// A process's first thread must not stay elsewhere: its namespace is the process's to everybody who looks.
		if back := netns.Set(before); back == nil {
			runtime.UnlockOSThread()
		}
		failed <- err
	}()
	return <-failed
}
