// SPDX-License-Identifier: Apache-2.0

package hostc

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plait-net/plait/maps"
)

// The rule against the oracle, step by step, on anything that can happen to it: replies to any round
// on any path in any order, with any report, requests, data, new epochs, and what the agent does.
func TestRuleAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, maps.MaxPaths).Draw(t, "paths")
		w := watch(n, rapid.Uint32Range(1, 8).Draw(t, "multiplier"), true, t.Fatalf)
		start := rapid.SampledFrom([]uint64{0, 0, 1, 1<<32 - 3, 1 << 63}).Draw(t, "start")
		w.startAt(start)
		now := uint64(1)
		path := rapid.IntRange(0, n-1)
		// Rounds close to the newest are what matters, far ones must not.
		back := rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(0, 8), rapid.Uint64Range(0, 200))
		report := rapid.OneOf(rapid.Just(uint16(math.MaxUint16)), rapid.Uint16())
		peerRound := start
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {},
			"rounds": func(t *rapid.T) {
				for range rapid.OneOf(rapid.IntRange(1, 3), rapid.IntRange(1, 120)).Draw(t, "n") {
					w.beginRound()
				}
			},
			"time": func(t *rapid.T) {
				now += rapid.OneOf(rapid.Uint64Range(0, 5e6), rapid.SampledFrom([]uint64{CongestedNs - 1,
					CongestedNs})).Draw(t, "ns")
			},
			"reply": func(t *rapid.T) {
				round := w.Group().Sent - min(back.Draw(t, "back"), w.Group().Sent)
				w.reply(now, path.Draw(t, "path"), round, report.Draw(t, "report"))
			},
			"answers": func(t *rapid.T) { // one path goes on alone
				p, r := path.Draw(t, "path"), report.Draw(t, "report")
				for range rapid.IntRange(1, 60).Draw(t, "n") {
					w.reply(now, p, w.beginRound(), r)
				}
			},
			"round answered": func(t *rapid.T) { // by all but some
				silent := rapid.Uint16().Draw(t, "silent")
				round := w.beginRound()
				for i := range n {
					if silent>>i&1 == 0 {
						w.reply(now, i, round, math.MaxUint16)
					}
				}
			},
			"unsent": func(t *rapid.T) {
				w.reply(now, path.Draw(t, "path"), w.Group().Sent+rapid.Uint64Range(1, 1000).Draw(t, "ahead"), 0)
			},
			"request": func(t *rapid.T) {
				p := path.Draw(t, "path")
				w.setPair(p, uint32(rapid.IntRange(0, maps.MaxPaths-1).Draw(t, "pair")))
				peerRound += rapid.Uint64Range(0, 4).Draw(t, "step")
				w.request(now, p, peerRound-min(back.Draw(t, "back"), peerRound))
			},
			"data":   func(t *rapid.T) { w.data(now, path.Draw(t, "path")) },
			"epoch":  func(t *rapid.T) { w.epoch(now, rapid.Uint64Range(1, 3).Draw(t, "epoch")) },
			"report": func(t *rapid.T) { w.report(rapid.Uint32Range(0, 60).Draw(t, "window")) },
			"lag": func(t *rapid.T) {
				p := path.Draw(t, "path")
				w.setBaseLag(p, min(w.takeLag(p), 200))
			},
			"decay": func(t *rapid.T) {
				p := path.Draw(t, "path")
				m := w.Path(p)
				w.setMultiplier(p, rapid.Uint32Range(m.MinMultiplier, m.Multiplier).Draw(t, "to"))
			},
			"not sent": func(t *rapid.T) {
				if sent := w.Group().Sent; sent > 0 {
					w.forgive(path.Draw(t, "path"), sent-1)
				}
			},
			"hold-down ends": func(t *rapid.T) {
				if p := path.Draw(t, "path"); w.Group().Fresh>>p&1 == 1 {
					w.setUp(p, true)
				}
			},
			"drain": func(t *rapid.T) { w.setUp(path.Draw(t, "path"), false) },
		})
	})
}

