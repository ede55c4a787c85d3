package bfd

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOnTheWire looks at what the kernel makes of our sockets: TTL 255, TOS CS6, ports of RFC 5881 section 4; one source port per
// session, and the same for all its packets.
func TestOnTheWire(t *testing.T) {
	a, b := newSpaces(t, 1)
	b.start(
		sessionOf("v4", "10.0.0.2", "10.0.0.1"),
		sessionOf("far", "10.0.0.2", "10.0.0.1", multihop(255)),
		sessionOf("v6", "fe80::2", "fe80::1", dev("a0")),
	)
	a.start(sessionOf("v4", "10.0.0.1", "10.0.0.2"), sessionOf("v6", "fe80::1", "fe80::2", dev("b0")))
	type port struct {
		v6  bool
		dst uint16
	}
	ports := map[port]map[uint16]int{}
	note := func(v6 bool, udp []byte) {
		p := port{v6, binary.BigEndian.Uint16(udp[2:])}
		if ports[p] == nil {
			ports[p] = map[uint16]int{}
		}
		ports[p][binary.BigEndian.Uint16(udp)]++
	}
	enough := func(p port) bool {
		for _, n := range ports[p] {
			return n >= 3
		}
		return false
	}
	sniff(t, b, unix.ETH_P_IP, func(p []byte) []byte {
		if p[9] != unix.IPPROTO_UDP {
			return nil
		}
		if p[1] != tosCS6 || p[8] != 255 {
			t.Errorf("TOS %#x, TTL %d", p[1], p[8])
		}
		note(false, p[20:])
		if enough(port{false, SingleHopPort}) && enough(port{false, MultihopPort}) {
			return p
		}
		return nil
	})
	sniff(t, b, unix.ETH_P_IPV6, func(p []byte) []byte {
		if p[6] != unix.IPPROTO_UDP {
			return nil
		}
		if class := binary.BigEndian.Uint16(p) >> 4 & 0xff; class != tosCS6 || p[7] != 255 {
			t.Errorf("traffic class %#x, hop limit %d", class, p[7])
		}
		note(true, p[40:])
		if enough(port{true, SingleHopPort}) {
			return p
		}
		return nil
	})
	if len(ports) != 3 {
		t.Errorf("ports %v", ports)
	}
	for p, from := range ports {
		if len(from) != 1 {
			t.Errorf("%+v: source ports %v", p, from)
		}
		for s := range from {
			if s < firstPort {
				t.Errorf("%+v: source port %d", p, s)
			}
		}
	}
}

// sendAll sends a packet of each session, due or not.
func sendAll(l *loop) {
	for _, s := range l.sessions {
		var p Packet
		s.proto.fill(&p)
		l.send(s, &p)
	}
}

// stalled calls f with an engine that has not looked at its sockets for longer than the detection time, and its two sessions. During
// the stall packets arrive for the time given.
func stalled(t *testing.T, packets time.Duration, f func(l *loop)) {
	a, _ := newSpaces(t, 0)
	a.in(func() {
		// Detection time 300 ms.
		l := pairLoop(t, 1, Params{DesiredMinTx: 100 * ms, RequiredMinRx: 100 * ms, DetectMult: 3})
		// The kernel begins to stamp packets some time after the first socket has asked for it; until then it stamps on reading.
		await(t, "time stamps from receipt", func() bool {
			turn(t, l, make([]unix.EpollEvent, 8))
			sendAll(l)
			time.Sleep(5 * ms)
			for _, r := range l.rx {
				l.drain(r)
			}
			return time.Since(time.Unix(0, l.info.stamp)) > 4*ms
		})
		for _, s := range l.sessions {
			if s.proto.State() != Up {
				t.Fatal("not Up any more")
			}
			s.ups, s.downs = 1, 0
		}
		for start := time.Now(); time.Since(start) < 800*ms; time.Sleep(20 * ms) {
			if time.Since(start) > packets {
				continue
			}
			sendAll(l)
		}
		for _, s := range l.sessions {
			if !s.proto.DetectDue(time.Now()) {
				t.Fatal("not stalled")
			}
		}
		f(l)
	})
}

// TestDrainBeforeDown: an engine that was kept from running reads what has arrived before it says that nothing did.
func TestDrainBeforeDown(t *testing.T) {
	stalled(t, time.Minute, func(l *loop) {
		l.tick(time.Now())
		for _, s := range l.sessions {
			if s.proto.State() != Up || s.downs != 0 {
				t.Errorf("%v: %s", s.proto.State(), s.reason)
			}
		}
	})
}

// TestKernelTime: a packet counts from when the kernel had it, not from when we came to read it.
func TestKernelTime(t *testing.T) {
	stalled(t, 100*ms, func(l *loop) {
		l.tick(time.Now())
		for _, s := range l.sessions {
			if s.downs != 1 {
				t.Errorf("%v with packets 700 ms old and a detection time of %v", s.proto.State(), s.proto.DetectionTime())
			}
		}
	})
}

