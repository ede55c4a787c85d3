// Package overlay turns the intent into what one gateway's links shall be: tunnels to the other gateways, routes to their
// VTEPs and next-hop objects for their VXLAN. It is arithmetic only; overlay/links makes it so.
//
//	document ── Compile ──► Plan ──► fabric-links (overlay/links) ──► kernel
//
// All names, addresses and ids are derived by hash from names in the document, so that every gateway and every start
// comes to the same ones and nothing has to be remembered.
package overlay

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// PlanVersion is the version of Plan's format. fabric-links and fabric-site are upgraded one after the other, so the version
// before and the version after are understood too: fields may be added, none may change its meaning.
const PlanVersion = 1

// VersionError says that a plan is of a version that is not understood.
type VersionError struct{ Got int }

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("links plan: version %d is not understood, this program understands %d to %d; install fabric-site and fabric-links of neighbouring releases",
		e.Got, max(1, PlanVersion-1), PlanVersion+1)
}

// Plan is what one gateway's links shall be. It names key files and holds no key.
type Plan struct {
	// Version is PlanVersion of the program that made the plan.
	Version int `json:"version"`
	// Fabric and Gateway say whose plan it is.
	Fabric  string `json:"fabric"`
	Gateway string `json:"gateway"`
	// VTEP is the gateway's own loopback on lo.
	VTEP netip.Addr `json:"vtep"`
	// Tunnels, ordered by remote gateway and rank.
	Tunnels []Tunnel `json:"tunnels,omitempty"`
	// VTEPs are the remote ones, ordered by gateway.
	VTEPs []RemoteVTEP `json:"vteps,omitempty"`
	// NextHops, ordered by VNI and gateway.
	NextHops []NextHop `json:"next-hops,omitempty"`
	// Listener takes the connections of "tls" tunnels; nil where no other gateway dials this one.
	Listener *Listener `json:"listener,omitempty"`
	// Sessions are BFD sessions with third-party peers, ordered by name. Those on tunnels are the tunnels'.
	Sessions []Session `json:"sessions,omitempty"`
	// Sets are the next-hop sets that routes use now, ordered by ID.
	Sets []NextHopSet `json:"sets,omitempty"`
	// SetsWhole: no route refers to a set that is not in Sets. Without it fabric-links keeps those of the plan before: deleting a
	// next-hop object deletes the routes that refer to it.
	SetsWhole bool `json:"sets-whole,omitempty"`
	// Kept are the sets that fabric-links has kept so. fabric-site sends none.
	Kept []NextHopSet `json:"kept-sets,omitempty"`
	// KeptSlots are, by device, the slots of tunnels that had some in the plan before and have none now, which fabric-links has kept
	// (KeepSlots). fabric-site sends none.
	KeptSlots map[string][]Slot `json:"kept-slots,omitempty"`
}

// BFD are the timers of a session.
type BFD struct {
	// IntervalMs is how often packets are sent and wanted, at most, in milliseconds.
	IntervalMs int `json:"interval-ms"`
	// Multiplier is the detect multiplier.
	Multiplier int `json:"multiplier"`
}

// Session is a BFD session with a third-party peer.
type Session struct {
	BFD
	// Name is VRF/PEER.
	Name string `json:"name"`
	VRF  string `json:"vrf"`
	Peer string `json:"peer"`
	// VRFDevice is the VRF's device, "" where rules stand in for it.
	VRFDevice string `json:"vrf-device,omitempty"`
	// Interface holds a single hop session to a device; "" with several hops.
	Interface string     `json:"interface,omitempty"`
	Local     netip.Addr `json:"local"`
	Remote    netip.Addr `json:"remote"`
	// Multihop is RFC 5883; MinTTL the least TTL accepted then.
	Multihop bool `json:"multihop,omitempty"`
	MinTTL   int  `json:"min-ttl,omitempty"`
	// Auth is "", "simple", "sha1" or "meticulous-sha1"; KeyFile holds the key.
	Auth    string `json:"auth,omitempty"`
	KeyID   int    `json:"key-id,omitempty"`
	KeyFile string `json:"key-file,omitempty"`
}

