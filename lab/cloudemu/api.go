package cloudemu

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// api is one product version.
type api struct {
	service string
	actions map[string]func(*Server, *call) (any, *apiError)
}

// apis are the products by their Version parameter.
var apis = map[string]api{
	"2016-04-28": {"vpc", map[string]func(*Server, *call) (any, *apiError){
		"CreateRouteEntry":       (*Server).createRouteEntry,
		"CreateRouteEntries":     (*Server).createRouteEntries,
		"DeleteRouteEntry":       (*Server).deleteRouteEntry,
		"DeleteRouteEntries":     (*Server).deleteRouteEntries,
		"ModifyRouteEntry":       (*Server).modifyRouteEntry,
		"DescribeRouteEntryList": (*Server).describeRouteEntryList,
		"DescribeRouteTableList": (*Server).describeRouteTableList,
		"DescribeRouteTables":    (*Server).describeRouteTables,
		"DescribeVpcs":           (*Server).describeVpcs,
		"DescribeVRouters":       (*Server).describeVRouters,
		"DescribeVSwitches":      (*Server).describeVSwitches,
		"DescribeRegions":        (*Server).describeRegions,
	}},
	"2014-05-26": {"ecs", map[string]func(*Server, *call) (any, *apiError){
		"DescribeInstances":         (*Server).describeInstances,
		"DescribeRegions":           (*Server).describeRegions,
		"DescribeNetworkInterfaces": (*Server).describeNetworkInterfaces,
	}},
}

func knownAction(name string) bool {
	for _, a := range apis {
		if a.actions[name] != nil {
			return true
		}
	}
	return false
}

// maxBody is the longest form body that is read.
const maxBody = 1 << 20

// API answers the RPC calls and, to loopback peers, the control API below
// /_emu/.
func (s *Server) API() http.Handler {
	control := s.Control()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_emu/") {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			if a, err := netip.ParseAddr(host); err != nil || !a.Unmap().IsLoopback() {
				http.Error(w, "the control API is for loopback peers only", http.StatusForbidden)
				return
			}
			control.ServeHTTP(w, r)
			return
		}
		s.serveCall(w, r)
	})
}

// serveCall takes one call through the checks, the ordered faults and the
// action, and records it.
func (s *Server) serveCall(w http.ResponseWriter, r *http.Request) {
	c := &call{method: r.Method, host: r.Host}
	rec := Request{Time: s.clock.Now(), ID: requestID()}
	body, err := s.handle(w, r, c, &rec)
	if err != nil {
		rec.HTTP, rec.Code = err.status, err.code
	} else {
		rec.HTTP = http.StatusOK
	}
	rec.Action, rec.Key, rec.Unowned, rec.Overlap = c.action, c.principal, c.unowned, c.overlap
	rec.Params = recordable(c.params)
	f := rec.Fault
	s.mu.Lock()
	s.record(rec)
	s.mu.Unlock()
	s.log.Debug("call", "action", c.action, "key", c.principal, "http", rec.HTTP, "code", rec.Code, "fault", rec.Fault)
	if rec.Dropped {
		// The client is left waiting, or cut off; either way it never learns.
		if f == nil || !f.CloseConn {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}
	answer(w, f, c, rec, body, err)
}

// handle returns the answer to a call. Whether the call was applied but the
// answer is to be lost is left in rec.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, c *call, rec *Request) (any, *apiError) {
	form := ""
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			return nil, refuse("InvalidParameter", "The body cannot be read.")
		}
		form = string(b)
	} else if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		return nil, refuse("InvalidParameter", "The body cannot be read.")
	}
	p, err := parseParams(r.URL.RawQuery, form)
	if err != nil {
		return nil, refuse("InvalidParameter", err.Error())
	}
	c.params = p

	s.mu.Lock()
	s.settle()
	refusal := s.authenticate(c)
	if refusal != nil {
		s.mu.Unlock()
		return nil, refusal
	}
	if t := p["ClientToken"]; t != "" && c.action == "CreateRouteEntry" {
		c.token = c.principal + " " + t
		if s.inflight[c.token] {
			s.mu.Unlock()
			return nil, refuse("LastTokenProcessing", "The last token request is processing.")
		}
		s.inflight[c.token] = true
	}
	f := s.takeFault(c, rec)
	s.mu.Unlock()
	if f != nil && f.DelayMS > 0 {
		select {
		case <-r.Context().Done():
		case <-time.After(time.Duration(f.DelayMS) * time.Millisecond):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.token != "" {
		defer delete(s.inflight, c.token)
	}
	if f != nil {
		switch {
		case f.DropBeforeApply, f.CloseConn && !f.DropAfterApply:
			rec.Dropped = true
			return nil, nil
		case f.Code != "":
			return nil, f.refusal()
		}
		c.vanish = f.Vanish
	}
	s.settle()
	body, refusal := apis[p["Version"]].actions[c.action](s, c)
	rec.Dropped = f != nil && f.DropAfterApply
	return body, refusal
}

// answer writes the answer, mangled if a fault says so.
func answer(w http.ResponseWriter, f *Effect, c *call, rec Request, body any, err *apiError) {
	o, ok := body.(obj)
	if !ok {
		o = obj{}
	}
	o["RequestId"] = rec.ID
	status := http.StatusOK
	if err != nil {
		status = err.status
		o["HostId"], o["Code"], o["Message"] = c.host, err.code, err.message
		o["Recommend"] = "https://api.aliyun.com/troubleshoot?q=" + err.code
		if err.code == "Forbidden.RAM" {
			o["AccessDeniedDetail"] = obj{"AuthAction": c.service + ":" + c.action, "AuthPrincipalDisplayName": c.principal,
				"NoPermissionType": "ImplicitDeny", "PolicyType": "AccountLevelIdentityBasedPolicy"}
		}
	}
	b, _ := json.Marshal(o) // maps of texts and numbers always marshal
	contentType := "application/json;charset=utf-8"
	if f != nil {
		switch {
		case f.GarbageBody:
			b = []byte("\x00\x01{{{ not json \xff")
		case f.HTMLBody:
			contentType, b = "text/html", []byte("<html><body><h1>502 Bad Gateway</h1></body></html>")
			if f.HTTP != 0 {
				status = f.HTTP
			}
		case f.Truncate:
			// The announced length is that of the whole answer.
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			b = b[:len(b)/2]
		}
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may have left
}

// requestID is an upper case UUID version 4.
func requestID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
