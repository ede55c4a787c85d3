package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

type linkOp = reconcile.Op[string, kernel.Link]

// linkEdge is the kernel.Links of some kinds.
type linkEdge struct {
	h     *Host
	kinds []kernel.LinkKind
}

// Links are our devices of the kinds named, or of every kind when none is named. Within one Apply VRF devices are made
// before what is enslaved to them.
func (h *Host) Links(kinds ...kernel.LinkKind) kernel.Links { return &linkEdge{h, kinds} }

// Equal implements reconcile.Equaler.
func (e *linkEdge) Equal(name string, want, have kernel.Link) bool {
	return kernel.EqualLink(name, want, have)
}

func (e *linkEdge) mine(kind kernel.LinkKind) bool {
	return len(e.kinds) == 0 || slices.Contains(e.kinds, kind)
}

// Observe implements reconcile.Edge.
func (e *linkEdge) Observe(ctx context.Context) (map[string]kernel.Link, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]kernel.Link{}
	for _, l := range n.links {
		if kind := kernel.LinkKind(l.kind); l.ours() && e.mine(kind) {
			found[l.name] = kernel.Link{
				Name: l.name, Kind: kind, Alias: l.alias, MTU: int(l.mtu), Up: l.up,
				Table: l.table, VXLAN: l.vxlan, Spread: l.spread, MAC: l.mac, Master: n.name[l.master],
			}
		}
	}
	return found, nil
}

// Apply implements reconcile.Edge.
func (e *linkEdge) Apply(ctx context.Context, ops []linkOp) []error {
	errs := make([]error, len(ops))
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		return ops[order[a]].New.Kind == kernel.KindVRF && ops[order[b]].New.Kind != kernel.KindVRF
	})
	for _, i := range order {
		n, err := e.h.names(ctx)
		if err == nil {
			err = e.apply(n, ops[i])
		}
		var foreign *reconcile.ForeignError
		if err != nil && !errors.As(err, &foreign) {
			err = fmt.Errorf("%s link %s: %w", ops[i].Kind, ops[i].Key, err)
		}
		errs[i] = err
	}
	return errs
}

func (e *linkEdge) apply(n *names, op linkOp) error {
	have, ok := n.link(op.Key)
	if ok && !have.ours() && !(op.New.Kind == kernel.KindTUN && have.kind == "tun" && have.alias == "") {
		return &reconcile.ForeignError{
			What:  "device " + op.Key,
			Owner: have.owner(),
			Mend:  "rename or delete it",
		}
	}
	if op.Kind == reconcile.Delete {
		return e.remove(have, ok)
	}
	want := op.New
	if len(op.Key) > 15 || want.Name != op.Key {
		return fmt.Errorf("name %q is longer than 15 bytes or not the key", want.Name)
	}
	var slaves []uint32
	if ok && (have.kind != string(want.Kind) || have.vxlan != want.VXLAN || have.table != want.Table) {
		if want.Kind == kernel.KindTUN || have.kind == "tun" {
			return fmt.Errorf("it is of kind %s and the tunnel process keeps it open", have.kind)
		}
		// These cannot be changed on a living device. What was enslaved to a VRF device is again afterwards.
		for _, l := range n.links {
			if l.master == have.index && have.kind == string(kernel.KindVRF) {
				slaves = append(slaves, l.index)
			}
		}
		if err := e.remove(have, true); err != nil {
			return err
		}
		ok, have = false, linkInfo{}
	}
	if !ok && want.Kind == kernel.KindTUN {
		return fmt.Errorf("its tunnel process has not made it yet: %w", os.ErrNotExist)
	}
	master := uint32(0)
	if want.Master != "" {
		var err error
		if master, err = n.device(want.Master); err != nil {
			return err
		}
	}
	// Making and marking go in one sendmsg: a process killed in between cannot leave an unmarked device.
	var encode []func(m *message) error
	if !ok {
		encode = append(encode, func(m *message) error { return encodeNewLink(m, want) })
	}
	if !ok && want.Kind == kernel.KindDirect {
		// Before it comes up: its link-local address is ours to give.
		encode = append(encode, func(m *message) error { return encodeNoLinkLocal(m, want.Name) })
	}
	if (want.Kind == kernel.KindVXLAN || want.Kind == kernel.KindDirect) && want.Spread != have.spread {
		encode = append(encode, func(m *message) error { return encodeSpread(m, want) })
	}
	encode = append(encode, func(m *message) error { return encodeSetLink(m, want, have, master) })
	errs := e.h.control.batch(context.Background(), len(encode), func(i int, m *message) error { return encode[i](m) })
	if !ok && errs[0] != nil {
		if errors.Is(errs[0], unix.EOPNOTSUPP) {
			return fmt.Errorf("this kernel has no %s devices: %w", want.Kind, errs[0])
		}
		return errs[0]
	}
	if len(slaves) > 0 {
		errs = append(errs, e.enslave(want.Name, slaves))
	}
	return errors.Join(errs...)
}

// enslave puts devices into a VRF device.
func (e *linkEdge) enslave(vrf string, slaves []uint32) error {
	n, err := e.h.names(context.Background())
	if err != nil {
		return err
	}
	master, err := n.device(vrf)
	if err != nil {
		return err
	}
	return errors.Join(e.h.control.batch(context.Background(), len(slaves), func(i int, m *message) error {
		b := m.begin(unix.RTM_SETLINK, 0, unix.SizeofIfInfomsg)
		native.PutUint32(b[4:], slaves[i])
		m.u32(unix.IFLA_MASTER, master)
		return nil
	})...)
}

