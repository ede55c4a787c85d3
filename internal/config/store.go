package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/diff"
)

// ErrStale says that the intent has changed since a proposal was made. Make it again.
var ErrStale = errors.New("the intent has changed since; propose again")

// Store keeps the intent of one gateway: the file, the mutations made at run time and the generations they went
// through. All methods may be called at any time from anywhere.
//
// A generation is committed whole or not at all, and the current one changes only after it is on disk. When the file
// has changed, the mutations are replayed on it; if the file is not valid or a mutation no longer fits, the last good
// generation stays in force and Conflicts says why, until the file is mended or Rebase is committed.
type Store struct {
	file string
	now  func() time.Time
	// check has the last word on a document read from the file.
	check func(*Document) error
	lock  *os.File

	current atomic.Pointer[Generation]

	mu          sync.Mutex
	archive     archive
	conflicts   []string
	subscribers []chan struct{}
}

// Option changes how a Store is opened.
type Option func(*Store)

// WithClock sets where the times of generations come from; time.Now otherwise.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.now = now } }

// WithCheck sets what must be true of a document beyond its being valid, before it is taken from the file: that it compiles
// on this host. A document that fails is kept out like an invalid one.
func WithCheck(check func(*Document) error) Option { return func(s *Store) { s.check = check } }

// Open takes a state folder for a gateway and reads the file. A second daemon on the folder is refused. Without an
// earlier generation the file must be good, and the error is of type Problems where it is not; with one, that stays in
// force and the error is nil: see Conflicts.
func Open(stateDir, file, gateway string, options ...Option) (*Store, error) {
	s := &Store{file: file, now: time.Now, archive: archive{folder: stateDir, gateway: gateway}}
	for _, o := range options {
		o(s)
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	held, err := lock(stateDir)
	if err != nil {
		return nil, err
	}
	s.lock = held
	if err := s.restore(); err != nil {
		held.Close()
		return nil, err
	}
	return s, nil
}

// restore takes up the newest generation that can be read, then the file.
func (s *Store) restore() error {
	if err := s.archive.open(); err != nil {
		return err
	}
	for i := len(s.archive.kept) - 1; i >= 0 && s.current.Load() == nil; i-- {
		g, err := s.archive.load(s.archive.kept[i].Number)
		if err != nil {
			s.archive.damaged = append(s.archive.damaged, err.Error())
			continue
		}
		s.current.Store(g)
	}
	if _, err := s.Reload(); err != nil && s.current.Load() == nil {
		return err
	}
	return nil
}

// Close gives the state folder back. The current generation can still be read.
func (s *Store) Close() error { return s.lock.Close() }

// Current returns the generation in force.
func (s *Store) Current() *Generation { return s.current.Load() }

// Subscribe returns a channel that holds a value when a generation has been committed since it was last read.
func (s *Store) Subscribe() <-chan struct{} {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers = append(s.subscribers, c)
	return c
}

// Conflicts says, a sentence each, why the file as it is now is not in force, and what could not be read of the state
// folder. It is empty when all is well.
func (s *Store) Conflicts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.conflicts, s.archive.damaged)
}

// Reload reads the file again and commits a generation if it has changed. It returns whether it did. On an error
// the current generation stays.
func (s *Store) Reload() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, base, err := s.readFile()
	if err != nil {
		return false, s.degrade(err)
	}
	cur := s.current.Load()
	hash := hashOf(data)
	if cur != nil && cur.FileHash == hash {
		s.conflicts = nil
		return false, nil
	}
	g := Generation{Kind: KindFile, Who: "file", What: "read " + s.file, FileHash: hash, base: hash}
	var mutations []Mutation
	if cur != nil {
		mutations, g.What = cur.Mutations, s.file+" has changed"
	}
	d, kept, conflicts := replay(base, s.archive.gateway, mutations)
	if len(conflicts) > 0 {
		return false, s.degrade(&ConflictError{s.file, conflicts})
	}
	if s.check != nil {
		if err := s.check(d); err != nil {
			return false, s.degrade(err)
		}
	}
	g.Document, g.Mutations = d, kept
	if err := s.commit(g, data); err != nil {
		return false, s.degrade(err)
	}
	return true, nil
}

