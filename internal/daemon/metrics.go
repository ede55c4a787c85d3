package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsRetry is the time between attempts to serve metrics.
const metricsRetry = 5 * time.Second

// Registry has the metrics of the process itself.
func Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// ServeMetrics serves what r gathers at /metrics of address until ctx ends, and returns nil then. An address that cannot be bound, because
// it comes later or somebody else has it, is no reason to stop routing: it is said once and tried on.
func ServeMetrics(ctx context.Context, address string, r prometheus.Gatherer, log *slog.Logger) error {
	return serveMetrics(ctx, address, r, metricsRetry, log)
}

func serveMetrics(ctx context.Context, address string, r prometheus.Gatherer, retry time.Duration, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	said := ""
	for {
		err := serveOnce(ctx, address, mux, func() {
			said = ""
			log.Info("metrics are served", "address", address)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("metrics are not served; trying on", "address", address, "every", retry, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

func serveOnce(ctx context.Context, address string, h http.Handler, bound func()) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	bound()
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	return s.Serve(l)
}
