package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const testPin = "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// tlsText is a document of three gateways with a tunnel over UDP and one over TLS per link: a and b have endpoints, c only dials. The arguments are the
// gateways' tls sections in flow style, without "tls:".
func tlsText(a, b, c string) string {
	var s strings.Builder
	s.WriteString("fabric: {name: demo}\nvrfs: [{name: CORE, table: 200, vni: 1000}]\nlinks: {tunnels: [{kind: wireguard}, {kind: tls}]}\nsites:\n")
	for i, section := range []string{a, b, c} {
		name := string(rune('a' + i))
		fmt.Fprintf(&s, "  - name: %s-1\n    gateways:\n      - name: %s\n        asn: %d\n        vtep: 10.255.0.%d\n", name, name, 65001+i, 1+i)
		if i < 2 {
			fmt.Fprintf(&s, "        endpoints: [{address: 192.0.2.%d}]\n", 1+i)
		}
		key := strings.Repeat(string(rune('A'+i)), 42) + "A="
		fmt.Fprintf(&s, "        wireguard: {public-key: %q}\n", key)
		if section != "" {
			fmt.Fprintf(&s, "        tls: %s\n", section)
		}
	}
	return s.String()
}

const listens = "{listen: {pin: " + `"` + testPin + `"` + "}}"

func TestTLSDefaults(t *testing.T) {
	d := mustParse(t, tlsText(listens, listens, "{proxy: 'http://proxy:3128'}"))
	_, a, _ := d.Find("a")
	want := TLSListen{Port: 443, Pin: testPin, CertificateFile: "/etc/fabric/keys/a-tls.crt", KeyFile: "/etc/fabric/keys/a-tls.key"}
	if *a.TLS.Listen != want {
		t.Errorf("listen is %+v", *a.TLS.Listen)
	}
	if d.Fabric.TLSTokenFile != "/etc/fabric/keys/demo.token" {
		t.Errorf("token file is %q", d.Fabric.TLSTokenFile)
	}
	if plain := mustParse(t, example(t)); plain.Fabric.TLSTokenFile != "" {
		t.Errorf("a fabric without tls tunnels has a token file: %q", plain.Fabric.TLSTokenFile)
	}
}

