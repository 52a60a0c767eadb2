// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/dchest/siphash"

	"github.com/plait-net/plait/maps"
)

// keyIDs are the two live keys of every path.
var keyIDs = [2]uint32{7, 200}

// sipKey is the key under which `from` signs what it sends to `to` on a path, as two words.
func sipKey(from, to host, f maps.Family, number, slot int) (k0, k1 uint64) {
	word := func(i int) uint64 {
		h := fnv.New64a()
		fmt.Fprint(h, from.locator[f][number], to.locator[f][number], slot, i)
		return h.Sum64()
	}
	return word(0), word(1)
}

func (w *world) keys(peer host, f maps.Family, number int) (k maps.PathKeys) {
	for slot := range keyIDs {
		k.Id[slot] = keyIDs[slot]
		k.Tx[slot].K0, k.Tx[slot].K1 = sipKey(w.me, peer, f, number, slot)
		k.Rx[slot].K0, k.Rx[slot].K1 = sipKey(peer, w.me, f, number, slot)
	}
	return k
}

// States of BFD in the upper two bits, and flags of a probe; docs/wire.md.
const (
	adminDown = 0x00
	down      = 0x40
	up        = 0xc0

	flagReply  = 0x01
	flagMark   = 0x02
	flagSample = 0x04
)

// probe is the fields of a probe that vary; docs/wire.md.
type probe struct {
	reply          bool
	pair           byte // the prober's number of the path
	state          byte
	flags          byte // beyond direction and state
	keyID          byte
	window         byte
	report         uint16
	epoch          uint64 // wire bytes
	round          uint64
	reflectorEpoch uint64 // wire bytes
	intervals      [3]uint32
}

// bytes builds the UDP payload, signed.
func (p probe) bytes(k0, k1 uint64) []byte {
	var b []byte
	be := binary.BigEndian
	b = append(b, 0x20, p.state|0x04, p.window, 64)
	const plai = 0x504c4149
	if p.reply {
		b = be.AppendUint32(b, plai)
		b = be.AppendUint32(b, uint32(p.pair)+1)
	} else {
		b[1] |= 0x02
		b = be.AppendUint32(b, uint32(p.pair)+1)
		b = be.AppendUint32(b, plai)
	}
	for _, i := range p.intervals {
		b = be.AppendUint32(b, i)
	}
	flags := p.state | p.flags
	if p.reply {
		flags |= flagReply
	}
	b = append(b, 250, 40, p.keyID, flags, 1<<4|p.pair, p.window)
	b = be.AppendUint16(b, p.report)
	b = binary.LittleEndian.AppendUint64(b, p.epoch)
	b = be.AppendUint64(b, p.round)
	b = binary.LittleEndian.AppendUint64(b, p.reflectorEpoch)
	return binary.LittleEndian.AppendUint64(b, siphash.Hash(k0, k1, slices.Concat(b[32:40], b[48:56], b[40:48], b[25:32])))
}

// tag is SipHash-2-4 over both epochs, the round, and what lies between the authentication type and
// the first epoch.
func tag(k0, k1 uint64, b []byte) uint64 {
	return siphash.Hash(k0, k1, slices.Concat(b[32:40], b[48:56], b[40:48], b[25:32]))
}

// on builds the frame of a probe from one host to another on one of their paths, as its sender
// sends it: signed with the key of the slot.
func (p probe) on(f maps.Family, from, to host, number, slot int) []byte {
	return probeFrame(locators(f, from, to, number), p.reply, p.bytes(sipKey(from, to, f, number, slot)))
}

// probeFrame wraps a probe.
func probeFrame(e ends, reply bool, payload []byte) []byte {
	return packet{body: udp(probePorts(reply, payload)), tos: 0xc0}.frame(e, 255)
}

func probePorts(reply bool, payload []byte) (src, dst uint16, data []byte) {
	if reply {
		return maps.SBFDPort, maps.ProbePort, payload
	}
	return maps.ProbePort, maps.SBFDPort, payload
}

// peersRequest is the next request of b to a on a path; peersReply b's reply to a's round.
func peersRequest(number int) probe {
	return probe{
		pair: byte(peersNumber(number)), state: up, flags: flagMark, keyID: byte(keyIDs[0]), window: 3,
		epoch: epochOf(hostB), round: peerRound + 1, intervals: [3]uint32{1000, 0, 0},
	}
}

func peersReply(number int) probe {
	return probe{
		reply: true, pair: byte(number), state: up, flags: flagMark, keyID: byte(keyIDs[0]), window: 3,
		report: 1<<numPaths - 1, epoch: epochOf(hostA), round: sentRound, reflectorEpoch: epochOf(hostB),
		intervals: [3]uint32{1000, 0, 0},
	}
}
