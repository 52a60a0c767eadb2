// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
)

// scrape fetches the metrics of a host, by name and labels.
func scrape(t *testing.T, n *node) map[string]float64 {
	t.Helper()
	out := n.output(t, "curl", "--silent", "--show-error", "--fail", "--max-time", "30", "http://127.0.0.1:9555/metrics")
	all := map[string]float64{}
	_ = lines(strings.NewReader(out), func(l string) error {
		if strings.HasPrefix(l, "#") {
			return nil
		}
		i := strings.LastIndexByte(l, ' ')
		v, err := strconv.ParseFloat(l[i+1:], 64)
		if i < 0 || err != nil {
			t.Fatalf("a line of /metrics: %q", l)
		}
		if _, twice := all[l[:i]]; twice {
			t.Errorf("twice: %s", l[:i])
		}
		all[l[:i]] = v
		return nil
	})
	return all
}

// expected turns a status into the metrics that say the same.
func expected(s *status.Status) map[string]float64 {
	m := map[string]float64{}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, h := range []status.Health{status.OK, status.Degraded, status.Broken} {
		m[fmt.Sprintf("plait_health{state=%q}", h)] = flag(s.Headline.State == h)
	}
	for reason, n := range s.Drops {
		name := "plait_packets_dropped_total"
		if strings.HasPrefix(reason, "probe_") {
			name = "plait_probes_refused_total"
		}
		m[fmt.Sprintf("%s{reason=%q}", name, reason)] = float64(n)
	}
	for reason, n := range s.Counted {
		m[fmt.Sprintf("plait_packets_noted_total{reason=%q}", reason)] = float64(n)
	}
	for name, f := range s.Maps {
		m[fmt.Sprintf("plait_map_entries{map=%q}", name)] = float64(f.Used)
		m[fmt.Sprintf("plait_map_capacity{map=%q}", name)] = float64(f.Size)
	}
	m["plait_events_lost_total"] = float64(s.EventsLost)
	for _, u := range s.Uplinks {
		label := fmt.Sprintf("{uplink=%q}", u.Name)
		m["plait_uplink_up"+label] = flag(u.State == status.UplinkUp)
		m["plait_uplink_carrier"+label] = flag(u.Carrier)
		m["plait_uplink_mtu_bytes"+label] = float64(u.MTU)
		m[fmt.Sprintf("plait_uplink_hook_info{hook=%q,uplink=%q}", u.Hook, u.Name)] = 1
		for direction, n := range map[string][2]uint64{"tx": {u.TxPackets, u.TxBytes}, "rx": {u.RxPackets, u.RxBytes}} {
			label := fmt.Sprintf("{direction=%q,uplink=%q}", direction, u.Name)
			m["plait_uplink_packets_total"+label], m["plait_uplink_bytes_total"+label] = float64(n[0]), float64(n[1])
		}
	}
	for _, p := range s.Peers {
		m[fmt.Sprintf("plait_peer_reachable{family=\"%d\",peer=%q}", p.Family, p.Name)] = flag(p.Reachable())
		for _, q := range p.Paths {
			rest := fmt.Sprintf("family=\"%d\",local=%q,peer=%q,remote=%q,uplink=%q}", p.Family, q.Local, p.Name, q.Remote, q.Uplink)
			for name, v := range map[string]float64{
				"up": flag(q.State == status.PathUp), "fresh": flag(q.Fresh), "rtt_seconds": q.RTT / 1e6, "probe_loss_ratio": q.Loss,
				"multiplier_rounds": float64(q.Multiplier), "base_lag_rounds": float64(q.BaseLag), "share_ratio": q.Share,
				"probes_sent_total": float64(q.ProbesSent), "replies_total": float64(q.Replies), "requests_total": float64(q.Requests),
				"transitions_total": float64(q.Transitions), "congested_total": float64(q.Congested), "flaps": float64(q.Flaps),
				"moved_packets_total": float64(q.TxMoved),
			} {
				m["plait_path_"+name+"{"+rest] = v
			}
			for direction, n := range map[string][2]uint64{"tx": {q.TxPackets, q.TxBytes}, "rx": {q.RxPackets, q.RxBytes}} {
				label := fmt.Sprintf("{direction=%q,", direction) + rest
				m["plait_path_packets_total"+label], m["plait_path_bytes_total"+label] = float64(n[0]), float64(n[1])
			}
		}
	}
	return m
}

// agree asserts that the metrics say what plait status says. What only grows may have grown between
// the three looks, and what is measured anew all the time may be any number.
func agree(t *testing.T, n *node) map[string]float64 {
	t.Helper()
	var got map[string]float64
	eventually(t, func() error { // states may change between the looks
		before := expected(n.status(t))
		got = scrape(t, n)
		after := expected(n.status(t))
		for key, want := range after {
			v, ok := got[key]
			name, _, _ := strings.Cut(key, "{")
			switch {
			case !ok:
				return fmt.Errorf("missing: %s", key)
			case strings.HasSuffix(name, "_rtt_seconds"), strings.HasSuffix(name, "_loss_ratio"), strings.HasSuffix(name, "_lag_rounds"):
			case v < before[key] || v > want || !strings.HasSuffix(name, "_total") && v != want:
				return fmt.Errorf("%s is %v, status said %v before and %v after", key, v, before[key], want)
			}
		}
		others := []string{
			"plait_build_info", "plait_collection_errors_total", "plait_probe_lateness_seconds", "plait_probe_send_errors_total",
			"plait_probe_interval_seconds", "plait_probe_active_groups", "plait_log_messages_total",
		}
		for key := range got {
			if _, ok := after[key]; !ok && strings.HasPrefix(key, "plait_") &&
				!slices.ContainsFunc(others, func(name string) bool { return strings.HasPrefix(key, name) }) {
				return fmt.Errorf("status does not know %s", key)
			}
		}
		return nil
	})
	return got
}

