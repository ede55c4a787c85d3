package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/overlay/bfd"
)

// hostChecks are about interfaces, addresses, sizes, ports and the firewall.
var hostChecks = []check{
	{"interface-absent", "A VRF without its interface has no way to its neighbours.", func(s *subject) (faults []fault) {
		if !s.read("devices") {
			return nil
		}
		for _, i := range s.members() {
			if _, ok := s.Host.Device(i.Name); !ok {
				faults = append(faults, fault{Error, "interface " + i.Name + " of the document is not on this host", "ip link show  # attach the device, or correct the document"})
			}
		}
		return faults
	}},
	{"interface-down", "An interface that is down carries nothing.", func(s *subject) (faults []fault) {
		for _, i := range s.members() {
			if d, ok := s.Host.Device(i.Name); ok && !d.Up {
				faults = append(faults, fault{Error, "interface " + i.Name + " is down", "ip link set " + i.Name + " up"})
			}
		}
		return faults
	}},
	{"interface-foreign-master", "An interface belongs to one master; fabric-site does not take it from somebody else's.", func(s *subject) (faults []fault) {
		for _, i := range s.members() {
			d, ok := s.Host.Device(i.Name)
			if !ok || d.Master == "" {
				continue
			}
			if master, ok := s.Host.Device(d.Master); ok && master.Ours() {
				continue
			}
			faults = append(faults, fault{Error, fmt.Sprintf("interface %s is enslaved to %s", i.Name, d.Master), "ip link set " + i.Name + " nomaster"})
		}
		return faults
	}},
	{"address-missing", "The daemons own these addresses; one that stays away is refused by the kernel or removed by somebody.", addressMissing},
	{"vtep-duplicate", "Every gateway has its own VTEP, on lo and its tunnels; with the same address on two devices or two hosts the tunnels' traffic goes astray.", vtepDuplicate},
	{"underlay-mtu", "Packets are made to fit the document's underlay-mtu; on a narrower path large ones vanish while pings work.", underlayMTU},
	{"underlay-unreachable", "A gateway that cannot be dialled has no tunnel from here.", func(s *subject) (faults []fault) {
		for _, p := range s.Paths {
			if p.Err != nil {
				faults = append(faults, fault{Error, fmt.Sprintf("no route to %s, which tunnels dial: %v", p.To, p.Err), "ip route get " + p.To.String()})
			}
		}
		return faults
	}},
	{"mss-rule-missing", "Without the MSS clamp large TCP transfers hang, BGP's own among them.", func(s *subject) []fault {
		if !s.Running || !s.read("nftables") {
			return nil
		}
		if t := s.table(); t == nil || t.Clamps == 0 {
			return one(Error, "systemctl restart fabric-site && nft list table inet fabric", "fabric-site runs, but the nft table inet fabric has no rule that clamps the MSS")
		}
		return nil
	}},
	{"mss-not-counting", "A clamp that never matches is either idle, or TCP goes another way than through the fabric.", func(s *subject) []fault {
		if t := s.table(); s.Running && t != nil && t.Clamps > 0 && t.Clamped == 0 {
			return one(Info, "nft list table inet fabric", "no TCP connection has had its MSS lowered so far")
		}
		return nil
	}},
	{"port-taken-wireguard", whyPort, func(s *subject) (faults []fault) {
		kernelOurs := slices.ContainsFunc(s.Host.Devices, func(d kernel.Device) bool { return d.Kind == kernel.KindWireGuard && d.Ours() })
		for _, t := range s.plan.Tunnels {
			if t.Kind == overlay.KindDirect {
				continue
			}
			for _, port := range t.ListenPorts() {
				faults = append(faults, s.taken("udp", port, func(p Port) bool { return p.unowned() && kernelOurs })...)
			}
		}
		return faults
	}},
	{"port-taken-vxlan", whyPort, func(s *subject) []fault {
		// A VXLAN device of the kernel's shares the port with others.
		port := s.Document.Fabric.VXLANPort
		device := slices.ContainsFunc(s.Host.Devices, func(d kernel.Device) bool { return d.Kind == kernel.KindVXLAN && int(d.VXLAN.Port) == port })
		return s.taken("udp", port, func(p Port) bool { return p.Kernel || device && p.unowned() })
	}},
	{"port-taken-bgp", whyPort, func(s *subject) []fault {
		return s.taken("tcp", s.Document.Fabric.BGP.Port, func(p Port) bool {
			a := p.Local.Addr().Unmap()
			return !a.IsUnspecified() && a != s.gw.VTEP
		})
	}},
	{"port-taken-bfd", whyPort, func(s *subject) []fault {
		never := func(Port) bool { return false }
		return append(s.taken("udp", bfd.SingleHopPort, never), s.taken("udp", bfd.MultihopPort, never)...)
	}},
	{"firewall-missing", "A gateway is a host on the public network: only the tunnels' ports need to be open there. Tunnels themselves need no firewall.", firewall},
	{"firewall-legacy", "nft does not show the rules of iptables' legacy interface, so whether the public interface is guarded is not known.", func(s *subject) []fault {
		if len(s.public()) == 0 || !slices.Contains(s.LegacyTables, "filter") {
			return nil
		}
		return one(Info, "iptables-legacy -S INPUT; ip6tables-legacy -S INPUT", "a firewall is kept by iptables-legacy; the fabric needs udp ports %s%s", s.udpPorts(), s.tcpSentence())
	}},
	{"conntrack-udp-timeout", "A NAT or firewall entry that is forgotten between two keepalives stalls the tunnel until the next one.", func(s *subject) (faults []fault) {
		keepalive := 0
		for _, t := range s.plan.Tunnels {
			if t.Kind == overlay.KindWireGuard {
				keepalive = max(keepalive, t.Keepalive)
			}
		}
		for _, key := range []string{"net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream"} {
			if v, err := strconv.Atoi(s.Sysctls[key]); err == nil && keepalive > 0 && v <= keepalive {
				faults = append(faults, fault{Warning, fmt.Sprintf("%s is %d s, the tunnels' keepalive %d s", key, v, keepalive), setSysctl(key, strconv.Itoa(max(30, 3*keepalive)))})
			}
		}
		return faults
	}},
}

