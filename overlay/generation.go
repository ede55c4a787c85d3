package overlay

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fabric/internal/config"
)

// The keys of a WireGuard tunnel have generations. Generation 0 are the gateways' identity keys, which the document names; later ones
// belong to one tunnel, are agreed inside it and live with fabric-links. Two generations are up side by side while one follows the
// other, so each has a place of its own, its slot: device, link-local addresses and port.

// slots is how many places a tunnel has: 0 for generation 0, then odd and even generations in turn.
const slots = 3

// SlotOf is the slot that a generation of keys takes: 0 for the identity keys, 1 for odd ones, 2 for even ones.
func SlotOf(generation int) int {
	if generation <= 0 {
		return 0
	}
	return 2 - generation%2
}

// Slot is a place for a later generation of a tunnel's keys, as Tunnel is for generation 0.
type Slot struct {
	// Device and Name, unique among all tunnels and slots.
	Device string `json:"device"`
	Name   string `json:"name"`
	// LinkLocal is the interface's address, RemoteLinkLocal the other end's.
	LinkLocal       netip.Addr `json:"link-local"`
	RemoteLinkLocal netip.Addr `json:"remote-link-local"`
	// ListenPort is the local UDP port.
	ListenPort int `json:"listen-port"`
	// Endpoint is dialled; zero on the passive side.
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
}

// SlotDevice is TunnelDevice for a slot; slot 0 is the tunnel's own.
func SlotDevice(local, remote string, place, slot int) string {
	if slot == 0 {
		return TunnelDevice(local, remote, place)
	}
	s := sum("tunnel", local, remote, strconv.Itoa(place), "slot", strconv.Itoa(slot))
	return TunnelPrefix + hex.EncodeToString(s[:6])
}

// SlotLinkLocal is LinkLocal for a slot; slot 0 is the tunnel's own.
func SlotLinkLocal(local, remote string, place, slot int) netip.Addr {
	if slot == 0 {
		return LinkLocal(local, remote, place)
	}
	s := sum("link-local", local, remote, strconv.Itoa(place), "slot", strconv.Itoa(slot))
	return linkLocal([8]byte(s[:8]))
}

// makeSlots are the further places of the tunnel at the given place of its link's list. Its ports are SlotStride above the tunnel's own, and twice that. None if
// they do not fit below 65536 or meet the port of the VRFs' VXLAN or of direct tunnels: the tunnel keeps its identity keys then.
func makeSlots(doc *config.Document, own, remote string, place int, t Tunnel) []Slot {
	made := make([]Slot, 0, slots-1)
	for i := 1; i < slots; i++ {
		offset := i * doc.SlotStride()
		s := Slot{
			Device:          SlotDevice(own, remote, place, i),
			Name:            t.Name + "." + strconv.Itoa(i),
			LinkLocal:       SlotLinkLocal(own, remote, place, i),
			RemoteLinkLocal: SlotLinkLocal(remote, own, place, i),
			ListenPort:      t.ListenPort + offset,
		}
		ports := []int{s.ListenPort}
		if t.Endpoint.IsValid() {
			port := int(t.Endpoint.Port()) + offset
			ports = append(ports, port)
			s.Endpoint = netip.AddrPortFrom(t.Endpoint.Addr(), uint16(port))
		}
		for _, p := range ports {
			if p > 65535 || p == doc.Fabric.VXLANPort || p == doc.Fabric.DirectPort {
				return nil
			}
		}
		made = append(made, s)
	}
	return made
}

// KeepSlots takes over the slots of tunnels that had some in a former plan, and of which p does not say any, as a fabric-site does that does not know
// of them: keys that two ends have agreed are in use there. Not so where the tunnel itself is another one by now, or the places are taken.
func (p *Plan) KeepSlots(former Plan) {
	devices, ports := map[string]bool{}, map[int]bool{}
	take := func(t Tunnel) {
		for _, d := range t.Devices() {
			devices[d] = true
		}
		for _, n := range t.ListenPorts() {
			ports[n] = true
		}
	}
	for _, t := range p.Tunnels {
		take(t)
	}
	was := map[string]Tunnel{}
	for _, t := range former.Slotted() {
		was[t.Device] = t
	}
	p.KeptSlots = nil
	for _, t := range p.Tunnels {
		old := was[t.Device]
		same := t.Kind == old.Kind && t.ListenPort == old.ListenPort && t.Endpoint == old.Endpoint && t.PublicKey == old.PublicKey
		taken := slices.ContainsFunc(old.Slots, func(s Slot) bool { return devices[s.Device] || ports[s.ListenPort] })
		if len(t.Slots) > 0 || len(old.Slots) == 0 || !same || taken {
			continue
		}
		if p.KeptSlots == nil {
			p.KeptSlots = map[string][]Slot{}
		}
		p.KeptSlots[t.Device] = old.Slots
		take(Tunnel{Slots: old.Slots})
	}
}

