// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/probe"
	"github.com/plait-net/plait/controlplane/status"
	plaitmaps "github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/world"
)

var update = flag.Bool("update", false, "write the golden file")

var _ Sender = (*probe.Sender)(nil)

// fakeSender has sent 100 rounds.
type fakeSender struct{}

func (fakeSender) Lateness() (map[float64]uint64, uint64, float64) {
	return map[float64]uint64{50e-6: 90, 1e-3: 98, 100e-3: 99}, 100, 0.25
}
func (fakeSender) SendErrors() uint64      { return 7 }
func (fakeSender) Interval() time.Duration { return 1500 * time.Microsecond }
func (fakeSender) Active() int             { return 3 }

func source(w *world.World) Source {
	return Source{
		Status:  func() (*status.Status, error) { return status.Take(w.Set, w.State, true) },
		Sender:  fakeSender{},
		Logs:    CountLogs(slog.DiscardHandler),
		Version: "v0.1.0",
	}
}

// busy is a world in which every metric has a value of its own.
func busy(t *testing.T) *world.World {
	w := world.New(t, world.Options{Uplinks: 2, Peers: 2, Families: []plaitmaps.Family{plaitmaps.IPv4, plaitmaps.IPv6}})
	w.State.Uplinks[0].Hook, w.State.Uplinks[0].HookWhy = "xdp", ""
	w.SetTraffic(t, 0, 0, plaitmaps.PathStats{TxPackets: 100, TxBytes: 140_000, RxPackets: 50, RxBytes: 3_300, TxMoved: 7})
	w.SetTraffic(t, 1, 0, plaitmaps.PathStats{TxPackets: 5, TxBytes: 600, RxPackets: 4, RxBytes: 480})
	w.SetReason(t, "egress_no_path", 9)
	w.SetReason(t, "ingress_truncated", 8)
	w.SetReason(t, "probe_tag", 21)
	w.SetReason(t, "probe_foreign", 5)
	ps := w.PathState(0, 0)
	ps.Congested, ps.LossPpm, ps.Multiplier, ps.BaseLag, ps.RttNs = 4, 125_000, 46, 2, 1_250_000
	w.Lose(0, 1, 12*time.Second)
	w.Forget(1, 1)
	w.Silence(2, 3*time.Second)
	w.Set.Settings.EventsLost = 6
	return w
}

// names returns the metrics that a collector has values for.
func names(t *testing.T, c prometheus.Collector) []string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		out = append(out, f.GetName())
	}
	return out
}

