// SPDX-License-Identifier: Apache-2.0

// Package probe sends plait's liveness probes: S-BFD packets (RFC 7880, RFC 7881) with an
// authentication section of plait's own. docs/wire.md describes every byte. Replies never reach user
// space; the ingress programs record them.
package probe

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/dchest/siphash"

	"github.com/plait-net/plait/maps"
)

// Offsets and values of the wire format; struct probe in headers/probe.h is the other half.
const (
	etherLen = 14
	udpLen   = 8
	bfdLen   = 64

	offVers       = 0
	offState      = 1
	offMult       = 2
	offLen        = 3
	offMyDiscr    = 4
	offYourDiscr  = 8
	offMinTx      = 12
	offAuth       = 24
	offKeyID      = 26
	offFlags      = 27
	offVersPair   = 28
	offWindow     = 29
	offEpoch      = 32
	offRound      = 40
	offReflector  = 48
	offTag        = 56
	version       = 1
	authType      = 250
	authLen       = 40
	discriminator = 0x504c4149

	flagMark   = 0x02
	flagSample = 0x04
	stateUp    = 0xc0
	stateDown  = 0x40
	bitAuth    = 0x04
	bitDemand  = 0x02

	dscpCS6 = 48 << 2 // as in the TOS or traffic class byte (RFC 2474)
	ttl     = 255
)

// Key is a SipHash key.
type Key struct{ K0, K1 uint64 }

// frame is one path's request, complete from the Ethernet header on: what changes from round to
// round is patched in place.
type frame struct {
	buf  []byte
	bfd  []byte // within buf
	udp  []byte // within buf
	base uint32 // sum of the pseudo-header, the ports and the length
	key  Key

	covered [31]byte // scratch: the message under the tag
}

// newFrame builds the request of path number `number` from local to remote.
func newFrame(local, remote netip.Addr, number uint8, keyID uint8, key Key, epoch uint64, intervalMicros uint32) frame {
	ipLen := 20
	if local.Is6() {
		ipLen = 40
	}
	buf := make([]byte, etherLen+ipLen+udpLen+bfdLen)
	f := frame{buf: buf, key: key}
	ip := buf[etherLen : etherLen+ipLen]
	f.udp = buf[etherLen+ipLen : etherLen+ipLen+udpLen]
	f.bfd = buf[etherLen+ipLen+udpLen:]

	// The kernel replaces the Ethernet addresses on the way out of the uplink.
	copy(buf[0:], []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	src, dst := local.AsSlice(), remote.AsSlice()
	if local.Is4() {
		binary.BigEndian.PutUint16(buf[12:], 0x0800)
		ip[0] = 0x45
		ip[1] = dscpCS6
		binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+udpLen+bfdLen))
		ip[6] = 0x40 // don't fragment
		ip[8] = ttl
		ip[9] = 17
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], ^fold(sumBytes(0, ip)))
	} else {
		binary.BigEndian.PutUint16(buf[12:], 0x86dd)
		binary.BigEndian.PutUint32(ip[0:], 6<<28|dscpCS6<<20)
		binary.BigEndian.PutUint16(ip[4:], udpLen+bfdLen)
		ip[6] = 17
		ip[7] = ttl
		copy(ip[8:], src)
		copy(ip[24:], dst)
	}
	binary.BigEndian.PutUint16(f.udp[0:], maps.ProbePort)
	binary.BigEndian.PutUint16(f.udp[2:], maps.SBFDPort)
	binary.BigEndian.PutUint16(f.udp[4:], udpLen+bfdLen)
	f.base = sumBytes(17+udpLen+bfdLen, src)
	f.base = sumBytes(f.base, dst)
	f.base = sumBytes(f.base, f.udp)

	b := f.bfd
	b[offVers] = 1 << 5
	b[offLen] = bfdLen
	binary.BigEndian.PutUint32(b[offMyDiscr:], uint32(number)+1)
	binary.BigEndian.PutUint32(b[offYourDiscr:], discriminator)
	binary.BigEndian.PutUint32(b[offMinTx:], intervalMicros)
	b[offAuth] = authType
	b[offAuth+1] = authLen
	b[offKeyID] = keyID
	b[offVersPair] = version<<4 | number&15
	binary.NativeEndian.PutUint64(b[offEpoch:], epoch) // opaque wire bytes
	return f
}

// Round is what a request says beside its path.
type Round struct {
	Number uint64
	Window uint8 // rounds that the peer's receive report shall cover
	Fresh  bool  // the path answers
	Sample bool  // the reply's arrival is to be noted
}

// AppendRequest appends the signed request of one round on path p, complete from its Ethernet header on as the Sender
// sends it on plait0, and returns the extended buffer. epoch is maps.Settings.Epoch, interval the time between rounds.
func AppendRequest(b []byte, p Path, epoch uint64, interval time.Duration, r Round) []byte {
	f := newFrame(p.Local, p.Remote, p.Number, p.KeyID, p.Key, epoch, uint32(interval.Microseconds()))
	f.patch(r.Number, r.Window, r.Fresh, r.Sample)
	return append(b, f.buf...)
}

// patch makes the frame the request of one round.
func (f *frame) patch(round uint64, window uint8, fresh, sample bool) {
	b := f.bfd
	state := byte(stateDown)
	if fresh {
		state = stateUp
	}
	flags := state | flagMark
	if sample {
		flags |= flagSample
	}
	b[offState] = state | bitAuth | bitDemand
	b[offMult] = window
	b[offWindow] = window
	b[offFlags] = flags
	binary.BigEndian.PutUint64(b[offRound:], round)
	// Epochs, round, and what lies between the authentication type and the first epoch.
	m := append(f.covered[:0], b[offEpoch:offEpoch+8]...)
	m = append(m, b[offReflector:offReflector+8]...)
	m = append(m, b[offRound:offRound+8]...)
	m = append(m, b[offAuth+1:offEpoch]...)
	binary.LittleEndian.PutUint64(b[offTag:], siphash.Hash(f.key.K0, f.key.K1, m))
	sum := ^fold(sumBytes(f.base, b))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(f.udp[6:], sum)
}

// sumBytes adds big-endian 16-bit words (RFC 1071); b has even length.
func sumBytes(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
