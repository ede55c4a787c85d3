package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/internal/kernel/linux"
)

// Gather looks at this host, in the network namespace of the calling thread, for what Run judges. It changes nothing. What it may
// not read is named in the result; the only error is a gateway that the document has not.
func Gather(ctx context.Context, doc *config.Document, gateway string, o Options) (Facts, error) {
	_, gw, ok := doc.Find(gateway)
	if !ok {
		return Facts{}, fmt.Errorf("gateway %q is not in the document", gateway)
	}
	o.StateDir = cmp.Or(o.StateDir, "/var/lib/fabric-site")
	o.Socket = cmp.Or(o.Socket, "/run/fabric-site/fabric.sock")
	o.Links = cmp.Or(o.Links, "/run/fabric-links/links.sock")
	f := Facts{Document: doc, Gateway: gateway, Root: os.Geteuid() == 0}
	f.process(o.Confined)
	f.host(ctx)
	s := newSubject(f)
	f.kernel(ctx, s)
	f.sockets(s)
	if o.Probe {
		f.probes(ctx, s)
		if o.Cloud != nil {
			asking, cancel := context.WithTimeout(ctx, cloudTimeout)
			f.Cloud, f.CloudErr = o.Cloud(asking)
			cancel()
		}
	}
	f.files(gw, s)
	f.State = folder(o.StateDir)
	f.Running = answers(ctx, o.Socket) == nil
	f.Links = answers(ctx, o.Links)
	f.system(o.Root)
	return f, nil
}

// unread notes what could not be read. What is not there is no such thing.
func (f *Facts) unread(part string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Unread = append(f.Unread, kernel.Unread{Part: part, Err: err})
	}
}

// process asks about this process and its machine.
func (f *Facts) process(confined bool) {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		f.Release = unix.ByteSliceToString(u.Release[:])
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		f.unread("capabilities", err)
		f.Capabilities = ^uint64(0)
	} else {
		f.Capabilities = uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		f.OpenFiles = limit.Max
	}
	var clock unix.Timex
	if _, err := unix.Adjtimex(&clock); err != nil {
		f.unread("clock", err)
	} else {
		const unsynchronised = 0x40 // STA_UNSYNC (linux/timex.h)
		ok := clock.Status&unsynchronised == 0
		f.Synchronised = &ok
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		err = tun.Close()
	}
	if f.TUN = err; confined && errors.Is(err, fs.ErrNotExist) {
		f.TUN = nil
		f.unread("/dev/net/tun", errHidden)
	}
}

// errHidden is told of what a service with PrivateDevices= does not see. fabric-links does; it is the one that needs it.
var errHidden = errors.New("hidden from the service; run `fabric-site check` outside it")

// host asks the kernel what stands.
func (f *Facts) host(ctx context.Context) {
	h, err := linux.Open(nil)
	if err != nil {
		f.unread("netlink", err)
		for _, part := range []string{"devices", "addresses", "rules", "nftables"} {
			f.Host.Unread = append(f.Host.Unread, kernel.Unread{Part: part, Err: err})
		}
		return
	}
	defer h.Close()
	f.Host = h.Survey(ctx)
	if f.Capabilities&(1<<capNetAdmin) == 0 {
		f.unread("what the kernel offers", fmt.Errorf("needs CAP_NET_ADMIN: %w", fs.ErrPermission))
	} else {
		features := h.Features()
		f.Features = &features
	}
}

