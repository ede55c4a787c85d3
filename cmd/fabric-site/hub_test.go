package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
	"fabric/overlay"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// star is hubs with public addresses, and two spokes behind a router that translates their addresses and lets nothing in.
//
//	VTEP 10.255.0.11 :s1 ── 192.168.1.0/24 ──┐          ┌── 198.51.100.0/30 ── h1: VTEP 10.255.0.1
//	                                         ├─ router ─┤
//	VTEP 10.255.0.12 :s2 ── 192.168.2.0/24 ──┘          └── 203.0.113.0/30 ─── h2: VTEP 10.255.0.2
//
// The hubs but h3 have no VRF: what they forward they could not unpack.
type star struct {
	t      *testing.T
	router *node
	nodes  map[string]*node
}

// uplinks are the gateways' addresses and the router's, and their VTEPs.
var uplinks = map[string]struct{ own, router, vtep, vtep6 string }{
	"h1": {"198.51.100.2/30", "198.51.100.1/30", "10.255.0.1", "fd00:255::1"},
	"h3": {"198.51.100.6/30", "198.51.100.5/30", "10.255.0.3", "fd00:255::3"},
	"h2": {"203.0.113.2/30", "203.0.113.1/30", "10.255.0.2", "fd00:255::2"},
	"s1": {"192.168.1.2/24", "192.168.1.1/24", "10.255.0.11", "fd00:255::11"},
	"s2": {"192.168.2.2/24", "192.168.2.1/24", "10.255.0.12", "fd00:255::12"},
}

// loopbacks in VRF CORE.
var loopbacks = map[string][2]string{"h3": {"10.254.0.3", "fd00:254::3"}, "s1": {"10.254.0.11", "fd00:254::11"}, "s2": {"10.254.0.12", "fd00:254::12"}}

// newStar starts everything; family is the VTEPs'.
func newStar(t *testing.T, family string, hubs ...string) *star {
	t.Helper()
	s := &star{t: t, router: newNode(t), nodes: map[string]*node{}}
	names := append(slices.Clone(hubs), "s1", "s2")
	var doc strings.Builder
	fmt.Fprintf(&doc, "fabric: {name: star, vtep-family: %s, bgp: {port: 1790, keepalive: 1s, hold: 3s, connect-retry: 1s}}\n", family)
	fmt.Fprintf(&doc, "vrfs: [{name: CORE, table: 200, vni: 1000}]\nlinks: {mesh: hub, hubs: [%s]}\nsites:\n", strings.Join(hubs, ", "))
	for i, name := range names {
		n := newNode(t)
		n.gateway = name
		s.nodes[name] = n
		s.wire(name)
		if err := os.Remove(n.key()); err != nil {
			t.Fatal(err)
		}
		public, err := config.GenerateKey(n.key())
		if err != nil {
			t.Fatal(err)
		}
		up := uplinks[name]
		vtep := up.vtep
		if family == "ipv6" {
			vtep = up.vtep6
		}
		fmt.Fprintf(&doc, "  - name: at-%s\n    gateways:\n      - name: %s\n        asn: %d\n        vtep: %q\n        router-id: %s\n", name, name, 65001+i, vtep, up.vtep)
		fmt.Fprintf(&doc, "        wireguard: {public-key: %q, private-key-file: KEY, keepalive: 1s}\n", public)
		if slices.Contains(hubs, name) {
			fmt.Fprintf(&doc, "        endpoints: [{address: %s}]\n", netip.MustParsePrefix(up.own).Addr())
		}
		if own, has := loopbacks[name]; has {
			fmt.Fprintf(&doc, "        vrfs: [{vrf: CORE, loopbacks: [%s/32, \"%s/128\"]}]\n", own[0], own[1])
		} else {
			fmt.Fprintln(&doc, "        vrfs: []")
		}
	}
	s.router.sh("sysctl -qw net.ipv4.ip_forward=1",
		`nft 'table ip nat { chain post { type nat hook postrouting priority 100; oifname "h*" masquerade; }; chain forward { type filter hook forward priority 0; oifname "s*" ct state new drop; }; }'`)
	// The passive ends first: who dials a closed port waits 5 s before the next handshake.
	for _, name := range names {
		n := s.nodes[name]
		n.write(doc.String())
		n.startLinks()
		n.startSite()
	}
	return s
}

