package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"fabric/overlay"
	"fabric/overlay/links"
	"fabric/overlay/links/rotation"
)

// linksState is the state folder of fabric-links in a gateway.
const linksState = "/var/lib/fabric-links"

// tunnelEnd is one gateway's end of a tunnel with the keys of the moment: what somebody has who broke into the gateway just now.
type tunnelEnd struct {
	gateway    string
	plan       overlay.Tunnel
	generation int
	made       time.Time // when the keys were agreed
	private    [32]byte
	public     [32]byte // the other end's
}

// name says whose end it is.
func (e tunnelEnd) name() string { return e.gateway + " end of " + e.plan.Name }

// endpoint is where the other end listens with a generation of keys.
func (e tunnelEnd) endpoint(generation int) netip.AddrPort {
	one, _ := e.plan.In(overlay.SlotOf(generation))
	return one.Endpoint
}

// tunnelEnds reads all ends of all tunnels whose keys can be replaced, in the order of the gateways.
func (d *demo) tunnelEnds() ([]tunnelEnd, error) {
	var all []tunnelEnd
	for _, gateway := range d.gateways() {
		file := func(name string) string { return d.lab.Node(gateway).Path(name) }
		var plan overlay.Plan
		if err := readJSON(file(filepath.Join(linksState, "plan.json")), &plan); err != nil {
			return nil, err
		}
		for _, t := range plan.Tunnels {
			if len(t.Slots) == 0 {
				continue
			}
			e := tunnelEnd{gateway: gateway, plan: t}
			private, public := t.PrivateKeyFile, t.PublicKey
			var r rotation.Record
			err := readJSON(file(filepath.Join(links.KeysDir(linksState), t.Device+".json")), &r)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			e.made = r.Current.Made
			if e.generation = r.Current.Generation; e.generation > 0 {
				private, public = r.Current.PrivateKeyFile, r.Current.Public
			}
			data, err := os.ReadFile(file(private))
			if err != nil {
				return nil, err
			}
			if e.private, err = overlay.ParsePublicKey(strings.TrimSpace(string(data))); err != nil {
				return nil, fmt.Errorf("%s: private key: %w", e.name(), err)
			}
			if e.public, err = overlay.ParsePublicKey(public); err != nil {
				return nil, fmt.Errorf("%s: public key: %w", e.name(), err)
			}
			all = append(all, e)
		}
	}
	return all, nil
}

func readJSON(file string, into any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// knock begins a WireGuard handshake from the end's gateway with the end's keys, and says whether it is answered within patience. No session
// comes of it. Where it is answered, the other end sends to us until it hears the tunnel itself again.
func (d *demo) knock(ctx context.Context, e tunnelEnd, to netip.AddrPort, patience time.Duration) (answered bool, err error) {
	packet, sender, err := initiation(e.private, e.public)
	if err != nil {
		return false, fmt.Errorf("%s: %w", e.name(), err)
	}
	var c *net.UDPConn
	if err := d.lab.Node(e.gateway).Within(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(patience)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := c.SetDeadline(deadline); err != nil {
		return false, err
	}
	if _, err := c.Write(packet); err != nil {
		return false, err
	}
	for buf := make([]byte, 2048); ; {
		n, err := c.Read(buf)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrDeadlineExceeded):
			return false, ctx.Err()
		case err != nil:
			return false, err
		}
		// A response, to the index of our initiation.
		if n == device.MessageResponseSize && binary.LittleEndian.Uint32(buf) == device.MessageResponseType && binary.LittleEndian.Uint32(buf[8:]) == sender {
			return true, nil
		}
	}
}

// initiation is the first message of a handshake and the index by which it will be answered. A preshared key plays no part in it yet.
func initiation(private, public [32]byte) (packet []byte, sender uint32, err error) {
	// A device that has no packets and reaches nobody: only its arithmetic is of use.
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0], device.NewLogger(device.LogLevelSilent, ""))
	defer dev.Close()
	if err := dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\n", hex.EncodeToString(private[:]), hex.EncodeToString(public[:]))); err != nil {
		return nil, 0, errors.New("these are no keys: " + base64.StdEncoding.EncodeToString(public[:]))
	}
	message, err := dev.CreateMessageInitiation(dev.LookupPeer(public))
	if err != nil {
		return nil, 0, err
	}
	if packet, err = binary.Append(nil, binary.LittleEndian, message); err != nil {
		return nil, 0, err
	}
	var macs device.CookieGenerator
	macs.Init(public)
	macs.AddMacs(packet)
	return packet, message.Sender, nil
}
