// SPDX-License-Identifier: Apache-2.0

package hostc

import (
	"container/heap"
	"math/bits"
	"math/rand/v2"

	"github.com/plait-net/plait/maps"
)

// Virtual time, in nanoseconds.
const (
	us  = int64(1000)
	ms  = 1000 * us
	sec = 1000 * ms
)

// What probe.h and the kernel around it add to the rule.
const (
	probeBytes  = 64 + 8 + 40 + 14
	pollBatch   = 64 // packets of a device that the kernel takes in before it goes to the next (NAPI)
	packetCost  = us // of taking in one packet
	backlogSize = 1024
	jiffy       = 4 * ms
	probeRate   = 256 // requests that are reflected on a path in a jiffy (PROBE_RATE)
)

// sim is a network of two hosts in virtual time: nothing in it waits, or reads a clock. Each host
// runs the C rule on what arrives, and an agent that sends rounds. The same seed gives the same run.
type sim struct {
	now   int64
	order uint64 // of events at the same time
	queue eventQueue
	rng   *rand.Rand
	hosts [2]*simHost
	paths []*simPath
}

// simPath is a path, with the same number at both hosts: dir[i] leads away from host i.
type simPath struct {
	dir [2]simLink
}

// simLink is one direction of a path: a bottleneck with its queue, if rate is set, then a delay.
// It keeps the order of packets.
type simLink struct {
	delay  int64
	jitter int64   // at most, on top of delay
	loss   float64 // 0..1
	cut    bool    // silently
	rate   float64 // bytes per ns; 0 no bottleneck
	limit  int64   // bytes that wait at most; a packet that finds no room is dropped
	busy   int64   // until when the bottleneck is busy with what waits
	last   int64   // arrival of the newest packet
}

type eventKind uint8

const (
	kDo      eventKind = iota // a step of the scenario
	kTick                     // an agent's timer
	kWake                     // the end of a host's stall
	kLost                     // a flow learns of a loss
	kRequest                  // arrivals
	kReply
	kData
	kAck
)

type simEvent struct {
	at     int64
	order  uint64
	kind   eventKind
	host   int // where it happens
	path   int
	round  uint64
	epoch  uint64 // of the prober
	answer uint64 // reply: epoch of the reflector
	window uint32
	report uint16
	flow   *flow
	seq    int64
	do     func()
}

type eventQueue []simEvent

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *eventQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// at lets e happen at time t.
func (s *sim) at(t int64, e simEvent) {
	e.at, e.order = t, s.order
	s.order++
	heap.Push(&s.queue, e)
}

// do runs a step of the scenario at time t.
func (s *sim) do(t int64, step func()) { s.at(t, simEvent{kind: kDo, do: step}) }

// simHost is a host: its kernel, and its agent.
type simHost struct {
	sim        *sim
	id         int
	rule       *watched
	fail       func(string, ...any)
	withOracle bool
	multiplier uint32

	// kernel
	epoch   uint64
	stalled bool         // it takes nothing in
	backlog [][]simEvent // by path
	rate    []rateCount  // by path

	// agent
	interval   int64
	stallUntil int64 // it sends nothing until then
	dead       bool
	lags       [][2]uint32 // largest of the last two seconds, by path
	lagAt      int64

	events []maps.Event
	naive  *naiveRule // nil: none
}

type rateCount struct {
	jiffy int64
	count int
}

// newSim makes two hosts with n paths between them, of 100 microseconds each way. Agents tick each
// millisecond from now on, not at the same time.
func newSim(seed uint64, n int, multiplier uint32, withOracle bool, fail func(string, ...any)) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7784))}
	for range n {
		p := &simPath{}
		p.dir[0].delay, p.dir[1].delay = 100*us, 100*us
		s.paths = append(s.paths, p)
	}
	for i := range s.hosts {
		h := &simHost{sim: s, id: i, fail: fail, withOracle: withOracle, multiplier: multiplier,
			epoch: 1000 + uint64(i), interval: ms}
		h.boot()
		s.hosts[i] = h
		s.at(s.rng.Int64N(ms), simEvent{kind: kTick, host: i})
	}
	return s
}

// boot gives the host empty maps.
func (h *simHost) boot() {
	n := len(h.sim.paths)
	h.rule = watch(n, h.multiplier, h.withOracle, h.fail)
	h.rule.seen = func(ev maps.Event) { h.events = append(h.events, ev) }
	h.backlog, h.rate, h.lags = make([][]simEvent, n), make([]rateCount, n), make([][2]uint32, n)
}

// reboot gives the host empty maps and another epoch: what it knew is gone, rounds begin anew.
func (h *simHost) reboot() {
	h.epoch += 1000
	h.boot()
}

