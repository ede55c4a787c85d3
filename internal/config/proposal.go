package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Proposal is a change that has been validated but not committed.
type Proposal struct {
	// Base is the generation that the proposal was made on.
	Base uint64
	// Document is what the intent would be.
	Document *Document
	// Mutations are all that would be in force, in order.
	Mutations []Mutation
	// What says what changes.
	What string

	kind           string
	base, fileHash string
	// file is the content of the file named by base.
	file []byte
}

// Propose validates mutations of this gateway's part on top of the current generation. The error is of type Problems
// where the result would not be valid; see Apply for others.
func (s *Store) Propose(ms ...Mutation) (*Proposal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(ms) == 0 {
		return nil, errors.New("propose: no change is given")
	}
	cur := s.current.Load()
	what := make([]string, len(ms))
	list := slices.Clone(cur.Mutations)
	d := cur.Document
	for i, m := range ms {
		next, err := Apply(d, s.archive.gateway, m)
		if err != nil {
			return nil, err
		}
		d, what[i] = next, m.String()
		list = append(list, m.Clone())
	}
	return s.propose(KindMutation, strings.Join(what, ", "), cur.base, cur.FileHash, nil, squash(list))
}

// propose builds the proposal of a base file with mutations on it, the same way as a restart would; s.mu is held.
func (s *Store) propose(kind, what, base, fileHash string, file []byte, ms []Mutation) (*Proposal, error) {
	if file == nil {
		var err error
		if file, err = s.archive.readFile(base); err != nil {
			return nil, err
		}
	}
	d, r := decode(s.file, file)
	if len(r.list) > 0 {
		return nil, r.list.sorted()
	}
	d.setDefaults()
	for _, m := range ms {
		if _, err := m.change(d, s.archive.gateway); err != nil {
			return nil, err
		}
	}
	d.setDefaults()
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return &Proposal{Base: s.current.Load().Number, Document: d, Mutations: ms, What: what,
		kind: kind, base: base, fileHash: fileHash, file: file}, nil
}

// Commit makes a proposal the current generation. It returns ErrStale if the intent has changed since it was made, and
// leaves everything as it was if it can not be written.
func (s *Store) Commit(p *Proposal, who string) (*Generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.file == nil {
		return nil, errors.New("commit: the proposal was not made by this store")
	}
	if cur := s.current.Load(); p.Base != cur.Number {
		return nil, fmt.Errorf("commit on generation %d while %d is in force: %w", p.Base, cur.Number, ErrStale)
	}
	err := s.commit(Generation{Kind: p.kind, Who: who, What: p.What, FileHash: p.fileHash, Mutations: p.Mutations,
		Document: p.Document, base: p.base}, p.file)
	if err != nil {
		return nil, err
	}
	return s.current.Load(), nil
}

// Rollback proposes the document as it was at generation n: its file and its mutations. The file on disk stays as it is and
// is taken up again once it changes. Who is not needed to propose; Commit notes it.
func (s *Store) Rollback(n uint64, who string) (*Proposal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.archive.load(n)
	if err != nil {
		return nil, fmt.Errorf("rollback for %s: %w", who, err)
	}
	return s.propose(KindRollback, fmt.Sprintf("back to generation %d", n), g.base, s.current.Load().FileHash, nil, g.Mutations)
}

// Rebase proposes the file as it is on disk with those mutations that still fit it. It is an error if the file itself
// is not valid or if there is nothing to drop. Who is not needed to propose; Commit notes it.
func (s *Store) Rebase(who string) (*Proposal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, base, err := s.readFile()
	if err != nil {
		return nil, fmt.Errorf("rebase for %s: %w", who, err)
	}
	cur, hash := s.current.Load(), hashOf(data)
	_, kept, conflicts := replay(base, s.archive.gateway, cur.Mutations)
	if len(conflicts) == 0 {
		return nil, fmt.Errorf("rebase for %s: every run-time change fits %s; reload takes it up", who, s.file)
	}
	return s.propose(KindRebase, "drop "+strings.Join(conflicts, ", "), hash, hash, data, kept)
}
