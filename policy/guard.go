package policy

import (
	"fmt"
	"net/netip"
)

// guardPolicy is the name that Guard goes by in explain.
const guardPolicy = "guard"

// guardTerms are what never belongs into the fabric: a name for explain and the prefixes, with all inside them. What
// covers them, such as 0.0.0.0/1, passes.
var guardTerms = []struct {
	name     string
	prefixes []string
}{
	{"point-to-point-v4", []string{"0.0.0.0/0 ge 30 le 31"}},
	{"point-to-point-v6", []string{"::/0 ge 126 le 127"}},
	{"this-network", []string{"0.0.0.0/8 le 32"}},       // RFC 791 section 3.2
	{"loopback-v4", []string{"127.0.0.0/8 le 32"}},      // RFC 1122 section 3.2.1.3
	{"link-local-v4", []string{"169.254.0.0/16 le 32"}}, // RFC 3927; also the clouds' metadata services
	{"shared-address", []string{"100.64.0.0/10 le 32"}}, // RFC 6598; also the clouds' own services
	{"multicast-v4", []string{"224.0.0.0/4 le 32"}},     // RFC 5771
	{"reserved-v4", []string{"240.0.0.0/4 le 32"}},      // RFC 1112 section 4
	{"unspecified-v6", []string{"::/128"}},              // RFC 4291 section 2.5.2
	{"loopback-v6", []string{"::1/128"}},                // RFC 4291 section 2.5.3
	{"link-local-v6", []string{"fe80::/10 le 128"}},     // RFC 4291 section 2.5.6
	{"multicast-v6", []string{"ff00::/8 le 128"}},       // RFC 4291 section 2.7
}

// v4Mapped are IPv4 addresses dressed as IPv6 (RFC 4291 section 2.5.5.2), which the parser of prefixes refuses to read.
var v4Mapped = prefixRange{
	base: netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96),
	ge:   96,
	le:   128,
}

// mustRange reads a prefix range written in this file.
func mustRange(s string) prefixRange {
	r, err := parsePrefixRange(s)
	if err != nil {
		panic(err)
	}
	return r
}

// Guard returns the policy that is in front of every other: it rejects transfer networks (/30, /31, /126, /127), default
// routes unless they are allowed, and addresses that mean something only to one host or link, each by a term of its own.
// Private addresses (RFC 1918, RFC 4193) and host routes (/32, /128) pass.
func Guard(allowDefault bool) Policy {
	c := &compiled{name: guardPolicy, verdict: Accept, source: fmt.Sprintf("guard default=%t", allowDefault)}
	add := func(name string, rs ...prefixRange) {
		c.terms = append(c.terms, term{name: name, then: thenReject, match: match{prefixes: newPrefixSet(rs)}})
	}
	if !allowDefault {
		add("default-v4", mustRange("0.0.0.0/0"))
		add("default-v6", mustRange("::/0"))
	}
	for _, g := range guardTerms {
		var rs []prefixRange
		for _, s := range g.prefixes {
			rs = append(rs, mustRange(s))
		}
		add(g.name, rs...)
	}
	add("v4-mapped", v4Mapped)
	return Policy{steps: []step{c}}
}
