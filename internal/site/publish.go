package site

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"fabric/bgp"
	"fabric/bgp/rib"
	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// Snapshot returns what the gateway last knew of itself. It is immutable and at most a second or so old.
func (s *Site) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel with one slot that is filled whenever there is a new snapshot, and a function that ends it.
func (s *Site) Changed() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[c] = true
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		delete(s.watchers, c)
		s.mu.Unlock()
	}
}

// runPublish renews the snapshot on every event, but not more often than ten times a second, and every second. Where a snapshot
// takes long, it takes a tenth of the time at most.
func (s *Site) runPublish(ctx context.Context) error {
	tick := time.NewTicker(publishInterval)
	defer tick.Stop()
	for {
		begun := time.Now()
		s.publish()
		rest := min(max(publishInterval/10, 10*time.Since(begun)), publishInterval)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			continue
		case <-s.pubWake:
		case <-s.speaker.Changed():
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest):
		}
	}
}

func (s *Site) publish() {
	next := s.build()
	old := s.snapshot.Swap(next)
	if old != nil && reflect.DeepEqual(untimed(old), untimed(next)) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.watchers {
		wake(c)
	}
}

// untimed is a snapshot without the moment it was taken at.
func untimed(s *Snapshot) Snapshot {
	c := *s
	c.Taken = time.Time{}
	return c
}

func (s *Site) build() *Snapshot {
	in := s.intent.Load()
	linkState, linkErr, linked := s.links.snapshot()
	snap := &Snapshot{Taken: time.Now()}
	snap.VRFs = s.vrfStatus(in)
	snap.Peers = s.peerStatus(in)
	snap.Prefixes = s.prefixStatus(in)
	snap.Tunnels, snap.Sessions = linkState.Tunnels, linkState.Sessions
	snap.Clouds = s.cloudStatus()
	snap.Site = SiteStatus{
		Fabric: in.doc.Fabric.Name, Site: in.site.Name, Gateway: in.gw.Name, ASN: in.gw.ASN, VTEP: in.gw.VTEP, RouterID: in.gw.RouterID,
		Version: s.cfg.Version, Started: s.started, Generation: s.cfg.Store.Current().Number, Ready: s.ready.Load(), Drained: in.gw.Drained,
		LinksConnected: linked, LinksErr: linkErr, Backend: string(in.host.Backend), Problems: s.problems(),
	}
	if linkErr != "" {
		snap.Site.Problems = append(snap.Site.Problems, linkErr)
	}
	for _, o := range linkState.Problems {
		snap.Site.Problems = append(snap.Site.Problems, fmt.Sprintf("fabric-links: %s %s: %s", o.Kind, o.Name, o.Message))
	}
	snap.Site.Applied = s.appliedGeneration(in, linked)
	return snap
}

// appliedGeneration is the newest generation that the host, fabric-links and the routes have reached.
func (s *Site) appliedGeneration(in *intent, linked bool) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hostGeneration >= in.generation && linked && s.fib.loop.InSync() {
		s.appliedGen = max(s.appliedGen, in.generation)
	}
	return s.appliedGen
}

func (s *Site) vrfStatus(in *intent) []VRFStatus {
	wrong := map[uint32]string{}
	var why []byte // used again: there may be many
	byTable := s.fib.loop.Survey(func(k kernel.RouteKey, st reconcile.Status) {
		why = append(k.Prefix.AppendTo(why[:0]), ": "...)
		why = append(why, cmp.Or(st.Err, "not yet as chosen")...)
		// Which of several is told does not change from one snapshot to the next.
		if old, ok := wrong[k.Table]; !ok || string(why) < old {
			wrong[k.Table] = string(why)
		}
	})
	var out []VRFStatus
	for i := range in.host.VRFs {
		m := &in.host.VRFs[i]
		v, _ := in.doc.VRF(m.Name)
		out = append(out, VRFStatus{
			Name: m.Name, Table: m.Table, VNI: m.VNI, Device: m.Device, VXLAN: m.VXLAN, Interfaces: m.Interfaces,
			ImportRT: v.ImportRT, ExportRT: v.ExportRT, Routes: s.rib.Len(m.Name), Kernel: byTable[m.Table],
			InSync: wrong[m.Table] == "", Err: wrong[m.Table],
		})
	}
	return out
}

func (s *Site) peerStatus(in *intent) []PeerStatus {
	var out []PeerStatus
	states := s.speaker.Peers()
	for _, srv := range in.servers() {
		for i := range srv.Peers {
			p := &srv.Peers[i]
			st := PeerStatus{
				VRF: p.VRF, Name: p.Name, Address: p.Address, ASN: p.ASN, LocalASN: p.LocalASN, Fabric: p.VRF == "",
				State: "idle", Disabled: p.Disabled, MaxPrefix: p.MaxPrefix, Families: p.Families, Hold: p.Hold, Keepalive: p.Keepalive,
			}
			for _, have := range states {
				if have.VRF == p.VRF && have.Name == p.Name {
					fillPeer(&st, &have)
				}
			}
			out = append(out, st)
		}
	}
	return out
}

