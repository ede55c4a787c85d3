package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Validate reports everything that is wrong with a document whose defaults are filled in; the error is of type Problems.
func (d *Document) Validate() error {
	r := newReport("")
	d.validate(r)
	if len(r.list) > 0 {
		return r.list.sorted()
	}
	return nil
}

// validator holds what several checks look up.
type validator struct {
	*report
	doc *Document
	// first remembers where a value that must be unique was seen first, by kind and value.
	first map[[2]string]string
}

// validate adds all problems of the document to the report.
func (d *Document) validate(r *report) {
	v := &validator{report: r, doc: d, first: map[[2]string]string{}}
	if !v.sizes() {
		return
	}
	v.addresses(reflect.ValueOf(d).Elem(), "")
	v.fabric(&d.Fabric, "fabric")
	if len(d.VRFs) == 0 {
		v.add("vrfs", "describe at least one VRF", "has no VRF")
	}
	for i := range d.VRFs {
		v.vrf(&d.VRFs[i], index("vrfs", i))
	}
	for i := range d.Policies {
		v.policy(&d.Policies[i], index("policies", i))
	}
	if len(d.Sites) == 0 {
		v.add("sites", "describe at least one site", "has no site")
	}
	for i := range d.Sites {
		v.site(&d.Sites[i], index("sites", i))
	}
	v.links()
	v.overlaps()
}

// The largest numbers of things that are checked each against each.
const (
	maxGateways  = 2048
	maxEndpoints = 16
	maxVRFs      = 4096
)

// sizes refuses documents that would take too long to check.
func (v *validator) sizes() bool {
	before := len(v.list)
	limit := func(path string, n, most int) {
		if n > most {
			v.add(path, "split the fabric", "%d are more than %d", n, most)
		}
	}
	limit("vrfs", len(v.doc.VRFs), maxVRFs)
	limit("policies", len(v.doc.Policies), maxVRFs)
	limit("sites", len(v.doc.Sites), maxGateways)
	limit("sites", len(v.doc.gatewayNames()), maxGateways)
	limit("links.communities", len(v.doc.Links.Communities), maxGateways)
	return len(v.list) == before
}

