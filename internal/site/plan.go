package site

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"fabric/bgp"
	"fabric/bgp/rib"
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
	return planMap(tunnels(old), tunnels(in), func(k string) string { return "tunnel " + k })
}

func planMap[K comparable, V any](old, in map[K]V, name func(K) string) []string {
	var lines []string
	for _, op := range reconcile.Diff(in, old, func(a, b V) bool { return reflect.DeepEqual(a, b) }) {
		lines = append(lines, op.Kind.String()+" "+name(op.Key))
	}
	return lines
}

// plan says how the VRFs' own routes would change; what BGP chose follows by itself.
func (f *fib) plan(in *intent) []string {
	now := f.site.intent.Load().host.Routes
	gone := maps.Clone(now)
	var lines []string
	say := func(verb string, k kernel.RouteKey) {
		lines = append(lines, fmt.Sprintf("%s route %s in table %d", verb, k.Prefix, k.Table))
	}
	for k, r := range in.host.Routes {
		old, had := now[k]
		delete(gone, k)
		switch {
		case !had:
			say("create", k)
		case old != r:
			say("replace", k)
		}
	}
	for k := range gone {
		say("delete", k)
	}
	slices.Sort(lines)
	return lines
}
