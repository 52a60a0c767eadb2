// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// LogCounter is a slog.Handler that counts messages by level and hands them on.
type LogCounter struct {
	slog.Handler
	messages *prometheus.CounterVec
}

// CountLogs returns a handler that counts what it hands on to next: what next does not want because
// of its level is not counted.
func CountLogs(next slog.Handler) *LogCounter {
	c := &LogCounter{next, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "plait_log_messages_total",
		Help: "Messages that the agent logged.",
	}, []string{"level"})}
	for _, l := range []slog.Level{slog.LevelWarn, slog.LevelError} {
		c.messages.WithLabelValues(level(l)) // so that a rate can be taken from the first one on
	}
	return c
}

// Handle implements slog.Handler.
func (c *LogCounter) Handle(ctx context.Context, r slog.Record) error {
	c.messages.WithLabelValues(level(r.Level)).Inc()
	return c.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (c *LogCounter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &LogCounter{c.Handler.WithAttrs(attrs), c.messages}
}

// WithGroup implements slog.Handler.
func (c *LogCounter) WithGroup(name string) slog.Handler {
	return &LogCounter{c.Handler.WithGroup(name), c.messages}
}

func level(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}
