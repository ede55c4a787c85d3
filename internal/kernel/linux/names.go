package linux

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// Attributes of link kinds (linux/if_link.h).
const (
	vrfTable      = 1
	vxlanID       = 1
	vxlanRemote   = 2
	vxlanLocal    = 4
	vxlanTOS      = 6
	vxlanLearning = 7
	vxlanPort     = 15
	vxlanRemote6  = 16
	vxlanLocal6   = 17
)

// spreadTOS as the type of service of a VXLAN device keeps the kernel from remembering the route of a forwarding entry (vxlan_xmit_one
// does so only where it is 0), and is on no packet: its two bits are those of ECN, which are copied from the inner packet (RFC 6040).
const spreadTOS = 2

// names is a snapshot of the devices.
type names struct {
	index map[string]uint32
	name  map[uint32]string
	links map[uint32]linkInfo
}

// linkInfo is what is known of one device, ours or not.
type linkInfo struct {
	name, alias string
	// kind is the kernel's word, but for a VXLAN device of ours with a remote: kernel.KindDirect.
	kind          string
	index, master uint32
	mtu           uint32
	up            bool
	mac           [6]byte
	table         uint32
	vxlan         kernel.VXLAN
	spread        bool
}

// ours reports whether the alias says so.
func (l linkInfo) ours() bool { return strings.HasPrefix(l.alias, kernel.AliasPrefix) }

// owner says whose a device is that is not ours.
func (l linkInfo) owner() string {
	if l.alias != "" {
		return fmt.Sprintf("a %s device with alias %q", l.kindName(), l.alias)
	}
	return "a " + l.kindName() + " device without alias"
}

func (l linkInfo) kindName() string {
	if l.kind == "" {
		return "physical"
	}
	return l.kind
}

func (h *Host) names(ctx context.Context) (*names, error) { return h.namesBy(ctx, h.control) }

// namesBy asks over a connection that is not in use by the caller.
func (h *Host) namesBy(ctx context.Context, c *conn) (*names, error) {
	var n *names
	err := c.dump(ctx, func(m *message) {
		m.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.SizeofIfInfomsg)
	}, func() {
		n = &names{map[string]uint32{}, map[uint32]string{}, map[uint32]linkInfo{}}
	}, func(typ uint16, body []byte) {
		if typ != unix.RTM_NEWLINK || len(body) < unix.SizeofIfInfomsg {
			return
		}
		l := decodeLink(body)
		n.index[l.name], n.name[l.index], n.links[l.index] = l.index, l.name, l
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return n, nil
}

func decodeLink(body []byte) linkInfo {
	l := linkInfo{index: native.Uint32(body[4:]), up: native.Uint32(body[8:])&unix.IFF_UP != 0}
	attrs(body[unix.SizeofIfInfomsg:], func(t uint16, d []byte) {
		switch t {
		case unix.IFLA_IFNAME:
			l.name = cstring(d)
		case unix.IFLA_IFALIAS:
			l.alias = cstring(d)
		case unix.IFLA_MASTER:
			l.master = u32(d)
		case unix.IFLA_MTU:
			l.mtu = u32(d)
		case unix.IFLA_ADDRESS:
			if len(d) == 6 {
				copy(l.mac[:], d)
			}
		case unix.IFLA_LINKINFO:
			var data []byte
			attrs(d, func(t uint16, d []byte) {
				switch t {
				case unix.IFLA_INFO_KIND:
					l.kind = cstring(d)
				case unix.IFLA_INFO_DATA:
					data = d
				}
			})
			l.decodeKind(data)
		}
	})
	if l.ours() && l.vxlan.Remote.IsValid() {
		l.kind = string(kernel.KindDirect)
	}
	return l
}

func (l *linkInfo) decodeKind(data []byte) {
	switch l.kind {
	case "vrf":
		attrs(data, func(t uint16, d []byte) {
			if t == vrfTable {
				l.table = u32(d)
			}
		})
	case "vxlan":
		attrs(data, func(t uint16, d []byte) {
			switch t {
			case vxlanID:
				l.vxlan.VNI = u32(d)
			case vxlanLocal, vxlanLocal6:
				l.vxlan.Local = toAddr(d)
			case vxlanRemote, vxlanRemote6:
				l.vxlan.Remote = toAddr(d)
			case vxlanTOS:
				l.spread = len(d) == 1 && d[0] == spreadTOS
			case vxlanPort:
				if len(d) == 2 {
					l.vxlan.Port = uint16(d[0])<<8 | uint16(d[1])
				}
			}
		})
	}
}

// device returns the index of a device.
func (n *names) device(name string) (uint32, error) {
	if i, ok := n.index[name]; ok {
		return i, nil
	}
	return 0, fmt.Errorf("no device %q: %w", name, os.ErrNotExist)
}

// link returns a device by name.
func (n *names) link(name string) (linkInfo, bool) {
	i, ok := n.index[name]
	return n.links[i], ok
}
