// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/plait-net/plait/bpf"
	"github.com/plait-net/plait/maps"
)

// reflected is the reply of a to a request of b, as b receives it: with a's epoch and report.
func reflected(p probe, report uint16) probe {
	p.reply, p.report, p.reflectorEpoch = true, report, epochOf(hostA)
	p.state, p.flags = up, flagMark|p.flags&flagSample
	return p
}

// replyFrame is the frame that answers a request frame: reversed in every address.
func replyFrame(p probe, f maps.Family, number, slot int) []byte {
	out := p.on(f, hostA, hostB, number, slot)
	copy(out, macs[6:])
	copy(out[6:], macs[:6])
	return out
}

// bothHeard is the receive report when b was heard on both paths, in b's numbers.
const bothHeard = 1<<numPaths - 1

// requestAccepted is what a request of the peer's known epoch changes, its rate aside.
func requestAccepted(w *world, f maps.Family, number int, round uint64) func(*liveness) {
	return func(l *liveness) {
		l.groups[w.group(hostB, f)].PeerNewest = round
		p := &l.paths[w.path(hostB, f, number)]
		p.ReqNewest, p.Heard, p.HeardPeer = round, sentRound, round
		p.RateJiffy, p.RateCount = anyRate, 1
	}
}

// anyRate stands for the jiffy of the rate limit, which nobody knows beforehand.
const anyRate = 0xa11

// request checks a frame with what liveness must become, whatever the jiffy.
func (w *world) request(t *testing.T, h hook, frame []byte, want want) {
	t.Helper()
	after := want.live
	want.live = func(l *liveness) {
		if after != nil {
			after(l)
		}
		now := w.liveness()
		for i := range l.paths {
			if l.paths[i].RateJiffy == anyRate {
				l.paths[i].RateJiffy = now.paths[i].RateJiffy
			}
		}
	}
	w.check(t, h, frame, want)
}

// TestRequestReflected: a valid request comes back as the reply, on the wire as it should be, and is
// evidence that the peer is heard.
func TestRequestReflected(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		for number := range numPaths {
			for slot, id := range keyIDs {
				t.Run(fmt.Sprintf("IPv%s path %d key %d", f, number, id), func(t *testing.T) {
					p := peersRequest(number)
					p.keyID = byte(id)
					for _, h := range ingresses {
						w.request(t, h, p.on(f, hostB, hostA, number, slot), want{
							verdict: redirect, frame: replyFrame(reflected(p, bothHeard), f, number, slot),
							live:     requestAccepted(w, f, number, p.round),
							path:     int(w.path(hostB, f, number)),
							requests: 1,
						})
					}
				})
			}
		}
	}
}

// TestRequestVariations: what a request may say, and what the reply makes of it.
func TestRequestVariations(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		path := w.path(hostB, f, 0)
		check := func(name string, p probe, reply probe, more func(*liveness)) {
			t.Helper()
			t.Run(fmt.Sprintf("IPv%s %s", f, name), func(t *testing.T) {
				for _, h := range ingresses {
					w.request(t, h, p.on(f, hostB, hostA, 0, 0), want{
						verdict: redirect, frame: replyFrame(reply, f, 0, 0), path: int(path), requests: 1,
						live: func(l *liveness) {
							requestAccepted(w, f, 0, p.round)(l)
							if more != nil {
								more(l)
							}
						},
					})
				}
			})
		}
		for name, change := range map[string]func(*probe){
			"path down":                  func(p *probe) { p.state = down },
			"path administratively":      func(p *probe) { p.state = adminDown },
			"asks for a time stamp":      func(p *probe) { p.flags |= flagSample },
			"without the mark":           func(p *probe) { p.flags = 0 },
			"slow":                       func(p *probe) { p.intervals = [3]uint32{1000000, 1, 2} },
			"a window of 255":            func(p *probe) { p.window = 255 },
			"many rounds later":          func(p *probe) { p.round = 1 << 60 },
			"a round above the sign bit": func(p *probe) { p.round = 1 << 63 },
		} {
			p := peersRequest(0)
			change(&p)
			report := uint16(bothHeard)
			if p.round > peerRound+1 {
				report = 1 << p.pair // the other path has heard nothing for that long
			}
			check(name, p, reflected(p, report), nil)
		}
		// The peer's number of a path is learned from its requests.
		p := peersRequest(0)
		p.pair = 15
		check("another number", p, reflected(p, 1<<15|1<<peersNumber(1)), func(l *liveness) { l.paths[path].PeerPair = 15 })

		// A report covers the window that the request names, in the peer's rounds.
		other := &w.paths[w.path(hostB, f, 1)]
		for window, heard := range map[uint64]bool{1: false, 2: true, 3: true} {
			p := peersRequest(0)
			p.round, p.window = peerRound+1, byte(window)
			report := uint16(1 << peersNumber(0))
			if heard {
				report |= 1 << peersNumber(1)
			}
			check(fmt.Sprintf("window %d", window), p, reflected(p, report), nil)
		}
		was := *other
		other.HeardPeer = 0
		p = peersRequest(0)
		check("other path never heard", p, reflected(p, 1<<peersNumber(0)), nil)
		*other = was

		// The mark is announced by the first authenticated request that says so.
		state := &w.states[w.group(hostB, f)]
		state.Caps = 0
		p = peersRequest(0)
		check("announces the mark", p, reflected(p, bothHeard), func(l *liveness) { l.groups[w.group(hostB, f)].Caps = maps.CapMark })
		p.flags = 0
		check("does not announce", p, reflected(p, bothHeard), nil)
		state.Caps = maps.CapMark

		// A drained uplink answers, and says so.
		w.Set.Settings.Drained = 1
		p = peersRequest(0)
		reply := reflected(p, bothHeard)
		reply.state = adminDown
		check("drained", p, reply, nil)
		w.Set.Settings.Drained = 2
		check("another uplink drained", p, reflected(p, bothHeard), nil)
		w.Set.Settings.Drained = 0
	}
}

