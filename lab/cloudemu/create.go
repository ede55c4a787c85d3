package cloudemu

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// hopTypes are the next hop types the API knows; only those of which the seed
// can hold one exist.
var hopTypes = []string{"Instance", "HaVip", "NetworkInterface", "RouterInterface", "VpnGateway", "IPv6Gateway",
	"NatGateway", "Attachment", "VpcPeer", "Ipv4Gateway", "GatewayEndpoint", "CenBasic", "Ecr",
	"GatewayLoadBalancerEndpoint", "RouteTargetGroup"}

// blacklisted are destinations no route may have.
var blacklisted = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// tokenLife is how long the answer to a ClientToken is kept.
const tokenLife = 24 * time.Hour

// stored is the answer to a ClientToken.
type stored struct {
	asked   string
	entryID string
	at      time.Time
}

// wanted is an entry somebody asks for.
type wanted struct {
	table       *table
	cidr        netip.Prefix
	hops        []Hop
	name        string
	description string
}

func (s *Server) createRouteEntry(c *call) (any, *apiError) {
	p := c.params
	for _, name := range []string{"RouteTableId", "DestinationCidrBlock"} {
		if p[name] == "" {
			return nil, missing(name)
		}
	}
	want := wanted{name: p["RouteEntryName"], description: p["Description"]}
	var err *apiError
	if want.cidr, err = s.parseCIDR(p["DestinationCidrBlock"]); err != nil {
		return nil, err
	}
	if err := checkTexts(want.name, want.description); err != nil {
		return nil, err
	}
	if want.table, err = s.writableTable(c, p["RouteTableId"]); err != nil {
		return nil, err
	}
	if want.hops, err = hopsOf(p, want.table); err != nil {
		return nil, err
	}
	// A repeated token is answered before the rules are looked at: the entry
	// the first call made would break them.
	token := c.principal + " " + p["ClientToken"]
	if old := s.tokens[token]; p["ClientToken"] != "" && old != nil && s.clock.Now().Sub(old.at) < tokenLife {
		if old.asked != p.asked() {
			return nil, refuse("IdempotentParameterMismatch", "The request uses the same client token as a previous, but non-identical request.")
		}
		return obj{"RouteEntryId": old.entryID}, nil
	}
	if err := s.checkHops(want.table, want.cidr, want.hops); err != nil {
		return nil, err
	}
	if err := s.checkEntry(want, false); err != nil {
		return nil, err
	}
	if err := s.dryRun(p); err != nil {
		return nil, err
	}
	if err := s.admissible(want.table.vpc, c); err != nil {
		return nil, err
	}
	e := s.newEntry(c, want)
	s.begin(want.table.vpc, c, []*entry{e})
	if p["ClientToken"] != "" {
		s.tokens[token] = &stored{p.asked(), e.id, s.clock.Now()}
	}
	return obj{"RouteEntryId": e.id}, nil
}

// dryRun ends a call that was only to be tried, and would have been carried out, with the error that says so.
func (s *Server) dryRun(p params) *apiError {
	if p["DryRun"] != "true" || s.world.seed.Settings.DryRun == "ignore" {
		return nil
	}
	return refuse("DryRunOperation", "Request validation has been passed with DryRun flag set.")
}

func (s *Server) newEntry(c *call, want wanted) *entry {
	e := &entry{table: want.table, cidr: want.cidr, typ: "Custom", status: statusPending, origin: "CustomCreate",
		name: want.name, description: want.description, hops: want.hops, modified: s.clock.Now(), owner: c.principal}
	s.world.add(e, s.rng)
	return e
}

// parseCIDR reads a destination; a bare address is a host route.
func (s *Server) parseCIDR(text string) (netip.Prefix, *apiError) {
	malformed := refuse("InvalidCidrBlock.Malformed", "Specified CIDR block is not valid.")
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, malformed
	}
	if p != p.Masked() && s.world.seed.Settings.HostBits != "mask" {
		return netip.Prefix{}, malformed
	}
	return p.Masked(), nil
}

