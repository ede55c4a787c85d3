package api

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// batch is the number of objects in one message of a streamed list: large enough that framing does not matter, small
// enough (some 50 KB) that a list of any length needs little memory on either side.
const batch = 256

// GetVersion returns the daemon's version.
func (s *Service) GetVersion(context.Context, *fabricv1.GetVersionRequest) (*fabricv1.GetVersionResponse, error) {
	return &fabricv1.GetVersionResponse{Version: s.version}, nil
}

// GetSite sums up the gateway.
func (s *Service) GetSite(context.Context, *fabricv1.GetSiteRequest) (*fabricv1.GetSiteResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	out := siteStatus(snap.Site)
	out.Conflicts = s.store.Conflicts()
	return &fabricv1.GetSiteResponse{Site: out}, nil
}

// ListVrfs returns the routing domains at this gateway.
func (s *Service) ListVrfs(context.Context, *fabricv1.ListVrfsRequest) (*fabricv1.ListVrfsResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	return &fabricv1.ListVrfsResponse{Vrfs: convert(snap.VRFs, vrfStatus)}, nil
}

// ListClouds returns the VPC route tables that the gateway keeps.
func (s *Service) ListClouds(context.Context, *fabricv1.ListCloudsRequest) (*fabricv1.ListCloudsResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	return &fabricv1.ListCloudsResponse{Clouds: convert(snap.Clouds, cloudStatus)}, nil
}

// ApproveCloud lets deletes go that are held back because they are so many at once.
func (s *Service) ApproveCloud(ctx context.Context, _ *fabricv1.ApproveCloudRequest) (*fabricv1.ApproveCloudResponse, error) {
	held := s.gateway.ApproveCloud()
	if held == 0 {
		return nil, status.Error(codes.FailedPrecondition, "no deletes are held back in the tables that this gateway keeps; fabricctl cloud plan shows what is still to do")
	}
	s.log.InfoContext(ctx, "change made", "change", "cloud approve", "deletes", held, "who", Caller(ctx))
	return &fabricv1.ApproveCloudResponse{Held: count(held)}, nil
}

// ListPeers returns the BGP neighbours.
func (s *Service) ListPeers(_ context.Context, req *fabricv1.ListPeersRequest) (*fabricv1.ListPeersResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	if err := knownVRF(snap, req.GetVrf()); err != nil {
		return nil, err
	}
	out := &fabricv1.ListPeersResponse{}
	for _, p := range snap.Peers {
		if req.GetVrf() == "" || p.VRF == req.GetVrf() {
			out.Peers = append(out.Peers, peerStatus(p))
		}
	}
	return out, nil
}

// GetPeer returns one neighbour with its configuration.
func (s *Service) GetPeer(_ context.Context, req *fabricv1.GetPeerRequest) (*fabricv1.GetPeerResponse, error) {
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
	out := &fabricv1.GetPeerResponse{}
	if ref.status != nil {
		out.Peer = peerStatus(*ref.status)
	}
	if ref.config != nil {
		out.Config = peerConfig(*ref.config)
	}
	return out, nil
}

// ListPrefixes streams the prefixes that the gateway originates.
func (s *Service) ListPrefixes(req *fabricv1.ListPrefixesRequest, stream fabricv1.FabricService_ListPrefixesServer) error {
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	if err := knownVRF(snap, req.GetVrf()); err != nil {
		return err
	}
	for part := range slices.Chunk(convert(prefixesOf(snap, req.GetVrf()), prefixStatus), batch) {
		if err := stream.Send(&fabricv1.ListPrefixesResponse{Prefixes: part}); err != nil {
			return err
		}
	}
	return nil
}

// GetPrefix returns one originated prefix.
func (s *Service) GetPrefix(_ context.Context, req *fabricv1.GetPrefixRequest) (*fabricv1.GetPrefixResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	p, err := parsePrefix(req.GetPrefix())
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
	out := &fabricv1.GetPrefixResponse{}
	if ref.status != nil {
		out.Prefix = prefixStatus(*ref.status)
	}
	if ref.config != nil {
		out.Config = prefixConfig(*ref.config)
	}
	return out, nil
}