// A reply that was recorded, or an older or unsent one, changes nothing at all when it comes again;
// nor does such a request.
func TestReplaysChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, maps.MaxPaths).Draw(t, "paths")
		w := watch(n, 3, false, t.Fatalf)
		w.startAt(1000)
		now := uint64(1)
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			now += rapid.Uint64Range(0, 2e8).Draw(t, "ns")
			p := rapid.IntRange(0, n-1).Draw(t, "path")
			for range rapid.IntRange(1, 20).Draw(t, "rounds") {
				w.beginRound()
			}
			sent := w.Group().Sent
			w.reply(now, p, sent, rapid.Uint16().Draw(t, "report"))
			w.request(now, p, sent)
			before := w.Host.c
			for range 3 {
				old := sent - rapid.Uint64Range(0, 1000).Draw(t, "back")
				if code := w.reply(now+1, p, old, 0); code != Replayed {
					t.Fatalf("replayed reply: %d", code)
				}
				if code := w.request(now+1, p, old); code != Replayed {
					t.Fatalf("replayed request: %d", code)
				}
				ahead := sent + rapid.Uint64Range(1, math.MaxUint64-sent).Draw(t, "ahead")
				if code := w.reply(now+1, p, ahead, 0); code != Future {
					t.Fatalf("reply to an unsent round: %d", code)
				}
			}
			before.now = w.Host.c.now // the test's clock, not a state
			if w.Host.c != before {
				t.Fatal("a replay changed something")
			}
		}
	})
}

// network draws a network and a life in it for two hosts.
func network(t *rapid.T, s *sim) {
	for i, p := range s.paths {
		for d := range p.dir {
			l := &p.dir[d]
			l.delay = int64(rapid.SampledFrom([]int{20, 100, 500, 3000, 12000}).Draw(t, fmt.Sprint("us ", i))) * us
			l.jitter = int64(rapid.SampledFrom([]int{0, 0, 50, 2000}).Draw(t, "jitter")) * us
			l.loss = rapid.SampledFrom([]float64{0, 0, 0.01, 0.1, 0.3}).Draw(t, "loss")
		}
	}
}

// Whole networks: the rule on both hosts agrees with the oracle at each step, whatever happens to
// paths, agents and hosts.
func TestNetworksAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{2, 2, 3, 4, 8, 16}).Draw(t, "paths")
		s := newSim(rapid.Uint64().Draw(t, "seed"), n, rapid.Uint32Range(2, 5).Draw(t, "multiplier"), true, t.Fatalf)
		start := rapid.SampledFrom([]uint64{0, 1<<32 - 20, 1 << 48, 1 << 63}).Draw(t, "start")
		for _, h := range s.hosts {
			h.rule.startAt(start)
			h.interval = rapid.SampledFrom([]int64{ms, ms, ms, 3 * ms, 10 * ms, sec}).Draw(t, "interval")
		}
		network(t, s)
		length := 150 * ms
		if s.hosts[0].interval == sec && s.hosts[1].interval == sec {
			length = 30 * sec
		}
		length /= int64(max(1, n/4))
		for range rapid.IntRange(0, 8).Draw(t, "steps") {
			at := rapid.Int64Range(0, length).Draw(t, "at")
			path := rapid.IntRange(0, n-1).Draw(t, "path")
			h := s.hosts[rapid.IntRange(0, 1).Draw(t, "host")]
			d := rapid.SampledFrom([]int64{3 * ms, 10 * ms, 30 * ms, 76 * ms}).Draw(t, "for")
			var step func()
			switch what := rapid.SampledFrom([]string{"cut", "one way", "heal", "agent stalls", "host stalls",
				"agent dies", "agent starts", "reboot", "flow", "bottleneck", "faster", "slower"}).Draw(t, "what"); what {
			case "cut":
				step = func() { s.cut(path, 0, 1) }
			case "one way":
				step = func() { s.cut(path, h.id) }
			case "heal":
				step = func() { s.heal(path) }
			case "agent stalls":
				step = func() { h.stallAgent(d) }
			case "host stalls":
				step = func() { h.stall(d) }
			case "agent dies":
				step = func() { h.dead = true }
			case "agent starts":
				step = func() { h.dead = false }
			case "reboot":
				step = func() { h.reboot() }
			case "flow":
				step = func() { s.startFlow(s.now, h.id, 2).cwndMax = 10 }
			case "bottleneck":
				step = func() {
					l := &s.paths[path].dir[h.id]
					l.rate, l.limit = 0.00125, 25000 // 10 Mbit/s, 20 ms
				}
			case "faster":
				step = func() { h.interval = max(ms, h.interval/10) }
			case "slower":
				step = func() { h.interval = min(sec, h.interval*10) }
			}
			s.do(at, step)
		}
		s.run(length)
	})
}

