package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is an edge in memory. Values that begin with "theirs" are somebody else's.
type world struct {
	mu       sync.Mutex
	have     map[string]string
	observes int
	applies  [][]string
	observe  error            // what the next Observe returns, once
	fail     map[string]error // what an op on a key returns, until taken away
}

func newWorld(pairs ...string) *world {
	w := &world{have: map[string]string{}, fail: map[string]error{}}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		w.have[k] = v
	}
	return w
}

func (w *world) Observe(context.Context) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.observes++
	if err := w.observe; err != nil {
		w.observe = nil
		return nil, err
	}
	ours := map[string]string{}
	for k, v := range w.have {
		if !strings.HasPrefix(v, "theirs") {
			ours[k] = v
		}
	}
	return ours, nil
}

func (w *world) Apply(_ context.Context, ops []Op[string, string]) []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var log []string
	errs := make([]error, len(ops))
	for i, op := range ops {
		log = append(log, op.String())
		switch {
		case w.fail[op.Key] != nil:
			errs[i] = w.fail[op.Key]
		case strings.HasPrefix(w.have[op.Key], "theirs"):
			errs[i] = &ForeignError{What: op.Key, Owner: "them", Mend: "ask"}
		case op.Kind == Delete:
			delete(w.have, op.Key)
		default:
			w.have[op.Key] = op.New
		}
	}
	w.applies = append(w.applies, log)
	return errs
}

func (w *world) holds() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return printed(w.have)
}

// log returns what was applied since the last call.
func (w *world) log() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Concat(w.applies...)
	w.applies = nil
	return all
}

func printed(m map[string]string) string {
	var s []string
	for _, k := range Keys(m) {
		s = append(s, k+"="+m[k])
	}
	return strings.Join(s, " ")
}

// wish is what Want returns.
type wish struct {
	mu       sync.Mutex
	want     map[string]string
	complete bool
}

func wanted(pairs ...string) *wish {
	w := &wish{complete: true}
	w.set(pairs...)
	return w
}

func (w *wish) set(pairs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want = newWorld(pairs...).have
}

func (w *wish) get() (map[string]string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.want), w.complete
}

func loop(e Edge[string, string], w *wish, change ...func(*Config[string, string])) *Loop[string, string] {
	cfg := Config[string, string]{Name: "things", Edge: e, Want: w.get, Backoff: Backoff{time.Millisecond, 8 * time.Millisecond}}
	for _, c := range change {
		c(&cfg)
	}
	return NewLoop(cfg)
}

func pass(t *testing.T, l *Loop[string, string]) {
	t.Helper()
	if err := l.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s:\n got %s\nwant %s", what, g, w)
	}
}

func TestPass(t *testing.T) {
	w, wish := newWorld("a=1", "b=1", "z=1", "theirs=theirs"), wanted("a=1", "b=2", "c=1")
	l := loop(w, wish)
	ops, err := l.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "plan", ops, "[replace b: 2, was 1 create c: 1 delete z: was 1]")
	same(t, "the plan changed the world", w.holds(), "a=1 b=1 theirs=theirs z=1")
	if l.InSync() {
		t.Error("in sync before the first pass")
	}
	pass(t, l)
	same(t, "applied", w.log(), "[replace b: 2, was 1 create c: 1 delete z: was 1]")
	same(t, "world", w.holds(), "a=1 b=2 c=1 theirs=theirs")
	if !l.InSync() {
		t.Error("not in sync after a pass")
	}
	pass(t, l)
	same(t, "second pass", w.log(), "[]")
}

