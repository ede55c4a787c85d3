package site

import (
	"fmt"
	"net/netip"
	"time"

	"fabric/cloud"
	"fabric/internal/config"
	"fabric/policy"
)

// CloudWish is what the document asks of the VPC's tables of a gateway's site, nil where the gateway keeps none.
func CloudWish(doc *config.Document, gateway string) (*cloud.Wish, error) {
	where, gw, ok := doc.Find(gateway)
	if !ok {
		return nil, fmt.Errorf("gateway %q is not in the document", gateway)
	}
	in := intent{doc: doc, site: where, gw: gw}
	return in.cloudWish()
}

// cloudWish is what the document asks of the VPC's tables, nil for a site outside a cloud.
func (in *intent) cloudWish() (*cloud.Wish, error) {
	c := in.site.Cloud
	if c == nil || !in.keepsCloud() {
		return nil, nil
	}
	w := &cloud.Wish{
		Provider: c.Provider, Region: c.Region, VPC: c.VPC, Tables: c.RouteTables, Instance: in.gw.Instance,
		Endpoint: c.Endpoint, CAFile: c.CAFile, CredentialsFile: c.CredentialsFile,
		VRF: c.VRF, Quota: c.Quota, Resync: time.Duration(c.Resync),
		Fabric: in.doc.Fabric.Name, Site: in.site.Name, Gateway: in.gw.Name,
	}
	if c.Export != "" {
		for i := range in.doc.Policies {
			if in.doc.Policies[i].Name != c.Export {
				continue
			}
			p, err := policy.Compile(in.doc.Policies[i])
			if err != nil {
				return nil, err
			}
			w.Export = p
		}
	}
	// A route for the underlay in a VPC table would send the tunnels into themselves.
	for _, l := range in.doc.Neighbours(in.gw.Name) {
		for _, e := range l.Remote.Endpoints {
			w.Protected = append(w.Protected, netip.PrefixFrom(e.Address, e.Address.BitLen()))
		}
	}
	return w, nil
}

// keepsCloud says whether this gateway writes its site's VPC tables: the first of the site's gateways that has the cloud's
// VRF and is not drained does. A table takes one next hop for a prefix, so two writers would fight for ever.
func (in *intent) keepsCloud() bool {
	for i := range in.site.Gateways {
		g := &in.site.Gateways[i]
		if _, has := g.VRF(in.site.Cloud.VRF); has && !g.Drained {
			return g.Name == in.gw.Name
		}
	}
	return false
}

// ApproveCloud lets the deletes go that are held back in the VPC's tables because they are so many, and returns how many.
func (s *Site) ApproveCloud() int { return s.cloud.Approve() }

func (s *Site) cloudStatus() []CloudStatus {
	var out []CloudStatus
	for _, t := range s.cloud.Tables() {
		st := CloudStatus{
			Provider: t.Provider, Region: t.Region, VPC: t.VPC, Table: t.Table, Instance: t.Instance,
			Desired: t.Desired, Owned: t.Owned, Foreign: t.Foreign, Quota: t.Quota, Plan: t.Plan,
			LastSync: t.LastSync, InSync: t.InSync, Err: t.Err,
		}
		for _, e := range t.Entries {
			st.Entries = append(st.Entries, CloudEntry{Prefix: e.Prefix, NextHop: e.NextHop, State: string(e.State), Err: e.Err})
		}
		out = append(out, st)
	}
	return out
}
