package cloud

import (
	"context"
	"net/netip"
)

// Examination is what an opened VPC says of what this gateway may do with its tables. Nothing is changed for it, as far as the
// vendor heeds dry runs; see CallExamination.Carried.
type Examination struct {
	Info   Info
	Tables []TableExamination
}

// TableExamination is about one table.
type TableExamination struct {
	ID string
	// Err is why the table cannot be read; the rest is then not known.
	Err error
	// Owned and Foreign count custom entries, Limit is the most that the table takes, 0 where it is not known.
	Owned, Foreign, Limit int
	// Calls are those that the gateway makes to write, each tried without effect.
	Calls []CallExamination
}

// CallExamination is one of the vendor's calls, tried as a dry run.
type CallExamination struct {
	// Action is the vendor's name with its service: "vpc:CreateRouteEntry".
	Action string
	// Prefix is the destination that the call named.
	Prefix netip.Prefix
	// Needless is set where there is another, slower way without it.
	Needless bool
	// Denied: the role may not. Full: the table takes no more entries.
	Denied, Full bool
	// Carried: the answer is that to a real call, so what was to be tried may have been done. No further call was tried then, on any table.
	Carried bool
	// Err is the vendor's refusal, or why there was no answer; nil when the call would be, or was, carried out.
	Err error
}

// Examiner is a VPC that can be asked so.
type Examiner interface {
	Examine(ctx context.Context) (Examination, error)
}
