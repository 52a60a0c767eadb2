// SPDX-License-Identifier: Apache-2.0

package hostc

import (
	"fmt"
	"slices"

	"github.com/plait-net/plait/maps"
)

// oracle is the liveness rule as docs/architecture.md tells it, written to be read. It keeps the
// whole history of a host and answers every question by going through it; only what history
// alone does not give (masks, multipliers) is carried along.
type oracle struct {
	history []happening
	sent    uint64 // the last round

	fresh, up []bool
	lost      []*lost // the last time each path lost fresh

	multiplier []uint64
	configured uint64
	baseLag    []uint64
	lagMax     []uint64 // since the agent last took it

	peerEpoch uint64
	pair      []uint32 // the peer's number of each path
	events    []maps.Event
}

// lost is a transition out of fresh.
type lost struct {
	at    uint64
	wasUp bool
}

// A happening in a host's life.
type happening struct {
	what  what
	path  int
	round uint64
}

type what int

const (
	hSent     what = iota // the agent began a round
	hAnswer               // a reply to round arrived and was recorded
	hRequest              // the peer's request of a round arrived and was recorded
	hData                 // data arrived
	hForgiven             // the agent did not send the rounds up to this one on a path
	hEpoch                // the peer turned out to be another
)

// arrival tells whether something came from the peer.
func (h happening) arrival() bool {
	return h.what == hAnswer || h.what == hRequest || h.what == hData
}

func newOracle(paths int, multiplier uint32) *oracle {
	o := &oracle{
		configured: uint64(multiplier),
		fresh:      make([]bool, paths), up: make([]bool, paths), lost: make([]*lost, paths),
		baseLag: make([]uint64, paths), lagMax: make([]uint64, paths), pair: make([]uint32, paths),
	}
	for range paths {
		o.multiplier = append(o.multiplier, uint64(multiplier))
	}
	return o
}

func (o *oracle) note(w what, path int, round uint64) {
	o.history = append(o.history, happening{w, path, round})
}

// answered is the newest round that a path answered, 0 if it never did; rounds that were not sent on
// it count as answered. Path -1: any path, and really answered.
func (o *oracle) answered(path int) (newest uint64) {
	for _, h := range o.history {
		if h.what == hAnswer && path < 0 || (h.what == hAnswer || h.what == hForgiven) && h.path == path {
			newest = max(newest, h.round)
		}
	}
	return newest
}

// silence is for how many rounds nothing has arrived on a path, neither probe nor data.
func (o *oracle) silence(path int) uint64 {
	var rounds uint64
	for _, h := range slices.Backward(o.history) {
		switch {
		case h.what == hSent:
			rounds++
		case h.arrival() && h.path == path:
			return rounds
		}
	}
	return o.sent // since the first round ever
}

// resuming tells whether something arrives again, since less than the configured multiplier of rounds,
// after as many rounds or more in which nothing arrived on any path: a host stood still.
func (o *oracle) resuming() bool {
	// The rounds in which something arrived, newest first.
	round, heard := o.sent, []uint64{}
	for _, h := range slices.Backward(o.history) {
		switch {
		case h.what == hSent:
			round = h.round - 1
		case h.arrival() && (len(heard) == 0 || heard[len(heard)-1] != round):
			heard = append(heard, round)
		}
	}
	heard = append(heard, 0)
	for i := range len(heard) - 1 {
		if o.sent-heard[i] >= o.configured {
			return false
		}
		if heard[i]-heard[i+1] >= o.configured {
			return true
		}
	}
	return o.sent < o.configured // nothing was before the first round
}

func (o *oracle) begin(round uint64) {
	o.sent = round
	o.note(hSent, -1, round)
}

// threshold is how far a path may lag before it is suspected: its multiplier, but at least the
// configured one beyond its base lag.
func (o *oracle) threshold(path int) uint64 {
	return max(o.multiplier[path], o.configured+o.baseLag[path])
}

// learn remembers that a path that lives missed, or lagged by, m rounds.
func (o *oracle) learn(path int, m uint64) {
	if m <= MaxRun {
		o.multiplier[path] = max(o.multiplier[path], min(2*m, uint64(MaxMultiplier)))
	}
}

// reply is a verified reply. The report has a bit for each of our paths.
func (o *oracle) reply(now uint64, path int, round uint64, report uint16) int {
	if round > o.sent {
		return Future
	}
	last, newest := o.answered(path), o.answered(-1)
	if round <= last {
		return Replayed
	}
	o.note(hAnswer, path, round)

	var missed, lag uint64
	if last > 0 {
		missed = round - last - 1
	}
	if newest > round {
		lag = newest - round
	}
	if o.resuming() {
		missed, lag = 0, 0
	}
	switch {
	case !o.fresh[path]:
		o.back(now, path, round, missed)
	case o.up[path]: // what a path misses or lags in its hold-down teaches nothing
		o.lagMax[path] = max(o.lagMax[path], lag)
		o.learn(path, max(missed, lag))
	}

	// Whether the others still live is asked whenever a round is answered for the first time.
	if round > newest {
		for j := range o.fresh {
			if j != path && o.fresh[j] {
				o.judge(now, j, round, report)
			}
		}
	}
	return Recorded
}

