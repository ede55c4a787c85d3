package linux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// wireGuardEdge is kernel.WireGuards. Keys cannot be read back as the files they came from, so Observe keeps what Equal
// needs beside the values: public keys and digests.
type wireGuardEdge struct {
	h *Host

	mu   sync.Mutex
	seen map[string]wireGuardSeen
	// dialled is the endpoint this process last set per device. A peer may have roamed since; that is WireGuard's
	// business and no drift.
	dialled map[string]netip.AddrPort
}

type wireGuardSeen struct {
	public wgtypes.Key
	psk    [sha256.Size]byte
	// odd is set when allowed-IPs or the number of peers are not as we set them.
	odd bool
}

// WireGuards are the configurations of tunnel devices of ours, in the kernel or by the socket of a userspace process.
func (h *Host) WireGuards() kernel.WireGuards {
	return &wireGuardEdge{h: h, seen: map[string]wireGuardSeen{}, dialled: map[string]netip.AddrPort{}}
}

// Observe implements reconcile.Edge. The key files are not known from the device and stay empty.
func (e *wireGuardEdge) Observe(ctx context.Context) (map[string]kernel.WireGuard, error) {
	n, err := e.h.names(ctx)
	if err != nil {
		return nil, err
	}
	var devs []*wgtypes.Device
	err = e.h.within(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		for _, l := range n.links {
			if !l.ours() || l.kind != "wireguard" && l.kind != "tun" {
				continue
			}
			// One by one: a list of all would fail at any socket that a stranger's process has left.
			d, err := c.Device(l.name)
			switch {
			case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
				// Nobody carries it (yet).
			case err != nil:
				return fmt.Errorf("%s: %w", l.name, err)
			default:
				devs = append(devs, d)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read WireGuard devices: %w", explain(err))
	}
	found := map[string]kernel.WireGuard{}
	seen := map[string]wireGuardSeen{}
	for _, d := range devs {
		if d.PrivateKey == (wgtypes.Key{}) && len(d.Peers) == 0 {
			continue
		}
		found[d.Name], seen[d.Name] = decodeWireGuard(d)
	}
	e.mu.Lock()
	e.seen = seen
	e.mu.Unlock()
	return found, nil
}

func decodeWireGuard(d *wgtypes.Device) (kernel.WireGuard, wireGuardSeen) {
	w := kernel.WireGuard{ListenPort: d.ListenPort, FwMark: d.FirewallMark}
	s := wireGuardSeen{public: d.PublicKey, odd: len(d.Peers) != 1}
	if len(d.Peers) == 0 {
		return w, s
	}
	p := d.Peers[0]
	w.Peer = kernel.WireGuardPeer{PublicKey: p.PublicKey, Keepalive: int(p.PersistentKeepaliveInterval / time.Second)}
	if p.Endpoint != nil {
		a := p.Endpoint.AddrPort()
		w.Peer.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	if p.PresharedKey != (wgtypes.Key{}) {
		s.psk = sha256.Sum256(p.PresharedKey[:])
	}
	want := anywhere()
	s.odd = s.odd || len(p.AllowedIPs) != len(want)
	for _, a := range p.AllowedIPs {
		if ones, _ := a.Mask.Size(); ones != 0 {
			s.odd = true
		}
	}
	return w, s
}

// anywhere is what a peer may send: routing decides what it is sent.
func anywhere() []net.IPNet {
	return []net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// Equal implements reconcile.Equaler: keys compare by what the device holds, an unset port and endpoint leave what is there,
// and a peer that roamed away from the endpoint we set stays.
func (e *wireGuardEdge) Equal(name string, want, have kernel.WireGuard) bool {
	e.mu.Lock()
	s, ok := e.seen[name]
	dialled := e.dialled[name]
	e.mu.Unlock()
	if !ok || s.odd {
		return false
	}
	private, err := readKey(want.PrivateKeyFile)
	if err != nil || private.PublicKey() != s.public {
		return false
	}
	var psk [sha256.Size]byte
	if want.Peer.PresharedKeyFile != "" {
		k, err := readKey(want.Peer.PresharedKeyFile)
		if err != nil {
			return false
		}
		psk = sha256.Sum256(k[:])
	}
	if psk != s.psk {
		return false
	}
	have.PrivateKeyFile, have.Peer.PresharedKeyFile = want.PrivateKeyFile, want.Peer.PresharedKeyFile
	if want.ListenPort == 0 {
		want.ListenPort = have.ListenPort
	}
	if !want.Peer.Endpoint.IsValid() || want.Peer.Endpoint == dialled && have.Peer.Endpoint.IsValid() {
		want.Peer.Endpoint = have.Peer.Endpoint
	}
	return want == have
}

// readKey reads a key file as wg(8) writes it. Files that others can read are refused.
func readKey(path string) (wgtypes.Key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("key file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return wgtypes.Key{}, fmt.Errorf("key file %s has mode %04o, others could read it: run chmod 600 %s", path, mode, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("key file: %w", err)
	}
	k, err := wgtypes.ParseKey(string(bytes.TrimSpace(b)))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("key file %s does not hold a WireGuard key (32 bytes in base64)", path)
	}
	return k, nil
}

// Apply implements reconcile.Edge. A delete takes key and peers from the device; the device belongs to Links.
func (e *wireGuardEdge) Apply(ctx context.Context, ops []reconcile.Op[string, kernel.WireGuard]) []error {
	n, err := e.h.names(ctx)
	if err != nil {
		return failAll(len(ops), err)
	}
	errs := make([]error, len(ops))
	err = e.h.within(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		for i, op := range ops {
			errs[i] = e.apply(c, n, op)
			var foreign *reconcile.ForeignError
			if errs[i] != nil && !errors.As(errs[i], &foreign) {
				errs[i] = fmt.Errorf("%s WireGuard %s: %w", op.Kind, op.Key, explain(errs[i]))
			}
		}
		return nil
	})
	if err != nil {
		return failAll(len(ops), fmt.Errorf("configure WireGuard: %w", explain(err)))
	}
	return errs
}

func (e *wireGuardEdge) apply(c *wgctrl.Client, n *names, op reconcile.Op[string, kernel.WireGuard]) error {
	l, ok := n.link(op.Key)
	if !ok {
		if op.Kind == reconcile.Delete {
			return nil
		}
		_, err := n.device(op.Key)
		return err
	}
	if !l.ours() {
		return &reconcile.ForeignError{What: "device " + op.Key, Owner: l.owner(), Mend: "rename or delete it"}
	}
	if op.Kind == reconcile.Delete {
		return c.ConfigureDevice(op.Key, wgtypes.Config{PrivateKey: &wgtypes.Key{}, ReplacePeers: true})
	}
	d, err := c.Device(op.Key)
	if err != nil {
		return err
	}
	cfg, err := wireGuardConfig(d, op.New)
	if err != nil {
		return err
	}
	if err := c.ConfigureDevice(op.Key, cfg); err != nil {
		return err
	}
	e.mu.Lock()
	e.dialled[op.Key] = op.New.Peer.Endpoint
	e.mu.Unlock()
	return nil
}

// wireGuardConfig is the change that makes d as wanted. The peer is changed in place: replacing it would cost a handshake.
func wireGuardConfig(d *wgtypes.Device, w kernel.WireGuard) (wgtypes.Config, error) {
	private, err := readKey(w.PrivateKeyFile)
	if err != nil {
		return wgtypes.Config{}, err
	}
	psk := wgtypes.Key{}
	if w.Peer.PresharedKeyFile != "" {
		if psk, err = readKey(w.Peer.PresharedKeyFile); err != nil {
			return wgtypes.Config{}, err
		}
	}
	cfg := wgtypes.Config{FirewallMark: &w.FwMark}
	if private.PublicKey() != d.PublicKey {
		cfg.PrivateKey = &private
	}
	if w.ListenPort != 0 && w.ListenPort != d.ListenPort {
		cfg.ListenPort = &w.ListenPort
	}
	for _, p := range d.Peers {
		if p.PublicKey != w.Peer.PublicKey {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
		}
	}
	keepalive := time.Duration(w.Peer.Keepalive) * time.Second
	peer := wgtypes.PeerConfig{
		PublicKey: w.Peer.PublicKey, PresharedKey: &psk, PersistentKeepaliveInterval: &keepalive,
		ReplaceAllowedIPs: true, AllowedIPs: anywhere(),
	}
	if w.Peer.Endpoint.IsValid() {
		peer.Endpoint = net.UDPAddrFromAddrPort(w.Peer.Endpoint)
	}
	cfg.Peers = append(cfg.Peers, peer)
	return cfg, nil
}
