// Package reconcile makes a world equal to a wish. It knows nothing of networks: an Edge observes and applies objects of
// one kind, Diff compares, Loop repeats until equal, and every object has a Status that can be shown.
//
// The rules it enforces: level, not edge (a wake only says "look again"); a failed Observe is never an empty world;
// create and replace come before delete; every operation has its own result.
package reconcile

import (
	"context"
	"time"
)

// Kind is what an operation does.
type Kind uint8

// The kinds in the order in which a plan applies them.
const (
	// Create adds an object that is not there.
	Create Kind = iota + 1
	// Replace changes an object in place.
	Replace
	// Delete removes an object.
	Delete
)

// String returns "create", "replace" or "delete".
func (k Kind) String() string {
	switch k {
	case Create:
		return "create"
	case Replace:
		return "replace"
	case Delete:
		return "delete"
	}
	return "unknown"
}

// Op is one step of a plan.
type Op[K comparable, V any] struct {
	Kind Kind
	Key  K
	// Old is what was observed; zero for Create.
	Old V
	// New is what is wanted; zero for Delete.
	New V
}

// Edge is one kind of object in the world outside.
type Edge[K comparable, V any] interface {
	// Observe returns all objects that are ours. Partial knowledge is an error, never a smaller map.
	Observe(ctx context.Context) (map[K]V, error)
	// Apply carries out ops in order and returns one result per op, nil where it succeeded. A result that is a
	// *ForeignError says that somebody else's object stands at the key and was left alone.
	Apply(ctx context.Context, ops []Op[K, V]) []error
}

// ForeignError says that an object we want exists and is not ours. It is never overwritten.
type ForeignError struct {
	// What names the object, e.g. "nft table inet fabric".
	What string
	// Owner says whose it is, as far as can be seen, e.g. "protocol static", "no fabric alias".
	Owner string
	// Mend says what the operator can do.
	Mend string
}

// Error implements error.
func (e *ForeignError) Error() string {
	return e.What + " is not ours (" + e.Owner + "): left untouched; " + e.Mend
}

// Status is what is known of one object.
type Status struct {
	// Synced is true when the last pass found or made it as wanted.
	Synced bool
	// Since is when Synced last changed.
	Since time.Time
	// Err is the last error's text, "" when none.
	Err string
}

// Equaler is an Edge that knows when what is there meets a wish, where == is too strict: fields a wish leaves open, or
// secrets that cannot be read back.
type Equaler[K comparable, V any] interface {
	Equal(key K, want, have V) bool
}
