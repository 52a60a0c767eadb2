// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/plait-net/plait/maps"
)

// manyPaths is a world whose one group has as many paths as there can be.
type manyPaths struct {
	*world
	family maps.Family
	flows  []flow
}

// flow is a packet and the bucket in which the kernel's hash of it falls.
type flow struct {
	packet
	bucket uint8
}

const manyFirst = 8 // index of the first path

func manyLocators(f maps.Family, number int) ends {
	if f == v4 {
		return ends{
			netip.AddrFrom4([4]byte{10, 100, byte(number), 1}), netip.AddrFrom4([4]byte{10, 200, byte(number), 1}),
		}
	}
	a, b := [16]byte{0xfd, 100, byte(number), 15: 1}, [16]byte{0xfd, 200, byte(number), 15: 1}
	return ends{netip.AddrFrom16(a), netip.AddrFrom16(b)}
}

func newManyPaths(t *testing.T, f maps.Family) *manyPaths {
	t.Helper()
	w := newWorld(t, hostA)
	s := w.Set
	g := s.Groups.At(0)
	g.FirstPath, g.PathCount, g.Family = manyFirst, maps.MaxPaths, uint32(f)
	w.states[0] = maps.GroupState{Sent: 1, Active: 1, Caps: maps.CapMark, Fresh: 1<<maps.MaxPaths - 1, Up: 1<<maps.MaxPaths - 1}
	for n := range maps.MaxPaths {
		e := manyLocators(f, n)
		s.SetPath(manyFirst+uint32(n), maps.Path{
			Local: e.src, Remote: e.dst, Identity: hostA.identity[f], PeerIdentity: hostB.identity[f],
			NextHop: e.dst, Ifindex: 1, Uplink: uint8(n), Number: uint8(n),
		})
	}
	s.Settings.Uplinks = 1<<maps.MaxPaths - 1
	if err := s.SetIdentity(hostB.identity[f], 0); err != nil {
		t.Fatal(err)
	}
	m := &manyPaths{world: w, family: f}
	for port := range uint16(64) {
		p := packet{body: udp(40000+port, 53, nil), flow: uint32(port)}
		m.flows = append(m.flows, flow{p, m.bucketOf(t, p)})
	}
	return m
}

// bucketOf finds the bucket of a packet, one bit a run: the kernel's hash has a secret of its own.
func (m *manyPaths) bucketOf(t *testing.T, p packet) (bucket uint8) {
	t.Helper()
	m.restore(t)
	g := m.Set.Groups.At(0)
	for bit := range 8 {
		for i := range g.Bucket {
			g.Bucket[i] = uint8(i >> bit & 1)
		}
		verdict, out := m.run(t, egress, p.frame(identities(m.family, hostA, hostB), 64), nil)
		if verdict != egress.redirect {
			t.Fatalf("verdict %d", verdict)
		}
		for n := range uint8(2) {
			if slices.Equal(out, p.frame(manyLocators(m.family, int(n)), 192)) {
				bucket |= n << bit
			}
		}
	}
	return bucket
}

// situation is everything that the choice of a path depends on.
type situation struct {
	paths           int
	buckets         [maps.Buckets]uint8
	fresh, up       uint64
	uplinks         uint64
	noDevice, noHop uint64
}

func drawSituation(t *rapid.T) situation {
	// Masks with most bits set, with few, and anything between.
	mask := func(label string) uint64 {
		kind := rapid.SampledFrom([]string{"all", "all", "all", "most", "any", "one", "none"}).Draw(t, label+" kind")
		bits := rapid.Uint64Range(0, 1<<maps.MaxPaths-1).Draw(t, label)
		one := uint64(1) << rapid.IntRange(0, maps.MaxPaths-1).Draw(t, label+" bit")
		return map[string]uint64{"all": 1<<maps.MaxPaths - 1, "none": 0, "one": one, "most": 1<<maps.MaxPaths - 1 - one, "any": bits}[kind]
	}
	s := situation{paths: rapid.IntRange(1, maps.MaxPaths).Draw(t, "paths")}
	for i := range s.buckets {
		s.buckets[i] = uint8(rapid.IntRange(0, s.paths-1).Draw(t, "bucket"))
	}
	s.fresh, s.up, s.uplinks = mask("fresh"), mask("up"), mask("uplinks")
	none := uint64(1<<maps.MaxPaths - 1)
	s.noDevice, s.noHop = none&^mask("device"), none&^mask("next hop")
	return s
}

// choose says which path a bucket's flows take, or -1: the bucket's own if it is up and fresh, else
// the best of those that are, else of those fresh, else of those on which anything can be sent; the
// bucket's own if it is among them.
func (s situation) choose(bucket uint8) int {
	var sendable, fresh, best []int
	for n := range s.paths {
		bit := uint64(1) << n
		if s.uplinks&bit == 0 || s.noDevice&bit != 0 || s.noHop&bit != 0 {
			continue
		}
		sendable = append(sendable, n)
		if s.fresh&bit != 0 {
			fresh = append(fresh, n)
			if s.up&bit != 0 {
				best = append(best, n)
			}
		}
	}
	among := sendable
	for _, better := range [][]int{best, fresh} {
		if len(better) > 0 {
			among = better
			break
		}
	}
	if len(among) == 0 {
		return -1
	}
	if own := int(s.buckets[bucket]); slices.Contains(among, own) {
		return own
	}
	return slices.MaxFunc(among, func(a, b int) int {
		return int(int64(weight(bucket, a)) - int64(weight(bucket, b)))
	})
}