// run lets everything happen up to a time.
func (s *sim) run(until int64) {
	for len(s.queue) > 0 && s.queue[0].at <= until {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = max(s.now, e.at)
		s.step(e)
	}
	s.now = until
}

func (s *sim) step(e simEvent) {
	h := s.hosts[e.host]
	switch e.kind {
	case kDo:
		e.do()
	case kTick:
		h.tick()
	case kWake:
		h.wake()
	case kLost:
		e.flow.lost(e.seq)
	default:
		if s.paths[e.path].dir[1-e.host].cut { // also what is under way
			return
		}
		if !h.stalled {
			h.receive(e)
		} else if len(h.backlog[e.path]) < backlogSize {
			h.backlog[e.path] = append(h.backlog[e.path], e)
		}
	}
}

// send puts a packet on a path's link away from host i. It tells whether the packet is under way.
func (s *sim) send(i, path, bytes int, e simEvent) bool {
	l := &s.paths[path].dir[i]
	if l.cut || l.loss > 0 && s.rng.Float64() < l.loss {
		return false
	}
	t := s.now
	if l.rate > 0 {
		l.busy = max(l.busy, t)
		if float64(l.busy-t)*l.rate+float64(bytes) > float64(l.limit) {
			return false
		}
		l.busy += int64(float64(bytes) / l.rate)
		t = l.busy
	}
	t += l.delay
	if l.jitter > 0 {
		t += s.rng.Int64N(l.jitter)
	}
	l.last = max(l.last, t)
	e.host, e.path = 1-i, path
	s.at(l.last, e)
	return true
}

// cut cuts a path: away from the given hosts.
func (s *sim) cut(path int, from ...int) {
	for _, i := range from {
		s.paths[path].dir[i].cut = true
	}
}

// heal ends all cuts of a path.
func (s *sim) heal(path int) {
	for i := range s.hosts {
		s.paths[path].dir[i].cut = false
	}
}

// stallAgent lets the agent miss its timers for d; the kernel goes on.
func (h *simHost) stallAgent(d int64) { h.stallUntil = max(h.stallUntil, h.sim.now+d) }

// stall pauses the whole host for d, as a hypervisor does. What arrives meanwhile waits in the rings
// of the devices, of which the kernel then takes batches in turn.
func (h *simHost) stall(d int64) {
	h.stallAgent(d)
	h.stalled = true
	h.sim.at(h.sim.now+d, simEvent{kind: kWake, host: h.id})
}

func (h *simHost) wake() {
	h.stalled = false
	for more := true; more; {
		more = false
		for i := range h.backlog {
			batch := h.backlog[i][:min(pollBatch, len(h.backlog[i]))]
			h.backlog[i] = h.backlog[i][len(batch):]
			more = more || len(batch) > 0
			for _, e := range batch {
				h.sim.now += packetCost
				h.receive(e)
			}
		}
	}
}

// tick is the agent's timer: controlplane/probe sends a round, controlplane/agent keeps base lags.
func (h *simHost) tick() {
	s := h.sim
	if s.now < h.stallUntil { // a late timer fires once; rounds that were missed are not made up for
		s.at(h.stallUntil+10*us, simEvent{kind: kTick, host: h.id})
		return
	}
	s.at(s.now+h.interval, simEvent{kind: kTick, host: h.id})
	if h.naive != nil {
		h.naive.poll(s.now)
	}
	if h.dead {
		return
	}
	if s.now >= h.lagAt {
		h.lagAt = s.now + sec
		for i := range h.lags {
			h.lags[i][1], h.lags[i][0] = h.lags[i][0], h.rule.takeLag(i)
			h.rule.setBaseLag(i, max(h.lags[i][0], h.lags[i][1]))
		}
	}
	window := uint32(0)
	for i := range s.paths {
		m := h.rule.Path(i).Multiplier
		window = max(window, m+m/2+1)
	}
	round := h.rule.beginRound()
	for i := range s.paths {
		s.send(h.id, i, probeBytes, simEvent{kind: kRequest, round: round, epoch: h.epoch, window: window})
	}
}

