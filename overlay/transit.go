package overlay

import (
	"cmp"
	"slices"
	"strings"

	"fabric/internal/config"
)

// TransitMinTTL is the least TTL of BFD packets that have crossed a hub: sent with 255, less the one that the hub takes off.
const TransitMinTTL = 254

// TransitName is the name of the BFD session with a gateway across a hub. Those on tunnels end in a number, those with peers have one slash.
func TransitName(local, remote string) string { return local + "/" + remote + "/transit" }

// compileTransits makes the remote VTEPs that are reached over hubs: the ways there are the tunnels to the hubs, which are among tunnels in
// rank order as far as there are any.
func compileTransits(doc *config.Document, transits []config.Transit, tunnels []Tunnel) []RemoteVTEP {
	var out []RemoteVTEP
	for _, t := range transits {
		bfd := compileBFD(doc, config.BFD{})
		v := RemoteVTEP{Gateway: t.Remote.Name, Addr: t.Remote.VTEP, BFD: &bfd}
		for _, hub := range t.Hubs {
			v.Via = append(v.Via, hub.Remote.Name)
			for _, tunnel := range tunnels {
				if tunnel.Remote == hub.Remote.Name {
					v.Devices = append(v.Devices, tunnel.Device)
				}
			}
		}
		if len(v.Devices) == 0 {
			v.Problem = "there is no tunnel to " + strings.Join(v.Via, " or ") + ", over which it would be reached"
		}
		out = append(out, v)
	}
	return out
}

// remoteGateways are all that a gateway reaches, sorted by name.
func remoteGateways(neighbours []config.Link, transits []config.Transit) []*config.Gateway {
	var out []*config.Gateway
	for _, l := range neighbours {
		out = append(out, l.Remote)
	}
	for _, t := range transits {
		out = append(out, t.Remote)
	}
	slices.SortStableFunc(out, func(a, b *config.Gateway) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Hub is the gateway whose tunnels the VTEP is reached over by way of a device; "" for a VTEP with tunnels of its own.
func (p Plan) Hub(v RemoteVTEP, device string) string {
	if len(v.Via) == 0 {
		return ""
	}
	if i := slices.IndexFunc(p.Tunnels, func(t Tunnel) bool { return t.Device == device }); i >= 0 {
		return p.Tunnels[i].Remote
	}
	return ""
}

// validateTransits calls bad for all that is wrong with VTEPs across hubs. Their devices are checked as others' are.
func (p Plan) validateTransits(bad func(format string, args ...any)) {
	remotes := map[string]string{}
	for _, t := range p.Tunnels {
		remotes[t.Device] = t.Remote
	}
	for _, v := range p.VTEPs {
		if len(v.Via) == 0 {
			if v.BFD != nil {
				bad("VTEP %s of %s has BFD timers but no hub: the sessions are those of its tunnels", v.Addr, v.Gateway)
			}
			continue
		}
		if slices.Contains(v.Via, v.Gateway) || slices.Contains(v.Via, p.Gateway) {
			bad("VTEP %s of %s is reached over itself or over this gateway", v.Addr, v.Gateway)
		}
		for _, d := range v.Devices {
			if remote, ok := remotes[d]; ok && !slices.Contains(v.Via, remote) {
				bad("VTEP %s of %s: device %q leads to %s, which is none of its hubs", v.Addr, v.Gateway, d, remote)
			}
		}
		if v.BFD != nil {
			v.BFD.validate(func(format string, args ...any) {
				bad("VTEP %s of %s: BFD: "+format, append([]any{v.Addr, v.Gateway}, args...)...)
			})
		}
	}
}

// transitMTU is the least MTU of the tunnels from hubs to the gateways that are reached over them; 0 if there are none. Those to the hubs
// are the gateway's own.
func transitMTU(doc *config.Document, gateway string) (least int) {
	for _, t := range doc.Transits(gateway) {
		for _, tunnels := range t.Onward {
			for place, tunnel := range tunnels {
				if m := tunnelMTU(doc, tunnel, t.Remote, place); least == 0 || m < least {
					least = m
				}
			}
		}
	}
	return least
}
