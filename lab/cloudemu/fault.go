package cloudemu

import (
	"net/http"
	"slices"
	"time"
)

// Fault makes calls go wrong. It hits calls that passed every check of the
// front door.
type Fault struct {
	Match FaultMatch `json:"match"`
	Do    Effect     `json:"do"`
	Times int        `json:"times,omitempty"` // how often; 0 means always
	seen  int        // matching calls so far
	done  int        // of those, hit
}

// FaultMatch selects calls; empty fields match all.
type FaultMatch struct {
	Action      string  `json:"action,omitempty"`
	Key         string  `json:"key,omitempty"`   // principal: key id, or role/NAME
	Table       string  `json:"table,omitempty"` // route table the call names
	Nth         int     `json:"nth,omitempty"`   // only the n-th such call, from 1
	Probability float64 `json:"probability,omitempty"`
}

// Effect is what a fault does to a call.
type Effect struct {
	Code    string `json:"code,omitempty"`    // refuse the call with this error code
	Message string `json:"message,omitempty"` //   and this message
	HTTP    int    `json:"http,omitempty"`    //   and this HTTP status (default 400)
	DelayMS int    `json:"delayMs,omitempty"` // wait before doing anything, in real time
	// DropBeforeApply and DropAfterApply never answer: the client runs into its
	// timeout. After DropAfterApply the call was done.
	DropBeforeApply bool `json:"dropBeforeApply,omitempty"`
	DropAfterApply  bool `json:"dropAfterApply,omitempty"`
	// CloseConn closes the connection at once instead; alone it means
	// DropBeforeApply.
	CloseConn   bool `json:"closeConn,omitempty"`
	GarbageBody bool `json:"garbageBody,omitempty"` // the answer is no JSON
	HTMLBody    bool `json:"htmlBody,omitempty"`    // the answer is a proxy's error page, with status HTTP if set
	Truncate    bool `json:"truncate,omitempty"`    // the answer ends half way
	Vanish      bool `json:"vanish,omitempty"`      // accepted, but the task fails in the end
}

func (e *Effect) refusal() *apiError {
	status := e.HTTP
	if status == 0 {
		status = http.StatusBadRequest
	}
	return &apiError{status, e.Code, e.Message}
}

// takeFault returns what happens to a call, nil for nothing. s.mu is held.
func (s *Server) takeFault(c *call, rec *Request) *Effect {
	for _, f := range s.faults {
		m := f.Match
		if !is(m.Action, c.action) || !is(m.Key, c.principal) || m.Table != "" && !names(c.params, m.Table) {
			continue
		}
		if f.Times > 0 && f.done >= f.Times {
			continue
		}
		f.seen++
		if m.Nth > 0 && f.seen != m.Nth || m.Probability > 0 && s.rng.Float64() >= m.Probability {
			continue
		}
		f.done++
		effect := f.Do
		rec.Fault = &effect
		return &effect
	}
	return nil
}

// names says whether a call names a route table.
func names(p params, table string) bool {
	if p["RouteTableId"] == table {
		return true
	}
	for _, it := range p.items("RouteEntries") {
		if it["RouteTableId"] == table {
			return true
		}
	}
	return false
}

// Request is a recorded call.
type Request struct {
	Time    time.Time         `json:"time"`
	ID      string            `json:"requestId"`
	Key     string            `json:"key"`
	Action  string            `json:"action"`
	Params  map[string]string `json:"params"` // without signature, token and nonce
	HTTP    int               `json:"http"`
	Code    string            `json:"code,omitempty"`
	Fault   *Effect           `json:"fault,omitempty"`
	Dropped bool              `json:"dropped,omitempty"` // the client got no answer
	Unowned bool              `json:"unowned,omitempty"` // a write to an entry of somebody else
	Overlap bool              `json:"overlap,omitempty"` // a write sent while a task of that VPC was running
}

// maxRequests is how many calls are kept.
const maxRequests = 20000

func (s *Server) record(r Request) {
	if len(s.requests) >= maxRequests {
		s.requests = s.requests[maxRequests/2:]
	}
	s.requests = append(s.requests, r)
}

func recordable(p params) map[string]string {
	q := map[string]string{}
	for k, v := range p {
		if !envelope[k] {
			q[k] = v
		}
	}
	return q
}

// Findings are conclusions from the recorded calls.
type Findings struct {
	Calls           int            `json:"calls"`
	ByCode          map[string]int `json:"byCode"`          // "" is success
	MaxPerSecond    int            `json:"maxPerSecond"`    // most calls within any second
	OverlapWrites   int            `json:"overlapWrites"`   // writes while a task of the VPC was running
	NonceRepeats    int            `json:"nonceRepeats"`    // calls that used a nonce again
	UnownedWrites   int            `json:"unownedWrites"`   // deletes and changes of entries of others
	UnstableRetries int            `json:"unstableRetries"` // creates repeated after a lost answer with another ClientToken
}

// Requests returns the recorded calls and what can be concluded from them.
func (s *Server) Requests() ([]Request, Findings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests), s.findings()
}

// findings draws the conclusions. s.mu is held.
func (s *Server) findings() Findings {
	f := Findings{Calls: len(s.requests), ByCode: map[string]int{}}
	lost := map[string]string{} // table and destination -> ClientToken of a create nobody answered
	from := 0
	for i, r := range s.requests {
		f.ByCode[r.Code]++
		for r.Time.Sub(s.requests[from].Time) >= time.Second {
			from++
		}
		f.MaxPerSecond = max(f.MaxPerSecond, i-from+1)
		if r.Overlap {
			f.OverlapWrites++
		}
		if r.Unowned {
			f.UnownedWrites++
		}
		if r.Code == "SignatureNonceUsed" {
			f.NonceRepeats++
		}
		if r.Action != "CreateRouteEntry" {
			continue
		}
		place := r.Params["RouteTableId"] + " " + r.Params["DestinationCidrBlock"] + " " + r.Params["NextHopId"]
		if token, ok := lost[place]; ok && token != r.Params["ClientToken"] {
			f.UnstableRetries++
		}
		delete(lost, place)
		if r.Dropped {
			lost[place] = r.Params["ClientToken"]
		}
	}
	return f
}
