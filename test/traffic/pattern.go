// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"time"
)

// Every packet and every record begins with this header, in network byte order, and is filled with a pattern that follows
// from it: a receiver can check every byte, and bytes of another record at the right place are wrong bytes.
//
//	0  magic, which tells streams, answers and path-finding bursts apart
//	4  stream, drawn at random
//	8  sequence number, from 0
//	16 CLOCK_MONOTONIC at sending, ns
//	24 pattern
const headerSize = 24

// MinSize is the smallest size of a packet or record, in bytes: a header and one word of pattern.
const MinSize = headerSize + 8

type magic uint32

const (
	magicData   magic = 0x706c6431 // part of the stream
	magicAnswer magic = 0x706c6132 // the receiver's answer
	magicBurst  magic = 0x706c6233 // sent to find the path, not part of the stream
)

type header struct {
	magic  magic
	stream uint32
	seq    uint64
	sent   time.Duration
}

// seed mixes what the pattern depends on (SplitMix64's finaliser, Steele et al., OOPSLA 2014).
func (h header) seed() uint64 {
	x := h.seq + uint64(h.stream)<<32 + uint64(h.sent)*0x9e3779b97f4a7c15 + uint64(h.magic)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// step is added from word to word, odd so that the words of a record all differ.
const step = 0x9e3779b97f4a7c15

// fill writes h and its pattern over all of b, which has at least MinSize bytes.
func fill(b []byte, h header) {
	be := binary.BigEndian
	be.PutUint32(b[0:], uint32(h.magic))
	be.PutUint32(b[4:], h.stream)
	be.PutUint64(b[8:], h.seq)
	be.PutUint64(b[16:], uint64(h.sent))
	w := h.seed()
	p := b[headerSize:]
	for len(p) >= 8 {
		be.PutUint64(p, w)
		p = p[8:]
		w += step
	}
	for i := range p {
		p[i] = byte(w >> (8 * i))
	}
}

// check reads b's header and says whether every byte that follows it is as fill left it.
func check(b []byte) (h header, ok bool) {
	if len(b) < MinSize {
		return header{}, false
	}
	be := binary.BigEndian
	h = header{
		magic:  magic(be.Uint32(b[0:])),
		stream: be.Uint32(b[4:]),
		seq:    be.Uint64(b[8:]),
		sent:   time.Duration(be.Uint64(b[16:])),
	}
	w := h.seed()
	p := b[headerSize:]
	for len(p) >= 8 {
		if be.Uint64(p) != w {
			return h, false
		}
		p = p[8:]
		w += step
	}
	for i := range p {
		if p[i] != byte(w>>(8*i)) {
			return h, false
		}
	}
	return h, true
}