// A failed observation deletes nothing, and neither does an empty world or an edge that answers nonsense.
func TestObserveFails(t *testing.T) {
	w, wish := newWorld("a=1", "b=1"), wanted("a=2")
	l := loop(w, wish)
	w.observe = errors.New("interrupted")
	if err := l.Pass(t.Context()); err == nil || !strings.Contains(err.Error(), "things: observe: interrupted") {
		t.Errorf("error %v", err)
	}
	same(t, "applied", w.log(), "[]")
	if s := l.Summary(); s.InSync || s.Err == "" || !s.LastObserve.IsZero() {
		t.Errorf("summary %+v", s)
	}
	w.observe = errors.New("interrupted")
	if _, err := l.Plan(t.Context()); err == nil {
		t.Error("plan of an unknown world")
	}
	pass(t, l)
	same(t, "world", w.holds(), "a=2")
	// Later failures leave the memory of the world: patches go on.
	w.observe = errors.New("interrupted")
	_ = l.Pass(t.Context())
	if l.InSync() {
		t.Error("in sync after a failed observation")
	}
	wish.set("a=2", "c=1")
	l.Patch(map[string]string{"c": "1"})
	if _, err := l.run(t.Context(), false); err != nil {
		t.Error(err)
	}
	same(t, "world", w.holds(), "a=2 c=1")
}

type shortEdge struct{ *world }

func (shortEdge) Apply(context.Context, []Op[string, string]) []error { return nil }

func TestResultsMissing(t *testing.T) {
	l := loop(shortEdge{newWorld()}, wanted("a=1"))
	if err := l.Pass(t.Context()); err == nil || !strings.Contains(err.Error(), "0 results for 1 steps") {
		t.Errorf("error %v", err)
	}
	if l.InSync() || l.Status()["a"].Synced {
		t.Error("in sync without a result")
	}
}

// Before the wish is complete only that goes which was seen wanted and withdrawn.
func TestIncomplete(t *testing.T) {
	w, wish := newWorld("old=1", "a=1", "b=1"), wanted("a=1", "b=1", "c=1")
	wish.complete = false
	l := loop(w, wish)
	pass(t, l)
	same(t, "nothing pruned", w.holds(), "a=1 b=1 c=1 old=1")
	if s := l.Summary(); !s.InSync || s.Waiting != 1 {
		t.Errorf("summary %+v", s)
	}
	wish.set("c=1")
	l.Patch(nil, "a")
	if _, err := l.run(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	same(t, "patched away", w.holds(), "b=1 c=1 old=1")
	ops, err := l.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "plan", ops, "[delete b: was 1]")
	pass(t, l)
	same(t, "withdrawn", w.holds(), "c=1 old=1")
	// Withdrawn and observed in one go, and failing at first: the proof is not forgotten.
	wish.set()
	w.fail["c"] = errors.New("busy")
	l.Patch(nil, "c")
	if err := l.Pass(t.Context()); err == nil {
		t.Error("no error")
	}
	delete(w.fail, "c")
	pass(t, l)
	same(t, "after a failure", w.holds(), "old=1")
	wish.complete = true
	pass(t, l)
	same(t, "complete", w.holds(), "")
}

// A patch costs no observation.
func TestPatch(t *testing.T) {
	w, wish := newWorld(), wanted("a=1", "b=1", "c=1")
	l := loop(w, wish)
	pass(t, l)
	w.log()
	before := w.observes
	steps := []struct {
		set  map[string]string
		gone []string
		want string
	}{
		{map[string]string{"a": "2"}, nil, "[replace a: 2, was 1]"},
		{map[string]string{"d": "1"}, []string{"b"}, "[create d: 1 delete b: was 1]"},
		{map[string]string{"a": "2"}, nil, "[]"},
		{nil, []string{"b", "never"}, "[]"},
		{map[string]string{"b": "3"}, nil, "[create b: 3]"},
		{nil, nil, "[]"},
	}
	for _, s := range steps {
		l.Patch(s.set, s.gone...)
		if _, err := l.run(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("patch %v, gone %v", s.set, s.gone), w.log(), s.want)
	}
	if w.observes != before {
		t.Errorf("%d observations for patches", w.observes-before)
	}
	same(t, "world", w.holds(), "a=2 b=3 c=1 d=1")
	// The full pass trusts Want, which has the patches.
	wish.set("a=2", "b=3", "c=1", "d=1")
	pass(t, l)
	same(t, "after a full pass", w.log(), "[]")
}

