package check

import (
	"context"
	"net/netip"
	"time"

	"fabric/cloud"
	"fabric/internal/config"
	"fabric/internal/kernel"
)

// Facts is everything Run judges: the document and what was found on the host. Gather fills it. A fact that could not be read
// is absent (nil, or not in its map) and named in Unread; no check then speaks of it.
type Facts struct {
	Document *config.Document
	// Gateway is this host's name in the document.
	Gateway string

	// Features is nil where they could not be tried (CAP_NET_ADMIN is missing). Release is the kernel's in any case.
	Features *kernel.Features
	Release  string
	// Host is what stands on the host; the parts that are missing are in its Unread.
	Host kernel.Survey
	// Strangers are the sentences of kernel.Host.Strangers about the tables of the document's VRFs.
	Strangers []string
	// Sysctls by key, as in vrf.Host.Sysctls. What this kernel has not is not there.
	Sysctls map[string]string
	// Ports are sockets of this network namespace that listen (TCP) or are bound (UDP).
	Ports []Port
	// Paths are the underlay's, one per address that tunnels dial.
	Paths []Path

	// Probes are the ways that were probed; nil where that was not asked for.
	Probes []Probe
	// Cloud is what the VPC's API answered, CloudErr why it did not; both are empty outside a cloud and where it was not asked.
	Cloud    cloud.Examination
	CloudErr error

	// Key is the WireGuard private key file, Secrets are all other files that only the daemon may read.
	Key     File
	Secrets []File
	// Certificate is that of TLS tunnels, its PublicKey the pin; zero where none is needed.
	Certificate File
	// TUN is why /dev/net/tun cannot be opened, nil when it can.
	TUN error
	// State is the state folder.
	State Folder

	// Synchronised is what the kernel says of its clock, nil if it could not be asked.
	Synchronised *bool
	// Root is set when the check runs as the user root, Capabilities are its effective ones as a bit mask.
	Root         bool
	Capabilities uint64
	// OpenFiles is the hard limit of open files, to which the daemons raise theirs; 0 is unknown.
	OpenFiles uint64

	// Running is set when fabric-site answers on its socket; Links is why fabric-links does not, nil when it does.
	Running bool
	Links   error
	// Networkd and NetworkManager are nil where they do not run.
	Networkd       *Networkd
	NetworkManager *NetworkManager
	// CloudInit is set when cloud-init writes the network's configuration at boot. Agents are running host agents that are
	// known to set addresses or routes.
	CloudInit bool
	Agents    []string
	// LegacyTables are the tables of iptables' legacy kernel interface, which nft does not show.
	LegacyTables []string

	Unread []kernel.Unread
}

// Port is a local port in use.
type Port struct {
	// Network is "udp" or "tcp".
	Network string
	Local   netip.AddrPort
	// Kernel is set for a socket of the kernel itself: WireGuard, VXLAN.
	Kernel bool
	// Owner is the name and number of the process, "" if not found; Ours when it is one of the fabric's programs.
	Owner string
	Ours  bool
}

// unowned reports whether no process has the socket, as far as can be seen. The kernel's own have a number like all others.
func (p Port) unowned() bool { return p.Kernel || p.Owner == "" }

// Path is what the host knows of the way to an address outside the fabric.
type Path struct {
	To netip.Addr
	// Device that packets leave by, MTU of the route in bytes: the device's, or what was learnt (RFC 1191, RFC 8201).
	Device string
	MTU    int
	// Err is why there is no route.
	Err error
}

// File is a file that only the daemon may read.
type File struct {
	// Purpose is like "BGP password of peer core".
	Purpose, Path string
	// Err is config.ReadSecretFile's: missing, too wide a mode, foreign owner. It quotes no secret.
	Err error
	// PublicKey belongs to the private key in the file; "" for other secrets.
	PublicKey string
}

// Folder is a folder that is written to.
type Folder struct {
	Path string
	// Missing folders are made by the service manager; Err is why one that is there cannot be written to.
	Missing bool
	Err     error
	// Free is the space, in bytes, and FreeFiles the number of files that fit; both are -1 if unknown.
	Free, FreeFiles int64
}

// Networkd is systemd-networkd's configuration as far as it endangers what it has not made itself. Its defaults are yes.
type Networkd struct{ ForeignRoutes, ForeignRules bool }

// NetworkManager is what the configuration of NetworkManager leaves alone: the device specifications of unmanaged-devices.
type NetworkManager struct{ Unmanaged []string }

// Options are where the daemons' files are; zero values are the defaults of the units.
type Options struct {
	// StateDir is fabric-site's state folder.
	StateDir string
	// Socket is fabric-site's, Links fabric-links' unix socket.
	Socket, Links string
	// Probe asks for probes: packets to the other gateways, which take seconds where they are lost, and Cloud.
	Probe bool
	// Cloud asks the API of the site's cloud; nil where the gateway keeps no table. It changes nothing.
	Cloud func(context.Context) (cloud.Examination, error)
	// Confined is set where the check runs within the service: its sandbox hides devices that others have.
	Confined bool
	// Root is put before paths below /etc and /run/systemd; for a look at an image.
	Root string
}

// timeout bounds each question to another process.
const timeout = 2 * time.Second

// cloudTimeout bounds all questions to the cloud's API.
const cloudTimeout = 20 * time.Second
