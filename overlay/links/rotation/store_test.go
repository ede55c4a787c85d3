package rotation

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func openStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := OpenStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func agree(t *testing.T, s *Store, generation int) Key {
	t.Helper()
	mine, psk, err := s.NewKeys("fxw0", generation, "", start)
	if err != nil {
		t.Fatal(err)
	}
	theirs, same, err := s.NewKeys("fxw1", generation, psk, start)
	if err != nil || same != psk {
		t.Fatalf("preshared keys differ, error %v", err)
	}
	mine.Public = theirs.Own
	return mine
}

func names(t *testing.T, dir, prefix string) (out []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), prefix) {
			out = append(out, f.Name())
			if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s is %v, error %v", f.Name(), info.Mode(), err)
			}
		}
	}
	return out
}

func TestStore(t *testing.T) {
	s, dir := openStore(t)
	r, kept, err := s.Load("fxw0", "id", start)
	if err != nil || kept || r.Current.Generation != 0 || !r.Current.Made.Equal(start) || r.Identity != "id" {
		t.Fatalf("fresh record is %+v, kept %v, error %v", r, kept, err)
	}
	first, next := agree(t, s, 1), agree(t, s, 2)
	r.Current, r.Next = first, &next
	if err := s.Save("fxw0", r, nil); err != nil {
		t.Fatal(err)
	}
	again, kept, err := s.Load("fxw0", "id", time.Now())
	if err != nil || !kept || again.Current != first || again.Next == nil || *again.Next != next {
		t.Errorf("read back %+v, kept %v, error %v", again, kept, err)
	}
	if again, _, err = s.Load("fxw0", "", time.Now()); err != nil || again.Current != first {
		t.Errorf("while the identity is not known: %+v, error %v", again, err)
	}
	// Other identity keys: what was agreed under the former counts for nothing.
	if again, kept, err = s.Load("fxw0", "other", start); err != nil || kept || again.Current.Generation != 0 {
		t.Errorf("under other identity keys: %+v, kept %v, error %v", again, kept, err)
	}
	// What is over goes, but what lingers.
	r.Current, r.Next = next, nil
	if err := s.Save("fxw0", r, []Key{first}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir, "fxw0"); len(got) != 5 {
		t.Errorf("while the former keys linger: %v", got)
	}
	if err := s.Save("fxw0", r, nil); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir, "fxw0"); len(got) != 3 {
		t.Errorf("afterwards: %v", got)
	}
	if got := names(t, dir, "fxw1"); len(got) != 4 {
		t.Errorf("another tunnel's: %v", got)
	}
	data, err := os.ReadFile(filepath.Join(dir, "fxw0.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{next.PrivateKeyFile, next.PresharedKeyFile} {
		if secret, _ := os.ReadFile(f); len(secret) < 40 || strings.Contains(string(data), strings.TrimSpace(string(secret))) {
			t.Errorf("the record holds the secret of %s", f)
		}
	}
	if err := s.Forget(func(d string) bool { return d == "fxw1" }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir, ""); len(got) != 4 {
		t.Errorf("after the tunnel has gone: %v", got)
	}
}

