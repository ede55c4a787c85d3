package check

import (
	"bufio"
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// agents are programs of clouds that set addresses, routes or rules, as /proc/N/comm has them (15 bytes).
var agents = []string{"google_guest_ag", "google_network_", "waagent", "ec2net", "policy-routes", "aliyun-service", "YDService", "hv_kvp_daemon", "dhcpcd", "connmand"}

// system asks who else manages the network.
func (f *Facts) system(root string) {
	running := map[string]bool{}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	f.unread("processes", err)
	for _, c := range comms {
		if b, err := os.ReadFile(c); err == nil { // else it has ended
			running[strings.TrimSpace(string(b))] = true
		}
	}
	for _, a := range agents {
		if running[a] {
			f.Agents = append(f.Agents, a)
		}
	}
	if running["systemd-network"] { // 15 bytes of systemd-networkd
		f.Networkd = &Networkd{true, true}
		read := f.configuration(root, "/etc/systemd/networkd.conf", "systemd/networkd.conf.d")
		f.Networkd.ForeignRoutes = truth(read, "Network", "ManageForeignRoutes")
		f.Networkd.ForeignRules = truth(read, "Network", "ManageForeignRoutingPolicyRules")
	}
	if running["NetworkManager"] {
		read := f.configuration(root, "/etc/NetworkManager/NetworkManager.conf", "NetworkManager/conf.d")
		f.NetworkManager = &NetworkManager{unmanaged(read)}
	}
	f.CloudInit = f.cloudInit(root)
	for _, file := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
		b, err := os.ReadFile(file)
		if err == nil {
			f.LegacyTables = append(f.LegacyTables, strings.Fields(string(b))...)
		}
	}
}

// configuration reads a file and its drop-ins in the order that counts: by name, a file in /etc before its like in /run and /usr/lib.
func (f *Facts) configuration(root, file, dropIns string) []setting {
	files := map[string]string{}
	for _, folder := range []string{"/usr/lib", "/run", "/etc"} {
		found, err := filepath.Glob(filepath.Join(root, folder, dropIns, "*.conf"))
		f.unread(folder+"/"+dropIns, err)
		for _, path := range found {
			files[filepath.Base(path)] = path
		}
	}
	paths := []string{filepath.Join(root, file)}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		paths = append(paths, files[name])
	}
	var all []setting
	for _, path := range paths {
		b, err := os.ReadFile(path)
		f.unread(path, err)
		all = append(all, parseSettings(b)...)
	}
	return all
}

// setting is a line of a configuration file in the form of an INI file.
type setting struct{ section, key, value string }

func parseSettings(b []byte) (all []setting) {
	section := ""
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.ContainsAny(line[:1], "#;") {
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			all = append(all, setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return all
}

// truth is the last value of a setting; systemd's default for those looked at is yes.
func truth(all []setting, section, key string) bool {
	yes := true
	for _, s := range all {
		if s.section == section && s.key == key {
			yes = !slices.Contains([]string{"no", "n", "false", "f", "off", "0"}, strings.ToLower(s.value))
		}
	}
	return yes
}

// unmanaged reads NetworkManager's unmanaged-devices: "+" appends, without it the earlier values are gone.
func unmanaged(all []setting) (specs []string) {
	for _, s := range all {
		key := strings.TrimSuffix(s.key, "+")
		if s.section != "keyfile" || key != "unmanaged-devices" {
			continue
		}
		if key == s.key {
			specs = nil
		}
		for _, spec := range strings.FieldsFunc(s.value, func(r rune) bool { return r == ';' || r == ',' }) {
			specs = append(specs, strings.TrimSpace(spec))
		}
	}
	return specs
}

// cloudInit reports whether cloud-init is there and not told to leave the network alone.
func (f *Facts) cloudInit(root string) bool {
	main := filepath.Join(root, "/etc/cloud/cloud.cfg")
	if _, err := os.Stat(main); err != nil {
		return false
	}
	if _, err := os.Stat(filepath.Join(root, "/etc/cloud/cloud-init.disabled")); err == nil {
		return false
	}
	parts, err := filepath.Glob(filepath.Join(root, "/etc/cloud/cloud.cfg.d/*.cfg"))
	f.unread("cloud-init", err)
	for _, path := range append(parts, main) {
		b, err := os.ReadFile(path)
		f.unread(path, err)
		text := strings.Join(strings.Fields(strings.NewReplacer("{", " ", "}", " ", "\"", " ", "'", " ").Replace(string(b))), " ")
		if strings.Contains(cmp.Or(text, " "), "network: config: disabled") {
			return false
		}
	}
	return true
}
