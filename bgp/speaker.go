package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"fabric/bgp/rib"
)

// tick is how often deadlines are looked at.
const tick = time.Second

// askTimeout bounds the wait for Run to be done with what it is at.
const askTimeout = 10 * time.Second

// Config is what a Speaker needs besides the intent.
type Config struct {
	Log *slog.Logger
	// RIB gets what neighbours send and says what they are told.
	RIB *rib.Table
	// VTEP and RouterMAC are this gateway's, put into what it originates.
	VTEP      netip.Addr
	RouterMAC [6]byte
	// started is called by the first apply when all servers run and none has peers yet. Tests with several Speakers in one
	// process hold them there: see apply.
	started func()
	// fuseFloor stands in for the constant of that name in tests; 0 is that.
	fuseFloor int
	// Restarting says that forwarding has survived since the last run (warm start): sessions of the first Configure
	// carry the restart and forwarding bits (RFC 4724 section 3), and paths marked stale before Run wait for End-of-RIB.
	Restarting bool
}

// Speaker makes GoBGP servers equal to a Desired. Its methods may be called by any number of goroutines.
type Speaker struct {
	cfg      Config
	wake     chan struct{} // one slot: look at desired and the inboxes
	requests chan func()   // done by Run
	changed  chan struct{} // one slot
	done     chan struct{} // closed when Run has ended
	started  atomic.Bool
	state    atomic.Pointer[[]PeerState]
	live     *liveness

	mu      sync.Mutex
	desired *Desired // not yet applied

	// Owned by Run.
	servers map[string]*server
	order   []string
	origins []Origination
	imports []Import
	first   bool
}

// NewSpeaker returns a Speaker that does nothing until Run.
func NewSpeaker(cfg Config) *Speaker {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Speaker{
		cfg: cfg, wake: make(chan struct{}, 1), requests: make(chan func()), done: make(chan struct{}),
		changed: make(chan struct{}, 1), servers: map[string]*server{}, first: true,
		live: &liveness{rib: cfg.RIB, peers: map[rib.Source]*watched{}},
	}
	s.state.Store(new([]PeerState))
	return s
}

// Configure says what shall be. It returns at once; Run applies the newest one, and only what differs.
func (s *Speaker) Configure(d Desired) {
	s.live.configure(&d)
	s.mu.Lock()
	s.desired = &d
	s.mu.Unlock()
	s.poke()
}

