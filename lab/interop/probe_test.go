package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The prober sends from every peer of manyVRFs to the host and the gateway's loopback of every VRF, and to a place that no VRF has a
// route to, in both families by TCP, UDP and ICMP. What arrives is not taken from the sockets but from the wire, at every peer and
// at the trap: a packet that gets across and is not answered is a leak, too.

// matrix is what was seen.
type matrix struct {
	sent                   int
	controls, wantControls int
	refused, wantRefused   int
	crossed                []string
	missing, silent        []string // controls and refusals that were not seen
	took                   time.Duration
}

var protocols = map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMP"}

// What the addresses of the lab stand for: the last of 10.WHAT.i.1 and fd00:WHAT:i::1.
const (
	whatSource  = 100
	whatHost    = 101
	whatGateway = 200
)

// nowhere is in no VRF, and main has a default route to the trap.
var nowhere = [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:ffff::1")}

func labAddr(six bool, what, i int) netip.Addr {
	if six {
		a := netip.MustParseAddr("fd00::1").As16()
		a[2], a[3] = byte(what>>8), byte(what)
		hex := map[int][2]byte{100: {1, 0}, 101: {1, 1}, 200: {2, 0}}[what]
		a[2], a[3] = hex[0], hex[1]
		binary.BigEndian.PutUint16(a[4:], uint16(i))
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, byte(what), byte(i), 1})
}

// meaning is the other way round; i is 0 for other addresses.
func meaning(a netip.Addr) (what, i int) {
	if a.Is4() {
		b := a.As4()
		if b[0] == 10 && b[3] == 1 && (b[1] == whatSource || b[1] == whatHost || b[1] == whatGateway) {
			return int(b[1]), int(b[2])
		}
		return 0, 0
	}
	b := a.As16()
	if b[0] == 0xfd && b[1] == 0 {
		switch {
		case b[2] == 1 && b[3] == 0:
			what = whatSource
		case b[2] == 1 && b[3] == 1:
			what = whatHost
		case b[2] == 2 && b[3] == 0:
			what = whatGateway
		default:
			return 0, 0
		}
		return what, int(binary.BigEndian.Uint16(b[4:]))
	}
	return 0, 0
}

// packet is what matters of one.
type packet struct {
	src, dst  netip.Addr
	protocol  byte
	icmp      [2]byte    // type and code
	about     netip.Addr // destination of the packet that an ICMP error is about
	aboutProt byte
}

func parse(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		p.src, p.dst, p.protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		rest = b[min(len(b), int(b[0]&15)*4):]
	case 6:
		if len(b) < 40 {
			return p, false
		}
		p.src, p.dst, p.protocol = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		rest = b[40:]
	default:
		return p, false
	}
	if p.protocol != unix.IPPROTO_ICMP && p.protocol != unix.IPPROTO_ICMPV6 || len(rest) < 8 {
		return p, true
	}
	p.icmp = [2]byte{rest[0], rest[1]}
	if p.unreachable() {
		if q, ok := parse(rest[8:]); ok {
			p.about, p.aboutProt = q.dst, q.protocol
		}
	}
	return p, true
}

// unreachable says whether it is an ICMP destination unreachable; port whether of the port, which only the target itself says.
func (p *packet) unreachable() bool {
	return p.protocol == unix.IPPROTO_ICMP && p.icmp[0] == 3 || p.protocol == unix.IPPROTO_ICMPV6 && p.icmp[0] == 1
}

func (p *packet) port() bool {
	return p.protocol == unix.IPPROTO_ICMP && p.icmp == [2]byte{3, 3} || p.protocol == unix.IPPROTO_ICMPV6 && p.icmp == [2]byte{1, 4}
}

// watch is a wire that is listened to.
type watch struct {
	fd     int
	number int // of the peer; 0 is the trap
}

func (n *node) watch(number int) (watch, error) {
	w := watch{number: number}
	err := n.Within(func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		return nil
	})
	return w, err
}

// verdict sorts a packet that came in at a wire.
type finding struct {
	control, crossed, refused string
}

func judge(number int, p *packet) (f finding) {
	whatS, from := meaning(p.src)
	whatD, to := meaning(p.dst)
	name := protocols[p.protocol]
	six := map[bool]string{true: "IPv6", false: "IPv4"}[p.src.Is6()]
	text := fmt.Sprintf("%s %s", name, six)
	switch {
	case number == 0:
		if from != 0 || to != 0 {
			f.crossed = fmt.Sprintf("%s from %s to %s in the main table", text, p.src, p.dst)
		}
	case p.port(): // the target says that it got a probe
		if what, i := meaning(p.about); i != number && i != 0 {
			f.crossed = fmt.Sprintf("UDP %s from VRF %d was answered by %s", six, number, p.about)
		} else if what == whatGateway && i == number {
			f.control = fmt.Sprintf("UDP %s gateway %d", six, number)
		}
	case p.unreachable():
		if p.about == nowhere[0] || p.about == nowhere[1] {
			f.refused = fmt.Sprintf("%s %s %d", protocols[p.aboutProt], six, number)
		}
	case from != 0 && from != number, to != 0 && to != number:
		f.crossed = fmt.Sprintf("%s from %s to %s arrived in VRF %d", text, p.src, p.dst, number)
	case whatS == whatSource && whatD == whatHost:
		f.control = fmt.Sprintf("%s host %d", text, number)
	case whatS == whatGateway && whatD == whatSource:
		f.control = fmt.Sprintf("%s gateway %d", text, number)
	}
	return f
}

