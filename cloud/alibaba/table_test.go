package alibaba

import (
	"testing"

	"fabric/internal/reconcile"
)

// The thin path: create, change, delete, with others' entries around.
func TestCreateMoveDelete(t *testing.T) {
	for _, profile := range []string{"instant", "realistic"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			e := newEmu(t, profile)
			tab := e.open().Table("vtb-sz")
			noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16", "172.16.0.0/12")))
			mark := " fabric:demo:sz:sz-1\n"
			if got, want := e.entries("vtb-sz"), "10.1.0.0/16 via i-gw"+mark+"10.2.0.0/16 via i-gw"+mark+
				"10.7.0.0/16 via i-gw2 fabric:demo:sz:sz-2\n10.8.0.0/16 via tr-1 \n10.9.0.0/16 via tr-1 \n"+
				"172.16.0.0/12 via i-gw"+mark+"192.0.2.0/24 via i-host somebody-else\n"; got != want {
				t.Errorf("entries:\n%swant:\n%s", got, want)
			}
			noErrors(t, tab.Apply(t.Context(), []op{{Kind: reconcile.Replace, Key: pfx("10.1.0.0/16"), New: via("i-gw2")}}))
			have, err := tab.Observe(t.Context())
			if err != nil || len(have) != 3 || have[pfx("10.1.0.0/16")] != via("i-gw2") {
				t.Errorf("observed %v %v", have, err)
			}
			if l := tab.Limits(); l.Foreign != 3 {
				t.Errorf("limits %+v", l)
			}
			noErrors(t, tab.Apply(t.Context(), deletes("10.1.0.0/16", "10.2.0.0/16", "172.16.0.0/12")))
			if got := e.entries("vtb-sz"); got != untouched {
				t.Errorf("at the end:\n%s", got)
			}
			if e.writes("CreateRouteEntries") != 1 || e.writes("CreateRouteEntry") != 1 || e.writes("ModifyRouteEntry") != 1 || e.writes("DeleteRouteEntries") != 1 {
				t.Errorf("calls: %+v", e.requests().Findings)
			}
			// The batch call refuses what covers a vSwitch, so it is not asked.
			for _, r := range e.requests().Requests {
				for _, v := range r.Params {
					if r.Action == "CreateRouteEntries" && v == "172.16.0.0/12" {
						t.Errorf("in a batch: %v", r.Params)
					}
				}
			}
			e.behaved()
		})
	}
}
