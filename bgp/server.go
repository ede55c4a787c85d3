package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/config/oc"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	gobgpserver "github.com/osrg/gobgp/v4/pkg/server"

	"fabric/bgp/rib"
	"fabric/internal/config"
)

const (
	// chunk is the number of paths handed to GoBGP at once: it holds its lock meanwhile.
	chunk = 256
	// retryAfter is how long after a failure a server's start or a peer's password file is tried again.
	retryAfter = 3 * time.Second
	// deferralTime is how long a restarting speaker waits for all neighbours' End-of-RIB before it announces (RFC 4724
	// section 4.1), or the restart time if that is less. GoBGP's default of 360 s would let one dead peer hold up all others.
	deferralTime = 30 * time.Second
	// idleAfterReset is how long a session rests after a reset; GoBGP's default is 30 s.
	idleAfterReset = 2 * time.Second
	// ownASInPath turns GoBGP's own AS_PATH loop check off: it drops a looping path without a word, so that the
	// neighbour's previous path would stay with us. Ours (policy.OwnAS) is in Peer.Import.
	ownASInPath = 255
)

// starting is held while a server of any Speaker starts, since GoBGP writes package variables then.
var starting sync.Mutex

// server is one GoBGP server and its neighbours. Run owns it.
type server struct {
	want   Server
	config *Config
	live   *liveness
	log    *slog.Logger
	inbox  *inbox

	gobgp *gobgpserver.BgpServer // nil while not running
	stop  context.CancelFunc     // ends its watcher
	// device is the index of the device that the listeners are bound to.
	device int
	err    error // why not running
	retry  time.Time

	neighbours map[string]*neighbour
	byAddress  map[netip.Addr]*neighbour
	// origins are the targets of the fabric's server, by VRF.
	origins map[string]*target
	numbers uint32
}

func newServer(want Server, cfg *Config, live *liveness, wake chan<- struct{}) *server {
	name := want.VRF
	if name == "" {
		name = "(fabric)"
	}
	return &server{
		want: want, config: cfg, live: live, log: cfg.Log.With("vrf", name), inbox: newInbox(wake),
		neighbours: map[string]*neighbour{}, byAddress: map[netip.Addr]*neighbour{}, origins: map[string]*target{},
	}
}

// sameSpeaker says whether a running server can become the wanted one in place; listeners, ASN and router id cannot.
func sameSpeaker(a, b *Server) bool {
	return a.ASN == b.ASN && a.RouterID == b.RouterID && a.Port == b.Port && a.BindDevice == b.BindDevice && slices.Equal(a.Listen, b.Listen)
}

