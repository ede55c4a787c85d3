package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

const (
	ndmsgLen    = 12
	ndaDst      = 1
	ndaLLAddr   = 2
	ndaProtocol = 12
)

// neighEntry is one answer of a RTM_GETNEIGH dump.
type neighEntry struct {
	index uint32
	state uint16
	flags uint8
	addr  netip.Addr
	mac   [6]byte
}

// neighEntries lists neighbours (AF_INET, AF_INET6) or forwarding entries (AF_BRIDGE).
func (h *Host) neighEntries(ctx context.Context, fams ...uint8) ([]neighEntry, error) {
	var all []neighEntry
	for _, fam := range fams {
		var some []neighEntry
		err := h.control.dump(ctx, func(m *message) {
			b := m.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, ndmsgLen)
			b[0] = fam
		}, func() { some = nil }, func(typ uint16, body []byte) {
			if typ != unix.RTM_NEWNEIGH || len(body) < ndmsgLen {
				return
			}
			e := neighEntry{index: native.Uint32(body[4:]), state: native.Uint16(body[8:]), flags: body[10]}
			attrs(body[ndmsgLen:], func(typ uint16, d []byte) {
				switch {
				case typ == ndaDst:
					e.addr = toAddr(d)
				case typ == ndaLLAddr && len(d) == 6:
					copy(e.mac[:], d)
				}
			})
			some = append(some, e)
		})
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// ourVXLAN returns the index of a VXLAN device of ours of one of the kinds; neighbours and forwarding entries are made on no other.
func (n *names) ourVXLAN(name, what string, kinds ...kernel.LinkKind) (uint32, error) {
	index, err := n.device(name)
	if err != nil {
		return 0, err
	}
	if l := n.links[index]; !n.isOurVXLAN(index, kinds...) {
		return 0, &reconcile.ForeignError{
			What:  what,
			Owner: l.owner(),
			Mend:  "entries are only made on VXLAN devices of the fabric",
		}
	}
	return index, nil
}

func (n *names) isOurVXLAN(index uint32, kinds ...kernel.LinkKind) bool {
	l, ok := n.links[index]
	return ok && l.ours() && slices.Contains(kinds, kernel.LinkKind(l.kind))
}

// neighbourEdge is kernel.Neighbours on devices of some kinds.
type neighbourEdge struct {
	h     *Host
	kinds []kernel.LinkKind
}

// Neighbours are permanent neighbour entries on our VXLAN devices of the kinds named: kernel.KindVXLAN when none is.
func (h *Host) Neighbours(kinds ...kernel.LinkKind) kernel.Neighbours {
	if len(kinds) == 0 {
		kinds = []kernel.LinkKind{kernel.KindVXLAN}
	}
	return &neighbourEdge{h, kinds}
}

// Equal implements reconcile.Equaler.
func (e *neighbourEdge) Equal(_ kernel.NeighbourKey, want, have kernel.Neighbour) bool {
	return want == have
}

// Observe implements reconcile.Edge.
func (e *neighbourEdge) Observe(ctx context.Context) (map[kernel.NeighbourKey]kernel.Neighbour, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	all, err := e.h.neighEntries(ctx, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	found := map[kernel.NeighbourKey]kernel.Neighbour{}
	for _, x := range all {
		if x.state&unix.NUD_PERMANENT != 0 && n.isOurVXLAN(x.index, e.kinds...) {
			found[kernel.NeighbourKey{Device: n.name[x.index], Addr: x.addr}] = kernel.Neighbour{MAC: x.mac}
		}
	}
	return found, nil
}

// Apply implements reconcile.Edge.
func (e *neighbourEdge) Apply(ctx context.Context, ops []reconcile.Op[kernel.NeighbourKey, kernel.Neighbour]) []error {
	n, err := e.h.names(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := e.h.control.batch(ctx, len(ops), func(i int, m *message) error {
		op := ops[i]
		index, err := n.ourVXLAN(op.Key.Device, "neighbour "+op.Key.String(), e.kinds...)
		if err != nil {
			return err
		}
		encodeNeigh(m, op.Kind, family(op.Key.Addr), index, 0)
		m.addr(ndaDst, op.Key.Addr)
		if op.Kind != reconcile.Delete {
			m.attr(ndaLLAddr, op.New.MAC[:])
			m.u8(ndaProtocol, kernel.Protocol)
		}
		return nil
	})
	for i, op := range ops {
		errs[i] = neighError(op.Kind, "neighbour "+op.Key.String(), errs[i])
	}
	return errs
}

func encodeNeigh(m *message, kind reconcile.Kind, fam uint8, index uint32, flags uint8) {
	typ, nlFlags := uint16(unix.RTM_NEWNEIGH), uint16(unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if kind == reconcile.Delete {
		typ, nlFlags = unix.RTM_DELNEIGH, 0
	}
	b := m.begin(typ, nlFlags, ndmsgLen)
	b[0] = fam
	native.PutUint32(b[4:], index)
	native.PutUint16(b[8:], unix.NUD_PERMANENT)
	b[10] = flags
}

// neighError forgives deletes of what went with its device.
func neighError(kind reconcile.Kind, what string, err error) error {
	var foreign *reconcile.ForeignError
	switch {
	case err == nil || errors.As(err, &foreign):
		return err
	case kind == reconcile.Delete && isGone(err):
		return nil
	}
	return fmt.Errorf("%s %s: %w", kind, what, err)
}

func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, os.ErrNotExist)
}

// fdbEdge is kernel.FDB.
type fdbEdge struct{ h *Host }

// FDB are the forwarding entries of our VXLAN devices.
func (h *Host) FDB() kernel.FDB { return &fdbEdge{h} }

// Equal implements reconcile.Equaler.
func (e *fdbEdge) Equal(_ kernel.FDBKey, want, have kernel.FDBEntry) bool { return want == have }

// Observe implements reconcile.Edge.
func (e *fdbEdge) Observe(ctx context.Context) (map[kernel.FDBKey]kernel.FDBEntry, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	all, err := e.h.neighEntries(ctx, unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	found := map[kernel.FDBKey]kernel.FDBEntry{}
	for _, x := range all {
		if x.flags&unix.NTF_SELF != 0 && x.addr.IsValid() && n.isOurVXLAN(x.index, kernel.KindVXLAN) {
			found[kernel.FDBKey{Device: n.name[x.index], MAC: x.mac}] = kernel.FDBEntry{Dst: x.addr}
		}
	}
	return found, nil
}

// Apply implements reconcile.Edge.
func (e *fdbEdge) Apply(ctx context.Context, ops []reconcile.Op[kernel.FDBKey, kernel.FDBEntry]) []error {
	n, err := e.h.names(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := e.h.control.batch(ctx, len(ops), func(i int, m *message) error {
		op := ops[i]
		index, err := n.ourVXLAN(op.Key.Device, "forwarding entry "+op.Key.String(), kernel.KindVXLAN)
		if err != nil {
			return err
		}
		encodeNeigh(m, op.Kind, unix.AF_BRIDGE, index, unix.NTF_SELF)
		m.attr(ndaLLAddr, op.Key.MAC[:])
		if op.Kind != reconcile.Delete {
			m.addr(ndaDst, op.New.Dst)
		}
		return nil
	})
	for i, op := range ops {
		errs[i] = neighError(op.Kind, "forwarding entry "+op.Key.String(), errs[i])
	}
	return errs
}
