// SPDX-License-Identifier: Apache-2.0

package hostc

import (
	"encoding/binary"
	"math/big"
	"testing"

	"github.com/dchest/siphash"
	"pgregory.net/rapid"

	"github.com/plait-net/plait/maps"
)

func TestSipHashAgainstReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k0, k1 := rapid.Uint64().Draw(t, "k0"), rapid.Uint64().Draw(t, "k1")
		message := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "message")
		if got, want := SipHash(k0, k1, message), siphash.Hash(k0, k1, message); got != want {
			t.Fatalf("SipHash(%#x, %#x, %x) = %#x, want %#x", k0, k1, message, got, want)
		}
	})
}

// Vectors of the authors: 15 bytes from the paper's appendix A, 32 bytes from vectors_sip64 of the
// reference program (vectors.h in veorq/SipHash). Key and message count up from 00.
func TestSipHashPublishedVectors(t *testing.T) {
	var b [32]byte
	for i := range b {
		b[i] = byte(i)
	}
	k0, k1 := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	for n, want := range map[int]uint64{15: 0xa129ca6149be45e5, 32: 0x7127512f72f27cce} {
		if got := SipHash(k0, k1, b[:n]); got != want {
			t.Errorf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// slowSum is the sum of RFC 1071, section 1, over bytes as they lie in memory, without tricks:
// 16-bit words added as integers, reduced modulo 65,535. Zero and 65,535 are the same number.
func slowSum(b []byte) uint16 {
	sum := new(big.Int)
	for i := 0; i < len(b); i += 2 {
		sum.Add(sum, big.NewInt(int64(binary.LittleEndian.Uint16(b[i:]))))
	}
	return uint16(sum.Mod(sum, big.NewInt(0xffff)).Uint64())
}

// same tells whether two one's complement numbers are equal: 0 and 0xffff are.
func same(a, b uint16) bool { return a%0xffff == b%0xffff }

func bytesOf(words ...uint32) []byte {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// edgy draws words in which the ends of the range, where carries happen, are likely.
func edgy() *rapid.Generator[uint32] {
	return rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0, 1, 0xffff, 0x10000, 0xffff0000,
		0xfffffffe, 0xffffffff, 0x80000000}))
}

func TestChecksumSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w [4]uint32
		for i := range w {
			w[i] = edgy().Draw(t, "word")
		}
		if got, want := CsumFold(CsumWords4(w)), slowSum(bytesOf(w[:]...)); !same(got, want) {
			t.Fatalf("sum of %#x: %#x, want %#x", w, got, want)
		}
		if got, want := CsumFold(CsumAdd(w[0], w[1])), slowSum(bytesOf(w[0], w[1])); !same(got, want) {
			t.Fatalf("sum of %#x and %#x: %#x, want %#x", w[0], w[1], got, want)
		}
		if got := CsumFold64(uint64(w[0])<<32 | uint64(w[1])); got != CsumAdd(w[0], w[1]) {
			t.Fatalf("halves %#x and %#x fold to %#x", w[0], w[1], got)
		}
		if CsumAdd(w[0], w[1]) != CsumAdd(w[1], w[0]) {
			t.Fatalf("adding %#x and %#x depends on the order", w[0], w[1])
		}
		// A sum of something is never the zero that stands for nothing (RFC 768).
		if CsumFold(w[0]) == 0 && w[0] != 0 {
			t.Fatalf("%#x folds to zero", w[0])
		}
	})
}

