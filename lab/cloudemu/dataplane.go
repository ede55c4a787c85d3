package cloudemu

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// DataPlane forwards packets as the route tables say.
type DataPlane interface {
	// Set makes the routes of a VPC exactly these. It is told again whenever
	// something changed and also when nothing did, so it must be idempotent.
	Set(ctx context.Context, vpcID string, routes []FIBEntry) error
}

// FIBEntry is a route packets follow now. The old hop of an entry that is
// being modified stays until the modification ended; an entry that is being
// deleted forwards until it is gone.
type FIBEntry struct {
	RouteTableID string       `json:"routeTableId"`
	SystemTable  bool         `json:"systemTable"` // the table of the vSwitches without one of their own
	Destination  netip.Prefix `json:"destination"`
	Type         string       `json:"type"` // System, Custom, CEN, ...
	NextHopType  string       `json:"nextHopType"`
	NextHopID    string       `json:"nextHopId"`
	// Via is the address, in the family of the destination, of the interface
	// that gets the packets. It is not valid when nobody does: the hop is gone,
	// stopped, or of a kind that has no data plane here. Such a route is a
	// black hole, it does not give way to a shorter one.
	Via    netip.Addr `json:"via"`
	Device string     `json:"device,omitempty"` // device towards Via, when the seed names it
}

// FIBEvent is a change of what is active in a table.
type FIBEvent struct {
	At          time.Time    `json:"at"`
	Destination netip.Prefix `json:"destination"`
	EntryID     string       `json:"entryId"`
	Change      string       `json:"change"` // active, or removed
	Hops        []Hop        `json:"hops"`
}

func (t *table) record(at time.Time, e *entry, change string) {
	t.history = append(t.history, FIBEvent{at, e.cidr, e.id, change, slices.Clone(e.hops)})
}

// FIB returns the active routes of a VPC, in order of creation in each table.
func (s *Server) FIB(vpcID string) []FIBEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	return s.world.fibs()[vpcID]
}

// fibs returns the active routes of every VPC.
func (w *world) fibs() map[string][]FIBEntry {
	m := map[string][]FIBEntry{}
	for _, v := range w.vpcs {
		m[v.ID] = []FIBEntry{}
		for _, t := range v.tables {
			for _, e := range t.entries {
				if e.status != statusPending {
					m[v.ID] = append(m[v.ID], w.fibEntry(e))
				}
			}
		}
	}
	return m
}

func (w *world) fibEntry(e *entry) FIBEntry {
	h := e.hops[0]
	f := FIBEntry{RouteTableID: e.table.ID, SystemTable: e.table.Type == "System", Destination: e.cidr, Type: e.typ,
		NextHopType: h.Type, NextHopID: h.ID}
	f.Via, f.Device = w.resolve(h, e.cidr.Addr().Is6())
	return f
}

// resolve finds the address behind a next hop; not valid when packets to it
// are lost.
func (w *world) resolve(h Hop, v6 bool) (netip.Addr, string) {
	pick := func(v4addr, v6addr string) netip.Addr {
		text := v4addr
		if v6 {
			text = v6addr
		}
		a, _ := netip.ParseAddr(text) // seeds are validated; empty means there is none
		return a
	}
	running := func(i *instance) bool { return i != nil && i.Status == "Running" }
	switch h.Type {
	case "Instance":
		if i := w.instance(h.ID); running(i) {
			return pick(i.PrivateIP, i.IPv6), i.Device
		}
	case "NetworkInterface":
		if n := w.eni(h.ID); n != nil && running(n.owner) {
			return pick(n.PrivateIP, n.IPv6), n.Device
		}
	case "HaVip":
		// The cloud delivers to whichever instance holds the address.
		if v := w.havip(h.ID); v != nil {
			if i := w.instance(v.Master); running(i) {
				return pick(i.PrivateIP, i.IPv6), i.Device
			}
		}
	}
	return netip.Addr{}, ""
}

// lookup is the longest-prefix match among the active entries of a table.
func (t *table) lookup(dst netip.Addr) *entry {
	var best *entry
	for _, e := range t.entries {
		if e.status != statusPending && e.cidr.Contains(dst) && (best == nil || e.cidr.Bits() > best.cidr.Bits()) {
			best = e
		}
	}
	return best
}
