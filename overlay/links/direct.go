package links

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fabric/internal/kernel"
	"fabric/overlay"
)

// A direct tunnel is a VXLAN device with one remote. It is Ethernet, so the other end's link-local address has a permanent neighbour,
// and routes go through that address: whatever lies behind the tunnel needs no entry of its own.
//
//	VTEP route: 10.255.0.2 via inet6 fe80::… dev fxw…   neighbour: fe80::… lladdr 02:…   device: remote 10.0.0.2
func (d *desired) direct(t overlay.Tunnel) {
	d.links[t.Device] = kernel.Link{
		Name: t.Device, Kind: kernel.KindDirect, Alias: kernel.AliasPrefix + t.Name, MTU: t.MTU, Up: true,
		MAC:   overlay.DirectMAC(t.LinkLocal),
		VXLAN: kernel.VXLAN{VNI: t.VNI, Local: t.Local, Remote: t.Endpoint.Addr(), Port: t.Endpoint.Port()},
	}
	d.neighbours[kernel.NeighbourKey{Device: t.Device, Addr: t.RemoteLinkLocal}] = kernel.Neighbour{MAC: overlay.DirectMAC(t.RemoteLinkLocal)}
}

// throughGateway is the address that routes over a tunnel go through: the far end's link-local one on direct tunnels, else none.
func throughGateway(t overlay.Tunnel) netip.Addr {
	if t.Kind == overlay.KindDirect {
		return t.RemoteLinkLocal
	}
	return netip.Addr{}
}

// neighbours syncs the entries of direct tunnels.
func (e *Engine) neighbours(p *pass, want map[kernel.NeighbourKey]kernel.Neighbour) {
	_, _ = converge(p, kind[kernel.NeighbourKey, kernel.Neighbour]{
		name: kindNeighbour, edge: e.cfg.Host.Neighbours(kernel.KindDirect), label: kernel.NeighbourKey.String,
		explain: func(k kernel.NeighbourKey, err error) error { return waitIfMissing(err, "device "+k.Device) },
	}, want)
}

// directFacts adds what there is to know of direct tunnels whose devices were found: nobody has to be asked. facts may be nil.
func directFacts(plan overlay.Plan, found map[string]kernel.Link, facts map[string]Facts) map[string]Facts {
	if facts == nil {
		facts = map[string]Facts{}
	}
	for _, t := range plan.Tunnels {
		if _, there := found[t.Device]; !there || t.Kind != overlay.KindDirect {
			continue
		}
		facts[t.Device] = Facts{
			Endpoint: t.Endpoint, ListenPort: t.ListenPort,
			RxBytes: deviceCounter(t.Device, "rx_bytes"), TxBytes: deviceCounter(t.Device, "tx_bytes"),
		}
	}
	return facts
}

// deviceCounter reads a counter of a device, 0 where it cannot be read: it is shown and nothing depends on it.
func deviceCounter(device, name string) uint64 {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", device, "statistics", name))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// explainDirect says in words what the kernel answers when another VXLAN device has the port and VNI, or another program the port.
func explainDirect(l kernel.Link, err error) error {
	if os.IsExist(err) || strings.Contains(err.Error(), "address already in use") {
		return fmt.Errorf("UDP port %d with VNI %d is in use by another device or program; remove that, or choose another direct-port: %w",
			l.VXLAN.Port, l.VXLAN.VNI, err)
	}
	return err
}

// Encryption is what protects the packets in the tunnel: "wireguard" or "none".
func (t TunnelState) Encryption() string { return overlay.Encryption(t.Kind) }