// twoHosts is a quiet network of n paths that has been up for three seconds.
func twoHosts(t *testing.T, seed uint64, n int) *sim {
	t.Helper()
	s := newSim(seed, n, 3, false, t.Fatalf)
	s.run(3*sec + s.rng.Int64N(ms))
	for _, h := range s.hosts {
		if g := h.rule.Group(); g.Fresh != 1<<n-1 || g.Up != g.Fresh {
			t.Fatalf("host %d: fresh %b up %b", h.id, g.Fresh, g.Up)
		}
	}
	return s
}

// since lists a host's transitions since a time, without times: for messages and comparisons.
func (h *simHost) since(from int64) string {
	var all []string
	for _, ev := range h.events {
		if int64(ev.TimeNs) >= from {
			name := [...]string{"", "first", "lost", "congested", "back", "epoch"}[ev.Kind]
			if ev.Kind == maps.EventLost {
				name += [...]string{"", " silent", " not heard"}[ev.Reason]
			}
			all = append(all, fmt.Sprintf("%s %d", name, ev.Path-FirstPath))
		}
	}
	return strings.Join(all, ", ")
}

// A cut is found, on both sides, within multiplier + base lag answered rounds: here a millisecond
// each. Nothing else falls.
func TestCutIsFound(t *testing.T) {
	for _, n := range []int{2, 3, 5, 8, 16} {
		for seed := range uint64(6) {
			s := newSim(seed, n, 3, false, t.Fatalf)
			for _, p := range s.paths { // up to 8 ms of difference
				for d := range p.dir {
					p.dir[d].delay = 50*us + s.rng.Int64N(4*ms)
				}
			}
			s.run(3*sec + s.rng.Int64N(ms))
			at := s.now
			for _, h := range s.hosts {
				if what := h.since(2 * sec); what != "" {
					t.Fatalf("%d paths, seed %d, host %d without a cut: %s", n, seed, h.id, what)
				}
			}
			s.cut(0, 0, 1)
			s.run(at + sec)
			for _, h := range s.hosts {
				if what := h.since(at); what != "lost silent 0" && what != "lost not heard 0" {
					t.Fatalf("%d paths, seed %d, host %d after a cut: %s", n, seed, h.id, what)
				}
				ev := h.events[len(h.events)-1]
				p := h.rule.Path(0)
				// Until the news of the last answered round, a round trip on any path, is here.
				rtt := int64(0)
				for _, p := range s.paths {
					rtt = max(rtt, p.dir[0].delay+p.dir[1].delay)
				}
				bound := int64(p.Multiplier+p.BaseLag+1)*h.interval + rtt
				if took := int64(ev.TimeNs) - at; took > bound {
					t.Errorf("%d paths, seed %d, host %d: found after %d us, bound %d", n, seed, h.id, took/us, bound/us)
				}
			}
		}
	}
}

// Equal paths of 0.2 ms, as in a data centre: found in the fourth millisecond at the latest.
func TestCutOfEqualPathsIsFoundAtOnce(t *testing.T) {
	for seed := range uint64(50) {
		s := twoHosts(t, seed, 2)
		at := s.now
		s.cut(1, 0, 1)
		s.run(at + 4*ms)
		for _, h := range s.hosts {
			if what := h.since(at); what != "lost silent 1" && what != "lost not heard 1" {
				t.Errorf("seed %d, host %d: %q", seed, h.id, what)
			}
		}
	}
}