// What came by a patch and went by another before any pass was wanted: it is deleted though the wish is not complete.
func TestPatchedAwayBeforeAPass(t *testing.T) {
	for _, full := range []bool{true, false} {
		w, wish := newWorld("a=1", "old=1"), wanted()
		wish.complete = false
		l := loop(w, wish)
		if !full {
			pass(t, l)
		}
		l.Patch(map[string]string{"a": "1"})
		l.Patch(nil, "a", "old")
		l.Patch(nil, "a")
		if _, err := l.run(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("full %v", full), w.holds(), "old=1")
	}
}

// Foreign objects are reported, left alone, and tried again by Pass, at a change of the wish and at Resync, but not on a wake.
// What is there and not as wanted is told, and whether that is all there is to know.
func TestStrays(t *testing.T) {
	w := newWorld("a=1", "b=1", "c=1")
	w.fail["a"] = errors.New("no")
	l := NewLoop(Config[string, string]{Name: "test", Edge: w, Want: func() (map[string]string, bool) {
		return map[string]string{"a": "2", "b": "2", "d": "1"}, false
	}})
	check := func(what, want string, whole bool) {
		t.Helper()
		strays := map[string]string{}
		if is := l.Strays(func(k, v string) { strays[k] = v }); is != whole || printed(strays) != want {
			t.Errorf("%s: %s, whole %v; want %s, %v", what, printed(strays), is, want, whole)
		}
	}
	check("before any pass", "", false)
	_ = l.Pass(t.Context())
	check("one fails, one waits for the wish to be complete", "a=1 c=1", true)
	l.Patch(map[string]string{"b": "3"})
	check("a change is pending", "a=1 c=1", false)
	_ = l.Pass(t.Context())
	check("and done", "a=1 c=1", true)
	l.Wake()
	check("a pass was asked for", "a=1 c=1", false)
}

func TestForeign(t *testing.T) {
	w, wish := newWorld("a=theirs"), wanted("a=1", "b=1")
	l := loop(w, wish)
	tries := func(retry bool) int {
		l.mark()
		_, err := l.run(t.Context(), retry)
		var f *ForeignError
		if !errors.As(err, &f) || !patient(err) {
			t.Errorf("error %v, want a ForeignError", err)
		}
		return len(w.log())
	}
	if n := tries(true); n != 2 {
		t.Errorf("first pass: %d steps, want 2", n)
	}
	if n := tries(false); n != 0 {
		t.Errorf("a wake: %d steps, want 0", n)
	}
	if n := tries(true); n != 1 {
		t.Errorf("resync: %d steps, want 1", n)
	}
	wish.set("a=2", "b=1")
	if n := tries(false); n != 1 {
		t.Errorf("another wish: %d steps, want 1", n)
	}
	same(t, "world", w.holds(), "a=theirs b=1")
	s := l.Status()
	if s["a"].Synced || !strings.Contains(s["a"].Err, "is not ours (them): left untouched; ask") || !s["b"].Synced {
		t.Errorf("status %+v", s)
	}
	if s := l.Summary(); s.Failed != 1 || s.Foreign != 1 || s.Synced != 1 || s.Wanted != 2 || s.InSync {
		t.Errorf("summary %+v", s)
	}
	delete(w.have, "a")
	pass(t, l)
	if !l.InSync() {
		t.Errorf("after they left: %+v", l.Summary())
	}
}

func TestStatusSince(t *testing.T) {
	now := time.Unix(1000, 0)
	w, wish := newWorld(), wanted("a=1", "b=1")
	l := loop(w, wish, func(c *Config[string, string]) { c.Now = func() time.Time { return now } })
	at := func(k string, synced bool, since int64) {
		t.Helper()
		s, ok := l.Object(k)
		if !ok || s.Synced != synced || s.Since.Unix() != since {
			t.Errorf("%s: %+v (%v), want synced %v since %d", k, s, ok, synced, since)
		}
	}
	w.fail["b"] = errors.New("busy")
	_ = l.Pass(t.Context())
	at("a", true, 1000)
	at("b", false, 1000)
	now = time.Unix(2000, 0)
	delete(w.fail, "b")
	pass(t, l)
	at("a", true, 1000)
	at("b", true, 2000)
	now = time.Unix(3000, 0)
	delete(w.have, "a")
	w.fail["a"] = errors.New("busy")
	_ = l.Pass(t.Context())
	at("a", false, 3000)
	now = time.Unix(4000, 0)
	_ = l.Pass(t.Context())
	at("a", false, 3000)
	delete(w.fail, "a")
	l.Patch(map[string]string{"b": "2"})
	now = time.Unix(5000, 0)
	pass(t, l)
	at("a", true, 5000)
	if _, ok := l.Object("never"); ok {
		t.Error("an object that never was")
	}
}

