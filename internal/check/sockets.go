package check

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fabric/overlay/bfd"
)

// programs are the fabric's own, as /proc/N/comm has them.
var programs = []string{"fabric-site", "fabric-links"}

// sockets lists the sockets on the ports that the fabric needs. thread-self and not self: the thread's namespace counts.
func (f *Facts) sockets(s *subject) {
	wanted := map[string][]int{"tcp": {f.Document.Fabric.BGP.Port}, "udp": {f.Document.Fabric.VXLANPort, bfd.SingleHopPort, bfd.MultihopPort}}
	for _, t := range s.plan.Tunnels {
		wanted["udp"] = append(wanted["udp"], t.ListenPorts()...)
	}
	if s.plan.Listener != nil {
		wanted["tcp"] = append(wanted["tcp"], s.plan.Listener.Port)
	}
	inodes := map[string][]int{} // places in f.Ports
	for _, network := range []string{"tcp", "udp"} {
		for _, suffix := range []string{"", "6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + network + suffix)
			f.unread("sockets of "+network+suffix, err)
			for _, p := range parseSockets(network, data) {
				if !slices.Contains(wanted[network], int(p.Local.Port())) {
					continue
				}
				if p.inode == "0" {
					p.Kernel = true
				} else {
					inodes[p.inode] = append(inodes[p.inode], len(f.Ports))
				}
				f.Ports = append(f.Ports, p.Port)
			}
		}
	}
	if len(inodes) > 0 {
		f.owners(inodes)
	}
}

type socket struct {
	Port
	inode string
}

// parseSockets reads /proc/net/tcp and its like: listeners of TCP, all of UDP. Lines that are not understood are none.
func parseSockets(network string, data []byte) (found []socket) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		const listening = "0A"
		if len(fields) < 10 || network == "tcp" && fields[3] != listening {
			continue
		}
		local, ok := parseSocketAddress(fields[1])
		if !ok {
			continue
		}
		found = append(found, socket{Port{Network: network, Local: local}, fields[9]})
	}
	return found
}

// parseSocketAddress reads "0100007F:1F90": words of 32 bits in the machine's order, the port as it is.
func parseSocketAddress(s string) (netip.AddrPort, bool) {
	address, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(address)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a, uint16(n)), ok && err == nil
}

// owners finds the processes of sockets. Without the right to look into other processes it finds none.
func (f *Facts) owners(inodes map[string][]int) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		for _, i := range inodes[strings.TrimSuffix(inode, "]")] {
			pid := strings.Split(link, "/")[2]
			name := processName(pid)
			f.Ports[i].Owner = fmt.Sprintf("%s (process %s)", name, pid)
			f.Ports[i].Ours = f.Ports[i].Ours || slices.Contains(programs, name)
		}
	}
}

func processName(pid string) string {
	comm, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "a program that has ended"
	}
	return strings.TrimSpace(string(comm))
}
