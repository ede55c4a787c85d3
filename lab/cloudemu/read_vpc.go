package cloudemu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// obj is a JSON object of an answer.
type obj = map[string]any

const wireTime = "2006-01-02T15:04:05Z"

// cursorLife is how long a NextToken may be used.
const cursorLife = 10 * time.Minute

// cursor is what a NextToken stands for: the place after which to go on, and
// the filters it belongs to.
type cursor struct {
	filters string
	after   int
	at      time.Time
}

// nextToken makes a token that continues after the given place.
func (s *Server) nextToken(filters string, after int) string {
	now := s.clock.Now()
	for t, c := range s.cursors {
		if now.Sub(c.at) > 2*cursorLife {
			delete(s.cursors, t)
		}
	}
	token := randomSecret(32)
	s.cursors[token] = &cursor{filters, after, now}
	return token
}

// resume returns the place a token stands for; 0 for no token.
func (s *Server) resume(token, filters string) (int, *apiError) {
	if token == "" {
		return 0, nil
	}
	c := s.cursors[token]
	switch {
	case c == nil || c.filters != filters:
		return 0, refuse("IllegalParam.NextToken", "The specified NextToken is illegal.")
	case s.clock.Now().Sub(c.at) > cursorLife:
		return 0, refuse("IllegalParam.NextTokenExpired", "The specified NextToken is expired.")
	}
	return c.after, nil
}

// filterKey names the parameters a token is bound to.
func filterKey(c *call, without ...string) string {
	q := maps.Clone(c.params)
	for _, name := range append(without, "NextToken") {
		delete(q, name)
	}
	sum := sha256.Sum256([]byte(c.service + c.action + q.asked()))
	return hex.EncodeToString(sum[:])
}

// number reads an optional whole number of at least one.
func number(p params, name string, def int) (int, *apiError) {
	text := p[name]
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, refuse("InvalidParameter", fmt.Sprintf("The specified parameter %q is not valid.", name))
	}
	return n, nil
}

// page cuts out the asked page and returns the fields every paged answer has.
func page[T any](p params, maxSize int, all []T) ([]T, obj, *apiError) {
	n, err := number(p, "PageNumber", 1)
	if err != nil {
		return nil, nil, err
	}
	size, err := number(p, "PageSize", 10)
	if err != nil {
		return nil, nil, err
	}
	if size > maxSize {
		return nil, nil, refuse("InvalidParameter", fmt.Sprintf("PageSize is %d at most.", maxSize))
	}
	from := len(all)
	if n-1 <= len(all)/size { // else (n-1)*size could overflow
		from = min((n-1)*size, len(all))
	}
	return all[from:min(from+size, len(all))], obj{"PageNumber": n, "PageSize": size, "TotalCount": len(all)}, nil
}

// is says whether an optional filter lets a value pass; a filter may be a
// comma list.
func is(filter, value string) bool {
	return filter == "" || slices.Contains(strings.Split(filter, ","), value)
}

func (s *Server) describeRouteEntryList(c *call) (any, *apiError) {
	p := c.params
	if p["RouteTableId"] == "" {
		return nil, missing("RouteTableId")
	}
	t := s.tableIn(c, p["RouteTableId"])
	if t == nil {
		return nil, notFound("InvalidRouteTable.NotFound", "The specified route table does not exist.")
	}
	if t.AssociateType == "Gateway" {
		return nil, refuse("OperationDenied.UseGatewayRouteEntryQueryInterface", "Use ListGatewayRouteTableEntries for a gateway route table.")
	}
	typ := p["RouteEntryType"]
	if typ != "" && !slices.Contains([]string{"System", "Custom", "BGP", "CEN", "ECR"}, typ) {
		return nil, refuse("IllegalParam.RouteEntryType", "The specified RouteEntryType is illegal.")
	}
	if v := p["IpVersion"]; v != "" && v != "ipv4" && v != "ipv6" {
		return nil, refuse("IllegalParam.IpVersion", "The specified IpVersion is illegal.")
	}
	if typ != "" && typ != "Custom" && (p["RouteEntryId"] != "" || p["RouteEntryName"] != "") {
		return nil, refuse("OperationFailed.FilterParamUnderWrongRouteType", "RouteEntryId and RouteEntryName filter custom entries only.")
	}
	size, err := number(p, "MaxResult", 10)
	if err != nil {
		return nil, err
	}
	if size > 100 {
		if s.world.seed.Settings.MaxResultOverflow == "error" {
			return nil, refuse("IllegalParam.MaxResult", "The specified MaxResult is illegal.")
		}
		size = 100
	}
	filters := filterKey(c, "MaxResult")
	after, err := s.resume(p["NextToken"], filters)
	if err != nil {
		return nil, err
	}
	cidrs := p.list("DestCidrBlockList")
	if v := p["DestinationCidrBlock"]; v != "" {
		cidrs = append(cidrs, v)
	}
	out, token := []obj{}, ""
	for _, e := range s.view(t) {
		hop := func(h Hop) bool { return is(p["NextHopId"], h.ID) && is(p["NextHopType"], h.Type) }
		if e.seq <= after || !is(typ, e.typ) || !is(p["RouteEntryId"], e.id) || !is(p["RouteEntryName"], e.name) ||
			!is(p["IpVersion"], e.ipVersion()) || !is(p["ServiceType"], e.serviceType) ||
			len(cidrs) > 0 && !slices.Contains(cidrs, e.cidr.String()) || !slices.ContainsFunc(e.hops, hop) {
			continue
		}
		if len(out) == size {
			token = s.nextToken(filters, after)
			break
		}
		after = e.seq
		o := entryObj(&e)
		o["NextHops"] = obj{"NextHop": hopObjs(&e)}
		out = append(out, o)
	}
	return obj{"NextToken": token, "RouteEntrys": obj{"RouteEntry": out}}, nil
}

