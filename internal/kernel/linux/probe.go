package linux

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"fabric/internal/kernel"
)

// probe tries what cannot be asked. Link kinds are tried by asking for one with an impossible name: a kernel that knows the
// kind complains about something else than EOPNOTSUPP.
func (h *Host) probe() kernel.Features {
	var f kernel.Features
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Release = cstring(u.Release[:])
	}
	f.VRF = h.knowsKind("vrf")
	f.WireGuard = h.knowsKind("wireguard")
	f.NextHops = h.control.dump(context.Background(), func(m *message) {
		m.begin(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, nhmsgLen)
	}, func() {}, func(uint16, []byte) {}) == nil
	// FRA_PROTOCOL is in every rule since Linux 4.17, IFA_PROTO in every address since 5.18; the rule
	// "lookup main" and lo's address may both be gone, so the release decides where nothing answers.
	major, minor := release(f.Release)
	f.RuleProtocol = major > 4 || major == 4 && minor >= 17
	f.AddressProtocol = major > 5 || major == 5 && minor >= 18
	return f
}

// knowsKind asks for a link of the kind at an index that cannot be (negative): rtnetlink looks up the kind, loading its
// module, before it makes anything.
func (h *Host) knowsKind(kind string) bool {
	err := h.control.do(func(m *message) {
		m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.SizeofIfInfomsg)
		m.str(unix.IFLA_IFNAME, "fabric/probe") // no device name may hold a slash
		info := message{}
		info.attr(unix.IFLA_INFO_KIND, append([]byte(kind), 0))
		m.attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info.buf)
	})
	return err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM)
}

// release reads "6.1.0-18-amd64" as 6, 1.
func release(s string) (major, minor int) {
	field := 0
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9' && field == 0:
			major = major*10 + int(c-'0')
		case c >= '0' && c <= '9':
			minor = minor*10 + int(c-'0')
		case c == '.' && field == 0:
			field = 1
		default:
			return major, minor
		}
	}
	return major, minor
}