// remove deletes a device of ours; a TUN device only loses our mark and goes down.
func (e *linkEdge) remove(l linkInfo, ok bool) error {
	if !ok {
		return nil
	}
	err := e.h.control.do(func(m *message) {
		if l.kind == "tun" {
			b := m.begin(unix.RTM_SETLINK, 0, unix.SizeofIfInfomsg)
			native.PutUint32(b[4:], l.index)
			native.PutUint32(b[12:], unix.IFF_UP)
			m.attr(unix.IFLA_IFALIAS, nil)
			return
		}
		b := m.begin(unix.RTM_DELLINK, 0, unix.SizeofIfInfomsg)
		native.PutUint32(b[4:], l.index)
	})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func encodeNewLink(m *message, l kernel.Link) error {
	m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.SizeofIfInfomsg)
	m.str(unix.IFLA_IFNAME, l.Name)
	if l.MAC != ([6]byte{}) {
		m.attr(unix.IFLA_ADDRESS, l.MAC[:])
	}
	if l.MTU != 0 {
		m.u32(unix.IFLA_MTU, uint32(l.MTU))
	}
	var data message
	kind := l.Kind
	switch l.Kind {
	case kernel.KindVRF:
		if l.Table == 0 {
			return errors.New("a VRF device needs a table")
		}
		data.u32(vrfTable, l.Table)
	case kernel.KindVXLAN, kernel.KindDirect:
		kind = kernel.KindVXLAN
		if !l.VXLAN.Local.IsValid() || l.VXLAN.Port == 0 {
			return errors.New("a VXLAN device needs a local address and a port")
		}
		if l.VXLAN.Remote.IsValid() != (l.Kind == kernel.KindDirect) || l.VXLAN.Remote.IsValid() && family(l.VXLAN.Remote) != family(l.VXLAN.Local) {
			return fmt.Errorf("a %s device with the remote address %q; want one of the local address's family on direct devices, none on others",
				l.Kind, l.VXLAN.Remote)
		}
		data.u32(vxlanID, l.VXLAN.VNI)
		switch {
		case !l.VXLAN.Remote.IsValid():
		case l.VXLAN.Remote.Is4():
			data.addr(vxlanRemote, l.VXLAN.Remote)
		default:
			data.addr(vxlanRemote6, l.VXLAN.Remote)
		}
		if l.VXLAN.Local.Is4() {
			data.addr(vxlanLocal, l.VXLAN.Local)
		} else {
			data.addr(vxlanLocal6, l.VXLAN.Local)
		}
		data.u8(vxlanLearning, 0)
		data.attr(vxlanPort, []byte{byte(l.VXLAN.Port >> 8), byte(l.VXLAN.Port)})
	case kernel.KindWireGuard:
	default:
		return fmt.Errorf("links of kind %q are not made here", l.Kind)
	}
	var info message
	info.attr(unix.IFLA_INFO_KIND, append([]byte(kind), 0))
	if len(data.buf) > 0 {
		info.attr(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data.buf)
	}
	m.attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info.buf)
	return nil
}

// encodeNoLinkLocal keeps the kernel from giving a device a link-local address of its own making (IN6_ADDR_GEN_MODE_NONE).
func encodeNoLinkLocal(m *message, name string) error {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE
	var mode, inet6 message
	mode.u8(addrGenMode, none)
	inet6.attr(unix.AF_INET6|unix.NLA_F_NESTED, mode.buf)
	m.begin(unix.RTM_SETLINK, 0, unix.SizeofIfInfomsg)
	m.str(unix.IFLA_IFNAME, name)
	m.attr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, inet6.buf)
	return nil
}

// encodeSpread changes a living VXLAN device's type of service.
func encodeSpread(m *message, l kernel.Link) error {
	var data, info message
	tos := uint8(0)
	if l.Spread {
		tos = spreadTOS
	}
	data.u8(vxlanTOS, tos)
	info.attr(unix.IFLA_INFO_KIND, append([]byte(kernel.KindVXLAN), 0))
	info.attr(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data.buf)
	m.begin(unix.RTM_NEWLINK, 0, unix.SizeofIfInfomsg)
	m.str(unix.IFLA_IFNAME, l.Name)
	m.attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info.buf)
	return nil
}

// encodeSetLink sets what can be set on a living device, by name: alias, MTU, MAC, master and state.
func encodeSetLink(m *message, want kernel.Link, have linkInfo, master uint32) error {
	b := m.begin(unix.RTM_SETLINK, 0, unix.SizeofIfInfomsg)
	if want.Up {
		native.PutUint32(b[8:], unix.IFF_UP)
	}
	native.PutUint32(b[12:], unix.IFF_UP)
	m.str(unix.IFLA_IFNAME, want.Name)
	m.attr(unix.IFLA_IFALIAS, []byte(want.Alias))
	if want.MTU != 0 && uint32(want.MTU) != have.mtu {
		m.u32(unix.IFLA_MTU, uint32(want.MTU))
	}
	if want.MAC != ([6]byte{}) && want.MAC != have.mac {
		m.attr(unix.IFLA_ADDRESS, want.MAC[:])
	}
	if master != have.master {
		m.u32(unix.IFLA_MASTER, master)
	}
	return nil
}
