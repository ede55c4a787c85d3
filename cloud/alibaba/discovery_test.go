package alibaba

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"fabric/cloud"
	"fabric/lab/cloudemu"
)

func TestDiscovery(t *testing.T) {
	e := newEmu(t, "instant")
	for name, c := range map[string]struct {
		edit   func(w *cloud.Wish)
		meta   string
		tables string
		err    string
	}{
		"nothing given":      {func(w *cloud.Wish) { w.Tables = nil }, e.meta, "vtb-sub vtb-sz", ""},
		"one table":          {func(w *cloud.Wish) {}, e.meta, "vtb-sz", ""},
		"all given":          {func(w *cloud.Wish) { w.Region, w.VPC, w.Instance = "cn-shenzhen", "vpc-sz", "i-gw" }, "http://127.0.0.1:1", "vtb-sz", ""},
		"only the instance":  {func(w *cloud.Wish) { w.Instance = "i-gw" }, "http://127.0.0.1:1", "vtb-sz", ""},
		"instance, region":   {func(w *cloud.Wish) { w.Instance, w.Region = "i-gw", "cn-shenzhen" }, "http://127.0.0.1:1", "vtb-sz", ""},
		"no metadata":        {func(w *cloud.Wish) {}, "http://127.0.0.1:1", "", "give instance, region and vpc"},
		"no such instance":   {func(w *cloud.Wish) { w.Instance = "i-none" }, "http://127.0.0.1:1", "", "in none of the regions cn-hangzhou, cn-shenzhen"},
		"another VPC":        {func(w *cloud.Wish) { w.VPC = "vpc-other" }, e.meta, "", "the document says vpc vpc-other, but this gateway's metadata service says vpc-sz"},
		"another region":     {func(w *cloud.Wish) { w.Region = "cn-hangzhou" }, e.meta, "", "metadata service says cn-shenzhen"},
		"VPC is not there":   {func(w *cloud.Wish) { w.Region, w.VPC, w.Instance = "cn-shenzhen", "vpc-none", "i-gw" }, e.meta, "", "there is no VPC vpc-none"},
		"table is not there": {func(w *cloud.Wish) { w.Tables = []string{"vtb-none"} }, e.meta, "", "it has vtb-sz, vtb-sub, vtb-gw"},
		"table of a gateway": {func(w *cloud.Wish) { w.Tables = []string{"vtb-gw"} }, e.meta, "", "is a gateway's"},
		"no CA":              {func(w *cloud.Wish) { w.CAFile = "" }, e.meta, "", "x509"},
		"CA file is none":    {func(w *cloud.Wish) { w.CAFile = w.CredentialsFile }, e.meta, "", "no PEM certificate"},
		"plain HTTP server":  {func(w *cloud.Wish) { w.Endpoint = strings.TrimPrefix(e.meta, "http://") }, e.meta, "", "HTTP response to HTTPS client"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := e.wish
			c.edit(&w)
			timing := fast
			timing.Patience = 100 * time.Millisecond
			v, err := Options{Metadata: c.meta, Timing: timing}.Open(t.Context(), w, e.logs.logger())
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				} else {
					leaks(t, err.Error())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			info, err := v.Describe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if info.Provider != Provider || info.Region != "cn-shenzhen" || info.ID != "vpc-sz" || info.Instance != "i-gw" || strings.Join(info.Tables, " ") != c.tables ||
				fmt.Sprint(info.CIDRs) != "[10.200.0.0/16 172.18.0.0/16 172.18.171.0/24 172.18.172.0/24]" {
				t.Errorf("info %+v", info)
			}
		})
	}
}

