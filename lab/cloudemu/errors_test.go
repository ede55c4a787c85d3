package cloudemu

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Every check of the front door answers with its own code, in order: a call
// that breaks a later rule too still gets the earlier code.
func TestFrontDoorCodes(t *testing.T) {
	at := func(d time.Duration) string { return time.Now().UTC().Add(d).Format(wireTime) }
	for _, c := range []struct {
		code   string
		status int
		over   params
	}{
		{"MissingAction", 400, params{"Action": ""}},
		{"InvalidAction.NotFound", 404, params{"Action": "Dance", "AccessKeyId": "nobody"}},
		{"InvalidVersion", 400, params{"Version": "2000-01-01"}},
		{"InvalidVersion", 400, params{"Version": "2014-05-26"}},
		{"MissingAccessKeyId", 400, params{"AccessKeyId": ""}},
		{"InvalidAccessKeyId.NotFound", 404, params{"AccessKeyId": "nobody", "Timestamp": "x"}},
		{"InvalidAccessKeyId.Inactive", 400, params{"AccessKeyId": "off"}},
		{"InvalidTimeStamp.Format", 400, params{"Timestamp": "2026-11-21 07:40:29", "SignatureMethod": "x"}},
		{"InvalidTimeStamp.Expired", 400, params{"Timestamp": at(-16 * time.Minute)}},
		{"InvalidTimeStamp.Expired", 400, params{"Timestamp": at(16 * time.Minute)}},
		{"", 200, params{"Timestamp": at(-14 * time.Minute)}},
		{"InvalidSignatureMethod", 400, params{"SignatureMethod": "HMAC-SHA256"}},
		{"InvalidSignatureMethod", 400, params{"SignatureVersion": "2.0"}},
		{"MissingSignature", 400, params{"Signature": ""}},
		{"SignatureDoesNotMatch", 400, params{"Signature": "AAAA"}},
		{"InvalidSecurityToken.MismatchWithAccessKey", 400, params{"AccessKeyId": "STS.x"}},
		{"InvalidSecurityToken.Malformed", 400, params{"AccessKeyId": "STS.x", "SecurityToken": "short"}},
		{"InvalidSecurityToken.MismatchWithAccessKey", 400, params{"AccessKeyId": "STS.x", "SecurityToken": "token-of-y"}},
		{"", 200, params{"AccessKeyId": "STS.x", "SecurityToken": "token-of-x"}},
		{"MissingParameter", 400, params{"RegionId": ""}},
		{"InvalidRegionId.NotFound", 404, params{"RegionId": "cn-z"}},
		{"Forbidden.RAM", 403, params{"AccessKeyId": "one"}}, // no table named
		{"", 200, params{"AccessKeyId": "ro"}},
		{"Forbidden.RAM", 403, params{"AccessKeyId": "ro", "Action": "DeleteRouteEntry"}},
		{"Forbidden.RAM", 403, params{"AccessKeyId": "one", "Action": "DescribeRouteEntryList", "RouteTableId": "vtb-sys"}},
		{"", 200, params{"AccessKeyId": "one", "Action": "DescribeRouteEntryList", "RouteTableId": "vtb-sub"}},
		{"Forbidden.RAM", 403, params{"AccessKeyId": "one", "Action": "DeleteRouteEntry", "RouteEntryId": "rte-foreign"}},
	} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			s := newServer(t, "instant")
			p := params{"Action": "DescribeVpcs"}
			maps.Copy(p, c.over)
			status, out := request(s, method, signed(method, "sk", p))
			code, _ := out["Code"].(string)
			if code != c.code || status != c.status {
				t.Errorf("%s %v: %d %q, want %d %q", method, c.over, status, code, c.status, c.code)
			}
			if out["RequestId"] == "" || code != "" && out["HostId"] == "" {
				t.Errorf("%v: answer without RequestId or HostId: %v", c.over, out)
			}
		}
	}
}

