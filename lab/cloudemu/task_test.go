package cloudemu

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// settleAll moves the clock until no task runs and reads are up to date.
func settleAll(s *Server) { s.Tick(time.Minute) }

// The life of an entry: Pending and not active, Available; Modifying over the
// old hop; Deleting and active until gone. One VPC refuses a second write
// meanwhile, another VPC does not care.
func TestEntryLife(t *testing.T) {
	s := newServer(t, "realistic")
	hop := func() string {
		for _, f := range s.FIB("vpc-a") {
			if f.Destination.String() == "10.1.0.0/16" {
				return f.NextHopID + "@" + f.Via.String()
			}
		}
		return "none"
	}
	table := func() string { return strings.TrimPrefix(customs(t, s, "vtb-sys"), seeded) }
	step := func(when, wantTable, wantHop string) {
		t.Helper()
		if got := table(); got != wantTable {
			t.Errorf("%s: table %q, want %q", when, got, wantTable)
		}
		if got := hop(); got != wantHop {
			t.Errorf("%s: packets go to %s, want %s", when, got, wantHop)
		}
	}
	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"))
	step("accepted, read lags", "", "none")
	s.Tick(400 * time.Millisecond)
	step("accepted", "10.1.0.0/16 i-gw Pending\n", "none")
	if code, _ := do(s, "CreateRouteEntry", create("vtb-sub", "10.2.0.0/16", "Instance", "i-gw")); code != "TaskConflict" && code != "IncorrectRouteEntryStatus" {
		t.Errorf("second write to the VPC, another table: %q", code)
	}
	mustDo(t, s, "CreateRouteEntry", create("vtb-b", "10.2.0.0/16", "Instance", "i-b"))
	settleAll(s)
	step("created", "10.1.0.0/16 i-gw Available\n", "i-gw@172.18.171.245")

	by := params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.1.0.0/16"}
	move := maps.Clone(by)
	move["NewNextHopType"], move["NewNextHopId"] = "Instance", "i-host"
	mustDo(t, s, "ModifyRouteEntry", move)
	s.Tick(400 * time.Millisecond)
	step("modifying", "10.1.0.0/16 i-gw Modifying\n", "i-gw@172.18.171.245")
	settleAll(s)
	step("modified", "10.1.0.0/16 i-host Available\n", "i-host@172.18.171.247")

	mustDo(t, s, "DeleteRouteEntry", by)
	s.Tick(400 * time.Millisecond)
	step("deleting", "10.1.0.0/16 i-host Deleting\n", "i-host@172.18.171.247")
	settleAll(s)
	step("deleted", "", "none")
}

func TestMinInterval(t *testing.T) {
	s := newServer(t, "strict")
	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"))
	s.mu.Lock()
	ends := s.nextDeadline()
	s.mu.Unlock()
	s.Tick(ends.Sub(s.clock.Now()))
	if code, _ := do(s, "CreateRouteEntry", create("vtb-sys", "10.2.0.0/16", "Instance", "i-gw")); code != "TaskConflict" {
		t.Errorf("right after a task: %q", code)
	}
	s.Tick(5 * time.Second)
	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.2.0.0/16", "Instance", "i-gw"))
}

func TestStuckAndVanish(t *testing.T) {
	s := newServer(t, "stuck")
	s.AddFault(Fault{Do: Effect{Vanish: true}, Times: 1})
	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"))
	s.clock.Advance(time.Hour) // not a tick
	if got := strings.TrimPrefix(customs(t, s, "vtb-sys"), seeded); got != "10.1.0.0/16 i-gw Pending\n" {
		t.Errorf("stuck: %q", got)
	}
	s.Tick(0)
	if got := customs(t, s, "vtb-sys"); got != seeded {
		t.Errorf("vanished: %q", got)
	}
	s.AddFault(Fault{Do: Effect{Vanish: true}, Times: 1})
	mustDo(t, s, "DeleteRouteEntry", params{"RouteEntryId": "rte-foreign"})
	s.Tick(0)
	if got := customs(t, s, "vtb-sys"); got != seeded {
		t.Errorf("a delete that fails leaves the entry Available: %q", got)
	}
}

// The same calls, each repeated until accepted, end in the same table whatever
// the profile.
func TestProfilesAgree(t *testing.T) {
	var tables []string
	for _, profile := range []string{"instant", "realistic", "slow", "strict"} {
		s := newServer(t, profile)
		until := func(action string, p params) {
			for range 200 {
				code, _ := do(s, action, p)
				if code == "" {
					return
				}
				if code != "TaskConflict" && code != "IncorrectRouteEntryStatus" {
					t.Fatalf("%s: %s %v: %s", profile, action, p, code)
				}
				s.Tick(200 * time.Millisecond)
			}
			t.Fatalf("%s: %s %v was never accepted", profile, action, p)
		}
		until("CreateRouteEntries", batch(3, 0))
		until("DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.11.0.0/16"})
		until("ModifyRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.12.0.0/16", "NewNextHopType": "HaVip", "NewNextHopId": "havip-1"})
		until("CreateRouteEntry", create("vtb-sys", "2001:db8:7::/48", "Instance", "i-host"))
		settleAll(s)
		tables = append(tables, customs(t, s, "vtb-sys"))
	}
	want := seeded + "10.10.0.0/16 i-gw Available\n10.12.0.0/16 havip-1 Available\n2001:db8:7::/48 i-host Available\n"
	for i, got := range tables {
		if got != want {
			t.Errorf("profile %d:\n%swant:\n%s", i, got, want)
		}
	}
}

