package cloudemu

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// metaState is the changing state of the metadata service.
type metaState struct {
	current map[string]*credential // by role name
	tokens  map[string]time.Time   // session tokens and when they end
	delay   time.Duration
	outage  bool
}

// credential is a temporary key as the metadata service hands it out.
type credential struct {
	AccessKeyID     string `json:"AccessKeyId"`
	AccessKeySecret string `json:"AccessKeySecret"`
	SecurityToken   string `json:"SecurityToken"`
	Expiration      string `json:"Expiration"`
	LastUpdated     string `json:"LastUpdated"`
	Code            string `json:"Code"`
	expires         time.Time
}

const (
	tokenTTLHeader = "X-aliyun-ecs-metadata-token-ttl-seconds"
	tokenHeader    = "X-aliyun-ecs-metadata-token"
	maxTokenTTL    = 21600
)

// Metadata answers as the instance metadata service at 100.100.100.200 does,
// for versions latest and 2016-01-01.
func (s *Server) Metadata() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		delay, outage := s.meta.delay, s.meta.outage
		s.mu.Unlock()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(delay):
		}
		if outage {
			http.Error(w, "the metadata service is out of order", http.StatusInternalServerError)
			return
		}
		s.mu.Lock()
		status, body := s.metadata(r)
		s.mu.Unlock()
		if strings.HasPrefix(body, "{") {
			w.Header().Set("Content-Type", "application/json")
		} else {
			w.Header().Set("Content-Type", "text/plain")
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client may have left
	})
}

// metadata answers one request. s.mu is held.
func (s *Server) metadata(r *http.Request) (status int, body string) {
	i := s.asking(r.RemoteAddr)
	if i == nil {
		return http.StatusNotFound, "no instance has this address\n"
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/latest/")
	if !ok {
		if path, ok = strings.CutPrefix(r.URL.Path, "/2016-01-01/"); !ok {
			return http.StatusNotFound, "not found\n"
		}
	}
	now := s.clock.Now()
	if path == "api/token" {
		ttl, err := strconv.Atoi(r.Header.Get(tokenTTLHeader))
		switch {
		case r.Method != http.MethodPut:
			return http.StatusMethodNotAllowed, "use PUT\n"
		case err != nil || ttl < 1 || ttl > maxTokenTTL:
			return http.StatusBadRequest, fmt.Sprintf("%s: 1 to %d\n", tokenTTLHeader, maxTokenTTL)
		}
		token := randomSecret(40)
		s.meta.tokens[i.ID+" "+token] = now.Add(time.Duration(ttl) * time.Second)
		return http.StatusOK, token
	}
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, "use GET\n"
	}
	if token := r.Header.Get(tokenHeader); token != "" || i.HTTPTokens == "required" {
		if ends, ok := s.meta.tokens[i.ID+" "+token]; !ok || now.After(ends) {
			return http.StatusForbidden, "a valid metadata token is required\n"
		}
	}
	path, ok = strings.CutPrefix(path, "meta-data/")
	if !ok {
		return http.StatusNotFound, "not found\n"
	}
	if name, ok := strings.CutPrefix(path, "ram/security-credentials/"); ok && i.Role != "" {
		switch strings.TrimSuffix(name, "/") {
		case "":
			return http.StatusOK, i.Role
		case i.Role:
			b, _ := json.Marshal(s.credentialOf(i.Role)) // texts always marshal
			return http.StatusOK, string(b)
		}
	}
	if v, ok := s.metaValue(i, path); ok {
		return http.StatusOK, v
	}
	return http.StatusNotFound, "not found\n"
}

// asking finds the instance a request comes from.
func (s *Server) asking(remote string) *instance {
	host, _, _ := net.SplitHostPort(remote)
	from, err := netip.ParseAddr(host)
	for _, i := range s.world.instances {
		if a, _ := netip.ParseAddr(i.PrivateIP); err == nil && a == from.Unmap() {
			return i
		}
	}
	return s.world.instance(s.world.seed.MetadataInstance)
}

