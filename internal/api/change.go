package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// reached says what of a change has not taken effect in a snapshot yet, in one sentence; "" when all has.
type reached func(*site.Snapshot) string

// apply makes one change: propose, plan, commit, wait.
func (s *Service) apply(ctx context.Context, opts *fabricv1.ChangeOptions, about string, propose func(who string) (*config.Proposal, error), done reached) (*fabricv1.ChangeResult, error) {
	who := Caller(ctx)
	result, err := s.commit(ctx, opts, about, who, propose)
	if err != nil {
		s.log.WarnContext(ctx, "change refused", "change", about, "who", who, "err", err)
		return nil, err
	}
	if result.GetDryRun() {
		return result, nil
	}
	s.log.InfoContext(ctx, "change kept", "change", result.GetWhat(), "who", who, "generation", result.GetGeneration())
	if opts.GetWaitMs() > 0 {
		s.wait(ctx, result, time.Duration(opts.GetWaitMs())*time.Millisecond, done)
	}
	return result, nil
}

// commit is the part of a change that takes turns with others. It returns before the change has taken effect.
func (s *Service) commit(ctx context.Context, opts *fabricv1.ChangeOptions, about, who string, propose func(who string) (*config.Proposal, error)) (*fabricv1.ChangeResult, error) {
	s.change.Lock()
	defer s.change.Unlock()
	// Before the first snapshot there is nothing that a plan could be compared with.
	if _, err := s.snapshot(); err != nil {
		return nil, err
	}
	prop, err := propose(who)
	if err != nil {
		return nil, toStatus(err, about)
	}
	if base := opts.GetBase(); base != 0 && base != prop.Base {
		return nil, status.Errorf(codes.Aborted,
			"%s: it was thought out on generation %d, but %d is in force; look at `fabricctl config diff %d` and try again", about, base, prop.Base, base)
	}
	plan, err := s.gateway.Plan(ctx, prop.Document)
	if err != nil {
		return nil, toStatusOr(codes.FailedPrecondition, err, about)
	}
	result := &fabricv1.ChangeResult{Generation: prop.Base, What: prop.What, Plan: plan, DryRun: opts.GetDryRun()}
	if opts.GetDryRun() {
		return result, nil
	}
	// A caller that has gone away in the meantime does not see the plan; do not change what nobody is told about.
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	gen, err := s.store.Commit(prop, who)
	if err != nil {
		return nil, toStatus(err, about)
	}
	result.Generation = gen.Number
	return result, nil
}

// wait follows the snapshots until the site has applied the generation and the change itself has taken effect. That
// it does not in time is part of the result and no error, for the change is kept all the same.
func (s *Service) wait(ctx context.Context, result *fabricv1.ChangeResult, limit time.Duration, done reached) {
	start := time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	changed, end := s.gateway.Changed()
	defer end()
	for {
		missing := "the gateway has published nothing yet"
		if snap := s.gateway.Snapshot(); snap != nil {
			missing = pending(snap, result.GetGeneration(), done)
		}
		result.WaitingFor = missing
		if missing == "" {
			result.Converged, result.Elapsed = true, durationpb.New(time.Since(start))
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			result.Elapsed = durationpb.New(time.Since(start))
			return
		case <-ctx.Done():
			result.Elapsed = durationpb.New(time.Since(start))
			return
		}
	}
}

func pending(snap *site.Snapshot, gen uint64, done reached) string {
	if snap.Site.Applied < gen {
		msg := fmt.Sprintf("generation %d to be applied, %d is", gen, snap.Site.Applied)
		if len(snap.Site.Problems) > 0 {
			msg += ": " + snap.Site.Problems[0]
		}
		return msg
	}
	if done == nil {
		return ""
	}
	return done(snap)
}

// mutate makes a change of one mutation.
func (s *Service) mutate(ctx context.Context, opts *fabricv1.ChangeOptions, about string, m config.Mutation, done reached) (*fabricv1.ChangeResult, error) {
	return s.apply(ctx, opts, about, func(string) (*config.Proposal, error) { return s.store.Propose(m) }, done)
}

