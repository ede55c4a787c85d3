package alibaba

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fabric/cloud"
	"fabric/internal/reconcile"
	"fabric/lab/cloudemu"
)

const (
	keyID     = "LTAItestkeyid"
	keySecret = "a-secret-nobody-may-see"
)

// seed is one VPC with what must never be touched: another user's entry, a dynamic and a managed one.
const seed = `{
  "account": "42", "randSeed": 7, "metadataInstance": "i-gw",
  "regions": [{"id": "cn-hangzhou"}, {"id": "cn-shenzhen"}],
  "keys": [{"id": "` + keyID + `", "secret": "` + keySecret + `", "policy": [{"actions": ["*"]}]}],
  "roles": [{"name": "fabric", "ttlSeconds": 3600, "policy": [{"actions": ["vpc:Describe*", "ecs:Describe*"]},
    {"actions": ["vpc:*RouteEntry"], "resources": ["acs:vpc:*:*:routetable/vtb-sz"]}]}],
  "vpcs": [{
    "id": "vpc-sz", "region": "cn-shenzhen", "cidr": "172.18.0.0/16", "secondaryCidrs": ["10.200.0.0/16"], "vrouterId": "vrt-sz",
    "vswitches": [{"id": "vsw-1", "cidr": "172.18.171.0/24"}, {"id": "vsw-2", "cidr": "172.18.172.0/24"}],
    "routeTables": [
      {"id": "vtb-sz", "type": "System", "entries": [
        {"id": "rte-foreign", "cidr": "192.0.2.0/24", "nextHopType": "Instance", "nextHopId": "i-host", "name": "somebody-else"},
        {"id": "rte-cen", "cidr": "10.9.0.0/16", "type": "CEN", "nextHopType": "Attachment", "nextHopId": "tr-1"},
        {"id": "rte-tr", "cidr": "10.8.0.0/16", "serviceType": "TR", "nextHopType": "Attachment", "nextHopId": "tr-1"},
        {"id": "rte-peer", "cidr": "10.7.0.0/16", "nextHopType": "Instance", "nextHopId": "i-gw2", "description": "fabric:demo:sz:sz-2"}]},
      {"id": "vtb-sub", "type": "Custom", "vswitches": ["vsw-2"]},
      {"id": "vtb-gw", "type": "Custom", "associateType": "Gateway"}],
    "instances": [
      {"id": "i-gw", "vswitch": "vsw-1", "privateIp": "172.18.171.245", "eip": "203.0.113.10", "role": "fabric", "httpTokens": "required"},
      {"id": "i-gw2", "vswitch": "vsw-1", "privateIp": "172.18.171.246"},
      {"id": "i-host", "vswitch": "vsw-1", "privateIp": "172.18.171.247"}]
  }],
  "rates": {"write": -1, "modify": -1, "read": -1, "describeRouteTables": -1}
}`

// untouched is what the seed's other entries must look like at the end of every test.
const untouched = "10.7.0.0/16 via i-gw2 fabric:demo:sz:sz-2\n10.8.0.0/16 via tr-1 \n10.9.0.0/16 via tr-1 \n192.0.2.0/24 via i-host somebody-else\n"

// fast are waits for an emulator without delays.
var fast = Timing{
	Call: 2 * time.Second, Poll: 5 * time.Millisecond, Grace: 100 * time.Millisecond, Follow: 20 * time.Second,
	Patience: 20 * time.Second, BackoffMin: 10 * time.Millisecond, BackoffMax: 200 * time.Millisecond,
}

// emu is an emulated cloud behind HTTPS.
type emu struct {
	*cloudemu.Server
	t      testing.TB
	wish   cloud.Wish
	timing Timing
	meta   string
	logs   *logs
}

