package bgp

import (
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"

	"fabric/bgp/rib"
	"fabric/policy"
)

// target is one place that choices of a VRF are announced to: the fabric, or one third-party peer.
type target struct {
	vrf string
	// pick says what is announced for a choice, if anything.
	pick func(c *rib.Choice) (rib.Attrs, bool)
	// encode makes GoBGP's path of it.
	encode func(prefix netip.Prefix, a *rib.Attrs, withdraw bool) (*apiutil.Path, error)
	// sent holds a fingerprint of each announcement, counts how many there are of IPv4 and IPv6.
	sent   map[netip.Prefix]uint64
	counts [2]int
}

// outbox collects paths for a server.
type outbox struct {
	paths []*apiutil.Path
	errs  []error
}

// put brings the target in line with one choice.
func (t *target) put(c *rib.Choice, out *outbox) {
	a, ok := rib.Attrs{}, false
	if c.Best != nil {
		a, ok = t.pick(c)
	}
	if !ok {
		t.withdraw(c.Key.Prefix, out)
		return
	}
	fp := fingerprint(&a)
	if old, sent := t.sent[c.Key.Prefix]; sent && old == fp {
		return
	}
	p, err := t.encode(c.Key.Prefix, &a, false)
	if err != nil {
		out.errs = append(out.errs, err)
		t.withdraw(c.Key.Prefix, out)
		return
	}
	if _, sent := t.sent[c.Key.Prefix]; !sent {
		t.counts[familyIndex(c.Key.Prefix)]++
	}
	t.sent[c.Key.Prefix] = fp
	out.paths = append(out.paths, p)
}

func (t *target) withdraw(prefix netip.Prefix, out *outbox) {
	if _, sent := t.sent[prefix]; !sent {
		return
	}
	delete(t.sent, prefix)
	t.counts[familyIndex(prefix)]--
	p, err := t.encode(prefix, &rib.Attrs{}, true)
	if err != nil {
		out.errs = append(out.errs, err)
		return
	}
	out.paths = append(out.paths, p)
}

// withdrawExcept withdraws what is not in the set.
func (t *target) withdrawExcept(keep map[netip.Prefix]bool, out *outbox) {
	for prefix := range t.sent {
		if !keep[prefix] {
			t.withdraw(prefix, out)
		}
	}
}

func hasCommunity(a *rib.Attrs, c rib.Community) bool { return slices.Contains(a.Communities, c) }

// originate makes the target of a VRF in the fabric. Only what this gateway has from elsewhere than the fabric is announced:
// a fabric path passed on would carry our next hop with another's VNI and MAC. NO_EXPORT does not stop a path here, as
// the fabric is one network seen from outside; NO_ADVERTISE does.
func originate(o Origination, vtep netip.Addr, mac [6]byte) *target {
	return &target{
		vrf:  o.VRF,
		sent: map[netip.Prefix]uint64{},
		pick: func(c *rib.Choice) (rib.Attrs, bool) {
			if c.Best.Key.Source.Kind == rib.Fabric || c.Best.LocalOnly || hasCommunity(&c.Best.Attrs, rib.NoAdvertise) {
				return rib.Attrs{}, false
			}
			q, verdict, _ := o.Export.Eval(*c.Best)
			q.Attrs.NextHop = vtep
			q.Attrs.LocalPref = defaultLocalPref
			return q.Attrs, verdict == policy.Accept
		},
		encode: func(prefix netip.Prefix, a *rib.Attrs, withdraw bool) (*apiutil.Path, error) {
			return encodeEVPN(&o, vtep, mac, prefix, a, withdraw)
		},
	}
}

// announce makes the target of a third-party peer. Paths of the peer itself do not go back to it, and those of an
// iBGP peer not to another one (RFC 4271 section 9.2).
func announce(p Peer, number uint32, internal func(rib.Source) bool) *target {
	return &target{
		vrf:  p.VRF,
		sent: map[netip.Prefix]uint64{},
		pick: func(c *rib.Choice) (rib.Attrs, bool) { return choose(&p, c.Best, internal) },
		encode: func(prefix netip.Prefix, a *rib.Attrs, withdraw bool) (*apiutil.Path, error) {
			return encodeUnicast(number, prefix, a, withdraw)
		},
	}
}

func choose(p *Peer, best *rib.Path, internal func(rib.Source) bool) (none rib.Attrs, ok bool) {
	family, self := IPv6, p.NextHop6
	if best.Key.Prefix.Addr().Is4() {
		family, self = IPv4, p.NextHop4
	}
	switch {
	case best.LocalOnly || best.Key.Source == p.Source() || !slices.Contains(p.Families, family):
		return none, false
	case hasCommunity(&best.Attrs, rib.NoAdvertise):
		return none, false
	case !p.internal() && (hasCommunity(&best.Attrs, rib.NoExport) || hasCommunity(&best.Attrs, rib.NoExportSubconfed)):
		return none, false
	case p.internal() && internal(best.Key.Source):
		return none, false
	}
	in := *best
	if p.ASOverride {
		in.Attrs.ASPath = policy.Override(in.Attrs.ASPath, p.ASN, p.LocalASN)
	}
	out, verdict, _ := p.Export.Eval(in)
	if verdict != policy.Accept {
		return none, false
	}
	a := out.Attrs
	if a.CountAS(p.ASN) > 0 && !p.internal() {
		return none, false // the peer would see its own ASN and refuse
	}
	if a.NextHop == in.Attrs.NextHop {
		a.NextHop = self // zero: GoBGP takes our address of the session
	}
	if !p.internal() {
		// RFC 4271 section 5.1.4: the MED another AS gave us stays here; one that policy set goes out.
		if a.MED == in.Attrs.MED && a.HasMED == in.Attrs.HasMED {
			a.MED, a.HasMED = 0, false
		}
		a.LocalPref = defaultLocalPref
	}
	a.SiteOfOrigin = rib.RT{}
	return a, true
}