// AddPeer adds a third-party peer.
func (s *Service) AddPeer(ctx context.Context, req *fabricv1.AddPeerRequest) (*fabricv1.AddPeerResponse, error) {
	p, err := wantedPeer(req.GetPeer())
	if err != nil {
		return nil, err
	}
	vrf, _, err := s.attachedVRF(req.GetVrf())
	if err != nil {
		return nil, err
	}
	name := peerName(*p)
	done := established(vrf, name)
	if p.Disabled {
		done = nil
	}
	res, err := s.apply(ctx, req.GetOptions(), "peer add "+name, func(string) (*config.Proposal, error) {
		_, v, err := s.attachedVRF(vrf)
		if err != nil {
			return nil, err
		}
		for _, have := range v.Peers {
			if peerName(have) == name || have.Address == p.Address && have.Interface == p.Interface {
				return nil, status.Errorf(codes.AlreadyExists, "peer %s in VRF %s exists already (address %s, AS %d); remove it first with `fabricctl peer del %s --vrf %s`",
					peerName(have), vrf, have.Address, have.ASN, peerName(have), vrf)
			}
		}
		return s.store.Propose(config.Mutation{Action: config.PeerAdd, VRF: vrf, Peer: p})
	}, done)
	return &fabricv1.AddPeerResponse{Result: res}, err
}

// DeletePeer removes a third-party peer.
func (s *Service) DeletePeer(ctx context.Context, req *fabricv1.DeletePeerRequest) (*fabricv1.DeletePeerResponse, error) {
	res, err := s.mutatePeer(ctx, req.GetOptions(), config.PeerDel, req.GetVrf(), req.GetName(), func(vrf, name string) reached {
		return func(snap *site.Snapshot) string {
			if p := peerIn(snap, vrf, name); p != nil {
				return "peer " + name + " to be gone, it is " + p.State
			}
			return ""
		}
	})
	return &fabricv1.DeletePeerResponse{Result: res}, err
}

// EnablePeer lets a disabled peer connect again.
func (s *Service) EnablePeer(ctx context.Context, req *fabricv1.EnablePeerRequest) (*fabricv1.EnablePeerResponse, error) {
	res, err := s.mutatePeer(ctx, req.GetOptions(), config.PeerEnable, req.GetVrf(), req.GetName(), established)
	return &fabricv1.EnablePeerResponse{Result: res}, err
}

// DisablePeer keeps a peer configured but down.
func (s *Service) DisablePeer(ctx context.Context, req *fabricv1.DisablePeerRequest) (*fabricv1.DisablePeerResponse, error) {
	res, err := s.mutatePeer(ctx, req.GetOptions(), config.PeerDisable, req.GetVrf(), req.GetName(), func(vrf, name string) reached {
		return func(snap *site.Snapshot) string {
			if p := peerIn(snap, vrf, name); p != nil && p.State == "established" {
				return "peer " + name + " to be down, it is established"
			}
			return ""
		}
	})
	return &fabricv1.DisablePeerResponse{Result: res}, err
}

// mutatePeer changes a peer that the document has.
func (s *Service) mutatePeer(ctx context.Context, opts *fabricv1.ChangeOptions, action, vrf, name string, done func(vrf, name string) reached) (*fabricv1.ChangeResult, error) {
	ref, err := s.documentPeer(vrf, name)
	if err != nil {
		return nil, err
	}
	return s.mutate(ctx, opts, action+" "+ref.name, config.Mutation{Action: action, VRF: ref.vrf, Name: ref.name}, done(ref.vrf, ref.name))
}

