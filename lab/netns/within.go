package netns

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Within runs f on a thread that is in the node's network namespace: sockets that it opens belong there for good. f starts no goroutine that does.
func (n *Node) Within(f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			failed <- err
			return // the thread ends with this function: it is not unlocked
		}
		defer func() { _ = before.Close() }()
		ns, err := netns.GetFromPath(n.NetNS())
		if err == nil {
			defer func() { _ = ns.Close() }()
			if err = netns.Set(ns); err == nil {
				err = f()
			}
		} else {
			err = fmt.Errorf("node %s: %w", n.Name, err)
		}
		// A process's first thread must not stay elsewhere: its namespace is the process's to everybody who looks.
		if back := netns.Set(before); back == nil {
			runtime.UnlockOSThread()
		}
		failed <- err
	}()
	return <-failed
}