func (s *Server) metaValue(i *instance, path string) (string, bool) {
	v := i.vpc
	sw := v.vswitch(i.VSwitch)
	values := map[string]string{
		"instance-id": i.ID, "region-id": v.Region, "zone-id": sw.Zone, "vpc-id": v.ID, "vswitch-id": sw.ID,
		"vpc-cidr-block": v.CIDR, "vswitch-cidr-block": sw.CIDR, "private-ipv4": i.PrivateIP, "eipv4": i.EIP, "mac": i.mac(),
		"owner-account-id": s.world.seed.Account, "hostname": i.ID, "network/interfaces/macs/": i.mac() + "/",
	}
	for _, n := range s.world.enis {
		if n.owner == i && n.Type == "Primary" {
			base := "network/interfaces/macs/" + i.mac() + "/"
			values[base+"network-interface-id"] = n.ID
			values[base+"vpc-id"], values[base+"vswitch-id"] = v.ID, sw.ID
			values[base+"vswitch-cidr-block"], values[base+"vpc-cidr-block"] = sw.CIDR, v.CIDR
			values[base+"primary-ip-address"] = n.PrivateIP
		}
	}
	text, ok := values[path]
	return text, ok && text != ""
}

// mac is the seed's MAC address or one made from the private address.
func (i *instance) mac() string {
	if i.MAC != "" {
		return i.MAC
	}
	a, _ := netip.ParseAddr(i.PrivateIP)
	b := a.AsSlice()
	return fmt.Sprintf("00:16:%02x:%02x:%02x:%02x", b[len(b)-4], b[len(b)-3], b[len(b)-2], b[len(b)-1])
}

// credentialOf returns the role's current key. In the last part of its life
// (half of it, five minutes at most) a new one is made; the old one goes on
// being accepted until its own end.
func (s *Server) credentialOf(role string) *credential {
	now := s.clock.Now()
	r := s.world.role(role)
	ttl := r.ttl()
	if cur := s.meta.current[role]; cur != nil && cur.expires.Sub(now) > min(ttl/2, 5*time.Minute) {
		return cur
	}
	return s.mint(*r, ttl)
}

// ttl is how long a key of the role lives.
func (r Role) ttl() time.Duration {
	if r.TTLSeconds == 0 {
		return time.Hour
	}
	return time.Duration(r.TTLSeconds) * time.Second
}

// mint makes a new key of a role and registers it with the front door.
func (s *Server) mint(r Role, ttl time.Duration) *credential {
	for id, k := range s.world.keys {
		if !k.expires.IsZero() && s.clock.Now().Sub(k.expires) > time.Hour {
			delete(s.world.keys, id)
		}
	}
	now := s.clock.Now()
	c := &credential{AccessKeyID: "STS." + randomSecret(24), AccessKeySecret: randomSecret(44), SecurityToken: randomSecret(120),
		expires: now.Add(ttl), Code: "Success"}
	c.Expiration, c.LastUpdated = c.expires.UTC().Format(wireTime), now.UTC().Format(wireTime)
	s.world.keys[c.AccessKeyID] = &key{principal: "role/" + r.Name, expires: c.expires,
		Key: Key{ID: c.AccessKeyID, Secret: c.AccessKeySecret, Token: c.SecurityToken, Policy: r.Policy}}
	s.meta.current[r.Name] = c
	return c
}

// randomSecret is not drawn from the seed: a run must not repeat its secrets.
func randomSecret(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = idLetters[rand.IntN(len(idLetters))]
	}
	return string(b)
}

// rotate replaces a role's key now; the previous one is accepted for one more
// minute.
func (s *Server) rotate(role string) error {
	r := s.world.role(role)
	if r == nil {
		return fmt.Errorf("role %q does not exist", role)
	}
	old := s.meta.current[role]
	ttl := r.ttl()
	s.mint(*r, ttl)
	if old != nil {
		s.world.keys[old.AccessKeyID].expires = s.clock.Now()
	}
	return nil
}

func (s *Server) postMetadata(b []byte) (any, error) {
	v, err := decode[struct {
		DelayMS int    `json:"delayMs"`
		Outage  bool   `json:"outage"`
		Rotate  string `json:"rotate"`
	}](b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meta.delay, s.meta.outage = time.Duration(v.DelayMS)*time.Millisecond, v.Outage
	if v.Rotate != "" {
		return nil, s.rotate(v.Rotate)
	}
	return nil, nil
}
