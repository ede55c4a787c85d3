package rib

import (
	"fmt"
	"net/netip"
	"slices"
)

// Next hops of peers and static routes are resolved within their VRF (RFC 4271 section 9.1.2.1): on a network of the VRF's own
// interfaces, or through the longest route that covers them, whose own next hop is resolved in turn.
//
// A route that leads back to the next hop it is asked for is passed over, as is one whose next hop leads nowhere: then the next path
// to the same prefix is asked, then the next shorter prefix. So the outcome depends on which paths there are, not on which of them
// are chosen for now, and what follows from it for the choice never changes it again: nothing can go round.
//
// Each next hop remembers the addresses that were asked for it. A changed path concerns the next hops that asked for an address in
// its prefix, and no others.

// maxAsked bounds the addresses that are asked for one next hop.
const maxAsked = 8

// Network is one that a VRF's interface is on.
type Network struct {
	Prefix netip.Prefix
	Device string
}

// Resolution says where a next hop leads.
type Resolution struct {
	// Gateway is the neighbour's address on the link, and Device the link.
	Gateway netip.Addr
	Device  string
	// Why it leads nowhere; "" where it does lead somewhere.
	Why string
}

// Resolve says where a next hop in a VRF leads. A VRF that does not resolve (VRF.Resolve) knows of none.
func (t *Table) Resolve(vrf string, nh netip.Addr) Resolution {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.vrfs[vrf]
	if v == nil || !v.resolve {
		return Resolution{Why: fmt.Sprintf("no route to next hop %s in VRF %s", nh, vrf)}
	}
	if h := t.hops[NextHop{VRF: vrf, Addr: nh}]; h != nil {
		return h.via
	}
	r, _ := v.lookUp(nh)
	return r
}

// lookUp finds where a next hop leads, and which addresses had to be asked for that.
func (v *vrf) lookUp(nh netip.Addr) (Resolution, []netip.Addr) {
	s := search{vrf: v}
	r := s.ask(nh)
	if r.Why != "" {
		r.Gateway, r.Device = netip.Addr{}, ""
	}
	return r, s.asked
}

// search is the way from one next hop to a link.
type search struct {
	vrf   *vrf
	asked []netip.Addr
	// back: a route was passed over because it leads back; far: no more addresses are asked.
	back, far bool
}

// ask finds where an address leads. What was asked before is not asked again: either the answer is being looked for and this would lead
// back, or there is none.
func (s *search) ask(a netip.Addr) Resolution {
	if z := a.Zone(); z != "" {
		return Resolution{Gateway: a.WithZone(""), Device: z}
	}
	if d := s.vrf.device(a); d != "" {
		return Resolution{Gateway: a, Device: d}
	}
	if s.far = s.far || len(s.asked) == maxAsked; s.far {
		return Resolution{Why: fmt.Sprintf("next hop %s in VRF %s is more than %d routes away; give one of them an interface", s.asked[0], s.vrf.name, maxAsked)}
	}
	s.asked = append(s.asked, a)
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, e := s.vrf.at(a, bits)
		if e == nil {
			continue
		}
		if r, ok := s.follow(a, p, e); ok {
			return r
		}
	}
	why := "no route to next hop %s in VRF %s"
	if s.back {
		why = "next hop %s in VRF %s is only reached by routes that lead back to it"
	}
	return Resolution{Why: fmt.Sprintf(why, a, s.vrf.name)}
}

// follow asks the paths of one prefix for an address. ok is false if none of them is a route.
func (s *search) follow(a netip.Addr, p netip.Prefix, e *entry) (r Resolution, ok bool) {
	nowhere := func(format string, args ...any) (Resolution, bool) {
		return Resolution{Why: fmt.Sprintf("next hop %s in VRF %s ", a, s.vrf.name) + fmt.Sprintf(format, args...)}, true
	}
	for _, path := range e.alive() {
		via, device := path.Attrs.NextHop, path.Interface
		switch kind := path.Key.Source.Kind; {
		case kind == Fabric:
			return nowhere("lies behind another gateway (%s)", path.Key.Source.Name)
		case kind == Static && !via.IsValid():
			return r, false // only announced: the kernel has no route for it
		case !via.IsValid():
			return nowhere("is covered by %s, which leads to no interface", p)
		case device != "":
			return Resolution{Gateway: via.WithZone(""), Device: device}, true
		case slices.Contains(s.asked, via):
			s.back = true
			continue
		}
		if r := s.ask(via); r.Why == "" || s.far {
			return r, true
		}
	}
	return r, false
}

