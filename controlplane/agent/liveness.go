// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/maps"
)

const (
	tick            = 20 * time.Millisecond // hold-down, RTT
	second          = time.Second           // base lag, multiplier, loss
	multiplierDecay = 5 * time.Minute       // from what congestion taught back to the configured value
	unreachableTime = time.Second
	lossWindow      = 10 // seconds
	rttWeight       = 8  // of the smoothed RTT's history, as in RFC 6298
)

// groupRuntime is what the agent remembers of a group beside the maps.
type groupRuntime struct {
	newest   uint64
	advanced time.Duration // when newest last grew
	sent     uint64
}

// pathRuntime is what the agent remembers of a path beside the maps.
type pathRuntime struct {
	backSince time.Duration // answering again, in hold-down; 0 not

	lag [2]uint32 // largest of the last two seconds, the newer first

	peak   uint32 // multiplier at its highest, and when
	peakAt time.Duration
	expect uint32 // what the agent last wrote

	sampled uint64 // round of the last RTT sample taken

	probes, replies [lossWindow]uint64 // ring, one a second
	slot            int
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with these arguments
	return time.Duration(ts.Nano())
}

// event takes a transition that a kernel program reported.
func (a *Agent) event(ev *maps.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, i := a.find(ev.Group, ev.Path)
	if g == nil {
		return // of a group that is gone
	}
	if ev.Kind == maps.EventPeerEpoch {
		a.log.Info("peer's data plane recognised", "peer", a.cfg.Peers[g.want.peer].Name, "family", g.want.family)
		return
	}
	p, rt := g.want.paths[i], &g.paths[i]
	ps := a.set.PathStates.At(ev.Path)
	log := a.log.With("peer", a.cfg.Peers[g.want.peer].Name, "uplink", a.uplinkName(p.uplink),
		"local", p.local, "remote", p.remote)
	atomic.StoreUint64(&ps.Since, ev.TimeNs)
	switch ev.Kind {
	case maps.EventFirst:
		log.Info("path answers")
		a.tables.rebalance(g)
	case maps.EventLost:
		rt.backSince = 0
		atomic.AddUint64(&ps.Flaps, 1)
		log.Warn("path is down", "reason", maps.LostReason(ev.Reason), "round", ev.Round,
			"newest", ev.Newest, "multiplier", ev.Multiplier)
	case maps.EventCongested:
		if f := atomic.LoadUint64(&ps.Flaps); f > 0 {
			atomic.StoreUint64(&ps.Flaps, f-1)
		}
		log.Info("path was congested, not cut", "multiplier", atomic.LoadUint32(&ps.Multiplier))
	case maps.EventBack:
		// Not before our own start: what an earlier agent left in the ring says nothing about since.
		rt.backSince = max(time.Duration(ev.TimeNs), a.started)
		log.Info("path answers again", "hold_down", a.cfg.Liveness.HoldDown)
	}
}

// clearUplink takes down all paths of an uplink that lost its carrier, also those towards idle peers,
// which would take seconds to notice. They come back as they would after a cut.
func (a *Agent) clearUplink(uplink uint8, now time.Duration) {
	for _, g := range a.tables.groups {
		gs := a.set.GroupStates.At(g.index)
		for i, p := range g.want.paths {
			if p.uplink != uplink {
				continue
			}
			bit := uint64(1) << i
			// One that is down keeps its story: a path that has never answered is still to answer for
			// the first time.
			if atomic.LoadUint64(&gs.Fresh)&bit == 0 {
				continue
			}
			ps := a.set.PathStates.At(g.first + uint32(i))
			wasUp := uint32(0)
			if atomic.LoadUint64(&gs.Up)&bit != 0 {
				wasUp = 1
			}
			atomic.StoreUint32(&ps.WasUp, wasUp)
			atomic.StoreUint64(&ps.ClearedAt, uint64(now))
			if atomic.AndUint64(&gs.Fresh, ^bit)&bit == 0 {
				continue
			}
			atomic.AndUint64(&gs.Up, ^bit)
			atomic.AddUint64(&ps.Losses, 1)
			atomic.AddUint64(&ps.Flaps, 1)
			atomic.StoreUint64(&ps.Since, uint64(now))
			g.paths[i].backSince = 0
		}
	}
}

// find returns the group and the number of a path, nil if it is not in use.
func (a *Agent) find(group, path uint32) (*group, int) {
	for _, g := range a.tables.groups {
		if g.index == group && path >= g.first && path < g.first+uint32(len(g.paths)) {
			return g, int(path - g.first)
		}
	}
	return nil, 0
}

// everyTick ends hold-downs and takes RTT samples.
func (a *Agent) everyTick(now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.tables.groups {
		gs := a.set.GroupStates.At(g.index)
		a.reachability(g, gs, now)
		fresh, up := atomic.LoadUint64(&gs.Fresh), atomic.LoadUint64(&gs.Up)
		for i := range g.paths {
			ps, rt := a.set.PathStates.At(g.first+uint32(i)), &g.paths[i]
			a.holdDown(g, gs, ps, rt, i, fresh, up, now)
			a.sampleRTT(g, ps, rt)
		}
	}
}

