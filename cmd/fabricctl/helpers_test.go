package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/config"
	"fabric/internal/site"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// patience is how long a test waits for a state before it fails.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	time.Local = time.UTC // for tables with times
	os.Exit(m.Run())
}

// daemon is a served API on the real store, with the gateway of apitest.
type daemon struct {
	store  *config.Store
	file   string
	gw     *apitest.Gateway
	svc    *api.Service
	socket string
}

func newDaemon(t *testing.T, prepare func(*apitest.Gateway)) *daemon {
	t.Helper()
	d := &daemon{gw: &apitest.Gateway{HeldDeletes: 7, RouteList: map[string][]site.RouteStatus{"CORE": apitest.Routes("CORE", 3)}}}
	d.store, d.file = apitest.StoreFile(t)
	if prepare != nil {
		prepare(d.gw)
	}
	d.gw.Follow(t, d.store)
	d.gw.Publish(func(s *site.Snapshot) {
		s.Tunnels = []links.TunnelState{
			{
				Remote: "hk-1", Name: "sz-1/hk-1/0", Device: "fxwabc", Kind: "wireguard", Implementation: "userspace", State: "up", Reason: "BFD up",
				Since: apitest.Epoch, Active: true, Endpoint: netip.MustParseAddrPort("198.51.100.1:51820"), ListenPort: 51820,
				LastHandshake: apitest.Epoch, RxBytes: 5_000_000_000, TxBytes: 7, MTU: 1420,
				Path: links.PathState{RTT: 12345 * time.Microsecond, MinRTT: 12 * time.Millisecond, Probes: 60, Lost: 1},
			},
			{
				Remote: "hk-1", Name: "sz-1/hk-1/1", Device: "fxwabd", Rank: 1, Kind: "wireguard", Implementation: "userspace", State: "up",
				Reason: "handshake 2s ago", Since: apitest.Epoch, ListenPort: 51884, LastHandshake: apitest.Epoch, MTU: 1420,
			},
			{Remote: "gz-1", Name: "sz-1/gz-1/0", Device: "fxwdef", Kind: "wireguard", Implementation: "kernel", State: "down", Reason: "BFD down", Since: apitest.Epoch, MTU: 1420, Path: links.PathState{Probes: 60, Lost: 60}},
		}
		s.Sessions = []links.SessionState{
			{
				Name: "sz-1/hk-1/0", Device: "fxwabc", Interface: "fxwabc", Local: netip.MustParseAddr("fe80::1"), Remote: netip.MustParseAddr("fe80::2"),
				State: "up", Reason: "the neighbour is up", Since: apitest.Epoch, RemoteState: "up", RemoteDiag: "none",
				TxInterval: 300 * time.Millisecond, Detection: 900 * time.Millisecond, Received: 1000, Sent: 1001, Ups: 1,
				Dropped: map[string]uint64{"ttl": 3, "authentication": 12},
			},
			{
				Name: "CORE/core-router", VRF: "CORE", Peer: "core-router", Interface: "eth1", Local: netip.MustParseAddr("172.20.0.9"),
				Remote: netip.MustParseAddr("172.20.0.1"), State: "down", Reason: "nothing heard for 900ms", Since: apitest.Epoch,
				RemoteState: "down", TxInterval: time.Second, Sent: 190, Ups: 1, Downs: 1,
			},
		}
		s.Clouds = []site.CloudStatus{{
			Provider: "alibaba", Region: "cn-shenzhen", VPC: "vpc-1", Table: "vtb-1", Instance: "i-1", Desired: 2, Owned: 1, Foreign: 3, Quota: 200,
			Entries: []site.CloudEntry{
				{Prefix: netip.MustParsePrefix("172.31.0.0/16"), NextHop: "i-1", State: "available"},
				{Prefix: netip.MustParsePrefix("172.20.128.0/17"), NextHop: "i-1", State: "missing"},
			},
			Plan: []string{"create 172.20.128.0/17 via i-1"}, LastSync: apitest.Epoch,
		}}
		s.Site.Problems = []string{"tunnel sz-1/gz-1/0 is down: BFD down"}
		s.Site.Version = "v1-test"
	})
	d.svc = api.New(api.Config{Gateway: d.gw, Store: d.store, Log: slog.New(slog.DiscardHandler), Version: "v1-test", Doctor: doctor})
	d.socket = filepath.Join(t.TempDir(), "fabric.sock")
	d.serve(t, api.Listen{Socket: d.socket})
	return d
}

// doctor finds a warning, and with probes an error.
func doctor(_ context.Context, probe bool) (*fabricv1.DoctorResponse, error) {
	res := &fabricv1.DoctorResponse{Gateway: apitest.GatewayName, Warnings: 1, Findings: []*fabricv1.Finding{
		{Severity: "warning", Id: "clock-unsynchronised", What: "the clock is not synchronised", Why: "Certificates count on the time.", Mend: "timedatectl set-ntp true\ntimedatectl"},
		{Severity: "info", Id: "vrf-backend", What: "VRFs are VRF devices", Why: "VRFs are devices where the kernel has them."},
	}}
	if probe {
		res.Errors = 1
		res.Findings = append([]*fabricv1.Finding{{Severity: "error", Id: "a-fault", What: "it is broken", Why: "It matters.", Mend: "mend it"}}, res.Findings...)
	}
	return res, nil
}

// serve runs the service until the test ends, and waits until it answers wherever it is to listen.
func (d *daemon) serve(t *testing.T, l api.Listen) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.svc.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	until(t, "the socket", func() bool {
		_, err := os.Stat(l.Socket)
		return err == nil
	})
	if l.TCP == nil {
		return
	}
	// Serve listens there only after it made the socket.
	until(t, "the TCP listener", func() bool { return apitest.Listening(l.TCP.Listen) })
}

// clock is what the tests take for now.
func clock() time.Time { return apitest.Epoch.Add(3*time.Minute + 12*time.Second) }

// result is what a command line came to.
type result struct {
	code     int
	out, err string
}

// ctl runs fabricctl against the daemon.
func (d *daemon) ctl(t *testing.T, args ...string) result {
	t.Helper()
	return ctl(t, append([]string{"--socket", d.socket}, args...)...)
}

func ctl(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, errs bytes.Buffer
	a := &app{out: &out, err: &errs, now: clock}
	code := a.run(ctx, args)
	return result{code, out.String(), errs.String()}
}

// until polls a state that has no event to wait for.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// output is a buffer that may be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