func checkTexts(name, description string) *apiError {
	url := func(t string) bool { return strings.HasPrefix(t, "http://") || strings.HasPrefix(t, "https://") }
	if len(name) > 128 || url(name) {
		return refuse("InvalidRouteEntryName.Malformed", "The specified route entry name is wrongly formed.")
	}
	if len(description) > 256 || url(description) {
		return refuse("InvalidDescription.Malformed", "The specified description is wrongly formed.")
	}
	return nil
}

// tableIn finds a route table of the call's region.
func (s *Server) tableIn(c *call, id string) *table {
	if t := s.world.tables[id]; t != nil && t.vpc.Region == c.region {
		return t
	}
	return nil
}

// writableTable finds a table whose entries may be changed.
func (s *Server) writableTable(c *call, id string) (*table, *apiError) {
	t := s.tableIn(c, id)
	switch {
	case t == nil:
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table does not exist.")
	case t.AssociateType == "Gateway":
		return nil, refuse("OperationDenied.RouteTableTypeNotPermitted", "The operation is not allowed for the type of this route table.")
	case t.Status != statusAvailable:
		return nil, refuse("IncorrectStatus.RouteTableStatus", "The status of the route table does not support this operation.")
	}
	return t, nil
}

// hopsOf reads the next hop parameters of CreateRouteEntry.
func hopsOf(p params, t *table) ([]Hop, *apiError) {
	list := p.items("NextHopList")
	single := p["NextHopType"] != "" || p["NextHopId"] != ""
	switch {
	case single && len(list) > 0:
		return nil, refuse("InvalidNexthopTypeAndList.BothNotNull", "The nexthop type and the nexthop list cannot both be set.")
	case !single && len(list) == 0:
		return nil, refuse("InvalidNexthopTypeAndList.BothNull", "The nexthop type and the nexthop list cannot both be null.")
	case single:
		return []Hop{{Type: p["NextHopType"], ID: p["NextHopId"]}}, checkHopType(p["NextHopType"])
	}
	if len(list) < 2 || len(list) > 4 {
		return nil, refuse("InvalidNexthopListSize", "The size of the nexthop list must be between 2 and 4.")
	}
	var hops []Hop
	for _, it := range list {
		if it["NextHopType"] != "RouterInterface" {
			return nil, refuse("OperationUnsupported.EcmpRiTypeOrNumber", "ECMP supports router interfaces only.")
		}
		hops = append(hops, Hop{Type: it["NextHopType"], ID: it["NextHopId"], Weight: 100})
	}
	if t.Type != "System" {
		return nil, refuse("OperationUnsupported.SubRouteTableECMP", "A custom route table does not support ECMP.")
	}
	return hops, nil
}

func checkHopType(t string) *apiError {
	if !slices.Contains(hopTypes, t) {
		return refuse("InvalidNextHopType", "Specified next hop type is not valid.")
	}
	return nil
}