// replyRecorded is what a reply changes.
func replyRecorded(w *world, f maps.Family, number int, round uint64) func(*liveness) {
	return func(l *liveness) {
		g := &l.groups[w.group(hostB, f)]
		p := &l.paths[w.path(hostB, f, number)]
		p.Newest, p.Heard, p.HeardPeer = round, sentRound, peerRound
		p.Replies++
		g.Newest = max(g.Newest, round)
	}
}

// TestReplyRecorded: a valid reply is consumed, and the round is the path's newest.
func TestReplyRecorded(t *testing.T) {
	w := newWorld(t, hostA, hostB, hostC)
	for _, f := range families {
		for number := range numPaths {
			for slot, id := range keyIDs {
				for _, state := range []byte{up, adminDown} {
					t.Run(fmt.Sprintf("IPv%s path %d key %d state %#x", f, number, id, state), func(t *testing.T) {
						p := peersReply(number)
						p.keyID, p.round, p.state = byte(id), newestRound+1, state
						w.paths[w.path(hostB, f, number)].Heard = 5
						w.paths[w.path(hostB, f, number)].HeardPeer = 7
						for _, h := range ingresses {
							w.check(t, h, p.on(f, hostB, hostA, number, slot), want{
								verdict: drop, live: replyRecorded(w, f, number, p.round),
							})
						}
					})
				}
			}
		}
	}
}

// TestReplySetsState: the first reply makes a path usable, the peer's epoch known, and the mark
// announced; a time stamp is taken where asked for. The rule itself has its own tests.
func TestReplySetsState(t *testing.T) {
	for _, f := range families {
		for _, h := range ingresses {
			t.Run(fmt.Sprintf("IPv%s %s", f, h.name), func(t *testing.T) {
				w := newWorld(t, hostA, hostB)
				group, path := w.group(hostB, f), w.path(hostB, f, 0)
				w.states[group] = maps.GroupState{Sent: 1}
				for n := range uint32(numPaths) {
					w.paths[path+n] = maps.PathState{Multiplier: 3, MinMultiplier: 3}
				}
				p := peersReply(0)
				p.round, p.flags = 1, flagMark|flagSample
				w.restore(t)
				verdict, _ := w.run(t, h, p.on(f, hostB, hostA, 0, 0), nil)
				if verdict != h.drop {
					t.Errorf("verdict %d", verdict)
				}
				g := *w.Set.GroupStates.At(group)
				if g.Newest != 1 || g.Fresh != 1 || g.Up != 1 || g.PeerEpoch != epochOf(hostB) || g.Caps != maps.CapMark {
					t.Errorf("group %+v", g)
				}
				state := *w.Set.PathStates.At(path)
				if state.SampleRound != 1 || state.SampleAt == 0 || state.Newest != 1 || state.Replies != 1 || state.Heard != 1 {
					t.Errorf("path %+v", state)
				}
				var kinds []uint32
				for _, ev := range w.drain(t) {
					if ev.Group != group || ev.Path != path || ev.TimeNs == 0 {
						t.Errorf("event %+v", ev)
					}
					kinds = append(kinds, ev.Kind)
				}
				if fmt.Sprint(kinds) != fmt.Sprint([]uint32{maps.EventPeerEpoch, maps.EventFirst}) {
					t.Errorf("events %v", kinds)
				}
			})
		}
	}
}