func entryObj(e *entry) obj {
	return obj{"RouteEntryId": e.id, "RouteEntryName": e.name, "Description": e.description, "RouteTableId": e.table.ID,
		"DestinationCidrBlock": e.cidr.String(), "Type": e.typ, "IpVersion": e.ipVersion(), "Status": e.status,
		"Origin": e.origin, "ServiceType": e.serviceType, "GmtModified": e.modified.UTC().Format(wireTime)}
}

func hopObjs(e *entry) []obj {
	var out []obj
	for _, h := range e.hops {
		out = append(out, obj{"NextHopType": h.Type, "NextHopId": h.ID, "Weight": h.Weight, "Enabled": 1,
			"NextHopRegionId": e.table.vpc.Region})
	}
	return out
}

func (s *Server) describeRouteTableList(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	tags := p.items("Tag")
	for _, t := range s.tablesIn(c) {
		v := t.vpc
		if !is(p["VpcId"], v.ID) || !is(p["RouterId"], v.VRouterID) || !is(p["RouterType"], "VRouter") ||
			!is(p["RouteTableId"], t.ID) || !is(p["RouteTableName"], t.Name) || !is(p["RouteTableType"], t.Type) || !hasTags(t, tags) {
			continue
		}
		all = append(all, obj{"RouteTableId": t.ID, "RouteTableName": t.Name, "RouteTableType": t.Type,
			"AssociateType": t.AssociateType, "VpcId": v.ID, "RouterId": v.VRouterID, "RouterType": "VRouter", "Status": t.Status,
			"VSwitchIds": obj{"VSwitchId": t.vswitchIDs()}, "GatewayIds": obj{"GatewayIds": []string{}},
			"RoutePropagationEnable": true, "Tags": obj{"Tag": tagObjs(t.Tags)}})
	}
	rows, out, err := page(p, 50, all)
	if err != nil {
		return nil, err
	}
	out["RouterTableList"] = obj{"RouterTableListType": rows}
	out["Success"], out["Code"] = true, "200"
	return out, nil
}

// vswitchIDs are the vSwitches that use the table.
func (t *table) vswitchIDs() []string {
	ids := []string{}
	for _, w := range t.vpc.VSwitches {
		if t.vpc.tableOf(w.ID) == t {
			ids = append(ids, w.ID)
		}
	}
	return ids
}

func hasTags(t *table, want []params) bool {
	for _, w := range want {
		v, ok := t.Tags[w["Key"]]
		if !ok || w["Value"] != "" && w["Value"] != v {
			return false
		}
	}
	return true
}

func tagObjs(tags map[string]string) []obj {
	out := []obj{}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, obj{"Key": k, "Value": tags[k]})
	}
	return out
}

func (s *Server) tablesIn(c *call) []*table {
	var out []*table
	for _, v := range s.world.vpcs {
		if v.Region == c.region {
			out = append(out, v.tables...)
		}
	}
	return out
}