// deviceIndex is the index of a device, 0 when there is none or the kernel does not say.
func deviceIndex(name string) int {
	if name == "" {
		return 0
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return i.Index
}

// stranded says whether the listeners are bound to a device that has since been made anew, as a VRF device is when its
// table changes: a socket stays with the dead one's index though the name is the same. The intent does not tell, since the
// device is made after the new intent got here; only the index does. While there is no device there is nothing to bind to.
func (s *server) stranded() bool {
	if s.gobgp == nil || s.want.BindDevice == "" {
		return false
	}
	now := deviceIndex(s.want.BindDevice)
	return now != 0 && now != s.device
}

// start brings the GoBGP server up.
func (s *server) start(ctx context.Context) {
	g := gobgpserver.NewBgpServer(gobgpserver.LoggerOption(s.log, nil))
	go g.Serve() // GoBGP's own loop; ends with StopBgp
	if s.err = s.boot(ctx, g); s.err != nil {
		s.log.Error("BGP server does not start; trying again", "err", s.err)
		s.retry = time.Now().Add(retryAfter)
		g.Stop() // closes what it did open
		return
	}
	s.gobgp, s.retry = g, time.Time{}
}

func (s *server) boot(ctx context.Context, g *gobgpserver.BgpServer) error {
	global := &api.Global{
		Asn: s.want.ASN, RouterId: s.want.RouterID.String(), ListenPort: int32(s.want.Port), BindToDevice: s.want.BindDevice,
	}
	global.Families = s.tables()
	for _, a := range s.want.Listen {
		global.ListenAddresses = append(global.ListenAddresses, a.String())
	}
	s.device = deviceIndex(s.want.BindDevice) // before: one that changes meanwhile shall be noticed
	starting.Lock()
	err := g.StartBgp(ctx, &api.StartBgpRequest{Global: global})
	starting.Unlock()
	if err != nil {
		return fmt.Errorf("bgp: VRF %q: cannot listen on %v port %d: %w; see which process has the port, and whether the addresses exist",
			s.want.VRF, s.want.Listen, s.want.Port, err)
	}
	// Nothing a neighbour sends gets into the Loc-RIB: see the package's comment.
	local := &api.Policy{Name: "local", Statements: []*api.Statement{{
		Name:       "local",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := g.AddPolicy(ctx, &api.AddPolicyRequest{Policy: local}); err != nil {
		return fmt.Errorf("bgp: VRF %q: import policy: %w", s.want.VRF, err)
	}
	err = g.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT,
		Policies: []*api.Policy{local}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
	if err != nil {
		return fmt.Errorf("bgp: VRF %q: import policy: %w", s.want.VRF, err)
	}
	// One watcher for all kinds of events, since only within one is their order kept.
	watch, stop := context.WithCancel(ctx)
	err = g.WatchEvent(watch, gobgpserver.WatchEventMessageCallbacks{
		OnPathUpdate: func(ps []*apiutil.Path, _ time.Time) { s.inbox.paths(ps) },
		OnPathEor:    func(p *apiutil.Path, _ time.Time) { s.inbox.eor(p) },
		OnPeerUpdate: func(ev *apiutil.WatchEventMessage_PeerEvent, _ time.Time) { s.inbox.peer(ev) },
	}, gobgpserver.WatchUpdate(false, "", ""), gobgpserver.WatchAdjInWithdraw(), gobgpserver.WatchEor(false), gobgpserver.WatchPeer())
	if err != nil {
		stop()
		return fmt.Errorf("bgp: VRF %q: watch: %w", s.want.VRF, err)
	}
	s.stop = stop
	return nil
}

// tables are the families that the server keeps tables of, in GoBGP's numbers. Each costs 0.4 MiB while it is empty, and GoBGP v4.8.0
// makes one for each of its 24 families otherwise. A peer of a VRF has its own GoBGP VRF, and its paths are in the VPN families only;
// DeleteVrf needs the table of route targets.
func (s *server) tables() []uint32 {
	types := []oc.AfiSafiType{oc.AFI_SAFI_TYPE_L2VPN_EVPN}
	if s.want.VRF != "" {
		types = []oc.AfiSafiType{oc.AFI_SAFI_TYPE_L3VPN_IPV4_UNICAST, oc.AFI_SAFI_TYPE_L3VPN_IPV6_UNICAST, oc.AFI_SAFI_TYPE_RTC}
	}
	var out []uint32
	for _, t := range types {
		out = append(out, uint32(t.ToInt()))
	}
	return out
}

// halt takes the server down with a CEASE to each neighbour. Everything its neighbours told goes.
func (s *server) halt() {
	for _, n := range s.neighbours {
		s.config.RIB.WithdrawSource(n.source)
	}
	if s.gobgp == nil {
		return
	}
	s.stop()
	s.gobgp.Stop()
	s.gobgp = nil
}

// peers brings the neighbours in line with what is wanted. resync puts all choices to a new or changed target; restarting
// says that this is the first time, after a warm start.
func (s *server) peers(ctx context.Context, imports []Import, restarting bool, resync func(*target)) {
	wanted := map[string]*Peer{}
	for i := range s.want.Peers {
		wanted[s.want.Peers[i].Name] = &s.want.Peers[i]
	}
	for name, n := range s.neighbours {
		p, ok := wanted[name]
		if !ok || p.neighbour() != n.peer.neighbour() {
			s.remove(ctx, n)
		}
	}
	for i := range s.want.Peers {
		p := s.want.Peers[i]
		n := s.neighbours[p.Name]
		isNew := n == nil
		if isNew {
			s.numbers++
			n = newNeighbour(p, s.numbers, s.log)
			n.floor = cmp.Or(s.config.fuseFloor, fuseFloor)
			if n.warm = restarting; n.warm {
				n.deadline = time.Now().Add(p.RestartTime)
			}
			s.neighbours[p.Name], s.byAddress[p.neighbour()] = n, n
		}
		old := n.peer
		allowed := slices.EqualFunc(n.imports, imports, func(a, b Import) bool {
			return a.VRF == b.VRF && a.AllowDefault == b.AllowDefault && slices.Equal(a.RTs, b.RTs)
		})
		n.peer, n.imports = p, imports
		if s.want.VRF != "" && (isNew || announcesOtherwise(&old, &p)) {
			t := announce(p, n.number, s.internal)
			if n.target != nil {
				t.sent, t.counts = n.target.sent, n.target.counts
			}
			n.target = t
			// Before the session: the first table that the peer hears shall be complete.
			resync(t)
		}
		s.session(ctx, n, &old)
		if !isNew && n.added && (judgesOtherwise(&old, &p) || s.want.VRF == "" && !allowed) {
			s.rejudge(n)
		}
	}
}

// internal says whether a source is an iBGP neighbour of this server.
func (s *server) internal(src rib.Source) bool {
	n := s.neighbours[src.Name]
	return n != nil && n.source == src && n.peer.internal()
}

func announcesOtherwise(a, b *Peer) bool {
	return !a.Export.Equal(b.Export) || a.NextHop4 != b.NextHop4 || a.NextHop6 != b.NextHop6 || a.ASOverride != b.ASOverride ||
		a.ASN != b.ASN || a.LocalASN != b.LocalASN || !slices.Equal(a.Families, b.Families)
}

func judgesOtherwise(a, b *Peer) bool {
	return !a.Import.Equal(b.Import) || a.ExtendedNextHop != b.ExtendedNextHop || a.MaxPrefix != b.MaxPrefix || a.Interface != b.Interface || a.Multihop != b.Multihop ||
		!slices.Equal(a.Own, b.Own) || !slices.Equal(a.Networks, b.Networks)
}

// needsSession says whether a change needs a new session.
func needsSession(a, b *Peer) bool {
	return a.ASN != b.ASN || a.LocalASN != b.LocalASN || a.LocalAddress != b.LocalAddress || a.BindDevice != b.BindDevice ||
		!slices.Equal(a.Families, b.Families) || a.Passive != b.Passive || a.Multihop != b.Multihop || a.TTLSecurity != b.TTLSecurity ||
		a.Port != b.Port || a.RestartTime != b.RestartTime
}

func newTimers(a, b *Peer) bool {
	return a.Keepalive != b.Keepalive || a.Hold != b.Hold || a.ConnectRetry != b.ConnectRetry || a.MaxPrefix != b.MaxPrefix
}

// session brings GoBGP's neighbour in line. Timers are updated in place between sessions, as they only matter to the next
// one and GoBGP forgets what graceful restart was negotiated when a running one is updated.
func (s *server) session(ctx context.Context, n *neighbour, old *Peer) {
	s.heed(n)
	if s.gobgp == nil {
		return
	}
	// A peer that runs already does not go because BFD is new to it and not yet Up.
	if n.peer.Disabled || n.blown || n.verdict.phase != alive && !(n.verdict.phase == waits && n.added) {
		if n.added {
			s.detach(ctx, n)
		}
		n.problem = ""
		return
	}
	password := ""
	if n.peer.PasswordFile != "" {
		var err error
		if password, err = readKey(n.peer.PasswordFile); err != nil {
			n.fail("its password file cannot be used", err)
			if n.added {
				s.detach(ctx, n)
			}
			return
		}
	}
	switch {
	case !n.added:
	case needsSession(old, &n.peer) || password != n.password:
		s.detach(ctx, n)
		if n.verdict.phase != alive {
			return
		}
	default:
		if newTimers(old, &n.peer) {
			n.pending = true
			s.timers(ctx, n)
		}
		return
	}
	n.password = password
	s.attach(ctx, n)
}

// readKey reads a TCP MD5 key. The line end that editors and echo put behind it is not part of it; an empty one would mean a
// session without a key.
func readKey(file string) (string, error) {
	b, err := config.ReadSecretFile(file)
	if err != nil {
		return "", err
	}
	key := strings.TrimRight(string(b), "\r\n")
	if key == "" {
		return "", fmt.Errorf("secret file %s holds no key; write the neighbour's into it, or take password-file from the peer", file)
	}
	return key, nil
}

// attach adds the neighbour to GoBGP.
func (s *server) attach(ctx context.Context, n *neighbour) {
	if n.target != nil {
		if err := s.addVRF(ctx, n); err != nil {
			n.fail("GoBGP refuses a table for it", err)
			return
		}
	}
	if err := s.gobgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.describe(n)}); err != nil {
		n.fail("GoBGP refuses it", err)
		return
	}
	n.added, n.problem = true, ""
}

func (s *server) addVRF(ctx context.Context, n *neighbour) error {
	rd := &api.RouteDistinguisher{Rd: &api.RouteDistinguisher_TwoOctetAsn{TwoOctetAsn: &api.RouteDistinguisherTwoOctetASN{Assigned: n.number}}}
	rt := []*api.RouteTarget{{Rt: &api.RouteTarget_TwoOctetAsSpecific{TwoOctetAsSpecific: &api.TwoOctetAsSpecificExtended{
		IsTransitive: true, SubType: uint32(gobgp.EC_SUBTYPE_ROUTE_TARGET), LocalAdmin: n.number,
	}}}}
	if n.hasVRF {
		return nil
	}
	err := s.gobgp.AddVrf(ctx, &api.AddVrfRequest{Vrf: &api.Vrf{Name: vrfName(n.number), Rd: rd, ImportRt: rt, ExportRt: rt, Id: n.number}})
	n.hasVRF = err == nil
	return err
}

func vrfName(number uint32) string { return fmt.Sprintf("peer-%d", number) }

// detach takes the neighbour out of GoBGP; all that it told goes. What it is told stays, for when it comes back.
func (s *server) detach(ctx context.Context, n *neighbour) {
	address := n.peer.neighbour()
	if n.password != "" {
		// GoBGP only takes the MD5 key off its listener when the neighbour is updated to have none.
		bare := *n
		bare.password, bare.peer.Passive = "", true
		if _, err := s.gobgp.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.describe(&bare)}); err != nil {
			n.log.Warn("MD5 key may stay on the listener", "err", err)
		}
		n.password = ""
	}
	if err := s.gobgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()}); err != nil {
		n.log.Warn("peer cannot be deleted from GoBGP", "err", err)
	}
	if n.up() {
		n.flaps++
		n.since = time.Now()
	}
	n.added, n.warm, n.pending = false, false, false
	n.state, n.restarting, n.deadline = gobgp.BGP_FSM_IDLE, false, time.Time{}
	n.families, n.hold, n.keepalive = nil, 0, 0
	n.forgetAll()
	s.config.RIB.WithdrawSource(n.source)
}