// Everything is cut: nothing changes, and the first path that answers again changes nothing either.
func TestAllCutKeepsAll(t *testing.T) {
	s := twoHosts(t, 1, 4)
	at := s.now
	for i := range s.paths {
		s.cut(i, 0, 1)
	}
	s.run(at + 10*sec)
	for _, h := range s.hosts {
		if what := h.since(at); what != "" {
			t.Errorf("host %d: %s", h.id, what)
		}
	}
	at = s.now
	s.heal(2)
	s.run(at + sec)
	for _, h := range s.hosts {
		if got := h.rule.Group().Fresh; got != 1<<2 {
			t.Errorf("host %d: fresh %b", h.id, got)
		}
	}
}

// Paths fall one after the other; the last one stays, whatever it does.
func TestLastPathStays(t *testing.T) {
	s := twoHosts(t, 1, 8)
	for i := range 8 {
		s.cut(i, 0, 1)
		s.run(s.now + 100*ms)
	}
	for _, h := range s.hosts {
		if got := h.rule.Group().Fresh; got != 1<<7 {
			t.Errorf("host %d: fresh %b", h.id, got)
		}
	}
}

// What is lost on its way there is reported by the peer, what is lost on its way back is silent:
// both sides give the path up, long before any timer of a protocol above.
func TestOneWayLoss(t *testing.T) {
	for seed := range uint64(20) {
		for from := range 2 {
			s := twoHosts(t, seed, 2)
			at := s.now
			s.cut(0, from)
			s.run(at + 10*ms)
			if what := s.hosts[from].since(at); what != "lost not heard 0" {
				t.Errorf("seed %d, the side that is not heard: %q", seed, what)
			}
			if what := s.hosts[1-from].since(at); what != "lost silent 0" {
				t.Errorf("seed %d, the side that hears nothing: %q", seed, what)
			}
		}
	}
}

// The agent of one side is dead. A cut in any direction is still found on the other side.
func TestOneAgentSuffices(t *testing.T) {
	for _, from := range [][]int{{0}, {1}, {0, 1}} {
		s := twoHosts(t, 3, 2)
		s.hosts[1].dead = true
		s.run(s.now + 10*sec)
		at := s.now
		s.cut(0, from...)
		s.run(at + 10*ms)
		if what := s.hosts[0].since(at); !strings.HasPrefix(what, "lost ") || strings.Contains(what, ",") {
			t.Errorf("cut from %v: %q", from, what)
		}
	}
}

// A stalled agent takes nothing down, on either side, however long it stalls. A rule that compares
// times does.
func TestAgentStallsTakeNothingDown(t *testing.T) {
	for _, n := range []int{2, 3, 8} {
		s := twoHosts(t, uint64(n), n)
		at := s.now
		s.hosts[0].naive = newNaiveRule(n, 3500*us)
		for _, d := range []int64{2, 4, 10, 30, 76, 300, 10_000} {
			for i := range s.hosts {
				s.hosts[i].stallAgent(d * ms)
				s.run(s.now + d*ms + 100*ms)
			}
		}
		for _, h := range s.hosts {
			if what := h.since(at); what != "" {
				t.Errorf("%d paths, host %d: %s", n, h.id, what)
			}
			for i := range n {
				if m := h.rule.Path(i).Multiplier; m != 3 {
					t.Errorf("%d paths, host %d: a stall raised multiplier %d to %d", n, h.id, i, m)
				}
			}
		}
		if falls := s.hosts[0].naive.falls; falls < 6*n {
			t.Errorf("%d paths: the rule of time fell %d times, expected at least %d", n, falls, 6*n)
		}
	}
}