func TestFrontDoorState(t *testing.T) {
	s := newServer(t, "instant", func(s *Seed) { s.Rates.Read = 2 })
	if status, out := request(s, http.MethodPut, signed(http.MethodPut, "sk", params{"Action": "DescribeVpcs"})); out["Code"] != "UnsupportedHTTPMethod" {
		t.Errorf("PUT: %d %v", status, out)
	}
	p := signed(http.MethodPost, "sk", params{"Action": "DescribeVpcs"})
	request(s, http.MethodPost, p)
	if _, out := request(s, http.MethodPost, p); out["Code"] != "SignatureNonceUsed" {
		t.Errorf("nonce again: %v", out)
	}
	wrong := signed(http.MethodPost, "other", params{"Action": "DescribeVpcs"})
	if _, out := request(s, http.MethodPost, wrong); !strings.HasSuffix(fmt.Sprint(out["Message"]), "server string to sign is:"+stringToSign("POST", wrong)) {
		t.Errorf("mismatch answers %v", out["Message"])
	}
	if code, _ := do(s, "DescribeVpcs", nil); code != "" {
		t.Errorf("second call of two a minute: %s", code)
	}
	if code, _ := do(s, "DescribeVpcs", nil); code != "Throttling.User" {
		t.Errorf("third call of two a minute: %q", code)
	}
	if code, _ := do(s, "DescribeVSwitches", nil); code != "" {
		t.Errorf("another API has its own bucket: %s", code)
	}
	s.Tick(31 * time.Second)
	if code, _ := do(s, "DescribeVpcs", nil); code != "" {
		t.Errorf("after half a minute: %s", code)
	}
	s = newServer(t, "instant", func(s *Seed) { s.Rates.Global = 1 })
	do(s, "DescribeVpcs", nil)
	if code, _ := do(s, "DescribeVpcs", nil); code != "Throttling" {
		t.Errorf("global limit: %q", code)
	}
}

