package linux_test

import (
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// userspaceTunnel starts a WireGuard device of the calling thread's namespace in this process, as a tunnel process would.
func userspaceTunnel(t *testing.T, name string) {
	t.Helper()
	dev, err := tun.CreateTUN(name, 1420)
	if err != nil {
		t.Fatal(err)
	}
	wg := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ipc.UAPIListen(name, file)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			go wg.IpcHandle(c)
		}
	}()
	t.Cleanup(func() {
		socket.Close()
		<-done
		wg.Close()
		file.Close()
		if err := os.Remove(filepath.Join("/var/run/wireguard", name+".sock")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

func keyFile(t *testing.T, name string, mode os.FileMode) (path string, k wgtypes.Key) {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(k.String()+"\n"), mode); err != nil {
		t.Fatal(err)
	}
	return path, k
}

func TestWireGuardUserspace(t *testing.T) {
	const name = "kernwg0" // its socket is in the file system, which all namespaces share
	w := newWorld(t)
	userspaceTunnel(t, name)
	link := kernel.Link{Name: name, Kind: kernel.KindTUN, Alias: kernel.AliasPrefix + "a-b", MTU: 1420, Up: true}
	links := w.Links()
	private, _ := keyFile(t, "private", 0o600)
	psk, _ := keyFile(t, "psk", 0o600)
	_, peer := keyFile(t, "peer", 0o600)
	_, stranger := keyFile(t, "stranger", 0o600)
	want := kernel.WireGuard{
		ListenPort: 51999, PrivateKeyFile: private, FwMark: 7,
		Peer: kernel.WireGuardPeer{
			PublicKey: peer.PublicKey(), Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), Keepalive: 5, PresharedKeyFile: psk,
		},
	}
	op := reconcile.Op[string, kernel.WireGuard]{Kind: reconcile.Create, Key: name, New: want}
	var foreign *reconcile.ForeignError
	if err := w.WireGuards().Apply(t.Context(), []reconcile.Op[string, kernel.WireGuard]{op})[0]; !errors.As(err, &foreign) {
		t.Errorf("a device without our alias: error %v, want a ForeignError", err)
	}
	if err := links.Apply(t.Context(), []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: name, New: link}})[0]; err != nil {
		t.Fatal(err)
	}
	edge := w.WireGuards()
	l := reconcile.NewLoop(reconcile.Config[string, kernel.WireGuard]{
		Name: "tunnels", Edge: edge,
		Want: func() (map[string]kernel.WireGuard, bool) { return map[string]kernel.WireGuard{name: want}, true },
	})
	// converge makes one pass and says how many steps were needed, then checks that a new process would need none.
	converge := func(what string) {
		t.Helper()
		if err := l.Pass(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		again := reconcile.NewLoop(reconcile.Config[string, kernel.WireGuard]{
			Name: "tunnels", Edge: w.WireGuards(),
			Want: func() (map[string]kernel.WireGuard, bool) { return map[string]kernel.WireGuard{name: want}, true },
		})
		if ops, err := again.Plan(t.Context()); err != nil || len(ops) > 0 {
			t.Fatalf("%s: left to do: %v, %v", what, ops, err)
		}
	}
	steps := func() int {
		t.Helper()
		ops, err := l.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(ops)
	}
	converge("new")
	want.Peer.Keepalive, want.FwMark = 25, 0
	converge("settings")
	want.Peer.PresharedKeyFile = ""
	converge("no preshared key")
	want.Peer.Endpoint = netip.MustParseAddrPort("[2001:db8::2]:51820")
	converge("endpoint")
	want.PrivateKeyFile, _ = keyFile(t, "another", 0o600)
	converge("private key")
	want.Peer.PublicKey = stranger.PublicKey()
	converge("peer")
	// Somebody adds a peer, or takes the allowed-IPs away: drift.
	if err := configure(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer.PublicKey()}}}); err != nil {
		t.Fatal(err)
	}
	if steps() != 1 {
		t.Error("a second peer was not seen")
	}
	converge("second peer")
	if err := configure(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: stranger.PublicKey(), ReplaceAllowedIPs: true}}}); err != nil {
		t.Fatal(err)
	}
	if steps() != 1 {
		t.Error("missing allowed-IPs were not seen")
	}
	converge("allowed-IPs")
	// A stranger's process has left its socket.
	left := filepath.Join("/var/run/wireguard", "kernwg1.sock")
	stale, err := net.Listen("unix", left)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(left) })
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	have, err := edge.Observe(t.Context())
	if _, there := have[name]; err != nil || !there {
		t.Errorf("with a stale socket beside it: %+v, %v", have, err)
	}
	if err := os.Remove(left); err != nil {
		t.Error(err)
	}
	// The passive side leaves the endpoint to WireGuard.
	want.Peer.Endpoint = netip.AddrPort{}
	if steps() != 0 {
		t.Error("an open endpoint is a difference")
	}
	// Key files that others can read, and files that hold no key, are refused; no error tells what is in them.
	for what, change := range map[string]func() (string, string){
		"chmod 600": func() (string, string) { p, k := keyFile(t, "wide", 0o644); return p, k.String() },
		"does not hold a WireGuard key": func() (string, string) {
			p, k := keyFile(t, "broken", 0o600)
			secret := base64.StdEncoding.EncodeToString(k[:20])
			if err := os.WriteFile(p, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			return p, secret
		},
		"no such file": func() (string, string) { return filepath.Join(t.TempDir(), "absent"), "absent key" },
	} {
		bad, secret := change()
		for _, w := range []kernel.WireGuard{
			{PrivateKeyFile: bad, Peer: want.Peer},
			{PrivateKeyFile: want.PrivateKeyFile, Peer: kernel.WireGuardPeer{PublicKey: want.Peer.PublicKey, PresharedKeyFile: bad}},
		} {
			err := edge.Apply(t.Context(), []reconcile.Op[string, kernel.WireGuard]{{Kind: reconcile.Replace, Key: name, New: w}})[0]
			if err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: error %v", what, err)
			}
		}
	}
	op.Kind = reconcile.Delete
	if err := edge.Apply(t.Context(), []reconcile.Op[string, kernel.WireGuard]{op})[0]; err != nil {
		t.Fatal(err)
	}
	if have, err := edge.Observe(t.Context()); err != nil || len(have) != 0 {
		t.Errorf("after a delete: %+v, %v", have, err)
	}
}

