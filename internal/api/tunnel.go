package api

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// drainShown is how long after fabric-links has moved traffic its state may take to get here.
const drainShown = 10 * time.Second

// tunnel is a tunnel with the BFD session on it, nil where there is none.
type tunnel struct {
	links.TunnelState
	bfd *links.SessionState
}

// tunnels returns those of the snapshot that a name fits: the tunnel of that name or device, or all to that gateway; with "" all.
func tunnels(snap *site.Snapshot, name string) []tunnel {
	var out []tunnel
	for _, t := range snap.Tunnels {
		if name != "" && name != t.Name && name != t.Device && name != t.Remote {
			continue
		}
		one := tunnel{TunnelState: t}
		if i := slices.IndexFunc(snap.Sessions, func(s links.SessionState) bool { return s.Device == t.Device }); i >= 0 {
			one.bfd = &snap.Sessions[i]
		}
		out = append(out, one)
	}
	return out
}

// knownTunnels is tunnels, but a name that nothing fits is an error that says what there is.
func knownTunnels(snap *site.Snapshot, name string) ([]tunnel, error) {
	out := tunnels(snap, name)
	if len(out) == 0 && name != "" {
		return nil, status.Errorf(codes.NotFound, "no tunnel %q at this gateway; it has %s", name, tunnelNames(tunnels(snap, "")))
	}
	return out, nil
}

// tunnelNames writes tunnels for a sentence, with their devices.
func tunnelNames(ts []tunnel) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.Name + " (" + t.Device + ")"
	}
	return list(names)
}

// ListTunnels returns the tunnels to other gateways.
func (s *Service) ListTunnels(_ context.Context, req *fabricv1.ListTunnelsRequest) (*fabricv1.ListTunnelsResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	ts, err := knownTunnels(snap, req.GetName())
	if err != nil {
		return nil, err
	}
	return &fabricv1.ListTunnelsResponse{Tunnels: convert(ts, tunnelStatus)}, nil
}

// WatchTunnels streams the tunnels and their changes.
func (s *Service) WatchTunnels(req *fabricv1.WatchTunnelsRequest, stream fabricv1.FabricService_WatchTunnelsServer) error {
	check := func(snap *site.Snapshot) error {
		_, err := knownTunnels(snap, req.GetName())
		return err
	}
	return follow(stream.Context(), s, check, changes[tunnel, string]{
		list: func(snap *site.Snapshot) []tunnel { return tunnels(snap, req.GetName()) },
		// Its device changes when its keys are replaced.
		key:  func(t tunnel) string { return t.Name },
		same: tunnel.sameBut,
		send: func(kind fabricv1.EventKind, t tunnel) error {
			return stream.Send(&fabricv1.WatchTunnelsResponse{Kind: kind, Tunnel: tunnelStatus(t)})
		},
	})
}

// sameBut says whether two are the same but for what counts up by itself: transfer, handshakes, packets and echoes.
func (t tunnel) sameBut(u tunnel) bool {
	u.RxBytes, u.TxBytes, u.LastHandshake, u.Path = t.RxBytes, t.TxBytes, t.LastHandshake, t.Path
	if t.TunnelState != u.TunnelState || (t.bfd == nil) != (u.bfd == nil) {
		return false
	}
	if t.bfd == nil {
		return true
	}
	a, b := *t.bfd, *u.bfd
	return a.State == b.State && a.Reason == b.Reason && a.Since.Equal(b.Since) && a.RemoteState == b.RemoteState &&
		a.RemoteDiag == b.RemoteDiag && a.RemoteAdminDown == b.RemoteAdminDown && a.TxInterval == b.TxInterval &&
		a.Detection == b.Detection && a.Problem == b.Problem
}

// DrainTunnel takes traffic off a tunnel.
func (s *Service) DrainTunnel(ctx context.Context, req *fabricv1.DrainTunnelRequest) (*fabricv1.DrainTunnelResponse, error) {
	res, err := s.drainTunnel(ctx, req.GetName(), true, req.GetForce())
	return &fabricv1.DrainTunnelResponse{Result: res}, err
}

// UndrainTunnel lets traffic use it again.
func (s *Service) UndrainTunnel(ctx context.Context, req *fabricv1.UndrainTunnelRequest) (*fabricv1.UndrainTunnelResponse, error) {
	res, err := s.drainTunnel(ctx, req.GetName(), false, false)
	return &fabricv1.UndrainTunnelResponse{Result: res}, err
}

