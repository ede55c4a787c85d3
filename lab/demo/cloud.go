package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"fabric/lab/clab"
)

// vpc is a site in the cloud as the topology has it.
type vpc struct{ gateway, node, host, table, instance string }

// vpcs are the cloud sites, by the naming of the topology and its seeds.
func (d *demo) vpcs() []vpc {
	var out []vpc
	for _, s := range d.doc.Sites {
		if s.Cloud == nil {
			continue
		}
		short, _, _ := strings.Cut(s.Name, "-")
		out = append(out, vpc{gateway: short + "-gw", node: short + "-vpc", host: short + "-host", table: "vtb-" + short, instance: "i-" + short + "-gw"})
	}
	return out
}

// entry is what the demo reads of a route entry in the emulator's state.
type entry struct {
	CIDR        string `json:"DestinationCidrBlock"`
	Type        string
	Status      string
	Name        string `json:"RouteEntryName"`
	Description string
	Hops        []struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	}
	Owner string
}

// entries reads a VPC's table from the emulator, past the API.
func (d *demo) entries(ctx context.Context, v vpc) ([]entry, error) {
	var state struct {
		VPCs []struct {
			Tables []struct {
				ID      string  `json:"id"`
				Entries []entry `json:"entries"`
			} `json:"tables"`
		} `json:"vpcs"`
	}
	if err := d.emulator(ctx, v.node, http.MethodGet, "state", nil, &state); err != nil {
		return nil, err
	}
	for _, x := range state.VPCs {
		for _, t := range x.Tables {
			if t.ID == v.table {
				return t.Entries, nil
			}
		}
	}
	return nil, fmt.Errorf("emulator of %s knows no table %s", v.node, v.table)
}

// ours says whether an entry carries the fabric's mark.
func (e entry) ours() bool {
	return strings.HasPrefix(e.Name, "fabric") || strings.HasPrefix(e.Description, "fabric")
}

func (d *demo) vpcTables(ctx context.Context) (string, error) {
	var lines []string
	var errs []error
	for _, v := range d.vpcs() {
		es, err := d.entries(ctx, v)
		if err != nil {
			return "", err
		}
		want := map[netip.Prefix]bool{}
		for p := range d.remote(v.gateway, "CORE") {
			if p.Addr().Is4() {
				want[p] = true
			}
		}
		got := map[netip.Prefix]bool{}
		foreign := 0
		for _, e := range es {
			if !e.ours() {
				foreign++
				continue
			}
			p, err := netip.ParsePrefix(e.CIDR)
			if err != nil {
				return "", err
			}
			got[p] = true
			if e.Status != "Available" || len(e.Hops) != 1 || e.Hops[0].ID != v.instance {
				errs = append(errs, fmt.Errorf("%s: %s is %s via %v, want Available via %s", v.table, e.CIDR, e.Status, e.Hops, v.instance))
			}
		}
		if !maps.Equal(got, want) {
			errs = append(errs, fmt.Errorf("%s: %s", v.table, difference(got, want)))
		}
		lines = append(lines, fmt.Sprintf("%s: %d entries of ours via %s, %d of others untouched", v.table, len(got), v.instance, foreign))
	}
	return strings.Join(lines, "\n"), errors.Join(errs...)
}

func (d *demo) vpcRepair(ctx context.Context) (string, error) {
	v, far := d.vpcs()[0], d.vpcs()[1]
	dst := d.label(far.host, clab.LabelAddress)
	var cidr string
	for p := range d.remote(v.gateway, "CORE") {
		if a := netip.MustParseAddr(dst); p.Contains(a) {
			cidr = p.String()
		}
	}
	if err := d.emulator(ctx, v.node, http.MethodPost, "external", map[string]string{"op": "delete", "table": v.table, "cidr": cidr}, nil); err != nil {
		return "", err
	}
	if err := d.silent(ctx, v.host, dst, "-c", "1"); err != nil {
		return "", fmt.Errorf("the missing entry is not felt: %w", err)
	}
	took, err := until(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := d.ping(ctx, v.host, dst, "-c", "1")
		return err
	})
	return fmt.Sprintf("%s without %s: no answer from %s; repaired by itself after %.1fs", v.table, cidr, dst, took.Seconds()), err
}
