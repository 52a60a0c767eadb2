// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"slices"
	"testing"

	"github.com/plait-net/plait/maps"
)

// unchanged runs a frame that must change nothing at all but one reason's counter, and says so also
// of maps that programs do not write.
func (w *world) unchanged(t *testing.T, h hook, frame []byte, want want) {
	t.Helper()
	w.restore(t)
	before := w.memory(t)
	w.check(t, h, frame, want)
	if c := w.memory(t).changes(before); len(c) > 0 {
		t.Fatalf("%s %s: changed %v", h.name, want.note, c)
	}
}

// invalid is a probe that must be refused.
type invalid struct {
	name   string
	frame  []byte
	reason maps.Reason
	passes bool // counted, and left to the host
}

// offsets within a probe that are not under the tag: each has one right value, but the intervals.
var informational = []int{12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

// invalidProbes derives from a valid probe of b to a, on path 0, everything that is wrong with one.
// keys signs anew where a field is changed by its sender.
func invalidProbes(f maps.Family, good probe) []invalid {
	var out []invalid
	add := func(reason maps.Reason, name string, frame []byte) {
		out = append(out, invalid{name: name, frame: frame, reason: reason})
	}
	e := locators(f, hostB, hostA, 0)
	k0, k1 := sipKey(hostB, hostA, f, 0, 0)
	payload, strange := good.bytes(k0, k1), other(f)
	changed := func(change func(*probe)) []byte {
		p := good
		change(&p)
		return p.on(f, hostB, hostA, 0, 0)
	}
	// Every byte, changed on the way. What has one right value is looked at before the tag.
	format := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 24, 25}
	for i := range payload {
		for _, bit := range []byte{0x01, 0x80} {
			if slices.Contains(informational, i) {
				continue
			}
			b := slices.Clone(payload)
			b[i] ^= bit
			reason := rProbeTag
			switch {
			case slices.Contains(format, i):
				reason = rProbeFormat
			case i == 26:
				reason = rProbeKey
			case i == 27: // direction, or the state that the second byte repeats
				reason = rProbeFormat
			case i == 28, i == 29: // version and number, window: repeated elsewhere
				reason = rProbeFormat
			case i >= 48 && i < 56 && !good.reply: // a request has no epoch of the reflector's
				reason = rProbeFormat
			}
			add(reason, fmt.Sprintf("byte %d changed by %#x", i, bit), probeFrame(e, good.reply, b))
		}
	}
	for _, bit := range []byte{0x02, 0x04, 0x08, 0x10, 0x20} { // flags that nothing repeats
		b := slices.Clone(payload)
		b[27] ^= bit
		add(rProbeTag, fmt.Sprintf("flags changed by %#x", bit), probeFrame(e, good.reply, b))
	}
	// Fields that belong together, changed together but not signed.
	for name, at := range map[string][]int{
		"number and discriminator": {28, map[bool]int{false: 7, true: 11}[good.reply]},
		"window and multiplier":    {29, 2},
	} {
		b := slices.Clone(payload)
		for _, i := range at {
			b[i] ^= 1
		}
		if name[0] == 'n' { // the discriminator is the number + 1
			b[at[0]], b[at[1]] = 1<<4|5, 6
		}
		add(rProbeTag, name, probeFrame(e, good.reply, b))
	}
	b := slices.Clone(payload)
	b[1], b[27] = b[1]&^0xc0|down, b[27]&^0xc0|down
	add(rProbeTag, "both states", probeFrame(e, good.reply, b))

	// Rightly signed, but not by whom and for what it should be.
	add(rProbeTag, "the key of the other slot", probeFrame(e, good.reply, good.bytes(sipKey(hostB, hostA, f, 0, 1))))
	add(rProbeTag, "the key of the other path", probeFrame(e, good.reply, good.bytes(sipKey(hostB, hostA, f, 1, 0))))
	add(rProbeTag, "our own key: sent back to us", probeFrame(e, good.reply, good.bytes(sipKey(hostA, hostB, f, 0, 0))))
	add(rProbeTag, "another peer's key", probeFrame(e, good.reply, good.bytes(sipKey(hostC, hostA, f, 0, 0))))
	add(rProbeTag, "a key of zeros", probeFrame(e, good.reply, good.bytes(0, 0)))
	add(rProbeTag, "relocated to the other path", probeFrame(locators(f, hostB, hostA, 1), good.reply, payload))
	add(rProbeTag, "relocated to another peer", probeFrame(locators(f, hostC, hostA, 0), good.reply, payload))
	add(rProbeKey, "key id 0", changed(func(p *probe) { p.keyID = 0 }))
	add(rProbeKey, "an unknown key id", changed(func(p *probe) { p.keyID = 99 }))
	add(rProbeTag, "the other key id", changed(func(p *probe) { p.keyID = byte(keyIDs[1]) }))
	// The other direction: a request to the prober's port, a reply to the reflector's.
	add(rProbeFormat, "from the wrong port", probeFrame(e, !good.reply, payload))
	turned := good
	turned.reply = !good.reply
	add(rProbeFormat, "the other direction", probeFrame(e, good.reply, turned.bytes(k0, k1)))
	// Both ports are the reflector's, or the prober's port is another.
	add(rProbeFormat, "of another version", probeFrame(e, good.reply, resigned(good, k0, k1, func(b []byte) { b[28] = 2<<4 | b[28]&15 })))
	if !good.reply {
		add(rProbeFormat, "with a reflector's epoch", changed(func(p *probe) { p.reflectorEpoch = 1 }))
	}

	// Lengths: each but 64, said by UDP, or by IP alone, or only there.
	for n := range 64 {
		add(rProbeTruncated, fmt.Sprintf("%d bytes", n), probeFrame(e, good.reply, payload[:n]))
	}
	for _, n := range []int{65, 66, 72, 128, 1400} {
		add(rProbeFormat, fmt.Sprintf("%d bytes", n), probeFrame(e, good.reply, append(slices.Clone(payload), make([]byte, n-64)...)))
	}
	frame := probeFrame(e, good.reply, payload)
	at := packet{}.l4(f)
	for _, n := range []byte{0, 8, 71, 73} {
		wrong := slices.Clone(frame)
		wrong[at+5] = n
		add(rProbeFormat, fmt.Sprintf("UDP says %d bytes", n), wrong)
	}
	longer := packet{body: raw(17, append(udp(probePorts(good.reply, payload)).build(e), 1, 2, 3, 4))}
	add(rProbeFormat, "bytes behind UDP", longer.frame(e, 255))
	// Fragments and headers between: a prober sends none.
	if f == v4 {
		first := packet{body: udp(probePorts(good.reply, payload)), more: true}
		add(rProbeFormat, "first fragment", first.frame(e, 255))
	} else {
		for name, x := range map[string]ext{"first fragment": fragment6(0, true)} {
			add(rProbeFormat, name, packet{body: udp(probePorts(good.reply, payload)), exts: []ext{x}}.frame(e, 255))
		}
	}

	// Not from a peer's locator to ours: not ours, but looks like it.
	for name, e := range map[string]ends{
		"from a stranger":         {strange, e.dst},
		"to a stranger":           {e.src, strange},
		"between two paths":       {hostB.locator[f][1], e.dst},
		"from an unknown host":    locators(f, hostS, hostA, 0),
		"sent back as we sent it": e.reversed(),
	} {
		out = append(out, invalid{name: name, frame: probeFrame(e, good.reply, payload), reason: rProbeForeign, passes: true})
	}
	return out
}