// Every documented code that the emulated calls can reach.
func TestErrorTable(t *testing.T) {
	with := func(p params, kv ...string) params {
		p = maps.Clone(p)
		for i := 0; i < len(kv); i += 2 {
			p[kv[i]] = kv[i+1]
		}
		return p
	}
	good := create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw")
	ecmp := params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.1.0.0/16",
		"NextHopList.1.NextHopType": "RouterInterface", "NextHopList.1.NextHopId": "ri-1",
		"NextHopList.2.NextHopType": "RouterInterface", "NextHopList.2.NextHopId": "ri-2"}
	long := strings.Repeat("x", 257)
	fill := func(s *Server) {
		for i := range 4 {
			mustDo(t, s, "CreateRouteEntry", create("vtb-sys", fmt.Sprintf("10.%d.0.0/16", 20+i), "Instance", "i-gw"))
		}
	}
	havips := func(s *Server) {
		for i := range 2 {
			mustDo(t, s, "CreateRouteEntry", create("vtb-sys", fmt.Sprintf("10.%d.0.0/16", 30+i), "HaVip", "havip-1"))
		}
	}
	status := func(id, v string) func(*Server) {
		return func(s *Server) {
			if _, err := s.postVPC([]byte(fmt.Sprintf(`{"id":%q,"status":%q}`, id, v))); err != nil {
				t.Fatal(err)
			}
		}
	}
	made := func(over params) func(*Server) {
		return func(s *Server) { mustDo(t, s, "CreateRouteEntry", over) }
	}
	busy := func(s *Server) {
		p, _ := ProfileNamed("stuck")
		s.SetProfile(p)
		mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.50.0.0/16", "Instance", "i-gw"))
	}
	for _, c := range []struct {
		code, action string
		over         params
		before       func(*Server)
	}{
		{"MissingParameter", "CreateRouteEntry", with(good, "RouteTableId", ""), nil},
		{"MissingParameter", "CreateRouteEntry", with(good, "DestinationCidrBlock", ""), nil},
		{"InvalidCidrBlock.Malformed", "CreateRouteEntry", with(good, "DestinationCidrBlock", "10.1.2.3/16"), nil},
		{"InvalidCidrBlock.Malformed", "CreateRouteEntry", with(good, "DestinationCidrBlock", "ten"), nil},
		{"InvalidRouteEntryName.Malformed", "CreateRouteEntry", with(good, "RouteEntryName", "http://x"), nil},
		{"InvalidDescription.Malformed", "CreateRouteEntry", with(good, "Description", long), nil},
		{"InvalidRouteTableId.NotFound", "CreateRouteEntry", with(good, "RouteTableId", "vtb-none"), nil},
		{"InvalidRouteTableId.NotFound", "CreateRouteEntry", with(good, "RegionId", "cn-b"), nil},
		{"OperationDenied.RouteTableTypeNotPermitted", "CreateRouteEntry", with(good, "RouteTableId", "vtb-gw"), nil},
		{"IncorrectStatus.RouteTableStatus", "CreateRouteEntry", with(good, "RouteTableId", "vtb-busy"), nil},
		{"InvalidNexthopTypeAndList.BothNull", "CreateRouteEntry", with(good, "NextHopType", "", "NextHopId", ""), nil},
		{"InvalidNexthopTypeAndList.BothNotNull", "CreateRouteEntry", with(ecmp, "NextHopType", "Instance"), nil},
		{"InvalidNextHopType", "CreateRouteEntry", with(good, "NextHopType", "Toaster"), nil},
		{"InvalidNexthopListSize", "CreateRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.1.0.0/16", "NextHopList.1.NextHopType": "RouterInterface"}, nil},
		{"OperationUnsupported.EcmpRiTypeOrNumber", "CreateRouteEntry", with(ecmp, "NextHopList.2.NextHopType", "Instance"), nil},
		{"OperationUnsupported.SubRouteTableECMP", "CreateRouteEntry", with(ecmp, "RouteTableId", "vtb-sub"), nil},
		{"InvalidInstanId.NotFound", "CreateRouteEntry", with(good, "NextHopId", "i-none"), nil},
		{"OperationFailed.InstanceDismatchCurrentVpc", "CreateRouteEntry", with(good, "NextHopId", "i-b"), nil},
		{"IncorrectInstanceStatus", "CreateRouteEntry", with(good, "NextHopId", "i-new"), nil},
		{"InvalidNetworkInterface.NotFound", "CreateRouteEntry", with(good, "NextHopType", "NetworkInterface", "NextHopId", "eni-none"), nil},
		{"Mismatch.EniIdAndRouteTableId", "CreateRouteEntry", with(good, "NextHopType", "NetworkInterface", "NextHopId", "eni-b"), nil},
		{"OperationUnsupported.Ipv6EntryOnPrimaryNetworkInterface", "CreateRouteEntry", create("vtb-sys", "2001:db8:9::/48", "NetworkInterface", "eni-gw"), nil},
		{"OperationDenied.Ipv6EntryOnCustomTable", "CreateRouteEntry", create("vtb-sub", "2001:db8:9::/48", "Instance", "i-gw"), nil},
		{"InvalidHaVipId.NotFound", "CreateRouteEntry", with(good, "NextHopType", "HaVip", "NextHopId", "havip-none"), nil},
		{"Mismatch.HaVipIdAndRouteTableId", "CreateRouteEntry", with(good, "NextHopType", "HaVip", "NextHopId", "havip-b"), nil},
		{"IncorrectHaVipStatus", "CreateRouteEntry", with(good, "NextHopType", "HaVip", "NextHopId", "havip-bad"), nil},
		{"InvalidNexthop.NotFound", "CreateRouteEntry", with(good, "NextHopType", "VpnGateway", "NextHopId", "vpn-1"), nil},
		{"InvalidCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "100.64.0.0/10"), nil},
		{"InvalidCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "100.100.0.0/16"), nil},
		{"InvalidCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "172.18.171.0/24"), nil},
		{"InvalidCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "172.18.171.7"), nil},
		{"InvalidCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "2001:db8::/80"), nil},
		{"InvalidDestinationCidrBlock", "CreateRouteEntry", with(good, "DestinationCidrBlock", "127.0.0.0/8"), nil},
		{"InvalidCIDRBlock.Duplicate", "CreateRouteEntry", with(good, "DestinationCidrBlock", "192.0.2.0/24"), nil},
		{"Duplicated.VpcNextHop", "CreateRouteEntry", create("vtb-sys", "192.0.2.0/24", "Instance", "i-host"), nil},
		{"RouteConflict.AlreadyExist", "CreateRouteEntry", with(good, "DestinationCidrBlock", "10.9.0.0/16"), nil},
		{"QuotaExceeded", "CreateRouteEntry", good, fill},
		{"QuotaExceeded.HaVipRouteEntry", "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "HaVip", "havip-1"), havips},
		{"DryRunOperation", "CreateRouteEntry", with(good, "DryRun", "true"), nil},
		{"IncorrectVpcStatus", "CreateRouteEntry", good, status("vpc-a", "Pending")},
		{"IncorrectVSwitchStatus", "CreateRouteEntry", good, status("vsw-2", "Pending")},
		{"IdempotentParameterMismatch", "CreateRouteEntry", with(good, "ClientToken", "t"), made(with(good, "ClientToken", "t", "DestinationCidrBlock", "10.3.0.0/16"))},

		{"MissingParameter", "CreateRouteEntries", nil, nil},
		{"MissingParam.RouteTableId", "CreateRouteEntries", params{"RouteEntries.1.DstCidrBlock": "10.1.0.0/16"}, nil},
		{"InvalidParameter", "CreateRouteEntries", batch(51, 0), nil},
		{"DryRunOperation", "CreateRouteEntries", with(batch(1, 0), "DryRun", "true"), nil},
		{"InvalidParameter", "CreateRouteEntries", with(batch(2, 0), "RouteEntries.2.RouteTableId", "vtb-b"), nil},

		{"ParamExclusive.RouteEntryIdAndRouteTableIdOrDestCidrBlock", "DeleteRouteEntry", params{"RouteEntryId": "rte-foreign", "RouteTableId": "vtb-sys"}, nil},
		{"ParamExclusive.NextHopIdAndList", "DeleteRouteEntry", with(ecmp, "NextHopId", "i-1"), nil},
		{"MissingParameter", "DeleteRouteEntry", nil, nil},
		{"InvalidNextHopList.Size", "DeleteRouteEntry", params{"RouteEntryId": "x", "NextHopList.1.NextHopId": "i"}, nil},
		{"InvalidRouteEntryId.NotFound", "DeleteRouteEntry", params{"RouteEntryId": "rte-none"}, nil},
		{"InvalidRouteTableId.NotFound", "DeleteRouteEntry", params{"RouteTableId": "vtb-none", "DestinationCidrBlock": "10.1.0.0/16"}, nil},
		{"InvalidRouteEntry.NotFound", "DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.77.0.0/16"}, nil},
		{"InvalidRouteEntry.NotFound", "DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "192.0.2.0/24", "NextHopId": "i-gw"}, nil},
		{"InvalidNextHop", "DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.1.0.0/16"}, made(ecmp)},
		{"OperationDenied", "DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "172.18.171.0/24"}, nil},
		{"OperationDenied.DeleteManagedRouteEntry", "DeleteRouteEntry", params{"RouteEntryId": "rte-tr"}, nil},
		{"Forbbiden", "DeleteRouteEntry", params{"RouteEntryId": "rte-cen"}, nil},
		{"IncorrectRouteEntryStatus", "DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.50.0.0/16"}, busy},

		{"OperationDenied.NextHopNotChanged", "ModifyRouteEntry", params{"RouteEntryId": "rte-foreign", "NewNextHopType": "Instance", "NewNextHopId": "i-host"}, nil},
		{"InvalidInstanId.NotFound", "ModifyRouteEntry", params{"RouteEntryId": "rte-foreign", "NewNextHopType": "Instance", "NewNextHopId": "i-none"}, nil},
		{"MissingParameter", "ModifyRouteEntry", params{"RouteEntryId": "rte-foreign", "NewNextHopId": "i-gw"}, nil},
		{"OperationDenied", "ModifyRouteEntry", params{"RouteEntryId": "rte-cen", "Description": "mine"}, nil},
		{"IncorrectRouteEntryStatus", "ModifyRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.50.0.0/16"}, busy},
		{"QuotaExceeded.HaVipRouteEntry", "ModifyRouteEntry", params{"RouteEntryId": "rte-foreign", "NewNextHopType": "HaVip", "NewNextHopId": "havip-1"}, havips},

		{"MissingParameter", "DescribeRouteEntryList", nil, nil},
		{"InvalidRouteTable.NotFound", "DescribeRouteEntryList", params{"RouteTableId": "vtb-none"}, nil},
		{"OperationDenied.UseGatewayRouteEntryQueryInterface", "DescribeRouteEntryList", params{"RouteTableId": "vtb-gw"}, nil},
		{"IllegalParam.RouteEntryType", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "RouteEntryType": "custom"}, nil},
		{"IllegalParam.IpVersion", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "IpVersion": "v4"}, nil},
		{"IllegalParam.NextToken", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "NextToken": "x"}, nil},
		{"OperationFailed.FilterParamUnderWrongRouteType", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "RouteEntryType": "System", "RouteEntryName": "x"}, nil},
		{"MissingParameter", "DescribeRouteTables", nil, nil},
		{"InvalidParameter", "DescribeRouteTableList", params{"PageSize": "51"}, nil},
		{"InvalidParameter", "DescribeVpcs", params{"PageNumber": "0"}, nil},
		{"InvalidParameter.InstanceIds", "DescribeInstances", params{"InstanceIds": "i-gw", "Version": "2014-05-26"}, nil},
	} {
		s := newServer(t, "instant")
		if c.before != nil {
			c.before(s)
		}
		code, out := do(s, c.action, c.over)
		if code != c.code {
			t.Errorf("%s %v: %q (%v), want %q", c.action, c.over, code, out["Message"], c.code)
		}
	}
}