// device is that of the longest network of the VRF's interfaces that an address is on, "" for none.
func (v *vrf) device(a netip.Addr) (device string) {
	longest := -1
	for _, n := range v.networks {
		if n.Prefix.Contains(a) && n.Prefix.Bits() > longest {
			device, longest = n.Device, n.Prefix.Bits()
		}
	}
	return device
}

// at is the entry of the prefix of so many bits that covers an address, nil for none.
func (v *vrf) at(a netip.Addr, bits int) (netip.Prefix, *entry) {
	family := 0
	if a.Is6() {
		family = 1
	}
	if v.lengths[family][bits] == 0 {
		return netip.Prefix{}, nil
	}
	p := netip.PrefixFrom(a, bits).Masked()
	return p, v.entries[p]
}

// alive are the paths of an entry in order of preference, whatever is known of where the next hops of its VRF lead.
func (e *entry) alive() []*Path {
	var rs []*record
	for _, r := range e.paths {
		if r.alive() {
			rs = append(rs, r)
		}
	}
	order(rs)
	ps := make([]*Path, len(rs))
	for i, r := range rs {
		ps[i] = r.path
	}
	return ps
}

// alive says whether a path's source is, and its VTEP.
func (r *record) alive() bool {
	return r.source.reach == Reachable && (r.hop == nil || r.hop.reach == Reachable)
}

// resolves says whether a path's next hop is looked for: a device that the path names needs no looking for.
func (r *record) resolves() bool {
	k := r.path.Key.Source.Kind
	return (k == Peer || k == Static) && r.path.Interface == "" && r.hop != nil
}

// trace resolves a next hop anew and says whether it leads elsewhere than before.
func (t *Table) trace(h *hop) (changed bool) {
	var via Resolution
	var asked []netip.Addr
	v := t.vrfs[h.name.VRF]
	if v != nil && v.resolve {
		via, asked = v.lookUp(h.name.Addr)
	}
	if !slices.Equal(asked, h.asked) {
		v.unasked(h)
		h.asked = asked
		for _, a := range asked {
			v.questions.add(a, h)
		}
	}
	changed = via != h.via
	h.via = via
	return changed
}

// unasked takes back what was asked for a next hop.
func (v *vrf) unasked(h *hop) {
	for _, a := range h.asked {
		v.questions.remove(a, h)
	}
	h.asked = nil
}

// touch notes the next hops that asked for an address in a prefix whose paths have changed.
func (t *Table) touch(v *vrf, p netip.Prefix) {
	if !t.settling {
		v.questions.within(p, t.doubt)
	}
}

// doubt has a next hop resolved anew when the call that changed something is done.
func (t *Table) doubt(h *hop) {
	if !h.doubted {
		h.doubted = true
		t.doubted = append(t.doubted, h)
	}
}

// settle resolves the next hops anew that changes of paths concern, and tells the feeds of the choices that use one which leads
// elsewhere now.
func (t *Table) settle() {
	t.settling = true // what is chosen otherwise now moves no next hop
	for _, h := range t.doubted {
		h.doubted = false
		if t.hops[h.name] != h || !t.trace(h) {
			continue
		}
		for _, u := range h.users {
			if !u.resolves() {
				continue
			}
			t.rechoose(u)
			v, p := t.vrfs[h.name.VRF], u.path.Key.Prefix
			if e := v.entries[p]; e != nil && e.uses(u.path) {
				for _, f := range t.feeds {
					f.mark(Key{VRF: v.name, Prefix: p}, true, true)
				}
			}
		}
	}
	t.doubted, t.settling = t.doubted[:0], false
}

// uses says whether a path is one of those that a Choice names.
func (e *entry) uses(p *Path) bool {
	return p == e.best || p == e.runnerUp || e.equal != nil && slices.Contains(*e.equal, p)
}