// TestReplyOfNewBoot: a reply that answers our round and names another boot epoch of the peer: its
// old rounds mean nothing any more.
func TestReplyOfNewBoot(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		for _, h := range ingresses {
			p := peersReply(0)
			p.round, p.reflectorEpoch = newestRound+1, epochOf(hostS)
			group, path := w.group(hostB, f), w.path(hostB, f, 0)
			w.check(t, h, p.on(f, hostB, hostA, 0, 0), want{
				verdict: drop,
				live: func(l *liveness) {
					replyRecorded(w, f, 0, p.round)(l)
					l.groups[group].PeerEpoch, l.groups[group].PeerNewest = epochOf(hostS), 0
					for n := range uint32(numPaths) {
						l.paths[path+n].ReqNewest, l.paths[path+n].HeardPeer = 0, 0
					}
				},
				events: []maps.Event{{
					Kind: maps.EventPeerEpoch, Group: group, Path: path, Newest: newestRound, Multiplier: 3,
				}},
			})
		}
	}
}

// TestProbeSent: the agent's own requests leave by the path whose locators they carry, as they are.
func TestProbeSent(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	for _, f := range families {
		for number := range numPaths {
			request := peersRequest(number).on(f, hostA, hostB, number, 0)
			w.check(t, egress, request, want{verdict: redirect})

			refused := func(name string, frame []byte, reason maps.Reason) {
				t.Helper()
				w.check(t, egress, frame, want{verdict: drop, reason: reason, note: name})
			}
			payload := peersRequest(number).bytes(1, 2)
			e := locators(f, hostA, hostB, number)
			request254 := packet{body: udp(probePorts(false, payload)), tos: 0xc0}.frame(e, 254)
			refused("a hop limit of 254", request254, rUnknownPeer)
			refused("a reply", probeFrame(e, true, payload), rUnknownPeer)
			refused("another port", packet{body: udp(maps.ProbePort, 7785, payload)}.frame(e, 255), rUnknownPeer)
			refused("TCP", packet{body: tcp(maps.ProbePort, maps.SBFDPort, nil, payload)}.frame(e, 255), rUnknownPeer)
			refused("from the peer", probeFrame(e.reversed(), false, payload), rUnknownPeer)
			refused("to a stranger", probeFrame(ends{e.src, other(f)}, false, payload), rUnknownPeer)
			fragment := packet{body: udp(probePorts(false, payload)), more: true}
			if f == v6 {
				fragment.exts = []ext{fragment6(0, true)}
			}
			refused("a fragment", fragment.frame(e, 255), rUnknownPeer)
			refused("a header", request[:packet{}.l4(f)+4], rUnknownPeer)

			index := w.path(hostB, f, number)
			p := w.Set.Path(index)
			for name, change := range map[string]func(){
				"no interface":         func() { w.Set.SetPathLink(index, 0, p.NextHop) },
				"no next hop":          func() { w.Set.SetPathLink(index, 1, netip.Addr{}) },
				"an uplink not usable": func() { w.Set.Settings.Uplinks &^= 1 << number },
			} {
				change()
				refused(name, request, rNoPath)
				w.Set.SetPathLink(index, 1, p.NextHop)
				w.Set.Settings.Uplinks = 1<<numPaths - 1
			}
			w.check(t, egress, request, want{verdict: redirect})
		}
	}
}

// TestProbeLayout: the bytes of a probe lie where the programs' struct has them.
func TestProbeLayout(t *testing.T) {
	p := probe{
		reply: true, pair: 5, state: up, flags: flagMark, keyID: 9, window: 3, report: 0x1234,
		epoch: 0x1111111111111111, round: 0x0102030405060708, reflectorEpoch: 0x2222222222222222,
		intervals: [3]uint32{1, 2, 3},
	}
	var s bpf.EgressProbe
	b := p.bytes(1, 2)
	if n, err := binary.Decode(b, binary.LittleEndian, &s); err != nil || n != len(b) {
		t.Fatal(n, err)
	}
	if s.Vers != 0x20 || s.State != 0xc4 || s.Len != 64 || s.AuthType != 250 || s.AuthLen != 40 || s.KeyId != 9 ||
		s.Flags != 0xc3 || s.VersionPair != 0x15 || s.Window != 3 || s.Report != 0x3412 ||
		s.Epoch != p.epoch || s.Round != 0x0807060504030201 || s.ReflectorEpoch != p.reflectorEpoch {
		t.Errorf("%+v", s)
	}
}