// listed joins names for a message, bounded.
func listed(names []string) string {
	const most = 20
	if len(names) == 0 {
		return "none"
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

var (
	siteName   = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	vrfName    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,12}$`)
	policyName = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)
)

const (
	siteNameMend   = "use 1 to 32 of a-z, 0-9 and '-'"
	vrfNameMend    = "use 1 to 12 of letters, digits, '-' and '_'"
	policyNameMend = "use 1 to 64 of letters, digits and '-_.:'"
)

// name checks the form of a name.
func (v *validator) name(path, s string, form *regexp.Regexp, mend string) {
	if !form.MatchString(s) {
		v.add(path, mend, "%s is not a valid name", quoteShort(s))
	}
}

// unique reports the second use of a value.
func (v *validator) unique(path, kind, value string) {
	key := [2]string{kind, value}
	if first, twice := v.first[key]; twice {
		where := first
		if pos := v.find(first); pos.line > 0 {
			where = fmt.Sprintf("%s on line %d", first, pos.line)
		}
		v.add(path, "give each its own", "duplicate %s %s, used by %s", kind, quoteShort(value), where)
		return
	}
	v.first[key] = path
}

// number checks that n is from lo to hi.
func (v *validator) number(path string, n, lo, hi int64) {
	if n < lo || n > hi {
		v.add(path, fmt.Sprintf("write a number from %d to %d", lo, hi), "%d is out of range", n)
	}
}

func (v *validator) port(path string, n int) { v.number(path, int64(n), 1, 65535) }

// oneOf checks that s is one of the words.
func (v *validator) oneOf(path, s string, words ...string) {
	if !slices.Contains(words, s) {
		v.add(path, "write "+strings.Join(words, " or "), "%s is not known", quoteShort(s))
	}
}

// asn checks an AS number (RFC 7607: 0, RFC 6793: 23456, RFC 7300: the last).
func (v *validator) asn(path string, n uint32) {
	if n == 0 || n == 23456 || n == 1<<32-1 {
		v.add(path, "use a private AS number, 64512 to 65534 or 4200000000 to 4294967294", "AS number %d is reserved", n)
	}
}

// seconds checks a duration that protocols carry in whole seconds.
func (v *validator) seconds(path string, d Duration, lo, hi time.Duration) {
	if d.Std() < lo || d.Std() > hi || d.Std()%time.Second != 0 {
		v.add(path, fmt.Sprintf("write whole seconds from %s to %s", lo, hi), "%s is out of range", d)
	}
}

// file checks a path that daemons open: it may not depend on where they were started.
func (v *validator) file(path, name string) {
	if name == "" || !filepath.IsAbs(name) || filepath.Clean(name) != name {
		v.add(path, "write the whole path, from /", "%s is not an absolute path", quoteShort(name))
	}
}

// device checks the name of a network device (Linux: at most 15 bytes).
func (v *validator) device(path, name string) {
	switch {
	case name == "" || len(name) > 15 || strings.ContainsAny(name, "/: \t\n\v\f\r") || !isASCII(name):
		v.add(path, "use 1 to 15 characters without space, '/' or ':'", "%s is not an interface name", quoteShort(name))
	case name == "." || name == ".." || name == "all" || name == "default" || name == "lo":
		v.add(path, "name another device", "interface %q is the system's own", name)
	}
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) < 0
}

// unicast checks an address that one host answers to.
func (v *validator) unicast(path string, a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		v.add(path, "write the address of one host", "%s is not the address of a host", addrText(a))
		return false
	}
	return true
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return `""`
	}
	return a.String()
}

// addresses checks what holds for every address in the document: no zone and no IPv4 in IPv6.
func (v *validator) addresses(value reflect.Value, path string) {
	var a netip.Addr
	switch x := value.Interface().(type) {
	case netip.Addr:
		a = x
	case netip.Prefix:
		a = x.Addr()
	case netip.AddrPort:
		a = x.Addr()
	default:
		switch value.Kind() {
		case reflect.Struct:
			for _, f := range fieldsOf(value.Type()) {
				v.addresses(value.FieldByIndex(f.index), join(path, f.key))
			}
		case reflect.Slice:
			for i := range value.Len() {
				v.addresses(value.Index(i), index(path, i))
			}
		case reflect.Pointer:
			if !value.IsNil() {
				v.addresses(value.Elem(), path)
			}
		}
		return
	}
	if a.Zone() != "" {
		v.add(path, "leave out the zone and name the device under interface", "%s has a zone", a)
	}
	if a.Is4In6() {
		v.add(path, "write "+a.Unmap().String(), "%s is an IPv4 address in IPv6 form", a)
	}
}

// fabric checks the settings shared by all gateways.
func (v *validator) fabric(f *Fabric, path string) {
	v.name(path+".name", f.Name, siteName, siteNameMend)
	v.oneOf(path+".vtep-family", f.VTEPFamily, "ipv4", "ipv6")
	v.underlay(path+".underlay-mtu", f.UnderlayMTU)
	v.number(path+".mss", int64(f.MSS), 536, 65495)
	if room := f.RoomForMSS(); f.MSS > room {
		v.add(path+".mss", fmt.Sprintf("write %d or less, or leave it out", room),
			"%d does not fit: an underlay MTU of %d leaves segments of %d", f.MSS, f.UnderlayMTU, room)
	}
	v.port(path+".vxlan-port", f.VXLANPort)
	v.port(path+".wireguard-port", f.WireGuardPort)
	v.port(path+".direct-port", f.DirectPort)
	if f.WireGuardRekeyAge != 0 {
		v.seconds(path+".wireguard-rekey-age", f.WireGuardRekeyAge, time.Hour, 8760*time.Hour)
	}
	v.bfd(path+".bfd", f.BFD)
	if f.TLSTokenFile != "" {
		v.file(path+".tls-token-file", f.TLSTokenFile)
	}
	b := path + ".bgp"
	v.port(b+".port", f.BGP.Port)
	v.timers(b, f.BGP.Keepalive, f.BGP.Hold)
	v.seconds(b+".connect-retry", f.BGP.ConnectRetry, time.Second, time.Hour)
	v.seconds(b+".restart-time", f.BGP.RestartTime, time.Second, 4095*time.Second)
	v.number(b+".max-prefix", int64(f.BGP.MaxPrefix), 1, 1<<31-1)
}

// underlay checks that an underlay MTU leaves enough inside.
func (v *validator) underlay(path string, mtu int) {
	if mtu > 65535 {
		v.number(path, int64(mtu), 0, 65535)
	} else if inner := v.doc.Fabric.InnerMTU(mtu); inner < minInnerMTU {
		v.add(path, fmt.Sprintf("use a path of at least %d", mtu+minInnerMTU-inner),
			"%d leaves %d inside the tunnels, less than IPv6's minimum of %d", mtu, inner, minInnerMTU)
	}
}

// bfd checks the timers of BFD sessions.
func (v *validator) bfd(path string, b BFD) {
	if i := b.Interval.Std(); i < 10*time.Millisecond || i > time.Minute || i%time.Millisecond != 0 {
		v.add(path+".interval", "write whole milliseconds from 10ms to 60s", "%s is out of range", b.Interval)
	}
	v.number(path+".multiplier", int64(b.Multiplier), 1, 255)
}

// timers checks the keepalive interval and the hold time (RFC 4271 section 4.2, section 10).
func (v *validator) timers(path string, keepalive, hold Duration) {
	v.seconds(path+".hold", hold, 3*time.Second, 65535*time.Second)
	v.seconds(path+".keepalive", keepalive, time.Second, 21845*time.Second)
	if keepalive.Std()*3 > hold.Std() {
		v.add(path+".keepalive", "write a third of hold or less", "%s is more than a third of the hold time %s", keepalive, hold)
	}
}

// vrf checks one VRF and that it shares nothing that must be its own.
func (v *validator) vrf(f *VRF, path string) {
	v.name(path+".name", f.Name, vrfName, vrfNameMend)
	v.unique(path+".name", "VRF name", f.Name)
	switch {
	case f.Name == "default":
		if f.Table != 0 {
			v.add(path+".table", "remove it", "VRF \"default\" is the main table and has no table number")
		}
	case f.Table == 0:
		v.add(path+".table", "write a number from 1 to 252, or 256 and up", "VRF %q needs a routing table number", f.Name)
	case f.Table >= 253 && f.Table <= 255:
		v.add(path+".table", "write a number from 1 to 252, or 256 and up", "table %d is the kernel's own", f.Table)
	default:
		v.unique(path+".table", "table", fmt.Sprint(f.Table))
	}
	v.number(path+".vni", int64(f.VNI), 1, 1<<24-1)
	if f.VNI != 0 {
		v.unique(path+".vni", "VNI", fmt.Sprint(f.VNI))
	}
	for i, rt := range f.ImportRT {
		v.routeTarget(index(path+".import-rt", i), rt)
	}
	for i, rt := range f.ExportRT {
		v.routeTarget(index(path+".export-rt", i), rt)
	}
}
