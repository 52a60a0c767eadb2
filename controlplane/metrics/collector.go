// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plait-net/plait/controlplane/status"
)

// collector turns one snapshot into metrics at each scrape.
type collector struct {
	src    Source
	log    *slog.Logger
	errors atomic.Uint64

	mu   sync.Mutex
	last string // error of the last scrape: the same one is logged once

	host   hostDescs
	uplink uplinkDescs
	path   pathDescs
	sender senderDescs
	all    []*prometheus.Desc
}

type hostDescs struct {
	build, health, collectionErrors     *prometheus.Desc
	peerReachable                       *prometheus.Desc
	dropped, refused, counted           *prometheus.Desc
	mapEntries, mapCapacity, eventsLost *prometheus.Desc
}

type uplinkDescs struct {
	up, carrier, mtu, hook, packets, bytes *prometheus.Desc
}

type pathDescs struct {
	up, fresh, rtt, loss, multiplier, baseLag, share *prometheus.Desc
	probes, replies, requests                        *prometheus.Desc
	transitions, congested, flaps                    *prometheus.Desc
	packets, bytes, moved                            *prometheus.Desc
}

type senderDescs struct {
	lateness, sendErrors, interval, active *prometheus.Desc
}

func newCollector(src Source, log *slog.Logger) *collector {
	c := &collector{src: src, log: log}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc("plait_"+name, help, labels, nil)
		c.all = append(c.all, d)
		return d
	}
	c.host = hostDescs{
		build:            desc("build_info", "Version of the agent and of Go; always 1.", "version", "goversion"),
		health:           desc("health", "1 for the state that the host is in: ok, degraded (every peer is reachable, something is missing), broken (a peer is not).", "state"),
		collectionErrors: desc("collection_errors_total", "Scrapes that could not read the maps."),
		peerReachable:    desc("peer_reachable", "Whether the peer can be reached on any path.", "peer", "family"),
		dropped:          desc("packets_dropped_total", "Packets on plait0 and translated packets on uplinks that were dropped.", "reason"),
		refused:          desc("probes_refused_total", "Probes that changed nothing and were dropped.", "reason"),
		counted:          desc("packets_noted_total", "Packets that were remarkable, but were not dropped.", "reason"),
		mapEntries:       desc("map_entries", "Entries in use of a kernel map.", "map"),
		mapCapacity:      desc("map_capacity", "Entries that a kernel map has room for.", "map"),
		eventsLost:       desc("events_lost_total", "Transitions that the kernel programs could not report to the agent."),
	}
	up := []string{"uplink"}
	c.uplink = uplinkDescs{
		up:      desc("uplink_up", "Whether the kernel programs use the uplink.", up...),
		carrier: desc("uplink_carrier", "Whether the uplink has carrier.", up...),
		mtu:     desc("uplink_mtu_bytes", "MTU of the uplink; 0 if the interface is missing.", up...),
		hook:    desc("uplink_hook_info", "Where the ingress program of the uplink runs: xdp, tc or none; always 1.", "uplink", "hook"),
		packets: desc("uplink_packets_total", "Translated packets of all paths of the uplink.", "uplink", "direction"),
		bytes:   desc("uplink_bytes_total", "Bytes of translated packets of all paths of the uplink, Ethernet headers included.", "uplink", "direction"),
	}
	p := []string{"peer", "family", "uplink", "local", "remote"}
	pd := append(append([]string{}, p...), "direction")
	c.path = pathDescs{
		up:          desc("path_up", "Whether the path answers and is past its hold-down.", p...),
		fresh:       desc("path_fresh", "Whether the path counts as answering in the kernel programs; the last path of a peer stays so.", p...),
		rtt:         desc("path_rtt_seconds", "Smoothed round trip time of probes; missing if not known.", p...),
		loss:        desc("path_probe_loss_ratio", "Share of the last ten seconds' probes that were not answered, 0 to 1.", p...),
		multiplier:  desc("path_multiplier_rounds", "Rounds without an answer until the path is given up, as congestion raised it.", p...),
		baseLag:     desc("path_base_lag_rounds", "Rounds that the path lags behind the fastest path of its peer.", p...),
		share:       desc("path_share_ratio", "Share of the peer's flows that belong to the path, 0 to 1.", p...),
		probes:      desc("path_probes_sent_total", "Probes sent.", p...),
		replies:     desc("path_replies_total", "Valid answers to our probes.", p...),
		requests:    desc("path_requests_total", "Valid probes of the peer that were answered here.", p...),
		transitions: desc("path_transitions_total", "Times that the path stopped answering.", p...),
		congested:   desc("path_congested_total", "Times that the path stopped answering and was back within 100 ms.", p...),
		flaps:       desc("path_flaps", "Transitions that count as flaps: congestion does not.", p...),
		packets:     desc("path_packets_total", "Translated packets.", pd...),
		bytes:       desc("path_bytes_total", "Bytes of translated packets, Ethernet headers included.", pd...),
		moved:       desc("path_moved_packets_total", "Packets sent here because the path that they belong to could not be used.", p...),
	}
	if src.Sender != nil {
		c.sender = senderDescs{
			lateness:   desc("probe_lateness_seconds", "How late rounds of probes started."),
			sendErrors: desc("probe_send_errors_total", "Probes that the kernel refused to send."),
			interval:   desc("probe_interval_seconds", "Time between rounds to active peers, as the budget stretched it."),
			active:     desc("probe_active_groups", "Peers and families with traffic, which get rounds at that interval."),
		}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.all {
		ch <- d
	}
}