// batch is n creations of 10.(from+i).0.0/16.
func batch(n, from int) params {
	p := params{}
	for i := range n {
		base := fmt.Sprintf("RouteEntries.%d.", i+1)
		p[base+"RouteTableId"], p[base+"DstCidrBlock"] = "vtb-sys", fmt.Sprintf("10.%d.0.0/16", 10+from+i)
		p[base+"NextHopType"], p[base+"NextHop"] = "Instance", "i-gw"
	}
	return p
}

// A batch answers 200 with a failure per item, in its own vocabulary; items
// past the quota fail and earlier ones stay.
func TestBatchPartialFailure(t *testing.T) {
	s := newServer(t, "instant")
	p := batch(9, 0)
	p["RouteEntries.1.DstCidrBlock"] = "192.0.2.0/24"
	p["RouteEntries.2.NextHop"] = "i-none"
	p["RouteEntries.3.DstCidrBlock"] = "172.16.0.0/12" // contains vSwitches: only the batch refuses that
	p["RouteEntries.5.Describption"] = "sic"
	out := mustDo(t, s, "CreateRouteEntries", p)
	var codes []string
	for _, f := range out["FailedRouteEntries"].([]any) {
		f := f.(map[string]any)
		codes = append(codes, fmt.Sprint(f["DstCidrBlock"], " ", f["NextHop"], " ", f["FailedCode"]))
	}
	want := `192.0.2.0/24 i-gw VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE
10.11.0.0/16 i-none VPC_NEXTHOP_NOT_EXIST
172.16.0.0/12 i-gw VPC_CIDR_BLOCK_INVALID
10.17.0.0/16 i-gw VPC_ROUTE_ENTRY_QUOTA_EXCEEDED
10.18.0.0/16 i-gw VPC_ROUTE_ENTRY_QUOTA_EXCEEDED`
	if got := strings.Join(codes, "\n"); got != want || out["SuccessCount"] != 4.0 || out["FailedCount"] != 5.0 {
		t.Errorf("failed:\n%s\nwant:\n%s\n%v", got, want, out)
	}
	mustDo(t, s, "ModifyRouteEntry", params{"RouteEntryId": "rte-foreign", "Description": "said"})
	del := params{}
	for i, cidr := range []string{"10.13.0.0/16", "10.99.0.0/16", "10.13.0.0/16"} {
		base := fmt.Sprintf("RouteEntries.%d.", i+1)
		del[base+"RouteTableId"], del[base+"DstCidrBlock"], del[base+"NextHop"] = "vtb-sys", cidr, "i-gw"
	}
	out = mustDo(t, s, "DeleteRouteEntries", del)
	codes = nil
	for _, f := range out["FailedRouteEntries"].([]any) {
		codes = append(codes, fmt.Sprint(f.(map[string]any)["FailedCode"]))
	}
	if got := strings.Join(codes, " "); got != "VPC_ROUTER_ENTRY_NOT_EXIST VPC_ROUTE_ENTRY_STATUS_ERROR" {
		t.Errorf("delete failed with %s", got)
	}
	wantTable := seeded + "10.14.0.0/16 i-gw Available\n10.15.0.0/16 i-gw Available\n10.16.0.0/16 i-gw Available\n"
	if got := customs(t, s, "vtb-sys"); got != wantTable {
		t.Errorf("table:\n%swant:\n%s", got, wantTable)
	}
	if code, _ := do(s, "CreateRouteEntry", create("vtb-sys", "172.16.0.0/12", "Instance", "i-gw")); code != "" {
		t.Errorf("the single call may contain vSwitches: %s", code)
	}
}

