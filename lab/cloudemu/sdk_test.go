package cloudemu

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	stderrors "errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	aliecs "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"
)

// listen serves the emulator on a loopback port, over TLS when ca is given.
func listen(t *testing.T, s *Server, ca *CA) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ts := httptest.NewUnstartedServer(s.API())
	ts.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	if ca != nil { // StartTLS would offer a certificate of its own
		ts.Listener = tls.NewListener(ts.Listener, ca.Config())
	}
	ts.Start()
	t.Cleanup(func() {
		cancel() // calls that are left without an answer
		ts.Close()
	})
	return ts.Listener.Addr().String()
}

// clients are the vendor's SDK, pointed at the emulator.
func clients(t *testing.T, s *Server, https bool, secret string) (*alivpc.Client, *aliecs.Client) {
	t.Helper()
	conf := sdk.NewConfig().WithScheme("HTTP").WithTimeout(20 * time.Second)
	var ca *CA
	if https {
		var err error
		if ca, err = NewCA(); err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca.PEM)
		conf = conf.WithScheme("HTTPS").WithHttpTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}})
	}
	addr := listen(t, s, ca)
	key := credentials.NewAccessKeyCredential("ak", secret)
	v, err := alivpc.NewClientWithOptions("cn-a", conf, key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := aliecs.NewClientWithOptions("cn-a", conf, key)
	if err != nil {
		t.Fatal(err)
	}
	v.Domain, e.Domain = addr, addr
	return v, e
}

func sdkEntries(t *testing.T, v *alivpc.Client, table string) []alivpc.RouteEntry {
	t.Helper()
	r := alivpc.CreateDescribeRouteEntryListRequest()
	r.RouteTableId, r.MaxResult = table, requests.NewInteger(2)
	var all []alivpc.RouteEntry
	for {
		out, err := v.DescribeRouteEntryList(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out.RouteEntrys.RouteEntry...)
		if r.NextToken = out.NextToken; r.NextToken == "" {
			return all
		}
	}
}

