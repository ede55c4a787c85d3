package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Attributes that golang.org/x/sys/unix does not name.
const (
	rtaNHID  = 30
	rtaxMTU  = 2
	scopeAny = 255 // RT_SCOPE_NOWHERE: a delete that matches any scope
	rtmgrpV4 = unix.AF_INET
	rtmgrpV6 = unix.AF_INET6
)

var routeTypes = map[kernel.RouteType]uint8{
	kernel.Unicast:          unix.RTN_UNICAST,
	kernel.Local:            unix.RTN_LOCAL,
	kernel.UnreachableRoute: unix.RTN_UNREACHABLE,
	kernel.Blackhole:        unix.RTN_BLACKHOLE,
}

// routeEdge is the kernel.Routes of one protocol.
type routeEdge struct {
	h        *Host
	protocol uint8
	tables   []uint32
}

// Routes are those with protocol in tables; in every table when none is named.
func (h *Host) Routes(protocol uint8, tables ...uint32) kernel.Routes {
	return &routeEdge{h, protocol, tables}
}

// Equal implements reconcile.Equaler.
func (e *routeEdge) Equal(k kernel.RouteKey, want, have kernel.Route) bool {
	return kernel.EqualRoute(k, want, have)
}

// Observe implements reconcile.Edge.
func (e *routeEdge) Observe(ctx context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	all := map[kernel.RouteKey]kernel.Route{}
	tables := e.tables
	if len(tables) == 0 {
		tables = []uint32{0}
	}
	for _, t := range tables {
		for _, fam := range []uint8{rtmgrpV4, rtmgrpV6} {
			if err := e.h.dumpRoutes(ctx, n, fam, t, e.protocol, all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// dumpRoutes adds the routes of one family, in table (0: every one) and of protocol (0: any), to into. The kernel filters.
func (h *Host) dumpRoutes(ctx context.Context, n *names, fam uint8, table uint32, protocol uint8, into map[kernel.RouteKey]kernel.Route) error {
	var found map[kernel.RouteKey]kernel.Route
	err := h.bulk.dump(ctx, func(m *message) {
		b := m.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.SizeofRtMsg)
		b[0] = fam
		b[5] = protocol
		if table != 0 {
			m.u32(unix.RTA_TABLE, table)
		}
	}, func() {
		found = map[kernel.RouteKey]kernel.Route{}
	}, func(typ uint16, body []byte) {
		k, r, ok := decodeRoute(body, n)
		if !ok || typ != unix.RTM_NEWROUTE || table != 0 && k.Table != table || protocol != 0 && r.Protocol != protocol {
			return
		}
		if _, twice := found[k]; !twice { // the first of several is the one in use
			found[k] = r
		}
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // no such table yet, or a kernel without IPv6: nothing of ours can be there
	}
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", table, err)
	}
	for k, r := range found {
		into[k] = r
	}
	return nil
}

// decodeRoute reads a RTM_NEWROUTE body; not ok for cached clones and types without a word here (broadcast, multicast).
func decodeRoute(body []byte, n *names) (k kernel.RouteKey, r kernel.Route, ok bool) {
	if len(body) < unix.SizeofRtMsg {
		return k, r, false
	}
	fam, bits := body[0], int(body[1])
	flags := native.Uint32(body[8:])
	if flags&unix.RTM_F_CLONED != 0 || fam != unix.AF_INET && fam != unix.AF_INET6 {
		return k, r, false
	}
	for t, typ := range routeTypes {
		if typ == body[7] {
			r.Type, ok = t, true
		}
	}
	if !ok {
		return k, r, false
	}
	k.Table = uint32(body[4])
	r.Protocol = body[5]
	if fam == unix.AF_INET {
		r.Scope = kernel.Scope(body[6])
	}
	r.OnLink = flags&unix.RTNH_F_ONLINK != 0
	dst := zeroAddr(fam)
	attrs(body[unix.SizeofRtMsg:], func(typ uint16, d []byte) {
		switch typ {
		case unix.RTA_TABLE:
			k.Table = u32(d)
		case unix.RTA_DST:
			dst = toAddr(d)
		case unix.RTA_PRIORITY:
			k.Metric = u32(d)
		case unix.RTA_OIF:
			r.Device = n.name[u32(d)]
		case unix.RTA_GATEWAY:
			r.Gateway = toAddr(d)
		case unix.RTA_VIA:
			if len(d) > 2 {
				r.Gateway = toAddr(d[2:])
			}
		case unix.RTA_PREFSRC:
			r.Src = toAddr(d)
		case unix.RTA_METRICS:
			attrs(d, func(typ uint16, d []byte) {
				if typ == rtaxMTU {
					r.MTU = int(u32(d))
				}
			})
		case rtaNHID:
			r.NextHopID = u32(d)
		}
	})
	if r.NextHopID != 0 { // in compatibility mode the kernel spells the object's next hop out as well
		r.Gateway, r.Device, r.OnLink = netip.Addr{}, "", false
	}
	k.Prefix = netip.PrefixFrom(dst, bits)
	return k, kernel.NormalRoute(k, r), k.Prefix.IsValid()
}

// checkRoute refuses what the kernel would silently make something else of.
func checkRoute(k kernel.RouteKey, r kernel.Route) error {
	v6 := !k.Prefix.Addr().Is4()
	switch {
	case !k.Prefix.IsValid() || k.Prefix != k.Prefix.Masked():
		return fmt.Errorf("%s is no prefix: host bits are set", k.Prefix)
	case k.Table == 0:
		return errors.New("no table")
	case v6 && k.Metric == 0:
		return errors.New("an IPv6 route needs a metric: the kernel turns 0 into 1024")
	case v6 && r.Gateway.Is4():
		return fmt.Errorf("an IPv6 route cannot go via %s", r.Gateway)
	case r.NextHopID != 0 && (r.Device != "" || r.Gateway.IsValid()):
		return errors.New("both a next-hop object and a device or gateway")
	}
	return nil
}

// encodeRoute writes a RTM_NEWROUTE.
func encodeRoute(m *message, flags uint16, k kernel.RouteKey, r kernel.Route, n indexer) error {
	if err := checkRoute(k, r); err != nil {
		return err
	}
	r = kernel.NormalRoute(k, r)
	fam := family(k.Prefix.Addr())
	b := m.begin(unix.RTM_NEWROUTE, flags, unix.SizeofRtMsg)
	b[0], b[1] = fam, uint8(k.Prefix.Bits())
	if k.Table < 256 {
		b[4] = uint8(k.Table)
	}
	b[5], b[6], b[7] = r.Protocol, uint8(r.Scope), routeTypes[r.Type]
	if fam == unix.AF_INET && r.Type == kernel.Local {
		b[6] = unix.RT_SCOPE_HOST
	}
	if r.OnLink {
		native.PutUint32(b[8:], unix.RTNH_F_ONLINK)
	}
	routeKeyAttrs(m, k)
	if r.NextHopID != 0 {
		m.u32(rtaNHID, r.NextHopID)
	}
	if r.Device != "" {
		index, err := n.device(r.Device)
		if err != nil {
			return err
		}
		m.u32(unix.RTA_OIF, index)
	}
	switch {
	case !r.Gateway.IsValid():
	case family(r.Gateway) == fam:
		m.addr(unix.RTA_GATEWAY, r.Gateway)
	default: // IPv4 via IPv6, RFC 5549 style
		m.attr(unix.RTA_VIA, append(native.AppendUint16(nil, uint16(family(r.Gateway))), r.Gateway.AsSlice()...))
	}
	if r.Src.IsValid() {
		m.addr(unix.RTA_PREFSRC, r.Src)
	}
	if r.MTU != 0 {
		var in message
		in.u32(rtaxMTU, uint32(r.MTU))
		m.attr(unix.RTA_METRICS, in.buf)
	}
	return nil
}

func routeKeyAttrs(m *message, k kernel.RouteKey) {
	m.u32(unix.RTA_TABLE, k.Table)
	m.addr(unix.RTA_DST, k.Prefix.Addr())
	if k.Metric != 0 {
		m.u32(unix.RTA_PRIORITY, k.Metric)
	}
}

// encodeDeleteRoute names the protocol and leaves scope and next hop open: exactly our route at the key goes.
func encodeDeleteRoute(m *message, k kernel.RouteKey, protocol uint8) {
	b := m.begin(unix.RTM_DELROUTE, 0, unix.SizeofRtMsg)
	b[0], b[1] = family(k.Prefix.Addr()), uint8(k.Prefix.Bits())
	if k.Table < 256 {
		b[4] = uint8(k.Table)
	}
	b[5], b[6] = protocol, scopeAny
	routeKeyAttrs(m, k)
}

// Apply implements reconcile.Edge. Creates are exclusive: where a route already stands it is read, replaced when it is ours,
// and reported as foreign when not.
func (e *routeEdge) Apply(ctx context.Context, ops []reconcile.Op[kernel.RouteKey, kernel.Route]) []error {
	n, err := e.h.indices.begin(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := e.h.bulk.batch(ctx, len(ops), func(i int, m *message) error {
		op := ops[i]
		op.New.Protocol = e.protocol
		switch op.Kind {
		case reconcile.Create:
			return encodeRoute(m, unix.NLM_F_CREATE|unix.NLM_F_EXCL, op.Key, op.New, n)
		case reconcile.Replace:
			return encodeRoute(m, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, op.Key, op.New, n)
		}
		encodeDeleteRoute(m, op.Key, e.protocol)
		return nil
	})
	var exists []int
	for i, err := range errs {
		if errors.Is(err, unix.ENODEV) {
			e.h.indices.forget()
		}
		switch {
		case err == nil:
		case ops[i].Kind == reconcile.Create && errors.Is(err, unix.EEXIST):
			exists = append(exists, i)
		case ops[i].Kind == reconcile.Delete && (errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)):
			errs[i] = nil // gone already, as after a link went down
		default:
			errs[i] = routeError(ops[i], err)
		}
	}
	if len(exists) > 0 {
		e.settle(ctx, n, ops, exists, errs)
	}
	return errs
}

func routeError(op reconcile.Op[kernel.RouteKey, kernel.Route], err error) error {
	return fmt.Errorf("%s route %s: %w", op.Kind, op.Key, err)
}

// settle decides about creates that found a route at their key.
func (e *routeEdge) settle(ctx context.Context, index indexer, ops []reconcile.Op[kernel.RouteKey, kernel.Route], exists []int, errs []error) {
	type tableOf struct {
		fam   uint8
		table uint32
	}
	n, err := e.h.names(ctx)
	if err != nil {
		for _, i := range exists {
			errs[i] = routeError(ops[i], err)
		}
		return
	}
	there := map[kernel.RouteKey]kernel.Route{}
	seen := map[tableOf]bool{}
	for _, i := range exists {
		t := tableOf{family(ops[i].Key.Prefix.Addr()), ops[i].Key.Table}
		if seen[t] {
			continue
		}
		seen[t] = true
		if err := e.h.dumpRoutes(ctx, n, t.fam, t.table, 0, there); err != nil {
			for _, j := range exists {
				errs[j] = routeError(ops[j], err)
			}
			return
		}
	}
	var ours []int
	for _, i := range exists {
		r, ok := there[ops[i].Key]
		switch {
		case ok && r.Protocol != e.protocol:
			errs[i] = &reconcile.ForeignError{
				What:  "route " + ops[i].Key.String(),
				Owner: "protocol " + kernel.ProtocolName(r.Protocol),
				Mend:  "remove it, or give it another metric",
			}
		case !ok:
			errs[i] = &reconcile.ForeignError{
				What:  "route " + ops[i].Key.String(),
				Owner: "a type of route the fabric never makes",
				Mend:  "remove it, or give it another metric",
			}
		default:
			ours = append(ours, i)
		}
	}
	again := e.h.bulk.batch(ctx, len(ours), func(j int, m *message) error {
		op := ops[ours[j]]
		op.New.Protocol = e.protocol
		return encodeRoute(m, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, op.Key, op.New, index)
	})
	for j, err := range again {
		errs[ours[j]] = nil
		if err != nil {
			errs[ours[j]] = routeError(ops[ours[j]], err)
		}
	}
}