// receive does what ingress.h and probe.h do around the rule.
func (h *simHost) receive(e simEvent) {
	s, now := h.sim, uint64(h.sim.now)
	switch e.kind {
	case kRequest:
		known := h.rule.Group().PeerEpoch
		switch {
		case e.epoch < known:
			return
		case e.epoch == known:
			if h.rule.request(now, e.path, e.round) != Recorded {
				return
			}
			h.rule.setPair(e.path, uint32(e.path))
		}
		if r := &h.rate[e.path]; r.jiffy != s.now/jiffy {
			*r = rateCount{jiffy: s.now / jiffy, count: 1}
		} else if r.count++; r.count > probeRate {
			return
		}
		s.send(h.id, e.path, probeBytes, simEvent{kind: kReply, round: e.round, epoch: e.epoch,
			answer: h.epoch, report: h.rule.report(e.window)})
	case kReply:
		if e.epoch != h.epoch || e.round > h.rule.Group().Sent || e.round <= h.rule.Path(e.path).Newest {
			return
		}
		if h.naive != nil {
			h.naive.reply(s.now, e.path)
		}
		h.rule.epoch(now, e.answer)
		h.rule.reply(now, e.path, e.round, e.report)
	case kData:
		h.rule.data(now, e.path)
		e.flow.received(h, e.seq)
	case kAck:
		h.rule.data(now, e.path)
		e.flow.acked()
	}
}

// pick is the path of a flow whose bucket names path own.
func (h *simHost) pick(own int) int {
	g := h.rule.Group()
	usable := g.Fresh & g.Up
	if usable == 0 || usable>>own&1 == 1 {
		return own
	}
	return bits.TrailingZeros64(usable)
}

// count is how often a path lost fresh in [from, to).
func (h *simHost) count(from, to int64) (n int) {
	for _, ev := range h.events {
		if ev.Kind == maps.EventLost && int64(ev.TimeNs) >= from && int64(ev.TimeNs) < to {
			n++
		}
	}
	return n
}

// naiveRule is what other failure detectors do: a path is down when it has not answered for some
// time. It is here to be compared with.
type naiveRule struct {
	limit int64
	heard []int64 // 0 never
	down  []bool
	falls int
}

func newNaiveRule(n int, limit int64) *naiveRule {
	return &naiveRule{limit: limit, heard: make([]int64, n), down: make([]bool, n)}
}

func (r *naiveRule) reply(now int64, path int) {
	r.poll(now)
	r.heard[path], r.down[path] = now, false
}

func (r *naiveRule) poll(now int64) {
	for i, heard := range r.heard {
		if heard > 0 && !r.down[i] && now-heard > r.limit {
			r.down[i] = true
			r.falls++
		}
	}
}

const segmentBytes = 1500 + 14

// flow is a TCP-like flow: slow start, additive increase, halving on a loss, and nothing else of TCP.
// It sends in bursts, as segmentation offload does, and fills queues.
type flow struct {
	sim       *sim
	from      int
	own, back int // the paths of its buckets, there and back
	burst     int
	cwnd      float64
	cwndMax   float64 // as socket buffers set one
	threshold float64
	inflight  int
	next      int64
	recover   int64
	got       int64
}

// startFlow starts a flow from a host at time t, on paths drawn at random.
func (s *sim) startFlow(t int64, from, burst int) *flow {
	f := &flow{sim: s, from: from, own: s.rng.IntN(len(s.paths)), back: s.rng.IntN(len(s.paths)),
		burst: burst, cwnd: float64(max(10, burst)), cwndMax: 1000, threshold: 1e9}
	s.do(t, f.send)
	return f
}

func (f *flow) send() {
	s := f.sim
	for f.inflight+f.burst <= int(f.cwnd) {
		path := s.hosts[f.from].pick(f.own)
		for range f.burst {
			f.next++
			f.inflight++
			if s.send(f.from, path, segmentBytes, simEvent{kind: kData, flow: f, seq: f.next}) {
				continue
			}
			// What follows the lost segment tells, about a round trip later.
			l := &s.paths[path].dir[f.from]
			later := max(l.busy-s.now, 0) + l.delay + s.paths[path].dir[1-f.from].delay + 100*us
			if l.cut {
				later = 200 * ms
			}
			s.at(s.now+later, simEvent{kind: kLost, host: f.from, flow: f, seq: f.next})
		}
	}
}

func (f *flow) received(at *simHost, seq int64) {
	f.got++
	if !f.sim.send(at.id, at.pick(f.back), 66, simEvent{kind: kAck, flow: f, seq: seq}) {
		f.inflight-- // a later one covers it
	}
}

func (f *flow) acked() {
	f.inflight--
	if f.cwnd < f.threshold {
		f.cwnd++
	} else {
		f.cwnd += 1 / f.cwnd
	}
	f.cwnd = min(f.cwnd, f.cwndMax)
	f.send()
}

func (f *flow) lost(seq int64) {
	f.inflight--
	if seq > f.recover {
		f.recover = f.next
		f.cwnd = max(f.cwnd/2, float64(f.burst))
		f.threshold = f.cwnd
	}
	f.send()
}
