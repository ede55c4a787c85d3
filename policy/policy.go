// Package policy decides what becomes of a path: ordered terms match it by prefix, community, AS path and source, and
// accept, reject or rewrite it. The verdict comes with the term that gave it, so that explain can say why. Besides the
// policies of the intent there are the built-in guards: what no fabric should ever carry, and our own AS coming back.
//
// It is pure: a Policy is immutable and may be used by any number of goroutines, and Eval never writes to the path it
// is given.
package policy

import (
	"slices"
	"strings"

	"fabric/bgp/rib"
)

// Verdict is what a policy says of a path.
type Verdict uint8

// The verdicts. The zero Verdict is Reject.
const (
	Reject Verdict = iota
	Accept
)

// String returns "reject" or "accept".
func (v Verdict) String() string {
	if v == Accept {
		return "accept"
	}
	return "reject"
}

// Term names the term that decided. Name is "default" where none matched. The zero Term is that of the zero Policy.
type Term struct {
	Policy, Name string
}

// String prints "POLICY/TERM", or "" for the zero Term.
func (t Term) String() string {
	if t == (Term{}) {
		return ""
	}
	return t.Policy + "/" + t.Name
}

// Policy is a compiled policy, or several in a row. The zero Policy accepts everything as it is.
type Policy struct {
	steps []step
	asn   uint32 // for prepending; 0: the path's own first AS
}

// step is one policy of a chain.
type step interface {
	eval(p rib.Path, asn uint32) (rib.Path, Verdict, Term)
	// text is equal for steps that decide alike.
	text() string
}

// Eval puts a path through the policy. It returns the path as rewritten, the verdict, and the term that decided: of the
// first policy that rejects, or of the last one where all accept. The path given is not written to; the one returned may
// share slices with it.
func (p Policy) Eval(path rib.Path) (rib.Path, Verdict, Term) {
	var term Term
	for _, s := range p.steps {
		var v Verdict
		path, v, term = s.eval(path, p.asn)
		if v != Accept {
			return path, Reject, term
		}
	}
	return path, Accept, term
}

// Chain puts policies in a row: each sees the path as the one before it left it, and all must accept. Put guards first.
// The AS number to prepend is the first one set among ps.
func Chain(ps ...Policy) Policy {
	var c Policy
	for _, p := range ps {
		c.steps = append(c.steps, p.steps...)
		if c.asn == 0 {
			c.asn = p.asn
		}
	}
	return c
}

// WithASN returns the policy with the AS number that `prepend` puts before the path. Without one it repeats the path's
// first AS, which is what an import policy can say, and leaves an empty path alone.
func (p Policy) WithASN(asn uint32) Policy {
	p.asn = asn
	return p
}

// Equal says whether two policies decide and rewrite alike because they were compiled from the same.
func (p Policy) Equal(q Policy) bool {
	return p.asn == q.asn && slices.EqualFunc(p.steps, q.steps, func(a, b step) bool { return a.text() == b.text() })
}

// String names the policies in the row: "guard, own-as, TRANSIT".
func (p Policy) String() string {
	names := make([]string, len(p.steps))
	for i, s := range p.steps {
		switch s := s.(type) {
		case *compiled:
			names[i] = s.name
		case *ownAS:
			names[i] = ownASPolicy
		}
	}
	return strings.Join(names, ", ")
}
