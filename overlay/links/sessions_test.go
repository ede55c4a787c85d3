package links

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"fabric/overlay"
	"fabric/overlay/bfd"
)

// Peers' sessions: each with its own problem, the others go on.
func TestPeerSessions(t *testing.T) {
	w, e, f := runningBFD(t)
	key := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	session := func(name, remote, auth, file string) overlay.Session {
		return overlay.Session{
			BFD: overlay.BFD{IntervalMs: 300, Multiplier: 3}, Name: name, VRF: "CORE", Peer: name, Interface: "eth0",
			Local: readAddr("192.0.2.1"), Remote: readAddr(remote), Auth: auth, KeyID: 5, KeyFile: file,
		}
	}
	good := key("good", "s3cret-phrase\n", 0o600)
	p := bfdPlan()
	p.Sessions = []overlay.Session{
		session("CORE/plain", "192.0.2.2", "", ""),
		session("CORE/sha1", "192.0.2.3", "sha1", good),
		session("CORE/missing", "192.0.2.4", "sha1", "/nonexistent/key"),
		session("CORE/open", "192.0.2.5", "meticulous-sha1", key("open", "x", 0o644)),
		session("CORE/empty", "192.0.2.6", "simple", key("empty", "\n", 0o600)),
		session("CORE/long", "192.0.2.7", "simple", key("long", strings.Repeat("x", 40), 0o600)),
		session("CORE/md5", "192.0.2.8", "md5", good),
		session("CORE/twice", "192.0.2.2", "", ""),
		session("CORE/slow", "192.0.2.9", "", ""),
	}
	p.Sessions[8].IntervalMs = 1
	w.take(e, p)
	problems := map[string]string{}
	for _, o := range e.State().Problems {
		problems[o.Name] = o.Message
		if o.Kind != kindSession || strings.Contains(o.Message, "s3cret") {
			t.Errorf("problem %+v", o)
		}
	}
	for name, want := range map[string]string{
		"CORE/missing": "no such file", "CORE/open": "chmod 600", "CORE/empty": "is empty", "CORE/long": "40",
		"CORE/md5": "want simple, sha1", "CORE/twice": "same path", "CORE/slow": "1ms",
	} {
		if !strings.Contains(problems[name], want) {
			t.Errorf("%s: problem is %q, want %q", name, problems[name], want)
		}
		delete(problems, name)
	}
	if len(problems) > 0 {
		t.Errorf("more problems: %q", problems)
	}
	var names []string
	for _, c := range f.order {
		names = append(names, c.Name)
	}
	if want := []string{"a/b/0", "a/b/1", "CORE/plain", "CORE/sha1"}; !reflect.DeepEqual(names, want) {
		t.Errorf("configured are %q", names)
	}
	if a := f.order[3].Auth; a.Type != bfd.KeyedSHA1 || a.Keys[0].ID != 5 || string(a.Keys[0].Secret) != "s3cret-phrase" || !f.order[3].Independent {
		t.Errorf("authentication is %+v", a)
	}
	states := e.State().Sessions
	if len(states) != 11 || states[0].Device != b0 || states[2].Peer != "CORE/plain" || states[4].Problem == "" || states[4].State != "down" {
		t.Errorf("sessions are %+v", states)
	}
	// Nothing has changed: nothing is configured. A key that is mended is taken up by itself.
	asked := f.asked
	w.settle(e)
	if f.asked != asked {
		t.Error("configured again")
	}
	if err := os.Chmod(p.Sessions[3].KeyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	w.settle(e)
	if len(f.order) != 5 {
		t.Errorf("configured are %+v", f.order)
	}
	// A change of a peer's session touches no route and is told before the pass.
	before := len(w.k.Applied())
	f.turn("eth0", bfd.Up, bfd.Up)
	select {
	case <-e.urgent:
	default:
		t.Error("no wake")
	}
	e.publishSessions()
	up := 0
	for _, s := range e.State().Sessions[2:] {
		if s.State == Up {
			up++
		}
	}
	if steps := w.k.Applied()[before:]; len(steps) > 0 || up == 0 {
		t.Errorf("steps %q, %d up", steps, up)
	}
}

// freeLog fails the test where something is logged while the repair table is held.
type freeLog struct {
	slog.Handler
	t *testing.T
	r *repair
}

// Handle implements slog.Handler.
func (l freeLog) Handle(_ context.Context, m slog.Record) error {
	if !l.r.mu.TryLock() {
		l.t.Errorf("%q is logged while the BFD engine's thread would have to wait", m.Message)
		return nil
	}
	l.r.mu.Unlock()
	return nil
}

func TestNothingIsLoggedWhileTheRepairTableIsHeld(t *testing.T) {
	w := newWorld(t)
	e, f := w.withBFD()
	e.cfg.Log = slog.New(freeLog{slog.NewTextHandler(io.Discard, nil), t, e.repair})
	w.take(e, hubPlan("b", "c"))
	w.allUp()
	w.settle(e)
	f.up(b0, b1, c0)
	f.crossUp()
	w.settle(e)
	if err := e.drain(t.Context(), b0, true); err != nil {
		t.Fatal(err)
	}
	f.down(b1)
	f.signaled()
	w.settle(e)
}