// kernel asks what depends on the document: sysctls, tables, ways to the other gateways.
func (f *Facts) kernel(ctx context.Context, s *subject) {
	keys := []string{
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.nexthop_compat_mode",
		"net.ipv4.tcp_l3mdev_accept", "net.ipv4.udp_l3mdev_accept", "net.ipv4.conf.all.rp_filter",
		"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6",
		"net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream",
	}
	for _, d := range s.guarded() {
		keys = append(keys, "net.ipv4.conf."+sysctlName(d)+".rp_filter")
	}
	for _, t := range s.plan.Tunnels {
		if to := t.Endpoint.Addr(); to.IsValid() && !slices.ContainsFunc(f.Paths, func(p Path) bool { return p.To == to }) {
			f.Paths = append(f.Paths, f.path(t.Endpoint))
		}
	}
	h, err := linux.Open(nil)
	if err != nil {
		return // told already
	}
	defer h.Close()
	f.Sysctls = map[string]string{}
	for _, key := range keys {
		// One by one: a key that cannot be read hides no other.
		found, err := h.Sysctls(func() []string { return []string{key} }).Observe(ctx)
		f.unread("sysctl "+key, err)
		for k, v := range found {
			f.Sysctls[k] = v
		}
	}
	f.Strangers, err = h.Strangers(ctx, s.want.Tables)
	f.unread("routes of the VRFs' tables", err)
}

// path asks the kernel which way packets to an address would go. A connected UDP socket sends nothing.
func (f *Facts) path(to netip.AddrPort) Path {
	p := Path{To: to.Addr()}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		p.Err = err
		return p
	}
	defer c.Close()
	local, ok := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP)
	for _, k := range f.Host.Addresses {
		if ok && k.Prefix.Addr() == local.Unmap() {
			p.Device = k.Device
		}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) { // without an answer the MTU stays unknown
		level, option := unix.IPPROTO_IP, unix.IP_MTU
		if to.Addr().Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		if mtu, err := unix.GetsockoptInt(int(fd), level, option); err == nil {
			p.MTU = mtu
		}
	})
	return p
}

// files reads what the document names of secrets. None is kept.
func (f *Facts) files(gw *config.Gateway, s *subject) {
	f.Key = File{Purpose: "private key", Path: gw.WireGuard.PrivateKeyFile}
	f.Key.PublicKey, f.Key.Err = config.PublicKey(f.Key.Path)
	secret := func(purpose, path string) {
		if path == "" {
			return
		}
		_, err := config.ReadSecretFile(path)
		f.Secrets = append(f.Secrets, File{Purpose: purpose, Path: path, Err: err})
	}
	for _, v := range gw.VRFs {
		for _, p := range v.Peers {
			name := cmp.Or(p.Name, p.Address.String())
			secret("BGP password of peer "+name, p.PasswordFile)
			if p.BFD != nil {
				secret("BFD key of peer "+name, p.BFD.KeyFile)
			}
		}
	}
	if gw.API != nil {
		secret("key of the API's certificate", gw.API.KeyFile)
	}
	if s.site.Cloud != nil {
		secret("cloud credentials", s.site.Cloud.CredentialsFile)
	}
	f.tls(gw, s, secret)
}

// folder looks at a folder without writing to it.
func folder(path string) Folder {
	f := Folder{Path: path, Free: -1, FreeFiles: -1}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Missing = true
		// What it would lie on.
		for path != "/" && errors.Is(err, fs.ErrNotExist) {
			path = filepath.Dir(path)
			_, err = os.Stat(path)
		}
	case err != nil:
		f.Err = err
	case !info.IsDir():
		f.Err = errors.New("it is not a folder")
	default:
		f.Err = unix.Access(path, unix.W_OK|unix.X_OK)
	}
	var s unix.Statfs_t
	if unix.Statfs(path, &s) == nil {
		f.Free = int64(s.Bavail) * s.Bsize
		if s.Files > 0 {
			f.FreeFiles = int64(s.Ffree)
		}
	}
	return f
}

// answers reports whether a program accepts connections on a unix socket.
func answers(ctx context.Context, socket string) error {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// release reads "6.1.0-18-amd64" as 6, 1; anything else as 0, 0.
func release(s string) (major, minor int) {
	if n, err := fmt.Sscanf(s, "%d.%d", &major, &minor); n != 2 || err != nil {
		return 0, 0
	}
	return major, minor
}