// A whole host stands still, and what waited for it comes in batches of a path each: neither it nor
// its peer takes anything down, or takes it for congestion. A rule that compares times does.
func TestHostStallsTakeNothingDown(t *testing.T) {
	for _, n := range []int{2, 3, 8} {
		for seed := range uint64(3) {
			s := twoHosts(t, seed, n)
			at := s.now
			for _, h := range s.hosts {
				h.naive = newNaiveRule(n, 3500*us)
			}
			stalls := []int64{2, 3, 4, 5, 10, 30, 64, 76, 130, 250}
			for _, d := range stalls {
				for _, h := range s.hosts {
					h.stall(d * ms)
					s.run(s.now + d*ms + 50*ms + s.rng.Int64N(ms))
				}
			}
			for _, h := range s.hosts {
				if what := h.since(at); what != "" {
					t.Errorf("%d paths, seed %d, host %d: %s", n, seed, h.id, what)
				}
				for i := range n {
					if m := h.rule.Path(i).Multiplier; m != 3 {
						t.Errorf("%d paths, seed %d, host %d: a stall raised multiplier %d to %d", n, seed, h.id, i, m)
					}
				}
				if h.naive.falls < 8*n {
					t.Errorf("%d paths, seed %d, host %d: the rule of time fell %d times, expected at least %d", n, seed,
						h.id, h.naive.falls, 8*n)
				}
			}
		}
	}
}

// A path that is cut while the peer stands still is found when it goes on.
func TestCutDuringHostStall(t *testing.T) {
	for seed := range uint64(20) {
		s := twoHosts(t, seed, 2)
		s.hosts[1].stall(76 * ms)
		s.cut(0, 0, 1)
		at := s.now + 76*ms
		s.run(at + 8*ms)
		for _, h := range s.hosts {
			if h.rule.Group().Fresh != 2 {
				t.Errorf("seed %d, host %d: fresh %b", seed, h.id, h.rule.Group().Fresh)
			}
		}
	}
}

// An agent that is stopped and started goes on with its rounds; nothing changes. A cut while it is
// dead is found by the first rounds after.
func TestAgentRestart(t *testing.T) {
	s := twoHosts(t, 1, 2)
	at := s.now
	s.hosts[0].dead = true
	s.run(s.now + 5*sec)
	s.hosts[0].dead = false
	s.run(s.now + sec)
	for _, h := range s.hosts {
		if what := h.since(at); what != "" {
			t.Errorf("host %d: %s", h.id, what)
		}
	}
	s.hosts[0].dead = true
	s.run(s.now + sec)
	s.cut(1, 0, 1)
	s.run(s.now + sec)
	at = s.now
	s.hosts[0].dead = false
	s.run(at + 5*ms)
	if what := s.hosts[0].since(at); what != "lost silent 1" {
		t.Errorf("after the restart: %q", what)
	}
}

// A peer that starts anew has another epoch, knows nothing and counts from 0: no path falls here,
// its requests count from the first that its new epoch proves, and its reports are right again.
func TestPeerRestart(t *testing.T) {
	for seed := range uint64(20) {
		s := twoHosts(t, seed, 3)
		at := s.now
		s.hosts[1].reboot()
		s.run(at + 2*sec)
		if what := s.hosts[0].since(at); what != "epoch 0" {
			t.Errorf("seed %d, here: %q", seed, what)
		}
		if got := s.hosts[1].rule.Group(); got.Fresh != 7 || got.Up != 7 {
			t.Errorf("seed %d, there: fresh %b up %b", seed, got.Fresh, got.Up)
		}
		at = s.now
		s.cut(2, 0)
		s.run(at + 10*ms)
		if what := s.hosts[0].since(at); what != "lost not heard 2" {
			t.Errorf("seed %d, a cut after: %q", seed, what)
		}
	}
}

// back cuts path 0 for d and tells what the hosts saw of its return.
func back(t *testing.T, seed uint64, d int64, wasUp bool) *sim {
	t.Helper()
	s := twoHosts(t, seed, 2)
	for _, h := range s.hosts {
		h.rule.setUp(0, wasUp)
	}
	at := s.now
	s.cut(0, 0, 1)
	s.run(at + d)
	for _, h := range s.hosts {
		if h.rule.Group().Fresh != 2 {
			t.Fatalf("host %d: not found after %d ms", h.id, d/ms)
		}
	}
	s.heal(0)
	s.run(s.now + 20*ms)
	return s
}