func TestValues(t *testing.T) {
	c := newCollector(source(busy(t)), slog.New(slog.DiscardHandler))
	// The version of Go is not ours to fix.
	compared := slices.DeleteFunc(names(t, c), func(n string) bool { return n == "plait_build_info" })
	const file = "testdata/metrics.prom"
	if *update {
		r := prometheus.NewRegistry()
		r.MustRegister(c)
		answer := httptest.NewRecorder()
		promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
		text := regexp.MustCompile("(?m)^.*plait_build_info.*\n").ReplaceAll(answer.Body.Bytes(), nil)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := testutil.CollectAndCompare(c, bytes.NewReader(want), compared...); err != nil {
		t.Error(err)
	}
}

func TestLint(t *testing.T) {
	r, err := NewRegistry(source(busy(t)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A map that cannot be read is counted at once, and the agent's own metrics are still there.
func TestCollectionError(t *testing.T) {
	w := busy(t)
	var logged bytes.Buffer
	c := newCollector(source(w), slog.New(slog.NewTextHandler(&logged, nil)))
	counter := func(n string) string {
		return "# HELP plait_collection_errors_total Scrapes that could not read the maps.\n" +
			"# TYPE plait_collection_errors_total counter\nplait_collection_errors_total " + n + "\n"
	}
	check := func(n string) {
		t.Helper()
		if err := testutil.CollectAndCompare(c, strings.NewReader(counter(n)), "plait_collection_errors_total"); err != nil {
			t.Error(err)
		}
	}
	check("0")
	if err := w.Set.Maps["path_traffic"].Close(); err != nil {
		t.Fatal(err)
	}
	check("1")
	check("2")
	if n := strings.Count(logged.String(), "collecting metrics"); n != 1 {
		t.Errorf("the same error was logged %d times:\n%s", n, logged.String())
	}
	have := names(t, c)
	if !slices.Contains(have, "plait_probe_lateness_seconds") || !slices.Contains(have, "plait_build_info") {
		t.Errorf("the agent's own metrics are missing: %q", have)
	}
	if slices.ContainsFunc(have, func(n string) bool { return strings.HasPrefix(n, "plait_path_") }) {
		t.Errorf("there are metrics of paths that could not be read: %q", have)
	}
}

// docs/metrics.md lists every metric of ours and no other.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRegistry(source(busy(t)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(plait_[a-z_]+)").FindAllSubmatch(doc, -1) {
		documented[string(m[1])] = true
	}
	for _, f := range families {
		n := f.GetName()
		if !strings.HasPrefix(n, "plait_") {
			continue
		}
		if !documented[n] {
			t.Errorf("%s is not documented", n)
		}
		delete(documented, n)
	}
	for n := range maps.Keys(documented) {
		t.Errorf("%s is documented and does not exist", n)
	}
	reasons, err := busy(t).Set.Reasons()
	if err != nil {
		t.Fatal(err)
	}
	for r := range reasons {
		if row := "| `" + r.String() + "` | " + status.Meaning(r.String()) + " |"; !strings.Contains(string(doc), row) {
			t.Errorf("missing: %s", row)
		}
	}
}

func TestServer(t *testing.T) {
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, source(busy(t)), slog.New(slog.DiscardHandler)) }()

	if _, err := Listen(s.Addr().String()); !errors.Is(err, unix.EADDRINUSE) ||
		!strings.Contains(err.Error(), "listening for metrics on") {
		t.Errorf("a second server on the same address: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{"/metrics": 200, "/": 200, "/nothing": 404} {
		resp, err := client.Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d, error %v", path, resp.StatusCode, want, err)
		}
		if path == "/metrics" && !strings.Contains(string(body), "\nplait_path_up{family=\"4\",local=\"10.1.1.2\",peer=\"b\",remote=\"10.1.2.2\",uplink=\"up1\"} 1\n") {
			t.Errorf("%s has no path:\n%s", path, body)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
	if c, err := net.Dial("tcp", s.Addr().String()); err == nil {
		c.Close()
		t.Error("the address is still served")
	}
}

func TestListenBadAddress(t *testing.T) {
	for _, address := range []string{"nonsense", "127.0.0.1:99999", "192.0.2.1:0", "127.0.0.1:http:x"} {
		s, err := Listen(address)
		if err == nil {
			s.Close()
			t.Errorf("%q was taken", address)
		} else if !strings.Contains(err.Error(), address) {
			t.Errorf("error does not name %q: %v", address, err)
		}
	}
}

func TestCountLogs(t *testing.T) {
	var b bytes.Buffer
	counter := CountLogs(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo}))
	log := slog.New(counter)
	log.Debug("unwanted")
	log.Info("one")
	log.With("k", "v").Warn("two")
	log.WithGroup("g").Warn("three", "k", "v")
	want := map[string]float64{"debug": 0, "info": 1, "warn": 2, "error": 0}
	for level, n := range want {
		if got := testutil.ToFloat64(counter.messages.WithLabelValues(level)); got != n {
			t.Errorf("%v messages of level %s, want %v", got, level, n)
		}
	}
	for _, text := range []string{"one", "k=v", "g.k=v"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("%q was not handed on:\n%s", text, b.String())
		}
	}
}

func BenchmarkScrape4000Paths(b *testing.B) {
	w := world.New(b, world.Options{Uplinks: 4, Peers: 500, Families: []plaitmaps.Family{plaitmaps.IPv4, plaitmaps.IPv6}})
	r, err := NewRegistry(source(w), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := r.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
