package alibaba

import (
	"slices"
	"strings"
	"testing"

	"fabric/cloud"
	"fabric/lab/cloudemu"
)

// What a role may do shows without anything being done, whatever is in the table.
func TestExamine(t *testing.T) {
	role := func(actions ...string) func(*cloudemu.Seed) {
		return func(s *cloudemu.Seed) {
			s.Keys[0].Policy = []cloudemu.Statement{{Actions: append([]string{"vpc:Describe*", "ecs:Describe*"}, actions...)}}
		}
	}
	for _, c := range []struct {
		name string
		edit func(*cloudemu.Seed)
		wish func(*cloud.Wish)
		want string // a line per call: its state
	}{
		{"all rights", role("*"), nil, "CreateRouteEntry ok\nDeleteRouteEntry ok\nModifyRouteEntry ok"},
		{"may only read", role(), nil, "CreateRouteEntry denied\nDeleteRouteEntry denied\nModifyRouteEntry denied needless"},
		{"the least", role("vpc:CreateRouteEntry", "vpc:DeleteRouteEntry"), nil, "CreateRouteEntry ok\nDeleteRouteEntry ok\nModifyRouteEntry denied needless"},
		{"another's instance", role("*"), func(w *cloud.Wish) { w.Instance = "i-none" }, "CreateRouteEntry refused\nDeleteRouteEntry ok\nModifyRouteEntry ok"},
		{"a full table", func(s *cloudemu.Seed) { s.Quotas.RouteEntries = 2 }, nil, "CreateRouteEntry full\nDeleteRouteEntry ok\nModifyRouteEntry ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEmu(t, "instant", c.edit)
			if c.wish != nil {
				e.wish.Region, e.wish.VPC = "cn-shenzhen", "vpc-sz"
				c.wish(&e.wish)
			}
			before := e.entries("vtb-sz")
			x, err := e.open().(cloud.Examiner).Examine(t.Context())
			if err != nil || len(x.Tables) != 1 || x.Tables[0].Err != nil || x.Tables[0].ID != "vtb-sz" {
				t.Fatalf("%+v, %v", x, err)
			}
			if got := x.Tables[0]; got.Owned != 0 || got.Foreign != 3 {
				t.Errorf("%d owned, %d foreign, want none and 3", got.Owned, got.Foreign)
			}
			var lines []string
			for _, call := range x.Tables[0].Calls {
				line := strings.TrimPrefix(call.Action, "vpc:") + " "
				switch {
				case call.Denied:
					line += "denied"
				case call.Full:
					line += "full"
				case call.Carried:
					line += "carried"
				case call.Err != nil:
					line += "refused"
				default:
					line += "ok"
				}
				if call.Err != nil && call.Needless {
					line += " needless"
				}
				if (call.Denied || call.Full) && call.Err == nil {
					t.Errorf("%s: no words for it", line)
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if after := e.entries("vtb-sz"); after != before {
				t.Errorf("the table changed:\n%s\nwas\n%s", after, before)
			}
		})
	}
}

// Where all trial destinations are somebody's, nothing is tried.
func TestExamineFindsNoPlace(t *testing.T) {
	e := newEmu(t, "instant", func(s *cloudemu.Seed) {
		for i := range s.VPCs {
			for j := range s.VPCs[i].RouteTables {
				for _, p := range trials {
					s.VPCs[i].RouteTables[j].Entries = append(s.VPCs[i].RouteTables[j].Entries,
						cloudemu.Entry{CIDR: p.String(), NextHopType: "Instance", NextHopID: "i-gw"})
				}
			}
		}
	})
	x, err := e.open().(cloud.Examiner).Examine(t.Context())
	if err != nil || len(x.Tables) != 1 {
		t.Fatalf("%+v, %v", x, err)
	}
	calls := x.Tables[0].Calls
	if len(calls) != 1 || calls[0].Denied || calls[0].Err == nil || !strings.Contains(calls[0].Err.Error(), "not tried") {
		t.Errorf("tried %+v", calls)
	}
}

// An API that does not heed DryRun is found out by the first answer, and is tried no further.
func TestExamineWithoutDryRuns(t *testing.T) {
	e := newEmu(t, "instant", func(s *cloudemu.Seed) { s.Settings.DryRun = "ignore" })
	e.wish.Tables = append(e.wish.Tables, "vtb-sub")
	x, err := e.open().(cloud.Examiner).Examine(t.Context())
	if err != nil || len(x.Tables) != 2 {
		t.Fatalf("%+v, %v", x, err)
	}
	calls := slices.Concat(x.Tables[0].Calls, x.Tables[1].Calls)
	if len(calls) != 1 || !calls[0].Carried || calls[0].Err != nil || calls[0].Action != "vpc:CreateRouteEntry" || calls[0].Prefix != trials[0] {
		t.Errorf("tried %+v", calls)
	}
	// It does speak of what is there, so that looking for it helps.
	if after := e.entries("vtb-sz") + e.entries("vtb-sub"); strings.Count(after, trials[0].String()) != 1 {
		t.Errorf("the tables have\n%s", after)
	}
}
