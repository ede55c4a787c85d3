package alibaba

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"fabric/lab/cloudemu"
)

// inside tells the test's own process that it runs in the namespace.
const inside = "FABRIC_TEST_METADATA_NETNS"

// The metadata service's address is built into the SDK, so it is answered at that address, in a namespace: the whole
// discovery with nothing given, and the role's credentials through the SDK's own chain.
func TestInstanceRole(t *testing.T) {
	if os.Getenv(inside) != "" {
		t.Run("discovery", roleDiscovery)
		t.Run("outage", metadataOutage)
		t.Run("keys expire", roleExpiry)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	ns := fmt.Sprintf("cloud-meta-%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { ip("netns", "del", ns) })
	ip("-n", ns, "link", "set", "lo", "up")
	ip("-n", ns, "addr", "add", "100.100.100.200/32", "dev", "lo")
	cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", ns, os.Args[0], "-test.run=^TestInstanceRole$", "-test.v")
	cmd.Env = []string{inside + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + os.TempDir()}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInstanceRole/keys_expire") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// newInstance is an emulated cloud with its metadata service where instances find it.
func newInstance(t *testing.T, edit ...func(*cloudemu.Seed)) *emu {
	t.Helper()
	e := newEmu(t, "instant", edit...)
	l, err := net.Listen("tcp", "100.100.100.200:80")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: e.Metadata()}
	served := make(chan struct{})
	go func() { defer close(served); _ = hs.Serve(l) }()
	t.Cleanup(func() { _ = hs.Close(); <-served })
	e.meta, e.wish.CredentialsFile, e.wish.Tables = "", "", nil
	return e
}

func roleDiscovery(t *testing.T) {
	e := newInstance(t)
	v := e.open()
	info, err := v.Describe(t.Context())
	if err != nil || info.Instance != "i-gw" || info.Region != "cn-shenzhen" || info.ID != "vpc-sz" || strings.Join(info.Tables, " ") != "vtb-sub vtb-sz" {
		t.Errorf("info %+v %v", info, err)
	}
	noErrors(t, v.Table("vtb-sz").Apply(t.Context(), creates("i-gw", "10.1.0.0/16", "10.2.0.0/16")))
	noErrors(t, v.Table("vtb-sz").Apply(t.Context(), deletes("10.1.0.0/16", "10.2.0.0/16")))
	if got := e.entries("vtb-sz"); got != untouched {
		t.Errorf("at the end:\n%s", got)
	}
	// The role may write one table only; the other one's refusal says so, and holds no secret.
	for _, err := range v.Table("vtb-sub").Apply(t.Context(), creates("i-gw", "10.1.0.0/16")) {
		if err == nil || kindOf(err) != denied {
			t.Errorf("a write into the other table: %v", err)
			continue
		}
		leaks(t, err.Error())
	}
	for _, r := range e.requests().Requests {
		if r.Key != "role/fabric" {
			t.Errorf("a call with key %s", r.Key)
		}
	}
	e.behaved()
}

func roleExpiry(t *testing.T) {
	e := newInstance(t)
	tab := e.open().Table("vtb-sz")
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.1.0.0/16")))
	// The key in hand ends long before it said it would.
	e.control("POST", "metadata", `{"rotate": "fabric"}`, nil)
	e.control("POST", "tick", fmt.Sprintf(`{"ms": %d}`, 2*time.Minute/time.Millisecond), nil)
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.2.0.0/16")))
	expired := 0
	for _, r := range e.requests().Requests {
		if r.Code == "InvalidSecurityToken.Expired" {
			expired++
		}
	}
	if expired != 1 {
		t.Errorf("%d calls were refused for their token, want one", expired)
	}
	noErrors(t, tab.Apply(t.Context(), deletes("10.1.0.0/16", "10.2.0.0/16")))
	e.behaved()
}

// The SDK asks for a new key while the old one is still good for three minutes. A metadata service that is away in these
// is no reason to stop.
func metadataOutage(t *testing.T) {
	e := newInstance(t, func(s *cloudemu.Seed) { s.Roles[0].TTLSeconds = 150 })
	tab := e.open().Table("vtb-sz")
	e.control("POST", "metadata", `{"outage": true}`, nil)
	noErrors(t, tab.Apply(t.Context(), creates("i-gw", "10.3.0.0/16")))
	e.control("POST", "metadata", `{"outage": false}`, nil)
	noErrors(t, tab.Apply(t.Context(), deletes("10.3.0.0/16")))
	if got := e.entries("vtb-sz"); got != untouched {
		t.Errorf("at the end:\n%s", got)
	}
	e.behaved()
}
