package kernel

import (
	"bytes"
	"cmp"
)

// Compare orders by device and prefix.
func (k AddressKey) Compare(o AddressKey) int {
	return cmp.Or(cmp.Compare(k.Device, o.Device), k.Prefix.Compare(o.Prefix))
}

// Compare orders by family, priority and selectors.
func (k RuleKey) Compare(o RuleKey) int {
	return cmp.Or(
		compareBool(k.IPv6, o.IPv6),
		cmp.Compare(k.Priority, o.Priority),
		cmp.Compare(k.Iif, o.Iif), cmp.Compare(k.Oif, o.Oif),
		k.Src.Compare(o.Src), k.Dst.Compare(o.Dst),
		cmp.Compare(k.Mark, o.Mark), cmp.Compare(k.Mask, o.Mask))
}

// Compare orders by table, prefix and metric.
func (k RouteKey) Compare(o RouteKey) int {
	return cmp.Or(cmp.Compare(k.Table, o.Table), k.Prefix.Compare(o.Prefix), cmp.Compare(k.Metric, o.Metric))
}

// Compare orders by device and address.
func (k NeighbourKey) Compare(o NeighbourKey) int {
	return cmp.Or(cmp.Compare(k.Device, o.Device), k.Addr.Compare(o.Addr))
}

// Compare orders by device and hardware address.
func (k FDBKey) Compare(o FDBKey) int {
	return cmp.Or(cmp.Compare(k.Device, o.Device), bytes.Compare(k.MAC[:], o.MAC[:]))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
