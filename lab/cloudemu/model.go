package cloudemu

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Route entry states on the wire.
const (
	statusPending   = "Pending"
	statusAvailable = "Available"
	statusModifying = "Modifying"
	statusDeleting  = "Deleting"
)

// cloudServices is the range the cloud keeps for its own services; every table
// has a system entry for it.
var cloudServices = netip.MustParsePrefix("100.64.0.0/10")

// Hop is the next hop of a route entry.
type Hop struct {
	Type   string `json:"type"`
	ID     string `json:"id"`
	Weight int    `json:"weight,omitempty"`
}

// entry is a route entry. It is active, so that packets follow it, in every
// state but Pending, over hops; pendingHops replace them when a Modifying entry
// becomes Available.
type entry struct {
	id          string
	seq         int // order of creation
	table       *table
	cidr        netip.Prefix
	typ         string // System, Custom, CEN, ECR, BGP
	status      string
	origin      string
	serviceType string
	name        string
	description string
	hops        []Hop
	pendingHops []Hop
	modified    time.Time
	owner       string // principal that created it; "" was in the seed, "external" another user
}

func (e *entry) ipVersion() string { return ipVersion(e.cidr) }

func ipVersion(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// snapshot is what a lagging read sees of a table.
type snapshot struct {
	at      time.Time
	entries []entry
}

// table is a route table. entries is in order of creation.
type table struct {
	RouteTable
	vpc     *vpc
	entries []*entry
	quotas  Quotas
	snaps   []snapshot
	history []FIBEvent
}

// vpc is a VPC with the one task it may run.
type vpc struct {
	VPC
	tables  []*table
	task    *task
	lastEnd time.Time // end of the previous task
}

// systemTable returns the table every vSwitch without a custom one uses.
func (v *vpc) systemTable() *table {
	i := slices.IndexFunc(v.tables, func(t *table) bool { return t.Type == "System" })
	return v.tables[i]
}

// tableOf returns the table a vSwitch uses.
func (v *vpc) tableOf(vswitch string) *table {
	for _, t := range v.tables {
		if t.Type == "Custom" && slices.Contains(t.VSwitches, vswitch) {
			return t
		}
	}
	return v.systemTable()
}

func (v *vpc) vswitch(id string) *VSwitch {
	for i := range v.VSwitches {
		if v.VSwitches[i].ID == id {
			return &v.VSwitches[i]
		}
	}
	return nil
}

// instance is an ECS instance and the VPC it is in.
type instance struct {
	Instance
	vpc *vpc
}

// eni is a network interface; owner is nil when it is attached to nothing.
type eni struct {
	ENI
	vswitch string
	vpc     *vpc
	owner   *instance
}

type havip struct {
	HaVip
	vpc *vpc
}

// world is all state a seed describes.
type world struct {
	seed      Seed
	vpcs      []*vpc
	tables    map[string]*table
	entries   map[string]*entry
	instances []*instance
	enis      []*eni
	havips    []*havip
	keys      map[string]*key
	nextSeq   int
}

// buildWorld makes the state of a valid seed.
func buildWorld(seed Seed, now time.Time, rng *rand.Rand) (*world, error) {
	if err := seed.validate(); err != nil {
		return nil, err
	}
	seed.Account = cmp.Or(seed.Account, "1234567890123456")
	seed.Quotas.RouteEntries = cmp.Or(seed.Quotas.RouteEntries, 200)
	seed.Quotas.HaVipRouteEntries = cmp.Or(seed.Quotas.HaVipRouteEntries, 5)
	w := &world{seed: seed, tables: map[string]*table{}, entries: map[string]*entry{}, keys: map[string]*key{}}
	for _, k := range seed.Keys {
		w.keys[k.ID] = &key{Key: k, principal: k.ID}
	}
	for _, sv := range seed.VPCs {
		v := &vpc{VPC: sv}
		v.VRouterID = cmp.Or(v.VRouterID, "vrt-"+v.ID)
		v.Status = cmp.Or(v.Status, statusAvailable)
		v.VSwitches = slices.Clone(sv.VSwitches)
		for i := range v.VSwitches {
			v.VSwitches[i].Status = cmp.Or(v.VSwitches[i].Status, statusAvailable)
			v.VSwitches[i].Zone = cmp.Or(v.VSwitches[i].Zone, v.Region+"-a")
		}
		w.vpcs = append(w.vpcs, v)
		tables := slices.Clone(sv.RouteTables)
		if !slices.ContainsFunc(tables, func(t RouteTable) bool { return t.Type == "System" }) {
			tables = append([]RouteTable{{ID: "vtb-" + v.ID, Type: "System"}}, tables...)
		}
		for _, st := range tables {
			t := &table{RouteTable: st, vpc: v, quotas: seed.Quotas}
			t.Type = cmp.Or(t.Type, "Custom")
			t.AssociateType = cmp.Or(t.AssociateType, "VSwitch")
			t.Status = cmp.Or(t.Status, statusAvailable)
			if w.tables[t.ID] != nil {
				return nil, fmt.Errorf("route table id %q is used twice", t.ID)
			}
			w.tables[t.ID] = t
			v.tables = append(v.tables, t)
			w.addSystemEntries(t, now, rng)
			for _, se := range st.Entries {
				e := &entry{id: se.ID, table: t, cidr: netip.MustParsePrefix(se.CIDR), typ: cmp.Or(se.Type, "Custom"),
					status: statusAvailable, serviceType: se.ServiceType, name: se.Name, description: se.Description,
					hops: []Hop{{Type: se.NextHopType, ID: se.NextHopID}}, modified: now, origin: "CustomCreate"}
				if e.typ != "Custom" {
					e.origin = "RoutePropagation"
				}
				w.add(e, rng)
			}
		}
		for _, si := range sv.Instances {
			w.addInstance(v, si)
		}
		for _, sh := range sv.HaVips {
			if sh.Status == "" && sh.Master != "" {
				sh.Status = "InUse"
			}
			sh.Status = cmp.Or(sh.Status, statusAvailable)
			w.havips = append(w.havips, &havip{HaVip: sh, vpc: v})
		}
	}
	return w, nil
}

func (w *world) addSystemEntries(t *table, now time.Time, rng *rand.Rand) {
	local := func(p netip.Prefix) {
		w.add(&entry{table: t, cidr: p, typ: "System", status: statusAvailable, origin: "SystemCreate",
			hops: []Hop{{Type: "local"}}, modified: now}, rng)
	}
	for _, s := range t.vpc.VSwitches {
		local(netip.MustParsePrefix(s.CIDR))
		if s.IPv6CIDR != "" {
			local(netip.MustParsePrefix(s.IPv6CIDR))
		}
	}
	local(cloudServices)
}

func (w *world) addInstance(v *vpc, si Instance) {
	si.Status = cmp.Or(si.Status, "Running")
	si.HTTPTokens = cmp.Or(si.HTTPTokens, "optional")
	i := &instance{Instance: si, vpc: v}
	w.instances = append(w.instances, i)
	enis := slices.Clone(si.ENIs)
	if !slices.ContainsFunc(enis, func(n ENI) bool { return n.Type == "Primary" }) {
		primary := ENI{ID: "eni-" + strings.TrimPrefix(si.ID, "i-"), Type: "Primary", Device: si.Device}
		enis = append([]ENI{primary}, enis...)
	}
	for _, n := range enis {
		n.Type = cmp.Or(n.Type, "Secondary")
		if n.Type == "Primary" {
			n.PrivateIP, n.IPv6 = cmp.Or(n.PrivateIP, si.PrivateIP), cmp.Or(n.IPv6, si.IPv6)
		}
		w.enis = append(w.enis, &eni{ENI: n, vswitch: si.VSwitch, vpc: v, owner: i})
	}
}

// add gives an entry its id and place.
func (w *world) add(e *entry, rng *rand.Rand) {
	if e.id == "" {
		e.id = "rte-" + randomID(rng, 20)
	}
	w.nextSeq++
	e.seq = w.nextSeq
	w.entries[e.id] = e
	e.table.entries = append(e.table.entries, e)
}

// remove takes an entry out of the world.
func (w *world) remove(e *entry) {
	delete(w.entries, e.id)
	e.table.entries = slices.DeleteFunc(e.table.entries, func(o *entry) bool { return o == e })
}

func (w *world) vpc(id string) *vpc {
	for _, v := range w.vpcs {
		if v.ID == id {
			return v
		}
	}
	return nil
}

func (w *world) instance(id string) *instance {
	for _, i := range w.instances {
		if i.ID == id {
			return i
		}
	}
	return nil
}

func (w *world) eni(id string) *eni {
	for _, n := range w.enis {
		if n.ID == id {
			return n
		}
	}
	return nil
}

func (w *world) havip(id string) *havip {
	for _, h := range w.havips {
		if h.ID == id {
			return h
		}
	}
	return nil
}

func (w *world) role(name string) *Role {
	for i := range w.seed.Roles {
		if w.seed.Roles[i].Name == name {
			return &w.seed.Roles[i]
		}
	}
	return nil
}

func (w *world) hasRegion(id string) bool {
	return slices.ContainsFunc(w.seed.Regions, func(r Region) bool { return r.ID == id })
}

const idLetters = "0123456789abcdefghijklmnopqrstuvwxyz"

func randomID(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = idLetters[rng.IntN(len(idLetters))]
	}
	return string(b)
}