// guard closes sessions whose fuse is blown; they stay closed until they are reset.
func (s *server) guard(ctx context.Context) {
	for _, n := range s.neighbours {
		if !n.added || !n.tooMany() {
			continue
		}
		limit := n.fuse()
		n.log.Error("too many prefixes: session closed to protect memory; reset the peer to try again", "prefixes", len(n.learned), "limit", limit)
		n.blown = true
		s.detach(ctx, n)
		n.lastError = fmt.Sprintf("more than %d prefixes: closed to protect memory; reset the peer to try again", limit)
	}
}

// remove forgets the neighbour altogether.
func (s *server) remove(ctx context.Context, n *neighbour) {
	if n.added {
		s.detach(ctx, n)
	}
	s.config.RIB.WithdrawSource(n.source)
	delete(s.neighbours, n.peer.Name)
	if s.byAddress[n.peer.neighbour()] == n {
		delete(s.byAddress, n.peer.neighbour())
	}
	if n.target == nil || s.gobgp == nil {
		return
	}
	var out outbox
	n.target.withdrawExcept(nil, &out)
	s.send(&out)
	if !n.hasVRF {
		return
	}
	if err := s.gobgp.DeleteVrf(ctx, &api.DeleteVrfRequest{Name: vrfName(n.number)}); err != nil {
		n.log.Warn("peer's table cannot be deleted from GoBGP", "err", err)
	}
}

