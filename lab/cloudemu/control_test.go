package cloudemu

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// emu makes a call of the control API and returns the status and the answer.
func emu(t *testing.T, s *Server, method, path, body string) (int, map[string]any) {
	t.Helper()
	r := httptest.NewRequest(method, "/_emu/"+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1"
	w := httptest.NewRecorder()
	s.API().ServeHTTP(w, r)
	var out map[string]any
	if strings.HasPrefix(w.Body.String(), "{") {
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, w.Body)
		}
	}
	return w.Code, out
}

func TestControl(t *testing.T) {
	s := newServer(t, "realistic")
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "profile", `{"name":"instant"}`, 200},
		{"POST", "profile", `{"name":"fast"}`, 400},
		{"POST", "profile", `{"readLagMs":5}`, 200},
		{"POST", "profile", `{"lag":5}`, 400},
		{"POST", "fault", `{"match":{"action":"DescribeVpcs"},"do":{"code":"ServiceUnavailable","http":503},"times":1}`, 200},
		{"GET", "fault", "", 200},
		{"DELETE", "fault", "", 200},
		{"POST", "quota", `{"table":"vtb-sys","routeEntries":3}`, 200},
		{"POST", "quota", `{"table":"vtb-none","routeEntries":3}`, 400},
		{"POST", "external", `{"op":"create","table":"vtb-sys","cidr":"10.5.0.0/16","nextHopType":"Instance","nextHopId":"i-host"}`, 200},
		{"POST", "external", `{"op":"create","table":"vtb-sys","cidr":"10.5.0.0/16"}`, 400},
		{"POST", "external", `{"op":"modify","table":"vtb-sys","cidr":"10.5.0.0/16","nextHopType":"Instance","nextHopId":"i-gw"}`, 200},
		{"POST", "external", `{"op":"delete","table":"vtb-sys","cidr":"192.0.2.0/24"}`, 200},
		{"POST", "external", `{"op":"delete","table":"vtb-sys","cidr":"192.0.2.0/24"}`, 400},
		{"POST", "instance", `{"id":"i-none","op":"stop"}`, 400},
		{"POST", "instance", `{"op":"moveEni","eni":"eni-2","to":"i-host"}`, 200},
		{"POST", "instance", `{"op":"moveEni","eni":"eni-gw","to":"i-host"}`, 400},
		{"GET", "fib?table=vtb-none&dst=10.5.0.1", "", 400},
		{"GET", "state", "", 200},
		{"POST", "seed", `{"regions":[],"vpcs":[],"colour":1}`, 400},
		{"GET", "nothing", "", 404},
	} {
		if got, out := emu(t, s, c.method, c.path, c.body); got != c.want {
			t.Errorf("%s %s %s: %d %v, want %d", c.method, c.path, c.body, got, out, c.want)
		}
	}
	s.Tick(time.Second)
	if got, want := customs(t, s, "vtb-sys"), "10.8.0.0/16 tr-1 Available\n10.5.0.0/16 i-gw Available\n"; got != want {
		t.Errorf("after external changes:\n%s", got)
	}
	if code, _ := do(s, "CreateRouteEntry", create("vtb-sys", "10.6.0.0/16", "Instance", "i-gw")); code != "" {
		t.Errorf("third entry of three: %s", code)
	}
	if code, _ := do(s, "CreateRouteEntry", create("vtb-sys", "10.7.0.0/16", "Instance", "i-gw")); code != "QuotaExceeded" {
		t.Errorf("fourth entry of three: %q", code)
	}
	route := func() map[string]any {
		_, out := emu(t, s, "GET", "fib?table=vtb-sys&dst=10.5.0.1", "")
		if out["forwards"] != (out["route"].(map[string]any)["via"] != "") {
			t.Errorf("fib: %v", out)
		}
		return out
	}
	if out := route(); out["forwards"] != true || len(out["history"].([]any)) != 2 {
		t.Errorf("fib: %v", out)
	}
	emu(t, s, "POST", "instance", `{"id":"i-gw","op":"stop"}`)
	if out := route(); out["forwards"] != false {
		t.Errorf("fib with a stopped hop: %v", out)
	}
	emu(t, s, "POST", "instance", `{"id":"i-gw","op":"release"}`)
	if got := customs(t, s, "vtb-sys"); !strings.Contains(got, "10.5.0.0/16 i-gw Available") {
		t.Errorf("an entry outlives its hop: %s", got)
	}
	if code, _ := emu(t, s, "POST", "seed", testSeed); code != 200 {
		t.Errorf("seed: %d", code)
	}
	if got := customs(t, s, "vtb-sys"); got != seeded {
		t.Errorf("after a new seed:\n%s", got)
	}
	r := httptest.NewRequest("GET", "/_emu/state", nil)
	r.RemoteAddr = "203.0.113.9:1"
	w := httptest.NewRecorder()
	s.API().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("control from outside: %d", w.Code)
	}
}