// sampleRTT takes a new sample of a path's RTT if there is one.
func (a *Agent) sampleRTT(g *group, ps *maps.PathState, rt *pathRuntime) {
	round := atomic.LoadUint64(&ps.SampleRound)
	if round == rt.sampled {
		return
	}
	rt.sampled = round
	sent, ok := a.sender.SentAt(g.index, round)
	rtt := int64(atomic.LoadUint64(&ps.SampleAt)) - int64(sent)
	if !ok || rtt <= 0 {
		return
	}
	smooth := int64(atomic.LoadUint64(&ps.RttNs))
	if smooth == 0 {
		smooth = rtt
	}
	atomic.StoreUint64(&ps.RttNs, uint64(smooth+(rtt-smooth)/rttWeight))
}

// holdDown lets a path carry traffic again once it has answered for long enough. Falling is the
// kernel's decision, coming back is ours.
func (a *Agent) holdDown(g *group, gs *maps.GroupState, ps *maps.PathState, rt *pathRuntime, i int,
	fresh, up uint64, now time.Duration,
) {
	bit := uint64(1) << i
	switch {
	case fresh&bit == 0:
		rt.backSince = 0
		return
	case up&bit != 0:
		return
	case rt.backSince == 0: // an earlier agent saw it come back
		rt.backSince = now
	}
	if now-rt.backSince < a.cfg.Liveness.HoldDown {
		return
	}
	rt.backSince = 0
	atomic.StoreUint64(&ps.Since, uint64(now))
	atomic.OrUint64(&gs.Up, bit)
	if atomic.LoadUint64(&gs.Fresh)&bit == 0 { // lost at this very moment: it must hold down again
		atomic.AndUint64(&gs.Up, ^bit)
		return
	}
	p := g.want.paths[i]
	a.log.Info("path is up", "peer", a.cfg.Peers[g.want.peer].Name, "uplink", a.uplinkName(p.uplink),
		"local", p.local, "remote", p.remote)
}

// reachability notices a peer of which nothing answers any more. Nothing changes in the kernel.
func (a *Agent) reachability(g *group, gs *maps.GroupState, now time.Duration) {
	rt := &g.runtime
	newest, sent := atomic.LoadUint64(&gs.Newest), atomic.LoadUint64(&gs.Sent)
	if newest != rt.newest || rt.advanced == 0 || sent == rt.sent && newest == sent {
		rt.newest, rt.advanced, rt.sent = newest, now, sent
		if atomic.SwapUint32(&gs.Unreachable, 0) != 0 && newest != 0 {
			a.log.Info("peer is reachable again", "peer", a.cfg.Peers[g.want.peer].Name, "identity", g.want.identity)
		}
		return
	}
	rt.sent = sent
	limit := unreachableTime
	if newest == 0 || sent <= newest+1 { // idle rounds are rare
		limit += 2 * a.cfg.Liveness.IdleInterval
	}
	if newest != 0 && now-rt.advanced > limit && atomic.SwapUint32(&gs.Unreachable, 1) == 0 {
		a.log.Error("peer is unreachable: no path answers; paths stay as they are",
			"peer", a.cfg.Peers[g.want.peer].Name, "identity", g.want.identity)
	}
}

// everySecond keeps base lags, lets multipliers decay and computes probe loss.
func (a *Agent) everySecond(now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.tables.groups {
		for i := range g.paths {
			ps, rt := a.set.PathStates.At(g.first+uint32(i)), &g.paths[i]
			rt.lag[1], rt.lag[0] = rt.lag[0], atomic.SwapUint32(&ps.LagMax, 0)
			atomic.StoreUint32(&ps.BaseLag, max(rt.lag[0], rt.lag[1]))
			a.decay(ps, rt, now)
			loss(ps, rt)
		}
	}
}

// decay brings a multiplier that congestion raised back over multiplierDecay.
func (a *Agent) decay(ps *maps.PathState, rt *pathRuntime, now time.Duration) {
	m, least := atomic.LoadUint32(&ps.Multiplier), atomic.LoadUint32(&ps.MinMultiplier)
	if m <= least {
		rt.peak = 0
		return
	}
	if rt.peak == 0 || m != rt.expect { // the kernel has raised it
		rt.peak, rt.peakAt, rt.expect = m, now, m
		return
	}
	left := max(0, multiplierDecay-(now-rt.peakAt))
	want := least + uint32(float64(rt.peak-least)*left.Seconds()/multiplierDecay.Seconds()+0.5)
	if want < m && atomic.CompareAndSwapUint32(&ps.Multiplier, m, want) {
		rt.expect = want
	}
}

// startLoss makes the counters of a path that is taken over the start of its window: what an earlier
// agent sent is none of its last seconds.
func (rt *pathRuntime) startLoss(ps *maps.PathState) {
	probes, replies := atomic.LoadUint64(&ps.Probes), atomic.LoadUint64(&ps.Replies)
	for i := range rt.probes {
		rt.probes[i], rt.replies[i] = probes, replies
	}
}

// loss compares what was sent and answered over the last seconds. The newest rounds may still be on
// their way; over ten seconds they do not count.
func loss(ps *maps.PathState, rt *pathRuntime) {
	next := (rt.slot + 1) % len(rt.probes)
	probes, replies := atomic.LoadUint64(&ps.Probes), atomic.LoadUint64(&ps.Replies)
	sent, answered := probes-rt.probes[next], replies-rt.replies[next]
	rt.probes[next], rt.replies[next] = probes, replies
	rt.slot = next
	ppm := uint64(0)
	if sent > answered {
		ppm = (sent - answered) * 1_000_000 / sent
	}
	atomic.StoreUint32(&ps.LossPpm, uint32(ppm))
}
