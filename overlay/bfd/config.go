package bfd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// UDP ports of RFC 5881 section 4 and RFC 5883 section 5.
const (
	SingleHopPort = 3784
	MultihopPort  = 4784
)

// Path says between whom a session runs. Two sessions of an engine differ in it.
type Path struct {
	// VRF is the name of a VRF device; empty is the main table.
	VRF string
	// Interface holds a single hop session to one interface; link-local addresses need it, several hops exclude it. With rules in place
	// of VRF devices it also keeps VRFs apart.
	Interface string
	// Local and Peer are unicast addresses of one family, without a zone.
	Local, Peer netip.Addr
	// Multihop is RFC 5883: UDP port 4784, and any TTL from MinTTL up.
	Multihop bool
}

// String is short and unambiguous: "10.0.0.1 -> 10.0.0.2 dev eth0 vrf red multihop".
func (p Path) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v -> %v", p.Local, p.Peer)
	if p.Interface != "" {
		b.WriteString(" dev " + p.Interface)
	}
	if p.VRF != "" {
		b.WriteString(" vrf " + p.VRF)
	}
	if p.Multihop {
		b.WriteString(" multihop")
	}
	return b.String()
}

// device is what the receiving socket is bound to. Not the interface: one socket then reads the packets of all tunnels in one go, and the
// kernel's report says which interface each came in on.
func (p Path) device() string { return p.VRF }

// out is what the sending socket is bound to.
func (p Path) out() string {
	if p.Interface != "" {
		return p.Interface
	}
	return p.VRF
}

// maxIfName is IFNAMSIZ without its terminator.
const maxIfName = 15

// Validate names all that is wrong.
func (p Path) Validate() error {
	var errs []error
	for _, a := range [...]struct {
		name string
		addr netip.Addr
	}{{"local", p.Local}, {"peer", p.Peer}} {
		switch {
		case !a.addr.IsValid():
			errs = append(errs, fmt.Errorf("%s address is missing", a.name))
		case a.addr.Zone() != "":
			errs = append(errs, fmt.Errorf("%s address %v: give the zone as interface", a.name, a.addr))
		case a.addr.Is4In6():
			errs = append(errs, fmt.Errorf("%s address %v: write it as IPv4", a.name, a.addr))
		case a.addr.IsUnspecified() || a.addr.IsMulticast():
			errs = append(errs, fmt.Errorf("%s address %v: must be unicast", a.name, a.addr))
		case a.addr.Is6() && a.addr.IsLinkLocalUnicast() && p.Multihop:
			errs = append(errs, fmt.Errorf("%s address %v: link-local addresses reach one hop only", a.name, a.addr))
		case a.addr.Is6() && a.addr.IsLinkLocalUnicast() && p.Interface == "":
			errs = append(errs, fmt.Errorf("%s address %v: link-local addresses need an interface", a.name, a.addr))
		}
	}
	if p.Local.IsValid() && p.Peer.IsValid() {
		switch {
		case p.Local.Is4() != p.Peer.Is4():
			errs = append(errs, errors.New("local and peer address are of different families"))
		case p.Local == p.Peer:
			errs = append(errs, errors.New("local and peer address are the same"))
		}
	}
	if p.Multihop && p.Interface != "" {
		errs = append(errs, fmt.Errorf("interface %s: a session over several hops has none", p.Interface))
	}
	for _, n := range []string{p.VRF, p.Interface} {
		if len(n) > maxIfName || strings.ContainsAny(n, "/ \t\n\x00") {
			errs = append(errs, fmt.Errorf("%q cannot be the name of an interface", n))
		}
	}
	return errors.Join(errs...)
}

// SessionConfig is one wanted session.
type SessionConfig struct {
	// Name is the caller's; it comes back in changes, states and logs.
	Name string
	Path
	Params
	// MinTTL is the least TTL or hop limit accepted over several hops (RFC 5883 section 5.4 leaves it to the operator): 255 less the
	// routers in between. A single hop always takes 255 and nothing else (RFC 5881 section 5).
	MinTTL uint8
	// AdminDown keeps the session, and keeps it down.
	AdminDown bool
}

// Validate names all that is wrong.
func (c SessionConfig) Validate() error {
	err := errors.Join(c.Path.Validate(), c.Params.Validate())
	if !c.Multihop && c.MinTTL != 0 && c.MinTTL != 255 {
		err = errors.Join(err, fmt.Errorf("minimum TTL %d: a single hop takes 255 only", c.MinTTL))
	}
	if err != nil {
		return fmt.Errorf("BFD session %q (%v): %w", c.Name, c.Path, err)
	}
	return nil
}

// minTTL is the least TTL accepted.
func (c *SessionConfig) minTTL() int {
	if c.Multihop {
		return int(c.MinTTL)
	}
	return 255
}

// Config is what an engine is made of. The zero value is good.
type Config struct {
	// Log gets changes, problems and, at most every ten seconds per reason, drops. Nil discards. It is written to from a goroutine of its
	// own: a log that blocks delays no packet.
	Log *slog.Logger
	// OnChange is called on the engine's thread right after a session changed, before anything else is done: it may make one netlink
	// replace. All sessions wait meanwhile; it must not block, nor call the engine.
	OnChange func(Change)
	// Priority is the SCHED_FIFO priority of the engine's thread, 1 to 99; 0 means 50, negative leaves the scheduling alone.
	Priority int
}

// Change is a session's change of state.
type Change struct {
	Name string
	Path Path
	Transition
}

// Status is what is known of one session at a moment.
type Status struct {
	Name string
	Path Path
	// State since when, and the reason for it, for operators.
	State  State
	Since  time.Time
	Diag   Diag
	Reason string
	// Remote is what the neighbour said last.
	Remote     State
	RemoteDiag Diag
	// Discriminators; RemoteDiscriminator is 0 if nothing was heard for a detection time.
	Discriminator, RemoteDiscriminator uint32
	// TxInterval is the negotiated one before jitter, 0 if nothing is sent unasked. DetectionTime is 0 before anything was heard.
	TxInterval, DetectionTime time.Duration
	Polling                   bool
	// Leaving: no longer wanted, and kept for one detection time to tell the neighbour so.
	Leaving bool
	// Problem says why the session has no socket, in words; empty if it has.
	Problem string
	Counters
	// History is the latest changes, oldest first.
	History []Transition
}

// Counters of a session since it was configured.
type Counters struct {
	Received, Sent, SendErrors uint64
	Ups, Downs                 uint64
	// Dropped counts the session's packets that were not used, by reason; none means none.
	Dropped map[string]uint64
}

// Totals are counters of the engine, and its circumstances.
type Totals struct {
	Sessions int
	// Dropped counts all packets that were not used, by reason, with or without a session.
	Dropped map[string]uint64
	// Overflowed counts packets that the kernel dropped because a receive buffer was full.
	Overflowed uint64
	// LogLost counts log lines given up because the log was slower.
	LogLost uint64
	// Scheduling is "SCHED_FIFO 50", or why not.
	Scheduling string
	// Problem says why something cannot be listened on; empty if all is well.
	Problem string
}
