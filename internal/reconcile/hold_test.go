package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestMassDelete(t *testing.T) {
	var have []string
	for i := range 20 {
		have = append(have, fmt.Sprintf("k%02d=1", i))
	}
	w, wish := newWorld(have...), wanted(append(have[:8:8], "new=1")...)
	l := loop(w, wish, func(c *Config[string, string]) { c.MassDelete = 0.5 })
	err := l.Pass(t.Context())
	if !errors.Is(err, ErrHeld) || !patient(err) {
		t.Errorf("error %v, want ErrHeld", err)
	}
	same(t, "applied", w.log(), "[create new: 1]")
	if s := l.Summary(); s.Held != 12 || s.InSync {
		t.Errorf("summary %+v", s)
	}
	// Asked for again one by one, they are held as one, and counted once.
	var gone []string
	for _, o := range have[8:] {
		k, _, _ := strings.Cut(o, "=")
		gone = append(gone, k)
	}
	l.Patch(nil, gone...)
	if _, err := l.run(t.Context(), false); !errors.Is(err, ErrHeld) {
		t.Errorf("error %v, want ErrHeld after a patch", err)
	}
	if s := l.Summary(); s.Held != 12 {
		t.Errorf("%d are held after a patch, want 12", s.Held)
	}
	l.Approve()
	pass(t, l)
	if n := len(w.log()); n != 12 {
		t.Errorf("%d deletes after approval, want 12", n)
	}
	// An approval is for one pass.
	wish.set()
	if err := l.Pass(t.Context()); !errors.Is(err, ErrHeld) {
		t.Errorf("error %v, want ErrHeld again", err)
	}
	// Few may always go.
	wish.set(append(have[:4:4], "new=1")...)
	pass(t, l)
}

// An operator who approves while the pass that held the deletes still writes the rest is heard, and so is one whose pass
// could not observe.
func TestApproveDuringPass(t *testing.T) {
	var have []string
	for i := range 20 {
		have = append(have, fmt.Sprintf("k%02d=1", i))
	}
	w, wish := newWorld(have...), wanted("new=1")
	var l *Loop[string, string]
	var writing sync.Once
	e := &hooked{world: w, before: func() {
		writing.Do(func() {
			if n := l.Summary().Held; n != 20 {
				t.Errorf("%d are held while the rest is written, want 20", n)
			}
			l.Approve()
		})
	}}
	l = loop(e, wish, func(c *Config[string, string]) { c.MassDelete = 0.5 })
	if err := l.Pass(t.Context()); !errors.Is(err, ErrHeld) {
		t.Errorf("error %v, want ErrHeld", err)
	}
	w.observe = errors.New("busy")
	if err := l.Pass(t.Context()); err == nil {
		t.Error("the pass that could not observe tells no error")
	}
	pass(t, l)
	same(t, "world", w.holds(), "new=1")
	// And for that pass only.
	w.have = newWorld(have...).have
	if err := l.Pass(t.Context()); !errors.Is(err, ErrHeld) {
		t.Errorf("error %v, want ErrHeld again", err)
	}
}

// hooked calls before ahead of each Apply.
type hooked struct {
	*world
	before func()
}

func (h *hooked) Apply(ctx context.Context, ops []Op[string, string]) []error {
	h.before()
	return h.world.Apply(ctx, ops)
}