// ListRoutes streams the chosen routes.
func (s *Service) ListRoutes(req *fabricv1.ListRoutesRequest, stream fabricv1.FabricService_ListRoutesServer) error {
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	if err := knownVRF(snap, req.GetVrf()); err != nil {
		return err
	}
	var within netip.Prefix
	if req.GetWithin() != "" {
		if within, err = parsePrefix(req.GetWithin()); err != nil {
			return err
		}
	}
	switch req.GetSource() {
	case "", "connected", "static", "peer", "fabric":
	default:
		return status.Errorf(codes.InvalidArgument, "source %q: there is no such source; use connected, static, peer or fabric", req.GetSource())
	}
	vrfs := []string{req.GetVrf()}
	if req.GetVrf() == "" {
		vrfs = vrfNames(snap)
	}
	for _, vrf := range vrfs {
		if err := s.sendRoutes(vrf, req.GetSource(), within, stream); err != nil {
			return err
		}
	}
	return nil
}

// sendRoutes streams one VRF's routes, message by message.
func (s *Service) sendRoutes(vrf, source string, within netip.Prefix, stream fabricv1.FabricService_ListRoutesServer) error {
	out := make([]*fabricv1.Route, 0, batch)
	var sendErr error
	err := s.gateway.Routes(vrf, func(r site.RouteStatus) bool {
		if source != "" && r.Source != source || within.IsValid() && !inside(within, r.Prefix) {
			return stream.Context().Err() == nil
		}
		out = append(out, routeStatus(r))
		if len(out) < batch {
			return true
		}
		sendErr = stream.Send(&fabricv1.ListRoutesResponse{Routes: out})
		// A new slice: the message sent may still be in use by a stats handler.
		out = make([]*fabricv1.Route, 0, batch)
		return sendErr == nil
	})
	if sendErr != nil {
		return sendErr
	}
	if err != nil {
		return toStatus(err, "routes of VRF "+vrf)
	}
	if len(out) == 0 {
		return nil
	}
	return stream.Send(&fabricv1.ListRoutesResponse{Routes: out})
}