// ConflictError says which mutations no longer fit the file.
type ConflictError struct {
	File      string
	Mutations []string
}

// Error has one line for each mutation.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s has changed and these run-time changes do not fit it; change the file, or drop them with config rebase:\n%s",
		e.File, strings.Join(e.Mutations, "\n"))
}

// degrade notes why the file is not in force and returns err.
func (s *Store) degrade(err error) error {
	var ps Problems
	var ce *ConflictError
	switch {
	case errors.As(err, &ps):
		s.conflicts = nil
		for _, p := range ps {
			s.conflicts = append(s.conflicts, p.String())
		}
	case errors.As(err, &ce):
		s.conflicts = slices.Clone(ce.Mutations)
	default:
		s.conflicts = []string{err.Error()}
	}
	return err
}

// readFile reads and parses the file and makes sure that it has this gateway.
func (s *Store) readFile() ([]byte, *Document, error) {
	data, err := readBounded(s.file, MaxSize+1)
	if err != nil {
		return nil, nil, fmt.Errorf("read the document: %w", err)
	}
	d, err := Parse(s.file, data)
	if err != nil {
		return nil, nil, err
	}
	if _, _, ok := d.Find(s.archive.gateway); !ok {
		return nil, nil, Problems{{File: s.file, Path: "sites", Message: fmt.Sprintf("gateway %q is not in the document", s.archive.gateway),
			Mend: "it has: " + listed(d.gatewayNames())}}
	}
	return data, d, nil
}

// commit makes g the current generation, with the next number; s.mu is held.
func (s *Store) commit(g Generation, base []byte) error {
	g.Number, g.Time = s.archive.last+1, s.now().UTC().Round(0)
	if err := s.archive.save(g, base); err != nil {
		return err
	}
	s.current.Store(&g)
	s.settle(g.FileHash)
	for _, c := range s.subscribers {
		select {
		case c <- struct{}{}:
		default: // it has a wake already
		}
	}
	return nil
}

// settle forgets the conflicts once the file as it is on disk has been taken into account.
func (s *Store) settle(hash string) {
	if data, err := readBounded(s.file, MaxSize+1); err == nil && hashOf(data) == hash {
		s.conflicts = nil
	}
}

// History lists the generations that are kept, newest first, without their documents.
func (s *Store) History() ([]Generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.archive.kept)
	slices.Reverse(list)
	return list, nil
}

// Generation returns one generation with its document; the error wraps os.ErrNotExist if it is not kept.
func (s *Store) Generation(n uint64) (*Generation, error) {
	if cur := s.Current(); cur.Number == n {
		return cur, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.archive.load(n)
}

// Diff returns the unified difference between the documents of two generations in their canonical form, or "" if they
// mean the same. As a, 0 is the file as it is on disk now; as b, 0 is the current generation.
func (s *Store) Diff(a, b uint64) (string, error) {
	var old, cur *Document
	oldName, curName := s.file, fmt.Sprintf("generation %d", b)
	if a == 0 {
		data, err := readBounded(s.file, MaxSize+1)
		if err != nil {
			return "", fmt.Errorf("read the document: %w", err)
		}
		if old, err = Parse(s.file, data); err != nil {
			return "", err
		}
	} else {
		g, err := s.Generation(a)
		if err != nil {
			return "", err
		}
		old, oldName = g.Document, fmt.Sprintf("generation %d", a)
	}
	if b == 0 {
		b = s.Current().Number
		curName = fmt.Sprintf("generation %d", b)
	}
	g, err := s.Generation(b)
	if err != nil {
		return "", err
	}
	cur = g.Document
	return DiffDocuments(oldName, old, curName, cur)
}

// DiffDocuments returns the unified difference between two documents in their canonical form, or "".
func DiffDocuments(oldName string, old *Document, newName string, new *Document) (string, error) {
	x, err := old.YAML()
	if err != nil {
		return "", fmt.Errorf("%s: %w", oldName, err)
	}
	y, err := new.YAML()
	if err != nil {
		return "", fmt.Errorf("%s: %w", newName, err)
	}
	return string(diff.Diff(oldName, x, newName, y)), nil
}