// What was recorded tells the sins of a client, and no secrets.
func TestFindings(t *testing.T) {
	s := newServer(t, "realistic")
	p := merge(create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"), params{"ClientToken": "a"})
	s.AddFault(Fault{Match: FaultMatch{Action: "CreateRouteEntry", Nth: 1}, Do: Effect{CloseConn: true}})
	func() {
		defer func() {
			if recover() != http.ErrAbortHandler {
				t.Error("the connection was not cut")
			}
		}()
		do(s, "CreateRouteEntry", p)
	}()
	p["ClientToken"] = "b"
	mustDo(t, s, "CreateRouteEntry", p)
	do(s, "CreateRouteEntry", create("vtb-sys", "10.2.0.0/16", "Instance", "i-gw"))
	settleAll(s)
	mustDo(t, s, "DeleteRouteEntry", params{"RouteEntryId": "rte-foreign"})
	again := signed(http.MethodPost, "sk", params{"Action": "DescribeVpcs"})
	request(s, http.MethodPost, again)
	request(s, http.MethodPost, again)
	calls, f := s.Requests()
	b, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	if f.UnstableRetries != 1 || f.OverlapWrites != 1 || f.UnownedWrites != 1 || f.NonceRepeats != 1 || f.MaxPerSecond != 3 || f.Calls != 6 {
		t.Errorf("findings: %+v", f)
	}
	for _, secret := range []string{again["Signature"], again["SignatureNonce"], "SecurityToken"} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("the records hold %q", secret)
		}
	}
}

// A repeated ClientToken gets the first answer and makes no second task.
func TestClientToken(t *testing.T) {
	s := newServer(t, "realistic")
	p := merge(create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"), params{"ClientToken": "a"})
	first := mustDo(t, s, "CreateRouteEntry", p)
	second := mustDo(t, s, "CreateRouteEntry", p)
	if first["RouteEntryId"] != second["RouteEntryId"] || first["RequestId"] == second["RequestId"] || s.tasks.Accepted != 1 {
		t.Errorf("repeated token: %v then %v, %d tasks", first, second, s.tasks.Accepted)
	}
	s.Tick(25 * time.Hour)
	if code, _ := do(s, "CreateRouteEntry", p); code != "Duplicated.VpcNextHop" {
		t.Errorf("a day later: %q", code)
	}
}

// While a call with a token waits, the same token is refused.
func TestLastTokenProcessing(t *testing.T) {
	s := newServer(t, "instant")
	s.AddFault(Fault{Do: Effect{DelayMS: 60000}, Times: 1})
	p := merge(create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"), params{"ClientToken": "a"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	first := signed(http.MethodGet, "sk", merge(p, params{"Action": "CreateRouteEntry"}))
	go func() {
		defer close(done)
		r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
		q := r.URL.Query()
		for k, v := range first {
			q.Set(k, v)
		}
		r.URL.RawQuery = q.Encode()
		s.API().ServeHTTP(httptest.NewRecorder(), r)
	}()
	for waiting := false; !waiting; {
		s.mu.Lock()
		waiting = len(s.inflight) == 1
		s.mu.Unlock()
	}
	if code, _ := do(s, "CreateRouteEntry", p); code != "LastTokenProcessing" {
		t.Errorf("while the first waits: %q", code)
	}
	cancel()
	<-done
	if code, _ := do(s, "CreateRouteEntry", p); code != "" {
		t.Errorf("after the first was done: %q", code)
	}
}

// A fault hits the calls its match describes and no others.
func TestFaultMatch(t *testing.T) {
	list := params{"RouteTableId": "vtb-sys"}
	for _, c := range []struct {
		match FaultMatch
		hit   bool
	}{
		{FaultMatch{}, true},
		{FaultMatch{Action: "DescribeRouteEntryList", Key: "ak", Table: "vtb-sys", Nth: 1}, true},
		{FaultMatch{Action: "DescribeVpcs"}, false},
		{FaultMatch{Key: "ro"}, false},
		{FaultMatch{Table: "vtb-sub"}, false},
		{FaultMatch{Nth: 2}, false},
		{FaultMatch{Probability: 1e-9}, false},
	} {
		s := newServer(t, "instant")
		s.AddFault(Fault{Match: c.match, Do: Effect{Code: "UnknownError"}})
		if code, _ := do(s, "DescribeRouteEntryList", list); (code == "UnknownError") != c.hit {
			t.Errorf("%+v: %q, want hit %v", c.match, code, c.hit)
		}
	}
}