// A metadata service in its hardened mode answers no read without a token, and a proxy's page is no instance id.
func TestMetadata(t *testing.T) {
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello</html>") }))
	defer bad.Close()
	m := metadata{base: bad.URL, client: bad.Client()}
	if p, err := m.place(t.Context()); err == nil {
		t.Errorf("found %+v in a web page", p)
	}
	e := newEmu(t, "instant")
	m.base = e.meta
	if p, err := m.place(t.Context()); err != nil || p != (place{"i-gw", "cn-shenzhen", "vpc-sz"}) {
		t.Errorf("place %+v %v", p, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.place(ctx); err == nil {
		t.Error("a cancelled context was not heeded")
	}
}

func TestCredentialsFile(t *testing.T) {
	e := newEmu(t, "instant")
	path := e.wish.CredentialsFile
	open := func(text string, mode os.FileMode) error {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		e.timing.Patience = 50 * time.Millisecond
		v, err := e.opener(t.Context(), e.wish, nil)
		if err == nil {
			v.Close()
		}
		return err
	}
	good := fmt.Sprintf(`{"access-key-id": %q, "access-key-secret": %q}`, keyID, keySecret)
	if err := open(good, 0o600); err != nil {
		t.Error(err)
	}
	for want, err := range map[string]error{
		"0644":                          open(good, 0o644),
		`is not {"access-key-id"`:       open(`{"access-key-id": "`+keyID+`", `+keySecret, 0o600),
		"the signature does not match":  open(fmt.Sprintf(`{"access-key-id": %q, "access-key-secret": "wrong-`+keySecret+`"}`, keyID), 0o600),
		"InvalidAccessKeyId.NotFound":   open(`{"access-key-id": "nobody-knows-me", "access-key-secret": "x"}`, 0o600),
		"secret file: open " + path[:4]: func() error { _ = os.Remove(path); return openGone(e) }(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
			continue
		}
		leaks(t, err.Error())
		if strings.Contains(err.Error(), "nobody-knows-me") {
			t.Errorf("the key's id is in: %v", err)
		}
	}
	leaks(t, e.logs.String())
}

func openGone(e *emu) error {
	_, err := e.opener(e.t.Context(), e.wish, nil)
	return err
}

// A key replaced in its file is taken up when the old one is refused.
func TestKeyRotation(t *testing.T) {
	e := newEmu(t, "instant", func(s *cloudemu.Seed) {
		s.Keys = append(s.Keys, cloudemu.Key{ID: keyID + "2", Secret: "another", Policy: s.Keys[0].Policy})
	})
	v := e.open()
	if err := os.WriteFile(e.wish.CredentialsFile, []byte(`{"access-key-id": "`+keyID+`2", "access-key-secret": "another"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	e.AddFault(cloudemu.Fault{Match: cloudemu.FaultMatch{Key: keyID}, Do: cloudemu.Effect{Code: "InvalidAccessKeyId.Inactive"}})
	noErrors(t, v.Table("vtb-sz").Apply(t.Context(), creates("i-gw", "10.1.0.0/16")))
	e.behaved()
}

// Every form in which a signed request shows up in a text is made unreadable.
func TestScrub(t *testing.T) {
	c := newCredentials("")
	c.secret = []string{"very-secret", ""}
	for _, text := range []string{
		"GET https://x/?AccessKeyId=abc&SecurityToken=tok%2Fen&Signature=si%3D&Z=1",
		"sign:POST&%2F&AccessKeyId%3Dabc%26Action%3DX%26SecurityToken%3Dtok%252Fen%26SignatureNonce%3Dsi",
		`{"AccessKeyId": "abc", "AccessKeySecret":"tok", "SecurityToken": "tok"}`,
		"AccessKeyId%253Dabc%2526SecurityToken%253Dtok%2526Z",
		"very-secret",
	} {
		got := c.scrub(text)
		for _, bad := range []string{"abc", "tok", "si%3D", "3Dsi", "=si", "very"} {
			if strings.Contains(got, bad) {
				t.Errorf("%q is in %s", bad, got)
			}
		}
	}
	if got := c.scrub("Action=X&RegionId=cn-a"); got != "Action=X&RegionId=cn-a" {
		t.Errorf("changed to %s", got)
	}
}

// What the SDK cannot digest is an error, not a panic, and an answer without a request id is none.
func TestStrangeAnswers(t *testing.T) {
	for _, body := range []string{``, `{}`, `null`, `[]`, `{"Code": 5, "RequestId": 7}`, `{"RequestId": "", "Vpcs": {"Vpc": []}}`, `{"RequestId": "1"}`, "\x00",
		`{"Code": "Echo", "RequestId": "1", "Message": "you sent ` + keyID + ` and SecurityToken=abc&Signature=def"}`} {
		for _, status := range []int{200, 400, 503} {
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				fmt.Fprint(w, body)
			}))
			w := newEmu(t, "instant").wish
			w.Region, w.VPC, w.Instance, w.Endpoint = "cn-shenzhen", "vpc-sz", "i-gw", s.Listener.Addr().String()
			w.CAFile = t.TempDir() + "/ca.pem"
			if err := os.WriteFile(w.CAFile, pemOf(s), 0o600); err != nil {
				t.Fatal(err)
			}
			timing := fast
			timing.Patience = time.Millisecond
			v, err := Options{Timing: timing}.Open(t.Context(), w, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Errorf("%d %q opened %v", status, body, v)
			} else if strings.Contains(err.Error(), "there is no VPC") {
				t.Errorf("%d %q was taken for an answer: %v", status, body, err)
			} else {
				leaks(t, strings.ReplaceAll(err.Error(), "=***", "")) // names may stay, values not
			}
			s.Close()
		}
	}
}

// Secrets travel in the body, over HTTPS; no URL that a proxy could log holds them.
func TestNoSecretInURL(t *testing.T) {
	urls := make(chan string, 100)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		urls <- r.Method + " " + r.URL.String() + " " + fmt.Sprint(r.FormValue("Action") != "" && r.FormValue("Signature") != "")
		http.Error(w, "{}", http.StatusTeapot)
	}))
	defer s.Close()
	w := newEmu(t, "instant").wish
	w.Region, w.VPC, w.Instance, w.Endpoint = "cn-shenzhen", "vpc-sz", "i-gw", s.Listener.Addr().String()
	w.CAFile = t.TempDir() + "/ca.pem"
	if err := os.WriteFile(w.CAFile, pemOf(s), 0o600); err != nil {
		t.Fatal(err)
	}
	timing := fast
	timing.Patience = time.Millisecond
	if _, err := (Options{Timing: timing}).Open(t.Context(), w, nil); err == nil {
		t.Error("opened a teapot")
	}
	if got := <-urls; got != "POST / true" {
		t.Errorf("request %q", got)
	}
}

// Kinds of codes that only the wire teaches.
func TestKinds(t *testing.T) {
	for code, want := range map[string]kind{
		"Throttling": throttled, "Throttling.Api": throttled, "Rejected.Throttling": throttled, "IncorrectStatus.RouteTableStatus": busy,
		"Forbidden.RAM": denied, "NoPermission.X": denied, "Forbbiden": refused, "QuotaExceeded": full, "QuotaExceeded.HaVipRouteEntry": full,
		"InvalidSecurityToken.Expired": badKey, "InvalidAccessKeyId.Inactive": badKey, "": unclear, "InvalidCidrBlock": refused,
	} {
		if got := (&Error{Code: code, HTTP: 400}).kind(); got != want {
			t.Errorf("%s is %d, want %d", code, got, want)
		}
	}
	if got := (&Error{Code: "Whatever", HTTP: 500}).kind(); got != unclear {
		t.Errorf("a 500 is %d", got)
	}
}