// Each setting chooses the other of two behaviours.
func TestSettings(t *testing.T) {
	s := newServer(t, "instant", func(s *Seed) {
		s.Settings = Settings{CloudServiceMoreSpecific: "allow", HostBits: "mask", MaxResultOverflow: "error", DuplicateSameHop: "InvalidRouteEntry.Duplicate"}
	})
	for _, c := range []struct {
		code, action string
		over         params
	}{
		{"", "CreateRouteEntry", create("vtb-sys", "100.100.2.136/32", "Instance", "i-gw")},
		{"InvalidCidrBlock", "CreateRouteEntry", create("vtb-sys", "100.64.0.0/10", "Instance", "i-gw")},
		{"", "CreateRouteEntry", create("vtb-sys", "10.1.2.3/16", "Instance", "i-gw")},
		{"InvalidRouteEntry.Duplicate", "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw")},
		{"IllegalParam.MaxResult", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "MaxResult": "101"}},
		{"", "DescribeRouteEntryList", params{"RouteTableId": "vtb-sys", "MaxResult": "100"}},
	} {
		if code, _ := do(s, c.action, c.over); code != c.code {
			t.Errorf("%s %v: %q, want %q", c.action, c.over, code, c.code)
		}
	}
	if got, want := customs(t, s, "vtb-sys"), seeded+"100.100.2.136/32 i-gw Available\n10.1.0.0/16 i-gw Available\n"; got != want {
		t.Errorf("table:\n%s", got)
	}
}
