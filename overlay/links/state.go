package links

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/reconcile"
)

// Status is how an object stands to the plan.
type Status uint8

// The statuses.
const (
	// OK: as planned.
	OK Status = iota + 1
	// Pending: waits for something that others make, such as a VXLAN device of fabric-site.
	Pending
	// Failed: could not be applied; it is tried again.
	Failed
	// Foreign: somebody else's object stands in its place and was left untouched.
	Foreign
)

// String returns "ok", "pending", "error" or "foreign".
func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Pending:
		return "pending"
	case Failed:
		return "error"
	case Foreign:
		return "foreign"
	}
	return "unknown"
}

// MarshalText writes it as String does.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Object is one object on the host and how it stands.
type Object struct {
	// Kind is "plan", "tunnel process", "tls listener", "link", "sysctl", "address", "wireguard", "neighbour", "route", "next hop", "next-hop set" or "bfd session".
	Kind string
	// Name as people know it.
	Name   string
	Status Status
	// Message says what is wrong and how to mend it, or what is waited for. "" when OK.
	Message string
}

// newObject tells the status from the error of an operation.
func newObject(kind, name string, err error) Object {
	o := Object{Kind: kind, Name: name, Status: OK}
	if err == nil {
		return o
	}
	o.Message = err.Error()
	var foreign *reconcile.ForeignError
	var pending *pendingError
	switch {
	case errors.As(err, &foreign):
		o.Status = Foreign
	case errors.As(err, &pending):
		o.Status = Pending
	default:
		o.Status = Failed
	}
	return o
}

// pendingError says what an object waits for.
type pendingError struct{ what string }

// Error implements error.
func (e *pendingError) Error() string { return e.what }

// waitIfMissing turns "no such device", and one that has just been made and is not up, into waiting for what.
func waitIfMissing(err error, what string) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENETDOWN) {
		return &pendingError{what}
	}
	return err
}

// State is what fabric-links knows after a pass. It is immutable.
type State struct {
	// Gateway and Digest of the plan in force, "" when there is none yet.
	Gateway, Digest string
	// Version of the fabric-links program and when it started.
	Version string
	Started time.Time
	// Tunnels, VTEPs and NextHops in the plan's order. A VTEP of which nothing could be read yet is left out.
	Tunnels  []TunnelState
	VTEPs    []VTEPState
	NextHops []NextHopState
	// Sets are the next-hop sets, those kept of former plans last. One of which nothing could be read yet is left out.
	Sets []SetState
	// Sessions are the BFD sessions, those on tunnels first.
	Sessions []SessionState
	// Problems are the objects that are not OK.
	Problems []Object
}

// Tunnel states.
const (
	Up       = "up"
	Down     = "down"
	Starting = "starting"
)

// TunnelState is one tunnel as it is.
type TunnelState struct {
	Device, Name, Remote string
	Rank                 int
	Kind                 string
	// Implementation is "kernel" or "userspace".
	Implementation string
	// State is Up, Down or Starting; Reason says why, Since when.
	State, Reason string
	Since         time.Time
	// Active: the remote VTEP is routed over this tunnel, perhaps over others of its rank too.
	Active bool
	// Endpoint is where the other end is now.
	Endpoint      netip.AddrPort
	ListenPort    int
	LastHandshake time.Time
	// RxBytes and TxBytes since the device was made.
	RxBytes, TxBytes uint64
	MTU              int
	// Drained: the operator has taken traffic off this tunnel as long as there is another.
	Drained bool
	// Err is what could not be applied.
	Err string
	// Path is what echoes over the tunnel tell.
	Path PathState
	// KeyGeneration of the keys in use, 0 for the document's, and when they were made. Rotation says what goes on with them, "" for nothing.
	KeyGeneration int
	KeyMade       time.Time
	Rotation      string
}

// VTEPState is one remote VTEP as it is.
type VTEPState struct {
	Gateway string
	Addr    netip.Addr
	// Device of the active tunnel, "" when the VTEP is unreachable; of several the first.
	Device string
	// Devices of all active tunnels.
	Devices []string
	Reason  string
	Since   time.Time
}

// NextHopState is one next-hop object as it is.
type NextHopState struct {
	ID     uint32
	Device string
	VTEP   netip.Addr
	VNI    uint32
	// Ready: routes may refer to it. Reason says why not.
	Ready  bool
	Reason string
}

// SetState is one next-hop set as it is.
type SetState struct {
	ID  uint32
	VRF string
	// Legs in order of preference, as `ip route` prints next hops.
	Legs []string
	// Ready: the object is there. Reason says why not. Traffic takes the legs InUse, places in Legs, ascending; the first of them is Rank, and
	// Current is how people write them.
	Ready   bool
	Current string
	Rank    int
	InUse   []int
	// Held: a better leg is alive, and waits for fabric-site to send the plan.
	Held   bool
	Reason string
}

// SessionState is one BFD session as it is (RFC 5880 section 6.8.1).
type SessionState struct {
	// Name is the tunnel's, or VRF/PEER.
	Name string
	// Device of the tunnel that the session watches, "" for a peer's session.
	Device string
	// VRF and Peer of a third-party peer's session.
	VRF, Peer string
	Interface string
	Local     netip.Addr
	Remote    netip.Addr
	Multihop  bool
	// State is "up", "init", "down" or "admin-down"; Reason says why, Since when.
	State, Reason string
	Since         time.Time
	// RemoteState and RemoteDiag are what the neighbour told last; RemoteAdminDown: its operator wants the session down.
	RemoteState, RemoteDiag string
	RemoteAdminDown         bool
	// TxInterval and Detection are the negotiated interval and detection time.
	TxInterval, Detection time.Duration
	// Counters since the session was configured; Dropped by reason.
	Received, Sent, Ups, Downs uint64
	Dropped                    map[string]uint64
	// Problem says why the session has no socket.
	Problem string
}
