package cloudemu

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"
)

// inNamespace runs the calling test again as a process in a network namespace
// of its own, which ends with the process, and returns false; in that process
// it returns true.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "CLOUDEMU_TEST_NAMESPACE"
	if os.Getenv(mark) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), mark+"=1", "GOCOVERDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// sh runs one command given as words.
func sh(t *testing.T, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// eventually waits until got returns want.
func eventually(t *testing.T, when string, want string, got func() string) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	last := got()
	for last != want && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
		last = got()
	}
	if last != want {
		t.Errorf("%s:\n%s\nwant:\n%s", when, last, want)
	}
}

// ourRoutes prints the routes of the data plane as ip does, one a line.
func ourRoutes(t *testing.T) func() string {
	return func() string {
		var out []string
		for _, family := range []string{"-4", "-6"} {
			for _, line := range strings.Split(strings.TrimSpace(sh(t, "ip "+family+" route show proto 50")), "\n") {
				line = strings.Join(strings.Fields(strings.Replace(line, "pref medium", "", 1)), " ")
				if line != "" {
					out = append(out, line)
				}
			}
		}
		return strings.Join(out, "\n")
	}
}

// The namespace is the VPC's router. i-gw hangs on the device gw and lives in
// a namespace of its own, i-host on the device host.
//
//	[i-gw: 172.18.171.245, 10.1.0.1] --gw-- [router] --host-- (172.18.171.247)
func TestKernelDataPlane(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	peer := exec.Command("cat") // a process to hold the instance's namespace
	peer.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	stdin, err := peer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = peer.Wait() })
	sh(t, "ip link set lo up")
	sh(t, fmt.Sprintf("ip link add gw type veth peer name eth0 netns %d", peer.Process.Pid))
	sh(t, "ip link add host type veth peer name hostpeer")
	for _, line := range []string{"link set gw up", "link set host up", "link set hostpeer up",
		"addr add 172.18.171.253/32 dev gw", "route add 172.18.171.245/32 dev gw", "route add 172.18.171.247/32 dev host",
		"-6 route add 2001:db8::245/128 dev gw", "-6 route add 2001:db8::247/128 dev host",
		"route add 10.77.0.0/16 dev host proto static"} {
		sh(t, "ip "+line)
	}
	for _, line := range []string{"link set lo up", "link set eth0 up", "addr add 172.18.171.245/32 dev eth0", "addr add 10.1.0.1/32 dev lo",
		"route add 172.18.171.253/32 dev eth0"} {
		sh(t, fmt.Sprintf("nsenter -n -t %d ip %s", peer.Process.Pid, line))
	}
	sh(t, "ip route add 10.66.0.0/16 dev host proto 50") // left by an earlier run

	s := newServer(t, "stuck")
	k := &KernelDataPlane{VPC: "vpc-a"}
	s.plane, s.resync = k, 50*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	apply := func(action string, p params) {
		t.Helper()
		mustDo(t, s, action, p)
		s.Tick(0)
	}
	routes := ourRoutes(t)
	// The seed's routes: the foreign custom one, and two whose hop has no data
	// plane here; what an earlier run left is gone.
	const start = "blackhole 10.8.0.0/16\nblackhole 10.9.0.0/16\n"
	const foreign = "192.0.2.0/24 via 172.18.171.247 dev host onlink"
	eventually(t, "seeded", start+foreign, routes)

	mustDo(t, s, "CreateRouteEntry", create("vtb-sys", "10.1.0.0/16", "Instance", "i-gw"))
	if ping("10.1.0.1") {
		t.Error("a Pending entry forwards")
	}
	s.Tick(0)
	apply("CreateRouteEntry", create("vtb-sys", "2001:db8:5::/48", "HaVip", "havip-1"))
	apply("CreateRouteEntry", create("vtb-sub", "10.3.0.0/16", "Instance", "i-gw")) // not this table
	const v6 = "\n2001:db8:5::/48 via 2001:db8::245 dev gw metric 1024 onlink"
	eventually(t, "created", "10.1.0.0/16 via 172.18.171.245 dev gw onlink\n"+start+foreign+v6, routes)
	if !ping("10.1.0.1") {
		t.Error("an Available entry does not forward")
	}

	move := params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "10.1.0.0/16", "NewNextHopType": "Instance", "NewNextHopId": "i-host"}
	mustDo(t, s, "ModifyRouteEntry", move)
	if !ping("10.1.0.1") {
		t.Error("a Modifying entry left its old hop")
	}
	s.Tick(0)
	eventually(t, "modified", "10.1.0.0/16 via 172.18.171.247 dev host onlink\n"+start+foreign+v6, routes)

	emu(t, s, "POST", "instance", `{"id":"i-host","op":"stop"}`)
	emu(t, s, "POST", "instance", `{"id":"i-gw","op":"stop"}`)
	eventually(t, "instances stopped", "blackhole 10.1.0.0/16\n"+start+"blackhole 192.0.2.0/24\nblackhole 2001:db8:5::/48 dev lo metric 1024", routes)
	emu(t, s, "POST", "instance", `{"id":"i-host","op":"start"}`)
	emu(t, s, "POST", "instance", `{"id":"i-gw","op":"start"}`)
	eventually(t, "instances started", "10.1.0.0/16 via 172.18.171.247 dev host onlink\n"+start+foreign+v6, routes)

	sh(t, "ip route del 10.1.0.0/16") // somebody fiddles
	eventually(t, "removed by hand", "10.1.0.0/16 via 172.18.171.247 dev host onlink\n"+start+foreign+v6, routes)

	apply("DeleteRouteEntry", params{"RouteTableId": "vtb-sys", "DestinationCidrBlock": "2001:db8:5::/48"})
	apply("DeleteRouteEntry", params{"RouteEntryId": "rte-foreign"})
	eventually(t, "deleted", "10.1.0.0/16 via 172.18.171.247 dev host onlink\n"+strings.TrimSpace(start), routes)

	// A kernel route of somebody else is neither replaced nor removed.
	apply("CreateRouteEntry", create("vtb-sys", "10.77.0.0/16", "Instance", "i-gw"))
	if err := (&KernelDataPlane{}).Set(ctx, "vpc-a", s.FIB("vpc-a")); err == nil || !strings.Contains(err.Error(), "10.77.0.0/16 is in the main table with protocol 4") {
		t.Errorf("conflict with a foreign route: %v", err)
	}
	if err := (&KernelDataPlane{VPC: "vpc-b"}).Set(ctx, "vpc-a", nil); err != nil {
		t.Error(err)
	}
	if got := strings.TrimSpace(sh(t, "ip route show 10.77.0.0/16")); got != "10.77.0.0/16 dev host proto static scope link" {
		t.Errorf("foreign route: %s", got)
	}
}