// documentPeer finds a peer that the document has, not another gateway.
func (s *Service) documentPeer(vrf, name string) (peerRef, error) {
	snap, err := s.snapshot()
	if err != nil {
		return peerRef{}, err
	}
	_, gw, err := s.local()
	if err != nil {
		return peerRef{}, err
	}
	ref, err := findPeer(snap, gw, vrf, name)
	if err != nil {
		return peerRef{}, err
	}
	if ref.config == nil {
		if ref.status.Fabric {
			return peerRef{}, status.Errorf(codes.FailedPrecondition,
				"peer %s is another gateway of the fabric; its session follows from the document's links and cannot be changed by itself", name)
		}
		return peerRef{}, status.Errorf(codes.NotFound, "peer %s is not in the document any more, its session is about to end", name)
	}
	return ref, nil
}

// ResetPeer ends the session so that it starts anew.
func (s *Service) ResetPeer(ctx context.Context, req *fabricv1.ResetPeerRequest) (*fabricv1.ResetPeerResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	_, gw, err := s.local()
	if err != nil {
		return nil, err
	}
	ref, err := findPeer(snap, gw, req.GetVrf(), req.GetName())
	if err != nil {
		return nil, err
	}
	if ref.config != nil && ref.config.Disabled {
		return nil, status.Errorf(codes.FailedPrecondition, "peer %s is disabled, there is no session to reset; `fabricctl peer enable %s` starts one", ref.name, ref.name)
	}
	if err := s.gateway.ResetPeer(ctx, ref.vrf, ref.name, req.GetSoft()); err != nil {
		return nil, toStatus(err, "peer reset "+ref.name)
	}
	s.log.InfoContext(ctx, "peer reset", "vrf", ref.vrf, "peer", ref.name, "soft", req.GetSoft(), "who", Caller(ctx))
	return &fabricv1.ResetPeerResponse{Vrf: ref.vrf, Name: ref.name}, nil
}

// AddPrefix originates a prefix.
func (s *Service) AddPrefix(ctx context.Context, req *fabricv1.AddPrefixRequest) (*fabricv1.AddPrefixResponse, error) {
	p, err := wantedPrefix(req.GetPrefix())
	if err != nil {
		return nil, err
	}
	vrf, _, err := s.attachedVRF(req.GetVrf())
	if err != nil {
		return nil, err
	}
	done := func(snap *site.Snapshot) string {
		st := prefixIn(snap, vrf, p)
		switch {
		case st == nil:
			return "prefix " + p.Prefix.String() + " to be originated"
		case st.Err != "":
			return "prefix " + p.Prefix.String() + " to be announced: " + st.Err
		case st.Announced || req.GetPrefix().GetLocal() || snap.Site.Drained:
			return ""
		}
		return "prefix " + p.Prefix.String() + " to be announced"
	}
	res, err := s.apply(ctx, req.GetOptions(), "prefix add "+p.Prefix.String(), func(string) (*config.Proposal, error) {
		_, v, err := s.attachedVRF(vrf)
		if err != nil {
			return nil, err
		}
		for _, have := range v.Prefixes {
			if have.Prefix == p.Prefix {
				return nil, status.Errorf(codes.AlreadyExists, "prefix %s in VRF %s is originated already; remove it first with `fabricctl prefix del %s --vrf %s`", p.Prefix, vrf, p.Prefix, vrf)
			}
		}
		return s.store.Propose(config.Mutation{Action: config.PrefixAdd, VRF: vrf, Prefix: p})
	}, done)
	return &fabricv1.AddPrefixResponse{Result: res}, err
}