// weight is the rendezvous weight of a path for a bucket: a mix of both (the finalizer of
// MurmurHash3 over their golden-ratio product), at least 1.
func weight(bucket uint8, path int) uint32 {
	x := uint32((int(bucket)*maps.MaxPaths + path + 1) * 0x9e3779b1)
	x ^= x >> 15
	x *= 0x85ebca77
	x ^= x >> 13
	x *= 0xc2b2ae3d
	x ^= x >> 16
	return x | 1
}

// apply sets the maps to the situation.
func (m *manyPaths) apply(s situation) {
	g := m.Set.Groups.At(0)
	g.PathCount, g.Bucket = uint32(s.paths), s.buckets
	m.states[0].Fresh, m.states[0].Up = s.fresh, s.up
	m.Set.Settings.Uplinks = s.uplinks
	for n := range maps.MaxPaths {
		device, hop := 1, manyLocators(m.family, n).dst
		if s.noDevice>>n&1 != 0 {
			device = 0
		}
		if s.noHop>>n&1 != 0 {
			hop = netip.Addr{}
		}
		m.Set.SetPathLink(manyFirst+uint32(n), device, hop)
	}
}

// TestChoice: against the rule written down once more.
func TestChoice(t *testing.T) {
	for _, f := range families {
		t.Run(f.String(), func(t *testing.T) {
			m := newManyPaths(t, f)
			chosen := map[int]int{}
			thorough(t, func(rt *rapid.T) {
				s := drawSituation(rt)
				m.apply(s)
				for range 8 {
					fl := rapid.SampledFrom(m.flows).Draw(rt, "flow")
					number := s.choose(fl.bucket)
					chosen[number]++
					result := want{verdict: drop, reason: rNoPath, note: fmt.Sprintf("bucket %d in %+v", fl.bucket, s)}
					if number >= 0 {
						result.verdict, result.reason = redirect, 0
						result.frame = fl.frame(manyLocators(f, number), 192)
						result.tx, result.path = 1, manyFirst+number
						if number != int(s.buckets[fl.bucket]) {
							result.moved = 1
						}
					}
					m.check(rt, egress, fl.frame(identities(f, hostA, hostB), 64), result)
				}
			})
			t.Logf("packets by path: %v", chosen)
		})
	}
}

// TestChoiceMovesFewest: when one path falls, its buckets' flows move, to all others, and no other
// flow does; when it is back they are back.
func TestChoiceMovesFewest(t *testing.T) {
	for _, f := range families {
		m := newManyPaths(t, f)
		s := situation{paths: 4, fresh: 15, up: 15, uplinks: 15}
		for i := range s.buckets {
			s.buckets[i] = uint8(i % 4)
		}
		for _, fallen := range []int{-1, 2, -1, 0} {
			s.fresh = 15
			if fallen >= 0 {
				s.fresh &^= 1 << fallen
			}
			m.apply(s)
			to := map[int]bool{}
			for _, fl := range m.flows {
				own := int(fl.bucket % 4)
				number, moved := own, 0
				if own == fallen {
					number, moved = s.choose(fl.bucket), 1
					to[number] = true
				}
				m.check(t, egress, fl.frame(identities(f, hostA, hostB), 64), want{
					verdict: redirect, frame: fl.frame(manyLocators(f, number), 192),
					tx: 1, moved: moved, path: manyFirst + number,
				})
			}
			if fallen >= 0 && len(to) != 3 {
				t.Errorf("IPv%s: the flows of path %d moved to %v only", f, fallen, to)
			}
		}
	}
}

// TestNoPath: each reason for which nothing can be sent.
func TestNoPath(t *testing.T) {
	for _, f := range families {
		m := newManyPaths(t, f)
		const all = 1<<maps.MaxPaths - 1
		ok := situation{paths: 2, fresh: all, up: all, uplinks: all}
		frame := m.flows[0].frame(identities(f, hostA, hostB), 64)
		for name, s := range map[string]situation{
			"no uplink":                      {paths: 2, fresh: all, up: all},
			"no interface":                   {paths: 2, fresh: all, up: all, uplinks: all, noDevice: all},
			"no next hop":                    {paths: 2, fresh: all, up: all, uplinks: all, noHop: all},
			"each path lacks something else": {paths: 2, fresh: all, up: all, uplinks: all &^ 1, noHop: 2},
			"only paths of other groups":     {paths: 2, fresh: all, up: all, uplinks: all &^ 3},
		} {
			m.apply(s)
			m.check(t, egress, frame, want{verdict: drop, reason: rNoPath, note: name})
			// A uplink that comes back is used at once, whatever its paths' liveness.
			ok.fresh, ok.up = 0, 0
			m.apply(ok)
			m.check(t, egress, frame, want{
				verdict: redirect, frame: m.flows[0].frame(manyLocators(f, 0), 192), tx: 1, path: manyFirst, note: name,
			})
		}
	}
}