// Tunnel is one interface to one remote gateway.
type Tunnel struct {
	// Device is TunnelDevice, Name is TunnelName.
	Device string `json:"device"`
	Name   string `json:"name"`
	// Remote gateway.
	Remote string `json:"remote"`
	// Rank 0 is preferred; tunnels of equal rank share traffic.
	Rank int `json:"rank"`
	// Kind is KindWireGuard, KindTLS or KindDirect.
	Kind string `json:"kind"`
	// MTU in bytes.
	MTU int `json:"mtu"`
	// LinkLocal is the interface's address, RemoteLinkLocal the other end's.
	LinkLocal       netip.Addr `json:"link-local"`
	RemoteLinkLocal netip.Addr `json:"remote-link-local"`
	// ListenPort is the local UDP port; 0 with KindTLS.
	ListenPort int `json:"listen-port"`
	// Endpoint is dialled; zero on the passive side (X15) and with KindTLS. Of a direct tunnel it is the far end.
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
	// Local is the address that a direct tunnel starts from, VNI its VXLAN network identifier.
	Local netip.Addr `json:"local,omitzero"`
	VNI   uint32     `json:"vni,omitempty"`
	// PublicKey of the other end, base64; "" of a direct tunnel.
	PublicKey string `json:"public-key,omitempty"`
	// PrivateKeyFile holds our key; "" for a direct tunnel.
	PrivateKeyFile string `json:"private-key-file,omitempty"`
	// Keepalive in seconds, 0 on the passive side (X16).
	Keepalive int `json:"keepalive,omitempty"`
	// BFD are the timers of the session on the tunnel, between the link-local addresses. Nil, in a plan of an older fabric-site:
	// the handshake alone tells whether the tunnel is alive.
	BFD *BFD `json:"bfd,omitempty"`
	// Carrier is how the packets of KindTLS travel; nil with other kinds.
	Carrier *Carrier `json:"carrier,omitempty"`
	// PresharedKeyFile holds the key that both ends have beside the others, "" for none.
	PresharedKeyFile string `json:"preshared-key-file,omitempty"`
	// Slots are the places for later generations of keys. None, in a plan of an older fabric-site or where there are no ports for
	// them: the tunnel keeps its keys.
	Slots []Slot `json:"slots,omitempty"`
	// RekeyAge in seconds is the age at which keys are replaced, 0 for never.
	RekeyAge int `json:"rekey-age,omitempty"`
	// Planned is the device of the tunnel in the plan where this is a later generation of its keys; "" for the plan's own. fabric-links sets it.
	Planned string `json:"-"`
}

// RemoteVTEP is another gateway's loopback and the ways to it.
type RemoteVTEP struct {
	Gateway string     `json:"gateway"`
	Addr    netip.Addr `json:"addr"`
	// Devices of the tunnels, in rank order. The route goes over those of the best rank that are up.
	Devices []string `json:"devices,omitempty"`
	// Problem says why there are no Devices.
	Problem string `json:"problem,omitempty"`
	// Via are the hubs that lead to it, in order of preference, where there are no tunnels of our own to it: Devices are then those of the
	// tunnels to the hubs. An older fabric-links takes the first that is up.
	Via []string `json:"via,omitempty"`
	// BFD are the timers of the multihop session (RFC 5883) with it across a hub, between the VTEPs; nil without Via.
	BFD *BFD `json:"bfd,omitempty"`
}

// NextHop is a next-hop object: one remote VTEP on one VXLAN device, shared by all routes of both families.
type NextHop struct {
	// ID is NextHopID.
	ID uint32 `json:"id"`
	// Device is VXLANDevice(VNI); fabric-site makes it.
	Device string `json:"device"`
	// Gateway is VTEPGateway(VTEP).
	Gateway netip.Addr `json:"gateway"`
	VNI     uint32     `json:"vni"`
	VTEP    netip.Addr `json:"vtep"`
}

// Digest identifies the plan's contents, but for what fabric-links has kept.
func (p Plan) Digest() string {
	p.Kept, p.KeptSlots = nil, nil
	b, err := json.Marshal(p)
	if err != nil {
		// Plan has only strings, numbers and addresses: all marshal.
		panic("overlay: " + err.Error())
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

// ParsePlan reads a plan as json.Marshal writes it. Fields of a newer version are passed over. A version that is not
// understood is a *VersionError.
func ParsePlan(data []byte) (Plan, error) {
	// The version comes first: what another version means by the rest is not ours to judge.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Plan{}, fmt.Errorf("links plan: %w", err)
	}
	if err := checkVersion(head.Version); err != nil {
		return Plan{}, err
	}
	var p Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return Plan{}, fmt.Errorf("links plan: %w", err)
	}
	if err := p.Validate(); err != nil {
		return Plan{}, err
	}
	return p, nil
}

func checkVersion(v int) error {
	if v < 1 || v < PlanVersion-1 || v > PlanVersion+1 {
		return &VersionError{Got: v}
	}
	return nil
}

