// Package apitest is the gateway that the API and its clients are tested with: it holds a snapshot in memory and
// follows the real store of the intent the way a site does, without a network.
package apitest

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"fabric/internal/config"
	"fabric/internal/site"
	"fabric/overlay/links"
)

// Document is the document of the tests: gateway sz-1 with VRFs CORE and OPS, and gateway hk-1.
const Document = `fabric:
  name: test
vrfs:
  - name: CORE
    table: 200
    vni: 1000
  - name: OPS
    table: 201
    vni: 1001
sites:
  - name: sz
    gateways:
      - name: sz-1
        asn: 65001
        vtep: 10.255.0.1
        endpoints:
          - address: 203.0.113.1
        wireguard:
          public-key: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
        vrfs:
          - vrf: CORE
            prefixes:
              - prefix: 172.18.0.0/16
            interfaces:
              - name: eth1
                addresses: [172.20.0.9/24]
            peers:
              - name: core-router
                address: 172.20.0.1
                asn: 65020
          - vrf: OPS
            prefixes:
              - prefix: 172.19.0.0/16
  - name: hk
    gateways:
      - name: hk-1
        asn: 65002
        vtep: 10.255.0.2
        endpoints:
          - address: 198.51.100.1
        wireguard:
          public-key: AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=
        vrfs:
          - vrf: CORE
            prefixes:
              - prefix: 172.31.0.0/16
`

// GatewayName is the gateway of Document that is tested.
const GatewayName = "sz-1"

// Epoch is when everything in a snapshot happened.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Store opens the real store on Document in folders of the test.
func Store(t testing.TB) *config.Store {
	t.Helper()
	store, _ := StoreFile(t)
	return store
}

// StoreFile does the same and returns the document's path as well.
func StoreFile(t testing.TB) (*config.Store, string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "fabric.yaml")
	if err := os.WriteFile(file, []byte(Document), 0o644); err != nil {
		t.Fatal(err)
	}
	store, err := config.Open(filepath.Join(dir, "state"), file, GatewayName, config.WithClock(func() time.Time { return Epoch }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store, file
}

// Gateway implements api.Gateway in memory. Set the exported fields before it is used.
type Gateway struct {
	// RouteSource gives the routes of a VRF; nil for Routes.
	RouteSource func(vrf string, fn func(site.RouteStatus) bool) error
	// RouteList are the routes by VRF.
	RouteList map[string][]site.RouteStatus
	// RouteEvents are what WatchRoutes tells after the routes.
	RouteEvents chan RouteEvent
	// PeerState gives the state of a peer's session; nil for "established" unless disabled.
	PeerState func(name string) string
	// OnPlan, when set, runs in Plan and may make it fail.
	OnPlan func(doc *config.Document) error
	// HeldDeletes is how many deletes ApproveCloud finds held back.
	HeldDeletes int
	// OnDrain, when set, runs in DrainTunnel instead of moving traffic in the snapshot.
	OnDrain func(device string, drained bool) error
	// OnRotate, when set, runs in RotateTunnel.
	OnRotate func(device string) (generation int, err error)

	mu     sync.Mutex
	snap   *site.Snapshot
	subs   map[chan struct{}]bool
	resets []string
	reads  int
}

// RouteEvent is one change of a route.
type RouteEvent struct {
	// Route as it is now, or was last.
	Route site.RouteStatus
	// Withdrawn says that it is gone.
	Withdrawn bool
}

// Snapshot returns the newest snapshot.
func (g *Gateway) Snapshot() *site.Snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reads++
	return g.snap
}

// Reads is how often the snapshot was asked for: two subscribers have seen a snapshot once it has grown by two.
func (g *Gateway) Reads() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reads
}

// Changed subscribes to snapshots.
func (g *Gateway) Changed() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.subs == nil {
		g.subs = map[chan struct{}]bool{}
	}
	g.subs[ch] = true
	return ch, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.subs, ch)
	}
}

// Subscribers is the number of subscriptions that have not ended.
func (g *Gateway) Subscribers() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.subs)
}

