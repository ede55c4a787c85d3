package links

import (
	"strconv"
	"strings"

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
	descDrained      = desc("tunnel_drained", "1 while the operator keeps traffic off the tunnel.", tunnelLabels...)
	descRTT          = desc("tunnel_rtt_seconds", "Smoothed round-trip time of echoes over the tunnel; no series when none of the last 60 was answered.", tunnelLabels...)
	descMinRTT       = desc("tunnel_rtt_min_seconds", "Least round-trip time of the last 60 echoes over the tunnel; no series when none was answered.", tunnelLabels...)
	descLoss         = desc("tunnel_loss_ratio", "Share of the last 60 echoes over the tunnel that got no answer; no series before the first is decided.", tunnelLabels...)
	sessionLabels    = []string{"session", "device"}
	descSessionUp    = desc("bfd_session_up", "1 while the BFD session is up.", sessionLabels...)
	descUps          = desc("bfd_session_ups_total", "How often the session came up.", sessionLabels...)
	descDowns        = desc("bfd_session_downs_total", "How often the session went down from up.", sessionLabels...)
	descDetection    = desc("bfd_session_detection_seconds", "Negotiated detection time, 0 before anything was heard.", sessionLabels...)
	descReceived     = desc("bfd_session_received_packets_total", "Packets of the session that were received.", sessionLabels...)
	descSent         = desc("bfd_session_sent_packets_total", "Packets of the session that were sent.", sessionLabels...)
	descDropped      = desc("bfd_session_dropped_packets_total", "Packets of the session that were not used, by reason.", append(sessionLabels, "reason")...)
	descAllDropped   = desc("bfd_dropped_packets_total", "BFD packets that were not used, with or without a session, by reason.", "reason")
	descOverflowed   = desc("bfd_overflowed_packets_total", "BFD packets that the kernel dropped because a receive buffer was full.")
	descRealtime     = desc("bfd_realtime", "1 while the BFD engine's thread has real-time scheduling.")
	descSwitched     = desc("vtep_switches_total", "Routes to VTEPs written at once at a change of a BFD session.")
	descMoved        = desc("next_hop_set_moves_total", "Next-hop sets moved to another leg at once at a change of a BFD session.")
	descSets         = desc("next_hop_sets", "Next-hop sets of the plan by readiness.", "ready")
	descPlan         = desc("plan_info", "The plan in force; no series when there is none.", "gateway", "digest")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTunnelUp, descTunnelActive, descRx, descTx, descHandshake, descVTEP, descNextHops, descProblems, descPlan,
		descRTT, descMinRTT, descLoss, descDrained, descSessionUp, descUps, descDowns, descDetection, descReceived, descSent, descDropped, descAllDropped, descOverflowed, descRealtime, descSwitched, descMoved, descSets} {
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
		gauge(descDrained, one(t.Drained), labels...)
		gauge(descTunnelActive, one(t.Active), labels...)
		ch <- prometheus.MustNewConstMetric(descRx, prometheus.CounterValue, float64(t.RxBytes), labels...)
		ch <- prometheus.MustNewConstMetric(descTx, prometheus.CounterValue, float64(t.TxBytes), labels...)
		at := 0.0
		if !t.LastHandshake.IsZero() {
			at = float64(t.LastHandshake.UnixMilli()) / 1000
		}
		gauge(descHandshake, at, labels...)
		if t.Path.RTT > 0 {
			gauge(descRTT, t.Path.RTT.Seconds(), labels...)
			gauge(descMinRTT, t.Path.MinRTT.Seconds(), labels...)
		}
		if loss, known := t.Path.Loss(); known {
			gauge(descLoss, loss, labels...)
		}
	}
	c.collectBFD(ch, s)
	for _, v := range s.VTEPs {
		gauge(descVTEP, one(v.Device != ""), v.Gateway, v.Addr.String())
	}
	ready := map[bool]int{}
	for _, n := range s.NextHops {
		ready[n.Ready]++
	}
	gauge(descNextHops, float64(ready[true]), "true")
	gauge(descNextHops, float64(ready[false]), "false")
	ready = map[bool]int{}
	for _, n := range s.Sets {
		ready[n.Ready]++
	}
	gauge(descSets, float64(ready[true]), "true")
	gauge(descSets, float64(ready[false]), "false")
	problems := map[[2]string]int{}
	for _, o := range s.Problems {
		problems[[2]string{o.Kind, o.Status.String()}]++
	}
	for k, n := range problems {
		gauge(descProblems, float64(n), k[0], k[1])
	}
}

// collectBFD tells of sessions and of the engine that runs them.
func (c *Collector) collectBFD(ch chan<- prometheus.Metric, s *State) {
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, b := range s.Sessions {
		labels := []string{b.Name, b.Device}
		metric(descSessionUp, prometheus.GaugeValue, one(b.State == Up), labels...)
		metric(descDetection, prometheus.GaugeValue, b.Detection.Seconds(), labels...)
		for d, v := range map[*prometheus.Desc]uint64{descUps: b.Ups, descDowns: b.Downs, descReceived: b.Received, descSent: b.Sent} {
			metric(d, prometheus.CounterValue, float64(v), labels...)
		}
		for reason, n := range b.Dropped {
			metric(descDropped, prometheus.CounterValue, float64(n), b.Name, b.Device, reason)
		}
	}
	metric(descMoved, prometheus.CounterValue, float64(c.engine.repair.moves()))
	metric(descSwitched, prometheus.CounterValue, float64(c.engine.repair.switches()))
	if c.engine.cfg.BFD == nil {
		return
	}
	totals := c.engine.cfg.BFD.Totals()
	for reason, n := range totals.Dropped {
		metric(descAllDropped, prometheus.CounterValue, float64(n), reason)
	}
	metric(descOverflowed, prometheus.CounterValue, float64(totals.Overflowed))
	metric(descRealtime, prometheus.GaugeValue, one(strings.HasPrefix(totals.Scheduling, "SCHED_FIFO")))
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