func newEmu(t testing.TB, profile string, edit ...func(*cloudemu.Seed)) *emu {
	t.Helper()
	s, err := cloudemu.ParseSeed([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(&s)
	}
	p, err := cloudemu.ProfileNamed(profile)
	if err != nil {
		t.Fatal(err)
	}
	e := &emu{t: t, timing: fast, logs: &logs{}}
	scale := 1.0
	if profile != "instant" { // the same waits, forty times as fast
		scale = 40
		e.timing.Grace = 150 * time.Millisecond
	}
	e.Server, err = cloudemu.New(cloudemu.Options{Seed: s, Profile: p, Clock: cloudemu.NewClock(scale), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := cloudemu.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: e.API(), TLSConfig: ca.Config(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	served := make(chan struct{})
	go func() { defer close(served); _ = hs.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = hs.Close(); <-served })
	meta := httptest.NewServer(e.Metadata())
	t.Cleanup(meta.Close)
	e.meta = meta.URL
	e.wish = cloud.Wish{
		Provider: Provider, Endpoint: l.Addr().String(), CAFile: write("ca.pem", string(ca.PEM)), Tables: []string{"vtb-sz"},
		CredentialsFile: write("key.json", fmt.Sprintf(`{"access-key-id": %q, "access-key-secret": %q}`, keyID, keySecret)),
		VRF:             "CORE", Quota: 200, Resync: time.Hour, Fabric: "demo", Site: "sz", Gateway: "sz-1",
	}
	return e
}

func (e *emu) opener(ctx context.Context, w cloud.Wish, _ *slog.Logger) (cloud.VPC, error) {
	return Options{Metadata: e.meta, Timing: e.timing}.Open(ctx, w, e.logs.logger())
}

func (e *emu) open() cloud.VPC {
	e.t.Helper()
	v, err := e.opener(e.t.Context(), e.wish, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(v.Close)
	return v
}

// control asks the emulator's control API.
func (e *emu) control(method, path, body string, out any) {
	e.t.Helper()
	w := httptest.NewRecorder()
	e.Control().ServeHTTP(w, httptest.NewRequest(method, "/_emu/"+path, strings.NewReader(body)))
	if w.Code != http.StatusOK {
		e.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			e.t.Fatal(err)
		}
	}
}

// entries prints what is not a system entry in a table, one line each, by destination.
func (e *emu) entries(table string) string {
	e.t.Helper()
	var s struct {
		VPCs []struct {
			Tables []struct {
				ID      string
				Entries []struct {
					DestinationCidrBlock, Description, RouteEntryName, Type, Status string
					Hops                                                            []struct{ ID string }
				}
			}
		} `json:"vpcs"`
	}
	e.control("GET", "state", "", &s)
	var lines []string
	for _, v := range s.VPCs {
		for _, t := range v.Tables {
			for _, x := range t.Entries {
				if t.ID == table && x.Type != "System" {
					text := x.Description
					if text == "" {
						text = x.RouteEntryName
					}
					line := x.DestinationCidrBlock + " via " + x.Hops[0].ID + " " + text
					if x.Status != "Available" {
						line += " " + x.Status
					}
					lines = append(lines, line+"\n")
				}
			}
		}
	}
	slices.SortFunc(lines, func(a, b string) int {
		pa, _, _ := strings.Cut(a, " ")
		pb, _, _ := strings.Cut(b, " ")
		return netip.MustParsePrefix(pa).Compare(netip.MustParsePrefix(pb))
	})
	return strings.Join(lines, "")
}

type requestLog struct {
	Requests []cloudemu.Request
	Findings cloudemu.Findings
}

func (e *emu) requests() requestLog {
	e.t.Helper()
	var r requestLog
	e.control("GET", "requests", "", &r)
	return r
}

// writes counts the accepted calls that change something, by action; "" counts all, refused ones too.
func (e *emu) writes(action string) (n int) {
	for _, r := range e.requests().Requests {
		if !strings.HasPrefix(r.Action, "Describe") && (action == "" || r.Action == action && r.Code == "") {
			n++
		}
	}
	return n
}

// behaved fails unless the client kept the rules: no write while another ran, none to an entry of others, the same
// ClientToken on a repeat, and no secret in any log line.
func (e *emu) behaved() {
	e.t.Helper()
	f := e.requests().Findings
	if f.OverlapWrites != 0 || f.UnownedWrites != 0 || f.UnstableRetries != 0 || f.NonceRepeats != 0 {
		e.t.Errorf("findings: %+v", f)
	}
	leaks(e.t, e.logs.String())
}

// leaks fails when a text holds anything of a key or signature.
func leaks(t testing.TB, text string) {
	t.Helper()
	for _, bad := range []string{keyID, keySecret, "SecurityToken=", "SecurityToken%", "Signature=", "Signature%3D", "SignatureNonce", "AccessKeyId=", "AccessKeyId%", "STS."} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in: %s", bad, text)
		}
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func via(hop string) cloud.Route { return cloud.Route{NextHop: hop, State: cloud.Available} }

func creates(hop string, ps ...string) (ops []op) {
	for _, p := range ps {
		ops = append(ops, op{Kind: reconcile.Create, Key: pfx(p), New: via(hop)})
	}
	return ops
}

func deletes(ps ...string) (ops []op) {
	for _, p := range ps {
		ops = append(ops, op{Kind: reconcile.Delete, Key: pfx(p)})
	}
	return ops
}

func noErrors(t testing.TB, errs []error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Errorf("step %d: %v", i, err)
			leaks(t, err.Error())
		}
	}
}