// Whatever is wrong with what was kept, the tunnel goes back to its identity keys, and says why.
func TestStoreBroken(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, s *Store, record string, k Key){
		"torn": func(t *testing.T, _ *Store, record string, _ Key) {
			data, _ := os.ReadFile(record)
			must(t, os.WriteFile(record, data[:len(data)/2], 0o600))
		},
		"empty":              func(t *testing.T, _ *Store, record string, _ Key) { must(t, os.Truncate(record, 0)) },
		"readable by others": func(t *testing.T, _ *Store, record string, _ Key) { must(t, os.Chmod(record, 0o640)) },
		"a link": func(t *testing.T, _ *Store, record string, _ Key) {
			must(t, os.Rename(record, record+".other"))
			must(t, os.Symlink(record+".other", record))
		},
		"key gone":               func(t *testing.T, _ *Store, _ string, k Key) { must(t, os.Remove(k.PrivateKeyFile)) },
		"key readable by others": func(t *testing.T, _ *Store, _ string, k Key) { must(t, os.Chmod(k.PresharedKeyFile, 0o604)) },
		"key torn":               func(t *testing.T, _ *Store, _ string, k Key) { must(t, os.Truncate(k.PresharedKeyFile, 10)) },
		"another key in its place": func(t *testing.T, s *Store, _ string, k Key) {
			must(t, os.Rename(agree(t, s, 9).PrivateKeyFile, k.PrivateKeyFile))
		},
		"a file elsewhere": func(t *testing.T, s *Store, _ string, k Key) {
			k.PrivateKeyFile = "/etc/passwd"
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
		},
		"another tunnel's file": func(t *testing.T, s *Store, _ string, k Key) {
			k.PresharedKeyFile = filepath.Join(filepath.Dir(k.PresharedKeyFile), "fxw1-1-0.psk")
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
		},
		"no public key": func(t *testing.T, s *Store, _ string, k Key) {
			k.Public = "x"
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
		},
		"a generation that is none": func(t *testing.T, s *Store, _ string, k Key) {
			k.Generation = -1
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
		},
		"nothing next": func(t *testing.T, s *Store, _ string, k Key) {
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k, Next: &Key{}}, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := openStore(t)
			k := agree(t, s, 1)
			must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
			record := filepath.Join(dir, "fxw0.json")
			harm(t, s, record, k)
			r, kept, err := s.Load("fxw0", "id", start)
			if err == nil || kept || r.Current.Generation != 0 || r.Next != nil {
				t.Fatalf("record is %+v, kept %v, error %v", r, kept, err)
			}
			secret, _ := os.ReadFile(k.PrivateKeyFile)
			if s := strings.TrimSpace(string(secret)); s != "" && strings.Contains(err.Error(), s) {
				t.Error("the error holds the key")
			}
			// The next keys put it right.
			next := agree(t, s, 1)
			must(t, s.Save("fxw0", Record{Identity: "id", Current: next}, nil))
			if r, _, err := s.Load("fxw0", "id", start); err != nil || r.Current != next {
				t.Errorf("mended: %+v, error %v", r, err)
			}
		})
	}
}

// A disk that fails leaves what was there.
func TestStoreFails(t *testing.T) {
	s, dir := openStore(t)
	k := agree(t, s, 1)
	must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
	must(t, os.Rename(dir, dir+".away"))
	if err := s.Save("fxw0", Record{Identity: "id"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("save: %v", err)
	}
	if _, _, err := s.NewKeys("fxw0", 2, "", start); err == nil {
		t.Error("keys were made that are nowhere")
	}
	must(t, os.Rename(dir+".away", dir))
	if r, _, err := s.Load("fxw0", "id", start); err != nil || r.Current != k {
		t.Errorf("record is %+v, error %v", r, err)
	}
	if _, _, err := s.NewKeys("fxw0", 2, "not a key", start); err == nil {
		t.Error("a preshared key that is none was taken")
	}
}

// A folder that others can get at is closed to them, and the keys in it are used.
func TestOpenStoreNarrows(t *testing.T) {
	s, dir := openStore(t)
	k := agree(t, s, 1)
	must(t, s.Save("fxw0", Record{Identity: "id", Current: k}, nil))
	for _, mode := range []os.FileMode{0o755, 0o770, 0o777, 0o500} {
		must(t, os.Chmod(dir, mode))
		var log strings.Builder
		s, err := OpenStore(dir, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Errorf("%04o: %v", mode, err)
			continue
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%04o: the mode is %v, error %v", mode, info.Mode(), err)
		}
		if !strings.Contains(log.String(), "closed to others") || !strings.Contains(log.String(), dir) {
			t.Errorf("%04o: the log is %q", mode, log.String())
		}
		if r, kept, err := s.Load("fxw0", "id", start); err != nil || !kept || r.Current != k {
			t.Errorf("%04o: record is %+v, kept %v, error %v", mode, r, kept, err)
		}
	}
}

func TestOpenStoreRefuses(t *testing.T) {
	if os.Geteuid() == 0 {
		dir := t.TempDir()
		must(t, os.Chown(dir, 12345, -1))
		if _, err := OpenStore(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, os.ErrPermission) {
			t.Errorf("another user's folder: %v", err)
		}
	}
	file := filepath.Join(t.TempDir(), "keys")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := OpenStore(file, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// An interrupted write leaves a file beside; it goes with the next.
func TestStoreSweepsLeftovers(t *testing.T) {
	s, dir := openStore(t)
	for _, f := range []string{"fxw0.json.123", "fxw0-1-aa.key.77", "fxw0-1-bb.psk"} {
		must(t, os.WriteFile(filepath.Join(dir, f), nil, 0o600))
	}
	must(t, s.Save("fxw0", Record{}, nil))
	if got := names(t, dir, ""); len(got) != 1 || got[0] != "fxw0.json" {
		t.Errorf("left are %v", got)
	}
	var r Record
	data, _ := os.ReadFile(filepath.Join(dir, "fxw0.json"))
	must(t, json.Unmarshal(data, &r))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