// waitFor waits for a state, not for a duration.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRun(t *testing.T) {
	w, wish := newWorld("z=1"), wanted("a=1")
	w.observe = errors.New("interrupted")
	w.fail["a"] = errors.New("busy")
	l := loop(w, wish)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	waitFor(t, "a failure", func() bool { return l.Status()["a"].Err == "busy" })
	same(t, "the rest was done", w.holds(), "")
	w.mu.Lock()
	delete(w.fail, "a")
	w.mu.Unlock()
	waitFor(t, "a retry without a wake", l.InSync)
	same(t, "world", w.holds(), "a=1")
	wish.set("a=1", "b=1")
	l.Wake()
	waitFor(t, "a wake to be answered", l.InSync)
	same(t, "world", w.holds(), "a=1 b=1")
	wish.set("a=1", "b=2")
	l.Patch(map[string]string{"b": "2"})
	waitFor(t, "a patch to be answered", l.InSync)
	same(t, "world", w.holds(), "a=1 b=2")
	// A patch that fails is tried again by a full pass.
	w.mu.Lock()
	w.fail["b"] = errors.New("busy")
	w.mu.Unlock()
	wish.set("a=1", "b=3")
	l.Patch(map[string]string{"b": "3"})
	waitFor(t, "a failure", func() bool { return l.Status()["b"].Err == "busy" })
	w.mu.Lock()
	delete(w.fail, "b")
	w.mu.Unlock()
	waitFor(t, "a retry of the patch", l.InSync)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v on cancel", err)
	}
	same(t, "the end tore nothing down", w.holds(), "a=1 b=3")
}