func TestTLSProblems(t *testing.T) {
	for _, tt := range []struct {
		name, a, b, c string
		// edit replaces the first text by the second.
		edit [2]string
		want string
	}{
		{name: "nobody listens", c: "{}", want: `sites\[0\].gateways\[0\].tls: "a" and "b" are to have a tls tunnel, but neither takes TLS connections; give one of them tls.listen`},
		{name: "one pair without", a: listens, want: `sites\[1\].gateways\[0\].tls: "b" and "c" are to have a tls tunnel`},
		{name: "listens nowhere", a: listens, b: listens, c: listens, want: `gateways\[0\].tls.listen.host: gateway "c" listens, but nobody is told where; write the name`},
		{name: "no pin", a: "{listen: {}}", b: listens, want: `tls.listen.pin: others dial an address, .* paste what fabric-site tls-certificate prints`},
		{name: "bad pin", a: "{listen: {pin: secret}}", b: listens, want: `tls.listen.pin: not a pin \(sha256`},
		{name: "port", a: "{listen: {port: 70000, host: a.example}}", b: listens, want: `tls.listen.port: 70000 is out of range`},
		{name: "public port", a: "{listen: {public-port: -1, host: a.example}}", b: listens, want: `tls.listen.public-port: -1 is out of range`},
		{name: "host is an address", a: "{listen: {host: 192.0.2.1}}", b: listens, want: `tls.listen.host: .*192.0.2.1.* is not a host name; write a name`},
		{name: "host with port", a: "{listen: {host: 'a.example:443'}}", b: listens, want: `tls.listen.host: .* is not a host name`},
		{name: "certificate file", a: "{listen: {host: a.example, certificate-file: a.crt}}", b: listens, want: `certificate-file: .*a.crt.* is not an absolute path`},
		{name: "key file", a: "{listen: {host: a.example, key-file: a.key}}", b: listens, want: `key-file: .*a.key.* is not an absolute path`},
		{name: "proxy", a: listens, b: listens, c: "{proxy: 'https://proxy'}", want: `tls.proxy: not the URL of an HTTP proxy; write http://HOST:PORT`},
		{name: "proxy with password", a: listens, b: listens, c: "{proxy: 'http://user:hidden@proxy:1'}", want: `tls.proxy: there are credentials in it; write USER:PASSWORD into a file`},
		{name: "credentials without proxy", a: listens, b: listens, c: "{proxy-credentials-file: /k}", want: `proxy-credentials-file: there is no proxy that they are for`},
		{name: "credentials' path", a: listens, b: listens, c: "{proxy: 'http://p:1', proxy-credentials-file: k}", want: `proxy-credentials-file: .*k.* is not an absolute path`},
		{name: "unknown key", a: "{listen: {certificate: x}}", b: listens, want: `certificate`},
		{name: "one address for two", a: listens, b: listens, edit: [2]string{"192.0.2.2", "192.0.2.1, public-port: 40000"}, want: `tls.listen.public-port: duplicate TLS address .*192.0.2.1:443`},
		{name: "the API's port", a: listens, b: listens,
			edit: [2]string{"        vtep: 10.255.0.1\n", "        vtep: 10.255.0.1\n        api: {listen: '0.0.0.0:443', cert-file: /c, key-file: /k, ca-file: /a}\n"},
			want: `tls.listen.port: the API of gateway "a" listens on port 443 as well`},
		{name: "the metrics' port", a: listens, b: listens, edit: [2]string{"        vtep: 10.255.0.1\n", "        vtep: 10.255.0.1\n        metrics: 127.0.0.1:443\n"},
			want: `tls.listen.port: the metrics of gateway "a" are on port 443 as well`},
		{name: "underlay MTU", a: listens, b: listens, edit: [2]string{"{kind: tls}", "{kind: tls, underlay-mtu: 1400}"}, want: `links.tunnels\[1\].underlay-mtu: a tls tunnel has none`},
		{name: "token file", a: listens, b: listens, edit: [2]string{"{name: demo}", "{name: demo, tls-token-file: t}"}, want: `fabric.tls-token-file: .*t.* is not an absolute path`},
		{name: "unknown kind", a: listens, b: listens, edit: [2]string{"{kind: tls}", "{kind: tcp}"}, want: `links.tunnels\[1\].kind: .*tcp.* is not known`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := tlsText(tt.a, tt.b, tt.c)
			if tt.edit[0] != "" {
				text = strings.Replace(text, tt.edit[0], tt.edit[1], 1)
			}
			_, err := Parse("fabric.yaml", []byte(text))
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("error is %v", err)
			}
			if !regexp.MustCompile(`(?m)^fabric.yaml:[1-9][0-9]*:[1-9][0-9]*: .*` + tt.want).MatchString(problems.Error()) {
				t.Errorf("problems are\n%v\nwant %s", problems, tt.want)
			}
			if strings.Contains(problems.Error(), "hidden") {
				t.Error("the password is shown")
			}
		})
	}
	for _, good := range []struct{ name, text string }{
		{"two listen", tlsText(listens, listens, "")},
		{"by name, signed by an authority", tlsText("{listen: {host: a.example}}", listens, "")},
		{"only one listens, the other pair has UDP", strings.Replace(tlsText(listens, "", ""), "links: {", "links: {pairs: [{between: [b, c], tunnels: [{kind: wireguard}]}], ", 1)},
		{"TLS alone needs no endpoint", strings.Replace(strings.Replace(tlsText("{listen: {host: a.example}}", listens, ""), "{kind: wireguard}, ", "", 1), "        endpoints: [{address: 192.0.2.1}]\n", "", 1)},
		{"one address, two ports", strings.Replace(tlsText(listens, strings.Replace(listens, "pin", "public-port: 8443, pin", 1), ""), "192.0.2.2", "192.0.2.1, public-port: 40000", 1)},
	} {
		if _, err := Parse("fabric.yaml", []byte(good.text)); err != nil {
			t.Errorf("%s: %v", good.name, err)
		}
	}
}
