package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The kinds of generations.
const (
	// KindFile came from a new or changed file, with the mutations replayed on it.
	KindFile = "file"
	// KindMutation added mutations.
	KindMutation = "mutation"
	// KindRollback went back to an earlier generation.
	KindRollback = "rollback"
	// KindRebase took a changed file and dropped the mutations that conflicted with it.
	KindRebase = "rebase"
)

// Generation is one state of the intent: a file, the mutations on it, and the document they make together. It is
// immutable.
type Generation struct {
	// Number counts from 1 and is never used twice.
	Number uint64 `json:"number"`
	// Time of the commit, Kind of it, Who asked for it and What was asked.
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	Who  string    `json:"who"`
	What string    `json:"what"`
	// FileHash is the SHA-256 of the file on disk that this generation has taken into account, in hex.
	FileHash string `json:"file-hash"`
	// Mutations in force, in order.
	Mutations []Mutation `json:"mutations,omitempty"`
	// Document is nil in a History.
	Document *Document `json:"-"`

	// base is the SHA-256 of the file that Mutations apply to. It differs from FileHash after a rollback to a
	// generation of an earlier file.
	base string
}

// record is a generation on disk.
type record struct {
	Version int    `json:"version"`
	Gateway string `json:"gateway"`
	Base    string `json:"base"`
	Generation
}

// recordVersion is the version of the record's form.
const recordVersion = 1

// keepGenerations is how many generations are kept.
const keepGenerations = 128

// archive keeps generations in a folder:
//
//	lock                        held by the daemon that uses the folder
//	generations/NNNNNNNNNN.json a record: number, time, who, what, mutations, hash of the file under them
//	files/SHA256.yaml           files as they were read, as long as a kept generation needs them
type archive struct {
	folder  string
	gateway string
	disk    disk
	// kept are the generations on disk without their documents, oldest first.
	kept []Generation
	// last is the highest number ever used.
	last uint64
	// damaged says what could not be read.
	damaged []string
}

func (a *archive) recordPath(n uint64) string {
	return filepath.Join(a.folder, "generations", fmt.Sprintf("%010d.json", n))
}

func (a *archive) filePath(hash string) string {
	return filepath.Join(a.folder, "files", hash+".yaml")
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// open makes the folders and reads the records; it removes what a crash left half written.
func (a *archive) open() error {
	for _, sub := range []string{"generations", "files"} {
		if err := os.MkdirAll(filepath.Join(a.folder, sub), 0o700); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
		leftovers, _ := filepath.Glob(filepath.Join(a.folder, sub, "*"+temporary))
		for _, path := range leftovers {
			_ = os.Remove(path)
		}
	}
	entries, err := os.ReadDir(filepath.Join(a.folder, "generations"))
	if err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), ".json"), 10, 64)
		if err != nil || a.recordPath(n) != filepath.Join(a.folder, "generations", e.Name()) {
			continue // not ours
		}
		a.last = max(a.last, n)
		g, err := a.readRecord(n)
		var other *otherGateway
		if errors.As(err, &other) {
			return err
		}
		if err != nil {
			a.damaged = append(a.damaged, err.Error())
			continue
		}
		a.kept = append(a.kept, g)
	}
	slices.SortFunc(a.kept, func(x, y Generation) int { return cmp.Compare(x.Number, y.Number) })
	return nil
}

// otherGateway says that the state folder is not this gateway's.
type otherGateway struct{ folder, theirs, ours string }

func (e *otherGateway) Error() string {
	return fmt.Sprintf("state folder %s belongs to gateway %q, this is %q; use a folder of its own", e.folder, e.theirs, e.ours)
}

// readRecord reads one generation without its document.
func (a *archive) readRecord(n uint64) (Generation, error) {
	path := a.recordPath(n)
	data, err := os.ReadFile(path)
	if err != nil {
		return Generation{}, fmt.Errorf("generation %d: %w", n, err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return Generation{}, fmt.Errorf("generation %d: %s: %w; remove the file", n, path, err)
	}
	switch {
	case rec.Version != recordVersion:
		return Generation{}, fmt.Errorf("generation %d: %s has form %d, this program knows %d; remove the file or run the program that wrote it",
			n, path, rec.Version, recordVersion)
	case rec.Gateway != a.gateway:
		return Generation{}, &otherGateway{a.folder, rec.Gateway, a.gateway}
	case rec.Number != n || len(rec.Base) != 2*sha256.Size:
		return Generation{}, fmt.Errorf("generation %d: %s is not what its name says; remove the file", n, path)
	}
	rec.Generation.base = rec.Base
	return rec.Generation, nil
}

// readFile returns a file that is kept under its hash.
func (a *archive) readFile(hash string) ([]byte, error) {
	data, err := os.ReadFile(a.filePath(hash))
	if err != nil {
		return nil, fmt.Errorf("kept file: %w", err)
	}
	if hashOf(data) != hash {
		return nil, fmt.Errorf("kept file %s was changed on disk", a.filePath(hash))
	}
	return data, nil
}

// load returns a generation with its document. A document that was good once is not validated again: a stricter
// program must still be able to run what ran before it.
func (a *archive) load(n uint64) (*Generation, error) {
	i, ok := slices.BinarySearchFunc(a.kept, n, func(g Generation, n uint64) int { return cmp.Compare(g.Number, n) })
	if !ok {
		return nil, fmt.Errorf("generation %d: %w; see config history", n, os.ErrNotExist)
	}
	g := a.kept[i]
	data, err := a.readFile(g.base)
	if err != nil {
		return nil, fmt.Errorf("generation %d: %w", n, err)
	}
	d, r := decode(a.filePath(g.base), data)
	if len(r.list) > 0 {
		return nil, fmt.Errorf("generation %d: %w", n, r.list.sorted())
	}
	d.setDefaults()
	for _, m := range g.Mutations {
		if _, err := m.change(d, a.gateway); err != nil {
			return nil, fmt.Errorf("generation %d: %w", n, err)
		}
	}
	d.setDefaults()
	g.Document = d
	return &g, nil
}

// save writes a generation and the file under it, then forgets the oldest.
func (a *archive) save(g Generation, base []byte) error {
	path := a.filePath(g.base)
	_, err := os.Stat(path)
	addFile := err != nil
	if addFile {
		if err := a.disk.write(path, base); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(record{Version: recordVersion, Gateway: a.gateway, Base: g.base, Generation: g}, "", " ")
	if err == nil {
		err = a.disk.write(a.recordPath(g.Number), append(data, '\n'))
	}
	if err != nil {
		if addFile {
			_ = os.Remove(path)
		}
		return err
	}
	g.Document = nil
	a.kept = append(a.kept, g)
	a.last = g.Number
	a.prune()
	return nil
}

// prune removes what is beyond the generations to keep. A failure leaves too much behind, which the next commit removes.
func (a *archive) prune() {
	for len(a.kept) > keepGenerations {
		if err := os.Remove(a.recordPath(a.kept[0].Number)); err != nil && !os.IsNotExist(err) {
			return
		}
		a.kept = a.kept[1:]
	}
	needed := map[string]bool{}
	for _, g := range a.kept {
		needed[a.filePath(g.base)] = true
	}
	files, _ := filepath.Glob(filepath.Join(a.folder, "files", "*.yaml"))
	for _, path := range files {
		if !needed[path] {
			_ = os.Remove(path)
		}
	}
}
