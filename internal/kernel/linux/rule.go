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

// linux/fib_rules.h, which golang.org/x/sys/unix has only in part.
const (
	ruleHdrLen  = 12
	fraDst      = 1
	fraSrc      = 2
	fraIif      = 3
	fraPriority = 6
	fraMark     = 10
	fraTable    = 15
	fraMask     = 16
	fraOif      = 17
	fraL3MDEV   = 19
	fraProtocol = 21

	actLookup      = 1
	actUnreachable = 7
)

// hostRule is a rule as found, ours or not.
type hostRule struct {
	key      kernel.RuleKey
	rule     kernel.Rule
	protocol uint8
	// odd is set when it has an action or a match that has no word here.
	odd bool
}

// ruleEdge is the kernel.Rules of one protocol.
type ruleEdge struct {
	h        *Host
	protocol uint8
}

// Rules are those whose FRA_PROTOCOL is protocol.
func (h *Host) Rules(protocol uint8) kernel.Rules { return &ruleEdge{h, protocol} }

// Equal implements reconcile.Equaler.
func (e *ruleEdge) Equal(_ kernel.RuleKey, want, have kernel.Rule) bool { return want == have }

// Observe implements reconcile.Edge.
func (e *ruleEdge) Observe(ctx context.Context) (map[kernel.RuleKey]kernel.Rule, error) {
	all, err := e.h.rules(ctx)
	if err != nil {
		return nil, err
	}
	found := map[kernel.RuleKey]kernel.Rule{}
	for _, r := range all {
		if r.protocol != e.protocol {
			continue
		}
		if have, twice := found[r.key]; twice && have != r.rule {
			// A replace that was cut short left two; a value that equals no wish has both put right.
			found[r.key] = kernel.Rule{Action: r.rule.Action, Table: 0, L3MDEV: false}
			continue
		}
		found[r.key] = r.rule
	}
	return found, nil
}

