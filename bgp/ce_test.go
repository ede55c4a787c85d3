package bgp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	gobgpserver "github.com/osrg/gobgp/v4/pkg/server"
)

// ce is a third-party router: a real GoBGP server with one ordinary neighbour.
type ce struct {
	t     *testing.T
	s     *gobgpserver.BgpServer
	local netip.Addr
	once  sync.Once
	peer  *api.Peer
}

// ceOptions are what a test wants of its router.
type ceOptions struct {
	password string
	restart  bool // graceful restart
	// restartTime in seconds; 20 if 0.
	restartTime uint32
	standby     bool // does not listen, and joins later
	// dials: the router dials, too. Two GoBGP that both do may collide and wait for the hold time (compile.go).
	dials bool
}

// router starts a router with AS number asn on addr(local), whose neighbour is asn's peer at addr(remote).
//
// All routers of a test start before its gateways: GoBGP writes package variables when a server starts.
func (n *network) router(asn uint32, local, remote int, remoteASN uint32, o ceOptions) *ce {
	n.t.Helper()
	c := &ce{t: n.t, s: gobgpserver.NewBgpServer(gobgpserver.LoggerOption(testLog(n.t).With("router", asn), nil)), local: n.addr(local)}
	go c.s.Serve()
	n.t.Cleanup(c.stop)
	ctx := context.Background()
	port := int32(n.port)
	if o.standby {
		port = -1
	}
	err := c.s.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: asn, RouterId: fmt.Sprintf("10.1.0.%d", local), ListenPort: port, ListenAddresses: []string{c.local.String()},
	}})
	if err != nil {
		n.t.Fatal(err)
	}
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: n.addr(remote).String(), PeerAsn: remoteASN, AuthPassword: o.password, AllowAspathLoopLocal: true},
		Timers:    &api.Timers{Config: &api.TimersConfig{ConnectRetry: 1, HoldTime: 9, KeepaliveInterval: 1, IdleHoldTimeAfterReset: 1}},
		Transport: &api.Transport{LocalAddress: c.local.String(), RemotePort: uint32(n.port), PassiveMode: !o.dials && !o.standby},
	}
	for _, f := range []gobgp.Family{gobgp.RF_IPv4_UC, gobgp.RF_IPv6_UC} {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_Afi(f.Afi()), Safi: api.Family_Safi(f.Safi())}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: o.restart}},
		})
	}
	if o.restart {
		p.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: max(o.restartTime, 1), DeferralTime: 1}
		if o.restartTime == 0 {
			p.GracefulRestart.RestartTime = 20
		}
	}
	c.peer = p
	if !o.standby {
		c.join()
	}
	return c
}

// join adds the router's neighbour.
func (c *ce) join() {
	c.t.Helper()
	if err := c.s.AddPeer(context.Background(), &api.AddPeerRequest{Peer: c.peer}); err != nil {
		c.t.Fatal(err)
	}
}

// stop stops the router with a CEASE; die without one, as a crash would.
func (c *ce) stop() { c.once.Do(c.s.Stop) }

func (c *ce) die() {
	c.once.Do(func() {
		if err := c.s.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: true}); err != nil {
			c.t.Error(err)
		}
	})
}

// route is what a router announces.
type route struct {
	prefix  string
	asPath  []uint32
	comms   []uint32
	med     uint32
	pref    uint32
	nextHop string
}