// wire joins a gateway to the router.
func (s *star) wire(name string) {
	s.t.Helper()
	n, up := s.nodes[name], uplinks[name]
	s.router.sh(fmt.Sprintf("ip link add %s type veth peer name wan netns /proc/%d/ns/net", name, n.PID()),
		fmt.Sprintf("ip addr add %s dev %s; ip link set %s up", up.router, name, name))
	n.sh(fmt.Sprintf("ip addr add %s dev wan; ip link set wan up", up.own),
		"ip route add default via "+netip.MustParsePrefix(up.router).Addr().String())
}

// cut drops what the router would pass between two gateways; mend ends all cuts.
func (s *star) cut(a, b string) {
	s.t.Helper()
	s.router.sh(fmt.Sprintf(`nft 'add table ip cut; add chain ip cut forward { type filter hook forward priority -10; }; add rule ip cut forward iifname "%s" oifname "%s" drop; add rule ip cut forward iifname "%s" oifname "%s" drop'`, a, b, b, a))
}

func (s *star) mend() {
	s.t.Helper()
	s.router.sh("nft delete table ip cut")
}

// ping sends an echo in the VRF from one spoke to the other.
func (s *star) ping(from, to string, v int) error {
	out, err := s.nodes[from].Command("ping", "-n", "-c1", "-W1", "-I", loopbacks[from][v], loopbacks[to][v]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s: %w: %s", loopbacks[to][v], err, out)
	}
	return nil
}

// wantPings waits until the spokes reach each other, in both families.
func (s *star) wantPings(what string) {
	s.t.Helper()
	for v := range 2 {
		for _, pair := range [][2]string{{"s1", "s2"}, {"s2", "s1"}} {
			s.wait(fmt.Sprintf("%s: %s reaches %s at %s", what, pair[0], pair[1], loopbacks[pair[1]][v]), func() error { return s.ping(pair[0], pair[1], v) })
		}
	}
}

// wait tries until f is content. There are many daemons, and the machine may be busy.
func (s *star) wait(what string, f func() error) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