// Slotted are the plan's tunnels, with the slots that were kept.
func (p Plan) Slotted() []Tunnel {
	if len(p.KeptSlots) == 0 {
		return p.Tunnels
	}
	tunnels := slices.Clone(p.Tunnels)
	for i, t := range tunnels {
		if len(t.Slots) == 0 {
			tunnels[i].Slots = p.KeptSlots[t.Device]
		}
	}
	return tunnels
}

// Devices are the tunnel's device and those of its slots: any of them may be there.
func (t Tunnel) Devices() []string {
	devices := []string{t.Device}
	for _, s := range t.Slots {
		devices = append(devices, s.Device)
	}
	return devices
}

// Of is the device by which the plan names the tunnel whose generation this is.
func (t Tunnel) Of() string { return cmp.Or(t.Planned, t.Device) }

// ListenPorts are the tunnel's UDP port, if it has one, and those of its slots.
func (t Tunnel) ListenPorts() []int {
	var ports []int
	if t.ListenPort != 0 {
		ports = append(ports, t.ListenPort)
	}
	for _, s := range t.Slots {
		ports = append(ports, s.ListenPort)
	}
	return ports
}

// In is the tunnel moved to a slot, with that slot's device, addresses and port; slot 0 is the tunnel itself. False if it has no such slot.
func (t Tunnel) In(slot int) (Tunnel, bool) {
	if slot == 0 {
		return t, true
	}
	if slot < 0 || slot > len(t.Slots) {
		return Tunnel{}, false
	}
	s := t.Slots[slot-1]
	t.Device, t.Name, t.LinkLocal, t.RemoteLinkLocal = s.Device, s.Name, s.LinkLocal, s.RemoteLinkLocal
	t.ListenPort, t.Endpoint = s.ListenPort, s.Endpoint
	return t, true
}

// validateKeys calls bad for all that is wrong with a plan's slots, preshared keys and rekey ages. Devices and ports are those that
// tunnels take, by name.
func (p Plan) validateKeys(devices map[string]int, ports map[int]string, bad func(format string, args ...any)) {
	for _, t := range p.Slotted() {
		if t.PresharedKeyFile != "" && !filepath.IsAbs(t.PresharedKeyFile) {
			bad("tunnel %q: preshared key file %q is not an absolute path", t.Name, t.PresharedKeyFile)
		}
		if t.RekeyAge < 0 {
			bad("tunnel %q: rekey age of %d s is out of range", t.Name, t.RekeyAge)
		}
		if len(t.Slots) != 0 && len(t.Slots) != slots-1 {
			bad("tunnel %q: has %d slots, want %d or none", t.Name, len(t.Slots), slots-1)
		}
		for _, s := range t.Slots {
			name := fmt.Sprintf("tunnel %q: slot %q", t.Name, s.Name)
			if !strings.HasPrefix(s.Device, TunnelPrefix) || !isDeviceName(s.Device) || strings.Contains(s.Device, ".") {
				bad("%s: device %q is not of the form %s…", name, s.Device, TunnelPrefix)
			}
			if _, taken := devices[s.Device]; taken {
				bad("%s: device %s is another's too", name, s.Device)
			}
			devices[s.Device] = -1
			if s.ListenPort < 1 || s.ListenPort > 65535 {
				bad("%s: listen port %d is not a port", name, s.ListenPort)
			} else if other, taken := ports[s.ListenPort]; taken {
				bad("%s: listens on port %d as %q does", name, s.ListenPort, other)
			}
			ports[s.ListenPort] = s.Name
			if !linkLocal6(s.LinkLocal) || !linkLocal6(s.RemoteLinkLocal) || s.LinkLocal.Zone() != "" || s.RemoteLinkLocal.Zone() != "" || s.LinkLocal == s.RemoteLinkLocal {
				bad("%s: %q and %q are not the link-local addresses of two ends", name, s.LinkLocal, s.RemoteLinkLocal)
			}
		}
	}
}
