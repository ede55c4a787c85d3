package site

import (
	"fmt"
	"reflect"
	"slices"

	"fabric/bgp"
	"fabric/bgp/rib"
	"fabric/cloud"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// planPaths says which prefixes this gateway begins or ceases to bring in.
func planPaths(old, in *intent) []string {
	return planMap(pathMap(old), pathMap(in), func(k rib.PathKey) string {
		return fmt.Sprintf("%s prefix %s in VRF %s", k.Source.Kind, k.Prefix, k.Source.VRF)
	})
}

func pathMap(in *intent) map[rib.PathKey]rib.Path {
	m := map[rib.PathKey]rib.Path{}
	for _, p := range in.local {
		m[p.Key] = p
	}
	return m
}

// peerKey names a BGP neighbour across servers.
type peerKey struct{ vrf, name string }

// planPeers says which sessions come, go or are changed.
func planPeers(old, in *intent) []string {
	return planMap(peerMap(old), peerMap(in), func(k peerKey) string {
		if k.vrf == "" {
			return "session with gateway " + k.name
		}
		return "session with peer " + k.name + " in VRF " + k.vrf
	})
}

func peerMap(in *intent) map[peerKey]bgp.Peer {
	m := map[peerKey]bgp.Peer{}
	for _, srv := range in.servers() {
		for _, p := range srv.Peers {
			m[peerKey{srv.VRF, p.Name}] = p
		}
	}
	return m
}

// planLinks says which tunnels come, go or are changed.
func planLinks(old, in *intent) []string {
	tunnels := func(in *intent) map[string]any {
		m := map[string]any{}
		for _, t := range in.plan.Tunnels {
			m[t.Name] = t
		}
		return m
	}
	listeners := func(in *intent) map[string]any {
		m := map[string]any{}
		if in.plan.Listener != nil {
			m["tls tunnels"] = *in.plan.Listener
		}
		return m
	}
	return slices.Concat(planMap(tunnels(old), tunnels(in), func(k string) string { return "tunnel " + k }),
		planMap(listeners(old), listeners(in), func(k string) string { return "listener of " + k }))
}

func planMap[K comparable, V any](old, in map[K]V, name func(K) string) []string {
	return planDiff(old, in, func(a, b V) bool { return reflect.DeepEqual(a, b) }, name)
}

func planDiff[K comparable, V any](old, in map[K]V, equal func(a, b V) bool, name func(K) string) []string {
	var lines []string
	for _, op := range reconcile.Diff(in, old, equal) {
		lines = append(lines, op.Kind.String()+" "+name(op.Key))
	}
	return lines
}

// planRoutes says how the VRFs' own routes would change; what BGP chose follows by itself.
func planRoutes(old, in *intent) []string {
	return planMap(old.host.Routes, in.host.Routes, func(k kernel.RouteKey) string {
		return fmt.Sprintf("route %s in table %d", k.Prefix, k.Table)
	})
}

// planVRFs says which VRFs are exchanged with other gateways in another way, and which speakers begin anew.
func planVRFs(old, in *intent) []string {
	exports := func(in *intent) map[string]any {
		m := map[string]any{}
		for _, o := range in.bgp.Originations {
			m[o.VRF] = o
		}
		return m
	}
	imports := func(in *intent) map[string]any {
		m := map[string]any{}
		for _, i := range in.bgp.Imports {
			m[i.VRF] = i
		}
		return m
	}
	servers := func(in *intent) map[string]any {
		m := map[string]any{}
		for _, s := range in.servers() {
			c := *s
			c.Peers = nil
			m[s.VRF] = c
		}
		return m
	}
	return slices.Concat(
		planMap(exports(old), exports(in), func(k string) string { return "announcement of VRF " + k + " to other gateways" }),
		planMap(imports(old), imports(in), func(k string) string { return "import of VRF " + k + " from other gateways" }),
		planMap(servers(old), servers(in), func(k string) string {
			if k == "" {
				return "BGP speaker towards other gateways"
			}
			return "BGP speaker of VRF " + k
		}))
}

// planCloud says whether the VPC's tables would be kept otherwise. What that means for their entries is known once the
// vendor was asked: see fabricctl cloud plan.
func planCloud(old, in *intent) []string {
	wish := func(in *intent) map[string]cloud.Wish {
		if in.cloud == nil {
			return nil
		}
		return map[string]cloud.Wish{in.cloud.VRF: *in.cloud}
	}
	return planDiff(wish(old), wish(in), func(a, b cloud.Wish) bool { return a.Equal(b) },
		func(k string) string { return "VPC tables kept from VRF " + k })
}
