package alibaba

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	aliecs "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"

	"fabric/cloud"
)

// vpc is one VPC. It implements cloud.VPC.
type vpc struct {
	client *client
	wish   cloud.Wish
	place  place
	timing Timing
	log    *slog.Logger

	// writing is held by the Apply that runs: one write per VPC.
	writing sync.Mutex

	mu     sync.Mutex
	tables map[string]*table
	info   cloud.Info
	asked  time.Time
}

// Close implements cloud.VPC.
func (v *vpc) Close() { v.client.close() }

// Table implements cloud.VPC.
func (v *vpc) Table(id string) cloud.Table { return v.table(id) }

func (v *vpc) table(id string) *table {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.tables[id]
	if t == nil {
		t = &table{vpc: v, id: id, tokens: map[string]string{}}
		v.tables[id] = t
	}
	return t
}

// Describe implements cloud.VPC.
func (v *vpc) Describe(ctx context.Context) (cloud.Info, error) {
	v.mu.Lock()
	info, fresh := v.info, time.Since(v.asked) < v.timing.Describe
	v.mu.Unlock()
	if fresh {
		return info, nil
	}
	info, err := v.describe(ctx)
	if err != nil {
		return cloud.Info{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.info, v.asked = info, time.Now()
	return info, nil
}

func (v *vpc) describe(ctx context.Context) (cloud.Info, error) {
	info := cloud.Info{Provider: Provider, Region: v.place.region, ID: v.place.vpc, Instance: v.place.instance}
	req := alivpc.CreateDescribeVpcsRequest
	var found []alivpc.Vpc
	err := v.client.do(ctx, "DescribeVpcs", func() (string, error) {
		r := req()
		r.VpcId = info.ID
		out, err := v.client.vpc.DescribeVpcs(r)
		if err != nil {
			return "", err
		}
		found = out.Vpcs.Vpc
		return whole(out, out.RequestId, "Vpcs"), nil
	})
	if err != nil {
		return info, err
	}
	i := slices.IndexFunc(found, func(o alivpc.Vpc) bool { return o.VpcId == info.ID })
	if i < 0 {
		return info, fmt.Errorf("there is no VPC %s in region %s; correct the document's vpc and region", info.ID, info.Region)
	}
	texts := append([]string{found[i].CidrBlock, found[i].Ipv6CidrBlock}, found[i].SecondaryCidrBlocks.SecondaryCidrBlock...)
	for _, b := range found[i].Ipv6CidrBlocks.Ipv6CidrBlock {
		texts = append(texts, b.Ipv6CidrBlock)
	}
	switches, err := v.switches(ctx, info.ID)
	if err != nil {
		return info, err
	}
	for _, t := range append(texts, switches...) {
		if t == "" {
			continue
		}
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return info, fmt.Errorf("the VPC says its CIDR is %.40q", t)
		}
		info.CIDRs = append(info.CIDRs, p.Masked())
	}
	slices.SortFunc(info.CIDRs, netip.Prefix.Compare)
	info.CIDRs = slices.Compact(info.CIDRs)
	if info.Tables, err = v.pick(ctx, found[i]); err != nil {
		return info, err
	}
	return info, nil
}

// switches are the CIDRs of the vSwitches. Where our role may not ask, the VPC's own CIDRs, which hold them, must do.
func (v *vpc) switches(ctx context.Context, id string) ([]string, error) {
	const action = "DescribeVSwitches"
	if !v.client.may(action) {
		return nil, nil
	}
	var cidrs []string
	err := v.pages(ctx, action, func(page int) (int, int, string, error) {
		r := alivpc.CreateDescribeVSwitchesRequest()
		r.VpcId, r.PageNumber, r.PageSize = id, requests.NewInteger(page), requests.NewInteger(pageSize)
		out, err := v.client.vpc.DescribeVSwitches(r)
		if err != nil {
			return 0, 0, "", err
		}
		if page == 1 {
			cidrs = nil
		}
		for _, s := range out.VSwitches.VSwitch {
			cidrs = append(cidrs, s.CidrBlock, s.Ipv6CidrBlock)
		}
		return len(out.VSwitches.VSwitch), out.TotalCount, whole(out, out.RequestId, "VSwitches"), nil
	})
	if kindOf(err) == denied && err != nil {
		v.client.forbid(action, "the VPC's CIDRs")
		return nil, nil
	}
	return cidrs, err
}

const pageSize = 50 // the most that these calls take

// pages makes a call for each page. ask returns how many rows came and how many there are.
func (v *vpc) pages(ctx context.Context, action string, ask func(page int) (rows, total int, requestID string, err error)) error {
	seen := 0
	for page := 1; ; page++ {
		var rows, total int
		err := v.client.do(ctx, action, func() (id string, err error) {
			rows, total, id, err = ask(page)
			return id, err
		})
		if err != nil {
			return err
		}
		if seen += rows; seen >= total {
			return nil
		}
		if rows == 0 {
			return &Error{Action: action, Message: fmt.Sprintf("page %d is empty, but only %d of %d rows came", page, seen, total)}
		}
	}
}

// pick returns the tables to keep: those asked for, else all that vSwitches use. A subnet has one table, so writing into
// one of several would leave subnets without routes.
func (v *vpc) pick(ctx context.Context, of alivpc.Vpc) ([]string, error) {
	const action = "DescribeRouteTableList"
	all := of.RouterTableIds.RouterTableIds
	gateway := map[string]bool{}
	if v.client.may(action) {
		var listed []string
		err := v.pages(ctx, action, func(page int) (int, int, string, error) {
			r := alivpc.CreateDescribeRouteTableListRequest()
			r.VpcId, r.PageNumber, r.PageSize = of.VpcId, requests.NewInteger(page), requests.NewInteger(pageSize)
			out, err := v.client.vpc.DescribeRouteTableList(r)
			if err != nil {
				return 0, 0, "", err
			}
			if page == 1 {
				listed = nil
			}
			rows := out.RouterTableList.RouterTableListType
			for _, t := range rows {
				listed = append(listed, t.RouteTableId)
				gateway[t.RouteTableId] = t.AssociateType == "Gateway"
			}
			return len(rows), out.TotalCount, whole(out, out.RequestId, "RouterTableList"), nil
		})
		switch {
		case err == nil:
			all = listed
		case kindOf(err) == denied:
			v.client.forbid(action, "the table ids of DescribeVpcs")
		default:
			return nil, err
		}
	}
	picked := slices.Clone(v.wish.Tables)
	for _, id := range picked {
		if !slices.Contains(all, id) {
			return nil, fmt.Errorf("the VPC has no route table %s; it has %s", id, strings.Join(all, ", "))
		}
		if gateway[id] {
			return nil, fmt.Errorf("route table %s is a gateway's; name those of vSwitches", id)
		}
	}
	if len(picked) == 0 {
		for _, id := range all {
			if !gateway[id] {
				picked = append(picked, id)
			}
		}
	}
	if len(picked) == 0 {
		return nil, fmt.Errorf("the VPC has no route table of vSwitches")
	}
	slices.Sort(picked)
	return slices.Compact(picked), nil
}

// find asks the API for the instance, in its region or in all of them. A region that does not answer is passed over.
func find(ctx context.Context, p place, w cloud.Wish, creds *credentials, timing Timing, log *slog.Logger) (place, error) {
	timing.Patience = min(timing.Patience, 10*time.Second)
	regions := []string{p.region}
	if p.region == "" {
		c, err := newClient("cn-hangzhou", w, creds, timing, log) // any region lists all
		if err != nil {
			return place{}, err
		}
		defer c.close()
		regions = nil
		err = c.do(ctx, "DescribeRegions", func() (string, error) {
			r := aliecs.CreateDescribeRegionsRequest()
			out, err := c.ecs.DescribeRegions(r)
			if err != nil {
				return "", err
			}
			regions = nil
			for _, g := range out.Regions.Region {
				regions = append(regions, g.RegionId)
			}
			return whole(out, out.RequestId, "Regions"), nil
		})
		if err != nil {
			return place{}, err
		}
	}
	ids, err := json.Marshal([]string{p.instance})
	if err != nil {
		return place{}, err
	}
	var last error
	for _, region := range regions {
		c, err := newClient(region, w, creds, timing, log)
		if err != nil {
			return place{}, err
		}
		var vpcID string
		err = c.do(ctx, "DescribeInstances", func() (string, error) {
			r := aliecs.CreateDescribeInstancesRequest()
			r.InstanceIds = string(ids)
			out, err := c.ecs.DescribeInstances(r)
			if err != nil {
				return "", err
			}
			for _, i := range out.Instances.Instance {
				if i.InstanceId == p.instance {
					vpcID = i.VpcAttributes.VpcId
				}
			}
			return whole(out, out.RequestId, "Instances"), nil
		})
		c.close()
		if ctx.Err() != nil {
			return place{}, ctx.Err()
		}
		if err != nil {
			last = err
			log.Info("region passed over", "region", region, "error", err)
			continue
		}
		if vpcID == "" {
			continue
		}
		if p.vpc != "" && p.vpc != vpcID {
			return place{}, fmt.Errorf("instance %s is in %s, the document says vpc %s; correct it", p.instance, vpcID, p.vpc)
		}
		return place{instance: p.instance, region: region, vpc: vpcID}, nil
	}
	if last != nil {
		return place{}, fmt.Errorf("find instance %s: %w", p.instance, last)
	}
	return place{}, fmt.Errorf("instance %s is in none of the regions %s; correct the document", p.instance, strings.Join(regions, ", "))
}

// entry is a route entry as the API tells it.
type entry struct {
	id, typ, service, status string
	name, description        string
	prefix                   netip.Prefix // zero where the destination is no CIDR
	hops                     []string
	hopType                  string
}

const available = "Available"

// list reads all entries of a table, or fails.
func (v *vpc) list(ctx context.Context, table string) ([]entry, error) {
	const action = "DescribeRouteEntryList"
	if v.client.may(action) {
		es, err := v.listEntries(ctx, table)
		if err == nil || kindOf(err) != denied {
			return es, err
		}
		v.client.forbid(action, "DescribeRouteTables")
	}
	return v.listTable(ctx, table)
}

func (v *vpc) listEntries(ctx context.Context, table string) ([]entry, error) {
	const action = "DescribeRouteEntryList"
	const tries = 3
	for try := 1; ; try++ {
		var all []entry
		seen := map[string]bool{}
		tokens := map[string]bool{"": true}
		token := ""
		for {
			var rows []alivpc.RouteEntry
			var next string
			err := v.client.do(ctx, action, func() (string, error) {
				r := alivpc.CreateDescribeRouteEntryListRequest()
				r.RouteTableId, r.NextToken, r.MaxResult = table, token, requests.NewInteger(100)
				out, err := v.client.vpc.DescribeRouteEntryList(r)
				if err != nil {
					return "", err
				}
				rows, next = out.RouteEntrys.RouteEntry, out.NextToken
				return whole(out, out.RequestId, "RouteEntrys"), nil
			})
			if e, ok := err.(*Error); ok && strings.HasPrefix(e.Code, "IllegalParam.NextToken") && token != "" && try < tries {
				break // the list is too old to go on: from the start
			}
			if err != nil {
				return nil, err
			}
			for _, e := range rows {
				if e.RouteEntryId == "" || !seen[e.RouteEntryId] {
					seen[e.RouteEntryId] = true
					all = append(all, convertEntry(e))
				}
			}
			if next == "" {
				return all, nil
			}
			if tokens[next] {
				return nil, &Error{Action: action, Message: "the pages of the list lead in a circle"}
			}
			token, tokens[next] = next, true
		}
	}
}

// listTable reads a table through the deprecated call, whose pages count tables and which holds all entries of one.
func (v *vpc) listTable(ctx context.Context, id string) ([]entry, error) {
	const action = "DescribeRouteTables"
	var all []entry
	found := false
	err := v.client.do(ctx, action, func() (string, error) {
		r := alivpc.CreateDescribeRouteTablesRequest()
		r.RouteTableId = id
		out, err := v.client.vpc.DescribeRouteTables(r)
		if err != nil {
			return "", err
		}
		all, found = nil, false
		for _, t := range out.RouteTables.RouteTable {
			if t.RouteTableId != id {
				continue
			}
			found = true
			for _, e := range t.RouteEntrys.RouteEntry {
				all = append(all, convertEntry(e))
			}
		}
		return whole(out, out.RequestId, "RouteTables"), nil
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, &Error{Action: action, Message: "there is no route table " + id}
	}
	return all, nil
}

func convertEntry(r alivpc.RouteEntry) entry {
	e := entry{
		id: r.RouteEntryId, typ: r.Type, service: r.ServiceType, status: r.Status,
		name: r.RouteEntryName, description: r.Description, hopType: r.NextHopType,
	}
	// A destination may also be the id of a prefix list, which is then never ours.
	if p, err := netip.ParsePrefix(r.DestinationCidrBlock); err == nil {
		e.prefix = p.Masked()
	}
	for _, h := range r.NextHops.NextHop {
		e.hops = append(e.hops, h.NextHopId)
		e.hopType = cmp.Or(e.hopType, h.NextHopType)
	}
	if len(e.hops) == 0 && r.InstanceId != "" { // the deprecated call tells it so
		e.hops = []string{r.InstanceId}
	}
	return e
}
