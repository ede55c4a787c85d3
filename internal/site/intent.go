package site

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"fabric/bgp"
	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/vrf"
)

// intent is one generation, compiled for this gateway: everything that the parts are told. It is immutable.
type intent struct {
	generation uint64
	doc        *config.Document
	site       *config.Site
	gw         *config.Gateway
	host       *vrf.Host
	plan       overlay.Plan
	bgp        bgp.Desired
	vrfs       []rib.VRF
	// cloud is nil for a site outside a cloud.
	cloud *cloud.Wish
	// local are the paths the gateway itself brings in.
	local []rib.Path
	// sources are the neighbours whose End-of-RIB a start waits for.
	sources []rib.Source
	// watched are the BFD sessions with peers, by name.
	watched map[string]bool
}

// compile turns a document into what the parts are told. Either all of it compiles or nothing is applied.
func compile(doc *config.Document, gateway string, f kernel.Features) (*intent, error) {
	site, gw, ok := doc.Find(gateway)
	if !ok {
		return nil, fmt.Errorf("gateway %q is not in the document; --gateway must name one of its gateways", gateway)
	}
	in := &intent{doc: doc, site: site, gw: gw, watched: map[string]bool{}}
	var errs []error
	var err error
	if in.host, err = vrf.Compile(doc, gateway, f); err != nil {
		return nil, err // what is wrong with the plan among it
	}
	facts := hostFacts(in.host)
	if in.plan, err = overlay.Compile(doc, gateway, overlay.Host{VRFDevices: facts.VRFDevices}); err != nil {
		errs = append(errs, err)
	}
	for _, s := range in.plan.Sessions {
		in.watched[s.Name] = true
	}
	if in.bgp, err = bgp.Compile(doc, gateway, facts); err != nil {
		errs = append(errs, err)
	}
	for i := range in.host.VRFs {
		in.local = append(in.local, in.host.VRFs[i].Paths(gw)...)
	}
	for _, im := range in.bgp.Imports {
		v := rib.VRF{Name: im.VRF, Import: im.RTs, Multipath: im.Multipath}
		if m := in.member(im.VRF); m != nil {
			v.Resolve, v.Networks = true, m.Networks()
		}
		in.vrfs = append(in.vrfs, v)
	}
	for _, srv := range in.servers() {
		for i := range srv.Peers {
			if !srv.Peers[i].Disabled {
				in.sources = append(in.sources, srv.Peers[i].Source())
			}
		}
	}
	if in.cloud, err = in.cloudWish(); err != nil {
		errs = append(errs, err)
	}
	return in, errors.Join(errs...)
}

// Check says whether a document can be put into force at a gateway on a host with the given features.
func Check(doc *config.Document, gateway string, f kernel.Features) error {
	_, err := compile(doc, gateway, f)
	return err
}

// servers are all BGP servers, the fabric's first.
func (in *intent) servers() []*bgp.Server {
	ss := []*bgp.Server{}
	if in.bgp.Fabric != nil {
		ss = append(ss, in.bgp.Fabric)
	}
	for i := range in.bgp.VRFs {
		ss = append(ss, &in.bgp.VRFs[i])
	}
	return ss
}

// hostFacts is what bgp must know of the host.
func hostFacts(h *vrf.Host) bgp.HostFacts {
	return bgp.HostFacts{VRFDevices: h.VRFDevices()}
}

// session is the name of the BFD session with a peer, "" when there is none.
func (in *intent) session(vrf, peer string) string {
	if name := vrf + "/" + peer; in.watched[name] {
		return name
	}
	return ""
}

// member returns the VRF of that name at this gateway.
func (in *intent) member(name string) *vrf.Member {
	i := slices.IndexFunc(in.host.VRFs, func(m vrf.Member) bool { return m.Name == name })
	if i < 0 {
		return nil
	}
	return &in.host.VRFs[i]
}

// prefix returns what the document says of a prefix of ours, nil when it says nothing.
func (in *intent) prefix(vrf string, p netip.Prefix) *config.Prefix {
	for i := range in.gw.VRFs {
		if in.gw.VRFs[i].VRF != vrf {
			continue
		}
		for j := range in.gw.VRFs[i].Prefixes {
			if in.gw.VRFs[i].Prefixes[j].Prefix == p {
				return &in.gw.VRFs[i].Prefixes[j]
			}
		}
	}
	return nil
}