// Validate tells all that is wrong with a plan: it comes over a socket or from a disk, and is carried out by a process
// with the right to change the network. A version that is not understood is a *VersionError and nothing else is looked at.
func (p Plan) Validate() error {
	if err := checkVersion(p.Version); err != nil {
		return err
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("links plan: "+format, args...))
	}
	if p.Gateway == "" {
		bad("no gateway name")
	}
	if !unicast(p.VTEP) {
		bad("own VTEP %q is not a unicast address", p.VTEP)
	}
	devices := map[string]int{}
	ports := map[int]string{}
	for i, t := range p.Tunnels {
		if !strings.HasPrefix(t.Device, TunnelPrefix) || len(t.Device) > 15 || strings.ContainsAny(t.Device, "/ .\t\n") {
			bad("tunnel %q: device %q is not of the form %s…", t.Name, t.Device, TunnelPrefix)
		}
		if j, ok := devices[t.Device]; ok {
			bad("tunnels %q and %q: both use device %s", p.Tunnels[j].Name, t.Name, t.Device)
		}
		devices[t.Device] = i
		if t.MTU < 1280 {
			bad("tunnel %q: MTU %d is less than the 1280 bytes that IPv6 needs", t.Name, t.MTU)
		}
		if !t.LinkLocal.Is6() || !t.LinkLocal.IsLinkLocalUnicast() {
			bad("tunnel %q: %q is not an IPv6 link-local address", t.Name, t.LinkLocal)
		}
		switch t.Kind {
		case KindDirect:
			p.validateDirect(i, bad)
			continue
		case KindWireGuard, KindTLS:
			p.validateCarrier(t, func(format string, args ...any) { bad("tunnel %q: "+format, append([]any{t.Name}, args...)...) })
		default:
			bad("tunnel %q: kind %q is not known; install fabric-links of fabric-site's release", t.Name, t.Kind)
		}
		if t.Kind == KindTLS {
			// It has no UDP port.
		} else if t.ListenPort < 1 || t.ListenPort > 65535 {
			bad("tunnel %q: listen port %d is not a port", t.Name, t.ListenPort)
		} else if other, ok := ports[t.ListenPort]; ok {
			bad("tunnels %q and %q: both listen on port %d", other, t.Name, t.ListenPort)
		}
		if t.ListenPort != 0 {
			ports[t.ListenPort] = t.Name
		}
		if _, err := ParsePublicKey(t.PublicKey); err != nil {
			bad("tunnel %q: public key: %w", t.Name, err)
		}
		if !filepath.IsAbs(t.PrivateKeyFile) {
			bad("tunnel %q: private key file %q is not an absolute path", t.Name, t.PrivateKeyFile)
		}
		if t.Keepalive < 0 || t.Keepalive > 65535 {
			bad("tunnel %q: keepalive of %d s is out of range", t.Name, t.Keepalive)
		}
	}
	p.validateKeys(devices, ports, bad)
	addrs := map[netip.Addr]string{}
	for _, v := range p.VTEPs {
		if !unicast(v.Addr) || v.Addr.Is4() != p.VTEP.Is4() {
			bad("VTEP %q of %s is not a unicast address of the own VTEP's family", v.Addr, v.Gateway)
		}
		if v.Addr == p.VTEP {
			bad("VTEP %s of %s is the own one", v.Addr, v.Gateway)
		}
		if other, ok := addrs[v.Addr]; ok {
			bad("VTEP %s belongs to both %s and %s", v.Addr, other, v.Gateway)
		}
		addrs[v.Addr] = v.Gateway
		for _, d := range v.Devices {
			if i, ok := devices[d]; !ok || i < 0 {
				bad("VTEP %s of %s: no tunnel has device %q", v.Addr, v.Gateway, d)
			}
		}
	}
	p.validateTransits(bad)
	ids := map[uint32]NextHop{}
	for _, n := range p.NextHops {
		if n.ID < NextHopFirst {
			bad("next hop %d is below the fabric's range, which begins at %d", n.ID, NextHopFirst)
		}
		if m, ok := ids[n.ID]; ok {
			bad("next hop %d stands for both VTEP %s on VNI %d and VTEP %s on VNI %d; choose another VNI for one of them", n.ID, m.VTEP, m.VNI, n.VTEP, n.VNI)
		}
		ids[n.ID] = n
		if n.Device == "" || len(n.Device) > 15 {
			bad("next hop %d: device %q is not a device name", n.ID, n.Device)
		}
		if !n.Gateway.IsValid() {
			bad("next hop %d has no gateway", n.ID)
		}
	}
	p.validateListener(bad)
	p.validateGroups(bad)
	p.validateSessions(bad)
	p.validateSets(bad)
	return errors.Join(errs...)
}

// unicast says whether a is an address that one host may have and others may reach.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && a.Zone() == ""
}

// ParsePublicKey reads a base64 Curve25519 key.
func ParsePublicKey(s string) ([32]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 32 {
		return [32]byte{}, errors.New("not 32 bytes in base64")
	}
	return [32]byte(b), nil
}