func (l *manyVRFs) probe(t *testing.T) matrix {
	t.Helper()
	began := time.Now()
	var m matrix
	var watches []watch
	defer func() {
		for _, w := range watches {
			unix.Close(w.fd)
		}
	}()
	for i, n := range append([]*node{l.trap}, l.peers...) {
		w, err := n.watch(i)
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	// Reads all wires until told to stop and they are empty.
	stop := make(chan struct{})
	var reading sync.WaitGroup
	var seen sync.Mutex
	controls, crossed, refused := map[string]bool{}, map[string]bool{}, map[string]bool{}
	reading.Go(func() {
		buffer := make([]byte, 2048)
		for ended := false; ; {
			select {
			case <-stop:
				ended = true
			default:
			}
			got := false
			for _, w := range watches {
				for {
					n, from, err := unix.Recvfrom(w.fd, buffer, 0)
					if err != nil {
						break
					}
					got = true
					if ll, ok := from.(*unix.SockaddrLinklayer); ok && (ll.Pkttype == unix.PACKET_OUTGOING || ll.Hatype == unix.ARPHRD_LOOPBACK) {
						continue
					}
					p, ok := parse(buffer[:n])
					if !ok {
						continue
					}
					f := judge(w.number, &p)
					for text, set := range map[string]map[string]bool{f.control: controls, f.crossed: crossed, f.refused: refused} {
						if text != "" {
							seen.Lock()
							set[text] = true
							seen.Unlock()
						}
					}
				}
			}
			if !got {
				if ended {
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		}
	})
	// A probe may be lost to a full queue or a neighbour entry that is not there yet, so there are two rounds, and more of own probes alone
	// while one is missed: in the storm of all, a slow kernel has no room for the answer to each. A probe that crosses, crosses in any round.
	complete := func() bool {
		seen.Lock()
		defer seen.Unlock()
		return len(controls) == 12*len(l.peers) && len(refused) == 6*len(l.peers)
	}
	for round := 0; round < 2 || round < 6 && !complete(); round++ {
		if round >= 2 {
			// The kernel tells a host of five refusals at once, then of one a second (net.ipv4.route.error_burst, error_cost).
			time.Sleep(4 * time.Second)
		}
		var sending sync.WaitGroup
		var mu sync.Mutex
		slots := make(chan struct{}, 8)
		for i := range l.peers {
			sending.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				n, err := l.send(i+1, round < 2)
				mu.Lock()
				defer mu.Unlock()
				m.sent += n
				if err != nil {
					t.Errorf("prober at peer %d: %v", i+1, err)
				}
			})
		}
		sending.Wait()
	}
	time.Sleep(500 * time.Millisecond) // the last answers
	close(stop)
	reading.Wait()
	m.took = time.Since(began)
	for i := 1; i <= len(l.peers); i++ {
		for _, six := range []string{"IPv4", "IPv6"} {
			for _, protocol := range []string{"TCP", "UDP", "ICMP"} {
				m.wantRefused++
				if r := fmt.Sprintf("%s %s %d", protocol, six, i); refused[r] {
					m.refused++
				} else {
					m.silent = append(m.silent, r)
				}
				for _, target := range []string{"host", "gateway"} {
					m.wantControls++
					if c := fmt.Sprintf("%s %s %s %d", protocol, six, target, i); controls[c] {
						m.controls++
					} else {
						m.missing = append(m.missing, c)
					}
				}
			}
		}
	}
	m.crossed = slices.Sorted(maps.Keys(crossed))
	return m
}

// send sends from one peer to the targets of its own VRF, or to all, and says how many probes it sent.
func (l *manyVRFs) send(from int, all bool) (sent int, err error) {
	err = l.peers[from-1].Within(func() error {
		var connecting []int
		defer func() {
			for _, fd := range connecting {
				unix.Close(fd)
			}
		}()
		for _, six := range []bool{false, true} {
			domain, icmp, echo := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
			if six {
				domain, icmp, echo = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
			}
			source := sockaddr(labAddr(six, whatSource, from), 0)
			socket := func(kind, protocol int) (int, error) {
				fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
				if err != nil {
					return 0, err
				}
				return fd, unix.Bind(fd, source)
			}
			udp, err := socket(unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(udp)
			raw, err := socket(unix.SOCK_RAW, icmp)
			if err != nil {
				return err
			}
			defer unix.Close(raw)
			targets := []netip.Addr{nowhere[0]}
			if six {
				targets[0] = nowhere[1]
			}
			for i := 1; i <= len(l.peers); i++ {
				if i != from && !all {
					continue
				}
				targets = append(targets, labAddr(six, whatHost, i), labAddr(six, whatGateway, i))
			}
			for _, a := range targets {
				// An error that came back for an earlier probe is told at the next call; then once more.
				if unix.Sendto(udp, []byte("probe"), 0, sockaddr(a, 33434)) != nil {
					_ = unix.Sendto(udp, []byte("probe"), 0, sockaddr(a, 33434))
				}
				_ = unix.Sendto(raw, echoRequest(echo, uint16(from)), 0, sockaddr(a, 0))
				tcp, err := socket(unix.SOCK_STREAM, 0)
				if err != nil {
					return err
				}
				connecting = append(connecting, tcp)
				if err := unix.Connect(tcp, sockaddr(a, 7777)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
					return fmt.Errorf("connect to %s: %w", a, err)
				}
				sent += 3
			}
		}
		time.Sleep(200 * time.Millisecond) // the sockets stay while answers come
		return nil
	})
	return sent, err
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// echoRequest is an ICMP echo; the kernel reckons the sum of ICMPv6 itself.
func echoRequest(kind byte, id uint16) []byte {
	b := []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	if kind == 8 {
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	}
	return b
}
