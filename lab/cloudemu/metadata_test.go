package cloudemu

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// meta asks the metadata service as the instance with an address.
func meta(s *Server, method, from, path string, header ...string) (int, string) {
	r := httptest.NewRequest(method, path, nil)
	r.RemoteAddr = from + ":40000"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Metadata().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestMetadata(t *testing.T) {
	s := newServer(t, "instant")
	const gw, host = "172.18.171.245", "172.18.171.247"
	status, token := meta(s, "PUT", gw, "/latest/api/token", tokenTTLHeader, "60")
	if status != 200 || token == "" {
		t.Fatalf("token: %d %q", status, token)
	}
	for _, c := range []struct {
		from, method, path, token string
		status                    int
		body                      string
	}{
		{gw, "GET", "/latest/meta-data/instance-id", token, 200, "i-gw"},
		{gw, "GET", "/2016-01-01/meta-data/region-id", token, 200, "cn-a"},
		{gw, "GET", "/1.0/meta-data/region-id", token, 404, ""},
		{gw, "GET", "/latest/meta-data/instance-id", "", 403, ""},
		{gw, "GET", "/latest/meta-data/instance-id", "made up", 403, ""},
		{host, "GET", "/latest/meta-data/instance-id", "", 200, "i-host"},
		{host, "GET", "/latest/meta-data/instance-id", token, 403, ""}, // another instance's token
		{"203.0.113.99", "GET", "/latest/meta-data/instance-id", "", 403, ""},
		{host, "GET", "/latest/meta-data/vpc-id", "", 200, "vpc-a"},
		{host, "GET", "/latest/meta-data/vswitch-id", "", 200, "vsw-1"},
		{host, "GET", "/latest/meta-data/zone-id", "", 200, "cn-a-a"},
		{host, "GET", "/latest/meta-data/vpc-cidr-block", "", 200, "172.18.0.0/16"},
		{host, "GET", "/latest/meta-data/private-ipv4", "", 200, host},
		{host, "GET", "/latest/meta-data/owner-account-id", "", 200, "42"},
		{host, "GET", "/latest/meta-data/eipv4", "", 404, ""},
		{host, "GET", "/latest/meta-data/network/interfaces/macs/", "", 200, "00:16:ac:12:ab:f7/"},
		{host, "GET", "/latest/meta-data/network/interfaces/macs/00:16:ac:12:ab:f7/network-interface-id", "", 200, "eni-host"},
		{host, "GET", "/latest/meta-data/ram/security-credentials/", "", 404, ""}, // no role
		{gw, "GET", "/latest/meta-data/ram/security-credentials/", token, 200, "fabric"},
		{gw, "GET", "/latest/meta-data/ram/security-credentials/other", token, 404, ""},
		{gw, "POST", "/latest/meta-data/instance-id", token, 405, ""},
		{gw, "GET", "/latest/api/token", "", 405, ""},
	} {
		var h []string
		if c.token != "" {
			h = []string{tokenHeader, c.token}
		}
		status, body := meta(s, c.method, c.from, c.path, h...)
		if status != c.status || c.body != "" && body != c.body {
			t.Errorf("%s from %s: %d %q, want %d %q", c.path, c.from, status, body, c.status, c.body)
		}
	}
	for _, ttl := range []string{"", "0", "21601", "x"} {
		if status, _ := meta(s, "PUT", gw, "/latest/api/token", tokenTTLHeader, ttl); status != 400 {
			t.Errorf("ttl %q: %d", ttl, status)
		}
	}
	s.Tick(61 * time.Second)
	if status, _ := meta(s, "GET", gw, "/latest/meta-data/instance-id", tokenHeader, token); status != 403 {
		t.Errorf("a token past its end: %d", status)
	}
	emu(t, s, "POST", "metadata", `{"outage":true}`)
	if status, _ := meta(s, "GET", host, "/latest/meta-data/instance-id"); status != 500 {
		t.Errorf("outage: %d", status)
	}
}

// A role's keys work, are replaced before they end, go on working until then,
// and end.
func TestRoleCredentials(t *testing.T) {
	s := newServer(t, "instant")
	fetch := func() credential {
		t.Helper()
		_, token := meta(s, "PUT", "172.18.171.245", "/latest/api/token", tokenTTLHeader, "60")
		_, body := meta(s, "GET", "172.18.171.245", "/latest/meta-data/ram/security-credentials/fabric", tokenHeader, token)
		var c credential
		if err := json.Unmarshal([]byte(body), &c); err != nil || c.Code != "Success" || !strings.HasPrefix(c.AccessKeyID, "STS.") {
			t.Fatalf("credential %s: %v", body, err)
		}
		return c
	}
	use := func(c credential) string {
		_, out := request(s, http.MethodPost, signed(http.MethodPost, c.AccessKeySecret, params{"Action": "DescribeVpcs",
			"AccessKeyId": c.AccessKeyID, "SecurityToken": c.SecurityToken}))
		code, _ := out["Code"].(string)
		return code
	}
	expect := func(when string, c credential, want string) {
		t.Helper()
		if got := use(c); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	a := fetch()
	expect("fresh", a, "")
	s.Tick(200 * time.Second)
	if b := fetch(); b.AccessKeyID != a.AccessKeyID {
		t.Error("replaced too early")
	}
	s.Tick(200 * time.Second)
	b := fetch()
	if b.AccessKeyID == a.AccessKeyID {
		t.Error("not replaced with 200 s left")
	}
	expect("replaced but not ended", a, "")
	expect("new", b, "")
	s.Tick(250 * time.Second)
	expect("within a minute of its end", a, "")
	s.Tick(30 * time.Second)
	expect("after its end", a, "InvalidSecurityToken.Expired")
	expect("the new one still", b, "")
	emu(t, s, "POST", "metadata", `{"rotate":"fabric"}`)
	expect("rotated, within a minute", b, "")
	s.Tick(61 * time.Second)
	expect("rotated, later", b, "InvalidSecurityToken.Expired")
	expect("rotated to", fetch(), "")
}
