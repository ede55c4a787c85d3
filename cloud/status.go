package cloud

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"fabric/bgp/rib"
	"fabric/internal/reconcile"
)

// TableStatus is one route table as it stands.
type TableStatus struct {
	Provider, Region, VPC, Table string
	// Instance is the next hop of our entries.
	Instance string
	// Desired counts the prefixes wanted, also those that do not fit; Owned the entries that carry our mark, Foreign the
	// custom entries that do not. Quota is how many entries of ours the table takes, 0 without a limit.
	Desired, Owned, Foreign, Quota int
	// Entries are those that are ours or wanted, by prefix.
	Entries []EntryStatus
	// Plan is what is still to do, in words.
	Plan []string
	// LastSync is when the table was last read.
	LastSync time.Time
	// InSync says that nothing is left to do.
	InSync bool
	// Err is what is wrong, "" when nothing.
	Err string
}

// EntryStatus is one entry.
type EntryStatus struct {
	Prefix  netip.Prefix
	NextHop string
	State   State
	Err     string
}

// Tables returns the tables as they stand, none where nothing is wanted. While the VPC cannot be opened, it is one table
// that says why.
func (s *Sync) Tables() []TableStatus {
	s.mu.Lock()
	w, x, err := s.wish, s.session, s.err
	s.mu.Unlock()
	switch {
	case x != nil:
		return x.tables()
	case w == nil:
		return nil
	}
	st := TableStatus{Provider: w.Provider, Region: w.Region, VPC: w.VPC, Instance: w.Instance, Err: cmp.Or(err, "not opened yet")}
	if len(w.Tables) == 0 {
		return []TableStatus{st}
	}
	var out []TableStatus
	for _, id := range w.Tables {
		st.Table = id
		out = append(out, st)
	}
	return out
}

func (x *session) tables() []TableStatus {
	sum := x.loop.Summary()
	x.mu.Lock()
	defer x.mu.Unlock()
	wanted := x.verdicts.wanted()
	var out []TableStatus
	for _, id := range x.info.Tables {
		t := x.have[id]
		st := TableStatus{
			Provider: x.info.Provider, Region: x.info.Region, VPC: x.info.ID, Table: id, Instance: x.info.Instance,
			Desired: len(wanted), Owned: len(t.routes), Foreign: t.limits.Foreign,
			Quota: max(0, room(x.wish.Quota, t.limits)), LastSync: x.observed,
		}
		prefixes := slices.Clone(wanted)
		for p := range t.routes {
			if why, ok := x.verdicts[p]; !ok || why != "" {
				prefixes = append(prefixes, p)
			}
		}
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		var out1, problems []string
		for _, p := range prefixes {
			e, step := x.entry(entryKey{id, p})
			st.Entries = append(st.Entries, e)
			if step != "" {
				st.Plan = append(st.Plan, step)
			}
			if _, ok := x.leftOut[entryKey{id, p}]; ok {
				out1 = append(out1, p.String())
			} else if e.Err != "" {
				problems = append(problems, e.Err)
			}
		}
		if n := len(out1); n > 0 {
			problems = append(problems, fmt.Sprintf("no room for %s: the table takes %d entries of ours", some(out1), st.Quota))
		}
		if sum.Held > 0 {
			problems = append(problems, fmt.Sprintf("%d deletes at once are held back for %v; look at them with fabricctl cloud plan, and let them go with fabricctl cloud approve", sum.Held, x.cfg.DeleteHold))
		}
		if sum.Err != "" && len(problems) == 0 {
			problems = append(problems, sum.Err)
		}
		st.Err = some(problems)
		st.InSync = st.Err == "" && len(st.Plan) == 0 && sum.InSync
		out = append(out, st)
	}
	return out
}

// some joins the first few texts and counts the rest.
func some(texts []string) string {
	const shown = 10
	if n := len(texts); n > shown {
		texts = append(slices.Clone(texts[:shown]), fmt.Sprintf("and %d more", n-shown))
	}
	return strings.Join(texts, ", ")
}

// entry is one entry as it stands, and the step that is still to do for it.
func (x *session) entry(k entryKey) (e EntryStatus, step string) {
	have, there := x.have[k.Table].routes[k.Prefix]
	want, wanted := x.last[k]
	e = EntryStatus{Prefix: k.Prefix, NextHop: have.NextHop, State: have.State}
	if !there {
		e.NextHop, e.State = want.NextHop, Missing
	}
	if why, ok := x.leftOut[k]; ok {
		e.Err = why
	}
	if err := x.errs[k]; err != nil {
		e.Err = err.Error()
		var foreign *reconcile.ForeignError
		if errors.As(err, &foreign) {
			e.State = Conflict
		}
	}
	if doing, ok := x.doing[k]; ok {
		e.State = doing
	}
	if e.State == Conflict {
		return e, "" // nothing we could do
	}
	why, judged := x.verdicts[k.Prefix]
	if !wanted && judged && why == "" && e.Err == "" {
		want, wanted = Route{NextHop: x.info.Instance, State: Available}, true // the loop has not come to it
		e.NextHop = cmp.Or(e.NextHop, want.NextHop)
	}
	switch {
	case wanted && !there:
		step = fmt.Sprintf("create %v %v", k.Prefix, want)
	case wanted && !equalRoutes(want, have):
		step = fmt.Sprintf("replace %v %v, was %v", k.Prefix, want, have)
	case there && !wanted && x.complete:
		step = fmt.Sprintf("delete %v %v", k.Prefix, have)
	}
	return e, step
}

// State says how a choice stands in the tables: "" where it is none of theirs, else "available", "pending" or another
// State, or the text of what is wrong.
func (s *Sync) State(k rib.Key) string {
	x := s.open()
	if x == nil {
		return ""
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if k.VRF != x.wish.VRF {
		return ""
	}
	why, ok := x.verdicts[k.Prefix]
	if !ok || why != "" {
		return why
	}
	worst := string(Available)
	for _, id := range x.info.Tables {
		e, step := x.entry(entryKey{id, k.Prefix})
		switch {
		case e.Err != "":
			return e.Err
		case e.State == Missing:
			worst = string(Pending)
		case e.State != Available:
			worst = string(e.State)
		case step != "":
			worst = string(Modifying)
		}
	}
	return worst
}
