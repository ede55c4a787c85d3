package cloudemu

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"
)

// maxSkew is how far a Timestamp may be from the server's clock.
const maxSkew = 15 * time.Minute

// nonceLife is how long a nonce is remembered for its key.
const nonceLife = 30 * time.Minute

// key is an access key in use. expires is zero for static keys.
type key struct {
	Key
	principal string // key id, or "role/NAME": who writes are attributed to
	expires   time.Time
}

// call is one RPC call on its way through the checks.
type call struct {
	method    string
	host      string
	params    params
	service   string // vpc or ecs
	action    string
	region    string
	principal string
	vanish    bool // an injected fault: the accepted task fails in the end
	token     string
	unowned   bool // a write to an entry another principal created
	overlap   bool // a write sent while a task of that VPC was running
}

func (c *call) write() bool {
	return strings.HasPrefix(c.action, "Create") || strings.HasPrefix(c.action, "Delete") || strings.HasPrefix(c.action, "Modify")
}

// authenticate runs the checks before the call itself, in the order the real
// front door has them. It fills the call. s.mu is held.
func (s *Server) authenticate(c *call) *apiError {
	p := c.params
	if c.method != http.MethodGet && c.method != http.MethodPost {
		return refuse("UnsupportedHTTPMethod", "This http method is not supported.")
	}
	if c.action = p["Action"]; c.action == "" {
		return refuse("MissingAction", "Action is mandatory for this action.")
	}
	if !knownAction(c.action) {
		return notFound("InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
	}
	api, ok := apis[p["Version"]]
	if !ok || api.actions[c.action] == nil {
		return refuse("InvalidVersion", "Specified parameter Version is not valid.")
	}
	c.service = api.service
	if p["AccessKeyId"] == "" {
		return refuse("MissingAccessKeyId", "AccessKeyId is mandatory for this action.")
	}
	k := s.world.keys[p["AccessKeyId"]]
	switch {
	case k == nil:
		return notFound("InvalidAccessKeyId.NotFound", "Specified access key is not found.")
	case k.Disabled:
		return refuse("InvalidAccessKeyId.Inactive", "Specified access key is disabled.")
	}
	c.principal = k.principal
	// Callers sign with the real time, so neither skew nor nonces follow a
	// clock that was moved by hand.
	now := s.wall()
	at, err := time.Parse("2006-01-02T15:04:05Z", p["Timestamp"])
	if err != nil {
		return refuse("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	if skew := now.Sub(at); skew > maxSkew || skew < -maxSkew {
		return refuse("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	if p["SignatureMethod"] != "HMAC-SHA1" || p["SignatureVersion"] != "1.0" {
		return refuse("InvalidSignatureMethod", "Specified signature method or version is not valid.")
	}
	if p["Signature"] == "" {
		return refuse("MissingSignature", "Signature is mandatory for this action.")
	}
	if p["SignatureNonce"] == "" {
		return refuse("MissingSignatureNonce", "SignatureNonce is mandatory for this action.")
	}
	if s.nonceUsed(k.ID+" "+p["SignatureNonce"], now) {
		return refuse("SignatureNonceUsed", "Specified signature nonce was used already.")
	}
	text := stringToSign(c.method, p)
	if subtle.ConstantTimeCompare([]byte(sign(k.Secret, text)), []byte(p["Signature"])) != 1 {
		// The text after the colon must be exactly ours: clients compare it to theirs.
		return refuse("SignatureDoesNotMatch",
			"Specified signature is not matched with our calculation. server string to sign is:"+text)
	}
	if err := s.checkToken(k, p["SecurityToken"]); err != nil {
		return err
	}
	if c.region = p["RegionId"]; c.region == "" && c.action != "DescribeRegions" {
		return missing("RegionId")
	}
	if c.region != "" && !s.world.hasRegion(c.region) {
		return notFound("InvalidRegionId.NotFound", "The specified RegionId does not exist.")
	}
	if !allowed(k.Policy, c.service+":"+c.action, s.resources(c)) {
		return &apiError{http.StatusForbidden, "Forbidden.RAM",
			"User not authorized to operate on the specified resource, or this API doesn't support RAM."}
	}
	return s.throttle(c)
}

func (s *Server) nonceUsed(nonce string, now time.Time) bool {
	if len(s.nonces) > 10000 {
		for n, at := range s.nonces {
			if now.Sub(at) > nonceLife {
				delete(s.nonces, n)
			}
		}
	}
	if at, ok := s.nonces[nonce]; ok && now.Sub(at) <= nonceLife {
		return true
	}
	s.nonces[nonce] = now
	return false
}

// checkToken checks the security token of a temporary key. A role's key is
// accepted for one minute past its end, as clocks differ.
func (s *Server) checkToken(k *key, token string) *apiError {
	if !strings.HasPrefix(k.ID, "STS.") {
		return nil
	}
	switch {
	case token == "":
		return refuse("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
	case len(token) < 8:
		return refuse("InvalidSecurityToken.Malformed", "Specified SecurityToken is malformed.")
	case subtle.ConstantTimeCompare([]byte(token), []byte(k.Token)) != 1:
		return refuse("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
	case !k.expires.IsZero() && s.clock.Now().After(k.expires.Add(time.Minute)):
		return refuse("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
	}
	return nil
}

// resources names the route tables a call is about, as RAM does; "*" when it is
// about none.
func (s *Server) resources(c *call) []string {
	var ids []string
	if e := s.world.entries[c.params["RouteEntryId"]]; e != nil {
		ids = append(ids, e.table.ID)
	} else if t := c.params["RouteTableId"]; t != "" {
		ids = append(ids, t)
	}
	for _, it := range c.params.items("RouteEntries") {
		if e := s.world.entries[it["RouteEntryId"]]; e != nil {
			ids = append(ids, e.table.ID)
		} else {
			ids = append(ids, it["RouteTableId"])
		}
	}
	if len(ids) == 0 {
		return []string{"*"}
	}
	for i, id := range ids {
		ids[i] = fmt.Sprintf("acs:%s:%s:%s:routetable/%s", c.service, c.region, s.world.seed.Account, id)
	}
	return ids
}

// allowed says whether a policy lets the action be done on every resource.
func allowed(policy []Statement, action string, resources []string) bool {
	for _, r := range resources {
		ok := false
		for _, st := range policy {
			ok = ok || matchAny(st.Actions, action) && (len(st.Resources) == 0 || matchAny(st.Resources, r))
		}
		if !ok {
			return false
		}
	}
	return true
}

func matchAny(patterns []string, s string) bool {
	for _, p := range patterns {
		// RAM's "*" spans separators, path.Match's does not cross "/".
		if ok, err := path.Match(strings.ReplaceAll(p, "/", "|"), strings.ReplaceAll(s, "/", "|")); err == nil && ok {
			return true
		}
	}
	return false
}

// bucket is a token bucket that holds one minute's worth of calls.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) take(perMinute int, now time.Time) bool {
	full := float64(perMinute)
	if b.at.IsZero() {
		b.tokens = full
	} else {
		b.tokens = min(full, b.tokens+now.Sub(b.at).Seconds()*full/60)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// throttle charges the call to the bucket of its key, region and API.
func (s *Server) throttle(c *call) *apiError {
	r := s.world.seed.Rates
	limit, def := r.Read, 600
	switch {
	case c.action == "ModifyRouteEntry":
		limit, def = r.Modify, 300
	case c.action == "DescribeRouteTables":
		limit, def = r.DescribeRouteTables, 120
	case c.write():
		limit, def = r.Write, 60
	}
	if limit == 0 {
		limit = def
	}
	now := s.clock.Now()
	if r.Global > 0 && !s.bucket("").take(r.Global, now) {
		return refuse("Throttling", "Request was denied due to request throttling.")
	}
	if limit > 0 && !s.bucket(c.principal+" "+c.region+" "+c.action).take(limit, now) {
		return refuse("Throttling.User", "Request was denied due to user flow control.")
	}
	return nil
}

func (s *Server) bucket(name string) *bucket {
	if s.buckets[name] == nil {
		s.buckets[name] = &bucket{}
	}
	return s.buckets[name]
}
