package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// listFiles returns the paths and contents of all files under a folder.
func listFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Each step of a commit fails once. Every time the old generation stays, on disk as well, no rest is left behind, and
// the same commit works afterwards.
func TestCommitSurvivesAFailureOfEachStep(t *testing.T) {
	changedFile := replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.30.0.0/16")
	full := func(n int) (func(string) error, *int) {
		count := 0
		return func(string) error {
			if count++; count == n {
				return syscall.ENOSPC
			}
			return nil
		}, &count
	}
	for _, kind := range []string{KindMutation, KindFile} {
		for n := 1; ; n++ {
			w := newWorld(t)
			s := w.open()
			commit(t, s, prefixAdd("CORE", "10.8.0.0/16"))
			old, files := s.Current(), listFiles(t, w.dir)
			attempt := func() error {
				if kind == KindFile {
					w.write(changedFile)
					_, err := s.Reload()
					return err
				}
				p, err := s.Propose(prefixAdd("CORE", "10.9.0.0/16"))
				if err != nil {
					t.Fatal(err)
				}
				_, err = s.Commit(p, "tester")
				return err
			}
			fail, count := full(n)
			s.archive.disk.before = fail
			wake := s.Subscribe()
			err := attempt()
			if *count < n {
				if err != nil || n < 6 {
					t.Fatalf("%s: %d steps, %v", kind, n-1, err)
				}
				break // all steps have had their turn
			}
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "what was there is untouched") {
				t.Fatalf("%s: step %d: error is %v", kind, n, err)
			}
			if s.Current() != old || !reflect.DeepEqual(listFiles(t, w.dir), files) || len(wake) > 0 {
				t.Errorf("%s: step %d: something has changed", kind, n)
			}
			if kind == KindFile && len(s.Conflicts()) != 1 {
				t.Errorf("%s: step %d: conflicts are %v", kind, n, s.Conflicts())
			}
			if err := attempt(); err != nil {
				t.Errorf("%s: step %d: again: %v", kind, n, err)
			}
			wantNoConflicts(t, s)
			want := s.Current()
			if s = w.restart(s); want.Number != 3 || !reflect.DeepEqual(s.Current(), want) {
				t.Errorf("%s: step %d: after a restart generation %d", kind, n, s.Current().Number)
			}
		}
	}
}

// A real file system without room: a small tmpfs in a mount namespace of our own, filled to the last page.
func TestCommitOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	w := newWorld(t)
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread and its namespace end with this goroutine
		if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
			syscall.Mount("tmpfs", w.dir, "tmpfs", 0, "size=256k")); err != nil {
			t.Errorf("mount: %v", err)
			return
		}
		s, err := Open(w.dir, w.file, "gz-1-gw")
		if err != nil {
			t.Errorf("open: %v", err)
			return
		}
		defer s.Close()
		fillDisk(t, filepath.Join(w.dir, "ballast"))
		old := s.Current()
		p, err := s.Propose(prefixAdd("CORE", "10.9.0.0/16"))
		if err != nil {
			t.Errorf("propose: %v", err)
			return
		}
		if _, err = s.Commit(p, "tester"); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("commit on a full disk: %v", err)
		}
		if s.Current() != old {
			t.Error("the old generation is not in force")
		}
		s.Close()
		if s, err = Open(w.dir, w.file, "gz-1-gw"); err != nil || s.Current().Number != 1 {
			t.Errorf("a start on the full disk: %v", err)
			return
		}
		os.Remove(filepath.Join(w.dir, "ballast"))
		if p, err = s.Propose(prefixAdd("CORE", "10.9.0.0/16")); err == nil {
			_, err = s.Commit(p, "tester")
		}
		if err != nil || s.Current().Number != 2 {
			t.Errorf("commit after making room: %v", err)
		}
		s.Close()
	}()
	<-done
}

// fillDisk writes a file until there is no room.
func fillDisk(t *testing.T, path string) {
	f, err := os.Create(path)
	if err != nil {
		t.Errorf("fill: %v", err)
		return
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fill: %v", err)
	}
}

// What a crash or a bad disk may leave in the state folder.
func TestStoreReadsADamagedFolder(t *testing.T) {
	path := func(w *world, n uint64) string { return (&archive{folder: w.dir}).recordPath(n) }
	cases := []struct {
		name   string
		damage func(t *testing.T, w *world)
		want   string
	}{
		{"truncated record", func(t *testing.T, w *world) { writeFile(t, path(w, 3), `{"version":1,`) }, "unexpected end of JSON input; remove the file"},
		{"record of another version", func(t *testing.T, w *world) { writeFile(t, path(w, 3), `{"version":9}`) }, "has form 9, this program knows 1"},
		{"record under another name", func(t *testing.T, w *world) {
			data, _ := os.ReadFile(path(w, 2))
			writeFile(t, path(w, 3), string(data))
		}, "is not what its name says"},
		{"changed file", func(t *testing.T, w *world) {
			files, _ := filepath.Glob(filepath.Join(w.dir, "files", "*"))
			for _, f := range files {
				if data, _ := os.ReadFile(f); strings.Contains(string(data), "172.30.0.0/16") {
					writeFile(t, f, "fabric: {}")
				}
			}
		}, "was changed on disk"},
		{"lost file", func(t *testing.T, w *world) {
			files, _ := filepath.Glob(filepath.Join(w.dir, "files", "*"))
			for _, f := range files {
				if data, _ := os.ReadFile(f); strings.Contains(string(data), "172.30.0.0/16") {
					os.Remove(f)
				}
			}
		}, "no such file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s := w.open()
			commit(t, s, prefixAdd("CORE", "10.9.0.0/16"))
			w.write(replace(t, example(t), "prefix: 172.31.0.0/16", "prefix: 172.30.0.0/16"))
			if _, err := s.Reload(); err != nil {
				t.Fatal(err)
			}
			s.Close()
			c.damage(t, w)
			writeFile(t, path(w, 4)+temporary, "half")
			writeFile(t, filepath.Join(w.dir, "generations", "README"), "not ours")
			os.Remove(w.file)
			s = w.open()
			if s.Current().Number != 2 || !has(s.Current().Document, "10.9.0.0/16") {
				t.Errorf("generation %d is in force", s.Current().Number)
			}
			if all := strings.Join(s.Conflicts(), "\n"); !strings.Contains(all, c.want) {
				t.Errorf("conflicts are %s", all)
			}
			if _, err := os.Stat(path(w, 4) + temporary); err == nil {
				t.Error("a half-written file was left")
			}
			if g := commit(t, s, Mutation{Action: SiteDrain}); g.Number != 4 {
				t.Errorf("the next generation is %d", g.Number)
			}
		})
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
