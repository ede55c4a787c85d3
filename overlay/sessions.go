package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"fabric/internal/config"
)

// defaultBFD holds where the document leaves the values out.
var defaultBFD = BFD{IntervalMs: 300, Multiplier: 3}

// defaultTTL is what Linux and others send with unless told otherwise.
const defaultTTL = 64

// The limits of a session's timers, in milliseconds and intervals.
const (
	minIntervalMs, maxIntervalMs = 10, 60_000
	maxMultiplier                = 255
)

// Host is what must be known of the gateway's host to make its plan.
type Host struct {
	// VRFDevices are the VRF devices by VRF name. A VRF without one is made of rules and marks, or is the main table.
	VRFDevices map[string]string
}

// compileBFD completes timers with the fabric's.
func compileBFD(doc *config.Document, own config.BFD) BFD {
	interval := cmp.Or(own.Interval, doc.Fabric.BFD.Interval, config.Duration(time.Duration(defaultBFD.IntervalMs)*time.Millisecond))
	return BFD{
		IntervalMs: int(interval.Std() / time.Millisecond),
		Multiplier: cmp.Or(own.Multiplier, doc.Fabric.BFD.Multiplier, defaultBFD.Multiplier),
	}
}

// compileSessions makes the sessions with the peers of a VRF that ask for BFD. A peer that is disabled has none.
func compileSessions(doc *config.Document, own *config.Gateway, gv *config.GatewayVRF, host Host) (sessions []Session, errs []error) {
	for i := range gv.Peers {
		p := &gv.Peers[i]
		if p.BFD == nil || p.Disabled {
			continue
		}
		s, err := compileSession(gv, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("gateway %s: VRF %s: BFD with peer %s: %w", own.Name, gv.VRF, s.Peer, err))
			continue
		}
		s.BFD = compileBFD(doc, p.BFD.BFD)
		s.VRFDevice = host.VRFDevices[gv.VRF]
		sessions = append(sessions, s)
	}
	return sessions, errs
}

// compileSession finds the addresses and the interface of a peer's session, the same way as its BGP session has them.
func compileSession(gv *config.GatewayVRF, p *config.Peer) (Session, error) {
	name := p.Name
	if name == "" {
		name = p.Address.String()
	}
	s := Session{
		Name: gv.VRF + "/" + name, VRF: gv.VRF, Peer: name,
		Local: p.UpdateSource, Remote: p.Address,
		Auth: p.BFD.Auth, KeyID: p.BFD.KeyID, KeyFile: p.BFD.KeyFile,
	}
	if p.Multihop > 0 {
		if !s.Local.IsValid() {
			return s, fmt.Errorf("a session over several hops needs our address; set the peer's update-source")
		}
		s.Multihop, s.MinTTL = true, multihopMinTTL(p.Multihop)
		return s, nil
	}
	device, local := connected(gv, p.Address, p.Interface)
	s.Interface = cmp.Or(p.Interface, device)
	if !s.Local.IsValid() {
		s.Local = local
	}
	switch {
	case s.Interface == "":
		return s, fmt.Errorf("%s is on no network of the VRF's interfaces, so it is not known by which one it is one hop away; set the peer's interface, or its multihop and update-source", p.Address)
	case !s.Local.IsValid():
		return s, fmt.Errorf("the document does not say which address of ours on %s is on one network with %s; set the peer's update-source to it", s.Interface, p.Address)
	}
	return s, nil
}

// multihopMinTTL is the least TTL of packets from a neighbour so many hops away. FRR sends with 255 (RFC 5883 leaves it open),
// BIRD with the host's default, 64. Each router between takes one off, and over n hops there are n-1; so that both are
// heard, it is reckoned from 64. Whoever is farther away can send with 255 and be heard too: what tells him from
// the neighbour over several hops is the key, not the TTL.
func multihopMinTTL(hops int) int { return max(1, defaultTTL-hops+1) }

// connected finds the VRF's interface that a neighbour is connected on, and our address there. A name holds it to that interface.
func connected(gv *config.GatewayVRF, neighbour netip.Addr, name string) (device string, local netip.Addr) {
	for _, i := range gv.Interfaces {
		if name != "" && i.Name != name {
			continue
		}
		for _, a := range i.Addresses {
			// The same link-local network is on every interface: it tells nothing without a name.
			if linkLocal6(neighbour) && name == "" {
				continue
			}
			if !a.IsSingleIP() && a.Contains(neighbour) {
				return i.Name, a.Addr()
			}
		}
	}
	return "", netip.Addr{}
}