// timers updates timers and prefix limit of a neighbour in place, if it has no session at the moment.
func (s *server) timers(ctx context.Context, n *neighbour) {
	if !n.pending || !n.added || n.up() {
		return
	}
	if _, err := s.gobgp.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.describe(n)}); err != nil {
		n.log.Warn("timers cannot be updated", "err", err)
	}
	n.pending = false
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }

// describe puts a neighbour into GoBGP's words.
func (s *server) describe(n *neighbour) *api.Peer {
	p := &n.peer
	out := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.neighbour().String(), PeerAsn: p.ASN, LocalAsn: p.LocalASN, AuthPassword: n.password,
			AllowOwnAsn: ownASInPath,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: seconds(p.ConnectRetry), HoldTime: seconds(p.Hold), KeepaliveInterval: seconds(p.Keepalive),
			IdleHoldTimeAfterReset: seconds(idleAfterReset),
		}},
		Transport: &api.Transport{PassiveMode: p.Passive, RemotePort: uint32(p.Port), BindInterface: p.BindDevice},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(min(seconds(p.RestartTime), 4095)), DeferralTime: uint32(seconds(min(deferralTime, p.RestartTime))),
			LocalRestarting: n.warm,
		},
	}
	if n.target != nil {
		out.Conf.Vrf = vrfName(n.number)
	}
	if p.LocalAddress.IsValid() {
		out.Transport.LocalAddress = p.LocalAddress.String()
	}
	if p.Multihop > 0 {
		out.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)}
	}
	if p.TTLSecurity > 0 {
		out.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: uint32(256 - p.TTLSecurity)}
	}
	for _, name := range p.Families {
		f := families[name]
		family := &api.Family{Afi: api.Family_Afi(f.Afi()), Safi: api.Family_Safi(f.Safi())}
		out.AfiSafis = append(out.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	return out
}

// rejudge puts all that a neighbour has sent through guard and policy again.
func (s *server) rejudge(n *neighbour) {
	var all []*apiutil.Path
	for _, name := range n.families {
		err := s.gobgp.ListPath(apiutil.ListPathRequest{
			TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: n.peer.neighbour().String(), Family: families[name],
		}, func(_ gobgp.NLRI, paths []*apiutil.Path) { all = append(all, paths...) })
		if err != nil {
			n.log.Warn("what the peer sent cannot be read again", "family", name, "err", err)
			return
		}
	}
	// Events that were queued before the listing repeat what it holds, and newer ones come after it: either way the
	// last word on a path is the neighbour's last.
	var d decoder
	var out changes
	for _, p := range all {
		if r, ok := d.decode(p); ok {
			n.receive(&r, &out)
		}
	}
	out.flush(s.config.RIB)
}

// reset is the operator's: hard closes the session, soft goes through policy again in both directions.
func (s *server) reset(ctx context.Context, n *neighbour, soft bool) error {
	if n.blown && !soft {
		n.blown, n.lastError = false, ""
		s.session(ctx, n, &n.peer)
		return nil
	}
	if s.gobgp == nil || !n.added {
		why := cmp.Or(n.problem, n.verdict.problem(), "disabled")
		if n.blown {
			why = n.lastError
		}
		return fmt.Errorf("bgp: peer %s is not running: %s", n.peer.Name, why)
	}
	address := n.peer.neighbour().String()
	if soft {
		s.rejudge(n)
		return s.gobgp.ResetPeer(ctx, &api.ResetPeerRequest{Address: address, Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
	}
	return s.gobgp.ResetPeer(ctx, &api.ResetPeerRequest{Address: address})
}

// send hands paths to GoBGP in order, announcements and withdrawals alike: each prefix is in it at most once.
func (s *server) send(out *outbox) {
	for _, err := range out.errs {
		s.log.Error("path cannot be announced", "err", err)
	}
	var adds, deletes []*apiutil.Path
	for _, p := range out.paths {
		if p.Withdrawal {
			deletes = append(deletes, p)
		} else {
			adds = append(adds, p)
		}
	}
	var errs []error
	for c := range slices.Chunk(deletes, chunk) {
		errs = append(errs, s.gobgp.DeletePath(apiutil.DeletePathRequest{Paths: c}))
	}
	for c := range slices.Chunk(adds, chunk) {
		_, err := s.gobgp.AddPath(apiutil.AddPathRequest{Paths: c})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Error("GoBGP refuses paths", "err", err)
	}
	out.paths, out.errs = out.paths[:0], nil
}
