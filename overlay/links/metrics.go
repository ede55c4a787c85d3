package links

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector gives the engine's state to Prometheus.
type Collector struct{ engine *Engine }

// NewCollector makes one for e.
func NewCollector(e *Engine) *Collector { return &Collector{e} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fabric_links_"+name, help, labels, nil)
}

var (
	tunnelLabels     = []string{"tunnel", "device", "remote", "rank", "implementation"}
	descTunnelUp     = desc("tunnel_up", "1 when the tunnel carries packets.", tunnelLabels...)
	descTunnelActive = desc("tunnel_active", "1 when the remote VTEP is routed over the tunnel.", tunnelLabels...)
	descRx           = desc("tunnel_receive_bytes_total", "Bytes received through the tunnel.", tunnelLabels...)
	descTx           = desc("tunnel_transmit_bytes_total", "Bytes sent through the tunnel.", tunnelLabels...)
	descHandshake    = desc("tunnel_last_handshake_seconds", "Unix time of the last handshake, 0 when there was none.", tunnelLabels...)
	descVTEP         = desc("vtep_reachable", "1 when the remote VTEP is routed over a tunnel.", "gateway", "vtep")
	descNextHops     = desc("next_hops", "Next-hop objects of the plan by readiness.", "ready")
	descProblems     = desc("problems", "Objects that are not as planned, by kind and status.", "kind", "status")
	descPlan         = desc("plan_info", "The plan in force; no series when there is none.", "gateway", "digest")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTunnelUp, descTunnelActive, descRx, descTx, descHandshake, descVTEP, descNextHops, descProblems, descPlan} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s := c.engine.State()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if s.Digest != "" {
		gauge(descPlan, 1, s.Gateway, s.Digest)
	}
	for _, t := range s.Tunnels {
		labels := []string{t.Name, t.Device, t.Remote, strconv.Itoa(t.Rank), t.Implementation}
		gauge(descTunnelUp, one(t.State == Up), labels...)
		gauge(descTunnelActive, one(t.Active), labels...)
		ch <- prometheus.MustNewConstMetric(descRx, prometheus.CounterValue, float64(t.RxBytes), labels...)
		ch <- prometheus.MustNewConstMetric(descTx, prometheus.CounterValue, float64(t.TxBytes), labels...)
		at := 0.0
		if !t.LastHandshake.IsZero() {
			at = float64(t.LastHandshake.UnixMilli()) / 1000
		}
		gauge(descHandshake, at, labels...)
	}
	for _, v := range s.VTEPs {
		gauge(descVTEP, one(v.Device != ""), v.Gateway, v.Addr.String())
	}
	ready := map[bool]int{}
	for _, n := range s.NextHops {
		ready[n.Ready]++
	}
	gauge(descNextHops, float64(ready[true]), "true")
	gauge(descNextHops, float64(ready[false]), "false")
	problems := map[[2]string]int{}
	for _, o := range s.Problems {
		problems[[2]string{o.Kind, o.Status.String()}]++
	}
	for k, n := range problems {
		gauge(descProblems, float64(n), k[0], k[1])
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
