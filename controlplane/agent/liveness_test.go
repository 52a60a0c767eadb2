// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/maps"
)

// newAgent returns an agent of one peer with two paths on real maps, without sender or host.
func newAgent(t *testing.T) (*Agent, *group) {
	t.Helper()
	tb := newTables(t)
	apply(t, tb, wantB("10.1.2.2", "10.2.2.2"))
	a := &Agent{
		cfg: &config.Config{
			Peers:    []config.Peer{{Name: "b"}},
			Liveness: config.Liveness{HoldDown: time.Second, IdleInterval: time.Second, Multiplier: 3},
		},
		log: slog.New(slog.DiscardHandler), set: tb.set, tables: *tb,
	}
	return a, a.tables.groups[0]
}

func TestHoldDown(t *testing.T) {
	a, g := newAgent(t)
	gs := a.set.GroupStates.At(g.index)
	ps, rt := a.set.PathStates.At(g.first), &g.paths[0]
	gs.Fresh = 0b01
	a.event(&maps.Event{Kind: maps.EventBack, Group: g.index, Path: g.first, TimeNs: uint64(10 * time.Second)})
	step := func(now time.Duration) { a.holdDown(g, gs, ps, rt, 0, gs.Fresh, gs.Up, now) }
	step(10*time.Second + 999*time.Millisecond)
	if gs.Up != 0 {
		t.Fatal("up before the hold-down is over")
	}
	step(11 * time.Second)
	if gs.Up != 0b01 || ps.Since != uint64(11*time.Second) {
		t.Fatalf("up = %b since %d ns; want 1 since 11 s", gs.Up, ps.Since)
	}
}

func TestHoldDownStartsAnew(t *testing.T) {
	a, g := newAgent(t)
	gs := a.set.GroupStates.At(g.index)
	ps, rt := a.set.PathStates.At(g.first), &g.paths[0]
	step := func(now time.Duration) { a.holdDown(g, gs, ps, rt, 0, gs.Fresh, gs.Up, now) }
	gs.Fresh = 0b01
	step(time.Second) // an earlier agent saw it come back: the time counts from now
	gs.Fresh = 0
	a.event(&maps.Event{Kind: maps.EventLost, Group: g.index, Path: g.first, TimeNs: uint64(1500 * time.Millisecond)})
	step(1500 * time.Millisecond)
	gs.Fresh = 0b01
	a.event(&maps.Event{Kind: maps.EventBack, Group: g.index, Path: g.first, TimeNs: uint64(1600 * time.Millisecond)})
	step(2500 * time.Millisecond)
	if gs.Up != 0 {
		t.Fatal("the hold-down did not start anew after the path was lost")
	}
	step(2600 * time.Millisecond)
	if gs.Up != 0b01 {
		t.Fatalf("up = %b, want 1", gs.Up)
	}
	if ps.Flaps != 1 {
		t.Errorf("flaps = %d, want 1", ps.Flaps)
	}
}

func TestCongestionIsNoFlap(t *testing.T) {
	a, g := newAgent(t)
	ps := a.set.PathStates.At(g.first)
	a.event(&maps.Event{Kind: maps.EventLost, Group: g.index, Path: g.first, TimeNs: 1})
	a.event(&maps.Event{Kind: maps.EventCongested, Group: g.index, Path: g.first, TimeNs: 2})
	if ps.Flaps != 0 || ps.Since != 2 {
		t.Errorf("flaps = %d since %d, want 0 since 2", ps.Flaps, ps.Since)
	}
	a.event(&maps.Event{Kind: maps.EventLost, Group: 99, Path: 99, TimeNs: 3}) // of a group that is gone
}

func TestDecay(t *testing.T) {
	a, g := newAgent(t)
	ps, rt := a.set.PathStates.At(g.first), &g.paths[0]
	ps.Multiplier = 43
	for _, c := range []struct {
		at   time.Duration
		want uint32
	}{{0, 43}, {150 * time.Second, 23}, {299 * time.Second, 3}, {400 * time.Second, 3}} {
		a.decay(ps, rt, c.at)
		if ps.Multiplier != c.want {
			t.Errorf("after %v the multiplier is %d, want %d", c.at, ps.Multiplier, c.want)
		}
	}
	ps.Multiplier = 10 // the kernel raised it again: from there, in five minutes
	a.decay(ps, rt, 500*time.Second)
	ps.Multiplier = 20
	a.decay(ps, rt, 600*time.Second)
	a.decay(ps, rt, 750*time.Second)
	if ps.Multiplier != 12 {
		t.Errorf("half-way down from 20 the multiplier is %d, want 12", ps.Multiplier)
	}
}

func TestLoss(t *testing.T) {
	_, g := newAgent(t)
	rt := &g.paths[0]
	ps := &maps.PathState{}
	for range 5 { // a tenth of 1,000 a second is lost
		ps.Probes += 1000
		ps.Replies += 900
		loss(ps, rt)
	}
	if ps.LossPpm != 100_000 {
		t.Errorf("loss is %d ppm, want 100000", ps.LossPpm)
	}
	for range lossWindow {
		ps.Probes += 1000
		ps.Replies += 1000
		loss(ps, rt)
	}
	if ps.LossPpm != 0 {
		t.Errorf("loss is %d ppm ten seconds later, want 0", ps.LossPpm)
	}
}

func TestReachability(t *testing.T) {
	a, g := newAgent(t)
	gs := a.set.GroupStates.At(g.index)
	now := time.Second
	step := func(d time.Duration, sent, newest uint64) uint32 {
		now += d
		gs.Sent, gs.Newest = sent, newest
		a.reachability(g, gs, now)
		return gs.Unreachable
	}
	step(0, 100, 100)
	if step(20*time.Millisecond, 120, 120) != 0 {
		t.Error("unreachable while it answers")
	}
	if step(900*time.Millisecond, 1020, 120) != 0 {
		t.Error("unreachable after less than a second")
	}
	if step(200*time.Millisecond, 1220, 120) != 1 {
		t.Error("not unreachable after more than a second without an answer")
	}
	if step(20*time.Millisecond, 1240, 1240) != 0 {
		t.Error("still unreachable after an answer")
	}
	// A stopped agent asks nothing: no answer says nothing then.
	if step(time.Minute, 1240, 1240) != 0 {
		t.Error("unreachable after a minute in which nothing was asked")
	}
}
