// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/plait-net/plait/maps"
	"github.com/plait-net/plait/test/plane"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// newTables returns tables on real maps of their own, with room for few paths.
func newTables(t *testing.T) *tables {
	t.Helper()
	p, err := plane.New(maps.Sizes{Groups: 4, Paths: 12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return &tables{
		set: p.Set, multiplier: 3,
		keys: func(int, netip.Addr, netip.Addr) maps.PathKeys { return maps.PathKeys{} },
	}
}

// wantB is peer b, 10.255.0.2, over the given remote locators of uplinks 0 and 1.
func wantB(remotes ...string) wantGroup {
	g := wantGroup{family: maps.IPv4, identity: addr("10.255.0.2")}
	for i, r := range remotes {
		up := uint8(i % 2)
		local := []string{"10.1.1.2", "10.2.1.2"}[up]
		g.paths = append(g.paths, wantPath{
			pathID: pathID{
				local: addr(local), remote: addr(r), identity: addr("10.255.0.1"),
				peerIdentity: g.identity, uplink: up,
			},
			weight: 1, ifindex: 2 + int(up), nextHop: addr(local).Prev(),
		})
	}
	return g
}

func apply(t *testing.T, tb *tables, want ...wantGroup) bool {
	t.Helper()
	changed, err := tb.apply(want)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// published checks that the maps say exactly what the groups want.
func published(t *testing.T, tb *tables, want ...wantGroup) {
	t.Helper()
	ids, err := tb.set.Identities()
	if err != nil {
		t.Fatal(err)
	}
	pairs, err := tb.set.Pairs()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, w := range want {
		index, ok := ids[w.identity]
		if !ok {
			t.Fatalf("identity %s is not published", w.identity)
		}
		g := tb.set.Groups.At(index)
		if int(g.PathCount) != len(w.paths) {
			t.Fatalf("group of %s has %d paths, want %d", w.identity, g.PathCount, len(w.paths))
		}
		for i, p := range w.paths {
			at := g.FirstPath + uint32(i)
			got := tb.set.Path(at)
			wantPath := maps.Path{
				Local: p.local, Remote: p.remote, Identity: p.identity, PeerIdentity: p.peerIdentity,
				NextHop: p.nextHop, Ifindex: p.ifindex, Group: index, Uplink: p.uplink, Number: uint8(i),
			}
			if got != wantPath {
				t.Errorf("path %d of %s is %+v, want %+v", i, w.identity, got, wantPath)
			}
			if path, ok := pairs[maps.Pair{Local: p.local, Remote: p.remote}]; !ok || path != at {
				t.Errorf("pair %s, %s leads to path %d (%v), want %d", p.local, p.remote, path, ok, at)
			}
			if s := tb.set.PathStates.At(at); s.Multiplier != 3 || s.MinMultiplier != 3 {
				t.Errorf("path %d has multipliers %d, %d, want 3, 3", i, s.Multiplier, s.MinMultiplier)
			}
			n++
		}
		for i, b := range g.Bucket {
			if int(b) >= len(w.paths) {
				t.Fatalf("bucket %d names path %d of %d", i, b, len(w.paths))
			}
		}
	}
	if len(ids) != len(want) || len(pairs) != n {
		t.Errorf("%d identities and %d pairs are published, want %d and %d", len(ids), len(pairs), len(want), n)
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	tb := newTables(t)
	w := wantB("10.1.2.2", "10.2.2.2")
	if !apply(t, tb, w) {
		t.Error("the first apply changed nothing")
	}
	published(t, tb, w)
	if apply(t, tb, w) {
		t.Error("the second apply of the same moved something")
	}
	published(t, tb, w)
}

func TestApplyKeepsPathsThatStay(t *testing.T) {
	tb := newTables(t)
	apply(t, tb, wantB("10.1.2.2", "10.2.2.2"))
	g := tb.groups[0]
	gs := tb.set.GroupStates.At(g.index)
	gs.Sent, gs.Newest, gs.Fresh, gs.Up, gs.Caps, gs.PeerEpoch = 100, 99, 0b11, 0b10, maps.CapMark, 7
	tb.set.PathStates.At(g.first + 1).Newest = 99
	tb.set.PathStates.At(g.first).Newest = 98

	// The first path's remote changes, the second stays as number 1.
	w := wantB("10.1.2.3", "10.2.2.2")
	if !apply(t, tb, w) {
		t.Error("a changed path moved nothing")
	}
	published(t, tb, w)
	n := tb.groups[0]
	if n.index == g.index || n.first == g.first {
		t.Errorf("the group was changed in place: index %d, first path %d", n.index, n.first)
	}
	gs = tb.set.GroupStates.At(n.index)
	if gs.Sent != 100 || gs.Newest != 99 || gs.Caps != maps.CapMark || gs.PeerEpoch != 7 {
		t.Errorf("the group's liveness did not come along: %+v", *gs)
	}
	if gs.Fresh != 0b10 || gs.Up != 0b10 {
		t.Errorf("fresh, up = %b, %b; want those of the path that stays, 10, 10", gs.Fresh, gs.Up)
	}
	if a, b := tb.set.PathStates.At(n.first).Newest, tb.set.PathStates.At(n.first+1).Newest; a != 0 || b != 99 {
		t.Errorf("newest rounds are %d, %d; want 0 for the new path and 99", a, b)
	}
	// Only the path that has answered carries traffic.
	for i, b := range tb.set.Groups.At(n.index).Bucket {
		if b != 1 {
			t.Fatalf("bucket %d names path %d, which has never answered", i, b)
		}
	}
}

func TestApplyAdopts(t *testing.T) {
	tb := newTables(t)
	w := wantB("10.1.2.2", "10.2.2.2")
	apply(t, tb, w)
	g := tb.groups[0]
	tb.set.GroupStates.At(g.index).Fresh = 0b11
	tb.set.PathStates.At(g.first).Multiplier = 20 // learned by congestion
	next := &tables{set: tb.set, multiplier: 3, keys: tb.keys}
	if !apply(t, next, w) {
		t.Error("adoption does not tell the sender")
	}
	if n := next.groups[0]; n.index != g.index || n.first != g.first {
		t.Errorf("group %d, first path %d; want the earlier agent's %d, %d", n.index, n.first, g.index, g.first)
	}
	if f := tb.set.GroupStates.At(g.index).Fresh; f != 0b11 {
		t.Errorf("fresh = %b after adoption, want 11", f)
	}
	if m := tb.set.PathStates.At(g.first).Multiplier; m != 20 {
		t.Errorf("multiplier = %d after adoption, want the learned 20", m)
	}
}

func TestApplyFollowsLinks(t *testing.T) {
	tb := newTables(t)
	w := wantB("10.1.2.2", "10.2.2.2")
	apply(t, tb, w)
	w.paths = slices.Clone(w.paths)
	w.paths[0].nextHop = addr("10.1.1.9")
	if apply(t, tb, w) {
		t.Error("a next hop that changes need not be told to the sender")
	}
	published(t, tb, w)
	w.paths = slices.Clone(w.paths)
	w.paths[0].ifindex = 0
	w.paths[0].nextHop = netip.Addr{}
	if !apply(t, tb, w) {
		t.Error("a path that leads nowhere must be told to the sender")
	}
	published(t, tb, w)
}

func TestApplyRemoves(t *testing.T) {
	tb := newTables(t)
	apply(t, tb, wantB("10.1.2.2", "10.2.2.2"))
	apply(t, tb)
	published(t, tb)
	apply(t, tb, wantB("10.1.2.2", "10.2.2.2"))
	published(t, tb, wantB("10.1.2.2", "10.2.2.2"))
}

func TestApplyFull(t *testing.T) {
	tb := newTables(t)
	w := wantB("10.1.2.2", "10.2.2.2", "10.1.2.3", "10.2.2.3", "10.1.2.4", "10.2.2.4", "10.1.2.5", "10.2.2.5")
	apply(t, tb, w)
	other := wantB("10.1.3.2", "10.2.3.2", "10.1.3.3", "10.2.3.3", "10.1.3.4", "10.2.3.4")
	other.identity = addr("10.255.0.3")
	for i := range other.paths {
		other.paths[i].peerIdentity = other.identity
	}
	if _, err := tb.apply([]wantGroup{w, other}); err == nil {
		t.Fatal("14 paths fitted into 12")
	}
	if g := tb.set.Groups.At(tb.groups[0].index); g.PathCount != 8 {
		t.Errorf("the group that was there has %d paths, want 8", g.PathCount)
	}
	ids, err := tb.set.Identities()
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) != 1 {
		t.Errorf("%d identities are published, want the one that was there", len(ids))
	}
}
