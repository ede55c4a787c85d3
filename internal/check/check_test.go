package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"fabric/cloud"
	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
)

const document = `
fabric: {name: test}
vrfs: [{name: CORE, table: 200, vni: 1000}]
sites:
  - name: here
    gateways:
      - name: gw
        asn: 65001
        vtep: 10.255.0.1
        endpoints: [{address: 203.0.113.1}]
        wireguard: {public-key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", private-key-file: %s}
        vrfs: [{vrf: CORE, interfaces: [{name: eth1, addresses: [10.1.0.1/24]}]}]
  - name: there
    gateways:
      - name: far
        asn: 65002
        vtep: 10.255.0.2
        endpoints: [{address: 203.0.113.2}]
        wireguard: {public-key: "CTUhXQUd5LGpdQCFGj4mzmqd8CBfVGdA3oIFYqf8bQw="}
        vrfs: [{vrf: CORE}]
`

func parse(t *testing.T, key string) *config.Document {
	t.Helper()
	d, err := config.Parse("fabric.yaml", []byte(fmt.Sprintf(document, key)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// healthy are the facts of a host on which both daemons run and nothing is wrong.
func healthy(t *testing.T) Facts {
	yes := true
	f := Facts{
		Document: parse(t, "/etc/fabric/keys/gw.key"), Gateway: "gw", Release: "6.1.0",
		Features:     &kernel.Features{VRF: true, WireGuard: true, NextHops: true, RuleProtocol: true, AddressProtocol: true},
		Sysctls:      map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.conf.eth1.rp_filter": "2"},
		Key:          File{Purpose: "private key", Path: "/etc/fabric/keys/gw.key", PublicKey: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="},
		State:        Folder{Path: "/var/lib/fabric-site", Free: 1 << 40, FreeFiles: 1 << 20},
		Synchronised: &yes, Root: true, Capabilities: ^uint64(0), OpenFiles: 1 << 20, Running: true,
	}
	f.Paths = []Path{{To: netip.MustParseAddr("203.0.113.2"), Device: "eth0", MTU: 1500}}
	f.Probes = []Probe{{To: netip.MustParseAddr("203.0.113.2"), Want: 1500, Passed: 1500}, {To: netip.MustParseAddr("10.255.0.2"), Gateway: "far", Want: 1420, Passed: 1420}}
	table(cloud.TableExamination{ID: "vtb-0", Owned: 10, Foreign: 1, Limit: 200, Calls: []cloud.CallExamination{{Action: "vpc:CreateRouteEntry"}}})(&f)
	s := newSubject(f)
	for k := range s.want.Addresses {
		f.Host.Addresses = append(f.Host.Addresses, k)
	}
	f.Host.Addresses = append(f.Host.Addresses, kernel.AddressKey{Device: "lo", Prefix: prefix("10.255.0.1/32")},
		kernel.AddressKey{Device: "eth0", Prefix: prefix("203.0.113.1/24")})
	f.Host.VXLAN = true
	f.Host.Devices = []kernel.Device{{Name: "CORE", Alias: "fabric:vrf:CORE", Kind: kernel.KindVRF, Table: 200, Up: true},
		{Name: "eth0", Up: true, MTU: 1500}, {Name: "eth1", Up: true, Master: "CORE"}}
	for _, v6 := range []bool{false, true} {
		f.Host.Rules = append(f.Host.Rules,
			kernel.FoundRule{Key: kernel.RuleKey{IPv6: v6, Priority: 1000}, Rule: kernel.Rule{L3MDEV: true}},
			kernel.FoundRule{Key: kernel.RuleKey{IPv6: v6, Priority: 32765}, Rule: kernel.Rule{Table: kernel.LocalTable}})
	}
	f.Host.Tables = []kernel.FilterTable{{Family: "inet", Name: "fabric", Comment: "fabric:gw", Clamps: 8, Clamped: 1}}
	f.Host.Chains = []kernel.FilterChain{{Family: "inet", Table: "filter", Name: "input", Hook: "input", Drops: true}}
	return f
}

var errWide = fmt.Errorf("secret file has mode 0644: %w", fs.ErrPermission)

// seeds break a healthy host, each in one way, by the id of the check that must find it.
var seeds = map[string]func(*Facts){
	"document-unfit":             func(f *Facts) { f.Gateway = "nobody" },
	"kernel-too-old":             func(f *Facts) { f.Release = "5.2.1" },
	"kernel-vrf-tcp":             func(f *Facts) { f.Release = "4.15.0-20-generic" },
	"kernel-no-address-protocol": func(f *Facts) { f.Features.AddressProtocol = false },
	"vrf-backend":                func(f *Facts) { f.Features.VRF = false },
	"wireguard-backend":          func(f *Facts) { f.Features.WireGuard = false },
	"vxlan-missing":              func(f *Facts) { f.Host.VXLAN = false },
	"tun-missing":                func(f *Facts) { f.Features.WireGuard, f.TUN = false, fs.ErrNotExist },
	"nexthops-missing":           func(f *Facts) { f.Features.NextHops = false },
	"nft-unusable":               func(f *Facts) { f.Host.Unread = []kernel.Unread{{Part: "nftables", Err: syscall.EOPNOTSUPP}} },
	"tcp-l3mdev-accept":          sysctl("net.ipv4.tcp_l3mdev_accept", "1"),
	"udp-l3mdev-accept":          sysctl("net.ipv4.udp_l3mdev_accept", "1"),
	"rp-filter-strict":           sysctl("net.ipv4.conf.eth1.rp_filter", "1"),
	"ipv4-forwarding-off":        sysctl("net.ipv4.ip_forward", "0"),
	"ipv6-forwarding-off":        sysctl("net.ipv6.conf.all.forwarding", "0"),
	"ipv6-disabled":              sysctl("net.ipv6.conf.all.disable_ipv6", "1"),
	"nexthop-compat-mode":        sysctl("net.ipv4.nexthop_compat_mode", "1"),
	"local-rule-order":           func(f *Facts) { f.Host.Rules[1].Key.Priority = 0 },
	"l3mdev-rule-missing":        func(f *Facts) { f.Host.Rules = f.Host.Rules[1:] },
	"interface-absent":           func(f *Facts) { f.Host.Devices = f.Host.Devices[:2] },
	"interface-down":             func(f *Facts) { f.Host.Devices[2].Up = false },
	"interface-foreign-master":   func(f *Facts) { f.Host.Devices[2].Master = "br0" },
	"address-missing":            func(f *Facts) { f.Host.Addresses = f.Host.Addresses[len(f.Host.Addresses)-2:] },
	"vtep-duplicate":             address("eth0", "10.255.0.1/32"),
	"underlay-mtu":               func(f *Facts) { f.Paths[0].MTU = 1400 },
	"underlay-unreachable":       func(f *Facts) { f.Paths[0].Err = syscall.ENETUNREACH },
	"mss-rule-missing":           func(f *Facts) { f.Host.Tables = nil },
	"mss-not-counting":           func(f *Facts) { f.Host.Tables[0].Clamped = 0 },
	"port-taken-wireguard":       port("udp", "0.0.0.0:51821"),
	"port-taken-vxlan":           port("udp", "[::]:4789"),
	"port-taken-bgp":             port("tcp", "10.255.0.1:179"),
	"port-taken-bfd":             port("udp", "0.0.0.0:4784"),
	"port-taken-tls":             func(f *Facts) { withTLS(f); port("tcp", "[::]:443")(f) },
	"tls-certificate":            func(f *Facts) { withTLS(f); f.Certificate.PublicKey = "sha256:other" },
	"firewall-missing":           func(f *Facts) { f.Host.Chains = nil },
	"firewall-legacy":            func(f *Facts) { f.LegacyTables = []string{"filter"} },
	"conntrack-udp-timeout":      sysctl("net.netfilter.nf_conntrack_udp_timeout", "5"),
	"foreign-device":             device(kernel.Device{Name: overlay.VXLANDevice(1000)}),
	"foreign-vxlan":              device(kernel.Device{Name: "vx9", Kind: kernel.KindVXLAN, VXLAN: kernel.VXLAN{VNI: 1000, Port: 4789}}),
	"foreign-vrf":                device(kernel.Device{Name: "red", Kind: kernel.KindVRF, Table: 200}),
	"foreign-routes":             func(f *Facts) { f.Strangers = []string{"route 10.0.0.0/8 table 200 metric 0 is not ours (boot)"} },
	"foreign-nexthop":            func(f *Facts) { f.Host.NextHops = map[uint32]kernel.NextHop{1<<31 + 5: {Protocol: 4}} },
	"foreign-nft-table":          func(f *Facts) { f.Host.Tables[0].Comment = "" },
	"private-key-missing":        func(f *Facts) { f.Key.PublicKey, f.Key.Err = "", fs.ErrNotExist },
	"private-key-mode":           func(f *Facts) { f.Key.PublicKey, f.Key.Err = "", errWide },
	"private-key-mismatch":       func(f *Facts) { f.Key.PublicKey = "other" },
	"secret-missing":             func(f *Facts) { f.Secrets = []File{{Purpose: "BGP password", Path: "/x", Err: fs.ErrNotExist}} },
	"secret-mode":                func(f *Facts) { f.Secrets = []File{{Purpose: "BGP password", Path: "/x", Err: errWide}} },
	"state-not-writable":         func(f *Facts) { f.State.Err = syscall.EROFS },
	"state-space":                func(f *Facts) { f.State.Free = 1 << 20 },
	"clock-unsynchronised":       func(f *Facts) { *f.Synchronised = false },
	"networkd-foreign-routes":    func(f *Facts) { f.Networkd = &Networkd{ForeignRoutes: true} },
	"networkd-foreign-rules":     func(f *Facts) { f.Networkd = &Networkd{ForeignRules: true} },
	"networkmanager-manages":     func(f *Facts) { f.NetworkManager = &NetworkManager{[]string{"interface-name:fx*"}} },
	"cloud-init-network":         func(f *Facts) { f.CloudInit = true },
	"host-agent":                 func(f *Facts) { f.Agents = []string{"waagent"} },
	"links-not-answering":        func(f *Facts) { f.Links = syscall.ECONNREFUSED },
	"capability-missing":         func(f *Facts) { f.Capabilities &^= 1 << capNetRaw },
	"file-limit":                 func(f *Facts) { f.OpenFiles = 1024 },
	"path-mtu":                   probed(Probe{To: netip.MustParseAddr("203.0.113.2"), Want: 1500, Passed: 1400, Told: 1400}),
	"path-mtu-unknown":           probed(Probe{To: netip.MustParseAddr("203.0.113.2"), Want: 1500}),
	"tunnel-mtu":                 probed(Probe{To: netip.MustParseAddr("10.255.0.2"), Gateway: "far", Want: 1420, Passed: 1300}),
	"tunnel-silent":              probed(Probe{To: netip.MustParseAddr("10.255.0.2"), Gateway: "far", Want: 1420}),
	"cloud-unreachable":          func(f *Facts) { f.CloudErr = syscall.ETIMEDOUT },
	"cloud-table-unreadable":     table(cloud.TableExamination{ID: "vtb-1", Err: fs.ErrPermission}),
	"cloud-permission":           table(cloud.TableExamination{ID: "vtb-1", Calls: []cloud.CallExamination{{Action: "vpc:CreateRouteEntry", Denied: true, Err: fs.ErrPermission}}}),
	"cloud-dry-run":              table(cloud.TableExamination{ID: "vtb-1", Calls: []cloud.CallExamination{{Action: "vpc:CreateRouteEntry", Prefix: prefix("203.0.113.0/24"), Carried: true}}}),
	"cloud-refused":              table(cloud.TableExamination{ID: "vtb-1", Calls: []cloud.CallExamination{{Action: "vpc:CreateRouteEntry", Err: fs.ErrInvalid}}}),
	"cloud-quota":                table(cloud.TableExamination{ID: "vtb-1", Owned: 150, Foreign: 40, Limit: 200}),
	"not-readable":               func(f *Facts) { f.Unread = []kernel.Unread{{Part: "clock", Err: fs.ErrPermission}} },
	"port-taken-direct":          func(f *Facts) { direct(f); port("udp", "0.0.0.0:4790")(f) },
	"direct-unencrypted":         direct,
	"direct-address-missing": func(f *Facts) {
		direct(f)
		f.Host.Addresses = slices.DeleteFunc(f.Host.Addresses, func(k kernel.AddressKey) bool { return k.Device == "eth0" })
	},
}

// direct makes the tunnel to the far gateway one without encryption.
func direct(f *Facts) {
	f.Document.Links.Tunnels = []config.Tunnel{{Kind: "direct", Encryption: "none"}}
}

// withTLS gives the gateways a tunnel over TLS beside that over UDP; this one listens, and has all that it needs.
func withTLS(f *Facts) {
	const pin = "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	d := f.Document.Clone()
	d.Links.Tunnels = append(d.Links.Tunnels, config.Tunnel{Kind: "tls"})
	d.Fabric.TLSTokenFile = "/etc/fabric/keys/test.token"
	_, gw, _ := d.Find("gw")
	gw.TLS = &config.TLS{Listen: &config.TLSListen{Port: 443, Pin: pin, CertificateFile: "/etc/fabric/keys/gw-tls.crt", KeyFile: "/etc/fabric/keys/gw-tls.key"}}
	f.Document = d
	f.Certificate = File{Path: "/etc/fabric/keys/gw-tls.crt", PublicKey: pin}
}

// A healthy host stays so with TLS tunnels; what they need is named.
func TestTLSTunnels(t *testing.T) {
	f := healthy(t)
	withTLS(&f)
	if got := ids(Run(t.Context(), f)); !slices.Equal(got, always) {
		t.Errorf("%q, want %q", got, always)
	}
	f.Host.Chains = nil
	f.Certificate = File{Path: "/etc/fabric/keys/gw-tls.crt", Err: fs.ErrNotExist}
	f.TUN = fs.ErrNotExist
	want := map[string]string{
		"tun-missing":      "/dev/net/tun cannot be used: file does not exist",
		"tls-certificate":  "/etc/fabric/keys/gw-tls.crt is not there",
		"firewall-missing": "eth0 has a public address and nothing drops what comes in; the fabric needs udp ports 51821, 52077, 52333 there, and tcp ports 443",
	}
	for _, found := range Run(t.Context(), f) {
		if what, ok := want[found.ID]; ok && found.What == what {
			delete(want, found.ID)
		}
		if found.ID == "firewall-missing" && !strings.Contains(found.Mend, "tcp dport { 22, 443 } accept") {
			t.Errorf("mend is %s", found.Mend)
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

func sysctl(key, value string) func(*Facts) { return func(f *Facts) { f.Sysctls[key] = value } }

func probed(p Probe) func(*Facts) { return func(f *Facts) { f.Probes = append(f.Probes, p) } }

func table(t cloud.TableExamination) func(*Facts) {
	return func(f *Facts) { f.Cloud.Tables = append(f.Cloud.Tables, t) }
}

func device(d kernel.Device) func(*Facts) {
	return func(f *Facts) { f.Host.Devices = append(f.Host.Devices, d) }
}

func address(device, p string) func(*Facts) {
	return func(f *Facts) {
		f.Host.Addresses = append(f.Host.Addresses, kernel.AddressKey{Device: device, Prefix: prefix(p)})
	}
}

func port(network, local string) func(*Facts) {
	return func(f *Facts) {
		f.Ports = append(f.Ports, Port{Network: network, Local: netip.MustParseAddrPort(local), Owner: "other (process 9)"})
	}
}

// always are information about any host.
var always = []string{"vrf-backend", "wireguard-backend"}

func ids(found []Finding) (all []string) {
	for _, f := range found {
		all = append(all, f.ID)
	}
	return all
}

func TestHealthyHost(t *testing.T) {
	if got := ids(Run(t.Context(), healthy(t))); !slices.Equal(got, always) {
		t.Errorf("%q, want %q", got, always)
	}
}

// What the daemons themselves make is no fault.
func TestOwnObjectsAreNoFault(t *testing.T) {
	f := healthy(t)
	for _, tunnel := range newSubject(f).plan.Tunnels {
		// Those of later keys too.
		for _, name := range tunnel.Devices() {
			address(name, "10.255.0.1/32")(&f)
			device(kernel.Device{Name: name, Alias: "fabric:tunnel", Kind: kernel.KindWireGuard, Up: true})(&f)
		}
		for _, port := range tunnel.ListenPorts() {
			f.Ports = append(f.Ports, Port{Network: "udp", Local: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))})
		}
	}
	device(kernel.Device{Name: overlay.VXLANDevice(1000), Alias: "fabric:vxlan", Kind: kernel.KindVXLAN, VXLAN: kernel.VXLAN{VNI: 1000, Port: 4789}, Up: true})(&f)
	f.Ports = append(f.Ports, Port{Network: "udp", Local: netip.MustParseAddrPort("0.0.0.0:4789")})
	if got := ids(Run(t.Context(), f)); !slices.Equal(got, always) {
		t.Errorf("%q, want %q", got, always)
	}
}

func TestEveryFaultIsFound(t *testing.T) {
	if len(IDs()) != len(seeds) {
		t.Errorf("%d checks, %d seeded faults", len(IDs()), len(seeds))
	}
	before := map[string]string{}
	for _, f := range Run(t.Context(), healthy(t)) {
		before[f.ID] = f.What
	}
	for _, id := range IDs() {
		t.Run(id, func(t *testing.T) {
			seed, ok := seeds[id]
			if !ok {
				t.Fatal("no fault is seeded for it")
			}
			f := healthy(t)
			seed(&f)
			found := Run(t.Context(), f)
			i := slices.IndexFunc(found, func(f Finding) bool { return f.ID == id })
			if i < 0 || found[i].What == before[id] {
				t.Fatalf("not found among %q", ids(found))
			}
			if found[i].Why == "" || found[i].Mend == "" && found[i].Severity != Info {
				t.Errorf("%+v does not say all", found[i])
			}
		})
	}
}

// What the daemon mends at its start is a warning until it runs.
func TestSeverityUntilTheDaemonRuns(t *testing.T) {
	for _, running := range []bool{false, true} {
		f := healthy(t)
		f.Running = running
		f.Sysctls["net.ipv4.ip_forward"] = "0"
		want := map[bool]Severity{false: Warning, true: Error}[running]
		if got := Run(t.Context(), f)[0]; got.ID != "ipv4-forwarding-off" || got.Severity != want {
			t.Errorf("running %v: %+v, want %s", running, got, want)
		}
	}
}

// How bad an answer of the cloud is.
func TestCloudSeverities(t *testing.T) {
	call := func(c cloud.CallExamination) cloud.TableExamination {
		c.Action = "vpc:ModifyRouteEntry"
		return cloud.TableExamination{ID: "vtb-1", Calls: []cloud.CallExamination{c}}
	}
	for _, c := range []struct {
		name  string
		table cloud.TableExamination
		want  []string
	}{
		{"a call that can be done without", call(cloud.CallExamination{Denied: true, Needless: true, Err: fs.ErrPermission}), []string{"warning cloud-permission"}},
		{"a call that cannot", call(cloud.CallExamination{Denied: true, Err: fs.ErrPermission}), []string{"error cloud-permission"}},
		{"a dry run that was none", call(cloud.CallExamination{Prefix: prefix("203.0.113.0/24"), Carried: true}), []string{"error cloud-dry-run"}},
		{"refused for lack of room", call(cloud.CallExamination{Full: true, Err: fs.ErrInvalid}), []string{"error cloud-quota"}},
		{"nearly full", cloud.TableExamination{ID: "vtb-1", Owned: 180, Limit: 200}, []string{"warning cloud-quota"}},
		{"not nearly full", cloud.TableExamination{ID: "vtb-1", Owned: 179, Limit: 200}, nil},
		{"full", cloud.TableExamination{ID: "vtb-1", Owned: 100, Foreign: 100, Limit: 200}, []string{"error cloud-quota"}},
		{"limit not known", cloud.TableExamination{ID: "vtb-1", Owned: 100, Foreign: 1000}, nil},
		{"unreadable", cloud.TableExamination{ID: "vtb-1", Err: fs.ErrPermission, Limit: 1, Owned: 1}, []string{"error cloud-table-unreadable"}},
	} {
		f := healthy(t)
		table(c.table)(&f)
		var got []string
		for _, f := range Run(t.Context(), f) {
			if f.Severity != Info {
				got = append(got, string(f.Severity)+" "+f.ID)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestReportAsJSON(t *testing.T) {
	b, err := json.Marshal(NewReport("gw", []Finding{{Error, "an-id", "what", "why", "mend"}, {Warning, "b", "w", "y", ""}}))
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	const golden = `{"gateway":"gw","errors":1,"warnings":1,"findings":[{"severity":"error","id":"an-id","what":"what","why":"why","mend":"mend"},
		{"severity":"warning","id":"b","what":"w","why":"y"}]}`
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal([]byte(golden), &want)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s, %v", b, err)
	}
}

// FuzzHostFiles: no file of the host makes reading it panic, nor passes for what it is not.
func FuzzHostFiles(f *testing.F) {
	f.Add([]byte("  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000\n"))
	f.Add([]byte("  1: 0000000000000000FFFF00000100007F:1F90 0:0 0A 0 0 0 0 0 17\n"))
	f.Add([]byte("[keyfile]\nunmanaged-devices=mac:02:00:00:00:00:01;interface-name:eth1\nunmanaged-devices+=eth2\n"))
	f.Add([]byte("# words\n[Network]\nManageForeignRoutes = off\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, network := range []string{"tcp", "udp"} {
			for _, s := range parseSockets(network, data) {
				if !s.Local.IsValid() || s.inode == "" || s.Network != network {
					t.Errorf("socket %+v", s)
				}
			}
		}
		all := parseSettings(data)
		for _, s := range all {
			if strings.TrimSpace(s.key) != s.key || strings.TrimSpace(s.value) != s.value || strings.ContainsAny(s.key, "=\n") {
				t.Errorf("setting %q", s)
			}
			truth(all, s.section, s.key)
		}
		unmanaged(all)
	})
}
