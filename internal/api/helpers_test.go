package api_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"fabric/internal/api"
	"fabric/internal/api/apitest"
	"fabric/internal/config"
	"fabric/internal/site"
	fabricv1 "fabric/proto/fabric/v1"
)

// What the daemon hands in fits what the service asks for.
var (
	_ api.Gateway = (*site.Site)(nil)
	_ api.Store   = (*config.Store)(nil)
)

// patience is how long a test waits for a state before it fails; it is never waited out when all is well.
const patience = 20 * time.Second

// rig is a served API on the real store, with the gateway of apitest.
type rig struct {
	store  *config.Store
	file   string
	gw     *apitest.Gateway
	svc    *api.Service
	socket string
	client fabricv1.FabricServiceClient
	conn   *grpc.ClientConn
}

func newRig(t *testing.T, prepare func(*apitest.Gateway)) *rig {
	t.Helper()
	r := &rig{gw: &apitest.Gateway{RouteList: map[string][]site.RouteStatus{"CORE": apitest.Routes("CORE", 3)}}}
	r.store, r.file = apitest.StoreFile(t)
	if prepare != nil {
		prepare(r.gw)
	}
	r.gw.Follow(t, r.store)
	r.svc = api.New(api.Config{Gateway: r.gw, Store: r.store, Log: slog.New(slog.DiscardHandler), Version: "v1-test"})
	r.socket = filepath.Join(t.TempDir(), "fabric.sock")
	serve(t, r.svc, api.Listen{Socket: r.socket})
	r.conn = dialUnix(t, r.socket)
	r.client = fabricv1.NewFabricServiceClient(r.conn)
	return r
}

// serve runs the service until the test ends, and waits until it listens.
func serve(t *testing.T, svc *api.Service, l api.Listen) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Serve(ctx, l) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			t.Error("Serve did not return")
			return nil
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	until(t, "the API to listen", func() bool {
		select {
		case err := <-done:
			t.Fatalf("Serve: %v", err)
		default:
		}
		if l.Socket == "" {
			return true
		}
		_, err := os.Stat(l.Socket)
		return err == nil
	})
	return stop
}

func dialUnix(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// until polls a state that has no event to wait for.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func wantCode(t *testing.T, err error, want codes.Code) *status.Status {
	t.Helper()
	st, _ := status.FromError(err)
	if st.Code() != want {
		t.Fatalf("code %s (%v), want %s", st.Code(), err, want)
	}
	return st
}
