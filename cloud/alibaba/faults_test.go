package alibaba

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/cloud"
	"fabric/internal/reconcile"
	"fabric/lab/cloudemu"
)

// Whatever happens to the answer of a write, the table ends as it should, by itself, with nothing done twice.
func TestLostAnswers(t *testing.T) {
	effects := map[string]cloudemu.Effect{
		"dropped after":  {DropAfterApply: true},
		"dropped before": {DropBeforeApply: true},
		"closed after":   {DropAfterApply: true, CloseConn: true},
		"closed before":  {CloseConn: true},
		"garbage":        {GarbageBody: true},
		"html 502":       {HTMLBody: true, HTTP: 502},
		"html 200":       {HTMLBody: true},
		"truncated":      {Truncate: true},
		"500":            {Code: "InternalError", HTTP: 500},
		"503":            {Code: "ServiceUnavailable", HTTP: 503},
		"throttled":      {Code: "Throttling.User"},
		"throttled too":  {Code: "Rejected.Throttling"},
		"task conflict":  {Code: "TaskConflict"},
		"not stable":     {Code: "IncorrectRouteEntryStatus"},
		"sic":            {Code: "IncorrcetRouteEntryStatus"},
		"token":          {Code: "LastTokenProcessing"},
	}
	// With the lag and the tasks of the real thing those in which the most can go wrong.
	slow := []string{"dropped after", "closed after", "garbage", "500", "not stable"}
	for name, effect := range effects {
		for _, action := range []string{"CreateRouteEntry", "CreateRouteEntries", "ModifyRouteEntry", "DeleteRouteEntry", "DeleteRouteEntries"} {
			for _, profile := range []string{"instant", "realistic"} {
				if profile == "realistic" && !slices.Contains(slow, name) {
					continue
				}
				t.Run(name+"/"+action+"/"+profile, func(t *testing.T) {
					t.Parallel()
					e := newEmu(t, profile)
					e.timing.Call = 300 * time.Millisecond
					tab := e.open().Table("vtb-sz")
					e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: action}, Do: effect, Times: 2})
					noErrors(t, tab.Apply(t.Context(), creates("i-gw2", "10.1.0.0/16")))
					noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")))
					have, err := tab.Observe(t.Context())
					if err != nil || len(have) != 3 || have[pfx("10.1.0.0/16")] != via("i-gw") {
						t.Errorf("observed %v %v", have, err)
					}
					noErrors(t, tab.Apply(t.Context(), deletes("10.1.0.0/16")))
					noErrors(t, tab.Apply(t.Context(), deletes("10.2.0.0/16", "10.3.0.0/16")))
					if got := e.entries("vtb-sz"); got != untouched {
						t.Errorf("at the end:\n%s", got)
					}
					e.behaved()
				})
			}
		}
	}
}

// A read that fails is an error or is repeated; it is never a smaller table.
func TestReads(t *testing.T) {
	for name, effect := range map[string]cloudemu.Effect{
		"garbage": {GarbageBody: true}, "html": {HTMLBody: true}, "truncated": {Truncate: true}, "closed": {CloseConn: true},
		"throttled": {Code: "Throttling"}, "dropped": {DropBeforeApply: true}, "expired page": {Code: "IllegalParam.NextTokenExpired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEmu(t, "instant")
			e.timing.Call = 300 * time.Millisecond
			tab := e.open().Table("vtb-sz")
			const n = 150 // two pages
			for i := range n {
				if err := e.Do(cloudemu.External{Op: "create", Table: "vtb-sz", CIDR: fmt.Sprintf("10.100.%d.0/24", i),
					NextHopType: "Instance", NextHopID: "i-gw", Description: e.wish.Mark()}); err != nil {
					t.Fatal(err)
				}
			}
			e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "DescribeRouteEntryList", Nth: 2}, Do: effect, Times: 1})
			have, err := tab.Observe(t.Context())
			if err != nil || len(have) != n {
				t.Errorf("observed %d, %v", len(have), err)
			}
			if name == "throttled" {
				return
			}
			e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "DescribeRouteEntryList"}, Do: cloudemu.Effect{HTMLBody: true, HTTP: 502}})
			tab.(*table).vpc.client.timing.Patience = time.Millisecond
			if have, err := tab.Observe(t.Context()); err == nil {
				t.Errorf("observed %d entries of an HTML page", len(have))
			} else {
				leaks(t, err.Error())
			}
		})
	}
}

