package site

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"fabric/bgp/rib"
)

// ErrNotFound says that there is no such VRF, peer, route or the like.
var ErrNotFound = errors.New("not found")

// Explain says how a prefix or address is routed in a VRF and why: every path known for it, and the paths that were
// refused with the term that refused them.
func (s *Site) Explain(vrf string, p netip.Prefix) (Explanation, error) {
	in := s.intent.Load()
	if _, err := in.vrfNames(vrf); err != nil {
		return Explanation{}, err
	}
	p = p.Masked()
	x := Explanation{VRF: vrf, Prefix: p}
	for _, r := range s.speaker.Rejected(vrf) {
		if r.Key.Prefix == p || r.Key.Prefix.Overlaps(p) && r.Key.Prefix.Bits() > 0 {
			x.Rejected = append(x.Rejected, Candidate{Route: s.pathStatus(in, &r), Why: r.Policy})
		}
	}
	c, ok := s.rib.Lookup(vrf, p)
	if !ok {
		x.Candidates = s.unusable(in, vrf, p, -1)
		x.Lines = append(x.Lines, fmt.Sprintf("No route covers %s in VRF %s: the gateway answers unreachable.", p, vrf))
		return x, nil
	}
	if c.Key.Prefix != p {
		x.Matched = c.Key.Prefix
		x.Lines = append(x.Lines, fmt.Sprintf("%s is covered by %s.", p, c.Key.Prefix))
	}
	longer := s.unusable(in, vrf, p, c.Key.Prefix.Bits())
	for i, cand := range s.rib.Ranking(c.Key) {
		r := s.pathStatus(in, &cand.Path)
		r.VRF = vrf
		why := string(c.Reason)
		if i > 0 || !cand.Usable {
			why = "lost by " + string(cand.Lost)
			switch {
			case cand.Equal:
				why = "as good: shares traffic with the best"
			case cand.Problem != "":
				why += ": " + cand.Problem
			}
		} else {
			r = s.routeStatus(in, c)
		}
		x.Candidates = append(x.Candidates, Candidate{Route: r, Best: i == 0 && cand.Usable, Equal: cand.Equal, Why: why})
	}
	x.Lines = append(x.Lines, s.story(in, c, len(x.Candidates))...)
	x.Candidates = append(x.Candidates, longer...)
	return x, nil
}

// unusable are the paths that cannot be used of the prefixes that cover p and are longer than so many bits, longest first.
func (s *Site) unusable(in *intent, vrf string, p netip.Prefix, bits int) (cs []Candidate) {
	for n := p.Bits(); n > bits; n-- {
		for _, cand := range s.rib.Ranking(rib.Key{VRF: vrf, Prefix: netip.PrefixFrom(p.Addr(), n).Masked()}) {
			r := s.pathStatus(in, &cand.Path)
			r.VRF = vrf
			why := "cannot be used: no " + string(cand.Lost)
			if cand.Problem != "" {
				why += ": " + cand.Problem
			}
			cs = append(cs, Candidate{Route: r, Why: why})
		}
	}
	return cs
}

// story tells in sentences what was chosen and what became of it.
func (s *Site) story(in *intent, c rib.Choice, candidates int) []string {
	src := c.Best.Key.Source
	lines := []string{fmt.Sprintf("Chosen among %d: the %s path of %s (%s).", candidates, src.Kind, fromName(in, c.Best), c.Reason)}
	if len(c.Equal) > 0 {
		var with []string
		for _, p := range c.Equal {
			with = append(with, fromName(in, p))
		}
		lines = append(lines, "As good, and sharing traffic with it (multipath): "+strings.Join(with, ", ")+".")
	}
	switch kernel := s.fib.state(in, c); kernel {
	case "ok":
		lines = append(lines, "The kernel's table holds it.")
		if set := s.fib.setStory(c.Key); set != "" {
			lines = append(lines, set)
		}
	case "-":
		lines = append(lines, "The kernel needs no route of ours: the network is attached, or the prefix is only announced.")
	default:
		lines = append(lines, "The kernel does not hold it: "+kernel+".")
	}
	switch {
	case src.Kind == rib.Fabric:
		lines = append(lines, "Not announced to other gateways: it came from one.")
	case c.Best.LocalOnly:
		lines = append(lines, "Not announced: it is local to this gateway.")
	default:
		lines = append(lines, "Announced to the other gateways.")
	}
	if cloud := s.cloud.State(c.Key); cloud != "" {
		lines = append(lines, "In the VPC's tables: "+cloud+".")
	}
	var told []string
	for _, srv := range in.servers() {
		if srv.VRF != c.Key.VRF || src.Kind == rib.Peer || c.Best.LocalOnly {
			continue
		}
		for _, p := range srv.Peers {
			told = append(told, p.Name)
		}
	}
	if len(told) > 0 {
		lines = append(lines, "Offered to the peers "+strings.Join(told, ", ")+", as far as their export policy lets it pass.")
	}
	return lines
}
