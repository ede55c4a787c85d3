package linux_test

import (
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

var update = flag.Bool("update", false, "write what was made to testdata; read the difference before committing it")

func install(t *testing.T, w *world, f kernel.Filter) {
	t.Helper()
	f.Comment = kernel.AliasPrefix + "gw"
	err := w.Filters("fabric").Apply(t.Context(), []reconcile.Op[string, kernel.Filter]{
		{Kind: reconcile.Create, Key: "fabric", New: f},
	})[0]
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilterListing shows the table as an operator sees it.
func TestFilterListing(t *testing.T) {
	w := newWorld(t)
	install(t, w, kernel.Filter{
		MSS4: 1300, MSS6: 1280, ClampDevices: "ext0,fxv1",
		VXLANPort: 4789, VXLANDevices: "fxw1,fxw2", Marks: "ext0=200,ext1=201",
		DirectPort: 4790, DirectSources: "192.0.2.9,192.0.2.10,2001:db8::9",
	})
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/filter.nft"
	if *update {
		if err := os.WriteFile(golden, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(strings.Fields(string(out)), " ") != strings.Join(strings.Fields(string(want)), " ") {
		t.Errorf("nft lists\n%s\nwant\n%s", out, want)
	}
	// What is listed can be loaded again, as operators do.
	load := exec.Command("nft", "--check", "-f", "-")
	load.Stdin = strings.NewReader("flush ruleset\n" + string(out))
	if out, err := load.CombinedOutput(); err != nil {
		t.Errorf("nft cannot read its own listing: %v: %s", err, out)
	}
}

// TestFilterDrift changes one thing at a time behind our back.
func TestFilterDrift(t *testing.T) {
	w := newWorld(t)
	f := kernel.Filter{
		Comment: kernel.AliasPrefix + "gw", MSS4: 1300, ClampDevices: "ext0", VXLANPort: 4789, VXLANDevices: "fxw1",
	}
	for _, change := range []string{
		"add rule inet fabric output accept",
		"insert rule inet fabric input udp dport 4789 accept",
		"flush chain inet fabric forward",
		"add element inet fabric tunnels { \"eth0\" }",
		"delete element inet fabric clamped { \"ext0\" }",
		"add chain inet fabric early { type filter hook input priority -300; }",
		"add chain inet fabric output { policy drop; }",
		"add rule inet fabric owner return comment \"more\"",
	} {
		install(t, w, f)
		have, err := w.Filters("fabric").Observe(t.Context())
		if err != nil || have["fabric"] != f {
			t.Fatalf("before %q: %+v, %v", change, have, err)
		}
		if err := run("nft", change); err != nil {
			t.Fatal(err)
		}
		have, err = w.Filters("fabric").Observe(t.Context())
		if got, ok := have["fabric"]; err != nil || !ok || got == f {
			t.Errorf("after %q: %+v, %v; want a table of ours that is not as wanted", change, have, err)
		}
	}
	install(t, w, f)
	if err := run("nft", "flush", "chain", "inet", "fabric", "owner"); err != nil {
		t.Fatal(err)
	}
	err := w.Filters("fabric").Apply(t.Context(), []reconcile.Op[string, kernel.Filter]{
		{Kind: reconcile.Create, Key: "fabric", New: f},
	})[0]
	var foreign *reconcile.ForeignError
	if !errors.As(err, &foreign) {
		t.Errorf("a table that lost its mark: error %v, want a ForeignError", err)
	}
}

// peer runs functions in a second namespace that ext0's other end is moved to.
type peer struct{ do chan func() }

func newPeer(t *testing.T) *peer {
	t.Helper()
	p := &peer{do: make(chan func())}
	tid := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		tid <- unix.Gettid()
		for fn := range p.do {
			fn()
		}
	}()
	t.Cleanup(func() { close(p.do) })
	if err := run("ip", "link", "set", "ext0p", "netns", strconv.Itoa(<-tid)); err != nil {
		t.Fatal(err)
	}
	p.run(func() {
		for _, args := range []string{
			"ip link set lo up", "ip addr add 10.0.0.2/24 dev ext0p", "ip addr add 2001:db8::2/64 dev ext0p nodad", "ip link set ext0p up",
		} {
			if err := run(strings.Fields(args)...); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

func (p *peer) run(fn func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); fn() }
	<-done
}

// mss is what a connection may send in one segment, without the 12 bytes of the timestamp option.
func mss(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return int(info.Snd_mss) + 12
}

// TestFilterPackets: a gateway (here) and a host behind ext0.
func TestFilterPackets(t *testing.T) {
	w := newWorld(t)
	if err := w.AddDevice("ext0"); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t)
	for _, args := range []string{
		"ip addr add 10.0.0.1/24 dev ext0", "ip addr add 2001:db8::1/64 dev ext0 nodad",
	} {
		if err := run(strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	listen := func(network, addr string) (l net.Listener) {
		p.run(func() {
			var err error
			if l, err = net.Listen(network, addr); err != nil {
				t.Error(err)
			}
		})
		return l
	}
	segments := func(addr string) (ours, theirs int) {
		t.Helper()
		l := listen("tcp", addr)
		defer l.Close()
		c, err := net.DialTimeout("tcp", l.Addr().String(), 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		return mss(t, c), mss(t, a)
	}
	for _, tt := range []struct {
		name string
		f    kernel.Filter
		v4   int
		v6   int
	}{
		{"no clamp", kernel.Filter{}, 1460, 1440},
		{"clamp", kernel.Filter{MSS4: 1300, MSS6: 1280, ClampDevices: "ext0"}, 1300, 1280},
		{"clamp never raises", kernel.Filter{MSS4: 9000, MSS6: 9000, ClampDevices: "ext0"}, 1460, 1440},
		{"clamp elsewhere", kernel.Filter{MSS4: 1300, MSS6: 1280, ClampDevices: "ext1"}, 1460, 1440},
	} {
		install(t, w, tt.f)
		for addr, want := range map[string]int{"10.0.0.2:0": tt.v4, "[2001:db8::2]:0": tt.v6} {
			if ours, theirs := segments(addr); ours != want || theirs != want {
				t.Errorf("%s, %s: segments of %d bytes sent, %d received, want %d", tt.name, addr, ours, theirs, want)
			}
		}
	}

	// The VXLAN guard: out is refused at once; in never arrives. A datagram to another port, sent after it, does.
	udp := func(port string) net.PacketConn {
		c, err := net.ListenPacket("udp", "10.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	guarded, open := udp("4789"), udp("4790")
	send := func(to string) {
		p.run(func() {
			c, err := net.Dial("udp", to)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	arrived := func(c net.PacketConn) (got bool) {
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			_, _, err := unix.Recvfrom(int(fd), make([]byte, 9), unix.MSG_DONTWAIT)
			got = err == nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	waitOpen := func() {
		t.Helper()
		_ = open.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, _, err := open.ReadFrom(make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		tunnels string
		pass    bool
	}{{"fxw1", false}, {"ext0", true}, {"", false}} {
		install(t, w, kernel.Filter{VXLANPort: 4789, VXLANDevices: tt.tunnels})
		send("10.0.0.1:4789")
		send("10.0.0.1:4790")
		waitOpen()
		if got := arrived(guarded); got != tt.pass {
			t.Errorf("tunnels %q: VXLAN from ext0 arrived: %v, want %v", tt.tunnels, got, tt.pass)
		}
		c, err := net.Dial("udp", "10.0.0.2:4789")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); (err == nil) != tt.pass {
			t.Errorf("tunnels %q: VXLAN to ext0: error %v, want it sent: %v", tt.tunnels, err, tt.pass)
		}
		c.Close()
	}
	for _, tt := range []struct {
		sources string
		pass    bool
	}{{"10.0.0.2", true}, {"10.0.0.8,10.0.0.9", false}, {"10.0.0.8,10.0.0.2", true}, {"2001:db8::2", false}, {"", false}} {
		install(t, w, kernel.Filter{DirectPort: 4789, DirectSources: tt.sources})
		send("10.0.0.1:4789")
		send("10.0.0.1:4790")
		waitOpen()
		if got := arrived(guarded); got != tt.pass {
			t.Errorf("sources %q: a direct tunnel's packet from 10.0.0.2 arrived: %v, want %v", tt.sources, got, tt.pass)
		}
	}
}
