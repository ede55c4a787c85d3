package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// callEnv makes the test binary a client: it calls the socket named there and prints the code and message.
const callEnv = "FABRIC_API_TEST_CALL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(callEnv); socket != "" {
		conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err = fabricv1.NewFabricServiceClient(conn).DrainSite(ctx, &fabricv1.DrainSiteRequest{})
		st, _ := status.FromError(err)
		fmt.Printf("%s: %s\n", st.Code(), st.Message())
		return
	}
	os.Exit(m.Run())
}

// Who may use the socket: root, and members of its group, also where the mode lets others connect.
func TestPeerCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become others")
	}
	const group, uid = 54321, 54322
	for _, c := range []struct {
		name   string
		mode   os.FileMode
		gid    uint32
		groups []uint32
		want   string
		who    string
	}{
		{"stranger, mode as made", 0, uid, nil, "Unavailable: ", ""},
		{"stranger, mode widened", 0o666, uid, nil, "PermissionDenied: uid 54322 may not use this socket", ""},
		{"stranger with other groups", 0o666, uid, []uint32{7, 8, 9}, "PermissionDenied: ", ""},
		{"primary group", 0, group, nil, "OK: ", "uid 54322"},
		{"supplementary group", 0, uid, []uint32{7, group}, "OK: ", "uid 54322"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Others must be able to walk to the socket; the test's own folders are closed.
			dir, err := os.MkdirTemp("/tmp", "fabric-api-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			r := newRig(t, nil)
			socket := filepath.Join(dir, "fabric.sock")
			serve(t, r.svc, api.Listen{Socket: socket, Group: fmt.Sprint(group)})
			if c.mode != 0 {
				if err := os.Chmod(socket, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Dir = "/"
			cmd.Env = append(os.Environ(), callEnv+"="+socket)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: c.gid, Groups: c.groups}}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if !strings.HasPrefix(string(out), c.want) {
				t.Errorf("answer %q, want %q", out, c.want)
			}
			cur := r.store.Current()
			if c.who == "" && cur.Number != 1 {
				t.Error("a stranger changed the intent")
			}
			if c.who != "" && cur.Who != c.who {
				t.Errorf("who is %q, want %q", cur.Who, c.who)
			}
		})
	}
}