func (h *Host) rules(ctx context.Context) ([]hostRule, error) {
	var all []hostRule
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var some []hostRule
		err := h.control.dump(ctx, func(m *message) {
			b := m.begin(unix.RTM_GETRULE, unix.NLM_F_DUMP, ruleHdrLen)
			b[0] = fam
		}, func() { some = nil }, func(typ uint16, body []byte) {
			if r, ok := decodeRule(body); ok && typ == unix.RTM_NEWRULE {
				some = append(some, r)
			}
		})
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func decodeRule(body []byte) (r hostRule, ok bool) {
	if len(body) < ruleHdrLen {
		return r, false
	}
	fam := body[0]
	r.key.IPv6 = fam == unix.AF_INET6
	r.rule.Table = uint32(body[4])
	prefix := func(d []byte, bits uint8) netip.Prefix { return netip.PrefixFrom(toAddr(d), int(bits)) }
	const invert = 2
	r.odd = body[3] != 0 || native.Uint32(body[8:])&invert != 0
	if body[1] != 0 {
		r.key.Dst = netip.PrefixFrom(zeroAddr(fam), int(body[1]))
	}
	if body[2] != 0 {
		r.key.Src = netip.PrefixFrom(zeroAddr(fam), int(body[2]))
	}
	attrs(body[ruleHdrLen:], func(typ uint16, d []byte) {
		switch typ {
		case fraDst:
			r.key.Dst = prefix(d, body[1])
		case fraSrc:
			r.key.Src = prefix(d, body[2])
		case fraIif:
			r.key.Iif = cstring(d)
		case fraOif:
			r.key.Oif = cstring(d)
		case fraPriority:
			r.key.Priority = u32(d)
		case fraMark:
			r.key.Mark = u32(d)
		case fraMask:
			r.key.Mask = u32(d)
		case fraTable:
			r.rule.Table = u32(d)
		case fraL3MDEV:
			r.rule.L3MDEV = len(d) > 0 && d[0] != 0
		case fraProtocol:
			if len(d) > 0 {
				r.protocol = d[0]
			}
		case 14, 13: // suppress_prefixlength, suppress_ifgroup: -1 when off
			r.odd = r.odd || u32(d) != 0xffffffff
		case 12, 20, 22, 23, 24: // tun_id, uid range, ip protocol, ports
			r.odd = true
		}
	})
	switch body[7] {
	case actLookup:
		r.rule.Action = kernel.Lookup
	case actUnreachable:
		r.rule.Action, r.rule.Table = kernel.RuleUnreachable, 0
	default:
		r.odd = true
	}
	if r.rule.L3MDEV {
		r.rule.Table = 0
	}
	return r, true
}

func encodeRule(m *message, typ, flags uint16, k kernel.RuleKey, r kernel.Rule, protocol uint8) error {
	fam := uint8(unix.AF_INET)
	if k.IPv6 {
		fam = unix.AF_INET6
	}
	b := m.begin(typ, flags, ruleHdrLen)
	b[0] = fam
	switch r.Action {
	case kernel.Lookup:
		b[7] = actLookup
	case kernel.RuleUnreachable:
		b[7] = actUnreachable
	default:
		return fmt.Errorf("unknown action %d", r.Action)
	}
	if r.Action == kernel.Lookup && !r.L3MDEV && r.Table == 0 {
		return errors.New("lookup without a table")
	}
	if k.Dst.IsValid() {
		b[1] = uint8(k.Dst.Bits())
	}
	if k.Src.IsValid() {
		b[2] = uint8(k.Src.Bits())
	}
	for _, p := range []struct {
		typ    uint16
		prefix netip.Prefix
	}{{fraDst, k.Dst}, {fraSrc, k.Src}} {
		if !p.prefix.IsValid() {
			continue
		}
		if family(p.prefix.Addr()) != fam {
			return fmt.Errorf("prefix %s in a rule of the other family", p.prefix)
		}
		m.addr(p.typ, p.prefix.Addr())
	}
	m.u32(fraPriority, k.Priority)
	if k.Iif != "" {
		m.str(fraIif, k.Iif)
	}
	if k.Oif != "" {
		m.str(fraOif, k.Oif)
	}
	if k.Mask != 0 {
		m.u32(fraMark, k.Mark)
		m.u32(fraMask, k.Mask)
	}
	if r.L3MDEV {
		m.u8(fraL3MDEV, 1)
	} else if r.Action == kernel.Lookup {
		m.u32(fraTable, r.Table)
	}
	if protocol != 0 {
		m.u8(fraProtocol, protocol)
	}
	return nil
}

// Apply implements reconcile.Edge. A replace adds the new rule before it deletes the old.
func (e *ruleEdge) Apply(ctx context.Context, ops []reconcile.Op[kernel.RuleKey, kernel.Rule]) []error {
	errs := make([]error, len(ops))
	all, err := e.h.rules(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	for i, op := range ops {
		if err := ctx.Err(); err != nil {
			errs[i] = err
			continue
		}
		var ours []hostRule
		for _, r := range all {
			if r.key != op.Key || r.odd {
				continue
			}
			if r.protocol != e.protocol {
				errs[i] = &reconcile.ForeignError{
					What:  "rule " + op.Key.String(),
					Owner: "protocol " + kernel.ProtocolName(r.protocol),
					Mend:  "remove it, or give it another preference",
				}
				continue
			}
			ours = append(ours, r)
		}
		if errs[i] == nil {
			errs[i] = e.apply(op, ours, all)
		}
	}
	return errs
}

func (e *ruleEdge) apply(op reconcile.Op[kernel.RuleKey, kernel.Rule], ours, all []hostRule) error {
	there := false
	for _, r := range ours {
		there = there || op.Kind != reconcile.Delete && r.rule == op.New
	}
	if op.Kind != reconcile.Delete && !there {
		err := e.h.control.batch(context.Background(), 1, func(_ int, m *message) error {
			return encodeRule(m, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, op.Key, op.New, e.protocol)
		})[0]
		if err != nil {
			return fmt.Errorf("%s rule %s: %w", op.Kind, op.Key, err)
		}
	}
	for _, r := range ours {
		if op.Kind != reconcile.Delete && r.rule == op.New {
			continue
		}
		if err := e.h.deleteRule(r, all); err != nil {
			return fmt.Errorf("%s rule %s: %w", op.Kind, op.Key, err)
		}
	}
	return nil
}

// deleteRule deletes exactly r. The kernel deletes the first rule that has all the fields of the request, so a rule that
// has more of them and comes first would go instead: that is refused.
func (h *Host) deleteRule(r hostRule, all []hostRule) error {
	for _, o := range all {
		if o == r {
			break
		}
		if o.key.IPv6 == r.key.IPv6 && o.key.Priority == r.key.Priority && o.rule == r.rule && covers(r.key, o.key) {
			return fmt.Errorf("rule %s stands before it and would be deleted instead; give it another preference", o.key)
		}
	}
	err := h.control.batch(context.Background(), 1, func(_ int, m *message) error {
		return encodeRule(m, unix.RTM_DELRULE, 0, r.key, r.rule, r.protocol)
	})[0]
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// covers reports whether every selector that k has, o has too.
func covers(k, o kernel.RuleKey) bool {
	return (k.Iif == "" || k.Iif == o.Iif) && (k.Oif == "" || k.Oif == o.Oif) &&
		(k.Mask == 0 || k.Mask == o.Mask && k.Mark == o.Mark) &&
		(!k.Src.IsValid() || k.Src == o.Src) && (!k.Dst.IsValid() || k.Dst == o.Dst)
}

// MoveLocalRule moves the rule "from all lookup local" of both families to priority pref; it adds the new one before it
// deletes the old, since without one this host answers nobody. The rule stays the kernel's (protocol kernel).
func (h *Host) MoveLocalRule(ctx context.Context, pref uint32) error {
	all, err := h.rules(ctx)
	if err != nil {
		return err
	}
	const protocolKernel = 2
	for _, v6 := range []bool{false, true} {
		want := hostRule{
			key:      kernel.RuleKey{IPv6: v6, Priority: pref},
			rule:     kernel.Rule{Action: kernel.Lookup, Table: kernel.LocalTable},
			protocol: protocolKernel,
		}
		var old []hostRule
		there, any := false, false
		for _, r := range all {
			if r.odd || r.rule != want.rule || r.key.IPv6 != v6 {
				continue
			}
			k := r.key
			k.Priority = pref
			if k != want.key { // it has selectors: somebody's special rule
				continue
			}
			any = true
			if r.key.Priority == pref {
				there = true
			} else if r.protocol == protocolKernel || r.protocol == 0 {
				old = append(old, r)
			}
		}
		if !any && len(familyRules(all, v6)) == 0 {
			continue // a kernel without IPv6 has no rules for it
		}
		if !there {
			err := h.control.batch(ctx, 1, func(_ int, m *message) error {
				return encodeRule(m, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, want.key, want.rule, protocolKernel)
			})[0]
			if err != nil {
				return fmt.Errorf("add rule %s lookup local: %w", want.key, err)
			}
		}
		for _, r := range old {
			if err := h.deleteRule(r, nil); err != nil {
				return fmt.Errorf("delete rule %s lookup local: %w", r.key, err)
			}
		}
	}
	return nil
}

func familyRules(all []hostRule, v6 bool) (some []hostRule) {
	for _, r := range all {
		if r.key.IPv6 == v6 {
			some = append(some, r)
		}
	}
	return some
}
