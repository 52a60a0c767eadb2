// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"sync/atomic"
	"time"
)

// Gap is a time in which nothing arrived.
type Gap struct {
	// From is the arrival before the gap, or the start of the stream.
	From time.Duration
	// To is the arrival after it, or, if Open, the end of the stream.
	To time.Duration
	// Open says that nothing arrived after From any more.
	Open bool
}

// Length is how long nothing arrived.
func (g Gap) Length() time.Duration { return g.To - g.From }

// timeLog is a list of times that one thread appends to and others may read meanwhile. It never grows: what does not fit is
// counted, not kept.
type timeLog struct {
	at   []int64
	n    atomic.Int64
	over atomic.Int64
}

// newTimeLog makes a log of at most n times and touches its memory, so that no append has to wait for a page.
func newTimeLog(n int) *timeLog {
	l := &timeLog{at: make([]int64, n)}
	touch(l.at)
	return l
}

// touch writes to every page of s.
func touch(s []int64) {
	for i := 0; i < len(s); i += 512 {
		s[i] = 0
	}
}

func (l *timeLog) add(at time.Duration) {
	n := l.n.Load()
	if int(n) >= len(l.at) {
		l.over.Add(1)
		return
	}
	l.at[n] = int64(at)
	l.n.Store(n + 1)
}

func (l *timeLog) times() []int64 { return l.at[:l.n.Load()] }

// eachGap calls f with every gap between two neighbours in times, which starts at start and ends at end. Times outside
// [start, end] do not end a gap beyond it: the last gap is open unless something arrived at or after end.
func eachGap(times []int64, start, end time.Duration, f func(Gap)) {
	last := start
	for _, t := range times {
		at := time.Duration(t)
		if at < last {
			// Arrivals are logged in their order; one before the start belongs to another measurement.
			continue
		}
		f(Gap{From: last, To: at})
		last = at
	}
	if last < end {
		f(Gap{From: last, To: end, Open: true})
	}
}

// largestGap is the largest gap that touches [from, to]. Its whole length counts, also what lies outside: a gap that begins
// in the window and outlasts it is the very thing to be seen.
func largestGap(times []int64, start, end, from, to time.Duration) Gap {
	var max Gap
	eachGap(times, start, end, func(g Gap) {
		if g.To >= from && g.From <= to && g.Length() > max.Length() {
			max = g
		}
	})
	return max
}

// largestGapAfter is the largest gap that begins after from.
func largestGapAfter(times []int64, start, end, from time.Duration) Gap {
	var max Gap
	eachGap(times, start, end, func(g Gap) {
		if g.From > from && g.Length() > max.Length() {
			max = g
		}
	})
	return max
}

// gapsOver lists, in their order, the gaps of at least min.
func gapsOver(times []int64, start, end, min time.Duration) []Gap {
	var gaps []Gap
	eachGap(times, start, end, func(g Gap) {
		if g.Length() >= min {
			gaps = append(gaps, g)
		}
	})
	return gaps
}