// TestArrivalTime: a wall clock that is set meanwhile moves a packet's time no further than from the last look at the socket to now.
func TestArrivalTime(t *testing.T) {
	now := time.Now()
	empty := now.Add(-time.Second)
	for _, tt := range []struct {
		stamp time.Duration // relative to now; 0 is no stamp
		want  time.Duration
	}{{0, 0}, {-300 * ms, -300 * ms}, {-2 * time.Second, -time.Second}, {-time.Hour, -time.Second}, {time.Hour, 0}} {
		a := arrival{}
		if tt.stamp != 0 {
			a.stamp = now.Add(tt.stamp).UnixNano()
		}
		if got := a.at(now, empty).Sub(now); got != tt.want {
			t.Errorf("stamp %v: %v, want %v", tt.stamp, got, tt.want)
		}
	}
}

// TestOverflow: packets that the kernel had no room for are counted.
func TestOverflow(t *testing.T) {
	a, _ := newSpaces(t, 0)
	a.in(func() {
		l := pairLoop(t, 1, Params{DesiredMinTx: 100 * ms, RequiredMinRx: 100 * ms, DetectMult: 30})
		for _, r := range l.rx {
			if err := setOptions(r.fd, []option{{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, 1}}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the count comes with the next packet that is received
			for range 100 {
				sendAll(l)
			}
			for _, r := range l.rx {
				l.drain(r)
			}
		}
		if n := l.snapshot().totals.Overflowed; n < 100 {
			t.Errorf("%d", n)
		}
	})
}

// TestJournal: a log that blocks holds up nothing, and what is lost is counted.
func TestJournal(t *testing.T) {
	j := newJournal(nil)
	for range cap(j.lines) + 7 {
		j.put(line{})
	}
	if n := j.lost.Load(); n != 7 {
		t.Errorf("%d lost", n)
	}
	var l limit
	passed := 0
	for i := range 100 {
		held, ok := l.pass(epoch.Add(time.Duration(i) * time.Second))
		if ok {
			passed++
			if want := uint64(9); i > 0 && held != want {
				t.Errorf("after %d s: %d held, want %d", i, held, want)
			}
		}
	}
	if passed != 10 {
		t.Errorf("%d passed", passed)
	}
}

// TestDiscriminators: not 0, all different, and different after a restart.
func TestDiscriminators(t *testing.T) {
	seen := map[uint32]bool{0: true}
	for range 2 {
		l := &loop{
			engine: New(Config{}), journal: newJournal(nil), sessions: map[Path]*session{}, byDiscr: map[uint32]*session{},
			rx: map[rxKey]*rxSocket{},
		}
		for i := range 200 {
			l.add(sessionOf("x", "10.0.0.1", netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}).String()), epoch)
		}
		for d := range l.byDiscr {
			if seen[d] {
				t.Errorf("discriminator %d again", d)
			}
			seen[d] = true
		}
	}
	if len(seen) != 401 {
		t.Errorf("%d discriminators", len(seen))
	}
}

// TestNoNeighbour: where nobody listens the host answers with ICMP errors, and these cost no packet of ours.
func TestNoNeighbour(t *testing.T) {
	a, b := newSpaces(t, 1)
	b.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
	a.in(func() {
		l, err := newLoop(New(Config{}))
		if err != nil {
			t.Error(err)
			return
		}
		defer l.close()
		l.add(sessionOf("x", "10.0.0.1", "10.0.0.2"), time.Now())
		l.openAll(time.Now())
		for _, s := range l.sessions {
			for range 20 {
				var p Packet
				s.proto.fill(&p)
				l.send(s, &p)
			}
			if s.sent != 20 || s.sendErrors != 0 || s.problem != "" {
				t.Errorf("sent %d, errors %d (%v), problem %q", s.sent, s.sendErrors, s.sendErr, s.problem)
			}
		}
	})
	if n := b.run("nstat", "-asz", "UdpNoPorts"); !strings.Contains(n, "UdpNoPorts                      20 ") {
		t.Errorf("the neighbour got\n%s", n)
	}
}

// TestScheduling: what is said of the thread is what the kernel says, it ends with the engine, and refusal is said and survived.
func TestScheduling(t *testing.T) {
	policy := func() uint32 {
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return 0
		}
		return attr.Policy
	}
	inThread := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
	}
	inThread(func() {
		said, restore := realtime(10)
		if granted := said == "SCHED_FIFO 10"; granted != (policy() == unix.SCHED_FIFO) || !granted && !strings.Contains(said, "refused") {
			t.Errorf("said %q, policy %d", said, policy())
		}
		restore()
		if policy() != unix.SCHED_NORMAL {
			t.Errorf("policy %d afterwards", policy())
		}
		if said, _ := realtime(-1); !strings.HasPrefix(said, "normal") || policy() != unix.SCHED_NORMAL {
			t.Errorf("said %q, policy %d", said, policy())
		}
	})
	if os.Geteuid() != 0 {
		return
	}
	// The thread gives up its privilege, and is gone afterwards.
	inThread(func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &new([2]unix.CapUserData)[0]); err != nil {
			t.Error(err)
			return
		}
		if said, _ := realtime(10); !strings.Contains(said, "CAP_SYS_NICE") || policy() != unix.SCHED_NORMAL {
			t.Errorf("said %q, policy %d", said, policy())
		}
	})
}
