package cloudemu

import (
	"net/netip"
	"slices"
)

// find locates the entry a delete or modify names: by id, or by table and
// destination.
func (s *Server) find(c *call, id, tableID, cidr string) (*entry, *apiError) {
	if id != "" {
		if e := s.world.entries[id]; e != nil && e.table.vpc.Region == c.region {
			return e, nil
		}
		return nil, notFound("InvalidRouteEntryId.NotFound", "The specified route entry does not exist.")
	}
	p, err := s.parseCIDR(cidr)
	if err != nil {
		return nil, err
	}
	t := s.tableIn(c, tableID)
	if t == nil {
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table does not exist.")
	}
	if e := t.entry(p); e != nil {
		return e, nil
	}
	return nil, refuse("InvalidRouteEntry.NotFound", "Route entry not exists.")
}

// entry returns the entry of a destination; a custom one shadows others.
func (t *table) entry(p netip.Prefix) *entry {
	var found *entry
	for _, e := range t.entries {
		if e.cidr == p && (found == nil || e.typ == "Custom") {
			found = e
		}
	}
	return found
}

// deletable says whether the API lets an entry be deleted.
func deletable(e *entry) *apiError {
	switch {
	case e.typ == "System":
		return refuse("OperationDenied", "The operation is denied: route entry type is system.")
	case e.serviceType != "":
		return refuse("OperationDenied.DeleteManagedRouteEntry", "A route entry managed by a service cannot be deleted.")
	case e.typ != "Custom":
		return refuse("Forbbiden", "The route entry is cannot allowed delete by openApi.") // sic
	case e.status != statusAvailable:
		return refuse("IncorrectRouteEntryStatus", "Specified routeEntry status error.")
	}
	return nil
}

func (s *Server) deleteRouteEntry(c *call) (any, *apiError) {
	p := c.params
	list := p.items("NextHopList")
	switch {
	case p["RouteEntryId"] != "" && (p["RouteTableId"] != "" || p["DestinationCidrBlock"] != ""):
		return nil, refuse("ParamExclusive.RouteEntryIdAndRouteTableIdOrDestCidrBlock",
			"RouteEntryId excludes RouteTableId and DestinationCidrBlock.")
	case p["NextHopId"] != "" && len(list) > 0:
		return nil, refuse("ParamExclusive.NextHopIdAndList", "NextHopId excludes NextHopList.")
	case p["RouteEntryId"] == "" && p["RouteTableId"] == "":
		return nil, missing("RouteTableId")
	case p["RouteEntryId"] == "" && p["DestinationCidrBlock"] == "":
		return nil, missing("DestinationCidrBlock")
	case len(list) == 1 || len(list) > 4:
		return nil, refuse("InvalidNextHopList.Size", "The size of the nexthop list must be between 2 and 4.")
	}
	e, err := s.find(c, p["RouteEntryId"], p["RouteTableId"], p["DestinationCidrBlock"])
	if err != nil {
		return nil, err
	}
	if err := namesHops(e, p["RouteEntryId"], p["NextHopId"], list); err != nil {
		return nil, err
	}
	c.unowned = e.owner != c.principal
	if err := deletable(e); err != nil {
		return nil, err
	}
	if err := s.dryRun(p); err != nil {
		return nil, err
	}
	if err := s.admissible(e.table.vpc, c); err != nil {
		return nil, err
	}
	e.status, e.modified = statusDeleting, s.clock.Now()
	s.begin(e.table.vpc, c, []*entry{e})
	return obj{}, nil
}

// namesHops checks that the hops a delete names are the entry's.
func namesHops(e *entry, id, hop string, list []params) *apiError {
	var named, has []string
	for _, it := range list {
		named = append(named, it["NextHopId"])
	}
	if hop != "" {
		named = []string{hop}
	}
	for _, h := range e.hops {
		has = append(has, h.ID)
	}
	if len(named) == 0 {
		if len(has) > 1 && id == "" {
			return refuse("InvalidNextHop", "The nexthop and nexthop list cannot both null.")
		}
		return nil
	}
	slices.Sort(named)
	slices.Sort(has)
	if !slices.Equal(named, has) {
		return refuse("InvalidRouteEntry.NotFound", "Route entry not exists.")
	}
	return nil
}

