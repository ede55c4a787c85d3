package cloudtest

import (
	"net/netip"
	"strings"
	"testing"

	"fabric/cloud"
)

func TestModel(t *testing.T) {
	Run(t, func(*testing.T) Bed {
		m := New(cloud.Info{
			Provider: "model", Region: "r-1", ID: "vpc-1", Instance: "i-gw", Tables: []string{"vtb-1"},
			CIDRs: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")},
		})
		return Bed{
			Open: m.Open, Wish: cloud.Wish{Fabric: "f", Site: "s", Gateway: "gw-1"}, Table: "vtb-1",
			Set:     func(_ testing.TB, p string, e Entry) { m.Set("vtb-1", p, e) },
			Remove:  func(_ testing.TB, p string) { m.Remove("vtb-1", p) },
			Entries: func(testing.TB) string { return strings.ReplaceAll(m.String(), "vtb-1 ", "") },
			Limit:   func(_ testing.TB, n int) { m.SetLimit(n) },
		}
	})
}
