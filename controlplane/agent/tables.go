// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/plait-net/plait/controlplane/buckets"
	"github.com/plait-net/plait/maps"
)

// group is a peer in one family as it is in the maps.
type group struct {
	want  wantGroup
	index uint32 // of group and group state
	first uint32 // of its paths

	runtime groupRuntime
	paths   []pathRuntime
}

// tables brings groups into the maps. A group whose paths stay the same is left where it is, with
// its liveness; otherwise the new one is built aside and published by its identity, so that no
// packet meets a half-written group.
type tables struct {
	set        *maps.Set
	multiplier uint32
	keys       func(peer int, local, remote netip.Addr) maps.PathKeys
	groups     []*group // in use
}

// apply makes the maps hold exactly the wanted groups. It reports whether anything moved, so that
// the sender must be told.
func (t *tables) apply(want []wantGroup) (changed bool, err error) {
	identities, err := t.set.Identities()
	if err != nil {
		return false, fmt.Errorf("reading identities: %w", err)
	}
	pairs, err := t.set.Pairs()
	if err != nil {
		return false, fmt.Errorf("reading pairs: %w", err)
	}
	known := map[uint32]*group{}
	for _, g := range t.groups {
		known[g.index] = g
	}
	used := newUsage(t.set, identities)
	var groups []*group
	var errs []error
	keepIDs := map[netip.Addr]bool{}
	keepPairs := map[maps.Pair]bool{}
	for _, w := range want {
		keepIDs[w.identity] = true
		for _, p := range w.paths {
			keepPairs[maps.Pair{Local: p.local, Remote: p.remote}] = true
		}
		index, exists := identities[w.identity]
		if exists && t.same(index, w) {
			g := known[index]
			if g == nil { // an earlier agent's
				g = t.adopt(index, w)
				changed = true
				if err := t.setKeys(g); err != nil {
					return changed, err
				}
				for i, p := range w.paths { // in case that agent died between the two
					if err := t.set.SetPair(p.local, p.remote, g.first+uint32(i)); err != nil {
						return changed, err
					}
				}
			}
			if t.relink(g, w) {
				changed = true
			}
			groups = append(groups, g)
			continue
		}
		changed = true
		var old *maps.Group
		if exists {
			old = t.set.Groups.At(index)
		}
		g, err := t.build(w, used, old, index)
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", w.identity, err))
			if old := known[index]; exists && old != nil { // it stays as it was
				groups = append(groups, old)
				for _, p := range old.want.paths {
					keepPairs[maps.Pair{Local: p.local, Remote: p.remote}] = true
				}
			}
			continue
		}
		groups = append(groups, g)
	}
	for id := range identities {
		if !keepIDs[id] {
			changed = true
			errs = append(errs, t.set.DeleteIdentity(id))
		}
	}
	for p := range pairs {
		if !keepPairs[p] {
			errs = append(errs, t.set.DeletePair(p.Local, p.Remote))
		}
	}
	t.groups = groups
	for _, g := range groups {
		t.rebalance(g)
	}
	return changed, errors.Join(errs...)
}

// same says whether group index holds exactly the wanted paths, in order.
func (t *tables) same(index uint32, w wantGroup) bool {
	g := t.set.Groups.At(index)
	if int(g.PathCount) != len(w.paths) {
		return false
	}
	for i, p := range w.paths {
		if t.id(g.FirstPath+uint32(i)) != p.pathID {
			return false
		}
	}
	return true
}

func (t *tables) id(path uint32) pathID {
	p := t.set.Path(path)
	return pathID{p.Local, p.Remote, p.Identity, p.PeerIdentity, p.Uplink}
}

// adopt takes a group over from the maps.
func (t *tables) adopt(index uint32, w wantGroup) *group {
	g := &group{want: w, index: index, first: t.set.Groups.At(index).FirstPath}
	g.paths = make([]pathRuntime, len(w.paths))
	for i := range w.paths {
		ps := t.set.PathStates.At(g.first + uint32(i))
		t.setMultiplier(ps)
		g.paths[i].startLoss(ps)
	}
	return g
}

// setMultiplier applies the configured multiplier to a path that may have learned a higher one.
func (t *tables) setMultiplier(ps *maps.PathState) {
	atomic.StoreUint32(&ps.MinMultiplier, t.multiplier)
	for {
		m := atomic.LoadUint32(&ps.Multiplier)
		if m >= t.multiplier || atomic.CompareAndSwapUint32(&ps.Multiplier, m, t.multiplier) {
			return
		}
	}
}

// relink follows the host: interfaces and next hops change under paths that stay. It reports whether
// the sender must know.
func (t *tables) relink(g *group, w wantGroup) (changed bool) {
	for i, p := range w.paths {
		at := g.first + uint32(i)
		if now := t.set.Path(at); now.Ifindex != p.ifindex || now.NextHop != p.nextHop {
			t.set.SetPathLink(at, p.ifindex, p.nextHop)
		}
		changed = changed || g.want.paths[i].sendable() != p.sendable()
	}
	g.want = w
	return changed
}