func (s *Site) prefixStatus(in *intent) []PrefixStatus {
	added := map[rib.Key]bool{}
	for _, m := range s.cfg.Store.Current().Mutations {
		if m.Prefix != nil {
			added[rib.Key{VRF: m.VRF, Prefix: m.Prefix.Prefix}] = true
		}
	}
	var out []PrefixStatus
	for _, p := range in.local {
		if p.Key.Source.Kind == rib.Connected && p.Interface != "" && p.LocalOnly {
			continue
		}
		st := PrefixStatus{VRF: p.Key.Source.VRF, Prefix: p.Key.Prefix, NextHop: p.Attrs.NextHop, Source: "document", Announced: !p.LocalOnly}
		if p.Key.Source.Kind == rib.Connected {
			st.Source = "interface"
			if p.Interface == "" {
				st.Source = "loopback"
			}
		}
		if added[rib.Key{VRF: st.VRF, Prefix: st.Prefix}] {
			st.Source = "mutation"
		}
		if gp := in.prefix(p.Key.Source.VRF, p.Key.Prefix); gp != nil {
			st.Shared = gp.Shared
		}
		switch c, ok := s.rib.Best(rib.Key{VRF: p.Key.Source.VRF, Prefix: p.Key.Prefix}); {
		case ok && c.Best.Key.Source == p.Key.Source:
		case ok:
			st.Announced = st.Announced && !c.Best.LocalOnly
			st.Err = "the route chosen is " + c.Best.Key.Source.Kind.String() + ": " + string(c.Reason)
		default:
			st.Announced = false
		}
		for _, cand := range s.rib.Ranking(rib.Key{VRF: p.Key.Source.VRF, Prefix: p.Key.Prefix}) {
			if cand.Path.Key == p.Key && cand.Problem != "" {
				st.Err = cand.Problem
			}
		}
		out = append(out, st)
	}
	// A prefix that is attached as well as listed comes twice, attached first: that one stays.
	slices.SortStableFunc(out, func(a, b PrefixStatus) int {
		if c := strings.Compare(a.VRF, b.VRF); c != 0 {
			return c
		}
		return comparePrefix(a.Prefix, b.Prefix)
	})
	return slices.CompactFunc(out, func(a, b PrefixStatus) bool { return a.VRF == b.VRF && a.Prefix == b.Prefix })
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// Routes calls fn for every route of a VRF, or of all VRFs when vrf is "", in order, until fn returns false.
func (s *Site) Routes(vrf string, fn func(RouteStatus) bool) error {
	in := s.intent.Load()
	names, err := in.vrfNames(vrf)
	if err != nil {
		return err
	}
	for _, name := range names {
		more := true
		s.rib.Walk(name, func(c rib.Choice) bool {
			if c.Best != nil {
				more = fn(s.routeStatus(in, c))
			}
			return more
		})
		if !more {
			break
		}
	}
	return nil
}

// WatchRoutes calls fn for every route there is, and then for every change, until ctx ends or fn fails.
func (s *Site) WatchRoutes(ctx context.Context, vrf string, fn func(r RouteStatus, withdrawn bool) error) error {
	if _, err := s.intent.Load().vrfNames(vrf); err != nil {
		return err
	}
	feed := s.rib.Subscribe()
	defer feed.Close()
	for {
		b, err := feed.Next(ctx)
		if err != nil {
			return ignoreCancel(ctx, err)
		}
		in := s.intent.Load()
		for _, c := range b.Choices {
			if vrf != "" && c.Key.VRF != vrf {
				continue
			}
			r := RouteStatus{VRF: c.Key.VRF, Prefix: c.Key.Prefix}
			if c.Best != nil {
				r = s.routeStatus(in, c)
			}
			if err := fn(r, c.Best == nil); err != nil {
				return err
			}
		}
	}
}

func (in *intent) vrfNames(vrf string) ([]string, error) {
	var names []string
	for _, m := range in.host.VRFs {
		if vrf == "" || m.Name == vrf {
			names = append(names, m.Name)
		}
	}
	if vrf != "" && len(names) == 0 {
		return nil, fmt.Errorf("%w: gateway %s has no VRF %q; see fabricctl vrf list", ErrNotFound, in.gw.Name, vrf)
	}
	return names, nil
}

func (s *Site) routeStatus(in *intent, c rib.Choice) RouteStatus {
	r := s.pathStatus(in, c.Best)
	r.VRF, r.Reason = c.Key.VRF, string(c.Reason)
	if c.RunnerUp != nil {
		r.RunnerUp = fromName(in, c.RunnerUp)
	}
	r.Kernel, r.NextHops = s.fib.state(in, c), s.fib.nextHops(c.Key)
	r.Cloud = s.cloud.State(c.Key)
	return r
}

func (s *Site) pathStatus(in *intent, p *rib.Path) RouteStatus {
	r := RouteStatus{
		VRF: p.Key.Source.VRF, Prefix: p.Key.Prefix, NextHop: p.Attrs.NextHop, Via: p.Interface, Source: p.Key.Source.Kind.String(),
		From: fromName(in, p), ASPath: p.Attrs.ASPathString(), LocalPref: p.Attrs.LocalPref, MED: p.Attrs.MED, VNI: p.Attrs.VNI, Stale: p.Stale,
	}
	for _, c := range p.Attrs.Communities {
		r.Communities = append(r.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
	}
	return r
}

func fromName(in *intent, p *rib.Path) string {
	if p.Key.Source.Name != "" {
		return p.Key.Source.Name
	}
	return in.gw.Name
}

// fillPeer puts what the speaker knows of a session over what the intent says.
func fillPeer(st *PeerStatus, have *bgp.PeerState) {
	st.State, st.Since, st.Flaps = have.State, have.Since, have.Flaps
	st.Frozen, st.Restarting, st.LastError, st.BFD = have.Frozen, have.Restarting, have.LastError, have.BFD
	st.Received, st.Admitted, st.Rejected, st.Advertised = have.Received, have.Admitted, have.Rejected, have.Advertised
	if len(have.Families) > 0 {
		st.Families = have.Families
	}
	if have.Hold > 0 {
		st.Hold, st.Keepalive = have.Hold, have.Keepalive
	}
}