// A path that is back within 100 ms was congested: it carries traffic at once, if it did before, and
// is judged more slowly from then on.
func TestBackSoonWasCongested(t *testing.T) {
	for seed := range uint64(10) {
		for _, d := range []int64{6, 10, 20, 50, 90} {
			for _, wasUp := range []bool{true, false} {
				s := back(t, seed, d*ms, wasUp)
				for _, h := range s.hosts {
					g, p := h.rule.Group(), h.rule.Path(0)
					if g.Fresh != 3 || g.Up&1 == 1 != wasUp {
						t.Errorf("%d ms: fresh %b up %b", d, g.Fresh, g.Up)
					}
					if p.Congested != 1 || p.Losses != 1 {
						t.Errorf("%d ms: %d losses, %d congested", d, p.Losses, p.Congested)
					}
					// Twice what it missed: as many rounds as the cut lasted, or one less.
					if p.Multiplier > MaxMultiplier || p.Multiplier < min(MaxMultiplier, uint32(2*(d-1))) {
						t.Errorf("%d ms: multiplier %d", d, p.Multiplier)
					}
				}
			}
		}
	}
}

// A path that is back later is fresh, and up only when the agent says so.
func TestBackLaterWaits(t *testing.T) {
	for seed := range uint64(10) {
		s := back(t, seed, 120*ms, true)
		for _, h := range s.hosts {
			g, p := h.rule.Group(), h.rule.Path(0)
			if g.Fresh != 3 || g.Up != 2 || p.Congested != 0 || p.Multiplier != 3 {
				t.Errorf("fresh %b up %b congested %d multiplier %d", g.Fresh, g.Up, p.Congested, p.Multiplier)
			}
		}
	}
}

// Between idle hosts, a round a second, the same rule holds: the third silent round tells.
func TestIdleRounds(t *testing.T) {
	for seed := range uint64(10) {
		s := newSim(seed, 2, 3, false, t.Fatalf)
		for _, h := range s.hosts {
			h.interval = sec
		}
		s.run(20*sec + s.rng.Int64N(sec))
		at := s.now
		s.cut(1, 0, 1)
		s.run(at + 5*sec)
		for _, h := range s.hosts {
			if what := h.since(at); what != "lost silent 1" {
				t.Errorf("seed %d, host %d: %q", seed, h.id, what)
			}
		}
		at = s.now
		s.heal(1)
		s.run(at + 3*sec)
		for _, h := range s.hosts {
			if what := h.since(at); what != "back 1" || h.rule.Group().Up != 1 {
				t.Errorf("seed %d, host %d: %q, up %b", seed, h.id, what, h.rule.Group().Up)
			}
		}
	}
}

// A cut during idleness is found within the first rounds once traffic makes them fast.
func TestIdleThenFast(t *testing.T) {
	s := newSim(1, 2, 3, false, t.Fatalf)
	for _, h := range s.hosts {
		h.interval = sec
	}
	s.run(20 * sec)
	s.cut(0, 0, 1)
	s.run(s.now + 500*ms)
	for _, h := range s.hosts {
		h.interval = ms
	}
	at := s.now + sec // by then both have ticked
	s.run(at)
	for _, h := range s.hosts {
		if what := h.since(20 * sec); what != "lost silent 0" {
			t.Errorf("host %d: %q", h.id, what)
		}
	}
}

// Random loss makes a path lag its twin; it learns, and is not given up again and again.
func TestRandomLoss(t *testing.T) {
	for _, loss := range []float64{0.01, 0.1, 0.3} {
		for _, n := range []int{2, 8} {
			s := newSim(uint64(1000*loss)+uint64(n), n, 3, false, t.Fatalf)
			for i := range s.paths {
				for d := range s.hosts {
					s.paths[i].dir[d].loss = loss
				}
			}
			s.run(20 * sec)
			for _, h := range s.hosts {
				early, late := h.count(0, 5*sec), h.count(5*sec, 20*sec)
				if early > 4*n || late > n {
					t.Errorf("loss %v, %d paths, host %d: %d lost at first, %d later", loss, n, h.id, early, late)
				}
			}
			at := s.now
			s.cut(0, 0, 1)
			s.run(at + 500*ms)
			for _, h := range s.hosts {
				if h.rule.Group().Fresh&1 == 1 {
					t.Errorf("loss %v, %d paths, host %d: a cut was not found", loss, n, h.id)
				}
			}
		}
	}
}