// state is what a gateway's fabric-links says.
func (s *star) state(name string) (links.State, error) {
	c, err := links.Dial(filepath.Join(s.nodes[name].linksRun(), "links.sock"))
	if err != nil {
		return links.State{}, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.Get(ctx)
}

// vtep is how a gateway sees another's VTEP.
func (s *star) vtep(at, of string) (links.VTEPState, error) {
	st, err := s.state(at)
	if err != nil {
		return links.VTEPState{}, err
	}
	for _, v := range st.VTEPs {
		if v.Gateway == of {
			return v, nil
		}
	}
	return links.VTEPState{}, fmt.Errorf("%s knows no VTEP of %s: %+v", at, of, st.VTEPs)
}

// over waits until a gateway reaches another's VTEP over a hub, "" for not at all.
func (s *star) over(at, of, hub string) (waited time.Duration) {
	s.t.Helper()
	began := time.Now()
	device := ""
	if hub != "" {
		device = overlay.TunnelDevice(at, hub, 0)
	}
	s.wait(fmt.Sprintf("%s reaches %s over hub %q", at, of, hub), func() error {
		v, err := s.vtep(at, of)
		if err == nil && v.Device != device {
			err = fmt.Errorf("VTEP is %+v", v)
		}
		return err
	})
	return time.Since(began)
}

// vxlan is a VXLAN packet seen on a tunnel device.
type vxlan struct {
	device   string
	outgoing bool
	ttl      byte
	// payload is all after the outer UDP header.
	payload []byte
}

// capture reads packets of one node between two VTEPs of IPv4 until the function returned is called.
func (s *star) capture(name, from, to string) func() []vxlan {
	s.t.Helper()
	n := s.nodes[name]
	fd := -1
	if err := n.Within(func() (err error) {
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	names := map[int]string{}
	for line := range strings.Lines(n.sh("ip -o link")) {
		var index int
		var device string
		if _, err := fmt.Sscanf(line, "%d: %s", &index, &device); err == nil {
			names[index] = strings.TrimSuffix(device, ":")
		}
	}
	src, dst := netip.MustParseAddr(uplinks[from].vtep).AsSlice(), netip.MustParseAddr(uplinks[to].vtep).AsSlice()
	return func() (seen []vxlan) {
		defer unix.Close(fd)
		buf := make([]byte, 2048)
		for {
			size, sender, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return seen
			}
			ll, ok := sender.(*unix.SockaddrLinklayer)
			// An IPv4 header without options, then UDP.
			if !ok || size < 28 || buf[0] != 0x45 || buf[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(buf[22:]) != 4789 ||
				!bytes.Equal(buf[12:16], src) || !bytes.Equal(buf[16:20], dst) {
				continue
			}
			seen = append(seen, vxlan{names[ll.Ifindex], ll.Pkttype == unix.PACKET_OUTGOING, buf[8], bytes.Clone(buf[28:size])})
		}
	}
}

// Two spokes that cannot reach each other, and one hub.
func TestHub(t *testing.T) {
	t.Parallel()
	s := newStar(t, "ipv4", "h1")
	s.wantPings("at first")
	towards1, towards2 := overlay.TunnelDevice("h1", "s1", 0), overlay.TunnelDevice("h1", "s2", 0)

	t.Run("the hub forwards packets as they are", func(t *testing.T) {
		stop := s.capture("h1", "s1", "s2")
		if err := s.ping("s1", "s2", 0); err != nil {
			t.Fatal(err)
		}
		var in, out *vxlan
		for _, p := range stop() {
			switch {
			case !p.outgoing && p.device == towards1:
				in = &p
			case p.outgoing && p.device == towards2:
				out = &p
			default:
				t.Errorf("a packet from s1 to s2 on %+v", p)
			}
		}
		if in == nil || out == nil || !bytes.Equal(in.payload, out.payload) || out.ttl != in.ttl-1 {
			t.Errorf("came in as %+v, left as %+v", in, out)
		}
		if links := s.nodes["h1"].sh("ip -o link show type vxlan"); links != "" {
			t.Errorf("the hub has %s", links)
		}
	})
	t.Run("largest packets pass", func(t *testing.T) {
		// 1500 less 80 for WireGuard and 50 for VXLAN, less 28 for IP and ICMP.
		s.nodes["s1"].sh("ping -n -c1 -W2 -M do -s 1342 -I 10.254.0.11 10.254.0.12")
	})
	t.Run("sessions are between the spokes", func(t *testing.T) {
		s.wait("BFD across the hub is up at both", func() error {
			for _, name := range []string{"s1", "s2"} {
				st, err := s.state(name)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(st.Sessions, func(b links.SessionState) bool { return strings.HasSuffix(b.Name, "/transit") })
				if i < 0 || st.Sessions[i].State != links.Up || !st.Sessions[i].Multihop || st.Sessions[i].Detection != 900*time.Millisecond {
					return fmt.Errorf("sessions of %s: %+v", name, st.Sessions)
				}
			}
			return nil
		})
	})
	t.Run("the hub loses a spoke", func(t *testing.T) {
		// The spokes' tunnels to the hub say nothing of it at s1.
		stop := s.capture("h1", "s1", "s2")
		s.cut("h1", "s2")
		waited := s.over("s1", "s2", "")
		t.Logf("s1 heard after %s; detection time is 900ms at each of two sessions", waited)
		s.wait("the hub has no way", func() error {
			v, err := s.vtep("h1", "s2")
			if err == nil && v.Device != "" {
				err = fmt.Errorf("VTEP is %+v", v)
			}
			return err
		})
		stop()
		stop = s.capture("h1", "s1", "s2")
		if err := s.ping("s1", "s2", 0); err == nil {
			t.Error("s2 answers")
		}
		for _, p := range stop() {
			if p.outgoing {
				t.Errorf("the hub sent a packet for s2 over %s", p.device)
			}
		}
		if out := s.nodes["s1"].sh("ip route get 10.255.0.1"); !strings.Contains(out, overlay.TunnelDevice("s1", "h1", 0)) {
			t.Errorf("s1's way to the hub is %s", out)
		}
		s.mend()
		s.wantPings("it has it back")
	})
	t.Run("a spoke's fabric-links restarts", func(t *testing.T) {
		n := s.nodes["s1"]
		n.restartLinks()
		if err := s.ping("s1", "s2", 0); err != nil {
			t.Error(err)
		}
		s.wantPings("after it")
	})
}

// fabric-links dies, its tunnel goes, and it comes again when the other end has long called the tunnel dead. Traffic returns with BFD on the
// tunnel, to a spoke with BFD across the hub; it does not wait for BGP, whose session GoBGP leaves alone for 5 s after it was lost.
func TestTunnelComesBack(t *testing.T) {
	t.Parallel()
	s := newStar(t, "ipv4", "h3")
	s.wantPings("at first")
	s.wait("the hub's VRF", func() error { return s.ping("s1", "h3", 0) })
	n := s.nodes["s1"]
	_ = n.links.Process.Kill()
	_ = n.links.Wait()
	n.sh("ip link del " + overlay.TunnelDevice("s1", "h3", 0))
	s.over("h3", "s1", "")
	s.over("s2", "s1", "")
	api := n.api()
	established := func(want bool) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r, err := api.ListPeers(ctx, &fabricv1.ListPeersRequest{})
		if err != nil {
			return err
		}
		for _, p := range r.GetPeers() {
			if (p.GetState() == "established") != want {
				return fmt.Errorf("%s is %s", p.GetName(), p.GetState())
			}
		}
		return nil
	}
	s.wait("BGP's hold time is over", func() error { return established(false) })
	program, err := linksProgram()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n.runLinks(program)
	s.wait("s1 reaches the hub", func() error { return s.ping("s1", "h3", 0) })
	hub := time.Since(began)
	s.wait("s1 reaches s2", func() error { return s.ping("s1", "s2", 0) })
	spoke := time.Since(began)
	s.wait("the sessions are back", func() error { return established(true) })
	t.Logf("the hub answers after %s, the other spoke after %s; BGP is back after %s", hub, spoke, time.Since(began))
}

// The hub dies with its tunnels and comes again, as after a boot. It calls the spokes back where it last heard them, at the ports that their
// translation gave them: they only dial, and go on sending with keys that the hub has no more until WireGuard gives these up, after 15 s. Here
// their handshakes get lost, so that the hub's alone can do it.
func TestHubCallsBack(t *testing.T) {
	t.Parallel()
	s := newStar(t, "ipv4", "h3")
	s.wantPings("at first")
	n := s.nodes["h3"]
	_ = n.links.Process.Kill()
	_ = n.links.Wait()
	n.sh("ip link del "+overlay.TunnelDevice("h3", "s1", 0), "ip link del "+overlay.TunnelDevice("h3", "s2", 0))
	s.over("s1", "s2", "")
	s.over("s2", "s1", "")
	const initiation = 1 // the type of the first message of a handshake, its first byte
	s.router.sh(fmt.Sprintf(`nft 'add table ip cut; add chain ip cut forward { type filter hook forward priority -10; }; add rule ip cut forward iifname "s*" meta l4proto udp @th,64,8 %d drop'`, initiation))
	program, err := linksProgram()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n.runLinks(program)
	s.wantPings("the hub is back")
	t.Logf("the spokes reach each other %s after the hub is back", time.Since(began))
}

// VTEPs of IPv6.
func TestHubIPv6(t *testing.T) {
	t.Parallel()
	s := newStar(t, "ipv6", "h1")
	s.wantPings("at first")
	s.cut("h1", "s2")
	s.over("s1", "s2", "")
	s.mend()
	s.wantPings("again")
}

// Two hubs: the second takes over, whatever it is that fails at the first.
func TestSecondHub(t *testing.T) {
	t.Parallel()
	s := newStar(t, "ipv4", "h1", "h2")
	s.wantPings("at first")
	// A busy machine may have left the first hub by now, and nothing returns to it by itself.
	for _, ends := range [][2]string{{"s1", "s2"}, {"s2", "s1"}} {
		if v, err := s.vtep(ends[0], ends[1]); err == nil && v.Device != overlay.TunnelDevice(ends[0], "h1", 0) {
			s.cut("h2", ends[0])
			s.over(ends[0], ends[1], "h1")
			s.mend()
		}
	}
	s.over("s1", "s2", "h1")
	s.over("s2", "s1", "h1")
	t.Run("the first loses a spoke", func(t *testing.T) {
		s.cut("h1", "s2")
		t.Logf("s2 changed after %s", s.over("s2", "s1", "h2"))
		t.Logf("s1 changed after %s more", s.over("s1", "s2", "h2"))
		s.wantPings("over the second")
		s.mend()
	})
	t.Run("the second loses the other", func(t *testing.T) {
		s.wait("s2's tunnel to h1 is back", func() error {
			if v, err := s.vtep("s2", "h1"); err != nil || v.Device == "" {
				return fmt.Errorf("%+v, %w", v, err)
			}
			return nil
		})
		s.cut("h2", "s1")
		s.over("s1", "s2", "h1")
		s.over("s2", "s1", "h1")
		s.wantPings("over the first again")
		s.mend()
	})
	t.Run("a hub that stands but does not forward", func(t *testing.T) {
		s.nodes["h1"].sh(`nft 'add table inet broken; add chain inet broken forward { type filter hook forward priority 0; policy drop; }'`)
		s.over("s1", "s2", "h2")
		s.over("s2", "s1", "h2")
		s.wantPings("over the second")
	})
}