func TestResync(t *testing.T) {
	w, wish := newWorld(), wanted("a=1")
	l := loop(w, wish, func(c *Config[string, string]) { c.Resync = 5 * time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	waitFor(t, "the first pass", l.InSync)
	w.mu.Lock()
	w.have["a"] = "drifted"
	w.mu.Unlock()
	waitFor(t, "drift to be repaired", func() bool { return w.holds() == "a=1" })
	cancel()
	<-done
}

func TestBackoff(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 5 * time.Second}
	for n, want := range map[int]time.Duration{1: 1, 2: 2, 3: 4, 4: 5, 1000: 5} {
		if got := b.wait(n); got != want*time.Second {
			t.Errorf("after %d failures: %v, want %v", n, got, want*time.Second)
		}
	}
}

// A hundred thousand refused objects make a readable error.
func TestManyErrors(t *testing.T) {
	w, wish := newWorld(), wanted()
	for i := range 50 {
		k := fmt.Sprintf("k%02d", i)
		wish.want[k] = "1"
		w.fail[k] = errors.New("no " + k)
	}
	err := loop(w, wish).Pass(t.Context())
	if err == nil || strings.Count(err.Error(), "no k") != 10 || !strings.Contains(err.Error(), "and 40 errors more") {
		t.Errorf("error %v", err)
	}
}

// TestRandom plays wishes, patches, drift, failures and passes in any order; in the end a pass makes all as wanted and nothing
// of theirs was touched.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w, wish := newWorld(), wanted()
		wish.complete = false
		parts := func(c *Config[string, string]) { c.Part = func(k string) uint32 { return uint32(k[0]) % 2 } }
		l := loop(w, wish, parts)
		key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		value := rapid.SampledFrom([]string{"1", "2", "3"})
		seen := map[string]bool{} // keys that were ever wanted
		actions := map[string]func(*rapid.T){
			"patch": func(rt *rapid.T) {
				k, v := key.Draw(rt, "key"), value.Draw(rt, "value")
				wish.want[k], seen[k] = v, true
				l.Patch(map[string]string{k: v})
			},
			"gone": func(rt *rapid.T) {
				k := key.Draw(rt, "key")
				delete(wish.want, k)
				l.Patch(nil, k)
			},
			"wish": func(rt *rapid.T) {
				k, v := key.Draw(rt, "key"), value.Draw(rt, "value")
				wish.want[k], seen[k] = v, true
				l.Wake()
			},
			"drift": func(rt *rapid.T) {
				if k := key.Draw(rt, "key"); !strings.HasPrefix(w.have[k], "theirs") {
					w.have[k] = value.Draw(rt, "value")
				}
				l.Wake()
			},
			"loss": func(rt *rapid.T) {
				if k := key.Draw(rt, "key"); !strings.HasPrefix(w.have[k], "theirs") {
					delete(w.have, k)
				}
				l.Wake()
			},
			"theirs": func(rt *rapid.T) {
				k := key.Draw(rt, "key")
				if _, there := w.have[k]; !there {
					w.have[k] = "theirs"
				}
			},
			"fail":    func(rt *rapid.T) { w.fail[key.Draw(rt, "key")] = errors.New("busy") },
			"mend":    func(*rapid.T) { clear(w.fail) },
			"blind":   func(*rapid.T) { w.observe = errors.New("interrupted") },
			"pass":    func(*rapid.T) { _, _ = l.run(context.Background(), false) },
			"full":    func(*rapid.T) { _ = l.Pass(context.Background()) },
			"restart": func(*rapid.T) { l = loop(w, wish, parts); clear(seen) },
			"": func(rt *rapid.T) {
				for _, op := range w.log() {
					k, _, _ := strings.Cut(strings.TrimPrefix(op, "delete "), ":")
					if strings.HasPrefix(op, "delete") && !seen[k] {
						rt.Fatalf("%s: nobody had wanted it, and the wish is not complete", op)
					}
				}
				for k := range wish.want {
					seen[k] = true
				}
				checkSurvey(rt, l)
			},
		}
		rt.Repeat(actions)
		clear(w.fail)
		w.observe = nil
		theirs := map[string]bool{}
		for k, v := range w.have {
			theirs[k] = v == "theirs"
		}
		wish.complete = true
		err := l.Pass(context.Background())
		want := maps.Clone(wish.want)
		for k, is := range theirs {
			if is {
				if _, clash := want[k]; clash != (err != nil && l.Status()[k].Err != "") {
					rt.Errorf("%s is theirs, wanted %v, error %v", k, clash, err)
				}
				want[k] = "theirs"
			}
		}
		if got := w.holds(); got != printed(want) {
			rt.Errorf("world %q, want %q", got, printed(want))
		}
		for k, s := range l.Status() {
			if _, wanted := wish.want[k]; s.Synced != (wanted && !theirs[k]) {
				rt.Errorf("status of %s: %+v", k, s)
			}
		}
		w.log()
		_ = l.Pass(context.Background())
		for _, op := range w.log() {
			if k := strings.Fields(op)[1]; !theirs[strings.TrimSuffix(k, ":")] {
				rt.Errorf("second pass: %s", op)
			}
		}
	})
}

// checkSurvey compares what Survey counts and tells with the status of every object.
func checkSurvey(rt *rapid.T, l *Loop[string, string]) {
	others := map[string]Status{}
	got := l.Survey(func(k string, s Status) { others[k] = s })
	want := map[uint32]int{}
	for k, s := range l.Status() {
		if s.Synced {
			want[l.cfg.Part(k)]++
			continue
		}
		if others[k] != s {
			rt.Fatalf("survey tells %s: %+v, status %+v", k, others[k], s)
		}
		delete(others, k)
	}
	for part, n := range got {
		if n != want[part] {
			rt.Fatalf("survey counts %v, status %v", got, want)
		}
		delete(want, part)
	}
	if len(others) > 0 || len(want) > 0 {
		rt.Fatalf("survey tells %v that status has not, and leaves out %v", others, want)
	}
}