func (c *ce) path(r route, withdraw bool) *apiutil.Path {
	p := netip.MustParsePrefix(r.prefix)
	nlri, err := gobgp.NewIPAddrPrefix(p)
	if err != nil {
		c.t.Fatal(err)
	}
	f, nh := gobgp.RF_IPv4_UC, c.local
	if p.Addr().Is6() {
		f, nh = gobgp.RF_IPv6_UC, netip.MustParseAddr("2001:db8:ffff::2")
	}
	if r.nextHop != "" {
		nh = netip.MustParseAddr(r.nextHop)
	}
	attrs := []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(0)}
	if len(r.asPath) > 0 {
		attrs = append(attrs, gobgp.NewPathAttributeAsPath([]gobgp.AsPathParamInterface{gobgp.NewAs4PathParam(gobgp.BGP_ASPATH_ATTR_TYPE_SEQ, r.asPath)}))
	}
	if len(r.comms) > 0 {
		attrs = append(attrs, gobgp.NewPathAttributeCommunities(r.comms))
	}
	if r.med != 0 {
		attrs = append(attrs, gobgp.NewPathAttributeMultiExitDisc(r.med))
	}
	if r.pref != 0 {
		attrs = append(attrs, gobgp.NewPathAttributeLocalPref(r.pref))
	}
	mp, err := gobgp.NewPathAttributeMpReachNLRI(f, []gobgp.PathNLRI{{NLRI: nlri}}, nh)
	if err != nil {
		c.t.Fatal(err)
	}
	return &apiutil.Path{Family: f, Nlri: nlri, Attrs: append(attrs, mp), Withdrawal: withdraw, Age: time.Now().Unix()}
}

func (c *ce) announce(rs ...route) {
	c.t.Helper()
	for chunk := range slices.Chunk(rs, 1000) {
		var ps []*apiutil.Path
		for _, r := range chunk {
			ps = append(ps, c.path(r, false))
		}
		if _, err := c.s.AddPath(apiutil.AddPathRequest{Paths: ps}); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *ce) withdraw(prefixes ...string) {
	c.t.Helper()
	for _, p := range prefixes {
		if err := c.s.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{c.path(route{prefix: p}, true)}}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// heard is what the neighbour announces to the router: "prefix next-hop [AS path] med communities".
func (c *ce) heard(neighbour netip.Addr) []string {
	var out []string
	for _, f := range []gobgp.Family{gobgp.RF_IPv4_UC, gobgp.RF_IPv6_UC} {
		err := c.s.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: neighbour.String(), Family: f},
			func(_ gobgp.NLRI, ps []*apiutil.Path) {
				for _, p := range ps {
					var d decoder
					if r, ok := d.decode(p); ok {
						a := &r.path.Attrs
						s := fmt.Sprintf("%s %s [%s]", r.path.Key.Prefix, a.NextHop, a.ASPathString())
						if a.HasMED {
							s += fmt.Sprintf(" med %d", a.MED)
						}
						if len(a.Communities) > 0 {
							s += fmt.Sprintf(" %v", a.Communities)
						}
						out = append(out, s)
					}
				}
			})
		if err != nil {
			return []string{err.Error()}
		}
	}
	slices.Sort(out)
	return out
}

func (c *ce) wantHeard(neighbour netip.Addr, want ...string) {
	c.t.Helper()
	wait(c.t, fmt.Sprintf("router %s to hear %q", c.local, want), patience, func() (string, bool) {
		got := c.heard(neighbour)
		return fmt.Sprintf("%q", got), slices.Equal(got, want)
	})
}

// restartBits says what the neighbour's graceful restart capability told.
func (c *ce) restartBits(neighbour netip.Addr) string {
	out := "no capability"
	err := c.s.ListPeer(context.Background(), &api.ListPeerRequest{Address: neighbour.String()}, func(p *api.Peer) {
		for _, any := range p.State.RemoteCap {
			g := any.GetGracefulRestart()
			if g == nil {
				continue
			}
			out = fmt.Sprintf("flags %x", g.Flags)
			if g.Flags&8 != 0 {
				out = "restarting"
			}
			for _, t := range g.Tuples {
				if t.Flags&0x80 != 0 && t.Family.Afi == api.Family_AFI_IP {
					out += ", forwarding kept: ipv4"
				}
			}
		}
	})
	if err != nil {
		return err.Error()
	}
	return out
}

func listen(a netip.Addr, port int) (net.Listener, error) {
	return net.Listen("tcp", netip.AddrPortFrom(a, uint16(port)).String())
}
