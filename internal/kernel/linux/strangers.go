package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// Strangers implements kernel.Host. The kernel can leave out all protocols but one, not the other way round: so the tables are
// read whole, but nothing of ours is kept.
func (h *Host) Strangers(ctx context.Context, tables []uint32) ([]string, error) {
	n, err := h.names(ctx)
	if err != nil {
		return nil, err
	}
	var s kernel.Strangers
	n.strangers(tables, &s)
	for _, t := range tables {
		for _, fam := range []uint8{rtmgrpV4, rtmgrpV6} {
			if err := h.strangeRoutes(ctx, fam, t, &s); err != nil {
				return nil, err
			}
		}
	}
	return s.Sentences(), nil
}

// strangers adds the VRF devices of others on tables, by name.
func (n *names) strangers(tables []uint32, s *kernel.Strangers) {
	var found []linkInfo
	for _, l := range n.links {
		if l.kind == string(kernel.KindVRF) && !l.ours() && slices.Contains(tables, l.table) {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b linkInfo) int { return cmp.Compare(a.name, b.name) })
	for _, l := range found {
		s.Device(l.name, l.owner(), l.table)
	}
}

// strangeRoutes adds the routes of others, of one family and table and of any type.
func (h *Host) strangeRoutes(ctx context.Context, fam uint8, table uint32, s *kernel.Strangers) error {
	before := *s
	err := h.bulk.dump(ctx, func(m *message) {
		m.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.SizeofRtMsg)[0] = fam
		m.u32(unix.RTA_TABLE, table)
	}, func() {
		*s = before
	}, func(typ uint16, body []byte) {
		if typ != unix.RTM_NEWROUTE || len(body) < unix.SizeofRtMsg || body[0] != fam || !kernel.Strange(body[5]) ||
			native.Uint32(body[8:])&unix.RTM_F_CLONED != 0 {
			return
		}
		k := kernel.RouteKey{Table: uint32(body[4])}
		dst := zeroAddr(fam)
		attrs(body[unix.SizeofRtMsg:], func(typ uint16, d []byte) {
			switch typ {
			case unix.RTA_TABLE:
				k.Table = u32(d)
			case unix.RTA_DST:
				dst = toAddr(d)
			case unix.RTA_PRIORITY:
				k.Metric = u32(d)
			}
		})
		if k.Table == table {
			k.Prefix = netip.PrefixFrom(dst, int(body[1]))
			s.Route(k, body[5])
		}
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // no such table yet, or a kernel without IPv6
	}
	if err != nil {
		return fmt.Errorf("look for routes of others in table %d: %w", table, err)
	}
	return nil
}