// Publish publishes a changed copy of the snapshot.
func (g *Gateway) Publish(change func(*site.Snapshot)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := &site.Snapshot{}
	if g.snap != nil {
		*next = *g.snap
		next.Peers, next.Prefixes = slices.Clone(next.Peers), slices.Clone(next.Prefixes)
		next.Tunnels, next.Sessions = slices.Clone(next.Tunnels), slices.Clone(next.Sessions)
	}
	change(next)
	g.snap = next
	for ch := range g.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Follow publishes the state of each generation of the store until the test ends.
func (g *Gateway) Follow(t testing.TB, store *config.Store) {
	t.Helper()
	g.Adopt(store.Current())
	wake, stop, done := store.Subscribe(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case _, open := <-wake:
				if !open {
					return
				}
				g.Adopt(store.Current())
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

// Adopt publishes what a site would be like once it has applied a generation.
func (g *Gateway) Adopt(gen *config.Generation) {
	where, gw, ok := gen.Document.Find(GatewayName)
	if !ok {
		panic("the document has no gateway " + GatewayName)
	}
	g.Publish(func(s *site.Snapshot) {
		s.Taken = Epoch
		s.Site.Fabric, s.Site.Site, s.Site.Gateway = gen.Document.Fabric.Name, where.Name, gw.Name
		s.Site.ASN, s.Site.VTEP, s.Site.RouterID = gw.ASN, gw.VTEP, gw.RouterID
		s.Site.Started, s.Site.Ready, s.Site.LinksConnected, s.Site.Backend = Epoch, true, true, "rules"
		s.Site.Generation, s.Site.Applied, s.Site.Drained = gen.Number, gen.Number, gw.Drained
		s.VRFs, s.Peers, s.Prefixes = nil, nil, nil
		for _, v := range gw.VRFs {
			vrf, _ := gen.Document.VRF(v.VRF)
			s.VRFs = append(s.VRFs, site.VRFStatus{
				Name: v.VRF, Table: vrf.Table, VNI: vrf.VNI, VXLAN: fmt.Sprintf("fxv%d", vrf.VNI), ImportRT: vrf.ImportRT, ExportRT: vrf.ExportRT,
				Routes: len(g.RouteList[v.VRF]), Kernel: len(g.RouteList[v.VRF]), InSync: true,
			})
			for _, p := range v.Prefixes {
				announced := !gw.Drained && (p.Announce == nil || *p.Announce)
				s.Prefixes = append(s.Prefixes, site.PrefixStatus{VRF: v.VRF, Prefix: p.Prefix, NextHop: p.NextHop, Source: "document", Announced: announced, Shared: p.Shared})
			}
			for _, i := range v.Interfaces {
				for _, a := range i.Addresses {
					s.Prefixes = append(s.Prefixes, site.PrefixStatus{VRF: v.VRF, Prefix: a.Masked(), Source: "interface", Announced: !gw.Drained})
				}
			}
			for _, p := range v.Peers {
				st := site.PeerStatus{
					VRF: v.VRF, Name: p.Name, Address: p.Address, ASN: p.ASN, LocalASN: gw.ASN, State: "established", Since: Epoch, Disabled: p.Disabled,
					Received: 5, Admitted: 4, Rejected: 1, Advertised: 3, MaxPrefix: p.MaxPrefix, Families: p.Families,
				}
				if p.BFD != nil {
					st.BFD = "up"
				}
				switch {
				case p.Disabled:
					st.State = "idle"
				case g.PeerState != nil:
					st.State = g.PeerState(p.Name)
				}
				s.Peers = append(s.Peers, st)
			}
		}
		s.Peers = append(s.Peers, site.PeerStatus{
			Name: "hk-1", Address: netip.MustParseAddr("10.255.0.2"), ASN: 65002, LocalASN: gw.ASN, Fabric: true, State: "established", Since: Epoch,
		})
	})
}

// Routes calls fn for each route.
func (g *Gateway) Routes(vrf string, fn func(site.RouteStatus) bool) error {
	if g.RouteSource != nil {
		return g.RouteSource(vrf, fn)
	}
	for _, r := range g.RouteList[vrf] {
		if !fn(r) {
			return nil
		}
	}
	return nil
}

// WatchRoutes calls fn for each route and then for each of RouteEvents.
func (g *Gateway) WatchRoutes(ctx context.Context, vrf string, fn func(r site.RouteStatus, withdrawn bool) error) error {
	for _, r := range g.RouteList[vrf] {
		if err := fn(r, false); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-g.RouteEvents:
			if err := fn(ev.Route, ev.Withdrawn); err != nil {
				return err
			}
		}
	}
}

// Explain finds the longest match in RouteList.
func (g *Gateway) Explain(vrf string, p netip.Prefix) (site.Explanation, error) {
	ex := site.Explanation{VRF: vrf, Prefix: p}
	var best *site.RouteStatus
	for i, r := range g.RouteList[vrf] {
		if r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = &g.RouteList[vrf][i]
		}
	}
	if best == nil {
		ex.Lines = []string{"no path covers it"}
		return ex, nil
	}
	ex.Matched = best.Prefix
	ex.Candidates = []site.Candidate{{Route: *best, Best: true, Why: best.Reason}}
	refused := *best
	refused.Source, refused.From = "peer", "core-router"
	ex.Rejected = []site.Candidate{{Route: refused, Why: "guard/own-as"}}
	ex.Lines = []string{"chosen: " + best.Reason, "kernel: " + best.Kernel}
	return ex, nil
}

// ResetPeer notes the peer. A peer called "gone" is not known.
func (g *Gateway) ResetPeer(_ context.Context, vrf, name string, soft bool) error {
	if name == "gone" {
		return fmt.Errorf("peer %s: %w", name, fs.ErrNotExist)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resets = append(g.resets, fmt.Sprintf("%s/%s soft=%v", vrf, name, soft))
	return nil
}

// Resets are the peers that were reset.
func (g *Gateway) Resets() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.resets)
}

