package check

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// systemChecks are about the rest of the system: other managers of the network, daemons, rights and limits.
var systemChecks = []check{
	{"clock-unsynchronised", "Certificates, cloud signatures and WireGuard's replay guard count on the time; logs of two gateways are compared by it.", func(s *subject) []fault {
		if s.Synchronised == nil || *s.Synchronised {
			return nil
		}
		return one(Warning, "timedatectl set-ntp true && timedatectl", "the clock is not synchronised")
	}},
	{"networkd-foreign-routes", "systemd-networkd removes routes and next hops that it did not make whenever it starts again.", func(s *subject) []fault {
		if s.Networkd == nil || !s.Networkd.ForeignRoutes {
			return nil
		}
		return one(Error, networkdMend, "systemd-networkd runs and manages foreign routes")
	}},
	{"networkd-foreign-rules", "systemd-networkd removes policy rules that it did not make whenever it starts again.", func(s *subject) []fault {
		if s.Networkd == nil || !s.Networkd.ForeignRules {
			return nil
		}
		return one(Error, networkdMend, "systemd-networkd runs and manages foreign routing policy rules")
	}},
	{"networkmanager-manages", "NetworkManager sets addresses, routes and masters of devices that it manages, and removes what it does not know.", func(s *subject) []fault {
		if s.NetworkManager == nil {
			return nil
		}
		var managed, patterns []string
		for _, d := range s.guarded() {
			if !s.NetworkManager.leaves(d) {
				managed = append(managed, d)
			}
		}
		if len(managed) == 0 {
			return nil
		}
		patterns = []string{"interface-name:fxw*", "interface-name:fxv*"}
		for _, i := range s.members() {
			patterns = append(patterns, "interface-name:"+i.Name)
		}
		return one(Warning, "printf '[keyfile]\\nunmanaged-devices+="+strings.Join(patterns, ";")+"\\n' >/etc/NetworkManager/conf.d/60-fabric.conf && nmcli general reload",
			"NetworkManager runs and may manage %s", quote(managed))
	}},
	{"cloud-init-network", "cloud-init writes the network's configuration again at boot and puts back what was changed for the fabric.", func(s *subject) []fault {
		if !s.CloudInit {
			return nil
		}
		return one(Info, "echo 'network: {config: disabled}' >/etc/cloud/cloud.cfg.d/99-disable-network-config.cfg", "cloud-init manages the network's configuration")
	}},
	{"host-agent", "Host agents of clouds may set addresses, routes and rules of interfaces that the fabric has.", func(s *subject) []fault {
		if len(s.Agents) == 0 {
			return nil
		}
		return one(Info, "ip rule; ip route show table all  # look for what is theirs", "running: %s", quote(s.Agents))
	}},
	{"links-not-answering", "fabric-links makes tunnels and next hops and repairs paths; without it forwarding goes on as it is.", func(s *subject) []fault {
		if s.Links == nil || denied(s.Links) {
			return nil
		}
		return one(Warning, "systemctl start fabric-links", "fabric-links does not answer: %v", s.Links)
	}},
	{"capability-missing", "The daemons change the network, speak raw sockets and listen below port 1024.", func(s *subject) []fault {
		var missing []string
		for _, c := range []struct {
			bit  uint
			name string
		}{{capNetAdmin, "CAP_NET_ADMIN"}, {capNetRaw, "CAP_NET_RAW"}, {capNetBindService, "CAP_NET_BIND_SERVICE"}} {
			if s.Capabilities&(1<<c.bit) == 0 {
				missing = append(missing, c.name)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if !s.Root {
			return one(Info, "sudo fabric-site check", "the check runs without %s and sees only part of the host", quote(missing))
		}
		return one(Error, "# in a container: --cap-add NET_ADMIN --cap-add NET_RAW --cap-add NET_BIND_SERVICE; on a host: the unit's CapabilityBoundingSet", "missing even for root: %s", quote(missing))
	}},
	{"file-limit", "Every session, tunnel and watcher is an open file.", func(s *subject) []fault {
		if s.OpenFiles == 0 || s.OpenFiles >= minOpenFiles {
			return nil
		}
		return one(Warning, "ulimit -Hn 65536  # in a unit: LimitNOFILE=65536", "at most %d files may be open, less than %d", s.OpenFiles, minOpenFiles)
	}},
	{"not-readable", "What cannot be read is not judged.", func(s *subject) (faults []fault) {
		add := func(part string, err error) {
			mend := ""
			if denied(err) {
				mend = "sudo fabric-site check"
			}
			faults = append(faults, fault{Info, fmt.Sprintf("%s: %v", part, err), mend})
		}
		for _, u := range slices.Concat(s.Host.Unread, s.Unread) {
			if u.Part != "nftables" || denied(u.Err) { // else nft-unusable has said it
				add(u.Part, u.Err)
			}
		}
		for _, f := range append(slices.Clone(s.Secrets), s.Key) {
			if f.Err != nil && unreadable(f.Err) {
				add(f.Purpose, f.Err)
			}
		}
		if s.Links != nil && denied(s.Links) {
			add("fabric-links", s.Links)
		}
		return faults
	}},
}

const (
	// minOpenFiles has room for 64 VRFs with some peers each.
	minOpenFiles = 4096
	networkdMend = "mkdir -p /etc/systemd/networkd.conf.d && printf '[Network]\\nManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no\\n' >/etc/systemd/networkd.conf.d/60-fabric.conf && systemctl restart systemd-networkd"
)

// leaves reports whether a device is left alone. "*" alone and interface-name patterns are understood, the rest is not for us.
func (n *NetworkManager) leaves(device string) bool {
	for _, spec := range n.Unmanaged {
		name, _ := strings.CutPrefix(spec, "interface-name:")
		name = strings.TrimPrefix(name, "=")
		if ok, err := path.Match(name, device); ok && err == nil {
			return true
		}
	}
	return false
}
