package alibaba

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"

	"fabric/cloud"
)

// trials are destinations of documentation (RFC 5737): nobody routes them, so a dry run with one is about nobody's entry.
var trials = []netip.Prefix{
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
}

// Examine implements cloud.Examiner. Every write is sent with DryRun, which the SDK does not know: a call that would be carried out is
// answered with the error DryRunOperation, and an answer without an error says that the API has not heeded it. Modify and delete
// name an entry that is not there, so that only a create can leave anything behind. The batch calls are left out: their place is
// taken by the single ones.
func (v *vpc) Examine(ctx context.Context) (cloud.Examination, error) {
	info, err := v.Describe(ctx)
	x := cloud.Examination{Info: info}
	if err != nil {
		return x, err
	}
	heeded := true
	for _, id := range info.Tables {
		if ctx.Err() != nil {
			return x, ctx.Err()
		}
		t := v.table(id).examine(ctx, info, heeded)
		heeded = heeded && !slices.ContainsFunc(t.Calls, func(c cloud.CallExamination) bool { return c.Carried })
		x.Tables = append(x.Tables, t)
	}
	return x, nil
}

// examine reads one table, and sends dry runs as long as they are heeded.
func (t *table) examine(ctx context.Context, info cloud.Info, heeded bool) cloud.TableExamination {
	x := cloud.TableExamination{ID: t.id}
	entries, err := t.list(ctx)
	if err != nil {
		x.Err = err
		return x
	}
	var free netip.Prefix
	for _, e := range entries {
		switch {
		case t.owns(e):
			x.Owned++
		case e.typ == "Custom":
			x.Foreign++
		}
	}
	for _, p := range trials {
		taken := slices.ContainsFunc(entries, func(e entry) bool { return e.prefix == p }) ||
			slices.ContainsFunc(info.CIDRs, func(c netip.Prefix) bool { return c.Overlaps(p) })
		if !taken {
			free = p
			break
		}
	}
	x.Limit = t.Limits().Entries
	if !heeded {
		return x
	}

	if !free.IsValid() {
		// A dry run about an entry that is there would be one about somebody's traffic.
		err := fmt.Errorf("not tried: the table or the VPC has all of %v", trials)
		x.Calls = append(x.Calls, cloud.CallExamination{Action: "vpc:CreateRouteEntry", Err: err})
		return x
	}
	client := t.vpc.client
	try := func(action string, needless bool, send func() (string, error)) {
		if !heeded {
			return
		}
		err := client.once(ctx, action, send)
		c := cloud.CallExamination{Action: "vpc:" + action, Prefix: free, Needless: needless}
		switch kind := kindOf(err); {
		case err == nil:
			c.Carried, heeded = true, false
		case isDryRun(err): // it would be carried out
		case kind == denied:
			c.Denied, c.Err = true, err
		case kind == full:
			c.Full, c.Err = true, err
		case kind == notFound || kind == unchanged || kind == duplicate || kind == busy: // the role may, which is what was asked
		case action == "CreateRouteEntry" || kind == badKey || kind == throttled || kind == unclear:
			c.Err = err
		}
		x.Calls = append(x.Calls, c)
	}
	try("CreateRouteEntry", false, func() (string, error) {
		q := alivpc.CreateCreateRouteEntryRequest()
		q.RouteTableId, q.DestinationCidrBlock, q.NextHopType, q.NextHopId = t.id, free.String(), "Instance", info.Instance
		q.QueryParams["DryRun"] = "true"
		out, err := client.vpc.CreateRouteEntry(q)
		if err != nil {
			return "", err
		}
		return out.RequestId, nil
	})
	try("DeleteRouteEntry", false, func() (string, error) {
		q := alivpc.CreateDeleteRouteEntryRequest()
		q.RouteTableId, q.DestinationCidrBlock, q.NextHopId = t.id, free.String(), info.Instance
		q.QueryParams["DryRun"] = "true"
		out, err := client.vpc.DeleteRouteEntry(q)
		if err != nil {
			return "", err
		}
		return out.RequestId, nil
	})
	try("ModifyRouteEntry", true, func() (string, error) {
		q := alivpc.CreateModifyRouteEntryRequest()
		q.NewNextHopType, q.NewNextHopId = "Instance", info.Instance
		q.QueryParams["RouteTableId"], q.QueryParams["DestinationCidrBlock"], q.QueryParams["DryRun"] = t.id, free.String(), "true"
		out, err := client.vpc.ModifyRouteEntry(q)
		if err != nil {
			return "", err
		}
		return out.RequestId, nil
	})
	return x
}

// isDryRun reports the answer to a dry run that would have been carried out.
func isDryRun(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.HasPrefix(e.Code, "DryRunOperation")
}
