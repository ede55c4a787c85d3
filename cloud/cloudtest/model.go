// Package cloudtest is a VPC in memory, for tests of what writes into route tables, and the suite that every
// implementation of cloud.VPC passes, the model too.
package cloudtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"fabric/cloud"
	"fabric/internal/reconcile"
)

// Entry is one entry of a Model's table.
type Entry struct {
	NextHop string
	// Mark is the description: it says whose the entry is.
	Mark string
	// Kind is "" for a custom entry, else what else it is: "dynamic", "managed", "system".
	Kind string
}

// Model is a VPC in memory. It may be used from any goroutine.
type Model struct {
	// Gate, when set, is waited for by each write, so that a test can look at a change that is under way.
	Gate chan struct{}

	mu     sync.Mutex
	wish   cloud.Wish
	info   cloud.Info
	tables map[string]map[netip.Prefix]Entry
	limit  int
	fail   []failure
	writes []string
	opens  int
	busy   bool
	clash  bool
}

type failure struct {
	call string
	err  error
}

// New returns a VPC with empty tables.
func New(info cloud.Info) *Model {
	m := &Model{info: info, tables: map[string]map[netip.Prefix]Entry{}}
	for _, id := range info.Tables {
		m.tables[id] = map[netip.Prefix]Entry{}
	}
	return m
}

// Open is a cloud.Opener: a daemon's restart is one more call of it.
func (m *Model) Open(_ context.Context, w cloud.Wish, _ *slog.Logger) (cloud.VPC, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens++
	if err := m.failing("open"); err != nil {
		return nil, err
	}
	m.wish = w
	return m, nil
}

// Set changes an entry as another user of the VPC does.
func (m *Model) Set(table, prefix string, e Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tables[table][netip.MustParsePrefix(prefix)] = e
}

// Remove removes an entry as another user does.
func (m *Model) Remove(table, prefix string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tables[table], netip.MustParsePrefix(prefix))
}

// SetInfo changes what the VPC says of itself.
func (m *Model) SetInfo(info cloud.Info) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.info = info
	for _, id := range info.Tables {
		if m.tables[id] == nil {
			m.tables[id] = map[netip.Prefix]Entry{}
		}
	}
}

// SetLimit sets how many custom entries a table takes; 0 is no limit.
func (m *Model) SetLimit(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = n
}

// Fail makes the next call fail whose name begins with call: "open", "describe", "observe TABLE",
// "create|replace|delete PREFIX TABLE".
func (m *Model) Fail(call string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = append(m.fail, failure{call, err})
}

func (m *Model) failing(call string) error {
	for i, f := range m.fail {
		if strings.HasPrefix(call, f.call) {
			m.fail = slices.Delete(m.fail, i, i+1)
			return f.err
		}
	}
	return nil
}

// Writes returns what was changed through the API, in order, and forgets it: "create 10.0.0.0/8 via i-1 in vtb-1".
func (m *Model) Writes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.writes
	m.writes = nil
	return w
}

// Opens counts the calls of Open.
func (m *Model) Opens() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opens
}

// Clashed says whether two writes ran at once.
func (m *Model) Clashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clash
}

// String prints all tables, one entry a line, by table and prefix: "vtb-1 10.0.0.0/8 via i-1 fabric:f:s:g".
func (m *Model) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(m.tables)) {
		for _, p := range reconcile.Keys(m.tables[id]) {
			e := m.tables[id][p]
			fmt.Fprintln(&b, strings.TrimSpace(fmt.Sprintf("%s %v via %s %s %s", id, p, e.NextHop, e.Mark, e.Kind)))
		}
	}
	return b.String()
}

// Describe implements cloud.VPC.
func (m *Model) Describe(context.Context) (cloud.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("describe"); err != nil {
		return cloud.Info{}, err
	}
	return m.info, nil
}

// Table implements cloud.VPC.
func (m *Model) Table(id string) cloud.Table { return &table{m, id} }

// Close implements cloud.VPC.
func (m *Model) Close() {}

type table struct {
	m  *Model
	id string
}

func (t *table) Limits() cloud.Limits {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	l := cloud.Limits{Entries: t.m.limit}
	for _, e := range t.m.tables[t.id] {
		if e.Kind == "" && e.Mark != t.m.wish.Mark() {
			l.Foreign++
		}
	}
	return l
}

func (t *table) Observe(ctx context.Context) (map[netip.Prefix]cloud.Route, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := errors.Join(ctx.Err(), t.m.failing("observe "+t.id)); err != nil {
		return nil, err
	}
	own := map[netip.Prefix]cloud.Route{}
	for p, e := range t.m.tables[t.id] {
		if e.Kind == "" && e.Mark == t.m.wish.Mark() {
			own[p] = cloud.Route{NextHop: e.NextHop, State: cloud.Available}
		}
	}
	return own, nil
}

func (t *table) Apply(ctx context.Context, ops []reconcile.Op[netip.Prefix, cloud.Route]) []error {
	t.m.mu.Lock()
	t.m.clash = t.m.clash || t.m.busy
	t.m.busy = true
	t.m.mu.Unlock()
	defer func() {
		t.m.mu.Lock()
		t.m.busy = false
		t.m.mu.Unlock()
	}()
	errs := make([]error, len(ops))
	for i, op := range ops {
		if t.m.Gate != nil {
			select {
			case <-ctx.Done():
			case <-t.m.Gate:
			}
		}
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = t.apply(op)
		}
	}
	return errs
}

func (t *table) apply(op reconcile.Op[netip.Prefix, cloud.Route]) error {
	m := t.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing(fmt.Sprintf("%v %v %s", op.Kind, op.Key, t.id)); err != nil {
		return err
	}
	entries := m.tables[t.id]
	e, there := entries[op.Key]
	own := there && e.Kind == "" && e.Mark == m.wish.Mark()
	switch {
	case op.Kind == reconcile.Delete && !own, op.Kind != reconcile.Delete && own && e.NextHop == op.New.NextHop:
		return nil
	case op.Kind == reconcile.Delete:
		delete(entries, op.Key)
		m.writes = append(m.writes, fmt.Sprintf("delete %v in %s", op.Key, t.id))
		return nil
	case there && !own:
		owner := m.wish.Holder(e.Mark)
		if e.Kind != "" {
			owner = "a " + e.Kind + " route"
		}
		return &reconcile.ForeignError{What: fmt.Sprintf("route entry %v in %s", op.Key, t.id), Owner: owner, Mend: "remove it"}
	}
	custom := 0
	for _, e := range entries {
		if e.Kind == "" {
			custom++
		}
	}
	if !there && m.limit > 0 && custom >= m.limit {
		return cloud.ErrQuota
	}
	entries[op.Key] = Entry{NextHop: op.New.NextHop, Mark: m.wish.Mark()}
	m.writes = append(m.writes, fmt.Sprintf("%v %v %v in %s", op.Kind, op.Key, op.New, t.id))
	return nil
}
