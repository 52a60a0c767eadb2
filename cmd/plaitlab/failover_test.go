// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestDistributionOf(t *testing.T) {
	if d := distributionOf(nil); d != nil {
		t.Errorf("of nothing: %+v", d)
	}
	tests := []struct {
		values []float64
		want   distribution
	}{
		{[]float64{3}, distribution{3, 3, 3, 3}},
		{[]float64{4, 1}, distribution{1, 2.5, 4, 4}},
		{[]float64{5, 1, 3}, distribution{1, 3, 5, 5}},
	}
	for _, tt := range tests {
		if got := distributionOf(tt.values); *got != tt.want {
			t.Errorf("of %v: %+v, want %+v", tt.values, *got, tt.want)
		}
	}
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	if got, want := *distributionOf(hundred), (distribution{1, 50.5, 95, 100}); got != want {
		t.Errorf("of 1 to 100: %+v, want %+v", got, want)
	}
	if hundred[0] != 100 {
		t.Error("the values were sorted in place")
	}
}

func number[T any](v T) *T { return &v }

func TestSummaryCountsWhatWasRepeated(t *testing.T) {
	runs := []failoverRun{
		{GapMS: number(3.0), ControlGapMS: 0.5, LaterGapMS: number(1.0), Lost: number(int64(12)), TCPStallMS: 4, TCPSurvived: true, Recovered: true},
		{GapMS: number(9.0), ControlGapMS: 6.5, LaterGapMS: number(1.0), Lost: number(int64(14)), TCPStallMS: 8, TCPSurvived: true, Recovered: true, Noisy: true},
	}
	repeated := []failoverRun{
		{GapMS: number(80.0), ControlGapMS: 76, LaterGapMS: number(1.0), Lost: number(int64(400)), Noisy: true, Recovered: true, Corrupted: 2},
		{GapMS: number(0.2), LaterGapMS: number(0.2), Lost: number(int64(0)), TCPSurvived: true, Recovered: false, Strayed: true},
	}
	s := summarize(runs, repeated)
	if s.Runs != 2 || s.RepeatedRuns != 1 || s.StrayedRuns != 1 || s.NoisyRuns != 1 {
		t.Errorf("numbers of runs: %+v", s)
	}
	if s.TCPConnectionsLost != 1 || s.Corrupted != 2 || s.NotRecovered != 1 {
		t.Errorf("losses of repeated runs are missing: %+v", s)
	}
	if want := (distribution{2.5, 2.5, 2.5, 2.5}); *s.GapMinusControlMS != want {
		t.Errorf("gap minus control %+v, want %+v: only runs that count, each against its own control", *s.GapMinusControlMS, want)
	}
	if want := (distribution{12, 13, 14, 14}); *s.Lost != want {
		t.Errorf("lost %+v, want %+v", *s.Lost, want)
	}
	var missed []string
	for _, b := range s.bars() {
		if !b.Met {
			missed = append(missed, b.Name)
		}
	}
	if got := strings.Join(missed, "; "); got != "TCP connections lost" {
		t.Errorf("bars missed: %s", got)
	}
}

func TestReportNamesEveryField(t *testing.T) {
	run := failoverRun{Run: 1, Means: meansPlait, Fabric: "f1", GapMS: number(2.5), LaterGapMS: number(0.2), Lost: number(int64(12)), Sent: number(int64(9000)),
		TCPSurvived: true, Recovered: true}
	tcp := failoverRun{Run: 1, Means: meansMPTCP, Fabric: "f2", TCPStallMS: 200, TCPSurvived: true, Recovered: true}
	r := failoverReport{
		Cut: "silent", Family: 4, WindowMS: [2]int{-5, 100}, Means: []means{meansPlait, meansMPTCP},
		Runs: []failoverRun{run}, Repeated: []failoverRun{}, Summary: summarize([]failoverRun{run}, nil),
		Vs: map[means]*meansReport{meansMPTCP: {Runs: []failoverRun{tcp}, Summary: summarize([]failoverRun{tcp}, nil)}},
	}
	r.Bars = r.Summary.bars()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Runs    []map[string]any
		Summary map[string]any
		Vs      map[string]struct {
			Runs    []map[string]any
			Summary map[string]any
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gap_ms", "control_gap_ms", "lost", "tcp_stall_ms", "tcp_survived"} {
		if v, ok := got.Runs[0][name]; !ok || v == nil {
			t.Errorf("runs[] lacks %s: %s", name, b)
		}
	}
	for _, name := range []string{"gap_ms", "control_gap_ms", "lost", "tcp_stall_ms", "gap_minus_control_ms"} {
		d, ok := got.Summary[name].(map[string]any)
		if !ok {
			t.Errorf("summary lacks %s: %s", name, b)
			continue
		}
		for _, of := range []string{"min", "median", "p95", "max"} {
			if _, ok := d[of].(float64); !ok {
				t.Errorf("summary.%s lacks %s: %s", name, of, b)
			}
		}
	}
	for _, name := range []string{"tcp_connections_lost", "repeated_runs"} {
		if _, ok := got.Summary[name].(float64); !ok {
			t.Errorf("summary lacks %s: %s", name, b)
		}
	}
	if v := got.Vs["mptcp"]; v.Runs[0]["gap_ms"] != nil || v.Runs[0]["tcp_stall_ms"] != 200.0 || v.Summary["gap_ms"] != nil {
		t.Errorf("mptcp has TCP fields only: %s", b)
	}
	var table bytes.Buffer
	if err := r.table(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"plait, 1 runs", "mptcp, 1 runs", "gap minus control, ms", "met"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	if err := r.verdict(); err != nil {
		t.Errorf("nothing was lost: %v", err)
	}
	r.Summary.TCPConnectionsLost = 1
	if r.verdict() == nil {
		t.Error("a lost connection is no error")
	}
}

func TestMilliseconds(t *testing.T) {
	if got := *ms(2500 * time.Microsecond); got != 2.5 {
		t.Errorf("2500 us are %v ms", got)
	}
}