// An entry that was accepted and then vanished is an error, and the next try makes it, with another ClientToken: the API
// would answer the old one from memory and do nothing.
func TestVanish(t *testing.T) {
	for _, profile := range []string{"instant", "realistic"} {
		for _, action := range []string{"CreateRouteEntry", "CreateRouteEntries"} {
			t.Run(profile+"/"+action, func(t *testing.T) {
				t.Parallel()
				e := newEmu(t, profile)
				e.control("POST", "profile", `{"minIntervalMs": 0}`, nil)
				tab := e.open().Table("vtb-sz")
				e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: action}, Do: cloudemu.Effect{Vanish: true}, Times: 1})
				ops := creates("i-gw", "10.1.0.0/16")
				if action == "CreateRouteEntries" {
					ops = creates("i-gw", "10.1.0.0/16", "10.2.0.0/16")
				}
				for i, err := range tab.Apply(t.Context(), ops) {
					if !errors.Is(err, errVanished) {
						t.Errorf("step %d: %v", i, err)
					}
				}
				noErrors(t, tab.Apply(t.Context(), ops))
				if have, err := tab.Observe(t.Context()); err != nil || len(have) != len(ops) {
					t.Errorf("observed %v %v", have, err)
				}
				e.behaved()
			})
		}
	}
}

// A change or delete that is accepted and then undone is an error as well.
func TestFallsBack(t *testing.T) {
	e := newEmu(t, "realistic")
	e.control("POST", "profile", `{"minIntervalMs": 0}`, nil) // else the fault may hit a call that is refused
	tab := e.open().Table("vtb-sz")
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16")))
	vanish := cloudemu.Effect{Vanish: true}
	e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "ModifyRouteEntry"}, Do: vanish, Times: 1})
	e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "DeleteRouteEntry"}, Do: vanish, Times: 1})
	move := []op{{Kind: reconcile.Replace, Key: pfx("10.1.0.0/16"), New: via("i-gw2")}}
	if errs := tab.Apply(t.Context(), move); !errors.Is(errs[0], errFellBack) {
		t.Errorf("move: %v", errs)
	}
	noErrors(t, tab.Apply(t.Context(), move))
	if errs := tab.Apply(t.Context(), deletes("10.1.0.0/16")); !errors.Is(errs[0], errFellBack) {
		t.Errorf("delete: %v", errs)
	}
	noErrors(t, tab.Apply(t.Context(), deletes("10.1.0.0/16")))
	if got := e.entries("vtb-sz"); got != untouched {
		t.Errorf("at the end:\n%s", got)
	}
	e.behaved()
}

// The smallest policies work, by the slower ways, and what is forbidden is asked for once.
func TestLeastPrivilege(t *testing.T) {
	for name, c := range map[string]struct {
		allow  []string
		denied map[string]int // refused calls by action
	}{
		"seed set": {[]string{"vpc:DescribeVpcs", "vpc:DescribeVRouters", "vpc:DescribeRouteTables", "vpc:DeleteRouteEntry", "vpc:CreateRouteEntry"},
			map[string]int{"DescribeVSwitches": 1, "DescribeRouteTableList": 1, "DescribeRouteEntryList": 1, "CreateRouteEntries": 1, "DeleteRouteEntries": 1, "ModifyRouteEntry": 1}},
		"demo": {[]string{"vpc:Describe*", "vpc:*RouteEntry"}, map[string]int{"CreateRouteEntries": 1, "DeleteRouteEntries": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEmu(t, "instant", func(s *cloudemu.Seed) {
				s.Keys[0].Policy = []cloudemu.Statement{{Actions: c.allow}}
			})
			tab := e.open().Table("vtb-sz")
			for range 2 {
				noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")))
				noErrors(t, tab.Apply(t.Context(), creates("i-gw2", "10.1.0.0/16", "10.2.0.0/16")))
				if have, err := tab.Observe(t.Context()); err != nil || len(have) != 3 || have[pfx("10.2.0.0/16")] != via("i-gw2") || have[pfx("10.3.0.0/16")] != via("i-gw") {
					t.Errorf("observed %v %v", have, err)
				}
				noErrors(t, tab.Apply(t.Context(), deletes("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")))
			}
			refused := map[string]int{}
			for _, r := range e.requests().Requests {
				if r.Code == "Forbidden.RAM" {
					refused[r.Action]++
				}
			}
			if fmt.Sprint(refused) != fmt.Sprint(c.denied) {
				t.Errorf("refused %v, want %v", refused, c.denied)
			}
			if got := strings.Count(e.logs.String(), "the role may not"); got != len(c.denied) {
				t.Errorf("told %d times, want %d:\n%s", got, len(c.denied), e.logs.String())
			}
			if got := e.entries("vtb-sz"); got != untouched {
				t.Errorf("at the end:\n%s", got)
			}
			e.behaved()
		})
	}
}