func ping(addr string) bool {
	return exec.Command("ping", "-c1", "-W1", "-I172.18.171.253", addr).Run() == nil
}

// The SDK's own credential chain finds the hard-coded metadata address, and
// the key it gets there signs a call.
func TestMetadataChain(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	sh(t, "ip link set lo up")
	sh(t, "ip addr add 100.100.100.200/32 dev lo")
	s := newServer(t, "instant")
	l, err := net.Listen("tcp", "100.100.100.200:80")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: s.Metadata()}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(l) }()
	t.Cleanup(func() { _ = hs.Close(); <-done })
	t.Setenv("HOME", t.TempDir()) // no profile files
	v, err := alivpc.NewClientWithOptions("cn-a", sdk.NewConfig().WithScheme("HTTP"), credentials.NewDefaultCredentialsProvider())
	if err != nil {
		t.Fatal(err)
	}
	v.Domain = listen(t, s, nil)
	out, err := v.DescribeVpcs(alivpc.CreateDescribeVpcsRequest())
	if err != nil || len(out.Vpcs.Vpc) != 2 {
		t.Errorf("%v %v", out, err)
	}
	if calls, _ := s.Requests(); calls[0].Key != "role/fabric" {
		t.Errorf("signed by %s", calls[0].Key)
	}
}
