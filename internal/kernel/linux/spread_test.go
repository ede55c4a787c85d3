package linux

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// The flows inside a VXLAN device take all the ways that a group of next hops has to the remote VTEP, in both families of VTEPs.
func TestVXLANSpreads(t *testing.T) {
	for _, c := range []struct{ name, local, remote string }{{"v4", "10.255.0.1", "10.255.0.2"}, {"v6", "fd00:255::1", "fd00:255::2"}} {
		t.Run(c.name, func(t *testing.T) {
			h, ip := inNamespace(t)
			ip("link set lo up")
			local := netip.MustParseAddr(c.local)
			ip(fmt.Sprintf("addr add %s/%d dev lo", c.local, local.BitLen()))
			for i, d := range []string{"w0", "w1"} {
				ip("link add " + d + " type veth peer name " + d + "p")
				ip("link set " + d + " up")
				ip("link set " + d + "p up")
				ip("neigh add " + c.remote + " lladdr 02:00:00:00:00:99 dev " + d + " nud permanent")
				ip(fmt.Sprintf("-6 nexthop add id %d dev %s", i+1, d))
			}
			ip("nexthop add id 9 group 1/2")
			ip(fmt.Sprintf("route add %s/%d nhid 9 src %s metric 201", c.remote, local.BitLen(), c.local))
			for _, family := range []string{"ipv4", "ipv6"} {
				if err := os.WriteFile("/proc/sys/net/"+family+"/fib_multipath_hash_policy", []byte("1"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sent := func(device string) int {
				for line := range strings.Lines(read(t, "/proc/thread-self/net/dev")) {
					if f := strings.Fields(line); len(f) > 10 && f[0] == device+":" {
						n, _ := strconv.Atoi(f[10])
						return n
					}
				}
				t.Fatalf("no device %s", device)
				return 0
			}
			const flows = 200
			share := func(spread bool) (shares [2]int) {
				l := kernel.Link{
					Name: "fxv1", Kind: kernel.KindVXLAN, Alias: kernel.AliasPrefix + "x", MTU: 1370, Up: true, Spread: spread,
					VXLAN: kernel.VXLAN{VNI: 1, Local: local, Port: 4789},
				}
				if err := h.Links().Apply(t.Context(), []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: "fxv1", New: l}})[0]; err != nil {
					t.Fatal(err)
				}
				if !spread {
					ip("addr add 10.9.0.1/24 dev fxv1")
					ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev fxv1 nud permanent")
					mac := [6]byte{2, 0, 0, 0, 0, 2}
					err := h.FDB().Apply(t.Context(), []reconcile.Op[kernel.FDBKey, kernel.FDBEntry]{
						{Kind: reconcile.Create, Key: kernel.FDBKey{Device: "fxv1", MAC: mac}, New: kernel.FDBEntry{Dst: netip.MustParseAddr(c.remote)}}})[0]
					if err != nil {
						t.Fatal(err)
					}
				}
				shares = [2]int{-sent("w0"), -sent("w1")}
				for i := range flows {
					conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 20000 + i}, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9})
					if err != nil {
						t.Fatal(err)
					}
					_, err = conn.Write([]byte("flow"))
					conn.Close()
					if err != nil {
						t.Fatal(err)
					}
				}
				return [2]int{shares[0] + sent("w0"), shares[1] + sent("w1")}
			}
			// What the kernel does by itself is told, not asked for: it may learn better.
			t.Logf("without: %v", share(false))
			got := share(true)
			t.Logf("with: %v", got)
			if got[0] < flows/4 || got[1] < flows/4 {
				t.Errorf("of %d flows %v took the two ways", flows, got)
			}
		})
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
