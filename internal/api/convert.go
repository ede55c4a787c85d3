package api

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fabric/internal/config"
	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

func convert[A, B any](in []A, fn func(A) *B) []*B {
	out := make([]*B, len(in))
	for i, a := range in {
		out[i] = fn(a)
	}
	return out
}

// text writes an address, a prefix or the like, and "" for its zero value.
func text[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// stamp is nil for the zero time, so that an absent time is absent in JSON, too.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func span(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// count keeps a number that cannot be negative from turning into a huge one if it is.
func count(n int) uint32 {
	return uint32(max(n, 0))
}

func siteStatus(s site.SiteStatus) *fabricv1.SiteStatus {
	return &fabricv1.SiteStatus{
		Fabric: s.Fabric, Site: s.Site, Gateway: s.Gateway, Asn: s.ASN, Vtep: text(s.VTEP), RouterId: text(s.RouterID),
		Version: s.Version, Started: stamp(s.Started), Generation: s.Generation, Applied: s.Applied, Ready: s.Ready,
		Drained: s.Drained, LinksConnected: s.LinksConnected, LinksError: s.LinksErr, Backend: s.Backend, Problems: s.Problems,
	}
}

func vrfStatus(v site.VRFStatus) *fabricv1.Vrf {
	return &fabricv1.Vrf{
		Name: v.Name, Table: v.Table, Vni: v.VNI, Device: v.Device, Vxlan: v.VXLAN, Interfaces: v.Interfaces, ImportRt: v.ImportRT,
		ExportRt: v.ExportRT, Routes: count(v.Routes), Kernel: count(v.Kernel), InSync: v.InSync, Error: v.Err,
	}
}

func peerStatus(p site.PeerStatus) *fabricv1.Peer {
	return &fabricv1.Peer{
		Vrf: p.VRF, Name: p.Name, Address: text(p.Address), Asn: p.ASN, LocalAsn: p.LocalASN, Fabric: p.Fabric, State: p.State,
		Since: stamp(p.Since), Disabled: p.Disabled, Frozen: p.Frozen, Received: count(p.Received), Admitted: count(p.Admitted),
		Rejected: count(p.Rejected), Advertised: count(p.Advertised), MaxPrefix: count(p.MaxPrefix), Families: p.Families,
		Restarting: p.Restarting, LastError: p.LastError, Hold: span(p.Hold), Keepalive: span(p.Keepalive), Flaps: count(p.Flaps), Bfd: p.BFD,
	}
}

func prefixStatus(p site.PrefixStatus) *fabricv1.Prefix {
	return &fabricv1.Prefix{
		Vrf: p.VRF, Prefix: text(p.Prefix), NextHop: text(p.NextHop), Source: p.Source, Announced: p.Announced, Shared: p.Shared, Error: p.Err,
	}
}

func routeStatus(r site.RouteStatus) *fabricv1.Route {
	return &fabricv1.Route{
		Vrf: r.VRF, Prefix: text(r.Prefix), NextHop: text(r.NextHop), Via: r.Via, Source: r.Source, From: r.From, AsPath: r.ASPath,
		Communities: r.Communities, LocalPref: r.LocalPref, Med: r.MED, Vni: r.VNI, Reason: r.Reason, RunnerUp: r.RunnerUp, NextHops: r.NextHops,
		Stale: r.Stale, Kernel: r.Kernel, Cloud: r.Cloud,
	}
}

func explanation(e site.Explanation) *fabricv1.ExplainRouteResponse {
	one := func(c site.Candidate) *fabricv1.Candidate {
		return &fabricv1.Candidate{Route: routeStatus(c.Route), Best: c.Best, Equal: c.Equal, Why: c.Why}
	}
	return &fabricv1.ExplainRouteResponse{
		Vrf: e.VRF, Prefix: text(e.Prefix), Matched: text(e.Matched), Candidates: convert(e.Candidates, one),
		Rejected: convert(e.Rejected, one), Lines: e.Lines,
	}
}

func tunnelStatus(t tunnel) *fabricv1.Tunnel {
	var loss *float64
	if share, known := t.Path.Loss(); known {
		loss = proto.Float64(math.Round(share*10000) / 100)
	}
	out := &fabricv1.Tunnel{
		Remote: t.Remote, Name: t.Name, Device: t.Device, Rank: proto.Uint32(count(t.Rank)), Kind: t.Kind, Implementation: t.Implementation,
		State: t.State, Reason: t.Reason, Since: stamp(t.Since), Active: t.Active, Endpoint: text(t.Endpoint),
		ListenPort: count(t.ListenPort), LastHandshake: stamp(t.LastHandshake), RxBytes: &t.RxBytes, TxBytes: &t.TxBytes,
		Mtu: count(t.MTU), Error: t.Err, Drained: t.Drained, Bfd: bfdSession(t.bfd),
		Encryption: t.Encryption(),
		Rtt:        span(t.Path.RTT), MinRtt: span(t.Path.MinRTT), LossPercent: loss,
		KeyMade: stamp(t.KeyMade), KeyRotation: t.Rotation,
	}
	if t.Kind == keyedKind {
		out.KeyGeneration = proto.Uint32(count(t.KeyGeneration))
	}
	return out
}

// bfdSession is nil for nil.
func bfdSession(s *links.SessionState) *fabricv1.BfdSession {
	if s == nil {
		return nil
	}
	return &fabricv1.BfdSession{
		Name: s.Name, Device: s.Device, Vrf: s.VRF, Peer: s.Peer, Interface: s.Interface, Local: text(s.Local), Remote: text(s.Remote),
		Multihop: s.Multihop, State: s.State, Reason: s.Reason, Since: stamp(s.Since), RemoteState: s.RemoteState, RemoteDiag: s.RemoteDiag,
		RemoteAdminDown: s.RemoteAdminDown, TxInterval: span(s.TxInterval), Detection: span(s.Detection), Received: &s.Received,
		Sent: &s.Sent, Ups: &s.Ups, Downs: &s.Downs, Dropped: s.Dropped, Problem: s.Problem,
	}
}

func cloudStatus(c site.CloudStatus) *fabricv1.Cloud {
	return &fabricv1.Cloud{
		Provider: c.Provider, Region: c.Region, Vpc: c.VPC, Table: c.Table, Instance: c.Instance, Desired: count(c.Desired),
		Owned: count(c.Owned), Foreign: count(c.Foreign), Quota: count(c.Quota), Plan: c.Plan, LastSync: stamp(c.LastSync),
		InSync: c.InSync, Error: c.Err,
		Entries: convert(c.Entries, func(e site.CloudEntry) *fabricv1.CloudEntry {
			return &fabricv1.CloudEntry{Prefix: text(e.Prefix), NextHop: e.NextHop, State: e.State, Error: e.Err}
		}),
	}
}

func generation(g config.Generation) *fabricv1.Generation {
	return &fabricv1.Generation{
		Number: g.Number, Time: stamp(g.Time), Kind: g.Kind, Who: g.Who, What: g.What, FileHash: g.FileHash, Mutations: count(len(g.Mutations)),
	}
}

func peerConfig(p config.Peer) *fabricv1.PeerConfig {
	return &fabricv1.PeerConfig{
		Name: peerName(p), Address: text(p.Address), Asn: p.ASN, LocalAsn: p.LocalASN, Interface: p.Interface,
		UpdateSource: text(p.UpdateSource), Families: p.Families, Passive: p.Passive, Multihop: count(p.Multihop),
		TtlSecurity: count(p.TTLSecurity), PasswordFile: p.PasswordFile, Port: count(p.Port), Keepalive: span(time.Duration(p.Keepalive)),
		Hold: span(time.Duration(p.Hold)), Import: p.Import, Export: p.Export, NextHop: text(p.NextHop), AsOverride: p.ASOverride,
		AllowOwnAs: count(p.AllowOwnAS), MaxPrefix: count(p.MaxPrefix), Disabled: p.Disabled, Bfd: peerBFD(p.BFD),
		ExtendedNextHop: p.ExtendedNextHop,
	}
}

// peerBFD is nil for nil.
func peerBFD(b *config.PeerBFD) *fabricv1.PeerBfdConfig {
	if b == nil {
		return nil
	}
	return &fabricv1.PeerBfdConfig{
		Interval: span(time.Duration(b.Interval)), Multiplier: count(b.Multiplier), Auth: b.Auth, KeyId: count(b.KeyID), KeyFile: b.KeyFile,
	}
}

func prefixConfig(p config.Prefix) *fabricv1.PrefixConfig {
	return &fabricv1.PrefixConfig{
		Prefix: text(p.Prefix), NextHop: text(p.NextHop), Interface: p.Interface, Shared: p.Shared,
		Local: !p.Announced(), Communities: p.Communities,
	}
}

// asker gathers what is wrong with a request, so that all of it is told at once.
type asker struct {
	problems []*fabricv1.Problem
}

func (a *asker) wrong(path, mend, format string, args ...any) {
	a.problems = append(a.problems, &fabricv1.Problem{Path: path, Message: fmt.Sprintf(format, args...), Mend: mend})
}

func (a *asker) address(path, s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		a.wrong(path, "write it like 172.20.0.1 or fd00:20::1", "%q is not an IP address", s)
	}
	return addr
}