// resigned builds a probe with other bytes that its sender signed.
func resigned(p probe, k0, k1 uint64, change func([]byte)) []byte {
	b := p.bytes(k0, k1)
	change(b)
	t := tag(k0, k1, b)
	for i := range 8 {
		b[56+i] = byte(t >> (8 * i))
	}
	return b
}

// TestInvalidProbes: none of them changes anything but its counter.
func TestInvalidProbes(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		request, reply := peersRequest(0), peersReply(0)
		var table []invalid
		table = append(append(table, invalidProbes(f, request)...), invalidProbes(f, reply)...)
		add := func(reason maps.Reason, name string, p probe) {
			table = append(table, invalid{name: name, frame: p.on(f, hostB, hostA, 0, 0), reason: reason})
		}
		with := func(p probe, change func(*probe)) probe { change(&p); return p }
		for _, back := range []uint64{0, 1, peerRound - 1} {
			add(rProbeReplayed, "replayed request", with(request, func(p *probe) { p.round = peerRound - back }))
		}
		add(rProbeReplayed, "request of round 0", with(request, func(p *probe) { p.round = 0 }))
		for _, back := range []uint64{0, 1, newestRound - 1} {
			add(rProbeReplayed, "replayed reply", with(reply, func(p *probe) { p.round = newestRound - back }))
		}
		// Old, and of another boot: what it says of the peer's epoch must not be believed either.
		reboot := func(round uint64) func(*probe) {
			return func(p *probe) { p.round, p.reflectorEpoch = round, newerEpoch }
		}
		add(rProbeReplayed, "replayed reply naming another boot", with(reply, reboot(newestRound)))
		add(rProbeFuture, "reply to the next round naming another boot", with(reply, reboot(sentRound+1)))
		add(rProbeFuture, "reply to the next round", with(reply, func(p *probe) { p.round = sentRound + 1 }))
		add(rProbeFuture, "reply to the last round", with(reply, func(p *probe) { p.round = 1<<64 - 1 }))
		add(rProbeEpoch, "request of an older boot", with(request, func(p *probe) { p.epoch = olderEpoch }))
		add(rProbeEpoch, "request of epoch 0", with(request, func(p *probe) { p.epoch = 0 }))
		add(rProbeEpoch, "reply to an older boot", with(reply, func(p *probe) { p.epoch = olderEpoch }))
		add(rProbeEpoch, "reply to a newer boot", with(reply, func(p *probe) { p.epoch = newerEpoch }))
		add(rProbeEpoch, "reply to another's boot", with(reply, func(p *probe) { p.epoch = epochOf(hostC) }))
		add(rProbeFormat, "reply for the other path", with(reply, func(p *probe) { p.pair = 1 }))
		add(rProbeFormat, "reply for no path", with(reply, func(p *probe) { p.pair = 15 }))

		for _, bad := range table {
			for _, h := range ingresses {
				want := want{verdict: drop, reason: bad.reason, note: fmt.Sprintf("IPv%s %s", f, bad.name)}
				if bad.passes {
					want.verdict = pass
				}
				w.unchanged(t, h, bad.frame, want)
			}
		}
		t.Logf("IPv%s: %d probes", f, len(table))
	}
}