// back is a path that answers and was not fresh.
func (o *oracle) back(now uint64, path int, round, missed uint64) {
	kind := maps.EventBack
	switch l := o.lost[path]; {
	case l == nil:
		kind = maps.EventFirst
		o.up[path] = true
	case now-l.at < CongestedNs:
		kind = maps.EventCongested
		o.learn(path, missed)
		o.up[path] = o.up[path] || l.wasUp
	}
	o.fresh[path] = true
	o.event(now, kind, 0, path, round)
}

// judge decides about a fresh path when another answered round.
func (o *oracle) judge(now uint64, path int, round uint64, report uint16) {
	last := o.answered(path)
	if round < last || round-last < o.threshold(path) || o.resuming() {
		return
	}
	reason := uint32(0)
	if o.silence(path) >= o.multiplier[path] {
		reason = LostSilent
	} else if report&(1<<path) == 0 && 2*(round-last) > 3*o.threshold(path) {
		reason = LostNotHeard // half as long again as without a sign of the peer
	}
	if reason == 0 {
		return
	}
	o.lost[path] = &lost{at: now, wasUp: o.up[path]}
	o.fresh[path], o.up[path] = false, false
	o.event(now, maps.EventLost, reason, path, round)
}

func (o *oracle) event(now uint64, kind, reason uint32, path int, round uint64) {
	newest := o.answered(path)
	o.events = append(o.events, maps.Event{TimeNs: now, Kind: kind, Reason: reason, Group: Group,
		Path: FirstPath + uint32(path), Round: round, Newest: newest,
		Multiplier: uint32(o.multiplier[path]), Lag: uint32(round - newest)})
}

// requested is the newest round of the peer on a path, 0 if none came since its epoch began. Path
// -1: any path. Only the first n happenings count.
func (o *oracle) requested(path, n int) (newest uint64) {
	for _, h := range slices.Backward(o.history[:n]) {
		if h.what == hEpoch {
			break
		}
		if h.what == hRequest && (path < 0 || h.path == path) {
			newest = max(newest, h.round)
		}
	}
	return newest
}

func (o *oracle) request(path int, round uint64) int {
	if round <= o.requested(path, len(o.history)) {
		return Replayed
	}
	o.note(hRequest, path, round)
	return Recorded
}

// epoch is a reply's word on the peer's boot epoch. What an earlier epoch's rounds said is void.
func (o *oracle) epoch(now, epoch uint64) {
	if epoch == o.peerEpoch {
		return
	}
	o.peerEpoch = epoch
	o.note(hEpoch, -1, 0)
	o.events = append(o.events, maps.Event{TimeNs: now, Kind: maps.EventPeerEpoch, Group: Group,
		Path: FirstPath})
}

// report is the peer's numbers of the paths on which anything arrived within its last window
// rounds. A request on the path must have told its number.
func (o *oracle) report(window uint64) (report uint16) {
	now := o.requested(-1, len(o.history))
	for path := range o.fresh {
		if o.requested(path, len(o.history)) == 0 {
			continue
		}
		for i, h := range slices.Backward(o.history) {
			if h.what == hEpoch {
				break
			}
			if !h.arrival() || h.path != path {
				continue
			}
			if then := o.requested(-1, i+1); then > 0 && now-then < window {
				report |= 1 << o.pair[path]
			}
			break
		}
	}
	return report
}

// watched is a host whose every step the oracle repeats, unless it has none. It is what the sim and
// the tests talk to.
type watched struct {
	*Host
	n      int
	oracle *oracle
	fail   func(format string, args ...any)
	seen   func(maps.Event) // told every event
}

func watch(paths int, multiplier uint32, withOracle bool, fail func(string, ...any)) *watched {
	w := &watched{Host: NewHost(paths, multiplier), n: paths, fail: fail}
	if withOracle {
		w.oracle = newOracle(paths, multiplier)
	}
	return w
}

// startAt makes the last round sent one that is not 0, as an agent finds it in a map. The oracle's
// history begins there.
func (w *watched) startAt(round uint64) {
	w.Group().Sent = round
	if w.oracle != nil {
		w.oracle.sent = round
	}
}

