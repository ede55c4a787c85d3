package site

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics turns snapshots into Prometheus metrics when they are asked for: nothing is counted twice.
type metrics struct {
	site *Site
	all  []*prometheus.Desc

	ready, generation, applied, problems, links *prometheus.Desc
	routes, kernel, sync                        *prometheus.Desc
	peerUp, peerReceived, peerAdmitted          *prometheus.Desc
	peerRejected, peerFlaps                     *prometheus.Desc
	tunnelUp, tunnelRx, tunnelTx, handshake     *prometheus.Desc
	cloudEntries, cloudSync                     *prometheus.Desc
}

func newMetrics(s *Site) *metrics {
	var all []*prometheus.Desc
	d := func(name, help string, labels ...string) *prometheus.Desc {
		all = append(all, prometheus.NewDesc("fabric_"+name, help, labels, nil))
		return all[len(all)-1]
	}
	m := &metrics{
		site:         s,
		ready:        d("ready", "1 once the gateway was ready."),
		generation:   d("generation", "Generation of the intent."),
		applied:      d("generation_applied", "Newest generation that all parts reached."),
		problems:     d("problems", "Things an operator should look at."),
		links:        d("links_connected", "1 while fabric-links answers and has our plan."),
		routes:       d("rib_routes", "Routes chosen in a VRF.", "vrf"),
		kernel:       d("kernel_routes", "Routes of ours in a VRF's kernel table.", "vrf"),
		sync:         d("kernel_in_sync", "1 while a VRF's kernel table is as chosen.", "vrf"),
		peerUp:       d("peer_established", "1 while the session is established.", "vrf", "peer"),
		peerReceived: d("peer_received_prefixes", "Prefixes received.", "vrf", "peer"),
		peerAdmitted: d("peer_admitted_prefixes", "Prefixes admitted by policy and limit.", "vrf", "peer"),
		peerRejected: d("peer_rejected_prefixes", "Prefixes refused by policy or limit.", "vrf", "peer"),
		peerFlaps:    d("peer_flaps_total", "Times the session went down.", "vrf", "peer"),
		tunnelUp:     d("tunnel_up", "1 while the tunnel is up.", "tunnel", "remote"),
		tunnelRx:     d("tunnel_received_bytes_total", "Bytes received.", "tunnel", "remote"),
		tunnelTx:     d("tunnel_sent_bytes_total", "Bytes sent.", "tunnel", "remote"),
		handshake:    d("tunnel_last_handshake_seconds", "Unix time of the last handshake.", "tunnel", "remote"),
		cloudEntries: d("cloud_entries", "Entries of a VPC table by kind.", "table", "kind"),
		cloudSync:    d("cloud_in_sync", "1 while a VPC table is as wanted.", "table"),
	}
	m.all = all
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range m.all {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	snap := m.site.Snapshot()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(m.ready, truth(snap.Site.Ready))
	gauge(m.generation, float64(snap.Site.Generation))
	gauge(m.applied, float64(snap.Site.Applied))
	gauge(m.problems, float64(len(snap.Site.Problems)))
	gauge(m.links, truth(snap.Site.LinksConnected))
	for _, v := range snap.VRFs {
		gauge(m.routes, float64(v.Routes), v.Name)
		gauge(m.kernel, float64(v.Kernel), v.Name)
		gauge(m.sync, truth(v.InSync), v.Name)
	}
	for _, p := range snap.Peers {
		gauge(m.peerUp, truth(p.State == "established"), p.VRF, p.Name)
		gauge(m.peerReceived, float64(p.Received), p.VRF, p.Name)
		gauge(m.peerAdmitted, float64(p.Admitted), p.VRF, p.Name)
		gauge(m.peerRejected, float64(p.Rejected), p.VRF, p.Name)
		counter(m.peerFlaps, float64(p.Flaps), p.VRF, p.Name)
	}
	for _, t := range snap.Tunnels {
		gauge(m.tunnelUp, truth(t.State == "up"), t.Name, t.Remote)
		counter(m.tunnelRx, float64(t.RxBytes), t.Name, t.Remote)
		counter(m.tunnelTx, float64(t.TxBytes), t.Name, t.Remote)
		if !t.LastHandshake.IsZero() {
			gauge(m.handshake, float64(t.LastHandshake.Unix()), t.Name, t.Remote)
		}
	}
	for _, t := range snap.Clouds {
		gauge(m.cloudEntries, float64(t.Desired), t.Table, "desired")
		gauge(m.cloudEntries, float64(t.Owned), t.Table, "owned")
		gauge(m.cloudEntries, float64(t.Foreign), t.Table, "foreign")
		gauge(m.cloudSync, truth(t.InSync), t.Table)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