// Epochs before and after each host's, as numbers on the wire; the other byte order has them the other
// way round.
const (
	olderEpoch = 0xffffffffffffff17
	newerEpoch = 0x19
)

// TestProbesCut: a valid probe whose frame ends early.
func TestProbesCut(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		for _, p := range []probe{peersRequest(0), peersReply(0)} {
			frame := p.on(f, hostB, hostA, 0, 0)
			l4 := packet{}.l4(f)
			for n := ethLen; n < len(frame); n++ {
				want := want{verdict: drop, reason: rProbeTruncated, note: fmt.Sprintf("IPv%s length %d", f, n)}
				switch {
				case n < l4:
					want.verdict, want.reason = pass, 0
				case n < l4+udpLen:
					want.reason = rInTruncated
				}
				w.unchanged(t, ingressXDP, frame[:n], want)
				if n >= l4 {
					w.unchanged(t, ingressTC, frame[:n], want)
				}
			}
		}
	}
}

// TestUnmarkedProbes: below a hop limit of 128 a packet is nobody's probe, and below 255 one that
// came over routers is.
func TestUnmarkedProbes(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		for _, p := range []probe{peersRequest(0), peersReply(0)} {
			k0, k1 := sipKey(hostB, hostA, f, 0, 0)
			b := packet{body: udp(probePorts(p.reply, p.bytes(k0, k1))), tos: 0xc0}
			for _, h := range ingresses {
				for _, hop := range []uint8{0, 1, 64, 127} {
					w.unchanged(t, h, b.frame(locators(f, hostB, hostA, 0), hop), want{})
				}
			}
		}
	}
}

// TestUnconfirmedEpoch: a request of a later boot, or of a peer whose boot is not known yet, is
// answered, so that the peer can learn ours; it is believed in nothing, and the reply's report holds
// nothing against any path.
func TestUnconfirmedEpoch(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		path := w.path(hostB, f, 0)
		check := func(name string, p probe) {
			t.Helper()
			for _, h := range ingresses {
				w.request(t, h, p.on(f, hostB, hostA, 0, 0), want{
					verdict: redirect, reason: rProbeUnconfirmed, frame: replyFrame(reflected(p, 0xffff), f, 0, 0),
					path: int(path), requests: 1, note: name,
					live: func(l *liveness) { l.paths[path].RateJiffy, l.paths[path].RateCount = anyRate, 1 },
				})
			}
		}
		p := peersRequest(0)
		p.epoch, p.round = newerEpoch, 1
		check("newer", p)
		p.pair = 9 // not learned either
		check("newer, other number", p)
		state := &w.states[w.group(hostB, f)]
		state.PeerEpoch, state.Caps = 0, 0
		check("unknown", peersRequest(0))
		state.PeerEpoch, state.Caps = epochOf(hostB), maps.CapMark
	}
}

// TestRate: more requests than the limit are not answered.
func TestRate(t *testing.T) {
	const limit = 256 // docs/wire.md
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		for _, h := range ingresses {
			w.restore(t)
			p := w.Set.PathStates.At(w.path(hostB, f, 0))
			// Whether a run falls into the jiffy of the run before is up to the machine, so the count
			// is put to its limit until one does.
			refused := false
			for round := uint64(peerRound + 1); !refused && round < peerRound+1000; round++ {
				request := peersRequest(0)
				request.round = round
				before := w.counters(t)
				was := *p
				p.RateCount = limit
				verdict, out := w.run(t, h, request.on(f, hostB, hostA, 0, 0), nil)
				d := w.counters(t).since(before)
				switch {
				case p.RateJiffy == was.RateJiffy:
					refused = true
					if verdict != h.drop || fmt.Sprint(d.reasons) != fmt.Sprint(map[maps.Reason]uint64{rProbeRate: 1}) || len(d.traffic) > 0 {
						t.Errorf("IPv%s %s: at the limit: verdict %d, counted %v %v", f, h.name, verdict, d.reasons, d.traffic)
					}
					if string(out) != string(request.on(f, hostB, hostA, 0, 0)) {
						t.Errorf("IPv%s %s: a refused request changed", f, h.name)
					}
				case verdict != h.redirect || len(d.reasons) > 0 || p.RateCount != 1:
					t.Errorf("IPv%s %s: in a new jiffy: verdict %d, counted %v, rate %d", f, h.name, verdict, d.reasons, p.RateCount)
				}
			}
			if !refused {
				t.Errorf("IPv%s %s: never two runs in one jiffy", f, h.name)
			}
		}
	}
}