// A role that may not write at all is told so, and nothing is tried in a loop.
func TestReadOnly(t *testing.T) {
	e := newEmu(t, "instant", func(s *cloudemu.Seed) { s.Keys[0].Policy = []cloudemu.Statement{{Actions: []string{"vpc:Describe*"}}} })
	tab := e.open().Table("vtb-sz")
	for i, err := range tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")) {
		if err == nil || !strings.Contains(err.Error(), "CreateRouteEntry: Forbidden.RAM") {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if n := e.writes(""); n != 2 {
		t.Errorf("%d writes tried", n)
	}
}

// The emulator throttles for real: everything gets there, and calls get rarer.
func TestThrottling(t *testing.T) {
	e := newEmu(t, "instant", func(s *cloudemu.Seed) { s.Rates = cloudemu.Rates{Write: 300, Read: 1200, Modify: -1} })
	e.control("POST", "tick", `{"ms": 1}`, nil)
	tab := e.open().Table("vtb-sz")
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "172.16.0.0/12")))
	e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "CreateRouteEntry"}, Do: cloudemu.Effect{Code: "Throttling.User"}, Times: 4})
	c := tab.(*table).vpc.client
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "172.0.0.0/8")))
	c.note.Lock()
	pace := c.pace["CreateRouteEntry"]
	c.note.Unlock()
	if pace < 4*e.timing.BackoffMin {
		t.Errorf("four refusals taught a pace of %v", pace)
	}
	for range 40 {
		c.learn("CreateRouteEntry", nil)
	}
	if len(c.pace) != 0 {
		t.Errorf("the pace stays: %v", c.pace)
	}
	e.behaved()
}

// Two who write into one VPC get there both.
func TestTwoWriters(t *testing.T) {
	e := newEmu(t, "realistic")
	tab := e.open().Table("vtb-sz")
	other := *e
	other.wish.Gateway, other.wish.Tables = "sz-9", []string{"vtb-sub"}
	tab2 := other.open().Table("vtb-sub")
	done := make(chan []error)
	go func() { done <- tab2.Apply(t.Context(), creates("i-gw2", "10.1.0.0/16", "10.2.0.0/16")) }()
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16")))
	noErrors(t, <-done)
	if f := e.requests().Findings; f.UnownedWrites != 0 {
		t.Errorf("findings %+v", f)
	}
}

// A process that died in the middle of a change leaves an entry on its way; the next waits for it and writes nothing.
func TestFoundOnItsWay(t *testing.T) {
	e := newEmu(t, "stuck")
	tab := e.open().Table("vtb-sz")
	done := make(chan []error, 1)
	go func() { done <- tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16")) }()
	next := e.open().Table("vtb-sz")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		have, err := next.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := have[pfx("10.1.0.0/16")]; ok {
			if r.State != cloud.Pending {
				t.Errorf("state %q", r.State)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("the entry never shows")
		}
	}
	again := make(chan []error, 1)
	go func() { again <- next.Apply(t.Context(), creates("i-gw", "10.1.0.0/16")) }()
	before := len(e.requests().Requests)
	for len(e.requests().Requests) < before+5 { // it looks, and waits
		time.Sleep(time.Millisecond)
	}
	e.Tick(time.Second)
	noErrors(t, <-done)
	noErrors(t, <-again)
	if n := e.writes("CreateRouteEntry"); n != 1 {
		t.Errorf("%d creates", n)
	}
	e.behaved()
}

// The deadline of a change that never ends.
func TestStuck(t *testing.T) {
	e := newEmu(t, "stuck")
	e.timing.Follow = 100 * time.Millisecond
	tab := e.open().Table("vtb-sz")
	errs := tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16"))
	if errs[0] == nil || !strings.Contains(errs[0].Error(), "not done after") {
		t.Errorf("errors %v", errs)
	}
	errs = tab.Apply(t.Context(), creates("i-gw", "10.2.0.0/16"))
	if errs[0] == nil || !strings.Contains(errs[0].Error(), "does not come to rest: 10.1.0.0/16 is Pending") {
		t.Errorf("errors %v", errs)
	}
	e.behaved()
}

// The wrong instance is an error of that entry, in words.
func TestNoSuchInstance(t *testing.T) {
	e := newEmu(t, "instant")
	tab := e.open().Table("vtb-sz")
	for _, n := range []int{1, 2} {
		for i, err := range tab.Apply(t.Context(), creates("i-none", []string{"10.1.0.0/16", "10.2.0.0/16"}[:n]...)) {
			if err == nil || kindOf(err) != refused {
				t.Errorf("step %d: %v", i, err)
			}
		}
	}
	if got := e.entries("vtb-sz"); got != untouched {
		t.Errorf("at the end:\n%s", got)
	}
}

// A stop in the middle of a call does not wait for the call, and nothing is sent after it.
func TestCancel(t *testing.T) {
	e := newEmu(t, "instant")
	e.timing.Call = time.Minute
	tab := e.open().Table("vtb-sz")
	e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Action: "CreateRouteEntry"}, Do: cloudemu.Effect{DelayMS: 60000}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	errs := tab.Apply(ctx, creates("i-gw", "10.1.0.0/16"))
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("returned after %v", d)
	}
	if !errors.Is(errs[0], context.DeadlineExceeded) {
		t.Errorf("error %v", errs[0])
	}
	leaks(t, errs[0].Error())
}