// build makes a new group aside, with the liveness of the paths that it shares with the old one, and
// publishes it.
func (t *tables) build(w wantGroup, used *usage, old *maps.Group, oldIndex uint32) (*group, error) {
	index, first, err := used.allocate(uint32(len(w.paths)))
	if err != nil {
		return nil, err
	}
	g := &group{want: w, index: index, first: first, paths: make([]pathRuntime, len(w.paths))}
	oldPaths := map[pathID]uint32{}
	if old != nil {
		for i := range old.PathCount {
			oldPaths[t.id(old.FirstPath+i)] = i
		}
	}
	// Rounds grow for as long as the epoch lasts, also towards a peer that was listed before: it remembers
	// ours. Microseconds always outrun them, at one a millisecond.
	gs := maps.GroupState{Sent: uint64(monotonic().Microseconds())}
	if old != nil {
		gs = loadGroupState(t.set.GroupStates.At(oldIndex))
	}
	fresh, up := gs.Fresh, gs.Up
	gs.Fresh, gs.Up = 0, 0
	for i, p := range w.paths {
		at := first + uint32(i)
		ps := maps.PathState{Multiplier: t.multiplier, MinMultiplier: t.multiplier}
		if n, ok := oldPaths[p.pathID]; ok {
			ps = *t.set.PathStates.At(old.FirstPath + n)
			gs.Fresh |= fresh >> n & 1 << i
			gs.Up |= up >> n & 1 << i
		}
		*t.set.PathStates.At(at) = ps
		t.setMultiplier(t.set.PathStates.At(at))
		g.paths[i].startLoss(&ps)
		t.set.SetPath(at, maps.Path{
			Local: p.local, Remote: p.remote, Identity: p.identity, PeerIdentity: p.peerIdentity,
			NextHop: p.nextHop, Ifindex: p.ifindex, Group: index, Uplink: p.uplink, Number: uint8(i),
		})
		if err := t.set.ResetTraffic(at); err != nil {
			return nil, err
		}
	}
	if err := t.setKeys(g); err != nil {
		return nil, err
	}
	*t.set.GroupStates.At(index) = gs
	*t.set.Groups.At(index) = maps.Group{
		FirstPath: first, PathCount: uint32(len(w.paths)), Peer: uint32(w.peer), Family: uint32(w.family),
	}
	t.rebalance(g)
	if err := t.set.SetIdentity(w.identity, index); err != nil {
		return nil, fmt.Errorf("publishing the identity: %w", err)
	}
	for i, p := range w.paths {
		if err := t.set.SetPair(p.local, p.remote, first+uint32(i)); err != nil {
			return nil, fmt.Errorf("publishing the pair %s, %s: %w", p.local, p.remote, err)
		}
	}
	return g, nil
}

func (t *tables) setKeys(g *group) error {
	for i, p := range g.want.paths {
		if err := t.set.SetKeys(g.first+uint32(i), t.keys(g.want.peer, p.local, p.remote)); err != nil {
			return fmt.Errorf("storing keys: %w", err)
		}
	}
	return nil
}

// rebalance gives the buckets to the paths by weight. A path that has never answered gets none
// while another has; a bucket is one byte, so a reader sees the old or the new path.
func (t *tables) rebalance(g *group) {
	weights := make([]uint32, len(g.paths))
	reached := false
	for i, p := range g.want.paths {
		if atomic.LoadUint64(&t.set.PathStates.At(g.first+uint32(i)).Newest) != 0 {
			weights[i] = p.weight
			reached = true
		}
	}
	if !reached {
		for i, p := range g.want.paths {
			weights[i] = p.weight
		}
	}
	m := t.set.Groups.At(g.index)
	for i, n := range buckets.Assign(m.Bucket, weights) {
		if m.Bucket[i] != n {
			m.Bucket[i] = n
		}
	}
}

func loadGroupState(s *maps.GroupState) maps.GroupState {
	return maps.GroupState{
		Sent: atomic.LoadUint64(&s.Sent), Newest: atomic.LoadUint64(&s.Newest),
		Fresh: atomic.LoadUint64(&s.Fresh), Up: atomic.LoadUint64(&s.Up),
		Active: atomic.LoadUint64(&s.Active), PeerEpoch: atomic.LoadUint64(&s.PeerEpoch),
		PeerNewest: atomic.LoadUint64(&s.PeerNewest), Caps: atomic.LoadUint32(&s.Caps),
	}
}

// usage knows which indices are in use. What is given up in one pass is not used again in the same.
type usage struct {
	groups, paths []bool
}

func newUsage(set *maps.Set, identities map[netip.Addr]uint32) *usage {
	size := set.Sizes()
	u := &usage{groups: make([]bool, size.Groups), paths: make([]bool, size.Paths)}
	for _, index := range identities {
		u.groups[index] = true
		g := set.Groups.At(index)
		for i := range g.PathCount {
			if at := g.FirstPath + i; at < size.Paths {
				u.paths[at] = true
			}
		}
	}
	return u
}

// allocate finds a free group and a free run of n paths.
func (u *usage) allocate(n uint32) (group, first uint32, err error) {
	group = uint32(len(u.groups))
	for i, used := range u.groups {
		if !used {
			group = uint32(i)
			break
		}
	}
	run := uint32(0)
	for i, used := range u.paths {
		if used {
			run = 0
			continue
		}
		if run++; run == n {
			first = uint32(i) - n + 1
			break
		}
	}
	if group == uint32(len(u.groups)) || run < n {
		return 0, 0, fmt.Errorf("the maps are full: they hold %d groups and %d paths", len(u.groups), len(u.paths))
	}
	u.groups[group] = true
	for i := first; i < first+n; i++ {
		u.paths[i] = true
	}
	return group, first, nil
}