// beginRound is the agent's: it begins the next round.
func (w *watched) beginRound() uint64 {
	g := w.Group()
	g.Sent++
	if w.oracle != nil {
		w.oracle.begin(g.Sent)
	}
	return g.Sent
}

// takeLag is the agent's: the largest lag since it last asked.
func (w *watched) takeLag(path int) uint32 {
	p := w.Path(path)
	lag := p.LagMax
	p.LagMax = 0
	if w.oracle != nil {
		w.oracle.lagMax[path] = 0
	}
	return lag
}

// setBaseLag is the agent's.
func (w *watched) setBaseLag(path int, lag uint32) {
	w.Path(path).BaseLag = lag
	if w.oracle != nil {
		w.oracle.baseLag[path] = uint64(lag)
	}
}

// setMultiplier is the agent's, when it lets a multiplier decay.
func (w *watched) setMultiplier(path int, m uint32) {
	w.Path(path).Multiplier = m
	if w.oracle != nil {
		w.oracle.multiplier[path] = uint64(m)
	}
}

// forgive is the agent's: it did not send the rounds up to this one on a path that answered before.
func (w *watched) forgive(path int, round uint64) {
	p := w.Path(path)
	if p.Newest == 0 || p.Newest >= round {
		return
	}
	p.Newest = round
	if w.oracle != nil {
		w.oracle.note(hForgiven, path, round)
	}
}

// setUp is the agent's: the end of a hold-down, or the beginning of a drain.
func (w *watched) setUp(path int, up bool) {
	if up {
		w.Group().Up |= 1 << path
	} else {
		w.Group().Up &^= 1 << path
	}
	if w.oracle != nil {
		w.oracle.up[path] = up
	}
}

// setPair is what probe.h does when it learns the peer's number of a path.
func (w *watched) setPair(path int, pair uint32) {
	w.Path(path).PeerPair = pair
	if w.oracle != nil {
		w.oracle.pair[path] = pair
	}
}

func (w *watched) reply(now uint64, path int, round uint64, report uint16) int {
	code := w.Reply(now, path, round, report)
	if w.oracle != nil {
		if want := w.oracle.reply(now, path, round, report); code != want {
			w.fail("reply to round %d on path %d: %d, want %d", round, path, code, want)
		}
	}
	w.compare()
	return code
}

func (w *watched) request(now uint64, path int, round uint64) int {
	code := w.Request(now, path, round)
	if w.oracle != nil {
		if want := w.oracle.request(path, round); code != want {
			w.fail("request of round %d on path %d: %d, want %d", round, path, code, want)
		}
	}
	w.compare()
	return code
}

func (w *watched) data(now uint64, path int) {
	w.Heard(now, path)
	if w.oracle != nil {
		w.oracle.note(hData, path, 0)
	}
	w.compare()
}

func (w *watched) epoch(now, epoch uint64) {
	w.PeerEpoch(now, epoch)
	if w.oracle != nil {
		w.oracle.epoch(now, epoch)
	}
	w.compare()
}

func (w *watched) report(window uint32) uint16 {
	report := w.Report(window)
	if w.oracle != nil {
		if want := w.oracle.report(uint64(window)); report != want {
			w.fail("report over %d rounds: %016b, want %016b", window, report, want)
		}
	}
	return report
}

// compare holds everything that the rule decides against the oracle, and passes events on. Whatever
// happens, the last path that answers stays.
func (w *watched) compare() {
	events := w.Events()
	g := w.Group()
	for _, ev := range events {
		if ev.Kind == maps.EventLost && g.Fresh == 0 {
			w.fail("the last path that answered was cleared: %+v", ev)
		}
		if w.seen != nil {
			w.seen(ev)
		}
	}
	if g.Up&^g.Fresh != 0 {
		w.fail("up %b without fresh %b", g.Up, g.Fresh)
	}
	o := w.oracle
	if o == nil {
		return
	}
	for i := range w.n {
		p := w.Path(i)
		got := fmt.Sprint("fresh ", g.Fresh>>i&1 == 1, " up ", g.Up>>i&1 == 1, " multiplier ", p.Multiplier,
			" lag ", p.LagMax)
		want := fmt.Sprint("fresh ", o.fresh[i], " up ", o.up[i], " multiplier ", o.multiplier[i],
			" lag ", o.lagMax[i])
		if got != want {
			w.fail("path %d: %s, want %s", i, got, want)
		}
	}
	if len(events) != len(o.events) {
		w.fail("events %+v, want %+v", events, o.events)
	}
	for i, got := range events {
		want := o.events[i]
		if want.Kind == maps.EventPeerEpoch { // only that it happened, and when
			want.Newest, want.Multiplier = got.Newest, got.Multiplier
		}
		if got != want {
			w.fail("event %+v, want %+v", got, want)
		}
	}
	o.events = nil
}