func (s *Server) deleteRouteEntries(c *call) (any, *apiError) {
	items, v, err := s.batchItems(c)
	if err != nil {
		return nil, err
	}
	gone, failed := []*entry{}, []obj{}
	for _, it := range items {
		e, err := s.find(c, it["RouteEntryId"], it["RouteTableId"], it["DstCidrBlock"])
		if err == nil && e.table.ID != it["RouteTableId"] {
			err = refuse("InvalidRouteEntry.NotFound", "Route entry not exists.")
		}
		if err == nil && it["NextHop"] != "" && e.hops[0].ID != it["NextHop"] {
			err = refuse("InvalidRouteEntry.NotFound", "Route entry not exists.")
		}
		if err == nil {
			c.unowned = c.unowned || e.owner != c.principal
			err = deletable(e)
		}
		if err != nil {
			failed = append(failed, obj{"RouteEntryId": it["RouteEntryId"], "DstCidrBlock": it["DstCidrBlock"],
				"NextHop": it["NextHop"], "FailedCode": batchCode(err.code), "FailedMessage": err.message})
			continue
		}
		e.status, e.modified = statusDeleting, s.clock.Now()
		gone = append(gone, e)
	}
	if len(gone) > 0 {
		s.begin(v, c, gone)
	}
	return obj{"SuccessCount": len(gone), "FailedCount": len(failed), "FailedRouteEntries": failed}, nil
}

func (s *Server) modifyRouteEntry(c *call) (any, *apiError) {
	p := c.params
	if p["RouteEntryId"] == "" && p["RouteTableId"] == "" {
		return nil, missing("RouteEntryId")
	}
	e, err := s.find(c, p["RouteEntryId"], p["RouteTableId"], p["DestinationCidrBlock"])
	if err != nil {
		return nil, err
	}
	c.unowned = e.owner != c.principal
	if err := checkTexts(p["RouteEntryName"], p["Description"]); err != nil {
		return nil, err
	}
	switch {
	case e.typ != "Custom":
		return nil, refuse("OperationDenied", "The operation is denied: the route entry is not a custom one.")
	case e.serviceType != "":
		return nil, refuse("OperationDenied.ModifyManagedRouteEntry", "A route entry managed by a service cannot be modified.")
	case e.status != statusAvailable:
		return nil, refuse("IncorrectRouteEntryStatus", "Specified routeEntry status error.")
	}
	hop := Hop{Type: p["NewNextHopType"], ID: p["NewNextHopId"]}
	moves := hop != Hop{}
	if moves {
		if err := s.checkMove(e, hop); err != nil {
			return nil, err
		}
	}
	if err := s.dryRun(p); err != nil {
		return nil, err
	}
	if moves {
		if err := s.admissible(e.table.vpc, c); err != nil {
			return nil, err
		}
	}
	now := s.clock.Now()
	if v, ok := p["RouteEntryName"]; ok {
		e.name = v
	}
	if v, ok := p["Description"]; ok {
		e.description = v
	}
	e.modified = now
	if moves {
		e.status, e.pendingHops = statusModifying, []Hop{hop}
		s.begin(e.table.vpc, c, []*entry{e})
	} else {
		s.commit(e.table, now)
	}
	return obj{}, nil
}

// checkMove says whether an entry may get a new next hop.
func (s *Server) checkMove(e *entry, hop Hop) *apiError {
	switch {
	case hop.Type == "":
		return missing("NewNextHopType")
	case hop.ID == "":
		return missing("NewNextHopId")
	}
	if err := checkHopType(hop.Type); err != nil {
		return err
	}
	if err := s.checkHop(e.table, e.cidr, hop); err != nil {
		return err
	}
	if len(e.hops) == 1 && e.hops[0].Type == hop.Type && e.hops[0].ID == hop.ID {
		return refuse("OperationDenied.NextHopNotChanged", "The next hop is not changed.")
	}
	if hop.Type == "HaVip" && e.hops[0].Type != "HaVip" {
		n := 0
		for _, o := range e.table.entries {
			if o.typ == "Custom" && o.hops[0].Type == "HaVip" {
				n++
			}
		}
		if n >= e.table.quotas.HaVipRouteEntries {
			return refuse("QuotaExceeded.HaVipRouteEntry", "HaVip route entry quota exceeded in this route table.")
		}
	}
	return nil
}