// TestMetrics compares what is served to Prometheus with what status says: while all is well, under
// traffic, with a fabric cut and with forged probes counted.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{})
	agree(t, p.a)
	l := startLoad(t, p)
	got := agree(t, p.a)
	if v := got["plait_probe_interval_seconds"]; v != 0.001 {
		t.Errorf("an interval of %v s between rounds, want 1 ms", v)
	}
	if v := got["plait_probe_active_groups"]; v != 2 {
		t.Errorf("%v active groups, want 2", v)
	}
	if v := got["plait_probe_lateness_seconds_count"]; v < 100 {
		t.Errorf("the lateness of %v rounds was noted", v)
	}
	if v := got["plait_collection_errors_total"]; v != 0 {
		t.Errorf("%v errors", v)
	}
	if keys := slices.Collect(maps.Keys(got)); !slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, `plait_build_info{goversion="go`) }) {
		t.Error("no build information")
	}
	tap := openTap(t, p, "f1", "a")
	for _, family := range families {
		tap.send(t, tap.probe(t, p.b.locator("f1", family), p.a.locator("f1", family), false).changed(flip(offTag)), 3)
	}
	p.a.waitFor(t, func(s *status.Status) error {
		if n := s.Drops["probe_tag"]; n != 6 {
			return fmt.Errorf("%d probes with a wrong tag, want 6", n)
		}
		return nil
	})
	if n := agree(t, p.a)[`plait_probes_refused_total{reason="probe_tag"}`]; n != 6 {
		t.Errorf("%v probes with a wrong tag, want 6", n)
	}
	if _, err := p.Cut("f1", lab.Silent, "", ""); err != nil {
		t.Fatal(err)
	}
	p.a.waitFor(t, func(s *status.Status) error { return down(s, "up1") })
	got = agree(t, p.a)
	if got[`plait_health{state="degraded"}`] != 1 || got[`plait_path_up{family="4",local="10.1.1.2",peer="b",remote="10.1.2.2",uplink="up1"}`] != 0 {
		t.Error("the cut does not show")
	}
	l.finish(t, true)
}

// TestStatus reads status in both forms, with an agent and without.
func TestStatus(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{})
	n := p.a
	text, diag, code := n.plait(t, "status")
	if code != 0 || diag != "" || !strings.HasPrefix(text, "ok: 1 peer, 4 of 4 paths up\n") {
		t.Errorf("status ends with %d, says %q and prints\n%s", code, diag, text)
	}
	for _, want := range []string{
		"\nhost a  10.255.0.1  fd00:255::1\n", fmt.Sprintf("\nagent runs, process %d, started ", n.agent.cmd.Process.Pid), ", " + n.config + "\n",
		"\nhook tc, not xdp, on up1, up2: driver veth\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not print %q:\n%s", want, text)
		}
	}
	l := startLoad(t, p)
	n.kill(t)
	text, diag, code = n.plait(t, "status")
	if code != 0 || diag != "" || !strings.HasPrefix(text, "agent is not running: paths are frozen as it left them\n") ||
		!strings.Contains(text, "\nagent does not run; the last one was started ") {
		t.Errorf("status without an agent ends with %d, says %q and prints\n%s", code, diag, text)
	}
	before := n.status(t)
	if before.Agent.Running || before.Agent.PID != 0 || before.Headline.State != status.Degraded || len(before.Problems) != 1 {
		t.Errorf("without an agent: %+v, headline %+v, problems %q", before.Agent, before.Headline, before.Problems)
	}
	l.goesOn(t)
	after := n.status(t)
	for _, family := range families {
		if sent(after, family) <= sent(before, family) || received(after, family) <= received(before, family) {
			t.Errorf("IPv%d: without an agent the counters stand still", family)
		}
		for _, uplink := range n.uplinks() {
			q := path(t, after, family, uplink)
			if q.State != status.PathUp || q.ProbesSent != path(t, before, family, uplink).ProbesSent {
				t.Errorf("without an agent: path %s is %+v", q, q)
			}
		}
	}
	// A cut that only the peer can see: its agent lives.
	if _, err := p.Cut("f1", lab.Silent, "", ""); err != nil {
		t.Fatal(err)
	}
	p.b.waitFor(t, func(s *status.Status) error { return down(s, "up1") })
	if out, _, code := n.plait(t, "status", "-o", "json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("status -o json ends with %d and prints %s", code, out)
	}
	n.run(t)
	n.waitFor(t, func(s *status.Status) error {
		if !s.Agent.Running {
			return fmt.Errorf("agent %+v", s.Agent)
		}
		return down(s, "up1")
	})
	l.finish(t, true)
}
