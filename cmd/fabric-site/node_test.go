package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fabric/internal/config"
	"fabric/lab/netns"
)

// asProgram makes the test binary run as fabric-site itself.
const asProgram = "FABRIC_SITE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	code := m.Run()
	if linksDir != "" {
		os.RemoveAll(linksDir)
	}
	os.Exit(code)
}

var linksDir string

// linksProgram builds fabric-links, once.
var linksProgram = sync.OnceValues(func() (string, error) {
	var err error
	if linksDir, err = os.MkdirTemp("", "fabric-links"); err != nil {
		return "", err
	}
	out := filepath.Join(linksDir, "fabric-links")
	cmd := exec.Command("go", "build", "-o", out, "fabric/cmd/fabric-links")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fabric-links: %w\n%s", err, b)
	}
	return out, nil
})

// document is a gateway with a VRF on one interface and another gateway that is not there. KEY is replaced.
const document = `
fabric: {name: test, bgp: {port: 1790}}
vrfs:
  - {name: CORE, table: 200, vni: 1000}
  - {name: OPS, table: 201, vni: 1001}
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", private-key-file: KEY}
        vrfs:
          - vrf: CORE
            prefixes: [{prefix: 10.9.0.0/16, next-hop: 10.1.0.9}]
            interfaces: [{name: eth1, addresses: [10.1.0.1/24, "fd00:1::1/64"]}]
          - {vrf: OPS}
  - name: there
    gateways:
      - name: far
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "CTUhXQUd5LGpdQCFGj4mzmqd8CBfVGdA3oIFYqf8bQw="}
        vrfs: [{vrf: CORE, prefixes: [{prefix: 10.2.0.0/16}]}, {vrf: OPS}]
`

// node is a gateway's host: network and mount namespaces of its own, with the interface eth1.
type node struct {
	*netns.Host
	t    *testing.T
	dir  string
	file string
	// gateway is its name in the document.
	gateway string
	// notify receives what a daemon says to systemd.
	notify *net.UnixConn
	logs   []*os.File
	links  *exec.Cmd // fabric-links, nil while it does not run
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range []string{"unshare", "nsenter", "ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool, ": ", err)
		}
	}
	// A socket's path is short: not every test's folder is.
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, file: filepath.Join(dir, "fabric.yaml"), gateway: "gw"}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n.Host, err = netns.NewHost("ip link add eth1 type veth peer name eth1-host", "ip link set eth1 up", "ip link set eth1-host up")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := config.GenerateKey(n.key()); err != nil {
		t.Fatal(err)
	}
	n.write(document)
	n.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.notify.Close() })
	t.Cleanup(func() {
		for _, f := range n.logs {
			f.Close()
			if b, _ := os.ReadFile(f.Name()); t.Failed() {
				t.Logf("%s:\n%s", filepath.Base(f.Name()), b)
			}
		}
	})
	return n
}

func (n *node) key() string    { return filepath.Join(n.dir, "gw.key") }
func (n *node) state() string  { return filepath.Join(n.dir, "state") }
func (n *node) socket() string { return filepath.Join(n.dir, "site.sock") }
func (n *node) linksRun() string {
	return filepath.Join(n.dir, "links")
}

// write makes the document the node's.
func (n *node) write(doc string) {
	n.t.Helper()
	if err := os.WriteFile(n.file, []byte(strings.ReplaceAll(doc, "KEY", n.key())), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// sh runs shell lines in the node; a failure ends the test.
func (n *node) sh(lines ...string) string {
	n.t.Helper()
	out, err := n.Command("sh", "-ec", strings.Join(lines, "\n")).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%q: %v\n%s", lines, err, out)
	}
	return string(out)
}

// has says whether a command's output contains a text.
func (n *node) has(line, text string) bool {
	n.t.Helper()
	return strings.Contains(n.sh(line), text)
}

// host is all that is configured in the node's network namespace, as the host's own tools see it: a line each, in order. What
// the kernel adds for link-local and multicast when it comes to it is left out.
func (n *node) host() []string {
	n.t.Helper()
	var lines []string
	for l := range strings.Lines(n.sh("ip -o link", "ip -o addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"ip nexthop", "bridge fdb", "ip neigh show nud permanent", "nft list ruleset")) {
		if slices.ContainsFunc([]string{"fe80::", "ff00::", "33:33:", "01:00:5e:"}, func(s string) bool { return strings.Contains(l, s) }) {
			continue
		}
		lines = append(lines, strings.TrimSpace(l))
	}
	slices.Sort(lines)
	return lines
}

// wantHost compares the host with what it was.
func (n *node) wantHost(what string, before []string) {
	n.t.Helper()
	after := n.host()
	less := func(a, b []string) (out []string) {
		for _, l := range a {
			if !slices.Contains(b, l) {
				out = append(out, l)
			}
		}
		return out
	}
	if !slices.Equal(before, after) {
		n.t.Errorf("%s changed the host; gone:\n%s\nnew:\n%s", what, strings.Join(less(before, after), "\n"), strings.Join(less(after, before), "\n"))
	}
}

// site is a call of fabric-site in the node, with words before it (setpriv and the like).
func (n *node) site(before []string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	args = append(append(slices.Clone(before), self), args...)
	args = append(args, "--gateway", n.gateway, "--config", n.file, "--state-dir", n.state())
	c := n.Command(args...)
	c.Env = append(os.Environ(), asProgram+"=1", "NOTIFY_SOCKET="+n.notify.LocalAddr().String())
	return c
}

// run is the daemon's command line.
func (n *node) run(before ...string) *exec.Cmd {
	return n.site(before, "run", "--socket", n.socket(), "--links", filepath.Join(n.linksRun(), "links.sock"))
}

// fails runs a command that must fail with exit code 1 before long and returns what it says.
func (n *node) fails(c *exec.Cmd) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Kill() })
	defer stop()
	out, err := c.CombinedOutput()
	if c.ProcessState == nil || c.ProcessState.ExitCode() != 1 {
		n.t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return string(out)
}

// logOf is what the daemon of that name has printed.
func (n *node) logOf(name string) string {
	n.t.Helper()
	for _, f := range n.logs {
		if strings.HasPrefix(filepath.Base(f.Name()), name+"-") {
			b, err := os.ReadFile(f.Name())
			if err != nil {
				n.t.Fatal(err)
			}
			return string(b)
		}
	}
	return ""
}
