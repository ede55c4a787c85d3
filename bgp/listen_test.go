package bgp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
)

// alone skips a test that changes the network of the machine unless that is the test's own namespace.
func alone(t *testing.T) {
	t.Helper()
	if os.Getenv(ownNamespace) == "" {
		t.Skip("needs a network namespace of its own")
	}
}

// sysctl sets a value below /proc/sys until the test ends.
func sysctl(t *testing.T, key, value string) {
	t.Helper()
	file := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	set := func(b []byte) {
		if err := os.WriteFile(file, b, 0); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	set([]byte(value))
	t.Cleanup(func() { set(old) })
}

// accepted connects and says what became of it. A server closes at once what comes from no neighbour of its.
func accepted(d net.Dialer, to netip.AddrPort) (string, bool) {
	d.Timeout = time.Second
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return err.Error(), false
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err.Error(), false
	}
	if _, err = c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return "connected, but nobody accepts", false
	}
	return "accepted", true
}

// A VRF of rules has two addresses that the host has not yet. With ip_nonlocal_bind, which package vrf sets, its server
// starts for the address that is there, and the others serve as soon as they are.
func TestListenBeforeAddressIsThere(t *testing.T) {
	alone(t)
	n := newNetwork(t)
	doc := n.document()
	// Nobody can listen on this one without its device: it must not keep the others from it.
	doc.Sites[0].Gateways[0].VRFs[0].Interfaces = []config.Interface{{Name: "lo", Addresses: []netip.Prefix{prefix("fe80::7/64")}}}
	late := []string{"10.77.0.1/32", "fd00:77::1/128"}
	for _, p := range late {
		v := &doc.Sites[0].Gateways[0].VRFs[0]
		v.Loopbacks = append(v.Loopbacks, prefix(p))
	}
	n.addPeer(doc, "gw1", "CORE", config.Peer{Name: "ce", ASN: 65100, Families: []string{IPv4}}, 11, 101)
	r := n.router(65100, 101, 11, 65001, ceOptions{})
	r.announce(route{prefix: "10.1.0.0/16"})
	g := n.start(doc, "gw1")
	g.wantPeer("CORE", "ce", "held up", func(p PeerState) bool { return strings.Contains(p.LastError, "cannot listen") })

	sysctl(t, "net.ipv4.ip_nonlocal_bind", "1")
	sysctl(t, "net.ipv6.ip_nonlocal_bind", "1")
	g.wantRoutes("CORE", "10.1.0.0/16 peer ce [65100]")
	for _, p := range late {
		to := netip.AddrPortFrom(prefix(p).Addr(), uint16(n.port))
		if got, ok := accepted(net.Dialer{}, to); ok {
			t.Errorf("%s: %s before the address is there", to, got)
		}
		run(t, "ip", "addr", "add", p, "dev", "lo")
		t.Cleanup(func() { run(t, "ip", "addr", "del", p, "dev", "lo") })
		wait(t, to.String()+" to be accepted", patience, func() (string, bool) { return accepted(net.Dialer{}, to) })
	}
	if p := g.peer("CORE", "ce"); p.Flaps != 0 || p.State != "established" {
		t.Errorf("the session was touched: %+v", p)
	}
}

// far is the other end of a cable to a namespace of its own, without a name: it ends with the test.
type far struct{ ns *os.File }

func newFar(t *testing.T) *far {
	t.Helper()
	f := &far{}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.ns.Close() })
	return f
}

// do runs fn on a thread in the namespace.
func (f *far) do(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Setns(int(f.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// cable makes a device here, until the test ends, that leads to the namespace; ours has 10.78.0.1 and fe80::1, the other end 10.78.0.2 and fe80::2.
func (f *far) cable(t *testing.T, device string) {
	t.Helper()
	run(t, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.ns.Fd()))
	up := func(device, number string) {
		run(t, "ip", "link", "set", device, "addrgenmode", "none", "up")
		run(t, "ip", "addr", "add", "10.78.0."+number+"/24", "dev", device)
		run(t, "ip", "addr", "add", "fe80::"+number+"/64", "dev", device, "nodad")
	}
	t.Cleanup(func() {
		if deviceIndex(device) != 0 {
			run(t, "ip", "link", "del", device)
		}
	})
	up(device, "1")
	f.do(t, func() { up("eth0", "2") })
}

// The device that the listeners are bound to is made anew under its name, as a VRF device is when its table changes.
func TestDeviceMadeAnew(t *testing.T) {
	alone(t)
	const device = "bgpdev"
	f := newFar(t)
	f.cable(t, device)
	n := newNetwork(t)
	g := n.start(n.document(), "gw1")
	// No fabric, whose listener would be in the way of wildcards that are bound to no VRF device.
	g.Configure(Desired{VRFs: []Server{{VRF: "CORE", ASN: 65001, RouterID: n.addr(1), Port: n.port, BindDevice: device}}})
	serves := func(when string) {
		t.Helper()
		for _, to := range []string{"10.78.0.1", "fe80::1"} {
			wait(t, to+" to be accepted "+when, patience, func() (got string, ok bool) {
				f.do(t, func() {
					a := netip.MustParseAddr(to)
					if a.Is6() { // by number: package net remembers names for a minute, and those of another namespace
						a = a.WithZone(strconv.Itoa(deviceIndex("eth0")))
					}
					got, ok = accepted(net.Dialer{}, netip.AddrPortFrom(a, uint16(n.port)))
				})
				return got, ok
			})
		}
	}
	serves("at first")
	run(t, "ip", "link", "del", device)
	f.cable(t, device)
	serves("by the new device")
}
