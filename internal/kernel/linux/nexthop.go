package linux

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// linux/nexthop.h, which golang.org/x/sys/unix has not.
const (
	nhmsgLen     = 8
	nhaID        = 1
	nhaGroup     = 2
	nhaBlackhole = 4
	nhaOIF       = 5
	nhaGateway   = 6
)

// nextHopEdge is the kernel.NextHops of one protocol.
type nextHopEdge struct {
	h        *Host
	protocol uint8
}

// NextHops are next-hop objects with protocol. Within one Apply single next hops are made before groups.
func (h *Host) NextHops(protocol uint8) kernel.NextHops { return &nextHopEdge{h, protocol} }

// Equal implements reconcile.Equaler.
func (e *nextHopEdge) Equal(_ uint32, want, have kernel.NextHop) bool {
	return kernel.EqualNextHop(0, want, have)
}

// Observe implements reconcile.Edge.
func (e *nextHopEdge) Observe(ctx context.Context) (map[uint32]kernel.NextHop, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	all, err := e.h.nextHops(ctx, n)
	for id, nh := range all {
		if nh.Protocol != e.protocol {
			delete(all, id)
		}
	}
	return all, err
}

func (h *Host) nextHops(ctx context.Context, n *names) (map[uint32]kernel.NextHop, error) {
	var all map[uint32]kernel.NextHop
	err := h.control.dump(ctx, func(m *message) {
		m.begin(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, nhmsgLen)
	}, func() {
		all = map[uint32]kernel.NextHop{}
	}, func(typ uint16, body []byte) {
		if typ == unix.RTM_NEWNEXTHOP {
			id, nh := decodeNextHop(body, n)
			all[id] = nh
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list next hops: %w", err)
	}
	return all, nil
}

func decodeNextHop(body []byte, n *names) (id uint32, nh kernel.NextHop) {
	if len(body) < nhmsgLen {
		return 0, nh
	}
	nh.Protocol = body[2]
	nh.OnLink = native.Uint32(body[4:])&unix.RTNH_F_ONLINK != 0
	attrs(body[nhmsgLen:], func(typ uint16, d []byte) {
		switch typ {
		case nhaID:
			id = u32(d)
		case nhaOIF:
			nh.Device = n.name[u32(d)]
		case nhaGateway:
			nh.Gateway = toAddr(d)
		case nhaBlackhole:
			nh.Blackhole = true
		case nhaGroup: // struct nexthop_grp: id, weight, reserved
			var ids []int
			for ; len(d) >= 8; d = d[8:] {
				ids = append(ids, int(native.Uint32(d)))
			}
			nh.Group = joinIDs(ids)
		}
	})
	if nh.Blackhole {
		nh.Device = ""
	}
	return id, nh
}

func joinIDs(ids []int) string {
	sort.Ints(ids)
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = strconv.Itoa(id)
	}
	return strings.Join(s, ",")
}

func encodeNextHop(m *message, flags uint16, id uint32, nh kernel.NextHop, n indexer) error {
	b := m.begin(unix.RTM_NEWNEXTHOP, flags, nhmsgLen)
	b[2] = nh.Protocol
	switch {
	case nh.Group != "":
		b[0] = unix.AF_UNSPEC
	case nh.Gateway.IsValid():
		b[0] = family(nh.Gateway)
	default: // a plain device and a blackhole serve routes of both families only as IPv6 objects
		b[0] = unix.AF_INET6
	}
	if nh.OnLink {
		native.PutUint32(b[4:], unix.RTNH_F_ONLINK)
	}
	m.u32(nhaID, id)
	if nh.Group != "" {
		var members []byte // struct nexthop_grp: id, weight - 1, reserved
		for _, s := range strings.Split(nh.Group, ",") {
			member, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return fmt.Errorf("group %q: %w", nh.Group, err)
			}
			members = native.AppendUint32(members, uint32(member))
			members = append(members, 0, 0, 0, 0)
		}
		m.attr(nhaGroup, members)
		return nil
	}
	if nh.Blackhole {
		m.attr(nhaBlackhole, nil)
		return nil
	}
	index, err := n.device(nh.Device)
	if err != nil {
		return err
	}
	m.u32(nhaOIF, index)
	if nh.Gateway.IsValid() {
		m.addr(nhaGateway, nh.Gateway)
	}
	return nil
}

func encodeDeleteNextHop(m *message, id uint32) {
	m.begin(unix.RTM_DELNEXTHOP, 0, nhmsgLen)
	m.u32(nhaID, id)
}