func (a *asker) port(path string, n uint32) int {
	if n > 65535 {
		a.wrong(path, "use 1 to 65535, or 0 for the default", "%d is not a TCP port", n)
		return 0
	}
	return int(n)
}

// number bounds a small count; the document's own limits are checked with the document.
func (a *asker) number(path string, n uint32) int {
	if n > 1<<31-1 {
		a.wrong(path, "use a smaller number", "%d is too large", n)
		return 0
	}
	return int(n)
}

func (a *asker) err() error {
	if len(a.problems) == 0 {
		return nil
	}
	return invalid(a.problems)
}

// wantedPeer reads a peer to be added.
func wantedPeer(in *fabricv1.PeerConfig) (*config.Peer, error) {
	var a asker
	if in.GetAddress() == "" {
		a.wrong("peer.address", "give the neighbour's address", "is missing")
	}
	if in.GetAsn() == 0 {
		a.wrong("peer.asn", "give the neighbour's AS number", "is missing")
	}
	p := &config.Peer{
		Name: in.GetName(), Address: a.address("peer.address", in.GetAddress()), ASN: in.GetAsn(), LocalASN: in.GetLocalAsn(),
		Interface: in.GetInterface(), UpdateSource: a.address("peer.update-source", in.GetUpdateSource()), Families: in.GetFamilies(),
		Passive: in.GetPassive(), Multihop: a.number("peer.multihop", in.GetMultihop()), TTLSecurity: a.number("peer.ttl-security", in.GetTtlSecurity()),
		PasswordFile: in.GetPasswordFile(), Port: a.port("peer.port", in.GetPort()), Keepalive: config.Duration(in.GetKeepalive().AsDuration()),
		Hold: config.Duration(in.GetHold().AsDuration()), Import: in.GetImport(), Export: in.GetExport(),
		NextHop: a.address("peer.next-hop", in.GetNextHop()), ASOverride: in.GetAsOverride(), AllowOwnAS: a.number("peer.allow-own-as", in.GetAllowOwnAs()),
		MaxPrefix: a.number("peer.max-prefix", in.GetMaxPrefix()), Disabled: in.GetDisabled(),
		ExtendedNextHop: in.GetExtendedNextHop(),
	}
	if b := in.GetBfd(); b != nil {
		p.BFD = &config.PeerBFD{
			BFD:  config.BFD{Interval: config.Duration(b.GetInterval().AsDuration()), Multiplier: a.number("peer.bfd.multiplier", b.GetMultiplier())},
			Auth: b.GetAuth(), KeyID: a.number("peer.bfd.key-id", b.GetKeyId()), KeyFile: b.GetKeyFile(),
		}
	}
	if err := a.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// wantedPrefix reads a prefix to be originated.
func wantedPrefix(in *fabricv1.PrefixConfig) (*config.Prefix, error) {
	prefix, err := parsePrefix(in.GetPrefix())
	if err != nil {
		return nil, err
	}
	var a asker
	p := &config.Prefix{
		Prefix: prefix, NextHop: a.address("prefix.next-hop", in.GetNextHop()), Interface: in.GetInterface(), Shared: in.GetShared(),
		Communities: in.GetCommunities(),
	}
	if in.GetLocal() {
		p.Announce = new(bool)
	}
	if err := a.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// invalid is an INVALID_ARGUMENT status with all problems in words and as a detail.
func invalid(problems []*fabricv1.Problem) error {
	msg := ""
	for i, p := range problems {
		if i > 0 {
			msg += "\n"
		}
		msg += ProblemText(p)
	}
	st := status.New(codes.InvalidArgument, msg)
	if with, err := st.WithDetails(&fabricv1.Problems{Problems: problems}); err == nil {
		st = with
	}
	return st.Err()
}

// ProblemText writes a problem in one line: FILE:LINE:COLUMN: PATH: MESSAGE; MEND.
func ProblemText(p *fabricv1.Problem) string {
	s := ""
	if p.GetFile() != "" {
		s = p.GetFile() + ":"
		if p.GetLine() > 0 {
			s += strconv.Itoa(int(p.GetLine())) + ":" + strconv.Itoa(int(p.GetColumn())) + ":"
		}
		s += " "
	}
	if p.GetPath() != "" {
		s += p.GetPath() + ": "
	}
	s += p.GetMessage()
	if p.GetMend() != "" {
		s += "; " + p.GetMend()
	}
	return s
}

// toStatus turns an error of the store or the site into a status. What it is about goes in front, unless the error
// says it itself.
func toStatus(err error, about string) error {
	return toStatusOr(codes.Internal, err, about)
}

// toStatusOr does the same with another code for errors of no known kind.
func toStatusOr(code codes.Code, err error, about string) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		return invalid(convert(problems, func(p config.Problem) *fabricv1.Problem {
			return &fabricv1.Problem{File: p.File, Line: count(p.Line), Column: count(p.Column), Path: p.Path, Message: p.Message, Mend: p.Mend}
		}))
	}
	msg := err.Error()
	if !strings.HasPrefix(msg, about) {
		msg = about + ": " + msg
	}
	switch {
	case errors.Is(err, config.ErrStale):
		code, msg = codes.Aborted, msg+"; see `fabricctl config history` and try again"
	case errors.Is(err, syscall.ENOSPC):
		code, msg = codes.ResourceExhausted, msg+"; nothing was changed, make room and try again"
	case errors.Is(err, site.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		code = codes.NotFound
	case errors.Is(err, fs.ErrExist):
		code = codes.AlreadyExists
	}
	return status.Error(code, msg)
}
