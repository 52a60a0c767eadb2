// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestMedianInterval(t *testing.T) {
	upTo := func(n int) (v []float64) {
		for i := range n {
			v = append(v, float64(n-i))
		}
		return v
	}
	tests := []struct {
		n    int
		want interval
	}{
		// Ranks of the 90 % interval from tables of the sign test (two-sided, 10 %).
		{1, interval{1, 1, 1}},
		{4, interval{2.5, 1, 4}},
		{5, interval{3, 1, 5}},
		{8, interval{4.5, 2, 7}},
		{10, interval{5.5, 2, 9}},
		{20, interval{10.5, 6, 15}},
		{40, interval{20.5, 15, 26}},
	}
	for _, tt := range tests {
		v := upTo(tt.n)
		if got := medianInterval(v); got != tt.want {
			t.Errorf("of 1 to %d: %+v, want %+v", tt.n, got, tt.want)
		}
		if v[0] != float64(tt.n) {
			t.Error("the values were sorted in place")
		}
	}
}

// The interval holds the true median about as often as it says, whatever the distribution.
func TestMedianIntervalCovers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const tries = 4000
	held := 0
	for range tries {
		v := make([]float64, 25)
		for i := range v {
			v[i] = math.Exp(3 * r.NormFloat64()) // median 1, far from symmetric
		}
		if i := medianInterval(v); i.Low <= 1 && i.High >= 1 {
			held++
		}
	}
	// Ranks are whole numbers, so it is somewhat more: with 25 values 95.7 %.
	if share := float64(held) / tries; share < 0.90 || share > 0.98 {
		t.Errorf("it held the median in %.3f of all tries", share)
	}
}

func TestThroughputReport(t *testing.T) {
	ratio := &tcpRatio{Form: "wire", Flows: 1, Pairs: []tcpPair{{Plain: 6000, Plait: 5700, Ratio: 0.95}}, Ratio: interval{0.95, 0.94, 0.96}}
	shaped := *ratio
	goal := 0.97
	met := atLeast("TCP", 0.93, 0.94)
	met.Goal = &goal
	r := throughputReport{
		Family: 4, TCP: []*tcpRatio{ratio}, Shaped: &shaped,
		UDP:  []*udpCost{{Form: "virtual", Plain: interval{1500, 1490, 1510}}},
		Bars: []throughputBar{met, atMost("UDP", 1.0/3, 0.3)},
	}
	if err := r.verdict(); err != nil {
		t.Errorf("all bars are met: %v", err)
	}
	var table bytes.Buffer
	if err := r.table(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"wire lab, 1 flow ", "0.940-0.960", "one uplink, two", "1490-1510", "at least 0.93 (goal 0.97)  met", "at most 0.333"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	r.Bars = append(r.Bars, atLeast("two", 1.9, 1.5), atMost("UDP", 1.0/3, 0.5))
	err := r.verdict()
	if err == nil || !strings.Contains(err.Error(), "two: 1.500, want at least 1.9") || !strings.Contains(err.Error(), "UDP: 0.500, want at most 0.333") {
		t.Errorf("two bars are missed: %v", err)
	}
}

func TestThroughputFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--form", "wires"}, {"--family", "5"}, {"--pairs", "4"}, {"--length", "1ms"}, {"--part", "tcp,sctp"}, {"-o", "xml"}, {"more"},
	} {
		_, stderr, status := plaitlab(t, append([]string{"bench", "throughput"}, args...)...)
		if status != 1 || stderr == "" {
			t.Errorf("%q: status %d, %q", args, status, stderr)
		}
	}
}

// A short run, for its form: its figures mean nothing, so it may fail for them.
func TestThroughputRuns(t *testing.T) {
	ownLabs(t)
	stdout, stderr, status := plaitlab(t, "bench", "throughput", "--part", "tcp", "--pairs", "5", "--length", "100ms", "-o", "json",
		"--form", "virtual", "--family", "6", "--plait", builtPlait(t))
	var r throughputReport
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("status %d, %v: %s%s", status, err, stdout, stderr)
	}
	if len(r.TCP) != 2 || r.TCP[0].Flows != 1 || r.TCP[1].Flows != manyFlows || r.Shaped != nil || len(r.UDP) != 0 || len(r.Bars) != 2 {
		t.Fatalf("report: %s", stdout)
	}
	for _, c := range r.TCP {
		if len(c.Pairs) != 5 || c.Form != "virtual" || slices.ContainsFunc(c.Pairs, func(p tcpPair) bool { return p.Plain <= 0 }) {
			t.Errorf("runs: %+v", c)
		}
	}
	if met := !slices.ContainsFunc(r.Bars, func(b throughputBar) bool { return !b.Met }); met != (status == 0) {
		t.Errorf("status %d, bars %+v", status, r.Bars)
	}
}