func (s *Speaker) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Changed has one slot that is filled when Peers or Rejected may say something new.
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// Run works until the context ends, and returns nil then. The servers are left as they are, for the neighbours to notice
// by the closing of the sockets; see the package's comment. It may be called once.
func (s *Speaker) Run(ctx context.Context) error {
	s.started.Store(true)
	defer close(s.done)
	feed := s.cfg.RIB.Subscribe()
	batches := make(chan rib.Batch)
	var pump sync.WaitGroup
	pump.Go(func() {
		for {
			b, err := feed.Next(ctx)
			if err != nil {
				return
			}
			select {
			case batches <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	defer pump.Wait()
	defer feed.Close()

	timer := time.NewTicker(tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-batches:
			s.announce(&b)
		case <-s.wake:
			if d := s.take(); d != nil {
				s.apply(ctx, d)
			}
			s.checkLiveness(ctx, time.Now())
			s.receive(ctx)
		case f := <-s.requests:
			f()
		case <-timer.C:
			s.overdue(ctx)
		}
		s.publish()
	}
}

// Close stops the servers with a CEASE to each neighbour: for tests, and for leaving the network. Run must have ended.
func (s *Speaker) Close() {
	if !s.started.Load() {
		return
	}
	<-s.done
	for _, v := range s.servers {
		if v.gobgp != nil {
			v.stop()
			v.gobgp.Stop()
			v.gobgp = nil
		}
	}
}

func (s *Speaker) take() *Desired {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.desired
	s.desired = nil
	return d
}

// apply makes the servers what they shall be. New ones start one after the other and, the first time, before any has peers:
// GoBGP v4.8.0 writes its selection options to package variables at every start, unsynchronised with those who read
// them. The values are always the same, so that a server started later, for a new VRF, changes nothing; the race detector
// still sees it.
func (s *Speaker) apply(ctx context.Context, d *Desired) {
	var want []Server
	if d.Fabric != nil {
		want = append(want, *d.Fabric)
	}
	want = append(want, d.VRFs...)
	s.imports = d.Imports
	s.order = s.order[:0]
	for i := range want {
		s.order = append(s.order, want[i].VRF)
	}
	for vrf, v := range s.servers {
		i := slices.IndexFunc(want, func(w Server) bool { return w.VRF == vrf })
		if i < 0 || v.gobgp != nil && !sameSpeaker(&v.want, &want[i]) {
			v.halt()
			delete(s.servers, vrf)
		}
	}
	for i := range want {
		v := s.servers[want[i].VRF]
		if v == nil {
			v = newServer(want[i], &s.cfg, s.live, s.wake)
			s.servers[want[i].VRF] = v
		}
		if v.gobgp == nil {
			v.want = want[i]
		}
	}
	fresh := map[string]bool{}
	for _, vrf := range s.order {
		if v := s.servers[vrf]; v.gobgp == nil {
			v.start(ctx)
			fresh[vrf] = v.gobgp != nil
		}
	}
	if s.first {
		s.expect(want)
		if s.cfg.started != nil {
			s.cfg.started()
		}
	}
	for i := range want {
		v := s.servers[want[i].VRF]
		resync := fresh[want[i].VRF] || v.want.Silent != want[i].Silent
		v.want = want[i]
		s.originations(v, d.Originations)
		s.settle(ctx, v, resync)
	}
	s.origins = d.Originations
	s.first = false
}

// expect tells the RIB whose End-of-RIB is awaited before anything that was there before us may be pruned.
func (s *Speaker) expect(want []Server) {
	var sources []rib.Source
	for i := range want {
		for j := range want[i].Peers {
			if p := &want[i].Peers[j]; !p.Disabled {
				sources = append(sources, p.Source())
			}
		}
	}
	s.cfg.RIB.Expect(sources)
}

// settle brings the peers of a server in line, and with resync what all of them are told. Paths come before peers, so that the
// first table a peer hears is complete and its End-of-RIB true. A server that does not run gets its peers all the same:
// Peers shows them, and why they are down.
func (s *Speaker) settle(ctx context.Context, v *server, resync bool) {
	if resync {
		for _, t := range v.targets() {
			s.resync(v, t)
		}
	}
	v.peers(ctx, s.imports, s.first && s.cfg.Restarting, func(t *target) { s.resync(v, t) })
}

// originations settles which VRFs are announced into the fabric.
func (s *Speaker) originations(v *server, want []Origination) {
	if v.want.VRF != "" {
		return
	}
	for _, old := range s.origins {
		i := slices.IndexFunc(want, func(o Origination) bool { return o.VRF == old.VRF })
		if i >= 0 && sameOrigination(&want[i], &old) {
			continue
		}
		if t := v.origins[old.VRF]; t != nil {
			var out outbox
			t.withdrawExcept(nil, &out)
			if v.gobgp != nil {
				v.send(&out)
			}
			delete(v.origins, old.VRF)
		}
	}
	for _, o := range want {
		if v.origins[o.VRF] != nil {
			continue
		}
		t := originate(o, s.cfg.VTEP, s.cfg.RouterMAC)
		v.origins[o.VRF] = t
		s.resync(v, t)
	}
}

func sameOrigination(a, b *Origination) bool {
	return a.VRF == b.VRF && a.VNI == b.VNI && a.RD == b.RD && slices.Equal(a.RTs, b.RTs) && a.Export.Equal(b.Export)
}

// resync puts all choices of a VRF to a target and withdraws the rest.
func (s *Speaker) resync(v *server, t *target) {
	if v.gobgp == nil {
		return
	}
	var out outbox
	keep := map[netip.Prefix]bool{}
	if !v.want.Silent {
		s.cfg.RIB.Walk(t.vrf, func(c rib.Choice) bool {
			keep[c.Key.Prefix] = true
			t.put(&c, &out)
			return true
		})
	}
	t.withdrawExcept(keep, &out)
	v.send(&out)
}

// announce passes changed choices on.
func (s *Speaker) announce(b *rib.Batch) {
	for _, v := range s.servers {
		if v.gobgp == nil || v.want.Silent {
			continue
		}
		var out outbox
		for _, t := range v.targets() {
			s.tell(b, t, &out)
		}
		v.send(&out)
	}
}

func (s *Speaker) tell(b *rib.Batch, t *target, out *outbox) {
	// Choices are ordered by VRF.
	from, _ := slices.BinarySearchFunc(b.Choices, t.vrf, func(c rib.Choice, vrf string) int { return compare(c.Key.VRF, vrf) })
	keep := map[netip.Prefix]bool{}
	for i := from; i < len(b.Choices) && b.Choices[i].Key.VRF == t.vrf; i++ {
		t.put(&b.Choices[i], out)
		if b.Full {
			keep[b.Choices[i].Key.Prefix] = true
		}
	}
	if b.Full {
		t.withdrawExcept(keep, out)
	}
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (s *server) targets() []*target {
	var ts []*target
	for _, t := range s.origins {
		ts = append(ts, t)
	}
	for _, n := range s.neighbours {
		if n.target != nil {
			ts = append(ts, n.target)
		}
	}
	return ts
}

// receive empties the inboxes into the RIB.
func (s *Speaker) receive(ctx context.Context) {
	var out changes
	for _, v := range s.servers {
		for _, ev := range v.inbox.take() {
			n := v.byAddress[ev.neighbour]
			if n == nil || !n.added {
				continue // of a peer that was deleted meanwhile
			}
			if ev.path != nil {
				n.receive(ev.path, &out)
				if len(out.updates)+len(out.withdraws) >= 4096 {
					out.flush(s.cfg.RIB)
				}
				continue
			}
			out.flush(s.cfg.RIB)
			if ev.session != nil {
				s.session(ctx, v, n, ev.session)
			} else if n.endOfRIB(ev.endOfRIB) {
				s.cfg.RIB.EndOfRIB(n.source)
			}
		}
		out.flush(s.cfg.RIB)
		v.guard(ctx)
	}
}

func (s *Speaker) session(ctx context.Context, v *server, n *neighbour, ev *session) {
	switch n.change(ev, time.Now()) {
	case withdrawAll:
		s.cfg.RIB.WithdrawSource(n.source)
	case markStale:
		s.cfg.RIB.MarkStale(n.source)
	}
	if v.gobgp == nil {
		return
	}
	if !n.up() {
		v.timers(ctx, n)
		return
	}
	err := v.gobgp.ListPeer(ctx, &api.ListPeerRequest{Address: n.peer.neighbour().String()}, func(p *api.Peer) {
		if st := p.GetTimers().GetState(); st != nil {
			n.hold = time.Duration(st.NegotiatedHoldTime) * time.Second
			n.keepalive = time.Duration(st.KeepaliveInterval) * time.Second
		}
	})
	if err != nil {
		n.log.Warn("negotiated timers cannot be read", "err", err)
	}
}

// overdue looks at what time has brought: servers and password files to try again, End-of-RIB that never came.
func (s *Speaker) overdue(ctx context.Context) {
	now := time.Now()
	s.checkLiveness(ctx, now)
	for _, vrf := range s.order {
		v := s.servers[vrf]
		if v == nil {
			continue
		}
		if v.gobgp == nil {
			if now.After(v.retry) {
				v.start(ctx)
				s.settle(ctx, v, true)
			}
			continue
		}
		if v.stranded() {
			v.log.Info("the device was made anew; listening on the new one", "device", v.want.BindDevice)
			v.halt()
			v = newServer(v.want, &s.cfg, s.live, s.wake)
			s.servers[vrf] = v
			v.start(ctx)
			s.settle(ctx, v, true)
			continue
		}
		for _, n := range v.neighbours {
			if n.problem != "" && now.After(n.retry) {
				v.session(ctx, n, &n.peer)
			}
			if n.settle(); n.thaw {
				n.thaw = false
				v.rejudge(n)
			}
			if !n.deadline.IsZero() && now.After(n.deadline) {
				n.complete()
				s.cfg.RIB.EndOfRIB(n.source)
			}
		}
	}
}

// ErrNoPeer is what Reset says of a peer that is not there.
var ErrNoPeer = errors.New("no such peer")

// Reset closes a peer's session, or with soft goes through policy again in both directions without touching the session. vrf
// is "" for another gateway. The peer is named by name or address.
func (s *Speaker) Reset(vrf, name string, soft bool) error {
	return s.ask(func() error { return s.reset(vrf, name, soft) })
}

// ask has Run do something and waits for it.
func (s *Speaker) ask(f func() error) error {
	timeout := time.NewTimer(askTimeout)
	defer timeout.Stop()
	result := make(chan error, 1)
	select {
	case s.requests <- func() { result <- f() }:
		return <-result
	case <-s.done:
		return errors.New("bgp: the speaker has stopped")
	case <-timeout.C:
		return errors.New("bgp: the speaker is busy; try again")
	}
}

func (s *Speaker) reset(vrf, name string, soft bool) error {
	v := s.servers[vrf]
	if v == nil {
		return fmt.Errorf("bgp: VRF %q has no peers here: %w", vrf, ErrNoPeer)
	}
	n := v.neighbours[name]
	for _, m := range v.neighbours {
		if n == nil && m.peer.Address.String() == name {
			n = m
		}
	}
	if n == nil {
		return fmt.Errorf("bgp: VRF %q, peer %q: %w; see `fabricctl peer list`", vrf, name, ErrNoPeer)
	}
	return v.reset(context.Background(), n, soft)
}

var states = map[gobgp.FSMState]string{
	gobgp.BGP_FSM_IDLE: "idle", gobgp.BGP_FSM_CONNECT: "connect", gobgp.BGP_FSM_ACTIVE: "active",
	gobgp.BGP_FSM_OPENSENT: "opensent", gobgp.BGP_FSM_OPENCONFIRM: "openconfirm", gobgp.BGP_FSM_ESTABLISHED: "established",
}
