package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// ifaProto is IFA_PROTO, ifaFlags is IFA_FLAGS (the 32-bit form).
const (
	ifaProto = 11
	ifaFlags = 8
)

type hostAddress struct {
	index    uint32
	flags    uint32
	protocol uint8
}

// addressEdge is the kernel.Addresses of one protocol.
type addressEdge struct {
	h        *Host
	protocol uint8

	mu   sync.Mutex
	made map[kernel.AddressKey]bool // only used where the kernel has no IFA_PROTO
}

// Addresses are those whose IFA_PROTO is protocol. On a kernel without it (before 5.18) they are all addresses on our own
// links and those this process has added or found as wanted.
func (h *Host) Addresses(protocol uint8) kernel.Addresses {
	return &addressEdge{h: h, protocol: protocol, made: map[kernel.AddressKey]bool{}}
}

// Equal implements reconcile.Equaler.
func (e *addressEdge) Equal(k kernel.AddressKey, want, have kernel.Address) bool {
	return kernel.EqualAddress(k, want, have)
}

// Observe implements reconcile.Edge.
func (e *addressEdge) Observe(ctx context.Context) (map[kernel.AddressKey]kernel.Address, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	all, err := e.h.addresses(ctx, n)
	if err != nil {
		return nil, err
	}
	found := map[kernel.AddressKey]kernel.Address{}
	for k, a := range all {
		if e.ours(n, k, a) {
			found[k] = kernel.Address{
				NoPrefixRoute: a.flags&unix.IFA_F_NOPREFIXROUTE != 0,
				NoDAD:         a.flags&unix.IFA_F_NODAD != 0 && !k.Prefix.Addr().Is4(),
			}
		}
	}
	return found, nil
}

func (e *addressEdge) ours(n *names, k kernel.AddressKey, a hostAddress) bool {
	if e.h.features.AddressProtocol {
		return a.protocol == e.protocol
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.made[k] || n.links[a.index].ours() && !k.Prefix.Addr().IsLinkLocalUnicast()
}

func (h *Host) addresses(ctx context.Context, n *names) (map[kernel.AddressKey]hostAddress, error) {
	var all map[kernel.AddressKey]hostAddress
	err := h.control.dump(ctx, func(m *message) {
		m.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, unix.SizeofIfAddrmsg)
	}, func() {
		all = map[kernel.AddressKey]hostAddress{}
	}, func(typ uint16, body []byte) {
		if typ != unix.RTM_NEWADDR || len(body) < unix.SizeofIfAddrmsg {
			return
		}
		a := hostAddress{index: native.Uint32(body[4:]), flags: uint32(body[2])}
		var addr, local netip.Addr
		attrs(body[unix.SizeofIfAddrmsg:], func(typ uint16, d []byte) {
			switch typ {
			case unix.IFA_ADDRESS:
				addr = toAddr(d)
			case unix.IFA_LOCAL:
				local = toAddr(d)
			case ifaFlags:
				a.flags = u32(d)
			case ifaProto:
				if len(d) > 0 {
					a.protocol = d[0]
				}
			}
		})
		if local.IsValid() {
			addr = local
		}
		all[kernel.AddressKey{Device: n.name[a.index], Prefix: netip.PrefixFrom(addr, int(body[1]))}] = a
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return all, nil
}

// Apply implements reconcile.Edge.
func (e *addressEdge) Apply(ctx context.Context, ops []reconcile.Op[kernel.AddressKey, kernel.Address]) []error {
	n, err := e.h.names(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	all, err := e.h.addresses(ctx, n)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := make([]error, len(ops))
	for i, op := range ops {
		errs[i] = e.apply(n, all, op)
		var foreign *reconcile.ForeignError
		if errs[i] != nil && !errors.As(errs[i], &foreign) {
			errs[i] = fmt.Errorf("%s address %s: %w", op.Kind, op.Key, errs[i])
		}
	}
	return errs
}

func (e *addressEdge) apply(n *names, all map[kernel.AddressKey]hostAddress, op reconcile.Op[kernel.AddressKey, kernel.Address]) error {
	index, err := n.device(op.Key.Device)
	if err != nil {
		if op.Kind == reconcile.Delete {
			return nil // went with its device
		}
		return err
	}
	there, ok := all[op.Key]
	if ok && e.h.features.AddressProtocol && there.protocol != e.protocol {
		return &reconcile.ForeignError{
			What:  "address " + op.Key.String(),
			Owner: fmt.Sprintf("address protocol %d", there.protocol),
			Mend:  "remove it, or take it out of the intent",
		}
	}
	v4 := op.Key.Prefix.Addr().Is4()
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	switch {
	case op.Kind == reconcile.Delete || ok && v4:
		// IPv4 addresses keep the flags they were made with, so a change is a new address.
		if err := e.remove(index, op.Key); err != nil || op.Kind == reconcile.Delete {
			return err
		}
	case ok:
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	err = e.h.control.do(func(m *message) {
		b := m.begin(unix.RTM_NEWADDR, flags, unix.SizeofIfAddrmsg)
		b[0], b[1] = family(op.Key.Prefix.Addr()), uint8(op.Key.Prefix.Bits())
		native.PutUint32(b[4:], index)
		m.addr(unix.IFA_LOCAL, op.Key.Prefix.Addr())
		m.addr(unix.IFA_ADDRESS, op.Key.Prefix.Addr())
		f := uint32(unix.IFA_F_PERMANENT)
		if op.New.NoPrefixRoute {
			f |= unix.IFA_F_NOPREFIXROUTE
		}
		if op.New.NoDAD && !v4 {
			f |= unix.IFA_F_NODAD
		}
		m.u32(ifaFlags, f)
		if e.h.features.AddressProtocol {
			m.u8(ifaProto, e.protocol)
		}
	})
	if errors.Is(err, unix.EEXIST) && !v4 {
		return &reconcile.ForeignError{
			What:  "address " + op.Key.Prefix.Addr().String() + " dev " + op.Key.Device,
			Owner: "there with another prefix length",
			Mend:  "remove it, or take it out of the intent",
		}
	}
	if err == nil {
		e.mu.Lock()
		e.made[op.Key] = true
		e.mu.Unlock()
	}
	return err
}

func (e *addressEdge) remove(index uint32, k kernel.AddressKey) error {
	err := e.h.control.do(func(m *message) {
		b := m.begin(unix.RTM_DELADDR, 0, unix.SizeofIfAddrmsg)
		b[0], b[1] = family(k.Prefix.Addr()), uint8(k.Prefix.Bits())
		native.PutUint32(b[4:], index)
		m.addr(unix.IFA_LOCAL, k.Prefix.Addr())
		m.addr(unix.IFA_ADDRESS, k.Prefix.Addr())
	})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if err == nil {
		e.mu.Lock()
		delete(e.made, k)
		e.mu.Unlock()
	}
	return err
}
