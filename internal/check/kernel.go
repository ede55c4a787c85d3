package check

import (
	"slices"
	"strings"

	"fabric/internal/kernel"
	"fabric/overlay"
)

// Capabilities that the daemons need (linux/capability.h).
const (
	capNetBindService = 10
	capNetAdmin       = 12
	capNetRaw         = 13
)

// kernelChecks are about the kernel and its settings.
var kernelChecks = []check{
	{"document-unfit", "fabric-site refuses a document that does not compile for its host.", func(s *subject) []fault {
		if s.unfit == nil {
			return nil
		}
		return one(Error, "fabric-site check-config --gateway "+s.Gateway, "%v", s.unfit)
	}},
	{"kernel-too-old", "Next-hop objects (Linux 5.3) carry all routes of the fabric.", func(s *subject) []fault {
		if major, minor := release(s.Release); major == 0 || major > 5 || major == 5 && minor >= 3 {
			return nil
		}
		return one(Error, "apt-get install linux-image-amd64 && systemctl reboot", "kernel %s is older than 5.3", s.Release)
	}},
	{"kernel-vrf-tcp", "Linux 4.14 to 4.18 mishandle TCP in VRF devices: BGP sessions never become established.", func(s *subject) []fault {
		major, minor := release(s.Release)
		if major != 4 || minor < 14 || minor > 18 || s.Features != nil && !s.Features.VRF {
			return nil
		}
		return one(Error, "apt-get install linux-image-amd64 && systemctl reboot", "kernel %s has a known bug", s.Release)
	}},
	{"kernel-no-address-protocol", "Without an owner's mark on addresses (Linux 5.18), an address of an earlier document can stay behind on an interface after a restart.",
		func(s *subject) []fault {
			if s.Features == nil || s.Features.AddressProtocol {
				return nil
			}
			return one(Info, "", "kernel %s does not mark addresses with their owner", s.Release)
		}},
	{"vrf-backend", "VRFs are devices where the kernel has them, policy rules and packet marks otherwise, with the same isolation.", func(s *subject) []fault {
		switch {
		case s.Features == nil:
			return nil
		case s.Features.VRF:
			return one(Info, "", "VRFs are VRF devices")
		}
		return one(Info, "modprobe vrf", "VRFs are policy rules: this kernel has no VRF devices")
	}},
	{"wireguard-backend", "Tunnels run in the kernel where it has WireGuard, in a process each otherwise, which is slower.", func(s *subject) []fault {
		switch {
		case s.Features == nil:
			return nil
		case s.Features.WireGuard:
			return one(Info, "", "WireGuard is the kernel's")
		}
		return one(Info, "modprobe wireguard", "WireGuard runs in user space: this kernel has none")
	}},
	{"vxlan-missing", "All traffic between gateways is VXLAN inside the tunnels.", func(s *subject) []fault {
		if s.Features == nil || s.Host.VXLAN {
			return nil
		}
		return one(Error, "modprobe vxlan && echo vxlan >>/etc/modules-load.d/fabric.conf", "the kernel makes no VXLAN devices")
	}},
	{"tun-missing", "WireGuard in user space needs a TUN device for each tunnel.", func(s *subject) []fault {
		tls := slices.ContainsFunc(s.plan.Tunnels, func(t overlay.Tunnel) bool { return t.Kind == overlay.KindTLS })
		if s.Features == nil || s.Features.WireGuard && !tls || s.TUN == nil {
			return nil
		}
		return one(Error, "modprobe tun && mkdir -p /dev/net && { [ -e /dev/net/tun ] || mknod -m 600 /dev/net/tun c 10 200; }", "/dev/net/tun cannot be used: %v", s.TUN)
	}},
	{"nexthops-missing", "All routes of the fabric go through next-hop objects.", func(s *subject) []fault {
		if s.Features == nil || s.Features.NextHops {
			return nil
		}
		return one(Error, "apt-get install linux-image-amd64 && systemctl reboot", "the kernel has no next-hop objects")
	}},
	{"nft-unusable", "Without nftables there is no MSS clamp and no guard that keeps VXLAN inside the tunnels; no session starts.", func(s *subject) []fault {
		for _, u := range s.Host.Unread {
			if u.Part == "nftables" && !denied(u.Err) {
				return one(Error, "modprobe nf_tables", "nftables cannot be used: %v", u.Err)
			}
		}
		return nil
	}},
	{"tcp-l3mdev-accept", whyL3mdev, l3mdev("net.ipv4.tcp_l3mdev_accept")},
	{"udp-l3mdev-accept", whyL3mdev, l3mdev("net.ipv4.udp_l3mdev_accept")},
	{"rp-filter-strict", "Answers may come back another way than requests went; a strict reverse path filter drops them silently.", rpFilter},
	{"ipv4-forwarding-off", "A gateway that does not forward drops everything between the sites.", forwarding("net.ipv4.ip_forward")},
	{"ipv6-forwarding-off", "A gateway that does not forward drops all IPv6 between the sites.", forwarding("net.ipv6.conf.all.forwarding")},
	{"ipv6-disabled", "IPv4 routes of the fabric use link-local IPv6 next hops as well.", func(s *subject) []fault {
		if s.Sysctls["net.ipv6.conf.all.disable_ipv6"] != "1" && s.Sysctls["net.ipv6.conf.default.disable_ipv6"] != "1" {
			return nil
		}
		return one(Error, "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0", "IPv6 is disabled, for all devices or for new ones")
	}},
	{"nexthop-compat-mode", "With it a next-hop change is told once per route: failover takes seconds instead of microseconds.", func(s *subject) []fault {
		const key = "net.ipv4.nexthop_compat_mode"
		if s.Sysctls[key] != "1" {
			return nil
		}
		return one(s.daemonMends(), setSysctl(key, "0"), "%s is 1", key)
	}},
	{"local-rule-order", "While the table local is asked first, a VRF reaches the host's addresses in other VRFs. fabric-site moves the rule behind the VRFs when it starts.", localRule},
	{"l3mdev-rule-missing", "The kernel adds the rule with the first VRF device; without it no packet finds its VRF's table.", func(s *subject) []fault {
		if !s.read("rules") || !s.read("devices") || len(s.want.Tables) == 0 || s.Features == nil || !s.Features.VRF {
			return nil
		}
		devices, missing := false, []string{"", "-6"}
		for _, d := range s.Host.Devices {
			devices = devices || d.Kind == kernel.KindVRF
		}
		for _, r := range s.Host.Rules {
			if r.Rule.L3MDEV && r.Key.IPv6 {
				missing[1] = "found"
			} else if r.Rule.L3MDEV {
				missing[0] = "found"
			}
		}
		var mend []string
		for _, family := range missing {
			if family != "found" {
				mend = append(mend, strings.Join(strings.Fields("ip "+family+" rule add pref 1000 l3mdev"), " "))
			}
		}
		if !devices || len(mend) == 0 {
			return nil
		}
		return one(Error, strings.Join(mend, "\n"), "VRF devices stand, but no rule leads to their tables")
	}},
}