func (s *Service) drainTunnel(ctx context.Context, name string, drained, force bool) (*fabricv1.TunnelChange, error) {
	about := "tunnel undrain " + name
	if drained {
		about = "tunnel drain " + name
	}
	// Two at once could each find the other's tunnel up, and leave none.
	s.drain.Lock()
	defer s.drain.Unlock()
	t, err := s.oneTunnel(name)
	if err == nil && drained && !force {
		err = s.spare(t)
	}
	if err == nil {
		err = toStatusOr(codes.FailedPrecondition, s.gateway.DrainTunnel(ctx, t.Device, drained), about)
	}
	if err != nil {
		s.log.WarnContext(ctx, "change refused", "change", about, "who", Caller(ctx), "err", err)
		return nil, err
	}
	s.log.InfoContext(ctx, "change made", "change", about, "tunnel", t.Name, "device", t.Device, "who", Caller(ctx))
	return s.drainResult(ctx, t, drained)
}

// oneTunnel finds the one tunnel that a name fits.
func (s *Service) oneTunnel(name string) (tunnel, error) {
	if name == "" {
		return tunnel{}, status.Error(codes.InvalidArgument, "which tunnel? Give its name or device")
	}
	snap, err := s.snapshot()
	if err != nil {
		return tunnel{}, err
	}
	ts, err := knownTunnels(snap, name)
	if err != nil {
		return tunnel{}, err
	}
	if len(ts) > 1 {
		return tunnel{}, status.Errorf(codes.InvalidArgument, "which tunnel? %q fits %s; give the name or the device of one", name, tunnelNames(ts))
	}
	return ts[0], nil
}

// spare refuses to drain a tunnel when its traffic has nowhere to go.
func (s *Service) spare(t tunnel) error {
	// A tunnel that is not up carries traffic while its route is kept, e.g. after a restart of fabric-links.
	if t.State != links.Up && !t.Active || t.Drained {
		return nil
	}
	snap, err := s.snapshot()
	if err != nil {
		return err
	}
	for _, other := range snap.Tunnels {
		if other.Remote == t.Remote && other.Name != t.Name && other.State == links.Up && !other.Drained {
			return nil
		}
	}
	return status.Errorf(codes.FailedPrecondition,
		"tunnel %s is the only one to %s that is up and not drained: traffic would stay on it; with --force it is drained all the same, and traffic moves once another is up", t.Name, t.Remote)
}

// drainResult waits until a snapshot shows what fabric-links has done.
func (s *Service) drainResult(ctx context.Context, t tunnel, drained bool) (*fabricv1.TunnelChange, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, drainShown, status.Errorf(codes.Unavailable,
		"fabric-links has taken the change of tunnel %s, but has not told its state for %s since; see `fabricctl tunnel list`", t.Name, drainShown))
	defer cancel()
	changed, end := s.gateway.Changed()
	defer end()
	for {
		snap, err := s.snapshot()
		if err != nil {
			return nil, err
		}
		// By its name: while its keys are replaced its device may change with the drain.
		now := tunnels(snap, t.Name)
		if len(now) == 0 {
			return nil, status.Errorf(codes.Aborted, "tunnel %s has gone in the meantime", t.Name)
		}
		if now[0].Drained == drained {
			out := &fabricv1.TunnelChange{Tunnel: tunnelStatus(now[0])}
			for _, other := range snap.Tunnels {
				if other.Remote == t.Remote && other.Active {
					out.Active, out.ActiveDevice = other.Name, other.Device
					break
				}
			}
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if cause := context.Cause(ctx); cause != ctx.Err() {
				return nil, cause
			}
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// ListBfdSessions returns the BFD sessions.
func (s *Service) ListBfdSessions(_ context.Context, req *fabricv1.ListBfdSessionsRequest) (*fabricv1.ListBfdSessionsResponse, error) {
	snap, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	vrf, name := req.GetVrf(), req.GetName()
	if err := knownVRF(snap, vrf); err != nil {
		return nil, err
	}
	out := &fabricv1.ListBfdSessionsResponse{}
	var known []string
	for _, b := range snap.Sessions {
		if vrf != "" && vrf != b.VRF {
			continue
		}
		known = append(known, b.Name)
		// A session on the device of later keys has the tunnel's name with a number more (overlay.Slot).
		later := b.Device != "" && strings.HasPrefix(b.Name, name+".")
		if name == "" || name == b.Name || later || name == b.Device || name == b.Peer {
			out.Sessions = append(out.Sessions, bfdSession(&b))
		}
	}
	if name != "" && len(out.GetSessions()) == 0 {
		return nil, status.Errorf(codes.NotFound, "no BFD session %q%s at this gateway; it has %s", name, inVRF(vrf), list(known))
	}
	return out, nil
}
