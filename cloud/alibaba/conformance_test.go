package alibaba

import (
	"fmt"
	"testing"

	"fabric/cloud/cloudtest"
	"fabric/lab/cloudemu"
)

func TestConformance(t *testing.T) {
	for _, profile := range []string{"instant", "realistic"} {
		t.Run(profile, func(t *testing.T) {
			cloudtest.Run(t, func(t *testing.T) cloudtest.Bed {
				e := newEmu(t, profile, func(s *cloudemu.Seed) {
					s.VPCs[0].RouteTables[0].Entries = nil
					s.VPCs[0].Instances[2].ID = "i-other"
				})
				t.Cleanup(e.behaved)
				return cloudtest.Bed{
					Open: e.opener, Wish: e.wish, Table: "vtb-sz",
					Set: func(t testing.TB, p string, x cloudtest.Entry) {
						change := cloudemu.External{Op: "modify", Table: "vtb-sz", CIDR: p, NextHopType: "Instance", NextHopID: x.NextHop, Description: x.Mark}
						if e.Do(change) == nil {
							return
						}
						change.Op = "create"
						if err := e.Do(change); err != nil {
							t.Fatal(err)
						}
					},
					Remove: func(t testing.TB, p string) {
						if err := e.Do(cloudemu.External{Op: "delete", Table: "vtb-sz", CIDR: p}); err != nil {
							t.Fatal(err)
						}
					},
					Entries: func(testing.TB) string { return e.entries("vtb-sz") },
					Limit: func(_ testing.TB, n int) {
						e.control("POST", "quota", fmt.Sprintf(`{"table": "vtb-sz", "routeEntries": %d}`, n), nil)
					},
				}
			})
		})
	}
}