// describeRouteTables is the deprecated call that embeds all entries of a
// table: a page counts tables.
func (s *Server) describeRouteTables(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	if p["VRouterId"] == "" && p["RouteTableId"] == "" && p["RouterId"] == "" && p["RouteTableName"] == "" {
		return nil, missing("VRouterId")
	}
	for _, t := range s.tablesIn(c) {
		if !is(p["VRouterId"], t.vpc.VRouterID) || !is(p["RouterId"], t.vpc.VRouterID) || !is(p["RouteTableId"], t.ID) ||
			!is(p["RouteTableName"], t.Name) || !is(p["RouterType"], "VRouter") {
			continue
		}
		entries := []obj{}
		for _, e := range s.view(t) {
			o := entryObj(&e)
			o["InstanceId"], o["NextHopType"] = e.hops[0].ID, e.hops[0].Type
			if len(e.hops) > 1 {
				o["InstanceId"], o["NextHopType"] = "", ""
				o["NextHops"] = obj{"NextHop": hopObjs(&e)}
			}
			entries = append(entries, o)
		}
		all = append(all, obj{"RouteTableId": t.ID, "RouteTableType": t.Type, "VRouterId": t.vpc.VRouterID, "Status": t.Status,
			"VSwitchIds": obj{"VSwitchId": t.vswitchIDs()}, "RouteEntrys": obj{"RouteEntry": entries}})
	}
	rows, out, err := page(p, 50, all)
	if err != nil {
		return nil, err
	}
	out["RouteTables"] = obj{"RouteTable": rows}
	return out, nil
}

func (v *vpc) tableIDs() []string {
	ids := []string{}
	for _, t := range v.tables {
		ids = append(ids, t.ID)
	}
	return ids
}

func (s *Server) describeVpcs(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	for _, v := range s.world.vpcs {
		if v.Region != c.region || !is(p["VpcId"], v.ID) {
			continue
		}
		vsw := []string{}
		for _, w := range v.VSwitches {
			vsw = append(vsw, w.ID)
		}
		v6 := []obj{}
		if v.IPv6CIDR != "" {
			v6 = append(v6, obj{"Ipv6CidrBlock": v.IPv6CIDR, "Ipv6Isp": "BGP"})
		}
		all = append(all, obj{"VpcId": v.ID, "VpcName": v.ID, "CidrBlock": v.CIDR, "RegionId": v.Region, "Status": v.Status,
			"SecondaryCidrBlocks": obj{"SecondaryCidrBlock": nonNil(v.SecondaryCIDRs)}, "UserCidrs": obj{"UserCidr": nonNil(v.UserCIDRs)},
			"Ipv6CidrBlock": v.IPv6CIDR, "Ipv6CidrBlocks": obj{"Ipv6CidrBlock": v6}, "VRouterId": v.VRouterID,
			"RouterTableIds": obj{"RouterTableIds": v.tableIDs()}, "VSwitchIds": obj{"VSwitchId": vsw}, "CenStatus": "Detached"})
	}
	rows, out, err := page(p, 50, all)
	if err != nil {
		return nil, err
	}
	out["Vpcs"] = obj{"Vpc": rows}
	return out, nil
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (s *Server) describeVRouters(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	for _, v := range s.world.vpcs {
		if v.Region == c.region && is(p["VRouterId"], v.VRouterID) {
			all = append(all, obj{"VRouterId": v.VRouterID, "VpcId": v.ID, "RegionId": v.Region,
				"RouteTableIds": obj{"RouteTableId": v.tableIDs()}})
		}
	}
	rows, out, err := page(p, 50, all)
	if err != nil {
		return nil, err
	}
	out["VRouters"] = obj{"VRouter": rows}
	return out, nil
}

func (s *Server) describeVSwitches(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	for _, v := range s.world.vpcs {
		for _, w := range v.VSwitches {
			t := v.tableOf(w.ID)
			if v.Region != c.region || !is(p["VpcId"], v.ID) || !is(p["VSwitchId"], w.ID) || !is(p["ZoneId"], w.Zone) || !is(p["RouteTableId"], t.ID) {
				continue
			}
			all = append(all, obj{"VSwitchId": w.ID, "VpcId": v.ID, "CidrBlock": w.CIDR, "Ipv6CidrBlock": w.IPv6CIDR,
				"ZoneId": w.Zone, "Status": w.Status, "RouteTable": obj{"RouteTableId": t.ID, "RouteTableType": t.Type}})
		}
	}
	rows, out, err := page(p, 50, all)
	if err != nil {
		return nil, err
	}
	out["VSwitches"] = obj{"VSwitch": rows}
	return out, nil
}