const whyPort = "Two programs cannot have one port: the one that comes second does not start."

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// addressMissing looks at what the daemons should have set: before they run there is nothing to miss.
func addressMissing(s *subject) (faults []fault) {
	if !s.read("addresses") {
		return nil
	}
	if s.Links == nil && s.gw.VTEP.IsValid() && !s.Host.Has("lo", s.gw.VTEP) {
		faults = append(faults, fault{Warning, fmt.Sprintf("the VTEP %s is not on lo", s.gw.VTEP), "fabric-links status"})
	}
	if !s.Running {
		return faults
	}
	var missing []string
	for k := range s.want.Addresses {
		if !slices.Contains(s.Host.Addresses, k) {
			missing = append(missing, k.String())
		}
	}
	slices.Sort(missing)
	for _, m := range missing {
		faults = append(faults, fault{Warning, "address " + m + " is missing", "fabricctl site status"})
	}
	return faults
}

func vtepDuplicate(s *subject) (faults []fault) {
	for _, k := range s.Host.Addresses {
		a := k.Prefix.Addr()
		tunnel := slices.ContainsFunc(s.plan.Tunnels, func(t overlay.Tunnel) bool { return slices.Contains(t.Devices(), k.Device) }) // these have it too
		if a == s.gw.VTEP && k.Device != "lo" && !tunnel {
			faults = append(faults, fault{Error, fmt.Sprintf("the VTEP %s is also on %s", a, k.Device), fmt.Sprintf("ip address del %s dev %s", k.Prefix, k.Device)})
		}
		for _, v := range s.plan.VTEPs {
			if a == v.Addr {
				faults = append(faults, fault{Error, fmt.Sprintf("the VTEP %s of gateway %s is on %s of this host", a, v.Gateway, k.Device),
					fmt.Sprintf("ip address del %s dev %s  # or correct --gateway", k.Prefix, k.Device)})
			}
		}
	}
	return faults
}

// underlayMTU compares the route's MTU with what the tunnels to its end assume.
func underlayMTU(s *subject) (faults []fault) {
	for _, p := range s.Paths {
		want := s.underlay(p.To)
		if p.Err == nil && p.MTU > 0 && p.MTU < want {
			faults = append(faults, fault{Error, fmt.Sprintf("the path to %s has an MTU of %d bytes by %s, the document says %d", p.To, p.MTU, p.Device, want),
				fmt.Sprintf("ip link set %s mtu %d  # or underlay-mtu: %d in the document", p.Device, want, p.MTU)})
		}
	}
	return faults
}

// table is the fabric's own nft table, nil where there is none.
func (s *subject) table() *kernel.FilterTable {
	for i, t := range s.Host.Tables {
		if t.Family == "inet" && t.Name == tableName && strings.HasPrefix(t.Comment, kernel.AliasPrefix) {
			return &s.Host.Tables[i]
		}
	}
	return nil
}