const whyL3mdev = "With it a socket outside the VRFs also answers inside each: sockets of the fabric are bound to their VRF and do not need it."

func l3mdev(key string) func(*subject) []fault {
	return func(s *subject) []fault {
		if s.Sysctls[key] != "1" {
			return nil
		}
		return one(Warning, setSysctl(key, "0"), "%s is 1", key)
	}
}

func forwarding(key string) func(*subject) []fault {
	return func(s *subject) []fault {
		if s.Sysctls[key] != "0" {
			return nil
		}
		mend := setSysctl(key, "1")
		if s.Running {
			mend += "\n# fabric-site runs and sets it; find what sets it back"
		}
		return one(s.daemonMends(), mend, "%s is 0", key)
	}
}

// rpFilter: the larger of "all" and the device's value counts; 1 is strict, 2 loose.
func rpFilter(s *subject) (faults []fault) {
	all := s.Sysctls["net.ipv4.conf.all.rp_filter"]
	for _, d := range s.guarded() {
		key := "net.ipv4.conf." + sysctlName(d) + ".rp_filter"
		if own, there := s.Sysctls[key]; there && max(own, all) == "1" {
			faults = append(faults, fault{s.daemonMends(), "reverse path filter is strict on " + d, "sysctl -w " + key + "=2"})
		}
	}
	if all == "1" {
		faults = append(faults, fault{Warning, "net.ipv4.conf.all.rp_filter is 1: every device is strict that does not say otherwise, tunnels that are yet to come among them",
			setSysctl("net.ipv4.conf.all.rp_filter", "2")})
	}
	return faults
}

// guarded are the devices whose reverse path filter must not be strict: members, VXLAN devices and tunnels.
func (s *subject) guarded() (devices []string) {
	for _, i := range s.members() {
		devices = append(devices, i.Name)
	}
	for _, m := range s.want.VRFs {
		devices = append(devices, m.VXLAN)
	}
	for _, t := range s.plan.Tunnels {
		devices = append(devices, t.Devices()...)
	}
	return devices
}

// sysctlName writes a device name as sysctl does: a '.' in it becomes '/'.
func sysctlName(device string) string { return strings.ReplaceAll(device, ".", "/") }

func localRule(s *subject) (faults []fault) {
	if !s.read("rules") || len(s.want.Tables) == 0 {
		return nil
	}
	for _, v6 := range []bool{false, true} {
		local, vrfs := int64(-1), int64(-1)
		for _, r := range s.Host.Rules {
			if r.Odd || r.Key.IPv6 != v6 {
				continue
			}
			priority := int64(r.Key.Priority)
			if plain := (kernel.RuleKey{IPv6: v6, Priority: r.Key.Priority}); r.Key == plain && r.Rule.Table == kernel.LocalTable && (local < 0 || priority < local) {
				local = priority
			}
			if (r.Rule.L3MDEV || r.Protocol == kernel.Protocol) && priority > vrfs {
				vrfs = priority
			}
		}
		family, ip := "IPv4", "ip"
		if v6 {
			family, ip = "IPv6", "ip -6"
		}
		switch {
		case local < 0 || local > vrfs && vrfs >= 0:
		case vrfs < 0 && local > 1000:
		default:
			mend := ip + " rule add pref 32765 lookup local && " + ip + " rule del pref " + itoa(local) + " lookup local"
			severity := s.daemonMends()
			if vrfs < 0 && !s.Running {
				severity = Info // no VRF stands yet: the order matters to nobody
			}
			faults = append(faults, fault{severity, family + " rule \"lookup local\" is at " + itoa(local) + ", before the rules of the VRFs", mend})
		}
	}
	return faults
}