// out sends metrics and knows their kind.
type out chan<- prometheus.Metric

func (o out) send(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	m, err := prometheus.NewConstMetric(d, kind, v, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(d, err)
	}
	o <- m
}

func (o out) gauge(d *prometheus.Desc, v float64, labels ...string) {
	o.send(d, prometheus.GaugeValue, v, labels)
}

func (o out) counter(d *prometheus.Desc, v uint64, labels ...string) {
	o.send(d, prometheus.CounterValue, float64(v), labels)
}

func (o out) flag(d *prometheus.Desc, v bool, labels ...string) {
	n := 0.0
	if v {
		n = 1
	}
	o.gauge(d, n, labels...)
}

// traffic sends one sample for each direction. The last label is the direction.
func (o out) traffic(d *prometheus.Desc, tx, rx uint64, labels ...string) {
	n := len(labels)
	o.counter(d, tx, append(labels[:n:n], "tx")...)
	o.counter(d, rx, append(labels[:n:n], "rx")...)
}

// Collect implements prometheus.Collector. When the maps cannot be read it still sends what the agent
// knows itself.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out(ch)
	o.gauge(c.host.build, 1, c.src.Version, runtime.Version())
	c.collectSender(o)
	s, err := c.src.Status()
	if err != nil {
		c.errors.Add(1)
	}
	c.logChange(err)
	o.counter(c.host.collectionErrors, c.errors.Load())
	if err != nil {
		return
	}
	c.collectHost(o, s)
	c.collectUplinks(o, s)
	for i := range s.Peers {
		c.collectPeer(o, &s.Peers[i])
	}
}

func (c *collector) logChange(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	c.mu.Lock()
	changed := text != c.last
	c.last = text
	c.mu.Unlock()
	if changed && err != nil {
		c.log.Error("collecting metrics", "error", err)
	}
}

func (c *collector) collectHost(o out, s *status.Status) {
	for _, h := range []status.Health{status.OK, status.Degraded, status.Broken} {
		o.flag(c.host.health, h == s.Headline.State, string(h))
	}
	for reason, n := range s.Drops {
		d := c.host.dropped
		if strings.HasPrefix(reason, "probe_") {
			d = c.host.refused
		}
		o.counter(d, n, reason)
	}
	for reason, n := range s.Counted {
		o.counter(c.host.counted, n, reason)
	}
	for name, f := range s.Maps {
		o.gauge(c.host.mapEntries, float64(f.Used), name)
		o.gauge(c.host.mapCapacity, float64(f.Size), name)
	}
	o.counter(c.host.eventsLost, s.EventsLost)
}

func (c *collector) collectUplinks(o out, s *status.Status) {
	for i := range s.Uplinks {
		u := &s.Uplinks[i]
		o.flag(c.uplink.up, u.State == status.UplinkUp, u.Name)
		o.flag(c.uplink.carrier, u.Carrier, u.Name)
		o.gauge(c.uplink.mtu, float64(u.MTU), u.Name)
		hook := u.Hook
		if hook == "" {
			hook = "none"
		}
		o.gauge(c.uplink.hook, 1, u.Name, hook)
		o.traffic(c.uplink.packets, u.TxPackets, u.RxPackets, u.Name)
		o.traffic(c.uplink.bytes, u.TxBytes, u.RxBytes, u.Name)
	}
}

func (c *collector) collectPeer(o out, peer *status.Peer) {
	family := ""
	if peer.Family != 0 {
		family = strconv.Itoa(peer.Family)
	}
	o.flag(c.host.peerReachable, peer.Reachable(), peer.Name, family)
	d := &c.path
	for i := range peer.Paths {
		p := &peer.Paths[i]
		l := []string{peer.Name, family, p.Uplink, p.Local.String(), p.Remote.String()}
		o.flag(d.up, p.State == status.PathUp, l...)
		o.flag(d.fresh, p.Fresh, l...)
		if p.RTT > 0 {
			o.gauge(d.rtt, p.RTT/1e6, l...)
		}
		o.gauge(d.loss, p.Loss, l...)
		o.gauge(d.multiplier, float64(p.Multiplier), l...)
		o.gauge(d.baseLag, float64(p.BaseLag), l...)
		o.gauge(d.share, p.Share, l...)
		o.counter(d.probes, p.ProbesSent, l...)
		o.counter(d.replies, p.Replies, l...)
		o.counter(d.requests, p.Requests, l...)
		o.counter(d.transitions, p.Transitions, l...)
		o.counter(d.congested, p.Congested, l...)
		o.gauge(d.flaps, float64(p.Flaps), l...)
		o.traffic(d.packets, p.TxPackets, p.RxPackets, l...)
		o.traffic(d.bytes, p.TxBytes, p.RxBytes, l...)
		o.counter(d.moved, p.TxMoved, l...)
	}
}

func (c *collector) collectSender(o out) {
	if c.src.Sender == nil {
		return
	}
	buckets, count, sum := c.src.Sender.Lateness()
	m, err := prometheus.NewConstHistogram(c.sender.lateness, count, sum, buckets)
	if err != nil {
		m = prometheus.NewInvalidMetric(c.sender.lateness, err)
	}
	o <- m
	o.counter(c.sender.sendErrors, c.src.Sender.SendErrors())
	o.gauge(c.sender.interval, c.src.Sender.Interval().Seconds())
	o.gauge(c.sender.active, float64(c.src.Sender.Active()))
}