// Entries made between two pages appear at the end, a token is bound to its
// filters and grows old.
func TestPaging(t *testing.T) {
	s := newServer(t, "instant")
	p := params{"RouteTableId": "vtb-sys", "MaxResult": "2"}
	first := mustDo(t, s, "DescribeRouteEntryList", p)
	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"))
	seen := 0
	for token := first["NextToken"].(string); ; {
		if token == "" {
			break
		}
		p["NextToken"] = token
		out := mustDo(t, s, "DescribeRouteEntryList", p)
		seen += len(out["RouteEntrys"].(map[string]any)["RouteEntry"].([]any))
		token = out["NextToken"].(string)
	}
	if seen != 4+3+1-2 { // system, seeded and new entries without the first page
		t.Errorf("%d entries after the first page, want 6", seen)
	}
	p["NextToken"] = first["NextToken"].(string)
	other := maps.Clone(p)
	other["IpVersion"] = "ipv4"
	if code, _ := do(s, "DescribeRouteEntryList", other); code != "IllegalParam.NextToken" {
		t.Errorf("token with other filters: %q", code)
	}
	s.Tick(11 * time.Minute)
	if code, _ := do(s, "DescribeRouteEntryList", p); code != "IllegalParam.NextTokenExpired" {
		t.Errorf("old token: %q", code)
	}
}

// Property: whatever is called in whatever order and time, a VPC never runs
// two tasks, no quota is exceeded, states and tasks agree, and every accepted
// task ends.
func TestTaskEngineProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		profile := rapid.SampledFrom([]string{"realistic", "strict", "slow", "instant", "stuck"}).Draw(r, "profile")
		s := newServer(t, profile, func(seed *Seed) { seed.RandSeed = rapid.Uint64().Draw(r, "seed") })
		s.profile.VanishProbability = 0.2
		cidr := func() string { return fmt.Sprintf("10.%d.0.0/16", rapid.IntRange(1, 9).Draw(r, "net")) }
		hops := [][2]string{{"Instance", "i-gw"}, {"Instance", "i-host"}, {"HaVip", "havip-1"}, {"NetworkInterface", "eni-2"}}
		table := func() string { return rapid.SampledFrom([]string{"vtb-sys", "vtb-sub"}).Draw(r, "table") }
		call := func(action string, p params) {
			s.mu.Lock()
			before := s.tasks.Accepted
			busy := s.world.vpc("vpc-a").task
			due := busy != nil && !busy.stuck && !s.clock.Now().Before(busy.ends)
			s.mu.Unlock()
			_, _ = request(s, http.MethodPost, signed(http.MethodPost, "sk", merge(p, params{"Action": action})))
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.tasks.Accepted != before && busy != nil && !due {
				r.Fatalf("%s was accepted while a task ran", action)
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) {
				h := rapid.SampledFrom(hops).Draw(r, "hop")
				call("CreateRouteEntry", create(table(), cidr(), h[0], h[1]))
			},
			"createBatch": func(*rapid.T) {
				call("CreateRouteEntries", batch(rapid.IntRange(1, 9).Draw(r, "n"), rapid.IntRange(0, 9).Draw(r, "from")))
			},
			"delete": func(*rapid.T) {
				call("DeleteRouteEntry", params{"RouteTableId": table(), "DestinationCidrBlock": cidr()})
			},
			"modify": func(*rapid.T) {
				h := rapid.SampledFrom(hops).Draw(r, "hop")
				call("ModifyRouteEntry", params{"RouteTableId": table(), "DestinationCidrBlock": cidr(), "NewNextHopType": h[0], "NewNextHopId": h[1]})
			},
			"wait": func(*rapid.T) {
				d := time.Duration(rapid.IntRange(0, 4000).Draw(r, "ms")) * time.Millisecond
				if rapid.Bool().Draw(r, "tick") {
					s.Tick(d)
				} else {
					s.clock.Advance(d)
				}
			},
			"": func(*rapid.T) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.settle()
				v := s.world.vpc("vpc-a")
				running := s.tasks.Accepted - s.tasks.Ended
				if (v.task != nil) != (running == 1) || running > 1 {
					r.Fatalf("%d tasks run in one VPC", running)
				}
				for _, tb := range v.tables {
					custom, havip := 0, 0
					for _, e := range tb.entries {
						if e.status != statusAvailable && (v.task == nil || !slices.Contains(v.task.entries, e)) {
							r.Fatalf("%s is %s and no task works on it", e.cidr, e.status)
						}
						if e.typ == "Custom" {
							custom++
							if e.hops[0].Type == "HaVip" || len(e.pendingHops) > 0 && e.pendingHops[0].Type == "HaVip" {
								havip++
							}
						}
					}
					if custom > 6 || havip > 2 {
						r.Fatalf("%s holds %d custom and %d HaVip entries", tb.ID, custom, havip)
					}
				}
			},
		})
		settleAll(s)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.tasks.Accepted != s.tasks.Ended {
			r.Fatalf("%d tasks accepted, %d ended", s.tasks.Accepted, s.tasks.Ended)
		}
	})
}

func merge(a, b params) params {
	a = maps.Clone(a)
	maps.Copy(a, b)
	return a
}
