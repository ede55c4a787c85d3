package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

// maxPrepend is how often a term may prepend; more does not steer traffic, it only makes paths that others refuse.
const maxPrepend = 16

// then is what a matching term does.
type then uint8

const (
	thenReject then = iota
	thenAccept
	thenNext
)

// compiled is one policy of the intent, or the guard.
type compiled struct {
	name    string
	terms   []term
	verdict Verdict // where no term decides
	source  string  // what it was compiled from
}

type term struct {
	name  string
	match match
	then  then
	set   *set
}

// match are the conditions of a term; those that are empty hold.
type match struct {
	prefixes    *prefixSet
	communities []rib.Community
	asPath      []uint32
	originAS    []uint32
	sources     []rib.SourceKind
	peers       []string
}

// set are the rewrites of a term.
type set struct {
	nextHop        netip.Addr
	localPref, med *uint32
	prepend        int
	add, remove    []rib.Community
}

// Compile makes a policy of the intent ready for use. The error holds everything that is wrong with it (errors.Join), a
// line each: policy, term, what, and how to mend it.
func Compile(p config.Policy) (Policy, error) {
	c := &compiled{name: p.Name}
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("policy %q: %w", p.Name, fmt.Errorf(format, args...)))
	}
	if p.Name == "" {
		wrong("name is missing; name the policy")
	}
	switch p.Default {
	case "", "reject":
	case "accept":
		c.verdict = Accept
	default:
		wrong("default %q is not known; write accept or reject", p.Default)
	}
	seen := make(map[string]int)
	for i, t := range p.Terms {
		bad := func(err error) { wrong("term %d (%s): %w", i+1, t.Name, err) }
		if first, ok := seen[t.Name]; ok && t.Name != "" {
			bad(fmt.Errorf("name is that of term %d; choose another", first))
		} else {
			seen[t.Name] = i + 1
		}
		ct, es := compileTerm(t)
		for _, err := range es {
			bad(err)
		}
		c.terms = append(c.terms, ct)
	}
	if len(errs) > 0 {
		return Policy{}, errors.Join(errs...)
	}
	source, err := json.Marshal(p)
	if err != nil {
		return Policy{}, fmt.Errorf("policy %q: %w", p.Name, err)
	}
	c.source = string(source)
	return Policy{steps: []step{c}}, nil
}

func compileTerm(t config.Term) (term, []error) {
	c := term{name: t.Name}
	var errs []error
	if t.Name == "" {
		errs = append(errs, errors.New("name is missing; name the term, explain shows it"))
	}
	switch t.Then {
	case "accept":
		c.then = thenAccept
	case "reject":
		c.then = thenReject
	case "next":
		c.then = thenNext
	case "":
		errs = append(errs, errors.New("then is missing; write accept, reject or next"))
	default:
		errs = append(errs, fmt.Errorf("then %q is not known; write accept, reject or next", t.Then))
	}
	var es []error
	c.match, es = compileMatch(t.Match)
	errs = append(errs, es...)
	if t.Set != nil {
		if t.Then == "reject" {
			errs = append(errs, errors.New("set does nothing in a term that rejects; remove it or change then"))
		}
		c.set, es = compileSet(*t.Set)
		errs = append(errs, es...)
	}
	return c, errs
}

func compileMatch(m config.Match) (match, []error) {
	c := match{asPath: slices.Clone(m.ASPath), originAS: slices.Clone(m.OriginAS), peers: slices.Clone(m.Peers)}
	var errs []error
	var ranges []prefixRange
	for _, s := range m.Prefixes {
		r, err := parsePrefixRange(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("match: %w", err))
			continue
		}
		ranges = append(ranges, r)
	}
	if len(ranges) > 0 {
		c.prefixes = newPrefixSet(ranges)
	}
	var es []error
	c.communities, es = parseCommunities(m.Communities)
	for _, err := range es {
		errs = append(errs, fmt.Errorf("match: %w", err))
	}
	if slices.Contains(m.ASPath, 0) || slices.Contains(m.OriginAS, 0) {
		errs = append(errs, errors.New("match: 0 is not an AS number (RFC 7607); remove it"))
	}
	for _, s := range m.Source {
		kinds := []rib.SourceKind{rib.Connected, rib.Static, rib.Peer, rib.Fabric}
		i := slices.IndexFunc(kinds, func(k rib.SourceKind) bool { return k.String() == s })
		if i < 0 {
			errs = append(errs, fmt.Errorf("match: source %q is not known; write connected, static, peer or fabric", s))
			continue
		}
		c.sources = append(c.sources, kinds[i])
	}
	if slices.Contains(m.Peers, "") {
		errs = append(errs, errors.New("match: a peer has no name; write the peer's name"))
	}
	return c, errs
}

func compileSet(s config.Set) (*set, []error) {
	c := &set{nextHop: s.NextHop, prepend: s.Prepend}
	var errs []error
	if nh := s.NextHop; nh.IsValid() && (nh.IsUnspecified() || nh.IsMulticast() || nh.IsLoopback() || nh.Is4In6()) {
		errs = append(errs, fmt.Errorf("set: next-hop %s is no address of a router; write its address in the VRF", nh))
	}
	if s.LocalPref != nil {
		c.localPref = new(*s.LocalPref)
	}
	if s.MED != nil {
		c.med = new(*s.MED)
	}
	if s.Prepend < 0 || s.Prepend > maxPrepend {
		errs = append(errs, fmt.Errorf("set: prepend %d is not a number from 0 to %d", s.Prepend, maxPrepend))
	}
	var es []error
	c.add, es = parseCommunities(s.AddCommunities)
	for _, err := range es {
		errs = append(errs, fmt.Errorf("set: add-communities: %w", err))
	}
	c.remove, es = parseCommunities(s.RemoveCommunities)
	for _, err := range es {
		errs = append(errs, fmt.Errorf("set: remove-communities: %w", err))
	}
	return c, errs
}

func parseCommunities(ss []string) ([]rib.Community, []error) {
	var cs []rib.Community
	var errs []error
	for _, s := range ss {
		c, err := rib.ParseCommunity(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cs = append(cs, c)
	}
	return cs, errs
}
