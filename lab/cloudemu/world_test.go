package cloudemu

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testSeed = `{
  "account": "42", "randSeed": 7, "metadataInstance": "i-gw",
  "regions": [{"id": "cn-a", "name": "A"}, {"id": "cn-b"}],
  "keys": [
    {"id": "ak", "secret": "sk", "policy": [{"actions": ["*"]}]},
    {"id": "off", "secret": "sk", "disabled": true},
    {"id": "ro", "secret": "sk", "policy": [{"actions": ["vpc:Describe*"]}]},
    {"id": "one", "secret": "sk", "policy": [{"actions": ["vpc:*"], "resources": ["acs:vpc:cn-a:*:routetable/vtb-sub"]}]},
    {"id": "STS.x", "secret": "sk", "token": "token-of-x", "policy": [{"actions": ["*"]}]}
  ],
  "roles": [{"name": "fabric", "ttlSeconds": 600, "policy": [{"actions": ["vpc:*"]}]}],
  "vpcs": [{
    "id": "vpc-a", "region": "cn-a", "cidr": "172.18.0.0/16", "ipv6Cidr": "2001:db8::/56", "vrouterId": "vrt-a",
    "vswitches": [{"id": "vsw-1", "cidr": "172.18.171.0/24", "ipv6Cidr": "2001:db8::/64"}, {"id": "vsw-2", "cidr": "172.18.172.0/24"}],
    "routeTables": [
      {"id": "vtb-sys", "type": "System", "entries": [
        {"id": "rte-foreign", "cidr": "192.0.2.0/24", "nextHopType": "Instance", "nextHopId": "i-host", "name": "other"},
        {"id": "rte-cen", "cidr": "10.9.0.0/16", "type": "CEN", "nextHopType": "Attachment", "nextHopId": "tr-1"},
        {"id": "rte-tr", "cidr": "10.8.0.0/16", "serviceType": "TR", "nextHopType": "Attachment", "nextHopId": "tr-1"}]},
      {"id": "vtb-sub", "type": "Custom", "vswitches": ["vsw-2"], "tags": {"env": "t"}},
      {"id": "vtb-gw", "type": "Custom", "associateType": "Gateway"},
      {"id": "vtb-busy", "type": "Custom", "status": "Pending"}],
    "instances": [
      {"id": "i-gw", "vswitch": "vsw-1", "privateIp": "172.18.171.245", "ipv6": "2001:db8::245", "eip": "203.0.113.10", "role": "fabric", "httpTokens": "required",
       "enis": [{"id": "eni-2", "privateIp": "172.18.171.246", "ipv6": "2001:db8::246"}]},
      {"id": "i-host", "vswitch": "vsw-1", "privateIp": "172.18.171.247", "publicIp": "203.0.113.20"},
      {"id": "i-new", "vswitch": "vsw-1", "privateIp": "172.18.171.248", "status": "Starting"}],
    "haVips": [{"id": "havip-1", "vswitch": "vsw-1", "ip": "172.18.171.250", "master": "i-gw"},
               {"id": "havip-bad", "vswitch": "vsw-1", "ip": "172.18.171.251", "status": "Associating"}],
    "routerInterfaces": ["ri-1", "ri-2"]
  }, {
    "id": "vpc-b", "region": "cn-a", "cidr": "172.31.0.0/16",
    "vswitches": [{"id": "vsw-b", "cidr": "172.31.1.0/24"}],
    "routeTables": [{"id": "vtb-b", "type": "System"}],
    "instances": [{"id": "i-b", "vswitch": "vsw-b", "privateIp": "172.31.1.1"}],
    "haVips": [{"id": "havip-b", "vswitch": "vsw-b", "ip": "172.31.1.9"}]
  }],
  "quotas": {"routeEntries": 6, "haVipRouteEntries": 2},
  "rates": {"write": -1, "modify": -1, "read": -1, "describeRouteTables": -1}
}`

// quiet drops logs.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// newServer is a server with the test seed, changed by edit, on a clock that
// only moves by Tick.
func newServer(t testing.TB, profile string, edit ...func(*Seed)) *Server {
	t.Helper()
	seed, err := ParseSeed([]byte(testSeed))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(&seed)
	}
	p, err := ProfileNamed(profile)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Seed: seed, Profile: p, Clock: NewClock(0), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nonce makes every call's SignatureNonce another one.
var nonce atomic.Int64

// signed completes and signs a call; parameters given win over the defaults.
func signed(method, secret string, over params) params {
	p := params{"AccessKeyId": "ak", "Format": "JSON", "RegionId": "cn-a", "SignatureMethod": "HMAC-SHA1", "SignatureType": "",
		"SignatureVersion": "1.0", "SignatureNonce": fmt.Sprint("n", nonce.Add(1)), "Timestamp": time.Now().UTC().Format(wireTime), "Version": "2016-04-28"}
	maps.Copy(p, over)
	if _, ok := p["Signature"]; !ok {
		p["Signature"] = sign(secret, stringToSign(method, p))
	}
	return p
}

// request sends parameters in the form body (POST) or the query.
func request(s *Server, method string, p params) (int, map[string]any) {
	v := url.Values{}
	for k, x := range p {
		v.Set(k, x)
	}
	var r *http.Request
	if method == http.MethodPost {
		r = httptest.NewRequest(method, "/", strings.NewReader(v.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		r = httptest.NewRequest(method, "/?"+v.Encode(), nil)
	}
	w := httptest.NewRecorder()
	s.API().ServeHTTP(w, r)
	var out map[string]any
	_ = json.Unmarshal(w.Body.Bytes(), &out)
	return w.Code, out
}

// call makes a signed call of key ak and returns the error code, "" for
// success, and the answer.
func do(s *Server, action string, over params) (string, map[string]any) {
	p := params{"Action": action}
	maps.Copy(p, over)
	_, out := request(s, http.MethodPost, signed(http.MethodPost, "sk", p))
	code, _ := out["Code"].(string)
	return code, out
}

// mustDo is do for calls that must succeed.
func mustDo(t testing.TB, s *Server, action string, over params) map[string]any {
	t.Helper()
	code, out := do(s, action, over)
	if code != "" {
		t.Fatalf("%s %v: %s: %v", action, over, code, out["Message"])
	}
	return out
}

func create(table, cidr, hopType, hop string) params {
	return params{"RouteTableId": table, "DestinationCidrBlock": cidr, "NextHopType": hopType, "NextHopId": hop}
}

// customs prints the custom entries of a table, one "cidr hop status" a line.
func customs(t testing.TB, s *Server, table string) string {
	t.Helper()
	var b strings.Builder
	token := ""
	for {
		out := mustDo(t, s, "DescribeRouteEntryList", params{"RouteTableId": table, "RouteEntryType": "Custom", "NextToken": token, "MaxResult": "3"})
		for _, e := range out["RouteEntrys"].(map[string]any)["RouteEntry"].([]any) {
			e := e.(map[string]any)
			hop := e["NextHops"].(map[string]any)["NextHop"].([]any)[0].(map[string]any)
			fmt.Fprintln(&b, e["DestinationCidrBlock"], hop["NextHopId"], e["Status"])
		}
		if token = out["NextToken"].(string); token == "" {
			return b.String()
		}
	}
}

const seeded = "192.0.2.0/24 i-host Available\n10.8.0.0/16 tr-1 Available\n"