// TestWireGuardKernel is the same device in the kernel, where there is one.
func TestWireGuardKernel(t *testing.T) {
	w := newWorld(t)
	if !w.Features().WireGuard {
		t.Skip("no CONFIG_WIREGUARD")
	}
	private, _ := keyFile(t, "private", 0o600)
	_, peer := keyFile(t, "peer", 0o600)
	link := kernel.Link{Name: "fxw1", Kind: kernel.KindWireGuard, Alias: kernel.AliasPrefix + "a-b", MTU: 1420, Up: true}
	if err := w.Links().Apply(t.Context(), []reconcile.Op[string, kernel.Link]{{Kind: reconcile.Create, Key: "fxw1", New: link}})[0]; err != nil {
		t.Fatal(err)
	}
	want := map[string]kernel.WireGuard{"fxw1": {
		ListenPort: 51999, PrivateKeyFile: private,
		Peer: kernel.WireGuardPeer{PublicKey: peer.PublicKey(), Keepalive: 5},
	}}
	l := reconcile.NewLoop(reconcile.Config[string, kernel.WireGuard]{
		Name: "tunnels", Edge: w.WireGuards(), Want: func() (map[string]kernel.WireGuard, bool) { return want, true },
	})
	if err := l.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ops, err := l.Plan(t.Context()); err != nil || len(ops) > 0 {
		t.Errorf("left to do: %v, %v", ops, err)
	}
}

// configure changes a device behind our back.
func configure(name string, cfg wgtypes.Config) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ConfigureDevice(name, cfg)
}
