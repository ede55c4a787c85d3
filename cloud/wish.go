// Package cloud keeps the route tables of a cloud's VPC equal to what the gateway chose: remote prefixes lead to this
// gateway's instance. It holds the words all vendors share and the loop; the sub-packages speak to one vendor each, and
// cloudtest is a VPC in memory.
//
//	rib feed ─► desired (source, guard, protected, export policy, quota) ─┐
//	                                                                        ├─► one reconcile loop per VPC ─► Table.Apply
//	Table.Observe (entries that carry our mark) ────────────────────────────┘
//
// Hazards it is built around. A VPC takes one change at a time, and a change is over only when the entry is there or
// gone, so all tables of a VPC share one loop. Others write into the same tables: what does not carry our mark is never
// touched, also where it is in our way. An empty RIB at start means that we do not know yet: nothing is deleted before
// the feed is complete, and a wish that would delete most of a table is held back for a while.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"fabric/internal/reconcile"
	"fabric/policy"
)

// Wish is what the document asks of the VPC's tables.
type Wish struct {
	// Provider is "alibaba".
	Provider string
	// Region, VPC and Tables are discovered where empty. No Tables: all tables of the VPC that vSwitches use.
	Region, VPC string
	Tables      []string
	// Instance is this gateway's instance id, the next hop of every entry; discovered where empty.
	Instance string
	// Endpoint replaces the vendor's API address: host or host:port, always HTTPS. CAFile names the PEM file that verifies it.
	Endpoint, CAFile string
	// CredentialsFile names a secret file with a static key. Empty: the vendor's own chain, which ends at the instance's role.
	CredentialsFile string
	// VRF is the VRF whose routes go into the tables.
	VRF string
	// Quota is the largest number of entries to own in one table; 0 puts no limit of ours.
	Quota int
	// Resync is how often the tables are read without a reason; 0 is one minute.
	Resync time.Duration
	// Fabric, Site and Gateway name the owner in the entries' mark.
	Fabric, Site, Gateway string
	// Export chooses and rejects; the zero Policy accepts everything but a default route.
	Export policy.Policy
	// Protected are prefixes that no entry may cover: addresses of the underlay.
	Protected []netip.Prefix
}

// Equal says whether two wishes ask for the same.
func (w Wish) Equal(o Wish) bool {
	return w.sameVPC(o) && w.Quota == o.Quota && w.Export.Equal(o.Export) && slices.Equal(w.Protected, o.Protected)
}

// sameVPC says whether two wishes can be served by one opened VPC, loop and feed.
func (w Wish) sameVPC(o Wish) bool {
	return w.Provider == o.Provider && w.Region == o.Region && w.VPC == o.VPC && slices.Equal(w.Tables, o.Tables) &&
		w.Instance == o.Instance && w.Endpoint == o.Endpoint && w.CAFile == o.CAFile && w.CredentialsFile == o.CredentialsFile &&
		w.Resync == o.Resync && w.VRF == o.VRF && w.Fabric == o.Fabric && w.Site == o.Site && w.Gateway == o.Gateway
}

// Mark is the text that makes an entry ours.
func (w Wish) Mark() string { return "fabric:" + w.Fabric + ":" + w.Site + ":" + w.Gateway }

// Holder says in words whose an entry with this text is: another gateway's, or a stranger's, who is quoted.
func (w Wish) Holder(mark string) string {
	part := strings.Split(mark, ":")
	switch {
	case mark == "":
		return "no fabric mark"
	case len(part) != 4 || part[0] != "fabric":
		return fmt.Sprintf("described %.64q", mark)
	case part[1] != w.Fabric:
		return fmt.Sprintf("of gateway %.32s in fabric %.32s", part[3], part[1])
	case part[2] != w.Site:
		return fmt.Sprintf("of gateway %.32s of site %.32s", part[3], part[2])
	}
	return fmt.Sprintf("of gateway %.32s of this site", part[3])
}

// State is where an entry is in its life.
type State string

// The states.
const (
	Available State = "available"
	Pending   State = "pending"
	Modifying State = "modifying"
	Deleting  State = "deleting"
	// Missing: wanted, and not there.
	Missing State = "missing"
	// Conflict: somebody else's entry is where ours should be.
	Conflict State = "conflict"
)

// Route is an entry of a table that is ours, or wanted.
type Route struct {
	// NextHop is an instance id.
	NextHop string
	// State is Available in a wish.
	State State
}

// String prints "via i-xxx", and the state unless that is Available.
func (r Route) String() string {
	if r.State == Available || r.State == "" {
		return "via " + r.NextHop
	}
	return "via " + r.NextHop + " (" + string(r.State) + ")"
}

// Limits say how full a table is, as of the last Observe.
type Limits struct {
	// Entries is the largest number of custom entries the table takes, whoever owns them; 0 where it is not known.
	Entries int
	// Foreign counts custom entries that are not ours.
	Foreign int
}

// Table is one route table. Observe returns the entries that carry our mark, in whatever state. Apply reads the table
// itself first, and what it finds decides: an entry that became right by itself needs no write, one that is not ours is a
// *reconcile.ForeignError. It returns when every change it made has come to its end. A result that wraps ErrQuota says
// that the table is full. One call at a time per VPC.
type Table interface {
	reconcile.Edge[netip.Prefix, Route]
	Limits() Limits
}

// Info is what is known of a VPC.
type Info struct {
	Provider, Region, ID string
	// CIDRs are those of the VPC and of its vSwitches, both families.
	CIDRs []netip.Prefix
	// Instance is this gateway's instance id.
	Instance string
	// Tables are the ids of the tables to keep.
	Tables []string
}

// VPC is one opened VPC.
type VPC interface {
	// Describe looks again and returns what is known; it may answer from memory that is a few minutes old.
	Describe(ctx context.Context) (Info, error)
	// Table returns a table of Info.Tables.
	Table(id string) Table
	// Close gives idle connections back.
	Close()
}

// Opener discovers what the wish leaves open and returns the VPC. It writes nothing.
type Opener func(ctx context.Context, w Wish, log *slog.Logger) (VPC, error)

// ErrQuota is wrapped by the error of an entry that the table has no room for.
var ErrQuota = errors.New("the route table is full")