func linkLocal6(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// validate calls bad for all that is wrong with a session's timers.
func (b BFD) validate(bad func(format string, args ...any)) {
	if b.IntervalMs < minIntervalMs || b.IntervalMs > maxIntervalMs {
		bad("interval of %d ms is not from %d to %d", b.IntervalMs, minIntervalMs, maxIntervalMs)
	}
	if b.Multiplier < 1 || b.Multiplier > maxMultiplier {
		bad("multiplier %d is not from 1 to %d", b.Multiplier, maxMultiplier)
	}
}

// validate calls bad for all that is wrong with a session by itself.
func (s Session) validate(bad func(format string, args ...any)) {
	s.BFD.validate(bad)
	if s.VRF == "" || s.Peer == "" || s.Name != s.VRF+"/"+s.Peer {
		bad("the name is not VRF %q, a slash and peer %q", s.VRF, s.Peer)
	}
	for _, a := range []netip.Addr{s.Local, s.Remote} {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" || a.Is4In6() {
			bad("%q is not a unicast address", a)
		}
	}
	if s.Local.Is4() != s.Remote.Is4() {
		bad("%s and %s are of different families", s.Local, s.Remote)
	} else if s.Local == s.Remote {
		bad("%s is at both ends", s.Local)
	}
	local6 := linkLocal6(s.Local) || linkLocal6(s.Remote)
	switch {
	case s.Multihop && local6:
		bad("link-local addresses reach one hop only")
	case s.Multihop && s.Interface != "":
		bad("interface %q: a session over several hops has none", s.Interface)
	case local6 && s.Interface == "":
		bad("link-local addresses need an interface")
	}
	if s.Multihop && (s.MinTTL < 1 || s.MinTTL > 255) || !s.Multihop && s.MinTTL != 0 {
		bad("least TTL %d is not from 1 to 255 over several hops, nor 0 over one", s.MinTTL)
	}
	for _, d := range []string{s.Interface, s.VRFDevice} {
		if d != "" && !isDeviceName(d) {
			bad("%q is not a device name", d)
		}
	}
	s.validateKey(bad)
}

// validateKey checks that there is a key where one is needed, and only there.
func (s Session) validateKey(bad func(format string, args ...any)) {
	if !slices.Contains([]string{"", "simple", "sha1", "meticulous-sha1"}, s.Auth) {
		bad("authentication %q is not known", s.Auth)
	}
	if s.KeyID < 0 || s.KeyID > 255 {
		bad("key id %d is not from 0 to 255", s.KeyID)
	}
	switch {
	case s.Auth == "" && (s.KeyFile != "" || s.KeyID != 0):
		bad("has a key without authentication")
	case s.Auth != "" && !filepath.IsAbs(s.KeyFile):
		bad("key file %q is not an absolute path", s.KeyFile)
	}
}

// isDeviceName is what Linux takes as the name of a device.
func isDeviceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/:") && !strings.ContainsFunc(s, func(c rune) bool {
		return unicode.IsSpace(c) || unicode.IsControl(c)
	})
}

// bfdPath is what tells sessions apart on the wire: packets of two with the same could not be told whose they are.
type bfdPath struct {
	vrfDevice, device string
	local, remote     netip.Addr
	multihop          bool
}

// validateSessions calls bad for all that is wrong with the sessions of a plan, those on tunnels included.
func (p Plan) validateSessions(bad func(format string, args ...any)) {
	names := map[string]bool{}
	paths := map[bfdPath]string{}
	add := func(name string, path bfdPath) {
		if names[name] {
			bad("BFD session %q is there twice", name)
		}
		names[name] = true
		if other, ok := paths[path]; ok {
			bad("BFD sessions %q and %q are both from %s to %s on the same interface; give one of the peers another update-source", other, name, path.local, path.remote)
		}
		paths[path] = name
	}
	for _, t := range p.Tunnels {
		if t.BFD == nil {
			continue
		}
		own := func(format string, args ...any) { bad("tunnel %q: BFD: "+format, append([]any{t.Name}, args...)...) }
		t.BFD.validate(own)
		if !linkLocal6(t.RemoteLinkLocal) || t.RemoteLinkLocal.Zone() != "" || t.RemoteLinkLocal == t.LinkLocal {
			own("%q is not the link-local address of another end", t.RemoteLinkLocal)
		}
		add(t.Name, bfdPath{device: t.Device, local: t.LinkLocal, remote: t.RemoteLinkLocal})
	}
	for _, v := range p.VTEPs {
		if v.BFD != nil {
			add(TransitName(p.Gateway, v.Gateway), bfdPath{local: p.VTEP, remote: v.Addr, multihop: true})
		}
	}
	for _, s := range p.Sessions {
		s.validate(func(format string, args ...any) { bad("BFD session %q: "+format, append([]any{s.Name}, args...)...) })
		add(s.Name, bfdPath{s.VRFDevice, s.Interface, s.Local, s.Remote, s.Multihop})
	}
}