// GetRoute returns the route that a destination takes.
func (s *Service) GetRoute(_ context.Context, req *fabricv1.GetRouteRequest) (*fabricv1.GetRouteResponse, error) {
	vrf, p, err := s.destination(req.GetVrf(), req.GetPrefix())
	if err != nil {
		return nil, err
	}
	ex, err := s.gateway.Explain(vrf, p)
	if err != nil {
		return nil, toStatus(err, "route to "+p.String()+" in VRF "+vrf)
	}
	for _, c := range ex.Candidates {
		if c.Best {
			return &fabricv1.GetRouteResponse{Route: routeStatus(c.Route)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no route to %s in VRF %s; `fabricctl route explain` says what was refused", p, vrf)
}

// ExplainRoute says why a destination is routed as it is.
func (s *Service) ExplainRoute(_ context.Context, req *fabricv1.ExplainRouteRequest) (*fabricv1.ExplainRouteResponse, error) {
	vrf, p, err := s.destination(req.GetVrf(), req.GetPrefix())
	if err != nil {
		return nil, err
	}
	ex, err := s.gateway.Explain(vrf, p)
	if err != nil {
		return nil, toStatus(err, "route to "+p.String()+" in VRF "+vrf)
	}
	return explanation(ex), nil
}

// destination reads the VRF and the prefix or address of a question about a route.
func (s *Service) destination(vrf, text string) (string, netip.Prefix, error) {
	snap, err := s.snapshot()
	if err != nil {
		return "", netip.Prefix{}, err
	}
	if vrf, err = onlyVRF(vrfNames(snap), vrf); err != nil {
		return "", netip.Prefix{}, err
	}
	if err := knownVRF(snap, vrf); err != nil {
		return "", netip.Prefix{}, err
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return vrf, netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := parsePrefix(text)
	return vrf, p, err
}

// inside says whether p lies in outer.
func inside(outer, p netip.Prefix) bool {
	return outer.Addr().Is4() == p.Addr().Is4() && p.Bits() >= outer.Bits() && outer.Contains(p.Addr())
}

// parsePrefix reads a prefix strictly: host bits are refused, for they are most often a typing error.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, status.Errorf(codes.InvalidArgument, "prefix %q: not ADDRESS/LENGTH; write it like 172.20.0.0/16 or fd00:20::/48", text)
	}
	if p.Masked() != p {
		return netip.Prefix{}, status.Errorf(codes.InvalidArgument, "prefix %q: has host bits; did you mean %s?", text, p.Masked())
	}
	return p, nil
}

// vrfNames are the names of the VRFs at this gateway, in the snapshot's order.
func vrfNames(snap *site.Snapshot) []string {
	names := make([]string, len(snap.VRFs))
	for i, v := range snap.VRFs {
		names[i] = v.Name
	}
	return names
}

// knownVRF refuses a VRF that is not at this gateway; "" stands for all and passes.
func knownVRF(snap *site.Snapshot, vrf string) error {
	names := vrfNames(snap)
	if vrf == "" || slices.Contains(names, vrf) {
		return nil
	}
	return status.Errorf(codes.NotFound, "no VRF %q at this gateway; it has %s", vrf, list(names))
}

// onlyVRF fills in the VRF where there is only one to choose from.
func onlyVRF(names []string, vrf string) (string, error) {
	if vrf != "" {
		return vrf, nil
	}
	if len(names) == 1 {
		return names[0], nil
	}
	return "", status.Errorf(codes.InvalidArgument, "which VRF? This gateway has %s; name one with --vrf", list(names))
}

// list writes names for a sentence.
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// peerRef is a peer as the document and as the speaker has it; either may be nil.
type peerRef struct {
	vrf, name string
	config    *config.Peer
	status    *site.PeerStatus
}

// findPeer finds a peer by name or address, in a VRF or, with "", wherever it is alone.
func findPeer(snap *site.Snapshot, gw *config.Gateway, vrf, name string) (peerRef, error) {
	if name == "" {
		return peerRef{}, status.Error(codes.InvalidArgument, "which peer? Give its name or address")
	}
	refs := map[[2]string]*peerRef{}
	var known []string
	at := func(vrf, name string) *peerRef {
		k := [2]string{vrf, name}
		if refs[k] == nil {
			refs[k] = &peerRef{vrf: vrf, name: name}
		}
		return refs[k]
	}
	addr, _ := netip.ParseAddr(name)
	for _, v := range gw.VRFs {
		for i, p := range v.Peers {
			own := peerName(p)
			known = append(known, v.VRF+"/"+own)
			if (vrf == "" || v.VRF == vrf) && (own == name || addr.IsValid() && p.Address == addr) {
				at(v.VRF, own).config = &v.Peers[i]
			}
		}
	}
	for i, p := range snap.Peers {
		if (vrf == "" || p.VRF == vrf) && (p.Name == name || addr.IsValid() && p.Address == addr) {
			at(p.VRF, p.Name).status = &snap.Peers[i]
		}
	}
	switch len(refs) {
	case 0:
		return peerRef{}, status.Errorf(codes.NotFound, "no peer %q%s at this gateway; the document has %s", name, inVRF(vrf), list(known))
	case 1:
		for _, r := range refs {
			return *r, nil
		}
	}
	var found []string
	for k := range refs {
		found = append(found, k[0]+"/"+k[1])
	}
	slices.Sort(found)
	return peerRef{}, status.Errorf(codes.InvalidArgument, "which peer? %q fits %s; give the name, and the VRF with --vrf", name, list(found))
}

// peerName is the name a peer goes by.
func peerName(p config.Peer) string {
	if p.Name != "" {
		return p.Name
	}
	return p.Address.String()
}

// prefixRef is a prefix as the document and as the site has it; either may be nil.
type prefixRef struct {
	vrf    string
	config *config.Prefix
	status *site.PrefixStatus
}

// findPrefix finds an originated prefix, in a VRF or, with "", in the only one that has it.
func findPrefix(snap *site.Snapshot, gw *config.Gateway, vrf string, p netip.Prefix) (prefixRef, error) {
	refs := map[string]*prefixRef{}
	at := func(vrf string) *prefixRef {
		if refs[vrf] == nil {
			refs[vrf] = &prefixRef{vrf: vrf}
		}
		return refs[vrf]
	}
	for _, v := range gw.VRFs {
		for i, c := range v.Prefixes {
			if (vrf == "" || v.VRF == vrf) && c.Prefix == p {
				at(v.VRF).config = &v.Prefixes[i]
			}
		}
	}
	for i, st := range snap.Prefixes {
		if (vrf == "" || st.VRF == vrf) && st.Prefix == p {
			at(st.VRF).status = &snap.Prefixes[i]
		}
	}
	switch len(refs) {
	case 0:
		return prefixRef{}, status.Errorf(codes.NotFound, "this gateway does not originate %s%s; see `fabricctl prefix list`", p, inVRF(vrf))
	case 1:
		for _, r := range refs {
			return *r, nil
		}
	}
	var found []string
	for v := range refs {
		found = append(found, v)
	}
	slices.Sort(found)
	return prefixRef{}, status.Errorf(codes.InvalidArgument, "which VRF? %s is in %s; name one with --vrf", p, list(found))
}

func inVRF(vrf string) string {
	if vrf == "" {
		return ""
	}
	return " in VRF " + vrf
}