// Both paths saturated: a FIFO of 20 ms in front of each, and flows that fill it. Hardly a false
// verdict, none once the multipliers have learnt; and a real cut is found within 50 rounds and what
// the survivor's own queue holds.
func TestCongestion(t *testing.T) {
	for _, test := range []struct {
		name  string
		both  bool // directions
		burst int
	}{
		{"one direction", false, 1},
		{"one direction, bursts", false, 10},
		{"both directions", true, 1},
		{"both directions, bursts", true, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, seed := range []uint64{1} {
				s := newSim(seed, 2, 3, false, t.Fatalf)
				for _, p := range s.paths {
					for d := range p.dir {
						if d == 0 || test.both {
							p.dir[d].rate = 0.0125 // 100 Mbit/s
							p.dir[d].limit = int64(float64(20*ms) * p.dir[d].rate)
						}
					}
				}
				var flows []*flow
				for range 8 {
					flows = append(flows, s.startFlow(s.rng.Int64N(100*ms), 0, test.burst))
					if test.both {
						flows = append(flows, s.startFlow(s.rng.Int64N(100*ms), 1, test.burst))
					}
				}
				end := 8 * sec
				s.run(end)
				got := int64(0)
				for _, f := range flows {
					got += f.got
				}
				// The test is worth something only if the queues were full.
				rate := float64(got) * segmentBytes * 8 * 1000 / float64(end)
				t.Logf("%.0f Mbit/s", rate)
				for _, h := range s.hosts {
					early, late := h.count(0, end/2), h.count(end/2, end)
					t.Logf("seed %d host %d: lost %d, then %d; multipliers %d %d", seed, h.id, early, late, h.rule.Path(0).Multiplier, h.rule.Path(1).Multiplier)
					if early > 5 || late > 1 {
						t.Errorf("seed %d, host %d: %d lost at first, %d later", seed, h.id, early, late)
					}
				}
				s.cut(0, 0, 1)
				s.run(end + 55*ms)
				for _, h := range s.hosts {
					if h.rule.Group().Fresh != 2 {
						t.Errorf("seed %d, host %d: a cut was not found", seed, h.id)
					} else {
						t.Logf("seed %d host %d: found after %.1f ms", seed, h.id, float64(int64(h.rule.Path(0).ClearedAt)-end)/1e6)
					}
				}
			}
		})
	}
}

// Rounds are 64 bits: at one a millisecond they last for 584 million years. Up to a threshold before
// the end nothing is special. Then the sums wrap, and a path that lags in nothing may be taken for
// lost, though never the last one; after the end no reply is newer than the recorded ones, and
// everything stays as it is.
func TestRoundsNearTheEnd(t *testing.T) {
	w := watch(3, 3, false, t.Fatalf)
	w.startAt(math.MaxUint64 - 2000)
	now := uint64(1)
	for w.Group().Sent < math.MaxUint64-uint64(MaxMultiplier)-2 {
		round := w.beginRound()
		for i := range w.n {
			now += 100
			w.reply(now, i, round, math.MaxUint16)
		}
		if got := w.Group().Fresh; now > 1000 && got != 7 {
			t.Fatalf("round %d: fresh %b", round, got)
		}
	}
	for w.Group().Sent != 1000 {
		round := w.beginRound()
		for i := range w.n {
			now += 100
			w.reply(now, i, round, math.MaxUint16)
		}
		if w.Group().Fresh == 0 {
			t.Fatalf("round %d: nothing is fresh", round)
		}
	}
}
