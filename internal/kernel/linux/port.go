package linux

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// portEdge is the kernel.Ports of the devices named.
type portEdge struct {
	h     *Host
	named func() []string
}

// Ports are the devices that named returns at each Observe, and any other device that is not ours and stands in a VRF
// device of ours: a delete releases it.
func (h *Host) Ports(named func() []string) kernel.Ports { return &portEdge{h, named} }

// Equal implements reconcile.Equaler.
func (e *portEdge) Equal(name string, want, have kernel.Port) bool {
	return kernel.EqualPort(name, want, have)
}

// Observe implements reconcile.Edge.
func (e *portEdge) Observe(ctx context.Context) (map[string]kernel.Port, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]kernel.Port{}
	for _, l := range n.links {
		if !l.ours() && n.inOurVRF(l) {
			found[l.name] = kernel.Port{Name: l.name, Master: n.name[l.master], MTU: int(l.mtu)}
		}
	}
	for _, name := range e.named() {
		if l, ok := n.link(name); ok && !l.ours() {
			found[name] = kernel.Port{Name: name, Master: n.name[l.master], MTU: int(l.mtu)}
		}
	}
	return found, nil
}

// inOurVRF reports whether the device is enslaved to a VRF device of ours.
func (n *names) inOurVRF(l linkInfo) bool {
	m, ok := n.links[l.master]
	return ok && m.kind == string(kernel.KindVRF) && m.ours()
}

// Apply implements reconcile.Edge.
func (e *portEdge) Apply(ctx context.Context, ops []reconcile.Op[string, kernel.Port]) []error {
	n, err := e.h.names(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := make([]error, len(ops))
	for i, op := range ops {
		errs[i] = e.apply(n, op)
		var foreign *reconcile.ForeignError
		if errs[i] != nil && !errors.As(errs[i], &foreign) {
			errs[i] = fmt.Errorf("%s port %s: %w", op.Kind, op.Key, errs[i])
		}
	}
	return errs
}

func (e *portEdge) apply(n *names, op reconcile.Op[string, kernel.Port]) error {
	have, ok := n.link(op.Key)
	if !ok {
		if op.Kind == reconcile.Delete {
			return nil
		}
		_, err := n.device(op.Key)
		return err
	}
	if have.ours() {
		return fmt.Errorf("it is a link of the fabric (%s), not an interface of the host", have.alias)
	}
	master, mtu := uint32(0), have.mtu
	if op.Kind != reconcile.Delete {
		if op.New.MTU != 0 {
			mtu = uint32(op.New.MTU)
		}
		if op.New.Master != "" {
			m, ok := n.link(op.New.Master)
			if !ok {
				_, err := n.device(op.New.Master)
				return err
			}
			master = m.index
		}
	}
	if have.master != 0 && have.master != master && !n.inOurVRF(have) {
		if op.Kind == reconcile.Delete {
			return nil
		}
		return &reconcile.ForeignError{
			What:  "interface " + op.Key,
			Owner: "enslaved to " + n.name[have.master],
			Mend:  "release it from there, or take it out of the intent",
		}
	}
	if have.master == master && have.mtu == mtu {
		return nil
	}
	return e.h.control.do(func(m *message) {
		b := m.begin(unix.RTM_SETLINK, 0, unix.SizeofIfInfomsg)
		native.PutUint32(b[4:], have.index)
		if have.master != master {
			m.u32(unix.IFLA_MASTER, master)
		}
		if have.mtu != mtu {
			m.u32(unix.IFLA_MTU, mtu)
		}
	})
}
