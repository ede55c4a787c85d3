// Package linux speaks to the kernel of one network namespace: rtnetlink for links, addresses, routes, rules, next hops,
// neighbours and forwarding entries, nftables for the filter, wgctrl for WireGuard, /proc/sys for settings.
//
// Hazards it was written against:
//   - IPv4 "replace" replaces the first route of the same prefix, tos and priority whoever owns it: creates are exclusive
//     here, and only what was observed as ours is replaced.
//   - An interrupted dump may miss objects: it is begun again, never believed.
//   - A full receive buffer loses answers: the operations then count as failed and the next pass observes.
//   - Setting a link down deletes routes and next-hop objects without a message for each: link events wake all of them.
package linux

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// Host is the kernel of one network namespace.
type Host struct {
	log      *slog.Logger
	ns       *os.File
	nsName   string
	control  *conn
	features kernel.Features

	// indices of devices, for what is written in batches.
	indices *indices

	mu    sync.Mutex
	bulk  *conn
	ports map[uint32]bool
}

var _ kernel.Host = (*Host)(nil)

// Open opens the network namespace of the calling thread and finds out what its kernel offers.
func Open(log *slog.Logger) (*Host, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("name of network namespace: %w", err)
	}
	h := &Host{log: log, ns: ns, nsName: name, ports: map[uint32]bool{}}
	h.indices = &indices{h: h}
	if h.control, err = h.dial(); err != nil {
		ns.Close()
		return nil, err
	}
	if h.bulk, err = h.dial(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.features = h.probe()
	return h, nil
}

// Close closes the sockets. Nothing in the kernel changes.
func (h *Host) Close() error {
	var errs []error
	for _, c := range []*conn{h.control, h.bulk} {
		if c != nil {
			errs = append(errs, c.close())
		}
	}
	return errors.Join(append(errs, h.indices.close(), h.ns.Close())...)
}

// Features says what this kernel offers; it was found by trying when the Host was opened.
func (h *Host) Features() kernel.Features { return h.features }

func (h *Host) dial() (*conn, error) {
	var c *conn
	err := h.within(func() (err error) {
		c, err = dial()
		return err
	})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.ports[c.port] = true
	h.mu.Unlock()
	return c, nil
}

// within runs fn on a thread in the host's namespace. A daemon lives wholly in one, so this is nearly always a plain call;
// only otherwise (tests) CAP_SYS_ADMIN is needed.
func (h *Host) within(fn func() error) error {
	if name, err := os.Readlink("/proc/thread-self/ns/net"); err == nil && name == h.nsName {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace with it
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", h.nsName, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// failAll is the result of operations of which none could be tried.
func failAll(n int, err error) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