// nextHop reads one object; ok is false when there is none.
func (h *Host) nextHop(id uint32) (nh kernel.NextHop, ok bool, err error) {
	empty := &names{}
	err = h.control.get(func(m *message) {
		m.begin(unix.RTM_GETNEXTHOP, 0, nhmsgLen)
		m.u32(nhaID, id)
	}, func(_ uint16, body []byte) {
		_, nh = decodeNextHop(body, empty)
	})
	if errors.Is(err, unix.ENOENT) {
		return nh, false, nil
	}
	return nh, err == nil, err
}

// Apply implements reconcile.Edge. The kernel does not check the protocol when it replaces or deletes an id, so the owner is read right
// before, but for what was observed as ours and only gets other contents, and for what the kernel itself refuses to make where there is one
// already: those are one message each, sent in batches, since traffic may wait for them.
func (e *nextHopEdge) Apply(ctx context.Context, ops []reconcile.Op[uint32, kernel.NextHop]) []error {
	n, err := e.h.indices.begin(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := make([]error, len(ops))
	order := nextHopOrder(ops)
	for len(order) > 0 {
		same := 1
		for same < len(order) && e.plain(ops[order[same]]) == e.plain(ops[order[0]]) && kernel.NextHopRank(ops[order[same]]) == kernel.NextHopRank(ops[order[0]]) {
			same++
		}
		e.applyAlike(ctx, n, ops, order[:same], errs)
		order = order[same:]
	}
	for _, err := range errs {
		if errors.Is(err, unix.ENODEV) {
			e.h.indices.forget()
			break
		}
	}
	return errs
}

// plain says whether an operation is one message without a look before.
func (e *nextHopEdge) plain(op reconcile.Op[uint32, kernel.NextHop]) bool {
	return op.Kind == reconcile.Create ||
		op.Kind == reconcile.Replace && op.Old.Protocol == e.protocol && (op.Old.Group == "") == (op.New.Group == "")
}

// applyAlike applies the operations in order, all plain or none.
func (e *nextHopEdge) applyAlike(ctx context.Context, n indexer, ops []reconcile.Op[uint32, kernel.NextHop], order []int, errs []error) {
	plain := e.plain(ops[order[0]])
	if plain {
		done := e.h.control.batch(ctx, len(order), func(i int, m *message) error {
			op := ops[order[i]]
			op.New.Protocol = e.protocol
			flags := uint16(unix.NLM_F_REPLACE) // one that is gone is none to replace
			if op.Kind == reconcile.Create {
				flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
			}
			return encodeNextHop(m, flags, op.Key, op.New, n)
		})
		for i, err := range done {
			if err != nil {
				err = fmt.Errorf("%s next hop %d: %w", ops[order[i]].Kind, ops[order[i]].Key, err)
			}
			errs[order[i]] = err
		}
	}
	for _, i := range order {
		op, surprise := ops[i], errors.Is(errs[i], unix.EEXIST) || errors.Is(errs[i], unix.ENOENT) && ops[i].New.Group == ""
		switch {
		case plain && !surprise:
		case ctx.Err() != nil:
			errs[i] = ctx.Err()
		default:
			errs[i] = e.apply(n, op)
		}
	}
}

// nextHopOrder puts groups behind the single next hops they refer to when making, and before them when deleting.
func nextHopOrder(ops []reconcile.Op[uint32, kernel.NextHop]) []int {
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return kernel.NextHopRank(ops[order[a]]) < kernel.NextHopRank(ops[order[b]]) })
	return order
}

// apply looks at what is there, and applies one operation.
func (e *nextHopEdge) apply(n indexer, op reconcile.Op[uint32, kernel.NextHop]) error {
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s next hop %d: %w", op.Kind, op.Key, err)
	}
	there, ok, err := e.h.nextHop(op.Key)
	if err != nil {
		return wrap(err)
	}
	if ok && there.Protocol != e.protocol {
		return &reconcile.ForeignError{
			What:  fmt.Sprintf("next hop %d", op.Key),
			Owner: "protocol " + kernel.ProtocolName(there.Protocol),
			Mend:  "remove it: the fabric's ids are a range of its own",
		}
	}
	if op.Kind == reconcile.Delete {
		if !ok {
			return nil
		}
		err := e.h.control.do(func(m *message) { encodeDeleteNextHop(m, op.Key) })
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return wrap(err)
	}
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if ok {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		// The kernel refuses to turn a group into a single next hop and back, and to change the family of one that routes use.
		if (there.Group == "") != (op.New.Group == "") {
			if err := e.h.control.do(func(m *message) { encodeDeleteNextHop(m, op.Key) }); err != nil {
				return wrap(err)
			}
			flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		}
	}
	op.New.Protocol = e.protocol
	return wrap(e.h.control.batch(context.Background(), 1, func(_ int, m *message) error {
		return encodeNextHop(m, flags, op.Key, op.New, n)
	})[0])
}