// The vendor's own client walks the discovery chain, then writes, over HTTP
// and HTTPS.
func TestSDK(t *testing.T) {
	for _, https := range []bool{false, true} {
		s := newServer(t, "instant")
		v, e := clients(t, s, https, "sk")

		regions, err := e.DescribeRegions(aliecs.CreateDescribeRegionsRequest())
		if err != nil || len(regions.Regions.Region) != 2 || regions.Regions.Region[0].RegionEndpoint != v.Domain {
			t.Fatalf("regions: %v %v", regions, err)
		}
		find := aliecs.CreateDescribeInstancesRequest()
		find.EipAddresses = `["203.0.113.10"]`
		found, err := e.DescribeInstances(find)
		if err != nil || len(found.Instances.Instance) != 1 {
			t.Fatalf("instances: %v %v", found, err)
		}
		i := found.Instances.Instance[0]
		if i.InstanceId != "i-gw" || i.VpcAttributes.VpcId != "vpc-a" || i.VpcAttributes.PrivateIpAddress.IpAddress[0] != "172.18.171.245" ||
			i.EipAddress.IpAddress != "203.0.113.10" || len(i.NetworkInterfaces.NetworkInterface) != 2 {
			t.Errorf("instance: %+v", i)
		}
		nics := aliecs.CreateDescribeNetworkInterfacesRequest()
		nics.InstanceId, nics.MaxResults = "i-gw", requests.NewInteger(1)
		for n := 0; ; n++ {
			out, err := e.DescribeNetworkInterfaces(nics)
			if err != nil || len(out.NetworkInterfaceSets.NetworkInterfaceSet) != 1 || n > 1 {
				t.Fatalf("interfaces, page %d: %v %v", n, out, err)
			}
			if nics.NextToken = out.NextToken; nics.NextToken == "" {
				break
			}
		}
		vpcs := alivpc.CreateDescribeVpcsRequest()
		vpcs.VpcId = i.VpcAttributes.VpcId
		gotVPCs, err := v.DescribeVpcs(vpcs)
		if err != nil || len(gotVPCs.Vpcs.Vpc) != 1 || len(gotVPCs.Vpcs.Vpc[0].RouterTableIds.RouterTableIds) != 4 {
			t.Fatalf("vpcs: %v %v", gotVPCs, err)
		}
		routers := alivpc.CreateDescribeVRoutersRequest()
		routers.VRouterId = gotVPCs.Vpcs.Vpc[0].VRouterId
		if out, err := v.DescribeVRouters(routers); err != nil || len(out.VRouters.VRouter[0].RouteTableIds.RouteTableId) != 4 {
			t.Errorf("vrouters: %v %v", out, err)
		}
		switches := alivpc.CreateDescribeVSwitchesRequest()
		switches.VpcId = "vpc-a"
		if out, err := v.DescribeVSwitches(switches); err != nil || len(out.VSwitches.VSwitch) != 2 || out.VSwitches.VSwitch[1].RouteTable.RouteTableId != "vtb-sub" {
			t.Errorf("vswitches: %v %v", out, err)
		}
		tables := alivpc.CreateDescribeRouteTableListRequest()
		tables.VpcId = "vpc-a"
		if out, err := v.DescribeRouteTableList(tables); err != nil || len(out.RouterTableList.RouterTableListType) != 4 ||
			out.RouterTableList.RouterTableListType[2].AssociateType != "Gateway" || out.RouterTableList.RouterTableListType[1].VSwitchIds.VSwitchId[0] != "vsw-2" {
			t.Errorf("route tables: %v %v", out, err)
		}

		dry := alivpc.CreateCreateRouteEntryRequest()
		dry.RouteTableId, dry.DestinationCidrBlock, dry.NextHopType, dry.NextHopId = "vtb-sys", "10.1.0.0/16", "Instance", "i-gw"
		dry.Description, dry.ClientToken = "fabric:a/b ~*+", "t~*+ 1"
		dry.QueryParams["DryRun"] = "true"
		if _, err := v.CreateRouteEntry(dry); code(err) != "DryRunOperation" {
			t.Errorf("dry run: %v", err)
		}
		delete(dry.QueryParams, "DryRun")
		made, err := v.CreateRouteEntry(dry)
		if err != nil {
			t.Fatal(err)
		}
		many := alivpc.CreateCreateRouteEntriesRequest()
		many.RouteEntries = &[]alivpc.CreateRouteEntriesRouteEntries{
			{RouteTableId: "vtb-sys", DstCidrBlock: "10.2.0.0/16", NextHop: "i-gw", NextHopType: "Instance", Name: "n"},
			{RouteTableId: "vtb-sys", DstCidrBlock: "10.1.0.0/16", NextHop: "i-gw", NextHopType: "Instance"},
			{RouteTableId: "vtb-sys", DstCidrBlock: "2001:db8:5::/48", NextHop: "i-gw", NextHopType: "Instance"}}
		if out, err := v.CreateRouteEntries(many); err != nil || out.SuccessCount != 2 || len(out.RouteEntryIds) != 2 ||
			out.FailedRouteEntries[0].FailedCode != "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE" || out.FailedRouteEntries[0].DstCidrBlock != "10.1.0.0/16" {
			t.Errorf("batch: %v %v", out, err)
		}
		move := alivpc.CreateModifyRouteEntryRequest()
		move.RouteEntryId, move.NewNextHopType, move.NewNextHopId = made.RouteEntryId, "Instance", "i-host"
		if _, err := v.ModifyRouteEntry(move); err != nil {
			t.Error(err)
		}
		var got []string
		for _, e := range sdkEntries(t, v, "vtb-sys") {
			got = append(got, e.DestinationCidrBlock+" "+e.Type+" "+e.NextHops.NextHop[0].NextHopId+" "+e.Description)
		}
		want := "172.18.171.0/24 System  |2001:db8::/64 System  |172.18.172.0/24 System  |100.64.0.0/10 System  |192.0.2.0/24 Custom i-host |" +
			"10.9.0.0/16 CEN tr-1 |10.8.0.0/16 Custom tr-1 |10.1.0.0/16 Custom i-host fabric:a/b ~*+|10.2.0.0/16 Custom i-gw |2001:db8:5::/48 Custom i-gw "
		if strings.Join(got, "|") != want {
			t.Errorf("entries:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
		}
		old := alivpc.CreateDescribeRouteTablesRequest()
		old.RouteTableId = "vtb-sys"
		if out, err := v.DescribeRouteTables(old); err != nil || len(out.RouteTables.RouteTable[0].RouteEntrys.RouteEntry) != 10 ||
			out.RouteTables.RouteTable[0].RouteEntrys.RouteEntry[8].InstanceId != "i-gw" {
			t.Errorf("DescribeRouteTables: %v %v", out, err)
		}
		del := alivpc.CreateDeleteRouteEntryRequest()
		del.RouteTableId, del.DestinationCidrBlock, del.NextHopId = "vtb-sys", "10.1.0.0/16", "i-host"
		if _, err := v.DeleteRouteEntry(del); err != nil {
			t.Error(err)
		}
		drop := alivpc.CreateDeleteRouteEntriesRequest()
		drop.RouteEntries = &[]alivpc.DeleteRouteEntriesRouteEntries{{RouteTableId: "vtb-sys", DstCidrBlock: "10.2.0.0/16", NextHop: "i-gw"},
			{RouteTableId: "vtb-sys", DstCidrBlock: "10.1.0.0/16", NextHop: "i-host"}}
		if out, err := v.DeleteRouteEntries(drop); err != nil || out.SuccessCount != 1 || out.FailedRouteEntries[0].FailedCode != "VPC_ROUTER_ENTRY_NOT_EXIST" {
			t.Errorf("batch delete: %v %v", out, err)
		}
	}
}

func code(err error) string {
	var se *errors.ServerError
	if stderrors.As(err, &se) {
		return se.ErrorCode()
	}
	return ""
}

// The SDK compares our string to sign with its own; equal means the secret is
// wrong, and it says so.
func TestSDKWrongSecret(t *testing.T) {
	v, _ := clients(t, newServer(t, "instant"), false, "wrong")
	_, err := v.DescribeVpcs(alivpc.CreateDescribeVpcsRequest())
	var se *errors.ServerError
	if !stderrors.As(err, &se) || se.ErrorCode() != "SignatureDoesNotMatch" || !strings.HasPrefix(se.Recommend(), "InvalidAccessKeySecret") {
		t.Errorf("%v", err)
	}
}

// Faults as the SDK sees them. In all of them but the first two the route is
// there afterwards.
func TestSDKFaults(t *testing.T) {
	for _, c := range []struct {
		name    string
		do      Effect
		code    string // of the SDK's error, when it is one
		applied bool
	}{
		{"code", Effect{Code: "Throttling.User", Message: "slow down"}, "Throttling.User", false},
		{"service unavailable", Effect{Code: "ServiceUnavailable", HTTP: 503}, "ServiceUnavailable", false},
		{"drop before", Effect{DropBeforeApply: true}, "", false},
		{"close", Effect{CloseConn: true}, "", false},
		{"drop after", Effect{DropAfterApply: true}, "", true},
		{"close after", Effect{DropAfterApply: true, CloseConn: true}, "", true},
		{"garbage", Effect{GarbageBody: true}, "", true},
		{"html", Effect{HTMLBody: true, HTTP: 502}, "", true},
		{"truncate", Effect{Truncate: true}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, "instant")
			v, _ := clients(t, s, false, "sk")
			s.AddFault(Fault{Match: FaultMatch{Action: "CreateRouteEntry", Table: "vtb-sys", Key: "ak"}, Do: c.do, Times: 1})
			r := alivpc.CreateCreateRouteEntryRequest()
			r.RouteTableId, r.DestinationCidrBlock, r.NextHopType, r.NextHopId, r.ClientToken = "vtb-sys", "10.1.0.0/16", "Instance", "i-gw", "t"
			r.SetReadTimeout(time.Second)
			_, err := v.CreateRouteEntry(r)
			if err == nil || c.code != "" && code(err) != c.code {
				t.Errorf("error: %v, want %q", err, c.code)
			}
			entries := sdkEntries(t, v, "vtb-sys")
			if applied := entries[len(entries)-1].DestinationCidrBlock == "10.1.0.0/16"; applied != c.applied {
				t.Errorf("applied: %v, want %v", applied, c.applied)
			}
			if _, err := v.CreateRouteEntry(r); err != nil {
				t.Errorf("the retry with the same ClientToken: %v", err)
			}
		})
	}
}