// taken are the sockets on a port that are neither the fabric's nor excused.
func (s *subject) taken(network string, port int, excused func(Port) bool) (faults []fault) {
	for _, p := range s.Ports {
		if p.Network != network || int(p.Local.Port()) != port || p.Ours || excused(p) {
			continue
		}
		owner, flags := p.Owner, "-lunp"
		if network == "tcp" {
			flags = "-ltnp"
		}
		switch {
		case p.Kernel:
			owner = "a device of the kernel's (WireGuard, VXLAN)"
		case owner == "":
			owner = "a program that could not be found"
		}
		faults = append(faults, fault{Error, fmt.Sprintf("%s port %d (%s) is taken by %s", network, port, p.Local, owner),
			fmt.Sprintf("ss %s 'sport = :%d'  # stop that program, or name another port in the document", flags, port)})
	}
	return faults
}

// cgnat is RFC 6598's: not reachable from everywhere.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

// public are the devices with an address that everybody can reach, sorted. Tunnels and devices of ours do not count.
func (s *subject) public() (devices []string) {
	for _, k := range s.Host.Addresses {
		a := k.Prefix.Addr()
		if !a.IsGlobalUnicast() || a.IsPrivate() || cgnat.Contains(a) || k.Device == "lo" || strings.HasPrefix(k.Device, overlay.TunnelPrefix) {
			continue
		}
		if d, ok := s.Host.Device(k.Device); ok && d.Ours() || s.isMember(k.Device) {
			continue
		}
		devices = append(devices, k.Device)
	}
	slices.Sort(devices)
	return slices.Compact(devices)
}

func (s *subject) isMember(device string) bool {
	return slices.ContainsFunc(s.members(), func(i config.Interface) bool { return i.Name == device })
}

// udpPorts are the ports that tunnels listen on, for a sentence and for nft.
func (s *subject) udpPorts() string {
	var ports []string
	for _, t := range s.plan.Tunnels {
		for _, port := range t.ListenPorts() {
			ports = append(ports, strconv.Itoa(port))
		}
	}
	slices.Sort(ports)
	return strings.Join(slices.Compact(ports), ", ")
}

// firewall wants one input chain per family that drops what it does not know, if the host has a public address.
func firewall(s *subject) []fault {
	devices := s.public()
	if len(devices) == 0 || !s.read("nftables") || slices.Contains(s.LegacyTables, "filter") {
		return nil
	}
	if slices.ContainsFunc(s.Host.Chains, func(c kernel.FilterChain) bool {
		return c.Hook == "input" && c.Drops && (c.Family == "inet" || c.Family == "ip" || c.Family == "ip6")
	}) {
		return nil
	}
	ports := s.udpPorts()
	mend := FirewallRules(devices, ports, s.tcpPorts())
	return one(Warning, mend, "%s has a public address and nothing drops what comes in; the fabric needs udp ports %s there%s", quote(devices), ports, s.tcpSentence())
}

// tcpPorts are those of services that the document puts on public or unspecified addresses.
func (s *subject) tcpPorts() (ports []string) {
	ports = []string{"22"}
	if s.gw.API != nil && !s.gw.API.Listen.Addr().IsLoopback() {
		ports = append(ports, strconv.Itoa(int(s.gw.API.Listen.Port())))
	}
	if s.plan.Listener != nil {
		ports = append(ports, strconv.Itoa(s.plan.Listener.Port))
	}
	return ports
}

// tcpSentence names them, but for SSH's.
func (s *subject) tcpSentence() string {
	if ports := s.tcpPorts()[1:]; len(ports) > 0 {
		return ", and tcp ports " + strings.Join(ports, ", ")
	}
	return ""
}

// FirewallRules is the command that guards the public devices: only there, and nothing else on the host is touched. SSH stays
// open, or whoever types it would shut himself out. udp are the tunnels' ports, comma-separated.
func FirewallRules(devices []string, udp string, tcp []string) string {
	var quoted []string
	for _, d := range devices {
		quoted = append(quoted, strconv.Quote(d))
	}
	accept := ""
	if udp != "" {
		accept = "\n    udp dport { " + udp + " } accept"
	}
	return `nft -f - <<'EOF'
table inet public {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname != { ` + strings.Join(quoted, ", ") + ` } accept
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept` + accept + `
    tcp dport { ` + strings.Join(tcp, ", ") + ` } accept
  }
}
EOF`
}