// A packet's checksum is updated for changed words, and must then be the one that a sum over the
// changed packet gives.
func TestChecksumUpdate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		packet := make([]byte, 4*rapid.IntRange(2, 16).Draw(t, "words"))
		for i := 0; i < len(packet); i += 4 {
			binary.LittleEndian.PutUint32(packet[i:], edgy().Draw(t, "word"))
		}
		check := ^slowSum(packet)

		// Four words change at once, as addresses do, and one 16-bit word, as a hop limit does.
		var from, to [4]uint32
		at := 4 * rapid.IntRange(0, max(0, len(packet)/4-4)).Draw(t, "at")
		for i := range from {
			if at+4*i+4 > len(packet) {
				break
			}
			from[i] = binary.LittleEndian.Uint32(packet[at+4*i:])
			to[i] = edgy().Draw(t, "to")
			binary.LittleEndian.PutUint32(packet[at+4*i:], to[i])
		}
		diff := CsumAdd(CsumWords4(to), ^CsumWords4(from))
		half := 2 * rapid.IntRange(0, len(packet)/2-1).Draw(t, "half")
		old, now := binary.LittleEndian.Uint16(packet[half:]), uint16(edgy().Draw(t, "now"))
		binary.LittleEndian.PutUint16(packet[half:], now)
		diff = CsumAdd(diff, CsumWord(old, now))

		if got, want := CsumApply(check, diff), ^slowSum(packet); !same(got, want) {
			t.Fatalf("updated %#x, computed %#x", got, want)
		}
	})
}

func TestChecksumWithoutChangeStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		check, word := rapid.Uint16().Draw(t, "check"), rapid.Uint16().Draw(t, "word")
		if got := CsumApply(check, CsumWord(word, word)); !same(got, check) {
			t.Fatalf("%#x became %#x", check, got)
		}
	})
}

// secondOracle ranks the paths by their scores and takes the best usable one.
func secondOracle(bucket uint32, usable uint64) uint32 {
	best := -1
	for j := range maps.MaxPaths {
		if usable&(1<<j) == 0 {
			continue
		}
		if best < 0 || BucketScore(bucket, uint32(j))|1 > BucketScore(bucket, uint32(best))|1 {
			best = j
		}
	}
	return uint32(best)
}

func TestBucketSecond(t *testing.T) {
	for bucket := range uint32(maps.Buckets) {
		for usable := uint64(1); usable < 1<<maps.MaxPaths; usable++ {
			// All masks of the first eight paths, and a sample of the rest.
			if usable > 0xff && usable%251 != uint64(bucket)%251 {
				continue
			}
			got := BucketSecond(bucket, usable)
			if want := secondOracle(bucket, usable); got != want {
				t.Fatalf("bucket %d, usable %#x: %d, want %d", bucket, usable, got, want)
			}
			if usable>>got&1 == 0 {
				t.Fatalf("bucket %d, usable %#x: %d is not usable", bucket, usable, got)
			}
		}
	}
}

// When a path goes, only the buckets that were on it move; when it comes back, they return.
func TestBucketSecondMovesOnlyItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		usable := rapid.Uint64Range(1, 1<<maps.MaxPaths-1).Draw(t, "usable")
		gone := rapid.Uint32Range(0, maps.MaxPaths-1).Draw(t, "gone")
		left := usable &^ (1 << gone)
		if left == 0 {
			return
		}
		for bucket := range uint32(maps.Buckets) {
			before, after := BucketSecond(bucket, usable), BucketSecond(bucket, left)
			if before != gone && before != after {
				t.Fatalf("bucket %d moved from %d to %d when %d went", bucket, before, after, gone)
			}
		}
	})
}

// The buckets of a path that goes spread over all that are left, none of which gets twice its share.
func TestBucketSecondSpreads(t *testing.T) {
	for n := 2; n <= maps.MaxPaths; n++ {
		var count [maps.MaxPaths]int
		for bucket := range uint32(maps.Buckets) {
			count[BucketSecond(bucket, 1<<n-1)]++
		}
		for j := range n {
			if fair := float64(maps.Buckets) / float64(n); float64(count[j]) > 2*fair ||
				float64(count[j]) < fair/3 {
				t.Errorf("%d paths: path %d gets %d of %d buckets", n, j, count[j], maps.Buckets)
			}
		}
	}
}