func TestSocketFile(t *testing.T) {
	r := newRig(t, nil)
	info, err := os.Stat(r.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// A socket that somebody answers on is not taken away.
	if err := r.svc.Serve(testContext(t), api.Listen{Socket: r.socket}); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := r.client.GetSite(testContext(t), &fabricv1.GetSiteRequest{}); err != nil {
		t.Errorf("the first daemon does not answer any more: %v", err)
	}
	// One that is left over is replaced.
	left := filepath.Join(t.TempDir(), "left.sock")
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	_ = lis.Close()
	stop := serve(t, r.svc, api.Listen{Socket: left})
	if _, err := fabricv1.NewFabricServiceClient(dialUnix(t, left)).GetSite(testContext(t), &fabricv1.GetSiteRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(left)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if err := r.svc.Serve(testContext(t), api.Listen{Socket: left, Group: "no-such-group-here"}); err == nil || !strings.Contains(err.Error(), "groupadd") {
		t.Errorf("unknown group: %v", err)
	}
}

// Stopping ends watches, too, in bounded time.
func TestStopCutsWatches(t *testing.T) {
	r := newRig(t, nil)
	socket := filepath.Join(t.TempDir(), "fabric.sock")
	stop := serve(t, r.svc, api.Listen{Socket: socket})
	stream, err := fabricv1.NewFabricServiceClient(dialUnix(t, socket)).WatchPrefixes(testContext(t), &fabricv1.WatchPrefixesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if err == io.EOF {
		t.Error("the watch ended as if it were complete")
	}
}

func TestHealthFollowsReadiness(t *testing.T) {
	r := newRig(t, nil)
	hc := healthv1.NewHealthClient(r.conn)
	for _, service := range []string{"", "fabric.v1.FabricService"} {
		stream, err := hc.Watch(testContext(t), &healthv1.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		await := func(want healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			for {
				m, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if m.GetStatus() == want {
					return
				}
			}
		}
		await(healthv1.HealthCheckResponse_SERVING)
		r.gw.Publish(func(s *site.Snapshot) { s.Site.Ready = false })
		await(healthv1.HealthCheckResponse_NOT_SERVING)
		r.gw.Publish(func(s *site.Snapshot) { s.Site.Ready = true })
		await(healthv1.HealthCheckResponse_SERVING)
	}
}

func TestReflection(t *testing.T) {
	r := newRig(t, nil)
	stream, err := reflectionv1.NewServerReflectionClient(r.conn).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || !strings.Contains(m.String(), "fabric.v1.FabricService") {
		t.Errorf("%v, %v", m, err)
	}
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca, other := apitest.NewAuthority(t), apitest.NewAuthority(t)
	caFile := filepath.Join(dir, "ca.pem")
	write(t, caFile, ca.PEM)
	serverCert, serverKey := ca.Issue(t, dir, "gateway", x509.ExtKeyUsageServerAuth)
	listen := apitest.FreeAddress(t)
	r := newRig(t, nil)
	serve(t, r.svc, api.Listen{TCP: &config.API{Listen: listen, CertFile: serverCert, KeyFile: serverKey, CAFile: caFile}})
	until(t, "the TCP listener", func() bool { return apitest.Listening(listen) })

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM)
	client := func(by *apitest.Authority, cn string, usage x509.ExtKeyUsage) *tls.Config {
		cfg := &tls.Config{RootCAs: pool}
		if by != nil {
			pair, err := tls.LoadX509KeyPair(by.Issue(t, dir, cn, usage))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Certificates = []tls.Certificate{pair}
		}
		return cfg
	}
	old := client(ca, "old-tls", x509.ExtKeyUsageClientAuth)
	old.MaxVersion = tls.VersionTLS12
	distrust := client(ca, "distrust", x509.ExtKeyUsageClientAuth)
	distrust.RootCAs = x509.NewCertPool()
	// What the client reads of a refusal is a race between the alert and the end of the connection.
	for _, c := range []struct {
		name  string
		creds credentials.TransportCredentials
		code  codes.Code
		says  string
	}{
		{"no TLS", insecure.NewCredentials(), codes.Unavailable, ""},
		{"no certificate", credentials.NewTLS(client(nil, "", 0)), codes.Unavailable, ""},
		{"certificate of another CA", credentials.NewTLS(client(other, "mallory", x509.ExtKeyUsageClientAuth)), codes.Unavailable, ""},
		{"server's certificate as client's", credentials.NewTLS(client(ca, "server", x509.ExtKeyUsageServerAuth)), codes.Unavailable, ""},
		{"TLS 1.2", credentials.NewTLS(old), codes.Unavailable, ""},
		{"client does not trust us", credentials.NewTLS(distrust), codes.Unavailable, "unknown authority"},
		{"no common name", credentials.NewTLS(client(ca, "", x509.ExtKeyUsageClientAuth)), codes.PermissionDenied, "no common name"},
		{"good", credentials.NewTLS(client(ca, "ops", x509.ExtKeyUsageClientAuth)), codes.OK, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := grpc.NewClient("passthrough:///"+listen.String(), grpc.WithTransportCredentials(c.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = fabricv1.NewFabricServiceClient(conn).DrainSite(testContext(t), &fabricv1.DrainSiteRequest{})
			if st := wantCode(t, err, c.code); !strings.Contains(st.Message(), c.says) {
				t.Errorf("message %q does not say %q", st.Message(), c.says)
			}
			switch cur := r.store.Current(); {
			case c.code == codes.OK && cur.Who != "CN=ops":
				t.Errorf("who %q", cur.Who)
			case c.code != codes.OK && cur.Number != 1:
				t.Error("a refused caller changed the intent")
			}
		})
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logText is a log that is read while it is written.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Mistakes in the files are told when the daemon starts; the unix socket is served all the same, TCP is not.
func TestTLSFilesRefused(t *testing.T) {
	dir := t.TempDir()
	ca := apitest.NewAuthority(t)
	caFile := filepath.Join(dir, "ca.pem")
	write(t, caFile, ca.PEM)
	cert, key := ca.Issue(t, dir, "gateway", x509.ExtKeyUsageServerAuth)
	_, otherKey := ca.Issue(t, dir, "other", x509.ExtKeyUsageServerAuth)
	open := filepath.Join(dir, "open.pem")
	data, _ := os.ReadFile(key)
	write(t, open, data)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	secret := bytes.Fields(data)[3] // a line of the key
	good := config.API{Listen: netip.MustParseAddrPort("127.0.0.1:0"), CertFile: cert, KeyFile: key, CAFile: caFile}
	for name, change := range map[string]func(*config.API){
		"open.pem":         func(a *config.API) { a.KeyFile = open },
		"private key does": func(a *config.API) { a.KeyFile = otherKey },
		"absent.pem":       func(a *config.API) { a.CertFile = filepath.Join(dir, "absent.pem") },
		"no PEM":           func(a *config.API) { a.CAFile = "/dev/null" },
	} {
		cfg := good
		change(&cfg)
		socket := filepath.Join(t.TempDir(), "fabric.sock")
		var log logText
		svc := api.New(api.Config{Gateway: &apitest.Gateway{}, Store: apitest.Store(t), Log: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(testContext(t))
		done := make(chan error, 1)
		go func() { done <- svc.Serve(ctx, api.Listen{Socket: socket, TCP: &cfg}) }()
		for ctx.Err() == nil && !strings.Contains(log.String(), name) {
			time.Sleep(5 * time.Millisecond)
		}
		if !strings.Contains(log.String(), name) {
			t.Errorf("%s is not told: %s", name, log.String())
		}
		if strings.Contains(log.String(), string(secret)) {
			t.Errorf("%s: the log prints the key", name)
		}
		if _, err := os.Stat(socket); err != nil {
			t.Errorf("%s: the unix socket is not served: %v", name, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
