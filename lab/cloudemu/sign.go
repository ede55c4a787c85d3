package cloudemu

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// params are the parameters of one call, query and form merged.
type params map[string]string

// parseParams merges a raw query and a raw form body. A name given twice is an
// error: which of the two was signed could not be told.
func parseParams(query, body string) (params, error) {
	p := params{}
	for _, raw := range []string{query, body} {
		vs, err := url.ParseQuery(raw)
		if err != nil {
			return nil, fmt.Errorf("parameters are not form encoded: %w", err)
		}
		for name, v := range vs {
			if _, twice := p[name]; twice || len(v) > 1 {
				return nil, fmt.Errorf("parameter %q is given twice", name)
			}
			p[name] = v[0]
		}
	}
	return p, nil
}

// percentEncode encodes per RFC 3986 section 2.3: everything but unreserved
// characters, so a space becomes %20, "*" %2A, and "~" stays.
func percentEncode(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// stringToSign is what an RPC call with signature version 1.0 signs: the
// method, "/" and the sorted parameters except Signature.
func stringToSign(method string, p params) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if name == "Signature" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(percentEncode(name) + "=" + percentEncode(p[name]))
	}
	return method + "&%2F&" + percentEncode(b.String())
}

// sign is the HMAC-SHA1 signature of a string to sign, base64.
func sign(secret, text string) string {
	m := hmac.New(sha1.New, []byte(secret+"&"))
	m.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// list returns the members of a flat list: for "A" the values of A.1, A.2, ...
// until the first gap.
func (p params) list(name string) []string {
	var out []string
	for i := 1; ; i++ {
		v, ok := p[fmt.Sprintf("%s.%d", name, i)]
		if !ok {
			return out
		}
		out = append(out, v)
	}
}

// items returns the members of a flat list of structures: for "A" the map
// {B: v} of every A.N.B=v, in order of N, until the first gap.
func (p params) items(name string) []params {
	byN := map[string]params{}
	for k, v := range p {
		rest, ok := strings.CutPrefix(k, name+".")
		if !ok {
			continue
		}
		n, field, ok := strings.Cut(rest, ".")
		if !ok {
			continue
		}
		if byN[n] == nil {
			byN[n] = params{}
		}
		byN[n][field] = v
	}
	var out []params
	for i := 1; byN[fmt.Sprint(i)] != nil; i++ {
		out = append(out, byN[fmt.Sprint(i)])
	}
	return out
}

// envelope names the parameters that carry a call and are not part of what it
// asks for.
var envelope = map[string]bool{
	"AccessKeyId": true, "Signature": true, "SignatureMethod": true, "SignatureNonce": true,
	"SignatureType": true, "SignatureVersion": true, "SecurityToken": true, "Timestamp": true,
	"Format": true, "Version": true, "Action": true,
}

// asked is a canonical text of what a call asks for, without the envelope.
func (p params) asked() string {
	q := params{}
	for k, v := range p {
		if !envelope[k] {
			q[k] = v
		}
	}
	return stringToSign("", q)
}
