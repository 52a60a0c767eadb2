// SPDX-License-Identifier: Apache-2.0

// Package metrics serves the data plane's state and the agent's own counters to Prometheus.
// docs/metrics.md lists every metric. The maps are read when somebody asks: in between nothing is
// kept and nothing runs.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/plait-net/plait/controlplane/status"
)

const (
	readTimeout  = 5 * time.Second  // of a request
	writeTimeout = 30 * time.Second // of an answer: tens of thousands of series over a slow link
	idleTimeout  = 5 * time.Minute  // longer than usual scrape intervals, to keep connections
	stopTimeout  = time.Second      // for answers under way when the agent ends
	maxRequests  = 4                // at the same time
)

// Source is where the numbers come from.
type Source struct {
	// Status takes a snapshot. It is called at each scrape, by several goroutines at once if
	// several scrapes are.
	Status func() (*status.Status, error)

	Sender  Sender      // nil: nothing about the sender
	Logs    *LogCounter // nil: no counters of log messages
	Version string      // of this program
}

// Sender is what the sender of probes knows of itself; *probe.Sender is one.
type Sender interface {
	// Lateness returns how many rounds started how late: cumulative counts by upper bound in
	// seconds, the total, and the sum in seconds.
	Lateness() (buckets map[float64]uint64, count uint64, sum float64)
	SendErrors() uint64      // probes that the kernel refused to send
	Interval() time.Duration // between rounds to active peers, as the budget stretched it
	Active() int             // groups (a peer in one family) that get fast rounds
}

// NewRegistry returns a registry of its own with all of plait's metrics and those of the process.
func NewRegistry(src Source, log *slog.Logger) (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	cs := []prometheus.Collector{
		newCollector(src, log), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
	if src.Logs != nil {
		cs = append(cs, src.Logs.messages)
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return r, nil
}

// Server serves /metrics.
type Server struct{ listener net.Listener }

// Listen opens the address, so that a bad one is known before anything is changed. The Server must be
// Run or Closed.
func Listen(address string) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics on %q: %w", address, err)
	}
	return &Server{l}, nil
}

// Addr is the address that is served, with the port that the kernel chose for port 0.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// String names the task.
func (s *Server) String() string { return "metrics server" }

// Run serves what src says until ctx ends.
func (s *Server) Run(ctx context.Context, src Source, log *slog.Logger) error {
	r, err := NewRegistry(src, log)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.HTTPErrorOnError,
		MaxRequestsInFlight: maxRequests,
		Timeout:             writeTimeout,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "plait serves its metrics at /metrics")
	})
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving metrics: %w", err)
	case <-ctx.Done():
	}
	// Its own context: the other has ended.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		_ = server.Close() // a scrape that would not end is cut off
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// Close gives the address back if Run was never called.
func (s *Server) Close() error { return s.listener.Close() }
