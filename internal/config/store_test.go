package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a state folder and a file, with a clock that moves a second at each look.
type world struct {
	t         *testing.T
	dir, file string
	now       time.Time
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{t: t, dir: filepath.Join(dir, "state"), file: filepath.Join(dir, "fabric.yaml"), now: time.Unix(1700000000, 0).UTC()}
	w.write(example(t))
	return w
}

func (w *world) clock() time.Time {
	w.now = w.now.Add(time.Second)
	return w.now
}

func (w *world) write(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.file, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open() *Store {
	w.t.Helper()
	s, err := Open(w.dir, w.file, "gz-1-gw", WithClock(w.clock))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// restart closes a store and opens it again.
func (w *world) restart(s *Store) *Store {
	w.t.Helper()
	if err := s.Close(); err != nil {
		w.t.Fatal(err)
	}
	return w.open()
}

func commit(t *testing.T, s *Store, ms ...Mutation) *Generation {
	t.Helper()
	p, err := s.Propose(ms...)
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.Commit(p, "tester")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// has says whether the gateway has a prefix in CORE.
func has(d *Document, prefix string) bool {
	_, g, _ := d.Find("gz-1-gw")
	for _, p := range g.VRFs[0].Prefixes {
		if p.Prefix == netip.MustParsePrefix(prefix) {
			return true
		}
	}
	return false
}

func wantNoConflicts(t *testing.T, s *Store) {
	t.Helper()
	if c := s.Conflicts(); len(c) > 0 {
		t.Errorf("conflicts: %v", c)
	}
}

func TestStoreKeepsMutationsOverRestart(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	first := s.Current()
	if first.Number != 1 || first.Kind != KindFile || !first.Time.Equal(w.now) || first.FileHash == "" {
		t.Errorf("first generation is %+v", first)
	}
	wake := s.Subscribe()
	g := commit(t, s, prefixAdd("CORE", "10.9.0.0/16"), peerDo(PeerDisable, "CORE", "core-router"))
	if g.Number != 2 || g.Kind != KindMutation || g.Who != "tester" || g.What != "prefix add 10.9.0.0/16 in CORE, peer disable core-router in CORE" {
		t.Errorf("second generation is %+v", g)
	}
	if !has(g.Document, "10.9.0.0/16") || has(first.Document, "10.9.0.0/16") {
		t.Error("the prefix is not where it belongs")
	}
	commit(t, s, Mutation{Action: SiteDrain})
	select {
	case <-wake:
	default:
		t.Error("a subscriber was not woken")
	}
	select {
	case <-wake:
		t.Error("two commits between two looks are more than one wake")
	default:
	}
	before := s.Current()
	s = w.restart(s)
	if !reflect.DeepEqual(s.Current(), before) {
		t.Errorf("after a restart it is\n%+v\nnot\n%+v", s.Current(), before)
	}
	wantNoConflicts(t, s)
	changed, err := s.Reload()
	if changed || err != nil || s.Current().Number != 3 {
		t.Errorf("reload of the same file: %v, %v", changed, err)
	}
	if g := commit(t, s, Mutation{Action: SiteUndrain}); len(g.Mutations) != 3 || g.Document.Sites[2].Gateways[0].Drained {
		t.Errorf("undrained: %v", g.Mutations)
	}
}

func TestStoreFirstStartNeedsAGoodFile(t *testing.T) {
	w := newWorld(t)
	w.write("fabric: {name: Bad Name}\n")
	var ps Problems
	if _, err := Open(w.dir, w.file, "gz-1-gw"); !errors.As(err, &ps) || len(ps) < 3 {
		t.Errorf("bad file: %v", err)
	}
	w.write(example(t))
	if _, err := Open(w.dir, w.file, "nowhere"); err == nil || !strings.Contains(err.Error(), `gateway "nowhere" is not in the document; it has: sz-1-gw, hk-1-gw, gz-1-gw`) {
		t.Errorf("unknown gateway: %v", err)
	}
	if _, err := Open(w.dir, w.file+".none", "gz-1-gw"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(filepath.Join(w.file, "x"), w.file, "gz-1-gw"); err == nil {
		t.Error("a state folder inside a file was accepted")
	}
	w.open()
}

func TestStoreIsForOneDaemon(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	_, err := Open(w.dir, w.file, "gz-1-gw")
	if want := fmt.Sprintf("is in use by process %d", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second store: %v", err)
	}
	s = w.restart(s)
	s.Close()
	_, err = Open(w.dir, w.file, "sz-1-gw")
	if err == nil || !strings.Contains(err.Error(), `belongs to gateway "gz-1-gw", this is "sz-1-gw"`) {
		t.Errorf("another gateway: %v", err)
	}
}

func TestStoreReplaysMutationsOnAChangedFile(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	commit(t, s, prefixAdd("CORE", "10.9.0.0/16"))
	w.write(replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.30.0.0/16"))
	changed, err := s.Reload()
	g := s.Current()
	if !changed || err != nil || g.Number != 3 || g.Kind != KindFile || len(g.Mutations) != 1 || !has(g.Document, "10.9.0.0/16") {
		t.Fatalf("reload: %v, %v, %+v", changed, err, g)
	}
	if p := g.Document.Sites[1].Gateways[0].VRFs[0].Prefixes[0].Prefix; p.String() != "172.30.0.0/16" {
		t.Errorf("the file's change did not arrive: %s", p)
	}
	// The file now says what the mutation said: the mutation has done its work.
	s.Close()
	w.write(replace(t, example(t), "- prefix: 172.20.0.0/16", "- prefix: 172.20.0.0/16\n              - prefix: 10.9.0.0/16"))
	s = w.open()
	if g := s.Current(); g.Number != 4 || len(g.Mutations) != 0 || !has(g.Document, "10.9.0.0/16") {
		t.Errorf("after a start on the new file: %+v", g)
	}
	wantNoConflicts(t, s)
}

func TestStoreKeepsTheLastGoodGeneration(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	commit(t, s, prefixAdd("CORE", "10.9.0.0/16"))
	commit(t, s, prefixAdd("CORE", "10.8.0.0/16"))
	good := s.Current()
	degraded := func(want string) {
		t.Helper()
		changed, err := s.Reload()
		if changed || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("reload: %v, %v; want %s", changed, err, want)
		}
		for range 2 {
			if !reflect.DeepEqual(s.Current(), good) {
				t.Error("the last good generation is not in force")
			}
			if c := s.Conflicts(); len(c) != 1 || !strings.Contains(c[0], want) {
				t.Errorf("conflicts are %q, want %s", c, want)
			}
			s = w.restart(s)
		}
	}
	w.write("fabric: [")
	degraded("not YAML")
	w.write(strings.ReplaceAll(example(t), "gz-1-gw", "gz-2-gw"))
	degraded(`gateway "gz-1-gw" is not in the document`)
	os.Remove(w.file)
	degraded("no such file")
	conflicting := replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 10.9.4.0/24")
	w.write(conflicting)
	degraded("prefix add 10.9.0.0/16 in CORE: ")

	// Changes go on meanwhile, and the file is still not in force after them.
	good = commit(t, s, Mutation{Action: SiteDrain})
	if len(s.Conflicts()) != 1 {
		t.Errorf("after a change the conflicts are %v", s.Conflicts())
	}
	degraded("prefix add 10.9.0.0/16 in CORE: ")

	p, err := s.Rebase("tester")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(p.What, "drop prefix add 10.9.0.0/16 in CORE: ") || len(p.Mutations) != 2 {
		t.Errorf("rebase proposes %q with %v", p.What, p.Mutations)
	}
	g, err := s.Commit(p, "tester")
	if err != nil || g.Kind != KindRebase || has(g.Document, "10.9.0.0/16") || !has(g.Document, "10.8.0.0/16") {
		t.Errorf("rebased to %+v, %v", g, err)
	}
	wantNoConflicts(t, s)
	s = w.restart(s)
	wantNoConflicts(t, s)
	if s.Current().Number != g.Number {
		t.Error("a restart after a rebase changed something")
	}
	if _, err := s.Rebase("tester"); err == nil {
		t.Error("there was nothing to rebase")
	}
	w.write("fabric: [")
	if _, err := s.Rebase("tester"); err == nil {
		t.Error("rebased on a broken file")
	}
	w.write(conflicting)
	if changed, err := s.Reload(); changed || err != nil {
		t.Errorf("the mended file: %v, %v", changed, err)
	}
	wantNoConflicts(t, s)
}

func TestStoreStaleProposal(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	a, err := s.Propose(prefixAdd("CORE", "10.9.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, prefixAdd("CORE", "10.8.0.0/16"))
	if _, err := s.Commit(a, "tester"); !errors.Is(err, ErrStale) {
		t.Errorf("a stale proposal: %v", err)
	}
	if _, err := s.Commit(&Proposal{Base: 2}, "tester"); err == nil {
		t.Error("a proposal out of nowhere was committed")
	}
	if _, err := s.Propose(); err == nil {
		t.Error("an empty proposal was made")
	}
	if _, err := s.Propose(prefixAdd("CORE", "172.31.9.0/24")); err == nil {
		t.Error("a proposal that is not valid was made")
	}
	if s.Current().Number != 2 {
		t.Errorf("generation is %d", s.Current().Number)
	}
}

func TestStoreRollback(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	commit(t, s, prefixAdd("CORE", "10.9.0.0/16"))
	old := s.Current()
	w.write(replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.30.0.0/16"))
	if _, err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	commit(t, s, prefixDel("CORE", "10.9.0.0/16"))
	p, err := s.Rollback(old.Number, "tester")
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.Commit(p, "tester")
	if err != nil {
		t.Fatal(err)
	}
	if g.Number != 5 || g.Kind != KindRollback || g.What != "back to generation 2" || !reflect.DeepEqual(g.Document, old.Document) {
		t.Errorf("rolled back to %+v", g)
	}
	// The file on disk is not the one in force, and that must survive a restart.
	s = w.restart(s)
	if !reflect.DeepEqual(s.Current(), g) {
		t.Errorf("after a restart: %+v", s.Current())
	}
	wantNoConflicts(t, s)
	// Until it changes.
	w.write(replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.29.0.0/16"))
	if changed, err := s.Reload(); !changed || err != nil || !has(s.Current().Document, "10.9.0.0/16") {
		t.Errorf("reload after a rollback: %v, %v", changed, err)
	}
	if _, err := s.Rollback(99, "tester"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("rollback to nowhere: %v", err)
	}
}

func TestStoreHistory(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	w.write(replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.30.0.0/16"))
	if _, err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	for range keepGenerations {
		commit(t, s, Mutation{Action: SiteDrain})
		commit(t, s, Mutation{Action: SiteUndrain})
	}
	for range 2 {
		list, err := s.History()
		if err != nil || len(list) != keepGenerations || len(list) < 100 {
			t.Fatalf("%d generations, %v", len(list), err)
		}
		last := uint64(2 + 2*keepGenerations)
		for i, g := range list {
			if g.Number != last-uint64(i) || g.Document != nil || g.Who != "tester" {
				t.Fatalf("entry %d is %+v", i, g)
			}
		}
		if _, err := s.Generation(1); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a forgotten generation: %v", err)
		}
		g, err := s.Generation(last - 1)
		if err != nil || !g.Document.Sites[2].Gateways[0].Drained {
			t.Errorf("a kept generation: %+v, %v", g, err)
		}
		s = w.restart(s)
	}
	// The first file is no longer needed and gone.
	files, _ := filepath.Glob(filepath.Join(w.dir, "files", "*"))
	if len(files) != 1 {
		t.Errorf("files kept: %v", files)
	}
}

func TestStoreDiff(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	commit(t, s, prefixAdd("CORE", "10.9.0.0/16"))
	commit(t, s, prefixAdd("CORE", "10.8.0.0/16"))
	for _, c := range []struct {
		a, b    uint64
		want    []string
		wantNot string
	}{
		{1, 2, []string{"--- generation 1\n+++ generation 2\n", "\n+              - prefix: 10.9.0.0/16\n"}, "10.8"},
		{2, 1, []string{"\n-              - prefix: 10.9.0.0/16\n"}, "10.8"},
		{0, 0, []string{"--- " + w.file + "\n+++ generation 3\n", "+              - prefix: 10.9", "+              - prefix: 10.8"}, "\n-  "},
		{3, 0, []string{""}, "@@"},
	} {
		got, err := s.Diff(c.a, c.b)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("diff of %d and %d lacks %q:\n%s", c.a, c.b, want, got)
			}
		}
		if strings.Contains(got, c.wantNot) {
			t.Errorf("diff of %d and %d has %q:\n%s", c.a, c.b, c.wantNot, got)
		}
	}
	for _, c := range [][2]uint64{{9, 0}, {0, 9}} {
		if _, err := s.Diff(c[0], c[1]); err == nil {
			t.Errorf("diff of %v", c)
		}
	}
	w.write("x")
	if _, err := s.Diff(0, 0); err == nil {
		t.Error("diff with a broken file")
	}
	os.Remove(w.file)
	if _, err := s.Diff(0, 0); err == nil {
		t.Error("diff with no file")
	}
}

// A document that is valid but does not compile on this host is kept out like an invalid one, at start and later.
func TestCheckKeepsOut(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "fabric.yaml")
	if err := os.WriteFile(file, []byte(example(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	refuse := errors.New("two VRFs share a route distinguisher")
	bad := WithCheck(func(*Document) error { return refuse })
	if s, err := Open(dir, file, "sz-1-gw", bad); !errors.Is(err, refuse) {
		t.Fatalf("opened %v, error %v", s, err)
	}
	var verdict error
	s, err := Open(dir, file, "sz-1-gw", WithCheck(func(*Document) error { return verdict }))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	verdict = refuse
	if err := os.WriteFile(file, []byte(strings.Replace(example(t), "name: demo", "name: other", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := s.Reload(); changed || !errors.Is(err, refuse) {
		t.Errorf("reload: %v, %v", changed, err)
	}
	if s.Current().Number != 1 || !slices.Contains(s.Conflicts(), refuse.Error()) {
		t.Errorf("generation %d, conflicts %q", s.Current().Number, s.Conflicts())
	}
}