// ApproveCloud returns HeldDeletes, and 0 from then on.
func (g *Gateway) ApproveCloud() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	held := g.HeldDeletes
	g.HeldDeletes = 0
	return held
}

// DrainTunnel marks the tunnel and makes the first one active that is up and not drained, else the first that is up, as fabric-links does.
func (g *Gateway) DrainTunnel(_ context.Context, device string, drained bool) error {
	if g.OnDrain != nil {
		return g.OnDrain(device, drained)
	}
	snap := g.Snapshot()
	i := slices.IndexFunc(snap.Tunnels, func(t links.TunnelState) bool { return t.Device == device })
	if i < 0 {
		return fmt.Errorf("tunnel device %s: %w", device, fs.ErrNotExist)
	}
	remote := snap.Tunnels[i].Remote
	g.Publish(func(s *site.Snapshot) {
		s.Tunnels[i].Drained = drained
		best := -1
		for j, t := range s.Tunnels {
			if t.Remote != remote {
				continue
			}
			s.Tunnels[j].Active = false
			if t.State == links.Up && (best < 0 || s.Tunnels[best].Drained && !t.Drained) {
				best = j
			}
		}
		if best >= 0 {
			s.Tunnels[best].Active = true
		}
	})
	return nil
}

// RotateTunnel gives the tunnel the next generation of keys, as fabric-links does, but at once.
func (g *Gateway) RotateTunnel(_ context.Context, device string) (generation int, err error) {
	if g.OnRotate != nil {
		return g.OnRotate(device)
	}
	i := slices.IndexFunc(g.Snapshot().Tunnels, func(t links.TunnelState) bool { return t.Device == device })
	if i < 0 {
		return 0, fmt.Errorf("tunnel device %s: %w", device, fs.ErrNotExist)
	}
	g.Publish(func(s *site.Snapshot) {
		generation = s.Tunnels[i].KeyGeneration
		s.Tunnels[i].KeyGeneration++
		s.Tunnels[i].KeyMade = Epoch
	})
	return generation, nil
}

// Plan says which peers and prefixes come and go, and whether the gateway is drained.
func (g *Gateway) Plan(_ context.Context, doc *config.Document) ([]string, error) {
	if g.OnPlan != nil {
		if err := g.OnPlan(doc); err != nil {
			return nil, err
		}
	}
	_, gw, ok := doc.Find(GatewayName)
	if !ok {
		return nil, fmt.Errorf("gateway %s: %w", GatewayName, fs.ErrNotExist)
	}
	want := map[string]bool{}
	for _, v := range gw.VRFs {
		for _, p := range v.Peers {
			want["BGP peer "+p.Name+" in VRF "+v.VRF] = true
		}
		for _, p := range v.Prefixes {
			want["prefix "+p.Prefix.String()+" in VRF "+v.VRF] = true
		}
	}
	snap := g.Snapshot()
	have := map[string]bool{}
	for _, p := range snap.Peers {
		if !p.Fabric {
			have["BGP peer "+p.Name+" in VRF "+p.VRF] = true
		}
	}
	for _, p := range snap.Prefixes {
		if p.Source == "document" {
			have["prefix "+p.Prefix.String()+" in VRF "+p.VRF] = true
		}
	}
	var plan []string
	for k := range want {
		if !have[k] {
			plan = append(plan, "add "+k)
		}
	}
	for k := range have {
		if !want[k] {
			plan = append(plan, "remove "+k)
		}
	}
	if gw.Drained != snap.Site.Drained {
		plan = append(plan, fmt.Sprintf("set drained to %v", gw.Drained))
	}
	slices.Sort(plan)
	return plan, nil
}

// Routes makes n routes of a VRF.
func Routes(vrf string, n int) []site.RouteStatus {
	out := make([]site.RouteStatus, n)
	for i := range out {
		out[i] = Route(vrf, i)
	}
	return out
}

// Route is the i-th route of a VRF: a /24 below 10.0.0.0/8, from gateway hk-1.
func Route(vrf string, i int) site.RouteStatus {
	return site.RouteStatus{
		VRF: vrf, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), NextHop: netip.MustParseAddr("10.255.0.2"),
		Via: "fxv1000", Source: "fabric", From: "hk-1", ASPath: "65002 65030", Communities: []string{"65002:1"}, LocalPref: 100, VNI: 1000,
		Reason: "only path", Kernel: "ok", Cloud: "ok",
	}
}
