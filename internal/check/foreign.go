package check

import (
	"fmt"
	"slices"
	"strings"

	"fabric/internal/kernel"
	"fabric/overlay"
)

// tableName is the fabric's nft table.
const tableName = "fabric"

// foreignChecks are about what somebody else has put where the fabric's things go. It is never overwritten.
var foreignChecks = []check{
	{"foreign-device", "A device of somebody else is left alone, so the fabric's own cannot be made under that name.", func(s *subject) (faults []fault) {
		ours := map[string]bool{}
		for name := range s.want.Links {
			ours[name] = true
		}
		for _, t := range s.plan.Tunnels {
			for _, d := range t.Devices() {
				ours[d] = true
			}
		}
		for _, d := range s.Host.Devices {
			// A TUN is a moment without alias while its process starts.
			if ours[d.Name] && !d.Ours() && d.Kind != kernel.KindTUN {
				faults = append(faults, fault{Error, fmt.Sprintf("device %s (%s) is not the fabric's", d.Name, kindName(d)), "ip link del " + d.Name})
			}
		}
		return faults
	}},
	{"foreign-vxlan", "The kernel makes one device per VNI and port.", func(s *subject) (faults []fault) {
		for _, d := range s.Host.Devices {
			if d.Kind != kernel.KindVXLAN || d.Ours() || int(d.VXLAN.Port) != s.Document.Fabric.VXLANPort {
				continue
			}
			for _, m := range s.want.VRFs {
				if m.VNI == d.VXLAN.VNI && m.VXLAN != d.Name {
					faults = append(faults, fault{Error, fmt.Sprintf("VXLAN device %s has VNI %d of VRF %s on port %d", d.Name, m.VNI, m.Name, d.VXLAN.Port), "ip link del " + d.Name})
				}
			}
		}
		return faults
	}},
	{"foreign-vrf", "The kernel takes two VRF devices for one table, but then nobody can tell whose routes are there.", func(s *subject) (faults []fault) {
		for _, d := range s.Host.Devices {
			if d.Kind == kernel.KindVRF && !d.Ours() && slices.Contains(s.want.Tables, d.Table) {
				faults = append(faults, fault{Error, fmt.Sprintf("VRF device %s has table %d and is not the fabric's", d.Name, d.Table), "ip link del " + d.Name})
			}
		}
		return faults
	}},
	{"foreign-routes", "Routes of somebody else in a VRF's table compete with those that BGP chose.", func(s *subject) (faults []fault) {
		for _, sentence := range s.Strangers {
			if !strings.HasPrefix(sentence, "VRF device") {
				faults = append(faults, fault{Warning, sentence, routeMend(sentence)})
			}
		}
		return faults
	}},
	{"foreign-nexthop", "Next-hop ids from 2147483648 are the fabric's; one that is taken cannot be made.", func(s *subject) (faults []fault) {
		var ids []uint32
		for id, nh := range s.Host.NextHops {
			if id >= overlay.NextHopFirst && nh.Protocol != kernel.ProtocolLinks {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		for _, id := range ids {
			faults = append(faults, fault{Error, fmt.Sprintf("next hop %d belongs to protocol %s", id, kernel.ProtocolName(s.Host.NextHops[id].Protocol)), fmt.Sprintf("ip nexthop del id %d", id)})
		}
		return faults
	}},
	{"foreign-nft-table", "The table inet fabric holds the MSS clamp and the VXLAN guard; no session starts without it.", func(s *subject) []fault {
		own := kernel.AliasPrefix + s.Gateway
		for _, t := range s.Host.Tables {
			switch {
			case t.Family != "inet" || t.Name != tableName || t.Comment == own:
			case strings.HasPrefix(t.Comment, kernel.AliasPrefix):
				return one(Warning, "", "nft table inet fabric is of gateway %s; fabric-site will replace it", strings.TrimPrefix(t.Comment, kernel.AliasPrefix))
			default:
				return one(Error, "nft delete table inet fabric", "nft table inet fabric is not the fabric's")
			}
		}
		return nil
	}},
}

func kindName(d kernel.Device) string {
	if d.Kind == "" {
		return "physical"
	}
	return string(d.Kind)
}

// routeMend is the command for a sentence like "route 10.0.0.0/8 table 200 metric 0 is not ours...".
func routeMend(sentence string) string {
	f := strings.Fields(sentence)
	if len(f) < 6 || f[0] != "route" || f[2] != "table" {
		return ""
	}
	if strings.Contains(f[1], ":") {
		return fmt.Sprintf("ip -6 route del %s table %s metric %s", f[1], f[3], f[5])
	}
	return fmt.Sprintf("ip route del %s table %s metric %s", f[1], f[3], f[5])
}
