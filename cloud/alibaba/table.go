package alibaba

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"fabric/cloud"
	"fabric/internal/reconcile"
)

// table is one route table. It implements cloud.Table.
type table struct {
	vpc *vpc
	id  string

	mu      sync.Mutex
	limits  cloud.Limits
	learned time.Time // when limits.Entries was learnt from a refusal
	// tokens are the ClientTokens of creates whose outcome is not known, by destination and hop.
	tokens map[string]string
}

// Limits implements cloud.Table.
func (t *table) Limits() cloud.Limits {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limits
}

// Observe implements cloud.Table.
func (t *table) Observe(ctx context.Context) (map[netip.Prefix]cloud.Route, error) {
	es, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	own := map[netip.Prefix]cloud.Route{}
	for _, e := range es {
		if t.owns(e) {
			own[e.prefix] = cloud.Route{NextHop: strings.Join(e.hops, ","), State: state(e.status)}
		}
	}
	return own, nil
}

// state is a status in the words of all vendors.
func state(status string) cloud.State {
	switch status {
	case available:
		return cloud.Available
	case "Modifying":
		return cloud.Modifying
	case "Deleting":
		return cloud.Deleting
	}
	return cloud.Pending
}

// list reads the table and counts what is in it.
func (t *table) list(ctx context.Context) ([]entry, error) {
	es, err := t.vpc.list(ctx, t.id)
	if err != nil {
		return nil, err
	}
	foreign := 0
	for _, e := range es {
		if e.typ == "Custom" && !t.owns(e) {
			foreign++
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits.Foreign = foreign
	if t.limits.Entries != 0 && time.Since(t.learned) > t.vpc.timing.Remember {
		t.limits.Entries = 0 // the account's quota may have been raised
	}
	return es, nil
}

// learnFull takes in that the table refused one more entry.
func (t *table) learnFull(es []entry) {
	n := 0
	for _, e := range es {
		if e.typ == "Custom" {
			n++
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n > 0 {
		t.limits.Entries, t.learned = n, time.Now()
	}
}

// owns says whether an entry is ours: it carries our mark, and nothing but a user of the API made it.
func (t *table) owns(e entry) bool {
	mark := t.vpc.wish.Mark()
	return e.typ == "Custom" && e.service == "" && e.prefix.IsValid() && (e.description == mark || e.name == mark)
}

// foreign says in words that an entry is not ours.
func (t *table) foreign(e entry) error {
	f := &reconcile.ForeignError{
		What: fmt.Sprintf("route entry %v in %s", e.prefix, t.id),
		Mend: "remove it, or keep the prefix out with the site's cloud export policy",
	}
	switch {
	case e.typ == "System":
		f.Owner = "a system route of the VPC"
	case e.typ != "Custom":
		f.Owner = "a dynamic route of " + e.typ
	case e.service != "":
		f.Owner = "managed by the service " + e.service
	default:
		f.Owner = t.vpc.wish.Holder(cmp.Or(e.description, e.name))
	}
	if len(e.hops) > 0 && e.hops[0] != "" {
		f.Owner += fmt.Sprintf(", via %s %s", e.hopType, strings.Join(e.hops, ","))
	}
	return f
}

// at returns the entries for a destination: ours, if one is, and one that is not.
func (t *table) at(es []entry, p netip.Prefix) (own, other *entry) {
	for i, e := range es {
		switch {
		case e.prefix != p:
		case t.owns(e):
			own = &es[i]
		case other == nil || e.typ == "Custom":
			other = &es[i]
		}
	}
	return own, other
}

// step is what is left to do for one op.
type step uint8

const (
	nothing step = iota
	create
	move
	remove
)

// decide compares an op with what is there now.
func (t *table) decide(op reconcile.Op[netip.Prefix, cloud.Route], es []entry) (step, *entry, error) {
	own, other := t.at(es, op.Key)
	switch {
	case op.Kind == reconcile.Delete:
		if own == nil {
			return nothing, nil, nil // gone, or somebody has made it theirs
		}
		return remove, own, nil
	case own != nil && len(own.hops) == 1 && own.hops[0] == op.New.NextHop:
		return nothing, own, nil
	case own != nil:
		return move, own, nil
	case other != nil:
		return nothing, nil, t.foreign(*other)
	}
	return create, nil, nil
}
