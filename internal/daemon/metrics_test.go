package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// Somebody else has the metrics' address: that is said once and never ends the engine; once it is free, metrics are served.
func TestMetricsAddressIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	log := &lines{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- serveMetrics(ctx, address, Registry(), 5*time.Millisecond, slog.New(slog.NewTextHandler(log, nil)))
	}()
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
			select {
			case err := <-done:
				t.Fatalf("%s: it ended with %v", what, err)
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("not seen: %s", what)
			}
		}
	}
	until("the problem is said", func() bool { return log.count("address already in use") > 0 })
	// Room for more attempts: too little of it can only miss a second warning, not make one.
	time.Sleep(100 * time.Millisecond)
	taken.Close()
	until("metrics", func() bool {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return err == nil && strings.Contains(string(b), "go_goroutines")
	})
	if n := log.count("level=WARN"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("at the end: %v", err)
	}
}
