package bfd

import "strconv"

// State is a session's state as it is sent (RFC 5880 section 4.1, Sta).
type State uint8

// The states of RFC 5880 section 6.2.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

var stateNames = [...]string{"admin-down", "down", "init", "up"}

// String is the state in lower case: "admin-down", "down", "init", "up".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "state " + strconv.Itoa(int(s))
}

// Diag is the reason a system gives for its last change of state (RFC 5880 section 4.1, Diag).
type Diag uint8

// The diagnostics of RFC 5880. This package sets None, Expired, NeighbourDown and AdministrativelyDown; the rest are only received.
const (
	DiagNone                 Diag = 0
	DiagExpired              Diag = 1
	DiagEchoFailed           Diag = 2
	DiagNeighbourDown        Diag = 3
	DiagForwardingReset      Diag = 4
	DiagPathDown             Diag = 5
	DiagConcatenatedDown     Diag = 6
	DiagAdministrativelyDown Diag = 7
	DiagReverseConcatenated  Diag = 8
)

var diagNames = [...]string{
	"no diagnostic",
	"control detection time expired",
	"echo function failed",
	"neighbour signaled session down",
	"forwarding plane reset",
	"path down",
	"concatenated path down",
	"administratively down",
	"reverse concatenated path down",
}

// String is the RFC's name of the diagnostic.
func (d Diag) String() string {
	if int(d) < len(diagNames) {
		return diagNames[d]
	}
	return "diagnostic " + strconv.Itoa(int(d))
}

// Drop says why a received datagram was not used. The zero value, Kept, says that it was.
type Drop uint8

// Why datagrams are dropped. The first group needs no session, the second is about which session is meant, the third is the session's
// own judgement.
const (
	Kept              Drop = iota
	DropShort              // fewer bytes than a header, or than the packet's own length field
	DropVersion            // version is not 1
	DropLength             // length field below 24, or below 26 with authentication
	DropMultiplier         // detection multiplier 0
	DropMultipoint         // M bit
	DropPollFinal          // P and F together
	DropMyDiscr            // my discriminator 0
	DropYourDiscr          // your discriminator 0 in state Init or Up
	DropAuthMalformed      // authentication section that does not fill the packet, or of a wrong size for its type

	DropControl   // the kernel's report (TTL, address, interface) is missing or the datagram was cut
	DropTTL       // not 255 on a single hop, or below the session's minimum on several
	DropNoSession // nobody here has this discriminator, or waits for this neighbour
	DropSource    // the session is there, and with another neighbour or local address
	DropInterface // the session is there, and on another interface, VRF or port

	DropAuthMissing    // session has authentication, packet has none
	DropAuthUnexpected // packet has authentication, session has none
	DropAuthType       // another type than the session's
	DropAuthKey        // key id that the session does not have
	DropAuthSequence   // replayed, or too far ahead
	DropAuthDigest     // wrong password or digest

	dropReasons // how many there are
)

var dropNames = [dropReasons]string{
	"kept", "short", "version", "length", "multiplier", "multipoint", "poll-and-final", "my-discriminator", "your-discriminator",
	"auth-malformed", "control-data", "ttl", "no-session", "source", "interface", "auth-missing", "auth-unexpected", "auth-type",
	"auth-key", "auth-sequence", "auth-digest",
}

// String is a name fit for a metric's label.
func (d Drop) String() string {
	if d < dropReasons {
		return dropNames[d]
	}
	return "drop " + strconv.Itoa(int(d))
}