// checkHops looks whether the next hops are there and usable from the table.
func (s *Server) checkHops(t *table, cidr netip.Prefix, hops []Hop) *apiError {
	for _, h := range hops {
		if err := s.checkHop(t, cidr, h); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) checkHop(t *table, cidr netip.Prefix, h Hop) *apiError {
	w := s.world
	switch h.Type {
	case "Instance":
		i := w.instance(h.ID)
		switch {
		case i == nil:
			return notFound("InvalidInstanId.NotFound", "The specified instance does not exist.")
		case i.vpc != t.vpc:
			return notFound("OperationFailed.InstanceDismatchCurrentVpc", "The instance is not in the VPC of the route table.")
		case i.Status != "Running" && i.Status != "Stopped":
			return refuse("IncorrectInstanceStatus", "Current instance status does not support this operation.")
		}
	case "NetworkInterface":
		n := w.eni(h.ID)
		switch {
		case n == nil:
			return notFound("InvalidNetworkInterface.NotFound", "The specified network interface does not exist.")
		case n.vpc != t.vpc:
			return refuse("Mismatch.EniIdAndRouteTableId", "The network interface is not in the VPC of the route table.")
		case cidr.Addr().Is6() && n.Type == "Primary":
			return refuse("OperationUnsupported.Ipv6EntryOnPrimaryNetworkInterface", "An IPv6 entry cannot lead to a primary network interface.")
		}
	case "HaVip":
		v := w.havip(h.ID)
		switch {
		case v == nil:
			return notFound("InvalidHaVipId.NotFound", "The specified HaVip does not exist.")
		case v.vpc != t.vpc:
			return refuse("Mismatch.HaVipIdAndRouteTableId", "The HaVip is not in the VPC of the route table.")
		case v.Status != statusAvailable && v.Status != "InUse":
			return refuse("IncorrectHaVipStatus", "Current HaVip status does not support this operation.")
		}
	case "RouterInterface":
		if !slices.Contains(t.vpc.RouterInterfaces, h.ID) {
			return refuse("InvalidNexthop.NotFound", "The specified nexthop does not exist.")
		}
	default:
		return refuse("InvalidNexthop.NotFound", "The specified nexthop does not exist.")
	}
	return nil
}

// checkEntry applies the rules about destinations and the quotas. strict adds
// the rule of the batch call: no vSwitch inside the destination either.
func (s *Server) checkEntry(want wanted, strict bool) *apiError {
	t, cidr := want.table, want.cidr
	if cidr.Addr().Is6() && t.Type != "System" {
		return refuse("OperationDenied.Ipv6EntryOnCustomTable", "A custom route table does not support IPv6 entries.")
	}
	for _, b := range blacklisted {
		if b.Overlaps(cidr) && b.Bits() <= cidr.Bits() {
			return refuse("InvalidDestinationCidrBlock", "The specified destination is in the black list.")
		}
	}
	invalid := refuse("InvalidCidrBlock", "Specified CIDR block is reserved or inside a vSwitch.")
	if cidr == cloudServices || cloudServices.Bits() < cidr.Bits() && cloudServices.Contains(cidr.Addr()) &&
		s.world.seed.Settings.CloudServiceMoreSpecific != "allow" {
		return invalid
	}
	for _, sw := range t.vpc.VSwitches {
		for _, text := range []string{sw.CIDR, sw.IPv6CIDR} {
			p, err := netip.ParsePrefix(text)
			if err == nil && p.Overlaps(cidr) && (strict || p.Bits() <= cidr.Bits()) {
				return invalid
			}
		}
	}
	custom, havip := 0, 0
	for _, e := range t.entries {
		if e.typ == "Custom" {
			custom++
			if e.hops[0].Type == "HaVip" {
				havip++
			}
		}
		if e.cidr != cidr {
			continue
		}
		switch {
		case e.typ == "Custom" && slices.Equal(e.hops, want.hops):
			code := s.world.seed.Settings.DuplicateSameHop
			if code == "" {
				code = "Duplicated.VpcNextHop"
			}
			return refuse(code, "The specified entry with this next hop already exists.")
		case e.typ == "Custom":
			return refuse("InvalidCIDRBlock.Duplicate", "Specified CIDR block is already exists.")
		case e.typ != "System" && want.hops[0].Type != "RouterInterface" && want.hops[0].Type != "VpnGateway":
			return refuse("RouteConflict.AlreadyExist", "The specified route entry conflicts with a dynamic one.")
		}
	}
	if custom >= t.quotas.RouteEntries {
		return refuse("QuotaExceeded", "Route entry quota exceeded in this route table.")
	}
	if want.hops[0].Type == "HaVip" && havip >= t.quotas.HaVipRouteEntries {
		return refuse("QuotaExceeded.HaVipRouteEntry", "HaVip route entry quota exceeded in this route table.")
	}
	return nil
}

// maxBatch is the most entries one batch call takes.
const maxBatch = 50

// batchItems reads and checks the part of a batch call that fails as a whole.
func (s *Server) batchItems(c *call) ([]params, *vpc, *apiError) {
	items := c.params.items("RouteEntries")
	if len(items) == 0 {
		return nil, nil, missing("RouteEntries")
	}
	if len(items) > maxBatch {
		return nil, nil, refuse("InvalidParameter", fmt.Sprintf("At most %d route entries are allowed.", maxBatch))
	}
	var v *vpc
	for _, it := range items {
		id := it["RouteTableId"]
		if id == "" {
			return nil, nil, refuse("MissingParam.RouteTableId", "The parameter RouteTableId is mandatory.")
		}
		t, err := s.writableTable(c, id)
		if err != nil {
			return nil, nil, err
		}
		if v != nil && v != t.vpc {
			return nil, nil, refuse("InvalidParameter", "The route tables are not in one VPC.")
		}
		v = t.vpc
	}
	if err := s.admissible(v, c); err != nil {
		return nil, nil, err
	}
	if err := s.dryRun(c.params); err != nil {
		return nil, nil, err
	}
	return items, v, nil
}

func (s *Server) createRouteEntries(c *call) (any, *apiError) {
	items, v, err := s.batchItems(c)
	if err != nil {
		return nil, err
	}
	made, ids, failed := []*entry{}, []string{}, []obj{}
	for _, it := range items {
		want, err := s.batchWanted(it)
		if err != nil {
			failed = append(failed, obj{"DstCidrBlock": it["DstCidrBlock"], "NextHop": it["NextHop"],
				"FailedCode": batchCode(err.code), "FailedMessage": err.message})
			continue
		}
		e := s.newEntry(c, want)
		made, ids = append(made, e), append(ids, e.id)
	}
	if len(made) > 0 {
		s.begin(v, c, made)
	}
	return obj{"SuccessCount": len(ids), "FailedCount": len(failed), "RouteEntryIds": ids, "FailedRouteEntries": failed}, nil
}

func (s *Server) batchWanted(it params) (want wanted, err *apiError) {
	want = wanted{table: s.world.tables[it["RouteTableId"]], name: it["Name"], description: it["Description"]}
	if want.description == "" {
		want.description = it["Describption"] // sic, both are on the wire
	}
	if want.cidr, err = s.parseCIDR(it["DstCidrBlock"]); err != nil {
		return want, err
	}
	if v := it["IpVersion"]; v != "" && !strings.EqualFold(v, ipVersion(want.cidr)) {
		return want, refuse("InvalidCidrBlock", "The CIDR block is not of the specified IpVersion.")
	}
	if err := checkTexts(want.name, want.description); err != nil {
		return want, err
	}
	want.hops = []Hop{{Type: it["NextHopType"], ID: it["NextHop"]}}
	if err := checkHopType(it["NextHopType"]); err != nil {
		return want, err
	}
	if err := s.checkHops(want.table, want.cidr, want.hops); err != nil {
		return want, err
	}
	return want, s.checkEntry(want, true)
}

// batchCode says an error in the vocabulary of the batch calls.
func batchCode(code string) string {
	switch code {
	case "InvalidCIDRBlock.Duplicate", "Duplicated.VpcNextHop", "InvalidRouteEntry.Duplicate", "RouteConflict.AlreadyExist":
		return "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE"
	case "IncorrectRouteEntryStatus":
		return "VPC_ROUTE_ENTRY_STATUS_ERROR"
	case "InvalidRouteEntry.NotFound", "InvalidRouteEntryId.NotFound":
		return "VPC_ROUTER_ENTRY_NOT_EXIST"
	case "QuotaExceeded", "QuotaExceeded.HaVipRouteEntry":
		return "VPC_ROUTE_ENTRY_QUOTA_EXCEEDED"
	case "InvalidInstanId.NotFound", "InvalidNetworkInterface.NotFound", "InvalidHaVipId.NotFound", "InvalidNexthop.NotFound",
		"OperationFailed.InstanceDismatchCurrentVpc", "Mismatch.EniIdAndRouteTableId", "Mismatch.HaVipIdAndRouteTableId":
		return "VPC_NEXTHOP_NOT_EXIST"
	case "InvalidCidrBlock", "InvalidCidrBlock.Malformed", "InvalidDestinationCidrBlock":
		return "VPC_CIDR_BLOCK_INVALID"
	}
	return code
}