// DeletePrefix stops originating a prefix.
func (s *Service) DeletePrefix(ctx context.Context, req *fabricv1.DeletePrefixRequest) (*fabricv1.DeletePrefixResponse, error) {
	p, err := parsePrefix(req.GetPrefix())
	if err != nil {
		return nil, err
	}
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	_, gw, err := s.local()
	if err != nil {
		return nil, err
	}
	ref, err := findPrefix(snap, gw, req.GetVrf(), p)
	if err != nil {
		return nil, err
	}
	if ref.config == nil {
		return nil, status.Errorf(codes.FailedPrecondition,
			"prefix %s in VRF %s comes from the %s, not from a prefix of the document; change that in the file", p, ref.vrf, ref.status.Source)
	}
	done := func(snap *site.Snapshot) string {
		// The same prefix may still be there as an interface's own network.
		if st := prefixIn(snap, ref.vrf, ref.config); st != nil && st.Source != "interface" && st.Source != "loopback" {
			return "prefix " + p.String() + " to be withdrawn"
		}
		return ""
	}
	res, err := s.mutate(ctx, req.GetOptions(), "prefix del "+p.String(), config.Mutation{Action: config.PrefixDel, VRF: ref.vrf, Prefix: &config.Prefix{Prefix: p}}, done)
	return &fabricv1.DeletePrefixResponse{Result: res}, err
}

// DrainSite withdraws all that the gateway originates.
func (s *Service) DrainSite(ctx context.Context, req *fabricv1.DrainSiteRequest) (*fabricv1.DrainSiteResponse, error) {
	res, err := s.mutate(ctx, req.GetOptions(), "site drain", config.Mutation{Action: config.SiteDrain}, func(snap *site.Snapshot) string {
		if !snap.Site.Drained {
			return "the gateway to be drained"
		}
		return ""
	})
	return &fabricv1.DrainSiteResponse{Result: res}, err
}

// UndrainSite announces it again.
func (s *Service) UndrainSite(ctx context.Context, req *fabricv1.UndrainSiteRequest) (*fabricv1.UndrainSiteResponse, error) {
	res, err := s.mutate(ctx, req.GetOptions(), "site undrain", config.Mutation{Action: config.SiteUndrain}, func(snap *site.Snapshot) string {
		if snap.Site.Drained {
			return "the gateway to be in use again"
		}
		return ""
	})
	return &fabricv1.UndrainSiteResponse{Result: res}, err
}

// attachedVRF finds the VRF that something is to be added to, and what this gateway has there. A VRF of the document
// that the gateway does not have yet is empty here, and is attached to the gateway by what is added.
func (s *Service) attachedVRF(vrf string) (string, config.GatewayVRF, error) {
	gen, gw, err := s.local()
	if err != nil {
		return "", config.GatewayVRF{}, err
	}
	here := make([]string, len(gw.VRFs))
	for i, v := range gw.VRFs {
		here[i] = v.VRF
	}
	if vrf, err = onlyVRF(here, vrf); err != nil {
		return "", config.GatewayVRF{}, err
	}
	if v, ok := gw.VRF(vrf); ok {
		return vrf, *v, nil
	}
	names := make([]string, len(gen.Document.VRFs))
	for i, v := range gen.Document.VRFs {
		names[i] = v.Name
		if v.Name == vrf {
			return vrf, config.GatewayVRF{VRF: vrf}, nil
		}
	}
	return "", config.GatewayVRF{}, status.Errorf(codes.NotFound, "no VRF %q in the document; it has %s", vrf, list(names))
}

// established waits for a session.
func established(vrf, name string) reached {
	return func(snap *site.Snapshot) string {
		p := peerIn(snap, vrf, name)
		if p == nil {
			return "peer " + name + " to be started"
		}
		if p.State == "established" {
			return ""
		}
		msg := "peer " + name + " to be established, it is " + p.State
		if p.LastError != "" {
			msg += ": " + p.LastError
		}
		return msg
	}
}

func peerIn(snap *site.Snapshot, vrf, name string) *site.PeerStatus {
	for i := range snap.Peers {
		if snap.Peers[i].VRF == vrf && snap.Peers[i].Name == name {
			return &snap.Peers[i]
		}
	}
	return nil
}

func prefixIn(snap *site.Snapshot, vrf string, p *config.Prefix) *site.PrefixStatus {
	for i := range snap.Prefixes {
		if snap.Prefixes[i].VRF == vrf && snap.Prefixes[i].Prefix == p.Prefix {
			return &snap.Prefixes[i]
		}
	}
	return nil
}
